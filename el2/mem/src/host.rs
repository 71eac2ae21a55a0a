// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the host lock protects: ledger, host tables, and the room in which a call gathers frames.
//!
//! Guarantees that ledger and tables were built from one map and agree: a frame of RAM is mapped for
//! the host exactly while its record says host, lent, shared or no-map. It does not know VMs; the
//! verbs bring host and guest together.

use crate::batch::Batch;
use crate::host_build;
use crate::host_space::{HostSpace, Walk};
use crate::map::LIST_WORDS;
use crate::ports::Frames;
use crate::{
    Attributes, Claim, Gfn, GfnRun, Ipa, Ledger, Lot, MAX_FRAMES, MAX_RECORDS, Machine, MapError, MemoryMap, Pfn,
    PfnRun, Refused, State, VmSlot,
};

/// Everything under the host lock.
#[derive(Debug)]
pub struct Host<'m> {
    pub(crate) map: MemoryMap,
    pub(crate) ledger: Ledger<'m>,
    pub(crate) space: HostSpace<'m>,
    pub(crate) batch: Batch<'m>,
    list: &'m mut [u64],
    tables: u64,
}

/// What the host finds at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostView {
    /// It is mapped: an access that faulted should be made again.
    Mapped,
    /// No RAM, and hidden from the host.
    Hole,
    /// Beyond the address space.
    Outside,
    /// `el2`'s own.
    El2,
    /// In the pool of a VM.
    Pool(VmSlot),
    /// A VM's private frame.
    Private {
        /// The VM.
        vm: VmSlot,
        /// Where the VM sees it.
        gfn: Gfn,
        /// Whether a stray access of the host's kernel takes it away (D8).
        revocable: bool,
    },
}

/// Numbers about the host's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// 2 MB blocks that map RAM.
    pub blocks: u64,
    /// Level-3 tables in use for RAM. The few that hide devices stand from boot and are not counted.
    pub tables: u64,
    /// Level-3 tables of the reserve that are not in use.
    pub tables_free: u64,
    /// Blocks split since boot.
    pub splits: u64,
    /// Blocks rejoined since boot.
    pub joins: u64,
    /// Broadcast TLB invalidations for the host since boot.
    pub broadcasts: u64,
    /// Frames of RAM that VMs took out of the host's reach.
    pub foreign: u64,
}

impl<'m> Host<'m> {
    /// Builds ledger and tables. `tables` is the first frame of the table reserve, `storage` the words,
    /// both as [`MemoryMap::needs`] says and both inside a carve-out. No CPU uses the tables yet.
    ///
    /// # Errors
    /// `WrongStorage` if what was lent does not fit.
    pub fn build(
        map: MemoryMap,
        tables: Pfn,
        storage: &'m mut [u64],
        how: Attributes,
        m: &mut impl Machine,
    ) -> Result<Self, MapError> {
        let needs = map.needs();
        let frames = usize::try_from(needs.table_frames).map_err(|_| MapError::WrongStorage)?;
        let reserve = PfnRun::decode(tables.raw(), frames as u64).map_err(|_| MapError::WrongStorage)?;
        if !map.carve_outs().any(|run| run.covers(&reserve)) {
            return Err(MapError::WrongStorage);
        }
        let (records, rest) = split(storage, map.ram_frames())?;
        let (gone, rest) = split(rest, map.spans().count())?;
        let (batch, rest) = split(rest, MAX_FRAMES)?;
        let (list, _) = split(rest, LIST_WORDS as u64)?;
        let mut ledger = Ledger::new(records, map.frames());
        for run in map.carve_outs() {
            for pfn in run.frames() {
                ledger.write(pfn, State::El2, m);
            }
        }
        let space = host_build::build(&map, tables, gone, how, m)?;
        let tables = map.spans().count();
        Ok(Self { map, ledger, space, batch: Batch::new(batch), list, tables })
    }

    /// Marks RAM that firmware keeps. Frames outside RAM, and `el2`'s own, are left as they are.
    ///
    /// Only for boot: frames must not have been given away yet.
    pub fn mark_no_map(&mut self, run: PfnRun, m: &impl Machine) {
        for bank in self.map.ram() {
            let from = run.start().max(bank.start());
            let to = run.end().min(bank.end());
            let Ok(part) = PfnRun::decode(from.raw(), to.saturating_sub(from.raw())) else { continue };
            for pfn in part.frames() {
                if self.ledger.state(pfn) == Some(State::Host) {
                    self.ledger.write(pfn, State::NoMap, m);
                }
            }
        }
    }

    /// The first frame of the host's concatenated root table, for VTTBR_EL2.
    pub fn root(&self) -> Pfn {
        self.space.root
    }

    /// The machine's memory, as it was at boot.
    pub fn map(&self) -> &MemoryMap {
        &self.map
    }

    /// Who has which frame.
    pub fn ledger(&self) -> &Ledger<'m> {
        &self.ledger
    }

    /// What the host finds at an address, by a walk of the tables as they stand under the lock (D7). Not in line, as
    /// all who may stop the machine.
    #[inline(never)]
    pub fn view(&self, ipa: Claim<Ipa>, m: &impl Machine) -> HostView {
        let ipa = ipa.examine();
        match self.space.walk(ipa, m) {
            Walk::Mapped => HostView::Mapped,
            Walk::Outside => HostView::Outside,
            Walk::Unmapped => match self.ledger.state(ipa.identity()) {
                None => HostView::Hole,
                Some(State::Pool { vm, .. }) => HostView::Pool(vm),
                Some(State::Private { vm, gfn, revocable }) => HostView::Private { vm, gfn, revocable },
                Some(State::El2) => HostView::El2,
                Some(State::Host | State::Lent(_) | State::Shared { .. } | State::NoMap) => {
                    m.fatal(crate::ports::Broken::OneOwner)
                }
            },
        }
    }

    /// Numbers for whoever asks.
    pub fn counters(&self) -> Counters {
        let tally = self.space.tally;
        Counters {
            blocks: tally.blocks,
            tables: tally.tables,
            tables_free: self.tables.saturating_sub(tally.tables),
            splits: tally.splits,
            joins: tally.joins,
            broadcasts: tally.broadcasts,
            foreign: tally.unmapped,
        }
    }

    /// Gathers one lot.
    pub(crate) fn gather_lot(&mut self, lot: &Lot) -> Result<(), Refused> {
        self.batch.clear();
        self.put(lot)
    }

    /// Gathers a run of frames that go to no guest frame.
    pub(crate) fn gather_run(&mut self, run: &PfnRun) -> Result<(), Refused> {
        self.batch.clear();
        run.frames().try_for_each(|pfn| self.batch.push(pfn, Gfn::from_bits(0)))
    }

    /// Gathers the frames behind a run of guest frames.
    pub(crate) fn gather_guest(
        &mut self,
        run: &GfnRun,
        find: impl Fn(Gfn) -> Result<Pfn, Refused>,
    ) -> Result<(), Refused> {
        self.batch.clear();
        if run.count() > MAX_FRAMES {
            return Err(Refused::CountTooLarge);
        }
        run.frames().try_for_each(|gfn| self.batch.push(find(gfn)?, gfn))
    }

    /// Copies a list of records out of a frame of the host's, once, and gathers the frames that it names.
    pub(crate) fn gather_list(&mut self, page: Pfn, records: u64, vm: VmSlot, m: &impl Frames) -> Result<(), Refused> {
        self.batch.clear();
        if records == 0 {
            return Err(Refused::ZeroCount);
        }
        if records > MAX_RECORDS {
            return Err(Refused::CountTooLarge);
        }
        self.ledger.host_readable(page, vm)?;
        let words = usize::try_from(records.saturating_mul(2)).map_err(|_| Refused::CountTooLarge)?;
        let list = self.list.get_mut(..words).ok_or(Refused::CountTooLarge)?;
        m.copy_words(page, list);
        // Moved out so that the batch can be filled while the list is read.
        let list = core::mem::take(&mut self.list);
        let checked = self.put_list(list.get_mut(..words).unwrap_or(&mut []));
        self.list = list;
        checked
    }

    /// Gathers the records of a list, in their order, and then checks that no two of them meet.
    fn put_list(&mut self, list: &mut [u64]) -> Result<(), Refused> {
        let (records, _) = list.as_chunks_mut::<2>();
        for record in records.iter() {
            self.put(&lot(record)?)?;
        }
        // In the order of their starts, runs that meet stand side by side somewhere.
        sort_by_key(records, |[pfn, _]| *pfn);
        let frames_meet = neighbours(records).any(|(one, next)| one.frames().meets(&next.frames()));
        sort_by_key(records, |[_, packed]| packed & GFN);
        let places_meet = neighbours(records).any(|(one, next)| one.at().meets(&next.at()));
        if frames_meet || places_meet { Err(Refused::Twice) } else { Ok(()) }
    }

    fn put(&mut self, lot: &Lot) -> Result<(), Refused> {
        lot.frames().frames().zip(lot.at().frames()).try_for_each(|(pfn, gfn)| self.batch.push(pfn, gfn))
    }
}

/// The guest frame number of a record's second word; the count minus one stands above.
const GFN: u64 = (1 << 52) - 1;

fn lot([pfn, packed]: &[u64; 2]) -> Result<Lot, Refused> {
    Lot::decode(*pfn, packed & GFN, (packed >> 52).saturating_add(1))
}

/// Distances of a shell sort, for no more than [`MAX_RECORDS`].
const GAPS: [usize; 6] = [132, 57, 23, 10, 4, 1];

/// Puts records into the order of a key. The library's sort has panics that a wrong order would reach.
fn sort_by_key(records: &mut [[u64; 2]], key: impl Fn(&[u64; 2]) -> u64) {
    for gap in GAPS {
        for start in gap..records.len() {
            let mut at = start;
            while let Some(before) = at.checked_sub(gap)
                && let Ok([low, high]) = records.get_disjoint_mut([before, at])
                && key(low) > key(high)
            {
                core::mem::swap(low, high);
                at = before;
            }
        }
    }
}

/// Records next to each other, decoded; all of them were found to be good.
fn neighbours(records: &[[u64; 2]]) -> impl Iterator<Item = (Lot, Lot)> + '_ {
    let good = || records.iter().filter_map(|record| lot(record).ok());
    good().zip(good().skip(1))
}

#[cfg(test)]
impl Host<'_> {
    /// The same over words of its own.
    pub(crate) fn twin(&self) -> Host<'static> {
        let room = |count: usize| std::vec![0; count].leak();
        Host {
            map: self.map,
            ledger: self.ledger.twin(),
            space: self.space.twin(),
            batch: Batch::new(room(MAX_FRAMES as usize)),
            list: room(LIST_WORDS),
            tables: self.tables,
        }
    }
}

fn split(words: &mut [u64], count: u64) -> Result<(&mut [u64], &mut [u64]), MapError> {
    let count = usize::try_from(count).map_err(|_| MapError::WrongStorage)?;
    words.split_at_mut_checked(count).ok_or(MapError::WrongStorage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_any_number_are_sorted() {
        for count in 0..=if cfg!(miri) { 16 } else { MAX_RECORDS } {
            let mut records: std::vec::Vec<[u64; 2]> =
                (0..count).map(|at| [at.wrapping_mul(0x9e37_79b9) % 97, at]).collect();
            let mut sorted = records.clone();
            sorted.sort_unstable_by_key(|[key, _]| *key);
            sort_by_key(&mut records, |[key, _]| *key);
            assert!(records.iter().zip(&sorted).all(|(one, other)| one[0] == other[0]), "{count} records");
        }
    }
}
