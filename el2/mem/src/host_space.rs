// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host's stage 2: an identity map that loses single frames and gets them back.
//!
//! Guarantees that a split or a join never changes what the other frames of the block map to, that
//! each goes through break-before-make (Arm ARM D8.16.1), and that a batch pays one broadcast (D6).
//! Between the break and the make, other CPUs may fault on the block: they wait for the host lock,
//! walk again and find it mapped. Tables come from a reserve of one per block of RAM, so nothing
//! here can fail. It does not know who owns what. Keeps I3.

use crate::batch::Granules;
use crate::debt::{Debt, OfHost, Settled};
use crate::map::{Contents, MemoryMap, Spans};
use crate::ports::Broken;
use crate::pte::{self, Attributes, Entry, Form, Leaf};
use crate::{BLOCK_FRAMES, Granule, Ipa, Machine, Pfn};

/// What the host's tables did since boot, and what stands now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) blocks: u64,
    pub(crate) tables: u64,
    pub(crate) splits: u64,
    pub(crate) joins: u64,
    pub(crate) broadcasts: u64,
    pub(crate) unmapped: u64,
}

/// The host's stage-2 tables.
#[derive(Debug)]
pub(crate) struct HostSpace<'m> {
    /// The first of the concatenated level-1 tables.
    pub(crate) root: Pfn,
    /// The first of the level-3 tables, one per block of RAM.
    pub(crate) level3: Pfn,
    /// Per block of RAM: how many of its frames the host can not reach.
    pub(crate) gone: &'m mut [u64],
    pub(crate) spans: Spans,
    pub(crate) how: Attributes,
    pub(crate) ipa_bits: u32,
    pub(crate) tally: Tally,
}

/// Where a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Walk {
    /// A block or page maps the address.
    Mapped,
    /// Nothing does.
    Unmapped,
    /// The address is beyond the tables.
    Outside,
}

impl HostSpace<'_> {
    /// Walks the tables for one address.
    pub(crate) fn walk(&self, ipa: Ipa, m: &impl Machine) -> Walk {
        if ipa.raw().unbounded_shr(self.ipa_bits) != 0 {
            return Walk::Outside;
        }
        let pfn = ipa.identity();
        let table = match pte::form(m.load(self.level1(pfn))) {
            Form::Block => return Walk::Mapped,
            Form::Table(table) => table,
            Form::Empty => return Walk::Unmapped,
            Form::Splitting(_) | Form::Joining | Form::Unknown => m.fatal(Broken::TableForm),
        };
        match pte::form(m.load(Entry::of(table, block_of(pfn)))) {
            Form::Block => Walk::Mapped,
            Form::Empty => Walk::Unmapped,
            Form::Table(table) => match pte::leaf(m.load(Entry::of(table, pfn.raw()))) {
                Leaf::Page(_) => Walk::Mapped,
                Leaf::Empty => Walk::Unmapped,
                Leaf::Poisoned | Leaf::Unknown => m.fatal(Broken::TableForm),
            },
            Form::Splitting(_) | Form::Joining | Form::Unknown => m.fatal(Broken::TableForm),
        }
    }

    /// Takes frames of RAM, all of them mapped, out of the host's reach.
    pub(crate) fn unmap<'b>(&mut self, lost: Granules<'b>, m: &mut impl Machine) -> Debt<'b, OfHost> {
        for (first, turn) in lost.turns(block_of) {
            let table = self.broken_up(first.pfn(), m);
            turn.iter().for_each(|granule| Self::unmap_one(table, granule.pfn(), m));
            self.count_gone(first.pfn(), m, |gone| gone.checked_add(turn.len()));
            self.tally.unmapped = self.tally.unmapped.saturating_add(turn.len());
        }
        Debt::owe(lost)
    }

    /// Pays: one broadcast, then the blocks that were broken stand again as tables.
    pub(crate) fn settle<'b>(&mut self, debt: Debt<'b, OfHost>, m: &mut impl Machine) -> Settled<'b> {
        self.broadcast(m);
        for (first, _) in debt.granules().turns(block_of) {
            let at = self.level2(first.pfn(), m);
            if let Form::Splitting(table) = pte::form(m.load(at)) {
                m.store(at, pte::table(table));
            }
        }
        m.publish_tables();
        debt.paid()
    }

    /// Maps frames that are the host's again, or lent to it. A frame that is mapped stays so.
    pub(crate) fn map_back(&mut self, back: Granules<'_>, map: &MemoryMap, m: &mut impl Machine) {
        let mut broken = false;
        for (first, turn) in back.turns(block_of) {
            broken |= self.map_turn(first.pfn(), turn, map, m);
        }
        if broken {
            self.broadcast(m);
            for (first, _) in back.turns(block_of) {
                self.make_block(first.pfn(), m);
            }
        }
        m.publish_tables();
    }

    /// The table of a frame's block, which is broken if it is one.
    fn broken_up(&mut self, pfn: Pfn, m: &mut impl Machine) -> Pfn {
        let at = self.level2(pfn, m);
        match pte::form(m.load(at)) {
            Form::Block => self.break_block(at, pfn, m),
            Form::Table(table) | Form::Splitting(table) => table,
            Form::Empty | Form::Joining | Form::Unknown => m.fatal(Broken::OneOwner),
        }
    }

    fn unmap_one(table: Pfn, pfn: Pfn, m: &mut impl Machine) {
        let leaf = Entry::of(table, pfn.raw());
        match pte::leaf(m.load(leaf)) {
            Leaf::Page(mapped) if mapped == pfn => m.store(leaf, 0),
            Leaf::Page(_) | Leaf::Empty | Leaf::Poisoned | Leaf::Unknown => m.fatal(Broken::OneOwner),
        }
    }

    /// Fills a table with what the block maps and leaves the block broken; `settle` makes the table.
    fn break_block(&mut self, at: Entry, pfn: Pfn, m: &mut impl Machine) -> Pfn {
        let table = self.table_of(pfn, m);
        let first = block_start(pfn);
        for (index, frame) in (0..BLOCK_FRAMES).zip(first.raw()..) {
            m.store(Entry::of(table, index), pte::host_page(Pfn::from_bits(frame), self.how));
        }
        m.store(at, pte::splitting(table));
        self.tally.splits = self.tally.splits.saturating_add(1);
        self.tally.tables = self.tally.tables.saturating_add(1);
        self.tally.blocks = self.tally.blocks.saturating_sub(1);
        table
    }

    /// Maps frames of the block of `first`; says whether it is now whole and was broken to be joined.
    fn map_turn(&mut self, first: Pfn, turn: Granules<'_>, map: &MemoryMap, m: &mut impl Machine) -> bool {
        let at = self.level2(first, m);
        let table = match pte::form(m.load(at)) {
            Form::Table(table) => table,
            Form::Block | Form::Joining => return false,
            Form::Empty | Form::Splitting(_) | Form::Unknown => m.fatal(Broken::OneOwner),
        };
        let mut back = 0_u64;
        for pfn in turn.iter().map(Granule::pfn) {
            let leaf = Entry::of(table, pfn.raw());
            match pte::leaf(m.load(leaf)) {
                Leaf::Page(mapped) if mapped == pfn => {}
                Leaf::Empty => {
                    m.store(leaf, pte::host_page(pfn, self.how));
                    back = back.saturating_add(1);
                }
                Leaf::Page(_) | Leaf::Poisoned | Leaf::Unknown => m.fatal(Broken::OneOwner),
            }
        }
        self.tally.unmapped = self.tally.unmapped.saturating_sub(back);
        let gone = self.count_gone(first, m, |gone| gone.checked_sub(back));
        let whole = back != 0 && gone == 0 && map.block(block_of(first)) == Contents::Ram;
        if whole {
            m.store(at, pte::joining(table));
        }
        whole
    }

    fn make_block(&mut self, pfn: Pfn, m: &mut impl Machine) {
        let at = self.level2(pfn, m);
        if pte::form(m.load(at)) == Form::Joining {
            m.store(at, pte::host_block(block_start(pfn), self.how));
            self.tally.joins = self.tally.joins.saturating_add(1);
            self.tally.tables = self.tally.tables.saturating_sub(1);
            self.tally.blocks = self.tally.blocks.saturating_add(1);
        }
    }

    fn broadcast(&mut self, m: &mut impl Machine) {
        m.invalidate_host();
        self.tally.broadcasts = self.tally.broadcasts.saturating_add(1);
    }

    /// The level-1 entry of a frame, in one of the concatenated tables.
    pub(crate) fn level1(&self, pfn: Pfn) -> Entry {
        let giant = pfn.raw() >> 18;
        let table = Pfn::from_bits(self.root.raw().saturating_add(giant >> 9));
        Entry::of(table, giant)
    }

    /// The level-2 entry of a frame of RAM; all RAM has one since boot.
    fn level2(&self, pfn: Pfn, m: &impl Machine) -> Entry {
        match pte::form(m.load(self.level1(pfn))) {
            Form::Table(table) => Entry::of(table, block_of(pfn)),
            Form::Empty | Form::Block | Form::Splitting(_) | Form::Joining | Form::Unknown => {
                m.fatal(Broken::TableForm)
            }
        }
    }

    /// The level-3 table that is kept for a frame's block.
    fn table_of(&self, pfn: Pfn, m: &impl Machine) -> Pfn {
        match self.spans.index(block_of(pfn)).and_then(|index| self.level3.add(index as u64)) {
            Some(table) => table,
            None => m.fatal(Broken::Storage),
        }
    }

    fn count_gone(&mut self, pfn: Pfn, m: &impl Machine, step: impl Fn(u64) -> Option<u64>) -> u64 {
        let place = self.spans.index(block_of(pfn)).and_then(|index| self.gone.get_mut(index));
        match place.and_then(|gone| step(*gone).map(|now| (gone, now))) {
            Some((gone, now)) => {
                *gone = now;
                now
            }
            None => m.fatal(Broken::OneOwner),
        }
    }
}

/// The number of the 2 MB block that holds a frame.
pub(crate) const fn block_of(pfn: Pfn) -> u64 {
    pfn.raw() >> 9
}

const fn block_start(pfn: Pfn) -> Pfn {
    Pfn::from_bits(block_of(pfn) << 9)
}

#[cfg(test)]
impl HostSpace<'_> {
    /// The same over words of its own.
    pub(crate) fn twin(&self) -> HostSpace<'static> {
        let Self { root, level3, gone, spans, how, ipa_bits, tally } = self;
        let gone = gone.to_vec().leak();
        HostSpace { root: *root, level3: *level3, gone, spans: *spans, how: *how, ipa_bits: *ipa_bits, tally: *tally }
    }
}
