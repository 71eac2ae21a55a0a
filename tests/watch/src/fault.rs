// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a control does wrong on purpose, to see that it is found.

/// A planted fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// None.
    None,
    /// From this step on, a store that takes a frame out of the host's tables is lost, once.
    LostStore(u64),
    /// From this step on, an invalidation of the host's translations is lost, once. Nothing that is compared while the
    /// machine runs shows it: the trace must.
    LostInvalidation(u64),
    /// From this step on, a scrub is lost, once.
    LostScrub(u64),
    /// A leaf of a guest's tables is written otherwise, once.
    GuestLeaf(Twist),
    /// A guest that is given an exception is told another address than its own.
    WrongAddress,
}

/// What is done to a leaf of a guest's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Twist {
    /// One that is read only may be written to.
    Writable,
    /// One that is not for it may be executed.
    Executable,
    /// It maps the frame beside its own.
    Elsewhere,
    /// It is weaker memory than it must be.
    Device,
    /// It is not written.
    Missing,
    /// It is not taken away.
    Stays,
    /// The frame is taken away and not marked so.
    Forgotten,
}

impl Twist {
    /// What is stored instead; none if this is no store to twist.
    pub(crate) fn of(self, descriptor: u64) -> Option<Option<u64>> {
        const WRITE: u64 = 1 << 7;
        const NEVER: u64 = 1 << 54;
        // A table's has no access flag.
        let page = descriptor & 1 != 0 && descriptor & 1 << 10 != 0;
        let (fits, instead) = match self {
            Self::Writable => (page && descriptor & WRITE == 0, Some(descriptor | WRITE)),
            Self::Executable => (page && descriptor & NEVER != 0, Some(descriptor & !NEVER)),
            Self::Elsewhere => (page, Some(descriptor ^ 1 << 12)),
            Self::Device => (page, Some(descriptor & !(0xf << 2))),
            Self::Missing => (page, None),
            Self::Stays => (descriptor == 0, None),
            Self::Forgotten => (descriptor != 0 && descriptor & 1 == 0, Some(0)),
        };
        fits.then_some(instead)
    }
}
