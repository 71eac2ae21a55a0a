// SPDX-License-Identifier: MIT OR Apache-2.0
mod controls;
mod rig;
mod storm;
mod traces;
