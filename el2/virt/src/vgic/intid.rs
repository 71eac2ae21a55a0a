// SPDX-License-Identifier: MIT OR Apache-2.0
//! Names of a guest's interrupts: every value is one that a VM has.

use crate::Refused;

/// An interrupt of a guest: 0–15 SGIs and 16–31 PPIs of one vCPU, from 32 on SPIs of the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Intid(u8);

impl Intid {
    /// The guest's virtual timer, which raises the CPU's own interrupt of that number.
    pub const VIRTUAL_TIMER: Self = Self(27);
    /// The guest's physical timer, which is emulated.
    pub const PHYSICAL_TIMER: Self = Self(30);

    /// The SPI that the host names: it raises no other kind (D10).
    ///
    /// # Errors
    /// `BadArgument` for an SGI, a PPI, or a number that no VM has.
    pub fn spi(word: u64) -> Result<Self, Refused> {
        match u8::try_from(word) {
            Ok(number) if number >= 32 => Ok(Self(number)),
            Ok(_) | Err(_) => Err(Refused::BadArgument),
        }
    }

    /// Number `bit` of the 32 of bank `bank`; both are cut to what there is.
    pub(super) const fn in_bank(bank: u32, bit: u32) -> Self {
        Self((bank << 5 | bit & 31) as u8)
    }

    /// Reads the number out of a register, which may name one that no VM has.
    pub(super) fn of_register(value: u64) -> Option<Self> {
        u8::try_from(value & 0xff_ffff).ok().map(Self)
    }

    /// The number.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0 as u32
    }

    /// Which 32.
    pub(super) const fn bank(self) -> usize {
        (self.0 >> 5) as usize
    }

    /// Its bit there.
    pub(super) const fn bit(self) -> u32 {
        1u32.unbounded_shl(self.0 as u32 & 31)
    }
}

/// The numbers of the bits that are set, lowest first.
pub(super) struct Bits(pub(super) u32);

impl Iterator for Bits {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let lowest = self.0.trailing_zeros();
        // Clears the lowest set bit; of none there is none to clear.
        self.0 &= self.0.wrapping_sub(1);
        (lowest < 32).then_some(lowest)
    }
}
