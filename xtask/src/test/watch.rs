// SPDX-License-Identifier: MIT OR Apache-2.0
//! The debug el2, which judges itself while a hostile host hammers it; and one with a fault, which must be found.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::boot::log;
use super::{Context, Item, Work, life, trace};
use crate::builds::Watched;
use crate::qemu::{Machine, Running};
use crate::session::{self, Outcome};

/// How long the soak goes on, in CI and else.
const SHORT: u32 = 60;
const LONG: u32 = 1800;
/// Boot, and giving everything back.
const AROUND: Duration = Duration::from_secs(300);
/// What the debug el2 says when it finds something.
const FOUND: &str = "freehold: stop: watch: divergence at step ";
/// Between a job and the seed that it tells.
const SEED: &str = ": seed ";

/// The pieces.
pub(super) fn works() -> Vec<Work> {
    vec![
        Work::new("watch/soak", traced_soak).with_inner_filter(),
        Work::new("watch/soak-long", long_soak).with_inner_filter().only_long(),
        Work::new("watch/planted-fault-is-found", |context| {
            planted(context, "watch/planted-fault-is-found", |watched| &watched.broken, "frame ")
        }),
        Work::new("watch/planted-leaf-is-found", |context| {
            planted(context, "watch/planted-leaf-is-found", |watched| &watched.leaf, "the tables of slot ")
        }),
        Work::new("watch/planted-abort-is-found", |context| {
            planted(context, "watch/planted-abort-is-found", |watched| &watched.misled, "its own external abort")
        }),
    ]
    .into_iter()
    .chain(trace::works())
    .collect()
}

fn machine(context: &Context<'_>, image: &Path, seconds: u32) -> Result<Machine> {
    let (_, parts) = context.boot.as_ref().context("nothing was built to boot")?;
    let mut machine = Machine::new(image, &parts.initramfs);
    machine.append = format!("fh.job=soak fh.seconds={seconds}");
    Ok(machine)
}

fn boot(context: &Context<'_>, name: &str, image: &Path, seconds: u32) -> Result<Outcome> {
    let (tools, _) = context.boot.as_ref().context("nothing was built to boot")?;
    let mut running = Running::start(&tools.qemu, &machine(context, image, seconds)?, &log(context, name))?;
    let mut outcome = session::follow(&mut running, limit(seconds), |_| ())?;
    tell_seed(context, name, &mut outcome);
    Ok(outcome)
}

/// Says with a divergence from which seed the job made its choices: el2, which found it, does not know.
pub(super) fn tell_seed(context: &Context<'_>, name: &str, outcome: &mut Outcome) {
    let console = std::fs::read_to_string(log(context, name)).unwrap_or_default();
    outcome.problem = outcome.problem.take().map(|problem| with_seed(problem, &console));
}

/// A divergence and the seed that was told last before it; any other problem as it is.
fn with_seed(problem: String, console: &str) -> String {
    let before = console.lines().take_while(|line| !line.contains(FOUND));
    match before.filter_map(seed).last().filter(|_| problem.starts_with(FOUND)) {
        Some((job, seed)) => format!("{problem} ({job}{SEED}{seed})"),
        None => problem,
    }
}

/// Whose seed a line of the console tells: `JOB: seed NUMBER`.
fn seed(line: &str) -> Option<(&str, &str)> {
    let (job, rest) = line.split_once(SEED)?;
    let number = rest.split([',', ' ']).next()?;
    let is_number = number.strip_prefix("0x").is_some_and(|digits| u64::from_str_radix(digits, 16).is_ok());
    is_number.then_some((job.rsplit(' ').next()?, number))
}

fn limit(seconds: u32) -> Duration {
    Duration::from_secs(seconds.into()) + AROUND
}

/// The short one, whose trace is judged as well.
fn traced_soak(context: &Context<'_>) -> Result<Vec<Item>> {
    let name = "watch/soak";
    let watched = context.watched.as_ref().context("the debug el2 was not built")?;
    let judged = trace::judge(context, name, machine(context, &watched.sound, SHORT)?, limit(SHORT))?;
    let mut items = cases(context, name, &judged.outcome);
    items.push(trace::item(context, &format!("{name}/trace"), name, &judged.report, &trace::SOAK));
    Ok(items)
}

/// The long one, which has the machine for itself.
fn long_soak(context: &Context<'_>) -> Result<Vec<Item>> {
    let name = "watch/soak-long";
    let watched = context.watched.as_ref().context("the debug el2 was not built")?;
    Ok(cases(context, name, &boot(context, name, &watched.sound, LONG)?))
}

fn cases(context: &Context<'_>, name: &str, outcome: &Outcome) -> Vec<Item> {
    for case in outcome.cases.iter().filter(|case| case.case.starts_with("calls,")) {
        crate::ui::note(&format!("{name}: {}, divergence {}", case.seen, outcome.problem.as_deref().unwrap_or("none")));
    }
    // Said when the host powers off, which is after its job's end.
    let console = std::fs::read_to_string(log(context, name)).unwrap_or_default();
    if let Some(line) = console.lines().find_map(|line| line.strip_prefix("freehold: watch: ")) {
        crate::ui::note(&format!("{name}: {line}"));
    }
    life::cases(context, name, outcome)
}

/// Boots one with a fault, which must stop over `what`.
fn planted(context: &Context<'_>, name: &str, image: fn(&Watched) -> &PathBuf, what: &str) -> Result<Vec<Item>> {
    let watched = context.watched.as_ref().context("the debug el2 was not built")?;
    let outcome = boot(context, name, image(watched), SHORT)?;
    let at = context.env.shown(&log(context, name));
    let problem = match &outcome.problem {
        Some(line) if !line.starts_with(FOUND) => Some(format!("another end: {line}\nconsole log: {at}")),
        Some(line) if !line.contains(what) => Some(format!("another fault was found: {line}\nconsole log: {at}")),
        Some(line) if !line.contains("(soak: seed 0x") => Some(format!("without the seed: {line}\nconsole log: {at}")),
        Some(_) => None,
        None => Some(format!("it was not found\nconsole log: {at}")),
    };
    Ok(vec![Item::new(name, problem)])
}

#[cfg(test)]
mod tests {
    use super::*;

    const STOP: &str = "freehold: stop: watch: divergence at step 501 on cpu 1 in Call { id: c600008c }: frame 0x44d04";

    #[test]
    fn a_divergence_is_told_with_the_last_seed_before_it() {
        let console = |first: &str| {
            format!("{first}\nnoise: seed none\n@fh {{\"seen\":\"9%, seed 0x2\"}}\n{STOP}\nlate: seed 0x9\n")
        };
        let told = |first| with_seed(STOP.to_owned(), &console(first));
        assert_eq!(told("stress: seed 0x1, 60 s\nsoak: seed 0xc730, 60 s"), format!("{STOP} (soak: seed 0xc730)"));
        assert_eq!(told("[ 9.1] noise hvc-fuzz: seed 0xc8"), format!("{STOP} (hvc-fuzz: seed 0xc8)"));
        assert_eq!(told("a job without choices"), STOP);
    }

    #[test]
    fn no_other_problem_is_given_a_seed() {
        for other in ["freehold: stop: no memory at DTB", "nothing after 5 s"] {
            assert_eq!(with_seed(other.to_owned(), "soak: seed 0xc730, 60 s"), other);
        }
    }
}
