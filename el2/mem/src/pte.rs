// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stage-2 descriptors of the 4K granule (Arm ARM D8.3), and where they stand.
//!
//! Guarantees that an [`Entry`] names one of the 512 words of a frame, and that every descriptor
//! this crate writes is one of the forms of [`Form`]. It does not know who owns what.

use crate::{BLOCK_FRAMES, Pfn};

/// Entries in a table.
pub(crate) const ENTRIES: u64 = 512;
/// Frames under one level-1 entry.
pub(crate) const GIANT_FRAMES: u64 = ENTRIES * BLOCK_FRAMES;

const VALID: u64 = 1;
const TABLE_OR_PAGE: u64 = 1 << 1;
const READ: u64 = 1 << 6;
const WRITE: u64 = 1 << 7;
const INNER_SHAREABLE: u64 = 3 << 8;
const ACCESSED: u64 = 1 << 10;
/// XN[1:0] = 0b10: no execution at EL1 nor EL0, with and without FEAT_XNX.
const EXECUTE_NEVER: u64 = 1 << 54;
const OUTPUT: u64 = 0x0000_ffff_ffff_f000;
/// Invalid entries that `el2` gave a meaning have one of these.
const SPLITTING: u64 = 1 << 2;
const JOINING: u64 = 1 << 3;
const POISON: u64 = 1 << 4;

/// The place of one descriptor: a table and an index below 512.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entry {
    table: Pfn,
    index: u16,
}

impl Entry {
    /// The entry of `table` that the low nine bits of `number` select.
    pub(crate) const fn of(table: Pfn, number: u64) -> Self {
        // INVARIANT: the mask keeps the index below 512.
        Self { table, index: (number & (ENTRIES - 1)) as u16 }
    }

    /// The frame that holds the table.
    pub const fn table(self) -> Pfn {
        self.table
    }

    /// The index, below 512.
    pub const fn index(self) -> u16 {
        self.index
    }
}

/// How memory attributes reach the caches on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attributes {
    /// Stage 2 can only weaken stage 1's attributes (no FEAT_S2FWB, or HCR_EL2.FWB clear).
    Combined,
    /// HCR_EL2.FWB is set, for the host and for guests.
    Forced,
}

impl Attributes {
    /// The host's memory and devices: as its stage 1 says.
    const fn host(self) -> u64 {
        match self {
            Self::Combined => 0b1111 << 2,
            Self::Forced => 0b0111 << 2,
        }
    }

    /// A guest's memory: cacheable whatever its stage 1 says, where that can be had.
    const fn guest(self) -> u64 {
        match self {
            Self::Combined => 0b1111 << 2,
            Self::Forced => 0b0110 << 2,
        }
    }
}

/// What a descriptor of level 1 or 2 says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Nothing is mapped.
    Empty,
    /// Maps a whole block.
    Block,
    /// Points to a table.
    Table(Pfn),
    /// Broken on its way from a block to this table; holds only under the host lock.
    Splitting(Pfn),
    /// Broken on its way from this table to a block; holds only under the host lock.
    Joining,
    /// A form that this crate never writes.
    Unknown,
}

/// Reads a descriptor of level 1 or 2.
pub(crate) const fn form(descriptor: u64) -> Form {
    let to = Pfn::from_bits((descriptor & OUTPUT) >> 12);
    if descriptor == 0 {
        Form::Empty
    } else if descriptor & VALID != 0 {
        if descriptor & TABLE_OR_PAGE != 0 { Form::Table(to) } else { Form::Block }
    } else if descriptor & SPLITTING != 0 {
        Form::Splitting(to)
    } else if descriptor & JOINING != 0 {
        Form::Joining
    } else {
        Form::Unknown
    }
}

/// What a descriptor of level 3 says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leaf {
    /// Nothing is mapped.
    Empty,
    /// Maps a frame.
    Page(Pfn),
    /// Held a frame that was revoked.
    Poisoned,
    /// A form that this crate never writes.
    Unknown,
}

/// Reads a descriptor of level 3.
pub(crate) const fn leaf(descriptor: u64) -> Leaf {
    if descriptor == 0 {
        Leaf::Empty
    } else if descriptor == POISON {
        Leaf::Poisoned
    } else if descriptor & (VALID | TABLE_OR_PAGE) == (VALID | TABLE_OR_PAGE) {
        Leaf::Page(Pfn::from_bits((descriptor & OUTPUT) >> 12))
    } else {
        Leaf::Unknown
    }
}

/// Points to a table.
pub(crate) const fn table(to: Pfn) -> u64 {
    to.pa().raw() | TABLE_OR_PAGE | VALID
}

/// Marks a block that is being split into the table.
pub(crate) const fn splitting(to: Pfn) -> u64 {
    to.pa().raw() | SPLITTING
}

/// Marks a table that is being joined into a block.
pub(crate) const fn joining(from: Pfn) -> u64 {
    from.pa().raw() | JOINING
}

/// Marks a guest frame whose contents were taken away.
pub(crate) const fn poison() -> u64 {
    POISON
}

/// Maps RAM of the host, 2 MB at once.
pub(crate) const fn host_block(first: Pfn, how: Attributes) -> u64 {
    first.pa().raw() | host_ram(how)
}

/// Maps one frame of RAM of the host.
pub(crate) const fn host_page(frame: Pfn, how: Attributes) -> u64 {
    host_block(frame, how) | TABLE_OR_PAGE
}

/// Maps what is not RAM, 1 GB or 2 MB at once.
pub(crate) const fn device_block(first: Pfn, how: Attributes) -> u64 {
    first.pa().raw() | host_ram(how) | EXECUTE_NEVER
}

/// Maps one frame of what is not RAM.
pub(crate) const fn device_page(frame: Pfn, how: Attributes) -> u64 {
    device_block(frame, how) | TABLE_OR_PAGE
}

/// Maps one frame of a guest.
pub(crate) const fn guest_page(frame: Pfn, how: Attributes, write: bool, execute: bool) -> u64 {
    let plain = ACCESSED | INNER_SHAREABLE | READ | how.guest() | TABLE_OR_PAGE | VALID;
    let write = if write { WRITE } else { 0 };
    let never = if execute { 0 } else { EXECUTE_NEVER };
    frame.pa().raw() | plain | write | never
}

const fn host_ram(how: Attributes) -> u64 {
    ACCESSED | INNER_SHAREABLE | READ | WRITE | how.host() | VALID
}
