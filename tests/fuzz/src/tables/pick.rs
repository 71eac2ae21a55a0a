// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which number a step means: most often one that the call may succeed with, else anything.

use freehold_mem::Kind;

use super::naive::{Naive, Owner, Spot, Vm};
use super::{CARVE_OUT, NO_MAP, RAM, RAM_FRAMES, RAM2, RAM2_FRAMES, STEP, VMS};

/// Frames that steps play with: the end of a block, all of the next, and the beginning of a third.
const FROM: u64 = RAM + 512 - 64;
const WINDOW: u64 = 640;
/// Where guests have their RAM: across a 1 GB boundary, across a 2 MB boundary, and at the end of all space.
pub(super) const PLACES: [(u64, u64); 3] = [(0x8_0000 - 24, 64), (0x201f0, 64), ((1 << 28) - 32, 32)];

/// Numbers at which something ends.
const EDGES: [u64; 24] = [
    0,
    1,
    RAM - 1,
    RAM,
    NO_MAP - 1,
    NO_MAP,
    CARVE_OUT - 1,
    CARVE_OUT,
    RAM + RAM_FRAMES - 1,
    RAM + RAM_FRAMES,
    RAM2 - 1,
    RAM2,
    RAM2 + 411,
    RAM2 + 412,
    RAM2 + RAM2_FRAMES - 1,
    RAM2 + RAM2_FRAMES,
    (1 << 28) - 1,
    1 << 28,
    (1 << 36) - 1,
    1 << 36,
    (1 << 52) - 1,
    1 << 52,
    u64::MAX - 1,
    u64::MAX,
];

/// A step, taken apart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) verb: u8,
    how: u8,
    frame: u16,
    place: u16,
    count: u8,
    pub(super) more: u8,
}

impl Step {
    pub(super) fn decode(bytes: &[u8; STEP]) -> Self {
        let [verb, how, frame, frame_high, place, place_high, count, more] = *bytes;
        let frame = u16::from_le_bytes([frame, frame_high]);
        let place = u16::from_le_bytes([place, place_high]);
        Self { verb, how, frame, place, count, more }
    }

    /// Whether a number is to be anything at all.
    pub(super) fn wild(self, bit: u8) -> bool {
        self.how >> 4 == bit
    }

    /// A flag of the step.
    pub(super) fn flag(self, bit: u32) -> bool {
        self.more >> bit & 1 != 0
    }

    /// A slot whose VM fits; else any.
    pub(super) fn slot(self, naive: &Naive, fits: impl Fn(Option<&Vm>) -> bool) -> usize {
        let first = usize::from(self.how & 3) % VMS;
        let good = (0..VMS).map(|n| (first + n) % VMS).find(|slot| fits(naive.vms[*slot].as_ref()));
        good.filter(|_| !self.wild(1)).unwrap_or(first)
    }

    pub(super) fn kind(self) -> Kind {
        [Kind::Protected, Kind::Lazy, Kind::Ordinary][usize::from(self.how >> 2 & 3) % 3]
    }

    /// A frame whose owner fits; else any.
    pub(super) fn frame(self, naive: &Naive, fits: impl Fn(Owner) -> bool) -> u64 {
        let start = u64::from(self.frame);
        if self.wild(2) {
            return EDGES[usize::from(self.frame) % EDGES.len()];
        }
        let near = if self.frame & 0x8000 == 0 { (FROM, WINDOW) } else { (RAM2 - 8, RAM2_FRAMES + 16) };
        let mut frames = (0..near.1).map(|n| near.0 + (start + n) % near.1);
        frames.find(|pfn| naive.owner(*pfn).is_some_and(&fits)).unwrap_or(FROM + start % WINDOW)
    }

    /// A guest frame that is not mapped, most often.
    pub(super) fn vacant(self, vm: Option<&Vm>) -> u64 {
        let place = usize::from(self.place >> 8);
        let ram = |place: &usize| vm.is_none_or(|vm| vm.vacant(PLACES[*place].0) || vm.ram.contains(&ends(*place)));
        let place = (place..place + PLACES.len()).map(|n| n % PLACES.len()).find(ram).unwrap_or(0);
        let (first, count) = PLACES[place];
        let any = first + u64::from(self.place) % count;
        if self.wild(3) {
            return EDGES[usize::from(self.place) % EDGES.len()];
        }
        let free = |gfn: &u64| vm.is_none_or(|vm| vm.vacant(*gfn));
        (0..count).map(|n| first + (any - first + n) % count).find(free).unwrap_or(any)
    }

    /// A guest frame that is mapped, most often.
    pub(super) fn mapped(self, vm: Option<&Vm>, fits: impl Fn(u64) -> bool) -> u64 {
        let pages = vm.map(|vm| {
            let fits =
                |(gfn, spot): (&u64, &Spot)| matches!(spot, Spot::Frame { pfn, .. } if fits(*pfn)).then_some(*gfn);
            vm.map.iter().filter_map(fits).collect::<Vec<u64>>()
        });
        match pages {
            Some(pages) if !pages.is_empty() && !self.wild(3) => pages[usize::from(self.place) % pages.len()],
            _ => self.vacant(vm),
        }
    }

    /// A small count, most often.
    pub(super) fn count(self) -> u64 {
        match self.count {
            0..200 => 1 + u64::from(self.count) % 4,
            200..240 => 3 * u64::from(self.count - 199),
            _ => [0, 0, 511, 512, 513, 4096, 4097, 1 << 36, u64::MAX][usize::from(self.count) % 9],
        }
    }
}

fn ends(place: usize) -> (u64, u64) {
    let (first, count) = PLACES[place];
    (first, first + count)
}
