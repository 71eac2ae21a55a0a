// SPDX-License-Identifier: MIT OR Apache-2.0
//! Conversions: by KVM's ioctl over guest addresses, by the proposed one on the file, with a wait, at once, with a
//! notification; cancelled, repeated, from two threads, before anything is allocated.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use freehold_uapi::ioctl::*;
use kvm_ioctls::VmFd;

use super::STEP;
use super::rig::{PAGE, PAGE_BYTES, Rig, STILL, bytes, in_pipe, new_vm, open_attempts, until_pending, word};
use crate::gmem::{CONVERT, Gmem, converted};
use crate::hostile::Hostile;
use crate::machine::{Machine, Plan, new_gmem, open, set_slot};
use crate::probe::{Access, probe, probe_here};
use crate::proto;
use crate::raw::{resting, settle};
use crate::sys::{self, Mapping, errno_name, ioctl, ioctl_value, outcome};

const GPA: u64 = proto::RAM_BASE;
pub(super) const ATTRIBUTES: MemoryAttributes =
    MemoryAttributes { address: GPA, size: PAGE, attributes: PRIVATE, flags: 0 };
const ATTRIBUTES2: MemoryAttributes2 =
    MemoryAttributes2 { offset: 0, size: PAGE, attributes: PRIVATE, flags: 0, error_offset: 0, reserved: [0; 11] };
const PRIVATE: u64 = KVM_MEMORY_ATTRIBUTE_PRIVATE;

pub(super) fn set(vm: &VmFd, mut ask: MemoryAttributes) -> String {
    outcome(ioctl(vm, KVM_SET_MEMORY_ATTRIBUTES, &mut ask))
}

/// Runs every part.
pub(crate) fn all() -> Result<(), String> {
    let hostile = Hostile::open()?;
    let rest = resting(&hostile);
    capabilities()?;
    by_address_refusals()?;
    by_address()?;
    by_offset()?;
    progress()?;
    notified()?;
    notified_for_a_guest()?;
    cancelled()?;
    two_threads()?;
    before_allocation()?;
    closed_while_pending(&hostile, &rest)?;
    settle(STEP, "every conversion's VM is gone", &hostile, &rest);
    Ok(())
}

fn capabilities() -> Result<(), String> {
    let (kvm, vm) = (open()?, new_vm()?);
    for (name, cap) in [
        ("memory attributes", KVM_CAP_MEMORY_ATTRIBUTES),
        ("guest_memfd attributes", KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES),
    ] {
        STEP.same(&format!("{name}, system"), PRIVATE, outcome(ioctl_value(&kvm, KVM_CHECK_EXTENSION, cap.into())));
        STEP.same(&format!("{name}, vm"), PRIVATE, outcome(ioctl_value(&vm, KVM_CHECK_EXTENSION, cap.into())));
    }
    Ok(())
}

/// Two slots side by side, each of a file of its own, and mappings of both.
pub(super) fn two_slots() -> Result<(VmFd, [Gmem; 2], [Mapping; 2]), String> {
    let vm = new_vm()?;
    let file = || new_gmem(&vm, 4 * PAGE).map_err(errno_name);
    let files = [file()?, file()?];
    let map = |at: usize| files[at].map(bytes(4)).map_err(errno_name);
    let maps = [map(0)?, map(1)?];
    set_slot(&vm, 0, GPA, 4 * PAGE, &files[0], 0).map_err(errno_name)?;
    set_slot(&vm, 1, GPA + 4 * PAGE, 4 * PAGE, &files[1], 0).map_err(errno_name)?;
    Ok((vm, files, maps))
}

fn by_address_refusals() -> Result<(), String> {
    let (vm, files, maps) = two_slots()?;
    let ask = |case: &str, expected: &str, ask: MemoryAttributes| {
        STEP.same(&format!("attributes: {case}"), expected, set(&vm, ask));
    };
    ask("a flag", "EINVAL", MemoryAttributes { flags: 1, ..ATTRIBUTES });
    ask("an unknown attribute", "EINVAL", MemoryAttributes { attributes: 1, ..ATTRIBUTES });
    ask("one more attribute", "EINVAL", MemoryAttributes { attributes: PRIVATE | 1, ..ATTRIBUTES });
    ask("size 0", "EINVAL", MemoryAttributes { size: 0, ..ATTRIBUTES });
    ask("size unaligned", "EINVAL", MemoryAttributes { size: PAGE + 1, ..ATTRIBUTES });
    ask("address unaligned", "EINVAL", MemoryAttributes { address: GPA + 8, ..ATTRIBUTES });
    ask("overflow", "EINVAL", MemoryAttributes { address: 0u64.wrapping_sub(PAGE), size: 2 * PAGE, ..ATTRIBUTES });
    ask("before every slot", "EFAULT", MemoryAttributes { address: GPA - PAGE, size: 2 * PAGE, ..ATTRIBUTES });
    ask("beyond every slot", "EFAULT", MemoryAttributes { size: 9 * PAGE, ..ATTRIBUTES });
    STEP.same("attributes: bad address", "EFAULT", outcome(ioctl_value(&vm, KVM_SET_MEMORY_ATTRIBUTES, 8)));
    let begun: Vec<_> = files.iter().map(|file| file.pending().map(|p| p.begun)).collect();
    STEP.same("attributes: refused, nothing began", "[Ok(0), Ok(0)]", format!("{begun:?}"));
    STEP.same("attributes: refused, the host maps", "done", probe(maps[0].at(0), Access::Store));
    Ok(())
}

/// One call over two slots: it waits for a page of the second, and is through when that was let go.
fn by_address() -> Result<(), String> {
    let (vm, files, maps) = two_slots()?;
    maps[0].store(bytes(3), word(3));
    maps[1].store(bytes(1), word(5));
    let pipe = in_pipe(maps[1].at(bytes(1)));
    let all = MemoryAttributes { size: 8 * PAGE, ..ATTRIBUTES };
    let done = std::thread::scope(|scope| {
        let waiter = scope.spawn(|| set(&vm, all));
        STEP.same("attributes: waits in the second slot", "pending at 0x1000", until_pending(&files[1]));
        STEP.same("attributes: the first slot is private", "SIGBUS", probe(maps[0].at(bytes(3)), Access::Load));
        let begun = files[1].pending().map_or_else(errno_name, |state| state.begun.to_string());
        STEP.same("attributes: it waits in one attempt", "1", begun);
        let deleted = set_slot(&vm, 1, 0, 0, &files[1], 0).map_or_else(errno_name, |()| "0".to_owned());
        STEP.same("attributes: deleting the slot meanwhile", "EBUSY", deleted);
        drop(pipe);
        waiter.join().unwrap_or_default()
    });
    STEP.same("attributes: over two slots", "0", done);
    STEP.same("attributes: the second slot is private", "SIGBUS", probe(maps[1].at(bytes(1)), Access::Load));
    STEP.same("attributes: again", "0", set(&vm, all));
    let shared = MemoryAttributes { attributes: 0, ..all };
    STEP.same("attributes: a donated page to shared", "EPERM", set(&vm, shared));
    STEP.same("attributes: pages of no frame to shared", "0", set(&vm, MemoryAttributes { size: 3 * PAGE, ..shared }));
    STEP.same("attributes: which the host maps again", "done", probe(maps[0].at(0), Access::Load));
    STEP.same("attributes: and the donated one not", "SIGBUS", probe(maps[0].at(bytes(3)), Access::Load));
    Ok(())
}

/// The proposed ioctl on the file: at once, or `EAGAIN` with the first busy offset.
fn by_offset() -> Result<(), String> {
    let rig = Rig::new(8)?;
    let ask = |case: &str, expected: &str, ask: MemoryAttributes2| {
        STEP.same(&format!("attributes2: {case}"), expected, converted(rig.gmem.attributes(ask)));
    };
    ask("a flag", "EINVAL at 0x0", MemoryAttributes2 { flags: 1, ..ATTRIBUTES2 });
    ask("an unknown attribute", "EINVAL at 0x0", MemoryAttributes2 { attributes: 4, ..ATTRIBUTES2 });
    ask("size 0", "EINVAL at 0x0", MemoryAttributes2 { size: 0, ..ATTRIBUTES2 });
    ask("size unaligned", "EINVAL at 0x0", MemoryAttributes2 { size: 8, ..ATTRIBUTES2 });
    ask("offset unaligned", "EINVAL at 0x0", MemoryAttributes2 { offset: 8, ..ATTRIBUTES2 });
    ask("overflow", "EINVAL at 0x0", MemoryAttributes2 { offset: 0u64.wrapping_sub(PAGE), ..ATTRIBUTES2 });
    ask("beyond the end", "EINVAL at 0x0", MemoryAttributes2 { offset: 8 * PAGE, ..ATTRIBUTES2 });
    let mut reserved = [0; 11];
    reserved[10] = 1;
    ask("a reserved field", "EINVAL at 0x0", MemoryAttributes2 { reserved, ..ATTRIBUTES2 });
    STEP.same("attributes2: bad address", "EFAULT", outcome(ioctl_value(&rig.gmem, KVM_SET_MEMORY_ATTRIBUTES2, 8)));
    let mut wrong = ATTRIBUTES2;
    STEP.same("attributes2: on the VM", "EINVAL", outcome(ioctl(&rig.vm, KVM_SET_MEMORY_ATTRIBUTES2, &mut wrong)));
    let all = MemoryAttributes2 { size: rig.size(), ..ATTRIBUTES2 };
    let pipe = in_pipe(rig.map.at(bytes(6)));
    ask("a held page", "EAGAIN at 0x6000", all);
    STEP.same("attributes2: after it nothing has changed", "[]", format!("{:?}", rig.damaged()));
    drop(pipe);
    // The pipe's buffer is released by the closing thread itself.
    ask("when it was let go", "0", all);
    STEP.same("attributes2: the host reads", "SIGBUS", probe(rig.map.at(0), Access::Load));
    ask("again", "0", all);
    ask("to shared", "0", MemoryAttributes2 { attributes: 0, ..all });
    STEP.same("attributes2: contents are kept", "[]", format!("{:?}", rig.damaged()));
    Ok(())
}

/// A wait shows how far it came, for whoever asks; a kick or a second holder does not end it.
fn progress() -> Result<(), String> {
    let rig = Rig::new(8)?;
    let first = in_pipe(rig.map.at(bytes(3)));
    let second = in_pipe(rig.map.at(bytes(5)));
    let done = std::thread::scope(|scope| {
        let waiter = scope.spawn(|| rig.gmem.to_private(PAGE, 7 * PAGE, 0));
        STEP.same("a wait says where", "pending at 0x3000", until_pending(&rig.gmem));
        let seen = rig.gmem.pending().map(|p| (p.frozen, p.total, p.begun - p.ended)).map_err(errno_name);
        STEP.same("and how far it is", "Ok((2, 7, 1))", format!("{seen:?}"));
        drop(first);
        let start = std::time::Instant::now();
        while rig.gmem.pending().is_ok_and(|p| p.offset != 5 * PAGE) && start.elapsed() < super::rig::PATIENCE {
            std::thread::yield_now();
        }
        STEP.same("then it waits for the next", "pending at 0x5000", until_pending(&rig.gmem));
        drop(second);
        waiter.join().unwrap_or(Err((0, 0)))
    });
    STEP.same("and is through when both have let go", "0", converted(done));
    STEP.same("as many attempts have ended as begun", "0 of some", open_attempts(&rig.gmem));
    Ok(())
}

pub(super) fn shown(gmem: &Gmem) -> String {
    gmem.outcome().map_or_else(errno_name, |o| {
        format!("{:#x}+{:#x}: {} at {:#x}", o.offset, o.size, errno_name(o.error.cast_signed()), o.error_offset)
    })
}

fn notified() -> Result<(), String> {
    let rig = Rig::new(8)?;
    STEP.same("notify: nothing asked, nothing told", "ENOENT", shown(&rig.gmem));
    STEP.same("notify: poll before", false, rig.gmem.polls_in(0));
    STEP.same("notify: cancel with an argument", "EINVAL", outcome(ioctl_value(&rig.gmem, FREEHOLD_CANCEL, 1)));
    STEP.same("notify: nobody holds, done at once", "0", converted(rig.gmem.to_private_notify(7 * PAGE, PAGE, 0)));
    STEP.same("notify: done at once, nothing told", "ENOENT", shown(&rig.gmem));
    unanswered(&rig.gmem)?;
    let (reader, writer) = in_pipe(rig.map.at(bytes(2)));
    let ask = || converted(rig.gmem.to_private_notify(0, 4 * PAGE, 0));
    STEP.same("notify: a held page", "EINPROGRESS at 0x2000", ask());
    STEP.same("notify: not ended yet", "EINPROGRESS", shown(&rig.gmem));
    STEP.same("notify: a second one", "EBUSY at 0x0", ask());
    STEP.same("notify: it is seen to wait", "pending at 0x2000", until_pending(&rig.gmem));
    STEP.same("notify: punching meanwhile", "EBUSY", punch(&rig.gmem, 0));
    STEP.same("notify: sharing meanwhile", "EAGAIN at 0x0", converted(rig.gmem.to_shared(0, PAGE)));
    STEP.same("notify: converting it meanwhile", "EAGAIN at 0x0", converted(rig.gmem.to_private_now(0, PAGE)));
    STEP.same("notify: poll while it waits", false, rig.gmem.polls_in(i32::try_from(STILL.as_millis()).unwrap_or(0)));
    drop((reader, writer));
    STEP.same("notify: poll when the page was let go", true, rig.gmem.polls_in(60_000));
    STEP.same("notify: the outcome waits", "EBUSY at 0x0", ask());
    let bad = outcome(ioctl_value(&rig.gmem, FREEHOLD_OUTCOME, 8));
    STEP.same("notify: outcome to a bad address", "EFAULT", bad);
    STEP.same("notify: which does not lose it", true, rig.gmem.polls_in(0));
    STEP.same("notify: the outcome", "0x0+0x4000: 0 at 0x0", shown(&rig.gmem));
    STEP.same("notify: once", "ENOENT", shown(&rig.gmem));
    STEP.same("notify: poll afterwards", false, rig.gmem.polls_in(0));
    STEP.same("notify: the host reads", "SIGBUS", probe(rig.map.at(bytes(2)), Access::Load));
    STEP.same("notify: to shared", "0", converted(rig.gmem.to_shared(0, rig.size())));
    STEP.same("notify: contents are kept", "[]", format!("{:?}", rig.damaged()));
    let pipe = in_pipe(rig.map.at(0));
    let late = converted(rig.gmem.to_private_notify(0, PAGE, 50));
    STEP.same("notify: with a deadline", "EINPROGRESS at 0x0", late);
    STEP.same("notify: poll at the deadline", true, rig.gmem.polls_in(60_000));
    STEP.same("notify: its outcome", "0x0+0x1000: ETIMEDOUT at 0x0", shown(&rig.gmem));
    STEP.same("notify: afterwards the host maps", "done", probe(rig.map.at(0), Access::Load));
    drop(pipe);
    STEP.same("notify: as many have ended as begun", "0 of some", open_attempts(&rig.gmem));
    Ok(())
}

fn punch(gmem: &Gmem, offset: i64) -> String {
    outcome(sys::fallocate(gmem, libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE, offset, 4096))
}

/// A notified conversion of memory that is bound: the guest starts from what was there.
fn notified_for_a_guest() -> Result<(), String> {
    let mut machine = Machine::new(Plan::default())?;
    let page = proto::SHARE_BASE - proto::RAM_BASE + 7 * proto::GRANULE;
    let at = usize::try_from(page).expect("small");
    for word in (0..4096).step_by(8) {
        machine.ram.store(at + word, proto::pattern(3, proto::RAM_BASE + page + word as u64));
    }
    let pipe = in_pipe(machine.ram.at(at));
    let begun = converted(machine.gmem.to_private_notify(0, proto::RAM_MIN, 0));
    STEP.same("notify, bound: a held page", format!("EINPROGRESS at {page:#x}"), begun);
    drop(pipe);
    STEP.same("notify, bound: poll", true, machine.gmem.polls_in(60_000));
    STEP.same("notify, bound: outcome", format!("0x0+{:#x}: 0 at 0x0", proto::RAM_MIN), shown(&machine.gmem));
    let boot = machine.boot()?;
    STEP.same("notify, bound: the guest starts from what was written", 1, boot.hash_ok);
    let checked = machine.command(proto::CMD_CHECK, [proto::RAM_BASE + page, 4096, 3])?;
    STEP.same("notify, bound: and finds the held page's contents", 0, checked[0]);
    STEP.same("notify, bound: the host does not", "SIGBUS", probe_here(machine.ram.at(at), false));
    Ok(())
}

fn cancelled() -> Result<(), String> {
    let rig = Rig::new(4)?;
    let pipe = in_pipe(rig.map.at(bytes(1)));
    let ended = std::thread::scope(|scope| {
        let waiter = scope.spawn(|| rig.gmem.to_private(0, rig.size(), 0));
        STEP.same("cancel: one waits", "pending at 0x1000", until_pending(&rig.gmem));
        STEP.same("cancel", "Ok(())", format!("{:?}", rig.gmem.cancel()));
        waiter.join().unwrap_or(Err((0, 0)))
    });
    STEP.same("cancel: the waiter is told", "ECANCELED at 0x1000", converted(ended));
    STEP.same("cancel: every page is as before", "[]", format!("{:?}", rig.damaged()));
    let begun = converted(rig.gmem.to_private_notify(0, rig.size(), 0));
    STEP.same("cancel: one goes on by itself", "EINPROGRESS at 0x1000", begun);
    STEP.same("cancel: that one", "Ok(())", format!("{:?}", rig.gmem.cancel()));
    STEP.same("cancel: poll", true, rig.gmem.polls_in(60_000));
    STEP.same("cancel: its outcome", "0x0+0x4000: ECANCELED at 0x1000", shown(&rig.gmem));
    STEP.same("cancel: every page is as before, again", "[]", format!("{:?}", rig.damaged()));
    drop(pipe);
    STEP.same("cancel: a later one is not cancelled", "0", converted(rig.gmem.to_private(0, rig.size(), 60_000)));
    STEP.same("cancel: as many have ended as begun", "0 of some", open_attempts(&rig.gmem));
    Ok(())
}

/// Two threads move ranges that overlap, to and fro; a third reads what it may.
fn two_threads() -> Result<(), String> {
    const ROUNDS: usize = 400;
    let rig = Rig::new(16)?;
    let (gmem, wrong, moved, overtaken) = (&rig.gmem, AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for (first, count) in [(0, 10), (6, 10)] {
            let (wrong, moved, overtaken) = (&wrong, &moved, &overtaken);
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    // It waits for the other thread's pages.
                    match gmem.to_private(first * PAGE, count * PAGE, 60_000) {
                        Ok(()) => moved.fetch_add(1, Ordering::Relaxed),
                        Err(_) => wrong.fetch_add(1, Ordering::Relaxed),
                    };
                    // That does not wait.
                    match gmem.to_shared(first * PAGE, count * PAGE) {
                        Ok(()) => 0,
                        Err((libc::EAGAIN, _)) => overtaken.fetch_add(1, Ordering::Relaxed),
                        Err(_) => wrong.fetch_add(1, Ordering::Relaxed),
                    };
                }
            });
        }
    });
    STEP.same("overlap: answers that may not be", 0, wrong.load(Ordering::Relaxed));
    STEP.same("overlap: every conversion went through", 2 * ROUNDS, moved.load(Ordering::Relaxed));
    println!("overlap: {} to shared met the other thread's conversion", overtaken.load(Ordering::Relaxed));
    STEP.same("overlap: to shared at last", "0", converted(gmem.to_shared(0, rig.size())));
    STEP.same("overlap: contents are kept", "[]", format!("{:?}", rig.damaged()));
    STEP.same("overlap: as many have ended as begun", "0 of some", open_attempts(gmem));
    Ok(())
}

/// Offsets that were never written become private as they are: the guest finds zeros, and the host nothing.
fn before_allocation() -> Result<(), String> {
    let plan = Plan { bytes: 2 * proto::RAM_MIN, ..Plan::default() };
    let mut machine = Machine::new(plan)?;
    let gmem = Arc::clone(&machine.gmem);
    STEP.same("holes: convert", "0", converted(gmem.to_private_now(0, plan.bytes)));
    STEP.same("holes: the host reads", "SIGBUS", probe(machine.ram.at(bytes(600)), Access::Load));
    machine.boot()?;
    let zeros = machine.command(proto::CMD_ZERO, [proto::RAM_BASE + 600 * PAGE, 4 * PAGE, 0])?;
    STEP.same("holes: the guest finds zeros", 0, zeros[0]);
    STEP.same("holes: and the host still nothing", "SIGBUS", probe(machine.ram.at(bytes(600)), Access::Load));
    Ok(())
}

/// Everything is closed while a conversion is pending and a pipe still holds its page: no frame stays with `el2`, and the
/// page is the pipe's until it is read.
fn closed_while_pending(hostile: &Hostile, rest: &[(&'static str, u64)]) -> Result<(), String> {
    for bound in [false, true] {
        let rig = Rig::new(4)?;
        if bound {
            set_slot(&rig.vm, 0, GPA, rig.size(), &rig.gmem, 0).map_err(errno_name)?;
        }
        let (reader, _writer) = in_pipe(rig.map.at(bytes(1)));
        let begun = converted(rig.gmem.to_private_notify(0, rig.size(), 0));
        let case = format!("closed while pending{}", if bound { ", bound" } else { "" });
        STEP.same(&case, "EINPROGRESS at 0x1000", begun);
        drop(rig);
        settle(STEP, &format!("{case}: all is back"), hostile, rest);
        let mut out = [0u8; 4096];
        let got = sys::read_to(&reader, out.as_mut_ptr(), out.len());
        STEP.same(&format!("{case}: the pipe has its page"), "4096", outcome(got));
        STEP.same(&format!("{case}: with its contents"), true, out[..8] == word(1).to_le_bytes());
    }
    Ok(())
}

/// Where the answer cannot be written, that is said before anything begins: not of a conversion that goes on.
fn unanswered(gmem: &Gmem) -> Result<(), String> {
    let (room, file) = Mapping::memfd(PAGE_BYTES, true).map_err(errno_name)?;
    let shut = Mapping::new(&file, 0, PAGE_BYTES, libc::PROT_READ).map_err(errno_name)?;
    let ask = Convert { offset: 0, size: PAGE, to: CONVERT_TO_PRIVATE, mode: CONVERT_NOTIFY, ..CONVERT };
    // SAFETY: the mapping is writable, aligned to a page, and longer.
    unsafe { room.at(0).cast::<Convert>().write(ask) };
    let begun = || gmem.pending().map_or(u64::MAX, |state| state.begun);
    let (before, at) = (begun(), shut.at(0) as u64);
    STEP.same("notify: no room for the answer", "EFAULT", outcome(ioctl_value(gmem, FREEHOLD_CONVERT, at)));
    STEP.same("notify: no room, nothing begins", before, begun());
    Ok(())
}
