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

/// What a VM's stage 2 is on every CPU alike. What belongs to one CPU is not in it: a vCPU goes on where its thread is,
/// and cores of one machine may differ in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage2 {
    /// `VTTBR_EL2` but for `CnP`.
    root: u64,
    /// `VTCR_EL2.T0SZ`.
    size: u64,
}

/// `VTCR_EL2` and `VTTBR_EL2` of one CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage2Here {
    /// `VTCR_EL2`.
    pub vtcr: u64,
    /// `VTTBR_EL2`.
    pub vttbr: u64,
}

/// `VTCR_EL2.T0SZ`.
const SIZE: u64 = 0x3f;
/// `VTTBR_EL2.CnP`.
const SHARED: u64 = 1;

impl Setting {
    /// How its VM's addresses are translated.
    #[must_use]
    pub fn stage2(&self) -> Stage2 {
        let size = u64::from(64_u32.wrapping_sub(self.ipa_bits)) & SIZE;
        Stage2 { root: self.root.pa().raw() | u64::from(self.vmid.raw()) << 48, size }
    }
}

impl Stage2 {
    /// The registers on a CPU whose host has these: how wide a physical address and a VMID are (PS, VS), and whether it
    /// shares translations with others (`CnP`), is the CPU's.
    #[inline(always)]
    #[must_use]
    pub const fn beside(self, host: Stage2Here) -> Stage2Here {
        Stage2Here { vtcr: host.vtcr & !SIZE | self.size, vttbr: self.root | host.vttbr & SHARED }
    }
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

#[cfg(test)]
mod tests {
    use super::{Controller, Setting, Stage2Here};
    use crate::handle::VcpuIndex;
    use crate::vgic::Window;
    use freehold_mem::{Pfn, VmSlot};

    #[test]
    fn a_controller_is_where_the_frames_of_its_cpus_are() {
        let controller =
            |frames| Controller { window: Window::new(0x1000, 0x2000, 40).unwrap(), frames, is_clear: true };
        for (ipa, frames, held) in [
            (0x100_0000, 1, true),
            (0x100_ffff, 1, true),
            (0x101_0000, 1, false),
            (0xff_ffff, 1, false),
            (0x201_ffff, 1, true),
            // As near as frames may be, but of a CPU that is not there.
            (0x202_0000, 1, false),
            (0x202_0000, 2, true),
            (0x1ff_ffff, 8, false),
            (0, 8, false),
            (u64::MAX, 8, false),
        ] {
            assert_eq!(controller(frames).holds(ipa), held, "{ipa:#x} of {frames}");
        }
    }

    /// PS and VS of `VTCR_EL2`, and `CnP` of `VTTBR_EL2`, belong to the CPU.
    #[test]
    fn a_vcpu_that_moves_to_another_kind_of_core_has_that_cores_widths() {
        let root = Pfn::new(0x4_5678).unwrap();
        let setting = |ipa_bits| Setting {
            root,
            ipa_bits,
            vmid: VmSlot::new(4).unwrap().vmid(),
            vcpu: VcpuIndex::BOOT,
            controller: None,
        };
        let vmid = u64::from(setting(32).vmid.raw()) << 48;
        let big = Stage2Here { vtcr: 1 << 31 | 1 << 19 | 4 << 16 | 0x3558, vttbr: 0x9_9999_9001 };
        let little = Stage2Here { vtcr: 1 << 31 | 2 << 16 | 0x3558, vttbr: 0x9_9999_9000 };
        for (ipa_bits, size) in [(32, 32), (33, 31), (39, 25), (40, 24)] {
            let stage2 = setting(ipa_bits).stage2();
            let there = Stage2Here { vtcr: 1 << 31 | 1 << 19 | 4 << 16 | 0x3540 | size, vttbr: vmid | 0x4567_8001 };
            assert_eq!(stage2.beside(big), there);
            let here = Stage2Here { vtcr: 1 << 31 | 2 << 16 | 0x3540 | size, vttbr: vmid | 0x4567_8000 };
            assert_eq!(stage2.beside(little), here);
        }
    }
}
