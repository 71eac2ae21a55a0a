// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ports that let somebody hear what they read for el2, and that can be made to fail on purpose.

use freehold_mem::ports::{Broken, Fatal, Frames, TableMemory, Tlb};
use freehold_mem::{Entry, Machine, Pfn, Vmid};

/// Who hears.
pub trait Ears {
    /// el2 has copied the first words of a frame of the host's.
    fn copied(&self, frame: Pfn, words: &[u64]);
    /// What is stored instead of this, if anything: a fault planted to see that it is found. The same, but in a control.
    fn stores(&self, at: Entry, descriptor: u64) -> Option<u64>;
    /// el2 has zeroed a frame.
    fn scrubbed(&self, frame: Pfn);
    /// Whether this zeroing is to be lost. Never, but in a control.
    fn leaves(&self) -> bool;
    /// Whether this invalidation of the host's translations is to be lost. Never, but in a control.
    fn forgets(&self) -> bool;
}

/// The machine, and who hears.
#[derive(Clone, Copy, Debug)]
pub struct Ports<M, E> {
    /// The machine.
    pub machine: M,
    /// Who hears.
    pub ears: E,
}

impl<M: Machine, E: Ears> TableMemory for Ports<M, E> {
    fn load(&self, at: Entry) -> u64 {
        self.machine.load(at)
    }

    fn store(&mut self, at: Entry, descriptor: u64) {
        if let Some(descriptor) = self.ears.stores(at, descriptor) {
            self.machine.store(at, descriptor);
        }
    }

    fn clear(&mut self, frame: Pfn) {
        self.machine.clear(frame);
        self.ears.scrubbed(frame);
    }

    fn publish_tables(&mut self) {
        self.machine.publish_tables();
    }
}

impl<M: Machine, E: Ears> Tlb for Ports<M, E> {
    fn invalidate_host(&mut self) {
        if !self.ears.forgets() {
            self.machine.invalidate_host();
        }
    }

    fn invalidate_vm(&mut self, vmid: Vmid) {
        self.machine.invalidate_vm(vmid);
    }
}

impl<M: Machine, E: Ears> Frames for Ports<M, E> {
    fn scrub(&mut self, frame: Pfn) {
        if !self.ears.leaves() {
            self.machine.scrub(frame);
        }
        self.ears.scrubbed(frame);
    }

    fn settle_for_guest(&mut self, frame: Pfn) {
        self.machine.settle_for_guest(frame);
    }

    fn settle_instructions(&mut self) {
        self.machine.settle_instructions();
    }

    fn copy_words(&self, frame: Pfn, into: &mut [u64]) {
        self.machine.copy_words(frame, into);
        self.ears.copied(frame, into);
    }
}

impl<M: Fatal, E> Fatal for Ports<M, E> {
    fn fatal(&self, what: Broken) -> ! {
        self.machine.fatal(what)
    }
}
