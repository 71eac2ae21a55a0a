// SPDX-License-Identifier: MIT OR Apache-2.0
//! `freehold_mem`'s ports over the board, each of them as suspicious as a machine can be.

use std::cell::Cell;
use std::sync::atomic::Ordering;

use freehold_mem::ports::{Broken, Fatal, Frames, TableMemory, Tlb};
use freehold_mem::{Entry, Pfn, Vmid};

use crate::board::{Board, Fault};

thread_local! {
    /// The call that this CPU makes lends frames of the host's, which it reaches all along.
    pub(crate) static LENDS: Cell<bool> = const { Cell::new(false) };
}

/// The ports of one machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ports<'r>(pub(crate) &'r Board);

impl Ports<'_> {
    fn changed(&self) {
        self.0.changes.fetch_add(1, Ordering::Relaxed);
    }

    /// Nobody may reach a frame that is zeroed or made ready, except a host that it was lent to.
    fn must_be_unreached(&self, frame: Pfn, what: &str) {
        let mut tlb = self.0.tlb();
        self.0.fill(&mut tlb);
        let bit = self.0.bit(frame.raw());
        let own = bit & !self.0.lent.load(Ordering::Relaxed);
        if tlb.host & own & !crate::tlb::ELSEWHERE != 0 {
            self.0.complain(format!("{what} of frame {:#x} while the host may still reach it", frame.raw()));
        }
        if tlb.all_guests() & bit & !crate::tlb::ELSEWHERE != 0 {
            self.0.complain(format!("{what} of frame {:#x} while a guest may still reach it", frame.raw()));
        }
    }

    /// The frame's contents go into a measurement: nobody may reach it, for what is measured must be what is found.
    pub(crate) fn measure(&self, frame: Pfn) {
        self.must_be_unreached(frame, "a measurement");
        self.0.measured().push(frame.raw());
    }

    fn wipe(&self, frame: Pfn) {
        self.0.blocks().retain(|(at, _)| *at != frame.raw());
        match self.0.fault {
            Fault::NoScrub => {}
            Fault::HalfScrub => self.0.zero(frame.raw(), 256),
            Fault::None | Fault::KeepsHostTlb | Fault::KeepsVmTlb | Fault::WrongVmTlb => {
                self.0.zero(frame.raw(), 512);
            }
        }
    }
}

impl TableMemory for Ports<'_> {
    fn load(&self, at: Entry) -> u64 {
        self.0.read(at.table().raw(), usize::from(at.index()))
    }

    fn store(&mut self, at: Entry, descriptor: u64) {
        self.changed();
        let old = self.load(at);
        if old == descriptor {
            return;
        }
        let mut tlb = self.0.tlb();
        // What goes away now was there until now: some CPU has seen it.
        if old & 1 != 0 && tlb.is_behind {
            self.0.fill(&mut tlb);
        }
        self.0.write(at.table().raw(), usize::from(at.index()), descriptor);
        tlb.is_behind |= descriptor & 1 != 0;
    }

    fn clear(&mut self, frame: Pfn) {
        self.changed();
        self.must_be_unreached(frame, "a table or record out");
        self.0.blocks().retain(|(at, _)| *at != frame.raw());
        self.0.zero(frame.raw(), 512);
    }

    fn publish_tables(&mut self) {}
}

impl Tlb for Ports<'_> {
    fn invalidate_host(&mut self) {
        self.changed();
        let mut tlb = self.0.tlb();
        self.0.fill(&mut tlb);
        if self.0.fault != Fault::KeepsHostTlb {
            tlb.host = 0;
        }
        // At once some CPU looks again.
        self.0.fill(&mut tlb);
    }

    fn invalidate_vm(&mut self, vmid: Vmid) {
        self.changed();
        let mut tlb = self.0.tlb();
        self.0.fill(&mut tlb);
        let slot = usize::from(vmid.raw()).wrapping_sub(1);
        match self.0.fault {
            Fault::KeepsVmTlb => {}
            Fault::WrongVmTlb => tlb.forget_guest(slot ^ 1),
            Fault::None | Fault::KeepsHostTlb | Fault::NoScrub | Fault::HalfScrub => tlb.forget_guest(slot),
        }
        self.0.fill(&mut tlb);
    }
}

impl Frames for Ports<'_> {
    fn scrub(&mut self, frame: Pfn) {
        self.changed();
        self.must_be_unreached(frame, "a scrub");
        self.wipe(frame);
    }

    fn settle_for_guest(&mut self, frame: Pfn) {
        self.changed();
        let mut tlb = self.0.tlb();
        self.0.fill(&mut tlb);
        let lent = LENDS.get();
        if !lent && tlb.host & self.0.bit(frame.raw()) & !crate::tlb::ELSEWHERE != 0 {
            self.0.complain(format!("frame {:#x} is made ready while the host may still write to it", frame.raw()));
        }
    }

    fn settle_instructions(&mut self) {}

    fn copy_words(&self, frame: Pfn, into: &mut [u64]) {
        for (index, word) in into.iter_mut().enumerate() {
            *word = self.0.read(frame.raw(), index);
        }
    }
}

impl Fatal for Ports<'_> {
    fn fatal(&self, what: Broken) -> ! {
        panic!("el2 stopped: {what:?}")
    }
}
