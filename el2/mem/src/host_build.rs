// SPDX-License-Identifier: MIT OR Apache-2.0
//! Building the host's stage 2 at boot, whole and once (D3).
//!
//! Guarantees that RAM stands in 2 MB blocks, that carve-outs and holes are invalid, that all else
//! is reachable but not executable, and that no address is left to be mapped later. Runs before any
//! CPU uses the tables, so it needs no break-before-make.

use crate::host_space::{HostSpace, Tally};
use crate::map::{Contents, FrameKind, MapError, MemoryMap};
use crate::pte::{self, Attributes, ENTRIES, Entry, GIANT_FRAMES};
use crate::{BLOCK_FRAMES, Machine, Pfn};

/// Hands out the frames of the table reserve.
struct Builder<'a, M> {
    map: &'a MemoryMap,
    how: Attributes,
    next_level2: u64,
    next_hole: u64,
    end: u64,
    tally: Tally,
    m: &'a mut M,
}

/// Builds the tables in the frames from `tables` on, which [`MemoryMap::needs`] counts.
pub(crate) fn build<'m, M: Machine>(
    map: &MemoryMap,
    tables: Pfn,
    gone: &'m mut [u64],
    how: Attributes,
    m: &mut M,
) -> Result<HostSpace<'m>, MapError> {
    let needs = map.needs();
    let end = tables.raw().saturating_add(needs.table_frames);
    if !tables.raw().is_multiple_of(needs.table_align) || Pfn::new(end).is_none() {
        return Err(MapError::WrongStorage);
    }
    let spans = map.spans();
    gone.fill(0);
    // Root, then level 2, then the tables that holes may need, then one level 3 per block of RAM.
    let level2 = tables.raw().saturating_add(map.root_frames());
    let level3 = end.saturating_sub(spans.count());
    let holes = level3.saturating_sub(map.hole_tables());
    let level3 = Pfn::new(level3).ok_or(MapError::WrongStorage)?;
    let mut space =
        HostSpace { root: tables, level3, gone, spans, how, ipa_bits: map.ipa_bits(), tally: Tally::default() };
    let mut builder =
        Builder { map, how, next_level2: level2, next_hole: holes, end: level3.raw(), tally: Tally::default(), m };
    for frame in 0..map.root_frames() {
        builder.m.clear(Pfn::from_bits(tables.raw().saturating_add(frame)));
    }
    for giant in map.giants() {
        let first = Pfn::from_bits(giant.saturating_mul(GIANT_FRAMES));
        let descriptor = builder.giant(giant, first, &space)?;
        builder.m.store(space.level1(first), descriptor);
    }
    builder.m.publish_tables();
    space.tally = builder.tally;
    Ok(space)
}

impl<M: Machine> Builder<'_, M> {
    fn giant(&mut self, giant: u64, first: Pfn, space: &HostSpace<'_>) -> Result<u64, MapError> {
        if !self.map.giant_is_mixed(giant) {
            return Ok(pte::device_block(first, self.how));
        }
        let table = Pfn::from_bits(self.next_level2);
        self.next_level2 = self.next_level2.saturating_add(1);
        for (index, block) in (0..ENTRIES).zip(first.raw() / BLOCK_FRAMES..) {
            let descriptor = self.block(block, space)?;
            self.m.store(Entry::of(table, index), descriptor);
        }
        Ok(pte::table(table))
    }

    fn block(&mut self, block: u64, space: &HostSpace<'_>) -> Result<u64, MapError> {
        let first = Pfn::from_bits(block.saturating_mul(BLOCK_FRAMES));
        match self.map.block(block) {
            Contents::CarveOut | Contents::Hole => Ok(0),
            Contents::Device => Ok(pte::device_block(first, self.how)),
            Contents::Ram => {
                self.tally.blocks = self.tally.blocks.saturating_add(1);
                Ok(pte::host_block(first, self.how))
            }
            Contents::Mixed => self.mixed(block, first, space),
        }
    }

    /// A block that is RAM in part only stands as a table for good.
    fn mixed(&mut self, block: u64, first: Pfn, space: &HostSpace<'_>) -> Result<u64, MapError> {
        let table = match space.spans.index(block) {
            Some(index) => {
                self.tally.tables = self.tally.tables.saturating_add(1);
                space.level3.raw().saturating_add(index as u64)
            }
            None => {
                let table = self.next_hole;
                self.next_hole = table.saturating_add(1);
                if table >= self.end {
                    return Err(MapError::WrongStorage);
                }
                table
            }
        };
        let table = Pfn::from_bits(table);
        for (index, frame) in (0..ENTRIES).zip(first.raw()..) {
            let frame = Pfn::from_bits(frame);
            let descriptor = match self.map.frame(frame) {
                FrameKind::Ram => pte::host_page(frame, self.how),
                FrameKind::Device => pte::device_page(frame, self.how),
                FrameKind::Hole => 0,
            };
            self.m.store(Entry::of(table, index), descriptor);
        }
        Ok(pte::table(table))
    }
}
