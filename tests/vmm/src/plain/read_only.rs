// SPDX-License-Identifier: MIT OR Apache-2.0
//! Slots that are read only (`KVM_MEM_READONLY`): the guest reads what the process has there at each moment, also where
//! the process itself may only read it, and what it stores is for its VMM.
//!
//! crosvm has the configuration pages of its PCI devices so: shared memory that it writes by one mapping and gives its
//! guest by another one, which may only be read.

use std::os::fd::AsRawFd as _;
use std::sync::Arc;

use freehold_uapi::ioctl::*;

use super::{STEP, until_it_stops};
use crate::machine::{Event, Machine};
use crate::ordinary::{BYTES, FREE, PAGE, at, plan};
use crate::proto::*;
use crate::sys::{Mapping, errno_name, ioctl, outcome};

/// Where the slot is.
const HERE: u64 = RAM_BASE + BYTES;
const PAGES: u64 = 16;
/// Flag of the slot.
const READONLY: u32 = KVM_MEM_READONLY as u32;

/// Runs the cases.
pub(crate) fn all() -> Result<(), String> {
    writable()?;
    shared()?;
    file()?;
    zeros()?;
    unreadable()
}

fn slot(rom: &Mapping) -> MemoryRegion {
    let userspace_addr = rom.at(0).addr() as u64;
    MemoryRegion { slot: 1, flags: READONLY, guest_phys_addr: HERE, memory_size: PAGES * PAGE, userspace_addr }
}

fn set(machine: &Machine, mut slot: MemoryRegion) -> String {
    outcome(ioctl(&machine.vm, KVM_SET_USER_MEMORY_REGION, &mut slot))
}

/// A machine with this slot, which has booted.
fn with(kind: &str, rom: &Mapping) -> Result<Machine, String> {
    let ram = Arc::new(Mapping::anonymous(at(BYTES), false).map_err(errno_name)?);
    let mut machine = Machine::plain(plan(), ram)?;
    STEP.same(&format!("{kind}: it comes"), "0", set(&machine, slot(rom)));
    machine.boot()?;
    Ok(machine)
}

/// What the guest finds at `offset`: the word, and whether it took an exception.
fn finds(machine: &mut Machine, kind: &str, what: &str, offset: u64, expected: u64) -> Result<(), String> {
    let [seen, esr, _] = machine.command(CMD_LOAD, [HERE + offset, 0, 0])?;
    STEP.same(&format!("{kind}: the guest reads {what}"), format!("{expected:#x}, 0"), format!("{seen:#x}, {esr}"));
    Ok(())
}

/// A store of the guest's there is its VMM's.
fn is_told(machine: &mut Machine, kind: &str, offset: u64) -> Result<(), String> {
    machine.answer(CMD_STORE, [HERE + offset, 0x55, 0]);
    let told = loop {
        match machine.step() {
            Event::Interrupted => {}
            other @ (Event::Asks | Event::Stored(..) | Event::System(_) | Event::Broken(_)) => {
                break format!("{other:x?}");
            }
        }
    };
    let expected = format!("{:x?}", Event::Stored((HERE + offset).wrapping_sub(DEVICE), 0x55));
    STEP.same(&format!("{kind}: a store at {offset} is told"), expected, told);
    let [_, esr, _] = machine.rest_of_command(|_| ())?;
    STEP.same(&format!("{kind}: the guest goes on from {offset}"), 0, esr);
    Ok(())
}

/// Memory that the process may write too. Where no slot is, loads are its VMM's as well.
fn writable() -> Result<(), String> {
    let kind = "read-only slot";
    let rom = Mapping::anonymous(at(PAGES * PAGE), false).map_err(errno_name)?;
    rom.store(8, 0x1234_5678);
    let mut machine = with(kind, &rom)?;
    for value in [0x1234_5678, 0x8765_4321] {
        rom.store(8, value);
        finds(&mut machine, kind, "what is there", 8, value)?;
    }
    // The first page was read before, the other was not.
    for offset in [8, 5 * PAGE + 16] {
        is_told(&mut machine, kind, offset)?;
    }
    let left = [rom.load(8), rom.load(at(5 * PAGE + 16))];
    STEP.same("read-only slot: nothing is stored", format!("{:?}", [0x8765_4321u64, 0]), format!("{left:?}"));
    let gone = MemoryRegion { memory_size: 0, ..slot(&rom) };
    STEP.same("read-only slot: it goes", "0", set(&machine, gone));
    let [seen, esr, _] = machine.command(CMD_LOAD, [HERE + 8, 0, 0])?;
    STEP.same("no slot: its VMM answers the load", format!("{:#x}, 0", u64::MAX), format!("{seen:#x}, {esr}"));
    let [wrong, ..] = machine.command(CMD_ZERO, [RAM_BASE + FREE, PAGE, 0])?;
    STEP.same("no slot: its RAM is as it was", 0, wrong);
    Ok(())
}

/// Shared memory that the process writes by another mapping: what crosvm has.
fn shared() -> Result<(), String> {
    let kind = "read-only slot, shared and for reading";
    let (pen, file) = Mapping::memfd(at(PAGES * PAGE), true).map_err(errno_name)?;
    let rom = Mapping::new(&file, 0, at(PAGES * PAGE), libc::PROT_READ).map_err(errno_name)?;
    pen.store(8, 0x1234_5678);
    let mut machine = with(kind, &rom)?;
    finds(&mut machine, kind, "what is there", 8, 0x1234_5678)?;
    finds(&mut machine, kind, "zero where nothing was written", 3 * PAGE, 0)?;
    for offset in [8, 5 * PAGE + 16] {
        is_told(&mut machine, kind, offset)?;
    }
    pen.store(8, 0x8765_4321);
    pen.store(at(3 * PAGE), 7);
    finds(&mut machine, kind, "what is written later", 8, 0x8765_4321)?;
    finds(&mut machine, kind, "what is written later where nothing was", 3 * PAGE, 7)?;
    let left = [pen.load(8), pen.load(at(5 * PAGE + 16))];
    STEP.same(&format!("{kind}: nothing is stored"), format!("{:?}", [0x8765_4321u64, 0]), format!("{left:?}"));
    Ok(())
}

/// A file that is mapped for this process alone, and read only. A store of the process is to a copy of the page: the guest
/// reads that from then on, and the file has what it had.
fn file() -> Result<(), String> {
    let kind = "read-only slot, a file's";
    let (pen, file) = Mapping::memfd(at(PAGES * PAGE), true).map_err(errno_name)?;
    pen.store(8, 0x1111);
    pen.store(at(PAGE + 8), 0x2222);
    let bytes = at(PAGES * PAGE);
    let rom = Mapping::mapped_for(libc::PROT_READ, bytes, libc::MAP_PRIVATE, file.as_raw_fd()).map_err(errno_name)?;
    let mut machine = with(kind, &rom)?;
    finds(&mut machine, kind, "what is in the file", 8, 0x1111)?;
    is_told(&mut machine, kind, 8)?;
    STEP.same(&format!("{kind}: the file has what it had"), "0x1111", format!("{:#x}", pen.load(8)));
    let both = libc::PROT_READ | libc::PROT_WRITE;
    STEP.same(&format!("{kind}: the process may write"), "0", outcome(rom.protect(0, bytes, both)));
    finds(&mut machine, kind, "it still", 8, 0x1111)?;
    rom.store(8, 0x3333);
    finds(&mut machine, kind, "the process' copy once it has one", 8, 0x3333)?;
    finds(&mut machine, kind, "the file beside it", PAGE + 8, 0x2222)?;
    is_told(&mut machine, kind, 8)?;
    let left = [rom.load(8), pen.load(8), pen.load(at(PAGE + 8))];
    STEP.same(&format!("{kind}: nothing is stored"), format!("{:x?}", [0x3333, 0x1111, 0x2222]), format!("{left:x?}"));
    Ok(())
}

/// Memory that nobody wrote is the kernel's one page of zeros, for every page. It becomes a page when the process writes it.
fn zeros() -> Result<(), String> {
    let kind = "read-only slot, of zeros";
    let rom = Mapping::anonymous(at(PAGES * PAGE), false).map_err(errno_name)?;
    let mut machine = with(kind, &rom)?;
    finds(&mut machine, kind, "zero", 2 * PAGE, 0)?;
    finds(&mut machine, kind, "zero again", 9 * PAGE, 0)?;
    is_told(&mut machine, kind, 2 * PAGE)?;
    is_told(&mut machine, kind, 11 * PAGE)?;
    let frames = [frame(&rom, 2)?, frame(&rom, 9)?];
    let one = frames[0] != 0 && frames[0] == frames[1];
    STEP.judged(&format!("{kind}: both are one frame"), "the same, not zero", format!("{frames:x?}"), one);
    rom.store(at(2 * PAGE), 0x4444);
    finds(&mut machine, kind, "what is written later", 2 * PAGE, 0x4444)?;
    finds(&mut machine, kind, "zero beside it", 9 * PAGE, 0)?;
    is_told(&mut machine, kind, 2 * PAGE)?;
    STEP.same(&format!("{kind}: nothing is stored"), "0x4444", format!("{:#x}", rom.load(at(2 * PAGE))));
    // Whatever the guest stored was nowhere: another mapping of nothing is zeros.
    let fresh = Mapping::anonymous(at(PAGE), false).map_err(errno_name)?;
    let left = (0..at(PAGE)).step_by(8).filter(|&offset| fresh.load(offset) != 0).count();
    STEP.same(&format!("{kind}: the page of zeros is zeros"), 0, left);
    Ok(())
}

/// The frame behind a page of this process, 0 if there is none.
fn frame(map: &Mapping, page: u64) -> Result<u64, String> {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::File::open("/proc/self/pagemap").map_err(|e| format!("pagemap: {e}"))?;
    let at = map.at(at(page * PAGE)).addr() as u64 / PAGE * 8;
    let mut word = [0; 8];
    file.read_exact_at(&mut word, at).map_err(|e| format!("pagemap: {e}"))?;
    let word = u64::from_le_bytes(word);
    Ok(if word >> 63 == 1 { word & ((1 << 55) - 1) } else { 0 })
}

/// What the process may not read either is not there.
fn unreadable() -> Result<(), String> {
    let kind = "read-only slot, for nobody";
    let rom = Mapping::anonymous(at(PAGES * PAGE), false).map_err(errno_name)?;
    rom.store(8, 0x5555);
    let mut machine = with(kind, &rom)?;
    let bytes = at(PAGES * PAGE);
    STEP.same(&format!("{kind}: it may be touched by nobody"), "0", outcome(rom.protect(0, bytes, libc::PROT_NONE)));
    machine.answer(CMD_LOAD, [HERE + 8, 0, 0]);
    let event = until_it_stops(&mut machine);
    let expected = format!("MemoryFault {{ flags: 0, gpa: {HERE}, size: {PAGE} }}");
    STEP.same(&format!("{kind}: the guest's load is a memory fault"), format!("Broken({expected:?})"), event);
    STEP.same(&format!("{kind}: it may be read"), "0", outcome(rom.protect(0, bytes, libc::PROT_READ)));
    let [seen, ..] = machine.rest_of_command(|_| ())?;
    STEP.same(&format!("{kind}: then the guest goes on"), "0x5555", format!("{seen:#x}"));
    Ok(())
}
