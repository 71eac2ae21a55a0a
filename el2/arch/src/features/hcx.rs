// SPDX-License-Identifier: MIT OR Apache-2.0
//! FEAT_HCX: without these enables newer instructions and registers of the host are UNDEFINED.

use super::Ids;

const ENAS0: u64 = 1 << 0;
const ENALS: u64 = 1 << 1;
const ENASR: u64 = 1 << 2;
const MSCEN: u64 = 1 << 11;
const TCR2EN: u64 = 1 << 14;
const SCTLR2EN: u64 = 1 << 15;
const GCSEN: u64 = 1 << 22;
const ENFPM: u64 = 1 << 23;

/// HCRX_EL2 while the host runs.
pub(crate) fn host_hcrx(ids: &Ids) -> u64 {
    let ls64 = ids.ls64_level();
    [
        (ls64 >= 1, ENALS),
        (ls64 >= 2, ENASR),
        (ls64 >= 3, ENAS0),
        (ids.has_mops(), MSCEN),
        (ids.has_tcr2(), TCR2EN),
        (ids.has_sctlr2(), SCTLR2EN),
        (ids.has_gcs(), GCSEN),
        (ids.has_fpmr(), ENFPM),
    ]
    .iter()
    .filter(|(implemented, _)| *implemented)
    .fold(0, |hcrx, (_, bit)| hcrx | bit)
}

pub(super) fn configure(ids: &Ids) {
    if ids.has_hcx() {
        write_sysreg!("s3_4_c1_c2_2", host_hcrx(ids)); // HCRX_EL2
    }
    if ids.has_gcs() {
        write_sysreg!("s3_0_c2_c5_0", 0); // GCSCR_EL1
        write_sysreg!("s3_0_c2_c5_2", 0); // GCSCRE0_EL1
    }
}
