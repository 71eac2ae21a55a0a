// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an instruction is to the counting, and whose it is.

/// Who executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// EL0.
    User = 0,
    /// EL1 in the upper half of its addresses: a host's kernel.
    Kernel = 1,
    /// EL1 in the lower half: a payload that maps itself where it lies.
    Guest = 2,
    /// EL2.
    El2 = 3,
}

/// The class of code at `address` under `pstate`.
#[must_use]
pub const fn class(pstate: u64, address: u64) -> Class {
    match pstate >> 2 & 3 {
        0 => Class::User,
        1 if address >> 63 != 0 => Class::Kernel,
        1 => Class::Guest,
        _ => Class::El2,
    }
}

/// What is looked at beyond its being executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    Plain,
    /// Begin or end of something that is measured.
    Mark,
    /// `HVC` or `SMC`.
    Call,
    /// `ERET`, with or without authentication.
    Return,
    /// A TLB invalidation that other CPUs hear of.
    Broadcast,
    /// Maintenance of a line of the data cache by address.
    Line,
    /// `DC ZVA`.
    Zero,
}

const MARK: u32 = 0xd503_201f | 0x7a << 5;

/// What the instruction `word` is.
#[must_use]
pub const fn kind(word: u32) -> Kind {
    if word == MARK {
        return Kind::Mark;
    }
    if word & 0xffe0_001f == 0xd400_0002 || word & 0xffe0_001f == 0xd400_0003 {
        return Kind::Call;
    }
    if matches!(word, 0xd69f_03e0 | 0xd69f_0bff | 0xd69f_0fff) {
        return Kind::Return;
    }
    // SYS: op1 in [18:16], CRn in [15:12], CRm in [11:8], op2 in [7:5].
    if word & 0xfff8_0000 != 0xd508_0000 {
        return Kind::Plain;
    }
    let (op1, crn, crm, op2) = (word >> 16 & 7, word >> 12 & 15, word >> 8 & 15, word >> 5 & 7);
    match (crn, op1, crm, op2) {
        // With and without nXS.
        (8 | 9, _, 0..=3 | 5, _) | (8 | 9, 4, 4, 0 | 3 | 4 | 7) => Kind::Broadcast,
        (7, 3, 4, 1) => Kind::Zero,
        (7, 0 | 3, 6 | 10..=14, 1) => Kind::Line,
        _ => Kind::Plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_executes_is_told_by_level_and_half() {
        const HIGH: u64 = 0xffff_8000_8000_0000;
        assert_eq!(class(0x3c0, HIGH), Class::User);
        assert_eq!(class(0x3c5, HIGH), Class::Kernel);
        assert_eq!(class(0x3c4, 0x8000_0000), Class::Guest);
        assert_eq!(class(0x3c9, 0x4020_0000), Class::El2);
        assert_eq!(class(0x3c9, HIGH), Class::El2);
    }

    #[test]
    fn what_is_looked_at_is_recognised() {
        for (word, expected) in [
            (0xd503_2f5f, Kind::Mark),      // hint #0x7a
            (0xd503_201f, Kind::Plain),     // nop
            (0xd400_0002, Kind::Call),      // hvc #0
            (0xd400_0003, Kind::Call),      // smc #0
            (0xd400_0001, Kind::Plain),     // svc #0
            (0xd69f_03e0, Kind::Return),    // eret
            (0xd69f_0bff, Kind::Return),    // eretaa
            (0xd50c_83df, Kind::Broadcast), // tlbi vmalls12e1is
            (0xd50c_87df, Kind::Plain),     // tlbi vmalls12e1
            (0xd50c_8020, Kind::Broadcast), // tlbi ipas2e1is, x0
            (0xd50c_8420, Kind::Plain),     // tlbi ipas2e1, x0
            (0xd50c_8400, Kind::Broadcast), // tlbi ipas2e1os, x0
            (0xd508_871f, Kind::Plain),     // tlbi vmalle1
            (0xd50b_7420, Kind::Zero),      // dc zva, x0
            (0xd50b_7a20, Kind::Line),      // dc cvac, x0
            (0xd50b_7e20, Kind::Line),      // dc civac, x0
            (0xd508_7620, Kind::Line),      // dc ivac, x0
            (0xd50b_7520, Kind::Plain),     // ic ivau, x0
            (0xd508_7800, Kind::Plain),     // at s1e1r, x0
            (0xd53c_d040, Kind::Plain),     // mrs x0, tpidr_el2
        ] {
            assert_eq!(kind(word), expected, "{word:#x}");
        }
    }
}
