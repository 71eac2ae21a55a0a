// SPDX-License-Identifier: MIT OR Apache-2.0
//! A fault of the host's that meets a page on its way waits for the outcome: not much longer than a second, and killable.
//!
//! Time is measured from before the conversion begins, and the best of a few tries counts: a machine that is busy makes a
//! wait longer, and none makes it shorter.

use std::time::{Duration, Instant};

use super::STEP;
use super::calls::{Child, forked};
use super::rig::{Rig, bytes, in_pipe, until_pending};
use crate::probe::{Access, probe};

const TRIES: u32 = 10;
/// What a fault waits for at most, counted from the latest attempt.
const PATIENCE: Duration = Duration::from_secs(1);

/// Runs every part.
pub(crate) fn all() -> Result<(), String> {
    bounded()?;
    killed()
}

/// What `act` comes to while a conversion waits for a page that nobody lets go, and how long after its begin.
fn beside_a_wait<T>(act: impl FnOnce(&Rig, Instant) -> T) -> Result<(T, Duration), String> {
    let rig = Rig::new(4)?;
    let pipe = in_pipe(rig.map.at(bytes(1)));
    let begin = Instant::now();
    let seen = std::thread::scope(|scope| {
        let waiter = scope.spawn(|| rig.gmem.to_private(0, rig.size(), 0));
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
