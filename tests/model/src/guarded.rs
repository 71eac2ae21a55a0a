// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is tried where a guest says which accesses outside RAM its host may see: one guest frame of RAM, three behind it.

use freehold_oracle::{Act, Call, Who};
use freehold_uapi::{guest, hvc};

use crate::op::Op;
use crate::small::{GFN, PAGE, POOL, Shape};

impl Shape {
    /// What makes and ends a VM of either kind, and all that its guest does to devices.
    pub(crate) fn guarded_of_vm(&self, slot: u8) -> Vec<Op> {
        let vm = Who::Slot(slot);
        let mut ops: Vec<Op> = [
            Call::VmRange { vm, gfn: GFN, count: 1 },
            Call::VcpuCreate { vm, vcpu: 0 },
            Call::VmDestroy { vm },
            Call::VmReclaim { vm, pfn: self.pool(slot), count: POOL },
            Call::VmReclaim { vm, pfn: self.page(0), count: 1 },
            Call::MemDonate { vm, pfn: self.page(0), gfn: GFN, count: 1, flags: 0 },
        ]
        .map(Op::Host)
        .into();
        let run = |act| Op::Run { who: vm, vcpu: 0, mmio: 0, act };
        let call = |id, x| run(Act::Call { id, x });
        for id in [guest::MMIO_GUARD_INFO, guest::MMIO_GUARD_ENROLL] {
            ops.extend([[0; 3], [1, 0, 0], [0, 1, 0], [0, 0, 1]].map(|x| call(id, x)));
        }
        for id in [guest::MMIO_GUARD_MAP, guest::MMIO_GUARD_UNMAP] {
            ops.extend((GFN..GFN + self.gfns).map(|gfn| call(id, [gfn * PAGE, 0, 0])));
            let at = (GFN + 1) * PAGE;
            ops.extend([[at + 8, 0, 0], [at, 1, 0], [at, 0, 1], [1 << 40, 0, 0]].map(|x| call(id, x)));
        }
        for ipa in (GFN..GFN + self.gfns).map(|gfn| gfn * PAGE) {
            let access = |store, described| run(Act::Access { ipa, size: 8, store, described });
            ops.extend([access(None, true), access(Some(7), true), access(None, false)]);
            ops.extend([run(Act::Fetch { ipa }), run(Act::Walk { ipa })]);
        }
        // Half of it would be the next page's.
        let across = |store| run(Act::Access { ipa: (GFN + 1) * PAGE + 0xffc, size: 8, store, described: true });
        ops.extend([across(None), across(Some(7)), run(Act::Interrupt)]);
        ops
    }

    pub(crate) fn guarded_anywhere(&self) -> Vec<Op> {
        let create = |slot, flags| Call::VmCreate { flags, ipa_bits: 32, pfn: self.pool(slot), count: POOL };
        (0..self.vms).flat_map(|slot| [0, hvc::VM_PROTECTED].map(|flags| Op::Host(create(slot, flags)))).collect()
    }
}
