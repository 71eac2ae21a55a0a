// SPDX-License-Identifier: MIT OR Apache-2.0
//! The worst TLB that a machine may have: it forgets when it is told to, and never otherwise.
//!
//! It holds each translation that stood in the tables at any moment since the last invalidation, on whichever CPU. So
//! an invalidation that is missing, too early, or of the wrong VM leaves an entry that has no right behind it.

/// Frames that a set can tell apart; one more bit says "some other frame".
pub(crate) const MOST_FRAMES: usize = 63;
/// The bit of frames that are not watched.
pub(crate) const ELSEWHERE: u64 = 1 << MOST_FRAMES;

/// What an access needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Right {
    Read = 0,
    Write = 1,
    Execute = 2,
}

/// What a translation permits beside reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    /// Stores.
    pub write: bool,
    /// Fetches.
    pub execute: bool,
}

/// What is cached: sets of watched frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tlb {
    /// Frames that the host reaches.
    pub(crate) host: u64,
    /// Frames that each VM may read, write to and execute at each watched guest frame.
    guests: Vec<[u64; 3]>,
    gfns: usize,
    /// Whether an entry was made since the last look.
    pub(crate) is_behind: bool,
}

impl Tlb {
    pub(crate) fn new(vms: usize, gfns: usize) -> Self {
        Self { host: 0, guests: vec![[0; 3]; vms * gfns], gfns, is_behind: true }
    }

    /// What VM `vm` reaches at its watched guest frame number `place`.
    pub(crate) fn guest(&self, vm: usize, place: usize) -> u64 {
        self.guest_for(vm, place, Right::Read)
    }

    /// What it may do this to.
    pub(crate) fn guest_for(&self, vm: usize, place: usize, right: Right) -> u64 {
        self.guests[vm * self.gfns + place][right as usize]
    }

    pub(crate) fn add_guest(&mut self, vm: usize, place: usize, frames: u64, may: Rights) {
        let [read, write, execute] = &mut self.guests[vm * self.gfns + place];
        *read |= frames;
        *write |= if may.write { frames } else { 0 };
        *execute |= if may.execute { frames } else { 0 };
    }

    pub(crate) fn forget_guest(&mut self, vm: usize) {
        if let Some(entries) = self.guests.get_mut(vm * self.gfns..(vm + 1) * self.gfns) {
            entries.fill([0; 3]);
        }
    }

    /// Everything that any VM reaches.
    pub(crate) fn all_guests(&self) -> u64 {
        self.guests.iter().fold(0, |all, [frames, ..]| all | frames)
    }
}
