// SPDX-License-Identifier: MIT OR Apache-2.0
//! Indices that a lower level chose, by the functions that take them: confined where they are read out of a register
//! ([`freehold_mem::confine`]), and cut to the table's size where a VM or a vCPU is looked up by what an earlier step left in
//! memory. Both hold while a CPU speculates past the check. That `confine` computes the right mask is a unit test's; here
//! stands that the masks are in the image, and have not been folded into the check.

use anyhow::Result;

use super::code::{Code, Does, plain};

/// How an index is kept in bounds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    /// A mask made of a sign, as `confine` makes it.
    Sign,
    /// `AND` with ones in the low bits; so many.
    Bits(u32),
}

/// Low bits of the number of a VM's slot, and of a vCPU: [`freehold_virt::handle`].
const SLOT: By = By::Bits(6);
const VCPU: By = By::Bits(3);

/// Functions that take an index of a lower level's: how their names end, how they keep it in bounds, how often. Not more often
/// either: one that is lost would not be noticed beside one that is new. Where a function is gone, another has taken it in:
/// name that one. What VMs and vCPUs are looked up by comes out of functions that are never in line.
const TAKES: &[(&str, By, usize)] = &[
    // The host's: handles and vCPUs of every call, counters of CPUs, and everybody's frames.
    ("call::Call::decode", By::Sign, 18),
    ("calls::run", By::Sign, 2),
    ("counters::counter", By::Sign, 1),
    ("ledger::Ledger::place", By::Sign, 1),
    // A guest's: CPUs that it names in PSCI calls, and the frames of their redistributors.
    ("guest_power::Power::serve", By::Sign, 2),
    ("vgic::window::Window::locate", By::Sign, 1),
    // What these were made into, in memory since: a VM's lock, board and words, and a vCPU's words.
    ("handle::Slot::cut", SLOT, 1),
    ("VmCell$LT$A$GT$::vcpu", VCPU, 1),
];

/// What is wrong with them.
pub(super) fn judge(code: &Code) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for (name, by, wanted) in TAKES {
        let masks = places(code, name, *by).len();
        if masks != *wanted {
            let how = if *by == By::Sign { "masks" } else { "cuts" };
            found.push(format!("{name}: {masks} {how} of indices that a lower level chose, not {wanted}"));
        }
    }
    Ok(found)
}

/// All of the masks: what controls take away, one at a time.
pub(super) fn all(code: &Code) -> Vec<u64> {
    TAKES.iter().flat_map(|(name, by, _)| places(code, name, *by)).collect()
}

fn places(code: &Code, name: &str, by: By) -> Vec<u64> {
    let functions = code.functions().iter().filter(|function| plain(&function.name).ends_with(name));
    let all = functions.flat_map(|function| (function.start..function.end).step_by(4));
    all.filter(|at| masks(code, *at, by)).collect()
}

fn masks(code: &Code, at: u64, by: By) -> bool {
    match by {
        By::Sign => code.does(at) == Some(Does::SignMask),
        By::Bits(ones) => code.word(at).is_some_and(|word| cuts(word, ones)),
    }
}

/// Whether it is an `AND` of a register of either width with so many ones in the low bits. Arm ARM C6.2: AND (immediate).
const fn cuts(word: u32, ones: u32) -> bool {
    let ones = ones.wrapping_sub(1) << 10;
    matches!(word & 0xffff_fc00, found if found == 0x9240_0000 | ones || found == 0x1200_0000 | ones)
}

#[cfg(test)]
mod tests {
    use super::cuts;

    #[test]
    fn cuts_are_told_from_other_masks() {
        assert!(cuts(0x9240_1408, 6), "and x8, x0, #0x3f");
        assert!(cuts(0x1200_1408, 6), "and w8, w0, #0x3f");
        assert!(cuts(0x1200_0a93, 3), "and w19, w20, #7");
        assert!(!cuts(0x1200_1c21, 6), "and w1, w1, #0xff");
        assert!(!cuts(0x1200_1408, 3), "and w8, w0, #0x3f");
        assert!(!cuts(0x9210_1408, 6), "and x8, x0, #0x3f000000000000");
        assert!(!cuts(0x7200_1408, 6), "ands w8, w0, #0x3f");
    }
}
