// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest that says which accesses outside RAM its host may see.

use freehold_uapi::{guest, hvc::*};
use freehold_virt::vcpu::Trap;

use super::rig::{Fake, GUEST_FRAMES, GUEST_RAM, RAM, Rig};
use crate::calls::Stop;

const SECRET: u64 = 0x5ec2_e75e_c2e7;
const DEVICE: u64 = 0x9000;
const OTHER: u64 = 0x9005;
const FRAMES: u64 = 0x1000;
/// Of 4 bytes to x6, and of 8 bytes out of x5; translation faults.
const LOAD: u64 = 0x24 << 26 | 1 << 24 | 2 << 22 | 6 << 16 | 7;
const STORE: u64 = 0x24 << 26 | 1 << 24 | 3 << 22 | 5 << 16 | 1 << 15 | 1 << 6 | 7;
const PAIR: u64 = 0x24 << 26 | 7;
const CLEAN: u64 = PAIR | 1 << 24 | 1 << 8 | 1 << 6;
const WALK: u64 = PAIR | 1 << 7;
const FETCH: u64 = 0x20 << 26 | 7;

fn at(esr: u64, gfn: u64) -> impl FnOnce(&mut Fake) -> Stop + Send + 'static {
    move |registers| {
        registers.x[5] = SECRET;
        Stop::Trap(Trap { esr, far: 8, hpfar: gfn << 4 })
    }
}

/// The guest makes a call, and finds this.
fn says(rig: &Rig, vm: u64, id: u32, x: [u64; 3], found: i64) {
    rig.next(move |registers| {
        registers.x[..4].copy_from_slice(&[id.into(), x[0], x[1], x[2]]);
        registers.pc += 4;
        Stop::Trap(Trap { esr: 0x16 << 26, far: 0, hpfar: 0 })
    });
    rig.next(move |registers| {
        assert_eq!(registers.x[..4], [found.cast_unsigned(), 0, 0, 0], "{id:#x} {x:x?}");
        Stop::Interrupt
    });
    assert_eq!(rig.run(vm, 0), [EXIT_IRQ, 0, 0, 0, 0], "{id:#x} {x:x?}: no call of these leaves el2");
}

fn done(rig: &Rig, vm: u64, id: u32, gfn: u64) {
    says(rig, vm, id, [gfn << 12, 0, 0], guest::OK);
}

/// The access is the guest's own external abort, and the host hears of nothing.
fn is_barred(rig: &Rig, vm: u64, esr: u64, gfn: u64) {
    rig.next(move |registers| {
        registers.told = None;
        at(esr, gfn)(registers)
    });
    rig.next(move |registers| {
        let told = (esr & (0x3f << 26 | 1 << 8 | 1 << 6) | 1 << 26 | 0x10, Some(8));
        assert_eq!(registers.told, Some(told), "{esr:#x}");
        Stop::Interrupt
    });
    assert_eq!(rig.run(vm, 0), [EXIT_IRQ, 0, 0, 0, 0], "{esr:#x} {gfn:#x}");
}

#[test]
fn arguments_that_are_no_granule_outside_ram_are_refused() {
    let rig = Rig::new();
    let vm = rig.vm(RAM);
    rig.run(vm, 0);
    let (ram, device) = (GUEST_RAM << 12, DEVICE << 12);
    for x in [[1, 0, 0], [0, 1, 0], [0, 0, 1]] {
        for id in [guest::MMIO_GUARD_INFO, guest::MMIO_GUARD_ENROLL] {
            says(&rig, vm, id, x, guest::INVALID_PARAMETER);
        }
    }
    let last = ((GUEST_RAM + GUEST_FRAMES) << 12) - 0x1000;
    let wrong = [[device + 8, 0, 0], [device, 1, 0], [device, 0, 1], [ram, 0, 0], [last, 0, 0], [1 << 40, 0, 0]];
    for x in wrong.into_iter().chain([[!0xfff, 0, 0], [u64::MAX, 0, 0]]) {
        for id in [guest::MMIO_GUARD_MAP, guest::MMIO_GUARD_UNMAP] {
            says(&rig, vm, id, x, guest::INVALID_PARAMETER);
        }
    }
    rig.next(at(LOAD, DEVICE));
    assert_eq!(rig.run(vm, 0), [EXIT_MMIO, DEVICE << 12 | 8, 4, 0, 0], "nothing is guarded yet");
}

#[test]
fn an_ordinary_guest_guards_nothing() {
    let rig = Rig::new();
    let vm = rig.yes(VM_CREATE, &[0, 40, RAM, 16]);
    rig.yes(VM_RANGE, &[vm, GUEST_RAM, GUEST_FRAMES]);
    rig.yes(VCPU_CREATE, &[vm, 0]);
    rig.run(vm, 0);
    for id in [0xC600_0005, 0xC600_0006, 0xC600_0007, 0xC600_0008] {
        says(&rig, vm, id, [0; 3], guest::NOT_SUPPORTED);
    }
    rig.next(at(STORE, DEVICE));
    assert_eq!(rig.run(vm, 0)[0], EXIT_MMIO);
}

#[test]
fn what_an_enrolled_guest_has_not_opened_aborts_in_it_and_what_it_has_shows_that_access_alone() {
    let rig = Rig::new();
    let vm = rig.vm(RAM);
    rig.run(vm, 0);
    says(&rig, vm, guest::MMIO_GUARD_INFO, [0; 3], 4096);
    done(&rig, vm, guest::MMIO_GUARD_MAP, DEVICE);
    for _ in 0..2 {
        done(&rig, vm, guest::MMIO_GUARD_ENROLL, 0);
    }
    for gfn in [OTHER, 0, DEVICE - 1, DEVICE + 1, (1 << 28) - 1, 1 << 28, (1 << 40) - 1] {
        for esr in [LOAD, STORE, PAIR, CLEAN, WALK, FETCH, LOAD & !3, STORE & !7] {
            is_barred(&rig, vm, esr, gfn);
        }
    }
    rig.next(at(LOAD, DEVICE));
    assert_eq!(rig.run(vm, 0), [EXIT_MMIO, DEVICE << 12 | 8, 4, 0, 0]);
    rig.next(at(STORE, DEVICE));
    assert_eq!(rig.run(vm, 0), [EXIT_MMIO, DEVICE << 12 | 8, 8 | MMIO_WRITE, SECRET, 0]);
    done(&rig, vm, guest::MMIO_GUARD_MAP, OTHER);
    done(&rig, vm, guest::MMIO_GUARD_UNMAP, DEVICE);
    is_barred(&rig, vm, STORE, DEVICE);
    rig.next(at(LOAD, OTHER));
    assert_eq!(rig.run(vm, 0)[0], EXIT_MMIO);
    // RAM is faulted in as ever, and what is no translation fault is no access to a device.
    rig.next(at(STORE, GUEST_RAM + 3));
    assert_eq!(rig.run(vm, 0), [EXIT_MEM_FAULT, GUEST_RAM + 3, 0, 0, 0]);
    rig.next(at(STORE & !0x3f | 0x10, OTHER + 9));
    assert_eq!(rig.run(vm, 0), [EXIT_CRASH, CRASH_ABORT, 0, 0, 0]);
}

#[test]
fn the_frames_of_a_guests_controller_need_not_be_opened_and_what_is_beside_them_must() {
    let rig = Rig::new();
    let vm = rig.vm(RAM);
    rig.yes(VM_GIC, &[vm, FRAMES, FRAMES + 0x40]);
    rig.run(vm, 0);
    done(&rig, vm, guest::MMIO_GUARD_ENROLL, 0);
    for gfn in [FRAMES, FRAMES + 15, FRAMES + 0x40, FRAMES + 0x5f] {
        for esr in [LOAD, STORE] {
            rig.next(at(esr, gfn));
            assert_eq!(rig.run(vm, 0)[0], EXIT_IRQ, "{gfn:#x}: el2 answers it");
        }
    }
    for gfn in [FRAMES, FRAMES + 15] {
        rig.next(move |registers| {
            registers.x[5] = SECRET;
            Stop::Trap(Trap { esr: STORE, far: 0xffc, hpfar: gfn << 4 })
        });
        assert_eq!(rig.run(vm, 0)[0], EXIT_IRQ, "{gfn:#x}: across a page's end too");
    }
    // Where the redistributor of a second vCPU would be.
    for gfn in [FRAMES - 1, FRAMES + 16, FRAMES + 0x60, FRAMES + 0x7f] {
        for esr in [LOAD, STORE, PAIR, WALK, FETCH] {
            is_barred(&rig, vm, esr, gfn);
        }
    }
}

#[test]
fn an_access_across_a_pages_end_shows_nothing_of_what_lies_behind_it() {
    for (width, last) in [(LOAD, 0xffc), (STORE, 0xff8)] {
        for far in [last - 1, last, last + 1, 0xfff] {
            let rig = Rig::new();
            let vm = rig.vm(RAM);
            rig.run(vm, 0);
            done(&rig, vm, guest::MMIO_GUARD_ENROLL, 0);
            done(&rig, vm, guest::MMIO_GUARD_MAP, DEVICE);
            rig.next(move |registers| {
                registers.x[5] = SECRET;
                Stop::Trap(Trap { esr: width, far, hpfar: DEVICE << 4 })
            });
            let seen = rig.run(vm, 0);
            if far > last {
                assert_eq!(seen, [EXIT_CRASH, CRASH_NO_SYNDROME, 0, 0, 0], "{far:#x}");
            } else {
                assert_eq!(seen[..2], [EXIT_MMIO, DEVICE << 12 | far]);
            }
        }
    }
}
