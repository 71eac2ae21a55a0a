// SPDX-License-Identifier: MIT OR Apache-2.0
//! While a page drains: what may be done with its file, who hears of the end, and what ends the wait of a vCPU that
//! touches such a page, and of a call over guest addresses.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use freehold_uapi::ioctl::MemoryAttributes;

use super::STEP;
use super::calls::{call, fd, forked};
use super::convert::{ATTRIBUTES, set, shown, two_slots};
use super::files::{pass, receive, stat};
use super::rig::{PAGE, PAGE_BYTES, Rig, STILL, bytes, in_pipe, open_attempts, until_pending, word};
use crate::gmem::{Gmem, converted};
use crate::machine::{Event, Machine, Plan, set_slot};
use crate::probe::{Access, probe, probe_here};
use crate::proto;
use crate::sys::{self, errno_name, outcome};
use crate::vgic::{interrupt, let_signals_interrupt, myself};

/// Runs every part.
pub(crate) fn all() -> Result<(), String> {
    let_signals_interrupt();
    calls_meanwhile()?;
    epoll("epoll", 0)?;
    epoll("epoll, by edges", libc::EPOLLET)?;
    a_vcpu_waits()?;
    attributes_end()?;
    its_vm_ends()?;
    who_asked_executes()?;
    super::running::all()
}

/// The first page of four drains, and everything else that a file is for goes on.
fn calls_meanwhile() -> Result<(), String> {
    let rig = Rig::new(4)?;
    let before = stat(&rig.gmem);
    let pipe = in_pipe(rig.map.at(0));
    let begun = converted(rig.gmem.to_private_notify(0, PAGE, 0));
    STEP.same("draining: one page", "EINPROGRESS at 0x0", begun);
    STEP.same("draining: it waits", "pending at 0x0", until_pending(&rig.gmem));
    STEP.same("draining: fstat", format!("{before:?}"), format!("{:?}", stat(&rig.gmem)));
    let mut buffer = [0u8; 64];
    let at = buffer.as_mut_ptr() as u64;
    for (case, expected, number) in [
        ("read(2)", "EINVAL", libc::SYS_read),
        ("write(2)", "EINVAL", libc::SYS_write),
        ("pread", "ESPIPE", libc::SYS_pread64),
        ("pwrite", "ESPIPE", libc::SYS_pwrite64),
    ] {
        STEP.same(&format!("draining: {case}"), expected, outcome(call(number, &[fd(&rig.gmem), at, 64, 0])));
    }
    let fresh = rig.gmem.map(bytes(4)).map_err(errno_name)?;
    STEP.same("draining: a fresh mapping", "SIGBUS", probe(fresh.at(0), Access::Load));
    STEP.same("draining: a fresh mapping, beside it", word(1), fresh.load(bytes(1)));
    others(&rig)?;
    let bound = set_slot(&rig.vm, 0, proto::RAM_BASE, rig.size(), &rig.gmem, 0);
    STEP.same("draining: bind", "0", bound.map_or_else(errno_name, |()| "0".to_owned()));
    STEP.same("draining: it still waits", "pending at 0x0", until_pending(&rig.gmem));
    STEP.same("draining: contents are kept", word(0), read_out(&pipe.0)?);
    drop(pipe);
    STEP.same("draining: poll when it was let go", true, rig.gmem.polls_in(60_000));
    STEP.same("draining: the outcome", "0x0+0x1000: 0 at 0x0", shown(&rig.gmem));
    STEP.same("draining: then a load", "SIGBUS", probe(fresh.at(0), Access::Load));
    STEP.same("draining: back", "0", converted(rig.gmem.to_shared(0, rig.size())));
    STEP.same("draining: nothing has changed", "[]", format!("{:?}", rig.damaged()));
    STEP.same("draining: as many have ended as begun", "0 of some", open_attempts(&rig.gmem));
    Ok(())
}

/// A child, and another process that gets the descriptor: what drains is nobody's, and their ends end nothing.
fn others(rig: &Rig) -> Result<(), String> {
    let (drains, beside) = (rig.map.at(0) as usize, rig.map.at(bytes(1)) as usize);
    let child = forked(|| {
        let there = probe_here(beside as *mut u8, false) == "done";
        let shut = probe_here(drains as *mut u8, false) == "SIGBUS";
        let busy = rig.gmem.to_private_now(0, PAGE) == Err((libc::EAGAIN, 0));
        u8::from(there) | u8::from(shut) << 1 | u8::from(busy) << 2
    });
    STEP.same("draining: fork: served, refused, told to come again", "exit 7", child.end());
    let (here, there) = std::os::unix::net::UnixDatagram::pair().map_err(|e| e.to_string())?;
    let child = forked(|| {
        let Some(fd) = receive(&there) else { return 16 };
        let gmem = Gmem::new(fd);
        let waits = gmem.pending().is_ok_and(|state| state.pending == 1);
        let busy = gmem.to_private_now(0, PAGE) == Err((libc::EAGAIN, 0));
        let Ok(map) = gmem.map(bytes(4)) else { return 32 };
        let shut = probe_here(map.at(0), false) == "SIGBUS";
        let right = map.load(bytes(1)) == word(1);
        std::mem::forget(map);
        u8::from(waits) | u8::from(busy) << 1 | u8::from(shut) << 2 | u8::from(right) << 3
    });
    STEP.same("draining: passed over a socket", true, pass(&here, &rig.gmem));
    STEP.same("draining: seen, told to come again, refused, served there", "exit 15", child.end());
    Ok(())
}

/// The first word of the page in a pipe.
pub(super) fn read_out(reader: &OwnedFd) -> Result<u64, String> {
    let mut out = [0u8; PAGE_BYTES];
    sys::read_to(reader, out.as_mut_ptr(), out.len()).map_err(errno_name)?;
    out[..8].try_into().map(u64::from_le_bytes).map_err(|_| "8 bytes".to_owned())
}

/// What epoll(7) says of a conversion that goes on by itself.
fn epoll(case: &str, how: i32) -> Result<(), String> {
    const MARK: u64 = 0x6d61_726b;
    let rig = Rig::new(4)?;
    let epoll = call(libc::SYS_epoll_create1, &[0]).map(sys::owned).map_err(errno_name)?;
    let ask = libc::epoll_event { events: (libc::EPOLLIN | how).cast_unsigned(), u64: MARK };
    let add = u64::from(libc::EPOLL_CTL_ADD.cast_unsigned());
    let added = call(libc::SYS_epoll_ctl, &[fd(&epoll), add, fd(&rig.gmem), (&raw const ask) as u64]);
    STEP.same(&format!("{case}: the file"), "0", outcome(added));
    let says = |ms: u64| {
        let mut told = libc::epoll_event { events: 0, u64: 0 };
        let count = call(libc::SYS_epoll_pwait, &[fd(&epoll), (&raw mut told) as u64, 1, ms, 0, 8]);
        let (events, mark) = (told.events, told.u64);
        if count == Ok(1) { format!("{events:#x} of {mark:#x}") } else { outcome(count) }
    };
    let readable = format!("0x1 of {MARK:#x}");
    let still = u64::try_from(STILL.as_millis()).unwrap_or(0);
    for round in 0..2 {
        let pipe = in_pipe(rig.map.at(bytes(2)));
        STEP.same(&format!("{case}, round {round}: before"), "0", says(0));
        let begun = converted(rig.gmem.to_private_notify(0, rig.size(), 0));
        STEP.same(&format!("{case}, round {round}: a held page"), "EINPROGRESS at 0x2000", begun);
        STEP.same(&format!("{case}, round {round}: while it waits"), "0", says(still));
        drop(pipe);
        STEP.same(&format!("{case}, round {round}: when it was let go"), &readable, says(60_000));
        // By edges it may say so once more or not.
        if how == 0 {
            STEP.same(&format!("{case}, round {round}: until it is asked how"), &readable, says(0));
        }
        STEP.same(&format!("{case}, round {round}: the outcome"), "0x0+0x4000: 0 at 0x0", shown(&rig.gmem));
        STEP.same(&format!("{case}, round {round}: afterwards"), "0", says(0));
        STEP.same(&format!("{case}, round {round}: back"), "0", converted(rig.gmem.to_shared(0, rig.size())));
    }
    Ok(())
}

/// A vCPU that touches a page which somebody holds waits in its thread: a signal ends that, the VMM's cancel does not, and
/// the page is the guest's when it is let go.
fn a_vcpu_waits() -> Result<(), String> {
    let (offset, page) = (proto::RAM_MIN, bytes(proto::RAM_MIN / PAGE));
    let plan = Plan { bytes: 2 * proto::RAM_MIN, boot: proto::BOOT_NO_SHARE, ..Plan::default() };
    let (mut machine, _) = Machine::booted(plan)?;
    let (gmem, ram) = (machine.gmem.clone(), machine.ram.clone());
    ram.store(page, word(7));
    let pipe = in_pipe(ram.at(page));
    let pending = format!("pending at {offset:#x}");
    machine.answer(proto::CMD_LOAD, [proto::RAM_BASE + offset, 0, 0]);
    let event = beside(
        || machine.step(),
        |thread, ended| {
            STEP.same("touch of a held page: it waits", &pending, until_pending(&gmem));
            std::thread::sleep(STILL);
            STEP.same("touch of a held page: its thread does", false, ended.load(Ordering::SeqCst));
            STEP.same("touch of a held page: cancel", "Ok(())", format!("{:?}", gmem.cancel()));
            std::thread::sleep(STILL);
            STEP.same("touch of a held page: it waits on", false, ended.load(Ordering::SeqCst));
            interrupt(thread);
        },
    );
    STEP.same("touch of a held page: a signal", format!("{:?}", Event::Interrupted), format!("{event:?}"));
    STEP.same("touch of a held page: as many have ended as begun", "0 of some", open_attempts(&gmem));
    STEP.same("touch of a held page: the host has it still", word(7), ram.load(page));
    let seen = beside(
        || machine.rest_of_command(|_| ()),
        |_, ended| {
            STEP.same("touched again: it waits", &pending, until_pending(&gmem));
            STEP.same("touched again: its thread does", false, ended.load(Ordering::SeqCst));
            STEP.same("touched again: what the pipe has", word(7), read_out(&pipe.0).unwrap_or(0));
        },
    )?;
    // It has run: what the host had there is not what it reads (I9).
    STEP.same("let go: the guest reads its own page", "[0, 0]", format!("{:?}", &seen[..2]));
    STEP.same("let go: the host does not", "SIGBUS", probe(ram.at(page), Access::Load));
    STEP.same("let go: as many have ended as begun", "0 of some", open_attempts(&gmem));
    Ok(())
}

/// What `act` comes to in a thread of its own, beside which `look` knows the thread, and whether it is through.
pub(super) fn beside<T: Send>(act: impl FnOnce() -> T + Send, look: impl FnOnce(libc::pid_t, &AtomicBool)) -> T {
    let (ended, (tell, told)) = (AtomicBool::new(false), mpsc::channel());
    std::thread::scope(|scope| {
        let actor = scope.spawn(|| {
            let _ = tell.send(myself());
            let done = act();
            ended.store(true, Ordering::SeqCst);
            done
        });
        look(told.recv().unwrap_or(0), &ended);
        actor.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// `KVM_SET_MEMORY_ATTRIBUTES` over two slots waits in the second: a signal ends it, and so does the file's cancel. What it
/// has moved stays moved, and it may be repeated.
fn attributes_end() -> Result<(), String> {
    let (vm, files, maps) = two_slots()?;
    maps[0].store(bytes(3), word(3));
    maps[1].store(bytes(1), word(5));
    let pipe = in_pipe(maps[1].at(bytes(1)));
    let all = || set(&vm, MemoryAttributes { size: 8 * PAGE, ..ATTRIBUTES });
    for (case, expected) in [("a signal", "EINTR"), ("cancel", "ECANCELED")] {
        let done = beside(all, |thread, ended| {
            STEP.same(&format!("attributes, {case}: it waits"), "pending at 0x1000", until_pending(&files[1]));
            STEP.same(&format!("attributes, {case}: and has not ended"), false, ended.load(Ordering::SeqCst));
            if case == "cancel" {
                let _ = files[1].cancel();
            } else {
                interrupt(thread);
            }
        });
        STEP.same(&format!("attributes, {case}: its end"), expected, done);
        STEP.same(&format!("attributes, {case}: all have ended"), "0 of some", open_attempts(&files[1]));
        STEP.same(&format!("attributes, {case}: the held page"), word(5), maps[1].load(bytes(1)));
        let seen = probe(maps[0].at(bytes(3)), Access::Load);
        STEP.same(&format!("attributes, {case}: the slot before it stays moved"), "SIGBUS", seen);
    }
    drop(pipe);
    STEP.same("attributes, repeated", "0", all());
    STEP.same("attributes, repeated: the held page", "SIGBUS", probe(maps[1].at(bytes(1)), Access::Load));
    Ok(())
}

/// A VM ends, and with it what its VMM asked for of pages that are the host's, though the file lives on: they are the host's
/// as before, and another VM may have them.
fn its_vm_ends() -> Result<(), String> {
    for case in ["notify", "wait"] {
        let rig = Rig::new(4)?;
        set_slot(&rig.vm, 0, proto::RAM_BASE, rig.size(), &rig.gmem, 0).map_err(errno_name)?;
        let pipe = in_pipe(rig.map.at(bytes(2)));
        let Rig { vm, gmem, map, pages } = rig;
        let size = pages * PAGE;
        let done = if case == "notify" {
            STEP.same(
                "its VM ends, notify: begun",
                "EINPROGRESS at 0x2000",
                converted(gmem.to_private_notify(0, size, 0)),
            );
            drop(vm);
            STEP.same("its VM ends, notify: poll", true, gmem.polls_in(60_000));
            shown(&gmem).replace("0x0+0x4000: ", "")
        } else {
            beside(
                || converted(gmem.to_private(0, size, 0)),
                |_, _| {
                    STEP.same("its VM ends, wait: begun", "pending at 0x2000", until_pending(&gmem));
                    drop(vm);
                },
            )
        };
        STEP.same(&format!("its VM ends, {case}: the conversion"), "ECANCELED at 0x2000", done);
        STEP.same(&format!("its VM ends, {case}: as many have ended as begun"), "0 of some", open_attempts(&gmem));
        let other = super::rig::new_vm()?;
        let rig = Rig { vm: other, gmem, map, pages };
        STEP.same(&format!("its VM ends, {case}: a load"), "done", probe(rig.map.at(0), Access::Load));
        STEP.same(&format!("its VM ends, {case}: nothing has changed"), "[]", format!("{:?}", rig.damaged()));
        drop(pipe);
        set_slot(&rig.vm, 0, proto::RAM_BASE, size, &rig.gmem, 0).map_err(errno_name)?;
        let again = converted(rig.gmem.to_private(0, size, 60_000));
        STEP.same(&format!("its VM ends, {case}: another VM converts"), "0", again);
    }
    Ok(())
}

/// Starts another program, if it is there.
fn execute() -> u8 {
    let arguments = [c"busybox".as_ptr(), c"true".as_ptr(), std::ptr::null()];
    // SAFETY: a valid path, and valid arguments with an end.
    unsafe { libc::execv(c"/bin/busybox".as_ptr(), arguments.as_ptr()) };
    12
}

/// A process executes another program while it waits for a page: the wait goes with the thread that had it. A conversion
/// that nobody waits for goes on.
fn who_asked_executes() -> Result<(), String> {
    let rig = Rig::new(4)?;
    let pipe = in_pipe(rig.map.at(bytes(2)));
    let child = forked(|| {
        std::thread::scope(|scope| {
            scope.spawn(|| rig.gmem.to_private(0, rig.size(), 0));
            while rig.gmem.pending().is_ok_and(|p| p.pending == 0) {
                std::thread::yield_now();
            }
            // The other thread ends with it.
            let failed = execute();
            // SAFETY: ends every thread of the child.
            unsafe { libc::_exit(failed.into()) }
        })
    });
    STEP.same("exec over a wait: the new program", "exit 0", child.end());
    let over = super::lives::wait_for(|| open_attempts(&rig.gmem) == "0 of some");
    STEP.same("exec over a wait: its attempt is over", true, over);
    STEP.same("exec over a wait: every page is as before", "[]", format!("{:?}", rig.damaged()));
    let child = forked(|| match rig.gmem.to_private_notify(0, rig.size(), 0) {
        Err((libc::EINPROGRESS, _)) => execute(),
        _ => 13,
    });
    STEP.same("exec over a notified conversion: the new program", "exit 0", child.end());
    STEP.same("exec over a notified conversion: it goes on", "pending at 0x2000", until_pending(&rig.gmem));
    drop(pipe);
    STEP.same("exec over a notified conversion: poll", true, rig.gmem.polls_in(60_000));
    STEP.same("exec over a notified conversion: the outcome", "0x0+0x4000: 0 at 0x0", shown(&rig.gmem));
    Ok(())
}
