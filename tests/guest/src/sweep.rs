// SPDX-License-Identifier: MIT OR Apache-2.0
//! The controller's frames: a load at every word, and at many offsets loads and stores of every width, aligned or not.
//!
//! What the architecture (IHI 0069, 12.8 to 12.11) does not give a register, or not at that width, reads as zero and
//! ignores stores; affinity routing is on, and there are 256 INTIDs, one security state and no LPIs.

use crate::device::read32 as load;
use crate::interrupts::{GICD, GICR, SGI_FRAME};
use crate::mmu::UNALIGNED;
use crate::proto::{HASH_SEED, hash_step};
use core::arch::asm;

const FRAME: u64 = 0x1_0000;
/// Distance of the offsets at which all widths are tried: no width divides it, and all misalignments come. An access takes
/// an exit.
const STRIDE: usize = 29;

/// A frame, and where its banks of 32 begin and end.
#[derive(Clone, Copy)]
struct Frame {
    base: u64,
    banks: (u64, u64),
    is: fn(u64, u64) -> bool,
}

/// Whether the frame of this kind has a register of so many bytes here, beside those of each bank.
fn distributor(offset: u64, bytes: u64) -> bool {
    match offset {
        0 | 4 | 8 | 0xffe8 => bytes == 4,
        // IROUTER; the upper halves hold Aff3, of which there is none.
        0x6100..0x6800 => offset.is_multiple_of(8) && (bytes == 4 || bytes == 8),
        _ => false,
    }
}

fn control(offset: u64, bytes: u64) -> bool {
    match offset {
        4 | 12 | 0x14 | 0xffe8 => bytes == 4,
        8 => bytes == 4 || bytes == 8,
        _ => false,
    }
}

fn nowhere(_: u64, _: u64) -> bool {
    false
}

impl Frame {
    fn has(self, offset: u64, bytes: u64) -> bool {
        let within = |base: u64, size: u64| (base + self.banks.0 * size..base + self.banks.1 * size).contains(&offset);
        if !offset.is_multiple_of(bytes) {
            return false;
        }
        let one_bit = (1..8).any(|n| within(n * 0x80, 4));
        (self.is)(offset, bytes)
            || bytes == 4 && (one_bit || within(0x400, 32) || within(0xc00, 8))
            || bytes == 1 && within(0x400, 32)
    }

    /// Hash of all registers.
    fn digest(self) -> u64 {
        let words = (0..FRAME).step_by(4).filter(|offset| self.has(*offset, 4));
        words.fold(HASH_SEED, |hash, offset| hash_step(hash, load(self.base + offset)))
    }

    /// Whether a load reads zero, if nothing is there; what else it reads is for others to judge.
    fn reads(self, offset: u64, bytes: u64) -> bool {
        get(UNALIGNED + self.base + offset, bytes) == 0 || self.has(offset, bytes)
    }

    /// The same, behind a store of ones where nothing is.
    fn ignores(self, offset: u64, bytes: u64) -> bool {
        if !self.has(offset, bytes) {
            put(UNALIGNED + self.base + offset, bytes);
        }
        self.reads(offset, bytes)
    }
}

macro_rules! access {
    ($text:literal, $($value:tt)+) => {
        // SAFETY: registers of the interrupt controller, outside RAM; only the named register changes.
        unsafe { asm!($text, $($value)+, options(nostack)) }
    };
}

fn get(at: u64, bytes: u64) -> u64 {
    let value: u64;
    match bytes {
        1 => access!("ldrb {:w}, [{}]", out(reg) value, in(reg) at),
        2 => access!("ldrh {:w}, [{}]", out(reg) value, in(reg) at),
        4 => access!("ldr {:w}, [{}]", out(reg) value, in(reg) at),
        _ => access!("ldr {}, [{}]", out(reg) value, in(reg) at),
    }
    value
}

fn put(at: u64, bytes: u64) {
    match bytes {
        1 => access!("strb {:w}, [{}]", in(reg) u64::MAX, in(reg) at),
        2 => access!("strh {:w}, [{}]", in(reg) u64::MAX, in(reg) at),
        4 => access!("str {:w}, [{}]", in(reg) u64::MAX, in(reg) at),
        _ => access!("str {}, [{}]", in(reg) u64::MAX, in(reg) at),
    }
}

/// Sweeps all frames of one CPU; the accesses that read something where nothing is, the first one's place, and how many
/// registers were met at their width.
pub(crate) fn all() -> [u64; 3] {
    let frames = [
        Frame { base: GICD, banks: (1, 8), is: distributor },
        Frame { base: GICR, banks: (0, 0), is: control },
        Frame { base: SGI_FRAME, banks: (0, 1), is: nowhere },
    ];
    let digests = frames.map(Frame::digest);
    let (mut wrong, mut first, mut met) = (0, 0, 0);
    let mut note = |frame: Frame, offset: u64, bytes: u64, holds: bool| {
        met += u64::from(frame.has(offset, bytes));
        if !holds {
            first = if wrong == 0 { frame.base + offset } else { first };
            wrong += 1;
        }
    };
    for frame in frames {
        for offset in (0..FRAME).step_by(4) {
            note(frame, offset, 4, frame.reads(offset, 4));
        }
        for offset in (0..FRAME).step_by(STRIDE) {
            [1, 2, 4, 8].into_iter().for_each(|bytes| note(frame, offset, bytes, frame.ignores(offset, bytes)));
        }
    }
    [wrong + u64::from(frames.map(Frame::digest) != digests), first, met]
}
