// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hearts of the host's CPUs: a thread on each that sleeps and counts while something else is done. A CPU that somebody keeps
//! for itself never beats.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::sys;

/// So often,
pub(crate) const BEAT: Duration = Duration::from_millis(20);
/// and at least once in so many beats, on average.
const SLOW: u64 = 20;
/// Nobody waits for longer, on whatever machine.
const LONGEST: Duration = Duration::from_secs(10);

/// How each CPU beat.
pub(crate) struct Beats {
    pub(crate) counts: Vec<u64>,
    pub(crate) longest: Vec<Duration>,
    pub(crate) took: Duration,
}

impl Beats {
    /// Beats of each that are enough.
    pub(crate) fn least(&self) -> u64 {
        u64::try_from(self.took.as_millis() / BEAT.as_millis()).unwrap_or(0) / SLOW
    }

    /// Each CPU has beaten often enough.
    pub(crate) fn are_enough(&self) -> bool {
        self.least() > 0 && self.counts.iter().all(|count| *count >= self.least())
    }

    /// Each CPU has beaten at all.
    pub(crate) fn are_there(&self) -> bool {
        self.counts.iter().all(|count| *count > 0)
    }

    /// Nobody has waited long.
    pub(crate) fn are_prompt(&self) -> bool {
        self.longest.iter().all(|longest| *longest < LONGEST)
    }
}

/// Does something while they beat.
pub(crate) fn beating<T>(work: impl FnOnce() -> T) -> (T, Beats) {
    let counts: Vec<AtomicU64> = (0..sys::cpus()).map(|_| AtomicU64::new(0)).collect();
    let longest: Vec<AtomicU64> = (0..sys::cpus()).map(|_| AtomicU64::new(0)).collect();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for (cpu, (count, longest)) in counts.iter().zip(&longest).enumerate() {
            let stop = &stop;
            scope.spawn(move || {
                sys::pin_to(cpu);
                while !stop.load(Ordering::Relaxed) {
                    let begin = Instant::now();
                    std::thread::sleep(BEAT);
                    let took = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
                    longest.fetch_max(took, Ordering::Relaxed);
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let begin = Instant::now();
        let done = work();
        let took = begin.elapsed();
        let counts = counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let longest = longest.iter().map(|longest| Duration::from_micros(longest.load(Ordering::Relaxed))).collect();
        stop.store(true, Ordering::Relaxed);
        (done, Beats { counts, longest, took })
    })
}
