// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where the machine has RAM, and which of it `el2` keeps.
//!
//! Guarantees that banks are sorted and disjoint, that carve-outs are whole 2 MB blocks of RAM and
//! that holes are not RAM. Built once at boot from the device tree and never changed after, so it
//! needs no lock. It does not know who owns a frame.

use crate::few::Few;
use crate::pte::GIANT_FRAMES;
use crate::{BLOCK_FRAMES, MAX_FRAMES, Pfn, PfnRun};

/// Banks that a machine may have.
const BANKS: usize = 16;
/// Carve-outs: the image, the ledger and its tables, and two to spare.
const CARVE_OUTS: usize = 4;
/// Device frames that the host must not reach.
const HOLES: usize = 16;
/// Words that a record list needs: one frame of them.
pub(crate) const LIST_WORDS: usize = 512;

/// Why a machine can not be described.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// More banks, carve-outs or holes than there is room for.
    TooMany,
    /// A bank meets another bank.
    BanksMeet,
    /// A carve-out is not made of whole 2 MB blocks.
    NotWholeBlocks,
    /// A carve-out is not inside one bank.
    NotRam,
    /// A hole meets RAM.
    HoleInRam,
    /// Beyond the address space that the host is given.
    BeyondSpace,
    /// An address space of this size has no three-level table.
    BadSpace,
    /// The storage or tables that were lent do not fit [`Needs`].
    WrongStorage,
}

/// What the boot code must lend for a machine, so that nothing can run out later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Consecutive frames for the host's tables.
    pub table_frames: u64,
    /// The first of them must be a multiple of this.
    pub table_align: u64,
    /// Words of storage for the ledger and its scratch.
    pub words: u64,
}

impl Needs {
    /// Frames for both, tables first.
    pub const fn frames(&self) -> u64 {
        self.table_frames.saturating_add(self.words.div_ceil(512))
    }
}

/// Frames, or blocks, that hold RAM: `count` of them from number `first` on; what is kept of them starts at `base`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    first: u64,
    count: u64,
    base: u64,
}

/// The frames, or the blocks, that hold RAM, in ascending order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spans(Few<Span, BANKS>);

impl Spans {
    /// The place of a frame's or a block's number among those that hold RAM.
    #[inline]
    pub(crate) fn index(&self, number: u64) -> Option<usize> {
        self.0.iter().find_map(|span| {
            let offset = number.checked_sub(span.first).filter(|offset| *offset < span.count)?;
            usize::try_from(span.base.checked_add(offset)?).ok()
        })
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        self.0.iter().fold(0, |sum, span| sum.saturating_add(span.count))
    }
}

/// What the device tree says about memory.
#[derive(Clone, Copy, Debug)]
pub struct MemoryMap {
    ipa_bits: u32,
    banks: Few<PfnRun, BANKS>,
    carve_outs: Few<PfnRun, CARVE_OUTS>,
    holes: Few<PfnRun, HOLES>,
}

impl MemoryMap {
    /// Describes a machine without RAM whose host sees `ipa_bits` of address space, 32 to 43.
    ///
    /// # Errors
    /// `BadSpace`.
    pub const fn new(ipa_bits: u32) -> Result<Self, MapError> {
        if ipa_bits < 32 || ipa_bits > 43 {
            return Err(MapError::BadSpace);
        }
        Ok(Self { ipa_bits, banks: Few::new(), carve_outs: Few::new(), holes: Few::new() })
    }

    /// Adds a bank of RAM.
    ///
    /// # Errors
    /// `BeyondSpace`, `BanksMeet`, `TooMany`.
    pub fn add_bank(&mut self, bank: PfnRun) -> Result<(), MapError> {
        self.within_space(&bank)?;
        if self.banks.iter().any(|other| other.meets(&bank)) {
            return Err(MapError::BanksMeet);
        }
        if !self.banks.push(bank) {
            return Err(MapError::TooMany);
        }
        self.banks.sort_by_key(|bank| bank.start().raw());
        Ok(())
    }

    /// Takes whole 2 MB blocks of RAM for `el2`.
    ///
    /// # Errors
    /// `NotWholeBlocks`, `NotRam`, `TooMany`.
    pub fn add_carve_out(&mut self, run: PfnRun) -> Result<(), MapError> {
        if !(run.start().raw().is_multiple_of(BLOCK_FRAMES) && run.count().is_multiple_of(BLOCK_FRAMES)) {
            return Err(MapError::NotWholeBlocks);
        }
        if !self.banks.iter().any(|bank| bank.covers(&run)) {
            return Err(MapError::NotRam);
        }
        if self.carve_outs.push(run) { Ok(()) } else { Err(MapError::TooMany) }
    }

    /// Hides frames of a device from the host. All holes must be known before [`needs`](Self::needs).
    ///
    /// # Errors
    /// `BeyondSpace`, `HoleInRam`, `TooMany`.
    pub fn add_hole(&mut self, run: PfnRun) -> Result<(), MapError> {
        self.within_space(&run)?;
        if self.banks.iter().any(|bank| bank.meets(&run)) {
            return Err(MapError::HoleInRam);
        }
        if self.holes.push(run) { Ok(()) } else { Err(MapError::TooMany) }
    }

    /// What must be lent for this machine. Carve-outs make no difference.
    pub fn needs(&self) -> Needs {
        let root = self.root_frames();
        let giants = self.giants().filter(|giant| self.giant_is_mixed(*giant)).count() as u64;
        let blocks = self.spans().count();
        let table_frames = root.saturating_add(giants).saturating_add(blocks).saturating_add(self.hole_tables());
        let scratch = MAX_FRAMES.saturating_add(LIST_WORDS as u64);
        let words = self.ram_frames().saturating_add(blocks).saturating_add(scratch);
        Needs { table_frames, table_align: root, words }
    }

    /// How many bits of address space the host sees.
    pub const fn ipa_bits(&self) -> u32 {
        self.ipa_bits
    }

    /// Frames of RAM, carve-outs included.
    pub fn ram_frames(&self) -> u64 {
        self.frames().count()
    }

    /// The banks, in ascending order.
    pub fn ram(&self) -> impl Iterator<Item = PfnRun> + Clone + '_ {
        self.banks.iter()
    }

    /// The carve-outs, in the order in which they were added.
    pub fn carve_outs(&self) -> impl Iterator<Item = PfnRun> + Clone + '_ {
        self.carve_outs.iter()
    }

    /// Frames of the concatenated root table: one per 512 GB.
    pub(crate) const fn root_frames(&self) -> u64 {
        1 << self.ipa_bits.saturating_sub(39)
    }

    /// Numbers of the 1 GB regions of the host's address space.
    pub(crate) fn giants(&self) -> impl Iterator<Item = u64> + Clone + use<> {
        0..1_u64 << self.ipa_bits.saturating_sub(30)
    }

    /// Whether a 1 GB region holds RAM or a hole and so needs a level-2 table.
    pub(crate) fn giant_is_mixed(&self, giant: u64) -> bool {
        let Some(run) = chunk(giant, GIANT_FRAMES) else { return false };
        self.banks.iter().chain(self.holes.iter()).any(|other| other.meets(&run))
    }

    /// What a block holds.
    pub(crate) fn block(&self, block: u64) -> Contents {
        let Some(run) = chunk(block, BLOCK_FRAMES) else { return Contents::Device };
        if self.carve_outs.iter().any(|other| other.meets(&run)) {
            Contents::CarveOut
        } else if self.banks.iter().any(|bank| bank.covers(&run)) {
            Contents::Ram
        } else if self.holes.iter().any(|hole| hole.covers(&run)) {
            Contents::Hole
        } else if self.banks.iter().chain(self.holes.iter()).any(|other| other.meets(&run)) {
            Contents::Mixed
        } else {
            Contents::Device
        }
    }

    /// What a frame of a mixed block is.
    pub(crate) fn frame(&self, pfn: Pfn) -> FrameKind {
        if self.banks.iter().any(|bank| bank.contains(pfn)) {
            FrameKind::Ram
        } else if self.holes.iter().any(|hole| hole.contains(pfn)) {
            FrameKind::Hole
        } else {
            FrameKind::Device
        }
    }

    /// The frames of RAM, with the places of their records.
    pub(crate) fn frames(&self) -> Spans {
        self.of_size(1)
    }

    /// The blocks that hold RAM, with the places of their tables.
    pub(crate) fn spans(&self) -> Spans {
        self.of_size(BLOCK_FRAMES)
    }

    /// What of this size holds RAM; banks may share one.
    fn of_size(&self, frames: u64) -> Spans {
        let mut spans = Few::new();
        let (mut base, mut next) = (0_u64, 0_u64);
        for run in self.banks.iter() {
            let first = run.start().raw().div_euclid(frames).max(next);
            let end = run.end().div_ceil(frames);
            let count = end.saturating_sub(first);
            if count != 0 {
                // No more than there are banks: always room.
                let _ = spans.push(Span { first, count, base });
                base = base.saturating_add(count);
                next = end;
            }
        }
        Spans(spans)
    }

    /// The most tables that holes may need in blocks without RAM: two per hole that ends inside.
    pub(crate) fn hole_tables(&self) -> u64 {
        (self.holes.len() as u64).saturating_mul(2)
    }

    fn within_space(&self, run: &PfnRun) -> Result<(), MapError> {
        let limit = 1_u64 << self.ipa_bits.saturating_sub(12);
        if run.end() <= limit { Ok(()) } else { Err(MapError::BeyondSpace) }
    }
}

/// What a 2 MB block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contents {
    /// Nothing but RAM.
    Ram,
    /// Part of a carve-out.
    CarveOut,
    /// Hidden from the host as a whole.
    Hole,
    /// Neither RAM nor a hole.
    Device,
    /// Some RAM, or some hole.
    Mixed,
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrameKind {
    /// RAM.
    Ram,
    /// Hidden from the host.
    Hole,
    /// Anything else.
    Device,
}

fn chunk(number: u64, frames: u64) -> Option<PfnRun> {
    PfnRun::decode(number.checked_mul(frames)?, frames).ok()
}
