// SPDX-License-Identifier: MIT OR Apache-2.0
//! VMMs that nobody here wrote, unmodified, on `/dev/kvm` as the driver serves it.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::boot::{image, log};
use super::life::cases;
use super::{Context, Item, Work, peer};
use crate::builds;
use crate::qemu::{Machine, Running};
use crate::session;

/// Several boots of Linux in a machine that is emulated itself, by a program that takes its time to start.
const LIMIT: Duration = Duration::from_secs(1200);

pub(super) fn works() -> Vec<Work> {
    let qemu = Work::new("kvm/debian-qemu", |c| boot(c, "kvm/debian-qemu", "kvm")).with_inner_filter();
    vec![qemu, peer::work()]
}

fn boot(context: &Context<'_>, name: &str, job: &str) -> Result<Vec<Item>> {
    let (tools, parts) = context.boot.as_ref().context("nothing was built to boot")?;
    let mut machine = Machine::new(image(parts)?, &builds::with_foreign_vmm(context.env, tools)?);
    machine.append = format!("fh.job={job}");
    let mut running = Running::start(&tools.qemu, &machine, &log(context, name))?;
    let outcome = session::follow(&mut running, LIMIT, |_| ())?;
    Ok(cases(context, name, &outcome))
}
