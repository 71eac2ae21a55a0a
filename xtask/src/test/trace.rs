// SPDX-License-Identifier: MIT OR Apache-2.0
//! The trace that the debug el2 leaves of a whole job, read when the machine is off and judged by its checker.
//!
//! A trace that is empty, cut or one-sided is noticed: each rule must have had enough to decide, and the buffer must
//! not be full. A debug el2 that loses one invalidation shows that the checker sees such a thing in such a trace.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use freehold_trace::check::{self, Report, Rule};

use super::boot::log;
use super::{Context, Item, Work};
use crate::qemu::{Machine, Running};
use crate::session::{self, Outcome};

const LIMIT: Duration = Duration::from_secs(400);
/// What the debug el2 says first.
const PLACE: &str = "freehold: trace at ";
/// A record's size.
const RECORD: u64 = freehold_trace::record::BYTES as u64;

/// How often each rule must have decided something, at least: about half of what an idle machine showed.
type Floors = [(Rule, u64); check::RULES.len()];

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

const GMEM: Floors = [
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

/// The pieces.
pub(super) fn works() -> Vec<Work> {
    vec![
        Work::new("watch/trace-main", |c| sound(c, "watch/trace-main", "boot,main", &MAIN)),
        Work::new("watch/trace-gmem", |c| sound(c, "watch/trace-gmem", "gmem-convert", &GMEM)),
        Work::new("watch/trace-of-a-lost-invalidation", planted),
    ]
}

/// How the job went, and what is said of its trace.
struct Judged {
    outcome: Outcome,
    report: Report,
    full: bool,
}

/// Runs `job` on `image` until the machine is off.
fn judge(context: &Context<'_>, name: &str, image: &Path, job: &str) -> Result<Judged> {
    let (tools, parts) = context.boot.as_ref().context("nothing was built to boot")?;
    let mut machine = Machine::new(image, &parts.initramfs);
    machine.append = format!("fh.job={job}");
    machine.extra.push("-no-shutdown".to_owned());
    let mut running = Running::start(&tools.qemu, &machine, &log(context, name))?;
    let outcome = session::follow_job(&mut running, LIMIT, |_| ())?;
    let (at, bytes) = outcome.el2.iter().find_map(|line| place(line)).context("el2 did not say where its trace is")?;
    let mut monitor = running.monitor()?;
    // A machine with a problem may never switch itself off.
    if outcome.problem.is_none() {
        monitor.wait_for_power_off()?;
    }
    let file = running.scratch("trace");
    let saved = monitor.save_memory(at, bytes, &file).and_then(|()| Ok(std::fs::read(&file)?));
    // It is large; the machine's end leaves nothing behind.
    let _ = std::fs::remove_file(&file);
    let report = check::check(&saved?);
    let full = report.events * RECORD >= bytes;
    Ok(Judged { outcome, report, full })
}

/// Address and size, out of el2's own words.
fn place(line: &str) -> Option<(u64, u64)> {
    let (at, bytes) = line.strip_prefix(PLACE)?.split_once(" bytes ")?;
    let number = |text: &str| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok();
    Some((number(at)?, number(bytes)?))
}

fn sound(context: &Context<'_>, name: &str, job: &str, floors: &Floors) -> Result<Vec<Item>> {
    let watched = context.watched.as_ref().context("the debug el2 was not built")?;
    let judged = judge(context, name, &watched.sound, job)?;
    tell(name, &judged.report);
    let mut problems = judged.outcome.failures();
    problems.extend(broken(&judged.report));
    problems.extend(thin(&judged.report, floors));
    if judged.full {
        problems.push("the trace's buffer is full, so its end is missing".to_owned());
    }
    Ok(vec![Item::new(name, told(context, name, &problems))])
}

/// A lost invalidation changes nothing that is compared while the machine runs; that the trace shows it is the control.
fn planted(context: &Context<'_>) -> Result<Vec<Item>> {
    let name = "watch/trace-of-a-lost-invalidation";
    let watched = context.watched.as_ref().context("the debug el2 was not built")?;
    let judged = judge(context, name, &watched.stale, "ioctls")?;
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
    fn the_place_is_read_from_the_console() {
        assert_eq!(place("freehold: trace at 0x40200000 bytes 0x2000000"), Some((0x4020_0000, 0x200_0000)));
        assert_eq!(place("freehold: trace at 40200000 bytes 0x2000000"), None);
        assert_eq!(place("freehold: el2 0.1.0"), None);
    }

    #[test]
    fn an_empty_trace_is_a_problem_of_every_rule() {
        let empty = check::check(&[0; 64]);
        assert_eq!((broken(&empty), thin(&empty, &MAIN).len()), (None, check::RULES.len()));
    }

    #[test]
    fn floors_speak_of_every_rule() {
        for floors in [MAIN, GMEM] {
            assert_eq!(floors.map(|(rule, _)| rule), check::RULES);
            assert!(floors.iter().all(|(_, floor)| *floor > 0));
        }
    }
}
