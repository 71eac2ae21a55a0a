// SPDX-License-Identifier: MIT OR Apache-2.0
//! Follows a boot on its console: how far it came, what its job reported, and why it ended.
//!
//! A result is one line `@fh {json}`. A line that starts so and cannot be read counts as a failure, not as noise.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::qemu::{Read, Running};
use crate::scan;

/// One thing that a job looked at.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Case {
    /// The step of the main job that it belongs to.
    pub step: String,
    /// Its name.
    pub case: String,
    /// What should be seen.
    pub expected: String,
    /// What was seen.
    pub seen: String,
    /// Whether that is the same thing.
    pub held: bool,
    /// Seconds since power on.
    #[serde(default, skip_deserializing)]
    pub at: f64,
}

/// What is worth showing while a boot goes on.
pub(crate) enum Heard<'h> {
    /// A job reported this.
    Case(&'h Case),
    /// A guest's console said this.
    Guest(&'h str),
}

/// How far a boot came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Stage {
    /// Nothing was printed by anything of ours.
    #[default]
    Nothing,
    /// el2 printed its banner.
    El2,
    /// The host's kernel spoke.
    Kernel,
    /// The host's first program ran.
    Userspace,
    /// The job ended.
    Done,
}

impl Stage {
    /// What a boot that stopped here did not reach.
    fn missing(self) -> &'static str {
        match self {
            Self::Nothing => "no banner of el2 and no kernel",
            Self::El2 => "el2 runs, but the host's kernel never spoke",
            Self::Kernel => "the host's kernel runs, but never reached userspace",
            Self::Userspace => "the host's userspace runs, but the job never ended",
            Self::Done => "the machine did not power off",
        }
    }
}

/// A boot, afterwards.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// How far it came.
    pub stage: Stage,
    /// What its job reported.
    pub cases: Vec<Case>,
    /// Why it did not end as it should.
    pub problem: Option<String>,
    /// What el2 said.
    pub el2: Vec<String>,
    /// What its job told of a guest's secret.
    pub facts: scan::Facts,
    /// Guests of whose console the line was shown that says that their userspace runs.
    pub shown: usize,
}

impl Outcome {
    /// Whether the job ran to its end and each of its cases held.
    pub(crate) fn held(&self) -> bool {
        self.problem.is_none() && self.cases.iter().all(|c| c.held)
    }
}

impl Outcome {
    /// One line per thing that was not as it must be.
    pub(crate) fn failures(&self) -> Vec<String> {
        let cases = self.cases.iter().filter(|c| !c.held);
        let mut all: Vec<String> =
            cases.map(|c| format!("{}: expected {}, seen {}", c.case, c.expected, c.seen)).collect();
        all.extend(self.problem.clone());
        all
    }
}

/// Lines after which nothing good can follow.
const FATAL: [&str; 3] = ["freehold: stop:", "freehold: panic:", "Kernel panic - not syncing"];

/// The case in which a job's end says that the kernel complained of nothing; no job ends without it.
pub(crate) const KERNEL_LOG: &str = "kernel-log-clean";

/// The case that a guest's console was shown to whoever watches.
pub(crate) const CONSOLE_SHOWN: &str = "its console is shown";

/// Follows `machine` until its job is done and it has ended, it fails, or `limit` has passed.
///
/// # Errors
/// If the RAM scan that a job asks for cannot be made; everything else is the outcome's `problem`.
pub(crate) fn follow(machine: &mut Running, limit: Duration, show: impl FnMut(Heard<'_>)) -> Result<Outcome> {
    let mut outcome = follow_job(machine, limit, show)?;
    if outcome.stage == Stage::Done && outcome.problem.is_none() && !machine.ended_within(Duration::from_secs(60)) {
        outcome.problem = Some(Stage::Done.missing().to_owned());
    }
    Ok(outcome)
}

/// Follows `machine` until its job is done, it fails, or `limit` has passed.
///
/// # Errors
/// As [`follow`].
pub(crate) fn follow_job(machine: &mut Running, limit: Duration, mut show: impl FnMut(Heard<'_>)) -> Result<Outcome> {
    let begin = Instant::now();
    let deadline = begin + limit;
    let mut outcome = Outcome::default();
    while outcome.stage != Stage::Done && outcome.problem.is_none() {
        let line = match machine.console.line(deadline) {
            Read::Line(line) => line,
            Read::Closed => {
                outcome.problem = Some(format!("QEMU ended: {}", outcome.stage.missing()));
                break;
            }
            Read::Late => {
                outcome.problem = Some(format!("nothing after {} s: {}", limit.as_secs(), outcome.stage.missing()));
                break;
            }
        };
        match report(&line) {
            Some(Report::Case(mut case)) => {
                case.at = begin.elapsed().as_secs_f64();
                show(Heard::Case(&case));
                outcome.cases.push(case);
            }
            Some(Report::Stage) => outcome.stage = outcome.stage.max(Stage::Userspace),
            Some(Report::Done) => {
                outcome.stage = Stage::Done;
                if let Some(case) = viewed(&outcome) {
                    show(Heard::Case(&case));
                    outcome.cases.push(case);
                }
            }
            Some(Report::Other(value)) => {
                if let Some(case) = outcome.facts.take(&value, machine)? {
                    show(Heard::Case(&case));
                    outcome.cases.push(case);
                }
            }
            Some(Report::Unreadable) => outcome.problem = Some(format!("an unreadable result: {line}")),
            // What a guest says is judged by the job that runs it, and by nobody else.
            None => match line.strip_prefix("guest| ") {
                Some(said) => {
                    show(Heard::Guest(said));
                    outcome.shown += usize::from(said.contains(SAYS_USERSPACE));
                }
                None => plain_line(&line, &mut outcome),
            },
        }
    }
    outcome.problem = outcome.problem.or_else(|| unjudged(&outcome.cases, outcome.stage));
    Ok(outcome)
}

/// What a Linux guest says when its first program runs.
const SAYS_USERSPACE: &str = "fh-guest: userspace ";

/// The case that whoever watches the scene of step 9 sees its guest, of a job that plays it.
fn viewed(outcome: &Outcome) -> Option<Case> {
    let plays = outcome.cases.iter().any(|case| case.step == "9");
    plays.then(|| Case {
        step: "9".to_owned(),
        case: CONSOLE_SHOWN.to_owned(),
        expected: "of one guest, whose userspace runs".to_owned(),
        seen: format!("of {}", outcome.shown),
        held: outcome.shown == 1,
        at: 0.0,
    })
}

/// A job that ended although nobody looked at the kernel's log.
fn unjudged(cases: &[Case], stage: Stage) -> Option<String> {
    let judged = cases.iter().any(|c| c.case == KERNEL_LOG);
    (stage == Stage::Done && !judged).then(|| format!("the job ended without the case {KERNEL_LOG}"))
}

fn plain_line(line: &str, outcome: &mut Outcome) {
    if let Some(at) = line.find("freehold: ") {
        let said = &line[at..];
        // The module's own messages carry the kernel's time stamp; el2's start the line.
        if at == 0 {
            outcome.el2.push(said.to_owned());
            if said.starts_with("freehold: el2 ") {
                outcome.stage = outcome.stage.max(Stage::El2);
            }
        }
    }
    if line.contains("Booting Linux on physical CPU") {
        outcome.stage = outcome.stage.max(Stage::Kernel);
    }
    if let Some(bad) = FATAL.iter().find_map(|f| line.find(f)) {
        outcome.problem = Some(line[bad..].to_owned());
    }
}

enum Report {
    Case(Case),
    Stage,
    Done,
    Other(Value),
    Unreadable,
}

fn report(line: &str) -> Option<Report> {
    let json = &line[line.find("@fh ")? + 4..];
    let mut values = serde_json::Deserializer::from_str(json).into_iter::<Value>();
    let Some(Ok(value)) = values.next() else { return Some(Report::Unreadable) };
    if value.get("done").is_some() {
        return Some(Report::Done);
    }
    if value.get("stage").is_some() {
        return Some(Report::Stage);
    }
    if value.get("case").is_some() {
        return Some(serde_json::from_value(value).map_or(Report::Unreadable, Report::Case));
    }
    Some(Report::Other(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read_even_behind_other_text() {
        let line = r#"[ 1.0] noise @fh {"step":"2","case":"c","expected":"a","seen":"b","held":false}"#;
        let Some(Report::Case(case)) = report(line) else { panic!("no case") };
        assert_eq!((case.step.as_str(), case.held), ("2", false));
        assert!(matches!(report("@fh {\"done\":true}"), Some(Report::Done)));
        assert!(matches!(report("@fh {\"scan\":\"alive\"}"), Some(Report::Other(_))));
        assert!(report("plain").is_none());
    }

    #[test]
    fn a_result_that_was_cut_is_never_ignored() {
        for line in ["@fh {\"step\":\"2\",\"ca", "@fh ", "@fh {\"case\":\"c\"}"] {
            assert!(matches!(report(line), Some(Report::Unreadable)), "{line}");
        }
    }

    #[test]
    fn a_job_that_ends_without_a_look_at_the_kernel_log_is_a_problem() {
        let case = |name: &str| Case { case: name.to_owned(), held: true, ..Case::default() };
        assert!(unjudged(&[case("other")], Stage::Done).is_some());
        assert_eq!(unjudged(&[case("other"), case(KERNEL_LOG)], Stage::Done), None);
        assert_eq!(unjudged(&[], Stage::Kernel), None);
    }

    #[test]
    fn a_scene_whose_guest_nobody_sees_does_not_hold() {
        let step = |step: &str| Case { step: step.to_owned(), held: true, ..Case::default() };
        let outcome = |cases: &[Case], shown| Outcome { cases: cases.to_vec(), shown, ..Outcome::default() };
        let viewed = |shown| viewed(&outcome(&[step("8"), step("9")], shown)).map(|case| (case.step, case.held));
        assert_eq!(viewed(0), Some(("9".to_owned(), false)));
        assert_eq!(viewed(1), Some(("9".to_owned(), true)));
        assert_eq!(viewed(2), Some(("9".to_owned(), false)));
        assert_eq!(super::viewed(&outcome(&[step("8")], 0)), None, "no scene, nothing to see");
    }

    #[test]
    fn fatal_lines_are_problems_and_stages_only_advance() {
        let mut outcome = Outcome::default();
        plain_line("freehold: el2 0.1.0 on cortex-a72", &mut outcome);
        assert_eq!(outcome.stage, Stage::El2);
        plain_line("[    0.000000] Booting Linux on physical CPU 0x0000000000", &mut outcome);
        plain_line("freehold: el2 says more", &mut outcome);
        assert_eq!((outcome.stage, outcome.el2.len()), (Stage::Kernel, 2));
        plain_line("[    9.1] freehold: module says something", &mut outcome);
        assert_eq!((outcome.problem.as_deref(), outcome.el2.len()), (None, 2));
        plain_line("freehold: stop: no memory at DTB", &mut outcome);
        assert_eq!(outcome.problem.as_deref(), Some("freehold: stop: no memory at DTB"));
    }
}
