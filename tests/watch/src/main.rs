// SPDX-License-Identifier: MIT OR Apache-2.0
//! The debug el2: boots, serves and traps as the released one does, and is watched.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod symbols;

/// Nothing is wrong.
#[cfg(target_os = "none")]
const FAULT: freehold_el2_watch::fault::Fault = freehold_el2_watch::fault::Fault::None;

/// On the development machine there is nothing to run.
#[cfg(not(target_os = "none"))]
fn main() {}
