// SPDX-License-Identifier: MIT OR Apache-2.0
//! EL2 registers that say what EL1 may do: the guest's values, and a copy of the host's.
//!
//! The guest's follow from deny by default: whatever a protected guest's ID registers do not show,
//! traps or is UNDEFINED. Enabling bits (HCRX_EL2, the inverted fine-grained traps) are all zero.

use crate::features::{Has, Ids};
use freehold_virt::setting::Stage2Here;

const HCR_VM: u64 = 1 << 0;
const HCR_SWIO: u64 = 1 << 1;
const HCR_PTW: u64 = 1 << 2;
const HCR_FMO: u64 = 1 << 3;
const HCR_IMO: u64 = 1 << 4;
const HCR_AMO: u64 = 1 << 5;
const HCR_FB: u64 = 1 << 9;
const HCR_BSU_IS: u64 = 1 << 10;
const HCR_TWI: u64 = 1 << 13;
const HCR_TID1: u64 = 1 << 16;
const HCR_TID2: u64 = 1 << 17;
const HCR_TID3: u64 = 1 << 18;
const HCR_TSC: u64 = 1 << 19;
const HCR_TIDCP: u64 = 1 << 20;
const HCR_TACR: u64 = 1 << 21;
const HCR_TSW: u64 = 1 << 22;
const HCR_RW: u64 = 1 << 31;
const HCR_TLOR: u64 = 1 << 35;
const HCR_TERR: u64 = 1 << 36;
const HCR_TEA: u64 = 1 << 37;
const HCR_APK: u64 = 1 << 40;
const HCR_API: u64 = 1 << 41;
const HCR_FWB: u64 = 1 << 46;
const HCR_TID5: u64 = 1 << 58;

/// CPTR_EL2 with E2H=0: RES1 bits, SVE (TZ) and SME (TSM) trapped.
const CPTR_NO_VECTORS: u64 = 0x33ff;
const CPTR_TFP: u64 = 1 << 10;
const CPTR_TTA: u64 = 1 << 20;
const CPTR_TAM: u64 = 1 << 30;

const MDCR_TPMCR: u64 = 1 << 5;
const MDCR_TPM: u64 = 1 << 6;
const MDCR_TDA: u64 = 1 << 9;
const MDCR_TDOSA: u64 = 1 << 10;
const MDCR_TDRA: u64 = 1 << 11;
const MDCR_TPMS: u64 = 1 << 14;
const MDCR_TTRF: u64 = 1 << 19;
const MDCR_TDCC: u64 = 1 << 27;
/// HPMN, HPMD and HCCD: how the counters are split, which is the host's.
const MDCR_KEPT: u64 = 0x1f | 1 << 17 | 1 << 23;

/// EL1PCTEN: the physical counter may be read. EL1PCEN clear: the physical timer traps.
const CNTHCTL_GUEST: u64 = 1;

/// HCR_EL2 while a guest runs.
fn guest_hcr(ids: &Ids) -> u64 {
    let mut hcr = HCR_VM | HCR_SWIO | HCR_PTW | HCR_FMO | HCR_IMO | HCR_AMO | HCR_FB | HCR_BSU_IS;
    hcr |= HCR_TWI | HCR_TID1 | HCR_TID2 | HCR_TID3 | HCR_TSC | HCR_TIDCP | HCR_TACR | HCR_TSW;
    hcr |= HCR_RW;
    let optional = [
        (ids.has_lor(), HCR_TLOR),
        (ids.has_ras(), HCR_TERR | HCR_TEA),
        (ids.has_pointer_auth(), HCR_APK | HCR_API),
        (ids.has_s2fwb(), HCR_FWB),
        (ids.has_mte2(), HCR_TID5),
    ];
    optional.iter().filter(|(has, _)| *has).fold(hcr, |all, (_, bits)| all | bits)
}

/// CPTR_EL2 while a guest runs; `with_fp` once it has the vector registers.
pub(super) fn guest_cptr(with_fp: bool) -> u64 {
    let fp = if with_fp { 0 } else { CPTR_TFP };
    CPTR_NO_VECTORS | CPTR_TTA | CPTR_TAM | fp
}

fn guest_mdcr(ids: &Ids, host: u64) -> u64 {
    let optional = [
        (ids.pmu_version() != 0, MDCR_TPM | MDCR_TPMCR),
        (ids.spe_version() != 0, MDCR_TPMS),
        (ids.has_trace_filter(), MDCR_TTRF),
        (ids.has_fgt(), MDCR_TDCC),
    ];
    let always = host & MDCR_KEPT | MDCR_TDA | MDCR_TDOSA | MDCR_TDRA;
    optional.iter().filter(|(has, _)| *has).fold(always, |all, (_, bits)| all | bits)
}

macro_rules! optional_traps {
    ($($group:ident if $has:ident { $($field:ident = $register:literal),+ $(,)? })+) => {
        /// Fine-grained traps and extended enables of the host, where implemented.
        #[derive(Clone, Copy, Debug)]
        struct FineTraps { $($($field: u64,)+)+ }

        impl FineTraps {
            const fn new() -> Self {
                Self { $($($field: 0,)+)+ }
            }

            fn save(&mut self, ids: Has) {
                $(if ids.$has() { $(self.$field = read_sysreg!($register);)+ })+
            }

            fn restore(&self, ids: Has) {
                $(if ids.$has() {
                    let Self { $($field,)+ .. } = *self;
                    $(write_sysreg!($register, $field);)+
                })+
            }

            /// All zero: what is enabled by a set bit is off, what has an inverted trap bit traps.
            fn deny(ids: Has) {
                $(if ids.$has() { $(write_sysreg!($register, 0);)+ })+
            }
        }
    };
}

optional_traps! {
    extended if has_hcx { hcrx = "s3_4_c1_c2_2" }
    fine if has_fgt {
        hfgrtr = "s3_4_c1_c1_4", hfgwtr = "s3_4_c1_c1_5", hfgitr = "s3_4_c1_c1_6", hdfgrtr = "s3_4_c3_c1_4",
        hdfgwtr = "s3_4_c3_c1_5",
    }
    fine2 if has_fgt2 {
        hfgrtr2 = "s3_4_c3_c1_2", hfgwtr2 = "s3_4_c3_c1_3", hfgitr2 = "s3_4_c3_c1_7", hdfgrtr2 = "s3_4_c3_c1_0",
        hdfgwtr2 = "s3_4_c3_c1_1",
    }
}

/// EL2 registers as the host runs with them, ELR_EL2 and SPSR_EL2 of its trap included. All but those two are the same
/// from the first entry of the host on, also when firmware brings the CPU up anew: they are read once.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct HostTraps {
    /// HCR_EL2 and MDCR_EL2 while a guest runs.
    guest: [u64; 2],
    elr: u64,
    spsr: u64,
    /// HCR_EL2; zero until it was read.
    hcr: u64,
    cptr: u64,
    mdcr: u64,
    cnthctl: u64,
    pub(super) stage2: Stage2Here,
    vpidr: u64,
    vmpidr: u64,
    fine: FineTraps,
}

impl HostTraps {
    pub(super) const fn new() -> Self {
        Self {
            elr: 0,
            spsr: 0,
            guest: [0; 2],
            hcr: 0,
            cptr: 0,
            mdcr: 0,
            cnthctl: 0,
            stage2: Stage2Here { vtcr: 0, vttbr: 0 },
            vpidr: 0,
            vmpidr: 0,
            fine: FineTraps::new(),
        }
    }

    pub(super) fn save(&mut self, ids: Has) {
        self.elr = read_sysreg!("elr_el2");
        self.spsr = read_sysreg!("spsr_el2");
        if self.hcr == 0 {
            self.read(ids);
        }
    }

    #[cold]
    #[inline(never)]
    fn read(&mut self, ids: Has) {
        self.hcr = read_sysreg!("hcr_el2");
        self.cptr = read_sysreg!("cptr_el2");
        self.mdcr = read_sysreg!("mdcr_el2");
        self.cnthctl = read_sysreg!("cnthctl_el2");
        self.stage2 = Stage2Here { vtcr: read_sysreg!("vtcr_el2"), vttbr: read_sysreg!("vttbr_el2") };
        self.vpidr = read_sysreg!("vpidr_el2");
        self.vmpidr = read_sysreg!("vmpidr_el2");
        self.fine.save(ids);
        self.guest = [guest_hcr(&Ids), guest_mdcr(&Ids, self.mdcr)];
    }

    /// Writes the guest's traps. Stage-1 walks must be off; an ISB must follow.
    pub(super) fn apply_guest_traps(&self, ids: Has) {
        let [hcr, mdcr] = self.guest;
        write_sysreg!("hcr_el2", hcr);
        write_sysreg!("cptr_el2", guest_cptr(false));
        write_sysreg!("mdcr_el2", mdcr);
        write_sysreg!("cnthctl_el2", CNTHCTL_GUEST);
        FineTraps::deny(ids);
    }

    /// Puts the host's stage 2 and traps back. Stage-1 walks must be off.
    pub(super) fn restore(&self, ids: Has) {
        super::stage2::load(self.stage2);
        // All are loaded before the first is written: in pairs.
        let Self { elr, spsr, hcr, cptr, mdcr, cnthctl, vpidr, vmpidr, .. } = *self;
        write_sysreg!("hcr_el2", hcr);
        write_sysreg!("cptr_el2", cptr);
        write_sysreg!("mdcr_el2", mdcr);
        write_sysreg!("cnthctl_el2", cnthctl);
        write_sysreg!("vpidr_el2", vpidr);
        write_sysreg!("vmpidr_el2", vmpidr);
        write_sysreg!("elr_el2", elr);
        write_sysreg!("spsr_el2", spsr);
        self.fine.restore(ids);
    }
}
