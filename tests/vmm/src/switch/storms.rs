// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guests that never come out by themselves, with interrupts masked: they spin, or keep `el2` at work. Who kicks them brings
//! them out, others go on, and the host gets its interrupts.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use freehold_uapi::hvc::*;

use super::{Bench, STEP};
use crate::hostile::Hostile;
use crate::proto::*;
use crate::raw::status_name;
use crate::sys;
use crate::vcpus::PATIENCE;

/// Kicks at least, and at most until one of them was not disturbed.
const KICKS: usize = 20;
const MOST_KICKS: usize = 10_000;
/// Interrupts of the host's that are many.
const STORM: usize = 2000;

/// A vCPU that makes no exit, with interrupts masked, is kicked from another CPU: it comes out, and no tick of the host's
/// is needed for that.
pub(super) fn kicks(hostile: &Hostile) -> Result<(), String> {
    let mut bench = Bench::new(hostile, false)?;
    let handle = bench.handle;
    let (least, longest) = beside(&mut bench, LAST_SPIN, |kicked| {
        let (mut least, mut longest) = (usize::MAX, Duration::ZERO);
        for done in 0..MOST_KICKS {
            if done >= KICKS && least == 0 {
                break;
            }
            let ticks = ticks_of(1)?;
            longest = longest.max(kick(hostile, handle, kicked)?);
            least = least.min(ticks_of(1)?.saturating_sub(ticks));
        }
        let kicked = kicked.load(Ordering::SeqCst);
        STEP.judged(
            "a vCPU that spins comes out for each kick from another CPU",
            "20 or more",
            kicked,
            kicked >= KICKS,
        );
        Ok((least, longest))
    })?;
    STEP.same("and shows nothing of its registers", 0, bench.leaked);
    let seen = format!("{least} ticks; the longest took {longest:?}");
    STEP.judged("a kick needs no tick of the host's", "some kick without a tick of that CPU", seen, least == 0);
    bench.close();
    Ok(())
}

/// Guests that keep `el2` at work without an end come out for each kick too, and another VM works on meanwhile. The host gets
/// all of its own interrupts beside one that masks them for ever.
pub(super) fn storms(hostile: &Hostile) -> Result<(), String> {
    for (what, last) in [
        ("takes a level that never falls", LAST_LEVEL),
        ("sends itself SGIs for ever", LAST_SGI),
        ("meets nothing but aborts", LAST_ABORT),
    ] {
        let mut bench = Bench::new(hostile, true)?;
        bench.clean("the controller of who is to make a storm", CMD_GIC, [0; 3])?;
        let handle = bench.handle;
        let status = hostile.call(VM_IRQ, &[handle, SPI, u64::from(last == LAST_LEVEL)]);
        STEP.same("its wire", "SUCCESS", status_name(status));
        let done = beside(&mut bench, last, |kicked| {
            let mut other = Bench::new(hostile, true)?;
            other.clean("another guest beside it: its controller", CMD_GIC, [0; 3])?;
            let mut done = 0;
            for _ in 0..KICKS {
                kick(hostile, handle, kicked)?;
                done += u64::from(other.command(CMD_IPI, [10, 0, 0])?[0] == 0);
            }
            other.close();
            Ok(done)
        })?;
        STEP.same(
            &format!("a vCPU that {what} comes out for each kick, and another guest works on"),
            KICKS as u64,
            done,
        );
        bench.close();
    }
    let mut bench = Bench::new(hostile, false)?;
    let handle = bench.handle;
    let (calls, came, took) = beside(&mut bench, LAST_SPIN, |kicked| {
        kick(hostile, handle, kicked)?;
        let (before, start) = (interrupts_of(1, CALLS)?, Instant::now());
        let (mut calls, mut came) = (0, 0);
        // A call finds that CPU at something else now and then, which is not interrupted.
        while came < STORM && calls < 10 * STORM && interrupts_others() {
            calls += 1;
            if calls % 100 == 0 {
                came = interrupts_of(1, CALLS)? - before;
            }
        }
        Ok((calls, came, start.elapsed()))
    })?;
    let seen = format!("{came} of {calls} calls, in {took:?}");
    let held = came >= STORM;
    STEP.judged("the host takes a storm of its own beside a guest that masks for ever", "2000 or more", seen, held);
    bench.close();
    Ok(())
}

/// Has the kernel interrupt every CPU on which this process runs, and wait for each; whether it does.
fn interrupts_others() -> bool {
    const REGISTER: libc::c_int = 1 << 4;
    const PRIVATE_EXPEDITED: libc::c_int = 1 << 3;
    // SAFETY: plain numbers.
    let ask = |what: libc::c_int| unsafe { libc::syscall(libc::SYS_membarrier, what, 0, 0) } == 0;
    ask(REGISTER) && ask(PRIVATE_EXPEDITED)
}

/// Kicks it, and waits until it is out; how long that took.
fn kick(hostile: &Hostile, handle: u64, kicked: &AtomicUsize) -> Result<Duration, String> {
    let (before, start) = (kicked.load(Ordering::SeqCst), Instant::now());
    let status = hostile.call(VCPU_KICK, &[handle, 0]);
    if status != SUCCESS {
        return Err(format!("VCPU_KICK: {}", status_name(status)));
    }
    while kicked.load(Ordering::SeqCst) == before {
        if start.elapsed() > PATIENCE {
            return Err("a kick that brings nobody out".to_owned());
        }
        std::hint::spin_loop();
    }
    Ok(start.elapsed())
}

/// Has a guest do its last on CPU 1, and meanwhile something on CPU 0, which is told how often the guest was kicked out.
fn beside<R: Send>(
    bench: &mut Bench<'_>,
    last: u64,
    act: impl FnOnce(&AtomicUsize) -> Result<R, String> + Send,
) -> Result<R, String> {
    bench.arguments = [last, 0, 0];
    bench.answer = CMD_LAST;
    let (kicked, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (done, ran) = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            sys::pin_to(0);
            let done = act(&kicked);
            over.store(true, Ordering::SeqCst);
            done
        });
        sys::pin_to(1);
        let ran = spins(bench, &kicked, &over);
        (thread.join().unwrap_or_else(|_| Err("panicked".to_owned())), ran)
    });
    ran?;
    done
}

/// Runs a guest that has no end until it is over, and counts how often it was kicked out.
fn spins(bench: &mut Bench<'_>, kicked: &AtomicUsize, over: &AtomicBool) -> Result<(), String> {
    while !over.load(Ordering::SeqCst) {
        let x = bench.run_once(0)?;
        match (x[0], x[1]) {
            (0, EXIT_KICKED) => drop(kicked.fetch_add(1, Ordering::SeqCst)),
            (0, EXIT_IRQ) => {}
            // The three arguments of the command.
            (0, EXIT_MMIO) => drop(bench.device(x[2], x[3], x[4])),
            _ => return Err(format!("a guest without an end left: {:x?}", &x[..5])),
        }
    }
    Ok(())
}

/// The host's timer interrupts on a CPU so far.
fn ticks_of(cpu: usize) -> Result<usize, String> {
    interrupts_of(cpu, "arch_timer")
}

/// Calls from one CPU to another, as `/proc/interrupts` names them.
const CALLS: &str = "Function call interrupts";

/// The host's interrupts of a kind on a CPU so far.
fn interrupts_of(cpu: usize, kind: &str) -> Result<usize, String> {
    let text = std::fs::read_to_string("/proc/interrupts").map_err(|e| e.to_string())?;
    let counts = text.lines().filter(|line| line.contains(kind));
    let here = counts.filter_map(|line| line.split_whitespace().nth(cpu + 1)?.parse::<usize>().ok());
    here.reduce(|sum, one| sum + one).ok_or_else(|| format!("no {kind} in /proc/interrupts"))
}
