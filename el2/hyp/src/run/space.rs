// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest's address space as its exits are decided by: the tables, and for its own calls the ledger too.

use freehold_mem::{Claim, Gfn, Guest, GuestView, Host, Kind, Machine, State};
use freehold_virt::guest_call::{Backing, Space};

/// What of the VM's memory is in view.
pub(super) struct View<'l, M> {
    host: Option<&'l Host<'static>>,
    guest: Option<&'l Guest>,
    machine: &'l M,
}

impl<'l, M: Machine> View<'l, M> {
    /// Nothing: the exception is not about memory.
    pub(super) fn nothing(machine: &'l M) -> Self {
        Self { host: None, guest: None, machine }
    }

    /// What is mapped. Private and shared frames look alike.
    pub(super) fn mapped(guest: &'l Guest, machine: &'l M) -> Self {
        Self { host: None, guest: Some(guest), machine }
    }

    /// What is mapped, and whose it is.
    pub(super) fn owned(host: &'l Host<'static>, guest: &'l Guest, machine: &'l M) -> Self {
        Self { host: Some(host), guest: Some(guest), machine }
    }
}

impl<M: Machine> Space for View<'_, M> {
    fn is_protected(&self) -> bool {
        self.guest.and_then(Guest::kind) == Some(Kind::Protected)
    }

    fn backing(&self, gfn: Gfn) -> Backing {
        let Some(guest) = self.guest else { return Backing::Outside };
        match guest.view(Claim::new(gfn.ipa()), self.machine) {
            GuestView::Device => Backing::Outside,
            GuestView::Absent(_) => Backing::Empty,
            GuestView::Poisoned(_) => Backing::Poisoned,
            GuestView::Mapped(frame) => match self.host.and_then(|host| host.ledger().state(frame)) {
                Some(State::Shared { .. }) => Backing::Shared,
                Some(_) | None => Backing::Private,
            },
        }
    }
}
