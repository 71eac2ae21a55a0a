// SPDX-License-Identifier: MIT OR Apache-2.0
//! What should be true, kept in plain lists: who has each frame, and what each VM has where.

use std::collections::{BTreeMap, BTreeSet};

use freehold_mem::{Kind, Life};

use crate::machine::{BASE, SPAN};

use super::{CARVE_OUT, NO_MAP, NO_MAP_FRAMES, RAM, RAM_FRAMES, RAM2, RAM2_FRAMES, VMS};

/// Frames that one call handles.
const MOST: u64 = 512;
/// Frames after which a call looks for interrupts.
const STRIDE: u64 = 32;
/// The same where contents stay, and are measured.
const MEASURED_STRIDE: u64 = 4;

/// Who has a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    NoMap,
    El2,
    Host,
    Lent(u32),
    Pool(usize),
    Private { vm: usize, gfn: u64, revocable: bool },
    Shared { vm: usize, gfn: u64, revocable: bool },
}

impl Owner {
    /// The VM that owns the frame.
    fn vm(self) -> Option<usize> {
        match self {
            Self::Private { vm, .. } | Self::Shared { vm, .. } => Some(vm),
            Self::NoMap | Self::El2 | Self::Host | Self::Lent(_) | Self::Pool(_) => None,
        }
    }

    /// Whether the host may reach the frame.
    pub(super) fn is_the_hosts_to_reach(self) -> bool {
        matches!(self, Self::NoMap | Self::Host | Self::Lent(_) | Self::Shared { .. })
    }
}

/// What a VM has at a guest frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spot {
    Frame { pfn: u64, write: bool, execute: bool },
    Poison,
}

/// A VM.
#[derive(Clone, Debug)]
pub(super) struct Vm {
    pub(super) life: Life,
    pub(super) kind: Kind,
    pub(super) bits: u32,
    pub(super) ram: Vec<(u64, u64)>,
    pub(super) map: BTreeMap<u64, Spot>,
    /// Level-2 tables by 1 GB, level-3 tables by 2 MB, that the VM ever got.
    tables: BTreeSet<(u8, u64)>,
    pub(super) pool: u64,
    pub(super) free: u64,
}

impl Vm {
    fn lives(&self) -> bool {
        matches!(self.life, Life::Building | Life::Running)
    }

    fn owns(&self) -> bool {
        self.kind != Kind::Ordinary
    }

    fn is_ram(&self, gfn: u64) -> bool {
        self.ram.iter().any(|(first, end)| (*first..*end).contains(&gfn))
    }

    fn page(&self, gfn: u64) -> Option<u64> {
        match self.map.get(&gfn) {
            Some(Spot::Frame { pfn, .. }) if self.is_ram(gfn) => Some(*pfn),
            _ => None,
        }
    }

    pub(super) fn vacant(&self, gfn: u64) -> bool {
        self.is_ram(gfn) && !self.map.contains_key(&gfn)
    }

    fn missing(&self, gfns: impl Iterator<Item = u64>) -> BTreeSet<(u8, u64)> {
        gfns.flat_map(|gfn| [(2, gfn >> 18), (3, gfn >> 9)]).filter(|table| !self.tables.contains(table)).collect()
    }

    fn put(&mut self, gfn: u64, spot: Spot) {
        let new = self.missing([gfn].into_iter());
        self.free -= new.len() as u64;
        self.tables.extend(new);
        self.map.insert(gfn, spot);
    }
}

/// The machine.
pub(super) struct Naive {
    /// Of each frame from `BASE` on; none is no RAM.
    owners: Vec<Option<Owner>>,
    /// Frames that each VM owns.
    owned: [u64; VMS],
    pub(super) vms: [Option<Vm>; VMS],
}

/// A run as a claim names it.
pub(super) type Run = (u64, u64);

fn span(run: Run, limit: u64) -> Option<core::ops::Range<u64>> {
    let end = run.0.checked_add(run.1)?;
    (run.1 != 0 && end <= limit).then_some(run.0..end)
}

/// Frames that a run names, if there are so many and one call may name them.
pub(super) fn frames((first, count): Run) -> Option<core::ops::Range<u64>> {
    span((first, count), 1 << 36).filter(|_| count <= MOST)
}

/// The same for guest frames.
pub(super) fn gfns((first, count): Run) -> Option<core::ops::Range<u64>> {
    span((first, count), 1 << 28).filter(|_| count <= MOST)
}

/// How many frames of `count` are done when an interrupt is pending.
fn done(count: u64, stop: bool) -> u64 {
    if stop { count.min(STRIDE) } else { count }
}

impl Naive {
    pub(super) fn new() -> Self {
        let owner = |pfn| match pfn {
            pfn if (CARVE_OUT..CARVE_OUT + 512).contains(&pfn) => Some(Owner::El2),
            pfn if (NO_MAP..NO_MAP + NO_MAP_FRAMES).contains(&pfn) => Some(Owner::NoMap),
            pfn if (RAM..RAM + RAM_FRAMES).contains(&pfn) => Some(Owner::Host),
            pfn if (RAM2..RAM2 + RAM2_FRAMES).contains(&pfn) => Some(Owner::Host),
            _ => None,
        };
        Self { owners: (BASE..BASE + SPAN).map(owner).collect(), owned: [0; VMS], vms: [const { None }; VMS] }
    }

    fn set(&mut self, pfn: u64, owner: Owner) {
        let was = self.owners[(pfn - BASE) as usize].replace(owner);
        if let Some(vm) = was.and_then(Owner::vm) {
            self.owned[vm] -= 1;
        }
        if let Some(vm) = owner.vm() {
            self.owned[vm] += 1;
        }
    }

    fn set_all(&mut self, run: impl Iterator<Item = u64>, owner: Owner) {
        run.for_each(|pfn| self.set(pfn, owner));
    }

    /// Who has a frame, if it is RAM.
    pub(super) fn owner(&self, pfn: u64) -> Option<Owner> {
        self.owners.get(usize::try_from(pfn.checked_sub(BASE)?).ok()?).copied().flatten()
    }

    /// All RAM.
    pub(super) fn ram(&self) -> impl Iterator<Item = (u64, Owner)> + '_ {
        (BASE..).zip(&self.owners).filter_map(|(pfn, owner)| Some((pfn, (*owner)?)))
    }

    fn all(&self, run: Run, is: impl Fn(Owner) -> bool) -> Option<core::ops::Range<u64>> {
        frames(run).filter(|run| run.clone().all(|pfn| self.owner(pfn).is_some_and(&is)))
    }

    fn vm(&mut self, slot: usize, fits: impl Fn(&Vm) -> bool) -> Option<&mut Vm> {
        self.vms[slot].as_mut().filter(|vm| fits(vm))
    }

    pub(super) fn birth(&mut self, slot: usize, run: Run, kind: Kind, bits: u32) -> Option<u64> {
        let range = self.all(run, |owner| owner == Owner::Host)?;
        if self.vms[slot].is_some() || !(32..=40).contains(&bits) {
            return None;
        }
        let root = if bits == 40 { 2 } else { 1 };
        let first = range.start.next_multiple_of(root);
        if first + root > range.end {
            return None;
        }
        let free = run.1 - root;
        self.set_all(range, Owner::Pool(slot));
        let (life, ram, map, tables) = (Life::Building, Vec::new(), BTreeMap::new(), BTreeSet::new());
        self.vms[slot] = Some(Vm { life, kind, bits, ram, map, tables, pool: run.1, free });
        Some(free)
    }

    pub(super) fn declare(&mut self, slot: usize, run: Run) -> Option<u64> {
        let range = span(run, 1 << 28)?;
        let vm = self.vm(slot, |vm| vm.life == Life::Building)?;
        let apart = vm.ram.iter().all(|(first, end)| range.end <= *first || *end <= range.start);
        (apart && range.end <= 1 << (vm.bits - 12) && vm.ram.len() < 8).then(|| {
            vm.ram.push((range.start, range.end));
            0
        })
    }

    pub(super) fn start(&mut self, slot: usize) -> Option<u64> {
        self.vm(slot, Vm::lives)?.life = Life::Running;
        Some(0)
    }

    pub(super) fn die(&mut self, slot: usize) -> Option<u64> {
        self.vm(slot, Vm::lives)?.life = Life::Dying;
        Some(0)
    }

    pub(super) fn top_up(&mut self, slot: usize, run: Run) -> Option<u64> {
        self.vm(slot, Vm::lives)?;
        let range = self.all(run, |owner| owner == Owner::Host)?;
        self.set_all(range, Owner::Pool(slot));
        let vm = self.vm(slot, Vm::lives)?;
        vm.pool += run.1;
        vm.free += run.1;
        Some(vm.free)
    }

    pub(super) fn take_frame(&mut self, slot: usize) -> Option<u64> {
        self.vm(slot, |vm| vm.lives() && vm.free != 0)?.free -= 1;
        Some(0)
    }

    pub(super) fn donate(&mut self, slot: usize, pairs: &[(u64, u64)], revocable: bool, stop: bool) -> Option<u64> {
        let host = pairs.iter().all(|(pfn, _)| self.owner(*pfn) == Some(Owner::Host));
        let vm = self.vm(slot, |vm| vm.lives() && vm.owns())?;
        let vacant = pairs.iter().all(|(_, gfn)| vm.vacant(*gfn));
        let missing = vm.missing(pairs.iter().map(|(_, gfn)| *gfn)).len() as u64;
        if !host || !vacant || missing > vm.free {
            return None;
        }
        let count = pairs.len() as u64;
        let stays = vm.kind == Kind::Lazy || vm.life == Life::Building;
        let done = if stop && stays { count.min(MEASURED_STRIDE) } else { done(count, stop) };
        for &(pfn, gfn) in pairs.iter().take(done as usize) {
            vm.put(gfn, Spot::Frame { pfn, write: true, execute: true });
        }
        for &(pfn, gfn) in pairs.iter().take(done as usize) {
            self.set(pfn, Owner::Private { vm: slot, gfn, revocable });
        }
        Some(done)
    }

    /// The pairs that a list of records names, unless something is wrong with the list itself.
    pub(super) fn list(&self, page: u64, records: &[(u64, u64, u64)], count: u64) -> Option<Vec<(u64, u64)>> {
        let readable = matches!(self.owner(page), Some(Owner::Host | Owner::Lent(_)));
        let named = records.get(..usize::try_from(count).ok()?).filter(|_| count != 0 && readable)?;
        let good = named.iter().all(|(pfn, gfn, n)| frames((*pfn, *n)).is_some() && gfns((*gfn, *n)).is_some());
        if !good {
            return None;
        }
        let pairs = || named.iter().flat_map(|(pfn, gfn, n)| (*pfn..pfn + n).zip(*gfn..gfn + n));
        let all = pairs().count();
        let once = |numbers: BTreeSet<u64>| numbers.len() == all;
        let few = all as u64 <= MOST;
        (few && once(pairs().map(|(pfn, _)| pfn).collect()) && once(pairs().map(|(_, gfn)| gfn).collect()))
            .then(|| pairs().collect())
    }

    pub(super) fn lend(&mut self, slot: usize, frames: Run, at: u64, spot: (bool, bool), stop: bool) -> Option<u64> {
        let from = self.all(frames, |owner| matches!(owner, Owner::Host | Owner::Lent(_)))?;
        let to = gfns((at, frames.1))?;
        let vm = self.vm(slot, |vm| vm.lives() && !vm.owns())?;
        let missing = vm.missing(to.clone()).len() as u64;
        if !to.clone().all(|gfn| vm.vacant(gfn)) || missing > vm.free {
            return None;
        }
        let done = done(frames.1, stop);
        for (pfn, gfn) in from.clone().zip(to).take(done as usize) {
            vm.put(gfn, Spot::Frame { pfn, write: spot.0, execute: spot.1 });
        }
        for pfn in from.take(done as usize) {
            let times = if let Some(Owner::Lent(times)) = self.owner(pfn) { times + 1 } else { 1 };
            self.set(pfn, Owner::Lent(times));
        }
        Some(done)
    }

    pub(super) fn unlend(&mut self, slot: usize, run: Run) -> Option<u64> {
        let range = gfns(run)?;
        let vm = self.vm(slot, |vm| !vm.owns())?;
        let pages: Option<Vec<u64>> = range.clone().map(|gfn| vm.page(gfn)).collect();
        let pages = pages?;
        vm.map.retain(|gfn, _| !range.contains(gfn));
        for pfn in &pages {
            let left = if let Some(Owner::Lent(times)) = self.owner(*pfn) { times - 1 } else { 0 };
            self.set(*pfn, if left == 0 { Owner::Host } else { Owner::Lent(left) });
        }
        Some(pages.len() as u64)
    }

    /// The frames behind a run that a running guest names, all shared or all private.
    fn guests_own(&mut self, slot: usize, run: Run, shared: bool) -> Option<Vec<(u64, u64)>> {
        let range = gfns(run)?;
        let vm = self.vm(slot, |vm| vm.life == Life::Running && vm.owns())?;
        let pages: Option<Vec<(u64, u64)>> = range.map(|gfn| Some((vm.page(gfn)?, gfn))).collect();
        let fits = |pfn: u64| match self.owner(pfn) {
            Some(Owner::Shared { .. }) => shared,
            Some(Owner::Private { .. }) => !shared,
            _ => false,
        };
        pages.filter(|pages| pages.iter().all(|(pfn, _)| fits(*pfn)))
    }

    fn is_revocable(&self, pfn: u64) -> bool {
        matches!(self.owner(pfn), Some(Owner::Private { revocable: true, .. } | Owner::Shared { revocable: true, .. }))
    }

    pub(super) fn share(&mut self, slot: usize, run: Run) -> Option<u64> {
        let pages = self.guests_own(slot, run, false)?;
        for &(pfn, gfn) in &pages {
            let revocable = self.is_revocable(pfn);
            self.set(pfn, Owner::Shared { vm: slot, gfn, revocable });
        }
        Some(pages.len() as u64)
    }

    pub(super) fn unshare(&mut self, slot: usize, run: Run) -> Option<u64> {
        let pages = self.guests_own(slot, run, true)?;
        for &(pfn, gfn) in &pages {
            let revocable = self.is_revocable(pfn);
            self.set(pfn, Owner::Private { vm: slot, gfn, revocable });
        }
        Some(pages.len() as u64)
    }

    pub(super) fn relinquish(&mut self, slot: usize, run: Run) -> Option<u64> {
        let pages = self.guests_own(slot, run, false)?;
        for &(pfn, gfn) in &pages {
            self.set(pfn, Owner::Host);
            self.vm(slot, |_| true)?.map.remove(&gfn);
        }
        Some(pages.len() as u64)
    }

    pub(super) fn revoke(&mut self, slot: usize, pfn: u64) -> Option<u64> {
        match self.owner(pfn) {
            Some(Owner::Private { vm, gfn, revocable: true }) if vm == slot => {
                self.vm(slot, |_| true)?.map.insert(gfn, Spot::Poison);
                self.set(pfn, Owner::Host);
                Some(1)
            }
            _ => None,
        }
    }

    /// Frames, or loans, that a VM has beside its pool.
    pub(super) fn out(&self, slot: usize) -> u64 {
        let loans = |vm: &Vm| if vm.owns() { 0 } else { vm.map.len() as u64 };
        self.owned[slot] + self.vms[slot].as_ref().map_or(0, loans)
    }

    pub(super) fn reclaim(&mut self, slot: usize, run: Run, stop: bool) -> Option<u64> {
        self.vm(slot, |vm| vm.life == Life::Dying)?;
        let its = |owner| matches!(owner, Owner::Private { vm, .. } | Owner::Shared { vm, .. } if vm == slot);
        let range = self.all(run, its)?;
        let done = done(run.1, stop);
        self.set_all(range.take(done as usize), Owner::Host);
        Some(done)
    }

    pub(super) fn return_pool(&mut self, slot: usize, run: Run, stop: bool) -> Option<u64> {
        self.vm(slot, |vm| vm.life == Life::Dying)?;
        let range = self.all(run, |owner| owner == Owner::Pool(slot)).filter(|_| self.out(slot) == 0)?;
        let done = done(run.1, stop);
        self.set_all(range.take(done as usize), Owner::Host);
        let vm = self.vm(slot, |_| true)?;
        vm.pool -= done;
        vm.free = 0;
        if vm.pool == 0 {
            self.vms[slot] = None;
        }
        Some(done)
    }
}
