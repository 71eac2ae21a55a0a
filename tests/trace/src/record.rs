// SPDX-License-Identifier: MIT OR Apache-2.0
//! The format: one event is four little-endian 64-bit words.
//!
//! | word | bits | meaning |
//! |---|---|---|
//! | 0 | 7:0 | kind, below; 0: the place was never written, the trace ends here |
//! | 0 | 15:8 | CPU |
//! | 0 | 23:16 | small argument: VMID, lock, barrier or state |
//! | 0 | 63:24 | sequence number, from 1, shared by all CPUs |
//! | 1 | 47:0, 63:48 | frame number, and index of a table's word or another small number |
//! | 2, 3 | | the words of a store: what stood there, what stands there now |
//!
//! Who writes a trace keeps four habits, so that the order of the numbers is the order of the machine: a lock is noted
//! when it is held and let go of after that was noted; a store, a TLB or a cache operation is noted when it is done;
//! that a CPU gets a root is noted before, that it no longer has it after; changes of owner ([`Event::Owner`]) are
//! noted where they are made or, at the latest, before the host's lock is let go. A buffer that is full drops the rest,
//! never the beginning.

/// Bytes of a record.
pub const BYTES: usize = 32;

/// One record as it stands in memory.
pub type Words = [u64; 4];

/// Lock 0 is the host's; lock `n` that of VM slot `n - 1`, whose VMID is `n`.
pub const HOST: u8 = 0;

/// A barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Barrier {
    /// `DSB ISHST`
    StoresVisible = 1,
    /// `DSB ISH`
    MaintenanceDone = 2,
    /// `DSB SY`
    SystemDone = 3,
    /// `ISB`
    InEffect = 4,
}

/// Who has a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Owner {
    /// Firmware's; the host may map it.
    NoMap = 0,
    /// The host's alone.
    Host = 1,
    /// The host's, lent to the VM once more; others may have it too.
    Lent = 2,
    /// `el2`'s.
    El2 = 3,
    /// In the pool of the VM.
    Pool = 4,
    /// The VM's alone.
    Private = 5,
    /// The VM's, lent to the host.
    Shared = 6,
    /// The host's, lent to the VM once less, and still lent to some VM.
    Returned = 7,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The boot is over: from here on tables are written under locks only.
    Start,
    /// A VM (or the host, VMID 0) has a root of `tables` concatenated level-1 tables.
    Root {
        /// The VMID.
        vmid: u8,
        /// First table.
        table: u64,
        /// How many.
        tables: u16,
    },
    /// No CPU uses the VM's tables any more, and none will.
    Unroot {
        /// The VMID.
        vmid: u8,
    },
    /// A descriptor was written. Before the start, or with `old` equal to `new`: it stood there when the trace began.
    Store {
        /// Frame of the table.
        table: u64,
        /// Index of the descriptor.
        index: u16,
        /// What stood there.
        old: u64,
        /// What stands there now.
        new: u64,
    },
    /// A frame was zeroed.
    Zero {
        /// The frame.
        frame: u64,
    },
    /// A frame was cleaned and invalidated to the point of coherency.
    CleanInvalidate {
        /// The frame.
        frame: u64,
    },
    /// All fetched instructions were dropped (`IC IALLUIS`), or need not be (`CTR_EL0.DIC`).
    Fetches,
    /// A barrier.
    Barrier(Barrier),
    /// `TLBI VMALLS12E1IS` under this VMID.
    Tlbi {
        /// The VMID.
        vmid: u8,
    },
    /// The CPU holds a lock.
    Acquire {
        /// The lock.
        lock: u8,
    },
    /// The CPU is about to let go of a lock.
    Release {
        /// The lock.
        lock: u8,
    },
    /// The CPU translates with this root and VMID from here on. What an invalidation sets up and takes back by itself
    /// is not noted.
    Vttbr {
        /// The VMID.
        vmid: u8,
        /// The root's first table.
        table: u64,
    },
    /// A frame changed hands.
    Owner {
        /// The frame.
        frame: u64,
        /// To whom.
        owner: Owner,
        /// VMID of the VM, where one is named; else 0.
        vmid: u8,
    },
    /// The CPU is about to leave EL2.
    Leave,
}

/// An event, by whom, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its number.
    pub sequence: u64,
    /// The CPU.
    pub cpu: u8,
    /// What happened.
    pub event: Event,
}

const FRAME: u64 = (1 << 48) - 1;

impl Record {
    /// As words.
    #[must_use]
    pub const fn encode(self) -> Words {
        let (kind, small, frame, index, old, new) = parts(self.event);
        let head = kind as u64 | (self.cpu as u64) << 8 | (small as u64) << 16 | self.sequence << 24;
        [head, frame & FRAME | (index as u64) << 48, old, new]
    }

    /// From words; `None` for what no event is.
    #[must_use]
    pub fn decode([head, place, old, new]: Words) -> Option<Self> {
        let small = (head >> 16) as u8;
        let (frame, index) = (place & FRAME, (place >> 48) as u16);
        let event = match head as u8 {
            1 => Event::Start,
            2 => Event::Root { vmid: small, table: frame, tables: index },
            3 => Event::Unroot { vmid: small },
            4 => Event::Store { table: frame, index, old, new },
            5 => Event::Zero { frame },
            7 => Event::CleanInvalidate { frame },
            8 => Event::Fetches,
            9 => Event::Barrier(barrier(small)?),
            10 => Event::Tlbi { vmid: small },
            11 => Event::Acquire { lock: small },
            12 => Event::Release { lock: small },
            13 => Event::Vttbr { vmid: small, table: frame },
            14 => Event::Owner { frame, owner: owner(index as u8)?, vmid: small },
            15 => Event::Leave,
            _ => return None,
        };
        Some(Self { sequence: head >> 24, cpu: (head >> 8) as u8, event })
    }
}

const fn parts(event: Event) -> (u8, u8, u64, u16, u64, u64) {
    match event {
        Event::Start => (1, 0, 0, 0, 0, 0),
        Event::Root { vmid, table, tables } => (2, vmid, table, tables, 0, 0),
        Event::Unroot { vmid } => (3, vmid, 0, 0, 0, 0),
        Event::Store { table, index, old, new } => (4, 0, table, index, old, new),
        Event::Zero { frame } => (5, 0, frame, 0, 0, 0),
        Event::CleanInvalidate { frame } => (7, 0, frame, 0, 0, 0),
        Event::Fetches => (8, 0, 0, 0, 0, 0),
        Event::Barrier(barrier) => (9, barrier as u8, 0, 0, 0, 0),
        Event::Tlbi { vmid } => (10, vmid, 0, 0, 0, 0),
        Event::Acquire { lock } => (11, lock, 0, 0, 0, 0),
        Event::Release { lock } => (12, lock, 0, 0, 0, 0),
        Event::Vttbr { vmid, table } => (13, vmid, table, 0, 0, 0),
        Event::Owner { frame, owner, vmid } => (14, vmid, frame, owner as u16, 0, 0),
        Event::Leave => (15, 0, 0, 0, 0, 0),
    }
}

fn barrier(small: u8) -> Option<Barrier> {
    use Barrier::{InEffect, MaintenanceDone, StoresVisible, SystemDone};
    [StoresVisible, MaintenanceDone, SystemDone, InEffect].into_iter().find(|b| *b as u8 == small)
}

fn owner(small: u8) -> Option<Owner> {
    use Owner::{El2, Host, Lent, NoMap, Pool, Private, Returned, Shared};
    [NoMap, Host, Lent, El2, Pool, Private, Shared, Returned].into_iter().find(|o| *o as u8 == small)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_survives_its_record() {
        let frame = (1 << 36) - 1;
        let mut events = vec![
            Event::Start,
            Event::Root { vmid: 255, table: frame, tables: 16 },
            Event::Unroot { vmid: 3 },
            Event::Store { table: frame, index: 511, old: u64::MAX, new: 7 },
            Event::Zero { frame },
            Event::CleanInvalidate { frame },
            Event::Fetches,
            Event::Tlbi { vmid: 255 },
            Event::Acquire { lock: 255 },
            Event::Release { lock: 1 },
            Event::Vttbr { vmid: 1, table: frame },
            Event::Leave,
        ];
        events.extend((1..=4).filter_map(barrier).map(Event::Barrier));
        events.extend((0..=7).filter_map(owner).map(|owner| Event::Owner { frame, owner, vmid: 9 }));
        assert_eq!(events.len(), 24);
        for event in events {
            let record = Record { sequence: (1 << 40) - 1, cpu: 255, event };
            assert_eq!(Record::decode(record.encode()), Some(record));
        }
    }

    #[test]
    fn what_is_no_event_is_refused() {
        assert_eq!(Record::decode([0; 4]), None);
        assert_eq!(Record::decode([16, 0, 0, 0]), None);
        assert_eq!(Record::decode([9, 0, 0, 0]), None, "no such barrier");
        assert_eq!(Record::decode([14, 8 << 48, 0, 0]), None, "no such owner");
    }
}
