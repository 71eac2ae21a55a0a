// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is tried where ordinary VMs borrow pages that a protected one may want, and what is refused about it.

use freehold_oracle::{Act, Call, Stray, Who};
use freehold_uapi::{guest, hvc};

use crate::op::Op;
use crate::small::{GFN, PAGE, POOL, Shape};

impl Shape {
    /// What moves or lends pages of a VM's, of either kind.
    pub(crate) fn ordinary_of_vm(&self, slot: u8) -> Vec<Op> {
        let vm = Who::Slot(slot);
        let other = self.pool((slot + 1) % self.vms);
        let outside = GFN + self.gfns;
        let share = |pfn, gfn, count, flags| Call::MemShare { vm, pfn, gfn, count, flags };
        let unshare = |gfn, count| Call::MemUnshare { vm, gfn, count };
        let mut calls = vec![
            Call::VmRange { vm, gfn: GFN, count: self.gfns },
            Call::VcpuCreate { vm, vcpu: 0 },
            Call::VmDestroy { vm },
            Call::VmReclaim { vm, pfn: self.pool(slot), count: POOL },
            Call::GuestAccept { vm, vcpu: 0, count: 1 },
            share(self.pool(slot), GFN, 1, 0),
            share(other, GFN, 1, 0),
            share(self.no_map(), GFN, 1, 0),
            share(self.no_map() + 1, GFN, 1, 0),
            share(self.page(0) - 1, GFN, 1, 0),
            share(self.page(0), outside, 1, 0),
            share(self.page(0), GFN, self.gfns + 1, hvc::SHARE_WRITE),
            share(self.page(0), GFN, 1, 4),
            unshare(outside, 1),
            unshare(GFN, self.gfns + 1),
        ];
        for pfn in (0..self.pages).map(|page| self.page(page)) {
            calls.push(Call::VmReclaim { vm, pfn, count: 1 });
            calls.push(Call::PoolTopup { vm, pfn, count: 1 });
            for gfn in GFN..GFN + self.gfns {
                calls.push(Call::MemDonate { vm, pfn, gfn, count: 1, flags: 0 });
                calls.extend((0..4).map(|flags| share(pfn, gfn, 1, flags)));
            }
        }
        calls.extend((GFN..GFN + self.gfns).map(|gfn| unshare(gfn, 1)));
        // No call of these moves a page: a world with one VM is enough.
        if self.vms == 1 {
            calls.extend(registers(vm));
        }
        let run = |act| Op::Run { who: vm, vcpu: 0, mmio: 0, act };
        let mut ops: Vec<Op> = calls.into_iter().map(Op::Host).collect();
        ops.push(Op::List { who: vm, frame: self.list(), list: 4, records: 1, flags: 0 });
        ops.push(run(Act::Interrupt));
        for id in [guest::MEM_SHARE, guest::MEM_UNSHARE, guest::MEM_RELINQUISH] {
            ops.push(Op::Ask { who: vm, act: Act::Call { id, x: [GFN * PAGE, 0, 0] } });
        }
        ops.push(run(Act::Call { id: guest::HYP_MEMINFO, x: [0; 3] }));
        for ipa in (GFN..=outside).map(|gfn| gfn * PAGE) {
            ops.push(run(Act::Access { ipa, size: 8, store: None, described: true }));
            ops.push(run(Act::Access { ipa, size: 8, store: Some(7), described: true }));
            ops.push(run(Act::Fetch { ipa }));
            ops.push(run(Act::Walk { ipa }));
        }
        ops
    }

    pub(crate) fn ordinary_anywhere(&self) -> Vec<Op> {
        let mut ops = Vec::new();
        for flags in [0, hvc::VM_PROTECTED] {
            for pfn in (0..self.vms).map(|slot| self.pool(slot)) {
                ops.push(Op::Host(Call::VmCreate { flags, ipa_bits: 32, pfn, count: POOL }));
            }
            ops.push(Op::Host(Call::VmCreate { flags, ipa_bits: 32, pfn: self.page(0), count: 1 }));
        }
        for vm in [Who::Ended, Who::Never] {
            ops.push(Op::Host(Call::MemShare { vm, pfn: self.page(0), gfn: GFN, count: 1, flags: 0 }));
            ops.push(Op::Host(Call::MemUnshare { vm, gfn: GFN, count: 1 }));
        }
        for frame in (0..self.pages).map(|page| self.page(page)) {
            ops.push(Op::Touch { frame, write: true, from: Stray::User });
            ops.push(Op::Touch { frame, write: true, from: Stray::Kernel });
        }
        ops
    }
}

/// What is asked of a vCPU: an ordinary VM's host may all of it, before the first run and after.
fn registers(vm: Who) -> Vec<Call> {
    let vcpu = 0;
    let mut calls = vec![Call::VcpuKick { vm, vcpu }];
    for reg in [hvc::REG_PC, hvc::REG_MPIDR, hvc::REG_X30, hvc::REG_EL1, hvc::REG_EXIT_FAR, hvc::REG_EXIT_FAR + 1] {
        calls.push(Call::VcpuGetReg { vm, vcpu, reg });
        // No start of a protected VM's.
        calls.push(Call::VcpuSetReg { vm, vcpu, reg, value: 2 });
    }
    calls.extend([0, 1, 2].map(|value| Call::VcpuSetReg { vm, vcpu, reg: hvc::REG_POWER, value }));
    calls.push(Call::VcpuGetReg { vm, vcpu, reg: hvc::REG_POWER });
    calls
}
