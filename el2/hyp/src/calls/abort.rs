// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host touched a page that its stage 2 did not map: what the ledger and the tables say of it now (D7, D8).
//!
//! Guarantees that the answer is of one moment under the host's lock: a break-before-make window or a frame that came
//! back meanwhile is told from a page that the host does not have.

use super::Platform;
use freehold_mem::lock::Permit;
use freehold_mem::verbs::el2_revoke_guest;
use freehold_mem::{Claim, HostView, Ipa};

const STATUS: u64 = 0x3f;
const STATUS_LEVEL: u64 = 0x3;
const PERMISSION: u64 = 0x0c;
const TLB_CONFLICT: u64 = 0x30;
/// The fault is of a stage-1 table walk.
const S1PTW: u64 = 1 << 7;

/// What the syndrome of a stage-2 abort of the host's says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The TLB holds two translations of an address.
    Conflict,
    /// Nothing that could be looked up: for a permission fault that is not of a walk HPFAR_EL2 is UNKNOWN. The only
    /// permission that the host's stage 2 withholds is execution from devices.
    NoPage,
    /// HPFAR_EL2 names the page.
    Page {
        /// It was an access, not a walk, of the kernel's by an address of its own.
        may_revoke: bool,
    },
}

impl Fault {
    /// Reads the syndrome (ISS); `by_kernel` says that the kernel made the access, by an address of its own.
    pub const fn read(iss: u64, by_kernel: bool) -> Self {
        let of_walk = iss & S1PTW != 0;
        match iss & STATUS {
            TLB_CONFLICT => Self::Conflict,
            status if status & !STATUS_LEVEL == PERMISSION && !of_walk => Self::NoPage,
            // A walk is not an access of its own: a table in a lost frame is not worth a guest's page.
            _ => Self::Page { may_revoke: by_kernel && !of_walk },
        }
    }
}

/// Whether the access should be made again: the page is mapped after all, or was revocable and is the host's now. Only
/// an access of the kernel's by an address of its own `may_revoke`.
pub fn host_may_retry(p: &impl Platform, page: u64, may_revoke: bool) -> bool {
    let Some(ipa) = Ipa::new(page) else { return false };
    let world = p.world();
    let mut permit = Permit::for_this_entry();
    let mut host = world.host(&mut permit);
    let vm = match host.get().view(Claim::new(ipa), &p.machine()) {
        HostView::Mapped => return true,
        HostView::Private { vm, revocable: true, .. } if may_revoke => vm,
        HostView::Private { .. } | HostView::Pool(_) | HostView::El2 | HostView::Hole | HostView::Outside => {
            return false;
        }
    };
    let Some(mut both) = host.with_guest(world, vm.raw().into()) else { return false };
    let (host, slot) = both.get();
    match el2_revoke_guest::check(host, &mut slot.memory, Claim::new(ipa.identity())) {
        Ok(checked) => {
            checked.commit(&mut p.machine());
            true
        }
        // Held under the lock since the view: not reached.
        Err(_) => false,
    }
}
