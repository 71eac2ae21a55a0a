// SPDX-License-Identifier: MIT OR Apache-2.0
mod controls;
mod exits;
mod power;
mod rig;
mod storm;
mod traces;
