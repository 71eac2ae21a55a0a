// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where a guest's random numbers come from: the CPU alone, seeded anew for each, in the one function that serves them, which
//! looks each time whether there is one. That they are random at all is the CPU's word.

use anyhow::Result;

use super::code::{Code, Does, plain};

/// `MRS` of `RNDRRS`, and of `RNDR`, which is not seeded anew; a register in the low bits, cleared here.
pub(super) const READ_SEEDED: u32 = 0xd53b_2420;
pub(super) const READ: u32 = 0xd53b_2400;
/// `CSET` of a 64-bit register by EQ: there is none now.
const NONE: u32 = 0x9a9f_17e0;

const SERVES: &str = "trng::serve";

/// Where an instruction stands, whatever the register in its low bits.
pub(super) fn places(code: &Code, word: u32) -> Vec<u64> {
    let is = |at: &u64| code.word(*at).is_some_and(|found| found & !31 == word);
    code.all().map(|(at, _)| at).filter(is).collect()
}

/// Whether the next instructions look whether there was one, and go elsewhere if not.
fn looks(code: &Code, read: u64) -> bool {
    let Some(flag) = code.word(read + 4) else { return false };
    let tests = |word: u32| word & 0xfe00_0000 == 0xb400_0000 && word & 31 == flag & 31;
    flag & !31 == NONE && matches!(code.does(read + 8), Some(Does::Branch(_))) && code.word(read + 8).is_some_and(tests)
}

/// What is wrong with them.
pub(super) fn judge(code: &Code) -> Result<Vec<String>> {
    let reads = places(code, READ_SEEDED);
    let mut found = Vec::new();
    if reads.is_empty() {
        found.push("no guest gets a random number of the CPU's".to_owned());
    }
    found.extend(places(code, READ).iter().map(|at| format!("a number that is not seeded anew: {}", code.shown(*at))));
    for at in reads {
        if !code.function(at).is_some_and(|function| plain(&function.name).ends_with(SERVES)) {
            found.push(format!("a random number outside of {SERVES}: {}", code.shown(at)));
        } else if !looks(code, at) {
            found.push(format!("nobody looks whether there is a number: {}", code.shown(at)));
        }
    }
    Ok(found)
}
