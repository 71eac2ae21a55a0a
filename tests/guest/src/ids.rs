// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the ID registers promise: nothing that a protected guest may not have.

use crate::proto::{ID_AARCH32, ID_LEVELS, ID_MTE, ID_PARANGE, ID_PMU, ID_SME, ID_SVE, ID_TRACE};
use crate::sysreg::{field, read};

/// Checks the view; returns the bits of what is wrong.
pub(crate) fn check() -> u64 {
    let pfr0 = read!("id_aa64pfr0_el1");
    let pfr1 = read!("id_aa64pfr1_el1");
    let dfr0 = read!("id_aa64dfr0_el1");
    let mmfr0 = read!("id_aa64mmfr0_el1");
    let pmu = field(dfr0, 8);
    let facts = [
        (field(pfr0, 32) != 0, ID_SVE),
        (field(pfr1, 24) != 0, ID_SME),
        (pmu != 0 && pmu != 0xf, ID_PMU),
        ([32, 40, 44, 52].iter().any(|&at| !matches!(field(dfr0, at), 0 | 0xf)), ID_TRACE),
        (field(pfr1, 8) != 0, ID_MTE),
        (field(pfr0, 0) > 1 || field(pfr0, 4) > 1, ID_AARCH32),
        (field(mmfr0, 0) > 2, ID_PARANGE),
        ([36, 40, 44].iter().any(|&at| field(pfr0, at) != 0), ID_LEVELS),
    ];
    facts.iter().filter(|(wrong, _)| *wrong).fold(0, |all, (_, bit)| all | bit)
}
