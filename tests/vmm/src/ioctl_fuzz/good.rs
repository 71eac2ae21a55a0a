// SPDX-License-Identifier: MIT OR Apache-2.0
//! What can be carried out, of ioctls that random fields hardly ever get through to.
//!
//! Half of what is said of these is said so; whether it is carried out is still a matter of the descriptor and of what was
//! done before.

use std::os::fd::{AsRawFd as _, OwnedFd};

use freehold_uapi::ioctl::*;

use super::{PAGE, PAGES, Thread, WORDS};
use crate::ordinary::NO_SLOT;
use crate::sys::{errno_name, ioctl};

/// Where a file of each protected VM is bound.
const BOUND: u64 = 0x1000_0000;

/// What depends on others of them: a VM that has not run, a file that is not bound, room in either.
pub(super) const RARE: [u32; 4] =
    [KVM_SET_MEMORY_ATTRIBUTES, KVM_SET_USER_MEMORY_REGION2, FREEHOLD_CONVERT, FREEHOLD_POPULATE];

/// Where slots of the arena come, and what is in no other slot.
const PLAIN: u64 = 0x2000_0000;
const FREE: usize = 8 << 20;

/// Binds a file to a protected VM.
pub(super) fn bind(vm: &OwnedFd, file: &OwnedFd) -> Result<(), String> {
    let mut region = MemoryRegion2 {
        slot: 9,
        guest_phys_addr: BOUND,
        memory_size: PAGES * PAGE,
        guest_memfd: file.as_raw_fd().cast_unsigned(),
        ..NO_SLOT
    };
    ioctl(vm, KVM_SET_USER_MEMORY_REGION2, &mut region).map(|_| ()).map_err(errno_name)
}

impl Thread<'_> {
    /// The fields, where there are such.
    pub(super) fn good(&mut self, request: u32, words: &mut [u64; WORDS]) -> Option<Vec<u64>> {
        let (page, told) = (self.random.below(PAGES) * PAGE, (&raw const words[32]) as u64);
        Some(match request {
            KVM_SET_MEMORY_ATTRIBUTES => vec![BOUND + page, PAGE, self.one(&[8, 8, 0]), 0],
            KVM_SET_MEMORY_ATTRIBUTES2 => vec![page, PAGE, self.one(&[8, 8, 0]), 0],
            KVM_SET_USER_MEMORY_REGION | KVM_SET_USER_MEMORY_REGION2 => {
                // Each page of the arena in one place: a protected guest with one in two does not run.
                vec![16 + page / PAGE, PLAIN + page, PAGE, self.arena.at(FREE).addr() as u64 + page]
            }
            KVM_ENABLE_CAP => vec![u64::from(KVM_CAP_ARM_PROTECTED_VM) | 1 << 32, told, 0, 0, 0],
            KVM_GET_ONE_REG | KVM_SET_ONE_REG => vec![KVM_REG_X0 + 2 * self.random.below(4), told],
            KVM_SET_DEVICE_ATTR => vec![KVM_DEV_ARM_VGIC_GRP_CTRL << 32, KVM_DEV_ARM_VGIC_CTRL_INIT, told],
            KVM_GET_DEVICE_ATTR => vec![KVM_DEV_ARM_VGIC_GRP_ADDR << 32, KVM_VGIC_V3_ADDR_TYPE_DIST, told],
            FREEHOLD_CONVERT => {
                let to = self.one(&[CONVERT_TO_PRIVATE, CONVERT_TO_PRIVATE, CONVERT_TO_SHARED]);
                let mode = self.one(&[CONVERT_WAIT, CONVERT_NOW, CONVERT_NOTIFY, CONVERT_NOTIFY]);
                vec![page, PAGE, u64::from(to) | u64::from(mode) << 32, 20]
            }
            FREEHOLD_POPULATE => vec![page, PAGE, self.arena.at(0).addr() as u64],
            _ => return None,
        })
    }
}
