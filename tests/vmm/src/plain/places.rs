// SPDX-License-Identifier: MIT OR Apache-2.0
//! Slots wherever a VMM wants them, and many of them, before its guest runs and while it does.
//!
//! crosvm has one for each function of its PCI devices, 32 KiB apart; QEMU sets one where a guest has put the memory of a
//! device, and again where it puts it later.

use std::sync::Arc;

use freehold_uapi::ioctl::*;

use super::{STEP, memory_fault, until_it_stops};
use crate::machine::{Machine, open, set_plain};
use crate::ordinary::{BYTES, PAGE, at, plan};
use crate::proto::*;
use crate::sys::{Mapping, errno_name, ioctl, ioctl_value, outcome};

/// The configuration of crosvm's PCI devices.
const PCI: u64 = 0x1_0000;
const FUNCTION: u64 = 0x8000;
const FUNCTIONS: u32 = 24;
/// Where devices have their memory.
const BARS: u64 = 0x4000_0000;
const BAR: u64 = 0x20_0000;
const DEVICES: u32 = 48;
/// Far above all RAM, as far as the guest's own tables reach.
const HIGH: u64 = 0x40_0000_0000;
const DISTRIBUTOR: u64 = GICD_GFN * PAGE;
/// The largest number of a slot.
const LAST: u32 = 511;

/// Runs the cases that KVM has too.
pub(crate) fn all() -> Result<(), String> {
    let ram = Arc::new(Mapping::anonymous(at(BYTES), false).map_err(errno_name)?);
    let mut machine = Machine::plain(plan(), ram)?;
    let rom = numbered(FUNCTIONS)?;
    let set: Vec<_> = (0..FUNCTIONS).map(|n| configuration(&machine, &rom, n)).collect();
    STEP.same("places: a slot for each PCI device", format!("{:?}", vec!["0"; set.len()]), format!("{set:?}"));
    machine.boot()?;
    let found = loads(&mut machine, FUNCTIONS, |n| PCI + u64::from(n) * FUNCTION)?;
    STEP.same("places: the guest finds each of them", words(FUNCTIONS, identity), found);

    let memory = numbered(DEVICES)?;
    let bar = |n: u32| BARS + u64::from(n) * BAR;
    let place = |machine: &Machine, n: u32, gpa, bytes| {
        set_plain(&machine.vm, FUNCTIONS + 1 + n, gpa, bytes, memory.at(at(u64::from(n) * PAGE)))
    };
    let [seen, ..] = machine.command(CMD_LOAD, [bar(0), 0, 0])?;
    STEP.same("places: where no slot is yet, its VMM is asked", u64::MAX, seen);
    let set: Vec<_> = (0..DEVICES).filter_map(|n| place(&machine, n, bar(n), PAGE).err()).collect();
    STEP.same("places: slots come while it runs", "[]", format!("{set:?}"));
    STEP.same("places: it finds each of them", words(DEVICES, identity), loads(&mut machine, DEVICES, bar)?);
    machine.command(CMD_STORE, [bar(7) + 8, 0x77, 0])?;
    STEP.same("places: what it stores there, its VMM has", 0x77, memory.load(at(7 * PAGE + 8)));

    let further = |n: u32| bar(n) + 0x10_0000;
    let set: Vec<_> = (0..DEVICES).filter_map(|n| place(&machine, n, further(n), PAGE).err()).collect();
    STEP.same("places: they move", "[]", format!("{set:?}"));
    STEP.same("places: it finds each where it is", words(DEVICES, identity), loads(&mut machine, DEVICES, further)?);
    let [seen, ..] = machine.command(CMD_LOAD, [bar(7), 0, 0])?;
    STEP.same("places: and nothing where it was", u64::MAX, seen);
    let set: Vec<_> = (0..DEVICES).filter_map(|n| place(&machine, n, further(n), 0).err()).collect();
    STEP.same("places: they go", "[]", format!("{set:?}"));
    let gone = loads(&mut machine, DEVICES, further)?;
    STEP.same("places: its VMM is asked again", words(DEVICES, |_| u64::MAX), gone);

    let last = set_plain(&machine.vm, LAST, HIGH, PAGE, memory.at(at(5 * PAGE)));
    STEP.same("places: the last number, far above its RAM", "Ok(())", format!("{last:?}"));
    let [seen, ..] = machine.command(CMD_LOAD, [HIGH, 0, 0])?;
    STEP.same("places: it finds that", identity(5), seen);
    Ok(())
}

/// What is this driver's own: the frames of the interrupt controller are no slot's, and what can not be described is a
/// memory fault wherever it is.
pub(crate) fn here() -> Result<(), String> {
    let ram = Arc::new(Mapping::anonymous(at(BYTES), false).map_err(errno_name)?);
    let other = Mapping::anonymous(at(PAGE), false).map_err(errno_name)?;
    let mut machine = Machine::plain(plan(), ram)?;
    machine.boot()?;
    let most = outcome(ioctl_value(&machine.vm, KVM_CHECK_EXTENSION, KVM_CAP_NR_MEMSLOTS.into()));
    STEP.same("places: so many numbers there are", (LAST + 1).to_string(), most);
    let beyond = set_plain(&machine.vm, LAST + 1, HIGH, PAGE, other.at(0));
    STEP.same("places: and no more", "Err(22)", format!("{beyond:?}"));
    let over = set_plain(&machine.vm, 1, DISTRIBUTOR, PAGE, other.at(0));
    STEP.same("places: a slot at the interrupt controller", "Err(17)", format!("{over:?}"));
    let beside = set_plain(&machine.vm, 1, DISTRIBUTOR - PAGE, PAGE, other.at(0));
    STEP.same("places: right before it", "Ok(())", format!("{beside:?}"));
    let moved = set_plain(&machine.vm, 1, DISTRIBUTOR, PAGE, other.at(0));
    STEP.same("places: it does not move there", "Err(17)", format!("{moved:?}"));
    let [_, esr, _] = machine.command(CMD_LOAD, [DISTRIBUTOR + 8, 0, 0])?;
    STEP.same("places: the controller answers as before", 0, esr);
    machine.answer(CMD_LOAD_PAIR, [BARS, 0, 0]);
    let event = until_it_stops(&mut machine);
    STEP.same("places: a pair of registers where nothing is", memory_fault(BARS.wrapping_sub(RAM_BASE)), event);
    let set = set_plain(&machine.vm, 2, BARS, PAGE, other.at(0));
    STEP.same("places: a slot comes there", "Ok(())", format!("{set:?}"));
    let [_, esr, _] = machine.rest_of_command(|_| ())?;
    STEP.same("places: and the guest goes on", 0, esr);
    drop(machine);

    let kvm = open()?;
    let ram = Arc::new(Mapping::anonymous(at(BYTES), false).map_err(errno_name)?);
    let mut machine = Machine::plain(plan(), ram)?;
    let over = set_plain(&machine.vm, 1, DISTRIBUTOR, PAGE, other.at(0));
    STEP.same("places: a slot at the interrupt controller of a guest that never ran", "Ok(())", format!("{over:?}"));
    STEP.same("places: its run says so", "EEXIST", runs(&mut machine));
    let gone = set_plain(&machine.vm, 1, DISTRIBUTOR, 0, other.at(0));
    STEP.same("places: it goes", "Ok(())", format!("{gone:?}"));
    machine.boot()?;

    let vm = kvm.create_vm_with_type(KVM_VM_TYPE_ARM_PROTECTED | 40).map_err(|e| errno_name(e.errno()))?;
    let set: Vec<_> = (0..9).map(|n| set_plain(&vm, n, BARS + u64::from(n) * BAR, PAGE, other.at(0)).err()).collect();
    let expected = format!("{:?}", [[None; 8].as_slice(), &[Some(28)]].concat());
    STEP.same("places: a protected VM has eight", expected, format!("{set:?}"));
    Ok(())
}

/// How a run ends that does not begin.
fn runs(machine: &mut Machine) -> String {
    machine.vcpu.run().map_or_else(|e| errno_name(e.errno()).to_owned(), |exit| format!("{exit:?}"))
}

/// Pages that each begin with a word of their own.
fn numbered(pages: u32) -> Result<Mapping, String> {
    let memory = Mapping::anonymous(at(u64::from(pages) * PAGE), true).map_err(errno_name)?;
    for n in 0..pages {
        memory.store(at(u64::from(n) * PAGE), identity(n));
    }
    Ok(memory)
}

fn identity(n: u32) -> u64 {
    0x1040_1af4 + (u64::from(n) << 16)
}

fn words(count: u32, word: impl Fn(u32) -> u64) -> String {
    format!("{:x?}", (0..count).map(word).collect::<Vec<_>>())
}

fn configuration(machine: &Machine, rom: &Mapping, n: u32) -> String {
    let mut region = MemoryRegion {
        slot: 1 + n,
        flags: u32::try_from(KVM_MEM_READONLY).unwrap_or(0),
        guest_phys_addr: PCI + u64::from(n) * FUNCTION,
        memory_size: PAGE,
        userspace_addr: rom.at(at(u64::from(n) * PAGE)).addr() as u64,
    };
    outcome(ioctl(&machine.vm, KVM_SET_USER_MEMORY_REGION, &mut region))
}

/// What the guest loads at each place.
fn loads(machine: &mut Machine, count: u32, place: impl Fn(u32) -> u64) -> Result<String, String> {
    let found: Result<Vec<_>, String> =
        (0..count).map(|n| machine.command(CMD_LOAD, [place(n), 0, 0]).map(|[seen, ..]| seen)).collect();
    Ok(format!("{:x?}", found?))
}
