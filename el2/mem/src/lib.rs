// SPDX-License-Identifier: MIT OR Apache-2.0
//! Placeholder.
#![no_std]
#![forbid(unsafe_code)]
