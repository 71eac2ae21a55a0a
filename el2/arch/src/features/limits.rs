// SPDX-License-Identifier: MIT OR Apache-2.0
//! Identity and the leftovers: registers that reset to UNKNOWN values and must not govern the host.

use super::Ids;
use crate::sysreg::field;

const MPAM2_ENMPAMSM: u64 = 1 << 50;

pub(super) fn configure(ids: &Ids) {
    write_sysreg!("vpidr_el2", read_sysreg!("midr_el1"));
    write_sysreg!("vmpidr_el2", read_sysreg!("mpidr_el1"));
    write_sysreg!("hstr_el2", 0);
    write_sysreg!("hacr_el2", 0);
    // What an earlier program at EL2 may have left on.
    if ids.has_trace_filter() {
        write_sysreg!("s3_4_c1_c2_1", 0); // TRFCR_EL2
    }
    if ids.has_sctlr2() {
        write_sysreg!("s3_4_c1_c0_3", 0); // SCTLR2_EL2
    }
    if ids.has_tcr2() {
        write_sysreg!("s3_4_c2_c0_3", 0); // TCR2_EL2
    }
    if ids.has_vhe() {
        write_sysreg!("s3_4_c14_c3_1", 0); // CNTHV_CTL_EL2
    }
    if ids.has_ras() {
        write_sysreg!("s3_4_c5_c2_3", 0); // VSESR_EL2
        write_sysreg!("s3_4_c12_c1_1", 0); // VDISR_EL2
    }
    if ids.has_lor() {
        write_sysreg!("s3_0_c10_c4_3", 0); // LORC_EL1
    }
    if ids.has_mpam() {
        write_sysreg!("s3_4_c10_c5_0", if ids.has_sme() { MPAM2_ENMPAMSM } else { 0 }); // MPAM2_EL2
        let has_hcr = field(read_sysreg!("s3_0_c10_c4_4"), 17, 1) != 0; // MPAMIDR_EL1
        if has_hcr {
            write_sysreg!("s3_4_c10_c4_0", 0); // MPAMHCR_EL2
        }
    }
    if ids.has_scxtnum() {
        // A number that the host cannot know is not needed here: EL2 shares no branch history tag
        // with EL1 as long as its own number never equals one that EL1 chose by chance.
        write_sysreg!("s3_4_c13_c0_7", read_sysreg!("cntpct_el0").rotate_right(17)); // SCXTNUM_EL2
    }
}
