// SPDX-License-Identifier: MIT OR Apache-2.0
//! Miri over the crates that forbid unsafe code and run in the most trusted places: what they do is defined.
//!
//! In CI a part of their tests that ends within a minute, all of them in a long run. A crate with undefined behaviour
//! in it is the control: Miri must refuse it.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{Context, Item, Work};
use crate::env::Env;
use crate::{cmd, setup};

/// A crate, and the tests of it that are quick enough under an interpreter.
type Quick = (&'static str, &'static [&'static str]);

const QUICK: [Quick; 3] = [
    ("freehold-mem", &["record::", "confine::", "tests::lock"]),
    ("freehold-virt", &["handle::", "exit::", "guest_call::"]),
    ("freehold-driver-core", &["slots::", "exit::", "abi::", "pool::"]),
];

/// Minutes that the whole of a crate may take in a long run.
const PATIENCE: Duration = Duration::from_secs(3600);

pub(super) fn works() -> Vec<Work> {
    let quick = QUICK.into_iter().map(|(package, tests)| {
        Work::new(format!("miri/{package}"), move |c| interpret(c, &format!("miri/{package}"), package, tests))
    });
    let all = QUICK.into_iter().map(|(package, _)| {
        let name = format!("miri/{package}-all");
        Work::new(name.clone(), move |c| interpret(c, &name, package, &[])).only_long()
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

fn interpret(context: &Context<'_>, name: &str, package: &str, tests: &[&str]) -> Result<Vec<Item>> {
    let mut cargo = miri(context.env)?;
    cargo.args(["test", "--quiet", "--package", package, "--lib", "--"]).args(tests);
    let out = cmd::bounded(&cargo, PATIENCE).stdin(Stdio::null()).output().context("cannot start Miri")?;
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    let problem = match passed(&said) {
        _ if !out.status.success() => Some(cmd::tail(&said, 30)),
        0 => Some("no test ran".to_owned()),
        _ => None,
    };
    Ok(vec![Item::new(name, problem)])
}

/// How many tests the runner counts.
fn passed(said: &str) -> u64 {
    let line = said.lines().find_map(|line| line.strip_prefix("test result: ok. "));
    line.and_then(|line| line.split(' ').next()?.parse().ok()).unwrap_or(0)
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
    use super::passed;

    #[test]
    fn tests_that_ran_are_counted() {
        assert_eq!(passed("running 2 tests\n..\ntest result: ok. 2 passed; 0 failed; 0 ignored\n"), 2);
        assert_eq!(passed("test result: ok. 0 passed; 0 failed; 7 filtered out\n"), 0);
        assert_eq!(passed("error: no such package"), 0);
    }
}
