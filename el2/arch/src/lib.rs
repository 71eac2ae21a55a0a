// SPDX-License-Identifier: MIT OR Apache-2.0
//! How an Arm core does it: registers, tables, caches, entry and exception vectors.
//!
//! Guarantees: every `unsafe` block of the hypervisor library lives here, one operation each.
//! Does not know: who owns which granule, what a virtual machine may do, what the host asked for.
//! It decides nothing; `mem` and `virt` decide, and `hyp` wires them to this crate.
#![no_std]

#[macro_use]
mod sysreg;

pub mod barrier;
pub mod cache;
pub mod entry;
pub mod fatal;
pub mod features;
pub mod gicr;
pub mod host;
pub mod image;
pub mod inject;
pub mod lock;
pub mod mmu;
pub mod percpu;
pub mod phys;
pub mod random;
pub mod smc;
pub mod switch;
pub mod tlb;
pub mod uart;
pub mod vcpu;
pub mod vectors;
