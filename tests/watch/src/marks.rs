// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guest frames that are poisoned or borrow a page of the host, of all VMs, each by itself; and those that are open, as runs.

use freehold_oracle::Mark;

use crate::windows::Windows;

/// So many at most. More stop the machine.
const PLACES: usize = 16 * 1024;
/// Lists by which a guest frame's mark is found.
const HEADS: usize = 2048;
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Place {
    slot: u8,
    gfn: u64,
    mark: Mark,
    next: u32,
}

/// The marks.
///
/// # Invariants
/// Each place up to `used` is in the list of its guest frame's head, or in that of the free ones.
#[derive(Debug)]
pub struct Marks {
    heads: [u32; HEADS],
    places: [Place; PLACES],
    free: u32,
    used: u32,
    open: Windows,
}

fn head_of(slot: u8, gfn: u64) -> usize {
    (gfn as usize ^ usize::from(slot) << 5) % HEADS
}

impl Marks {
    /// None.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "only a static holds them")]
    pub const fn new() -> Self {
        let place = Place { slot: 0, gfn: 0, mark: Mark::None, next: NONE };
        Self { heads: [NONE; HEADS], places: [place; PLACES], free: NONE, used: 0, open: Windows::new() }
    }

    /// A guest frame's.
    #[must_use]
    pub fn get(&self, slot: u8, gfn: u64) -> Mark {
        let mut at = self.heads[head_of(slot, gfn)];
        while let Some(place) = self.places.get(at as usize) {
            if (place.slot, place.gfn) == (slot, gfn) {
                return place.mark;
            }
            at = place.next;
        }
        if self.open.is_open(slot, gfn) { Mark::Device } else { Mark::None }
    }

    /// Changes a guest frame's.
    ///
    /// # Panics
    /// If there are too many.
    pub fn set(&mut self, slot: u8, gfn: u64, mark: Mark) {
        let head = head_of(slot, gfn);
        self.remove(head, |place| (place.slot, place.gfn) == (slot, gfn));
        self.open.set(slot, gfn, mark == Mark::Device);
        if matches!(mark, Mark::None | Mark::Device) {
            return;
        }
        let at = if self.free == NONE {
            self.used += 1;
            self.used - 1
        } else {
            self.free
        };
        let Some(place) = self.places.get_mut(at as usize) else {
            panic!("more guest frames are marked than the watcher can follow")
        };
        if self.free == at {
            self.free = place.next;
        }
        *place = Place { slot, gfn, mark, next: core::mem::replace(&mut self.heads[head], at) };
    }

    /// A VM has none any more.
    pub fn clear(&mut self, slot: u8) {
        (0..HEADS).for_each(|head| self.remove(head, |place| place.slot == slot));
        self.open.clear(slot);
    }

    /// Takes those of a list away.
    fn remove(&mut self, head: usize, which: impl Fn(&Place) -> bool) {
        let mut at = core::mem::replace(&mut self.heads[head], NONE);
        while let Some(place) = self.places.get_mut(at as usize) {
            let list = if which(place) { &mut self.free } else { &mut self.heads[head] };
            let next = core::mem::replace(&mut place.next, core::mem::replace(list, at));
            at = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::boxed::Box;
    use std::collections::BTreeMap;

    use super::*;

    const fn lent(pfn: u64) -> Mark {
        Mark::Borrow { pfn, write: true, exec: false }
    }

    /// Held against a map, over guest frames that share heads.
    #[test]
    fn each_guest_frame_has_what_was_said_of_it_last() {
        let mut marks = Box::new(Marks::new());
        let mut map = BTreeMap::new();
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        for n in 0..20_000 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let (slot, gfn) = (random as u8 & 3, (random >> 8 & 7) + (random >> 16 & 3) * HEADS as u64);
            match random >> 24 & 15 {
                0 => {
                    marks.clear(slot);
                    map.retain(|(of, _), _| *of != slot);
                }
                1..6 => {
                    marks.set(slot, gfn, Mark::None);
                    map.remove(&(slot, gfn));
                }
                6 => {
                    marks.set(slot, gfn, Mark::Poisoned);
                    map.insert((slot, gfn), Mark::Poisoned);
                }
                7 | 8 => {
                    marks.set(slot, gfn, Mark::Device);
                    map.insert((slot, gfn), Mark::Device);
                }
                _ => {
                    marks.set(slot, gfn, lent(n));
                    map.insert((slot, gfn), lent(n));
                }
            }
            let places = (0..4u8).flat_map(|slot| (0..8).map(move |low| (slot, low)));
            for (slot, gfn) in places.flat_map(|(slot, low)| (0..4).map(move |high| (slot, low + high * HEADS as u64)))
            {
                assert_eq!(marks.get(slot, gfn), map.get(&(slot, gfn)).copied().unwrap_or(Mark::None), "step {n}");
            }
        }
        assert!(marks.used <= 128, "places are not used again: {}", marks.used);
    }

    #[test]
    #[should_panic(expected = "more guest frames are marked")]
    fn too_many_are_not_forgotten() {
        let mut marks = Box::new(Marks::new());
        (0..=PLACES as u64).for_each(|gfn| marks.set(1, gfn, lent(gfn)));
    }

    #[test]
    fn what_is_open_takes_no_place() {
        let mut marks = Box::new(Marks::new());
        (0..2 * PLACES as u64).for_each(|gfn| marks.set(1, gfn, Mark::Device));
        assert_eq!((marks.used, marks.get(1, PLACES as u64), marks.get(2, 0)), (0, Mark::Device, Mark::None));
    }
}
