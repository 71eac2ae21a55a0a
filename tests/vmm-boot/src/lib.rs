// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a guest of `freehold-vmm run` finds when it starts, and what the user of the VMM may ask for.
//!
//! Pure: turns arguments and files into bytes and addresses, and says in one line what is wrong with them. Knows
//! nothing of KVM, of devices' file descriptors or of who runs the vCPUs.

#![forbid(unsafe_code)]

pub mod args;
pub mod console;
pub mod fdt;
pub mod image;
pub mod layout;
pub mod tally;
