// SPDX-License-Identifier: MIT OR Apache-2.0
//! A fault of the host's that meets a page on its way waits for the outcome: not much longer than a second for one attempt,
//! for any number of short ones, and killable.
//!
//! Time is measured from before the conversion begins, and the best of a few tries counts: a machine that is busy makes a
//! wait longer, and none makes it shorter.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::STEP;
use super::calls::{Child, call, fd, forked};
use super::rig::{PAGE, Rig, bytes, in_pipe, open_attempts, until_pending};
use crate::probe::{Access, probe};
use crate::sys;

const TRIES: u32 = 10;
/// What a fault waits for at most, counted from the latest attempt.
const PATIENCE: Duration = Duration::from_secs(1);

/// Runs every part.
pub(crate) fn all() -> Result<(), String> {
    bounded()?;
    killed()?;
    woken()?;
    who_may_not_wait()?;
    beside_attempts_that_end()?;
    beside_attempts_in_a_row()
}

/// What `act` comes to while a conversion waits for a page that nobody lets go, and how long after its begin.
fn beside_a_wait<T>(act: impl FnOnce(&Rig, Instant) -> T) -> Result<(T, Duration), String> {
    beside_a_wait_for(4, act)
}

/// As [`beside_a_wait`], of a conversion of the first `pages` of four.
fn beside_a_wait_for<T>(pages: u64, act: impl FnOnce(&Rig, Instant) -> T) -> Result<(T, Duration), String> {
    let rig = Rig::new(4)?;
    let pipe = in_pipe(rig.map.at(bytes(1)));
    let begin = Instant::now();
    let seen = std::thread::scope(|scope| {
        let waiter = scope.spawn(|| rig.gmem.to_private(0, pages * PAGE, 0));
        let _ = until_pending(&rig.gmem);
        let seen = (act(&rig, begin), begin.elapsed());
        while !waiter.is_finished() {
            let _ = rig.gmem.cancel();
            std::thread::sleep(Duration::from_millis(1));
        }
        seen
    });
    drop(pipe);
    Ok(seen)
}

fn bounded() -> Result<(), String> {
    let limit = 4 * PATIENCE;
    let mut best = Duration::MAX;
    for _ in 0..TRIES {
        let (seen, took) = beside_a_wait(|rig, _| probe(rig.map.at(0), Access::Load))?;
        if seen != "SIGBUS" {
            STEP.same("a fault that waits: the page is not there", "SIGBUS", seen);
            return Ok(());
        }
        best = best.min(took);
        if best < limit {
            break;
        }
    }
    let took = format!("{} ms", best.as_millis());
    STEP.judged("a fault that waits: is refused", "within 4 s", took, best < limit);
    Ok(())
}

/// Whether the child is in the fault, asked until the fault's patience has ended.
fn in_fault(child: &Child, begin: Instant) -> bool {
    let stack = format!("/proc/{}/stack", child.id());
    while begin.elapsed() < PATIENCE {
        if std::fs::read_to_string(&stack).is_ok_and(|text| text.contains("fh_fault")) {
            return true;
        }
    }
    false
}

fn killed() -> Result<(), String> {
    let mut seen = String::new();
    for _ in 0..TRIES {
        let ((waits, end), took) = beside_a_wait(|rig, begin| {
            let child = forked(|| {
                std::hint::black_box(rig.map.load(0));
                0
            });
            let waits = in_fault(&child, begin);
            child.signal(libc::SIGKILL);
            (waits, child.end())
        })?;
        seen = format!("in the fault: {waits}, {end}, after {} ms", took.as_millis());
        if waits && end == "signal 9" && took < PATIENCE {
            STEP.judged("a fault that waits: is killed", "in the fault, signal 9, within 1 s", &seen, true);
            return Ok(());
        }
    }
    STEP.judged("a fault that waits: is killed", "in the fault, signal 9, within 1 s", seen, false);
    Ok(())
}

/// How soon a fault is through that the attempt's end wakes: before it would look by itself, a second from the attempt's begin.
const WOKEN: Duration = Duration::from_millis(500);

/// The attempt is cancelled while the fault waits, which is served then: it was woken, and did not look again at the end of its
/// patience.
fn woken() -> Result<(), String> {
    let mut seen = String::new();
    let mut held = false;
    for _ in 0..TRIES {
        let ((waits, end), took) = beside_a_wait(|rig, begin| {
            let child = forked(|| {
                std::hint::black_box(rig.map.load(0));
                0
            });
            let waits = in_fault(&child, begin);
            let _ = rig.gmem.cancel();
            (waits, child.end())
        })?;
        seen = format!("in the fault: {waits}, {end}, after {} ms", took.as_millis());
        held = waits && end == "exit 0" && took < WOKEN;
        if held {
            break;
        }
    }
    STEP.judged("a fault that waits: is woken by the attempt's end", "in the fault, exit 0, within 500 ms", seen, held);
    Ok(())
}

/// What the kernel reads for a debugger, or for who opens `/proc/PID/mem`, does not wait for a page that drains.
fn who_may_not_wait() -> Result<(), String> {
    let memory = std::fs::File::open("/proc/self/mem").map_err(|e| e.to_string())?;
    let mut best = Duration::MAX;
    for _ in 0..TRIES {
        let ((first, beside), took) = beside_a_wait_for(2, |rig, _| {
            let mut word = 0u64;
            let mut read = |page: u64| {
                let at = rig.map.at(bytes(page)) as u64;
                sys::outcome(call(libc::SYS_pread64, &[fd(&memory), (&raw mut word) as u64, 8, at]))
            };
            (read(0), read(3))
        })?;
        STEP.same("/proc/self/mem of a page that drains", "EIO", first);
        // Control: of one that does not.
        STEP.same("/proc/self/mem of a page beside it", "8", beside);
        best = best.min(took);
        if best < WOKEN {
            break;
        }
    }
    let took = format!("{} ms", best.as_millis());
    STEP.judged("/proc/self/mem of a page that drains: at once", "within 500 ms", took, best < WOKEN);
    Ok(())
}

/// What a fault waits for at most, whatever begins meanwhile.
const IN_ALL: Duration = Duration::from_secs(10);

/// A page drains and drains, and elsewhere in the file attempts follow each other, each of which has whoever faults wait
/// anew: until ten seconds are over, and not before.
fn beside_attempts_in_a_row() -> Result<(), String> {
    let (least, most) = (IN_ALL, IN_ALL + 6 * PATIENCE);
    let mut seen = String::new();
    let mut held = false;
    // A machine that is busy lets a second pass between two attempts, or comes late.
    for _ in 0..4 {
        let stop = AtomicBool::new(false);
        let ((end, took), rounds) = beside_a_wait_for(2, |rig, _| {
            std::thread::scope(|scope| {
                let storm = scope.spawn(|| {
                    let mut rounds = 0_u64;
                    while !stop.load(Ordering::Relaxed) {
                        let there = rig.gmem.to_private_now(3 * PAGE, PAGE).is_ok();
                        rounds += u64::from(there && rig.gmem.to_shared(3 * PAGE, PAGE).is_ok());
                        std::thread::sleep(Duration::from_millis(100));
                    }
                    rounds
                });
                // The first page drains for the attempt that waits for the second.
                let begin = Instant::now();
                let end = probe(rig.map.at(0), Access::Load);
                let took = begin.elapsed();
                stop.store(true, Ordering::Relaxed);
                ((end, took), storm.join().unwrap_or(0))
            })
        })?
        .0;
        held = end == "SIGBUS" && took >= least && took < most && rounds > 10;
        seen = format!("{end} after {} ms, beside {rounds} attempts", took.as_millis());
        if held {
            break;
        }
    }
    STEP.judged("attempts in a row: a fault beside them", "SIGBUS after 10 to 16 s, beside 10 or more", seen, held);
    Ok(())
}

/// How long conversions that must not wait follow each other, at least, and how many there are.
const STORM: Duration = Duration::from_secs(4);
const STORM_ROUNDS: u64 = 50;

/// A conversion of four pages that must not wait is repeated in a loop, and finds the second held each time. The others stay
/// the host's all along: whoever loads or stores there, or has the kernel read there, is served, however many attempts pass
/// it by.
fn beside_attempts_that_end() -> Result<(), String> {
    let rig = Rig::new(4)?;
    let pipe = in_pipe(rig.map.at(bytes(1)));
    let file = sys::owned(sys::memfd(PAGE).map_err(sys::errno_name)?.into());
    let (stop, rounds, odd) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let children: Vec<_> = [0, 2, 3].map(|page| forked(|| touches(&rig, page, &file))).into();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // At the page in the pipe, or at one that somebody touches at this moment.
                let held = matches!(rig.gmem.to_private_now(0, rig.size()), Err((libc::EAGAIN, _)));
                odd.fetch_add(u64::from(!held), Ordering::Relaxed);
                rounds.fetch_add(1, Ordering::Relaxed);
            }
        });
        for (who, child) in ["first", "third", "fourth"].into_iter().zip(children) {
            STEP.same(&format!("attempts that end, in a loop: the {who} page is served"), "exit 9", child.end());
        }
        stop.store(true, Ordering::Relaxed);
    });
    let rounds = rounds.load(Ordering::Relaxed);
    let (least, enough) = (format!("{STORM_ROUNDS} or more"), rounds >= STORM_ROUNDS);
    STEP.judged("attempts that end, in a loop: how many there were", &least, rounds, enough);
    STEP.same("attempts that end, in a loop: that found no page busy", 0, odd.load(Ordering::Relaxed));
    STEP.same("attempts that end, in a loop: as many have ended as begun", "0 of some", open_attempts(&rig.gmem));
    drop(pipe);
    STEP.same("attempts that end, in a loop: nothing has changed", "[]", format!("{:?}", rig.damaged()));
    Ok(())
}

/// Touches a page for as long as the storm lasts: by a load, a store of what is there, and a system call that reads there. A
/// signal ends it; 9: all went through.
fn touches(rig: &Rig, page: u64, to: &OwnedFd) -> u8 {
    let begin = Instant::now();
    while begin.elapsed() < STORM {
        let word = rig.map.load(bytes(page));
        rig.map.store(bytes(page), word);
        if call(libc::SYS_pwrite64, &[fd(to), rig.map.at(bytes(page)) as u64, 8, 0]) != Ok(8) {
            return 8;
        }
    }
    9
}
