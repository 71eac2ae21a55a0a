// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the watcher hears of the ports, and what it makes a control do wrong there.

use core::sync::atomic::Ordering;
use freehold_mem::{Entry, Pfn};

use super::{Ground, Watcher};
use crate::fault::Fault;
use crate::ports::Ears;
use crate::shadow::Word;

impl<G: Ground, const RECORDS: usize> Ears for &'static Watcher<G, RECORDS> {
    fn copied(&self, frame: Pfn, words: &[u64]) {
        self.here(|cpu| cpu.copied(frame, words));
    }

    fn stores(&self, at: Entry, descriptor: u64) -> Option<u64> {
        // The host's tables are el2's own frames, a guest's are of its pool.
        let is_of = |tag| self.shadow.lock().word(at.table().raw()).is_some_and(|word| word.tag() == tag);
        let first = || !self.lost.swap(true, Ordering::Relaxed);
        match self.ground.fault() {
            Fault::None | Fault::LostInvalidation(_) | Fault::LostScrub(_) | Fault::WrongAddress => Some(descriptor),
            Fault::LostStore(step) => {
                let here = descriptor == 0 && self.here(|cpu| cpu.step >= step && cpu.holds_host);
                (!(here && is_of(Word::EL2) && first())).then_some(descriptor)
            }
            Fault::GuestLeaf(twist) => match twist.of(descriptor) {
                Some(instead) if is_of(Word::POOL) && first() => instead,
                Some(_) | None => Some(descriptor),
            },
        }
    }

    fn scrubbed(&self, frame: Pfn) {
        let shared = self.shadow.lock().word(frame.raw()).is_some_and(|word| word.tag() == Word::SHARED);
        // The host may write to a page that it still borrows. Said when the lock is let go, where a machine may stop.
        if !shared {
            self.here(|cpu| cpu.look_for_zeros(frame, &self.ground.ports()));
        }
    }

    fn leaves(&self) -> bool {
        match self.ground.fault() {
            Fault::None | Fault::LostStore(_) | Fault::LostInvalidation(_) => false,
            Fault::GuestLeaf(_) | Fault::WrongAddress => false,
            Fault::LostScrub(step) => self.here(|cpu| cpu.step >= step) && !self.lost.swap(true, Ordering::Relaxed),
        }
    }

    fn forgets(&self) -> bool {
        match self.ground.fault() {
            Fault::None | Fault::LostStore(_) | Fault::LostScrub(_) => false,
            Fault::GuestLeaf(_) | Fault::WrongAddress => false,
            Fault::LostInvalidation(step) => {
                self.here(|cpu| cpu.step >= step && cpu.holds_host) && !self.lost.swap(true, Ordering::Relaxed)
            }
        }
    }
}
