// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host touched what stage 2 does not map for it (D7).
//!
//! Guarantees that a fault is injected only after a walk under the host lock still finds nothing:
//! a break-before-make window or a frame that came back meanwhile means "try again". What is injected
//! is an alignment abort, which a stock kernel turns into SIGBUS or EFAULT. A revocable frame that the
//! kernel reaches by an address of its own is scrubbed and given back instead (D8).

use super::Kind;
use crate::calls;
use freehold_arch::host::{self, Syndrome};
use freehold_arch::inject::{self, Abort};
use freehold_arch::percpu::PerCpu;
use freehold_arch::tlb;

const STATUS: u64 = 0x3f;
const STATUS_LEVEL: u64 = 0x3;
const PERMISSION: u64 = 0x0c;
const TLB_CONFLICT: u64 = 0x30;
/// The fault is of a stage-1 table walk.
const S1PTW: u64 = 1 << 7;

/// Serves a stage-2 abort of the host.
pub(crate) fn serve<K: Kind>(cpu: &PerCpu, abort: Abort, syndrome: Syndrome) {
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
    if has_page && calls::host_may_retry(&K::PLATFORM, host::fault_page(), may_revoke) {
        return;
    }
    cpu.counters.injected.bump();
    inject::alignment_abort(abort, syndrome);
}
