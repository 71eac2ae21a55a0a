// SPDX-License-Identifier: MIT OR Apache-2.0
//! Coverage-guided fuzzing: libFuzzer around the targets of `tests/fuzz`, from the committed corpus on.
//!
//! A fuzzer that sees nothing passes as quietly as one that finds nothing. So each target must execute a number of
//! inputs, the corpus alone must reach a number of edges, and a planted fault must be found.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::{Context, Item, Work};
use crate::env::Env;
use crate::{cmd, setup, ui};

/// One target.
struct Target {
    name: &'static str,
    /// Longest input, in bytes.
    longest: u32,
    /// Inputs that a run executes at least, on a machine with other things to do.
    executions: u64,
    /// Edges that the committed corpus alone reaches at least.
    edges: u64,
}

const TARGETS: [Target; 4] = [
    Target { name: "dtb", longest: 1024, executions: 1000, edges: 550 },
    Target { name: "tables", longest: 1280, executions: 200, edges: 1500 },
    Target { name: "host", longest: 960, executions: 200, edges: 1000 },
    Target { name: "guest", longest: 960, executions: 100, edges: 600 },
];

/// Seconds of each target in CI.
const SHORT: u64 = 60;
/// Seconds of each target in a long run.
const LONG: u64 = 900;
/// Seconds in which the planted fault must be found: one input does it.
const CONTROL: u64 = 30;
/// Seconds that a run may take longer than it was told to.
const GRACE: u64 = 60;

const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// Counters at every edge, and what comparisons compared (Clang's SanitizerCoverage).
const FLAGS: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "--cfg=fuzzing",
];

pub(super) fn works() -> Vec<Work> {
    let short = TARGETS.iter().map(|t| Work::new(format!("fuzz/{}", t.name), move |c| target(c, t, SHORT)));
    let long = TARGETS.iter().map(|t| Work::new(format!("fuzz/{}-long", t.name), move |c| target(c, t, LONG)));
    let control = Work::new("fuzz/planted-fault-is-found", planted);
    std::iter::once(control).chain(short).chain(long.map(Work::only_long)).collect()
}

/// Builds all targets, once, and returns where they are.
fn built(env: &Env) -> Result<PathBuf> {
    static BUILT: Mutex<Option<PathBuf>> = Mutex::new(None);
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(dir) = &*built {
        return Ok(dir.clone());
    }
    setup::ensure(env)?;
    // A directory of its own: everything in it has counters.
    let target = env.out.with_file_name("fuzz");
    let mut cargo = cmd::cargo(&env.root);
    cargo.args(["build", "--quiet", "--release", "--locked", "--target", TRIPLE]);
    cargo.args(["--manifest-path", "tests/fuzz/engine/Cargo.toml"]).arg("--target-dir").arg(&target);
    cargo.env_remove("CARGO_ENCODED_RUSTFLAGS").env("RUSTFLAGS", FLAGS.join(" "));
    cmd::output(&mut cargo)?;
    let dir = target.join(TRIPLE).join("release");
    *built = Some(dir.clone());
    Ok(dir)
}

/// An empty directory.
fn fresh(dir: &Path) -> Result<()> {
    if dir.exists() {
        std::fs::remove_dir_all(dir).with_context(|| format!("cannot empty {}", dir.display()))?;
    }
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))
}

/// What libFuzzer said, and whether it was content.
fn fuzz(env: &Env, name: &str, corpus: Option<&Path>, seconds: u64, more: &[String]) -> Result<(String, bool)> {
    let program = built(env)?.join(name);
    let work = env.out.join("fuzz").join(name);
    fresh(&work)?;
    let found = work.join("corpus");
    std::fs::create_dir(&found)?;
    let mut command = Command::new(program);
    command.arg(&found).args(corpus);
    command.arg(format!("-max_total_time={seconds}")).arg(format!("-artifact_prefix={}/", work.display()));
    command.args(["-print_final_stats=1", "-rss_limit_mb=2048", "-timeout=60", "-len_control=10"]).args(more);
    command.env("RUST_BACKTRACE", "0");
    let mut command = cmd::bounded(&command, Duration::from_secs(seconds + GRACE));
    let out = command.stdin(Stdio::null()).output().context("cannot start the fuzz target")?;
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    std::fs::create_dir_all(env.logs())?;
    std::fs::write(env.logs().join(format!("fuzz-{name}.log")), &said)?;
    Ok((said, out.status.success()))
}

fn target(context: &Context<'_>, target: &Target, seconds: u64) -> Result<Vec<Item>> {
    let corpus = context.env.root.join("tests/fuzz/corpus").join(target.name);
    let length = format!("-max_len={}", target.longest);
    let (said, content) = fuzz(context.env, target.name, Some(&corpus), seconds, &[length])?;
    let name = if seconds == SHORT { format!("fuzz/{}", target.name) } else { format!("fuzz/{}-long", target.name) };
    let problem = if content { too_little(&said, target) } else { Some(finding(context.env, target.name, &said)) };
    if problem.is_none() {
        ui::note(&summary(&name, &said).unwrap_or_default());
    }
    Ok(vec![Item::new(name, problem)])
}

/// What a run says of itself.
struct Reached {
    executions: u64,
    /// Of the corpus alone.
    first_edges: u64,
    edges: u64,
    features: u64,
}

fn reached(said: &str) -> Option<Reached> {
    let line = |mark: &str| said.lines().rev().find(|line| line.starts_with('#') && line.contains(mark));
    let number = |line: &str, mark: &str| line.split_once(mark)?.1.split_whitespace().next()?.parse::<u64>().ok();
    let (first, last) = (line("\tINITED")?, line("\tDONE")?);
    let executed = said.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))?;
    Some(Reached {
        executions: executed.trim().parse().ok()?,
        first_edges: number(first, "cov: ")?,
        edges: number(last, "cov: ")?,
        features: number(last, "ft: ")?,
    })
}

fn summary(name: &str, said: &str) -> Option<String> {
    let Reached { executions, first_edges, edges, features } = reached(said)?;
    Some(format!("{name}: {executions} inputs, {edges} edges ({first_edges} by the corpus), {features} features"))
}

/// Why a run that found nothing proves nothing.
fn too_little(said: &str, target: &Target) -> Option<String> {
    let Some(reached) = reached(said) else { return Some("the fuzzer did not say what it did".to_owned()) };
    if reached.executions < target.executions {
        Some(format!("{} inputs only, of at least {}", reached.executions, target.executions))
    } else if reached.first_edges < target.edges {
        Some(format!("the corpus reaches {} edges, of at least {}", reached.first_edges, target.edges))
    } else {
        None
    }
}

/// The panic, and where the input is that leads to it.
fn finding(env: &Env, name: &str, said: &str) -> String {
    let lines: Vec<&str> = said.lines().collect();
    let panic = lines.iter().position(|line| line.contains("panicked at"));
    let what = panic.map(|at| lines.iter().skip(at).take(3).copied().collect::<Vec<_>>().join("\n"));
    let input = lines.iter().find_map(|line| line.split_once("Test unit written to ")).map_or("", |(_, path)| path);
    let log = env.logs().join(format!("fuzz-{name}.log"));
    format!("{}\ninput: {input}\nlog: {}", what.unwrap_or_else(|| cmd::tail(said, 5)), env.shown(&log))
}

/// The control: a machine that loses invalidations must be found out.
fn planted(context: &Context<'_>) -> Result<Vec<Item>> {
    let (said, content) = fuzz(context.env, "deaf", None, CONTROL, &["-max_len=512".to_owned()])?;
    let seen = !content && said.contains("I3: ");
    let problem = (!seen).then(|| format!("a lost invalidation was not found:\n{}", cmd::tail(&said, 5)));
    Ok(vec![Item::new("fuzz/planted-fault-is-found", problem)])
}

/// Fuzzes `name` for `seconds` from the committed corpus and from what `with` holds, and writes a minimised corpus back.
///
/// # Errors
/// If something was found: it is to be fixed first.
pub(crate) fn grow(env: &Env, name: &str, seconds: u64) -> Result<()> {
    let Some(target) = TARGETS.iter().find(|t| t.name == name) else { bail!("no fuzz target `{name}`") };
    let corpus = env.root.join("tests/fuzz/corpus").join(name);
    std::fs::create_dir_all(&corpus)?;
    let length = format!("-max_len={}", target.longest);
    let (said, content) = fuzz(env, name, Some(&corpus), seconds, &[length])?;
    if !content {
        bail!(finding(env, name, &said));
    }
    println!("{}", summary(name, &said).unwrap_or_default());
    let found = env.out.join("fuzz").join(name).join("corpus");
    let least = env.out.join("fuzz").join(name).join("least");
    fresh(&least)?;
    let mut merge = Command::new(built(env)?.join(name));
    merge.arg("-set_cover_merge=1").args([&least, &corpus, &found]).env("RUST_BACKTRACE", "0");
    cmd::output(&mut merge)?;
    fresh(&corpus)?;
    // The largest first, as many as are kept: they lead furthest.
    let mut files: Vec<(u64, PathBuf)> = std::fs::read_dir(&least)?
        .map(|entry| entry.and_then(|e| Ok((e.metadata()?.len(), e.path()))))
        .collect::<std::io::Result<_>>()?;
    files.sort_unstable();
    files.reverse();
    for (index, (_, file)) in files.iter().take(KEPT).enumerate() {
        std::fs::copy(file, corpus.join(format!("{index:03}")))?;
    }
    println!("{name}: {} of {} inputs kept", files.len().min(KEPT), files.len());
    Ok(())
}

/// Files of a committed corpus.
const KEPT: usize = 50;

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "#60\tINITED cov: 1200 ft: 4000 corp: 60/9Kb exec/s: 0 rss: 40Mb\n\
                        #9000\tNEW    cov: 1210 ft: 4100 corp: 61/9Kb\n\
                        #10000\tDONE   cov: 1215 ft: 4200 corp: 62/9Kb lim: 512 exec/s: 166 rss: 44Mb\n\
                        stat::number_of_executed_units: 10000\n";
    const TARGET: Target = Target { name: "t", longest: 1, executions: 10_000, edges: 1200 };

    #[test]
    fn a_run_that_did_enough_is_summed_up() {
        assert_eq!(too_little(SAID, &TARGET), None);
        let line = summary("fuzz/t", SAID).unwrap();
        assert_eq!(line, "fuzz/t: 10000 inputs, 1215 edges (1200 by the corpus), 4200 features");
    }

    #[test]
    fn a_blind_fuzzer_is_noticed() {
        let blind = SAID.replace("cov: 1200", "cov: 3");
        assert!(too_little(&blind, &TARGET).unwrap().contains("reaches 3 edges"));
        let idle = SAID.replace("units: 10000", "units: 7");
        assert!(too_little(&idle, &TARGET).unwrap().starts_with("7 inputs only"));
        assert!(too_little("nothing", &TARGET).is_some());
    }

    #[test]
    fn a_finding_names_its_panic_and_its_input() {
        let said = "thread 'x' panicked at src/a.rs:1:2:\nI4: a secret\nnote: y\nTest unit written to /out/crash-1\n";
        let text = finding(&Env::find(), "t", said);
        assert!(text.contains("I4: a secret") && text.contains("input: /out/crash-1"), "{text}");
    }
}
