// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest's stage 2: three levels of 4K pages, with tables out of the VM's own pool.
//!
//! Guarantees that nothing is mapped without the table pages that were counted before, that a leaf
//! is written only over an empty one, and that a removal returns its TLB debt. It does not know who
//! owns what it maps. Keeps I3 for guests.

use crate::batch::Granules;
use crate::debt::{Debt, OfGuest, Settled};
use crate::pool::Pool;
use crate::ports::Broken;
use crate::pte::{self, Attributes, Entry, Form, Leaf};
use crate::{Gfn, Granule, Ledger, MAX_FRAMES, Machine, Pfn, VmSlot};

/// What an ordinary VM may do with a frame that it borrows, besides reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// May write.
    pub write: bool,
    /// May execute.
    pub execute: bool,
}

impl Access {
    /// What a protected VM may do with its own frames.
    pub(crate) const ALL: Self = Self { write: true, execute: true };
}

/// The stage-2 tables of one VM.
#[derive(Debug)]
pub(crate) struct GuestSpace {
    root: Pfn,
    ipa_bits: u32,
    /// Broadcasts for this VM.
    pub(crate) broadcasts: u64,
}

/// The block that a walk came to last, and its level-3 table or where one is missing: the next walk mostly begins there. For
/// as long as the VM's lock is held; who adds a table forgets it.
#[derive(Debug, Default)]
pub(crate) struct Near(Option<(u64, Result<Pfn, Found>)>);

impl Near {
    #[inline(always)]
    fn table(&self, gfn: Gfn) -> Option<Result<Pfn, Found>> {
        self.0.filter(|(block, _)| *block == block_of(gfn)).map(|(_, table)| table)
    }

    /// Whether nothing stands at a guest frame, which is near the last one.
    #[inline(always)]
    pub(crate) fn is_empty(&self, gfn: Gfn, m: &impl Machine) -> bool {
        let is_empty = |table| pte::leaf(m.load(Entry::of(table, gfn.raw()))) == Leaf::Empty;
        self.table(gfn).is_some_and(|table| table.map_or(true, is_empty))
    }
}

/// Where a walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Leaf(Entry, Leaf),
    NoLevel3(Entry),
    NoLevel2(Entry),
}

impl GuestSpace {
    /// Uses cleared frames as the concatenated root.
    pub(crate) const fn new(root: Pfn, ipa_bits: u32) -> Self {
        Self { root, ipa_bits, broadcasts: 0 }
    }

    /// Frames of the concatenated root table, which must be aligned to their number.
    pub(crate) const fn root_frames(ipa_bits: u32) -> u64 {
        1_u64.unbounded_shl(ipa_bits.saturating_sub(39))
    }

    pub(crate) const fn root(&self) -> Pfn {
        self.root
    }

    pub(crate) const fn ipa_bits(&self) -> u32 {
        self.ipa_bits
    }

    /// What stands at a guest frame.
    pub(crate) fn leaf(&self, gfn: Gfn, near: &mut Near, m: &impl Machine) -> Leaf {
        match self.walk(gfn, near, m) {
            Found::Leaf(_, leaf) => leaf,
            Found::NoLevel3(_) | Found::NoLevel2(_) => Leaf::Empty,
        }
    }

    /// How many tables must be added before all of `wanted` can be mapped.
    pub(crate) fn tables_missing(&self, wanted: Granules<'_>, m: &impl Machine) -> u32 {
        let mut missing = 0_u32;
        let (mut last_block, mut last_giant) = (None, None);
        for (index, granule) in (0..MAX_FRAMES as usize).zip(wanted.iter()) {
            let (block, giant) = (block_of(granule.gfn()), giant_of(granule.gfn()));
            if last_block == Some(block) {
                continue;
            }
            let earlier = || wanted.iter().take(index).map(Granule::gfn);
            let counted = |new: u32| if earlier().any(|gfn| block_of(gfn) == block) { 0 } else { new };
            let new = match self.walk(granule.gfn(), &mut Near::default(), m) {
                Found::Leaf(..) => 0,
                Found::NoLevel3(_) => counted(1),
                Found::NoLevel2(_) => {
                    let known = last_giant == Some(giant) || earlier().any(|gfn| giant_of(gfn) == giant);
                    counted(if known { 1 } else { 2 })
                }
            };
            missing = missing.saturating_add(new);
            (last_block, last_giant) = (Some(block), Some(giant));
        }
        missing
    }

    /// Maps one granule; its tables were counted and are in the pool.
    #[inline]
    pub(crate) fn map(
        &mut self,
        granule: Granule,
        access: Access,
        how: Attributes,
        tables: &mut Tables<'_, '_>,
        near: &mut Near,
        m: &mut impl Machine,
    ) {
        let gfn = granule.gfn();
        let leaf = near.table(gfn).and_then(Result::ok).map(|table| Entry::of(table, gfn.raw()));
        let leaf = leaf.filter(|leaf| pte::leaf(m.load(*leaf)) == Leaf::Empty);
        let leaf = leaf.unwrap_or_else(|| self.make_room(gfn, tables, near, m));
        m.store(leaf, pte::guest_page(granule.pfn(), how, access.write, access.execute));
    }

    /// Finds the place of a guest frame, and adds the tables that are missing. Not in line: most frames are near the last.
    #[cold]
    #[inline(never)]
    fn make_room(&self, gfn: Gfn, tables: &mut Tables<'_, '_>, near: &mut Near, m: &mut impl Machine) -> Entry {
        loop {
            match self.walk(gfn, near, m) {
                Found::Leaf(entry, Leaf::Empty) => return entry,
                Found::Leaf(_, Leaf::Page(_) | Leaf::Poisoned | Leaf::Unknown) => m.fatal(Broken::OneOwner),
                Found::NoLevel3(parent) | Found::NoLevel2(parent) => {
                    let table = tables.take(m);
                    m.publish_tables();
                    m.store(parent, pte::table(table));
                    *near = Near::default();
                }
            }
        }
    }

    /// Takes granules, all of them mapped, out of the guest's reach, and leaves nothing or poison. Not in line: the check of the
    /// linked image knows by name who may stop the machine.
    #[inline(never)]
    pub(crate) fn unmap<'b>(&mut self, lost: Granules<'b>, poison: bool, m: &mut impl Machine) -> Debt<'b, OfGuest> {
        let (left, mut near) = (if poison { pte::poison() } else { 0 }, Near::default());
        for granule in lost.iter() {
            match self.walk(granule.gfn(), &mut near, m) {
                Found::Leaf(entry, Leaf::Page(pfn)) if pfn == granule.pfn() => m.store(entry, left),
                Found::Leaf(..) | Found::NoLevel3(_) | Found::NoLevel2(_) => m.fatal(Broken::OneOwner),
            }
        }
        Debt::owe(lost)
    }

    /// Pays: one broadcast for the VM.
    pub(crate) fn settle<'b>(&mut self, debt: Debt<'b, OfGuest>, vm: VmSlot, m: &mut impl Machine) -> Settled<'b> {
        self.invalidate(vm, m);
        debt.paid()
    }

    /// Drops all cached translations of the VM.
    pub(crate) fn invalidate(&mut self, vm: VmSlot, m: &mut impl Machine) {
        m.invalidate_vm(vm.vmid());
        self.broadcasts = self.broadcasts.saturating_add(1);
    }

    #[inline(never)]
    fn walk(&self, gfn: Gfn, near: &mut Near, m: &impl Machine) -> Found {
        let table = match near.table(gfn).unwrap_or_else(|| self.level3(gfn, near, m)) {
            Ok(table) => table,
            Err(missing) => return missing,
        };
        let level3 = Entry::of(table, gfn.raw());
        match pte::leaf(m.load(level3)) {
            Leaf::Unknown => m.fatal(Broken::TableForm),
            leaf @ (Leaf::Empty | Leaf::Page(_) | Leaf::Poisoned) => Found::Leaf(level3, leaf),
        }
    }

    /// The level-3 table for a guest frame, or where one is missing. Not in line: most walks begin near the one before.
    #[cold]
    #[inline(never)]
    fn level3(&self, gfn: Gfn, near: &mut Near, m: &impl Machine) -> Result<Pfn, Found> {
        let giant = giant_of(gfn);
        let root = Pfn::from_bits(self.root.raw().saturating_add(giant >> 9));
        let level1 = Entry::of(root, giant);
        let table = table_at(level1, m).ok_or(Found::NoLevel2(level1)).and_then(|table| {
            let level2 = Entry::of(table, block_of(gfn));
            table_at(level2, m).ok_or(Found::NoLevel3(level2))
        });
        near.0.insert((block_of(gfn), table)).1
    }
}

/// Where a guest's tables come from.
#[derive(Debug)]
pub(crate) struct Tables<'g, 'm> {
    pub(crate) pool: &'g mut Pool,
    pub(crate) ledger: &'g mut Ledger<'m>,
    pub(crate) vm: VmSlot,
}

impl Tables<'_, '_> {
    fn take(&mut self, m: &mut impl Machine) -> Pfn {
        match self.pool.take(self.vm, self.ledger, m) {
            Some(frame) => frame,
            None => m.fatal(Broken::Reservation),
        }
    }
}

fn table_at(entry: Entry, m: &impl Machine) -> Option<Pfn> {
    match pte::form(m.load(entry)) {
        Form::Table(table) => Some(table),
        Form::Empty => None,
        Form::Block | Form::Splitting(_) | Form::Joining | Form::Unknown => m.fatal(Broken::TableForm),
    }
}

const fn block_of(gfn: Gfn) -> u64 {
    gfn.raw() >> 9
}

const fn giant_of(gfn: Gfn) -> u64 {
    gfn.raw() >> 18
}
