// SPDX-License-Identifier: MIT OR Apache-2.0
//! The suite `guest-memfd`: files, conversions, and whoever holds or maps a page (I5, I6, I8).

pub(crate) mod broken;
mod busy;
pub(crate) mod calls;
mod charges;
pub(crate) mod convert;
pub(crate) mod draining;
pub(crate) mod files;
pub(crate) mod fuse;
pub(crate) mod holders;
pub(crate) mod kernel;
mod limits;
pub(crate) mod lives;
pub(crate) mod mappings;
pub(crate) mod numa;
pub(crate) mod populate;
pub(crate) mod pressure;
mod rig;
mod running;
mod sleeps;
pub(crate) mod starved;
pub(crate) mod stress;
mod touches;
mod waits;
pub(crate) mod wide;

use crate::report::Step;

/// Every case of the suite is this step's.
pub(crate) const STEP: Step = Step("guest-memfd");
