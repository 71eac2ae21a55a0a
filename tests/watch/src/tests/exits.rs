// SPDX-License-Identifier: MIT OR Apache-2.0
//! Each way in which a run ends: that the watcher takes it as it is, and no word of it otherwise.

use freehold_el2::calls::Stop;
use freehold_oracle::Pending;
use freehold_uapi::{guest, hvc::*};
use freehold_virt::vcpu::Trap;

use super::rig::{Fake, GUEST_RAM, RAM, Rig, be};
use crate::fault::Fault;
use crate::turn;

const DATA: u64 = 0x24 << 26;
const FETCH: u64 = 0x20 << 26;
/// Described, a word, x5, a translation fault.
const WORD: u64 = DATA | 1 << 24 | 2 << 22 | 5 << 16 | 7;
const WALK: u64 = 1 << 7;
const STORE: u64 = 1 << 6;
const DEVICE: u64 = 0x900_0000;
const FRAMES: u64 = 0x1000;

type Act = Box<dyn FnOnce(&mut Fake) -> Stop + Send>;

fn trap(esr: u64, ipa: u64) -> Act {
    Box::new(move |registers| {
        registers.x[5] = 0x1122_3344_5566_7788;
        Stop::Trap(Trap { esr, far: ipa & 0xfff, hpfar: ipa >> 12 << 4 })
    })
}

fn call(id: u32, x1: u64, x2: u64) -> Act {
    Box::new(move |registers| {
        registers.x[..4].copy_from_slice(&[id.into(), x1, x2, 0]);
        Stop::Trap(Trap { esr: 0x16 << 26, far: 0, hpfar: 0 })
    })
}

/// A store of a word to the VM's interrupt controller.
fn store(address: u64, value: u64) -> Act {
    Box::new(move |registers| {
        registers.x[5] = value;
        Stop::Trap(Trap { esr: WORD | STORE, far: address & 0xfff, hpfar: address >> 12 << 4 })
    })
}

/// A write of x5 to a register of the physical timer.
fn timer(op2: u64, value: u64) -> Act {
    Box::new(move |registers| {
        registers.x[5] = value;
        Stop::Trap(Trap {
            esr: 0x18 << 26 | 3 << 20 | op2 << 17 | 3 << 14 | 14 << 10 | 5 << 5 | 2 << 1,
            far: 0,
            hpfar: 0,
        })
    })
}

/// Runs a vCPU: the run must end so, and the watcher must take no word of it otherwise.
fn ends(rig: &Rig, vm: u64, vcpu: u64, acts: Vec<Act>, must: [u64; 4]) {
    rig.next(|_| Stop::Own);
    acts.into_iter().for_each(|act| rig.then(act));
    let answer = rig.call_and(VCPU_RUN, &[vm, vcpu, 0], |answer| {
        let x = [answer[1], answer[2], answer[3], answer[4]];
        let gic = must[0] == EXIT_WFI && must[1] != 0;
        rig.eye.here(|cpu| {
            assert!(turn::exit(cpu, gic, x).is_ok(), "{:?}", turn::exit(cpu, gic, x));
            for word in 0..4 {
                for wrong in [x[word] ^ 1, x[word] + 2, x[word] | 1 << 63, !x[word]] {
                    let mut said = x;
                    said[word] = wrong;
                    assert!(turn::exit(cpu, gic, said).is_err(), "{said:x?} passes for {x:x?}");
                }
            }
            let (then, now) = cpu.waits.expect("a vCPU was run");
            let other = if now == Pending::None { Pending::Load { size: 0 } } else { Pending::None };
            cpu.waits = Some((then, other));
            assert!(turn::exit(cpu, gic, x).is_err(), "whatever it waits for passes for {x:x?}");
            cpu.waits = Some((then, now));
        });
    });
    assert_eq!(answer, [0, must[0], must[1], must[2], must[3]]);
}

/// A VM of three vCPUs, which has run, with two frames and a poisoned one, and a controller if need be.
fn vm(rig: &Rig, gic: bool) -> u64 {
    let vm = rig.call(VM_CREATE, &[VM_PROTECTED, 40, RAM, 12])[1];
    assert_eq!(rig.call(VM_RANGE, &[vm, GUEST_RAM, 64])[0], 0);
    for vcpu in 0..3 {
        assert_eq!(rig.call(VCPU_CREATE, &[vm, vcpu])[0], 0);
    }
    if gic {
        assert_eq!(rig.call(VM_GIC, &[vm, FRAMES, FRAMES + 0x40])[0], 0);
    }
    assert_eq!(rig.call(MEM_DONATE, &[vm, RAM + 16, GUEST_RAM, 3, DONATE_REVOCABLE])[..2], [0, 3]);
    assert!(rig.touch(RAM + 18, true), "the kernel gets the third");
    vm
}

#[test]
fn no_word_of_an_exit_may_be_another() {
    let rig = Rig::new(Fault::None);
    let vm = vm(&rig, false);
    let (at, gone) = (GUEST_RAM << 12, GUEST_RAM + 9);
    let ends = |acts, must| ends(&rig, vm, 0, acts, must);
    ends(vec![Box::new(|_| Stop::Interrupt)], [EXIT_IRQ, 0, 0, 0]);
    ends(vec![trap(1 << 26, 0)], [EXIT_WFI, 0, 0, 0]);
    ends(vec![call(guest::PSCI_CPU_SUSPEND, 0, 0)], [EXIT_WFI, 0, 0, 0]);
    ends(vec![trap(WORD, gone << 12 | 0x123)], [EXIT_MEM_FAULT, gone, 0, 0]);
    ends(vec![trap(FETCH | 7, gone << 12 | 0x124)], [EXIT_MEM_FAULT, gone, 0, 0]);
    ends(vec![call(guest::MEM_SHARE, gone << 12, 1)], [EXIT_MEM_FAULT, gone, 0, 0]);
    ends(vec![trap(WORD, DEVICE | 0x124)], [EXIT_MMIO, DEVICE | 0x124, 4, 0]);
    ends(vec![trap(WORD | STORE, DEVICE)], [EXIT_MMIO, DEVICE, 4 | MMIO_WRITE, 0x5566_7788]);
    ends(vec![call(guest::MEM_SHARE, at, 8)], [EXIT_SHARE, GUEST_RAM, 2, 0]);
    assert_eq!(rig.call(GUEST_ACCEPT, &[vm, 0, 1])[..2], [0, 1]);
    ends(vec![call(guest::MEM_SHARE, at + 0x1000, 8)], [EXIT_SHARE, GUEST_RAM + 1, 1, 0]);
    ends(vec![call(guest::MEM_UNSHARE, at, 8)], [EXIT_UNSHARE, GUEST_RAM, 1, 0]);
    ends(vec![call(guest::MEM_RELINQUISH, at + 0x1000, 0)], [EXIT_RELINQUISH, GUEST_RAM + 1, 1, 0]);
    for (id, which) in [(guest::PSCI_SYSTEM_OFF, 0), (guest::PSCI_SYSTEM_RESET, 1), (guest::PSCI_SYSTEM_RESET2, 2)] {
        ends(vec![call(id, 0, 0)], [EXIT_SYSTEM, which, 0, 0]);
    }
    assert_eq!(rig.call(VCPU_KICK, &[vm, 0])[0], 0);
    ends(vec![], [EXIT_KICKED, 0, 0, 0]);
}

#[test]
fn only_what_a_guest_does_to_its_controller_stays() {
    let last = (FRAMES + 0x40 + 3 * 32) << 12;
    let stay = |at: u64| [WORD, WORD | STORE, WORD & !(1 << 24), FETCH | 7, DATA | WALK | 7].map(|esr| trap(esr, at));
    let acts = [FRAMES << 12, (FRAMES + 15) << 12, (FRAMES + 0x40) << 12, last - 0x1000].into_iter().flat_map(stay);
    let rig = Rig::new(Fault::None);
    let with = vm(&rig, true);
    ends(&rig, with, 0, acts.chain([Box::new(|_: &mut Fake| Stop::Interrupt) as Act]).collect(), [EXIT_IRQ, 0, 0, 0]);
    for beside in [(FRAMES - 1) << 12, (FRAMES + 16) << 12, last] {
        ends(&rig, with, 0, vec![trap(WORD, beside)], [EXIT_MMIO, beside, 4, 0]);
    }
    ends(&rig, with, 0, vec![trap(WORD & !(1 << 24), last)], [EXIT_CRASH, CRASH_NO_SYNDROME, 0, 0]);
}

#[test]
fn no_word_of_a_crash_may_be_another() {
    let at = GUEST_RAM << 12;
    let crashes: [(Act, u64); 8] = [
        (trap(WORD & !(1 << 24), DEVICE), CRASH_NO_SYNDROME),
        (trap(FETCH | 7, DEVICE), CRASH_NO_SYNDROME),
        (Box::new(|_| Stop::BadState), CRASH_BAD_STATE),
        (trap(0x0e << 26, 0), CRASH_BAD_STATE),
        (trap(DATA | WALK | 7, DEVICE), CRASH_WALK),
        (trap(WORD, at + 0x2000), CRASH_POISONED),
        (Box::new(|_| Stop::SError), CRASH_ABORT),
        // A permission that no table of el2's lacks.
        (trap(WORD | 0xf, at), CRASH_ABORT),
    ];
    let rig = Rig::new(Fault::None);
    for (act, why) in crashes {
        let vm = vm(&rig, false);
        ends(&rig, vm, 0, vec![act], [EXIT_CRASH, why, 0, 0]);
        assert_eq!(rig.call(VCPU_RUN, &[vm, 0, 0])[0].cast_signed(), WRONG_STATE);
        assert_eq!(rig.call(VM_DESTROY, &[vm])[0], 0);
        for (frame, count) in [(RAM + 16, 2), (RAM, 12)] {
            assert_eq!(rig.call(VM_RECLAIM, &[vm, frame, count])[..2], [0, count]);
        }
    }
}

#[test]
fn a_vcpu_that_crashed_is_no_other_vms() {
    let rig = Rig::new(Fault::None);
    let first = vm(&rig, false);
    rig.next(|_| Stop::SError);
    rig.call_and(VCPU_RUN, &[first, 0, 0], |_| {
        // Before this CPU is back in its host, another one ends the VM and makes a new one in its slot.
        be(1);
        assert_eq!(rig.call(VM_DESTROY, &[first])[0], 0);
        for (frame, count) in [(RAM + 16, 2), (RAM, 12)] {
            assert_eq!(rig.call(VM_RECLAIM, &[first, frame, count])[..2], [0, count]);
        }
        assert_eq!(rig.call(VM_CREATE, &[VM_PROTECTED, 40, RAM, 12])[0], 0);
        be(0);
    });
    let second = rig.handles()[0];
    assert_eq!(rig.call(VCPU_RUN, &[second, 0, 0])[0].cast_signed(), WRONG_VCPU);
}

#[test]
fn no_word_of_a_vcpus_absence_may_be_another() {
    let rig = Rig::new(Fault::None);
    let vm = vm(&rig, false);
    ends(&rig, vm, 1, vec![], [EXIT_OFF, 0, 0, 0]);
    ends(&rig, vm, 0, vec![call(guest::PSCI_CPU_ON_64, 1, 0x1000)], [EXIT_WAKE, 0, 0, 0]);
    ends(&rig, vm, 1, vec![call(guest::PSCI_CPU_OFF, 0, 0)], [EXIT_OFF, 0, 0, 0]);
}

#[test]
fn a_wait_ends_when_a_timer_of_its_guest_fires_and_at_no_other_time() {
    let rig = Rig::new(Fault::None);
    let vm = vm(&rig, true);
    let (distributor, redistributor) = (FRAMES << 12, (FRAMES + 0x40) << 12);
    let opened = [
        store(distributor, 3),
        store(redistributor + 0x14, 0),
        store(redistributor + 0x1_0080, u64::MAX),
        store(redistributor + 0x1_0100, 1 << 30),
    ];
    let armed = [timer(2, 0x5_0001), timer(1, 1), trap(1 << 26, 0)];
    ends(&rig, vm, 0, opened.into_iter().chain(armed).collect(), [EXIT_WFI, 0x5_0001, 0, 0]);
    ends(&rig, vm, 0, vec![timer(1, 3), trap(1 << 26, 0)], [EXIT_WFI, 0, 0, 0]);
}

/// More runs than a guest may have open, each way to reach for what is not, and what is: as the specification says it.
#[test]
fn what_a_guest_does_not_let_out_stays_in_it() {
    let open = |n: u64| call(guest::MMIO_GUARD_MAP, DEVICE + n * 0x2000, 0);
    let shut = |n: u64| call(guest::MMIO_GUARD_UNMAP, DEVICE + n * 0x2000, 0);
    let reach = |at: u64| [WORD, WORD | STORE, WORD & !(1 << 24), FETCH | 7, DATA | WALK | 7].map(|esr| trap(esr, at));
    for gic in [false, true] {
        let rig = Rig::new(Fault::None);
        let vm = vm(&rig, gic);
        let mut acts = vec![call(guest::MMIO_GUARD_ENROLL, 1, 0), call(guest::MMIO_GUARD_ENROLL, 0, 0)];
        acts.extend((0..guest::MMIO_RUNS + 3).map(open));
        acts.extend([call(guest::MMIO_GUARD_MAP, GUEST_RAM << 12, 0), call(guest::MMIO_GUARD_MAP, DEVICE + 8, 0)]);
        // Two runs become one; another one has room then, and the one can not be two again.
        acts.extend([call(guest::MMIO_GUARD_MAP, DEVICE + 0x1000, 0), open(40)]);
        acts.extend([call(guest::MMIO_GUARD_UNMAP, DEVICE + 0x1000, 0), shut(40)]);
        acts.extend([call(guest::MMIO_GUARD_UNMAP, DEVICE + 0x1000, 0), shut(7), shut(7)]);
        for at in [DEVICE + 7 * 0x2000, DEVICE + 40 * 0x2000, DEVICE - 0x1000, 0] {
            acts.extend(reach(at));
        }
        if gic {
            // Of a controller the frames, and not what is beside them.
            acts.extend(reach((FRAMES + 15) << 12).into_iter().chain(reach((FRAMES + 16) << 12)));
        }
        acts.push(trap(WORD, DEVICE + 0x1_2004));
        ends(&rig, vm, 0, acts, [EXIT_MMIO, DEVICE + 0x1_2004, 4, 0]);
        assert_eq!(rig.call(VM_DESTROY, &[vm])[0], 0);
    }
}

/// A guest may open as much as it likes, as long as it touches: more than there are places for marks.
#[test]
fn very_much_that_touches_may_be_open() {
    let rig = Rig::new(Fault::None);
    let vm = vm(&rig, false);
    let frames = 16 * 1024 + 100;
    let mut acts = vec![call(guest::MMIO_GUARD_ENROLL, 0, 0)];
    acts.extend((0..frames).map(|n| call(guest::MMIO_GUARD_MAP, DEVICE + n * 0x1000, 0)));
    let last = DEVICE + (frames - 1) * 0x1000;
    acts.extend([trap(WORD | STORE, last + 0x1000), trap(WORD, last)]);
    ends(&rig, vm, 0, acts, [EXIT_MMIO, last, 4, 0]);
    // One is shut in the middle.
    let middle = DEVICE + 0x100_0000;
    let acts = vec![call(guest::MMIO_GUARD_UNMAP, middle, 0), trap(WORD, middle), trap(WORD, middle + 0x1000)];
    ends(&rig, vm, 0, acts, [EXIT_MMIO, middle + 0x1000, 4, 0]);
    assert_eq!(rig.call(VM_DESTROY, &[vm])[0], 0);
}
