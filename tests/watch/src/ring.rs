// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where the trace goes: memory of the binary's own, read from outside the machine.
//!
//! A full buffer overwrites its beginning: a trace that is longer is read in stretches. Records carry their numbers, so
//! what a reader missed is noticed.

use core::sync::atomic::{AtomicU64, Ordering};
use freehold_trace::record::{BYTES, Event, Record, Words};

/// Room for `N` records.
#[derive(Debug)]
pub struct Ring<const N: usize> {
    next: AtomicU64,
    records: [[AtomicU64; 4]; N],
}

impl<const N: usize> Ring<N> {
    /// Empty.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "only a static holds one")]
    pub const fn new() -> Self {
        Self { next: AtomicU64::new(0), records: [const { [const { AtomicU64::new(0) }; 4] }; N] }
    }

    /// Where the records stand, how many bytes they have, and where it is counted how many were ever written.
    #[must_use]
    pub fn place(&self) -> (usize, usize, usize) {
        (self.records.as_ptr().addr(), N * BYTES, (&raw const self.next).addr())
    }

    /// The records behind the first `seen`, up to the last that was written; of those that are gone, what came after.
    pub fn words(&self, seen: u64) -> impl Iterator<Item = Words> {
        let places = (seen..self.next.load(Ordering::Acquire)).map(|at| &self.records[(at % N as u64) as usize]);
        places.map(|record| record.each_ref().map(|word| word.load(Ordering::Acquire)))
    }

    /// Notes what a CPU does.
    pub fn note(&self, cpu: u8, event: Event) {
        let at = self.next.fetch_add(1, Ordering::AcqRel);
        let place = &self.records[(at % N as u64) as usize];
        let words = Record { sequence: at + 1, cpu, event }.encode();
        // The head last: a record whose head is there is whole.
        for (cell, word) in place.iter().zip(words).rev() {
            cell.store(word, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_that_is_read_in_time_loses_nothing_and_else_it_shows() {
        let ring = Ring::<2>::new();
        let read = |from| ring.words(from).map(Record::decode).collect::<Vec<_>>();
        let zeroed = |sequence| Some(Record { sequence, cpu: 3, event: Event::Zero { frame: sequence } });
        for frame in 1..=4 {
            ring.note(3, Event::Zero { frame });
            assert_eq!(read(frame - 1), [zeroed(frame)]);
        }
        assert_eq!(read(0), [zeroed(3), zeroed(4), zeroed(3), zeroed(4)], "no 1, no 2");
    }
}
