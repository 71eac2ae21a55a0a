// SPDX-License-Identifier: MIT OR Apache-2.0
//! One operation, carried out by the shipped code and by the oracle, and everything compared.

mod alone;
mod judged;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

use freehold_oracle::{Act, Call, Env, Life, Op as Said, Outcome, Owner, Pending, State, Who, World, decide};
use freehold_uapi::hvc::{self, Record};

use crate::agree::agree;
use crate::op::{self, Op};
use crate::rig::{Answer, Rig};

/// The specification, so that a wrong one can be tried.
pub type Decide<W> = fn(&W, &Said, &Env<'_>) -> Outcome;

/// Machine and specification side by side. `World`'s pages are the last frames of `el2`'s, one at least, and then all of the host's.
pub struct Lockstep<'r, W> {
    pub(crate) rig: &'r Rig,
    pub(crate) decide: Decide<W>,
    lists: &'r [&'r [Record]],
    /// Pool pages that the next call needs, where the world does not say.
    need: Mutex<Option<u64>>,
}

/// What an operation came to: its kind, and the status or exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cell {
    /// Host call, guest act or access.
    pub what: &'static str,
    /// Status, exit or effect.
    pub outcome: &'static str,
}

/// What became of a call or an access that both did alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) cell: Cell,
    /// Of what the guest did, if it ran.
    pub(crate) inner: Option<Cell>,
    /// Whether it was done, so that the world may be another.
    pub(crate) done: bool,
}

/// How a run began.
pub(crate) enum Entry {
    /// It was refused, or left at once.
    Over(&'static str),
    /// The guest runs, and finds these in x0 and x1.
    Runs(Option<(u64, u64)>),
}

/// How often what was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Operations, refused ones included.
    pub transitions: u64,
    /// Refused ones.
    pub refused: u64,
    /// How often each cell was hit.
    pub cells: BTreeMap<Cell, u64>,
}

impl Tally {
    pub(crate) fn note(&mut self, taken: Taken) {
        self.transitions += 1;
        self.refused += u64::from(!taken.done);
        for cell in [Some(taken.cell), taken.inner].into_iter().flatten() {
            *self.cells.entry(cell).or_default() += 1;
        }
    }

    /// Takes in what another has counted.
    pub fn add(&mut self, other: &Self) {
        self.transitions += other.transitions;
        self.refused += other.refused;
        for (cell, times) in &other.cells {
            *self.cells.entry(*cell).or_default() += times;
        }
    }
}

/// Frames after which a long call looks for interrupts, and the same where each is measured.
const STRIDES: [u64; 2] = [32, 4];

/// Exits that are a guest's requests.
const ASKS: [u64; 3] = [hvc::EXIT_SHARE, hvc::EXIT_UNSHARE, hvc::EXIT_RELINQUISH];

impl<'r, const P: usize, const V: usize, const U: usize, const G: usize, const C: usize>
    Lockstep<'r, World<P, V, U, G, C>>
{
    /// Brings the two together.
    #[must_use]
    pub fn new(rig: &'r Rig, lists: &'r [&'r [Record]]) -> Self {
        Self { rig, decide, lists, need: Mutex::new(None) }
    }

    /// The same with another specification.
    #[must_use]
    pub fn with(self, decide: Decide<World<P, V, U, G, C>>) -> Self {
        Self { decide, ..self }
    }

    /// The world of a machine that was just made or reset.
    ///
    /// # Panics
    /// If the world is not of the machine's size.
    #[must_use]
    pub fn world(&self) -> World<P, V, U, G, C> {
        let layout = self.rig.layout();
        let carved = (P as u64).checked_sub(layout.frames).expect("a page for each frame");
        let mut world = World::new(self.rig.first_frame() - carved, layout.gfns.first().copied().unwrap_or_default());
        world.machine.ordinary = true;
        assert!(carved != 0 && layout.vms == V && U <= 2, "the world is the machine's");
        world.pages.iter_mut().take(usize::try_from(carved).expect("few")).for_each(|page| page.owner = Owner::El2);
        for page in world.pages.iter_mut().rev().take(usize::try_from(layout.no_map).expect("few")) {
            page.owner = Owner::NoMap;
        }
        world
    }

    /// Lets a first VM live and end, so that there is a handle of an ended one. What a faulty machine does to it is
    /// not looked at.
    ///
    /// # Errors
    /// If the machine refuses.
    pub fn warm_up(&self, pool: u64) -> Result<(), String> {
        let answer = self.rig.call(0, hvc::VM_CREATE, [hvc::VM_PROTECTED, 32, pool, 1, 0]);
        if !answer.is_success() {
            return Err(format!("no first VM: {}", answer.name()));
        }
        self.rig.reset()?;
        drop(self.rig.complaints());
        Ok(())
    }

    /// Makes the machine what a sequence of operations makes of a new one.
    ///
    /// # Errors
    /// If it can not be reset, or stops.
    pub fn replay<'o>(&self, path: impl Iterator<Item = &'o Op>) -> Result<(), String> {
        self.rig.reset()?;
        path.into_iter().try_for_each(|op| self.caught(op).map(|_| ()))
    }

    fn caught(&self, op: &Op) -> Result<Answer, String> {
        catch_unwind(AssertUnwindSafe(|| self.real(op))).map_err(said)
    }

    /// Compares the machine with a world.
    ///
    /// # Errors
    /// The first difference, or what no machine may ever see.
    pub fn compare(&self, world: &World<P, V, U, G, C>) -> Result<(), String> {
        if let Some(what) = self.rig.complaints().into_iter().next() {
            return Err(what);
        }
        let picture = self.rig.picture();
        picture.judge()?;
        agree(&picture, world)
    }

    /// Both do `op`; `world` becomes what it is afterwards.
    ///
    /// # Errors
    /// The first difference, in one line.
    pub fn step(&self, world: &mut World<P, V, U, G, C>, op: &Op) -> Result<Tally, String> {
        let mut tally = Tally::default();
        let Op::Ask { who, act } = *op else {
            self.one(world, op, &mut tally)?;
            return Ok(tally);
        };
        self.one(world, &Op::Run { who, vcpu: 0, mmio: 0, act }, &mut tally)?;
        let Who::Slot(slot) = who else { return Ok(tally) };
        if let Pending::Request { count, .. } = world.vcpu(slot, 0).pending {
            self.one(world, &Op::Host(Call::GuestAccept { vm: who, vcpu: 0, count: count.into() }), &mut tally)?;
            self.one(world, &Op::Run { who, vcpu: 0, mmio: 0, act: Act::Interrupt }, &mut tally)?;
        }
        Ok(tally)
    }

    fn one(&self, world: &mut World<P, V, U, G, C>, op: &Op, tally: &mut Tally) -> Result<(), String> {
        let changes = self.rig.changes();
        let before = *world;
        self.rig.board.measured().clear();
        let list = self.found(op);
        if let Op::During { who, call } = *op {
            return self.one_during(world, who, call, tally);
        }
        let answer = self.caught(op)?;
        let taken = match *op {
            Op::Run { who, vcpu, mmio, act } => self.run(world, Call::VcpuRun { vm: who, vcpu, mmio }, act, answer)?,
            Op::Touch { frame, write, from } => self.touched(world, frame, write, from, answer)?,
            Op::Host(call) => self.called(world, call, &list, answer, false)?,
            Op::Hurried(call) => self.called(world, call, &list, answer, true)?,
            Op::List { who, frame, list, records, flags } => {
                let call = Call::MemDonateList { vm: who, list: frame, records, flags };
                self.called(world, call, self.lists[list], answer, false)?
            }
            Op::Streaming(who) => self.streaming(world, who, answer)?,
            Op::Unserved(call) => self.unserved(*world, call, answer)?,
            Op::Ask { .. } | Op::During { .. } => return Err("that is several operations".to_owned()),
        };
        if !taken.done && self.rig.changes() != changes {
            return Err(format!("refused with {}, and yet something was written", answer.name()));
        }
        self.measured(&before, world)?;
        self.compare(world)?;
        tally.note(taken);
        Ok(())
    }

    /// Compares what was measured since with what a VM that never ran was given: each page once, and no other.
    fn measured(&self, before: &World<P, V, U, G, C>, after: &World<P, V, U, G, C>) -> Result<(), String> {
        let mut real = core::mem::take(&mut *self.rig.board.measured());
        real.sort_unstable();
        let pages = before.frames().zip(after.frames());
        let given = pages.filter(|((_, old), (_, new))| match new.owner {
            Owner::Guest { slot, .. } => old.owner == Owner::Host && before.vm(slot).life == Life::Open,
            _ => false,
        });
        let must: Vec<u64> = given.map(|((frame, _), _)| frame).collect();
        if real == must { Ok(()) } else { Err(format!("frames {real:x?} were measured, and {must:x?} must be")) }
    }
}

/// What a panic said.
#[expect(clippy::needless_pass_by_value, reason = "as catch_unwind gives it")]
pub(crate) fn said(panic: Box<dyn core::any::Any + Send>) -> String {
    let said = panic.downcast_ref::<String>().map(String::as_str);
    said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it stopped").to_owned()
}

/// The VM that a call names, if it is one that stands in a slot.
pub(crate) fn vm_of(call: &Call) -> Option<u8> {
    let slot = core::cell::Cell::new(None);
    op::registers(call, |who| {
        if let Who::Slot(named) = who {
            slot.set(Some(named));
        }
        0
    });
    slot.get()
}
