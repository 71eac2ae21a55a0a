// SPDX-License-Identifier: MIT OR Apache-2.0
//! The worlds that are enumerated, and how large each is.
//!
//! Frames for guests come first, then one pool frame per slot and three that can never be given. Each VM
//! has two guest frames of RAM, or one and two of devices.

use freehold_oracle::code::Codec;
use freehold_oracle::lattice::{Lattice, Part};
use freehold_oracle::{Content, Owner, Page, World};

use super::cells::Cells;
use super::explore::{Count, Plan, explore};

/// Number of the first frame, and of the first guest frame.
const PFN: u64 = 0x4_0000;
const GFN: u64 = 0x100;

const WHOLE: &[(u64, u64)] = &[(GFN, 2)];
/// The first guest frame; the others are devices.
const FIRST: &[(u64, u64)] = &[(GFN, 1)];
const PARTS: &[(u64, u64)] = &[(GFN, 2), (GFN, 1), (GFN + 1, 1)];

/// One world.
pub(crate) struct Small {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&mut Cells) -> Result<Count, String>,
    /// Its states and transitions.
    pub(crate) expected: [u64; 2],
}

const NONE: Part = Part {
    raw: false,
    requests: false,
    revocable: false,
    pairs: false,
    split: false,
    pending: false,
    vcpus: false,
    ordinary: false,
    attempts: 0,
    holders: 0,
    pools: false,
    wrong: false,
    gic: false,
    guard: false,
};

pub(crate) const ALL: &[Small] = &[
    Small {
        name: "pages-3x2x2",
        run: |cells| run::<8, 2, 1>(3, WHOLE, Part { raw: true, requests: true, ..NONE }, cells),
        expected: [54_355, 9_077_467],
    },
    Small {
        name: "everything-2x2x2",
        run: |cells| {
            let part = Part { raw: true, requests: true, revocable: true, pairs: true, ..NONE };
            run::<7, 2, 1>(2, WHOLE, part, cells)
        },
        expected: [270_050, 57_249_811],
    },
    Small {
        name: "driver-2x1x2",
        run: |cells| {
            let part = Part { requests: true, pending: true, attempts: 2, holders: 2, ..NONE };
            run::<7, 1, 1>(2, WHOLE, part, cells)
        },
        expected: [102_656, 7_825_404],
    },
    Small {
        name: "driver-3x1x2",
        run: |cells| {
            let part = Part { requests: true, pending: true, attempts: 1, holders: 1, ..NONE };
            run::<8, 1, 1>(3, WHOLE, part, cells)
        },
        expected: [289_534, 24_756_700],
    },
    Small {
        name: "driver-2x2x2",
        run: |cells| {
            let part = Part { requests: true, pending: true, attempts: 1, holders: 1, ..NONE };
            run::<7, 2, 1>(2, WHOLE, part, cells)
        },
        expected: [533_472, 54_718_113],
    },
    Small {
        name: "interrupts-1x1x2",
        run: |cells| run::<6, 1, 1>(1, WHOLE, Part { raw: true, requests: true, gic: true, ..NONE }, cells),
        expected: [691, 85_893],
    },
    Small {
        name: "no-vms",
        run: |cells| on::<6, 1, 2, 1>(0, 1, WHOLE, Part { raw: true, wrong: true, gic: true, ..NONE }, cells),
        expected: [1, 415],
    },
    Small {
        name: "arguments-1x1x2",
        run: |cells| {
            let part = Part { split: true, pending: true, vcpus: true, pools: true, wrong: true, ..NONE };
            let part = Part { raw: true, requests: true, revocable: true, pairs: true, ..part };
            run::<6, 1, 2>(1, PARTS, part, cells)
        },
        expected: [50_110, 31_154_280],
    },
    Small {
        name: "ordinary-1x1x2",
        run: |cells| run::<6, 1, 1>(1, WHOLE, Part { raw: true, ordinary: true, vcpus: true, ..NONE }, cells),
        expected: [3_228, 374_182],
    },
    Small {
        name: "guarded-1x2x3",
        run: |cells| on::<6, 2, 3, 1>(2, 1, FIRST, Part { guard: true, ..NONE }, cells),
        expected: [40_945, 8_519_522],
    },
];

fn run<const P: usize, const V: usize, const C: usize>(
    data: u64,
    ranges: &'static [(u64, u64)],
    part: Part,
    cells: &mut Cells,
) -> Result<Count, String> {
    on::<P, V, 2, C>(u8::try_from(V).expect("few"), data, ranges, part, cells)
}

/// The same on a machine that has so many slots, and VMs that have so many guest frames.
fn on<const P: usize, const V: usize, const G: usize, const C: usize>(
    slots: u8,
    data: u64,
    ranges: &'static [(u64, u64)],
    part: Part,
    cells: &mut Cells,
) -> Result<Count, String> {
    let end = PFN + data;
    let odd = [end + 2, end + 3, end + 4];
    let mut world = World::<P, V, 1, G, C>::new(PFN, GFN);
    for (pfn, owner) in odd.into_iter().zip([Owner::El2, Owner::NoMap, Owner::NotMemory]) {
        let place = usize::try_from(pfn - PFN).expect("a frame of the world");
        world.pages[place] = Page { owner, content: Content::Public, ..Page::default() };
    }
    // What an ordinary guest may not say is a part of it.
    world.machine.ordinary = part.ordinary || part.guard;
    world.machine.ranges = 2;
    world.machine.slots = slots;
    let gfns = GFN..GFN + G as u64;
    let lattice = Lattice { data: PFN..end, pool: end..end + 2, odd, gfns, outside: GFN + 9, ranges, part };
    let codec = Codec { data: PFN..end, pool: end..end + 2, ranges, rename: !part.ordinary, guard: part.guard };
    let driven = part.attempts > 0 && !part.raw;
    explore(&Plan { lattice, codec, driven }, &world, cells)
}
