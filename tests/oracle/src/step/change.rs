// SPDX-License-Identifier: MIT OR Apache-2.0
//! How a page's record changes when it moves.

use freehold_uapi::hvc;

use crate::op::Env;
use crate::outcome::Statuses;
use crate::record::{Content, Owner, Page, Vm};
use crate::state::State;

/// The bit of a slot in [`Debts`](crate::Debts).
pub(super) const fn bit(slot: u8) -> u64 {
    1 << (slot & 63)
}

/// How many frames a long call does: all, or as many as an interrupt left it, and one at the least.
pub(super) fn done(count: u64, env: &Env<'_>) -> u64 {
    env.done.clamp(1, count.max(1))
}

/// Host frames become a VM's pool.
pub(super) fn to_pool(s: &mut impl State, slot: u8, pfn: u64, count: u64) {
    for n in pfn..pfn.saturating_add(count) {
        let page = s.page(n);
        s.set_page(n, Page { owner: Owner::Pool { slot }, content: Content::Secret(slot), ..page });
    }
}

/// A host frame becomes a guest's.
pub(super) fn to_guest(s: &mut impl State, pfn: u64, slot: u8, gfn: u64, revocable: bool, ran: bool) {
    let page = s.page(pfn);
    // Before the first run contents stay; zeros are zeros.
    let kept = !ran && page.content == Content::Public;
    let content = if kept { Content::Initial } else { Content::Zero };
    let owner = Owner::Guest { slot, gfn: u32::try_from(gfn).unwrap_or(u32::MAX) };
    s.set_page(pfn, Page { owner, revocable, content, lent: false, ..page });
}

/// A VM's frame becomes the host's.
pub(super) fn to_host(s: &mut impl State, pfn: u64, content: Content) {
    let page = s.page(pfn);
    s.set_page(pfn, Page { owner: Owner::Host, content, lent: false, revocable: false, ..page });
}

/// The pool of a VM is too short for what the operation needs.
pub(super) fn short(vm: &Vm, env: &Env<'_>) -> Statuses {
    Statuses::NONE.when(env.need > u64::from(vm.free), hvc::NEED_PAGES)
}

/// The VM's record after it took and returned pool pages.
pub(super) fn spend(vm: Vm, env: &Env<'_>) -> Vm {
    let free = u64::from(vm.free).saturating_sub(env.need).saturating_add(env.freed);
    Vm { free: u32::try_from(free).unwrap_or(u32::MAX), ..vm }
}
