// SPDX-License-Identifier: MIT OR Apache-2.0
//! One operation, carried out by the shipped code and by the oracle, and everything compared.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use freehold_oracle::{Act, Call, Done, Env, Op as Said, Outcome, World, apply, decide, invariant};
use freehold_oracle::{Life, Owner, Pending, State, Stray, Value, VcpuLife, Who};
use freehold_uapi::guest;
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

    /// The machine alone does it.
    fn real(&self, op: &Op) -> Answer {
        match *op {
            Op::Host(call) => self.rig.call(0, call.id(), op::registers(&call, |who| self.handle(who))),
            Op::Hurried(call) => {
                self.rig.set_wanted(true);
                let answer = self.real(&Op::Host(call));
                self.rig.set_wanted(false);
                answer
            }
            Op::List { who, frame, list, records, flags } => {
                let words: Vec<u64> = self.lists[list].iter().flat_map(|r| [r.pfn, r.gfn_count]).collect();
                self.rig.host_write_words(frame, &words);
                let answer = self.rig.call(0, hvc::MEM_DONATE_LIST, [self.handle(who), frame, records, flags, 0]);
                self.rig.host_write(frame);
                answer
            }
            Op::Run { who, vcpu, mmio, act } => {
                self.rig.forget_script(0);
                self.rig.script(0, &[op::act(act)]);
                self.rig.call(0, hvc::VCPU_RUN, [self.handle(who), vcpu, mmio, 0, 0])
            }
            Op::Ask { who, act } => {
                let answer = self.real(&Op::Run { who, vcpu: 0, mmio: 0, act });
                if answer.is_success() && ASKS.contains(&answer.x[0]) {
                    self.real(&Op::Host(Call::GuestAccept { vm: who, vcpu: 0, count: answer.x[2] }));
                    self.real(&Op::Run { who, vcpu: 0, mmio: 0, act: Act::Interrupt });
                }
                answer
            }
            Op::Touch { frame, write, from } => self.touch(frame, write, from),
            Op::During { who, call } => self.during(who, call).0,
            Op::Streaming(who) => {
                self.rig.set_busy(true);
                let answer = self.real(&Op::Run { who, vcpu: 0, mmio: 0, act: Act::Interrupt });
                self.rig.set_busy(false);
                answer
            }
            Op::Unserved(call) => {
                self.rig.set_serves_vms(false);
                let answer = self.real(&Op::Host(call));
                self.rig.set_serves_vms(true);
                answer
            }
        }
    }

    /// One CPU's part of two operations at a time: calls, runs, and stray accesses of the kernel.
    /// A handle is looked up before either begins.
    pub(crate) fn real_on(&self, cpu: usize, op: &Op, handle: u64) -> Result<Answer, String> {
        let work = || match *op {
            Op::Host(call) => self.rig.call_only(cpu, call.id(), op::registers(&call, |_| handle)),
            Op::Run { who: _, vcpu, mmio, act } => {
                self.rig.forget_script(cpu);
                self.rig.script(cpu, &[op::act(act)]);
                self.rig.call_only(cpu, hvc::VCPU_RUN, [handle, vcpu, mmio, 0, 0])
            }
            Op::Touch { frame, .. } => Answer { status: if self.rig.may_retry(cpu, frame) { 1 } else { 2 }, x: [0; 4] },
            _ => panic!("not for two CPUs"),
        };
        catch_unwind(AssertUnwindSafe(work)).map_err(said)
    }

    /// The handle that an operation names its VM by; none is zero.
    pub(crate) fn handle_of(&self, op: &Op) -> u64 {
        let slot = match op {
            Op::Host(call) => vm_of(call),
            Op::Run { who: Who::Slot(slot), .. } => Some(*slot),
            _ => None,
        };
        slot.map_or(0, |slot| self.handle(Who::Slot(slot)))
    }

    /// The machine.
    pub(crate) const fn rig(&self) -> &'r Rig {
        self.rig
    }

    /// 0: it went through, 1: it went through after the frame was taken, 2: a fault was injected.
    fn touch(&self, frame: u64, write: bool, from: Stray) -> Answer {
        let go = || if write { self.rig.host_write(frame) } else { self.rig.host_read(frame).is_some() };
        let kernel = from == Stray::Kernel;
        let status = if go() {
            0
        } else if self.rig.host_abort(frame, kernel) {
            assert!(go(), "the access should be made again, and faults again");
            1
        } else {
            2
        };
        Answer { status, x: [0; 4] }
    }

    /// The handle by which the host names a VM.
    pub(crate) fn handle(&self, who: Who) -> u64 {
        match who {
            Who::Slot(slot) => {
                self.rig.handles().find(|(at, _)| *at == usize::from(slot)).map_or(0, |(_, handle)| handle)
            }
            // The rig was warmed up: the first VM has ended.
            Who::Ended => 1 << 16,
            Who::Never => 1 << 16 | 64,
        }
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

    /// The records that a list frame holds which nobody wrote for this operation.
    pub(crate) fn found(&self, op: &Op) -> Vec<Record> {
        let Op::Host(Call::MemDonateList { list, records, .. }) = *op else { return Vec::new() };
        let words = self.rig.words(list, usize::try_from(records.saturating_mul(2)).unwrap_or(usize::MAX));
        words.as_chunks::<2>().0.iter().map(|[pfn, gfn_count]| Record { pfn: *pfn, gfn_count: *gfn_count }).collect()
    }

    pub(crate) fn env<'e>(&self, world: &World<P, V, U, G, C>, call: &Call, list: &'e [Record]) -> Env<'e> {
        let free = (0..).zip(&world.vms).find(|(_, vm)| !vm.exists()).map_or(0, |(slot, _)| slot);
        let need = self.needed().unwrap_or_else(|| need(world, call, list));
        Env { slot: free, need, list, ..Env::CALM }
    }

    /// Says how many pool pages the next calls need, tables for instance.
    pub(crate) fn needs(&self, pages: Option<u64>) {
        *self.need.lock().unwrap_or_else(PoisonError::into_inner) = pages;
    }

    fn needed(&self) -> Option<u64> {
        *self.need.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn called(
        &self,
        world: &mut World<P, V, U, G, C>,
        call: Call,
        list: &[Record],
        answer: Answer,
        hurried: bool,
    ) -> Result<Taken, String> {
        let done = if hurried { stride(world, &call) } else { u64::MAX };
        let env = Env { done, ..self.env(world, &call, list) };
        let said = Said::Host { cpu: 0, call };
        let outcome = (self.decide)(world, &said, &env);
        let mut x = answer.x;
        if call == Call::Version {
            // The machine has fewer slots than el2 has room for, and its VMs fewer vCPUs.
            x[2] = x[2].min(V as u64);
            x[3] = x[3].min(U as u64);
        }
        if !outcome.permits(answer.status, x) {
            return Err(format!("el2 answers {} {:x?}, oracle permits {outcome:x?}", answer.name(), answer.x));
        }
        if answer.status == hvc::NEED_PAGES {
            let free = self.free_of(world, &call);
            if answer.x != [env.need.saturating_sub(free), 0, 0, 0] {
                return Err(format!("it wants {:x?} more pages, of {} and {free} free", answer.x, env.need));
            }
        } else if !answer.is_success() && answer.x != [0; 4] {
            return Err(format!("{} with results {:x?}", answer.name(), answer.x));
        }
        if answer.is_success() {
            apply(world, &said, &env);
        }
        let cell = Cell { what: op::name(call.id()), outcome: answer.name() };
        Ok(Taken { cell, inner: None, done: answer.is_success() })
    }

    fn free_of(&self, world: &World<P, V, U, G, C>, call: &Call) -> u64 {
        match *call {
            Call::VmCreate { count, .. } => count,
            _ => vm_of(call).map_or(0, |slot| world.vm(slot).free.into()),
        }
    }

    fn touched(
        &self,
        world: &mut World<P, V, U, G, C>,
        pfn: u64,
        write: bool,
        from: Stray,
        answer: Answer,
    ) -> Result<Taken, String> {
        let said = Said::Touch { pfn, write, from };
        let outcome = (self.decide)(world, &said, &Env::CALM);
        let seen = match answer.status {
            0 => Done::Allowed,
            1 => Done::Revoked,
            _ => Done::Injected,
        };
        if outcome.done != Some(seen) {
            return Err(format!("the access: el2 {seen:?}, oracle {:?}", outcome.done));
        }
        apply(world, &said, &Env::CALM);
        let effect = match seen {
            Done::Allowed => "goes through",
            Done::Revoked => "takes the frame",
            _ => "faults",
        };
        let cell = Cell { what: if write { "host write" } else { "host read" }, outcome: effect };
        Ok(Taken { cell, inner: None, done: seen != Done::Injected })
    }

    fn run(&self, world: &mut World<P, V, U, G, C>, call: Call, act: Act, answer: Answer) -> Result<Taken, String> {
        let found = match self.entered(world, 0, call, answer)? {
            Entry::Over(outcome) => {
                let cell = Cell { what: "VCPU_RUN", outcome };
                return Ok(Taken { cell, inner: None, done: answer.is_success() });
            }
            Entry::Runs(found) => found,
        };
        if let (Some((x0, x1)), Act::Interrupt) = (found, act) {
            let real = self.registers(call);
            if real != Some([x0, x1, 0, 0]) {
                return Err(format!("the guest finds {real:x?}, oracle says {x0:x} {x1:x}"));
            }
        }
        let inner = self.acted(world, 0, (self.registers(call), self.is_told(call)), act, answer)?;
        let cell = Cell { what: "VCPU_RUN", outcome: exit_name(answer.x[0]) };
        Ok(Taken { cell, inner: Some(inner), done: true })
    }

    /// How a run of this answer began.
    pub(crate) fn entered(
        &self,
        world: &mut World<P, V, U, G, C>,
        cpu: u8,
        call: Call,
        answer: Answer,
    ) -> Result<Entry, String> {
        let entry = Said::Host { cpu, call };
        let outcome = (self.decide)(world, &entry, &Env::CALM);
        if !answer.is_success() {
            let good = outcome.refused.has(answer.status) && answer.x == [0; 4];
            let wrong = || format!("the run is refused with {}, oracle permits {outcome:x?}", answer.name());
            return if good { Ok(Entry::Over(answer.name())) } else { Err(wrong()) };
        }
        match outcome.done {
            Some(Done::Exit(_)) if outcome.permits(0, answer.x) => {
                apply(world, &entry, &Env::CALM);
                Ok(Entry::Over(exit_name(answer.x[0])))
            }
            Some(Done::Entered(found)) => {
                apply(world, &entry, &Env::CALM);
                Ok(Entry::Runs(found))
            }
            _ => Err(format!("the run exits with {:x?}, oracle permits {outcome:x?}", answer.x)),
        }
    }

    /// What the guest did once it ran, and how it came out. Known are x0 to x3, if nobody else has run it since, and
    /// whether it was given an exception.
    pub(crate) fn acted(
        &self,
        world: &mut World<P, V, U, G, C>,
        cpu: u8,
        (registers, is_told): (Option<[u64; 4]>, bool),
        act: Act,
        answer: Answer,
    ) -> Result<Cell, String> {
        let env = Env::CALM;
        let said = Said::Guest { cpu, act };
        let outcome = (self.decide)(world, &said, &env);
        let what = act_name(act);
        if let Some((slot, _)) = world.cpu(cpu) {
            // Whatever the specification's step says of it.
            invariant::exit(world, slot, answer.x).map_err(|broken| format!("{act:x?}: {broken:x?}"))?;
        }
        // Whom to wake is not specified; it can only be one whom this call started.
        let wakes = matches!(act, Act::Call { id: guest::PSCI_CPU_ON | guest::PSCI_CPU_ON_64, .. });
        let goes_on = match answer.x {
            [hvc::EXIT_IRQ, 0, 0, 0] => true,
            [hvc::EXIT_WAKE, 0, 0, 0] => wakes && outcome.done.is_some(),
            _ => false,
        };
        if let Some(Done::Exit(_)) = outcome.done
            && outcome.permits(0, answer.x)
        {
            apply(world, &said, &env);
            return Ok(Cell { what, outcome: exit_name(answer.x[0]) });
        }
        if !goes_on {
            return Err(format!("{act:x?} exits with {:x?}, oracle permits {outcome:x?}", answer.x));
        }
        // Where another CPU ended the VM or ran its guest meanwhile, nobody can see what this one found.
        let refused = registers.is_none_or(|x| outcome.refused.has(x[0].cast_signed()) && x[1..] == [0; 3]);
        let answers = |values: [Value; 4]| registers.is_none_or(|x| values.iter().zip(x).all(|(v, x)| v.permits(x)));
        let outcome = match outcome.done {
            _ if refused && !outcome.refused.is_empty() => "refused",
            Some(Done::Answered(values)) if answers(values) => {
                apply(world, &said, &env);
                "answered"
            }
            Some(Done::Allowed) => {
                apply(world, &said, &env);
                "goes through"
            }
            Some(Done::Aborted) if is_told => "is told so itself",
            _ => return Err(format!("{act:x?} returns {registers:x?}, oracle permits {outcome:x?}")),
        };
        apply(world, &Said::Guest { cpu, act: Act::Interrupt }, &env);
        Ok(Cell { what, outcome })
    }

    /// Whether the vCPU was given an exception since this was asked last.
    pub(crate) fn is_told(&self, call: Call) -> bool {
        let Call::VcpuRun { vm, vcpu, mmio: _ } = call else { return false };
        self.rig.take_injected(self.handle(vm), vcpu) != 0
    }

    pub(crate) fn registers(&self, call: Call) -> Option<[u64; 4]> {
        let Call::VcpuRun { vm, vcpu, mmio: _ } = call else { return None };
        self.rig.guest_registers(self.handle(vm), vcpu)
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

/// Pool pages that a call needs: those of tables are counted by what the VM has used of its pool so far, which holds
/// for worlds whose guest frames all lie under one table.
fn need<const P: usize, const V: usize, const U: usize, const G: usize, const C: usize>(
    world: &World<P, V, U, G, C>,
    call: &Call,
    _list: &[Record],
) -> u64 {
    match *call {
        // A root of two frames starts at an even one.
        Call::VmCreate { ipa_bits: 40, pfn, .. } => pfn % 2 + 2,
        Call::VmCreate { .. } | Call::VcpuCreate { .. } => 1,
        Call::MemDonate { .. } | Call::MemDonateList { .. } | Call::MemShare { .. } => {
            let Some(slot) = vm_of(call) else { return 0 };
            let vm = world.vm(slot);
            let vcpus = world.vcpus[usize::from(slot)].iter().filter(|vcpu| vcpu.life != VcpuLife::Absent);
            let root_and_vcpus = 1 + u32::try_from(vcpus.count()).expect("few");
            if vm.pool.saturating_sub(vm.free) > root_and_vcpus { 0 } else { 2 }
        }
        _ => 0,
    }
}

/// Frames between two looks for interrupts.
fn stride(world: &impl State, call: &Call) -> u64 {
    let open = vm_of(call).is_some_and(|slot| world.vm(slot).life == Life::Open);
    STRIDES[usize::from(open && matches!(call, Call::MemDonate { .. } | Call::MemDonateList { .. }))]
}

/// Name of an exit.
fn exit_name(reason: u64) -> &'static str {
    hvc::EXITS.iter().find(|item| item.value.cast_unsigned() == reason).map_or("an unknown exit", |item| item.name)
}

/// Name of what a guest does.
fn act_name(act: Act) -> &'static str {
    match act {
        Act::Access { store: None, .. } => "guest load",
        Act::Access { store: Some(_), .. } => "guest store",
        Act::Fetch { .. } => "guest fetch",
        Act::Walk { .. } => "guest walk",
        Act::Call { id, .. } => {
            freehold_uapi::guest::CALLS.iter().find(|call| call.id == id).map_or("unknown guest call", |call| call.name)
        }
        Act::Wfi => "guest wfi",
        Act::Interrupt => "interrupt",
        Act::Kicked => "kick",
        Act::BadState => "guest bad state",
        Act::Abort => "guest abort",
    }
}
