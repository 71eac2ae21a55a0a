// SPDX-License-Identifier: MIT OR Apache-2.0
//! The flattened device tree: read with suspicion, rewritten into a copy of our own.
//!
//! Guarantees that a corrupt, cut-off or hostile blob yields a `Stop` and nothing else (I7). Every
//! walk is linear in the blob: the format has no references that could form a cycle, and phandles are
//! never followed. Source: Devicetree Specification 0.4, chapter 5.

pub mod edit;
pub mod machine;
mod read;

pub use read::{Dtb, Event, HEADER_SIZE, Node, total_size};

#[cfg(test)]
pub(crate) mod testing;
