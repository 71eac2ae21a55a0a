// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where the frames of a VM's interrupt controller are in its address space.

use super::Frame;
use crate::Refused;
use crate::handle::VcpuIndex;

/// Bytes of a frame.
const FRAME: u64 = 0x1_0000;

/// The addresses of the frames, as the host declared them before the first run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    distributor: u64,
    redistributors: u64,
}

impl Window {
    /// Takes the addresses of the distributor and of the first redistributor. Where they overlap the distributor is met.
    ///
    /// # Errors
    /// `Unaligned` for one that is no multiple of 64 KB, `BadArgument` for one beyond `ipa_bits`.
    pub fn new(distributor: u64, redistributors: u64, ipa_bits: u32) -> Result<Self, Refused> {
        let end = 1u64.unbounded_shl(ipa_bits).saturating_sub(FRAME.saturating_mul(2));
        match (distributor | redistributors).is_multiple_of(FRAME) {
            false => Err(Refused::Unaligned),
            true if distributor > end || redistributors > end => Err(Refused::BadArgument),
            true => Ok(Self { distributor, redistributors }),
        }
    }

    /// The frame and the offset in it that an address means in a VM with so many vCPUs.
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
