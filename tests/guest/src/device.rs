// SPDX-License-Identifier: MIT OR Apache-2.0
//! The VMM's device: each access is one exit.
//!
//! In assembly, because the access must have one register and no write-back: only then does the
//! syndrome of the abort describe it.

use crate::proto::{DEVICE, REG_CONSOLE};
use core::arch::asm;

/// Stores 8 bytes.
pub(crate) fn write64(register: u64, value: u64) {
    // SAFETY: the device lies outside RAM; the store reaches no memory of this program.
    unsafe { asm!("str {}, [{}]", in(reg) value, in(reg) DEVICE + register, options(nostack)) };
}

/// Loads 8 bytes.
pub(crate) fn read64(register: u64) -> u64 {
    let value: u64;
    // SAFETY: as in `write64`.
    unsafe { asm!("ldr {}, [{}]", out(reg) value, in(reg) DEVICE + register, options(nostack)) };
    value
}

/// Loads 4 bytes from any device.
pub(crate) fn read32(address: u64) -> u64 {
    let value: u64;
    // SAFETY: as in `write64`.
    unsafe { asm!("ldr {:w}, [{}]", out(reg) value, in(reg) address, options(nostack)) };
    value & 0xffff_ffff
}

/// Prints one character.
fn put(byte: u8) {
    // SAFETY: as in `write64`.
    unsafe { asm!("strb {:w}, [{}]", in(reg) u32::from(byte), in(reg) DEVICE + REG_CONSOLE, options(nostack)) };
}

/// Prints text.
pub(crate) fn print(text: &str) {
    text.bytes().for_each(put);
}
