// SPDX-License-Identifier: MIT OR Apache-2.0
//! vCPUs that are out and have kept their list registers, and what calls do beside them.

use std::sync::atomic::Ordering;

use freehold_uapi::{guest, hvc::*};
use freehold_virt::vgic::Lists;

use super::rig::{RAM, Rig, hvc, store, wfi};

const ENTRY: u64 = 0x8_0000_1000;
const OPEN: u64 = 0xff00_0003;

/// A VM of two vCPUs with a controller, whose guest leaves list registers alone. vCPU 0 is out, and has kept SPIs 40 and 41.
fn kept(rig: &Rig) -> u64 {
    let vm = rig.vm(RAM);
    rig.yes(VCPU_CREATE, &[vm, 1]);
    rig.yes(VM_GIC, &[vm, 0x1000, 0x2000]);
    rig.masks.store(OPEN, Ordering::Relaxed);
    let each = [0x200_0014, 0x202_0014].map(|waker| (waker, 0));
    for (address, value) in [(0x100_0000, 3), (0x100_0104, 3 << 8)].into_iter().chain(each) {
        rig.next(store(address, value));
    }
    rig.keeps.store(true, Ordering::Relaxed);
    assert_eq!(rig.run(vm, 0)[0], EXIT_IRQ);
    for spi in [40, 41] {
        rig.yes(VM_IRQ, &[vm, spi, IRQ_HIGH]);
    }
    assert_eq!(entry(rig, vm, 0), [40, 41]);
    assert_eq!(lists(rig), [0, 2], "it has kept what it was given");
    vm
}

/// How many list registers each vCPU has in its block, in no order of theirs.
fn lists(rig: &Rig) -> Vec<usize> {
    let blocks = rig.blocks.lock().unwrap();
    let mut all: Vec<usize> = blocks.values().map(|block| block.lists.clone().entries().len()).collect();
    all.sort_unstable();
    all
}

/// The interrupts of the only entry of a run that nothing but an interrupt of the host's ends.
fn entry(rig: &Rig, vm: u64, vcpu: u64) -> Vec<u32> {
    rig.lists.lock().unwrap().clear();
    assert_eq!(rig.run_of(vm, vcpu, 0)[0], EXIT_IRQ);
    let all = core::mem::take(&mut *rig.lists.lock().unwrap());
    assert_eq!(all.len(), 1, "entries");
    all[0].iter().map(|entry| *entry as u32).collect()
}

#[test]
fn a_run_is_loaded_with_what_the_last_one_left_alone() {
    let rig = Rig::new();
    let vm = kept(&rig);
    for _ in 0..3 {
        assert_eq!(entry(&rig, vm, 0), [40, 41]);
    }
    rig.keeps.store(false, Ordering::Relaxed);
    assert_eq!(entry(&rig, vm, 0), [40, 41]);
    assert_eq!(lists(&rig), [0, 0], "what its guest ended is not kept");
}

#[test]
fn a_call_about_an_interrupt_takes_back_what_is_kept() {
    let rig = Rig::new();
    let vm = kept(&rig);
    assert_eq!(rig.yes(VM_IRQ, &[vm, 40, 0]), 0);
    assert_eq!(entry(&rig, vm, 0), [41], "its wire is low");
    // Of what is refused nobody hears.
    rig.no(VM_IRQ, &[vm, 7, IRQ_HIGH]);
    assert_eq!(entry(&rig, vm, 0), [41]);
}

#[test]
fn a_kick_that_comes_first_leaves_what_is_kept() {
    let rig = Rig::new();
    let vm = kept(&rig);
    rig.yes(VCPU_KICK, &[vm, 0]);
    assert_eq!(rig.run(vm, 0)[0], EXIT_KICKED);
    assert_eq!(lists(&rig), [0, 2]);
    assert_eq!(entry(&rig, vm, 0), [40, 41]);
}

#[test]
fn who_waits_is_woken_for_what_it_has_kept() {
    let rig = Rig::new();
    let vm = kept(&rig);
    rig.next(wfi);
    assert_eq!(rig.run(vm, 0)[0], EXIT_IRQ, "it goes on at once");
    for spi in [40, 41] {
        rig.yes(VM_IRQ, &[vm, spi, 0]);
    }
    rig.next(wfi);
    assert_eq!(rig.run(vm, 0)[0], EXIT_WFI);
    assert_eq!(rig.yes(VM_IRQ, &[vm, 41, IRQ_HIGH]), 1);
    assert_eq!(entry(&rig, vm, 0), [41]);
}

#[test]
fn what_goes_off_gives_up_what_it_had_and_starts_with_what_is_pending() {
    let rig = Rig::new();
    let vm = kept(&rig);
    rig.next(hvc(guest::PSCI_CPU_ON_64, [1, ENTRY, 0]));
    assert_eq!(rig.run(vm, 0)[0], EXIT_IRQ);
    rig.next(hvc(guest::PSCI_CPU_OFF, [0; 3]));
    assert_eq!(rig.run(vm, 0)[0], EXIT_OFF);
    // Both are routed to vCPU 0, which is off: nobody else takes them.
    assert_eq!(entry(&rig, vm, 1), []);
    rig.next(hvc(guest::PSCI_CPU_ON_64, [0, ENTRY + 4, 0]));
    assert_eq!(rig.run_of(vm, 1, 0), [EXIT_WAKE, 0, 0, 0, 1]);
    assert_eq!(entry(&rig, vm, 0), [40, 41], "its block is new, its controller is not");
}

#[test]
fn a_block_that_is_reset_over_what_is_kept_loses_no_interrupt() {
    let rig = Rig::new();
    let vm = kept(&rig);
    rig.blocks.lock().unwrap().values_mut().for_each(|block| block.lists = Lists::EMPTY);
    assert_eq!(entry(&rig, vm, 0), [40, 41]);
}

#[test]
fn a_vm_that_ends_leaves_nothing_kept_to_the_next_one() {
    let rig = Rig::new();
    let first = kept(&rig);
    assert_eq!(rig.no(VCPU_CREATE, &[first, 0]), VCPU_EXISTS);
    rig.end(first, &[], RAM, 16);
    let second = rig.vm(RAM);
    rig.yes(VM_GIC, &[second, 0x1000, 0x2000]);
    assert_eq!(first & 0xffff, second & 0xffff, "in its place");
    assert_eq!(entry(&rig, second, 0), []);
    rig.end(second, &[], RAM, 16);
    assert_eq!(rig.yes(VM_CREATE, &[VM_PROTECTED, 40, RAM, 16]) & 0xffff, first & 0xffff, "all of it came back");
}
