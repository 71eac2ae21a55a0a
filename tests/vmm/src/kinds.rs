// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kinds of VMs that a hostile host makes: protected and ordinary ones, with one vCPU and with two, with an interrupt
//! controller and without.

use freehold_uapi::hvc::*;

use crate::fuzz::{Call, Random};
use crate::hostile::Hostile;
use crate::proto;

/// First guest frame of RAM that an aimed VM declares, and how many it has.
pub(crate) const GFN: u64 = proto::RAM_BASE >> 12;
pub(crate) const RANGE: u64 = 0x1000;
/// One VM in so many is ordinary.
const ORDINARY: u64 = 4;

/// What a VM is to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) protected: bool,
    pub(crate) vcpus: u64,
    pub(crate) gic: bool,
}

/// Flags to create a VM with.
pub(crate) fn flags(random: &mut Random) -> u64 {
    if random.one_in(ORDINARY) { 0 } else { VM_PROTECTED }
}

impl Kind {
    /// What is not in the flags follows from the first frame of the VM's pool, so that whoever learns of it need not be
    /// told: a quarter each has a second vCPU, a `GICv3`, both and neither.
    pub(crate) fn of(create: &[u64]) -> Self {
        let pfn = create[2];
        Self { protected: create[0] & VM_PROTECTED != 0, vcpus: 1 + (pfn & 1), gic: pfn & 2 != 0 }
    }

    /// A number for each: bit 0 protected, bit 1 a second vCPU, bit 2 a controller.
    pub(crate) fn index(self) -> usize {
        usize::from(self.protected) | usize::from(self.vcpus > 1) << 1 | usize::from(self.gic) << 2
    }
}

/// The call that gives a VM its interrupt controller.
pub(crate) fn gic(handle: u64) -> Call {
    Call(VM_GIC, vec![handle, proto::GICD_GFN, proto::GICR_GFN])
}

/// A call that moves the wire of a low SPI.
pub(crate) fn irq(handle: u64, random: &mut Random) -> Call {
    Call(VM_IRQ, vec![handle, 32 + random.below(16), random.below(4)])
}

/// Rights of a loan: mostly all of them.
pub(crate) fn rights(random: &mut Random) -> u64 {
    if random.one_in(4) { random.below(4) } else { SHARE_WRITE | SHARE_EXEC }
}

/// Ends every loan to a VM that is dying; one that borrows nothing says so at the first.
pub(crate) fn take_back(hostile: &Hostile, handle: u64) {
    let ended = |gfn: &u64| hostile.call(MEM_UNSHARE, &[handle, *gfn, 1]) == WRONG_STATE;
    let _ = (GFN..GFN + RANGE).find(ended);
}
