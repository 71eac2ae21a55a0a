// SPDX-License-Identifier: MIT OR Apache-2.0
//! The smallest worlds in which everything can happen: a few pages that all want, VMs, and two guest frames each.
//!
//! Frames, from the first behind the carve-out: the contested ones, one that holds lists, four for the pool of each
//! slot, one that is `no-map`. Handles, counts, frames and guest frames are drawn from small sets that have each kind of
//! wrong one in it.

use freehold_oracle::{Act, Call, Stray, Who, World};
use freehold_uapi::guest;
use freehold_uapi::hvc::{self, Record};

use crate::board::{Board, Fault, Layout};
use crate::digest::{Renaming, orders};
use crate::lockstep::{Decide, Lockstep};
use crate::op::Op;
use crate::owners::possible;
use crate::rig::Rig;
use crate::search::{self, Report};

/// Frames of a pool: root, two tables, a vCPU.
pub(crate) const POOL: u64 = 4;
/// The index of a vCPU that no VM can have.
const BEYOND: u64 = 8;
/// First guest frame of RAM.
pub(crate) const GFN: u64 = 0x8_0000;
pub(crate) const PAGE: u64 = 4096;

/// What a world is made of.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Contested pages.
    pub pages: u64,
    /// VMs.
    pub vms: u8,
    /// Guest frames of each.
    pub gfns: u64,
    /// What is tried.
    pub lattice: Lattice,
}

/// What is tried in a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lattice {
    /// Every call and every act, right and wrong.
    Full,
    /// What moves pages between their owners, and what is refused about it. vCPUs wait for nothing in between.
    Owners,
    /// The same, and in between one vCPU at a time may be kicked, wait for a load, or be off.
    Vcpus,
    /// Calls that two CPUs may make at the same time.
    Races,
    /// As `Owners`, and what a host and its guests do apart from it, in any order.
    Apart,
    /// VMs of both kinds: what lends pages, what gives them away, and what is refused about it.
    Ordinary,
    /// A VM of two vCPUs.
    Pair,
    /// Calls that two CPUs may make at the same time, of and for VMs of either kind: loans, lists, interrupts.
    RacesOfLoans,
    /// The same of a VM of two vCPUs.
    RacesOfPair,
    /// A guest that lets its host see some accesses outside RAM only.
    Guarded,
}

impl Shape {
    /// Frames behind the carve-out.
    const fn frames(&self) -> u64 {
        self.pages + 1 + self.room() * self.vms as u64 + 1
    }

    /// Frames of a VM's pool.
    pub(crate) const fn room(&self) -> u64 {
        POOL + matches!(self.lattice, Lattice::Pair | Lattice::RacesOfPair) as u64
    }

    pub(crate) const fn page(&self, number: u64) -> u64 {
        Board::HOST + number
    }

    pub(crate) const fn list(&self) -> u64 {
        Board::HOST + self.pages
    }

    pub(crate) const fn pool(&self, slot: u8) -> u64 {
        Board::HOST + self.pages + 1 + self.room() * slot as u64
    }

    pub(crate) const fn no_map(&self) -> u64 {
        Board::HOST + self.frames() - 1
    }

    pub(crate) const fn beyond(&self) -> u64 {
        Board::HOST + self.frames()
    }

    /// Its machine.
    #[must_use]
    pub fn rig(&self, fault: Fault) -> Rig {
        let frames = self.frames();
        Rig::new(
            Layout {
                frames,
                no_map: 1,
                vms: self.vms.into(),
                watched: (0..frames).collect(),
                gfns: (GFN..GFN + self.gfns).collect(),
            },
            fault,
        )
    }

    fn renamings(&self) -> Vec<Renaming> {
        let mut all = Vec::new();
        for pages in orders(usize::try_from(self.pages).expect("few")) {
            for slots in orders(self.vms.into()) {
                // El2's page comes first.
                let mut to: Vec<usize> = (0..=usize::try_from(self.frames()).expect("few")).collect();
                for (page, at) in pages.iter().enumerate() {
                    to[page + 1] = at + 1;
                }
                let room = usize::try_from(self.room()).expect("few");
                let pool = |slot: usize| usize::try_from(self.pool(0) - Board::HOST).expect("few") + 1 + room * slot;
                for (slot, at) in slots.iter().enumerate() {
                    (0..room).for_each(|n| to[pool(slot) + n] = pool(*at) + n);
                }
                let slots = slots.iter().map(|slot| u8::try_from(*slot).expect("few")).collect();
                all.push(Renaming { pages: to, slots });
            }
        }
        all
    }

    pub(crate) fn lists(&self) -> Vec<Vec<Record>> {
        let record = |page, gfn| Record::new(self.page(page), GFN + gfn, 1);
        vec![
            vec![record(0, 0), record(self.pages - 1, self.gfns - 1)],
            vec![record(0, 0), record(0, self.gfns - 1)],
            vec![record(0, self.gfns - 1), record(self.pages - 1, self.gfns - 1)],
            vec![record(0, 0), Record::new(self.no_map(), GFN + 1, 1)],
            vec![record(0, 0)],
            vec![record(0, 0), Record::new(self.beyond(), GFN + 1, 1)],
            vec![record(0, 0), Record::new(Board::HOST - 1, GFN + 1, 1)],
            vec![record(0, 0), Record::new(u64::MAX, GFN + 1, 1)],
            vec![record(0, 0), Record::new(self.page(0), GFN + 1, hvc::MAX_RUN + 1)],
        ]
    }

    fn anywhere(&self) -> Vec<Op> {
        let host = Op::Host;
        let create = |flags, ipa_bits, pfn, count| host(Call::VmCreate { flags, ipa_bits, pfn, count });
        let pool = self.pool(0);
        let mut ops = vec![
            host(Call::Version),
            host(Call::Counter { counter: hvc::COUNTER_VMS, index: 0 }),
            host(Call::Counter { counter: 99, index: 0 }),
            host(Call::Unknown { id: hvc::BASE + 0x70 }),
            create(2, 32, pool, POOL),
            create(hvc::VM_PROTECTED, 31, pool, POOL),
            create(hvc::VM_PROTECTED, 32, pool, 0),
            create(hvc::VM_PROTECTED, 32, pool, hvc::MAX_RUN + 1),
            create(hvc::VM_PROTECTED, 32, u64::MAX, 2),
            create(hvc::VM_PROTECTED, 32, self.beyond(), 1),
            create(hvc::VM_PROTECTED, 32, self.no_map(), 1),
            create(hvc::VM_PROTECTED, 32, Board::HOST - 1, 2),
        ];
        ops.push(Op::Unserved(Call::VmCreate { flags: hvc::VM_PROTECTED, ipa_bits: 32, pfn: pool, count: POOL }));
        for slot in 0..self.vms {
            ops.push(create(hvc::VM_PROTECTED, 32, self.pool(slot), POOL));
            // A root and no more; or not even that, for an address space with a root of two frames.
            ops.push(create(hvc::VM_PROTECTED, 32, self.pool(slot), 1));
            ops.push(create(hvc::VM_PROTECTED, 40, self.pool(slot), 1));
        }
        ops.push(create(hvc::VM_PROTECTED, 32, self.page(0), 1));
        for who in [Who::Ended, Who::Never] {
            ops.extend(self.of_no_vm(who));
        }
        for page in 0..self.pages {
            let frame = self.page(page);
            ops.push(Op::Touch { frame, write: true, from: Stray::User });
            ops.push(Op::Touch { frame, write: true, from: Stray::Kernel });
            ops.push(Op::Touch { frame, write: false, from: Stray::Kernel });
        }
        ops.push(Op::Touch { frame: self.pool(0), write: true, from: Stray::Kernel });
        ops
    }

    /// One of each call with a handle, by one that names no VM.
    fn of_no_vm(&self, vm: Who) -> Vec<Op> {
        let (pfn, gfn) = (self.page(0), GFN);
        let act = Act::Interrupt;
        let mut ops: Vec<Op> = [
            Call::VmRange { vm, gfn, count: 1 },
            Call::VmDestroy { vm },
            Call::VmReclaim { vm, pfn, count: 1 },
            Call::PoolTopup { vm, pfn, count: 1 },
            Call::VcpuCreate { vm, vcpu: 0 },
            Call::VcpuSetReg { vm, vcpu: 0, reg: hvc::REG_PC, value: 0 },
            Call::VcpuGetReg { vm, vcpu: 0, reg: hvc::REG_PC },
            Call::VcpuKick { vm, vcpu: 0 },
            Call::MemDonate { vm, pfn, gfn, count: 1, flags: 0 },
            Call::MemShare { vm, pfn, gfn, count: 1, flags: 0 },
            Call::MemUnshare { vm, gfn, count: 1 },
            Call::GuestAccept { vm, vcpu: 0, count: 1 },
            Call::VmGic { vm, distributor: 0, redistributors: 0x20 },
            Call::VmIrq { vm, intid: 32, level: 1 },
        ]
        .map(Op::Host)
        .into();
        ops.push(Op::List { who: vm, frame: self.list(), list: 0, records: 2, flags: 0 });
        ops.push(Op::Run { who: vm, vcpu: 0, mmio: 0, act });
        ops
    }

    /// All that is tried with a VM that stands in a slot.
    fn of_vm(&self, slot: u8) -> Vec<Op> {
        let vm = Who::Slot(slot);
        let mut calls = vec![
            Call::VmRange { vm, gfn: GFN, count: self.gfns },
            Call::VmRange { vm, gfn: GFN, count: 0 },
            Call::VmRange { vm, gfn: 1 << 20, count: 1 },
            Call::VmRange { vm, gfn: u64::MAX, count: 2 },
            Call::VmDestroy { vm },
            Call::VcpuCreate { vm, vcpu: 0 },
            Call::VcpuCreate { vm, vcpu: BEYOND },
            Call::VcpuKick { vm, vcpu: 0 },
            Call::VcpuKick { vm, vcpu: BEYOND },
            Call::MemShare { vm, pfn: self.page(0), gfn: GFN, count: 1, flags: 0 },
            Call::MemShare { vm, pfn: self.page(0), gfn: GFN, count: 1, flags: 8 },
            Call::MemUnshare { vm, gfn: GFN, count: 1 },
            Call::MemUnshare { vm, gfn: GFN, count: 0 },
            Call::MemUnshare { vm, gfn: GFN, count: hvc::MAX_RUN + 1 },
            Call::MemUnshare { vm, gfn: u64::MAX, count: 2 },
            Call::MemUnshare { vm, gfn: 1 << 28, count: 1 },
            Call::MemShare { vm, pfn: 1 << 36, gfn: GFN, count: 1, flags: 0 },
            Call::MemShare { vm, pfn: self.page(0), gfn: 1 << 28, count: 1, flags: 0 },
        ];
        for list in [self.pool(slot), self.no_map(), Board::HOST - 1, self.beyond(), 1 << 36] {
            calls.push(Call::MemDonateList { vm, list, records: 1, flags: 0 });
        }
        calls.extend(interrupts(vm));
        for (reg, value) in [
            (hvc::REG_PC, 0x8000_0000),
            (hvc::REG_PC, 2),
            (hvc::REG_PSTATE, 0x3c5),
            (hvc::REG_PSTATE, 0x3c9),
            (hvc::REG_MPIDR, 0),
            (4, 0),
            (99, 0),
        ] {
            calls.push(Call::VcpuSetReg { vm, vcpu: 0, reg, value });
        }
        for reg in [hvc::REG_PC, hvc::REG_MPIDR, 4, 99] {
            calls.push(Call::VcpuGetReg { vm, vcpu: 0, reg });
        }
        calls.push(Call::VcpuGetReg { vm, vcpu: BEYOND, reg: hvc::REG_PC });
        for (pfn, count) in self.runs(slot) {
            calls.push(Call::VmReclaim { vm, pfn, count });
            calls.push(Call::PoolTopup { vm, pfn, count });
        }
        for (pfn, count) in self.wrong_runs() {
            calls.push(Call::VmReclaim { vm, pfn, count });
            calls.push(Call::PoolTopup { vm, pfn, count });
            calls.push(Call::MemDonate { vm, pfn, gfn: GFN, count, flags: 0 });
            if count == 0 || count > hvc::MAX_RUN || pfn == u64::MAX {
                calls.push(Call::MemShare { vm, pfn, gfn: GFN, count, flags: 0 });
            }
        }
        for page in 0..self.pages {
            for gfn in GFN..GFN + self.gfns {
                let pfn = self.page(page);
                calls.push(Call::MemDonate { vm, pfn, gfn, count: 1, flags: 0 });
                calls.push(Call::MemDonate { vm, pfn, gfn, count: 1, flags: hvc::DONATE_REVOCABLE });
            }
        }
        if self.pages > 1 {
            calls.push(Call::MemDonate { vm, pfn: self.page(0), gfn: GFN, count: 2, flags: 0 });
        }
        calls.push(Call::MemDonate { vm, pfn: self.page(0), gfn: GFN, count: 1, flags: 2 });
        calls.push(Call::MemDonate { vm, pfn: self.page(0), gfn: GFN + self.gfns, count: 1, flags: 0 });
        calls.push(Call::MemDonate { vm, pfn: self.pool(0), gfn: GFN, count: 1, flags: 0 });
        for count in [0, 1, 2] {
            calls.push(Call::GuestAccept { vm, vcpu: 0, count });
        }
        calls.push(Call::GuestAccept { vm, vcpu: BEYOND, count: 1 });
        let mut ops: Vec<Op> = calls.into_iter().map(Op::Host).collect();
        for (list, content) in self.lists().iter().enumerate() {
            ops.push(Op::List { who: vm, frame: self.list(), list, records: content.len() as u64, flags: 0 });
        }
        ops.push(Op::List { who: vm, frame: self.list(), list: 4, records: 1, flags: 2 });
        ops.push(Op::List { who: vm, frame: self.list(), list: 0, records: 0, flags: 0 });
        ops.push(Op::List { who: vm, frame: self.list(), list: 0, records: hvc::MAX_RECORDS + 1, flags: 0 });
        ops.push(Op::Run { who: vm, vcpu: BEYOND, mmio: 0, act: Act::Interrupt });
        ops.push(Op::Streaming(vm));
        ops.extend(self.meanwhile(vm).map(|call| Op::During { who: vm, call }));
        ops.extend(self.acts().into_iter().map(|act| Op::Run { who: vm, vcpu: 0, mmio: 0x5a5a, act }));
        ops
    }

    /// What the host may ask of a VM whose vCPU is in its guest, on another CPU.
    fn meanwhile(&self, vm: Who) -> [Call; 9] {
        let (pfn, gfn) = (self.page(0), GFN);
        [
            Call::VmDestroy { vm },
            Call::VcpuSetReg { vm, vcpu: 0, reg: hvc::REG_PC, value: 4 },
            Call::VcpuGetReg { vm, vcpu: 0, reg: hvc::REG_PC },
            Call::VcpuRun { vm, vcpu: 0, mmio: 0 },
            Call::VcpuKick { vm, vcpu: 0 },
            Call::GuestAccept { vm, vcpu: 0, count: 1 },
            Call::MemDonate { vm, pfn, gfn, count: 1, flags: 0 },
            Call::PoolTopup { vm, pfn, count: 1 },
            Call::VmIrq { vm, intid: 32, level: 1 },
        ]
    }

    /// Runs of frames that may be right for a pool and for what is taken back.
    fn runs(&self, slot: u8) -> Vec<(u64, u64)> {
        let mut runs: Vec<_> = (0..self.pages).map(|page| (self.page(page), 1)).collect();
        runs.push((self.pool(slot), POOL));
        runs.push((self.pool(slot) + 1, POOL - 1));
        if self.pages > 1 {
            runs.push((self.page(0), 2));
        }
        runs
    }

    fn wrong_runs(&self) -> [(u64, u64); 6] {
        [
            (self.page(0), 0),
            (self.page(0), hvc::MAX_RUN + 1),
            (u64::MAX, 2),
            (self.beyond(), 1),
            (self.no_map(), 1),
            (Board::HOST - 1, 2),
        ]
    }

    fn acts(&self) -> Vec<Act> {
        let call = |id, gfn: u64, count| Act::Call { id, x: [gfn * PAGE, count, 0] };
        let outside = Act::Access { ipa: 0x900_0000, size: 4, store: None, described: true };
        let mut acts = vec![
            Act::Interrupt,
            Act::Wfi,
            Act::BadState,
            Act::Abort,
            outside,
            Act::Access { ipa: 0x900_0008, size: 2, store: Some(0x1234_5678), described: true },
            Act::Access { ipa: 0x900_0008, size: 8, store: Some(1), described: false },
            Act::Walk { ipa: 0x900_0000 },
            Act::Call { id: guest::PSCI_SYSTEM_OFF, x: [0; 3] },
            Act::Call { id: guest::PSCI_SYSTEM_RESET, x: [0; 3] },
            Act::Call { id: guest::PSCI_VERSION, x: [0; 3] },
            Act::Call { id: guest::HYP_MEMINFO, x: [0; 3] },
            Act::Call { id: guest::HYP_MEMINFO, x: [0, 0, 1] },
            Act::Call { id: 0xC600_003F, x: [0; 3] },
            Act::Call { id: guest::MEM_SHARE, x: [GFN * PAGE + 8, 1, 0] },
            Act::Walk { ipa: GFN * PAGE },
            Act::Fetch { ipa: 0x900_0000 },
            Act::Fetch { ipa: GFN * PAGE },
        ];
        for gfn in GFN..GFN + self.gfns {
            acts.push(Act::Access { ipa: gfn * PAGE, size: 8, store: None, described: true });
            acts.push(Act::Access { ipa: gfn * PAGE + 8, size: 8, store: Some(7), described: true });
            acts.push(call(guest::MEM_SHARE, gfn, 0));
            acts.push(call(guest::MEM_UNSHARE, gfn, 1));
            acts.push(call(guest::MEM_RELINQUISH, gfn, 0));
        }
        let known = |id| acts.iter().any(|act| matches!(act, Act::Call { id: there, .. } if *there == id));
        // Those of devices have a world of their own.
        let elsewhere =
            |id| id == guest::PSCI_CPU_OFF || (guest::MMIO_GUARD_INFO..=guest::MMIO_GUARD_UNMAP).contains(&id);
        let others = guest::CALLS.iter().map(|call| call.id).filter(|id| !known(*id) && !elsewhere(*id));
        let others: Vec<Act> = others.map(|id| Act::Call { id, x: [0; 3] }).collect();
        acts.extend(others);
        acts.push(call(guest::MEM_SHARE, GFN, 2));
        acts.push(call(guest::MEM_UNSHARE, GFN, 2));
        acts.push(call(guest::MEM_SHARE, GFN + self.gfns, 1));
        acts
    }
}

/// Frames of a GIC, in the right place and in wrong ones, and wires of the host's.
fn interrupts(vm: Who) -> Vec<Call> {
    let gic = |distributor, redistributors| Call::VmGic { vm, distributor, redistributors };
    let irq = |intid, level| Call::VmIrq { vm, intid, level };
    let end = 1 << 20;
    let good = [gic(0x8000, 0x8010), irq(32, 1), irq(32, 2)];
    let bad = [gic(0x8001, 0x8010), gic(end, 0x8010), gic(0x8000, end), irq(31, 1), irq(1019, 1), irq(32, 4)];
    good.into_iter().chain(bad).collect()
}

/// The world of such a shape.
pub type Small<const P: usize, const V: usize, const G: usize> = World<P, V, 1, G, 1>;

/// Visits every state of a world of this shape, over a machine with this fault and beside this specification.
///
/// # Errors
/// A counterexample.
pub fn exhaust<const P: usize, const V: usize, const G: usize>(
    shape: Shape,
    fault: Fault,
    decide: Decide<Small<P, V, G>>,
) -> Result<Report, String> {
    let rig = shape.rig(fault);
    let lists = shape.lists();
    let lists: Vec<&[Record]> = lists.iter().map(Vec::as_slice).collect();
    let both: Lockstep<'_, Small<P, V, G>> = Lockstep::new(&rig, &lists).with(decide);
    shape.visit(&both, |_, _| {})
}

impl Shape {
    /// Visits every state, and shows each with the shortest way to it.
    pub(crate) fn visit<const P: usize, const V: usize, const U: usize, const G: usize, const C: usize>(
        &self,
        both: &Lockstep<'_, World<P, V, U, G, C>>,
        visit: impl FnMut(&[Op], &World<P, V, U, G, C>),
    ) -> Result<Report, String> {
        both.warm_up(self.pool(0))?;
        let (anywhere, of_vms) = self.ops();
        let ops = |world: &World<P, V, U, G, C>| possible(world, &anywhere, &of_vms);
        search::exhaust(both, &self.renamings(), ops, visit)
    }

    /// What can be tried anywhere, and with the VM of each slot.
    pub(crate) fn ops(&self) -> (Vec<Op>, Vec<Vec<Op>>) {
        let of_vm = |slot| match self.lattice {
            Lattice::Full => self.of_vm(slot),
            Lattice::Owners | Lattice::Vcpus => self.owners_of_vm(slot),
            Lattice::Races => self.races_of_vm(slot),
            Lattice::Apart => self.apart_of_vm(slot),
            Lattice::Ordinary => self.ordinary_of_vm(slot),
            Lattice::Pair => self.pair_of_vm(slot),
            Lattice::RacesOfLoans => self.loans_of_vm(slot),
            Lattice::RacesOfPair => self.couple_of_vm(slot),
            Lattice::Guarded => self.guarded_of_vm(slot),
        };
        let anywhere = match self.lattice {
            Lattice::Full => self.anywhere(),
            Lattice::Owners | Lattice::Vcpus | Lattice::Apart => self.owners_anywhere(),
            Lattice::Races => self.races_anywhere(),
            Lattice::Ordinary => self.ordinary_anywhere(),
            Lattice::Pair => self.pair_anywhere(),
            Lattice::RacesOfLoans => self.loans_anywhere(),
            Lattice::RacesOfPair => self.couple_anywhere(),
            Lattice::Guarded => self.guarded_anywhere(),
        };
        (anywhere, (0..self.vms).map(of_vm).collect())
    }
}
