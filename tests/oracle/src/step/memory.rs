// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pages move between host and VM: donated, lent, taken back, and what a guest asked for.

use freehold_uapi::hvc::{self, Record};

use super::change;
use super::frames::{FRAMES_NEAR, countable, each, each_gfn, gift, in_ram, loan, named, run};
use super::host::{result, unless};
use super::vcpu;
use crate::op::{Env, Who};
use crate::outcome::{Debts, Outcome, Statuses};
use crate::record::{Content, Kind, Life, Mark, Page, Pending, Vcpu, VcpuLife, Vm};
use crate::state::State;

/// Frames, and the guest frames that they go to.
#[derive(Clone, Copy)]
pub(super) struct Run {
    pub(super) pfn: u64,
    pub(super) gfn: u64,
    pub(super) count: u64,
}

impl Run {
    fn of(record: &Record) -> Self {
        Self { pfn: record.pfn, gfn: record.gfn(), count: record.count() }
    }

    /// Objections to its numbers alone.
    fn numbers(&self) -> Statuses {
        run(self.pfn, self.count, hvc::MAX_RUN, hvc::NOT_MEMORY).and(run(
            self.gfn,
            self.count,
            hvc::MAX_RUN,
            hvc::GFN_OUT_OF_RANGE,
        ))
    }

    /// Objections to its frames and guest frames.
    fn places(&self, s: &impl State, slot: u8, objection: impl Fn(&Page) -> Statuses) -> Statuses {
        let mut no = Statuses::NONE;
        if countable(self.pfn, self.count, hvc::MAX_RUN) {
            no = no.and(each(s, self.pfn, self.count, objection));
        }
        if countable(self.gfn, self.count, hvc::MAX_RUN) {
            no = no.and(each_gfn(s, slot, self.gfn, self.count));
        }
        no
    }

    /// Whether a frame or a guest frame of both is the same.
    fn meets(&self, other: &Self) -> bool {
        let near = |a: u64, b: u64| a < b.saturating_add(other.count) && b < a.saturating_add(self.count);
        near(self.pfn, other.pfn) || near(self.gfn, other.gfn)
    }
}

/// A donation must be to a protected VM, a loan to an ordinary one, and both to one that lives.
fn fits(vm: &Vm, protected: bool) -> Statuses {
    Statuses::NONE.when(vm.protected != protected || !vm.alive(), hvc::WRONG_STATE)
}

fn flags_of(flags: u64, known: u64) -> Statuses {
    Statuses::NONE.when(flags & !known != 0, hvc::BAD_ARGUMENT)
}

fn owing_host(mut outcome: Outcome) -> Outcome {
    outcome.debts.host = outcome.done.is_some();
    outcome
}

pub(super) fn decide_donate(s: &impl State, who: Who, run: Run, flags: u64, env: &Env<'_>) -> Outcome {
    let no = flags_of(flags, hvc::DONATE_REVOCABLE).and(run.numbers());
    let (slot, vm) = match named(s, who) {
        Ok(found) => found,
        Err(e) => return Outcome::refused(no.and(e)),
    };
    let no = no.and(fits(&vm, true)).and(run.places(s, slot, |p| gift(p, Some(slot)))).and(change::short(&vm, env));
    owing_host(unless(no, result(change::done(run.count, env))))
}

pub(super) fn donate(s: &mut impl State, who: Who, run: Run, flags: u64, env: &Env<'_>) {
    let Ok((slot, vm)) = named(s, who) else { return };
    let number = change::done(run.count, env);
    for n in 0..number {
        let (pfn, gfn) = (run.pfn.saturating_add(n), run.gfn.saturating_add(n));
        change::to_guest(s, pfn, slot, gfn, flags & hvc::DONATE_REVOCABLE != 0, vm.life == Life::Ran);
    }
    let guest = vm.guest.saturating_add(u32::try_from(number).unwrap_or(u32::MAX));
    s.set_vm(slot, change::spend(Vm { guest, ..vm }, env));
}

/// The records that count, as they were copied.
fn copied<'a>(env: &Env<'a>, records: u64) -> &'a [Record] {
    let number = usize::try_from(records).unwrap_or(usize::MAX).min(env.list.len());
    env.list.get(..number).unwrap_or_default()
}

fn total(records: &[Record]) -> u64 {
    records.iter().fold(0, |sum, r| sum.saturating_add(r.count()))
}

pub(super) fn decide_list(s: &impl State, who: Who, list: u64, records: u64, flags: u64, env: &Env<'_>) -> Outcome {
    let mut no = flags_of(flags, hvc::DONATE_REVOCABLE)
        .when(records == 0, hvc::ZERO_COUNT)
        .when(records > hvc::MAX_RECORDS, hvc::COUNT_TOO_LARGE)
        .when(list >= FRAMES_NEAR, hvc::NOT_MEMORY);
    let (slot, vm) = match named(s, who) {
        Ok(found) => found,
        Err(e) => return Outcome::refused(no.and(e)),
    };
    // The list frame is read, not given: what may be said of a frame may be said of it.
    let frame = if s.page(list).owner == crate::Owner::Host { Statuses::NONE } else { gift(&s.page(list), Some(slot)) };
    no = no.and(frame).and(fits(&vm, true));
    if frame.is_empty() && records <= hvc::MAX_RECORDS {
        let runs = copied(env, records);
        if total(runs) > hvc::MAX_RUN {
            // Which of its frames are looked at before they are too many is nobody's promise: numbers alone are judged.
            return Outcome::refused(
                runs.iter().fold(no, |no, r| no.and(Run::of(r).numbers())).and(Statuses::one(hvc::COUNT_TOO_LARGE)),
            );
        }
        no = no.and(list_of(s, slot, runs)).and(change::short(&vm, env));
        return owing_host(unless(no, result(change::done(total(runs), env))));
    }
    Outcome::refused(no)
}

/// Objections to a list's runs, one by one and two by two.
fn list_of(s: &impl State, slot: u8, runs: &[Record]) -> Statuses {
    let mut no = Statuses::NONE;
    for (i, record) in runs.iter().enumerate() {
        let run = Run::of(record);
        let twice = runs.iter().take(i).any(|earlier| run.meets(&Run::of(earlier)));
        no = no.and(run.numbers()).and(run.places(s, slot, |p| gift(p, Some(slot)))).when(twice, hvc::TWICE);
    }
    no
}

pub(super) fn donate_list(s: &mut impl State, who: Who, records: u64, flags: u64, env: &Env<'_>) {
    let runs = copied(env, records);
    let mut left = change::done(total(runs), env);
    let Ok((slot, vm)) = named(s, who) else { return };
    let calm = Env { done: u64::MAX, need: 0, freed: 0, ..*env };
    for record in runs {
        let run = Run::of(record);
        let count = run.count.min(left);
        if count > 0 {
            donate(s, who, Run { count, ..run }, flags, &calm);
        }
        left = left.saturating_sub(count);
    }
    let guest = s.vm(slot).guest;
    s.set_vm(slot, change::spend(Vm { guest, ..vm }, env));
}

pub(super) fn decide_share(s: &impl State, who: Who, run: Run, flags: u64, env: &Env<'_>) -> Outcome {
    let no = flags_of(flags, hvc::SHARE_WRITE | hvc::SHARE_EXEC).and(run.numbers());
    let (slot, vm) = match named(s, who) {
        Ok(found) => found,
        Err(e) => return Outcome::refused(no.and(e)),
    };
    let no = no.and(fits(&vm, false)).and(run.places(s, slot, |p| loan(p, slot))).and(change::short(&vm, env));
    unless(no, result(change::done(run.count, env)))
}

pub(super) fn share(s: &mut impl State, who: Who, run: Run, flags: u64, env: &Env<'_>) {
    let Ok((slot, vm)) = named(s, who) else { return };
    let number = change::done(run.count, env);
    let (write, exec) = (flags & hvc::SHARE_WRITE != 0, flags & hvc::SHARE_EXEC != 0);
    for n in 0..number {
        let pfn = run.pfn.saturating_add(n);
        let page = s.page(pfn);
        s.set_page(pfn, Page { borrows: page.borrows.saturating_add(1), ..page });
        s.set_mark(slot, run.gfn.saturating_add(n), Mark::Borrow { pfn, write, exec });
    }
    let borrowed = vm.borrowed.saturating_add(u32::try_from(number).unwrap_or(u32::MAX));
    s.set_vm(slot, change::spend(Vm { borrowed, ..vm }, env));
}

pub(super) fn decide_unshare(s: &impl State, who: Who, gfn: u64, count: u64) -> Outcome {
    let mut no = run(gfn, count, hvc::MAX_RUN, hvc::GFN_OUT_OF_RANGE);
    let (slot, vm) = match named(s, who) {
        Ok(found) => found,
        Err(e) => return Outcome::refused(no.and(e)),
    };
    // A dying VM that borrows nothing may be said to be in the wrong state.
    no = no.when(vm.protected || !vm.alive() && vm.borrowed == 0, hvc::WRONG_STATE);
    if countable(gfn, count, hvc::MAX_RUN) {
        for n in gfn..gfn.saturating_add(count) {
            let lent = matches!(s.mark(slot, n), Mark::Borrow { .. });
            no = no.when(!lent, hvc::GFN_NOT_MAPPED).when(!in_ram(s, slot, n), hvc::GFN_OUT_OF_RANGE);
        }
    }
    let mut outcome = unless(no, result(count));
    if outcome.done.is_some() && vm.alive() {
        outcome.debts = Debts { host: false, guests: change::bit(slot) };
    }
    outcome
}

pub(super) fn unshare(s: &mut impl State, who: Who, gfn: u64, count: u64, env: &Env<'_>) {
    let Ok((slot, vm)) = named(s, who) else { return };
    for n in gfn..gfn.saturating_add(count) {
        if let Mark::Borrow { pfn, .. } = s.mark(slot, n) {
            let page = s.page(pfn);
            s.set_page(pfn, Page { borrows: page.borrows.saturating_sub(1), ..page });
            s.set_mark(slot, n, Mark::None);
        }
    }
    let borrowed = vm.borrowed.saturating_sub(u32::try_from(count).unwrap_or(u32::MAX));
    s.set_vm(slot, change::spend(Vm { borrowed, ..vm }, env));
}

pub(super) fn decide_accept(s: &impl State, who: Who, index: u64, count: u64, env: &Env<'_>) -> Outcome {
    let mut no = Statuses::NONE.when(count == 0, hvc::ZERO_COUNT);
    let (slot, vm, _, vcpu) = match vcpu::find(s, who, index) {
        Ok(found) => found,
        Err(e) => return Outcome::refused(no.and(e)),
    };
    no = no.when(!vm.alive(), hvc::WRONG_STATE).when(vcpu.running, hvc::VCPU_BUSY);
    let Pending::Request { kind, gfn, count: asked } = vcpu.pending else {
        // A vCPU that can not go on has no request, and is in the wrong state to have one.
        let crashed = vcpu.life == VcpuLife::Crashed;
        return Outcome::refused(no.when(true, hvc::NO_REQUEST).when(crashed, hvc::WRONG_STATE));
    };
    no = no.when(count > asked.into(), hvc::COUNT_TOO_LARGE);
    for n in 0..count.min(asked.into()) {
        no = no.and(obstacle(s, slot, kind, u64::from(gfn).saturating_add(n)));
    }
    let mut outcome = unless(no, result(change::done(count, env)));
    if outcome.done.is_some() {
        let guests = if kind == Kind::Relinquish { change::bit(slot) } else { 0 };
        outcome.debts = Debts { host: kind == Kind::Unshare, guests };
    }
    outcome
}

/// Why a guest frame can not move as its guest asked.
fn obstacle(s: &impl State, slot: u8, kind: Kind, gfn: u64) -> Statuses {
    if s.mark(slot, gfn) == Mark::Poisoned {
        return Statuses::one(hvc::GFN_POISONED);
    }
    match s.backing(slot, gfn) {
        None => Statuses::one(hvc::GFN_NOT_MAPPED),
        // A page that is not lent is, to who wants it unshared, not there.
        Some(pfn) if kind == Kind::Unshare => Statuses::NONE.when(!s.page(pfn).lent, hvc::GFN_NOT_MAPPED),
        Some(pfn) => Statuses::NONE.when(s.page(pfn).lent, hvc::SHARED),
    }
}

pub(super) fn accept(s: &mut impl State, who: Who, index: u64, count: u64, env: &Env<'_>) {
    let Ok((slot, _, index, vcpu)) = vcpu::find(s, who, index) else { return };
    let Pending::Request { kind, gfn, .. } = vcpu.pending else { return };
    let number = change::done(count, env);
    for n in 0..number {
        let gfn = u64::from(gfn).saturating_add(n);
        if let Some(pfn) = s.backing(slot, gfn) {
            granted(s, slot, kind, pfn);
        }
    }
    let count = u32::try_from(number).unwrap_or(u32::MAX);
    s.set_vcpu(slot, index, Vcpu { pending: Pending::Answer { kind, count }, ..vcpu });
    let vm = s.vm(slot);
    s.set_vm(slot, change::spend(vm, env));
}

/// One page moves as its guest asked.
fn granted(s: &mut impl State, slot: u8, kind: Kind, pfn: u64) {
    let page = s.page(pfn);
    match kind {
        Kind::Share => {
            let content = if let Content::Secret(_) = page.content { Content::Shared } else { page.content };
            s.set_page(pfn, Page { lent: true, content, ..page });
        }
        Kind::Unshare => s.set_page(pfn, Page { lent: false, ..page }),
        Kind::Relinquish => {
            change::to_host(s, pfn, Content::Zero);
            let vm = s.vm(slot);
            s.set_vm(slot, Vm { guest: vm.guest.saturating_sub(1), ..vm });
        }
    }
}
