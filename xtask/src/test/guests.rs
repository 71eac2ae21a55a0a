// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guests that nobody here built: Debian's kernels as protected and as ordinary guests, judged by their own self-test
//! and by the VMM that runs them.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::boot::{image, log};
use super::life::cases;
use super::{Context, Item, Work};
use crate::builds;
use crate::qemu::{Machine, Running};
use crate::session;

/// Several boots of Linux in a machine that is emulated itself.
const LIMIT: Duration = Duration::from_secs(1200);

pub(super) fn works() -> Vec<Work> {
    [("guests/debian-6.12", "guests", false), ("guests/debian-7.2", "guests", true), ("guests/crowd", "crowd", false)]
        .into_iter()
        .map(|(name, job, newer)| Work::new(name, move |c| boot(c, name, job, newer)).with_inner_filter())
        .collect()
}

fn boot(context: &Context<'_>, name: &str, job: &str, newer: bool) -> Result<Vec<Item>> {
    let (tools, parts) = context.boot.as_ref().context("nothing was built to boot")?;
    let mut machine = Machine::new(image(parts)?, &builds::with_guest(context.env, tools, newer)?);
    // The release that a guest is to be of.
    machine.append = format!("fh.job={job} fh.release={}", if newer { "7.2" } else { "6.12" });
    let mut running = Running::start(&tools.qemu, &machine, &log(context, name))?;
    let outcome = session::follow(&mut running, LIMIT, |_| ())?;
    Ok(cases(context, name, &outcome))
}
