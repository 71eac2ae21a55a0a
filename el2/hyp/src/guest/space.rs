// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest's address space as its exits are decided by: the tables, and for its own calls the ledger too.

use freehold_arch::phys::Hardware;
use freehold_mem::{Claim, Gfn, Guest, GuestView, Host, State};
use freehold_virt::guest_call::{Backing, Space};

/// What of the VM's memory is in view.
pub(super) enum View<'l> {
    /// Nothing: the exception is not about memory.
    Nothing,
    /// What is mapped. Private and shared frames look alike.
    Mapped(&'l Guest),
    /// What is mapped, and whose it is.
    Owned(&'l Host<'static>, &'l Guest),
}

impl Space for View<'_> {
    fn backing(&self, gfn: Gfn) -> Backing {
        let (host, guest) = match self {
            Self::Nothing => return Backing::Outside,
            Self::Mapped(guest) => (None, guest),
            Self::Owned(host, guest) => (Some(host), guest),
        };
        match guest.view(Claim::new(gfn.ipa()), &Hardware) {
            GuestView::Device => Backing::Outside,
            GuestView::Absent(_) => Backing::Empty,
            GuestView::Poisoned(_) => Backing::Poisoned,
            GuestView::Mapped(frame) => match host.and_then(|host| host.ledger().state(frame)) {
                Some(State::Shared { .. }) => Backing::Shared,
                Some(_) | None => Backing::Private,
            },
        }
    }
}
