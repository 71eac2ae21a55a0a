// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is tried where pages move between their owners, and what two CPUs may do at the same time.

use freehold_oracle::{Act, Call, Life, Pending, Stray, Vcpu, VcpuLife, Who, World};
use freehold_uapi::{guest, hvc};

use crate::op::Op;
use crate::small::{GFN, Lattice, PAGE, POOL, Shape};

/// A load from what is no RAM.
const DEVICE: Act = Act::Access { ipa: 0x900_0000, size: 4, store: None, described: true };

impl Shape {
    /// What moves pages of a VM's.
    pub(crate) fn owners_of_vm(&self, slot: u8) -> Vec<Op> {
        let vm = Who::Slot(slot);
        let (pfn, gfn) = (self.page(0), GFN);
        let mut calls = vec![
            Call::VmRange { vm, gfn: GFN, count: self.gfns },
            Call::VcpuCreate { vm, vcpu: 0 },
            Call::VmDestroy { vm },
            Call::MemDonate { vm, pfn: self.pool(slot), gfn, count: 1, flags: 0 },
            Call::MemDonate { vm, pfn: self.no_map(), gfn, count: 1, flags: 0 },
            Call::MemDonate { vm, pfn, gfn: GFN + self.gfns, count: 1, flags: 0 },
            Call::MemDonate { vm, pfn, gfn, count: 2, flags: 0 },
            Call::VmReclaim { vm, pfn: self.pool(slot), count: POOL },
            Call::VmReclaim { vm, pfn: self.pool((slot + 1) % self.vms), count: 1 },
            Call::PoolTopup { vm, pfn: self.pool((slot + 1) % self.vms), count: 1 },
            Call::MemDonate { vm, pfn: self.pool((slot + 1) % self.vms), gfn, count: 1, flags: 0 },
            Call::VmReclaim { vm, pfn, count: 2 },
            Call::PoolTopup { vm, pfn: self.no_map(), count: 1 },
        ];
        for page in 0..self.pages {
            let pfn = self.page(page);
            calls.push(Call::VmReclaim { vm, pfn, count: 1 });
            for gfn in GFN..GFN + self.gfns {
                calls.push(Call::MemDonate { vm, pfn, gfn, count: 1, flags: 0 });
                calls.push(Call::MemDonate { vm, pfn, gfn, count: 1, flags: hvc::DONATE_REVOCABLE });
            }
        }
        let mut ops: Vec<Op> = calls.into_iter().map(Op::Host).collect();
        for list in 0..4 {
            ops.push(Op::List { who: vm, frame: self.list(), list, records: 2, flags: 0 });
        }
        ops.push(Op::Run { who: vm, vcpu: 0, mmio: 0, act: Act::Interrupt });
        if self.lattice == Lattice::Vcpus {
            ops.extend(unusual(vm));
        }
        for gfn in GFN..GFN + self.gfns {
            let (who, ipa) = (vm, gfn * PAGE);
            for id in [guest::MEM_SHARE, guest::MEM_UNSHARE, guest::MEM_RELINQUISH] {
                ops.push(Op::Ask { who, act: Act::Call { id, x: [ipa, 0, 0] } });
            }
            ops.push(Op::Ask { who, act: Act::Access { ipa, size: 8, store: Some(7), described: true } });
        }
        for id in [guest::MEM_SHARE, guest::MEM_UNSHARE] {
            ops.push(Op::Ask { who: vm, act: Act::Call { id, x: [GFN * PAGE, 2, 0] } });
        }
        ops
    }

    /// The same with what a host does apart: pools that grow out of contested pages, requests that wait while other
    /// things happen, registers, kicks, and a vCPU that its guest switches off.
    pub(crate) fn apart_of_vm(&self, slot: u8) -> Vec<Op> {
        let vm = Who::Slot(slot);
        let mut ops = self.owners_of_vm(slot);
        let calls = [
            Call::VcpuSetReg { vm, vcpu: 0, reg: hvc::REG_PC, value: 4 },
            Call::VcpuGetReg { vm, vcpu: 0, reg: hvc::REG_PC },
            Call::VcpuKick { vm, vcpu: 0 },
            Call::GuestAccept { vm, vcpu: 0, count: 1 },
            Call::GuestAccept { vm, vcpu: 0, count: 2 },
        ];
        let topups = (0..self.pages).map(|page| Call::PoolTopup { vm, pfn: self.page(page), count: 1 });
        ops.extend(calls.into_iter().chain(topups).map(Op::Host));
        let run = |id, x| Op::Run { who: vm, vcpu: 0, mmio: 0, act: Act::Call { id, x } };
        for ipa in (GFN..GFN + self.gfns).map(|gfn| gfn * PAGE) {
            let ids = [guest::MEM_SHARE, guest::MEM_UNSHARE, guest::MEM_RELINQUISH];
            ops.extend(ids.map(|id| run(id, [ipa, 0, 0])));
        }
        ops.push(run(guest::PSCI_CPU_OFF, [0; 3]));
        ops
    }

    pub(crate) fn owners_anywhere(&self) -> Vec<Op> {
        let mut ops = Vec::new();
        for slot in 0..self.vms {
            let pfn = self.pool(slot);
            ops.push(Op::Host(Call::VmCreate { flags: hvc::VM_PROTECTED, ipa_bits: 32, pfn, count: POOL }));
        }
        // The last VM's last pool frame, and one that nobody can have.
        let pfn = self.no_map() - 1;
        ops.push(Op::Host(Call::VmCreate { flags: hvc::VM_PROTECTED, ipa_bits: 32, pfn, count: 2 }));
        let vm = Who::Ended;
        ops.push(Op::Host(Call::MemDonate { vm, pfn: self.page(0), gfn: GFN, count: 1, flags: 0 }));
        ops.push(Op::Host(Call::VmReclaim { vm, pfn: self.page(0), count: 1 }));
        ops.push(Op::Host(Call::VmDestroy { vm }));
        for page in 0..self.pages {
            let frame = self.page(page);
            ops.push(Op::Touch { frame, write: true, from: Stray::User });
            ops.push(Op::Touch { frame, write: true, from: Stray::Kernel });
        }
        ops
    }

    pub(crate) fn races_anywhere(&self) -> Vec<Op> {
        let create = |slot| {
            let pfn = self.pool(slot);
            Op::Host(Call::VmCreate { flags: hvc::VM_PROTECTED, ipa_bits: 32, pfn, count: POOL })
        };
        let touch = |page| Op::Touch { frame: self.page(page), write: false, from: Stray::Kernel };
        (0..self.vms).map(create).chain((0..self.pages).map(touch)).collect()
    }

    /// What two CPUs may do with a VM at the same time; each is one call.
    pub(crate) fn races_of_vm(&self, slot: u8) -> Vec<Op> {
        let vm = Who::Slot(slot);
        let mut calls = vec![
            Call::VmRange { vm, gfn: GFN, count: self.gfns },
            Call::VcpuCreate { vm, vcpu: 0 },
            Call::VcpuSetReg { vm, vcpu: 0, reg: hvc::REG_PC, value: 4 },
            Call::VcpuKick { vm, vcpu: 0 },
            Call::VmDestroy { vm },
            Call::VmReclaim { vm, pfn: self.pool(slot), count: POOL },
            Call::GuestAccept { vm, vcpu: 0, count: 1 },
        ];
        for pfn in (0..self.pages).map(|page| self.page(page)) {
            for gfn in GFN..GFN + self.gfns {
                calls.push(Call::MemDonate { vm, pfn, gfn, count: 1, flags: hvc::DONATE_REVOCABLE });
            }
            calls.push(Call::VmReclaim { vm, pfn, count: 1 });
            calls.push(Call::PoolTopup { vm, pfn, count: 1 });
        }
        let mut acts = vec![Act::Interrupt];
        for ipa in (GFN..GFN + self.gfns).map(|gfn| gfn * PAGE) {
            acts.push(Act::Access { ipa, size: 8, store: Some(7), described: true });
            for id in [guest::MEM_SHARE, guest::MEM_UNSHARE, guest::MEM_RELINQUISH] {
                acts.push(Act::Call { id, x: [ipa, 0, 0] });
            }
        }
        let run = |act| Op::Run { who: vm, vcpu: 0, mmio: 0, act };
        calls.into_iter().map(Op::Host).chain(acts.into_iter().map(run)).collect()
    }
}

/// What leaves a vCPU kicked, waiting for a load, or off.
fn unusual(who: Who) -> [Op; 3] {
    let off = Act::Call { id: guest::PSCI_SYSTEM_OFF, x: [0; 3] };
    let run = |act| Op::Run { who, vcpu: 0, mmio: 0x5a5a, act };
    [Op::Host(Call::VcpuKick { vm: who, vcpu: 0 }), run(DEVICE), run(off)]
}

/// Whether a vCPU is so.
fn is_unusual(vcpu: &Vcpu) -> bool {
    vcpu.kicked || vcpu.life == VcpuLife::Off || matches!(vcpu.pending, Pending::Load { .. })
}

/// What can be tried in a world.
pub(crate) fn possible<const P: usize, const V: usize, const U: usize, const G: usize, const C: usize>(
    world: &World<P, V, U, G, C>,
    anywhere: &[Op],
    of_vms: &[Vec<Op>],
) -> Vec<Op> {
    let alive = world.vms.iter().zip(of_vms).filter(|(vm, _)| vm.life != Life::Free);
    let ops = anywhere.iter().chain(alive.flat_map(|(_, ops)| ops)).copied();
    // One vCPU at a time is kicked, waits for a load, or is off; with a single VM that is no bound.
    let others = |slot: u8| (0..).zip(&world.vms).filter(move |(n, vm): &(u8, _)| *n != slot && vm.alive());
    let taken = |slot: u8| others(slot).any(|(n, _)| is_unusual(&world.vcpus[usize::from(n)][0]));
    let is_too_much = |op: &Op| match op {
        Op::Host(Call::VcpuKick { vm: who @ Who::Slot(slot), .. }) | Op::Run { who: who @ Who::Slot(slot), .. } => {
            unusual(*who).contains(op) && taken(*slot)
        }
        _ => false,
    };
    ops.filter(|op| !is_too_much(op)).collect()
}
