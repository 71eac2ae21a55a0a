// SPDX-License-Identifier: MIT OR Apache-2.0
//! VMs that run: what the host learns, what a guest gets, and what is left at the end.

use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};

use freehold_mem::lock::Permit;
use freehold_mem::verbs::{el2_revoke_guest, guest_relinquish, guest_share_host, guest_unshare_host};
use freehold_mem::{Claim, GfnRun, Guest, Host, Pfn};
use freehold_uapi::{guest, hvc::*};
use freehold_virt::handle::Handle;
use freehold_virt::vcpu::Trap;

use super::rig::{self, Fake, GUEST_RAM, RAM, Rig};
use crate::calls::{self, Platform, Stop};

const MEMORY: u64 = RAM + 512;
const SECRET: u64 = 0x5ec2_e75e_c2e7;

fn abort(gfn: u64, iss: u64) -> Stop {
    Stop::Trap(Trap { esr: 0x24 << 26 | iss, far: 0xffff_0000_0000_0008, hpfar: gfn << 4 })
}

fn hvc(x: [u64; 4]) -> impl FnOnce(&mut Fake) -> Stop + Send + 'static {
    move |registers| {
        registers.x[..4].copy_from_slice(&x);
        registers.pc += 4;
        Stop::Trap(Trap { esr: 0x16 << 26, far: 0, hpfar: 0 })
    }
}

/// A store of 8 bytes of x5, translation fault.
const STORE: u64 = 1 << 24 | 3 << 22 | 5 << 16 | 1 << 15 | 1 << 6 | 7;
/// A load of 4 bytes to x6.
const LOAD: u64 = 1 << 24 | 2 << 22 | 6 << 16 | 7;

#[test]
fn a_store_to_ram_that_is_not_given_yet_tells_the_host_the_frame_only() {
    let rig = Rig::new();
    let vm = rig.vm(RAM);
    rig.next(|r| {
        r.x[5] = SECRET;
        abort(GUEST_RAM + 3, STORE)
    });
    assert_eq!(rig.run(vm, 0), [EXIT_MEM_FAULT, GUEST_RAM + 3, 0, 0, 0]);
    // The same store outside of RAM is what the VMM emulates.
    rig.next(|r| {
        r.x[5] = SECRET;
        abort(0x9000, STORE)
    });
    assert_eq!(rig.run(vm, 0), [EXIT_MMIO, 0x900_0008, 8 | MMIO_WRITE, SECRET, 0]);
}

#[test]
fn what_a_running_vm_is_given_is_zeroed_and_what_it_got_before_stays() {
    let rig = Rig::new();
    let vm = rig.vm(RAM);
    rig.memory.write(MEMORY, 1, 11);
    rig.memory.write(MEMORY + 1, 1, 22);
    rig.yes(MEM_DONATE, &[vm, MEMORY, GUEST_RAM, 1, 0]);
    assert_eq!(rig.memory.read(MEMORY, 1), 11, "measured contents");
    assert_eq!(rig.run(vm, 0)[0], EXIT_IRQ);
    rig.yes(MEM_DONATE, &[vm, MEMORY + 1, GUEST_RAM + 1, 1, 0]);
    assert_eq!(rig.memory.read(MEMORY + 1, 1), 0, "the host does not choose what a running guest reads");
    rig.memory.write(MEMORY, 2, SECRET);
    rig.end(vm, &[MEMORY, MEMORY + 1], RAM, 16);
    assert!(!rig.memory.picture().values().any(|word| *word == SECRET));
}

#[test]
fn all_that_was_taken_is_returned() {
    let rig = Rig::new();
    let before = rig.everything().1[0].clone();
    for _ in 0..3 {
        let vm = rig.vm(RAM);
        rig.yes(MEM_DONATE, &[vm, MEMORY, GUEST_RAM, 512, 0]);
        let _ = rig.run(vm, 0);
        rig.yes(VM_DESTROY, &[vm]);
        assert_eq!(rig.yes(VM_RECLAIM, &[vm, MEMORY, 512]), 512);
        assert_eq!(rig.yes(VM_RECLAIM, &[vm, RAM, 16]), 16);
    }
    let after = rig.everything().1[0].clone();
    let resting = |text: &str| text.split("splits").next().map(str::to_owned);
    assert_eq!(resting(&before), resting(&after), "blocks, tables, reserve");
    assert_eq!(rig.vms().count(), 0);
}

#[test]
fn a_guest_reads_what_its_cpu_has() {
    let rig = Rig::new();
    let vm = rig.vm(RAM);
    // MRS x5, ID_AA64ISAR0_EL1.
    rig.next(|_| Stop::Trap(Trap { esr: 0x18 << 26 | 3 << 20 | 5 << 5 | 6 << 1 | 1, far: 0, hpfar: 0 }));
    rig.next(|r| {
        assert_eq!(r.x[5], 0x10);
        Stop::Interrupt
    });
    assert_eq!(rig.run(vm, 0)[0], EXIT_IRQ);
}

#[test]
fn a_load_is_answered_once_and_cut_to_its_width() {
    let rig = Rig::new();
    let vm = rig.vm(RAM);
    rig.next(|_| abort(0x9000, LOAD));
    assert_eq!(rig.run(vm, 0xbad), [EXIT_MMIO, 0x900_0008, 4, 0, 0]);
    rig.next(|r| {
        assert_eq!((r.x[6], r.pc), (0x8765_4321, 4));
        Stop::Interrupt
    });
    let _ = rig.run(vm, 0xffff_ffff_8765_4321);
    rig.next(|r| {
        assert_eq!((r.x[6], r.pc), (0x8765_4321, 4), "an answer that nobody asked for goes nowhere");
        Stop::Interrupt
    });
    let _ = rig.run(vm, 0xbad);
}

#[test]
fn a_guest_shares_unshares_and_relinquishes() {
    let rig = Rig::new();
    let vm = rig.vm(RAM);
    rig.yes(MEM_DONATE, &[vm, MEMORY, GUEST_RAM, 4, 0]);
    rig.memory.write(MEMORY + 2, 1, SECRET);
    for (id, exit, done) in [
        (guest::MEM_SHARE, EXIT_SHARE, 2),
        (guest::MEM_UNSHARE, EXIT_UNSHARE, 2),
        (guest::MEM_RELINQUISH, EXIT_RELINQUISH, 0),
    ] {
        let count = if exit == EXIT_RELINQUISH { 0 } else { 2 };
        rig.next(hvc([id.into(), (GUEST_RAM + 2) << 12, count, 0]));
        let [reason, first, asked, ..] = rig.run(vm, 0);
        assert_eq!((reason, first, asked), (exit, GUEST_RAM + 2, count.max(1)));
        assert_eq!(rig.yes(GUEST_ACCEPT, &[vm, 0, asked]), asked);
        rig.next(move |r| {
            assert_eq!(r.x[..4], [0, done, 0, 0]);
            Stop::Interrupt
        });
        let _ = rig.run(vm, 0);
        let kept = rig.memory.read(MEMORY + 2, 1);
        assert_eq!(kept, if exit == EXIT_RELINQUISH { 0 } else { SECRET }, "contents stay but for a relinquish");
    }
    rig.end(vm, &[MEMORY, MEMORY + 1, MEMORY + 3], RAM, 16);
}

#[test]
fn an_answer_that_comes_too_late_is_refused_and_changes_nothing() {
    let rig = Rig::new();
    let vm = rig.vm(RAM);
    rig.yes(MEM_DONATE, &[vm, MEMORY, GUEST_RAM, 2, 0]);
    let slot = Handle::decode(vm).unwrap().slot().index();
    let run = || Claim::new(GfnRun::decode(GUEST_RAM, 1).unwrap());
    // What another vCPU's request would do between the request and the answer.
    let meanwhile = |what: &dyn Fn(&mut Host<'static>, &mut Guest)| {
        let mut permit = Permit::for_this_entry();
        let mut both = rig.world().host(&mut permit).with_guest(rig.world(), slot).unwrap();
        let (host, guest) = both.get();
        what(host, &mut guest.memory);
    };
    let ask = |id: u32| {
        rig.next(hvc([id.into(), GUEST_RAM << 12, 0, 0]));
        assert_eq!(rig.run(vm, 0)[1], GUEST_RAM);
    };
    ask(guest::MEM_SHARE);
    meanwhile(&|host, guest| {
        let m = &mut rig.machine();
        guest_share_host::check(host, guest, run(), m).unwrap().commit(m);
    });
    assert_eq!(rig.no(GUEST_ACCEPT, &[vm, 0, 1]), SHARED);
    ask(guest::MEM_UNSHARE);
    meanwhile(&|host, guest| {
        let m = &mut rig.machine();
        guest_unshare_host::check(host, guest, run(), m).unwrap().commit(m);
    });
    assert_eq!(rig.no(GUEST_ACCEPT, &[vm, 0, 1]), GFN_NOT_MAPPED);
    ask(guest::MEM_RELINQUISH);
    meanwhile(&|host, guest| {
        let m = &mut rig.machine();
        guest_relinquish::check(host, guest, run(), m).unwrap().commit(m);
    });
    assert_eq!(rig.no(GUEST_ACCEPT, &[vm, 0, 1]), GFN_NOT_MAPPED);
}

#[test]
fn a_poisoned_frame_stays_poisoned() {
    let rig = Rig::new();
    let vm = rig.vm(RAM);
    rig.yes(MEM_DONATE, &[vm, MEMORY, GUEST_RAM, 1, DONATE_REVOCABLE]);
    rig.next(hvc([guest::MEM_SHARE.into(), GUEST_RAM << 12, 0, 0]));
    assert_eq!(rig.run(vm, 0)[0], EXIT_SHARE);
    {
        let mut permit = Permit::for_this_entry();
        let slot = Handle::decode(vm).unwrap().slot().index();
        let mut both = rig.world().host(&mut permit).with_guest(rig.world(), slot).unwrap();
        let (host, guest) = both.get();
        let frame = Claim::new(Pfn::new(MEMORY).unwrap());
        el2_revoke_guest::check(host, &mut guest.memory, frame).unwrap().commit(&mut rig.machine());
    }
    assert_eq!(rig.no(GUEST_ACCEPT, &[vm, 0, 1]), GFN_POISONED);
    assert_eq!(rig.no(MEM_DONATE, &[vm, MEMORY + 1, GUEST_RAM, 1, 0]), GFN_POISONED);
    let list = RAM + 5 * 512;
    let record = Record::new(MEMORY + 1, GUEST_RAM, 1);
    rig.memory.write(list, 0, record.pfn);
    rig.memory.write(list, 1, record.gfn_count);
    assert_eq!(rig.no(MEM_DONATE_LIST, &[vm, list, 1, 0]), GFN_POISONED);
    rig.next(|_| abort(GUEST_RAM, STORE));
    assert_eq!(rig.run(vm, 0)[..2], [EXIT_CRASH, CRASH_POISONED]);
    assert_eq!(rig.no(VCPU_RUN, &[vm, 0, 0]), WRONG_STATE);
    rig.end(vm, &[], RAM, 16);
}

/// D8: only a revocable frame, and only an access of the kernel's by an address of its own.
#[test]
fn the_host_may_try_again_what_it_has_and_what_it_may_revoke() {
    let rig = &Rig::new();
    let vm = rig.vm(RAM);
    rig.yes(MEM_DONATE, &[vm, MEMORY, GUEST_RAM, 1, DONATE_REVOCABLE]);
    rig.yes(MEM_DONATE, &[vm, MEMORY + 1, GUEST_RAM + 1, 1, 0]);
    rig.memory.write(MEMORY, 1, SECRET);
    let retry = |frame: u64, may_revoke| calls::host_may_retry(rig, frame << 12, may_revoke);
    let before = rig.everything();
    for (frame, may_revoke, what) in [
        (MEMORY, false, "a process strays into a revocable frame"),
        (MEMORY + 1, false, "or into a frozen one"),
        (MEMORY + 1, true, "which the kernel does not get either"),
        (RAM, true, "nor a frame of the pool"),
        (rig::CARVE_OUT, true, "nor one of el2's"),
        (1 << 28, true, "nor what is beyond the address space"),
        (1 << 36, true, "nor what no address names"),
    ] {
        assert!(!retry(frame, may_revoke), "{what}");
    }
    assert!(retry(MEMORY + 2, false) && retry(rig::DEVICE, false) && retry(rig::NO_MAP, false), "mapped after all");
    assert!(rig.everything() == before, "none of this changes anything");
    assert!(retry(MEMORY, true));
    assert_eq!(rig.memory.read(MEMORY, 1), 0);
    assert!(retry(MEMORY, false), "it is the host's now");
    assert_eq!(rig.no(MEM_DONATE, &[vm, MEMORY, GUEST_RAM, 1, 0]), GFN_POISONED);
    rig.end(vm, &[MEMORY + 1], RAM, 16);
}

/// D8: a table of the kernel's that stands in a revocable frame does not take the frame from its guest.
#[test]
fn a_walk_takes_no_frame_away() {
    let (walk, conflict) = (1 << 7, calls::Fault::Conflict);
    let page = |may_revoke| calls::Fault::Page { may_revoke };
    for level in 0..4 {
        let (translation, permission) = (0x04 | level, 0x0c | level);
        // Write, cache maintenance, and a valid syndrome of the access change nothing.
        for more in [0, 1 << 6, 1 << 8, 1 << 24] {
            let read = |iss, by_kernel| calls::Fault::read(iss | more, by_kernel);
            assert_eq!(read(translation, true), page(true));
            assert_eq!(read(translation, false), page(false), "of a process, or by an address of its half");
            assert_eq!(read(translation | walk, true), page(false));
            assert_eq!(read(translation | walk, false), page(false));
            assert_eq!(read(permission | walk, true), page(false), "HPFAR_EL2 is that of the walk");
            assert_eq!([read(permission, true), read(permission, false)], [calls::Fault::NoPage; 2]);
            assert_eq!([read(0x30, true), read(0x30 | walk, false)], [conflict; 2]);
        }
    }
    let rig = &Rig::new();
    let vm = rig.vm(RAM);
    rig.yes(MEM_DONATE, &[vm, MEMORY, GUEST_RAM, 1, DONATE_REVOCABLE]);
    rig.memory.write(MEMORY, 1, SECRET);
    let by = |iss| match calls::Fault::read(iss, true) {
        calls::Fault::Page { may_revoke } => calls::host_may_retry(rig, MEMORY << 12, may_revoke),
        calls::Fault::Conflict | calls::Fault::NoPage => panic!("no page"),
    };
    let before = rig.everything();
    assert!(!by(0x07 | walk) && rig.everything() == before, "the walk meets a fault, and the guest keeps its page");
    assert!(by(0x07) && rig.everything() != before, "the control: a load takes it");
    assert_eq!(rig.memory.read(MEMORY, 1), 0);
    rig.end(vm, &[], RAM, 16);
}

#[test]
fn a_running_vcpu_is_busy() {
    let rig = &Rig::new();
    let vm = rig.vm(RAM);
    let (inside, entered) = mpsc::channel();
    let (go_on, leave) = mpsc::channel::<()>();
    rig.next(move |_| {
        inside.send(()).unwrap();
        leave.recv().unwrap();
        Stop::Interrupt
    });
    std::thread::scope(|scope| {
        let run = scope.spawn(|| rig.run(vm, 0));
        entered.recv().unwrap();
        for (id, arguments) in [
            (VCPU_RUN, &[vm, 0, 0][..]),
            (VCPU_SET_REG, &[vm, 0, REG_X0, 1]),
            (VCPU_GET_REG, &[vm, 0, REG_X0]),
            (GUEST_ACCEPT, &[vm, 0, 1]),
            (VM_DESTROY, &[vm]),
        ] {
            assert_eq!(rig.call(id, arguments).0, VCPU_BUSY, "{id:#x}");
        }
        assert_eq!(rig.yes(VCPU_GET_REG, &[vm, 0, REG_MPIDR]), 0x8000_0000);
        rig.yes(VCPU_KICK, &[vm, 0]);
        go_on.send(()).unwrap();
        assert_eq!(run.join().unwrap()[0], EXIT_IRQ);
    });
    assert_eq!(rig.run(vm, 0)[0], EXIT_KICKED);
    assert_eq!(rig.run(vm, 0)[0], EXIT_IRQ);
    rig.yes(VM_DESTROY, &[vm]);
}

#[test]
fn a_host_in_streaming_mode_is_told() {
    let rig = Rig::new();
    let vm = rig.vm(RAM);
    rig.next(|_| abort(0x9000, LOAD));
    assert_eq!(rig.run(vm, 0)[0], EXIT_MMIO);
    rig.busy.store(true, Ordering::Relaxed);
    assert_eq!(rig.no(VCPU_RUN, &[vm, 0, 7]), DENIED);
    rig.busy.store(false, Ordering::Relaxed);
    rig.next(|r| {
        assert_eq!(r.x[6], 8, "the answer of the call that was not refused");
        Stop::Interrupt
    });
    assert_eq!(rig.run(vm, 8)[0], EXIT_IRQ);
}

#[test]
fn what_no_guest_should_do_ends_its_vcpu_and_not_its_host() {
    for (stop, code) in
        [(Stop::SError, CRASH_ABORT), (Stop::BadState, CRASH_BAD_STATE), (abort(0x9000, 7), CRASH_NO_SYNDROME)]
    {
        let rig = Rig::new();
        let vm = rig.vm(RAM);
        rig.next(move |_| stop);
        assert_eq!(rig.run(vm, 0), [EXIT_CRASH, code, 0, 0, 0]);
        assert_eq!(rig.no(VCPU_RUN, &[vm, 0, 0]), WRONG_STATE);
        rig.end(vm, &[], RAM, 16);
    }
}

#[test]
fn what_a_cpu_may_have_cached_of_a_sibling_is_flushed_until_the_vcpu_has_run() {
    let rig = Rig::new();
    let vm = rig.vm(RAM);
    let trap = || rig.next(|_| Stop::Trap(Trap { esr: 0, far: 0, hpfar: 0 }));
    let flushes = |cpu| {
        rig.cpu.store(cpu, Ordering::Relaxed);
        let _ = rig.run(vm, 0);
        core::mem::take(&mut *rig.regimes.lock().unwrap())
    };
    assert_eq!(flushes(0), [true], "nobody knows who was here");
    assert_eq!(flushes(0), [true], "an interrupt does not say that the guest was entered");
    trap();
    assert_eq!(flushes(0), [true, false], "a trap does");
    assert_eq!(flushes(0), [false]);
    assert_eq!(flushes(1), [true], "another CPU");
    assert_eq!(flushes(0), [false]);
    rig.yes(VCPU_KICK, &[vm, 0]);
    assert_eq!(flushes(2), []);
    assert_eq!(flushes(2), [true]);
    rig.end(vm, &[], RAM, 16);
    let vm = rig.vm(RAM);
    rig.cpu.store(0, Ordering::Relaxed);
    let _ = rig.run(vm, 0);
    assert_eq!(*rig.regimes.lock().unwrap(), [true], "a new VM's vCPU is not the old one's");
}

#[test]
fn no_vm_begins_while_the_machine_goes_off() {
    let rig = &Rig::new();
    assert!(calls::quiesce(rig));
    assert_eq!(rig.no(VM_CREATE, &[VM_PROTECTED, 40, RAM, 16]), NO_VMS);
    calls::reopen(rig);
    let vm = rig.vm(RAM);
    rig.end(vm, &[], RAM, 16);
}

/// Firmware may take its time to switch off, while it refuses what another CPU asks for.
#[test]
fn what_firmware_refuses_one_cpu_lets_nothing_begin_under_another() {
    let rig = &Rig::new();
    assert!(calls::quiesce(rig) && calls::quiesce(rig));
    calls::reopen(rig);
    assert_eq!(rig.no(VM_CREATE, &[VM_PROTECTED, 40, RAM, 16]), NO_VMS);
    calls::reopen(rig);
    rig.vm(RAM);
}

#[test]
fn a_vm_that_was_beginning_as_the_machine_closed_ends_with_the_others() {
    let rig = Arc::new(Rig::new());
    let other = Arc::clone(&rig);
    // It has the host's lock, and had found the machine open.
    rig.before_host_lock(move || {
        calls::reopen(&*other);
        other.vm(RAM);
        other.set_closing(true);
    });
    assert!(calls::quiesce(&*rig));
    let vm = rig.vms().handles().next().unwrap();
    assert_eq!(rig.no(VCPU_RUN, &[vm.encode(), 0, 0]), WRONG_STATE);
}

#[test]
fn a_long_call_gives_way_to_an_interrupt_and_goes_on() {
    let rig = Rig::new();
    let vm = rig.vm(RAM);
    rig.wanted.store(true, Ordering::Relaxed);
    let done = rig.yes(MEM_DONATE, &[vm, MEMORY, GUEST_RAM, 512, 0]);
    assert!(0 < done && done < 512, "{done}");
    rig.yes(MEM_DONATE, &[vm, MEMORY + done, GUEST_RAM + done, 1, 0]);
    rig.wanted.store(false, Ordering::Relaxed);
    let rest = 512 - done - 1;
    assert_eq!(rig.yes(MEM_DONATE, &[vm, MEMORY + done + 1, GUEST_RAM + done + 1, rest, 0]), rest);
}

#[test]
fn power_goes_off_over_scrubbed_memory() {
    let rig = &Rig::new();
    let vm = rig.vm(RAM);
    rig.yes(MEM_DONATE, &[vm, MEMORY, GUEST_RAM, 4, 0]);
    for frame in [MEMORY + 1, MEMORY + 2, RAM + 15] {
        rig.memory.write(frame, 1, SECRET);
    }
    rig.next(hvc([guest::MEM_SHARE.into(), (GUEST_RAM + 1) << 12, 1, 0]));
    let _ = rig.run(vm, 0);
    rig.yes(GUEST_ACCEPT, &[vm, 0, 1]);
    let _ = rig.run(vm, 0);
    assert!(calls::quiesce(rig));
    for (frame, what) in [(MEMORY + 1, "shared"), (MEMORY + 2, "private"), (RAM + 15, "of the pool")] {
        assert_eq!(rig.memory.read(frame, 1), 0, "{what}");
    }
    assert_eq!(rig.no(VCPU_RUN, &[vm, 0, 0]), WRONG_STATE);
    assert!(calls::quiesce(rig), "once more does no harm");
    // Firmware refused after all: the host can still take its frames back.
    for frame in MEMORY..MEMORY + 4 {
        rig.yes(VM_RECLAIM, &[vm, frame, 1]);
    }
    rig.yes(VM_RECLAIM, &[vm, RAM, 16]);
    assert_eq!(rig.vms().count(), 0);
}

/// Two protected VMs, and an ordinary one in the slot between them.
#[test]
fn power_goes_off_over_every_vm_and_keeps_no_pool_but_that_of_an_ordinary_one() {
    let rig = &Rig::new();
    let first = rig.vm(RAM);
    let ordinary = rig.yes(VM_CREATE, &[0, 40, RAM + 16, 16]);
    rig.yes(VM_RANGE, &[ordinary, GUEST_RAM, 2]);
    rig.yes(MEM_SHARE, &[ordinary, MEMORY + 8, GUEST_RAM, 2, SHARE_WRITE]);
    let last = rig.vm(RAM + 32);
    for (vm, frame) in [(first, MEMORY), (last, MEMORY + 1)] {
        rig.yes(MEM_DONATE, &[vm, frame, GUEST_RAM, 1, 0]);
        assert_eq!(rig.run(vm, 0)[0], EXIT_IRQ);
    }
    let theirs = [MEMORY, MEMORY + 1, RAM + 15, RAM + 47];
    theirs.iter().for_each(|frame| rig.memory.write(*frame, 1, SECRET));
    assert!(calls::quiesce(rig));
    assert_eq!(theirs.map(|frame| rig.memory.read(frame, 1)), [0; 4]);
    for vm in [first, last] {
        assert_eq!(rig.no(VCPU_RUN, &[vm, 0, 0]), WRONG_STATE);
    }
    calls::reopen(rig);
    assert_eq!(rig.yes(MEM_UNSHARE, &[ordinary, GUEST_RAM, 2]), 2, "by tables that nobody has zeroed");
}

#[test]
fn power_stays_on_while_a_vcpu_runs() {
    let rig = &Rig::new();
    let vm = rig.vm(RAM);
    let (inside, entered) = mpsc::channel();
    let (go_on, leave) = mpsc::channel::<()>();
    rig.next(move |_| {
        inside.send(()).unwrap();
        leave.recv().unwrap();
        Stop::Interrupt
    });
    std::thread::scope(|scope| {
        let run = scope.spawn(|| rig.run(vm, 0));
        entered.recv().unwrap();
        assert!(!calls::quiesce(rig));
        go_on.send(()).unwrap();
        run.join().unwrap();
    });
    assert_eq!(rig.run(vm, 0)[0], EXIT_IRQ, "and it runs on");
    let next = rig.vm(RAM + 32);
    rig.end(next, &[], RAM + 32, 16);
}

#[test]
fn a_handle_is_looked_at_under_the_lock_and_not_before() {
    let rig = Arc::new(Rig::new());
    let vm = rig.vm(RAM);
    let other = Arc::clone(&rig);
    // Another CPU ends the VM and begins the next one in its slot.
    rig.before_host_lock(move || {
        other.end(vm, &[], RAM, 16);
        other.vm(RAM);
    });
    assert_eq!(rig.call(MEM_DONATE, &[vm, MEMORY, GUEST_RAM, 1, 0]).0, STALE_HANDLE);
    let next = vm + (1 << 16);
    rig.yes(MEM_DONATE, &[next, MEMORY, GUEST_RAM, 1, 0]);
}

#[test]
fn no_vm_begins_where_the_machine_closed_while_its_lock_was_waited_for() {
    let rig = Arc::new(Rig::new());
    let other = Arc::clone(&rig);
    rig.before_host_lock(move || assert!(calls::quiesce(&*other)));
    assert_eq!(rig.call(VM_CREATE, &[VM_PROTECTED, 40, RAM, 16]).0, NO_VMS);
    assert_eq!(rig.vms().count(), 0);
}

#[test]
fn the_registers_of_an_ordinary_vm_are_the_hosts_while_nobody_runs_it() {
    let rig = Rig::new();
    let vm = rig.yes(VM_CREATE, &[0, 40, RAM, 16]);
    rig.yes(VM_RANGE, &[vm, GUEST_RAM, 64]);
    rig.yes(VCPU_CREATE, &[vm, 0]);
    rig.yes(VCPU_SET_REG, &[vm, 0, 19, 0x19]);
    rig.yes(VCPU_SET_REG, &[vm, 0, REG_EL1, 0x30d0_0801]);
    rig.next(|registers| {
        assert_eq!((registers.x[19], registers.kept[0]), (0x19, 0x30d0_0801), "set before the first run");
        (registers.x[7], registers.pc, registers.kept[86]) = (0x77, 0x8000_0010, 3);
        Stop::Interrupt
    });
    assert_eq!(rig.run(vm, 0)[0], EXIT_IRQ);
    let read = [7, 19, REG_PC, REG_FPCR].map(|reg| rig.yes(VCPU_GET_REG, &[vm, 0, reg]));
    assert_eq!(read, [0x77, 0x19, 0x8000_0010, 3], "read after it");
    for (reg, value) in [(30, 0x30), (REG_PC, 0x8000_0022), (REG_PSTATE, 0x6000_0000), (REG_FPSR, 1)] {
        rig.yes(VCPU_SET_REG, &[vm, 0, reg, value]);
    }
    assert_eq!(rig.no(VCPU_SET_REG, &[vm, 0, REG_MPIDR, 0]), DENIED);
    rig.next(|registers| {
        assert_eq!((registers.x[30], registers.pc, registers.pstate), (0x30, 0x8000_0022, 0x6000_0000));
        assert_eq!((registers.kept[87], registers.x[7]), (1, 0x77), "set after it");
        Stop::SError
    });
    assert_eq!(rig.run(vm, 0)[0], EXIT_CRASH);
    assert_eq!(rig.yes(VCPU_GET_REG, &[vm, 0, 30]), 0x30, "and read when it has crashed");
    assert_eq!(rig.no(VCPU_RUN, &[vm, 0, 0]), WRONG_STATE);
    rig.yes(VM_DESTROY, &[vm]);
    assert_eq!(rig.no(VCPU_GET_REG, &[vm, 0, 30]), WRONG_STATE);
}
