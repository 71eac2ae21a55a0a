// SPDX-License-Identifier: MIT OR Apache-2.0
//! The debug el2 with a fault: one store that takes a frame out of the host's tables is lost. It must be found.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod symbols;

/// Once a few VMs live.
#[cfg(target_os = "none")]
const FAULT: freehold_el2_watch::fault::Fault = freehold_el2_watch::fault::Fault::LostStore(500);

/// On the development machine there is nothing to run.
#[cfg(not(target_os = "none"))]
fn main() {}
