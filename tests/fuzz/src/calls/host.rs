// SPDX-License-Identifier: MIT OR Apache-2.0
//! One step of the host: a call, a fault, or something that it does to its memory.

use freehold_mem::{GuestView, Pfn, State};
use freehold_model::{Act, Picture, Rig, VmView};
use freehold_uapi::hvc;

use super::judge::{self, CANARY};
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
pub(super) fn step(rig: &Rig, bytes: &[u8; STEP]) -> bool {
    let mut step = Step::decode(bytes);
    let picture = rig.picture();
    let cpu = usize::from(step.flag(7));
    let stop = step.raw & 3 == 3;
    rig.set_wanted(stop);
    step.verb = useful(&picture, step);
    let made = with_vm(rig, &picture, step, cpu).unwrap_or_else(|| without_vm(rig, &picture, step, cpu));
    rig.set_wanted(false);
    made
}

fn is_host(state: State) -> bool {
    state == State::Host
}

fn without_vm(rig: &Rig, picture: &Picture, step: Step, cpu: usize) -> bool {
    let pfn = step.pfn(rig, picture, is_host);
    match step.verb {
        20 => {
            let frame = step.pfn(rig, picture, |state| matches!(state, State::Private { .. }));
            // What follows a revocation is judged with the rest; an address is no frame number.
            let retried = Pfn::new(frame).is_some_and(|_| rig.host_abort(frame, step.flag(0)));
            judge::sound(rig);
            retried
        }
        21 => judge::call(rig, cpu, hvc::BASE + u32::from(step.raw % 64), [step.edge(); 5]).is_success(),
        22 => {
            rig.first_frame() <= pfn && rig.layout().watched.contains(&(pfn - rig.first_frame())) && rig.host_write(pfn)
        }
        _ => {
            let bits = if step.wild(5) { u64::from(step.raw) } else { 32 };
            let count = if step.wild(6) { step.count() } else { 4 + u64::from(step.more & 7) };
            let answer = judge::call(rig, cpu, hvc::VM_CREATE, [hvc::VM_PROTECTED, bits, pfn, count, 0]);
            if answer.is_success() && !step.wild(7) {
                let vm = answer.x[0];
                assert!(judge::call(rig, cpu, hvc::VM_RANGE, [vm, GFN, GFNS, 0, 0]).is_success());
                // A pool of a single frame has none left for it.
                let _ = judge::call(rig, cpu, hvc::VCPU_CREATE, [vm, 0, 0, 0, 0]);
            }
            answer.is_success()
        }
    }
}

/// Which VM a verb needs; none if it needs none.
fn wants(verb: u8) -> Option<fn(&VmView) -> bool> {
    Some(match verb {
        0 | 3 => building,
        4 | 5 => |vm| alive(vm) && vm.vcpu.is_none(),
        14..=16 => dying,
        1 | 2 | 6..=13 => alive,
        17..=19 => |vm| vm.vcpu.is_some_and(|vcpu| matches!(vcpu.pending, freehold_virt::vcpu::Pending::Request(_))),
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

fn with_vm(rig: &Rig, picture: &Picture, step: Step, cpu: usize) -> Option<bool> {
    let verb = step.verb;
    let fits = wants(verb)?;
    let vm = step.handle(picture, fits);
    let call = |id: u32, x: [u64; 4]| Some(judge::call(rig, cpu, id, [vm, x[0], x[1], x[2], x[3]]).is_success());
    let vcpu = if step.wild(9) { step.edge() } else { 0 };
    let pfn = || step.pfn(rig, picture, is_host);
    let absent = || step.gfn(picture, vm, |view| matches!(view, GuestView::Absent(_)));
    match verb {
        0 => call(hvc::VM_RANGE, [step.gfn(picture, vm, |_| true), step.count(), 0, 0]),
        1 => call(hvc::POOL_TOPUP, [pfn(), step.count(), 0, 0]),
        2 => call(hvc::VCPU_KICK, [vcpu, 0, 0, 0]),
        3 => match step.flag(0) {
            true => call(hvc::VCPU_SET_REG, [vcpu, u64::from(step.raw & 7), u64::from(step.frame) << 2, 0]),
            false => call(hvc::VCPU_GET_REG, [vcpu, u64::from(step.raw & 63), 0, 0]),
        },
        4 | 5 => call(hvc::VCPU_CREATE, [vcpu, 0, 0, 0]),
        6..=9 => call(hvc::MEM_DONATE, [pfn(), absent(), step.count(), flags(step)]),
        10 => donate_list(rig, picture, step, vm, cpu),
        11 | 12 => Some(run(rig, picture, step, vm, vcpu, cpu)),
        13 if step.raw & 3 == 0 => call(hvc::VM_DESTROY, [0; 4]),
        13 => match step.flag(0) {
            true => call(hvc::MEM_SHARE, [pfn(), absent(), step.count(), flags(step)]),
            false => call(hvc::MEM_UNSHARE, [absent(), step.count(), 0, 0]),
        },
        14..=16 => {
            let its = |state| match state {
                State::Private { vm: slot, .. } | State::Shared { vm: slot, .. } => {
                    u64::from(slot.raw()) == vm & 0xffff
                }
                State::Pool { vm: slot, .. } => step.flag(0) && u64::from(slot.raw()) == vm & 0xffff,
                State::NoMap | State::Host | State::Lent(_) | State::El2 => false,
            };
            call(hvc::VM_RECLAIM, [step.pfn(rig, picture, its), step.count(), 0, 0])
        }
        _ => call(hvc::GUEST_ACCEPT, [vcpu, step.count(), 0, 0]),
    }
}

fn flags(step: Step) -> u64 {
    if step.wild(10) { step.edge() } else { u64::from(step.more & 1) }
}

fn donate_list(rig: &Rig, picture: &Picture, step: Step, vm: u64, cpu: usize) -> Option<bool> {
    let first = step.pfn(rig, picture, is_host);
    let list = if step.flag(1) { first } else { rig.first_frame() };
    let gfn = step.gfn(picture, vm, |view| matches!(view, GuestView::Absent(_)));
    let count = step.count().clamp(1, 4096);
    let gap = if step.flag(2) { count - 1 } else { count };
    let second = hvc::Record::new(first.wrapping_add(gap), gfn.wrapping_add(gap) & ((1 << 52) - 1), 1);
    let one = hvc::Record::new(first, gfn & ((1 << 52) - 1), count);
    let watched = rig.layout().watched.contains(&list.wrapping_sub(rig.first_frame()));
    if watched && rig.host_read(list).is_some() {
        rig.host_write_words(list, &[one.pfn, one.gfn_count, second.pfn, second.gfn_count]);
    }
    let records = if step.wild(11) { step.edge() } else { u64::from(step.more >> 3 & 3) };
    Some(judge::call(rig, cpu, hvc::MEM_DONATE_LIST, [vm, list, records, flags(step), 0]).is_success())
}

fn run(rig: &Rig, picture: &Picture, step: Step, vm: u64, vcpu: u64, cpu: usize) -> bool {
    let gfn = step.gfn(picture, vm, |view| matches!(view, GuestView::Mapped(_)));
    rig.set_busy(step.wild(12));
    rig.script(cpu, &[secrets(picture, vm), vec![act(step, gfn)]].concat());
    let ran = judge::call(rig, cpu, hvc::VCPU_RUN, [vm, vcpu, step.edge(), 0, 0]).is_success();
    rig.forget_script(cpu);
    rig.set_busy(false);
    ran
}

/// The guest puts a secret wherever it can.
pub(super) fn secrets(picture: &Picture, vm: u64) -> Vec<Act> {
    let view = picture.vms.iter().flatten().find(|view| view.handle == vm);
    let gfns = view.into_iter().flat_map(|view| (GFN..).zip(&view.gfns));
    let mapped = gfns.filter(|(_, view)| matches!(view, GuestView::Mapped(_)));
    mapped.map(|(gfn, _)| Act::Access { ipa: gfn << 12, size: 8, store: Some(CANARY), described: true }).collect()
}
