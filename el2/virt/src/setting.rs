// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a vCPU runs in. It is fixed with its VM's first run, so the vCPU keeps a copy and takes no lock for it.

use crate::handle::VcpuIndex;
use crate::vgic::Window;
use freehold_mem::{Pfn, Vmid};

/// What one vCPU runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Root of the VM's tables.
    pub root: Pfn,
    /// Bits of an address.
    pub ipa_bits: u32,
    /// Tag of what a TLB holds of the VM.
    pub vmid: Vmid,
    /// Which of its vCPUs it is.
    pub vcpu: VcpuIndex,
    /// The VM's interrupt controller, if it has one.
    pub controller: Option<Controller>,
}

/// Where the frames of a VM's interrupt controller are met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Controller {
    /// Where they are.
    pub window: Window,
    /// CPUs that have frames.
    pub frames: usize,
    /// No RAM is there: what is met at those addresses is the controller.
    pub is_clear: bool,
}

impl Controller {
    /// Whether one of the frames is at an address.
    #[inline]
    #[must_use]
    pub fn holds(&self, ipa: u64) -> bool {
        self.window.is_near(ipa) && self.window.locate(ipa, self.frames).is_some()
    }
}
