// SPDX-License-Identifier: MIT OR Apache-2.0
//! The debug el2, which judges itself while a hostile host hammers it; and one with a fault, which must be found.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::boot::log;
use super::{Context, Item, Work, life, trace};
use crate::qemu::{Machine, Running};
use crate::session::{self, Outcome};

/// How long the soak goes on, in CI and else.
const SHORT: u32 = 60;
const LONG: u32 = 1800;
/// Boot, and giving everything back.
const AROUND: Duration = Duration::from_secs(300);
/// What the debug el2 says when it finds something.
const FOUND: &str = "freehold: stop: watch: divergence at step ";

/// The pieces.
pub(super) fn works() -> Vec<Work> {
    vec![
        Work::new("watch/soak", traced_soak).with_inner_filter(),
        Work::new("watch/soak-long", long_soak).with_inner_filter().only_long(),
        Work::new("watch/planted-fault-is-found", planted),
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
    session::follow(&mut running, limit(seconds), |_| ())
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

fn planted(context: &Context<'_>) -> Result<Vec<Item>> {
    let name = "watch/planted-fault-is-found";
    let watched = context.watched.as_ref().context("the debug el2 was not built")?;
    let outcome = boot(context, name, &watched.broken, SHORT)?;
    let at = context.env.shown(&log(context, name));
    let problem = match &outcome.problem {
        Some(line) if line.starts_with(FOUND) => None,
        Some(other) => Some(format!("another end: {other}\nconsole log: {at}")),
        None => Some(format!("a lost store was not found\nconsole log: {at}")),
    };
    Ok(vec![Item::new(name, problem)])
}
