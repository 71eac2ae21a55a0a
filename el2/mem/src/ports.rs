// SPDX-License-Identifier: MIT OR Apache-2.0
//! What this crate asks of the machine, each operation named for its purpose.
//!
//! `arch` implements these with instructions; the tests implement them with a TLB that forgets
//! nothing until it is told to. None of them can fail.

use crate::{Entry, Pfn, Vmid};

/// Reading and writing translation tables.
pub trait TableMemory {
    /// Reads a descriptor, in one single-copy atomic access.
    fn load(&self, at: Entry) -> u64;

    /// Writes a descriptor, in one single-copy atomic access that table walkers may see at any time.
    fn store(&mut self, at: Entry, descriptor: u64);

    /// Zeroes a whole frame that is about to become a table or a record of `el2`, or that is settled for a guest next.
    fn clear(&mut self, frame: Pfn);

    /// Makes every earlier [`store`](Self::store) and [`clear`](Self::clear) visible to all table
    /// walkers before anything later happens (`DSB ISHST; ISB`).
    fn publish_tables(&mut self);
}

/// Forgetting translations, on every CPU.
pub trait Tlb {
    /// Makes earlier table writes visible, then drops every translation of the host, stage 1 and 2
    /// combined, on all CPUs, and waits (`DSB ISHST; TLBI VMALLS12E1IS` under VMID 0; `DSB ISH; ISB`,
    /// with the repeats that errata ask for).
    fn invalidate_host(&mut self);

    /// As [`invalidate_host`](Self::invalidate_host), for one VM.
    fn invalidate_vm(&mut self, vmid: Vmid);
}

/// Contents of frames.
pub trait Frames {
    /// Zeroes a frame, cleans and invalidates it to the point of coherency, so that even an uncached read finds zeros:
    /// the host's, or a guest's, for which it does what [`settle_for_guest`](Self::settle_for_guest) does as well.
    fn scrub(&mut self, frame: Pfn);

    /// Prepares a frame for a guest that may read it uncached: cleans and invalidates data to the
    /// point of coherency. Before the guest may execute from it, [`settle_instructions`] follows.
    ///
    /// [`settle_instructions`]: Self::settle_instructions
    fn settle_for_guest(&mut self, frame: Pfn);

    /// Drops what any CPU fetched as an instruction from the frames that were settled before. One
    /// broadcast, so once per batch; nobody else may write to the frames any more, and a frame that
    /// the guest does not have yet is mapped only after it.
    fn settle_instructions(&mut self);

    /// Copies the first words of a frame that the host may be writing to: each word is read once.
    fn copy_words(&self, frame: Pfn, into: &mut [u64]);
}

/// Something that can not be, unless `el2` is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// I1: ledger and tables disagree about who has a frame.
    OneOwner,
    /// I6: something that was reserved is not there.
    Reservation,
    /// A table entry has a form that this crate never writes.
    TableForm,
    /// Storage that the boot code lent is smaller than promised.
    Storage,
}

/// The end of the line.
pub trait Fatal {
    /// Stops the machine.
    fn fatal(&self, what: Broken) -> !;
}

/// All ports together.
pub trait Machine: TableMemory + Tlb + Frames + Fatal {}

impl<T: TableMemory + Tlb + Frames + Fatal> Machine for T {}
