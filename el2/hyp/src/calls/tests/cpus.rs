// SPDX-License-Identifier: MIT OR Apache-2.0
//! VMs of several vCPUs: who starts them, who is woken, and what the host learns of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use freehold_uapi::{guest, hvc::*};
use freehold_virt::vcpu::Trap;

use super::rig::{Block, Fake, GUEST_RAM, RAM, Rig, hvc, store, wfi};
use crate::calls::Stop;

const ENTRY: u64 = 0x8_0000_1000;
const OPEN: u64 = 0xff00_0003;

/// What a vCPU sees when it goes on, and an interrupt of the host's.
fn sees(what: impl FnOnce(&mut Fake) + Send + 'static) -> impl FnOnce(&mut Fake) -> Stop + Send + 'static {
    move |registers| {
        what(registers);
        Stop::Interrupt
    }
}

/// A VM of three vCPUs.
fn vm(rig: &Rig) -> u64 {
    let vm = rig.vm(RAM);
    rig.yes(VCPU_CREATE, &[vm, 1]);
    rig.yes(VCPU_CREATE, &[vm, 2]);
    vm
}

/// The same with a controller, opened by vCPU 0 for SGIs of all and SPI 40; the first run is over.
fn vm_with_gic(rig: &Rig) -> u64 {
    let vm = vm(rig);
    rig.yes(VM_GIC, &[vm, 0x1000, 0x2000]);
    rig.masks.store(OPEN, Ordering::Relaxed);
    let stores = [(0x100_0000, 3), (0x100_0104, 1 << 8)].into_iter();
    let each = (0..3).flat_map(|n: u64| [(0x200_0014 + (n << 17), 0), (0x201_0100 + (n << 17), 0xffff)]);
    for (address, value) in stores.chain(each) {
        rig.next(store(address, value));
    }
    assert_eq!(rig.run(vm, 0)[0], EXIT_IRQ);
    vm
}

fn sgi(targets: u64) -> impl FnOnce(&mut Fake) -> Stop + Send + 'static {
    move |registers| {
        registers.x[5] = 7 << 24 | targets;
        let iss = 3 << 20 | 5 << 17 | 12 << 10 | 5 << 5 | 11 << 1;
        Stop::Trap(Trap { esr: 0x18 << 26 | iss, far: 0, hpfar: 0 })
    }
}

#[test]
fn the_host_starts_no_vcpu_and_begins_no_vm_by_one_that_is_off() {
    let rig = Rig::new();
    let vm = vm(&rig);
    rig.yes(VCPU_SET_REG, &[vm, 1, REG_PC, 0x666_0000]);
    let before = rig.everything().1[1].clone();
    for _ in 0..3 {
        assert_eq!(rig.run_of(vm, 1, 0), [EXIT_OFF, 0, 0, 0, 0]);
    }
    assert_eq!(rig.everything().1[1], before, "its memory's life did not begin");
    rig.yes(VCPU_SET_REG, &[vm, 0, REG_PC, 0x1000]);
    assert_eq!(rig.run(vm, 0)[0], EXIT_IRQ);
    assert_eq!(rig.run_of(vm, 1, 0)[0], EXIT_OFF, "nor when the VM runs");
    assert_eq!(rig.no(VCPU_SET_REG, &[vm, 1, REG_PC, 0x666_0000]), WRONG_STATE);
    assert_eq!(rig.yes(VCPU_GET_REG, &[vm, 1, REG_PC]), 0x666_0000, "it never ran: what it has is the host's");
    assert_eq!(rig.regimes.lock().unwrap().len(), 1, "one entry, of vCPU 0");
}

#[test]
fn a_vcpu_starts_where_its_guest_says_and_with_nothing_that_the_host_set() {
    let rig = Rig::new();
    let vm = vm(&rig);
    for reg in [REG_X0, REG_X1, REG_X2, REG_X3, REG_PC] {
        rig.yes(VCPU_SET_REG, &[vm, 1, reg, 0x666_0000]);
    }
    assert_eq!(rig.run_of(vm, 1, 0)[0], EXIT_OFF);
    rig.next(hvc(guest::PSCI_CPU_ON_64, [1, ENTRY, 77]));
    assert_eq!(rig.run(vm, 0), [EXIT_WAKE, 0, 0, 0, 2]);
    rig.next(sees(|registers| {
        let mut x = [0; 31];
        x[0] = 77;
        assert_eq!(*registers, Fake { x, pc: ENTRY, ..Fake::new() });
        registers.x[3] = 3;
    }));
    assert_eq!(rig.run_of(vm, 1, 0xbad), [EXIT_IRQ, 0, 0, 0, 0]);
    rig.next(sees(|registers| assert_eq!((registers.x[3], registers.pc), (3, ENTRY), "it starts once")));
    let _ = rig.run_of(vm, 1, 0);
}

#[test]
fn a_vcpu_goes_off_and_starts_again_as_after_reset() {
    let rig = Rig::new();
    let vm = vm(&rig);
    rig.next(hvc(guest::PSCI_CPU_ON_64, [1, ENTRY, 0]));
    assert_eq!(rig.run(vm, 0), [EXIT_IRQ, 0, 0, 0, 0], "its thread did not come yet, so there is nobody to wake");
    rig.next(hvc(guest::PSCI_CPU_OFF, [0; 3]));
    assert_eq!(rig.run_of(vm, 1, 0), [EXIT_OFF, 0, 0, 0, 0]);
    for _ in 0..2 {
        assert_eq!(rig.run_of(vm, 1, 0)[0], EXIT_OFF);
    }
    rig.next(hvc(guest::PSCI_AFFINITY_INFO, [1, 0, 0]));
    rig.next(sees(|registers| assert_eq!(registers.x[0], 1)));
    let _ = rig.run(vm, 0);
    rig.next(hvc(guest::PSCI_CPU_ON_64, [1, ENTRY + 4, 9]));
    assert_eq!(rig.run(vm, 0), [EXIT_WAKE, 0, 0, 0, 2]);
    rig.next(sees(|registers| assert_eq!((registers.x[0], registers.x[1], registers.pc), (9, 0, ENTRY + 4))));
    let _ = rig.run_of(vm, 1, 0);
}

#[test]
fn what_a_vcpu_waited_for_is_forgotten_when_it_starts_again() {
    let rig = Rig::new();
    let vm = vm(&rig);
    let pending = |rig: &Rig| -> Vec<Block> { rig.blocks.lock().unwrap().values().cloned().collect() };
    rig.next(hvc(guest::PSCI_CPU_ON_64, [1, ENTRY, 0]));
    let _ = rig.run(vm, 0);
    rig.next(|_| Stop::Trap(Trap { esr: 0x24 << 26 | 1 << 24 | 6 << 16 | 7, far: 0, hpfar: 0x9000 << 4 }));
    assert_eq!(rig.run_of(vm, 1, 0)[0], EXIT_MMIO);
    let waits = pending(&rig);
    rig.next(hvc(guest::PSCI_CPU_OFF, [0; 3]));
    assert_eq!(rig.run_of(vm, 1, 0)[0], EXIT_OFF);
    rig.next(hvc(guest::PSCI_CPU_ON_64, [1, ENTRY, 0]));
    let _ = rig.run(vm, 0);
    rig.next(sees(|registers| assert_eq!((registers.x[6], registers.pc), (0, ENTRY))));
    assert_eq!(rig.run_of(vm, 1, 0xbad)[0], EXIT_IRQ);
    assert_ne!(pending(&rig), waits);
}

#[test]
fn reset_and_power_off_reach_the_host_as_what_they_are() {
    for (id, kind) in [
        (guest::PSCI_SYSTEM_OFF, 0),
        (guest::PSCI_SYSTEM_RESET, 1),
        (guest::PSCI_SYSTEM_RESET2, 2),
        (guest::PSCI_SYSTEM_RESET2_64, 2),
    ] {
        let rig = Rig::new();
        let vm = vm(&rig);
        rig.next(hvc(id, [0, 0xc001, 0]));
        assert_eq!(rig.run(vm, 0), [EXIT_SYSTEM, kind, 0, 0, 0], "and no cookie");
    }
}

#[test]
fn an_interrupt_for_a_sleeping_vcpu_brings_its_sender_out_to_have_it_woken() {
    let rig = Rig::new();
    let vm = vm_with_gic(&rig);
    rig.next(hvc(guest::PSCI_CPU_ON_64, [1, ENTRY, 0]));
    let _ = rig.run(vm, 0);
    rig.next(wfi);
    assert_eq!(rig.run_of(vm, 1, 0), [EXIT_WFI, 0, 0, 0, 0]);
    rig.next(sgi(2));
    assert_eq!(rig.run(vm, 0), [EXIT_WAKE, 0, 0, 0, 2]);
    rig.next(sgi(2));
    assert_eq!(rig.run(vm, 0), [EXIT_IRQ, 0, 0, 0, 0], "it was told, and the sender goes on");
    rig.lists.lock().unwrap().clear();
    assert_eq!(rig.run_of(vm, 1, 0)[0], EXIT_IRQ);
    assert_eq!(rig.lists.lock().unwrap()[0][0] as u32, 7);
    rig.next(hvc(guest::PSCI_CPU_SUSPEND_64, [0; 3]));
    assert_eq!(rig.run_of(vm, 1, 0), [EXIT_WFI, 0, 0, 0, 0], "to suspend is to wait");
    rig.next(sgi(2));
    assert_eq!(rig.run(vm, 0)[0], EXIT_WAKE);
    rig.next(sees(|registers| assert_eq!(registers.x[0], 0)));
    let _ = rig.run_of(vm, 1, 0);
}

#[test]
fn a_store_to_the_controller_has_the_sleeper_woken_that_it_concerns() {
    let rig = Rig::new();
    let vm = vm_with_gic(&rig);
    rig.next(hvc(guest::PSCI_CPU_ON_64, [1, ENTRY, 0]));
    let _ = rig.run(vm, 0);
    rig.next(wfi);
    assert_eq!(rig.run_of(vm, 1, 0), [EXIT_WFI, 0, 0, 0, 0]);
    let (route, pend) = (0x100_6000 + 40 * 8, 0x100_0204);
    rig.next(store(route, 1));
    assert_eq!(rig.run(vm, 0), [EXIT_IRQ, 0, 0, 0, 0], "nothing is pending");
    rig.next(store(pend, 1 << 8));
    assert_eq!(rig.run(vm, 0), [EXIT_WAKE, 0, 0, 0, 2]);
    rig.lists.lock().unwrap().clear();
    assert_eq!(rig.run_of(vm, 1, 0)[0], EXIT_IRQ);
    assert_eq!(rig.lists.lock().unwrap()[0][0] as u32, 40);
}

#[test]
fn a_vcpu_that_comes_out_has_the_sleeper_woken_whom_its_interrupt_goes_to_next() {
    let rig = Arc::new(Rig::new());
    let vm = vm_with_gic(&rig);
    for sleeper in [1, 2] {
        rig.next(hvc(guest::PSCI_CPU_ON_64, [sleeper, ENTRY, 0]));
        let _ = rig.run(vm, 0);
        rig.next(wfi);
        assert_eq!(rig.run_of(vm, sleeper, 0), [EXIT_WFI, 0, 0, 0, 0]);
    }
    rig.yes(VM_IRQ, &[vm, 40, 1]);
    let other = Arc::clone(&rig);
    rig.next(move |_| {
        // Meanwhile on CPU 3: the line stays high, and its interrupt is for vCPU 1 from now on.
        other.cpu.store(3, Ordering::Relaxed);
        other.next(store(0x100_6000 + 40 * 8, 1));
        assert_eq!(other.run_of(vm, 2, 0), [EXIT_IRQ, 0, 0, 0, 0], "vCPU 0 has it, so nobody is to be woken yet");
        Stop::Own
    });
    rig.cpu.store(2, Ordering::Relaxed);
    assert_eq!(rig.run(vm, 0), [EXIT_WAKE, 0, 0, 0, 2]);
}

#[test]
fn an_interrupt_for_a_vcpu_in_its_guest_interrupts_its_cpu() {
    let rig = Arc::new(Rig::new());
    let vm = vm_with_gic(&rig);
    rig.next(hvc(guest::PSCI_CPU_ON_64, [1, ENTRY, 0]));
    let _ = rig.run(vm, 0);
    let other = Arc::clone(&rig);
    rig.next(move |_| {
        // Meanwhile on CPU 3.
        other.cpu.store(3, Ordering::Relaxed);
        other.next(sgi(1));
        assert_eq!(other.run_of(vm, 1, 0), [EXIT_IRQ, 0, 0, 0, 0]);
        Stop::Own
    });
    rig.cpu.store(2, Ordering::Relaxed);
    assert_eq!(rig.run(vm, 0), [EXIT_IRQ, 0, 0, 0, 0]);
    assert_eq!(rig.interrupted.load(Ordering::Relaxed), 1 << 2);
}

#[test]
fn a_kick_brings_a_vcpu_out_of_its_guest_with_or_without_a_controller() {
    for make in [vm, vm_with_gic] {
        let rig = Arc::new(Rig::new());
        let vm = make(&rig);
        let other = Arc::clone(&rig);
        rig.next(move |_| {
            other.yes(VCPU_KICK, &[vm, 0]);
            Stop::Own
        });
        rig.cpu.store(5, Ordering::Relaxed);
        assert_eq!(rig.run(vm, 0), [EXIT_KICKED, 0, 0, 0, 0]);
        assert_eq!(rig.interrupted.load(Ordering::Relaxed), 1 << 5);
        rig.yes(VCPU_KICK, &[vm, 0]);
        assert_eq!(rig.interrupted.load(Ordering::Relaxed), 1 << 5, "it is out");
        assert_eq!(rig.run(vm, 0)[0], EXIT_KICKED);
        rig.yes(VCPU_KICK, &[vm, 1]);
        assert_eq!(rig.run_of(vm, 1, 0)[0], EXIT_OFF, "there is no guest to leave");
    }
}

#[test]
fn the_host_hears_of_the_end_of_an_spi_if_it_asked() {
    let rig = Rig::new();
    let vm = vm_with_gic(&rig);
    for (flags, reason) in [(IRQ_HIGH | IRQ_RESAMPLE, EXIT_EOI), (IRQ_HIGH, EXIT_IRQ)] {
        rig.yes(VM_IRQ, &[vm, 40, flags]);
        // The rig's guest ends what it is given; the CPU says so by an interrupt of EL2's own.
        rig.next(|_| Stop::Own);
        let expected = if reason == EXIT_EOI { [EXIT_EOI, 40, 0, 0, 0] } else { [EXIT_IRQ, 0, 0, 0, 0] };
        assert_eq!(rig.run(vm, 0), expected);
        rig.yes(VM_IRQ, &[vm, 40, flags & IRQ_RESAMPLE]);
        assert_eq!(rig.run(vm, 0)[0], EXIT_IRQ, "low");
    }
    rig.yes(VM_IRQ, &[vm, 40, IRQ_HIGH | IRQ_RESAMPLE]);
    assert_eq!(rig.run(vm, 0)[0], EXIT_IRQ, "another reason goes first");
    assert_eq!(rig.run_of(vm, 1, 0), [EXIT_EOI, 40, 0, 0, 0], "whoever comes next, off or on");
    assert_eq!(rig.run_of(vm, 1, 0)[0], EXIT_OFF);
}

#[test]
fn random_numbers_come_from_the_cpu_or_not_at_all() {
    let rig = Rig::new();
    let vm = vm(&rig);
    let none = guest::NOT_SUPPORTED.cast_unsigned();
    for (has, expected) in [(false, [none, 0, 0, 0]), (true, [0, 0, 0, 0x0123_4567_89ab_cdef])] {
        rig.has_random.store(has, Ordering::Relaxed);
        rig.next(hvc(guest::TRNG_RND_64, [64, 0, 0]));
        rig.next(sees(move |registers| assert_eq!(registers.x[..4], expected)));
        assert_eq!(rig.run(vm, 0)[0], EXIT_IRQ);
    }
}

#[test]
fn a_call_with_an_immediate_is_none_of_these() {
    let rig = Rig::new();
    let vm = vm(&rig);
    for id in [guest::PSCI_SYSTEM_OFF, guest::TRNG_VERSION] {
        rig.has_random.store(true, Ordering::Relaxed);
        let call = hvc(id, [0; 3]);
        rig.next(move |registers| {
            let _ = call(registers);
            Stop::Trap(Trap { esr: 0x16 << 26 | 1, far: 0, hpfar: 0 })
        });
        rig.next(sees(|registers| assert_eq!(registers.x[0], u64::MAX)));
        assert_eq!(rig.run(vm, 0)[0], EXIT_IRQ);
    }
}

#[test]
fn what_a_cpu_cached_of_a_sibling_is_flushed() {
    let rig = Rig::new();
    let vm = vm(&rig);
    rig.next(hvc(guest::PSCI_CPU_ON_64, [1, ENTRY, 0]));
    let _ = rig.run(vm, 0);
    let flushes = |cpu, vcpu, stop| {
        rig.cpu.store(cpu, Ordering::Relaxed);
        rig.regimes.lock().unwrap().clear();
        rig.next(move |_| stop);
        let _ = rig.run_of(vm, vcpu, 0);
        rig.regimes.lock().unwrap()[0]
    };
    const TRAP: Stop = Stop::Trap(Trap { esr: 0, far: 0, hpfar: 0 });
    let turns = [(0, 0), (0, 1), (0, 1), (0, 0), (1, 1), (0, 0), (1, 1), (1, 0), (0, 0)];
    let found = turns.map(|(cpu, vcpu)| flushes(cpu, vcpu, TRAP));
    assert_eq!(found, [false, true, false, true, true, false, false, true, false]);
    // An interrupt takes the sibling off: how far it got nobody knows, so neither of them was the last one.
    for (vcpu, stop, flushed) in
        [(1, Stop::Interrupt, true), (0, Stop::Interrupt, true), (0, TRAP, true), (0, Stop::Interrupt, false)]
    {
        assert_eq!(flushes(0, vcpu, stop), flushed, "vCPU {vcpu} until {stop:?}");
    }
}

/// An instruction that reads an ID register to x5.
fn reads_id(crm: u64, op2: u64) -> impl FnOnce(&mut Fake) -> Stop + Send + 'static {
    move |_| Stop::Trap(Trap { esr: 0x18 << 26 | 3 << 20 | op2 << 17 | 5 << 5 | crm << 1 | 1, far: 0, hpfar: 0 })
}

/// What each vCPU keeps of what its VM is: the sizes of addresses that it reads, and where its controller is met.
#[test]
fn every_vcpu_runs_in_the_same() {
    let load = |at: u64| {
        let esr = 0x24 << 26 | 1 << 24 | 2 << 22 | 6 << 16 | 7;
        move |_: &mut Fake| Stop::Trap(Trap { esr, far: at & 0xfff, hpfar: at >> 12 << 4 })
    };
    let rig = Rig::new();
    let vm = vm_with_gic(&rig);
    rig.next(hvc(guest::PSCI_CPU_ON_64, [1, ENTRY, 0]));
    rig.next(hvc(guest::PSCI_CPU_ON_64, [2, ENTRY, 0]));
    let _ = rig.run(vm, 0);
    // Behind the frames of three vCPUs, where those of eight would be.
    let behind = 0x200_0000 + (3 << 17);
    for vcpu in 0..3 {
        let x5 = |crm, op2| {
            rig.next(reads_id(crm, op2));
            let (sender, sees_it) = std::sync::mpsc::channel();
            rig.next(sees(move |registers| sender.send(registers.x[5]).unwrap()));
            assert_eq!(rig.run_of(vm, vcpu, 0)[0], EXIT_IRQ);
            sees_it.recv().unwrap()
        };
        assert_eq!(x5(7, 0) & 0xf, 2, "40 bits of an address, vCPU {vcpu}");
        assert_eq!(x5(4, 0) >> 24 & 0xf, 1, "a controller, vCPU {vcpu}");
        rig.next(load(behind));
        assert_eq!(rig.run_of(vm, vcpu, 0)[..2], [EXIT_MMIO, behind], "vCPU {vcpu}");
        rig.next(load(behind - 4));
        assert_eq!(rig.run_of(vm, vcpu, 0)[0], EXIT_IRQ, "vCPU {vcpu}");
    }
}

#[test]
fn ram_that_lies_under_the_frames_comes_first_for_every_vcpu() {
    let rig = Rig::new();
    let vm = vm(&rig);
    rig.yes(VM_GIC, &[vm, GUEST_RAM, 0x2000]);
    rig.next(hvc(guest::PSCI_CPU_ON_64, [1, ENTRY, 0]));
    let _ = rig.run(vm, 0);
    for vcpu in [0, 1] {
        let esr = 0x24 << 26 | 1 << 24 | 2 << 22 | 6 << 16 | 7;
        rig.next(move |_| Stop::Trap(Trap { esr, far: 0, hpfar: GUEST_RAM << 4 }));
        assert_eq!(rig.run_of(vm, vcpu, 0)[..2], [EXIT_MEM_FAULT, GUEST_RAM], "vCPU {vcpu}");
    }
}

/// What a guest has not opened is none of the host's, whichever of its vCPUs reaches for it; its controller needs no opening.
#[test]
fn what_a_guest_bars_is_barred_for_every_vcpu() {
    let rig = Rig::new();
    let vm = vm_with_gic(&rig);
    rig.next(hvc(guest::MMIO_GUARD_ENROLL, [0; 3]));
    rig.next(hvc(guest::PSCI_CPU_ON_64, [1, ENTRY, 0]));
    let _ = rig.run(vm, 0);
    for vcpu in [0, 1] {
        let esr = 0x24 << 26 | 1 << 24 | 2 << 22 | 6 << 16 | 7;
        // A device; where a fourth vCPU would have its frames; the distributor.
        for page in [0x9000, 0x2000 + 3 * 32, 0x1000] {
            rig.next(move |_| Stop::Trap(Trap { esr, far: 0, hpfar: page << 4 }));
        }
        let injected = Arc::new(AtomicU64::new(0));
        let told = Arc::clone(&injected);
        rig.next(sees(move |registers| told.store(registers.injected.into(), Ordering::Relaxed)));
        assert_eq!(rig.run_of(vm, vcpu, 0)[0], EXIT_IRQ, "vCPU {vcpu}");
        assert_eq!(injected.load(Ordering::Relaxed), 2, "vCPU {vcpu}: two external aborts of its own");
    }
}
