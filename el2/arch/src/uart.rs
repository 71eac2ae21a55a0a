// SPDX-License-Identifier: MIT OR Apache-2.0
//! A transmit-only PL011, for the banner and for the last words. It takes no lock of its own and
//! allocates nothing, so that a panic can always use it.
//!
//! Before the DTB names the console, a fixed address is used: QEMU `virt`'s, or the one given when
//! `el2` was built through `FREEHOLD_EARLY_UART` (hexadecimal, 0 for none).

use core::fmt;
use core::sync::atomic::{AtomicUsize, Ordering};
use tock_registers::interfaces::{Readable, Writeable};
use tock_registers::registers::{ReadOnly, WriteOnly};
use tock_registers::{register_bitfields, register_structs};

/// Where early messages go.
pub const EARLY_BASE: usize = match option_env!("FREEHOLD_EARLY_UART") {
    Some(text) => parse_hex(text),
    None => 0x0900_0000,
};

/// Base of the console in use; 0 is none.
static BASE: AtomicUsize = AtomicUsize::new(EARLY_BASE);

register_bitfields! { u32,
    Flags [
        /// The transmit FIFO takes no more.
        TXFF OFFSET(5) NUMBITS(1) []
    ]
}

register_structs! {
    Pl011 {
        (0x00 => data: WriteOnly<u32>),
        (0x04 => _receive),
        (0x18 => flags: ReadOnly<u32, Flags::Register>),
        (0x1c => @END),
    }
}

/// Polls before a character is given up: a console that never drains must not stop `el2`.
const PATIENCE: u32 = 10_000_000;

/// Tells where the console found in the DTB is. Its page must be mapped as device memory.
pub fn set_base(base: usize) {
    BASE.store(base, Ordering::Relaxed);
}

/// The console as a formatter's sink.
#[derive(Debug)]
pub struct Uart;

impl fmt::Write for Uart {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let base = BASE.load(Ordering::Relaxed);
        if base != 0 {
            for byte in text.bytes() {
                if byte == b'\n' {
                    put(base, b'\r');
                }
                put(base, byte);
            }
        }
        Ok(())
    }
}

fn put(base: usize, byte: u8) {
    // SAFETY: `base` is the early default or came through `set_base`: a PL011, whose page is mapped as
    // device memory before the first use. No read of these two registers has a side effect.
    let uart = unsafe { &*(base as *const Pl011) };
    for _ in 0..PATIENCE {
        if !uart.flags.is_set(Flags::TXFF) {
            break;
        }
    }
    uart.data.set(u32::from(byte));
}

const fn parse_hex(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut value = 0;
    let mut at = if bytes.len() > 2 && bytes[0] == b'0' && bytes[1] == b'x' { 2 } else { 0 };
    while at < bytes.len() {
        let digit = match bytes[at] {
            b @ b'0'..=b'9' => b - b'0',
            b @ b'a'..=b'f' => b - b'a' + 10,
            b @ b'A'..=b'F' => b - b'A' + 10,
            _ => panic!("FREEHOLD_EARLY_UART is not a hexadecimal number"),
        };
        value = value * 16 + digit as usize;
        at += 1;
    }
    value
}
