// SPDX-License-Identifier: MIT OR Apache-2.0
//! FEAT_MPAM: a guest runs in the host's memory partition and sees no register of it.
//!
//! Source: Arm MPAM specification, MPAM2_EL2 and MPAMHCR_EL2. QEMU has no MPAM: untested there.

use crate::features::Has;

/// MPAM2_EL2: TIDR, TRAPMPAM0EL1, TRAPMPAM1EL1; EnMPAMSM clear traps MPAMSM_EL1 too.
const TRAPS: u64 = 1 << 58 | 1 << 49 | 1 << 48;
const ENABLE_SM: u64 = 1 << 50;
/// MPAMHCR_EL2.TRAP_MPAMIDR_EL1, where there is no TIDR.
const TRAP_IDENTITY: u64 = 1 << 31;

/// The host's view of its partitions.
#[derive(Clone, Copy, Debug)]
pub(super) struct HostPartitions {
    own: u64,
    virtual_: u64,
}

impl HostPartitions {
    pub(super) const fn new() -> Self {
        Self { own: 0, virtual_: 0 }
    }

    /// Takes the registers away from EL1.
    pub(super) fn hide(&mut self, ids: Has) {
        if !ids.has_mpam() {
            return;
        }
        self.own = read_sysreg!("s3_4_c10_c5_0"); // MPAM2_EL2
        write_sysreg!("s3_4_c10_c5_0", self.own & !ENABLE_SM | TRAPS);
        if ids.has_mpam_hcr() {
            self.virtual_ = read_sysreg!("s3_4_c10_c4_0"); // MPAMHCR_EL2
            write_sysreg!("s3_4_c10_c4_0", self.virtual_ | TRAP_IDENTITY);
        }
    }

    /// Gives them back.
    pub(super) fn show(&self, ids: Has) {
        if !ids.has_mpam() {
            return;
        }
        write_sysreg!("s3_4_c10_c5_0", self.own);
        if ids.has_mpam_hcr() {
            write_sysreg!("s3_4_c10_c4_0", self.virtual_);
        }
    }
}
