// SPDX-License-Identifier: MIT OR Apache-2.0
//! VMs whose memory the host lends: it keeps the pages, the guest may reach them, and each loan is counted.

use freehold_uapi::{guest, hvc::*};
use freehold_virt::vcpu::Trap;

use super::rig::{self, CARVE_OUT, DEVICE, GUEST_FRAMES, GUEST_RAM, RAM, Rig};
use crate::calls::{self, Stop};

const MEMORY: u64 = RAM + 512;
const ALL: u64 = SHARE_WRITE | SHARE_EXEC;

/// An ordinary VM with RAM and one vCPU, out of 16 frames at `pool`.
fn ordinary(rig: &Rig, pool: u64) -> u64 {
    let vm = rig.yes(VM_CREATE, &[0, 40, pool, 16]);
    rig.yes(VM_RANGE, &[vm, GUEST_RAM, GUEST_FRAMES]);
    rig.yes(VCPU_CREATE, &[vm, 0]);
    vm
}

#[test]
fn the_host_keeps_what_it_lends_and_takes_it_back_as_it_is() {
    let rig = Rig::new();
    let vm = ordinary(&rig, RAM);
    rig.memory.write(MEMORY, 3, 0x77);
    assert_eq!(rig.yes(MEM_SHARE, &[vm, MEMORY, GUEST_RAM, 2, ALL]), 2);
    assert_eq!(rig.memory.read(MEMORY, 3), 0x77);
    assert_eq!(rig.run(vm, 0)[0], EXIT_IRQ);
    assert_eq!(rig.yes(MEM_SHARE, &[vm, MEMORY + 2, GUEST_RAM + 2, 1, 0]), 1, "while it runs too");
    assert_eq!(rig.no(VM_CREATE, &[VM_PROTECTED, 40, MEMORY, 1]), SHARED);
    assert_eq!(rig.yes(MEM_UNSHARE, &[vm, GUEST_RAM, 2]), 2);
    assert_eq!(rig.memory.read(MEMORY, 3), 0x77, "nobody zeroes it");
    assert_eq!(rig.no(MEM_UNSHARE, &[vm, GUEST_RAM, 1]), GFN_NOT_MAPPED);
    rig.yes(VM_DESTROY, &[vm]);
    assert_eq!(rig.no(VM_RECLAIM, &[vm, MEMORY + 2, 1]), HOST_OWNED);
    assert_eq!(rig.no(VM_RECLAIM, &[vm, RAM, 16]), GUEST_FRAMES_LEFT, "a loan is out");
    assert_eq!(rig.yes(MEM_UNSHARE, &[vm, GUEST_RAM + 2, 1]), 1, "in its death too");
    assert_eq!(rig.yes(VM_RECLAIM, &[vm, RAM, 16]), 16);
}

#[test]
fn a_loan_is_refused_for_what_is_not_the_hosts_or_not_the_vms_to_use() {
    let rig = Rig::new();
    let (vm, other) = (ordinary(&rig, RAM), rig.vm(RAM + 16));
    rig.yes(MEM_DONATE, &[other, MEMORY + 8, GUEST_RAM, 2, 0]);
    rig.next(|registers| {
        registers.x[..4].copy_from_slice(&[guest::MEM_SHARE.into(), (GUEST_RAM + 1) << 12, 1, 0]);
        registers.pc += 4;
        Stop::Trap(Trap { esr: 0x16 << 26, far: 0, hpfar: 0 })
    });
    assert_eq!(rig.run(other, 0)[0], EXIT_SHARE);
    rig.yes(GUEST_ACCEPT, &[other, 0, 1]);
    rig.yes(MEM_SHARE, &[vm, MEMORY, GUEST_RAM, 1, ALL]);
    for ([pfn, gfn, count, flags], expected) in [
        ([MEMORY + 1, GUEST_RAM + 1, 0, 0], ZERO_COUNT),
        ([MEMORY + 1, GUEST_RAM + 1, MAX_RUN + 1, 0], COUNT_TOO_LARGE),
        ([u64::MAX, GUEST_RAM + 1, 2, 0], OVERFLOW),
        ([DEVICE, GUEST_RAM + 1, 1, 0], NOT_MEMORY),
        ([rig::NO_MAP, GUEST_RAM + 1, 1, 0], NO_MAP),
        ([CARVE_OUT, GUEST_RAM + 1, 1, 0], EL2_OWNED),
        ([RAM + 15, GUEST_RAM + 1, 1, 0], ALREADY_DONATED),
        ([MEMORY + 8, GUEST_RAM + 1, 1, 0], FOREIGN),
        ([MEMORY + 9, GUEST_RAM + 1, 1, 0], SHARED),
        ([MEMORY + 1, GUEST_RAM + GUEST_FRAMES, 1, 0], GFN_OUT_OF_RANGE),
        ([MEMORY + 1, GUEST_RAM, 1, 0], GFN_MAPPED),
        ([MEMORY + 1, GUEST_RAM + 1, 1, 4], BAD_ARGUMENT),
    ] {
        assert_eq!(rig.no(MEM_SHARE, &[vm, pfn, gfn, count, flags]), expected, "{pfn:#x} {gfn:#x} {count}");
    }
    for ([gfn, count], expected) in [
        ([GUEST_RAM, 0], ZERO_COUNT),
        ([GUEST_RAM, MAX_RUN + 1], COUNT_TOO_LARGE),
        ([u64::MAX, 2], OVERFLOW),
        ([GUEST_RAM + GUEST_FRAMES, 1], GFN_OUT_OF_RANGE),
        ([GUEST_RAM, 2], GFN_NOT_MAPPED),
    ] {
        assert_eq!(rig.no(MEM_UNSHARE, &[vm, gfn, count]), expected, "{gfn:#x} {count}");
    }
    assert_eq!(rig.no(MEM_DONATE, &[vm, MEMORY + 1, GUEST_RAM + 1, 1, 0]), WRONG_STATE, "it owns nothing");
    assert_eq!(
        rig.no(MEM_SHARE, &[other, MEMORY + 1, GUEST_RAM + 2, 1, 0]),
        WRONG_STATE,
        "a protected one borrows nothing"
    );
}

#[test]
fn a_page_can_be_lent_twice_and_a_vm_of_another_kind_gets_it_only_afterwards() {
    let rig = Rig::new();
    let (first, second) = (ordinary(&rig, RAM), ordinary(&rig, RAM + 16));
    let protected = rig.vm(RAM + 32);
    rig.yes(MEM_SHARE, &[first, MEMORY, GUEST_RAM, 1, ALL]);
    rig.yes(MEM_SHARE, &[second, MEMORY, GUEST_RAM + 5, 1, 0]);
    for (vm, gfn) in [(first, GUEST_RAM), (second, GUEST_RAM + 5)] {
        assert_eq!(rig.no(MEM_DONATE, &[protected, MEMORY, GUEST_RAM, 1, 0]), SHARED);
        rig.yes(MEM_UNSHARE, &[vm, gfn, 1]);
    }
    assert_eq!(rig.yes(MEM_DONATE, &[protected, MEMORY, GUEST_RAM, 1, 0]), 1);
}

#[test]
fn its_guest_asks_for_nothing_about_its_memory() {
    let rig = Rig::new();
    let vm = ordinary(&rig, RAM);
    rig.yes(MEM_SHARE, &[vm, MEMORY, GUEST_RAM, 1, ALL]);
    for id in [guest::MEM_SHARE, guest::MEM_UNSHARE, guest::MEM_RELINQUISH, guest::HYP_MEMINFO] {
        rig.next(move |registers| {
            registers.x[..4].copy_from_slice(&[id.into(), GUEST_RAM << 12, 0, 0]);
            registers.pc += 4;
            Stop::Trap(Trap { esr: 0x16 << 26, far: 0, hpfar: 0 })
        });
        rig.next(|registers| {
            assert_eq!(registers.x[0].cast_signed(), guest::NOT_SUPPORTED);
            Stop::Interrupt
        });
        assert_eq!(rig.run(vm, 0)[0], EXIT_IRQ);
    }
    rig.next(|_| Stop::Trap(Trap { esr: 0x24 << 26 | 1 << 24 | 7, far: 0, hpfar: (GUEST_RAM + 1) << 4 }));
    assert_eq!(rig.run(vm, 0)[..2], [EXIT_MEM_FAULT, GUEST_RAM + 1], "what is not lent yet is asked for");
}

#[test]
fn a_write_to_what_was_lent_read_only_is_the_hosts_to_decide() {
    let rig = Rig::new();
    let vm = ordinary(&rig, RAM);
    rig.yes(MEM_SHARE, &[vm, MEMORY, GUEST_RAM, 1, 0]);
    // A permission fault of level 3; the switch has found the page.
    let write = || rig.next(|_| Stop::Trap(Trap { esr: 0x24 << 26 | 1 << 6 | 0xf, far: 0, hpfar: GUEST_RAM << 4 }));
    write();
    assert_eq!(rig.run(vm, 0), [EXIT_MEM_FAULT, GUEST_RAM, 0, 0, 0]);
    rig.yes(MEM_UNSHARE, &[vm, GUEST_RAM, 1]);
    rig.yes(MEM_SHARE, &[vm, MEMORY, GUEST_RAM, 1, SHARE_WRITE]);
    assert_eq!(rig.run(vm, 0)[0], EXIT_IRQ, "it goes on");
    let protected = rig.vm(RAM + 32);
    rig.yes(MEM_DONATE, &[protected, MEMORY + 1, GUEST_RAM, 1, 0]);
    write();
    assert_eq!(rig.run(protected, 0)[..2], [EXIT_CRASH, CRASH_ABORT], "of what is a VM's own nothing is withheld");
}

#[test]
fn a_machine_that_stays_on_after_all_ends_its_loans() {
    let rig = Rig::new();
    let vm = ordinary(&rig, RAM);
    rig.memory.write(MEMORY, 3, 0x77);
    rig.yes(MEM_SHARE, &[vm, MEMORY, GUEST_RAM, 2, ALL]);
    assert!(calls::quiesce(&rig));
    calls::reopen(&rig);
    assert_eq!(rig.memory.read(MEMORY, 3), 0x77, "what the host lent is the host's");
    assert_eq!(rig.yes(MEM_UNSHARE, &[vm, GUEST_RAM, 2]), 2);
    assert_eq!(rig.yes(VM_RECLAIM, &[vm, RAM, 16]), 16);
}

#[test]
fn no_vcpu_is_made_for_a_vm_that_runs() {
    let rig = Rig::new();
    let vm = ordinary(&rig, RAM);
    let _ = rig.run(vm, 0);
    assert_eq!(rig.no(VCPU_CREATE, &[vm, 1]), WRONG_STATE);
}

/// A vCPU's guest makes a call, and goes on behind it until an interrupt of the host's.
fn calls(rig: &Rig, vm: u64, vcpu: u64, x: [u64; 3], found: u64) {
    rig.next(move |registers| {
        registers.x[..3].copy_from_slice(&x);
        registers.pc += 4;
        Stop::Trap(Trap { esr: 0x16 << 26, far: 0, hpfar: 0 })
    });
    rig.next(move |registers| {
        assert_eq!(registers.x[0], found, "{x:x?}");
        Stop::Interrupt
    });
    // Who starts another one comes out first, for that to be woken.
    if rig.run_of(vm, vcpu, 0)[0] == EXIT_WAKE {
        assert_eq!(rig.run_of(vm, vcpu, 0)[0], EXIT_IRQ);
    }
}

#[test]
fn the_host_sets_a_vcpu_back_and_says_whether_it_is_on() {
    const LOAD: u64 = 0x24 << 26 | 1 << 24 | 2 << 22 | 6 << 16 | 7;
    let start = [guest::PSCI_CPU_ON_64.into(), 1, 0x1000];
    let rig = Rig::new();
    let (vm, protected) = (ordinary(&rig, RAM), rig.vm(RAM + 16));
    rig.yes(VCPU_CREATE, &[vm, 1]);
    let set = [vm, 0, REG_POWER, 1];
    assert_eq!(rig.no(VCPU_SET_REG, &set), WRONG_STATE, "before the first run nothing has to be set back");
    assert_eq!(rig.run(vm, 0)[0], EXIT_IRQ);
    assert_eq!(rig.no(VCPU_SET_REG, &[vm, 0, REG_POWER, 2]), BAD_ARGUMENT);
    assert_eq!(rig.no(VCPU_GET_REG, &[vm, 0, REG_POWER]), DENIED);
    assert_eq!(rig.no(VCPU_SET_REG, &[vm, 2, REG_POWER, 0]), WRONG_VCPU);
    for on in [0, 1] {
        assert_eq!(rig.no(VCPU_SET_REG, &[protected, 0, REG_POWER, on]), DENIED);
    }
    let _ = rig.run(protected, 0);
    assert_eq!(rig.no(VCPU_SET_REG, &[protected, 0, REG_POWER, 1]), WRONG_STATE);

    // A second CPU that was started goes off, and can be started again; so can one that was not run since.
    calls(&rig, vm, 0, start, 0);
    assert_eq!(rig.run_of(vm, 1, 0)[0], EXIT_IRQ);
    calls(&rig, vm, 0, start, guest::ALREADY_ON.cast_unsigned());
    for _ in 0..2 {
        rig.yes(VCPU_SET_REG, &[vm, 1, REG_POWER, 0]);
        assert_eq!(rig.run_of(vm, 1, 0)[0], EXIT_OFF);
        calls(&rig, vm, 0, start, 0);
    }
    // What the first one waited for, and had, is gone: also where it could not go on.
    for crash in [false, true] {
        rig.next(move |registers| {
            registers.x[6] = 66;
            registers.pc = 0x5000;
            Stop::Trap(Trap { esr: if crash { LOAD & !(1 << 24) } else { LOAD }, far: 0, hpfar: 0x9000 << 4 })
        });
        assert_eq!(rig.run(vm, 0)[0], if crash { EXIT_CRASH } else { EXIT_MMIO });
        rig.yes(VCPU_SET_REG, &set);
        rig.yes(VCPU_SET_REG, &[vm, 0, REG_PC, 0x8000]);
        rig.next(|registers| {
            assert_eq!((registers.x[6], registers.pc), (0, 0x8000));
            Stop::Interrupt
        });
        assert_eq!(rig.run(vm, 0xbad)[0], EXIT_IRQ);
    }
}
