// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest's address space as its exits are decided by: the tables, and for its own calls the ledger too.

use crate::calls::GuestSlot;
use freehold_mem::{Claim, Gfn, Guest, GuestView, Host, Kind, Machine, State};
use freehold_virt::guest_call::{Backing, Space};
use freehold_virt::measure::Measurement;

/// What of the VM's memory is in view.
pub(super) struct View<'l, M> {
    host: Option<&'l Host<'static>>,
    guest: Option<&'l Guest>,
    measurement: Option<&'l Measurement>,
    machine: &'l M,
}

impl<'l, M: Machine> View<'l, M> {
    /// Nothing: the exception is not about memory.
    pub(super) fn nothing(machine: &'l M) -> Self {
        Self { host: None, guest: None, measurement: None, machine }
    }

    /// What is mapped. Private and shared frames look alike.
    pub(super) fn mapped(guest: &'l Guest, machine: &'l M) -> Self {
        Self { host: None, guest: Some(guest), measurement: None, machine }
    }

    /// What is mapped, whose it is, and what the VM started from.
    pub(super) fn owned(host: &'l Host<'static>, guest: &'l GuestSlot, machine: &'l M) -> Self {
        Self { host: Some(host), guest: Some(&guest.memory), measurement: Some(&guest.measurement), machine }
    }
}

impl<M: Machine> Space for View<'_, M> {
    fn is_protected(&self) -> bool {
        self.guest.and_then(Guest::kind) == Some(Kind::Protected)
    }

    fn attest(&self) -> Option<[u64; 5]> {
        self.measurement.map(Measurement::attest)
    }

    #[inline(always)]
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
