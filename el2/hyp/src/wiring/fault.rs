// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host touched what stage 2 does not map for it (D7).
//!
//! Guarantees that a fault is injected only after a walk under the host lock still finds nothing:
//! a break-before-make window or a frame that came back meanwhile means "try again". What is injected
//! is an alignment abort, which a stock kernel turns into SIGBUS or EFAULT. A revocable frame that the
//! kernel reaches by an address of its own is scrubbed and given back instead (D8).

use super::Kind;
use crate::calls::{self, Fault};
use freehold_arch::host::{self, Syndrome};
use freehold_arch::inject::{self, Abort};
use freehold_arch::percpu::PerCpu;
use freehold_arch::tlb;

/// Serves a stage-2 abort of the host.
#[inline(never)]
pub(crate) fn serve<K: Kind>(cpu: &PerCpu, abort: Abort, syndrome: Syndrome) {
    cpu.counters.faults.bump();
    match Fault::read(syndrome.bits(), inject::is_of_kernel_address()) {
        Fault::Conflict => return tlb::invalidate_all_el1_here(),
        Fault::Page { may_revoke } if calls::host_may_retry(&K::PLATFORM, host::fault_page(), may_revoke) => return,
        Fault::Page { .. } | Fault::NoPage => {}
    }
    cpu.counters.injected.bump();
    inject::alignment_abort(abort, syndrome);
}
