// SPDX-License-Identifier: MIT OR Apache-2.0
//! The debug el2 with a fault: the first leaf of a guest's tables maps the frame beside its own. It must be found.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod symbols;

/// Before the guest runs.
#[cfg(target_os = "none")]
const FAULT: freehold_el2_watch::fault::Fault =
    freehold_el2_watch::fault::Fault::GuestLeaf(freehold_el2_watch::fault::Twist::Elsewhere);

/// On the development machine there is nothing to run.
#[cfg(not(target_os = "none"))]
fn main() {}
