// SPDX-License-Identifier: MIT OR Apache-2.0
//! Boots: the CPU matrix, another boot loader, another interrupt controller, and input that must stop el2.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::{Context, Item, Work};
use crate::builds::Parts;
use crate::qemu::{Machine, Running};
use crate::session::{self, Outcome};
use crate::setup::Tools;
use crate::steps::HOTPLUG;
use crate::{bad_input, live};

/// The CPUs that a host must come up on.
const CPUS: [&str; 5] = ["cortex-a72", "cortex-a76", "neoverse-n1", "neoverse-v1", "max"];
/// An idle machine needs a twentieth of it.
const LIMIT: Duration = Duration::from_secs(200);
/// What the job `boot` must have looked at, at least.
const NEEDED: [&str; 9] = [
    "host-userspace",
    "cpus-online",
    "exception-level",
    "secondaries-through-psci",
    "el2-entries-per-cpu",
    "host-stage2-faults",
    "host-4k-tables",
    "host-blocks",
    session::KERNEL_LOG,
];

pub(super) fn works() -> Vec<Work> {
    let mut works = Vec::new();
    for cpu in CPUS {
        for smp in [4, 1] {
            let name = format!("boot/{cpu}-smp{smp}");
            works.push(case(&name, move |machine| {
                machine.cpu = cpu.to_owned();
                machine.smp = smp;
            }));
        }
    }
    works.push(Work::new("boot/gic2-host-only", gic2));
    works.push(Work::new("boot/u-boot-booti", uboot));
    works.extend(live::works());
    works.extend(bad_input::works());
    works
}

fn case(name: &str, change: impl Fn(&mut Machine) + Send + Sync + 'static) -> Work {
    let own = name.to_owned();
    Work::new(name, move |context| {
        let (tools, parts) = context.boot.as_ref().context("nothing was built to boot")?;
        let mut machine = Machine::new(image(parts)?, &parts.initramfs);
        machine.append = "fh.job=boot".to_owned();
        change(&mut machine);
        let outcome = boot(context, tools, &machine, &own)?;
        Ok(vec![Item::new(&own, problem(context, &own, &outcome, machine.smp))])
    })
}

/// Without a GICv3 the host comes up as anywhere else, and el2 says why it serves no VM.
fn gic2(context: &Context<'_>) -> Result<Vec<Item>> {
    let name = "boot/gic2-host-only";
    let (tools, parts) = context.boot.as_ref().context("nothing was built to boot")?;
    let mut machine = Machine::new(image(parts)?, &parts.initramfs);
    machine.append = "fh.job=boot".to_owned();
    (machine.gic, machine.cpu) = (2, "cortex-a72".to_owned());
    let mut outcome = boot(context, tools, &machine, name)?;
    if !outcome.el2.iter().any(|l| l.contains("VMs are refused") && l.contains("GICv3")) {
        outcome.problem.get_or_insert_with(|| "el2 does not say why it refuses VMs".to_owned());
    }
    Ok(vec![Item::new(name, problem(context, name, &outcome, machine.smp))])
}

/// The bundle; boots make no sense without one.
pub(crate) fn image(parts: &Parts) -> Result<&Path> {
    parts.image.as_deref().context("el2 is not there yet: nothing to boot")
}

/// Where the console log of the case `name` is.
pub(crate) fn log(context: &Context<'_>, name: &str) -> PathBuf {
    context.env.logs().join(format!("{}.log", name.replace('/', "-")))
}

fn boot(context: &Context<'_>, tools: &Tools, machine: &Machine, name: &str) -> Result<Outcome> {
    let mut running = Running::start(&tools.qemu, machine, &log(context, name))?;
    session::follow(&mut running, LIMIT, |_| ())
}

/// What was not as it must be, and where the log is.
fn problem(context: &Context<'_>, name: &str, outcome: &Outcome, cpus: u32) -> Option<String> {
    let mut what = outcome.failures();
    let hotplug: &[&str] = if cpus > 1 { &HOTPLUG } else { &[] };
    let missing = NEEDED.iter().chain(hotplug).filter(|n| !outcome.cases.iter().any(|c| c.case == **n));
    what.extend(missing.map(|n| format!("{n}: not reported")));
    if outcome.el2.iter().filter(|l| l.starts_with("freehold: el2 ")).count() != 1 {
        what.push("not exactly one banner of el2".to_owned());
    }
    (!what.is_empty()).then(|| format!("{}\nconsole log: {}", what.join("\n"), context.env.shown(&log(context, name))))
}

/// Addresses that Debian's U-Boot leaves free on a machine of 2 GiB.
const UBOOT_IMAGE: u64 = 0x5000_0000;
const UBOOT_INITRD: u64 = 0x6000_0000;
const UBOOT_DTB: u64 = 0x4000_0000;

/// U-Boot starts at EL2, finds the bundle in memory, and starts it like any kernel.
fn uboot(context: &Context<'_>) -> Result<Vec<Item>> {
    let name = "boot/u-boot-booti";
    let (tools, parts) = context.boot.as_ref().context("nothing was built to boot")?;
    let size = std::fs::metadata(&parts.initramfs)?.len();
    let mut machine = Machine::new(image(parts)?, &parts.initramfs);
    machine.append = "fh.job=boot".to_owned();
    machine.cpu = "cortex-a72".to_owned();
    let line = machine.command_line();
    machine.kernel = None;
    for (file, address) in [(image(parts)?, UBOOT_IMAGE), (parts.initramfs.as_path(), UBOOT_INITRD)] {
        let loader = format!("loader,file={},addr={address:#x},force-raw=on", file.display());
        machine.extra.extend(["-device".to_owned(), loader]);
    }
    machine.extra.extend(["-bios".to_owned(), tools.uboot.display().to_string()]);
    let mut running = Running::start(&tools.qemu, &machine, &log(context, name))?;
    let deadline = Instant::now() + LIMIT;
    let typed = [
        format!("setenv bootargs '{line}'"),
        "setenv initrd_high 0xffffffffffffffff".to_owned(),
        format!("booti {UBOOT_IMAGE:#x} {UBOOT_INITRD:#x}:{size:#x} {UBOOT_DTB:#x}"),
    ];
    let mut ready = running.console.wait_for("Hit any key", deadline);
    running.console.send("")?;
    for line in typed {
        ready = ready && running.console.wait_for("=> ", deadline);
        running.console.send(&line)?;
    }
    if !ready {
        let shown = context.env.shown(&log(context, name));
        return Ok(vec![Item::new(name, Some(format!("U-Boot gave no prompt\nconsole log: {shown}")))]);
    }
    let outcome = session::follow(&mut running, LIMIT, |_| ())?;
    Ok(vec![Item::new(name, problem(context, name, &outcome, machine.smp))])
}
