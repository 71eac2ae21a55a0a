// SPDX-License-Identifier: MIT OR Apache-2.0
//! A small machine: words of tables, and which frames were zeroed.

use freehold_mem::ports::{Broken, Fatal, Frames, TableMemory, Tlb};
use freehold_mem::{Entry, Pfn, Vmid};
use std::collections::{HashMap, HashSet};

/// The machine.
#[derive(Default)]
pub(crate) struct Machine {
    words: HashMap<Entry, u64>,
    /// Frames that were zeroed since this was emptied.
    pub(crate) zeroed: HashSet<Pfn>,
}

impl TableMemory for Machine {
    fn load(&self, at: Entry) -> u64 {
        self.words.get(&at).copied().unwrap_or(0)
    }
    fn store(&mut self, at: Entry, descriptor: u64) {
        self.words.insert(at, descriptor);
    }
    fn clear(&mut self, frame: Pfn) {
        self.words.retain(|at, _| at.table() != frame);
        self.zeroed.insert(frame);
    }
    fn publish_tables(&mut self) {}
}

impl Tlb for Machine {
    fn invalidate_host(&mut self) {}
    fn invalidate_vm(&mut self, _: Vmid) {}
}

impl Frames for Machine {
    fn scrub(&mut self, frame: Pfn) {
        self.clear(frame);
    }
    fn settle_for_guest(&mut self, _: Pfn) {}
    fn settle_instructions(&mut self) {}
    fn copy_words(&self, _: Pfn, into: &mut [u64]) {
        into.fill(0);
    }
}

impl Fatal for Machine {
    fn fatal(&self, what: Broken) -> ! {
        panic!("{what:?}")
    }
}
