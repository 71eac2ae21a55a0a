// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pages that root says are broken memory, or soon will be (`madvise` with `MADV_HWPOISON` and `MADV_SOFT_OFFLINE`, frames by
//! their address with `hard_offline_page`).

use std::os::unix::fs::FileExt;

use super::STEP;
use super::calls::madvise;
use super::lives::wait_for;
use super::rig::{PAGE, PAGE_BYTES, Rig, bytes, new_vm, open_attempts, word};
use crate::gmem::converted;
use crate::hostile::Hostile;
use crate::machine::{Machine, Plan};
use crate::probe::{Access, probe};
use crate::proto;
use crate::sys::{errno_name, fallocate, outcome};

/// Page that is told of, of a file of 4.
const TOLD: u64 = 2;

/// Runs every part. What is broken stays so: nothing else runs after it.
pub(crate) fn all() -> Result<(), String> {
    refused()?;
    going()?;
    gone()?;
    frozen()?;
    given()?;
    of_a_pool()
}

/// `KPF_HWPOISON` and `KPF_BUDDY` of `/proc/kpageflags`.
const HWPOISON: u64 = 1 << 19;
const BUDDY: u64 = 1 << 10;

/// Of a frame: whether it is marked as broken memory, and whether it is the allocator's to give out.
fn told_of(pfn: u64) -> Result<(bool, bool), String> {
    let mut flags = [0u8; 8];
    let file = std::fs::File::open("/proc/kpageflags").map_err(|e| e.to_string())?;
    file.read_exact_at(&mut flags, 8 * pfn).map_err(|e| format!("/proc/kpageflags: {e}"))?;
    let flags = u64::from_le_bytes(flags);
    Ok((flags & HWPOISON != 0, flags & BUDDY != 0))
}

/// Says that a frame is broken, as the machine's firmware would. The kernel knows no way to deal with one of these pages by
/// itself, and marks it.
fn breaks(case: &str, pfn: u64) -> Result<(), String> {
    let done = std::fs::write("/sys/devices/system/memory/hard_offline_page", format!("{:#x}", pfn << 12));
    let done = done.map_or_else(|error| errno_name(error.raw_os_error().unwrap_or(0)), |()| "0".to_owned());
    STEP.same(&format!("hard_offline_page, {case}"), "EBUSY", done);
    STEP.same(&format!("hard_offline_page, {case}: it is marked"), true, told_of(pfn)?.0);
    Ok(())
}

/// A page that waits to be given breaks: it comes back to the host, which meets SIGBUS there and nowhere else, and is not given
/// any more.
fn frozen() -> Result<(), String> {
    const CASE: &str = "a held page";
    let rig = Rig::new(4)?;
    let pfn = Hostile::open()?.pfn_of(rig.map.at(bytes(TOLD))).map_err(errno_name)?;
    STEP.same(&format!("{CASE} breaks: to private"), "0", converted(rig.gmem.to_private_now(0, rig.size())));
    breaks(CASE, pfn)?;
    STEP.same(&format!("{CASE} breaks: to shared"), "0", converted(rig.gmem.to_shared(0, rig.size())));
    STEP.same(&format!("{CASE} breaks: a load"), "SIGBUS", probe(rig.map.at(bytes(TOLD)), Access::Load));
    for page in [0, 1, 3] {
        STEP.same(&format!("{CASE} breaks: page {page}"), word(page), rig.map.load(bytes(page)));
    }
    let again = converted(rig.gmem.to_private_now(0, rig.size()));
    STEP.same(&format!("{CASE} breaks: to private again"), format!("errno 133 at {:#x}", TOLD * PAGE), again);
    let how = libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE;
    let punched = fallocate(&rig.gmem, how, (TOLD * PAGE).cast_signed(), PAGE.cast_signed());
    STEP.same(&format!("{CASE} breaks: a hole there"), "0", outcome(punched));
    STEP.same(&format!("{CASE} breaks: then a load"), "done", probe(rig.map.at(bytes(TOLD)), Access::Load));
    retired(CASE, pfn)
}

/// The frame is nobody's to have again.
fn retired(case: &str, pfn: u64) -> Result<(), String> {
    let told = told_of(pfn)?;
    let case = format!("{case} breaks: the frame is marked, and not the allocator's");
    STEP.same(&case, "(true, false)", format!("{told:?}"));
    Ok(())
}

/// A page of a guest's breaks, which the kernel may say and not see to: the guest has it until its VM ends, and nobody after.
fn given() -> Result<(), String> {
    const CASE: &str = "a guest's page";
    let hostile = Hostile::open()?;
    let plan = Plan { boot: proto::BOOT_NO_SHARE, ..Plan::default() };
    let machine = Machine::new(plan)?;
    let page = bytes((proto::SHARE_BASE - proto::RAM_BASE) / PAGE + 8);
    machine.ram.store(page, word(TOLD));
    let pfn = hostile.pfn_of(machine.ram.at(page)).map_err(errno_name)?;
    let given = converted(machine.gmem.to_private(0, plan.private, 0));
    STEP.same(&format!("{CASE} breaks: given"), "0", given);
    let mut machine = machine;
    machine.boot()?;
    breaks(CASE, pfn)?;
    let at = proto::RAM_BASE + page as u64;
    let seen = machine.command(proto::CMD_LOAD, [at, 0, 0])?;
    STEP.same(&format!("{CASE} breaks: it has it"), format!("[{}, 0]", word(TOLD)), format!("{:?}", &seen[..2]));
    drop(machine);
    STEP.same(&format!("{CASE} breaks: its VM ends"), true, wait_for(|| hostile.unreachable_of(pfn, 1).is_empty()));
    retired(CASE, pfn)
}

/// A frame of a VM's pool breaks: the kernel gets the others back to give out, and not this one.
fn of_a_pool() -> Result<(), String> {
    const CASE: &str = "a pool's frame";
    let hostile = Hostile::open()?;
    let before = hostile.unreachable();
    let vm = new_vm()?;
    let pool: Vec<u64> = hostile.unreachable().into_iter().filter(|pfn| !before.contains(pfn)).collect();
    STEP.judged(&format!("{CASE} breaks: of so many"), "8 or more", pool.len(), pool.len() >= 8);
    let Some(&pfn) = pool.get(3) else { return Ok(()) };
    breaks(CASE, pfn)?;
    drop(vm);
    STEP.same(&format!("{CASE} breaks: its VM ends"), true, wait_for(|| hostile.unreachable_of(pfn, 1).is_empty()));
    retired(CASE, pfn)?;
    let marked = pool.iter().map(|&pfn| told_of(pfn)).filter(|told| told.as_ref().is_ok_and(|told| told.0)).count();
    STEP.same(&format!("{CASE} breaks: that are marked"), 1, marked);
    Ok(())
}

fn refused() -> Result<(), String> {
    let rig = Rig::new(4)?;
    STEP.same("broken: to private", "0", converted(rig.gmem.to_private_now(0, rig.size())));
    for (case, advice) in [("MADV_SOFT_OFFLINE", libc::MADV_SOFT_OFFLINE), ("MADV_HWPOISON", libc::MADV_HWPOISON)] {
        let done = outcome(madvise(rig.map.at(bytes(TOLD)), PAGE_BYTES, advice));
        STEP.same(&format!("{case} of a private page"), "EFAULT", done);
    }
    STEP.same("broken: to shared", "0", converted(rig.gmem.to_shared(0, rig.size())));
    STEP.same("broken: nothing has changed", "[]", format!("{:?}", rig.damaged()));
    Ok(())
}

/// The kernel would move the page elsewhere, and can not: nothing is held, nothing has changed.
fn going() -> Result<(), String> {
    let rig = Rig::new(4)?;
    let done = outcome(madvise(rig.map.at(bytes(TOLD)), PAGE_BYTES, libc::MADV_SOFT_OFFLINE));
    STEP.same("MADV_SOFT_OFFLINE", "EIO", done);
    STEP.same("MADV_SOFT_OFFLINE: at once", "0", converted(rig.gmem.to_private_now(0, rig.size())));
    STEP.same("MADV_SOFT_OFFLINE: back", "0", converted(rig.gmem.to_shared(0, rig.size())));
    STEP.same("MADV_SOFT_OFFLINE: contents are kept", "[]", format!("{:?}", rig.damaged()));
    Ok(())
}

/// The kernel marks the page and keeps a reference to it for good: a holder like another, which lets go of the offset when
/// a hole is punched there.
fn gone() -> Result<(), String> {
    let rig = Rig::new(4)?;
    let at = rig.map.at(bytes(TOLD));
    STEP.same("MADV_HWPOISON", "EBUSY", outcome(madvise(at, PAGE_BYTES, libc::MADV_HWPOISON)));
    let offset = TOLD * PAGE;
    let now = converted(rig.gmem.to_private_now(0, rig.size()));
    STEP.same("MADV_HWPOISON: at once", format!("EAGAIN at {offset:#x}"), now);
    let late = converted(rig.gmem.to_private(0, rig.size(), 300));
    STEP.same("MADV_HWPOISON: with a deadline", format!("ETIMEDOUT at {offset:#x}"), late);
    STEP.same("MADV_HWPOISON: a load, no longer mapped", "SIGBUS", probe(at, Access::Load));
    STEP.same("MADV_HWPOISON: the pages beside it", "0", converted(rig.gmem.to_private_now(0, offset)));
    STEP.same("MADV_HWPOISON: and back", "0", converted(rig.gmem.to_shared(0, offset)));
    let how = libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE;
    let punched = fallocate(&rig.gmem, how, offset.cast_signed(), PAGE.cast_signed());
    STEP.same("MADV_HWPOISON: a hole there", "0", outcome(punched));
    STEP.same("MADV_HWPOISON: then a load", "done", probe(at, Access::Load));
    STEP.same("MADV_HWPOISON: of another page", 0, rig.map.load(bytes(TOLD)));
    rig.map.store(bytes(TOLD), word(TOLD));
    STEP.same("MADV_HWPOISON: which converts", "0", converted(rig.gmem.to_private_now(0, rig.size())));
    STEP.same("MADV_HWPOISON: and comes back", "0", converted(rig.gmem.to_shared(0, rig.size())));
    STEP.same("MADV_HWPOISON: contents are kept", "[]", format!("{:?}", rig.damaged()));
    STEP.same("MADV_HWPOISON: as many have ended as begun", "0 of some", open_attempts(&rig.gmem));
    Ok(())
}
