// SPDX-License-Identifier: MIT OR Apache-2.0
//! A VM's life: created out of a pool, given ranges, ended, taken back frame by frame.

use freehold_uapi::hvc;

use super::change;
use super::frames::{countable, each, gift, named, return_of, run};
use super::host::{NOTHING, result, unless};
use crate::op::{Env, Who};
use crate::outcome::{Debts, Done, Outcome, Statuses, Value};
use crate::record::{Content, Life, Owner, Pending, Vcpu, Vm};
use crate::state::State;

/// Bits that a guest's address space may have.
const IPA_BITS: core::ops::RangeInclusive<u64> = 32..=40;

pub(super) fn decide_create(s: &impl State, flags: u64, ipa: u64, pfn: u64, count: u64, env: &Env<'_>) -> Outcome {
    let slots = s.machine().slots;
    let unserved = !s.machine().ordinary && flags & hvc::VM_PROTECTED == 0;
    let mut no = run(pfn, count, hvc::MAX_RUN, hvc::NOT_MEMORY)
        .when(slots == 0, hvc::NO_VMS)
        .when(flags & !hvc::VM_PROTECTED != 0 || unserved || !IPA_BITS.contains(&ipa), hvc::BAD_ARGUMENT)
        .when(slots > 0 && (0..slots).all(|n| s.vm(n).exists()), hvc::NO_SLOT)
        .when(env.need > count, hvc::NEED_PAGES);
    if countable(pfn, count, hvc::MAX_RUN) {
        no = no.and(each(s, pfn, count, |p| gift(p, None)));
    }
    let mut outcome = unless(no, Done::Host([Value::Any, NOTHING[1], NOTHING[2], NOTHING[3]]));
    outcome.debts.host = true;
    outcome
}

pub(super) fn create(s: &mut impl State, flags: u64, ipa: u64, pfn: u64, count: u64, env: &Env<'_>) {
    let used = s.vm(env.slot).used;
    let number = u32::try_from(count).unwrap_or(u32::MAX);
    s.set_vm(
        env.slot,
        Vm {
            life: Life::Open,
            used,
            protected: flags & hvc::VM_PROTECTED != 0,
            ipa_bits: u8::try_from(ipa).unwrap_or(u8::MAX),
            pool: number,
            free: number.saturating_sub(u32::try_from(env.need).unwrap_or(u32::MAX)),
            ..Vm::default()
        },
    );
    change::to_pool(s, env.slot, pfn, count);
}

pub(super) fn decide_range(s: &impl State, who: Who, gfn: u64, count: u64) -> Outcome {
    // The count may be any number: only the end of the VM's address space limits it.
    let mut no = run(gfn, count, u64::MAX, hvc::GFN_OUT_OF_RANGE);
    let (slot, vm) = match named(s, who) {
        Ok(found) => found,
        Err(e) => return Outcome::refused(no.and(e)),
    };
    let end = gfn.checked_add(count);
    let declared = || (0..s.machine().ranges).map_while(|n| s.range(slot, n));
    let overlaps = declared().any(|(f, c)| gfn < f.saturating_add(c) && end.is_none_or(|e| f < e));
    let full = declared().count() >= usize::from(s.machine().ranges);
    no = no
        .when(vm.life != Life::Open, hvc::WRONG_STATE)
        .when(end.is_some_and(|e| e > frames_of(vm.ipa_bits)), hvc::GFN_OUT_OF_RANGE)
        .when(full || overlaps && count > 0, hvc::BAD_RANGE);
    unless(no, Done::Host(NOTHING))
}

/// Guest frames of an address space.
fn frames_of(ipa_bits: u8) -> u64 {
    1u64.checked_shl(u32::from(ipa_bits)).map_or(u64::MAX, |bytes| bytes >> 12)
}

pub(super) fn range(s: &mut impl State, who: Who, gfn: u64, count: u64) {
    if let Ok((slot, _)) = named(s, who) {
        s.add_range(slot, gfn, count);
    }
}

/// Guest frames of 64 KB, and of the distributor or the first redistributor with the frame behind it.
const GIC_FRAMES: u64 = 16;
const GIC_LEAST: u64 = 32;

pub(super) fn decide_gic(s: &impl State, who: Who, distributor: u64, redistributors: u64) -> Outcome {
    let odd = !distributor.is_multiple_of(GIC_FRAMES) || !redistributors.is_multiple_of(GIC_FRAMES);
    let (_, vm) = match named(s, who) {
        Ok(found) => found,
        Err(e) => return Outcome::refused(e),
    };
    let last = frames_of(vm.ipa_bits).saturating_sub(GIC_LEAST);
    let no = Statuses::NONE
        .when(vm.life != Life::Open, hvc::WRONG_STATE)
        .when(odd, hvc::UNALIGNED)
        .when(distributor > last || redistributors > last, hvc::GFN_OUT_OF_RANGE);
    unless(no, Done::Host(NOTHING))
}

pub(super) fn gic(s: &mut impl State, who: Who) {
    if let Ok((slot, vm)) = named(s, who) {
        s.set_vm(slot, Vm { gic: true, ..vm });
    }
}

pub(super) fn decide_irq(s: &impl State, who: Who, intid: u64, flags: u64) -> Outcome {
    let no = Statuses::NONE.when(!(32..256).contains(&intid) || flags > 3, hvc::BAD_ARGUMENT);
    let (_, vm) = match named(s, who) {
        Ok(found) => found,
        Err(e) => return Outcome::refused(no.and(e)),
    };
    // Whom it wakes is not specified here.
    unless(
        no.when(!vm.alive() || !vm.gic, hvc::WRONG_STATE),
        Done::Host([Value::Any, NOTHING[1], NOTHING[2], NOTHING[3]]),
    )
}

pub(super) fn decide_destroy(s: &impl State, who: Who) -> Outcome {
    let (slot, vm) = match named(s, who) {
        Ok(found) => found,
        Err(e) => return Outcome::refused(e),
    };
    let busy = (0..s.machine().vcpus).any(|v| s.vcpu(slot, v).running);
    let no = Statuses::NONE.when(!vm.alive(), hvc::WRONG_STATE).when(busy, hvc::VCPU_BUSY);
    let mut outcome = unless(no, Done::Host(NOTHING));
    outcome.debts = Debts { host: false, guests: change::bit(slot) };
    outcome
}

pub(super) fn destroy(s: &mut impl State, who: Who) {
    if let Ok((slot, vm)) = named(s, who) {
        // What is free in the pool matters to nobody any more.
        s.set_vm(slot, Vm { life: Life::Dying, free: 0, ..vm });
        for v in 0..s.machine().vcpus {
            let vcpu = s.vcpu(slot, v);
            s.set_vcpu(slot, v, Vcpu { kicked: false, pending: Pending::None, ..vcpu });
        }
    }
}

pub(super) fn decide_reclaim(s: &impl State, who: Who, pfn: u64, count: u64, env: &Env<'_>) -> Outcome {
    let mut no = run(pfn, count, hvc::MAX_RUN, hvc::NOT_MEMORY);
    let (slot, vm) = match named(s, who) {
        Ok(found) => found,
        Err(e) => return Outcome::refused(no.and(e)),
    };
    no = no.when(vm.life != Life::Dying, hvc::WRONG_STATE);
    if countable(pfn, count, hvc::MAX_RUN) {
        no = no.and(each(s, pfn, count, |p| return_of(p, slot, &vm)));
    }
    unless(no, result(change::done(count, env)))
}

pub(super) fn reclaim(s: &mut impl State, who: Who, pfn: u64, count: u64, env: &Env<'_>) {
    let Ok((slot, _)) = named(s, who) else { return };
    for n in pfn..pfn.saturating_add(change::done(count, env)) {
        let mut vm = s.vm(slot);
        if let Owner::Guest { .. } = s.page(n).owner {
            vm.guest = vm.guest.saturating_sub(1);
        } else {
            vm.pool = vm.pool.saturating_sub(1);
        }
        s.set_vm(slot, vm);
        change::to_host(s, n, Content::Zero);
        if vm.pool == 0 {
            s.clear_slot(slot);
            s.set_vm(slot, Vm { used: true, ..Vm::default() });
        }
    }
}

pub(super) fn decide_topup(s: &impl State, who: Who, pfn: u64, count: u64) -> Outcome {
    let mut no = run(pfn, count, hvc::MAX_RUN, hvc::NOT_MEMORY);
    let (slot, vm) = match named(s, who) {
        Ok(found) => found,
        Err(e) => return Outcome::refused(no.and(e)),
    };
    no = no.when(!vm.alive(), hvc::WRONG_STATE);
    if countable(pfn, count, hvc::MAX_RUN) {
        no = no.and(each(s, pfn, count, |p| gift(p, Some(slot))));
    }
    let mut outcome = unless(no, result(u64::from(vm.free).saturating_add(count)));
    outcome.debts.host = true;
    outcome
}

pub(super) fn topup(s: &mut impl State, who: Who, pfn: u64, count: u64) {
    if let Ok((slot, vm)) = named(s, who) {
        let more = u32::try_from(count).unwrap_or(u32::MAX);
        s.set_vm(slot, Vm { pool: vm.pool.saturating_add(more), free: vm.free.saturating_add(more), ..vm });
        change::to_pool(s, slot, pfn, count);
    }
}
