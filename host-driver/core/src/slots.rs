// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory slots: which guest frames stand for which offsets of which file.
//!
//! One offset has at most one guest frame, and a guest frame at most one offset; the errno of each refusal is KVM's.
//! Knows nothing of page states: the caller says whether a slot's pages are in use.

use crate::error::Error;
use crate::page::Span;

/// Slots of a VM: crosvm has one for each function of a PCI device, beside those of its RAM.
pub const MAX_SLOTS: usize = 512;

/// Slots of a protected VM: `el2` keeps so many ranges of one.
pub const MAX_PROTECTED: usize = 8;

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
    /// Its guest frames.
    #[must_use]
    pub fn gfns(&self) -> Option<Span> {
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

/// Every slot of a VM, in places of the caller's: too many for a stack of the kernel's.
///
/// # Invariants
/// No slot has a number of `used` or more.
#[derive(Debug)]
pub struct Slots<F: 'static> {
    slots: &'static mut [Option<Slot<F>>],
    /// How far whoever looks for one has to look.
    used: usize,
}

impl<F: Clone + PartialEq> Slots<F> {
    /// No slots yet in these empty places, one for each number.
    pub fn over(places: &'static mut [Option<Slot<F>>]) -> Self {
        Self { slots: places, used: 0 }
    }

    /// Gives the places back: there are no slots any more, and never will be.
    pub fn places(&mut self) -> &'static mut [Option<Slot<F>>] {
        self.used = 0;
        core::mem::take(&mut self.slots)
    }

    /// Every slot in use.
    pub fn iter(&self) -> impl Iterator<Item = &Slot<F>> {
        self.slots.iter().take(self.used).flatten()
    }

    /// Every slot in use, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Slot<F>> {
        self.slots.iter_mut().take(self.used).flatten()
    }

    /// The slot with this number.
    #[must_use]
    pub fn get(&self, id: u32) -> Option<&Slot<F>> {
        self.slots.get(usize::try_from(id).ok()?)?.as_ref()
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
        let id = usize::try_from(slot.id).map_err(|_| Error::Invalid)?;
        *self.slots.get_mut(id).ok_or(Error::Invalid)? = Some(slot);
        // INVARIANT: this is the only way in.
        self.used = self.used.max(id.saturating_add(1));
        Ok(())
    }

    /// Has a slot stand for other guest frames, from `gfn` on, and `step` done once it is known that it may.
    ///
    /// # Errors
    /// `Invalid` if there is none of this number or its end overflows, `Exists` if they are another slot's.
    pub fn relocate(&mut self, id: u32, gfn: u64, step: impl FnOnce(&F)) -> Result<(), Error> {
        let slot = self.get(id).ok_or(Error::Invalid)?;
        let gfns = Span::new(gfn, slot.pages.count()).ok_or(Error::Invalid)?;
        if self.iter().any(|other| other.id != id && other.gfns().is_some_and(|theirs| theirs.meets(gfns))) {
            return Err(Error::Exists);
        }
        if let Some(slot) = self.iter_mut().find(|slot| slot.id == id) {
            step(&slot.file);
            slot.gfn = gfn;
        }
        Ok(())
    }

    /// Whether some slot has some of these guest frames.
    #[must_use]
    pub fn meet(&self, gfns: Span) -> bool {
        self.iter().any(|slot| slot.gfns().is_some_and(|theirs| theirs.meets(gfns)))
    }

    /// Removes a slot.
    ///
    /// # Errors
    /// `Invalid` if there is none of this number.
    pub fn remove(&mut self, id: u32) -> Result<Slot<F>, Error> {
        let slot = usize::try_from(id).ok().and_then(|id| self.slots.get_mut(id)).and_then(Option::take);
        // INVARIANT: what is left of the others is empty.
        let last = self.slots.iter().take(self.used).rposition(Option::is_some);
        self.used = last.map_or(0, |last| last.saturating_add(1));
        slot.ok_or(Error::Invalid)
    }

    /// Takes any slot out, until there is none.
    pub fn pop(&mut self) -> Option<Slot<F>> {
        self.slots.iter_mut().find_map(Option::take)
    }
}

/// Where an ordinary VM that runs has no slot: at the frames of its interrupt controller. All else `el2` knows as RAM
/// of it, so that slots come and go anywhere; what a slot does not serve, the driver finds out ([`crate::access`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holes([Option<Span>; 2]);

impl Holes {
    /// Of a controller whose frames are these.
    #[must_use]
    pub const fn of([one, other]: [Span; 2]) -> Self {
        Self([Some(one), Some(other)])
    }

    /// Whether a slot may not have these guest frames.
    #[must_use]
    pub fn meet(&self, gfns: Span) -> bool {
        self.0.iter().flatten().any(|hole| hole.meets(gfns))
    }

    /// The first run between the holes from `from` on, below `end`.
    #[must_use]
    pub fn next(&self, from: u64, end: u64) -> Option<Span> {
        let holes = || self.0.iter().flatten();
        // Twice: the one may end where the other begins.
        let first = holes().chain(holes()).fold(from, |at, hole| {
            let is_inside = (hole.first()..hole.end()).contains(&at);
            if is_inside {
                hole.end()
            } else {
                at
            }
        });
        let to = holes().map(|hole| hole.first()).filter(|&at| at > first).fold(end, u64::min);
        Span::new(first, to.checked_sub(first)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none() -> Slots<u32> {
        Slots::over(vec![None; MAX_SLOTS].leak())
    }

    fn slot(id: u32, gfn: u64, first: u64, count: u64, file: u32) -> Slot<u32> {
        Slot { id, gfn, pages: Span::new(first, count).unwrap(), file, declared: false }
    }

    #[test]
    fn one_guest_frame_has_one_offset() {
        let mut slots = none();
        slots.add(slot(0, 0x80, 0, 16, 1)).unwrap();
        assert_eq!(slots.add(slot(1, 0x8f, 100, 1, 1)), Err(Error::Exists));
        assert_eq!(slots.add(slot(1, 0x70, 100, 17, 2)), Err(Error::Exists));
        slots.add(slot(1, 0x90, 100, 16, 1)).unwrap();
        slots.add(slot(2, 0x70, 0, 16, 2)).unwrap();
    }

    #[test]
    fn one_offset_has_one_guest_frame() {
        let mut slots = none();
        slots.add(slot(0, 0x80, 8, 16, 1)).unwrap();
        assert_eq!(slots.add(slot(1, 0x1000, 23, 4, 1)), Err(Error::Exists));
        slots.add(slot(1, 0x1000, 24, 4, 1)).unwrap();
        slots.add(slot(2, 0x2000, 8, 16, 2)).unwrap();
    }

    #[test]
    fn a_number_is_used_once_and_in_range() {
        let mut slots = none();
        slots.add(slot(3, 0, 0, 1, 1)).unwrap();
        assert_eq!(slots.add(slot(3, 10, 10, 1, 1)), Err(Error::Invalid));
        assert_eq!(slots.add(slot(MAX_SLOTS as u32, 10, 10, 1, 1)), Err(Error::Invalid));
        assert_eq!(slots.remove(4), Err(Error::Invalid));
        assert_eq!(slots.remove(3).unwrap().gfn, 0);
        slots.add(slot(3, 10, 10, 1, 1)).unwrap();
    }

    #[test]
    fn a_range_of_guest_frames_is_walked_slot_by_slot() {
        let mut slots = none();
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
    fn a_slot_moves_to_where_no_other_is() {
        let mut slots = none();
        slots.add(slot(0, 0x80, 0, 16, 1)).unwrap();
        slots.add(slot(1, 0x90, 0, 16, 2)).unwrap();
        let never = |_: &u32| unreachable!("refused");
        assert_eq!(slots.relocate(2, 0, never), Err(Error::Invalid));
        assert_eq!(slots.relocate(0, u64::MAX - 15, never), Err(Error::Invalid));
        assert_eq!(slots.relocate(0, 0x81, never), Err(Error::Exists));
        let mut told = Vec::new();
        // It may meet where it was itself.
        slots.relocate(0, 0x78, |file| told.push(*file)).unwrap();
        assert_eq!(slots.get(0).unwrap().gfn, 0x78);
        slots.relocate(1, 0x88, |file| told.push(*file)).unwrap();
        assert_eq!(told, [1, 2]);
        assert_eq!(slots.of_gfn(0x88).unwrap().id, 1);
    }

    #[test]
    fn every_slot_of_the_largest_number_is_found() {
        let mut slots = none();
        let span = |first, count| Span::new(first, count).unwrap();
        assert!(!slots.meet(span(0, u64::MAX)));
        let last = MAX_SLOTS as u32 - 1;
        slots.add(slot(last, 0x80, 8, 16, 1)).unwrap();
        assert_eq!(slots.of_gfn(0x8f).map(|slot| slot.id), Some(last));
        slots.add(slot(0, 0x100, 0, 1, 1)).unwrap();
        assert_eq!(slots.iter().map(|slot| slot.id).collect::<Vec<_>>(), [0, last]);
        assert!(slots.meet(span(0x8f, 1)) && slots.meet(span(0, 0x81)));
        assert!(!slots.meet(span(0x90, 0x70)) && !slots.meet(span(0, 0x80)));
        slots.remove(last).unwrap();
        assert!(slots.of_gfn(0x8f).is_none() && slots.get(0).is_some());
        // Nobody looks behind the last one.
        assert_eq!(slots.used, 1);
        assert_eq!(slots.remove(7), Err(Error::Invalid));
        assert_eq!(slots.used, 1);
    }

    /// Every run between the holes.
    fn between(holes: Holes, end: u64) -> Vec<(u64, u64)> {
        let mut from = 0;
        std::iter::from_fn(|| {
            let run = holes.next(from, end)?;
            from = run.end();
            Some((run.first(), run.end()))
        })
        .collect()
    }

    #[test]
    fn all_is_ram_but_the_controllers_frames() {
        let span = |first, count| Span::new(first, count).unwrap();
        assert_eq!(between(Holes::default(), 0x1000), [(0, 0x1000)]);
        let of = |one, other| Holes::of([one, other]);
        let (low, high) = (span(0x80, 16), span(0x200, 64));
        for holes in [of(low, high), of(high, low)] {
            assert_eq!(between(holes, 0x1000), [(0, 0x80), (0x90, 0x200), (0x240, 0x1000)]);
            for (gfns, meets) in [(span(0x8f, 1), true), (span(0x90, 0x170), false), (span(0, 0x1000), true)] {
                assert_eq!(holes.meet(gfns), meets, "{gfns:?}");
            }
        }
        // They touch, begin the address space, and end it.
        for holes in [of(span(0, 16), span(16, 16)), of(span(16, 16), span(0, 16))] {
            assert_eq!(between(holes, 0x1000), [(0x20, 0x1000)]);
        }
        assert_eq!(between(of(low, span(0xfe0, 32)), 0x1000), [(0, 0x80), (0x90, 0xfe0)]);
    }

    #[test]
    fn every_slot_is_popped_once() {
        let mut slots = none();
        slots.add(slot(5, 0x80, 8, 16, 1)).unwrap();
        slots.add(slot(31, 0x100, 0, 8, 2)).unwrap();
        assert_eq!([slots.pop(), slots.pop(), slots.pop()].map(|slot| slot.map(|s| s.id)), [Some(5), Some(31), None]);
    }

    #[test]
    fn lookups_go_both_ways() {
        let mut slots = none();
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
