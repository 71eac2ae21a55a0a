// SPDX-License-Identifier: MIT OR Apache-2.0
//! A small world as one number, the same for worlds that differ only in names.
//!
//! Frames of one role, and slots, are interchangeable. A number holds what can differ; the rest comes from a template.

use core::ops::Range;

use crate::record::{Content, File, Kind, Life, Mark, Owner, Page, Pending, Power, Vcpu, VcpuLife, Vm};
use crate::world::World;

/// Writes a number's bits from a world, or a world's records from them. One walk serves both.
struct Bits {
    number: u128,
    position: u32,
    reading: bool,
    /// Something did not fit its bits.
    overflow: bool,
}

impl Bits {
    /// Carries a value of so many bits over, in either direction.
    fn digit(&mut self, value: u64, bits: u32) -> u64 {
        let mask = (1u64 << bits) - 1;
        let at = self.position;
        self.position += bits;
        self.overflow |= value > mask && !self.reading || self.position > u128::BITS;
        if self.reading {
            return (self.number >> at) as u64 & mask;
        }
        self.number |= u128::from(value & mask) << at;
        value
    }

    fn flag(&mut self, value: bool) -> bool {
        self.digit(value.into(), 1) != 0
    }

    /// Carries one of a list over, by its place.
    fn one_of<T: Copy + PartialEq>(&mut self, value: T, bits: u32, of: impl Fn(u64) -> Option<T>) -> T {
        let place = if self.reading { 0 } else { (0..1 << bits).find(|n| of(*n) == Some(value)).unwrap_or(1 << bits) };
        of(self.digit(place, bits)).unwrap_or(value)
    }
}

/// How the records of a world become a number.
#[derive(Clone, Debug)]
pub struct Codec {
    /// Frames that stand for one another.
    pub data: Range<u64>,
    /// Pool frames, that stand for one another.
    pub pool: Range<u64>,
    /// Ranges that may be declared.
    pub ranges: &'static [(u64, u64)],
    /// Frames may be renamed; not where marks name them.
    pub rename: bool,
    /// Guests guard their devices.
    pub guard: bool,
}

fn owner(slots: u64, gfns: Range<u64>, n: u64) -> Option<Owner> {
    let number = gfns.end - gfns.start;
    match n {
        0 => Some(Owner::Host),
        n if n <= slots => Some(Owner::Pool { slot: (n - 1) as u8 }),
        n if n <= slots + slots * number => {
            let n = n - slots - 1;
            Some(Owner::Guest { slot: (n / number) as u8, gfn: (gfns.start + n % number) as u32 })
        }
        _ => None,
    }
}

fn content(n: u64) -> Option<Content> {
    match n {
        0 => Some(Content::Public),
        1 => Some(Content::Zero),
        2 => Some(Content::Initial),
        3 => Some(Content::Shared),
        n => Some(Content::Secret((n - 4) as u8)),
    }
}

fn file(n: u64) -> Option<File> {
    match n {
        0 => Some(File::Out),
        1 => Some(File::Host),
        2 => Some(File::Frozen),
        3 => Some(File::Given),
        4 => Some(File::Lent),
        n => Some(File::Draining { by: (n - 5) as u8 }),
    }
}

fn life(n: u64) -> Option<Life> {
    [Life::Free, Life::Open, Life::Ran, Life::Dying].get(n as usize).copied()
}

fn vcpu_life(n: u64) -> Option<VcpuLife> {
    use VcpuLife::{Absent, Crashed, Off, Ran, Ready};
    [Absent, Ready, Ran, Off, Crashed].get(n as usize).copied()
}

fn kind(n: u64) -> Option<Kind> {
    [Kind::Share, Kind::Unshare, Kind::Relinquish].get(n as usize).copied()
}

/// Requests for one or two frames from one of the guest frames.
fn pending(gfns: &Range<u64>, n: u64) -> Option<Pending> {
    match n {
        0 => Some(Pending::None),
        1 | 2 => Some(Pending::Load { size: if n == 1 { 4 } else { 8 } }),
        3..=8 => Some(Pending::Answer { kind: kind((n - 3) / 2)?, count: 1 + ((n - 3) % 2) as u32 }),
        n => {
            let n = n - 9;
            let gfn = gfns.start + n / 6;
            (gfn < gfns.end).then_some(())?;
            Some(Pending::Request { kind: kind(n / 2 % 3)?, gfn: gfn as u32, count: 1 + (n % 2) as u32 })
        }
    }
}

fn mark(pages: &Range<u64>, n: u64) -> Option<Mark> {
    match n {
        0 => Some(Mark::None),
        1 => Some(Mark::Poisoned),
        n => {
            let n = n - 2;
            let pfn = pages.start + n / 4;
            (pfn < pages.end).then_some(Mark::Borrow { pfn, write: n & 1 != 0, exec: n & 2 != 0 })
        }
    }
}

/// Marks where nothing is lent.
fn outside(n: u64) -> Option<Mark> {
    [Mark::None, Mark::Poisoned, Mark::Device].get(n as usize).copied()
}

impl Codec {
    /// The smallest number of a world and of those that differ from it only in names. None if something does not fit.
    #[must_use]
    pub fn canonical<const P: usize, const V: usize, const U: usize, const G: usize, const C: usize>(
        &self,
        world: &World<P, V, U, G, C>,
    ) -> Option<u128> {
        let straight = self.sorted(*world)?;
        // Two slots change places; with more, each pair does.
        let mut best = straight;
        for (a, b) in (0..V).flat_map(|a| (a + 1..V).map(move |b| (a, b))) {
            best = best.min(self.sorted(swapped(world, a as u8, b as u8))?);
        }
        Some(best)
    }

    fn sorted<const P: usize, const V: usize, const U: usize, const G: usize, const C: usize>(
        &self,
        mut w: World<P, V, U, G, C>,
    ) -> Option<u128> {
        if self.rename {
            for role in [&self.data, &self.pool] {
                let first = role.start.checked_sub(w.first_pfn)? as usize;
                let last = role.end.checked_sub(w.first_pfn)? as usize;
                w.pages.get_mut(first..last)?.sort_unstable();
            }
        }
        w.cpus.sort_unstable();
        let mut bits = Bits { number: 0, position: 0, reading: false, overflow: false };
        self.walk(&mut w, &mut bits);
        (!bits.overflow).then_some(bits.number)
    }

    /// The world that a number stands for, of the template's kind.
    #[must_use]
    pub fn decode<const P: usize, const V: usize, const U: usize, const G: usize, const C: usize>(
        &self,
        number: u128,
        template: &World<P, V, U, G, C>,
    ) -> World<P, V, U, G, C> {
        let mut w = *template;
        self.walk(&mut w, &mut Bits { number, position: 0, reading: true, overflow: false });
        recount(&mut w);
        w
    }

    fn walk<const P: usize, const V: usize, const U: usize, const G: usize, const C: usize>(
        &self,
        w: &mut World<P, V, U, G, C>,
        bits: &mut Bits,
    ) {
        let first = w.first_pfn;
        let gfns = w.first_gfn..w.first_gfn + G as u64;
        for (pfn, page) in (first..).zip(&mut w.pages) {
            if self.data.contains(&pfn) || self.pool.contains(&pfn) {
                *page = walk_page(page, bits, V as u64, &gfns, self.data.contains(&pfn));
            }
        }
        let frames = first..first + P as u64;
        for slot in 0..V {
            self.walk_slot(w, slot, bits, &gfns, &frames);
        }
        for cpu in &mut w.cpus {
            let runs = |n: u64| Some((n > 0).then(|| ((n - 1) as u8, 0)));
            *cpu = bits.one_of(*cpu, 2, runs);
        }
    }

    fn walk_slot<const P: usize, const V: usize, const U: usize, const G: usize, const C: usize>(
        &self,
        w: &mut World<P, V, U, G, C>,
        slot: usize,
        bits: &mut Bits,
        gfns: &Range<u64>,
        frames: &Range<u64>,
    ) {
        let (Some(vm), Some(ranges)) = (w.vms.get_mut(slot), w.ranges.get_mut(slot)) else { return };
        *vm = walk_vm(vm, bits);
        if self.guard {
            vm.guarded = bits.flag(vm.guarded);
        }
        for range in ranges.iter_mut().take(2) {
            let of = |n: u64| (n as usize).checked_sub(1).map_or(Some(None), |i| self.ranges.get(i).copied().map(Some));
            *range = bits.one_of(*range, 2, of);
        }
        for vcpu in w.vcpus.get_mut(slot).into_iter().flatten() {
            *vcpu = Vcpu {
                life: bits.one_of(vcpu.life, 3, vcpu_life),
                running: bits.flag(vcpu.running),
                kicked: bits.flag(vcpu.kicked),
                pending: bits.one_of(vcpu.pending, 5, |n| pending(gfns, n)),
                power: vcpu.power,
            };
            // The one vCPU of these worlds is on from its creation to its end.
            vcpu.power = if vcpu.life == VcpuLife::Absent { Power::Off } else { Power::On };
        }
        for m in w.marks.get_mut(slot).into_iter().flatten() {
            *m = match (self.guard, self.rename) {
                (true, _) => bits.one_of(*m, 2, outside),
                (false, rename) => bits.one_of(*m, if rename { 1 } else { 5 }, |n| mark(frames, n)),
            };
        }
    }
}

fn walk_page(page: &Page, bits: &mut Bits, slots: u64, gfns: &Range<u64>, data: bool) -> Page {
    let owner = bits.one_of(page.owner, 4, |n| owner(slots, gfns.clone(), n));
    let content = bits.one_of(page.content, 3, content);
    if !data {
        return Page { owner, content, ..*page };
    }
    Page {
        owner,
        content,
        lent: bits.flag(page.lent),
        revocable: bits.flag(page.revocable),
        borrows: page.borrows,
        holders: bits.digit(page.holders.into(), 2) as u8,
        file: bits.one_of(page.file, 3, file),
    }
}

fn walk_vm(vm: &Vm, bits: &mut Bits) -> Vm {
    Vm {
        life: bits.one_of(vm.life, 2, life),
        used: bits.flag(vm.used),
        protected: bits.flag(vm.protected),
        // One size of address space is as good as another here.
        ipa_bits: if bits.flag(vm.ipa_bits != 0) { 32 } else { 0 },
        free: bits.digit(vm.free.into(), 2) as u32,
        gic: bits.flag(vm.gic),
        ..*vm
    }
}

/// What counts the pages follows from them.
fn recount<const P: usize, const V: usize, const U: usize, const G: usize, const C: usize>(
    w: &mut World<P, V, U, G, C>,
) {
    for (n, vm) in (0u8..).zip(&mut w.vms) {
        let number = |of: &dyn Fn(Owner) -> bool| w.pages.iter().filter(|p| of(p.owner)).count() as u32;
        vm.guest = number(&|o| matches!(o, Owner::Guest { slot, .. } if slot == n));
        vm.pool = number(&|o| o == Owner::Pool { slot: n });
        let marks = w.marks.get(usize::from(n)).into_iter().flatten();
        vm.borrowed = marks.clone().filter(|m| matches!(m, Mark::Borrow { .. })).count() as u32;
        let beside = marks.clone().skip(1).chain([&Mark::None]);
        vm.windows = marks.zip(beside).filter(|(m, next)| **m == Mark::Device && **next != Mark::Device).count() as u8;
    }
    for (pfn, page) in (w.first_pfn..).zip(&mut w.pages) {
        let borrows = |m: &&Mark| matches!(m, Mark::Borrow { pfn: p, .. } if *p == pfn);
        page.borrows = w.marks.iter().flatten().filter(borrows).count() as u16;
    }
}

/// The same world with two slots' names exchanged.
fn swapped<const P: usize, const V: usize, const U: usize, const G: usize, const C: usize>(
    world: &World<P, V, U, G, C>,
    a: u8,
    b: u8,
) -> World<P, V, U, G, C> {
    let mut w = *world;
    let (i, j) = (usize::from(a), usize::from(b));
    w.vms.swap(i, j);
    w.ranges.swap(i, j);
    w.marks.swap(i, j);
    w.vcpus.swap(i, j);
    let other = |n: u8| match n {
        n if n == a => b,
        n if n == b => a,
        n => n,
    };
    for page in &mut w.pages {
        page.owner = match page.owner {
            Owner::Guest { slot, gfn } => Owner::Guest { slot: other(slot), gfn },
            Owner::Pool { slot } => Owner::Pool { slot: other(slot) },
            Owner::NotMemory | Owner::NoMap | Owner::El2 | Owner::Host => page.owner,
        };
        if let Content::Secret(slot) = page.content {
            page.content = Content::Secret(other(slot));
        }
    }
    for cpu in w.cpus.iter_mut().flatten() {
        cpu.0 = other(cpu.0);
    }
    w
}
