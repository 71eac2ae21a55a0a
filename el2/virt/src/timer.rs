// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest's timers, as data: the virtual one between two runs, and the physical one, which is emulated.
//!
//! The guest's virtual timer is the CPU's own while it runs; this is what is kept of it. Its physical timer traps; this
//! is all there is of it. Both count what the CPU counts, for the offset is zero for ever (D11). Time is passed in.
//! Source: Arm ARM D11.2.

use crate::sysreg::Encoding;

const ENABLE: u64 = 1;
const MASKED: u64 = 2;
const FIRED: u64 = 4;

/// A comparator with its control bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Timer {
    control: u64,
    compare: u64,
}

/// The registers that a timer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// `TVAL`: the comparator as a signed distance from now.
    Value,
    /// `CTL`.
    Control,
    /// `CVAL`.
    Compare,
}

impl Register {
    /// The register of the physical timer that has this encoding, `CNTP_*_EL0`.
    #[must_use]
    pub fn physical(encoding: Encoding) -> Option<Self> {
        [Self::Value, Self::Control, Self::Compare]
            .into_iter()
            .zip(0..3)
            .find_map(|(register, op2)| (encoding == Encoding::new(3, 3, 14, 2, op2)).then_some(register))
    }
}

impl Timer {
    /// After reset: off.
    #[must_use]
    pub const fn new() -> Self {
        Self { control: 0, compare: 0 }
    }

    /// As the CPU has it in its registers. Whether it fired is not kept: the time says so.
    #[must_use]
    pub const fn of_registers(control: u64, compare: u64) -> Self {
        Self { control: control & (ENABLE | MASKED), compare }
    }

    /// `CTL` and `CVAL` for the CPU.
    #[must_use]
    pub const fn registers(self) -> (u64, u64) {
        (self.control, self.compare)
    }

    /// Reads a register at this time.
    #[must_use]
    pub const fn read(self, register: Register, now: u64) -> u64 {
        match register {
            Register::Value => self.compare.wrapping_sub(now) & 0xffff_ffff,
            Register::Control if self.control & ENABLE != 0 && now >= self.compare => self.control | FIRED,
            Register::Control => self.control,
            Register::Compare => self.compare,
        }
    }

    /// Writes a register at this time.
    pub fn write(&mut self, register: Register, value: u64, now: u64) {
        match register {
            Register::Value => self.compare = now.wrapping_add(value as i32 as u64),
            Register::Control => self.control = value & (ENABLE | MASKED),
            Register::Compare => self.compare = value,
        }
    }

    /// Whether its interrupt's wire is high at this time.
    #[must_use]
    pub const fn asserts(self, now: u64) -> bool {
        self.control == ENABLE && now >= self.compare
    }

    /// When its wire will go high by itself; `None` if it is high or will not.
    #[must_use]
    pub const fn deadline(self, now: u64) -> Option<u64> {
        if self.control == ENABLE && now < self.compare { Some(self.compare) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(compare: u64) -> Timer {
        Timer::of_registers(ENABLE, compare)
    }

    #[test]
    fn only_the_physical_timers_registers_are_served() {
        for (op2, register) in [(0, Register::Value), (1, Register::Control), (2, Register::Compare)] {
            assert_eq!(Register::physical(Encoding::new(3, 3, 14, 2, op2)), Some(register));
            assert_eq!(Register::physical(Encoding::new(3, 3, 14, 3, op2)), None, "the virtual one");
            assert_eq!(Register::physical(Encoding::new(3, 7, 14, 2, op2)), None, "the secure one");
        }
        assert_eq!(Register::physical(Encoding::new(3, 3, 14, 2, 3)), None);
        assert_eq!(Register::physical(Encoding::new(3, 3, 14, 0, 1)), None, "the counter");
    }

    #[test]
    fn it_fires_when_the_count_reaches_the_comparator_and_only_if_it_may() {
        for (compare, now, fires) in [
            (0, 0, true),
            (100, 99, false),
            (100, 100, true),
            (100, 101, true),
            (u64::MAX, 0, false),
            (u64::MAX, u64::MAX, true),
        ] {
            assert_eq!(on(compare).asserts(now), fires, "{compare} at {now}");
            assert_eq!(on(compare).read(Register::Control, now) & FIRED != 0, fires);
            assert_eq!(on(compare).deadline(now), (!fires).then_some(compare));
            for control in [0, MASKED, ENABLE | MASKED] {
                let timer = Timer::of_registers(control, compare);
                assert!(!timer.asserts(now));
                assert_eq!(timer.deadline(now), None);
                let fired = timer.read(Register::Control, now) & FIRED != 0;
                assert_eq!(fired, fires && control & ENABLE != 0, "masked, it still says that it fired");
            }
        }
    }

    #[test]
    fn the_short_view_is_signed_and_wraps() {
        let mut timer = Timer::new();
        for (value, now, compare) in [
            (10, 5, 15),
            (0xffff_ffff, 5, 4),
            (0x8000_0000, 0, 0xffff_ffff_8000_0000),
            (0x1_0000_0001, 7, 8),
            (1, u64::MAX, 0),
        ] {
            timer.write(Register::Value, value, now);
            assert_eq!(timer.read(Register::Compare, now), compare, "{value:#x} at {now}");
            assert_eq!(timer.read(Register::Value, now), value & 0xffff_ffff);
        }
    }

    #[test]
    fn what_was_written_is_read_and_reserved_bits_are_not() {
        let mut timer = Timer::new();
        timer.write(Register::Control, u64::MAX, 0);
        timer.write(Register::Compare, 0x1234_5678_9abc_def0, 0);
        assert_eq!(timer.registers(), (3, 0x1234_5678_9abc_def0));
        assert_eq!(Timer::of_registers(u64::MAX, 1).registers(), (3, 1), "that it fired is not kept");
    }
}
