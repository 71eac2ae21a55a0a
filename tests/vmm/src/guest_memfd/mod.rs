// SPDX-License-Identifier: MIT OR Apache-2.0
//! The suite `guest-memfd`: files, conversions, and whoever holds or maps a page (I5, I6, I8).

pub(crate) mod convert;
mod rig;

use crate::report::Step;

/// Every case of the suite is this step's.
pub(crate) const STEP: Step = Step("guest-memfd");
