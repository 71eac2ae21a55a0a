// SPDX-License-Identifier: MIT OR Apache-2.0
//! The GIC's CPU interface around a guest: the host's priority mask is opened so that every interrupt
//! of the host ends the run. A guest without an interrupt controller reaches no register of the interface; for one
//! that has one, [`super::vgic`] loads it.

use crate::features::Has;

/// ICC_PMR_EL1 that masks nothing.
const PMR_OPEN: u64 = 0xff;
/// ICH_HCR_EL2: trap what both groups share (TC), and all of groups 0 and 1.
const ICH_TRAP_ALL: u64 = 1 << 10 | 1 << 11 | 1 << 12;

/// The host's part of the interface.
#[derive(Clone, Copy, Debug)]
pub(super) struct HostGic {
    priority_mask: u64,
    sre: u64,
}

impl HostGic {
    pub(super) const fn new() -> Self {
        Self { priority_mask: 0, sre: 0 }
    }

    /// Unmasks all priorities and takes the interface away from EL1, until a guest's is loaded.
    pub(super) fn open(&mut self, ids: Has) {
        if !ids.has_gic_registers() {
            return;
        }
        self.priority_mask = read_sysreg!("s3_0_c4_c6_0"); // ICC_PMR_EL1
        self.sre = read_sysreg!("s3_0_c12_c12_5"); // ICC_SRE_EL1
        write_sysreg!("s3_0_c4_c6_0", PMR_OPEN);
        write_sysreg!("s3_4_c12_c11_0", ICH_TRAP_ALL); // ICH_HCR_EL2
    }

    /// Gives the interface back as it was. ICC_SRE_EL1 has no trap of its own while the host keeps
    /// ICC_SRE_EL2.Enable, so a guest may have written it where it is not read-only.
    pub(super) fn close(&self, ids: Has) {
        if !ids.has_gic_registers() {
            return;
        }
        write_sysreg!("s3_4_c12_c11_0", 0);
        if read_sysreg!("s3_0_c12_c12_5") != self.sre {
            write_sysreg!("s3_0_c12_c12_5", self.sre);
        }
        write_sysreg!("s3_0_c4_c6_0", self.priority_mask);
    }
}
