// SPDX-License-Identifier: MIT OR Apache-2.0
//! The two macros through which this crate reaches system registers by name or by encoding.
//!
//! They exist because the instruction wants the register in its text: a function cannot do it.
//! The assembly has no `nomem`, so the compiler keeps memory accesses on their side of it.

/// Reads a system register.
macro_rules! read_sysreg {
    ($reg:literal) => {{
        let value: u64;
        // SAFETY: an MRS of a register that the caller knows to be implemented at EL2 (features are
        // gated on their ID field) has no effect on memory.
        unsafe { core::arch::asm!(concat!("mrs {}, ", $reg), out(reg) value, options(nostack)) };
        value
    }};
}

/// Writes a system register. The caller adds the barrier that the register needs.
macro_rules! write_sysreg {
    ($reg:literal, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: an MSR of a register that the caller knows to be implemented at EL2; the values
        // written in this crate never change how EL2's own code, stack or tables are reached, except
        // in `mmu`, where the tables are complete before.
        unsafe { core::arch::asm!(concat!("msr ", $reg, ", {}"), in(reg) value, options(nostack)) };
    }};
}

/// Takes the `width`-bit field at bit `at` of a register value.
pub(crate) const fn field(value: u64, at: u32, width: u32) -> u64 {
    (value >> at) & ((1 << width) - 1)
}
