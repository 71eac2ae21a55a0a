// SPDX-License-Identifier: MIT OR Apache-2.0
//! What two CPUs may do at the same time beside what moves pages: loans to VMs of either kind, lists, a controller's frames
//! and wires, and a second vCPU.

use freehold_oracle::{Act, Call, Stray, Who};
use freehold_uapi::{guest, hvc};

use crate::op::Op;
use crate::small::{GFN, PAGE, Shape};

/// The list of one record, the first page at the first guest frame.
const LIST: usize = 4;

impl Shape {
    /// VMs of either kind, and the host's kernel, which strays into a page of either.
    pub(crate) fn loans_anywhere(&self) -> Vec<Op> {
        let create = |flags| Op::Host(Call::VmCreate { flags, ipa_bits: 32, pfn: self.pool(0), count: self.room() });
        let touch = Op::Touch { frame: self.page(0), write: false, from: Stray::Kernel };
        vec![create(0), create(hvc::VM_PROTECTED), touch]
    }

    /// Loans, lists, registers and interrupts of a VM that may be of either kind.
    pub(crate) fn loans_of_vm(&self, slot: u8) -> Vec<Op> {
        let vm = Who::Slot(slot);
        let (pfn, gfn) = (self.page(0), GFN);
        let calls = [
            Call::VmRange { vm, gfn, count: self.gfns },
            Call::VmGic { vm, distributor: 0x8000, redistributors: 0x8010 },
            Call::VmIrq { vm, intid: 32, level: 1 },
            Call::VcpuCreate { vm, vcpu: 0 },
            Call::VcpuGetReg { vm, vcpu: 0, reg: hvc::REG_PC },
            Call::VcpuSetReg { vm, vcpu: 0, reg: hvc::REG_POWER, value: 1 },
            Call::VmDestroy { vm },
            Call::VmReclaim { vm, pfn: self.pool(slot), count: self.room() },
            Call::VmReclaim { vm, pfn, count: 1 },
            Call::GuestAccept { vm, vcpu: 0, count: 1 },
            Call::MemDonate { vm, pfn, gfn, count: 1, flags: 0 },
            Call::MemShare { vm, pfn, gfn, count: 1, flags: 0 },
            Call::MemShare { vm, pfn, gfn, count: 1, flags: hvc::SHARE_WRITE },
            Call::MemUnshare { vm, gfn, count: 1 },
        ];
        let mut ops: Vec<Op> = calls.into_iter().map(Op::Host).collect();
        ops.push(Op::List { who: vm, frame: self.list(), list: LIST, records: 1, flags: 0 });
        let run = |act| Op::Run { who: vm, vcpu: 0, mmio: 0, act };
        ops.push(run(Act::Interrupt));
        ops.push(run(Act::Access { ipa: GFN * PAGE, size: 8, store: Some(7), described: true }));
        ops.push(run(Act::Call { id: guest::MEM_SHARE, x: [GFN * PAGE, 0, 0] }));
        ops
    }

    /// What two vCPUs of a VM do to each other and to its memory.
    pub(crate) fn couple_of_vm(&self, slot: u8) -> Vec<Op> {
        let vm = Who::Slot(slot);
        let (pfn, gfn, entry) = (self.page(0), GFN, GFN * PAGE);
        let calls = [
            Call::VmRange { vm, gfn, count: self.gfns },
            Call::VmDestroy { vm },
            Call::VmReclaim { vm, pfn: self.pool(slot), count: self.room() },
            Call::VmReclaim { vm, pfn, count: 1 },
            Call::MemDonate { vm, pfn, gfn, count: 1, flags: 0 },
        ];
        let mut ops: Vec<Op> = calls.into_iter().map(Op::Host).collect();
        let both = (0..2).map(|vcpu| Op::Host(Call::VcpuCreate { vm, vcpu }));
        ops.extend(both.chain([Op::Host(Call::GuestAccept { vm, vcpu: 0, count: 1 })]));
        let run = |vcpu, act| Op::Run { who: vm, vcpu, mmio: 0, act };
        let call = |vcpu, id, x| run(vcpu, Act::Call { id, x });
        // The first asks for memory, the second goes off, and each starts the other.
        ops.push(call(0, guest::MEM_SHARE, [entry, 0, 0]));
        ops.push(call(1, guest::PSCI_CPU_OFF, [0; 3]));
        for vcpu in 0..2 {
            ops.push(call(vcpu, guest::PSCI_CPU_ON_64, [1 - vcpu, entry, 7]));
            ops.push(run(vcpu, Act::Interrupt));
            ops.push(run(vcpu, Act::Access { ipa: entry, size: 8, store: Some(7), described: true }));
        }
        ops
    }

    /// The VM.
    pub(crate) fn couple_anywhere(&self) -> Vec<Op> {
        let (flags, ipa_bits, pfn, count) = (hvc::VM_PROTECTED, 32, self.pool(0), self.room());
        vec![Op::Host(Call::VmCreate { flags, ipa_bits, pfn, count })]
    }
}
