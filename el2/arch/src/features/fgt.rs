// SPDX-License-Identifier: MIT OR Apache-2.0
//! FEAT_FGT and FEAT_FGT2: no fine-grained trap for the host.
//!
//! Positive bits trap when set and stay 0. The inverted ("n") bits trap when clear: those of features
//! that this CPU has are set, the others are RES0.

use super::Ids;

fn bits(list: &[(bool, u64)]) -> u64 {
    list.iter().filter(|(implemented, _)| *implemented).fold(0, |all, (_, bits)| all | bits)
}

/// HFGRTR_EL2 and HFGWTR_EL2 for the host.
pub(crate) fn host_registers(ids: &Ids) -> u64 {
    bits(&[
        (ids.ls64_level() >= 3, 1 << 50), // nACCDATA_EL1
        (ids.has_gcs(), 3 << 52),         // nGCS_EL0, nGCS_EL1
        (ids.has_sme(), 3 << 54),         // nSMPRI_EL1, nTPIDR2_EL0
        (ids.has_the(), 1 << 56),         // nRCWMASK_EL1
        (ids.has_s1pie(), 3 << 57),       // nPIRE0_EL1, nPIR_EL1
        (ids.has_s1poe(), 3 << 59),       // nPOR_EL0, nPOR_EL1
        (ids.has_s2poe(), 1 << 61),       // nS2POR_EL1
        (ids.has_aie(), 3 << 62),         // nMAIR2_EL1, nAMAIR2_EL1
    ])
}

/// HFGITR_EL2 for the host.
pub(crate) fn host_instructions(ids: &Ids) -> u64 {
    bits(&[
        (ids.has_brbe(), 3 << 55), // nBRBINJ, nBRBIALL
        (ids.has_gcs(), 7 << 57),  // nGCSPUSHM_EL1, nGCSSTR_EL1, nGCSEPP
    ])
}

/// HDFGRTR_EL2 for the host; HDFGWTR_EL2 is the same without nBRBIDR.
pub(crate) fn host_debug(ids: &Ids) -> u64 {
    bits(&[
        (ids.has_brbe(), 7 << 59),         // nBRBIDR, nBRBCTL, nBRBDATA
        (ids.spe_version() >= 3, 1 << 62), // nPMSNEVFR_EL1
    ])
}

pub(super) fn configure(ids: &Ids) {
    if !ids.has_fgt() {
        return;
    }
    write_sysreg!("s3_4_c1_c1_4", host_registers(ids)); // HFGRTR_EL2
    write_sysreg!("s3_4_c1_c1_5", host_registers(ids)); // HFGWTR_EL2
    write_sysreg!("s3_4_c1_c1_6", host_instructions(ids)); // HFGITR_EL2
    write_sysreg!("s3_4_c3_c1_4", host_debug(ids)); // HDFGRTR_EL2
    write_sysreg!("s3_4_c3_c1_5", host_debug(ids) & !(1 << 59)); // HDFGWTR_EL2
    if ids.has_amu() {
        write_sysreg!("s3_4_c3_c1_6", 0); // HAFGRTR_EL2
    }
    if ids.has_fgt2() {
        // All bits of these five are inverted ones; those of absent features are RES0.
        write_sysreg!("s3_4_c3_c1_2", 0x7fff); // HFGRTR2_EL2
        write_sysreg!("s3_4_c3_c1_3", 0x7fff); // HFGWTR2_EL2
        write_sysreg!("s3_4_c3_c1_7", 0x3); // HFGITR2_EL2
        write_sysreg!("s3_4_c3_c1_0", 0x01ff_ffff); // HDFGRTR2_EL2
        write_sysreg!("s3_4_c3_c1_1", 0x01ff_ffff); // HDFGWTR2_EL2
    }
}
