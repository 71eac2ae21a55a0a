// SPDX-License-Identifier: MIT OR Apache-2.0
//! Faults that cargo-mutants makes up, over the ownership core and the state machines; `.cargo/mutants.toml` says which
//! files. One program and one version of it, so that the list of survivors means the same everywhere.
//!
//! Most of them are switched on one by one in one binary, which takes minutes. cargo-mutants itself judges what is left:
//! who lived there without being explained, who can not be switched, and a sample of the killed, of which each must be
//! killed again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde_json::json;

use super::survivors::Survivors;
use super::switched::{self, Outcome};
use super::tree::Tree;
use crate::env::Env;
use crate::{Usage, cmd, ui};

const VERSION: &str = "27.1.0";
/// The crates whose tests are tested.
const PACKAGES: [&str; 4] = ["freehold-mem", "freehold-virt", "freehold-el2", "freehold-driver-core"];
/// Seconds that the tests of one mutant may take: many times what they need.
const LIMIT: &str = "60";
/// Of those that were killed by a switch, so many are killed again without it.
const SAMPLE: usize = 12;
/// What it exits with when it did its work: all dead, some missed, some timed out.
const DONE: [i32; 3] = [0, 2, 3];

/// Runs cargo-mutants and compares its survivors with the explained ones.
///
/// # Errors
/// [`Usage`] for an unknown package; if it can not be installed, or the tests fail without a mutant.
pub(super) fn run(
    env: &Env,
    package: Option<&str>,
    filter: &[String],
    as_json: bool,
    survivors: &Survivors,
) -> Result<ExitCode> {
    if let Some(package) = package
        && !PACKAGES.contains(&package)
    {
        bail!(Usage(format!("no package `{package}` here; there are {}", PACKAGES.join(", "))));
    }
    let program = ensure(env)?;
    let tree = ui::stage("copy the tree", |_| Tree::copy(env))?;
    let mut all = Vec::new();
    for name in PACKAGES.into_iter().filter(|name| package.is_none_or(|p| p == *name)) {
        all.extend(judge(&tree, &program, (name, filter), survivors, &env.out.join("mutants/cargo").join(name))?);
    }
    let result = Sum::of(&all, survivors, filter.is_empty());
    Ok(result.report(as_json))
}

/// The program, installed into the cache where it is missing.
fn ensure(env: &Env) -> Result<PathBuf> {
    let home = env.cache.join("cargo-mutants");
    let own = home.join("bin/cargo-mutants");
    for candidate in [Some(own.clone()), cmd::which("cargo-mutants")].into_iter().flatten() {
        let said = cmd::output(Command::new(&candidate).args(["mutants", "--version"])).unwrap_or_default();
        if said.split_whitespace().last() == Some(VERSION) {
            return Ok(candidate);
        }
    }
    ui::stage(&format!("install cargo-mutants {VERSION}"), |_| {
        let mut install = cmd::cargo(&env.root);
        install.args(["install", "--locked", "--version", VERSION, "--root"]).arg(&home).arg("cargo-mutants");
        cmd::output(&mut install).map(drop)
    })?;
    Ok(own)
}

/// Judges the mutants of a package.
fn judge(
    tree: &Tree,
    program: &Path,
    (package, filter): (&str, &[String]),
    survivors: &Survivors,
    out: &Path,
) -> Result<Vec<Mutant>> {
    let filter: Vec<String> = filter.iter().map(|text| literally(text)).collect();
    let switched = switched::judge(tree, program, package, &filter)?;
    let named = |wanted| switched.iter().filter(move |(_, outcome)| *outcome == wanted).map(|(name, _)| name);
    let killed = named(Outcome::Killed).count();
    let sample: Vec<&String> = named(Outcome::Killed).step_by(killed.div_ceil(SAMPLE).max(1)).collect();
    let (explained, lived): (Vec<&String>, Vec<&String>) =
        named(Outcome::Lived).partition(|name| survivors.generated(&without_place(name)).is_some());
    let open: Vec<&String> = named(Outcome::Open).chain(lived).collect();
    ui::note(&format!(
        "{package}: {killed} killed by a switch; {} and a sample of {} without",
        open.len(),
        sample.len()
    ));
    let again: Vec<String> = open.iter().chain(&sample).map(|name| format!("^{}$", literally(name))).collect();
    let mut all: Vec<Mutant> = Vec::new();
    if !again.is_empty() {
        mutate(tree, program, package, &again, out)?;
        all = read(out)?;
    }
    // It tries those that leave out a field whatever the expressions say.
    all.retain(|mutant| open.contains(&&mutant.what) || sample.contains(&&mutant.what));
    if all.len() != again.len() {
        bail!("cargo-mutants judged {} of {} mutants of {package}", all.len(), again.len());
    }
    let unviable = settle(&mut all, &sample)?;
    all.extend(explained.into_iter().map(|name| Mutant::of(name, Verdict::Missed)));
    let killed = named(Outcome::Killed).filter(|name| !unviable.contains(name));
    all.extend(killed.map(|name| Mutant::of(name, Verdict::Killed)));
    all.extend(unviable.iter().map(|name| Mutant::of(name, Verdict::Unviable)));
    all.extend(named(Outcome::Unviable).map(|name| Mutant::of(name, Verdict::Unviable)));
    all.iter_mut().for_each(|mutant| mutant.what = without_place(&mutant.what));
    Ok(all)
}

/// Takes the sample out again: none of it may live here. Those that do not compile here, where no test's names are in
/// scope, are told: they are no programs.
fn settle(all: &mut Vec<Mutant>, sample: &[&String]) -> Result<Vec<String>> {
    let (own, rest): (Vec<Mutant>, Vec<Mutant>) = all.drain(..).partition(|mutant| sample.contains(&&mutant.what));
    *all = rest;
    if let Some(mutant) = own.iter().find(|mutant| mutant.verdict == Verdict::Missed) {
        bail!("killed by a switch, but it lives: {}", mutant.what);
    }
    Ok(own.into_iter().filter(|mutant| mutant.verdict == Verdict::Unviable).map(|mutant| mutant.what).collect())
}

/// An expression that matches this text alone.
fn literally(text: &str) -> String {
    const SPECIAL: &str = "\\.+*?()|[]{}^$#&-~";
    text.chars().flat_map(|c| SPECIAL.contains(c).then_some('\\').into_iter().chain([c])).collect()
}

fn mutate(tree: &Tree, program: &Path, package: &str, filter: &[String], out: &Path) -> Result<()> {
    ui::note(&format!("cargo-mutants over {package}"));
    let _ = std::fs::remove_dir_all(out);
    std::fs::create_dir_all(out)?;
    let environment = tree.cargo();
    let mut command = Command::new(program);
    command.current_dir(tree.root()).args(["mutants", "--in-place", "--no-shuffle", "--timeout", LIMIT]);
    command.args(["--package", package, "--output"]).arg(out);
    for filter in filter {
        command.args(["--re", filter]);
    }
    for (name, value) in environment.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    // Its own lines are progress; stdout is for the result.
    let status =
        command.stdin(Stdio::null()).stdout(std::io::stderr()).status().context("cannot start cargo-mutants")?;
    if !status.code().is_some_and(|code| DONE.contains(&code)) {
        bail!("cargo-mutants failed over {package} ({status})");
    }
    Ok(())
}

/// One mutant, afterwards: its description, and how it came out.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mutant {
    what: String,
    verdict: Verdict,
}

impl Mutant {
    fn of(name: &str, verdict: Verdict) -> Self {
        Self { what: name.to_owned(), verdict }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Killed,
    Missed,
    /// Does not compile: it is no program, so it counts for nothing.
    Unviable,
}

#[derive(Deserialize)]
struct Outcomes {
    outcomes: Vec<OneOutcome>,
}

#[derive(Deserialize)]
struct OneOutcome {
    scenario: Scenario,
    summary: String,
}

#[derive(Deserialize)]
enum Scenario {
    Baseline,
    Mutant { name: String },
}

fn read(out: &Path) -> Result<Vec<Mutant>> {
    let path = out.join("mutants.out/outcomes.json");
    parse(&std::fs::read_to_string(&path).with_context(|| path.display().to_string())?)
}

fn parse(text: &str) -> Result<Vec<Mutant>> {
    let outcomes: Outcomes = serde_json::from_str(text).context("cargo-mutants writes another format")?;
    let mut all = Vec::new();
    for outcome in outcomes.outcomes {
        let Scenario::Mutant { name } = outcome.scenario else { continue };
        let verdict = match outcome.summary.as_str() {
            // One that makes the tests hang is noticed too.
            "CaughtMutant" | "Timeout" => Verdict::Killed,
            "MissedMutant" => Verdict::Missed,
            "Unviable" => Verdict::Unviable,
            other => bail!("cargo-mutants says `{other}` of {name}"),
        };
        all.push(Mutant { what: name, verdict });
    }
    Ok(all)
}

/// `FILE:LINE:COLUMN: WHAT` without line and column, which every edit above them changes.
fn without_place(name: &str) -> String {
    match name.split_once(": ") {
        Some((place, what)) => format!("{}: {what}", place.split(':').next().unwrap_or(place)),
        None => name.to_owned(),
    }
}

/// The sum of a run.
struct Sum {
    killed: usize,
    viable: usize,
    /// Survivors, how many of each, and their reason.
    missed: Vec<(String, usize, Option<String>)>,
    problem: Option<String>,
}

impl Sum {
    /// `whole` says that every mutant was tried, so that an explanation which explains nothing is wrong.
    fn of(all: &[Mutant], survivors: &Survivors, whole: bool) -> Self {
        let count = |verdict| all.iter().filter(|m| m.verdict == verdict).count();
        let (killed, missed_in_all) = (count(Verdict::Killed), count(Verdict::Missed));
        let mut missed: BTreeMap<&str, usize> = BTreeMap::new();
        for mutant in all.iter().filter(|m| m.verdict == Verdict::Missed) {
            *missed.entry(&mutant.what).or_default() += 1;
        }
        let reason = |what: &str, count: usize| survivors.generated(what).filter(|g| count <= g.count);
        let open = missed.iter().filter(|(what, count)| reason(what, **count).is_none());
        let open: Vec<String> = open.map(|(what, _)| (*what).to_owned()).collect();
        let mut problem = super::shortfall(killed, killed + missed_in_all, &open, whole);
        let files: std::collections::BTreeSet<&str> = all.iter().filter_map(|m| m.what.split(": ").next()).collect();
        let explained = files.iter().flat_map(|file| survivors.generated_in(file));
        let dead = explained.filter(|g| whole && missed.get(g.what.as_str()).is_none_or(|count| *count < g.count));
        let dead: Vec<&str> = dead.map(|g| g.what.as_str()).collect();
        if !dead.is_empty() {
            problem.get_or_insert(format!("explained as survivors, but killed:\n{}", dead.join("\n")));
        }
        let missed = missed
            .into_iter()
            .map(|(what, count)| (what.to_owned(), count, reason(what, count).map(|g| g.reason.clone())));
        Self { killed, viable: killed + missed_in_all, missed: missed.collect(), problem }
    }

    fn report(&self, as_json: bool) -> ExitCode {
        let code = ExitCode::from(u8::from(self.problem.is_some()));
        if as_json {
            let each = self
                .missed
                .iter()
                .map(|(what, count, reason)| json!({ "what": what, "count": count, "reason": reason }));
            let each: Vec<_> = each.collect();
            println!(
                "{:#}",
                json!({ "survivors": each, "killed": self.killed, "of": self.viable, "problem": self.problem })
            );
            return code;
        }
        for (what, count, reason) in &self.missed {
            println!("  {what}{}", if *count > 1 { format!(" ({count} times)") } else { String::new() });
            println!("    {}", reason.as_deref().unwrap_or("NOT EXPLAINED"));
        }
        self.problem.iter().for_each(|problem| println!("{problem}"));
        println!("killed {} of {}", self.killed, self.viable);
        code
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mutant(what: &str, verdict: Verdict) -> Mutant {
        Mutant { what: what.to_owned(), verdict }
    }

    #[test]
    fn outcomes_are_read() {
        let one = |name: &str, summary: &str| {
            format!(
                "{{\"scenario\": {{\"Mutant\": {{\"name\": \"{name}\", \"package\": \"p\"}}}}, \"summary\": \"{summary}\"}}"
            )
        };
        let text = format!(
            "{{\"outcomes\": [{{\"scenario\": \"Baseline\", \"summary\": \"Success\"}}, {}, {}, {}, {}]}}",
            one("a/b.rs:11:30: replace << with >>", "MissedMutant"),
            one("a/b.rs:1:2: replace f -> u64 with 0", "CaughtMutant"),
            one("a/b.rs:1:2: hang", "Timeout"),
            one("a/b.rs:1:2: odd", "Unviable"),
        );
        let expected = [
            mutant("a/b.rs:11:30: replace << with >>", Verdict::Missed),
            mutant("a/b.rs:1:2: replace f -> u64 with 0", Verdict::Killed),
            mutant("a/b.rs:1:2: hang", Verdict::Killed),
            mutant("a/b.rs:1:2: odd", Verdict::Unviable),
        ];
        assert_eq!(parse(&text).unwrap(), expected);
        assert!(parse(&text.replace("Timeout", "Perhaps")).is_err());
        assert_eq!(without_place(&expected[0].what), "a/b.rs: replace << with >>");
    }

    #[test]
    fn an_expression_of_a_name_matches_it_alone() {
        assert_eq!(literally("a.rs:1:2: f -> Vec<u8> with [0; 2]"), r"a\.rs:1:2: f \-> Vec<u8> with \[0; 2\]");
    }

    #[test]
    fn who_lives_without_a_switch_was_not_killed_by_it() {
        let names = ["a.rs:1:1: x".to_owned(), "a.rs:2:2: y".to_owned()];
        let sample: Vec<&String> = names.iter().collect();
        let other = mutant("a.rs:3:3: z", Verdict::Missed);
        let mut all = vec![mutant(&names[0], Verdict::Killed), other.clone(), mutant(&names[1], Verdict::Unviable)];
        assert_eq!(settle(&mut all, &sample).unwrap(), [names[1].clone()], "no program");
        assert_eq!(all, [other], "the sample is no second count");
        assert!(settle(&mut vec![mutant(&names[1], Verdict::Missed)], &sample).is_err());
    }

    #[test]
    fn a_survivor_needs_a_reason_and_a_reason_a_survivor() {
        let list = "[[generated]]\nwhat = 'a.rs: x'\nreason = 'equal'\n";
        let survivors: Survivors = toml::from_str(list).unwrap();
        let killed = vec![mutant("a.rs: k", Verdict::Killed); 50];
        let with = |more: &[Mutant], whole| Sum::of(&[killed.clone(), more.to_vec()].concat(), &survivors, whole);
        let explained = with(&[mutant("a.rs: x", Verdict::Missed), mutant("a.rs: u", Verdict::Unviable)], true);
        assert_eq!((explained.killed, explained.viable, explained.problem), (50, 51, None));
        assert!(with(&[mutant("a.rs: y", Verdict::Missed)], false).problem.unwrap().contains("a.rs: y"));
        assert!(
            with(&[mutant("a.rs: x", Verdict::Missed), mutant("a.rs: x", Verdict::Missed)], true).problem.is_some()
        );
        assert!(with(&[], true).problem.unwrap().contains("but killed"));
        assert_eq!(with(&[], false).problem, None, "a part of them says nothing about the rest");
    }
}
