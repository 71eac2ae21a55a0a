// SPDX-License-Identifier: MIT OR Apache-2.0
//! The page tables and the ledger of `freehold_mem` under arbitrary sequences of verbs and arbitrary claims.
//!
//! A naive map of plain lists ([`naive`]) says of each verb whether it may succeed and what is so afterwards. After
//! each step what was touched is compared, and at the end everything: ledger, both kinds of tables as the hardware
//! walks them, what is still cached, and what the frames hold (I1 to I4, I6, I8, I9).

mod judge;
mod naive;
mod pick;
mod play;

use crate::Tally;
use crate::machine::{BASE, Machine};
use freehold_mem::{Attributes, Guest, Host, MemoryMap, Pfn, PfnRun, VmSlot};
use naive::Naive;

/// Bytes of one step: verb, how, frame (2), place (2), count, more.
pub const STEP: usize = 8;
/// Steps of one input that are looked at.
pub const MOST_STEPS: usize = 160;

/// Bits of the host's address space.
const BITS: u32 = 40;
/// The first bank: four blocks, of which the last is `el2`'s.
const RAM: u64 = BASE;
const RAM_FRAMES: u64 = 4 * 512;
const CARVE_OUT: u64 = RAM + 3 * 512;
/// A second bank that starts and ends inside a block.
const RAM2: u64 = RAM + 5 * 512 + 100;
const RAM2_FRAMES: u64 = 700;
/// RAM that firmware keeps, inside the first bank.
const NO_MAP: u64 = RAM + 3 * 512 - 4;
const NO_MAP_FRAMES: u64 = 4;
/// VM slots.
const VMS: usize = 3;

/// A machine, and what should be true of it.
struct World<'m> {
    host: Host<'m>,
    guests: [Guest; VMS],
    m: Machine,
    naive: Naive,
}

fn run_of(first: u64, count: u64) -> PfnRun {
    PfnRun::decode(first, count).expect("a run of the rig's own")
}

/// Plays the steps in `data`, takes everything apart again, and compares with a machine at rest.
///
/// # Panics
/// On a finding.
#[must_use]
pub fn run(data: &[u8]) -> Tally {
    play_in(data, false)
}

/// The control: the same on a machine that loses the host's invalidations.
///
/// # Panics
/// If the judges can see that, as they should.
#[must_use]
pub fn run_deaf(data: &[u8]) -> Tally {
    play_in(data, true)
}

fn play_in(data: &[u8], deaf: bool) -> Tally {
    let mut map = MemoryMap::new(BITS).expect("a size that el2 serves");
    map.add_bank(run_of(RAM, RAM_FRAMES)).expect("a bank");
    map.add_bank(run_of(RAM2, RAM2_FRAMES)).expect("a bank");
    map.add_carve_out(run_of(CARVE_OUT, 512)).expect("a carve-out");
    let mut storage = vec![0; usize::try_from(map.needs().words).expect("small")];
    let mut m = Machine::new(deaf);
    let tables = Pfn::new(CARVE_OUT).expect("a frame");
    let mut host = Host::build(map, tables, &mut storage, Attributes::Combined, &mut m).expect("what it needs");
    (CARVE_OUT..CARVE_OUT + 2).for_each(|root| m.adopt_all(root, 0, 1));
    host.mark_no_map(run_of(NO_MAP, NO_MAP_FRAMES), &m);
    let guests = core::array::from_fn(|slot| Guest::new(VmSlot::new(slot as u8).expect("a slot")));
    let mut world = World { host, guests, m, naive: Naive::new() };
    world.host_writes_everything();
    let mut tally = Tally::default();
    let (steps, _) = data.as_chunks::<STEP>();
    for step in steps.iter().take(MOST_STEPS) {
        tally.steps += 1;
        tally.done += u64::from(world.step(step));
    }
    world.check_all();
    world.end_all();
    world.check_all();
    world.check_rest();
    tally
}
