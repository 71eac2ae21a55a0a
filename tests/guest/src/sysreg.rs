// SPDX-License-Identifier: MIT OR Apache-2.0
//! System registers by name or encoding; a function cannot put one into an instruction's text.

/// Reads a system register.
macro_rules! read {
    ($register:literal) => {{
        let value: u64;
        // SAFETY: reading a register that EL1 has; if it has not, the trap handler says so.
        unsafe { core::arch::asm!(concat!("mrs {}, ", $register), out(reg) value, options(nostack)) };
        value
    }};
}

/// Writes a system register, and makes it take effect.
macro_rules! write {
    ($register:literal, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: writing a register that this payload alone uses; its code and stack stay mapped.
        unsafe { core::arch::asm!(concat!("msr ", $register, ", {}"), "isb", in(reg) value, options(nostack)) };
    }};
}

pub(crate) use {read, write};

/// A field of a register.
pub(crate) const fn field(value: u64, at: u32) -> u64 {
    value >> at & 0xf
}

/// The virtual counter.
pub(crate) fn counter() -> u64 {
    // SAFETY: an ISB only orders; it keeps the read from being done early.
    unsafe { core::arch::asm!("isb", options(nostack)) };
    read!("cntvct_el0")
}
