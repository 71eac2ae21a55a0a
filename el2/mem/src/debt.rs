// SPDX-License-Identifier: MIT OR Apache-2.0
//! TLB debt: what unmapping owes before a frame may change hands (I3).
//!
//! Unmapping returns a [`Debt`], paying it (one broadcast, whatever the number of frames) a
//! [`Settled`], and only granules out of a `Settled` can be given by the ledger. A debt that is
//! dropped unpaid gives nothing: its frames simply can not change owner.

use core::marker::PhantomData;

use crate::Granule;
use crate::batch::Granules;

/// The debt is the host's translations.
#[derive(Debug)]
pub enum OfHost {}

/// The debt is one VM's translations.
#[derive(Debug)]
pub enum OfGuest {}

/// Frames that `Whose` tables no longer map, but whose translations may still be cached.
#[derive(Debug)]
#[must_use = "until it is settled, no frame of it can change owner"]
pub struct Debt<'b, Whose> {
    granules: Granules<'b>,
    whose: PhantomData<Whose>,
}

impl<'b, Whose> Debt<'b, Whose> {
    /// Owes for the granules, which were just unmapped.
    pub(crate) const fn owe(granules: Granules<'b>) -> Self {
        Self { granules, whose: PhantomData }
    }

    /// Turns into a receipt. For the two spaces, right after their broadcast.
    pub(crate) const fn paid(self) -> Settled<'b> {
        Settled { granules: self.granules }
    }

    pub(crate) const fn granules(&self) -> Granules<'b> {
        self.granules
    }
}

/// Frames that no CPU can reach any more through the space that lost them.
#[derive(Debug)]
#[must_use]
pub struct Settled<'b> {
    granules: Granules<'b>,
}

impl<'b> Settled<'b> {
    /// Frames that nobody could reach in the first place, or whose reach stays as it is.
    pub(crate) const fn unreached(granules: Granules<'b>) -> Self {
        Self { granules }
    }

    /// The frames, each ready to be given.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Unreached> + use<'b> {
        self.granules.iter().map(Unreached)
    }

    /// What is left after the first `count` were dealt with.
    pub(crate) fn after(&self, count: u64) -> Granules<'b> {
        self.granules.after(count)
    }

    /// The first `count`.
    pub(crate) fn first(&self, count: u64) -> Self {
        Self { granules: self.granules.first(count) }
    }

    /// Which they are.
    pub(crate) const fn granules(&self) -> Granules<'b> {
        self.granules
    }
}

/// One frame out of a [`Settled`].
#[derive(Debug)]
pub(crate) struct Unreached(Granule);

impl Unreached {
    /// The frame.
    pub(crate) const fn granule(&self) -> Granule {
        self.0
    }
}
