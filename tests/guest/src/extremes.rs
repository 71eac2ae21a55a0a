// SPDX-License-Identifier: MIT OR Apache-2.0
//! Both timers at the ends of what their comparators hold: zero, now, just past, far, all ones; and the view of 32 bits,
//! which is signed and wraps. The comparison is unsigned (Arm ARM, CNTV_CVAL_EL0 and CNTV_TVAL_EL0).

use crate::interrupts::{PENDING, acknowledge, end, poll};
use crate::proto::NO_INTERRUPT;
use crate::sysreg::{counter, read, write};

/// Enough that nothing is just about to fire: hours.
const FAR: u64 = 1 << 40;
/// After so many ticks what should have fired has not.
const PATIENCE: u64 = 600_000_000;
/// So long nothing comes.
const QUIET: u64 = 20_000;
const ON: u64 = 1;
const MASKED: u64 = 2;
const FIRED: u64 = 4;

/// One of the timers, by its registers.
#[derive(Clone, Copy)]
struct Timer {
    interrupt: u64,
    set_compare: fn(u64),
    compare: fn() -> u64,
    set_value: fn(u64),
    value: fn() -> u64,
    set_control: fn(u64),
    control: fn() -> u64,
}

macro_rules! timer {
    ($interrupt:literal, $compare:literal, $value:literal, $control:literal) => {
        Timer {
            interrupt: $interrupt,
            set_compare: |value| write!($compare, value),
            compare: || read!($compare),
            set_value: |value| write!($value, value),
            value: || read!($value),
            set_control: |value| write!($control, value),
            control: || read!($control),
        }
    };
}

const TIMERS: [Timer; 2] = [
    timer!(27, "cntv_cval_el0", "cntv_tval_el0", "cntv_ctl_el0"),
    timer!(30, "cntp_cval_el0", "cntp_tval_el0", "cntp_ctl_el0"),
];

impl Timer {
    /// With this comparator it fires, and its interrupt comes and is over with it; or neither.
    fn compares(self, compare: u64, fires: bool) -> bool {
        (self.set_control)(0);
        (self.set_compare)(compare);
        (self.set_control)(ON | MASKED);
        let masked = read!("isr_el1") & PENDING == 0;
        (self.set_control)(ON);
        let start = counter();
        let came = if fires { self.comes(start) } else { !is_waiting(start) };
        let fired = (self.control)() & FIRED != 0;
        (self.set_control)(0);
        if fires {
            end(self.interrupt);
        }
        let over = acknowledge() == NO_INTERRUPT;
        masked && came && fired == fires && over && (self.compare)() == compare
    }

    fn comes(self, start: u64) -> bool {
        while counter() - start < PATIENCE {
            match acknowledge() {
                NO_INTERRUPT => {}
                got => return got == self.interrupt,
            }
        }
        false
    }

    /// A value of 32 bits is so far from now, signed, and the comparator says so; it has fired if that is past.
    fn views(self, value: u32) -> bool {
        (self.set_control)(0);
        let before = counter();
        (self.set_value)(value.into());
        let after = counter();
        (self.set_control)(ON | MASKED);
        let compare = (self.compare)();
        let set_at = compare.wrapping_sub(i64::from(value.cast_signed()).cast_unsigned());
        let fired = (self.control)() & FIRED != 0;
        (self.set_control)(0);
        (before..=after).contains(&set_at) && fired == (compare <= after)
    }

    /// What is read is what is left, cut to 32 bits.
    fn shows(self, compare: u64) -> bool {
        (self.set_compare)(compare);
        (self.set_control)(ON | MASKED);
        let before = counter();
        let seen = (self.value)() as u32;
        let after = counter();
        (self.set_control)(0);
        (compare.wrapping_sub(before) as u32).wrapping_sub(seen) <= (after - before) as u32
    }
}

/// Whether an interrupt waits within a while from `start` on.
fn is_waiting(start: u64) -> bool {
    while counter() - start < QUIET {
        if read!("isr_el1") & PENDING != 0 {
            return true;
        }
    }
    false
}

/// Holds both against all of it; a bit for each that does not hold, and how many there were.
pub(crate) fn all() -> [u64; 3] {
    let (mut wrong, mut looked) = (0, 0);
    let mut note = |holds: bool| {
        wrong |= u64::from(!holds) << looked;
        looked += 1;
    };
    for timer in TIMERS {
        for (compare, fires) in [
            (0, true),
            (1, true),
            (counter(), true),
            (counter() - 1, true),
            (counter() + FAR, false),
            (1 << 63, false),
            (u64::MAX, false),
        ] {
            note(timer.compares(compare, fires));
        }
        // The last two are 34 s ahead and, unless the counter is younger than that, behind.
        [0, 0x3fff_ffff, u32::MAX, 0x7fff_ffff, 0x8000_0000].into_iter().for_each(|value| note(timer.views(value)));
        [0, 1 << 32, 1 << 63, u64::MAX].into_iter().for_each(|compare| note(timer.shows(compare)));
    }
    // A wait ends with the one of them that fires, however far the other is.
    for (ends, stays) in [(TIMERS[0], TIMERS[1]), (TIMERS[1], TIMERS[0])] {
        (stays.set_compare)(u64::MAX);
        (stays.set_control)(ON);
        (ends.set_compare)(counter() + 10 * QUIET);
        (ends.set_control)(ON);
        let got = poll();
        [ends, stays].into_iter().for_each(|timer| (timer.set_control)(0));
        end(got);
        note(got == ends.interrupt);
    }
    [wrong, looked, 0]
}
