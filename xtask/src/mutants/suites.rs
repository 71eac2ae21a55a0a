// SPDX-License-Identifier: MIT OR Apache-2.0
//! The suites that may kill a fault: parts of what CI runs, chosen so that little has to be built for each.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::tree::Tree;
use crate::{audit, builds, cmd};

/// Name, and what `cargo test` is told.
type Suite = (&'static str, &'static [&'static str]);

const SUITES: [Suite; 10] = [
    ("mem", &["--package", "freehold-mem", "--lib"]),
    // The lock order: programs that must not compile.
    ("mem-types", &["--package", "freehold-mem", "--doc"]),
    ("virt", &["--package", "freehold-virt", "--lib"]),
    ("virt-loom", &["--package", "freehold-virt", "--test", "interleavings"]),
    ("hyp", &["--package", "freehold-el2", "--lib"]),
    ("driver", &["--package", "freehold-driver-core", "--lib"]),
    ("driver-loom", &["--package", "freehold-driver-core", "--test", "window_races"]),
    ("driver-drain", &["--package", "freehold-driver-core", "--test", "drain_races"]),
    ("driver-specification", &["--package", "freehold-driver-core", "--test", "specification"]),
    ("watch", &["--package", "freehold-el2-watch", "--lib"]),
];

/// The audit of the linked image, for what has no test on the development machine.
const IMAGE: &str = "image";

/// No suite takes a tenth of it on an idle machine, its build included; a fault that makes one hang is dead.
const LIMIT: Duration = Duration::from_secs(300);
/// That a suite hangs is believed only if without a fault it took less than the limit by this factor: on a loaded
/// machine one that is merely slow would kill everything.
const PATIENCE: u32 = 3;
/// What `timeout` exits with.
const TIMED_OUT: i32 = 124;

/// Whether there is a suite of this name.
pub(super) fn is_known(name: &str) -> bool {
    name == IMAGE || named(name).is_some()
}

/// What the suite of this name is told.
fn named(name: &str) -> Option<&'static [&'static str]> {
    SUITES.iter().find(|suite| suite.0 == name).map(|suite| suite.1)
}

/// What became of a fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// A test failed.
    Killed {
        /// The first one that did.
        by: String,
    },
    /// It does not compile; the first error.
    Refused(String),
    /// All tests passed.
    Survived,
}

/// The suites, over one copy of the tree.
pub(super) struct Killers<'t> {
    tree: &'t Tree,
    /// What each took without a fault.
    calm: RefCell<BTreeMap<String, Duration>>,
}

impl<'t> Killers<'t> {
    pub(super) fn new(tree: &'t Tree) -> Self {
        Self { tree, calm: RefCell::default() }
    }

    /// Runs a suite on the tree as it is.
    pub(super) fn try_to_kill(&self, name: &str) -> Result<Outcome> {
        if name == IMAGE {
            return self.audit();
        }
        let out = self.run(name)?;
        if out.status.code() == Some(TIMED_OUT) {
            return stopped(name, self.calm.borrow().get(name).copied());
        }
        judge(name, out.status.code(), &String::from_utf8_lossy(&out.stdout), &String::from_utf8_lossy(&out.stderr))
    }

    /// Runs a suite that must pass, for there is no fault in the tree.
    pub(super) fn must_pass(&self, name: &str) -> Result<()> {
        let mut took = Duration::MAX;
        // The first time may have built everything: whether it is slow, a second time shows.
        for _ in 0..2 {
            if is_quick(took) {
                break;
            }
            let begin = Instant::now();
            match self.try_to_kill(name)? {
                Outcome::Survived => took = begin.elapsed(),
                Outcome::Killed { by } => bail!("{by} fails without any fault: what it kills would show nothing"),
                Outcome::Refused(error) => bail!("{name} does not compile without any fault: {error}"),
            }
        }
        self.calm.borrow_mut().insert(name.to_owned(), took);
        Ok(())
    }

    /// Builds the image as it ships, and audits it.
    fn audit(&self) -> Result<Outcome> {
        let mut cargo = self.tree.cargo();
        // Of the whole program, as it ships.
        cargo.env("CARGO_INCREMENTAL", "0");
        let elf = match builds::el2_elf_by(cargo) {
            Ok(elf) => elf,
            Err(error) => {
                let said = format!("{error:#}");
                let what = said.lines().find(|line| line.starts_with("error")).map(str::to_owned);
                return what.map(Outcome::Refused).ok_or(error);
            }
        };
        Ok(match audit::judge(&std::fs::read(elf)?) {
            Ok(found) => found.into_iter().next().map_or(Outcome::Survived, |first| Outcome::Killed { by: first }),
            Err(error) => Outcome::Killed { by: format!("{error:#}") },
        })
    }

    fn run(&self, name: &str) -> Result<Output> {
        let Some(arguments) = named(name) else { bail!("no suite `{name}`") };
        let mut command = self.tree.cargo();
        command.arg("test").args(arguments);
        let mut command: Command = cmd::bounded(&command, LIMIT);
        command.stdin(Stdio::null()).output().context("cannot start cargo")
    }
}

/// Whether a suite that takes so long without a fault must hang to reach the limit.
fn is_quick(took: Duration) -> bool {
    took.saturating_mul(PATIENCE) < LIMIT
}

/// What it shows that a suite was stopped at the limit. `calm`: what it took without a fault, if it ended.
fn stopped(suite: &str, calm: Option<Duration>) -> Result<Outcome> {
    let limit = LIMIT.as_secs();
    match calm {
        Some(took) if is_quick(took) => Ok(Outcome::Killed { by: format!("{suite}: it never ends") }),
        Some(took) => bail!(
            "{suite} was stopped after {limit} s, but took {} s without a fault: too slow here to say that it hangs",
            took.as_secs()
        ),
        None => bail!("{suite} was stopped after {limit} s, without any fault"),
    }
}

/// Reads the outcome out of what `cargo test` said.
fn judge(suite: &str, code: Option<i32>, stdout: &str, stderr: &str) -> Result<Outcome> {
    if code == Some(0) {
        if !stdout.lines().any(|l| l.starts_with("test result: ok. ") && !l.starts_with("test result: ok. 0 passed")) {
            bail!("{suite}: no test ran");
        }
        return Ok(Outcome::Survived);
    }
    let failed = stdout.lines().find_map(|l| l.strip_prefix("test ")?.strip_suffix(" ... FAILED"));
    if let Some(test) = failed {
        return Ok(Outcome::Killed { by: format!("{suite}: {test}") });
    }
    if stderr.contains("could not compile") {
        let error = stderr.lines().find(|l| l.starts_with("error")).unwrap_or("error");
        return Ok(Outcome::Refused(error.to_owned()));
    }
    // A test that takes the whole process with it: an abort, or a stack that ran over.
    if stderr.contains("process didn't exit successfully") {
        return Ok(Outcome::Killed { by: format!("{suite}: it stops the test program") });
    }
    bail!("{suite} could not run:\n{}", cmd::tail(stderr, 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "test a ... ok\ntest result: ok. 1 passed; 0 failed; 0 ignored\n";

    #[test]
    fn each_outcome_is_told_from_the_others() {
        let judge = |code, stdout, stderr| judge("s", Some(code), stdout, stderr).unwrap();
        assert_eq!(judge(0, GOOD, ""), Outcome::Survived);
        let failed = "test a ... ok\ntest m::b ... FAILED\ntest result: FAILED. 1 passed; 1 failed\n";
        assert_eq!(judge(101, failed, "error: test failed"), Outcome::Killed { by: "s: m::b".to_owned() });
        let refused = "warning: x\nerror[E0499]: cannot borrow\nerror: could not compile `p` (lib)";
        assert_eq!(judge(101, "", refused), Outcome::Refused("error[E0499]: cannot borrow".to_owned()));
        assert!(matches!(judge(101, "", "process didn't exit successfully: x"), Outcome::Killed { .. }));
    }

    #[test]
    fn a_suite_that_is_stopped_kills_only_if_it_is_far_quicker_without_a_fault() {
        let after = |took| stopped("s", took).map_err(|error| error.to_string());
        let third = LIMIT / PATIENCE;
        let hangs = Outcome::Killed { by: "s: it never ends".to_owned() };
        assert_eq!(after(Some(third - Duration::from_millis(1))), Ok(hangs));
        for took in [third, LIMIT, Duration::MAX] {
            assert!(after(Some(took)).unwrap_err().contains("without a fault: too slow here"));
        }
        assert!(after(None).unwrap_err().contains("without any fault"));
    }

    #[test]
    fn a_suite_that_could_not_run_or_has_no_tests_shows_nothing() {
        assert!(judge("s", Some(101), "", "error: no such package").is_err());
        assert!(judge("s", Some(0), "test result: ok. 0 passed; 0 failed", "").is_err());
    }
}
