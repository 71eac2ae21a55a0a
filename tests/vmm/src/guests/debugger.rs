// SPDX-License-Identifier: MIT OR Apache-2.0
//! A debugger of the host's at the threads of a VMM whose guest runs, with a word in its registers: it finds the VMM's
//! registers and none of the guest's.

use std::arch::asm;

use crate::proto::CANARY;
use crate::report::Step;
use crate::switch::shows;
use crate::sys::{errno_name, last_errno};

/// Kinds of registers: general, FP, system call, TLS, breakpoints, watchpoints, SVE, streaming SVE, ZA, pointer keys.
const KINDS: [usize; 11] = [1, 2, 0x404, 0x401, 0x402, 0x403, 0x405, 0x40b, 0x40c, 0x406, 0x40d];
/// Words of the largest kind.
const ROOM: usize = 1 << 14;
/// `ioctl(2)`.
const IOCTL: u64 = libc::SYS_ioctl as u64;

/// What a debugger has read of a thread.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    words: usize,
    /// Those that show a part of the canary.
    found: usize,
    /// The thread is in `ioctl(2)`.
    in_ioctl: bool,
}

fn ptrace(request: impl Into<i64>, thread: libc::pid_t, address: usize, data: usize) -> Result<(), String> {
    let request = request.into();
    // SAFETY: where data is an address, the caller's memory behind it is alive; the kernel checks the rest.
    let done = unsafe { libc::syscall(libc::SYS_ptrace, request, thread, address, data) };
    if done < 0 { Err(format!("ptrace {request:#x}: {}", errno_name(last_errno()))) } else { Ok(()) }
}

/// Stops a thread, reads all its registers, and lets it go.
fn read(thread: libc::pid_t) -> Result<Seen, String> {
    ptrace(libc::PTRACE_SEIZE, thread, 0, 0)?;
    ptrace(libc::PTRACE_INTERRUPT, thread, 0, 0)?;
    let mut status = 0;
    // SAFETY: the number is alive during the call.
    if unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) } != thread {
        return Err(format!("waitpid of {thread}: {}", errno_name(last_errno())));
    }
    let mut seen = Seen::default();
    for kind in KINDS {
        let mut words = vec![0u64; ROOM];
        let mut area = libc::iovec { iov_base: words.as_mut_ptr().cast(), iov_len: ROOM * 8 };
        // Not every CPU has every kind.
        if ptrace(libc::PTRACE_GETREGSET, thread, kind, (&raw mut area) as usize).is_err() {
            continue;
        }
        words.truncate(area.iov_len.div_ceil(8));
        seen.words += words.len();
        seen.found += words.iter().filter(|word| shows(CANARY, **word)).count();
        seen.in_ioctl |= kind == 1 && words.get(8) == Some(&IOCTL);
    }
    ptrace(libc::PTRACE_DETACH, thread, 0, 0)?;
    Ok(seen)
}

/// Looks at every thread of the VMM `process`, several times.
pub(super) fn looks(step: Step, process: u32) -> Result<(), String> {
    control(step)?;
    let mut seen = Vec::new();
    for _ in 0..5 {
        let threads = std::fs::read_dir(format!("/proc/{process}/task")).map_err(|e| e.to_string())?;
        for thread in threads.map_while(Result::ok).filter_map(|t| t.file_name().to_str()?.parse().ok()) {
            seen.push(read(thread)?);
        }
    }
    let (words, found) = seen.iter().fold((0, 0), |(words, found), seen| (words + seen.words, found + seen.found));
    let running = seen.iter().filter(|seen| seen.in_ioctl).count();
    let what = format!("{words} words of {} threads, {running} of them in ioctl, {found} of the guest's", seen.len());
    step.judged(
        "crowd: a debugger finds no register of a guest",
        "none",
        what,
        found == 0 && running >= 10 && words > 500,
    );
    Ok(())
}

/// What the debugger is to find, it finds where a program of the host's has it in its registers.
fn control(step: Step) -> Result<(), String> {
    let (read_end, write_end) = crate::sys::pipe();
    // SAFETY: the child makes no call but one write, which no other thread's locks concern.
    let child = unsafe { libc::fork() };
    if child == 0 {
        crate::sys::write_from(&write_end, (&raw const child).cast(), 1).ok();
        // SAFETY: never comes back; touches no memory.
        unsafe {
            asm!("mov x9, {0}", "dup v7.2d, {0}", "2: b 2b", in(reg) CANARY, options(noreturn, nostack));
        }
    }
    let mut byte = 0u8;
    crate::sys::read_to(&read_end, &raw mut byte, 1).map_err(errno_name)?;
    let mut seen = Ok(Seen::default());
    // Its first words are of the write.
    for _ in 0..1000 {
        seen = read(child);
        if seen.as_ref().is_ok_and(|seen| seen.found > 0) {
            break;
        }
        std::thread::yield_now();
    }
    // SAFETY: our own child, which is waited for.
    unsafe { libc::kill(child, libc::SIGKILL) };
    let mut status = 0;
    // SAFETY: the number is alive during the call.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    let held = seen.as_ref().is_ok_and(|seen| seen.found > 0);
    step.judged("tools: a debugger finds the registers of a program of the host's", "some", format!("{seen:?}"), held);
    Ok(())
}
