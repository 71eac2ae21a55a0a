// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host touched what stage 2 does not map for it (D7).
//!
//! Guarantees that a fault is injected only after a walk under the host lock still finds nothing:
//! a break-before-make window or a frame that came back meanwhile means "try again". What is injected
//! is an alignment abort, which a stock kernel turns into SIGBUS or EFAULT. A revocable frame that the
//! kernel reaches by an address of its own is scrubbed and given back instead (D8).

use crate::statics;
use freehold_arch::host::{self, Syndrome};
use freehold_arch::inject::{self, Abort};
use freehold_arch::percpu::PerCpu;
use freehold_arch::phys::Hardware;
use freehold_arch::tlb;
use freehold_mem::lock::Permit;
use freehold_mem::verbs::el2_revoke_guest;
use freehold_mem::{Claim, HostView, Ipa};

const STATUS: u64 = 0x3f;
const STATUS_LEVEL: u64 = 0x3;
const PERMISSION: u64 = 0x0c;
const TLB_CONFLICT: u64 = 0x30;
/// The fault is of a stage-1 table walk.
const S1PTW: u64 = 1 << 7;

/// Serves a stage-2 abort of the host.
pub(crate) fn serve(cpu: &PerCpu, abort: Abort, syndrome: Syndrome) {
    cpu.counters.faults.bump();
    let status = syndrome.bits() & STATUS;
    if status == TLB_CONFLICT {
        return tlb::invalidate_all_el1_here();
    }
    // For a permission fault that is not of a walk HPFAR_EL2 is UNKNOWN. The only permission that the
    // host's stage 2 withholds is execution from devices, so there is nothing to look up.
    let has_page = status & !STATUS_LEVEL != PERMISSION || syndrome.bits() & S1PTW != 0;
    // A walk is not an access of its own: a table in a lost frame is not worth a guest's page.
    let may_revoke = syndrome.bits() & S1PTW == 0 && inject::is_of_kernel_address();
    if has_page && is_reachable_by_now(host::fault_page(), may_revoke) {
        return;
    }
    cpu.counters.injected.bump();
    inject::alignment_abort(abort, syndrome);
}

/// Whether the access should be made again: the page is mapped after all, or was revocable and is the host's now (D8).
fn is_reachable_by_now(page: u64, may_revoke: bool) -> bool {
    let Some(ipa) = Ipa::new(page) else { return false };
    let world = &statics::machine().world;
    let mut permit = Permit::for_this_entry();
    let mut host = world.host(&mut permit);
    let vm = match host.get().view(Claim::new(ipa), &Hardware) {
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
            checked.commit(&mut Hardware);
            true
        }
        // Held under the lock since the view: not reached.
        Err(_) => false,
    }
}
