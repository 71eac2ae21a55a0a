// SPDX-License-Identifier: MIT OR Apache-2.0
//! A host that goes on as another kernel by kexec, over VMs that live: they end first, and what comes next has every frame
//! (I8), without a word of theirs (I4).

pub(crate) mod crash;
mod load;

use freehold_uapi::hvc;

use crate::cycles::at_stage;
use crate::gmem::converted;
use crate::hostile::{Hostile, runs};
use crate::kill::{hold_still, holder, tell_scanner};
use crate::machine::{Machine, Plan};
use crate::proto;
use crate::report::{Step, line};
use crate::sys::{self, errno_name};

const BEFORE: Step = Step("kexec-from");
const AFTER: Step = Step("kexec-into");
/// VMs that live when the machine goes over.
const VMS: u64 = 4;

/// A protected guest that runs, another one with a conversion that waits for a page in a pipe, a third that waits to take such
/// a page back, and an ordinary one: then the machine goes over. Comes back only if it does not.
pub(crate) fn leave() -> Result<(), String> {
    let hostile = Hostile::open()?;
    load::next("fh.job=kexec-from", "fh.job=kexec-into")?;
    let mut child = holder()?;
    tell_scanner(BEFORE, &mut child, &hostile)?;
    let mut ordinary = Machine::new(Plan { boot: proto::BOOT_NO_SHARE, ordinary: true, ..Plan::default() })?;
    ordinary.boot()?;
    let waits = Machine::new(Plan::default())?;
    let (reader, writer) = sys::pipe();
    let held = sys::vmsplice(&writer, waits.ram.at(0), 4096);
    BEFORE.same("a page in a pipe", "4096", sys::outcome(held));
    let notified = converted(waits.gmem.to_private_notify(0, proto::RAM_MIN, 0));
    BEFORE.same("a conversion that waits", "EINPROGRESS at 0x0", notified);
    let (mut unshares, stage) = at_stage("unsharing")?;
    BEFORE.same("a guest that takes a page back, and waits", "unsharing", stage.trim());
    // Control: these are VMs, and their memory is out of reach.
    BEFORE.same("VMs that live", VMS, hostile.counter(hvc::COUNTER_VMS, 0));
    BEFORE.same("frames out of the host's reach: some", true, !hostile.unreachable().is_empty());
    line(&format!("{{\"scan\":\"alive\",\"step\":\"{}\"}}", BEFORE.0));
    hold_still();
    // SAFETY: one command, without an argument; what follows it is another kernel.
    unsafe { libc::reboot(libc::LINUX_REBOOT_CMD_KEXEC) };
    let error = errno_name(std::io::Error::last_os_error().raw_os_error().unwrap_or(0));
    let _ = unshares.kill();
    drop((ordinary, waits, reader, writer, child));
    Err(format!("the machine did not go over: {error}"))
}

/// In the kernel that came next, before its driver is there.
pub(crate) fn arrive() -> Result<(), String> {
    let hostile = Hostile::open()?;
    AFTER.same("VMs that live", 0, hostile.counter(hvc::COUNTER_VMS, 0));
    AFTER.same("frames that EL2 says are not the host's", 0, hostile.counter(hvc::COUNTER_FOREIGN_FRAMES, 0));
    AFTER.same("frames out of the host's reach", "", runs(&hostile.unreachable()));
    line(&format!("{{\"scan\":\"dead\",\"step\":\"{}\"}}", AFTER.0));
    hold_still();
    Ok(())
}
