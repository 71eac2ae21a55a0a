// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where the frames of a VM's interrupt controller are in its address space.

use super::Frame;
use crate::Refused;
use crate::handle::{MAX_VCPUS, VcpuIndex};
use freehold_mem::GfnRun;

/// Bytes of a frame, and granules.
const FRAME: u64 = 0x1_0000;
const GRANULES: u64 = 16;
/// Two for each vCPU.
const REDISTRIBUTORS: u64 = 2 * MAX_VCPUS as u64;

/// The addresses of the frames, as the host declared them before the first run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    distributor: u64,
    redistributors: u64,
}

impl Window {
    /// Takes the first guest frames of the distributor and of the redistributors. Where they overlap the distributor
    /// is met, and where either overlaps RAM, the RAM is.
    ///
    /// # Errors
    /// `Unaligned` for one that is not at 64 KB; `GfnOutOfRange` for one of which not even two frames fit.
    pub fn new(distributor: u64, redistributors: u64, ipa_bits: u32) -> Result<Self, Refused> {
        if !(distributor | redistributors).is_multiple_of(GRANULES) {
            return Err(Refused::Unaligned);
        }
        let last = (1u64.unbounded_shl(ipa_bits) >> 12).saturating_sub(GRANULES.saturating_mul(2));
        if distributor > last || redistributors > last {
            return Err(freehold_mem::Refused::GfnOutOfRange.into());
        }
        Ok(Self { distributor: distributor << 12, redistributors: redistributors << 12 })
    }

    /// Whether this RAM is elsewhere, in a VM with so many vCPUs.
    #[must_use]
    pub fn is_clear_of(&self, ram: GfnRun, vcpus: usize) -> bool {
        [(self.distributor, 1), (self.redistributors, 2_u64.saturating_mul(vcpus as u64))].iter().all(
            |(first, frames)| {
                ram.end() <= first >> 12
                    || first.saturating_add(frames.saturating_mul(FRAME)) >> 12 <= ram.start().raw()
            },
        )
    }

    /// Whether an address is in the frames of as many CPUs as there can be: quicker to say no than [`Self::locate`].
    #[inline]
    #[must_use]
    pub const fn is_near(self, ipa: u64) -> bool {
        ipa.wrapping_sub(self.distributor) < FRAME
            || ipa.wrapping_sub(self.redistributors) < REDISTRIBUTORS.saturating_mul(FRAME)
    }

    /// Addresses of the distributor and of the first redistributor.
    #[must_use]
    pub const fn addresses(self) -> [u64; 2] {
        [self.distributor, self.redistributors]
    }

    /// The frame and the offset in it that an address means in a VM with so many vCPUs. Not in line: the check of the linked
    /// image asks for its mask by name.
    #[inline(never)]
    #[must_use]
    pub fn locate(&self, ipa: u64, vcpus: usize) -> Option<(Frame, u64)> {
        if let Some(offset) = ipa.checked_sub(self.distributor)
            && offset < FRAME
        {
            return Some((Frame::Distributor, offset));
        }
        let offset = ipa.checked_sub(self.redistributors)?;
        // Two frames for each vCPU, one after the other.
        let vcpu = VcpuIndex::existing(offset >> 17, vcpus)?;
        let frame = if offset & FRAME == 0 { Frame::Control(vcpu) } else { Frame::Private(vcpu) };
        Some((frame, offset & (FRAME - 1)))
    }
}
