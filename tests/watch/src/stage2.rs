// SPDX-License-Identifier: MIT OR Apache-2.0
//! A VM's stage-2 tables, read word by word from memory, against what the specification's records say of the VM.
//!
//! Nothing of `el2/mem` reads or forms a descriptor here: what a leaf must be is written down anew (Arm ARM D8.3). Who
//! looks holds the VM's lock.

use freehold_mem::{Machine, Pfn};
use freehold_oracle::{Mark, Owner, State};

use crate::spec::View;

const ENTRIES: usize = 512;
/// First guest frame that no address of a VM reaches.
const END: u64 = 1 << 28;

const TABLE: u64 = 3;
const OUTPUT: u64 = 0x0000_ffff_ffff_f000;
/// Valid, a page, readable, inner shareable, accessed.
const PAGE: u64 = 3 | 1 << 6 | 3 << 8 | 1 << 10;
const WRITE: u64 = 1 << 7;
const NEVER: u64 = 1 << 54;
/// Memory attributes, and the two that are normal write-back memory: without and with `FEAT_S2FWB`.
const ATTRIBUTES: u64 = 0xf << 2;
const WRITE_BACK: [u64; 2] = [0b1111 << 2, 0b0110 << 2];

/// What must stand at a guest frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Must {
    /// Nothing.
    Nothing,
    /// The mark of a frame that was taken away.
    Poison,
    /// A page.
    Page {
        /// Its frame.
        pfn: u64,
        /// Whether it may be written to.
        write: bool,
        /// Whether it may be executed.
        execute: bool,
    },
}

/// What stands somewhere else than it must, or otherwise.
#[derive(Clone, Copy, Debug)]
pub enum Wrong {
    /// At a guest frame.
    Leaf {
        /// The guest frame.
        gfn: u64,
        /// What must stand there.
        must: Must,
        /// What does, or the entry above it that is neither empty nor a table of the VM's pool.
        is: u64,
    },
    /// More or fewer pages are mapped than the VM has.
    Pages {
        /// So many it has.
        must: u64,
        /// So many are mapped.
        are: u64,
    },
}

/// What the records say of a guest frame.
#[must_use]
pub fn must(view: &View<'_>, slot: u8, gfn: u64) -> Must {
    match (view.backing(slot, gfn), view.mark(slot, gfn)) {
        // What a protected VM has is mapped for everything, lent or not.
        (Some(pfn), _) => Must::Page { pfn, write: true, execute: true },
        (None, Mark::Borrow { pfn, write, exec }) => Must::Page { pfn, write, execute: exec },
        (None, Mark::Poisoned) => Must::Poison,
        (None, Mark::None | Mark::Device) => Must::Nothing,
    }
}

impl Must {
    const fn permits(self, descriptor: u64) -> bool {
        match self {
            Self::Nothing => descriptor == 0,
            Self::Poison => descriptor != 0 && descriptor & 1 == 0,
            Self::Page { pfn, write, execute } => {
                let rights = if write { WRITE } else { 0 } | if execute { 0 } else { NEVER };
                let how = descriptor & ATTRIBUTES;
                descriptor & !ATTRIBUTES == pfn << 12 | PAGE | rights && (how == WRITE_BACK[0] || how == WRITE_BACK[1])
            }
        }
    }
}

/// Room for a table of each level.
#[derive(Debug)]
pub struct Walker([[u64; ENTRIES]; 3]);

/// A VM's root table and address bits.
type Root = (u64, u32);

impl Walker {
    /// Before the first walk.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "only a static holds one")]
    pub const fn new() -> Self {
        Self([[0; ENTRIES]; 3])
    }

    fn read(&mut self, level: usize, table: u64, ports: &impl Machine) {
        match Pfn::new(table) {
            Some(table) => ports.copy_words(table, &mut self.0[level]),
            None => self.0[level] = [0; ENTRIES],
        }
    }

    /// Reads the level-3 table of a guest frame.
    fn find(&mut self, view: &View<'_>, slot: u8, root: u64, gfn: u64, ports: &impl Machine) -> Result<bool, u64> {
        self.read(0, root + (gfn >> 27), ports);
        for (level, shift) in [(0, 18), (1, 9)] {
            match below(view, slot, self.0[level][(gfn >> shift) as usize % ENTRIES])? {
                Some(table) => self.read(level + 1, table, ports),
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Compares what stands at a run of guest frames.
    ///
    /// # Errors
    /// The first that is wrong.
    pub fn run(
        &mut self,
        view: &View<'_>,
        slot: u8,
        (root, bits): Root,
        (first, count): (u64, u64),
        ports: &impl Machine,
    ) -> Result<(), Wrong> {
        let end = first.saturating_add(count).min(END).min(1 << bits.saturating_sub(12).min(63));
        let mut found = (None, false);
        for gfn in first..end {
            let must = must(view, slot, gfn);
            let wrong = |is| Wrong::Leaf { gfn, must, is };
            if found.0 != Some(gfn >> 9) {
                found = (Some(gfn >> 9), self.find(view, slot, root, gfn, ports).map_err(wrong)?);
            }
            let is = if found.1 { self.0[2][gfn as usize % ENTRIES] } else { 0 };
            if !must.permits(is) {
                return Err(wrong(is));
            }
        }
        Ok(())
    }

    /// Compares all that stands in a VM's tables, which must be so many pages.
    ///
    /// # Errors
    /// The first that is wrong.
    pub fn all(
        &mut self,
        view: &View<'_>,
        slot: u8,
        (root, bits): Root,
        pages: u64,
        ports: &impl Machine,
    ) -> Result<(), Wrong> {
        let mut are = 0;
        for first in (0..1u64 << bits.saturating_sub(39)).map(|n| n << 27) {
            self.read(0, root + (first >> 27), ports);
            for giant in (0..ENTRIES as u64).map(|n| first + (n << 18)) {
                let Some(table) = self.table(view, slot, 0, giant)? else { continue };
                self.read(1, table, ports);
                for block in (0..ENTRIES as u64).map(|n| giant + (n << 9)) {
                    let Some(table) = self.table(view, slot, 1, block)? else { continue };
                    self.read(2, table, ports);
                    are += self.leaves(view, slot, block)?;
                }
            }
        }
        if are == pages { Ok(()) } else { Err(Wrong::Pages { must: pages, are }) }
    }

    /// The table below an entry, which is that of the guest frame.
    fn table(&self, view: &View<'_>, slot: u8, level: usize, gfn: u64) -> Result<Option<u64>, Wrong> {
        let descriptor = self.0[level][(gfn >> (18 - 9 * level)) as usize % ENTRIES];
        below(view, slot, descriptor).map_err(|is| Wrong::Leaf { gfn, must: Must::Nothing, is })
    }

    /// Compares what stands in a level-3 table; how many pages it maps.
    fn leaves(&self, view: &View<'_>, slot: u8, block: u64) -> Result<u64, Wrong> {
        let mut pages = 0;
        for (gfn, is) in (block..).zip(self.0[2].iter().copied()).filter(|(_, is)| *is != 0) {
            let must = must(view, slot, gfn);
            if !must.permits(is) {
                return Err(Wrong::Leaf { gfn, must, is });
            }
            pages += is & 1;
        }
        Ok(pages)
    }
}

/// The table that an entry of level 1 or 2 names; an entry that is neither empty nor of the VM's pool is an error.
fn below(view: &View<'_>, slot: u8, descriptor: u64) -> Result<Option<u64>, u64> {
    let table = (descriptor & OUTPUT) >> 12;
    match descriptor {
        0 => Ok(None),
        _ if descriptor & !OUTPUT == TABLE && view.page(table).owner == (Owner::Pool { slot }) => Ok(Some(table)),
        _ => Err(descriptor),
    }
}
