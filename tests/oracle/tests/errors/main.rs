// SPDX-License-Identifier: MIT OR Apache-2.0
//! One test for each error that a call documents: a call that is sound but for one thing is refused with that error
//! and no other. The tables are compared with the ABI's, so a new error without a test is noticed.

mod guest_calls;
mod host_calls;
mod stage;
