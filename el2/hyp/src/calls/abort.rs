// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host touched a page that its stage 2 did not map: what the ledger and the tables say of it now (D7, D8).
//!
//! Guarantees that the answer is of one moment under the host's lock: a break-before-make window or a frame that came
//! back meanwhile is told from a page that the host does not have. Does not know how the access was made.

use super::Platform;
use freehold_mem::lock::Permit;
use freehold_mem::verbs::el2_revoke_guest;
use freehold_mem::{Claim, HostView, Ipa};

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
