// SPDX-License-Identifier: MIT OR Apache-2.0
//! A machine under `freehold_mem`'s verbs whose every operation is noted.

use crate::record::{Barrier, Event};
use freehold_mem::ports::{Broken, Fatal, Frames, TableMemory, Tlb};
use freehold_mem::{Entry, Machine, Pfn, State, Vmid};

/// Where events go. It adds the CPU and the number.
pub trait Sink {
    /// Notes an event.
    fn note(&self, event: Event);
}

impl<S: Sink + ?Sized> Sink for &S {
    fn note(&self, event: Event) {
        (**self).note(event);
    }
}

/// The machine, and where its events go.
#[derive(Clone, Copy, Debug)]
pub struct Traced<M, S> {
    /// The machine.
    pub machine: M,
    /// Where its events go.
    pub sink: S,
}

impl<M: Machine, S: Sink> TableMemory for Traced<M, S> {
    fn load(&self, at: Entry) -> u64 {
        self.machine.load(at)
    }

    fn store(&mut self, at: Entry, descriptor: u64) {
        // Only who holds the lock writes, so nobody comes in between.
        let old = self.machine.load(at);
        self.machine.store(at, descriptor);
        self.sink.note(Event::Store { table: at.table().raw(), index: at.index(), old, new: descriptor });
    }

    fn clear(&mut self, frame: Pfn) {
        self.machine.clear(frame);
        self.sink.note(Event::Zero { frame: frame.raw() });
    }

    fn publish_tables(&mut self) {
        self.machine.publish_tables();
        self.sink.note(Event::Barrier(Barrier::StoresVisible));
        self.sink.note(Event::Barrier(Barrier::InEffect));
    }
}

impl<M, S: Sink> Traced<M, S> {
    fn note_invalidation(&self, vmid: u8) {
        self.sink.note(Event::Barrier(Barrier::StoresVisible));
        self.sink.note(Event::Tlbi { vmid });
        self.sink.note(Event::Barrier(Barrier::MaintenanceDone));
        self.sink.note(Event::Barrier(Barrier::InEffect));
    }
}

impl<M: Machine, S: Sink> Tlb for Traced<M, S> {
    fn invalidate_host(&mut self) {
        self.machine.invalidate_host();
        self.note_invalidation(Vmid::HOST.raw());
    }

    fn invalidate_vm(&mut self, vmid: Vmid) {
        self.machine.invalidate_vm(vmid);
        self.note_invalidation(vmid.raw());
    }
}

impl<M: Machine, S: Sink> Frames for Traced<M, S> {
    fn scrub(&mut self, frame: Pfn) {
        self.machine.scrub(frame);
        self.sink.note(Event::Zero { frame: frame.raw() });
        self.sink.note(Event::CleanInvalidate { frame: frame.raw() });
        self.sink.note(Event::Barrier(Barrier::SystemDone));
    }

    fn settle_for_guest(&mut self, frame: Pfn) {
        self.machine.settle_for_guest(frame);
        self.sink.note(Event::CleanInvalidate { frame: frame.raw() });
        self.sink.note(Event::Barrier(Barrier::SystemDone));
    }

    fn settle_instructions(&mut self) {
        self.machine.settle_instructions();
        self.sink.note(Event::Fetches);
        self.sink.note(Event::Barrier(Barrier::MaintenanceDone));
        self.sink.note(Event::Barrier(Barrier::InEffect));
    }

    fn copy_words(&self, frame: Pfn, into: &mut [u64]) {
        self.machine.copy_words(frame, into);
    }
}

impl<M: Fatal, S> Fatal for Traced<M, S> {
    fn fatal(&self, what: Broken) -> ! {
        self.machine.fatal(what)
    }
}

/// What a call does to the loans of the host's frames. The ledger only counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loan {
    /// Nothing.
    None,
    /// They are lent to this VM.
    Made(Vmid),
    /// This VM has them no more.
    Returned(Vmid),
}

/// That a frame's record now says `state`, after a call that did this to loans.
#[must_use]
pub fn owner(frame: Pfn, state: State, loan: Loan) -> Event {
    use crate::record::Owner;
    let (owner, vmid) = match (state, loan) {
        (State::NoMap, _) => (Owner::NoMap, None),
        (State::Host, _) => (Owner::Host, None),
        (State::Lent(_), Loan::Made(vmid)) => (Owner::Lent, Some(vmid)),
        (State::Lent(_), Loan::Returned(vmid)) => (Owner::Returned, Some(vmid)),
        // To nobody, so that whoever reaches it is noticed.
        (State::Lent(_), Loan::None) => (Owner::Lent, None),
        (State::El2, _) => (Owner::El2, None),
        (State::Pool { vm, .. }, _) => (Owner::Pool, Some(vm.vmid())),
        (State::Private { vm, .. }, _) => (Owner::Private, Some(vm.vmid())),
        (State::Shared { vm, .. }, _) => (Owner::Shared, Some(vm.vmid())),
    };
    Event::Owner { frame: frame.raw(), owner, vmid: vmid.map_or(0, Vmid::raw) }
}
