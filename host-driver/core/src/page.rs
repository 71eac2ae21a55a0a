// SPDX-License-Identifier: MIT OR Apache-2.0
//! The state of one page offset of a `guest_memfd`: who may map it, and who owns its frame.
//!
//! Design §4 names three states; each is split here by who owns the frame, so that a page that can not exist (donated
//! but mappable, lent but without a frame) can not be written down either.

/// State of one page offset.
///
/// # Invariants
/// `Held`, `Given`, `Lent` and `Borrowed` have a frame; `Vacant` has none; `Host` may have one. The frame of `Held` and `Given` is
/// frozen (reference count 0). The frame of `Given` and `Lent` is the VM's. `Draining` belongs to one attempt alone:
/// nobody else changes it or its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// `HostMappable`, and the host's.
    Host,
    /// `HostMappable`, and the host's; an ordinary VM borrows it.
    Borrowed,
    /// `HostMappable`: the guest's own page, which it has shared.
    Lent,
    /// `NoneMappable`: an attempt to make it private is under way.
    Draining {
        /// What it was, and will be again if the attempt fails.
        origin: Origin,
        /// The attempt that it belongs to.
        attempt: u64,
    },
    /// `GuestMappable`: frozen, not donated yet.
    Held,
    /// `GuestMappable`: no frame yet; the guest's first touch brings one.
    Vacant,
    /// `GuestMappable`: donated, the guest's alone.
    Given,
    /// The hypervisor would not give the frame back: never mapped and never freed again.
    Lost,
}

/// What a draining page was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `Page::Host`.
    Host,
    /// `Page::Lent`.
    Lent,
    /// `Page::Held`.
    Held,
    /// `Page::Vacant`.
    Vacant,
}

impl Origin {
    /// The state that it stands for.
    #[must_use]
    pub const fn page(self) -> Page {
        match self {
            Self::Host => Page::Host,
            Self::Lent => Page::Lent,
            Self::Held => Page::Held,
            Self::Vacant => Page::Vacant,
        }
    }
}

/// What each offset of a new file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initial {
    /// `Page::Host`.
    Host,
    /// `Page::Vacant`.
    Vacant,
}

impl Initial {
    /// The state that it stands for.
    #[must_use]
    pub const fn page(self) -> Page {
        match self {
            Self::Host => Page::Host,
            Self::Vacant => Page::Vacant,
        }
    }
}

/// Answer to a host fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostFault {
    /// Map the page, bringing a zeroed frame if there is none.
    Map,
    /// Wait for the attempt's outcome.
    Wait,
    /// SIGBUS.
    Refuse,
}

impl Page {
    /// Decides a host fault.
    #[must_use]
    pub const fn host_fault(self) -> HostFault {
        match self {
            Self::Host | Self::Borrowed | Self::Lent => HostFault::Map,
            Self::Draining { origin: Origin::Host | Origin::Lent, .. } => HostFault::Wait,
            Self::Draining { origin: Origin::Held | Origin::Vacant, .. }
            | Self::Held
            | Self::Vacant
            | Self::Given
            | Self::Lost => HostFault::Refuse,
        }
    }

    /// Whether the VM owns the frame.
    #[must_use]
    pub const fn is_the_guests(self) -> bool {
        match self {
            Self::Lent | Self::Given => true,
            Self::Draining { origin: Origin::Lent, .. } => true,
            Self::Draining { .. } | Self::Host | Self::Borrowed | Self::Held | Self::Vacant | Self::Lost => false,
        }
    }
}

/// A run of page offsets. Never empty, and its end does not overflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    first: u64,
    count: u64,
}

impl Span {
    /// A span; `None` if it is empty or its end overflows.
    #[must_use]
    pub const fn new(first: u64, count: u64) -> Option<Self> {
        // INVARIANT: checked here, and the fields are private.
        match first.checked_add(count) {
            Some(_) if count != 0 => Some(Self { first, count }),
            _ => None,
        }
    }

    /// A span of one page.
    #[must_use]
    pub const fn one(page: u64) -> Option<Self> {
        Self::new(page, 1)
    }

    /// First page.
    #[must_use]
    pub const fn first(self) -> u64 {
        self.first
    }

    /// Number of pages.
    #[must_use]
    pub const fn count(self) -> u64 {
        self.count
    }

    /// The page behind the last one.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.first.saturating_add(self.count)
    }

    /// Whether `other` lies within.
    #[must_use]
    pub const fn covers(self, other: Self) -> bool {
        self.first <= other.first && other.end() <= self.end()
    }

    /// Whether the two have a page in common.
    #[must_use]
    pub const fn meets(self, other: Self) -> bool {
        self.first < other.end() && other.first < self.end()
    }

    /// Its parts of at most `most` pages, in order.
    pub fn parts(self, most: u64) -> impl Iterator<Item = Self> {
        let mut first = self.first;
        core::iter::from_fn(move || {
            let part = Self::new(first, self.end().saturating_sub(first).min(most))?;
            first = part.end();
            Some(part)
        })
    }

    /// Every page in order.
    pub fn pages(self) -> core::ops::Range<u64> {
        self.first..self.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_owns_what_it_was_given_and_what_it_lent() {
        let draining = |origin| Page::Draining { origin, attempt: 1 };
        for page in [Page::Given, Page::Lent, draining(Origin::Lent)] {
            assert!(page.is_the_guests(), "{page:?}");
        }
        let origins = [Origin::Host, Origin::Held, Origin::Vacant].map(draining);
        for page in [Page::Host, Page::Borrowed, Page::Held, Page::Vacant, Page::Lost].into_iter().chain(origins) {
            assert!(!page.is_the_guests(), "{page:?}");
        }
    }

    #[test]
    fn a_span_is_not_empty_and_ends_before_the_last_number() {
        assert_eq!(Span::new(3, 0), None);
        assert_eq!(Span::new(u64::MAX, 1), None);
        assert_eq!(Span::new(u64::MAX - 1, 1).map(Span::end), Some(u64::MAX));
        assert_eq!(Span::one(7), Span::new(7, 1));
    }

    #[test]
    fn spans_that_touch_do_not_meet_and_a_span_covers_itself() {
        let span = |first, count| Span::new(first, count).unwrap();
        assert!(!span(0, 4).meets(span(4, 4)) && !span(4, 4).meets(span(0, 4)));
        assert!(span(0, 5).meets(span(4, 4)) && span(4, 4).meets(span(0, 5)));
        assert!(span(2, 4).covers(span(2, 4)) && span(2, 4).covers(span(3, 2)));
        assert!(!span(2, 4).covers(span(1, 4)) && !span(2, 4).covers(span(3, 4)));
    }

    #[test]
    fn parts_cover_a_span_in_order_and_none_is_too_long() {
        let span = Span::new(3, 10).unwrap();
        let parts: Vec<_> = span.parts(4).map(|part| (part.first(), part.count())).collect();
        assert_eq!(parts, [(3, 4), (7, 4), (11, 2)]);
        assert_eq!(span.pages().count(), 10);
    }
}
