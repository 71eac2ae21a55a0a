// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who may touch which granule.
//!
//! This crate keeps I1 (one owner), I2 (nobody else reaches it), I3 (no translation outlives its
//! right), I4 (what the host gets back is zeroed), I6 (a refusal changes nothing) and the memory
//! half of I8 (all that was taken is returned). It guarantees them by shape:
//!
//! - a number from a lower EL is a [`Claim`]; only the ledger turns it into granules;
//! - the [`lock`] module makes the lock order a matter of types;
//! - every verb is `check`, which changes nothing, then `commit`, which cannot fail;
//! - unmapping returns a [`Debt`]; a frame changes owner only once the debt is [`Settled`].
//!
//! It does not know what a vCPU, a hypercall number or a system register is, and it never touches
//! memory, TLBs or caches itself: all of that sits behind [`ports`].
#![no_std]
#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic
)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::panic,
        clippy::wildcard_enum_match_arm,
        reason = "a test may stop where the shipped code may not"
    )
)]

#[cfg(test)]
extern crate std;

mod address;
mod batch;
mod cache_line;
mod confine;
mod debt;
mod devices;
mod few;
mod guest;
mod guest_space;
mod host;
mod host_build;
mod host_space;
mod ledger;
pub mod lock;
mod map;
mod pool;
pub mod ports;
mod pte;
mod record;
mod refused;
pub mod verbs;

#[cfg(test)]
mod tests;

pub use address::{
    BLOCK_FRAMES, Claim, Gfn, GfnRun, Ipa, Lot, MAX_FRAMES, MAX_RECORDS, PAGE_SIZE, Pa, Pfn, PfnRun, VmSlot, Vmid,
};
pub use batch::Granule;
pub use cache_line::{line_zeroed_at_once, smallest_line};
pub use confine::confine;
pub use debt::{Debt, OfGuest, OfHost, Settled};
pub use devices::MAX_DEVICES;
pub use guest::{Guest, GuestView, Kind, Life, MAX_RANGES};
pub use guest_space::Access;
pub use host::{Counters, Host, HostView};
pub use ledger::Ledger;
pub use map::{MapError, MemoryMap, Needs};
pub use ports::Machine;
pub use pte::{Attributes, Entry};
pub use record::State;
pub use refused::Refused;
