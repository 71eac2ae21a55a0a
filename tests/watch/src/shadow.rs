// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ledger as it must stand while nobody holds the host's lock, frame by frame.
//!
//! The specification writes here what a call does, and the ledger is compared. What differs when the lock is taken next
//! was written by somebody who did not hold it.

use freehold_mem::{Ledger, Pfn, PfnRun, State};

/// Frames that are followed: 2 GiB of RAM. What lies above is not looked at.
pub const FRAMES: usize = 512 * 1024;
/// Frames of a 2 MB block.
pub const BLOCK: usize = 512;
const BLOCKS: usize = FRAMES / BLOCK;
/// Banks of RAM.
const BANKS: usize = 4;

/// Frames that one call can change.
const CHANGES: usize = 1024;

/// A record of the ledger without what only the pool's free list is about: tag, flags, VM and payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word(u64);

impl Word {
    /// Firmware's.
    pub const NO_MAP: u64 = 0;
    /// The host's alone.
    pub const HOST: u64 = 1;
    /// The host's, lent so many times as the payload says.
    pub const LENT: u64 = 2;
    /// `el2`'s.
    pub const EL2: u64 = 3;
    /// In the pool of the VM.
    pub const POOL: u64 = 4;
    /// The VM's alone; the payload is the guest frame.
    pub const PRIVATE: u64 = 5;
    /// The VM's, lent to the host.
    pub const SHARED: u64 = 6;

    /// Of its parts.
    #[must_use]
    pub const fn new(tag: u64, revocable: bool, vm: u8, payload: u64) -> Self {
        Self(tag | (revocable as u64) << 4 | (vm as u64) << 8 | payload << 16)
    }

    /// Of a state.
    #[must_use]
    pub fn of(state: State) -> Self {
        match state {
            State::NoMap => Self::new(Self::NO_MAP, false, 0, 0),
            State::Host => Self::new(Self::HOST, false, 0, 0),
            State::Lent(times) => Self::new(Self::LENT, false, 0, times.into()),
            State::El2 => Self::new(Self::EL2, false, 0, 0),
            State::Pool { vm, next: _ } => Self::new(Self::POOL, false, vm.raw(), 0),
            State::Private { vm, gfn, revocable } => Self::new(Self::PRIVATE, revocable, vm.raw(), gfn.raw()),
            State::Shared { vm, gfn, revocable } => Self::new(Self::SHARED, revocable, vm.raw(), gfn.raw()),
        }
    }

    /// Whose it is.
    #[must_use]
    pub const fn tag(self) -> u64 {
        self.0 & 7
    }

    /// Whether a stray access of the host's kernel takes it away.
    #[must_use]
    pub const fn revocable(self) -> bool {
        self.0 & 1 << 4 != 0
    }

    /// VM slot.
    #[must_use]
    pub const fn vm(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Guest frame, or times lent.
    #[must_use]
    pub const fn payload(self) -> u64 {
        self.0 >> 16
    }

    /// Where the VM sees it, if it backs a guest frame.
    #[must_use]
    pub const fn place(self) -> Option<(u8, u64)> {
        if self.tag() >= Self::PRIVATE { Some((self.vm(), self.payload())) } else { None }
    }
}

/// Heads of the lists by which the frame behind a guest frame is found.
const HEADS: usize = 16 * 1024;
const NONE: u32 = u32::MAX;

fn head_of((vm, gfn): (u8, u64)) -> usize {
    (gfn as usize ^ usize::from(vm) << 9) % HEADS
}

/// The copy.
#[derive(Debug)]
pub struct Shadow {
    banks: [(u64, u64); BANKS],
    words: [Word; FRAMES],
    /// Blocks of which a frame ever changed hands.
    hot: [bool; BLOCKS],
    heads: [u32; HEADS],
    next: [u32; FRAMES],
    at: usize,
    /// What was changed since the host's lock was taken.
    changed: [u64; CHANGES],
    changes: usize,
}

impl Shadow {
    /// Before the boot.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "only a static holds one")]
    pub const fn new() -> Self {
        Self {
            banks: [(0, 0); BANKS],
            words: [Word(0); FRAMES],
            hot: [false; BLOCKS],
            heads: [NONE; HEADS],
            next: [NONE; FRAMES],
            at: 0,
            changed: [0; CHANGES],
            changes: 0,
        }
    }

    /// The frames that were changed since [`settle`](Self::settle); none if they were too many to be kept.
    #[must_use]
    pub fn changed(&self) -> Option<&[u64]> {
        self.changed.get(..self.changes)
    }

    /// The host's lock is let go: from here on changes count anew.
    pub const fn settle(&mut self) {
        self.changes = 0;
    }

    /// Copies the whole ledger.
    pub fn fill(&mut self, ram: impl Iterator<Item = PfnRun>, ledger: &Ledger<'_>) {
        for (bank, run) in self.banks.iter_mut().zip(ram) {
            *bank = (run.start().raw(), run.count());
        }
        for index in 0..FRAMES {
            if let Some(state) = self.frame(index).and_then(|pfn| ledger.state(pfn)) {
                self.words[index] = Word::of(state);
            }
        }
    }

    /// The place of a frame, if it is followed.
    #[must_use]
    pub fn index(&self, pfn: u64) -> Option<usize> {
        let mut base = 0;
        for (start, count) in self.banks {
            if let Some(offset) = pfn.checked_sub(start).filter(|offset| *offset < count) {
                return usize::try_from(base + offset).ok().filter(|index| *index < FRAMES);
            }
            base += count;
        }
        None
    }

    /// The frame of a place.
    #[must_use]
    pub fn frame(&self, index: usize) -> Option<Pfn> {
        let mut offset = index as u64;
        for (start, count) in self.banks {
            if offset < count {
                return Pfn::new(start + offset);
            }
            offset -= count;
        }
        None
    }

    /// What was copied of a frame.
    #[must_use]
    pub fn word(&self, pfn: u64) -> Option<Word> {
        self.index(pfn).map(|index| self.words[index])
    }

    /// Whether the ledger still says of the frame what was copied.
    #[must_use]
    pub fn agrees(&self, pfn: u64, ledger: &Ledger<'_>) -> bool {
        let (Some(index), Some(pfn)) = (self.index(pfn), Pfn::new(pfn)) else { return true };
        ledger.state(pfn).is_none_or(|state| self.words[index] == Word::of(state))
    }

    /// Changes one frame's record.
    pub fn set(&mut self, pfn: u64, word: Word) {
        let Some(index) = self.index(pfn) else { return };
        let old = core::mem::replace(&mut self.words[index], word);
        self.hot[index / BLOCK] = true;
        if old != word {
            if let Some(place) = self.changed.get_mut(self.changes) {
                *place = pfn;
            }
            self.changes += 1;
        }
        if old.place() == word.place() {
            return;
        }
        if let Some(place) = old.place() {
            self.unlink(head_of(place), index as u32);
        }
        if let Some(place) = word.place() {
            self.next[index] = core::mem::replace(&mut self.heads[head_of(place)], index as u32);
        }
    }

    fn unlink(&mut self, head: usize, index: u32) {
        let after = self.next[index as usize];
        if self.heads[head] == index {
            self.heads[head] = after;
            return;
        }
        let mut at = self.heads[head];
        while at != NONE {
            if self.next[at as usize] == index {
                self.next[at as usize] = after;
                return;
            }
            at = self.next[at as usize];
        }
    }

    /// The frame that a VM owns as this guest frame.
    #[must_use]
    pub fn find(&self, vm: u8, gfn: u64) -> Option<u64> {
        let mut at = self.heads[head_of((vm, gfn))];
        while at != NONE {
            if self.words[at as usize].place() == Some((vm, gfn)) {
                return self.frame(at as usize).map(Pfn::raw);
            }
            at = self.next[at as usize];
        }
        None
    }

    /// The next frame from `from` on that is in a block which was ever touched, or the first of another block.
    #[must_use]
    pub fn worth_a_look(&self, from: &mut usize) -> Option<Pfn> {
        let at = *from;
        let hot = *self.hot.get(at / BLOCK)?;
        *from = if hot { at + 1 } else { (at / BLOCK + 1) * BLOCK };
        self.frame(at)
    }

    /// The next frames to look at, of the blocks that were ever touched: the first that does not agree.
    pub fn walk(&mut self, count: usize, ledger: &Ledger<'_>) -> Option<Pfn> {
        for _ in 0..count {
            self.at = (self.at + 1) % FRAMES;
            // A few steps over cold blocks; the rest comes at the next turn.
            for _ in 0..64 {
                if self.hot[self.at / BLOCK] {
                    break;
                }
                self.at = (self.at / BLOCK + 1) * BLOCK % FRAMES;
            }
            if let Some(pfn) = self.frame(self.at)
                && !self.agrees(pfn.raw(), ledger)
            {
                return Some(pfn);
            }
        }
        None
    }

    /// The first frame of all that does not agree.
    #[must_use]
    pub fn differs(&self, ledger: &Ledger<'_>) -> Option<Pfn> {
        (0..FRAMES).filter_map(|index| self.frame(index)).find(|pfn| !self.agrees(pfn.raw(), ledger))
    }

    /// Frames of touched blocks that are a VM's: its pool, private or shared.
    #[must_use]
    pub fn of_vm(&self, vm: u8) -> usize {
        let names = |word: &Word| word.tag() >= Word::POOL && word.vm() == vm;
        let blocks = self.words.chunks(BLOCK).zip(&self.hot).filter(|(_, hot)| **hot);
        blocks.map(|(words, _)| words.iter().filter(|word| names(word)).count()).sum()
    }
}
