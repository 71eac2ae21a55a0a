// SPDX-License-Identifier: MIT OR Apache-2.0
//! GICv3 CPU interface: system registers enabled for the host, no virtual interrupt.
//!
//! With a GICv2 these registers do not exist and none is touched.

use super::Ids;
use crate::barrier;

/// SRE, DFB, DIB, Enable.
const SRE_ALL: u64 = 0xf;

pub(super) fn configure(ids: &Ids) {
    if ids.has_gic_registers() {
        write_sysreg!("s3_4_c12_c9_5", SRE_ALL); // ICC_SRE_EL2
        barrier::registers_in_effect();
        write_sysreg!("s3_4_c12_c11_0", 0); // ICH_HCR_EL2
        write_sysreg!("s3_4_c12_c11_7", 0); // ICH_VMCR_EL2
    }
}
