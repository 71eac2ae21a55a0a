// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is tried with a VM of two vCPUs: each starts, stops and signals the other, and asks for what the other has asked
//! for already.

use freehold_oracle::{Act, Call, Stray, Who, World};
use freehold_uapi::{guest, hvc};

use crate::board::Fault;
use crate::lockstep::{Decide, Lockstep};
use crate::op::Op;
use crate::search::Report;
use crate::small::{GFN, Lattice, PAGE, Shape};

/// A world with two vCPUs per VM.
pub(crate) type Pair<const P: usize> = World<P, 1, 2, 1, 1>;

/// One page, one VM, one guest frame.
pub(crate) const PAIR: Shape = Shape { pages: 1, vms: 1, gfns: 1, lattice: Lattice::Pair };

/// Visits every state of a world of this shape, over a sound machine and beside this specification.
///
/// # Errors
/// A counterexample.
pub(crate) fn exhaust<const P: usize>(shape: Shape, decide: Decide<Pair<P>>) -> Result<Report, String> {
    let rig = shape.rig(Fault::None);
    let both: Lockstep<'_, Pair<P>> = Lockstep::new(&rig, &[]).with(decide);
    shape.visit(&both, |_, _| {})
}

impl Shape {
    pub(crate) fn pair_of_vm(&self, slot: u8) -> Vec<Op> {
        let vm = Who::Slot(slot);
        let (pfn, gfn, entry) = (self.page(0), GFN, GFN * PAGE);
        let calls = [
            Call::VmRange { vm, gfn, count: self.gfns },
            Call::VmDestroy { vm },
            Call::VmReclaim { vm, pfn: self.pool(slot), count: self.room() },
            Call::VmReclaim { vm, pfn, count: 1 },
            Call::MemDonate { vm, pfn, gfn, count: 1, flags: 0 },
            Call::MemDonate { vm, pfn, gfn, count: 1, flags: hvc::DONATE_REVOCABLE },
        ];
        let mut ops: Vec<Op> = calls.into_iter().map(Op::Host).collect();
        for vcpu in 0..2 {
            let calls = [
                Call::VcpuCreate { vm, vcpu },
                Call::VcpuKick { vm, vcpu },
                Call::VcpuSetReg { vm, vcpu, reg: hvc::REG_PC, value: 4 },
                Call::VcpuGetReg { vm, vcpu, reg: hvc::REG_PC },
                Call::GuestAccept { vm, vcpu, count: 1 },
            ];
            ops.extend(calls.map(Op::Host));
            let other = 1 - vcpu;
            let guest_calls = [
                (guest::PSCI_CPU_ON_64, [other, entry, 7]),
                (guest::PSCI_CPU_ON_64, [other, entry + 2, 7]),
                (guest::PSCI_CPU_ON_64, [2, entry, 7]),
                (guest::PSCI_CPU_OFF, [0; 3]),
                (guest::PSCI_AFFINITY_INFO_64, [other, 0, 0]),
                (guest::MEM_SHARE, [entry, 0, 0]),
                (guest::MEM_UNSHARE, [entry, 0, 0]),
                (guest::MEM_RELINQUISH, [entry, 0, 0]),
            ];
            let run = |act| Op::Run { who: vm, vcpu, mmio: 0, act };
            ops.extend(guest_calls.map(|(id, x)| run(Act::Call { id, x })));
            ops.push(run(Act::Interrupt));
            ops.push(run(Act::Access { ipa: entry, size: 8, store: Some(7), described: true }));
        }
        ops
    }

    pub(crate) fn pair_anywhere(&self) -> Vec<Op> {
        let (flags, ipa_bits, pfn, count) = (hvc::VM_PROTECTED, 32, self.pool(0), self.room());
        let touch = |from| Op::Touch { frame: self.page(0), write: true, from };
        vec![Op::Host(Call::VmCreate { flags, ipa_bits, pfn, count }), touch(Stray::User), touch(Stray::Kernel)]
    }
}
