// SPDX-License-Identifier: MIT OR Apache-2.0
//! The shipped calls under arbitrary streams: of the host ([`run_host`]), and of a guest that runs ([`run_guest`]).
//!
//! The machine is the model's: real tables, and a TLB that forgets nothing by itself. `tests/oracle` follows it: each
//! answer and each state must be the specification's. After each step also: the status is documented, a refusal changed
//! nothing (I6), whoever reaches a frame has the right to (I1 to I3), no secret is where the host can read it (I4), and
//! an exit says no more than it may (D9). At the end all comes back (I8).

mod devices;
mod guest;
mod host;
mod judge;
mod pick;

use std::cell::RefCell;

use freehold_model::{Decide, Handles, Layout, Rig};
use freehold_oracle::{Call, Done, Env, Op, Outcome, Value, decide};
use freehold_uapi::hvc;

pub use freehold_model::Fault;
use judge::{Court, World};

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
/// Guest frames behind it that are watched: devices.
const DEVICES: u64 = 4;

/// A machine at rest, its fault, and the handles that it has returned so far.
type Kept = (Fault, Rig, Handles);

thread_local! {
    static MACHINE: RefCell<Option<Kept>> = const { RefCell::new(None) };
}

/// Plays with a machine at rest, and brings it to rest again.
fn with_rig(fault: Fault, decide: Decide<World>, play: impl FnOnce(&mut Court<'_>) -> Tally) -> Tally {
    let kept = MACHINE.with_borrow_mut(Option::take).filter(|(kept, ..)| *kept == fault);
    let (_, rig, handles) = kept.unwrap_or_else(|| (fault, Rig::new(layout(), fault), Handles::new()));
    let mut court = Court::new(&rig, decide, handles);
    let tally = play(&mut court);
    let handles = court.close();
    MACHINE.with_borrow_mut(|place| *place = Some((fault, rig, handles)));
    tally
}

fn layout() -> Layout {
    let watched = (FIRST_WATCHED..FIRST_WATCHED + WATCHED).chain(FRAMES - NO_MAP - 2..FRAMES - NO_MAP + 2);
    Layout {
        frames: FRAMES,
        no_map: NO_MAP,
        vms: VMS,
        watched: watched.collect(),
        gfns: (GFN..GFN + GFNS + DEVICES).collect(),
    }
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
    with_rig(fault, decide, |court| steps(data, |step| host::step(court, step)))
}

/// The same beside a specification that is wrong: a control.
///
/// # Panics
/// On a finding, as it should.
#[must_use]
pub fn run_host_beside(mistake: Mistake, data: &[u8]) -> Tally {
    with_rig(Fault::None, mistake.made(), |court| steps(data, |step| host::step(court, step)))
}

/// A mistake in the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// Frames of a VM that lives can be taken back.
    ReclaimsAlive,
    /// A revocable frame is never taken from its guest.
    NeverRevokes,
    /// A guest that asks is not heard.
    ForgetsRequests,
    /// What was lent can not be taken back.
    ForgetsLoans,
    /// A frame that is lent may be given to a VM.
    GivesAwayLoans,
    /// What a guest does to its devices is the host's to see, whatever the guest says.
    NeverBars,
}

impl Mistake {
    fn made(self) -> Decide<World> {
        match self {
            Self::ReclaimsAlive => reclaims_alive,
            Self::NeverRevokes => never_revokes,
            Self::ForgetsRequests => forgets_requests,
            Self::ForgetsLoans => forgets_loans,
            Self::GivesAwayLoans => gives_away_loans,
            Self::NeverBars => never_bars,
        }
    }
}

fn never_bars(world: &World, op: &Op, env: &Env<'_>) -> Outcome {
    let outcome = decide(world, op, env);
    if outcome.done != Some(Done::Aborted) {
        return outcome;
    }
    let mut open = *world;
    open.vms.iter_mut().for_each(|vm| vm.guarded = false);
    decide(&open, op, env)
}

fn reclaims_alive(world: &World, op: &Op, env: &Env<'_>) -> Outcome {
    let outcome = decide(world, op, env);
    let alone = outcome.refused == freehold_oracle::Statuses::one(hvc::WRONG_STATE);
    let reclaims = matches!(op, Op::Host { call: Call::VmReclaim { .. }, .. });
    if reclaims && alone { Outcome::done(Done::Host([Value::Any; 4])) } else { outcome }
}

fn never_revokes(world: &World, op: &Op, env: &Env<'_>) -> Outcome {
    let outcome = decide(world, op, env);
    if outcome.done == Some(Done::Revoked) { Outcome::done(Done::Injected) } else { outcome }
}

fn forgets_requests(world: &World, op: &Op, env: &Env<'_>) -> Outcome {
    let outcome = decide(world, op, env);
    let accepts = matches!(op, Op::Host { call: Call::GuestAccept { .. }, .. });
    if accepts && outcome.done.is_some() {
        Outcome::refused(freehold_oracle::Statuses::one(hvc::NO_REQUEST))
    } else {
        outcome
    }
}

fn forgets_loans(world: &World, op: &Op, env: &Env<'_>) -> Outcome {
    let outcome = decide(world, op, env);
    let returns = matches!(op, Op::Host { call: Call::MemUnshare { .. }, .. });
    if returns && outcome.done.is_some() {
        Outcome::refused(freehold_oracle::Statuses::one(hvc::GFN_NOT_MAPPED))
    } else {
        outcome
    }
}

fn gives_away_loans(world: &World, op: &Op, env: &Env<'_>) -> Outcome {
    let outcome = decide(world, op, env);
    let alone = outcome.refused == freehold_oracle::Statuses::one(hvc::SHARED);
    let gives = matches!(op, Op::Host { call: Call::MemDonate { .. } | Call::PoolTopup { .. }, .. });
    if gives && alone { Outcome::done(Done::Host([Value::Any; 4])) } else { outcome }
}

/// Plays the guest's stream in `data`, with a driver that answers its exits.
///
/// # Panics
/// On a finding.
#[must_use]
pub fn run_guest(data: &[u8]) -> Tally {
    guest_beside(decide, data)
}

/// The same beside a specification that is wrong: a control.
///
/// # Panics
/// On a finding, as it should.
#[must_use]
pub fn run_guest_beside(mistake: Mistake, data: &[u8]) -> Tally {
    guest_beside(mistake.made(), data)
}

fn guest_beside(decide: Decide<World>, data: &[u8]) -> Tally {
    with_rig(Fault::None, decide, |court| {
        let mut session = guest::Session::new(court);
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
