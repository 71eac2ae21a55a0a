// SPDX-License-Identifier: MIT OR Apache-2.0
//! The debug el2 with a fault that only its trace shows: the host's translations are not invalidated, once.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod symbols;

/// Among the first VMs.
#[cfg(target_os = "none")]
const FAULT: freehold_el2_watch::fault::Fault = freehold_el2_watch::fault::Fault::LostInvalidation(20);

/// On the development machine there is nothing to run.
#[cfg(not(target_os = "none"))]
fn main() {}
