// SPDX-License-Identifier: MIT OR Apache-2.0
//! The CPU's random numbers (`FEAT_RNG`), freshly seeded for each one.

use crate::sysreg::field;
use core::arch::asm;

/// Whether this CPU has them.
pub fn is_there() -> bool {
    field(read_sysreg!("s3_0_c0_c6_0"), 60, 4) != 0 // ID_AA64ISAR0_EL1.RNDR
}

/// 64 bits out of RNDRRS, which says by the Z flag that there are none now. Only where [`is_there`].
pub fn draw() -> Option<u64> {
    let (value, none): (u64, u64);
    // SAFETY: the register is there, as the caller knows; a read changes nothing but the flags.
    unsafe { asm!("mrs {}, s3_3_c2_c4_1", "cset {}, eq", out(reg) value, out(reg) none, options(nomem, nostack)) };
    (none == 0).then_some(value)
}
