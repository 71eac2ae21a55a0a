// SPDX-License-Identifier: MIT OR Apache-2.0
//! What goes wrong is found, and said in one line.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::string::String;

use freehold_el2::calls::{Platform as _, Stop};
use freehold_mem::lock::{Mutex as _, Permit};
use freehold_mem::{Pfn, VmSlot};
use freehold_uapi::{guest, hvc::*};
use freehold_virt::handle::VcpuIndex;
use freehold_virt::setting::{Controller, Setting};
use freehold_virt::vcpu;
use freehold_virt::vgic::Window;

use super::rig::{Fake, GUEST_RAM, RAM, Rig, be};
use super::storm::{Random, one};
use crate::cpu::Trap;
use crate::fault::{Fault, Twist};
use crate::given::Found;
use crate::judge::Difference;
use crate::platform::Listener as _;
use crate::turn::{self, Seen};

/// What the watcher said.
fn said(rig: &Rig, what: impl FnOnce(&Rig)) -> String {
    let error = catch_unwind(AssertUnwindSafe(|| what(rig))).expect_err("nothing was found");
    error.downcast_ref::<String>().cloned().expect("a line")
}

#[test]
fn a_lost_store_is_found_by_the_call_that_lost_it() {
    let rig = Rig::new(Fault::LostStore(50));
    let line = said(&rig, |rig| {
        let mut r = Random(7);
        for _ in 0..50_000 {
            one(rig, &mut r);
        }
    });
    assert!(line.starts_with("watch: divergence at step "), "{line}");
    assert_eq!(line.lines().count(), 1);
}

/// A guest's tables are compared when a call is over that is about the guest frame; nothing else looks at a leaf's words.
#[test]
fn a_guests_leaf_that_is_otherwise_than_it_must_be_is_found() {
    for (twist, step) in [
        (Twist::Writable, 4),
        (Twist::Executable, 4),
        (Twist::Elsewhere, 3),
        (Twist::Device, 3),
        (Twist::Missing, 3),
        (Twist::Stays, 5),
        (Twist::Forgotten, 9),
    ] {
        let rig = Rig::new(Fault::GuestLeaf(twist));
        let line = said(&rig, |rig| {
            let lends = rig.call(VM_CREATE, &[0, 40, RAM, 8])[1];
            rig.call(VM_RANGE, &[lends, GUEST_RAM, 64]);
            rig.call(MEM_SHARE, &[lends, RAM + 16, GUEST_RAM, 2, SHARE_WRITE | SHARE_EXEC]);
            rig.call(MEM_SHARE, &[lends, RAM + 18, GUEST_RAM + 2, 1, 0]);
            rig.call(MEM_UNSHARE, &[lends, GUEST_RAM, 1]);
            let owns = rig.call(VM_CREATE, &[VM_PROTECTED, 40, RAM + 32, 8])[1];
            rig.call(VM_RANGE, &[owns, GUEST_RAM, 64]);
            rig.call(MEM_DONATE, &[owns, RAM + 48, GUEST_RAM, 2, DONATE_REVOCABLE]);
            rig.touch(RAM + 49, true);
        });
        assert!(
            line.contains(&std::format!("at step {step} ")) && line.contains("the tables of slot "),
            "{twist:?}: {line}"
        );
    }
}

/// What no call is about any more is found when the VM ends: a page too many, and one too few.
#[test]
fn a_leaf_that_changed_behind_its_calls_is_found_when_the_vm_ends() {
    for (gfn, descriptor) in [(GUEST_RAM + 5, (RAM + 99) << 12 | 0x7ff), (GUEST_RAM, 0)] {
        let rig = Rig::new(Fault::None);
        let vm = rig.call(VM_CREATE, &[VM_PROTECTED, 40, RAM, 8])[1];
        rig.call(VM_RANGE, &[vm, GUEST_RAM, 64]);
        assert_eq!(rig.call(MEM_DONATE, &[vm, RAM + 16, GUEST_RAM, 2, 0])[..2], [0, 2]);
        let table = rig.level3_of(GUEST_RAM, RAM + 16).expect("a leaf that maps the frame");
        rig.board.memory.write(table, gfn & 511, descriptor);
        let line = said(&rig, |rig| _ = rig.call(VM_DESTROY, &[vm]));
        assert!(line.contains("the tables of slot 0"), "{line}");
    }
}

#[test]
fn an_answer_that_is_not_the_calls_is_found() {
    let rig = Rig::new(Fault::None);
    let line = said(&rig, |rig| {
        rig.eye.begin(Trap::Call { id: VM_DESTROY, x: [1 << 16, 0, 0, 0, 0] });
        rig.eye.end([SUCCESS as u64, 0, 0, 0, 0], false);
    });
    assert!(line.contains("it answers 0"), "{line}");
}

/// CPU 1 names a VM that the records do not have, and is answered so; meanwhile CPU 0 makes one, or does not.
fn answered_before_the_records_know(rig: &Rig, made: bool, handle: u64, status: i64) {
    be(0);
    if made {
        rig.eye.begin(Trap::Call { id: VM_CREATE, x: [VM_PROTECTED, 40, RAM, 0, 0] });
    }
    be(1);
    rig.eye.begin(Trap::Call { id: GUEST_ACCEPT, x: [handle, 0, 1, 0, 0] });
    rig.eye.end([status.cast_unsigned(), 0, 0, 0, 0], false);
    be(0);
    if made {
        rig.eye.end([ZERO_COUNT.cast_unsigned(), 0, 0, 0, 0], false);
    }
}

#[test]
fn a_vm_may_be_named_a_moment_before_the_records_say_so_and_only_then() {
    let first = 1 << 16;
    answered_before_the_records_know(&Rig::new(Fault::None), true, first, WRONG_VCPU);
    for (made, handle, status) in [(false, first, WRONG_VCPU), (true, 2 << 16, WRONG_VCPU), (true, first, NO_SLOT)] {
        let rig = Rig::new(Fault::None);
        let line = said(&rig, |rig| answered_before_the_records_know(rig, made, handle, status));
        assert!(line.contains(&std::format!("it answers {status}")), "{line}");
    }
    // Another CPU that names it too is no excuse.
    for status in [WRONG_VCPU, VCPU_BUSY] {
        let rig = Rig::new(Fault::None);
        be(2);
        rig.eye.begin(Trap::Call { id: GUEST_ACCEPT, x: [first, 0, 1, 0, 0] });
        let line = said(&rig, |rig| answered_before_the_records_know(rig, false, first, status));
        assert!(line.contains(&std::format!("it answers {status}")), "{line}");
    }
}

#[test]
fn a_host_that_is_let_in_where_it_must_not_be_is_found() {
    let rig = Rig::new(Fault::None);
    let vm = rig.call(VM_CREATE, &[VM_PROTECTED, 40, RAM, 8])[1];
    assert_eq!(rig.call(VM_RANGE, &[vm, GUEST_RAM, 64])[0], 0);
    assert_eq!(rig.call(MEM_DONATE, &[vm, RAM + 16, GUEST_RAM, 2, DONATE_REVOCABLE])[..2], [0, 2]);
    assert!(!rig.touch(RAM + 16, false), "a process gets a fault");
    assert!(rig.touch(RAM + 16, true), "the kernel gets the revocable frame");
    assert!(!rig.touch(RAM, true), "a pool is not revocable");
    let line = said(&rig, |rig| {
        rig.eye.begin(Trap::Abort { page: (RAM + 17) << 12, kernel: false });
        let _ = rig.platform_retries(RAM + 17);
        rig.eye.end([0; 5], false);
    });
    assert!(line.contains("the host was let in"), "{line}");
}

/// A VM whose vCPU is being run.
fn running(rig: &Rig) -> Trap {
    let vm = rig.call(VM_CREATE, &[VM_PROTECTED, 40, RAM, 8])[1];
    assert_eq!(rig.call(VM_RANGE, &[vm, GUEST_RAM, 64])[0], 0);
    assert_eq!(rig.call(VCPU_CREATE, &[vm, 0])[0], 0);
    let run = Trap::Call { id: VCPU_RUN, x: [vm, 0, 0, 0, 0] };
    rig.eye.begin(run);
    run
}

#[test]
fn what_a_guest_finds_behind_its_call_is_compared() {
    let rig = Rig::new(Fault::None);
    running(&rig);
    let asks = Stop::Trap(vcpu::Trap { esr: 0x16 << 26 | 1 << 25, far: 0, hpfar: 0 });
    // With the hint that no SVE state is live.
    let version =
        Seen { x: [u64::from(guest::PSCI_VERSION) | 1 << 16, 0, 0, 0], at: [0; 2], stored: 0, deadlines: [0; 2] };
    rig.eye.left(&asks, &version);
    rig.eye.entering(rig.eye.setting(0, 0).as_ref(), [0x1_0001, 0, 0, 0], &Found::NONE);
    rig.eye.left(&asks, &version);
    let line = said(&rig, |rig| rig.eye.entering(rig.eye.setting(0, 0).as_ref(), [0x1_0000, 0, 0, 0], &Found::NONE));
    assert!(line.contains("the guest goes on with [10000, 0, 0, 0], and did"), "{line}");
}

#[test]
fn a_guest_that_goes_on_though_it_must_come_out_is_found() {
    // A wait; a pair of registers loaded, and a word, where a controller would be.
    for esr in [1 << 26, 0x24 << 26 | 7, 0x24 << 26 | 1 << 24 | 2 << 22 | 7] {
        let rig = Rig::new(Fault::None);
        running(&rig);
        let stop = Stop::Trap(vcpu::Trap { esr, far: 0, hpfar: 0x1000 << 4 });
        rig.eye.left(&stop, &Seen { x: [0; 4], at: [0; 2], stored: 0, deadlines: [0; 2] });
        let line = said(&rig, |rig| rig.eye.entering(rig.eye.setting(0, 0).as_ref(), [0; 4], &Found::NONE));
        assert!(line.contains("the guest goes on with [0, 0, 0, 0], and did"), "{line}");
    }
}

/// A VM whose guest has enrolled.
fn enrolled(rig: &Rig) -> u64 {
    let vm = rig.call(VM_CREATE, &[VM_PROTECTED, 40, RAM, 8])[1];
    assert_eq!(rig.call(VM_RANGE, &[vm, GUEST_RAM, 64])[0], 0);
    assert_eq!(rig.call(VCPU_CREATE, &[vm, 0])[0], 0);
    rig.next(|registers| {
        registers.x[..4].copy_from_slice(&[guest::MMIO_GUARD_ENROLL.into(), 0, 0, 0]);
        Stop::Trap(vcpu::Trap { esr: 0x16 << 26 | 1 << 25, far: 0, hpfar: 0 })
    });
    assert_eq!(rig.call(VCPU_RUN, &[vm, 0])[..2], [0, EXIT_IRQ]);
    vm
}

/// A store to what is not open, out of x0 to x3 that are not zero.
fn reach(registers: &mut Fake) -> Stop {
    registers.x[..4].copy_from_slice(&[1, 2, 3, 4]);
    (registers.pc, registers.pstate) = (0x8_0000_0040, 0x3c0);
    Stop::Trap(vcpu::Trap { esr: 0x24 << 26 | 1 << 25 | 1 << 24 | 1 << 6 | 7, far: 0x128, hpfar: 0x9000 << 4 })
}

#[test]
fn an_external_abort_that_tells_another_address_is_found_when_its_guest_goes_on() {
    let rig = Rig::new(Fault::WrongAddress);
    let vm = enrolled(&rig);
    rig.next(reach);
    let line = said(&rig, |rig| _ = rig.call(VCPU_RUN, &[vm, 0]));
    assert!(line.contains("the guest must find its own external abort, and finds [1, 2, 3, 4] and"), "{line}");
    assert!(line.contains("far: 120, elr: 800000040, spsr: 3c0"), "{line}");
}

type Spoil = fn(&mut ([u64; 4], Found));

/// A kick has it come out before it goes on: what it will find is looked at then.
#[test]
fn an_external_abort_of_a_guest_that_comes_out_first_is_looked_at_too() {
    let rig: &'static Rig = Box::leak(Box::new(Rig::new(Fault::None)));
    let vm = enrolled(rig);
    rig.next(move |registers| {
        be(1);
        assert_eq!(rig.call(VCPU_KICK, &[vm, 0])[0], 0);
        be(0);
        reach(registers)
    });
    let x = [EXIT_KICKED, 0, 0, 0];
    rig.call_and(VCPU_RUN, &[vm, 0], |answer| {
        assert_eq!(answer[..2], [0, EXIT_KICKED]);
        rig.eye.here(|cpu| {
            let found = cpu.found;
            assert!(turn::exit(cpu, false, x).is_ok(), "{:?}", turn::exit(cpu, false, x));
            let spoils: [Spoil; 4] =
                [|found| found.1.pc += 4, |found| found.1.far ^= 8, |found| found.1.esr = 0, |found| found.0[2] = 7];
            for spoil in spoils {
                spoil(&mut cpu.found);
                assert!(matches!(turn::exit(cpu, false, x), Err(Difference::Given { .. })), "{:?}", cpu.found);
                cpu.found = found;
            }
        });
    });
}

/// Whatever else was held: el2 decides it with both locks.
#[test]
fn a_call_about_devices_that_is_decided_without_the_hosts_lock_is_found() {
    for id in [guest::MMIO_GUARD_ENROLL, guest::MMIO_GUARD_MAP, guest::MMIO_GUARD_UNMAP] {
        let x1 = if id == guest::MMIO_GUARD_ENROLL { 0 } else { 0x900_0000 };
        let asks = Stop::Trap(vcpu::Trap { esr: 0x16 << 26 | 1 << 25, far: 0, hpfar: 0 });
        let seen = Seen { x: [id.into(), x1, 0, 0], at: [0; 2], stored: 0, deadlines: [0; 2] };
        let rig = Rig::new(Fault::None);
        running(&rig);
        rig.eye.left(&asks, &seen);
        let line = said(&rig, |rig| rig.eye.entering(rig.eye.setting(0, 0).as_ref(), [0; 4], &Found::NONE));
        assert!(line.contains("was decided without the locks that it takes"), "{line}");
    }
}

#[test]
fn a_decision_that_takes_the_vms_lock_twice_is_found() {
    let rig = Rig::new(Fault::None);
    running(&rig);
    let load = Stop::Trap(vcpu::Trap { esr: 0x24 << 26 | 1 << 24 | 2 << 22 | 7, far: 0, hpfar: GUEST_RAM << 4 });
    rig.eye.left(&load, &Seen { x: [0; 4], at: [0; 2], stored: 0, deadlines: [0; 2] });
    let look = |rig: &Rig| drop(rig.platform.world().guest(&mut Permit::for_this_entry(), 0));
    look(&rig);
    let line = said(&rig, look);
    assert!(line.contains("takes the VM's lock twice for one decision"), "{line}");
}

#[test]
fn a_guest_that_runs_while_the_host_can_not_be_left_is_found() {
    let rig = Rig::new(Fault::None);
    let run = running(&rig);
    rig.eye.busy();
    rig.eye.end([DENIED as u64, 0, 0, 0, 0], false);
    rig.eye.begin(run);
    rig.eye.busy();
    let line = said(&rig, |rig| rig.eye.end([SUCCESS as u64, EXIT_IRQ, 0, 0, 0], false));
    assert!(line.contains("can not be left"), "{line}");
}

#[test]
fn a_scrub_that_leaves_something_is_found() {
    let rig = Rig::new(Fault::LostScrub(1));
    let vm = rig.call(VM_CREATE, &[VM_PROTECTED, 40, RAM, 8])[1];
    assert_eq!(rig.call(VM_RANGE, &[vm, GUEST_RAM, 64])[0], 0);
    assert_eq!(rig.call(MEM_DONATE, &[vm, RAM + 16, GUEST_RAM, 1, 0])[..2], [0, 1]);
    rig.board.memory.write(RAM + 16, 511, 0x5ec2e7);
    assert_eq!(rig.call(VM_DESTROY, &[vm])[0], 0);
    let line = said(&rig, |rig| _ = rig.call(VM_RECLAIM, &[vm, RAM + 16, 1]));
    assert!(line.contains("frame 0x40010 was zeroed, and is not zero"), "{line}");
}

/// Each part of what a vCPU runs in, of the first one and of another.
#[test]
fn a_vcpu_that_runs_in_something_else_is_found() {
    type Spoil = fn(&mut Setting);
    fn gic(setting: &mut Setting) -> &mut Controller {
        setting.controller.as_mut().expect("a controller")
    }
    let spoils: [Spoil; 9] = [
        |_| {},
        |setting| setting.root = Pfn::new(RAM + 1).unwrap(),
        |setting| setting.ipa_bits = 39,
        |setting| setting.vmid = VmSlot::new(1).unwrap().vmid(),
        |setting| setting.vcpu = VcpuIndex::decode(2).unwrap(),
        |setting| setting.controller = None,
        |setting| gic(setting).frames = 8,
        |setting| gic(setting).is_clear ^= true,
        |setting| gic(setting).window = Window::new(0x1000, 0x2010, 40).unwrap(),
    ];
    for vcpu in [0, 1] {
        for (n, spoil) in spoils.iter().enumerate() {
            let rig = Rig::new(Fault::None);
            let vm = rig.call(VM_CREATE, &[VM_PROTECTED, 40, RAM, 8])[1];
            for (id, arguments) in [
                (VM_RANGE, &[vm, GUEST_RAM, 64][..]),
                (VM_GIC, &[vm, 0x1000, 0x2000]),
                (VCPU_CREATE, &[vm, 0]),
                (VCPU_CREATE, &[vm, 1]),
            ] {
                assert_eq!(rig.call(id, arguments)[0], 0);
            }
            rig.next(|registers| {
                registers.x[..4].copy_from_slice(&[guest::PSCI_CPU_ON_64.into(), 1, 0, 0]);
                Stop::Trap(vcpu::Trap { esr: 0x16 << 26 | 1 << 25, far: 0, hpfar: 0 })
            });
            assert_eq!(rig.call(VCPU_RUN, &[vm, 0])[..2], [0, EXIT_IRQ]);
            assert_eq!(rig.call(VCPU_RUN, &[vm, 1])[..2], [0, EXIT_IRQ]);
            rig.eye.begin(Trap::Call { id: VCPU_RUN, x: [vm, vcpu, 0, 0, 0] });
            let mut setting = rig.eye.setting(0, vcpu).expect("it ran");
            spoil(&mut setting);
            let enter = |rig: &Rig| rig.eye.entering(Some(&setting), [0; 4], &Found::NONE);
            if n == 0 {
                enter(&rig);
            } else {
                let line = said(&rig, enter);
                assert!(line.contains(&std::format!("vCPU {vcpu} of slot 0 runs in")), "{n}: {line}");
            }
        }
    }
}

#[test]
fn a_board_that_changes_without_its_lock_is_found() {
    let rig = Rig::new(Fault::None);
    let vm = rig.call(VM_CREATE, &[VM_PROTECTED, 40, RAM, 8])[1];
    assert_eq!(rig.call(VM_RANGE, &[vm, GUEST_RAM, 64])[0], 0);
    assert_eq!(rig.call(VCPU_CREATE, &[vm, 0])[0], 0);
    assert_eq!(rig.call(VCPU_KICK, &[vm, 0])[0], 0);
    rig.boards[0].below().acquire().add_vcpu(VcpuIndex::decode(5).unwrap());
    let line = said(&rig, |rig| _ = rig.call(VCPU_KICK, &[vm, 0]));
    assert!(line.contains("a board of a VM changed, and nobody held its lock"), "{line}");
}
