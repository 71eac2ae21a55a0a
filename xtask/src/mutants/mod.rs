// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask mutants`: the tests are tested. Faults are planted in a copy of the tree, and some test must fail.
//!
//! Two kinds: faults written by hand, one list per class of bug in `tests/mutants`, and those that cargo-mutants makes up.
//! A survivor must stand with its reason in `tests/mutants/survivors.toml`. The work tree itself is never touched.

mod faults;
mod generated;
mod suites;
mod survivors;
mod switched;
mod tree;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::env::Env;
use crate::test::{Context, Item, Work};
use crate::{Usage, ui};
use faults::Fault;
use suites::{Killers, Outcome};
use survivors::Survivors;
use tree::Tree;

/// Of a hundred faults, so many must be killed.
const LEAST_PERCENT: usize = 95;

/// What the user may choose.
#[derive(clap::Args)]
pub(crate) struct MutantsArgs {
    /// Only faults whose name contains NAME, or one of several; with --cargo, only mutants whose description does
    #[arg(long, value_name = "NAME")]
    filter: Vec<String>,
    /// Only faults of this class
    #[arg(long, value_name = "CLASS", conflicts_with = "cargo")]
    class: Option<String>,
    /// Only the few that run in CI
    #[arg(long, conflicts_with = "cargo")]
    subset: bool,
    /// Plants nothing; says whether every fault still has its place in the tree
    #[arg(long, conflicts_with_all = ["cargo", "json"])]
    check_applies: bool,
    /// Runs cargo-mutants over `el2/mem` and the state machines instead
    #[arg(long)]
    cargo: bool,
    /// With --cargo: only this package
    #[arg(long, value_name = "PACKAGE", requires = "cargo")]
    package: Option<String>,
    /// The result as JSON on stdout
    #[arg(long)]
    json: bool,
}

/// Plants faults, or checks that they could be planted.
///
/// # Errors
/// [`Usage`] for a filter or class that picks nothing; if a list is wrong, or a suite fails without any fault.
pub(crate) fn run(env: &Env, args: &MutantsArgs) -> Result<ExitCode> {
    let survivors = survivors::read(env)?;
    if args.cargo {
        return generated::run(env, args.package.as_deref(), &args.filter, args.json, &survivors);
    }
    let all = faults::read(env)?;
    if args.check_applies {
        return Ok(report_places(&all, &places(env, &all, &survivors)?));
    }
    let count = all.len();
    let chosen = choose(all, args)?;
    let results = plant(env, &chosen, |planted| {
        if !args.json {
            println!("  {}", planted.line(&survivors));
        }
    })?;
    Ok(report(&results, &survivors, chosen.len() == count, args.json))
}

fn choose(all: Vec<Fault>, args: &MutantsArgs) -> Result<Vec<Fault>> {
    if let Some(class) = &args.class
        && !faults::CLASSES.contains(&class.as_str())
    {
        bail!(Usage(format!("no class `{class}`; there are {}", faults::CLASSES.join(", "))));
    }
    let mut chosen: Vec<Fault> = all
        .into_iter()
        .filter(|f| args.class.as_ref().is_none_or(|class| *class == f.class))
        .filter(|f| args.filter.is_empty() || args.filter.iter().any(|name| f.name.contains(name.as_str())))
        .filter(|f| f.subset || !args.subset)
        .collect();
    if chosen.is_empty() {
        bail!(Usage("no fault is of that class and has such a name".to_owned()));
    }
    // Neighbours are built by the same suite, so that less is built again.
    chosen.sort_by(|a, b| (&a.killers, &a.file).cmp(&(&b.killers, &b.file)));
    Ok(chosen)
}

/// Everything that is wrong with the lists themselves.
fn places(env: &Env, all: &[Fault], survivors: &Survivors) -> Result<Vec<String>> {
    let mut wrong = faults::shape(all);
    for fault in all {
        let text = std::fs::read_to_string(env.root.join(&fault.file)).unwrap_or_default();
        wrong.extend(fault.planted_in(&text).err().map(|why| format!("{}: {}: {why}", fault.class, fault.name)));
    }
    wrong.extend(survivors.strangers(all));
    Ok(wrong)
}

fn report_places(all: &[Fault], wrong: &[String]) -> ExitCode {
    for line in wrong {
        println!("{line}");
    }
    println!("{} faults, {} wrong", all.len(), wrong.len());
    ExitCode::from(u8::from(!wrong.is_empty()))
}

/// How one fault came out.
struct Planted<'f> {
    fault: &'f Fault,
    outcome: Outcome,
    took: Duration,
}

/// Plants each fault by itself and lets its suites try to kill it.
fn plant<'f>(env: &Env, chosen: &'f [Fault], show: impl Fn(&Planted<'f>)) -> Result<Vec<Planted<'f>>> {
    let tree = ui::stage("copy the tree", |_| Tree::copy(env))?;
    let killers = Killers::new(&tree);
    // The control: a suite that fails by itself would kill everything.
    let names: std::collections::BTreeSet<&str> =
        chosen.iter().flat_map(|f| f.killers.iter().map(String::as_str)).collect();
    for name in names {
        ui::stage(&format!("{name}, without a fault"), |_| killers.must_pass(name))?;
    }
    let bar = progress(chosen.len());
    let mut results = Vec::new();
    for fault in chosen {
        bar.set_message(fault.name.clone());
        let begin = Instant::now();
        let outcome = judge(&tree, &killers, fault)?;
        let planted = Planted { fault, outcome, took: begin.elapsed() };
        bar.suspend(|| show(&planted));
        results.push(planted);
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(results)
}

fn judge(tree: &Tree, killers: &Killers<'_>, fault: &Fault) -> Result<Outcome> {
    // Reverted when it is dropped, whatever happens.
    let _planted = tree.plant(fault)?;
    for name in &fault.killers {
        let outcome = killers.try_to_kill(name)?;
        if outcome != Outcome::Survived {
            return Ok(outcome);
        }
    }
    Ok(Outcome::Survived)
}

fn progress(count: usize) -> ProgressBar {
    let bar = ProgressBar::new(count as u64);
    if let Ok(style) = ProgressStyle::with_template("  {bar:30} {pos}/{len} {elapsed} {wide_msg}") {
        bar.set_style(style);
    }
    bar
}

impl Planted<'_> {
    /// Whether the fault is dead. One that does not compile counts only where the types are meant to refuse it.
    fn is_killed(&self) -> bool {
        match &self.outcome {
            Outcome::Killed { .. } => !self.fault.types,
            Outcome::Refused(_) => self.fault.types,
            Outcome::Survived => false,
        }
    }

    /// All there is to say; of a survivor also what it is and why it may live.
    fn line(&self, survivors: &Survivors) -> String {
        let fault = self.fault;
        let line = format!("{:<17} {}: {} ({})", fault.class, fault.name, self.says(), ui::seconds(self.took));
        if self.is_killed() {
            return line;
        }
        format!("{line}\n    {} {}", fault.says, survivors.planted(&fault.name).unwrap_or("Not explained."))
    }

    fn says(&self) -> String {
        match &self.outcome {
            Outcome::Killed { by } if self.is_killed() => format!("killed by {by}"),
            Outcome::Killed { by } => format!("meant to be refused by the compiler, but killed by {by}"),
            Outcome::Refused(error) if self.is_killed() => format!("refused by the compiler ({error})"),
            Outcome::Refused(error) => format!("does not compile, so it shows nothing: {error}"),
            Outcome::Survived => "SURVIVED".to_owned(),
        }
    }
}

/// Why the result is not good enough; nothing if it is. `open` are the names of survivors without a reason; of a part of
/// the faults it does not matter how many are explained.
fn shortfall(killed: usize, of: usize, open: &[String], whole: bool) -> Option<String> {
    if !open.is_empty() {
        return Some(format!("not killed and not explained: {}", open.join(", ")));
    }
    let enough = !whole || killed * 100 >= of * LEAST_PERCENT;
    (!enough).then(|| format!("less than {LEAST_PERCENT} % are killed"))
}

fn report(results: &[Planted<'_>], survivors: &Survivors, whole: bool, as_json: bool) -> ExitCode {
    let killed = results.iter().filter(|p| p.is_killed()).count();
    let open: Vec<String> = results
        .iter()
        .filter(|p| !p.is_killed() && survivors.planted(&p.fault.name).is_none())
        .map(|p| p.fault.name.clone())
        .collect();
    // An explanation must not outlive its survivor.
    let dead = results.iter().filter(|p| p.is_killed() && survivors.planted(&p.fault.name).is_some());
    let dead: Vec<&str> = dead.map(|p| p.fault.name.as_str()).collect();
    let mut problem = shortfall(killed, results.len(), &open, whole);
    if !dead.is_empty() {
        problem.get_or_insert(format!("explained as survivors, but killed: {}", dead.join(", ")));
    }
    if as_json {
        let each = |p: &Planted<'_>| {
            json!({ "name": p.fault.name, "class": p.fault.class, "file": p.fault.file, "killed": p.is_killed(),
                    "detail": p.says(), "seconds": p.took.as_secs_f64() })
        };
        let each: Vec<_> = results.iter().map(each).collect();
        println!("{:#}", json!({ "faults": each, "killed": killed, "of": results.len(), "problem": problem }));
        return ExitCode::from(u8::from(problem.is_some()));
    }
    problem.iter().for_each(|p| println!("{p}"));
    println!("killed {killed} of {}", results.len());
    ExitCode::from(u8::from(problem.is_some()))
}

/// What runs in CI: every fault still has its place, and a few are planted.
pub(crate) fn works() -> Vec<Work> {
    vec![
        Work::new("mutants/places", |context: &Context<'_>| {
            let wrong = places(context.env, &faults::read(context.env)?, &survivors::read(context.env)?)?;
            Ok(vec![Item::new("mutants/places", (!wrong.is_empty()).then(|| wrong.join("\n")))])
        }),
        Work::new("mutants/subset", |context: &Context<'_>| {
            let all = faults::read(context.env)?;
            let few: Vec<Fault> = all.into_iter().filter(|f| f.subset).collect();
            let item = |p: Planted<'_>| {
                Item::new(format!("mutants/subset/{}", p.fault.name), (!p.is_killed()).then(|| p.says()))
            };
            Ok(plant(context.env, &few, |_| {})?.into_iter().map(item).collect())
        })
        .with_inner_filter(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planted(types: bool, outcome: Outcome) -> bool {
        let fault = Fault { types, ..faults::tests::fault("a") };
        Planted { fault: &fault, outcome, took: Duration::ZERO }.is_killed()
    }

    #[test]
    fn what_does_not_compile_is_killed_only_where_types_are_the_defence() {
        assert!(planted(true, Outcome::Refused("E0499".to_owned())));
        assert!(!planted(false, Outcome::Refused("E0308".to_owned())));
        assert!(planted(false, Outcome::Killed { by: "t".to_owned() }));
        assert!(!planted(true, Outcome::Killed { by: "t".to_owned() }), "the types let it through");
        assert!(!planted(false, Outcome::Survived));
    }

    #[test]
    fn a_survivor_without_a_reason_or_too_many_of_them_fail() {
        assert_eq!(shortfall(95, 100, &[], true), None);
        assert!(shortfall(94, 100, &[], true).is_some());
        assert_eq!(shortfall(1, 2, &[], false), None);
        assert!(shortfall(99, 100, &["x".to_owned()], false).unwrap().contains('x'));
    }
}
