// SPDX-License-Identifier: MIT OR Apache-2.0
//! Objections to handles, counts, frames and guest frames.

use freehold_uapi::hvc;

use crate::op::Who;
use crate::outcome::Statuses;
use crate::record::{Life, Mark, Owner, Page, Vm};
use crate::state::State;

/// First frame number that no physical address reaches, and first guest frame number that no VM has.
const FRAMES_END: u64 = 1 << 40;

/// Frame numbers from here on are RAM on no machine; guest frame numbers from here on are beyond every VM.
pub(super) const FRAMES_NEAR: u64 = 1 << 28;

/// The VM that a handle names.
pub(super) fn named(state: &impl State, who: Who) -> Result<(u8, Vm), Statuses> {
    match who {
        Who::Slot(slot) if slot < state.machine().slots && state.vm(slot).life != Life::Free => {
            Ok((slot, state.vm(slot)))
        }
        Who::Slot(slot) if slot < state.machine().slots && state.vm(slot).used => Err(Statuses::one(hvc::STALE_HANDLE)),
        Who::Ended => Err(Statuses::one(hvc::STALE_HANDLE)),
        Who::Slot(_) | Who::Never => Err(Statuses::one(hvc::WRONG_HANDLE)),
    }
}

/// A run of frames or guest frames: `first`, `count` of at most `most`; `outside` is what lies beyond the numbers.
pub(super) fn run(first: u64, count: u64, most: u64, outside: i64) -> Statuses {
    let end = first.checked_add(count);
    Statuses::NONE
        .when(count == 0, hvc::ZERO_COUNT)
        .when(count > most, hvc::COUNT_TOO_LARGE)
        .when(end.is_none_or(|e| e > FRAMES_END), hvc::OVERFLOW)
        // Where the number space ends is not said, nor that a count is judged before its last frame is.
        .when(end.is_some_and(|e| e > FRAMES_NEAR), outside)
}

/// Whether a run's frames can be named one by one.
pub(super) fn countable(first: u64, count: u64, most: u64) -> bool {
    count <= most && first.checked_add(count).is_some_and(|e| e <= FRAMES_END)
}

/// A host frame that is to go to VM `slot`; `None` is a VM that does not exist yet.
pub(super) fn gift(page: &Page, slot: Option<u8>) -> Statuses {
    match page.owner {
        Owner::NotMemory => Statuses::one(hvc::NOT_MEMORY),
        Owner::NoMap => Statuses::one(hvc::NO_MAP),
        Owner::El2 => Statuses::one(hvc::EL2_OWNED),
        Owner::Host => Statuses::NONE.when(page.borrows > 0, hvc::SHARED),
        Owner::Guest { slot: s, .. } => belongs(slot == Some(s)).when(page.lent, hvc::SHARED),
        // A pool holds tables: it is the VM's, and `el2`'s.
        Owner::Pool { slot: s } => belongs(slot == Some(s)).when(true, hvc::EL2_OWNED),
    }
}

fn belongs(ours: bool) -> Statuses {
    Statuses::one(if ours { hvc::ALREADY_DONATED } else { hvc::FOREIGN })
}

/// A host frame that is to be lent to ordinary VM `slot`.
pub(super) fn loan(page: &Page, slot: u8) -> Statuses {
    match page.owner {
        Owner::NotMemory => Statuses::one(hvc::NOT_MEMORY),
        Owner::NoMap => Statuses::one(hvc::NO_MAP),
        Owner::El2 => Statuses::one(hvc::EL2_OWNED),
        Owner::Host => Statuses::NONE.when(page.borrows == u16::MAX, hvc::SHARED),
        Owner::Guest { slot: s, .. } => belongs(slot == s).when(page.lent, hvc::SHARED),
        Owner::Pool { slot: s } => belongs(slot == s).when(true, hvc::EL2_OWNED),
    }
}

/// A frame that dying VM `slot` is to give back.
pub(super) fn return_of(page: &Page, slot: u8, vm: &Vm) -> Statuses {
    match page.owner {
        Owner::NotMemory => Statuses::one(hvc::NOT_MEMORY),
        Owner::NoMap => Statuses::one(hvc::NO_MAP),
        Owner::El2 => Statuses::one(hvc::EL2_OWNED),
        Owner::Host => Statuses::one(hvc::HOST_OWNED),
        Owner::Guest { slot: s, .. } => Statuses::NONE.when(s != slot, hvc::FOREIGN),
        Owner::Pool { slot: s } if s != slot => Statuses::one(hvc::FOREIGN).when(true, hvc::EL2_OWNED),
        Owner::Pool { .. } => Statuses::NONE.when(vm.guest > 0 || vm.borrowed > 0, hvc::GUEST_FRAMES_LEFT),
    }
}

/// Objections to each frame of a run.
pub(super) fn each(state: &impl State, pfn: u64, count: u64, objection: impl Fn(&Page) -> Statuses) -> Statuses {
    (pfn..pfn.saturating_add(count)).fold(Statuses::NONE, |all, n| all.and(objection(&state.page(n))))
}

/// Whether a guest frame lies in one of the VM's ranges.
pub(super) fn in_ram(state: &impl State, slot: u8, gfn: u64) -> bool {
    let ranges = (0..state.machine().ranges).map_while(|n| state.range(slot, n));
    ranges.into_iter().any(|(first, count)| gfn >= first && gfn - first < count)
}

/// A guest frame that is to be backed.
pub(super) fn vacancy(state: &impl State, slot: u8, gfn: u64) -> Statuses {
    let mark = match state.mark(slot, gfn) {
        Mark::None => Statuses::NONE,
        Mark::Poisoned => Statuses::one(hvc::GFN_POISONED),
        Mark::Borrow { .. } => Statuses::one(hvc::GFN_MAPPED),
        // No RAM, which is said below.
        Mark::Device => Statuses::NONE,
    };
    mark.when(state.backing(slot, gfn).is_some(), hvc::GFN_MAPPED)
        .when(!in_ram(state, slot, gfn), hvc::GFN_OUT_OF_RANGE)
}

/// Objections to each guest frame of a run.
pub(super) fn each_gfn(state: &impl State, slot: u8, gfn: u64, count: u64) -> Statuses {
    (gfn..gfn.saturating_add(count)).fold(Statuses::NONE, |all, n| all.and(vacancy(state, slot, n)))
}
