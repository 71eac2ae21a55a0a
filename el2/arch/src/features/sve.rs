// SPDX-License-Identifier: MIT OR Apache-2.0
//! FP, SVE and SME: the host uses all of them at full length, untrapped.

use super::Ids;

/// CPTR_EL2 with E2H=0: RES1 bits, TZ and TSM among them.
const CPTR_RES1: u64 = 0x33ff;
const CPTR_TZ: u64 = 1 << 8;
const CPTR_TSM: u64 = 1 << 12;
const SMCR_FA64: u64 = 1 << 31;
const SMCR_EZT0: u64 = 1 << 30;

/// CPTR_EL2 while the host runs.
pub(crate) fn host_cptr(ids: &Ids) -> u64 {
    let mut cptr = CPTR_RES1;
    if ids.has_sve() {
        cptr &= !CPTR_TZ;
    }
    if ids.has_sme() {
        cptr &= !CPTR_TSM;
    }
    cptr
}

/// Lifts the traps. An ISB must come before the lengths are set.
pub(super) fn configure(ids: &Ids) {
    write_sysreg!("cptr_el2", host_cptr(ids));
}

/// Allows the longest vectors.
pub(super) fn configure_lengths(ids: &Ids) {
    if ids.has_sve() {
        write_sysreg!("s3_4_c1_c2_0", 0x1ff); // ZCR_EL2
    }
    if ids.has_sme() {
        let mut smcr = 0xf;
        if ids.has_sme_fa64() {
            smcr |= SMCR_FA64;
        }
        if ids.has_sme2() {
            smcr |= SMCR_EZT0;
        }
        write_sysreg!("s3_4_c1_c2_6", smcr); // SMCR_EL2
        write_sysreg!("s3_4_c1_c2_5", 0); // SMPRIMAP_EL2
    }
}
