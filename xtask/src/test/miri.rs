// SPDX-License-Identifier: MIT OR Apache-2.0
//! Miri over the crates that forbid unsafe code and run in the most trusted places: what they do is defined.
//!
//! In CI a part of their tests that ends within a minute; in a long run all of them but those that say at their own place
//! why an interpreter leaves them out. A crate with undefined behaviour in it is the control: Miri must refuse it. How
//! many tests ran, and how many were left out, must be as it stands here.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::{Context, Item, Work};
use crate::env::Env;
use crate::{cmd, setup, ui};

/// A crate whose tests are interpreted.
#[derive(Clone, Copy)]
struct Subject {
    package: &'static str,
    /// Tests that are quick enough for CI.
    quick: &'static [&'static str],
    /// How many run when all do, at least.
    least: u64,
    /// How many are left out of that.
    left_out: u64,
}

const SUBJECTS: [Subject; 3] = [
    Subject { package: "freehold-mem", quick: &["record::", "confine::", "tests::lock"], least: 101, left_out: 0 },
    Subject { package: "freehold-virt", quick: &["handle::", "exit::", "guest_call::"], least: 205, left_out: 1 },
    Subject {
        package: "freehold-driver-core",
        quick: &["slots::", "exit::", "abi::", "pool::"],
        least: 241,
        left_out: 0,
    },
];

/// What the whole of a crate may take in a long run.
const PATIENCE: Duration = Duration::from_secs(3 * 3600);

pub(super) fn works() -> Vec<Work> {
    let quick = SUBJECTS.into_iter().map(|subject| {
        let name = format!("miri/{}", subject.package);
        Work::new(name.clone(), move |c| interpret(c, &name, subject, subject.quick))
    });
    let all = SUBJECTS.into_iter().map(|subject| {
        let name = format!("miri/{}-all", subject.package);
        Work::new(name.clone(), move |c| interpret(c, &name, subject, &[])).only_long()
    });
    std::iter::once(Work::new("miri/undefined-behaviour-is-found", control)).chain(quick).chain(all).collect()
}

/// A cargo that interprets what it builds.
fn miri(env: &Env) -> Result<Command> {
    setup::miri(env)?;
    let mut cargo = Command::new("rustup");
    cargo.current_dir(&env.root).args(["run", setup::NIGHTLY, "cargo", "miri"]);
    // Of the stable toolchain that runs this program; and a directory of its own for what is built.
    for name in ["CARGO", "RUSTC", "RUSTFLAGS", "RUSTUP_TOOLCHAIN"] {
        cargo.env_remove(name);
    }
    cargo.env("CARGO_TARGET_DIR", env.out.with_file_name("miri")).env("RUST_BACKTRACE", "0");
    Ok(cargo)
}

/// Interprets the tests of a crate that have one of these names, or all of them if there is none.
fn interpret(context: &Context<'_>, name: &str, subject: Subject, tests: &[&str]) -> Result<Vec<Item>> {
    let mut cargo = miri(context.env)?;
    // Machines of tests live until the end, in memory that is given away.
    cargo.env("MIRIFLAGS", "-Zmiri-ignore-leaks");
    cargo.args(["test", "--quiet", "--package", subject.package, "--lib", "--"]).args(tests);
    let began = Instant::now();
    let out = cmd::bounded(&cargo, PATIENCE).stdin(Stdio::null()).output().context("cannot start Miri")?;
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    let counts = counts(&said);
    let problem =
        if out.status.success() { wrong(subject, tests.is_empty(), counts) } else { Some(cmd::tail(&said, 30)) };
    if let Some((ran, left_out)) = counts {
        ui::note(&format!("{name}: {ran} ran, {left_out} left out, {} s", began.elapsed().as_secs()));
    }
    Ok(vec![Item::new(name, problem)])
}

/// What is wrong with how many tests ran and how many were left out.
fn wrong(subject: Subject, all: bool, counts: Option<(u64, u64)>) -> Option<String> {
    let Subject { least, left_out, .. } = subject;
    match counts {
        None | Some((0, _)) => Some("no test ran".to_owned()),
        Some((ran, out)) if all && (ran < least || out != left_out) => {
            Some(format!("{ran} ran and {out} were left out, and not at least {least} and {left_out}"))
        }
        Some(_) => None,
    }
}

/// How many tests the runner says that it ran, and how many that it left out by their own wish.
fn counts(said: &str) -> Option<(u64, u64)> {
    let line = said.lines().find_map(|line| line.strip_prefix("test result: ok. "))?;
    let of = |what: &str| line.split("; ").find_map(|part| part.strip_suffix(what)?.trim().parse().ok());
    Some((of("passed")?, of("ignored")?))
}

/// The control: it reads memory that was freed.
fn control(context: &Context<'_>) -> Result<Vec<Item>> {
    let mut cargo = miri(context.env)?;
    cargo.args(["run", "--quiet", "--locked", "--manifest-path", "tests/miri/Cargo.toml"]);
    let out = cmd::bounded(&cargo, PATIENCE).stdin(Stdio::null()).output().context("cannot start Miri")?;
    let said = String::from_utf8_lossy(&out.stderr);
    let seen = !out.status.success() && said.contains("Undefined Behavior");
    let problem = (!seen).then(|| format!("Miri saw nothing wrong with it:\n{}", cmd::tail(&said, 10)));
    Ok(vec![Item::new("miri/undefined-behaviour-is-found", problem)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_that_ran_are_counted() {
        let said = "running 2 tests\n..\ntest result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 7 filtered out\n";
        assert_eq!(counts(said), Some((2, 1)));
        assert_eq!(counts("error: no such package"), None);
    }

    #[test]
    fn an_empty_run_and_a_short_one_are_noticed() {
        let [subject, ..] = SUBJECTS;
        let fine = Some((subject.least, subject.left_out));
        assert_eq!((wrong(subject, true, fine), wrong(subject, false, Some((1, 0)))), (None, None));
        assert!(wrong(subject, false, None).is_some() && wrong(subject, false, Some((0, 0))).is_some());
        assert!(wrong(subject, true, Some((subject.least - 1, subject.left_out))).is_some());
        assert!(wrong(subject, true, Some((subject.least, subject.left_out + 1))).is_some());
    }
}
