// SPDX-License-Identifier: MIT OR Apache-2.0
//! An ordinary VM on this process' own memory (`KVM_SET_USER_MEMORY_REGION`): the guest finds what the process has there
//! at each moment, whatever the process does with its mappings, and never what it has no more.

pub(crate) mod places;
pub(crate) mod read_only;

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use freehold_uapi::ioctl::*;

use crate::beside::executes_until;
use crate::hostile::Hostile;
use crate::machine::{Event, Machine, Plan, is_the_peer, open, set_plain};
use crate::ordinary::{BYTES, FREE, NO_SLOT, PAGE, at, plan};
use crate::proto::*;
use crate::raw::{resting, settle};
use crate::report::Step;
use crate::sys::{self, Mapping, errno_name, ioctl, outcome};
use crate::vgic::{interrupt, let_signals_interrupt, myself};

const STEP: Step = Step("plain");

/// Runs the cases.
pub(crate) fn all() -> Result<(), String> {
    let_signals_interrupt();
    let hostile = Hostile::open()?;
    let before = resting(&hostile);
    slots()?;
    nodes()?;
    let fail = |e| format!("memory: {}", errno_name(e));
    for shared in [false, true] {
        let how = if shared { "shared" } else { "private" };
        lives(&format!("anonymous, {how}"), Mapping::anonymous(at(BYTES), shared).map_err(fail)?, None)?;
        let (ram, file) = Mapping::memfd(at(BYTES), shared).map_err(fail)?;
        lives(&format!("memfd, {how}"), ram, shared.then_some(file))?;
    }
    huge()?;
    mappings()?;
    remapped()?;
    copies()?;
    moves()?;
    gone()?;
    places::all()?;
    places::here()?;
    read_only::all()?;
    races()?;
    settle(STEP, "all is as before", &hostile, &before);
    Ok(())
}

/// A VMM that can not ask gets a protected VM of the node for it, which has no memory that is read only.
fn nodes() -> Result<(), String> {
    let ram = Mapping::anonymous(at(BYTES), false).map_err(errno_name)?;
    for (node, expected) in [(c"/dev/kvm", "0"), (c"/dev/kvm-protected", "EPERM")] {
        let kvm = kvm_ioctls::Kvm::new_with_path(node).map_err(|e| errno_name(e.errno()))?;
        let vm = kvm.create_vm_with_type(40).map_err(|e| errno_name(e.errno()))?;
        // Only of a protected VM this is a thing that it may not have.
        let (memory_size, userspace_addr) = (BYTES, ram.at(0).addr() as u64);
        let mut region = MemoryRegion { slot: 0, flags: 2, guest_phys_addr: RAM_BASE, memory_size, userspace_addr };
        let seen = outcome(ioctl(&vm, KVM_SET_USER_MEMORY_REGION, &mut region));
        STEP.same(&format!("{}: read-only memory for who asked for nothing", node.to_string_lossy()), expected, seen);
    }
    Ok(())
}

/// Slots come, move and go as with KVM.
pub(crate) fn slots() -> Result<(), String> {
    let kvm = open()?;
    let vm = kvm.create_vm_with_type(40).map_err(|e| errno_name(e.errno()))?;
    let ram = Mapping::anonymous(at(BYTES), false).map_err(errno_name)?;
    let good = MemoryRegion {
        slot: 1,
        flags: 0,
        guest_phys_addr: RAM_BASE,
        memory_size: 16 * PAGE,
        userspace_addr: ram.at(0).addr() as u64,
    };
    let ask = |case: &str, expected: &str, mut region: MemoryRegion| {
        let seen = outcome(ioctl(&vm, KVM_SET_USER_MEMORY_REGION, &mut region));
        STEP.same(&format!("slot: {case}"), expected, seen);
    };
    let here = good.userspace_addr;
    ask("read only", "0", MemoryRegion { flags: 2, ..good });
    ask("read only no more", "EINVAL", good);
    ask("dirty log", "EINVAL", MemoryRegion { flags: 1, ..good });
    ask("read only is deleted", "0", MemoryRegion { memory_size: 0, ..good });
    ask("of guest_memfd", "EINVAL", MemoryRegion { flags: 4, ..good });
    ask("unaligned in the process", "EINVAL", MemoryRegion { userspace_addr: here + 8, ..good });
    ask("unaligned in the guest", "EINVAL", MemoryRegion { guest_phys_addr: RAM_BASE + 8, ..good });
    ask("of the kernel", "EINVAL", MemoryRegion { userspace_addr: 0xffff_0000_0000_0000, ..good });
    ask("that wraps", "EINVAL", MemoryRegion { userspace_addr: 0u64.wrapping_sub(PAGE), ..good });
    ask("with a tag", "EINVAL", MemoryRegion { userspace_addr: here | 1 << 56, ..good });
    ask("beyond the address size", "EFAULT", MemoryRegion { guest_phys_addr: 1 << 40, ..good });
    ask("number", "EINVAL", MemoryRegion { slot: 32767, ..good });
    ask("delete what is not there", "EINVAL", MemoryRegion { memory_size: 0, ..good });
    ask("good", "0", good);
    ask("the same again", "0", good);
    ask("another size", "EINVAL", MemoryRegion { memory_size: 8 * PAGE, ..good });
    ask("other memory", "EINVAL", MemoryRegion { userspace_addr: here + PAGE, ..good });
    ask("overlap", "EEXIST", MemoryRegion { slot: 2, guest_phys_addr: RAM_BASE + 15 * PAGE, ..good });
    ask("the same memory twice", "0", MemoryRegion { slot: 2, guest_phys_addr: RAM_BASE + 16 * PAGE, ..good });
    ask("moves into another", "EEXIST", MemoryRegion { guest_phys_addr: RAM_BASE + PAGE, ..good });
    ask("moves", "0", MemoryRegion { guest_phys_addr: RAM_BASE - 8 * PAGE, ..good });
    ask("delete", "0", MemoryRegion { memory_size: 0, ..good });
    ask("delete again", "EINVAL", MemoryRegion { memory_size: 0, ..good });
    ask("good again", "0", MemoryRegion { guest_phys_addr: RAM_BASE, ..good });
    STEP.same("slot: said by the larger ioctl", "0", by_the_larger(&vm, &good));
    Ok(())
}

/// Sets slot 9 to what `like` has, somewhere else, by `KVM_SET_USER_MEMORY_REGION2`, and takes it back.
pub(crate) fn by_the_larger(vm: &impl AsRawFd, like: &MemoryRegion) -> String {
    let mut ask = MemoryRegion2 {
        slot: 9,
        flags: 0,
        guest_phys_addr: like.guest_phys_addr + 256 * PAGE,
        memory_size: like.memory_size,
        userspace_addr: like.userspace_addr,
        ..NO_SLOT
    };
    let set = outcome(ioctl(vm, KVM_SET_USER_MEMORY_REGION2, &mut ask));
    ask.memory_size = 0;
    let gone = outcome(ioctl(vm, KVM_SET_USER_MEMORY_REGION2, &mut ask));
    if gone == "0" { set } else { format!("{set}, and goes: {gone}") }
}

/// One life on one kind of memory.
fn lives(kind: &str, ram: Mapping, file: Option<OwnedFd>) -> Result<(), String> {
    let ram = Arc::new(ram);
    let mut machine = Machine::plain(plan(), ram.clone())?;
    let boot = machine.boot()?;
    STEP.same(&format!("{kind}: it boots"), format!("{BOOT_LINE}\n"), &boot.console);
    STEP.same(&format!("{kind}: it runs what was written"), 1, boot.hash_ok);
    let bytes = 64 * PAGE;
    machine.command(CMD_FILL, [RAM_BASE + FREE, bytes, 7])?;
    STEP.same(&format!("{kind}: the host reads what the guest wrote"), 0, differ(&ram, FREE, bytes, 7));
    fill(&ram, FREE, bytes, 8);
    let [wrong, ..] = machine.command(CMD_CHECK, [RAM_BASE + FREE, bytes, 8])?;
    STEP.same(&format!("{kind}: the guest reads what the host wrote"), 0, wrong);
    let seen = outcome(sys::read_own(ram.at(at(FREE)), 4096));
    STEP.same(&format!("{kind}: a system call reads a page in use"), "4096", seen);
    // The kernel moves pages about; nobody but itself can tell.
    std::fs::write("/proc/sys/vm/compact_memory", "1").map_err(|e| format!("compact_memory: {e}"))?;
    let [wrong, ..] = machine.command(CMD_CHECK, [RAM_BASE + FREE, bytes, 8])?;
    STEP.same(&format!("{kind}: nor after compaction"), 0, wrong);
    if let Some(file) = &file {
        let how = libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE;
        let first = (FREE + 8 * PAGE).cast_signed();
        STEP.same(&format!("{kind}: a hole"), "0", outcome(sys::fallocate(file, how, first, 4096 * 4)));
        let [left, ..] = machine.command(CMD_ZERO, [RAM_BASE + FREE + 8 * PAGE, 4 * PAGE, 0])?;
        STEP.same(&format!("{kind}: the guest finds zeros there"), 0, left);
    }
    machine.command(CMD_FILL, [RAM_BASE + FREE, bytes, 9])?;
    let off = machine.last_command(CMD_OFF, [0; 3]);
    STEP.same(&format!("{kind}: it turns itself off"), format!("{:?}", Event::System(1)), format!("{off:?}"));
    drop(machine);
    STEP.same(&format!("{kind}: its contents stay"), 0, differ(&ram, FREE, bytes, 9));
    Ok(())
}

fn fill(ram: &Mapping, from: u64, bytes: u64, seed: u64) {
    for offset in (from..from + bytes).step_by(8) {
        ram.store(at(offset), pattern(seed, RAM_BASE + offset));
    }
}

fn differ(ram: &Mapping, from: u64, bytes: u64, seed: u64) -> usize {
    (from..from + bytes).step_by(8).filter(|&o| ram.load(at(o)) != pattern(seed, RAM_BASE + o)).count()
}

fn booted() -> Result<(Machine, Arc<Mapping>), String> {
    let ram = Arc::new(Mapping::anonymous(at(BYTES), false).map_err(errno_name)?);
    let mut machine = Machine::plain(plan(), ram.clone())?;
    machine.boot()?;
    Ok((machine, ram))
}

/// The guest makes an access that the process has no memory for: the run says so, and is made again when it has.
pub(crate) fn mappings() -> Result<(), String> {
    let (mut machine, ram) = booted()?;
    let (first, bytes) = (FREE + 4 * PAGE, 8 * PAGE);
    machine.command(CMD_FILL, [RAM_BASE + FREE, 16 * PAGE, 3])?;
    STEP.same("it is discarded", "0", outcome(ram.advise(at(first), at(bytes), libc::MADV_DONTNEED)));
    let [left, ..] = machine.command(CMD_ZERO, [RAM_BASE + first, bytes, 0])?;
    STEP.same("discarded: the guest finds zeros", 0, left);
    let [wrong, ..] = machine.command(CMD_CHECK, [RAM_BASE + FREE, 4 * PAGE, 3])?;
    STEP.same("discarded: what is beside it stays", 0, wrong);
    machine.command(CMD_FILL, [RAM_BASE + first, bytes, 4])?;
    STEP.same("discarded: both have the same", 0, differ(&ram, first, bytes, 4));

    STEP.same("it is unmapped", "0", outcome(ram.unmap(at(first), at(bytes))));
    machine.answer(CMD_LOAD, [RAM_BASE + first, 0, 0]);
    let event = until_it_stops(&mut machine);
    STEP.same("unmapped: the guest's access is a memory fault", memory_fault(first), event);
    STEP.same("it is mapped anew", "Ok(())", format!("{:?}", ram.replace(at(first), at(bytes))));
    ram.store(at(first), 0x1234_5678);
    let [seen, ..] = machine.rest_of_command(|_| ())?;
    STEP.same("mapped anew: the guest goes on, and finds what is there", "0x12345678", format!("{seen:#x}"));

    STEP.same("it may be read only", "0", outcome(ram.protect(at(first), at(bytes), libc::PROT_READ)));
    machine.answer(CMD_STORE, [RAM_BASE + first, 0x55, 0]);
    let event = until_it_stops(&mut machine);
    STEP.same("read only: the guest's store is a memory fault", memory_fault(first), event);
    STEP.same("read only: nothing is stored", "0x12345678", format!("{:#x}", ram.load(at(first))));
    let both = libc::PROT_READ | libc::PROT_WRITE;
    STEP.same("it may be written again", "0", outcome(ram.protect(at(first), at(bytes), both)));
    machine.rest_of_command(|_| ())?;
    STEP.same("written again: it is stored", "0x55", format!("{:#x}", ram.load(at(first))));
    Ok(())
}

/// How a run ends whose guest reaches for the page at `offset` of its RAM, where nothing is.
fn memory_fault(offset: u64) -> String {
    let told = format!("MemoryFault {{ flags: 0, gpa: {}, size: {PAGE} }}", RAM_BASE.wrapping_add(offset));
    format!("{:?}", Event::Broken(told))
}

fn until_it_stops(machine: &mut Machine) -> String {
    loop {
        match machine.step() {
            Event::Interrupted | Event::Stored(..) => {}
            other @ (Event::Asks | Event::System(_) | Event::Broken(_)) => return format!("{other:?}"),
        }
    }
}

/// Pages of the process are moved away from under the guest, and others come in their place.
pub(crate) fn remapped() -> Result<(), String> {
    let (mut machine, ram) = booted()?;
    let (first, bytes) = (FREE + 4 * PAGE, 8 * PAGE);
    let room = Mapping::anonymous(at(bytes), false).map_err(errno_name)?;
    machine.command(CMD_FILL, [RAM_BASE + FREE, 16 * PAGE, 3])?;
    STEP.same("moved away", "0", outcome(sys::remap(ram.at(at(first)), at(bytes), room.at(0))));
    let moved = (0..bytes).step_by(8).filter(|&o| room.load(at(o)) != pattern(3, RAM_BASE + first + o)).count();
    STEP.same("moved away: what the guest wrote went along", 0, moved);
    machine.answer(CMD_STORE, [RAM_BASE + first, 0x77, 0]);
    let event = until_it_stops(&mut machine);
    STEP.same("moved away: the guest's store is a memory fault", memory_fault(first), event);
    STEP.same("moved away: it is mapped anew", "Ok(())", format!("{:?}", ram.replace(at(first), at(bytes))));
    machine.rest_of_command(|_| ())?;
    let stored = [ram.load(at(first)), room.load(0)];
    let expected = [0x77, pattern(3, RAM_BASE + first)];
    STEP.same("moved away: the guest stores where it is now", format!("{expected:x?}"), format!("{stored:x?}"));

    let other = Mapping::anonymous(at(bytes), false).map_err(errno_name)?;
    for offset in (0..bytes).step_by(8) {
        other.store(at(offset), pattern(4, RAM_BASE + first + offset));
    }
    STEP.same("moved here", "0", outcome(sys::remap(other.at(0), at(bytes), ram.at(at(first)))));
    let [wrong, ..] = machine.command(CMD_CHECK, [RAM_BASE + first, bytes, 4])?;
    STEP.same("moved here: the guest finds it", 0, wrong);
    let [wrong, ..] = machine.command(CMD_CHECK, [RAM_BASE + FREE, 4 * PAGE, 3])?;
    STEP.same("moved here: what is beside it stays", 0, wrong);
    machine.command(CMD_FILL, [RAM_BASE + first, bytes, 5])?;
    STEP.same("moved here: both have the same", 0, differ(&ram, first, bytes, 5));
    // Nothing is there any more to be unmapped.
    std::mem::forget(other);
    Ok(())
}

/// Huge pages of hugetlbfs, as a VMM asks for them when it is told to.
fn huge() -> Result<(), String> {
    let pages = |count: &str| std::fs::write("/proc/sys/vm/nr_hugepages", count).map_err(|e| e.to_string());
    pages("4")?;
    let ram = Mapping::huge(at(BYTES)).map_err(|e| format!("huge pages: {}", errno_name(e)));
    let lived = ram.and_then(|ram| lives("huge pages of hugetlbfs", ram, None));
    pages("0")?;
    lived
}

/// A child of the process has a copy: what the guest writes after the fork is the process' alone.
pub(crate) fn copies() -> Result<(), String> {
    let (mut machine, ram) = booted()?;
    let bytes = 32 * PAGE;
    machine.command(CMD_FILL, [RAM_BASE + FREE, bytes, 5])?;
    let (ready, go) = sys::pipe();
    // SAFETY: the child only reads memory and a pipe, and leaves without running anything else.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let mut byte = [0u8; 1];
        let told = sys::read_to(&ready, byte.as_mut_ptr(), 1);
        let status = if told == Ok(1) { i32::from(differ(&ram, FREE, bytes, 5) != 0) } else { 2 };
        // SAFETY: ends this process at once.
        unsafe { libc::_exit(status) };
    }
    machine.command(CMD_FILL, [RAM_BASE + FREE, bytes, 6])?;
    STEP.same("fork: the guest's stores are the parent's", 0, differ(&ram, FREE, bytes, 6));
    STEP.same("fork: the child is asked", "1", outcome(sys::write_from(&go, b"x".as_ptr(), 1)));
    let mut status = -1;
    // SAFETY: the status is alive during the call.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    STEP.same("fork: and the child has what was there before", 0, status);
    fill(&ram, FREE, bytes, 11);
    let [wrong, ..] = machine.command(CMD_CHECK, [RAM_BASE + FREE, bytes, 11])?;
    STEP.same("fork: afterwards both sides are one again", 0, wrong);
    Ok(())
}

/// A machine whose program is in slot 0 and has no more than that slot; slot 1 is all the rest of its RAM.
fn halved() -> Result<(Machine, Arc<Mapping>), String> {
    let ram = Arc::new(Mapping::anonymous(at(BYTES), false).map_err(errno_name)?);
    let mut machine = Machine::plain(Plan { bytes: FREE, ..plan() }, ram.clone())?;
    set_plain(&machine.vm, 1, RAM_BASE + FREE, BYTES - FREE, ram.at(at(FREE))).map_err(errno_name)?;
    machine.boot()?;
    Ok((machine, ram))
}

/// A running guest's slot of data goes, comes and moves; its program stays.
pub(crate) fn moves() -> Result<(), String> {
    let (mut machine, ram) = halved()?;
    let data = RAM_BASE + FREE;
    let other = Mapping::anonymous(at(BYTES), false).map_err(errno_name)?;
    machine.command(CMD_FILL, [data, 16 * PAGE, 3])?;
    STEP.same("data: its slot goes", "Ok(())", format!("{:?}", set_plain(&machine.vm, 1, data, 0, ram.at(0))));
    let [seen, ..] = machine.command(CMD_LOAD, [data + PAGE, 0, 0])?;
    STEP.same("data: where it was is nothing: its VMM is asked", u64::MAX, seen);
    let mut told = false;
    machine.command_with(CMD_STORE, [data, 0x66, 0], |at| told |= at == data.wrapping_sub(DEVICE))?;
    STEP.same("data: and is told of a store", true, told);
    STEP.same("data: what it wrote stays", 0, differ(&ram, FREE, 16 * PAGE, 3));
    machine.answer(CMD_LOAD_PAIR, [data, 0, 0]);
    let event = until_it_stops(&mut machine);
    STEP.same("data: for a pair of registers its VMM can not be asked", memory_fault(FREE), event);
    let set = set_plain(&machine.vm, 2, data, BYTES - FREE, other.at(at(FREE)));
    STEP.same("data: another slot comes", "Ok(())", format!("{set:?}"));
    machine.rest_of_command(|_| ())?;
    let [left, ..] = machine.command(CMD_ZERO, [data, 16 * PAGE, 0])?;
    STEP.same("data: it goes on in other memory", 0, left);
    // It becomes smaller, and then stands one page further.
    let gone = set_plain(&machine.vm, 2, data, 0, other.at(0));
    let back = set_plain(&machine.vm, 2, data, 16 * PAGE, other.at(at(FREE)));
    STEP.same("data: a smaller slot", "(Ok(()), Ok(()))", format!("{:?}", (gone, back)));
    machine.command(CMD_FILL, [data, PAGE, 4])?;
    let moved = set_plain(&machine.vm, 2, data + PAGE, 16 * PAGE, other.at(at(FREE)));
    STEP.same("data: it moves", "Ok(())", format!("{moved:?}"));
    let [seen, ..] = machine.command(CMD_LOAD, [data + PAGE, 0, 0])?;
    STEP.same("data: its contents moved with it", format!("{:#x}", pattern(4, data)), format!("{seen:#x}"));
    let [seen, ..] = machine.command(CMD_LOAD, [data, 0, 0])?;
    STEP.same("data: and where it was is nothing", u64::MAX, seen);
    let first = set_plain(&machine.vm, 3, data, PAGE, ram.at(at(FREE)));
    STEP.same("data: a slot comes before it", "Ok(())", format!("{first:?}"));
    let [seen, ..] = machine.command(CMD_LOAD, [data, 0, 0])?;
    STEP.same("data: with what is there", format!("{:#x}", pattern(3, data)), format!("{seen:#x}"));
    Ok(())
}

/// The slot of a running guest's program goes: there is no instruction that its VMM could be asked about.
pub(crate) fn gone() -> Result<(), String> {
    let (mut machine, ram) = booted()?;
    machine.command(CMD_FILL, [RAM_BASE + FREE, 16 * PAGE, 3])?;
    STEP.same("program: its slot goes", "Ok(())", format!("{:?}", set_plain(&machine.vm, 0, RAM_BASE, 0, ram.at(0))));
    machine.answer(CMD_NOP, [0; 3]);
    let (thread, out) = (myself(), AtomicBool::new(false));
    let event = std::thread::scope(|scope| {
        // Under KVM the guest takes the fetch's abort by a fetch from there, and so on: a signal ends that.
        scope.spawn(|| {
            let entered = executes_until(thread, &out);
            while entered && !out.load(Ordering::SeqCst) {
                interrupt(thread);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let event = if is_the_peer() { format!("{:?}", machine.step()) } else { until_it_stops(&mut machine) };
        out.store(true, Ordering::SeqCst);
        event
    });
    // Of some page of its program.
    STEP.judged("program: it finds nothing", "MemoryFault", &event, event.contains("MemoryFault"));
    STEP.same("program: what it wrote stays", 0, differ(&ram, FREE, 16 * PAGE, 3));
    if is_the_peer() {
        return Ok(());
    }
    let other = Mapping::anonymous(at(BYTES), false).map_err(errno_name)?;
    STEP.same(
        "program: a slot comes beside its RAM",
        "Ok(())",
        format!("{:?}", set_plain(&machine.vm, 1, RAM_BASE + BYTES, PAGE, other.at(0))),
    );
    other.copy_in(0, &ram.copy_out(0, at(FREE)));
    for (slot, from, bytes) in [(2, 0, FREE), (3, FREE, BYTES - FREE)] {
        let set = set_plain(&machine.vm, slot, RAM_BASE + from, bytes, other.at(at(from)));
        STEP.same(&format!("program: slot {slot} comes"), "Ok(())", format!("{set:?}"));
    }
    machine.rest_of_command(|_| ())?;
    let [left, ..] = machine.command(CMD_ZERO, [RAM_BASE + FREE, 16 * PAGE, 0])?;
    STEP.same("program: it goes on in other memory", 0, left);
    Ok(())
}

/// Pages are discarded while the guest writes them: in the end both sides have the same.
fn races() -> Result<(), String> {
    let (mut machine, ram) = booted()?;
    let bytes = 64 * PAGE;
    let (over, discards) = (AtomicBool::new(false), AtomicUsize::new(0));
    let rounds = std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0u64.. {
                if over.load(Ordering::SeqCst) {
                    break;
                }
                let first = FREE + round * 7 % 57 * PAGE;
                let done = ram.advise(at(first), at(8 * PAGE), libc::MADV_DONTNEED);
                discards.fetch_add(usize::from(done.is_ok()), Ordering::SeqCst);
            }
        });
        let mut rounds = 0;
        let result = loop {
            if rounds >= 40 && discards.load(Ordering::SeqCst) >= 40 {
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
    STEP.judged(
        "the guest writes while pages are discarded",
        "40 rounds or more",
        format!("{rounds:?}"),
        rounds.is_ok(),
    );
    machine.command(CMD_FILL, [RAM_BASE + FREE, bytes, 99])?;
    STEP.same("what it wrote last is what the host reads", 0, differ(&ram, FREE, bytes, 99));
    Ok(())
}
