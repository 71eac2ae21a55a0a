// SPDX-License-Identifier: MIT OR Apache-2.0
//! The shipped calls under arbitrary streams: of the host ([`run_host`]), and of a guest that runs ([`run_guest`]).
//!
//! The machine is the model's: real tables, and a TLB that forgets nothing by itself. After each step: the status is
//! documented, a refusal changed nothing (I6), whoever reaches a frame has the right to (I1 to I3), no secret is where
//! the host can read it (I4), and an exit says no more than it may (D9). At the end all comes back (I8).

mod guest;
mod host;
mod judge;
mod pick;

use std::cell::RefCell;

use freehold_model::{Layout, Rig};

pub use freehold_model::Fault;

use crate::Tally;

/// Bytes of one step.
pub const STEP: usize = 8;
/// Steps of one input that are looked at.
pub const MOST_STEPS: usize = 120;

/// Frames of RAM that the host has: two blocks, and a bit of a third.
const FRAMES: u64 = 2 * 512 + 40;
/// Frames that are watched, from the end of the first block on, and the last of RAM.
const WATCHED: u64 = 56;
const FIRST_WATCHED: u64 = 512 - 24;
const NO_MAP: u64 = 3;
/// VM slots.
const VMS: usize = 3;
/// Where guests have their RAM: across a 2 MB boundary.
const GFN: u64 = 0x8_0000 - 6;
const GFNS: u64 = 12;

thread_local! {
    static MACHINE: RefCell<Option<(Fault, Rig)>> = const { RefCell::new(None) };
}

/// Plays with a machine at rest, and brings it to rest again.
fn with_rig(fault: Fault, play: impl FnOnce(&Rig) -> Tally) -> Tally {
    let kept = MACHINE.with_borrow_mut(Option::take).filter(|(kept, _)| *kept == fault);
    let rig = kept.map_or_else(|| Rig::new(layout(), fault), |(_, rig)| rig);
    let tally = play(&rig);
    rig.reset().unwrap_or_else(|wrong| panic!("I8: {wrong}"));
    judge::sound(&rig);
    MACHINE.with_borrow_mut(|place| *place = Some((fault, rig)));
    tally
}

fn layout() -> Layout {
    let watched = (FIRST_WATCHED..FIRST_WATCHED + WATCHED).chain(FRAMES - NO_MAP - 2..FRAMES - NO_MAP + 2);
    Layout { frames: FRAMES, no_map: NO_MAP, vms: VMS, watched: watched.collect(), gfns: (GFN..GFN + GFNS).collect() }
}

/// Plays the host's stream in `data`.
///
/// # Panics
/// On a finding.
#[must_use]
pub fn run_host(data: &[u8]) -> Tally {
    run_host_on(Fault::None, data)
}

/// The same on a machine with a fault: a control.
///
/// # Panics
/// On a finding, as it should.
#[must_use]
pub fn run_host_on(fault: Fault, data: &[u8]) -> Tally {
    with_rig(fault, |rig| steps(data, |step| host::step(rig, step)))
}

/// Plays the guest's stream in `data`, with a driver that answers its exits.
///
/// # Panics
/// On a finding.
#[must_use]
pub fn run_guest(data: &[u8]) -> Tally {
    with_rig(Fault::None, |rig| {
        let mut session = guest::Session::new(rig);
        steps(data, |step| session.step(step))
    })
}

fn steps(data: &[u8], mut play: impl FnMut(&[u8; STEP]) -> bool) -> Tally {
    let (steps, _) = data.as_chunks::<STEP>();
    let mut tally = Tally::default();
    for step in steps.iter().take(MOST_STEPS) {
        tally.steps += 1;
        tally.done += u64::from(play(step));
    }
    tally
}
