// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where the trace goes: memory of the binary's own, read from outside the machine.
//!
//! A full buffer drops the rest, never the beginning.

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

    /// Where the records stand, and how many bytes they have.
    #[must_use]
    pub fn place(&self) -> (usize, usize) {
        (self.records.as_ptr().addr(), N * BYTES)
    }

    /// The records, up to the first that was never written.
    pub fn words(&self) -> impl Iterator<Item = Words> {
        let records = self.records.iter().map(|record| record.each_ref().map(|word| word.load(Ordering::Acquire)));
        records.take_while(|words| words[0] != 0)
    }

    /// Notes what a CPU does.
    pub fn note(&self, cpu: u8, event: Event) {
        if self.next.load(Ordering::Relaxed) >= N as u64 {
            return;
        }
        let at = self.next.fetch_add(1, Ordering::AcqRel);
        let Some(place) = usize::try_from(at).ok().and_then(|at| self.records.get(at)) else { return };
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
    fn a_full_ring_keeps_its_beginning() {
        let ring = Ring::<2>::new();
        for frame in 1..=5 {
            ring.note(3, Event::Zero { frame });
        }
        let seen: Vec<_> = ring.words().map(Record::decode).collect();
        let zeroed = |sequence, frame| Some(Record { sequence, cpu: 3, event: Event::Zero { frame } });
        assert_eq!(seen, [zeroed(1, 1), zeroed(2, 2)]);
    }
}
