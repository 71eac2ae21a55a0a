// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an external abort that el2 gives a guest must show it: the guest's own access, and nothing else.
//!
//! Read from the architecture (Arm ARM, `AArch64.TakeException`, `ESR_ELx`), not from the code that gives it.

/// What made a guest stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Made {
    /// `ESR_EL2` and `FAR_EL2`.
    pub esr: u64,
    /// The address.
    pub far: u64,
    /// Where it was.
    pub pc: u64,
    /// Its state.
    pub pstate: u64,
}

/// What a vCPU finds when it goes on, or will.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where it goes on.
    pub pc: u64,
    /// In which state.
    pub pstate: u64,
    /// Its vectors.
    pub vbar: u64,
    /// What EL1 is told of an exception: the syndrome.
    pub esr: u64,
    /// The address.
    pub far: u64,
    /// Where it was.
    pub elr: u64,
    /// Its state then.
    pub spsr: u64,
}

impl Found {
    /// All zero.
    pub const NONE: Self = Self { pc: 0, pstate: 0, vbar: 0, esr: 0, far: 0, elr: 0, spsr: 0 };
}

/// M[4:0] of a PSTATE, and the modes that a guest may be in.
const MODE: u64 = 0x1f;
const EL0T: u64 = 0;
const EL1T: u64 = 4;
const EL1H: u64 = 5;
const DAIF: u64 = 0xf << 6;
/// Of a syndrome: that the exception did not change its level, the length of the instruction, maintenance of caches, a store.
const SAME_LEVEL: u64 = 1 << 26;
const CLASS: u64 = 0x3f << 26;
const LENGTH: u64 = 1 << 25;
const CLEANS: u64 = 1 << 8;
const STORES: u64 = 1 << 6;
/// A synchronous external abort that no walk met.
const EXTERNAL: u64 = 0x10;

/// Whether the vCPU finds an external abort of its own for the access by which it stopped.
#[must_use]
pub fn is_external_abort(made: &Made, found: &Found) -> bool {
    let (vector, level) = match made.pstate & MODE {
        EL0T => (0x400, 0),
        EL1T => (0, SAME_LEVEL),
        EL1H => (0x200, SAME_LEVEL),
        _ => return false,
    };
    let esr = made.esr & (CLASS | LENGTH | CLEANS | STORES) | level | EXTERNAL;
    let told = (found.esr, found.far, found.elr, found.spsr) == (esr, made.far, made.pc, made.pstate);
    let goes = found.pc == found.vbar.wrapping_add(vector) && found.pstate & (MODE | DAIF) == EL1H | DAIF;
    told && goes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_word_of_an_abort_counts() {
        for (esr, pstate, told, vector) in [
            (
                0x24 << 26 | 1 << 25 | 1 << 24 | 2 << 22 | STORES | 7,
                0x8000_0345,
                0x25 << 26 | LENGTH | STORES | 0x10,
                0x200,
            ),
            (0x24 << 26 | CLEANS | STORES | 6, 0x344, 0x25 << 26 | CLEANS | STORES | 0x10, 0),
            (0x20 << 26 | 1 << 25 | 1 << 7 | 5, 0, 0x20 << 26 | LENGTH | 0x10, 0x400),
        ] {
            let made = Made { esr, far: 0x1234, pc: 0x8000_0010, pstate };
            let good = Found {
                pc: 0xffff_0000 + vector,
                pstate: 0x3c5 | 1 << 22,
                vbar: 0xffff_0000,
                esr: told,
                far: 0x1234,
                elr: 0x8000_0010,
                spsr: pstate,
            };
            assert!(is_external_abort(&made, &good), "{esr:#x}");
            let wrong: [fn(&mut Found); 9] = [
                |found| found.pc += 4,
                |found| found.pstate ^= 1 << 7,
                |found| found.pstate ^= 1,
                |found| found.vbar ^= 0x800,
                |found| found.esr ^= 1 << 26,
                |found| found.esr |= 1 << 24,
                |found| found.far ^= 8,
                |found| found.elr += 4,
                |found| found.spsr ^= 1 << 31,
            ];
            for (number, spoil) in wrong.into_iter().enumerate() {
                let mut found = good;
                spoil(&mut found);
                assert!(!is_external_abort(&made, &found), "{number}");
            }
        }
        let made = Made { esr: 0x24 << 26, far: 0, pc: 0, pstate: 9 };
        assert!(!is_external_abort(&made, &Found::NONE), "of no mode that a guest runs in");
    }
}
