// SPDX-License-Identifier: MIT OR Apache-2.0
//! What must be true of memory, tried on a machine that remembers every stale translation.

mod broken;
mod build;
mod devices;
mod edges;
mod fake;
mod life;
mod lists;
mod lock;
mod refusals;
mod rig;
mod split;
mod walk;
