// SPDX-License-Identifier: MIT OR Apache-2.0
//! The trace that the debug el2 leaves of a whole job, read while it runs and judged by its checker.
//!
//! A trace that is empty, cut or one-sided is noticed: each rule must have had enough to decide, and no record may be
//! missing. A debug el2 that loses one invalidation shows that the checker sees such a thing in such a trace.

mod drain;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use freehold_trace::check::{self, Report, Rule};

use super::boot::log;
use super::life::{self, Job};
use super::{Context, Item, Work, watch};
use crate::qemu::{Machine, Read, Running};
use crate::session::{self, Outcome};
use drain::{Drain, Place};

const LIMIT: Duration = Duration::from_secs(400);
/// Until el2 has said its first word.
const BOOT: Duration = Duration::from_secs(60);

/// How often each rule must have decided something, at least: about half of what an idle machine showed.
pub(super) type Floors = [(Rule, u64); check::RULES.len()];

const MAIN: Floors = [
    (Rule::Trace, 130_000),
    (Rule::BreakBeforeMake, 14_000),
    (Rule::InvalidateBeforeReuse, 23_000),
    (Rule::TableReuse, 25_000),
    (Rule::PublishBeforeLink, 50),
    (Rule::CleanBeforeGuest, 4_500),
    (Rule::ScrubBeforeHost, 4_500),
    (Rule::Reach, 13_000),
    (Rule::Lock, 60_000),
    (Rule::Debt, 35_000),
    (Rule::Root, 2_500),
];

const FILES: Floors = [
    (Rule::Trace, 35_000),
    (Rule::BreakBeforeMake, 700),
    (Rule::InvalidateBeforeReuse, 4_000),
    (Rule::TableReuse, 13_000),
    (Rule::PublishBeforeLink, 60),
    (Rule::CleanBeforeGuest, 120),
    (Rule::ScrubBeforeHost, 350),
    (Rule::Reach, 1_000),
    (Rule::Lock, 15_000),
    (Rule::Debt, 3_000),
    (Rule::Root, 350),
];

/// The soak of CI: about a quarter of what a machine with a load of 20 showed.
pub(super) const SOAK: Floors = [
    (Rule::Trace, 100_000),
    (Rule::BreakBeforeMake, 1_000),
    (Rule::InvalidateBeforeReuse, 7_000),
    (Rule::TableReuse, 2_000),
    (Rule::PublishBeforeLink, 40),
    (Rule::CleanBeforeGuest, 150),
    (Rule::ScrubBeforeHost, 400),
    (Rule::Reach, 4_500),
    (Rule::Lock, 100_000),
    (Rule::Debt, 150_000),
    (Rule::Root, 500),
];

/// What any job shows, be it about refusals.
const LEAST: Floors = [
    (Rule::Trace, 2_000),
    (Rule::BreakBeforeMake, 10),
    (Rule::InvalidateBeforeReuse, 10),
    (Rule::TableReuse, 10),
    (Rule::PublishBeforeLink, 10),
    (Rule::CleanBeforeGuest, 10),
    (Rule::ScrubBeforeHost, 10),
    (Rule::Reach, 10),
    (Rule::Lock, 100),
    (Rule::Debt, 100),
    (Rule::Root, 10),
];

/// The same where no guest gets a frame: nothing has to be cleaned for one.
const NO_GUEST: Floors = lowered(LEAST, Rule::CleanBeforeGuest, 0);

/// The same of a job that makes a VM or two and is about its file's memory.
const ONE_VM: Floors = lowered(lowered(NO_GUEST, Rule::Debt, 30), Rule::Root, 3);

/// Jobs of which less is asked than of others.
const FEW: [(&str, &Floors); 3] =
    [("life/rounds", &NO_GUEST), ("guest-memfd/holders", &NO_GUEST), ("guest-memfd/offline", &ONE_VM)];

/// Floors with another one for a rule.
const fn lowered(mut floors: Floors, rule: Rule, floor: u64) -> Floors {
    let mut i = 0;
    while i < floors.len() {
        if floors[i].0 as usize == rule as usize {
            floors[i].1 = floor;
        }
        i += 1;
    }
    floors
}

/// What is judged in CI, and how much it must have shown.
const CI: [(&str, &Floors); 2] = [("life/main", &MAIN), ("guest-memfd/files", &FILES)];

/// The pieces: every job that runs above el2, but those that repeat another one for longer only with `--long`.
pub(super) fn works() -> Vec<Work> {
    let lost = Work::new("watch/trace-of-a-lost-invalidation", planted);
    let jobs = life::above_el2().map(|job| {
        let of = |floors: &[(&str, &'static Floors)]| {
            floors.iter().find(|(name, _)| *name == job.name).map(|(_, floors)| *floors)
        };
        let (name, ci) = (name_of(&job), of(&CI));
        let floors = ci.or_else(|| of(&FEW)).unwrap_or(&LEAST);
        let work = Work::new(name.clone(), move |c| sound(c, &name, &job, floors));
        if ci.is_some() { work } else { work.only_long() }
    });
    jobs.chain([lost]).collect()
}

/// The piece that judges the trace of a job.
fn name_of(job: &Job) -> String {
    let (_, own) = job.name.split_once('/').unwrap_or(("", job.name));
    format!("watch/trace-{own}")
}

/// How a job went, and what is said of its trace.
pub(super) struct Judged {
    pub(super) outcome: Outcome,
    pub(super) report: Report,
}

/// Has `machine` do its job on a debug el2 until it is off, while its trace is read and judged.
///
/// # Errors
/// If the machine, its monitor or its trace fail.
pub(super) fn judge(context: &Context<'_>, name: &str, mut machine: Machine, limit: Duration) -> Result<Judged> {
    let (tools, _) = context.boot.as_ref().context("nothing was built to boot")?;
    machine.extra.push("-no-shutdown".to_owned());
    let mut running = Running::start(&tools.qemu, &machine, &log(context, name))?;
    let place = place(&mut running)?;
    let drain = Drain::start(&running, place)?;
    let mut outcome = session::follow_job(&mut running, limit, |_| ())?;
    watch::tell_seed(context, name, &mut outcome);
    // A machine with a problem may never switch itself off.
    if outcome.problem.is_none() {
        running.monitor()?.wait_for_power_off()?;
    }
    Ok(Judged { outcome, report: drain.finish()? })
}

/// Where the trace is: what the debug el2 says before anything else.
fn place(running: &mut Running) -> Result<Place> {
    let deadline = Instant::now() + BOOT;
    loop {
        match running.console.line(deadline) {
            Read::Line(line) => {
                if let Some(place) = Place::read(&line) {
                    return Ok(place);
                }
            }
            Read::Closed | Read::Late => bail!("el2 did not say where its trace is"),
        }
    }
}

fn sound(context: &Context<'_>, name: &str, job: &Job, floors: &Floors) -> Result<Vec<Item>> {
    let watched = context.watched.as_ref().context("the debug el2 was not built")?;
    let judged = judge(context, name, job.machine(context, &watched.sound)?, job.limit.max(LIMIT))?;
    let mut problems = judged.outcome.failures();
    problems.extend(problems_of(name, &judged.report, floors));
    Ok(vec![Item::new(name, told(context, name, &problems))])
}

/// The judgement of a trace by itself, of the piece `name`.
pub(super) fn item(context: &Context<'_>, item: &str, name: &str, report: &Report, floors: &Floors) -> Item {
    Item::new(item, told(context, name, &problems_of(name, report, floors)))
}

fn problems_of(name: &str, report: &Report, floors: &Floors) -> Vec<String> {
    tell(name, report);
    broken(report).into_iter().chain(thin(report, floors)).collect()
}

/// A lost invalidation changes nothing that is compared while the machine runs; that the trace shows it is the control.
fn planted(context: &Context<'_>) -> Result<Vec<Item>> {
    let name = "watch/trace-of-a-lost-invalidation";
    let (_, parts) = context.boot.as_ref().context("nothing was built to boot")?;
    let watched = context.watched.as_ref().context("the debug el2 was not built")?;
    let mut machine = Machine::new(&watched.stale, &parts.initramfs);
    machine.append = "fh.job=ioctls".to_owned();
    let judged = judge(context, name, machine, LIMIT)?;
    tell(name, &judged.report);
    let broken = |rule| judged.report.broken.contains_key(&rule);
    // That it was owed, and that something went on as if it had been done.
    let used = [Rule::BreakBeforeMake, Rule::InvalidateBeforeReuse, Rule::TableReuse].into_iter().any(broken);
    let found = broken(Rule::Debt) && used;
    let mut problems: Vec<String> = judged.outcome.problem.into_iter().collect();
    if !found {
        problems.push(format!("not found; broken: {:?}", judged.report.broken));
    }
    Ok(vec![Item::new(name, told(context, name, &problems))])
}

fn tell(name: &str, report: &Report) {
    let first = report.violations.first().map_or_else(|| "none".to_owned(), ToString::to_string);
    let decided: u64 = report.decided.values().sum();
    crate::ui::note(&format!(
        "{name}: {} records, {decided} decisions {:?}, violations: {first}",
        report.events, report.decided
    ));
}

/// The first violation, and how many there are of each rule.
fn broken(report: &Report) -> Option<String> {
    report.violations.first().map(|first| format!("{first}\nbroken, in all: {:?}", report.broken))
}

/// Rules that had less to decide than they must.
fn thin(report: &Report, floors: &Floors) -> Vec<String> {
    let few = floors.iter().filter(|(rule, floor)| report.decided(*rule) < *floor);
    few.map(|(rule, floor)| format!("{rule:?} decided {}, at least {floor}", report.decided(*rule))).collect()
}

fn told(context: &Context<'_>, name: &str, problems: &[String]) -> Option<String> {
    let at = context.env.shown(&log(context, name));
    (!problems.is_empty()).then(|| format!("{}\nconsole log: {at}", problems.join("\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_trace_is_a_problem_of_every_rule() {
        let empty = check::check(&[0; 64]);
        assert_eq!((broken(&empty), thin(&empty, &MAIN).len()), (None, check::RULES.len()));
    }

    #[test]
    fn floors_speak_of_every_rule() {
        for floors in [MAIN, FILES, SOAK, LEAST] {
            assert_eq!(floors.map(|(rule, _)| rule), check::RULES);
            assert!(floors.iter().all(|(_, floor)| *floor > 0));
        }
        for floors in [NO_GUEST, ONE_VM] {
            let lower: Vec<_> = floors.into_iter().zip(LEAST).filter(|(one, least)| one != least).collect();
            assert!(!lower.is_empty() && lower.iter().all(|((_, one), (_, least))| one < least), "{lower:?}");
        }
    }
}
