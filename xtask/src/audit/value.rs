// SPDX-License-Identifier: MIT OR Apache-2.0
//! What registers hold after a straight piece of code: as much of the arithmetic as stands in front of a `MSR`.
//!
//! A result of an instruction that is not known here is not known, which is never taken for the right one.

/// The registers, as far as they are known.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Values([Option<u64>; 31]);

impl Values {
    /// As a function finds them that is called with these in x0 and x1.
    pub(super) fn called_with(x0: u64, x1: u64) -> Self {
        let mut values = Self::default();
        (values.0[0], values.0[1]) = (Some(x0), Some(x1));
        values
    }

    /// A register; 31 is zero.
    pub(super) fn get(&self, register: u32) -> Option<u64> {
        self.0.get(register as usize).map_or(Some(0), |value| *value)
    }

    /// Carries out the word at `at`, which is no branch.
    pub(super) fn step(&mut self, at: u64, word: u32) {
        let rd = (word & 31) as usize;
        if let Some(place) = writes(word).then(|| self.result(at, word)).zip(self.0.get_mut(rd)) {
            *place.1 = place.0;
        }
    }

    fn result(&self, at: u64, word: u32) -> Option<u64> {
        let (rd, rn, rm) = (self.get(word & 31), self.get(word >> 5 & 31), self.get(word >> 16 & 31));
        let is = |mask: u32, value: u32| word & mask == value;
        // Arm ARM C4.1: PC-relative, AND with low ones, MOVZ and MOVK, ADD with an immediate, ORR of a shifted register, UBFM and BFM.
        if is(0x1f00_0000, 0x1000_0000) {
            let low = u64::from(word >> 29 & 3);
            let offset = ((i64::from(word) << 40 >> 45) << 2) as u64 | low;
            let page = word >> 31 != 0;
            let base = if page { at & !0xfff } else { at };
            return Some(base.wrapping_add(if page { offset << 12 } else { offset }));
        }
        // AND with low ones.
        if is(0xffff_0000, 0x9240_0000) || is(0xffff_8000, 0x1200_0000) {
            return rn.map(|n| n & (u64::MAX >> (63 - (word >> 10 & 63))));
        }
        let wide = |value: u64| if word >> 31 == 0 { value & 0xffff_ffff } else { value };
        if is(0x1f80_0000, 0x1280_0000) {
            let (value, shift) = (u64::from(word >> 5 & 0xffff), 16 * (word >> 21 & 3));
            return match word >> 29 & 3 {
                2 => Some(wide(value << shift)),
                3 => Some(wide(rd? & !(0xffff << shift) | value << shift)),
                _ => None,
            };
        }
        if is(0x7f80_0000, 0x1100_0000) {
            let shift = if word >> 22 & 1 == 0 { 0 } else { 12 };
            // Register 31 is the stack pointer here.
            return (word >> 5 & 31 != 31)
                .then(|| rn.map(|n| wide(n.wrapping_add(u64::from(word >> 10 & 0xfff) << shift))))?;
        }
        if is(0x7fe0_0000, 0x2a00_0000) {
            return Some(wide(rn? | wide(rm? << (word >> 10 & 63))));
        }
        if is(0xffc0_0000, 0xd340_0000) || is(0xffc0_0000, 0xb340_0000) {
            let (r, s) = (word >> 16 & 63, word >> 10 & 63);
            let (field, to) = if s >= r {
                ((rn? >> r) & (u64::MAX >> (63 - (s - r))), 0)
            } else {
                (rn? & (u64::MAX >> (63 - s)), 64 - r)
            };
            let mask = (u64::MAX >> (63 - if s >= r { s - r } else { s })) << to;
            return Some(if is(0xffc0_0000, 0xd340_0000) { field << to } else { rd? & !mask | field << to });
        }
        None
    }
}

/// Whether an instruction may write to the register in its low bits: all but what is known not to.
fn writes(word: u32) -> bool {
    let is = |mask: u32, value: u32| word & mask == value;
    // MSR, hints, barriers, SYS; stores.
    !(is(0xffe0_0000, 0xd500_0000) || is(0x3bc0_0000, 0x3900_0000) || is(0x3ec0_0000, 0x2800_0000))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(words: &[u32]) -> Values {
        let mut values = Values::called_with(7, 0x5a);
        (0x1000..).step_by(4).zip(words).for_each(|(at, word)| values.step(at, *word));
        values
    }

    #[test]
    fn what_stands_before_an_msr_is_known() {
        assert_eq!(after(&[0xaa01_c108]).get(8), None, "orr x8, x8, x1, lsl #48, of what is not known");
        // adr x12, #8; orr x8, x12, x1, lsl #48.
        assert_eq!(after(&[0x1000_004c, 0xaa01_c188]).get(8), Some(0x5a << 48 | 0x1008));
        // adrp x9, one page on; add x9, x9, #0x10; bfi x9, x1, #48, #16.
        assert_eq!(after(&[0xb000_0009, 0x9100_4129, 0xb350_3c29]).get(9), Some(0x5a << 48 | 0x2010));
        // lsl x8, x1, #48; mov x8, xzr.
        assert_eq!(after(&[0xd350_3c28]).get(8), Some(0x5a << 48));
        assert_eq!(after(&[0xd350_3c28, 0xaa1f_03e8]).get(8), Some(0));
        // mov w8, #4; movk w8, #1, lsl #16; uxtb.
        assert_eq!(after(&[0x5280_0088, 0x72a0_0028]).get(8), Some(0x1_0004));
        assert_eq!(after(&[0xd340_1c28]).get(8), Some(0x5a), "ubfx x8, x1, #0, #8");
        assert_eq!(after(&[0x1200_1c21]).get(1), Some(0x5a), "and w1, w1, #0xff");
        assert_eq!(after(&[0x1200_0421]).get(1), Some(2), "and w1, w1, #3");
        assert_eq!(after(&[0x1000_004c]).get(31), Some(0));
    }

    #[test]
    fn what_is_not_known_is_not_guessed() {
        // ldr x1, [x0]; mrs x1, vttbr_el2; neg x1, x1.
        for word in [0xf940_0001, 0xd53c_2101, 0xcb01_03e1] {
            assert_eq!(after(&[word]).get(1), None, "{word:#x}");
        }
        // msr vttbr_el2, x1; str x1, [x0]; stp x1, x2, [sp]; isb; dsb ish.
        for word in [0xd51c_2101, 0xf900_0001, 0xa900_0be1, 0xd503_3fdf, 0xd503_3b9f] {
            assert_eq!(after(&[word]).get(1), Some(0x5a), "{word:#x}");
        }
    }
}
