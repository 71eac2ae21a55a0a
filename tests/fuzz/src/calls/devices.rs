// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a guest says of its devices, and how it reaches for them.
//!
//! Its devices are the watched guest frames behind its RAM: what it opened elsewhere would be in nobody's book.

use freehold_model::Act;
use freehold_uapi::guest;

use super::host;
use super::pick::Step;
use super::{DEVICES, GFN, GFNS};

/// What a step does that is about devices.
pub(super) fn act(step: Step) -> Act {
    let ipa = (GFN + GFNS + u64::from(step.place >> 5) % DEVICES) << 12;
    let call = |id: u32, x: [u64; 3]| Act::Hvc { imm: 0, x: [id.into(), x[0], x[1], x[2]] };
    let end = u64::from(step.raw & 7);
    match step.frame % 16 {
        0 => call(guest::MMIO_GUARD_ENROLL, [0; 3]),
        1 => call(guest::MMIO_GUARD_INFO, [0; 3]),
        2 => {
            let id = if step.flag(5) { guest::MMIO_GUARD_ENROLL } else { guest::MMIO_GUARD_INFO };
            call(id, [step.edge(), u64::from(step.flag(3)), u64::from(step.flag(4))])
        }
        3..7 => call(guest::MMIO_GUARD_MAP, [ipa, 0, 0]),
        7..9 => call(guest::MMIO_GUARD_UNMAP, [ipa, 0, 0]),
        9 => {
            let id = if step.flag(5) { guest::MMIO_GUARD_MAP } else { guest::MMIO_GUARD_UNMAP };
            // Inside RAM, not aligned, or with an argument that must be zero.
            let wrong = [[GFN << 12, 0, 0], [ipa | end | 8, 0, 0], [ipa, 1, 0], [ipa, 0, step.edge() | 1]];
            call(id, wrong[usize::from(step.more >> 6)])
        }
        10..13 => host::access(step, ipa | u64::from(step.raw & 0xff8), step.flag(5)),
        // As far as its width goes, of the page behind it.
        13 => host::access(step, (ipa | 0xfff) - end, step.flag(5)),
        14 => Act::Walk { ipa },
        _ => Act::Fetch { ipa },
    }
}

/// Registers of a guest's call, but where they would open what is not watched.
pub(super) fn watched(x: [u64; 4]) -> [u64; 4] {
    let [id, ipa, a, b] = x;
    let opens = id == u64::from(guest::MMIO_GUARD_MAP) && a | b == 0;
    let known = (GFN..GFN + GFNS + DEVICES).contains(&(ipa >> 12));
    if opens && !known { [id, ipa, a, 1] } else { x }
}
