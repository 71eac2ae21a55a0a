// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the host asks, and in which order: everything of the driver that is a decision.
//!
//! The states of a `guest_memfd` ([`page`]), the engine that drains a page before it becomes private ([`drain`],
//! [`convert`]), donation in batches ([`give`]), slots, KVM's ABI, the run loop, a VM's life and its end. The kernel
//! and `el2` are reached through ports (traits), so that the same source runs against a model on the development
//! machine and inside the module. Keeps I5 (no page is donated while the host holds a reference) and the driver's half
//! of I6 and I8. Knows no kernel type, no lock, no clock.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::panic
    )
)]

pub mod abi;
pub mod access;
pub mod convert;
pub mod doorbell;
pub mod drain;
pub mod el2;
pub mod end;
pub mod error;
pub mod exit;
pub mod faults;
pub mod file;
pub mod give;
pub mod guest;
pub mod idle;
pub mod lend;
pub mod notify;
pub mod page;
pub mod pinned;
pub mod plain;
pub mod pool;
pub mod registers;
pub mod run;
pub mod slots;
pub mod status;
pub mod vgic;

#[cfg(test)]
mod model;
