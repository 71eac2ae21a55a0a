// SPDX-License-Identifier: MIT OR Apache-2.0
//! Debug, PMU, statistical profiling, trace and branch buffers: the host owns them all, and nothing
//! of EL2 is counted or recorded.

use super::Ids;
use crate::sysreg::field;

const MDCR_E2PB_EL1: u64 = 3 << 12;
const MDCR_HPMD: u64 = 1 << 17;
const MDCR_HCCD: u64 = 1 << 23;
const MDCR_E2TB_EL1: u64 = 3 << 24;
/// PMUVer of FEAT_PMUv3p1, which adds HPMD, and of FEAT_PMUv3p5, which adds HCCD.
const PMU_V3P1: u64 = 4;
const PMU_V3P5: u64 = 6;

/// MDCR_EL2 while the host runs.
pub(crate) fn host_mdcr(ids: &Ids) -> u64 {
    let mut mdcr = 0;
    let pmu = ids.pmu_version();
    if pmu != 0 {
        // HPMN: every event counter belongs to EL1 and EL0.
        mdcr |= field(read_sysreg!("pmcr_el0"), 11, 5);
    }
    if pmu >= PMU_V3P1 {
        mdcr |= MDCR_HPMD;
    }
    if pmu >= PMU_V3P5 {
        mdcr |= MDCR_HCCD;
    }
    if ids.spe_version() != 0 {
        mdcr |= MDCR_E2PB_EL1;
    }
    if ids.has_trbe() {
        mdcr |= MDCR_E2TB_EL1;
    }
    mdcr
}

pub(super) fn configure(ids: &Ids) {
    // HPMN limits what PMCR_EL0.N shows to EL1 but not to EL2, so that this can be repeated.
    write_sysreg!("mdcr_el2", host_mdcr(ids));
    // PMBIDR_EL1.P: another exception level owns the buffer.
    if ids.spe_version() != 0 && field(read_sysreg!("s3_0_c9_c10_7"), 4, 1) == 0 {
        write_sysreg!("s3_4_c9_c9_0", 1 << 6 | 1 << 4); // PMSCR_EL2: virtual-free time, PA
    }
    if ids.has_brbe() {
        write_sysreg!("s2_4_c9_c0_0", 1 << 3 | 1 << 4); // BRBCR_EL2: CC, MPRED
    }
}
