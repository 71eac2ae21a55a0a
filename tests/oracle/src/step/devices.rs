// SPDX-License-Identifier: MIT OR Apache-2.0
//! The MMIO guard: which accesses outside RAM a guest lets its host see.

use freehold_uapi::guest;

use super::frames::{FRAMES_NEAR, in_ram};
use super::guest::answers;
use crate::outcome::{Outcome, Statuses};
use crate::record::{Mark, Vm};
use crate::state::State;

/// Whether an access there, outside RAM, is the guest's own abort.
pub(super) fn bars(s: &impl State, slot: u8, gfn: u64) -> bool {
    s.vm(slot).guarded && s.mark(slot, gfn) != Mark::Device
}

/// `None`: no call of these.
pub(super) fn decide(s: &impl State, slot: u8, id: u32, x: [u64; 3]) -> Option<Outcome> {
    let good = match id {
        guest::MMIO_GUARD_INFO if x == [0; 3] => return Some(answers([guest::GRANULE, 0, 0, 0])),
        guest::MMIO_GUARD_INFO => false,
        guest::MMIO_GUARD_ENROLL => x == [0; 3],
        guest::MMIO_GUARD_MAP | guest::MMIO_GUARD_UNMAP => {
            let [ipa, zero, nought] = x;
            let named = ipa % guest::GRANULE == 0 && zero | nought == 0 && ipa >> 12 < FRAMES_NEAR;
            named
                && !in_ram(s, slot, ipa >> 12)
                && u64::from(windows(s, slot, ipa >> 12, id == guest::MMIO_GUARD_MAP)) <= guest::MMIO_RUNS
        }
        _ => return None,
    };
    Some(if good { answers([0; 4]) } else { Outcome::refused(Statuses::one(guest::INVALID_PARAMETER)) })
}

/// How many runs are open when this guest frame is, or is not.
fn windows(s: &impl State, slot: u8, gfn: u64, open: bool) -> u8 {
    let is = |gfn| s.mark(slot, gfn) == Mark::Device;
    // Neighbours that are open make one run with it, and two without.
    let beside = u8::from(gfn > 0 && is(gfn.saturating_sub(1))) + u8::from(is(gfn.saturating_add(1)));
    let now = s.vm(slot).windows;
    match (is(gfn), open) {
        (true, true) | (false, false) => now,
        (false, true) => now.saturating_add(1).saturating_sub(beside),
        (true, false) => now.saturating_add(beside).saturating_sub(1),
    }
}

pub(super) fn apply(s: &mut impl State, slot: u8, id: u32, [ipa, ..]: [u64; 3]) {
    let (vm, gfn) = (s.vm(slot), ipa >> 12);
    let windows = |open| windows(s, slot, gfn, open);
    match id {
        guest::MMIO_GUARD_ENROLL => s.set_vm(slot, Vm { guarded: true, ..vm }),
        guest::MMIO_GUARD_MAP => {
            let windows = windows(true);
            s.set_mark(slot, gfn, Mark::Device);
            // Of a small world's guest frames only some have marks.
            if s.mark(slot, gfn) == Mark::Device {
                s.set_vm(slot, Vm { windows, ..vm });
            }
        }
        guest::MMIO_GUARD_UNMAP => {
            let windows = windows(false);
            s.set_vm(slot, Vm { windows, ..vm });
            s.set_mark(slot, gfn, Mark::None);
        }
        _ => {}
    }
}
