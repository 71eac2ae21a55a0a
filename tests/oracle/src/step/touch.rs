// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host touches a frame, its own or not.

use super::change;
use crate::op::Stray;
use crate::outcome::{Debts, Done, Outcome};
use crate::record::{Content, Mark, Owner, Page, Vm};
use crate::state::State;

pub(super) fn decide(s: &impl State, pfn: u64, from: Stray) -> Outcome {
    let page = s.page(pfn);
    if let Owner::Guest { slot, .. } = page.owner
        && revoked(&page, from)
    {
        let debts = Debts { host: false, guests: change::bit(slot) };
        return Outcome { debts, ..Outcome::done(Done::Revoked) };
    }
    Outcome::done(match (page.owner, page.host_reaches()) {
        (Owner::NotMemory, _) => Done::Unsaid,
        (_, true) => Done::Allowed,
        (_, false) => Done::Injected,
    })
}

/// A revocable page goes to a kernel that touches it by an address of its own; that kernel could not take a fault.
fn revoked(page: &Page, from: Stray) -> bool {
    page.revocable && !page.lent && from == Stray::Kernel
}

pub(super) fn apply(s: &mut impl State, pfn: u64, write: bool, from: Stray) {
    let page = s.page(pfn);
    if let Owner::Guest { slot, gfn } = page.owner
        && revoked(&page, from)
    {
        change::to_host(s, pfn, Content::Zero);
        s.set_mark(slot, gfn.into(), Mark::Poisoned);
        let vm = s.vm(slot);
        s.set_vm(slot, Vm { guest: vm.guest.saturating_sub(1), ..vm });
    }
    let page = s.page(pfn);
    if write && page.host_reaches() {
        let guest = matches!(page.owner, Owner::Guest { .. });
        let content = if guest { Content::Shared } else { Content::Public };
        s.set_page(pfn, Page { content, ..page });
    }
}
