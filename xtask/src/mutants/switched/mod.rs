// SPDX-License-Identifier: MIT OR Apache-2.0
//! All mutants of a package in one test binary, one of them switched on at a time: a run instead of a build for each.
//!
//! Judges by the unit tests of the library alone, so that a mutant which lives here is none of the survivors yet. A kill
//! counts only if the mutant was reached: then, and only then, it was the mutant.

mod list;
mod rewrite;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use indicatif::ProgressBar;
use serde_json::Value;

use super::tree::Tree;
use crate::{cmd, ui};
use list::{Genre, Mutant};
use rewrite::Id;

/// Time for all tests, with every mutant off.
const LONGEST: Duration = Duration::from_secs(600);
/// Time for the tests of one mutant: so many times what they need by themselves, and at least some seconds.
const PATIENCE: u32 = 8;
const LEAST: Duration = Duration::from_secs(10);
/// Builds at most, each without what did not compile in the one before.
const BUILDS: usize = 12;

/// How a mutant came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// A test failed, or never ended.
    Killed,
    /// Its own text does not compile.
    Unviable,
    /// No unit test failed.
    Lived,
    /// It could not be switched: somebody else has to say.
    Open,
}

/// Judges the mutants of a package: each one's description, and how it came out.
///
/// # Errors
/// If cargo-mutants does not list them, or the tests fail with every mutant off.
pub(super) fn judge(tree: &Tree, program: &Path, package: &str, filter: &[String]) -> Result<Vec<(String, Outcome)>> {
    let mutants = list::list(tree.root(), program, package, filter)?;
    let built =
        ui::stage(&format!("{package}: {} mutants in one binary", mutants.len()), |_| build(tree, package, &mutants))?;
    let mut all = Vec::new();
    let bar = super::progress(mutants.len());
    for (id, mutant) in mutants.iter().enumerate() {
        bar.set_message(mutant.name.clone());
        all.push((mutant.name.clone(), built.outcome(id, mutant, &bar)?));
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(all)
}

/// The binary with every mutant that can be switched.
struct Built {
    binary: PathBuf,
    /// Where its tests look for what is beside them.
    home: PathBuf,
    there: BTreeSet<Id>,
    reached: PathBuf,
    /// When tests that have not ended never will.
    limit: Duration,
}

/// Files of the tree as they were, which are written back.
struct Originals<'t> {
    root: &'t Path,
    files: BTreeMap<String, String>,
}

impl Drop for Originals<'_> {
    fn drop(&mut self) {
        for (file, text) in &self.files {
            // What stays behind is put right by the next copy.
            let _ = std::fs::write(self.root.join(file), text);
        }
    }
}

fn build(tree: &Tree, package: &str, mutants: &[Mutant]) -> Result<Built> {
    let switch = switch(tree)?;
    let mut originals = Originals { root: tree.root(), files: BTreeMap::new() };
    for mutant in mutants {
        let text = std::fs::read_to_string(tree.root().join(&mutant.file)).with_context(|| mutant.file.clone())?;
        originals.files.insert(mutant.file.clone(), text);
    }
    let mut but = BTreeSet::new();
    for _ in 0..BUILDS {
        let mut there = BTreeSet::new();
        for (file, text) in &originals.files {
            let own: Vec<_> = mutants.iter().enumerate().filter(|(_, mutant)| mutant.file == *file).collect();
            let (text, ids) = rewrite::rewrite(text, &own, &but).with_context(|| file.clone())?;
            std::fs::write(tree.root().join(file), text)?;
            there.extend(ids);
        }
        match compile(tree, package, &switch)? {
            Ok((binary, home)) => {
                let reached = switch.with_file_name("reached");
                let mut built = Built { binary, home, there, reached, limit: LONGEST };
                let begin = Instant::now();
                let (passed, _) = built.run(None, &[])?;
                built.limit = LEAST.max(begin.elapsed().saturating_mul(PATIENCE));
                return if passed { Ok(built) } else { bail!("the tests of {package} fail with every mutant off") };
            }
            Err(wrong) => {
                let before = but.len();
                but.extend(wrong);
                if but.len() == before {
                    bail!("the rewritten {package} does not compile; see its files in {}", tree.root().display());
                }
            }
        }
    }
    bail!("the rewritten {package} never compiles")
}

/// The crate that a rewritten one asks.
fn switch(tree: &Tree) -> Result<PathBuf> {
    let dir = tree.build().join("switch");
    std::fs::create_dir_all(&dir)?;
    let (source, library) = (dir.join("on.rs"), dir.join("libfreehold_switch.rlib"));
    std::fs::write(&source, include_str!("on.rs"))?;
    let mut rustc = Command::new("rustc");
    rustc.current_dir(tree.root()).env("RUSTC_BOOTSTRAP", "1");
    rustc.args(["--edition", "2024", "-O", "--crate-name", "freehold_switch", "--crate-type", "rlib", "-o"]);
    cmd::output(rustc.arg(&library).arg(&source))?;
    Ok(library)
}

/// The binary and where its package is, or the mutants that are to blame.
fn compile(tree: &Tree, package: &str, switch: &Path) -> Result<Result<(PathBuf, PathBuf), BTreeSet<Id>>> {
    let mut cargo = tree.cargo();
    cargo.args(["rustc", "--lib", "--profile", "test", "--message-format", "json", "--package", package, "--"]);
    cargo.args(["--cap-lints", "allow", "--extern"]).arg(format!("freehold_switch={}", switch.display()));
    let output = cargo.stdin(Stdio::null()).stderr(Stdio::null()).output().context("cannot start cargo")?;
    let messages: Vec<Value> =
        String::from_utf8_lossy(&output.stdout).lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    if output.status.success() {
        let made = messages.iter().rev().find_map(|message| {
            let home = Path::new(message["manifest_path"].as_str()?).parent()?;
            Some((PathBuf::from(message["executable"].as_str()?), home.to_owned()))
        });
        return Ok(Ok(made.context("cargo names no test binary")?));
    }
    Ok(Err(messages.iter().flat_map(|message| to_blame(tree.root(), &message["message"])).collect()))
}

fn to_blame(root: &Path, message: &Value) -> BTreeSet<Id> {
    let spans = message["spans"].as_array().filter(|_| message["level"] == "error");
    let primary = spans.into_iter().flatten().filter(|span| span["is_primary"] == true);
    let ids = primary.filter_map(|span| {
        let text = std::fs::read_to_string(root.join(span["file_name"].as_str()?)).ok()?;
        let at = |name: &str| usize::try_from(span[name].as_u64()?).ok();
        Some(rewrite::around(&text, &(at("byte_start")?..at("byte_end")?)))
    });
    ids.flatten().collect()
}

impl Built {
    fn outcome(&self, id: Id, mutant: &Mutant, bar: &ProgressBar) -> Result<Outcome> {
        if !self.there.contains(&id) {
            // A value that the function can not return does not compile wherever it stands.
            let unviable = mutant.genre == Genre::FnValue && mutant.switchable();
            return Ok(if unviable { Outcome::Unviable } else { Outcome::Open });
        }
        // The tests of its own module first: they kill most.
        let module = mutant.module();
        let (passed, reached) = match self.run(Some(id), &[&module])? {
            (true, _) => self.run(Some(id), &["--skip", &module])?,
            failed => failed,
        };
        if !passed && !reached {
            bar.suspend(|| ui::note(&format!("failed without having been reached: {}", mutant.name)));
        }
        Ok(if !passed && reached { Outcome::Killed } else { Outcome::Lived })
    }

    /// Whether every test passes with this mutant on, and whether it was reached. Ends with the first test that fails.
    fn run(&self, id: Option<Id>, which: &[&str]) -> Result<(bool, bool)> {
        let _ = std::fs::remove_file(&self.reached);
        let mut command = Command::new(&self.binary);
        command
            .current_dir(&self.home)
            .arg("-q")
            .args(which)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        command.env("RUST_BACKTRACE", "0").env("FREEHOLD_MUTANT_REACHED", &self.reached);
        command.envs(id.map(|id| ("FREEHOLD_MUTANT", id.to_string())));
        let mut child = command.spawn().context("cannot start the tests")?;
        let failed = watch::first_failure(child.stdout.take().context("no pipe")?, Instant::now() + self.limit);
        if failed {
            let _ = child.kill();
        }
        let passed = child.wait()?.success() && !failed;
        Ok((passed, self.reached.exists()))
    }
}
