// SPDX-License-Identifier: MIT OR Apache-2.0
//! The main job: its nine steps, and which cases each needs before it counts as held.
//!
//! A step whose cases are not all there is `not yet`, so that a case that silently goes away never looks like success.

use serde::Serialize;

use crate::session::{CONSOLE_SHOWN, Case, KERNEL_LOG, Outcome, Stage};

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
pub(crate) const STEPS: [Step; 9] = [
    Step { number: "1", title: "el2 boots and says what it is", needs: &["banner"] },
    Step {
        number: "2",
        title: "the stock host is up at EL1 on every CPU",
        needs: &[
            "host-userspace",
            "cpus-online",
            "exception-level",
            "secondaries-through-psci",
            "el2-entries-per-cpu",
            "host-stage2-faults",
            "host-4k-tables",
            KERNEL_LOG,
        ],
    },
    Step { number: "3", title: "the module finds el2", needs: &["module-loads", "device", "dmesg-names-el2"] },
    Step {
        number: "4",
        title: "a protected VM runs what its guest_memfd holds",
        needs: &[
            "create-vm",
            "program-written-through-mmap",
            "convert",
            "runs",
            "stage1-and-fp",
            "guest-reads-its-canary",
            "first-touch-is-zero",
            "vmm-can-not-read-it",
        ],
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
            "old-mapping-never-meets-el2",
            "foreign-pte",
            "foreign-pte-image",
            "linear-map",
            "linear-map-plain",
            "pool",
            "pool-linear-map",
            "carve-out",
            "carve-out-fresh-mapping",
            "carve-out-plain",
            "carve-out-tables",
            "carve-out-tables-fresh-mapping",
            "carve-out-tables-plain",
            "guest-hash",
            "guest-secret-copies-damaged",
            "second-vm",
        ],
    },
    Step {
        number: "7",
        title: "a conversion waits for who holds the page",
        needs: &[
            "convert-waits",
            "let go: it completes",
            "guest reads the right contents",
            "unshare-waits",
            "let go: unshare returns",
            "guest reads what was there",
            "the host can not any more",
        ],
    },
    Step {
        number: "8",
        title: "after kill -9 nothing is left",
        needs: &[
            "masked-secret",
            "frames-out-of-reach-are-those-el2-counts",
            "ram-scan-alive",
            "vm-lives-during-the-scan",
            "memory-back",
            "all-frames-in-reach",
            "host-memory-back",
            "ram-scan-dead",
            "modules-unload",
            "nothing-left",
            KERNEL_LOG,
        ],
    },
    Step {
        number: "9",
        title: "an unmodified Debian is a protected guest",
        needs: &[
            "userspace",
            CONSOLE_SHOWN,
            "cpus-online",
            "timers-on-every-cpu",
            "ipis-between-cpus",
            "fp-survives-preemption",
            "hotplug",
            "its clock goes as the host's",
            "kernel-reads-guest-memory",
            "proc-mem-reads-guest-memory",
            "ram-scan-alive",
            "memory-while-held",
            "the VMM's exit status",
        ],
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

/// The first step's one case, which no job on the host could report: each thing that a banner says is a line of its own.
fn banner(outcome: &Outcome) -> Case {
    let banners: Vec<&String> = outcome.el2.iter().filter(|l| l.starts_with("freehold: el2 ")).collect();
    // What el2 says later, or said of itself before, is no part of it.
    let block: Vec<&str> = outcome
        .el2
        .iter()
        .skip_while(|l| !l.starts_with("freehold: el2 "))
        .take_while(|l| !l.starts_with("freehold: starting the host"))
        .filter_map(|l| l.strip_prefix("freehold: "))
        .collect();
    let lacks: Vec<&str> =
        SAYS.iter().filter(|(_, says)| !block.iter().any(|line| says(line))).map(|(what, _)| *what).collect();
    let seen = match (banners.as_slice(), lacks.as_slice()) {
        ([], _) => "none".to_owned(),
        ([only], []) => (*only).clone(),
        ([_], lacks) => format!("one that does not say: {}", lacks.join(", ")),
        (several, _) => format!("{} banners", several.len()),
    };
    Case {
        step: "1".to_owned(),
        case: "banner".to_owned(),
        expected: "one banner: version, CPU, RAM, carve-outs, what is protected and what is not".to_owned(),
        held: banners.len() == 1 && lacks.is_empty() && outcome.stage > Stage::Nothing,
        seen,
        at: 0.0,
    }
}

/// Whether a line says a thing.
type Says = fn(&str) -> bool;

/// What the banner must say, and how the line that says it looks.
const SAYS: [(&str, Says); 6] = [
    ("version and CPU", |line| {
        let words: Vec<&str> = line.split(' ').collect();
        let ["el2", version, "on", cpu, ..] = words.as_slice() else { return false };
        let numbers: Vec<&str> = version.split('.').collect();
        numbers.len() == 3 && numbers.iter().all(|n| n.parse::<u32>().is_ok()) && !cpu.is_empty()
    }),
    ("RAM", |line| {
        let words: Vec<&str> = line.split(' ').collect();
        words.windows(3).any(|w| w[0].parse::<u64>().is_ok_and(|size| size > 0) && w[1] == "MiB" && w[2] == "RAM")
    }),
    ("carve-out 0", |line| line.strip_prefix("carve-out 0 ").is_some_and(is_range)),
    ("carve-out 1", |line| line.strip_prefix("carve-out 1 ").is_some_and(is_range)),
    ("what is protected", |line| line.strip_prefix("protects ").is_some_and(|what| what.contains("guest memory"))),
    ("what is not", |line| line.strip_prefix("does not protect from ").is_some_and(|what| what.contains("DMA"))),
];

/// Whether a word of the text is a range of addresses, `0x...-0x...`.
fn is_range(text: &str) -> bool {
    let address = |text: &str| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok();
    let ends = |word: &str| {
        let (first, last) = word.split_once('-')?;
        Some((address(first)?, address(last)?))
    };
    text.split(' ').filter_map(ends).any(|(first, last)| first < last)
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
        let el2 = [
            "freehold: el2 0.1.0 on Cortex-A72 (MIDR 0x410fd083)",
            "freehold: 4 CPUs, 2048 MiB RAM in 1 bank(s)",
            "freehold: carve-out 0 (image) 0x40200000-0x403fffff (2 MiB)",
            "freehold: carve-out 1 (tables) 0xbf600000-0xbfffffff (10 MiB)",
            "freehold: protects guest memory",
            "freehold: does not protect from DMA",
            "freehold: starting the host at 0x40400000",
        ];
        Outcome {
            stage: Stage::Done,
            cases: cases.iter().map(case).collect(),
            problem: problem.map(str::to_owned),
            el2: el2.map(str::to_owned).to_vec(),
            ..Outcome::default()
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
        // Whichever line is missing, or says its thing only after the host has started.
        for line in 0..6 {
            let mut poor = outcome(&[], None);
            let late = poor.el2.remove(line);
            assert_eq!(status(&poor, 1), Status::Failed, "{late}");
            poor.el2.push(late.replace("freehold: el2 ", "freehold: "));
            assert_eq!(status(&poor, 1), Status::Failed, "{late}");
        }
        for (from, to) in [("0.1.0", "0.1"), ("0.1.0", "x.y.z"), ("2048 MiB", "no"), ("0xbf600000-", "")] {
            let mut poor = outcome(&[], None);
            poor.el2.iter_mut().for_each(|l| *l = l.replace(from, to));
            assert_eq!(status(&poor, 1), Status::Failed, "{from} -> {to}");
        }
    }
}
