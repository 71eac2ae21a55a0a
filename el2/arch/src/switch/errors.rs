// SPDX-License-Identifier: MIT OR Apache-2.0
//! FEAT_RAS: whose deferred SError DISR_EL1 holds.
//!
//! Guarantees: what the host left in DISR_EL1 never counts as a guest's error and is there again after
//! the run, and what one guest wrote to its own view of the register (VDISR_EL2, because HCR_EL2.AMO
//! is set while it runs) is gone before the next. Does not know what an error means.

use crate::features::Has;

/// DISR_EL1: an SError was deferred.
const DISR_A: u64 = 1 << 31;

/// The host's deferred error.
#[derive(Clone, Copy, Debug)]
pub(super) struct HostErrors {
    deferred: u64,
}

impl HostErrors {
    pub(super) const fn new() -> Self {
        Self { deferred: 0 }
    }

    /// Empties DISR_EL1, so that what it holds after the guest is the guest's.
    pub(super) fn set_aside(&mut self, ids: Has) {
        if ids.has_ras() {
            self.deferred = read_sysreg!("s3_0_c12_c1_1"); // DISR_EL1
            write_sysreg!("s3_0_c12_c1_1", 0);
        }
    }

    /// Puts the host's value back.
    pub(super) fn put_back(&self, ids: Has) {
        if ids.has_ras() {
            write_sysreg!("s3_0_c12_c1_1", self.deferred);
        }
    }
}

/// Whether the ESB at an exit deferred an error of the guest's. It ends the guest, whose next exit would say so again.
pub(super) fn guest_deferred(ids: Has) -> bool {
    ids.has_ras() && read_sysreg!("s3_0_c12_c1_1") & DISR_A != 0
}

/// Leaves nothing of a guest in its view of DISR_EL1. EL2 makes no virtual SErrors, so that nothing
/// but the guest's own writes is lost.
pub(super) fn forget_virtual(ids: Has) {
    if ids.has_ras() {
        write_sysreg!("s3_4_c12_c1_1", 0); // VDISR_EL2
    }
}
