// SPDX-License-Identifier: MIT OR Apache-2.0
//! What holds of every transition.

use freehold_uapi::hvc;

use super::{Broken, Whole, exit, guest_reaches, must};
use crate::op::Op;
use crate::outcome::{Done, Outcome, Value};
use crate::record::{Content, File, Life, Owner, Page};

/// Holds the invariants against a transition from `before` to `after`.
///
/// # Errors
/// The first that is broken.
pub fn change<W: Whole + PartialEq>(before: &W, op: &Op, outcome: &Outcome, after: &W) -> Result<(), Broken> {
    if outcome.done.is_none() {
        must(!outcome.refused.is_empty(), 7, "no answer is right", 0)?;
        return must(before == after, 6, "a refusal changed something", 0);
    }
    answer(op, outcome)?;
    shown(before, op, outcome)?;
    for pfn in before.frames() {
        let (old, new) = (before.page(pfn), after.page(pfn));
        if old != new {
            owners(pfn, &old, &new)?;
            contents(before, op, pfn, &old, &new)?;
            holders(op, pfn, &old, &new)?;
        }
        rights(before, outcome, after, pfn)?;
    }
    Ok(())
}

/// What is no RAM for VMs never is.
fn owners(pfn: u64, old: &Page, new: &Page) -> Result<(), Broken> {
    let fixed = |p: &Page| matches!(p.owner, Owner::NotMemory | Owner::NoMap | Owner::El2);
    must(!fixed(old) && !fixed(new), 1, "a frame that has no other owner changed", pfn)?;
    let (from, to) = (old.owner, new.owner);
    let direct = from != to && from != Owner::Host && to != Owner::Host;
    must(!direct, 1, "a frame went from one VM to another, or between guest and pool", pfn)
}

/// What moves with an owner is what the table of moves says.
fn contents(before: &impl Whole, op: &Op, pfn: u64, old: &Page, new: &Page) -> Result<(), Broken> {
    let written = matches!(op, Op::Touch { write: true, .. });
    if old.owner != new.owner && new.owner == Owner::Host {
        must(new.content == Content::Zero || written, 4, "a frame came back with what was in it", pfn)?;
    }
    if let Owner::Guest { slot, .. } = new.owner
        && old.owner == Owner::Host
    {
        let late = before.vm(slot).life != Life::Open;
        must(!late || new.content == Content::Zero, 9, "a running guest was given what the host chose", pfn)?;
    }
    let kept = old.content == Content::Initial || old.owner == Owner::Host;
    must(new.content != Content::Initial || kept, 9, "content came from nowhere", pfn)
}

/// Nothing that the driver makes private is held.
fn holders(op: &Op, pfn: u64, old: &Page, new: &Page) -> Result<(), Broken> {
    let private = |p: &Page| matches!(p.owner, Owner::Guest { .. }) && !p.lent;
    if matches!(op, Op::Driver(_)) && private(new) && !private(old) {
        must(old.holders == 0 && old.file == File::Frozen, 5, "a page became private while it was held", pfn)?;
    }
    Ok(())
}

/// A right that ends takes its translations with it.
fn rights(before: &impl Whole, outcome: &Outcome, after: &impl Whole, pfn: u64) -> Result<(), Broken> {
    let host = before.page(pfn).host_reaches() && !after.page(pfn).host_reaches();
    must(!host || outcome.debts.host, 3, "the host lost a frame and kept its translation", pfn)?;
    for slot in 0..before.machine().slots {
        let lost = guest_reaches(before, slot, pfn) && !guest_reaches(after, slot, pfn);
        let paid = outcome.debts.guests >> (slot & 63) & 1 == 1;
        must(!lost || paid, 3, "a VM lost a frame and kept its translation", pfn)?;
    }
    Ok(())
}

/// What a guest's exit shows, it may.
fn shown(before: &impl Whole, op: &Op, outcome: &Outcome) -> Result<(), Broken> {
    let vcpu = if let Op::Guest { cpu, .. } = *op { before.cpu(cpu) } else { None };
    match (vcpu, outcome.done) {
        (Some((slot, _)), Some(Done::Exit([Value::Is(reason), Value::Is(a), Value::Is(b), _]))) => {
            exit(before, slot, [reason, a, b, 0])
        }
        _ => Ok(()),
    }
}

/// An answer says no more than it may, and a long call does no more than it was asked.
fn answer(op: &Op, outcome: &Outcome) -> Result<(), Broken> {
    match (op, outcome.done) {
        (Op::Guest { .. }, Some(Done::Exit([Value::Is(reason), _, b, c]))) => {
            let quiet = |v: Value| v == Value::Is(0);
            let bare = reason == hvc::EXIT_MEM_FAULT;
            must(!bare || quiet(b) && quiet(c), 4, "a fault on RAM says more than the guest frame", reason)?;
            must(reason == hvc::EXIT_MMIO || quiet(c), 4, "an exit says more than it needs", reason)
        }
        (Op::Host { call, .. }, Some(Done::Host([Value::Is(done), ..]))) => {
            let asked = call.frames();
            must(asked.is_none_or(|n| (1..=n).contains(&done)), 7, "a long call did nothing, or too much", done)
        }
        _ => Ok(()),
    }
}
