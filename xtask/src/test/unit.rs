// SPDX-License-Identifier: MIT OR Apache-2.0
//! The crates' own tests, on the development machine.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{Context, Item, Verdict, Work};
use crate::cmd;

/// Crates with tests, and which of their targets are built for this machine.
const CRATES: [(&str, &[&str]); 14] = [
    ("freehold-uapi", &[]),
    ("freehold-mem", &[]),
    ("freehold-virt", &[]),
    ("freehold-el2", &["--lib"]),
    ("freehold-driver-core", &[]),
    ("freehold-oracle", &[]),
    ("freehold-states", &[]),
    ("freehold-trace", &[]),
    ("freehold-model", &["--lib"]),
    ("freehold-el2-watch", &["--lib"]),
    ("freehold-count", &[]),
    ("freehold-fuzz", &[]),
    ("freehold-vmm-boot", &[]),
    ("xtask", &[]),
];

/// No crate's tests take a tenth of it.
const LIMIT: Duration = Duration::from_secs(300);
/// What `timeout` exits with.
const TIMED_OUT: i32 = 124;

pub(super) fn works() -> Vec<Work> {
    let work = |(package, more): (&'static str, &'static [&'static str])| {
        Work::new(format!("unit/{package}"), move |c| test(c, package, more)).with_inner_filter()
    };
    CRATES.into_iter().map(work).collect()
}

fn test(context: &Context<'_>, package: &str, more: &[&str]) -> Result<Vec<Item>> {
    // A test that never ends is a failure, with everything that it started.
    let mut command = cmd::bounded(&cmd::cargo(&context.env.root), LIMIT);
    command.args(["test", "--package", package]).args(more);
    if let Some(filter) = context.filter
        && !format!("unit/{package}").contains(filter)
    {
        command.arg("--").arg(filter.rsplit('/').next().unwrap_or(filter));
    }
    // What a test says about itself is enough; where the runner called it from is not news.
    command.env("RUST_BACKTRACE", "0");
    let out = command.stdin(Stdio::null()).output().context("cannot start cargo")?;
    let stdout = String::from_utf8_lossy(&out.stdout);
    let mut items = parse(package, &stdout);
    let failed = items.iter().any(|i| matches!(i.verdict, Verdict::Failed(_)));
    if !out.status.success() && !failed {
        let said = cmd::tail(&String::from_utf8_lossy(&out.stderr), 30);
        items.push(Item::new(format!("unit/{package}"), Some(said)));
    }
    if out.status.code() == Some(TIMED_OUT) {
        let what = format!("not over after {} s", LIMIT.as_secs());
        items.push(Item::new(format!("unit/{package}/ends"), Some(what)));
    }
    if out.status.success() && items.is_empty() {
        items.push(Item::new(format!("unit/{package}"), Some("it has no tests".to_owned())));
    }
    Ok(items)
}

/// One item per line `test NAME ... RESULT`; the runner's own totals must agree with their count.
fn parse(package: &str, stdout: &str) -> Vec<Item> {
    let name = |test: &str| format!("unit/{package}/{test}");
    let mut items = Vec::new();
    let mut totals = 0;
    for line in stdout.lines() {
        if let Some(rest) = line.strip_prefix("test result: ") {
            totals += total(rest);
        } else if let Some((test, result)) = line.strip_prefix("test ").and_then(|l| l.rsplit_once(" ... ")) {
            let test = test.trim_end_matches(" - should panic");
            let verdict = match result {
                "ok" => Verdict::Passed,
                r if r.starts_with("ignored") => Verdict::Skipped(r.to_owned()),
                _ => Verdict::Failed(said_by(stdout, test)),
            };
            items.push(Item { name: name(test), verdict });
        }
    }
    if totals != items.len() {
        let what = format!("the runner counts {totals} tests, {} were seen", items.len());
        items.push(Item::new(format!("unit/{package}"), Some(what)));
    }
    items
}

fn total(rest: &str) -> usize {
    let number = |word: &str| {
        rest.split("; ")
            .filter_map(|p| p.trim().strip_suffix(word))
            .find_map(|p| p.rsplit(' ').nth(1)?.parse::<usize>().ok())
    };
    ["passed", "failed", "ignored"].into_iter().filter_map(number).sum::<usize>()
}

/// What the runner kept of a failing test's output.
fn said_by(stdout: &str, test: &str) -> String {
    let mark = format!("---- {test} stdout ----");
    let text = stdout.split_once(&mark).map_or("", |(_, after)| after);
    let own = text.split("\n---- ").next().unwrap_or_default();
    let own = own.split("\nfailures:").next().unwrap_or_default();
    own.trim().lines().take(20).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\nrunning 2 tests\ntest a::one ... ok\ntest a::two ... ok\n\n\
                        test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 3 filtered out; finished in 0.00s\n";

    #[test]
    fn each_test_becomes_a_case() {
        let items = parse("p", GOOD);
        assert_eq!(items.len(), 2);
        assert!(items.iter().all(|i| i.verdict == Verdict::Passed));
        assert_eq!(items[1].name, "unit/p/a::two");
    }

    #[test]
    fn a_total_that_disagrees_is_a_failure() {
        let items = parse("p", &GOOD.replace("2 passed", "5 passed"));
        assert!(matches!(&items[2].verdict, Verdict::Failed(what) if what.contains("5 tests, 2 were seen")));
    }

    #[test]
    fn failures_carry_what_was_said_and_ignored_tests_are_skips() {
        let text = "test one ... FAILED\ntest two ... ignored, too long\n\nfailures:\n\n---- one stdout ----\n\
                    left is not right\n\nfailures:\n    one\n\n\
                    test result: FAILED. 0 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0s\n";
        let items = parse("p", text);
        assert_eq!(items[0].verdict, Verdict::Failed("left is not right".to_owned()));
        assert!(matches!(items[1].verdict, Verdict::Skipped(_)));
        assert_eq!(items.len(), 2);
    }
}
