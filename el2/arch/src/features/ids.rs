// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ID registers of this CPU, asked by name.

use crate::percpu::this_cpu;
use crate::sysreg::field;
use core::sync::atomic::Ordering;

/// The ID registers that decide something at EL2, each read when it is asked for. Unallocated ones read as zero.
#[derive(Clone, Copy, Debug)]
pub struct Ids;

impl Ids {
    /// PARange, as VTCR_EL2.PS takes it: 48 bits at most.
    pub(crate) fn physical_range(&self) -> u64 {
        field(read_sysreg!("id_aa64mmfr0_el1"), 0, 4).min(5)
    }

    /// The same as a number of address bits.
    pub fn physical_bits(&self) -> u32 {
        [32, 36, 40, 42, 44, 48].get(self.physical_range() as usize).copied().unwrap_or(48)
    }

    /// Whether a 4 KB granule can be used at stage 1 and stage 2.
    pub fn has_4k_granule(&self) -> bool {
        field(read_sysreg!("id_aa64mmfr0_el1"), 28, 4) != 0xf && field(read_sysreg!("id_aa64mmfr0_el1"), 40, 4) != 1
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

    pub(crate) fn has_mpam(&self) -> bool {
        field(read_sysreg!("id_aa64pfr0_el1"), 40, 4) != 0 || field(read_sysreg!("id_aa64pfr1_el1"), 16, 4) != 0
    }

    /// Level of the 64-byte load and store instructions: 1 LS64, 2 with ST64BV, 3 with ST64BV0.
    pub(crate) fn ls64_level(&self) -> u64 {
        field(read_sysreg!("id_aa64isar1_el1"), 60, 4)
    }

    /// Version of the PMU architecture, 0 for none.
    pub(crate) fn pmu_version(&self) -> u64 {
        match field(read_sysreg!("id_aa64dfr0_el1"), 8, 4) {
            0xf => 0,
            version => version,
        }
    }

    /// FEAT_S2FWB: stage 2 can force the combined attribute.
    pub fn has_s2fwb(&self) -> bool {
        field(read_sysreg!("id_aa64mmfr2_el1"), 40, 4) != 0
    }

    pub(crate) fn spe_version(&self) -> u64 {
        field(read_sysreg!("id_aa64dfr0_el1"), 32, 4)
    }

    /// SPE is there and its buffer is not another exception level's (PMBIDR_EL1.P).
    fn has_spe_buffer(&self) -> bool {
        self.spe_version() != 0 && field(read_sysreg!("s3_0_c9_c10_7"), 4, 1) == 0
    }

    /// TRBE is there and its buffer is not another exception level's (TRBIDR_EL1.P).
    fn has_trace_buffer(&self) -> bool {
        self.has_trbe() && field(read_sysreg!("s3_0_c9_c11_7"), 4, 1) == 0
    }

    fn has_pmu(&self) -> bool {
        self.pmu_version() != 0
    }

    /// MPAMIDR_EL1.HAS_HCR.
    fn has_mpam_hcr(&self) -> bool {
        self.has_mpam() && field(read_sysreg!("s3_0_c10_c4_4"), 17, 1) != 0
    }
}

/// What one field of an ID register says: the register, where the field begins, and the least value that says yes.
macro_rules! features {
    ($($(#[$doc:meta])* $name:ident = ($register:literal, $at:literal, $least:literal);)+) => {
        impl Ids {
            $($(#[$doc])*
            pub(crate) fn $name(&self) -> bool {
                field(read_sysreg!($register), $at, 4) >= $least
            })+
        }
    };
}

features! {
    has_16_bit_vmid = ("id_aa64mmfr1_el1", 4, 2); has_cnp = ("id_aa64mmfr2_el1", 0, 1);
    /// FEAT_CLRBHB: one instruction, a NOP elsewhere, clears the history.
    has_clrbhb = ("id_aa64isar2_el1", 28, 1);
    has_pan = ("id_aa64mmfr1_el1", 20, 1); has_ssbs = ("id_aa64pfr1_el1", 4, 1);
    has_nmi = ("id_aa64pfr1_el1", 36, 1); has_mte2 = ("id_aa64pfr1_el1", 8, 2);
    has_sve = ("id_aa64pfr0_el1", 32, 1); has_sme = ("id_aa64pfr1_el1", 24, 1);
    has_sme_fa64 = ("s3_0_c0_c4_5", 63, 1); has_sme2 = ("id_aa64pfr1_el1", 24, 2);
    has_gic_registers = ("id_aa64pfr0_el1", 24, 1); has_ras = ("id_aa64pfr0_el1", 28, 1);
    has_vhe = ("id_aa64mmfr1_el1", 8, 1); has_lor = ("id_aa64mmfr1_el1", 16, 1);
    has_hcx = ("id_aa64mmfr1_el1", 40, 1); has_mops = ("id_aa64isar2_el1", 16, 1);
    has_tcr2 = ("s3_0_c0_c7_3", 0, 1); has_sctlr2 = ("s3_0_c0_c7_3", 4, 1);
    has_s1pie = ("s3_0_c0_c7_3", 8, 1); has_s1poe = ("s3_0_c0_c7_3", 16, 1);
    has_s2poe = ("s3_0_c0_c7_3", 20, 1); has_aie = ("s3_0_c0_c7_3", 24, 1);
    has_fpmr = ("s3_0_c0_c4_2", 32, 1); has_gcs = ("id_aa64pfr1_el1", 44, 1);
    has_the = ("id_aa64pfr1_el1", 48, 1); has_fgt = ("id_aa64mmfr0_el1", 56, 1);
    has_fgt2 = ("id_aa64mmfr0_el1", 56, 2); has_amu = ("id_aa64pfr0_el1", 44, 1);
    has_trbe = ("id_aa64dfr0_el1", 44, 1); has_trace_filter = ("id_aa64dfr0_el1", 40, 1);
    has_brbe = ("id_aa64dfr0_el1", 52, 1);
}

/// What the world switch asks of this CPU, a bit each: read from the ID registers once, when the CPU comes up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Has(u32);

macro_rules! asked {
    ($($name:ident),+ $(,)?) => {
        #[expect(non_camel_case_types, reason = "the numbers of what is asked, by its name")]
        enum Asked { $($name),+ }

        impl Has {
            /// Asks the ID registers, for [`Self::here`].
            pub(super) fn configure() {
                let all = $(u32::from(Ids.$name()) << Asked::$name as u32)|+;
                this_cpu().has.store(all, Ordering::Relaxed);
            }

            /// What this CPU has.
            #[inline(always)]
            pub(crate) fn here() -> Self { Self(this_cpu().has.load(Ordering::Relaxed)) }

            $(#[inline(always)]
            pub(crate) fn $name(self) -> bool { self.0 & 1 << Asked::$name as u32 != 0 })+
        }
    };
}

asked! {
    has_pointer_auth, has_gic_registers, has_ras, has_pmu, has_spe_buffer, has_trace_filter, has_trace_buffer,
    has_brbe,
    has_mpam, has_mpam_hcr, has_hcx, has_fgt, has_fgt2, has_sve, has_sme, has_fpmr,
}
