// SPDX-License-Identifier: MIT OR Apache-2.0
//! One step of the host: a call, a fault, or something that it does to its memory.

use freehold_mem::{GuestView, Kind, Pfn, State, VmSlot};
use freehold_model::{Act, Picture, Rig, VmView};
use freehold_uapi::hvc;
use freehold_virt::vm::VcpuPhase;

use super::devices;
use super::judge::{CANARY, Court};
use super::pick::{Step, alive, building, dying};
use super::{GFN, GFNS, STEP};

/// Verbs that a step can name.
const VERBS: u8 = 24;
/// The verb that makes a VM.
const CREATE: u8 = 23;

/// A load, or a store of what the host must not learn.
pub(super) fn access(step: Step, ipa: u64, stores: bool) -> Act {
    let size = 1 << (step.place & 3);
    Act::Access { ipa, size, store: stores.then_some(CANARY), described: step.place & 0x1c != 0 }
}

/// What a guest does in a run of the host's choosing.
pub(super) fn act(step: Step, gfn: u64) -> Act {
    let inside = gfn << 12 | u64::from(step.raw & 0xff8);
    let call = [0xC600_0003, 0xC600_0004, 0xC600_0009][usize::from(step.more) % 3];
    match step.more >> 2 & 15 {
        _ if step.is_of_devices() => devices::act(step),
        0..=4 => Act::Hvc { imm: 0, x: [call, gfn << 12, u64::from(step.more >> 6 & 1), 0] },
        5 => Act::Hvc { imm: 0, x: [call, step.edge(), step.count(), u64::from(step.more >> 7)] },
        6 => access(step, inside, step.flag(6)),
        7 => access(step, 0x900_0000 | u64::from(step.raw), step.flag(6)),
        8 => access(step, step.edge() & ((1 << 48) - 1), step.flag(6)),
        9 => Act::Fetch { ipa: inside },
        10 => Act::Walk { ipa: inside },
        11 => Act::Trap { esr: u64::from(step.raw) << 16 | u64::from(step.frame) << 8 | u64::from(step.place) },
        12 => Act::SError,
        13 => Act::BadState,
        14 => Act::HostBusy,
        _ => Act::Interrupt,
    }
}

/// Plays a step; says whether it was not refused.
pub(super) fn step(court: &mut Court<'_>, bytes: &[u8; STEP]) -> bool {
    let mut step = Step::decode(bytes);
    let picture = court.rig.picture();
    step.verb = useful(&picture, step);
    with_vm(court, &picture, step).unwrap_or_else(|| without_vm(court, &picture, step))
}

fn is_host(state: State) -> bool {
    state == State::Host
}

fn is_lent(state: State) -> bool {
    matches!(state, State::Lent(_))
}

fn without_vm(court: &mut Court<'_>, picture: &Picture, step: Step) -> bool {
    let (rig, cpu) = (court.rig, step.cpu());
    let pfn = step.pfn(rig, picture, is_host);
    match step.verb {
        20 => {
            let frame = step.pfn(rig, picture, |state| matches!(state, State::Private { .. }));
            // An address is no frame number.
            Pfn::new(frame).is_some_and(|_| court.abort(frame, step.flag(0)))
        }
        21 => court.call(cpu, hvc::BASE + u32::from(step.raw % 64), [step.edge(); 5], false).is_success(),
        22 => rig.first_frame() <= pfn && rig.layout().watched.contains(&(pfn - rig.first_frame())) && court.write(pfn),
        _ => {
            let bits = if step.wild(5) { u64::from(step.raw) } else { 32 };
            let count = if step.wild(6) { step.count() } else { 4 + u64::from(step.more & 7) };
            let flags = if step.flag(4) && step.flag(5) { 0 } else { hvc::VM_PROTECTED };
            let answer = court.call(cpu, hvc::VM_CREATE, [flags, bits, pfn, count, 0], false);
            if answer.is_success() && !step.wild(7) {
                let vm = answer.x[0];
                assert!(court.call(cpu, hvc::VM_RANGE, [vm, GFN, GFNS, 0, 0], false).is_success());
                // A pool of a single frame has none left for it.
                let _ = court.call(cpu, hvc::VCPU_CREATE, [vm, 0, 0, 0, 0], false);
            }
            answer.is_success()
        }
    }
}

/// Which VM a verb needs; none if it needs none.
fn wants(verb: u8) -> Option<fn(&VmView) -> bool> {
    Some(match verb {
        0 | 3 => building,
        4 | 5 => |vm| alive(vm) && vm.vcpus[0].is_none(),
        14..=16 => dying,
        11 | 12 => |vm| alive(vm) && vm.vcpus[0].is_some_and(|vcpu| vcpu.phase != VcpuPhase::Crashed),
        1 | 2 | 6..=10 | 13 => alive,
        17..=19 => {
            |vm| vm.vcpus[0].is_some_and(|vcpu| matches!(vcpu.pending, freehold_virt::vcpu::Pending::Request(_)))
        }
        _ => return None,
    })
}

/// The step's verb if there is a VM for it; else one that brings such a VM nearer.
fn useful(picture: &Picture, step: Step) -> u8 {
    let verb = step.verb % VERBS;
    let any = |fits: fn(&VmView) -> bool| picture.vms.iter().flatten().any(fits);
    let full = picture.vms.iter().all(Option::is_some);
    match wants(verb) {
        _ if step.wild(8) => verb,
        Some(fits) if any(fits) => verb,
        None if verb != CREATE || !full => verb,
        _ if !full => CREATE,
        _ if any(alive) => 6 + step.verb % 8,
        _ => 14,
    }
}

fn with_vm(court: &mut Court<'_>, picture: &Picture, step: Step) -> Option<bool> {
    let verb = step.verb;
    let fits = wants(verb)?;
    let rig = court.rig;
    let vm = step.handle(picture, fits);
    let mut call = |id: u32, x: [u64; 4]| {
        Some(court.call(step.cpu(), id, [vm, x[0], x[1], x[2], x[3]], step.is_hurried()).is_success())
    };
    // Of one vCPU is known what it does; others that could be are not asked for.
    let vcpu = if step.wild(9) { step.edge() | 8 } else { 0 };
    let pfn = || step.pfn(rig, picture, if step.flag(6) && step.flag(7) { is_lent } else { is_host });
    let absent = || step.gfn(picture, vm, |view| matches!(view, GuestView::Absent(_)));
    let view = picture.vms.iter().flatten().find(|view| view.handle == vm);
    let ordinary = view.is_some_and(|view| view.kind == Some(Kind::Ordinary));
    let lend = |gfn: u64| [pfn(), gfn, watched(gfn, step.count()), u64::from(step.more & 3)];
    let borrowed = || step.gfn(picture, vm, |view| matches!(view, GuestView::Mapped(_)));
    match verb {
        6..=9 if ordinary => call(hvc::MEM_SHARE, lend(absent())),
        // A dying VM does not say what it borrows where.
        14..=16 if view.is_some_and(|view| view.borrowed > 0) => call(hvc::MEM_UNSHARE, [borrowed(), 1, 0, 0]),
        0 => call(hvc::VM_RANGE, [step.range(), step.count(), 0, 0]),
        1 => call(hvc::POOL_TOPUP, [pfn(), step.count(), 0, 0]),
        2 => call(hvc::VCPU_KICK, [vcpu, 0, 0, 0]),
        3 => match step.flag(0) {
            true => call(hvc::VCPU_SET_REG, [vcpu, step.register(), u64::from(step.frame) << 2, 0]),
            false => call(hvc::VCPU_GET_REG, [vcpu, step.register(), 0, 0]),
        },
        4 | 5 => call(hvc::VCPU_CREATE, [vcpu, 0, 0, 0]),
        6..=9 => {
            let (gfn, count) = (absent(), step.count());
            call(hvc::MEM_DONATE, [pfn(), gfn, count, flags(step, gfn, count)])
        }
        10 => donate_list(court, picture, step, vm),
        11 | 12 => Some(run(court, picture, step, vm, vcpu)),
        13 => match step.raw & 7 {
            0..=2 => call(hvc::VM_DESTROY, [0; 4]),
            3 => call(hvc::MEM_SHARE, lend(absent())),
            4 => call(hvc::MEM_UNSHARE, [borrowed(), step.count(), 0, 0]),
            _ => call(hvc::POOL_TOPUP, [pfn(), step.count(), 0, 0]),
        },
        14..=16 => call(hvc::VM_RECLAIM, [its_frame(rig, picture, step, vm), step.count(), 0, 0]),
        _ => call(hvc::GUEST_ACCEPT, [vcpu, step.count(), 0, 0]),
    }
}

/// A frame of a dying VM: of its memory, then of its pool; at times the other way round.
fn its_frame(rig: &Rig, picture: &Picture, step: Step, vm: u64) -> u64 {
    let view = picture.vms.iter().flatten().find(|view| view.handle == vm);
    let pool = view.is_none_or(|view| view.owned == 0) != (step.more & 7 == 7);
    let is_its = |slot: VmSlot| u64::from(slot.raw()) == vm & 0xffff;
    step.pfn(rig, picture, |state| match state {
        State::Private { vm, .. } | State::Shared { vm, .. } => !pool && is_its(vm),
        State::Pool { vm, .. } => pool && is_its(vm),
        State::NoMap | State::Host | State::Lent(_) | State::El2 => false,
    })
}

/// The count of a run of guest frames that are watched; of others none, for what is lent elsewhere is in nobody's book.
fn watched(gfn: u64, count: u64) -> u64 {
    let end = gfn.checked_add(count).filter(|_| gfn >= GFN);
    if end.is_some_and(|end| end <= GFN + GFNS) { count } else { 0 }
}

/// What may be taken away is donated where guests' frames are watched: poison elsewhere is in nobody's book.
fn flags(step: Step, gfn: u64, count: u64) -> u64 {
    let flags = if step.wild(10) { step.edge() } else { u64::from(step.more & 1) };
    if watched(gfn, count) == count { flags } else { flags & !hvc::DONATE_REVOCABLE }
}

fn donate_list(court: &mut Court<'_>, picture: &Picture, step: Step, vm: u64) -> Option<bool> {
    let rig = court.rig;
    let first = step.pfn(rig, picture, is_host);
    let list = if step.flag(1) { first } else { rig.first_frame() };
    let gfn = step.gfn(picture, vm, |view| matches!(view, GuestView::Absent(_)));
    let count = step.count().clamp(1, 4096);
    let gap = if step.more & 0xc == 0xc { count - 1 } else { count };
    let second = hvc::Record::new(first.wrapping_add(gap), gfn.wrapping_add(gap) & ((1 << 52) - 1), 1);
    let one = hvc::Record::new(first, gfn & ((1 << 52) - 1), count);
    let watched = rig.layout().watched.contains(&list.wrapping_sub(rig.first_frame()));
    if watched {
        court.write_words(list, &[one.pfn, one.gfn_count, second.pfn, second.gfn_count]);
    }
    let records = if step.wild(11) { step.edge() } else { 1 + u64::from(step.more >> 4 & 1) };
    let flags = flags(step, gfn, count.saturating_add(1));
    let x = [vm, list, records, flags, 0];
    let done = court.call(step.cpu(), hvc::MEM_DONATE_LIST, x, step.is_hurried()).is_success();
    if watched {
        court.write(list);
    }
    Some(done)
}

fn run(court: &mut Court<'_>, picture: &Picture, step: Step, vm: u64, vcpu: u64) -> bool {
    let gfn = step.gfn(picture, vm, |view| matches!(view, GuestView::Mapped(_)));
    let acts = [secrets(picture, vm), vec![act(step, gfn)]].concat();
    court.run(step.cpu(), [vm, vcpu, step.edge()], &acts, step.wild(12)).is_success()
}

/// The guest puts a secret wherever it can.
pub(super) fn secrets(picture: &Picture, vm: u64) -> Vec<Act> {
    let view = picture.vms.iter().flatten().find(|view| view.handle == vm);
    let gfns = view.into_iter().flat_map(|view| (GFN..).zip(&view.gfns));
    let mapped = gfns.filter(|(_, view)| matches!(view, GuestView::Mapped(_)));
    mapped.map(|(gfn, _)| Act::Access { ipa: gfn << 12, size: 8, store: Some(CANARY), described: true }).collect()
}
