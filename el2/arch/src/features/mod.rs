// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the host finds configured on every CPU: one file per feature, each detects and configures.
//!
//! Guarantees: after `configure_host` the host at EL1 may use everything its ID registers promise
//! without a trap, and no register that resets to an UNKNOWN value is left as it was. It runs on
//! every CPU at start and again whenever firmware brought the CPU up anew.

mod bhb;
mod debug;
mod fgt;
mod gic;
mod hcx;
mod ids;
mod limits;
pub(crate) mod sve;
mod timer;

pub(crate) use ids::Has;
pub use ids::Ids;

use crate::barrier;

/// HCR_EL2 bits that the host runs with, by what this CPU implements.
const HCR_VM: u64 = 1 << 0;
const HCR_SWIO: u64 = 1 << 1;
const HCR_TSC: u64 = 1 << 19;
const HCR_TIDCP: u64 = 1 << 20;
const HCR_TACR: u64 = 1 << 21;
const HCR_RW: u64 = 1 << 31;
const HCR_APK: u64 = 1 << 40;
const HCR_API: u64 = 1 << 41;
const HCR_FWB: u64 = 1 << 46;
const HCR_ENSCXT: u64 = 1 << 53;
const HCR_ATA: u64 = 1 << 56;

/// HCR_EL2 for the host: stage 2 on; SMCs are trapped, and with them only what implementations define
/// for themselves (TIDCP, TACR), for on some cores that reaches the contents of the caches.
///
/// SWIO makes an invalidation by set and way a clean one: else the host could drop lines that a guest
/// or EL2 has written.
pub fn host_hcr() -> u64 {
    let optional = [
        (Ids.has_pointer_auth(), HCR_APK | HCR_API),
        (Ids.has_s2fwb(), HCR_FWB),
        (Ids.has_scxtnum(), HCR_ENSCXT),
        (Ids.has_mte2(), HCR_ATA),
    ];
    let always = HCR_VM | HCR_SWIO | HCR_TSC | HCR_TIDCP | HCR_TACR | HCR_RW;
    optional.iter().filter(|(has, _)| *has).fold(always, |all, (_, bits)| all | bits)
}

/// Sets every EL2 register that governs the host, except stage 2 itself.
pub fn configure_host() {
    Has::configure();
    sve::configure(&Ids);
    barrier::registers_in_effect();
    sve::configure_lengths(&Ids);
    hcx::configure(&Ids);
    fgt::configure(&Ids);
    debug::configure(&Ids);
    timer::configure();
    gic::configure(&Ids);
    bhb::configure(&Ids);
    limits::configure(&Ids);
    barrier::registers_in_effect();
}

/// Whether this CPU reaches its GIC through system registers (GICv3 and later).
pub fn has_gic_system_registers() -> bool {
    Ids.has_gic_registers()
}
