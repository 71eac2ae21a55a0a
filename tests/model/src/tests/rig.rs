// SPDX-License-Identifier: MIT OR Apache-2.0
//! The rig itself: that it serves a life, and that each fault of its ports is seen.

use freehold_mem::State;
use freehold_uapi::{guest, hvc};

use crate::{Act, Answer, Fault, Label, Layout, Rig};

const GFN: u64 = 0x8_0000;

fn rig(fault: Fault) -> Rig {
    let layout = Layout { frames: 16, no_map: 1, vms: 2, watched: (0..12).collect(), gfns: vec![GFN, GFN + 1] };
    Rig::new(layout, fault)
}

fn yes(rig: &Rig, id: u32, x: [u64; 5]) -> u64 {
    let answer = rig.call(0, id, x);
    assert!(answer.is_success(), "{id:#x} {x:x?}: {}", answer.name());
    answer.x[0]
}

/// A VM with a pool of four frames from `pool` on, and two guest frames of RAM.
fn vm(rig: &Rig, pool: u64) -> u64 {
    let vm = yes(rig, hvc::VM_CREATE, [hvc::VM_PROTECTED, 32, rig.first_frame() + pool, 4, 0]);
    yes(rig, hvc::VM_RANGE, [vm, GFN, 2, 0, 0]);
    yes(rig, hvc::VCPU_CREATE, [vm, 0, 0, 0, 0]);
    vm
}

/// What is wrong with the machine, if anything.
fn wrong(rig: &Rig) -> Option<String> {
    rig.complaints().into_iter().next().or_else(|| rig.picture().judge().err())
}

/// A VM runs, shares a frame, takes it back and ends; whatever is seen to be wrong on the way.
fn life(rig: &Rig) -> Option<String> {
    let first = rig.first_frame();
    let vm = vm(rig, 4);
    yes(rig, hvc::MEM_DONATE, [vm, first, GFN, 1, 0]);
    rig.script(0, &[Act::Access { ipa: GFN << 12, size: 4, store: Some(1), described: true }]);
    yes(rig, hvc::VCPU_RUN, [vm, 0, 0, 0, 0]);
    yes(rig, hvc::MEM_DONATE, [vm, first + 1, GFN + 1, 1, 0]);
    let mut found = wrong(rig);
    for call in [guest::MEM_SHARE, guest::MEM_UNSHARE, guest::MEM_RELINQUISH] {
        rig.script(0, &[Act::Hvc { imm: 0, x: [u64::from(call), GFN << 12, 0, 0] }]);
        yes(rig, hvc::VCPU_RUN, [vm, 0, 0, 0, 0]);
        assert_eq!(yes(rig, hvc::GUEST_ACCEPT, [vm, 0, 1, 0, 0]), 1);
        found = found.or_else(|| wrong(rig));
    }
    yes(rig, hvc::VM_DESTROY, [vm, 0, 0, 0, 0]);
    found = found.or_else(|| wrong(rig));
    yes(rig, hvc::VM_RECLAIM, [vm, first + 1, 1, 0, 0]);
    found = found.or_else(|| wrong(rig));
    yes(rig, hvc::VM_RECLAIM, [vm, first + 4, 4, 0, 0]);
    found.or_else(|| wrong(rig))
}

#[test]
fn a_life_leaves_the_machine_as_it_was() {
    let rig = rig(Fault::None);
    let before = rig.picture();
    assert_eq!(before.judge(), Ok(()));
    assert_eq!(life(&rig), None);
    assert_eq!(rig.reset(), Ok(()));
    assert_eq!(rig.picture(), before);
    assert_eq!(life(&rig), None, "the same again");
}

#[test]
fn each_fault_of_the_machine_is_seen() {
    for (fault, what) in [
        (Fault::KeepsHostTlb, "the host may still"),
        (Fault::KeepsVmTlb, "may still reach"),
        (Fault::WrongVmTlb, "may still reach"),
    ] {
        let found = life(&rig(fault)).unwrap_or_default();
        assert!(found.contains(what), "{fault:?}: {found:?}");
    }
}

#[test]
fn a_secret_is_left_only_where_scrubbing_is_broken() {
    for (fault, left) in [(Fault::None, Label::Zero), (Fault::HalfScrub, Label::Other)] {
        let rig = rig(fault);
        life(&rig);
        assert_eq!(rig.host_read(rig.first_frame()), Some(left), "{fault:?}");
    }
    let rig = rig(Fault::NoScrub);
    life(&rig);
    assert!(matches!(rig.host_read(rig.first_frame()), Some(Label::Secret { .. })));
}

#[test]
fn a_stray_kernel_access_takes_a_revocable_frame_only() {
    let rig = rig(Fault::None);
    let first = rig.first_frame();
    let vm = vm(&rig, 4);
    yes(&rig, hvc::MEM_DONATE, [vm, first, GFN, 1, hvc::DONATE_REVOCABLE]);
    yes(&rig, hvc::MEM_DONATE, [vm, first + 1, GFN + 1, 1, 0]);
    assert!(!rig.host_abort(first, false));
    assert!(!rig.host_abort(first + 1, true));
    assert!(rig.host_abort(first, true));
    assert_eq!(rig.picture().frames[0].state, Some(State::Host));
    assert_eq!(wrong(&rig), None);
}

#[test]
fn a_refused_call_changes_nothing() {
    let rig = rig(Fault::None);
    let before = (rig.picture(), rig.changes());
    let Answer { status, x } = rig.call(0, hvc::VM_CREATE, [hvc::VM_PROTECTED, 32, rig.carve_out(), 4, 0]);
    assert_eq!((status, x), (hvc::EL2_OWNED, [0; 4]));
    assert_eq!((rig.picture(), rig.changes()), before);
}
