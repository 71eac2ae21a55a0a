// SPDX-License-Identifier: MIT OR Apache-2.0
//! The debug el2 with a fault: a guest that is given an external abort is told another address. It must be found.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod symbols;

/// Each time, so that the first that is barred shows it.
#[cfg(target_os = "none")]
const FAULT: freehold_el2_watch::fault::Fault = freehold_el2_watch::fault::Fault::WrongAddress;

/// On the development machine there is nothing to run.
#[cfg(not(target_os = "none"))]
fn main() {}
