// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ID registers of this CPU, asked by name.

use crate::sysreg::field;

/// The ID registers that decide something at EL2, each read when it is asked for. Unallocated ones read as zero.
#[derive(Clone, Copy, Debug)]
pub struct Ids;

impl Ids {
    /// PARange as a number of address bits, 48 at most.
    pub fn physical_bits(&self) -> u32 {
        match field(read_sysreg!("id_aa64mmfr0_el1"), 0, 4) {
            0 => 32,
            1 => 36,
            2 => 40,
            3 => 42,
            4 => 44,
            _ => 48,
        }
    }

    /// Whether a 4 KB granule can be used at stage 1 and stage 2.
    pub fn has_4k_granule(&self) -> bool {
        field(read_sysreg!("id_aa64mmfr0_el1"), 28, 4) != 0xf && field(read_sysreg!("id_aa64mmfr0_el1"), 40, 4) != 1
    }

    pub(crate) fn has_16_bit_vmid(&self) -> bool {
        field(read_sysreg!("id_aa64mmfr1_el1"), 4, 4) == 2
    }

    pub(crate) fn has_cnp(&self) -> bool {
        field(read_sysreg!("id_aa64mmfr2_el1"), 0, 4) != 0
    }

    /// FEAT_S2FWB: stage 2 can force the combined attribute.
    pub fn has_s2fwb(&self) -> bool {
        field(read_sysreg!("id_aa64mmfr2_el1"), 40, 4) != 0
    }

    pub(crate) fn has_pointer_auth(&self) -> bool {
        // APA, API, GPA, GPI in ISAR1; GPA3, APA3 in ISAR2.
        read_sysreg!("id_aa64isar1_el1") & 0xff00_0ff0 != 0 || read_sysreg!("id_aa64isar2_el1") & 0xff00 != 0
    }

    pub(crate) fn has_scxtnum(&self) -> bool {
        field(read_sysreg!("id_aa64pfr0_el1"), 56, 4) >= 2 || field(read_sysreg!("id_aa64pfr1_el1"), 32, 4) >= 2
    }

    /// CSV2_3 or FEAT_ECBHB: history of a lower level does not steer EL2.
    pub(crate) fn isolates_branch_history(&self) -> bool {
        field(read_sysreg!("id_aa64pfr0_el1"), 56, 4) >= 3 || field(read_sysreg!("id_aa64mmfr1_el1"), 60, 4) != 0
    }

    /// FEAT_CLRBHB: one instruction, a NOP elsewhere, clears the history.
    pub(crate) fn has_clrbhb(&self) -> bool {
        field(read_sysreg!("id_aa64isar2_el1"), 28, 4) != 0
    }

    pub(crate) fn has_pan(&self) -> bool {
        field(read_sysreg!("id_aa64mmfr1_el1"), 20, 4) != 0
    }

    pub(crate) fn has_ssbs(&self) -> bool {
        field(read_sysreg!("id_aa64pfr1_el1"), 4, 4) != 0
    }

    pub(crate) fn has_nmi(&self) -> bool {
        field(read_sysreg!("id_aa64pfr1_el1"), 36, 4) != 0
    }

    pub(crate) fn has_mte2(&self) -> bool {
        field(read_sysreg!("id_aa64pfr1_el1"), 8, 4) >= 2
    }

    pub(crate) fn has_sve(&self) -> bool {
        field(read_sysreg!("id_aa64pfr0_el1"), 32, 4) != 0
    }

    pub(crate) fn has_sme(&self) -> bool {
        field(read_sysreg!("id_aa64pfr1_el1"), 24, 4) != 0
    }

    pub(crate) fn has_sme_fa64(&self) -> bool {
        field(read_sysreg!("s3_0_c0_c4_5"), 63, 1) != 0
    }

    pub(crate) fn has_sme2(&self) -> bool {
        field(read_sysreg!("id_aa64pfr1_el1"), 24, 4) >= 2
    }

    pub(crate) fn has_gic_registers(&self) -> bool {
        field(read_sysreg!("id_aa64pfr0_el1"), 24, 4) != 0
    }

    pub(crate) fn has_ras(&self) -> bool {
        field(read_sysreg!("id_aa64pfr0_el1"), 28, 4) != 0
    }

    pub(crate) fn has_mpam(&self) -> bool {
        field(read_sysreg!("id_aa64pfr0_el1"), 40, 4) != 0 || field(read_sysreg!("id_aa64pfr1_el1"), 16, 4) != 0
    }

    pub(crate) fn has_vhe(&self) -> bool {
        field(read_sysreg!("id_aa64mmfr1_el1"), 8, 4) != 0
    }

    pub(crate) fn has_lor(&self) -> bool {
        field(read_sysreg!("id_aa64mmfr1_el1"), 16, 4) != 0
    }

    pub(crate) fn has_hcx(&self) -> bool {
        field(read_sysreg!("id_aa64mmfr1_el1"), 40, 4) != 0
    }

    pub(crate) fn has_mops(&self) -> bool {
        field(read_sysreg!("id_aa64isar2_el1"), 16, 4) != 0
    }

    pub(crate) fn has_tcr2(&self) -> bool {
        field(read_sysreg!("s3_0_c0_c7_3"), 0, 4) != 0
    }

    pub(crate) fn has_sctlr2(&self) -> bool {
        field(read_sysreg!("s3_0_c0_c7_3"), 4, 4) != 0
    }

    pub(crate) fn has_s1pie(&self) -> bool {
        field(read_sysreg!("s3_0_c0_c7_3"), 8, 4) != 0
    }

    pub(crate) fn has_s1poe(&self) -> bool {
        field(read_sysreg!("s3_0_c0_c7_3"), 16, 4) != 0
    }

    pub(crate) fn has_s2poe(&self) -> bool {
        field(read_sysreg!("s3_0_c0_c7_3"), 20, 4) != 0
    }

    pub(crate) fn has_aie(&self) -> bool {
        field(read_sysreg!("s3_0_c0_c7_3"), 24, 4) != 0
    }

    pub(crate) fn has_fpmr(&self) -> bool {
        field(read_sysreg!("s3_0_c0_c4_2"), 32, 4) != 0
    }

    pub(crate) fn has_gcs(&self) -> bool {
        field(read_sysreg!("id_aa64pfr1_el1"), 44, 4) != 0
    }

    pub(crate) fn has_the(&self) -> bool {
        field(read_sysreg!("id_aa64pfr1_el1"), 48, 4) != 0
    }

    /// Level of the 64-byte load and store instructions: 1 LS64, 2 with ST64BV, 3 with ST64BV0.
    pub(crate) fn ls64_level(&self) -> u64 {
        field(read_sysreg!("id_aa64isar1_el1"), 60, 4)
    }

    pub(crate) fn has_fgt(&self) -> bool {
        field(read_sysreg!("id_aa64mmfr0_el1"), 56, 4) != 0
    }

    pub(crate) fn has_fgt2(&self) -> bool {
        field(read_sysreg!("id_aa64mmfr0_el1"), 56, 4) >= 2
    }

    pub(crate) fn has_amu(&self) -> bool {
        field(read_sysreg!("id_aa64pfr0_el1"), 44, 4) != 0
    }

    /// Version of the PMU architecture, 0 for none.
    pub(crate) fn pmu_version(&self) -> u64 {
        match field(read_sysreg!("id_aa64dfr0_el1"), 8, 4) {
            0xf => 0,
            version => version,
        }
    }

    pub(crate) fn spe_version(&self) -> u64 {
        field(read_sysreg!("id_aa64dfr0_el1"), 32, 4)
    }

    pub(crate) fn has_trbe(&self) -> bool {
        field(read_sysreg!("id_aa64dfr0_el1"), 44, 4) != 0
    }

    pub(crate) fn has_trace_filter(&self) -> bool {
        field(read_sysreg!("id_aa64dfr0_el1"), 40, 4) != 0
    }

    pub(crate) fn has_brbe(&self) -> bool {
        field(read_sysreg!("id_aa64dfr0_el1"), 52, 4) != 0
    }
}
