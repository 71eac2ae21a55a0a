// SPDX-License-Identifier: MIT OR Apache-2.0
//! A VM's pool: the frames out of which `el2` makes that VM's tables and vCPUs.
//!
//! Guarantees that a frame is handed out once and cleared. The free frames form a list whose links
//! stand in their ledger records, so the pool writes to no frame before it hands it out. It does not
//! know what a frame becomes. Keeps the memory half of I8 together with the verb that returns it.

use crate::debt::Unreached;
use crate::ports::{Broken, Fatal};
use crate::{Ledger, Machine, Pfn, State, VmSlot};

/// The free frames, and how many there are at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pool {
    head: Option<Pfn>,
    free: u32,
    total: u32,
}

impl Pool {
    /// Frames that can be taken.
    pub(crate) const fn free(&self) -> u32 {
        self.free
    }

    /// Frames of the pool, free or in use.
    pub(crate) const fn total(&self) -> u32 {
        self.total
    }

    /// Adds a frame that nobody can reach.
    pub(crate) fn add(&mut self, frame: &Unreached, vm: VmSlot, ledger: &mut Ledger<'_>, m: &impl Fatal) {
        ledger.give(frame, State::Pool { vm, next: self.head }, m);
        self.head = Some(frame.granule().pfn());
        self.free = self.free.saturating_add(1);
        self.total = self.total.saturating_add(1);
    }

    /// Adds a frame that is in use from the start, such as a root table, and clears it.
    pub(crate) fn add_used(&mut self, frame: &Unreached, vm: VmSlot, ledger: &mut Ledger<'_>, m: &mut impl Machine) {
        ledger.give(frame, State::Pool { vm, next: None }, m);
        m.clear(frame.granule().pfn());
        self.total = self.total.saturating_add(1);
    }

    /// Takes a free frame, cleared.
    pub(crate) fn take(&mut self, vm: VmSlot, ledger: &mut Ledger<'_>, m: &mut impl Machine) -> Option<Pfn> {
        let frame = self.head?;
        match ledger.state(frame) {
            Some(State::Pool { vm: owner, next }) if owner == vm => self.head = next,
            _ => m.fatal(Broken::OneOwner),
        }
        ledger.write(frame, State::Pool { vm, next: None }, m);
        self.free = self.free.saturating_sub(1);
        m.clear(frame);
        Some(frame)
    }

    /// Forgets one frame of a dying VM; the free list is not looked at again.
    pub(crate) fn forget(&mut self) {
        self.head = None;
        self.free = 0;
        self.total = self.total.saturating_sub(1);
    }
}
