// SPDX-License-Identifier: MIT OR Apache-2.0
//! The driver's half: a page becomes private only when nobody in the host holds it.

use super::{host, vcpu};
use crate::op::{Call, Env, Move, Who};
use crate::outcome::{Done, Outcome, REFUSED, Statuses};
use crate::record::{File, Kind, Owner, Page, Pending};
use crate::state::State;

/// The page that a move is about; none for what a guest asks for and has not.
fn subject(s: &impl State, step: &Move) -> Option<u64> {
    match *step {
        Move::Populate { pfn } | Move::Fill { pfn } | Move::Pin { pfn } | Move::Unpin { pfn } => Some(pfn),
        Move::Drain { pfn, .. } | Move::Freeze { pfn, .. } | Move::Cancel { pfn, .. } => Some(pfn),
        Move::Thaw { pfn } | Move::Donate { pfn, .. } | Move::Punch { pfn } => Some(pfn),
        Move::Close { pfn } | Move::Reclaim { pfn, .. } => Some(pfn),
        Move::Accept { slot, vcpu } => requested(s, slot, vcpu).and_then(|(_, gfn)| s.backing(slot, gfn)),
    }
}

/// What the guest of a vCPU waits for.
fn requested(s: &impl State, slot: u8, index: u64) -> Option<(Kind, u64)> {
    let (.., vcpu) = vcpu::find(s, Who::Slot(slot), index).ok()?;
    match vcpu.pending {
        Pending::Request { kind, gfn, .. } => Some((kind, gfn.into())),
        Pending::None | Pending::Load { .. } | Pending::Answer { .. } => None,
    }
}

/// The state that a page is in after a move, or nothing if the driver refuses it.
fn next(s: &impl State, step: &Move, page: &Page) -> Option<File> {
    let ours = page.owner == Owner::Host;
    let home = if ours { File::Host } else { File::Lent };
    let fresh = page.file == File::Out && ours && page.holders == 0 && page.borrows == 0;
    match *step {
        Move::Populate { .. } => fresh.then_some(File::Host),
        Move::Fill { .. } => fresh.then_some(File::Frozen),
        // A page with a reference can get more of them; at 0 no `get` succeeds.
        Move::Pin { .. } => {
            let counted = !matches!(page.file, File::Frozen | File::Given);
            (counted && page.host_reaches() && page.holders < u8::MAX).then_some(page.file)
        }
        Move::Unpin { .. } => (page.holders > 0).then_some(page.file),
        Move::Drain { by, .. } => matches!(page.file, File::Host | File::Lent).then_some(File::Draining { by }),
        Move::Freeze { by, .. } => (page.file == File::Draining { by } && page.holders == 0).then_some(File::Frozen),
        Move::Cancel { by, .. } => (page.file == File::Draining { by }).then_some(home),
        Move::Thaw { .. } => (page.file == File::Frozen).then_some(home),
        Move::Donate { .. } => (page.file == File::Frozen && ours).then_some(File::Given),
        Move::Accept { slot, vcpu } => match (requested(s, slot, vcpu)?.0, page.file) {
            (Kind::Share, File::Given) => Some(File::Lent),
            (Kind::Unshare, File::Frozen) => Some(File::Given),
            (Kind::Relinquish, File::Given) => Some(File::Out),
            _ => None,
        },
        // What the guest has is not the host's to take, nor is what an attempt holds.
        Move::Punch { .. } => (ours && matches!(page.file, File::Host | File::Frozen)).then_some(File::Out),
        // The name goes; what the guest has stays with it.
        Move::Close { .. } => (page.file != File::Out).then_some(if ours { File::Out } else { page.file }),
        Move::Reclaim { .. } => (!ours && page.file != File::Out).then_some(File::Out),
    }
}

/// The host call that a move makes.
fn call_of(step: &Move) -> Option<Call> {
    if let Move::Donate { pfn, slot, gfn } = *step {
        Some(Call::MemDonate { vm: Who::Slot(slot), pfn, gfn, count: 1, flags: 0 })
    } else if let Move::Accept { slot, vcpu } = *step {
        Some(Call::GuestAccept { vm: Who::Slot(slot), vcpu, count: 1 })
    } else if let Move::Reclaim { pfn, slot } = *step {
        Some(Call::VmReclaim { vm: Who::Slot(slot), pfn, count: 1 })
    } else {
        None
    }
}

pub(super) fn decide(s: &impl State, step: &Move, env: &Env<'_>) -> Outcome {
    let page = subject(s, step).map(|pfn| s.page(pfn));
    if page.and_then(|p| next(s, step, &p)).is_none() {
        return Outcome::refused(Statuses::one(REFUSED));
    }
    match call_of(step) {
        Some(call) => host::decide(s, &call, env),
        None => Outcome::done(Done::Moved),
    }
}

pub(super) fn apply(s: &mut impl State, step: &Move, env: &Env<'_>) {
    let Some(pfn) = subject(s, step) else { return };
    let Some(file) = next(s, step, &s.page(pfn)) else { return };
    if let Some(call) = call_of(step) {
        host::apply(s, 0, &call, env);
    }
    let page = s.page(pfn);
    let (more, fewer) = (matches!(step, Move::Pin { .. }), matches!(step, Move::Unpin { .. }));
    let holders = page.holders.saturating_add(more.into()).saturating_sub(fewer.into());
    s.set_page(pfn, Page { file, holders, ..page });
}
