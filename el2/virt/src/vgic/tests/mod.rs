// SPDX-License-Identifier: MIT OR Apache-2.0
//! The interrupt controller as a guest meets it: by its registers, and by what its CPU interface offers.

mod delivery;
mod naive;
mod registers;
mod rig;
