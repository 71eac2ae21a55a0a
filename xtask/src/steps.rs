// SPDX-License-Identifier: MIT OR Apache-2.0
//! The main job: its eight steps, and which cases each needs before it counts as held.
//!
//! A step whose cases are not all there is `not yet`, so that a case that silently goes away never looks like success.

use serde::Serialize;

use crate::session::{Case, Outcome, Stage};

/// One step of the main job, as the user reads it.
pub(crate) struct Step {
    /// Its number, as cases name it.
    pub number: &'static str,
    /// What it shows.
    pub title: &'static str,
    /// Names of the cases that it needs.
    pub needs: &'static [&'static str],
}

/// All steps, in order.
pub(crate) const STEPS: [Step; 8] = [
    Step { number: "1", title: "el2 boots and says what it is", needs: &["banner"] },
    Step {
        number: "2",
        title: "the stock host is up at EL1 on every CPU",
        needs: &["host-userspace", "cpus-online", "exception-level", "secondaries-through-psci"],
    },
    Step { number: "3", title: "the module finds el2", needs: &["module-loads", "device", "dmesg-names-el2"] },
    Step {
        number: "4",
        title: "a protected VM runs what its guest_memfd holds",
        needs: &["create-vm", "program-written-through-mmap", "convert", "runs", "stage1-and-fp"],
    },
    Step {
        number: "5",
        title: "the guest checks itself, keeps a secret, shares one page",
        needs: &["image-check", "image-is-what-was-built", "secret-made", "console", "shared-page", "greeting"],
    },
    Step {
        number: "6",
        title: "the host attacks and fails",
        needs: &[
            "old-mapping",
            "foreign-pte",
            "linear-map",
            "linear-map-plain",
            "carve-out",
            "carve-out-tables",
            "guest-hash",
            "second-vm",
        ],
    },
    Step {
        number: "7",
        title: "a conversion waits for who holds the page",
        needs: &["convert-waits", "guest reads the right contents", "unshare-waits", "guest reads what was there"],
    },
    Step {
        number: "8",
        title: "after kill -9 nothing is left",
        needs: &["masked-secret", "ram-scan-alive", "ram-scan-dead", "memory-back", "host-memory-back", "nothing-left"],
    },
];

/// How a step came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Status {
    /// Each case that it needs held, and no other failed.
    Held,
    /// A case failed, or the boot ended before the step did.
    Failed,
    /// Some case that it needs does not exist yet.
    NotYet,
}

/// A step, afterwards.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Result {
    /// Its number.
    pub step: &'static str,
    /// What it shows.
    pub title: &'static str,
    /// How it came out.
    pub status: Status,
    /// Its cases.
    pub cases: Vec<Case>,
    /// Cases that it needs and that were not seen.
    pub missing: Vec<&'static str>,
}

impl Result {
    /// Whether the step needs the case `name`.
    pub(crate) fn needs(&self, name: &str) -> bool {
        STEPS.iter().any(|s| s.number == self.step && needs(s, u32::MAX).any(|n| n == name))
    }
}

/// Judges every step by what a boot showed.
pub(crate) fn judge(outcome: &Outcome, cpus: u32) -> Vec<Result> {
    let mut cases = vec![banner(outcome)];
    cases.extend(outcome.cases.iter().cloned());
    STEPS.iter().map(|step| judge_one(step, &cases, outcome, cpus)).collect()
}

/// What step 2 needs too where there is a CPU to unplug.
pub(crate) const HOTPLUG: [&str; 3] = ["cpu-unplugged", "cpu-plugged-again", "cpu-works-again"];

/// What `step` needs on a machine of `cpus`.
fn needs(step: &Step, cpus: u32) -> impl Iterator<Item = &'static str> {
    let more: &[&str] = if step.number == "2" && cpus > 1 { &HOTPLUG } else { &[] };
    step.needs.iter().chain(more).copied()
}

fn judge_one(step: &Step, all: &[Case], outcome: &Outcome, cpus: u32) -> Result {
    let cases: Vec<Case> = all.iter().filter(|c| c.step == step.number).cloned().collect();
    let seen = |name: &str| cases.iter().any(|c| c.case == name);
    let missing: Vec<_> = needs(step, cpus).filter(|name| !seen(name)).collect();
    let status = if cases.iter().any(|c| !c.held) {
        Status::Failed
    } else if missing.is_empty() {
        Status::Held
    } else if outcome.problem.is_some() {
        Status::Failed
    } else {
        Status::NotYet
    };
    Result { step: step.number, title: step.title, status, cases, missing }
}

/// The first step's one case, which no job on the host could report.
fn banner(outcome: &Outcome) -> Case {
    let lines: Vec<&String> = outcome.el2.iter().filter(|l| l.starts_with("freehold: el2 ")).collect();
    let text = outcome.el2.join("\n").to_lowercase();
    let lacks: Vec<_> = ["ram", "carve-out", "protect", "not"].into_iter().filter(|w| !text.contains(w)).collect();
    let seen = match (lines.as_slice(), lacks.as_slice()) {
        ([], _) => "none".to_owned(),
        ([only], []) => (*only).clone(),
        ([_], lacks) => format!("one that does not speak of: {}", lacks.join(", ")),
        (several, _) => format!("{} banners", several.len()),
    };
    Case {
        step: "1".to_owned(),
        case: "banner".to_owned(),
        expected: "one banner: version, CPU, RAM, carve-outs, what is protected and what is not".to_owned(),
        held: lines.len() == 1 && lacks.is_empty() && outcome.stage > Stage::Nothing,
        seen,
        at: 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(cases: &[(&str, &str, bool)], problem: Option<&str>) -> Outcome {
        let case = |(step, name, held): &(&str, &str, bool)| Case {
            step: (*step).to_owned(),
            case: (*name).to_owned(),
            expected: String::new(),
            seen: String::new(),
            held: *held,
            at: 0.0,
        };
        let el2 = ["freehold: el2 0.1.0 on x", "freehold: RAM, carve-outs; protects this, not that"];
        Outcome {
            stage: Stage::Done,
            cases: cases.iter().map(case).collect(),
            problem: problem.map(str::to_owned),
            el2: el2.map(str::to_owned).to_vec(),
        }
    }

    fn status(outcome: &Outcome, step: usize) -> Status {
        judge(outcome, 4)[step - 1].status
    }

    #[test]
    fn a_step_holds_only_with_every_case_that_it_needs() {
        let mut cases = vec![("3", "module-loads", true), ("3", "device", true)];
        assert_eq!(status(&outcome(&cases, None), 3), Status::NotYet);
        cases.push(("3", "dmesg-names-el2", true));
        assert_eq!(status(&outcome(&cases, None), 3), Status::Held);
        cases.push(("3", "another", false));
        assert_eq!(status(&outcome(&cases, None), 3), Status::Failed);
    }

    #[test]
    fn hotplug_is_needed_where_there_is_a_cpu_to_unplug() {
        let cases: Vec<_> = STEPS[1].needs.iter().map(|name| ("2", *name, true)).collect();
        let outcome = outcome(&cases, None);
        assert_eq!(judge(&outcome, 1)[1].status, Status::Held);
        assert_eq!(judge(&outcome, 2)[1].missing, HOTPLUG);
    }

    #[test]
    fn what_a_failed_boot_did_not_reach_has_failed() {
        let outcome = outcome(&[], Some("freehold: stop: x"));
        assert_eq!(status(&outcome, 1), Status::Held);
        assert_eq!(status(&outcome, 2), Status::Failed);
    }

    #[test]
    fn two_banners_or_a_poor_one_fail_step_1() {
        let mut two = outcome(&[], None);
        two.el2.push("freehold: el2 again".to_owned());
        assert_eq!(status(&two, 1), Status::Failed);
        let mut poor = outcome(&[], None);
        poor.el2.truncate(1);
        assert_eq!(status(&poor, 1), Status::Failed);
    }
}
