// SPDX-License-Identifier: MIT OR Apache-2.0
//! An ordinary VM through the driver: its pages stay the host's, which lends them as the guest touches them, and takes
//! them back when it wants them; nothing of it is private.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use freehold_uapi::ioctl::*;
use freehold_uapi::{guest, hvc};

use crate::gmem::{CONVERT, converted};
use crate::hostile::Hostile;
use crate::machine::{Event, Machine, Plan, counter, init_vcpu, make_gmem, open, set_slot};
use crate::probe::{Access, probe};
use crate::proto::*;
use crate::raw::{resting, settle};
use crate::report::Step;
use crate::sys::{self, errno_name, ioctl, ioctl_value, outcome};
use crate::vgic::{Cloned as _, spi};

const STEP: Step = Step("ordinary");
pub(crate) const PAGE: u64 = GRANULE;
/// RAM behind the program's, for the cases.
pub(crate) const FREE: u64 = RAM_MIN;
pub(crate) const BYTES: u64 = 4 * RAM_MIN;

pub(crate) fn plan() -> Plan {
    Plan { bytes: BYTES, boot: BOOT_NO_SHARE, gic: true, ordinary: true, ..Plan::default() }
}

pub(crate) fn at(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

/// Runs the cases.
pub(crate) fn all() -> Result<(), String> {
    let hostile = Hostile::open()?;
    let before = resting(&hostile);
    refusals()?;
    lives()?;
    races()?;
    set_back()?;
    settle(STEP, "all is as before", &hostile, &before);
    Ok(())
}

fn refusals() -> Result<(), String> {
    let kvm = open()?;
    let vm = kvm.create_vm_with_type(40).map_err(|e| errno_name(e.errno()))?;
    for (cap, expected) in [
        (KVM_CAP_ARM_PROTECTED_VM, "0"),
        (KVM_CAP_MEMORY_ATTRIBUTES, "0"),
        (KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES, "0"),
        (KVM_CAP_GUEST_MEMFD, "1"),
        (KVM_CAP_IRQCHIP, "1"),
    ] {
        let seen = outcome(ioctl_value(&vm, KVM_CHECK_EXTENSION, cap.into()));
        STEP.same(&format!("capability {cap:#x}"), expected, seen);
    }
    let mut info = [u64::MAX; 8];
    let args = [info.as_mut_ptr() as u64, 0, 0, 0];
    let mut ask = EnableCap { cap: KVM_CAP_ARM_PROTECTED_VM, flags: 1, args, pad: [0; 64] };
    let seen = outcome(ioctl(&vm, KVM_ENABLE_CAP, &mut ask));
    STEP.same("a protected VM's firmware", "EINVAL, true", format!("{seen}, {}", info == [u64::MAX; 8]));
    let mut ask = EnableCap { cap: KVM_CAP_ARM_PROTECTED_VM, flags: 0, args: [0x7fc0_0000, 0, 0, 0], pad: [0; 64] };
    STEP.same("where a protected VM's firmware starts", "EINVAL", outcome(ioctl(&vm, KVM_ENABLE_CAP, &mut ask)));
    for flags in [0, GUEST_MEMFD_FLAG_MMAP] {
        let made = make_gmem(&vm, PAGE, flags).map(|_| ()).map_err(errno_name);
        STEP.same(&format!("memory that starts private, flags {flags}"), "Err(\"EINVAL\")", format!("{made:?}"));
    }
    let shared = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;
    let gmem = make_gmem(&vm, 16 * PAGE, shared).map_err(errno_name)?;
    // Before it is bound it is nobody's in particular.
    STEP.same("a page becomes private", "0", converted(gmem.to_private(0, PAGE, 0)));
    let bound = set_slot(&vm, 0, RAM_BASE, 16 * PAGE, &gmem, 0);
    STEP.same("a slot of what is private", "Err(\"EINVAL\")", format!("{:?}", bound.map_err(errno_name)));
    STEP.same("a refused slot changes nothing", "0", converted(gmem.to_private(PAGE, PAGE, 0)));
    let bound = set_slot(&vm, 0, RAM_BASE, 8 * PAGE, &gmem, 8 * PAGE);
    STEP.same("a slot of what is not", "Ok(())", format!("{bound:?}"));
    for (to, expected) in [(CONVERT_TO_PRIVATE, "EINVAL"), (CONVERT_TO_SHARED, "0")] {
        let seen = outcome(ioctl(&gmem, FREEHOLD_CONVERT, &mut freehold_convert(to)));
        STEP.same(&format!("bound: convert to {to}"), expected, seen);
    }
    STEP.same("bound: what was private is given back", "0", converted(gmem.to_shared(0, 2 * PAGE)));
    let mut ask = MemoryAttributes { address: RAM_BASE, size: PAGE, attributes: 8, flags: 0 };
    STEP.same("bound: attributes", "EINVAL", outcome(ioctl(&vm, KVM_SET_MEMORY_ATTRIBUTES, &mut ask)));
    let mut ask =
        MemoryAttributes2 { offset: 8 * PAGE, size: PAGE, attributes: 8, flags: 0, error_offset: 0, reserved: [0; 11] };
    STEP.same("bound: attributes of the file", "EINVAL", outcome(ioctl(&gmem, KVM_SET_MEMORY_ATTRIBUTES2, &mut ask)));
    let mut ask = Populate { offset: 8 * PAGE, size: PAGE, source: 0x1000, error_offset: 0, reserved: [0; 4] };
    STEP.same("bound: populate", "EINVAL", outcome(ioctl(&gmem, FREEHOLD_POPULATE, &mut ask)));
    Ok(())
}

/// Deletes slot 0.
pub(crate) const NO_SLOT: MemoryRegion2 = MemoryRegion2 {
    slot: 0,
    flags: 4,
    guest_phys_addr: 0,
    memory_size: 0,
    userspace_addr: 0,
    guest_memfd_offset: 0,
    guest_memfd: 0,
    pad1: 0,
    pad2: [0; 14],
};

fn freehold_convert(to: u32) -> Convert {
    Convert { offset: 8 * PAGE, size: PAGE, to, ..CONVERT }
}

/// One life: what is written on either side is there on the other, holes are punched, the slot goes, the VM ends.
fn lives() -> Result<(), String> {
    let mut machine = Machine::new(plan())?;
    let boot = machine.boot()?;
    STEP.same("it boots", format!("{BOOT_LINE}\n"), &boot.console);
    STEP.same("it runs what was written", 1, boot.hash_ok);
    let wire = machine.vm.as_fd_clone()?;
    STEP.same("its controller is what it says", 0, machine.command(CMD_GIC, [0; 3])?[0]);
    STEP.same("its timer ends its waits", 0, machine.command(CMD_TICKS, [10, 62_500, TICK_WAIT])?[0]);
    std::thread::scope(|scope| {
        scope.spawn(|| spi(&wire, 1));
        let taken = machine.command_with(CMD_SPI, [0; 3], |register| {
            if register == REG_SCRATCH {
                spi(&wire, 0);
            }
        });
        STEP.same("it takes the host's interrupt", format!("Ok({SPI})"), format!("{:?}", taken.map(|r| r[0])));
    });
    for (case, command, arguments) in
        [("its FP survives exits", CMD_FP, [16, 0, 0]), ("its EL1 state survives exits", CMD_STATE, [16, 0, 0])]
    {
        STEP.same(case, 0, machine.command(command, arguments)?[0]);
    }
    for (case, call) in [("share", guest::MEM_SHARE), ("unshare", guest::MEM_UNSHARE)] {
        let arguments = [u64::from(call), SHARE_BASE, 1];
        let seen = machine.command(CMD_HVC, arguments)?[0].cast_signed();
        STEP.judged(&format!("it has nothing to {case}"), "refused", seen, seen < 0);
    }
    // It would keep the VM alive.
    drop(wire);
    both_ways(&mut machine)?;
    holes(&mut machine)?;
    ends(machine)
}

/// Contents are the same on either side, as they are written.
fn both_ways(machine: &mut Machine) -> Result<(), String> {
    let bytes = 32 * PAGE;
    machine.command(CMD_FILL, [RAM_BASE + FREE, bytes, 7])?;
    let wrong = (0..bytes).step_by(8).filter(|o| machine.ram.load(at(FREE + o)) != pattern(7, RAM_BASE + FREE + o));
    STEP.same("the host reads what the guest wrote", 0, wrong.count());
    for offset in (0..bytes).step_by(8) {
        machine.ram.store(at(FREE + offset), pattern(8, RAM_BASE + FREE + offset));
    }
    let [wrong, ..] = machine.command(CMD_CHECK, [RAM_BASE + FREE, bytes, 8])?;
    STEP.same("the guest reads what the host wrote", 0, wrong);
    // The program itself is the host's to read, and to write in.
    STEP.same("a system call reads a page in use", "4096", outcome(sys::read_own(machine.ram.at(at(FREE)), 4096)));
    let loan = counter(&open()?, hvc::COUNTER_FOREIGN_FRAMES, 0).map_err(errno_name)?;
    STEP.judged("nothing of it left the host", "pool frames only", loan, loan < 512);
    Ok(())
}

/// A hole is punched in what the guest has in use: both sides find fresh pages.
fn holes(machine: &mut Machine) -> Result<(), String> {
    let (keep, punch) = (libc::FALLOC_FL_KEEP_SIZE, libc::FALLOC_FL_PUNCH_HOLE);
    let (first, bytes) = (FREE + 4 * PAGE, 8 * PAGE);
    let done = sys::fallocate(&*machine.gmem, keep | punch, first.cast_signed(), bytes.cast_signed());
    STEP.same("a hole in what is lent", "0", outcome(done));
    let [left, ..] = machine.command(CMD_ZERO, [RAM_BASE + first, bytes, 0])?;
    STEP.same("the guest finds zeros there", 0, left);
    STEP.same("the host too", 0, machine.ram.load(at(first)));
    machine.ram.store(at(first), 0x1234_5678);
    let [seen, ..] = machine.command(CMD_LOAD, [RAM_BASE + first, 0, 0])?;
    STEP.same("and both the same", "0x12345678", format!("{seen:#x}"));
    let [wrong, ..] = machine.command(CMD_CHECK, [RAM_BASE + first + bytes, 8 * PAGE, 8])?;
    STEP.same("what is beside it stays", 0, wrong);
    let done = sys::fallocate(&*machine.gmem, keep | punch, (FREE + 100 * PAGE).cast_signed(), PAGE.cast_signed());
    STEP.same("a hole where nothing is", "0", outcome(done));
    let pending = machine.gmem.pending().map_err(errno_name)?;
    STEP.same("as many ends as beginnings", pending.begun, pending.ended);
    Ok(())
}

/// The slot goes under the guest, then the VM; the contents stay the file's.
fn ends(mut machine: Machine) -> Result<(), String> {
    machine.ram.store(at(FREE + 64 * PAGE), 0xfeed_f00d);
    let gone = set_slot(&machine.vm, 0, RAM_BASE, 0, &machine.gmem, 0);
    STEP.same("a slot in use is deleted", "Ok(())", format!("{gone:?}"));
    let event = format!("{:?}", machine.last_command(CMD_NOP, [0; 3]));
    STEP.judged("its guest finds nothing there", "a memory fault", &event, event.contains("MemoryFault"));
    let seen = probe(machine.ram.at(at(FREE)), Access::Load);
    STEP.same("the host has the page", "done", seen);
    let (gmem, ram) = (machine.gmem.clone(), machine.ram.clone());
    let head = ram.copy_out(0, 64);
    drop(machine);
    STEP.same("the VM ends: contents stay", "0xfeedf00d", format!("{:#x}", ram.load(at(FREE + 64 * PAGE))));
    STEP.same("of the program too", true, head == ram.copy_out(0, 64));
    // The file serves another VM, with what is in it.
    let mut second = Machine::over(plan(), Some(gmem))?;
    second.boot()?;
    let [seen, ..] = second.command(CMD_LOAD, [RAM_BASE + FREE + 64 * PAGE, 0, 0])?;
    STEP.same("another VM finds it", "0xfeedf00d", format!("{seen:#x}"));
    let off = second.last_command(CMD_OFF, [0; 3]);
    STEP.same("it turns itself off", format!("{:?}", Event::System(1)), format!("{off:?}"));
    drop(second);
    STEP.same("and it is still there", "0xfeedf00d", format!("{:#x}", ram.load(at(FREE + 64 * PAGE))));
    Ok(())
}

/// Holes are punched while the guest touches the same pages: each page is whole, and all loans end.
fn races() -> Result<(), String> {
    let mut machine = Machine::new(plan())?;
    machine.boot()?;
    let bytes = 64 * PAGE;
    let (over, punched) = (AtomicBool::new(false), AtomicUsize::new(0));
    let gmem = machine.gmem.clone();
    let rounds = std::thread::scope(|scope| {
        scope.spawn(|| {
            let how = libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE;
            for round in 0u64.. {
                if over.load(Ordering::SeqCst) {
                    break;
                }
                let first = FREE + round * 7 % 57 * PAGE;
                let done = sys::fallocate(&*gmem, how, first.cast_signed(), (8 * PAGE).cast_signed());
                punched.fetch_add(usize::from(done == Ok(0)), Ordering::SeqCst);
            }
        });
        let mut rounds = 0;
        let result = loop {
            if rounds >= 40 && punched.load(Ordering::SeqCst) >= 40 {
                break Ok(rounds);
            }
            match machine.command(CMD_FILL, [RAM_BASE + FREE, bytes, rounds]) {
                Ok(_) => rounds += 1,
                Err(error) => break Err(error),
            }
        };
        over.store(true, Ordering::SeqCst);
        result
    });
    STEP.judged("the guest writes while holes are punched", "40 rounds or more", format!("{rounds:?}"), rounds.is_ok());
    machine.command(CMD_FILL, [RAM_BASE + FREE, bytes, 99])?;
    let wrong = (0..bytes).step_by(8).filter(|o| machine.ram.load(at(FREE + o)) != pattern(99, RAM_BASE + FREE + o));
    STEP.same("what it wrote last is what the host reads", 0, wrong.count());
    let pending = machine.gmem.pending().map_err(errno_name)?;
    STEP.same("as many ends as beginnings, after it", pending.begun, pending.ended);
    // The slot goes while its pages are touched; the file's other names go with it.
    let started = AtomicBool::new(false);
    let wire = machine.vm.as_fd_clone()?;
    let event = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !started.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            let mut gone = NO_SLOT;
            STEP.same(
                "the slot goes under its guest",
                "0",
                outcome(ioctl(&wire, KVM_SET_USER_MEMORY_REGION2, &mut gone)),
            );
        });
        loop {
            // What is punched out is touched anew in each round.
            let how = libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE;
            let _ = sys::fallocate(&*machine.gmem, how, FREE.cast_signed(), bytes.cast_signed());
            if let Err(event) = machine.command(CMD_FILL, [RAM_BASE + FREE, bytes, 5]) {
                break event;
            }
            started.store(true, Ordering::SeqCst);
        }
    });
    STEP.judged("and the guest finds a memory fault", "MemoryFault", &event, event.contains("MemoryFault"));
    Ok(())
}

/// Its guest asks for a reset, and the VMM makes one of it: memory as it was at first, the vCPU initialised anew.
fn set_back() -> Result<(), String> {
    let mut machine = Machine::new(plan())?;
    machine.boot()?;
    STEP.same("set back: its controller and its timer are in use", 0, machine.command(CMD_GIC, [0; 3])?[0]);
    machine.command(CMD_TICKS, [3, 62_500, TICK_WAIT])?;
    machine.command(CMD_FULL, [0; 3])?;
    let event = machine.last_command(CMD_RESET, [0; 3]);
    let reset = u32::try_from(KVM_SYSTEM_EVENT_RESET).map_err(|e| e.to_string())?;
    STEP.same("set back: its guest asks for a reset", format!("{:?}", Event::System(reset)), format!("{event:?}"));
    machine.ram.copy_in(0, &vec![0; at(BYTES)]);
    machine.ram.copy_in(0, &machine.program);
    let done = init_vcpu(&machine.vm, &machine.vcpu, 0);
    STEP.same("set back: a vCPU that ran is initialised anew", "Ok(())", format!("{done:?}"));
    for (id, value) in [(KVM_REG_X0, BOOT_NO_SHARE), (KVM_REG_X0 + 2, machine.x1), (KVM_REG_PC, RAM_BASE)] {
        machine.vcpu.set_one_reg(id, &value.to_le_bytes()).map_err(|e| errno_name(e.errno()))?;
    }
    let boot = machine.boot()?;
    STEP.same("set back: its guest comes up again", format!("{BOOT_LINE}\n{BOOT_LINE}\n"), &boot.console);
    STEP.same("set back: it finds no register set", [1, BOOT_ALL].map(|n| n.to_string()).join(" "), {
        format!("{} {}", boot.hash_ok, boot.facts)
    });
    STEP.same("set back: it serves commands", 0, machine.command(CMD_STATE, [4, 0, 0])?[0]);
    drop(machine);
    let (machine, _) = Machine::booted(Plan { ordinary: false, private: RAM_MIN, ..plan() })?;
    let done = init_vcpu(&machine.vm, &machine.vcpu, 0);
    STEP.same("set back: not one of a protected VM", "Err(\"ARM_VCPU_INIT: EPERM\")", format!("{done:?}"));
    Ok(())
}
