// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory slots: which guest frames stand for which offsets of which file.
//!
//! One offset has at most one guest frame, and a guest frame at most one offset; the errno of each refusal is KVM's.
//! Knows nothing of page states: the caller says whether a slot's pages are in use.

use crate::error::Error;
use crate::page::Span;

/// Slots of a VM.
pub const MAX_SLOTS: usize = 32;

/// One slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot<F> {
    /// Its number.
    pub id: u32,
    /// First guest frame.
    pub gfn: u64,
    /// The pages of the file.
    pub pages: Span,
    /// The file.
    pub file: F,
    /// Whether `el2` knows the range: it can not be taken back then.
    pub declared: bool,
}

impl<F> Slot<F> {
    fn gfns(&self) -> Option<Span> {
        Span::new(self.gfn, self.pages.count())
    }

    /// The page behind `gfn`, if the slot has it.
    #[must_use]
    pub fn page(&self, gfn: u64) -> Option<u64> {
        let at = gfn.checked_sub(self.gfn)?;
        if at < self.pages.count() {
            self.pages.first().checked_add(at)
        } else {
            None
        }
    }

    /// The guest frame of `page`, if the slot has it.
    #[must_use]
    pub fn gfn_of(&self, page: u64) -> Option<u64> {
        let at = page.checked_sub(self.pages.first())?;
        if at < self.pages.count() {
            self.gfn.checked_add(at)
        } else {
            None
        }
    }
}

/// Every slot of a VM.
#[derive(Debug)]
pub struct Slots<F> {
    slots: [Option<Slot<F>>; MAX_SLOTS],
}

impl<F: Clone + PartialEq> Default for Slots<F> {
    fn default() -> Self {
        Self::new()
    }
}

impl<F: Clone + PartialEq> Slots<F> {
    /// No slots.
    #[must_use]
    pub fn new() -> Self {
        Self { slots: [const { None }; MAX_SLOTS] }
    }

    /// Every slot in use.
    pub fn iter(&self) -> impl Iterator<Item = &Slot<F>> {
        self.slots.iter().flatten()
    }

    /// Every slot in use, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Slot<F>> {
        self.slots.iter_mut().flatten()
    }

    /// The slot with this number.
    #[must_use]
    pub fn get(&self, id: u32) -> Option<&Slot<F>> {
        self.iter().find(|slot| slot.id == id)
    }

    /// The slot that has `gfn`.
    #[must_use]
    pub fn of_gfn(&self, gfn: u64) -> Option<&Slot<F>> {
        self.iter().find(|slot| slot.page(gfn).is_some())
    }

    /// The slot that has all of `span` of `file`.
    pub fn of_pages(&mut self, file: &F, span: Span) -> Option<&mut Slot<F>> {
        self.iter_mut().find(|slot| slot.file == *file && slot.pages.covers(span))
    }

    /// The file and the pages behind the guest frames of `gfns` from `gfn` on, as far as one slot has them.
    #[must_use]
    pub fn part(&self, gfns: Span, gfn: u64) -> Option<(F, Span)> {
        let slot = self.of_gfn(gfn)?;
        let first = slot.page(gfn)?;
        let left = gfns.end().saturating_sub(gfn).min(slot.pages.end().saturating_sub(first));
        Some((slot.file.clone(), Span::new(first, left)?))
    }

    /// Whether every guest frame of `gfns` is some slot's.
    #[must_use]
    pub fn cover(&self, gfns: Span) -> bool {
        let mut gfn = gfns.first();
        while gfn < gfns.end() {
            let Some((_, part)) = self.part(gfns, gfn) else { return false };
            gfn = gfn.saturating_add(part.count());
        }
        true
    }

    /// Adds a slot.
    ///
    /// # Errors
    /// `Invalid` if the number is taken (a `guest_memfd` slot can not be changed) or too large, `Exists` if its guest
    /// frames or its file pages are another slot's already.
    pub fn add(&mut self, slot: Slot<F>) -> Result<(), Error> {
        let gfns = slot.gfns().ok_or(Error::Invalid)?;
        if self.get(slot.id).is_some() {
            return Err(Error::Invalid);
        }
        for other in self.iter() {
            if other.gfns().is_some_and(|theirs| theirs.meets(gfns)) {
                return Err(Error::Exists);
            }
            if other.file == slot.file && other.pages.meets(slot.pages) {
                return Err(Error::Exists);
            }
        }
        let room = usize::try_from(slot.id).ok().and_then(|id| self.slots.get_mut(id)).ok_or(Error::Invalid)?;
        *room = Some(slot);
        Ok(())
    }

    /// Removes a slot.
    ///
    /// # Errors
    /// `Invalid` if there is none of this number.
    pub fn remove(&mut self, id: u32) -> Result<Slot<F>, Error> {
        usize::try_from(id).ok().and_then(|id| self.slots.get_mut(id)).and_then(Option::take).ok_or(Error::Invalid)
    }

    /// Takes any slot out, until there is none.
    pub fn pop(&mut self) -> Option<Slot<F>> {
        self.slots.iter_mut().find_map(Option::take)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(id: u32, gfn: u64, first: u64, count: u64, file: u32) -> Slot<u32> {
        Slot { id, gfn, pages: Span::new(first, count).unwrap(), file, declared: false }
    }

    #[test]
    fn one_guest_frame_has_one_offset() {
        let mut slots = Slots::new();
        slots.add(slot(0, 0x80, 0, 16, 1)).unwrap();
        assert_eq!(slots.add(slot(1, 0x8f, 100, 1, 1)), Err(Error::Exists));
        assert_eq!(slots.add(slot(1, 0x70, 100, 17, 2)), Err(Error::Exists));
        slots.add(slot(1, 0x90, 100, 16, 1)).unwrap();
        slots.add(slot(2, 0x70, 0, 16, 2)).unwrap();
    }

    #[test]
    fn one_offset_has_one_guest_frame() {
        let mut slots = Slots::new();
        slots.add(slot(0, 0x80, 8, 16, 1)).unwrap();
        assert_eq!(slots.add(slot(1, 0x1000, 23, 4, 1)), Err(Error::Exists));
        slots.add(slot(1, 0x1000, 24, 4, 1)).unwrap();
        slots.add(slot(2, 0x2000, 8, 16, 2)).unwrap();
    }

    #[test]
    fn a_number_is_used_once_and_in_range() {
        let mut slots = Slots::new();
        slots.add(slot(3, 0, 0, 1, 1)).unwrap();
        assert_eq!(slots.add(slot(3, 10, 10, 1, 1)), Err(Error::Invalid));
        assert_eq!(slots.add(slot(MAX_SLOTS as u32, 10, 10, 1, 1)), Err(Error::Invalid));
        assert_eq!(slots.remove(4), Err(Error::Invalid));
        assert_eq!(slots.remove(3).unwrap().gfn, 0);
        slots.add(slot(3, 10, 10, 1, 1)).unwrap();
    }

    #[test]
    fn a_range_of_guest_frames_is_walked_slot_by_slot() {
        let mut slots = Slots::new();
        slots.add(slot(0, 0x80, 8, 16, 1)).unwrap();
        slots.add(slot(1, 0x90, 100, 4, 2)).unwrap();
        let all = Span::new(0x88, 10).unwrap();
        assert_eq!(slots.part(all, 0x88), Some((1, Span::new(16, 8).unwrap())));
        assert_eq!(slots.part(all, 0x90), Some((2, Span::new(100, 2).unwrap())));
        assert!(slots.cover(all));
        assert!(slots.cover(Span::new(0x80, 20).unwrap()));
        for (first, count) in [(0x7f, 2), (0x80, 21), (0x94, 1)] {
            assert!(!slots.cover(Span::new(first, count).unwrap()), "{first:#x}+{count}");
        }
        assert_eq!(slots.part(Span::new(0x94, 1).unwrap(), 0x94), None);
    }

    #[test]
    fn every_slot_is_popped_once() {
        let mut slots = Slots::new();
        slots.add(slot(5, 0x80, 8, 16, 1)).unwrap();
        slots.add(slot(31, 0x100, 0, 8, 2)).unwrap();
        assert_eq!([slots.pop(), slots.pop(), slots.pop()].map(|slot| slot.map(|s| s.id)), [Some(5), Some(31), None]);
    }

    #[test]
    fn lookups_go_both_ways() {
        let mut slots = Slots::new();
        slots.add(slot(0, 0x80, 8, 16, 1)).unwrap();
        assert_eq!(slots.of_gfn(0x81).unwrap().page(0x81), Some(9));
        assert!(slots.of_gfn(0x90).is_none());
        assert!(slots.of_gfn(0x7f).is_none());
        let found = slots.of_pages(&1, Span::new(10, 2).unwrap()).unwrap();
        assert_eq!(found.gfn_of(10), Some(0x82));
        assert_eq!([7, 8, 23, 24].map(|page| found.gfn_of(page)), [None, Some(0x80), Some(0x8f), None]);
        assert_eq!([0x7f, 0x80, 0x8f, 0x90].map(|gfn| found.page(gfn)), [None, Some(8), Some(23), None]);
        assert!(slots.of_pages(&1, Span::new(23, 2).unwrap()).is_none());
        assert!(slots.of_pages(&2, Span::new(10, 2).unwrap()).is_none());
    }
}
