// SPDX-License-Identifier: MIT OR Apache-2.0
//! VMs with an interrupt controller: what it answers itself, and when the host is asked.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use freehold_uapi::hvc::*;
use freehold_virt::timer::{Register, Timer};
use freehold_virt::vcpu::Trap;

use super::rig::{Fake, GUEST_RAM, RAM, Rig, When, store, wfi};
use crate::calls::Stop;

const DISTRIBUTOR: u64 = 0x1000;
const REDISTRIBUTORS: u64 = 0x2000;
/// `ICH_VMCR_EL2` of a guest that takes everything.
const OPEN: u64 = 0xff00_0003;
const TIMER: u64 = 1 << 27;

/// A load of a word to x6.
fn load(address: u64) -> impl FnOnce(&mut Fake) -> Stop + Send + 'static {
    move |_| {
        let iss = 1 << 24 | 2 << 22 | 6 << 16 | 7;
        Stop::Trap(Trap { esr: 0x24 << 26 | iss, far: address & 0xfff, hpfar: address >> 12 << 4 })
    }
}

/// An access of x5 to the register (op0, op1, CRn, CRm, op2).
fn system(register: [u64; 5], read: bool, value: u64) -> impl FnOnce(&mut Fake) -> Stop + Send + 'static {
    move |registers| {
        if !read {
            registers.x[5] = value;
        }
        let [op0, op1, crn, crm, op2] = register;
        let iss = op0 << 20 | op2 << 17 | op1 << 14 | crn << 10 | 5 << 5 | crm << 1 | u64::from(read);
        Stop::Trap(Trap { esr: 0x18 << 26 | iss, far: 0, hpfar: 0 })
    }
}

const SGI1R: [u64; 5] = [3, 0, 12, 11, 5];
const PFR0: [u64; 5] = [3, 0, 0, 4, 0];
const CNTP: [u64; 4] = [3, 3, 14, 2];

/// A VM with a controller, whose guest has opened everything and enabled SGI 7, both timers and SPI 40.
fn vm(rig: &Rig) -> u64 {
    let vm = rig.vm(RAM);
    rig.yes(VM_GIC, &[vm, DISTRIBUTOR, REDISTRIBUTORS]);
    rig.masks.store(OPEN, Ordering::Relaxed);
    let (d, r) = (DISTRIBUTOR << 12, REDISTRIBUTORS << 12);
    for (address, value) in [
        (d, 3),
        (d + 0x84, 1 << 8),
        (d + 0x104, 1 << 8),
        (r + 0x14, 0),
        (r + 0x1_0080, u64::MAX),
        (r + 0x1_0100, TIMER | 1 << 30 | 1 << 7),
    ] {
        rig.next(store(address, value));
    }
    assert_eq!(rig.run(vm, 0)[0], EXIT_IRQ, "none of it was the host's");
    rig.lists.lock().unwrap().clear();
    vm
}

fn block(rig: &Rig) -> Fake {
    rig.blocks.lock().unwrap().values().next().expect("one vCPU").registers.clone()
}

/// The interrupts of the last entry.
fn loaded(rig: &Rig) -> Vec<u32> {
    let lists = rig.lists.lock().unwrap();
    lists.last().expect("an entry").iter().map(|entry| *entry as u32).collect()
}

#[test]
fn without_a_controller_nothing_of_it_is_there() {
    let rig = Rig::new();
    let vm = rig.vm(RAM);
    rig.next(system(SGI1R, false, 1));
    rig.next(system([3, 3, 14, 2, 1], true, 0));
    rig.next(system(PFR0, true, 0));
    rig.next(wfi);
    assert_eq!(rig.run(vm, 0), [EXIT_WFI, 0, 0, 0, 0]);
    assert_eq!((block(&rig).injected, block(&rig).x[5] >> 24 & 0xf), (2, 0));
    rig.next(store(DISTRIBUTOR << 12, 3));
    assert_eq!(rig.run(vm, 0)[..2], [EXIT_MMIO, DISTRIBUTOR << 12]);
    assert!(rig.lists.lock().unwrap().is_empty());
}

#[test]
fn its_frames_are_answered_and_what_lies_beside_is_the_hosts() {
    let rig = Rig::new();
    let vm = vm(&rig);
    rig.next(load((DISTRIBUTOR << 12) + 0xffe8));
    assert_eq!(rig.run(vm, 0)[0], EXIT_IRQ);
    assert_eq!(block(&rig).x[6], 0x3b);
    for beside in [(DISTRIBUTOR << 12) - 4, (DISTRIBUTOR + 16) << 12, (REDISTRIBUTORS + 32) << 12] {
        rig.next(load(beside));
        assert_eq!(rig.run(vm, 0)[..2], [EXIT_MMIO, beside]);
    }
}

/// What is no load or store that its syndrome describes: its class and the other bits.
fn undescribed(esr: u64, address: u64) -> impl FnOnce(&mut Fake) -> Stop + Send + 'static {
    move |_| Stop::Trap(Trap { esr, far: address & 0xfff, hpfar: address >> 12 << 4 })
}

const UNDESCRIBED: [(u64, u64); 3] =
    [(0x24 << 26 | 7, CRASH_NO_SYNDROME), (0x20 << 26 | 7, CRASH_NO_SYNDROME), (0x24 << 26 | 1 << 7 | 7, CRASH_WALK)];

#[test]
fn a_guest_goes_on_behind_what_its_controller_does_not_take() {
    let rig = Rig::new();
    let vm = vm(&rig);
    for (n, (esr, _)) in (1..).zip(UNDESCRIBED) {
        for at in [DISTRIBUTOR << 12, (REDISTRIBUTORS << 12) + 0x1_0104] {
            rig.next(undescribed(esr, at));
        }
        rig.next(load((DISTRIBUTOR << 12) + 0xffe8));
        assert_eq!(rig.run(vm, 0)[0], EXIT_IRQ, "{esr:#x}");
        assert_eq!((block(&rig).injected, block(&rig).x[6]), (2 * n, 0x3b), "{esr:#x}");
    }
    for (esr, why) in UNDESCRIBED {
        let rig = Rig::new();
        let vm = self::vm(&rig);
        rig.next(undescribed(esr, (DISTRIBUTOR + 16) << 12));
        assert_eq!(rig.run(vm, 0)[..2], [EXIT_CRASH, why], "what lies beside is as it was");
        assert_eq!(block(&rig).injected, 0);
    }
}

#[test]
fn ram_that_lies_under_the_frames_is_met_whatever_is_done_to_it() {
    for (esr, _) in UNDESCRIBED {
        let rig = Rig::new();
        let vm = rig.vm(RAM);
        rig.yes(VM_GIC, &[vm, GUEST_RAM, REDISTRIBUTORS]);
        rig.next(undescribed(esr, GUEST_RAM << 12));
        assert_eq!(rig.run(vm, 0)[..2], [EXIT_MEM_FAULT, GUEST_RAM], "{esr:#x}");
        assert_eq!(block(&rig).injected, 0);
    }
}

#[test]
fn ram_that_lies_under_the_frames_comes_first() {
    let rig = Rig::new();
    let vm = rig.vm(RAM);
    rig.yes(VM_GIC, &[vm, GUEST_RAM, REDISTRIBUTORS]);
    rig.next(load(GUEST_RAM << 12));
    assert_eq!(rig.run(vm, 0)[..2], [EXIT_MEM_FAULT, GUEST_RAM], "the guest reads its memory or nothing");
}

#[test]
fn a_guest_sees_the_registers_and_sends_itself_an_interrupt() {
    let rig = Rig::new();
    let vm = vm(&rig);
    rig.next(system(PFR0, true, 0));
    assert_eq!(rig.run(vm, 0)[0], EXIT_IRQ);
    assert_eq!(block(&rig).x[5] >> 24 & 0xf, 1);
    rig.next(system(SGI1R, false, 7 << 24 | 1));
    assert_eq!(rig.run(vm, 0)[0], EXIT_IRQ);
    assert_eq!(loaded(&rig), [7]);
    assert_eq!(block(&rig).injected, 0);
}

#[test]
fn what_no_list_register_has_a_part_in_is_answered_in_place() {
    let rig = Rig::new();
    let vm = vm(&rig);
    let entries = || core::mem::take(&mut *rig.lists.lock().unwrap()).len();
    for (address, bits) in [((DISTRIBUTOR << 12) + 0xffe8, 0x3b), ((REDISTRIBUTORS << 12) + 0x1_0100, TIMER)] {
        entries();
        rig.next(load(address));
        // To a vCPU that there is not: nobody has to come out.
        rig.next(system(SGI1R, false, 7 << 24 | 1 << 7));
        assert_eq!(rig.run(vm, 0)[0], EXIT_IRQ);
        assert_eq!(entries(), 1, "{address:#x}");
        assert_eq!(block(&rig).x[6] & bits, bits);
    }
}

#[test]
fn what_a_list_register_may_hold_is_answered_when_they_are_out() {
    let rig = Rig::new();
    let vm = vm(&rig);
    for what in [
        load((REDISTRIBUTORS << 12) + 0x1_0200),
        load((REDISTRIBUTORS << 12) + 0x1_0380),
        load((DISTRIBUTOR << 12) + 0x284),
    ] {
        rig.lists.lock().unwrap().clear();
        rig.next(what);
        assert_eq!(rig.run(vm, 0)[0], EXIT_IRQ);
        assert_eq!(rig.lists.lock().unwrap().len(), 2);
    }
    rig.lists.lock().unwrap().clear();
    rig.next(system(SGI1R, false, 7 << 24 | 1));
    assert_eq!(rig.run(vm, 0)[0], EXIT_IRQ);
    assert_eq!((loaded(&rig), rig.lists.lock().unwrap().len()), (vec![7], 2), "sent to itself");
}

#[test]
fn a_stay_in_the_guest_that_was_kicked_ends_with_its_kicks_taken_back() {
    for when in [When::In, When::InTheGuest] {
        let rig = Arc::new(Rig::new());
        let vm = vm(&rig);
        let forgotten = || rig.forgotten.swap(0, Ordering::Relaxed);
        forgotten();
        rig.next(load((REDISTRIBUTORS << 12) + 0x1_0200));
        assert_eq!(rig.run(vm, 0)[0], EXIT_IRQ);
        assert_eq!(forgotten(), 0, "nobody kicked it");
        rig.elsewhere(when, VCPU_KICK, &[vm, 0]);
        rig.next(load((REDISTRIBUTORS << 12) + 0x1_0200));
        let entries = rig.regimes.lock().unwrap().len();
        assert_eq!(rig.run(vm, 0)[0], EXIT_KICKED);
        let entered = rig.regimes.lock().unwrap().len() != entries;
        assert_eq!(entered, when != When::In, "known to be in, it never got there");
        assert_eq!(rig.pending.load(Ordering::Relaxed), 0, "{when:?}: the host meets a kick");
        assert_eq!(forgotten(), 1, "{when:?}");
    }
}

/// Who sends finds the vCPU out before its kicks are taken back: what came later would be the host's.
#[test]
fn no_kick_comes_behind_the_moment_when_they_are_taken_back() {
    for (when, kicks) in [(When::In, 1), (When::InTheGuest, 1), (When::Out, 0)] {
        let rig = Arc::new(Rig::new());
        let vm = vm(&rig);
        rig.interrupted.store(0, Ordering::Relaxed);
        rig.elsewhere(when, VM_IRQ, &[vm, 40, IRQ_HIGH]);
        assert_eq!(rig.run(vm, 0)[0], EXIT_IRQ);
        assert_eq!(rig.interrupted.load(Ordering::Relaxed), kicks, "{when:?}");
        assert_eq!(rig.pending.load(Ordering::Relaxed), 0, "{when:?}: the host meets a kick");
        rig.run(vm, 0);
        assert_eq!(loaded(&rig), [40], "{when:?}: it was sent");
    }
}

#[test]
fn a_timer_that_fired_is_delivered_without_the_host() {
    let rig = Rig::new();
    let vm = vm(&rig);
    *rig.timer.lock().unwrap() = Timer::of_registers(1, 1000);
    rig.next(|_| Stop::Own);
    assert_eq!(rig.run(vm, 0)[0], EXIT_IRQ);
    assert_eq!(loaded(&rig), [27]);
    *rig.timer.lock().unwrap() = Timer::of_registers(1, 1001);
    assert_eq!(rig.run(vm, 0)[0], EXIT_IRQ);
    assert_eq!(loaded(&rig), [], "not yet");
}

#[test]
fn the_physical_timer_is_emulated() {
    let rig = Rig::new();
    let vm = vm(&rig);
    let [a, b, c, d] = CNTP;
    rig.next(system([a, b, c, d, 2], false, 1500));
    rig.next(system([a, b, c, d, 1], false, 1));
    rig.next(system([a, b, c, d, 0], true, 0));
    assert_eq!(rig.run(vm, 0)[0], EXIT_IRQ);
    assert_eq!((block(&rig).x[5], loaded(&rig)), (500, vec![]));
    rig.next(wfi);
    assert_eq!(rig.run(vm, 0)[..2], [EXIT_WFI, 1500]);
    rig.now.store(1500, Ordering::Relaxed);
    assert_eq!(rig.run(vm, 0)[0], EXIT_IRQ);
    assert_eq!(loaded(&rig), [30]);
}

#[test]
fn a_wait_ends_at_once_if_something_is_pending_and_else_names_the_next_timer() {
    let rig = Rig::new();
    let vm = vm(&rig);
    rig.next(wfi);
    assert_eq!(rig.run(vm, 0), [EXIT_WFI, 0, 0, 0, 0], "nothing will come by itself");
    let mut timer = Timer::new();
    timer.write(Register::Compare, 7000, 0);
    timer.write(Register::Control, 1, 0);
    *rig.timer.lock().unwrap() = timer;
    rig.next(wfi);
    assert_eq!(rig.run(vm, 0), [EXIT_WFI, 7000, 0, 0, 0]);
    timer.write(Register::Control, 3, 0);
    *rig.timer.lock().unwrap() = timer;
    rig.next(wfi);
    assert_eq!(rig.run(vm, 0), [EXIT_WFI, 0, 0, 0, 0], "masked");
    timer.write(Register::Control, 1, 0);
    *rig.timer.lock().unwrap() = timer;
    rig.now.store(7000, Ordering::Relaxed);
    rig.next(wfi);
    assert_eq!(rig.run(vm, 0)[0], EXIT_IRQ, "it goes on");
}

#[test]
fn the_host_raises_an_spi_and_learns_whom_to_wake() {
    let rig = Rig::new();
    let vm = vm(&rig);
    assert_eq!(rig.yes(VM_IRQ, &[vm, 41, 1]), 0, "disabled, and nobody waits");
    rig.next(wfi);
    assert_eq!(rig.run(vm, 0)[0], EXIT_WFI);
    assert_eq!(rig.yes(VM_IRQ, &[vm, 40, 1]), 1, "vCPU 0 waits");
    assert_eq!(rig.yes(VM_IRQ, &[vm, 40, 1]), 0, "it was told");
    assert_eq!(rig.run(vm, 0)[0], EXIT_IRQ);
    assert_eq!(loaded(&rig), [40]);
    assert_eq!(rig.yes(VM_IRQ, &[vm, 40, 0]), 0);
    assert_eq!(rig.run(vm, 0)[0], EXIT_IRQ);
    assert_eq!(loaded(&rig), []);
    assert_eq!(rig.interrupted.load(Ordering::Relaxed), 0, "nobody was in a guest");
}

#[test]
fn an_spi_makes_a_running_vcpu_come_out() {
    let rig = std::sync::Arc::new(Rig::new());
    let vm = vm(&rig);
    let other = std::sync::Arc::clone(&rig);
    rig.next(move |_| {
        assert_eq!(other.yes(VM_IRQ, &[vm, 40, 1]), 0);
        Stop::Own
    });
    rig.cpu.store(3, Ordering::Relaxed);
    assert_eq!(rig.run(vm, 0)[0], EXIT_IRQ);
    assert_eq!(rig.interrupted.load(Ordering::Relaxed), 1 << 3);
    assert_eq!(loaded(&rig), [40]);
}

#[test]
fn nothing_of_it_is_left_for_the_slots_next_vm() {
    let rig = Rig::new();
    let first = vm(&rig);
    rig.yes(VM_IRQ, &[first, 40, 1]);
    rig.end(first, &[], RAM, 16);
    let second = rig.vm(RAM);
    assert_eq!(first & 0xffff, second & 0xffff);
    assert_eq!(rig.no(VM_IRQ, &[second, 40, 0]), WRONG_STATE, "it has no controller");
    assert_eq!(rig.no(VM_IRQ, &[first, 40, 0]), STALE_HANDLE);
    rig.lists.lock().unwrap().clear();
    assert_eq!(rig.run(second, 0)[0], EXIT_IRQ);
    assert!(rig.lists.lock().unwrap().is_empty(), "nor is it entered with one");
    rig.end(second, &[], RAM, 16);
    let second = rig.vm(RAM);
    rig.yes(VM_GIC, &[second, DISTRIBUTOR, REDISTRIBUTORS]);
    rig.next(load((DISTRIBUTOR << 12) + 0x104));
    assert_eq!(rig.run(second, 0)[0], EXIT_IRQ);
    assert_eq!(block(&rig).x[6], 0);
}
