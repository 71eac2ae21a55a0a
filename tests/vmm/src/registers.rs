// SPDX-License-Identifier: MIT OR Apache-2.0
//! The registers of an ordinary VM's vCPU are its VMM's, before its first run and after it: what the VMM writes is what
//! the guest has, and what the guest has is what the VMM reads.
//!
//! The guest is a few instructions that store every register to memory, which the VMM reads too. They are put there by
//! this file, so that the kernel's own KVM can be asked the same.

use std::os::fd::AsRawFd;

use freehold_uapi::ioctl::*;
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};

use crate::machine::{is_the_peer, new_vcpu, open, set_plain};
use crate::proto::{DEVICE, RAM_BASE, pattern};
use crate::report::Step;
use crate::sys::{Mapping, errno_name, ioctl, outcome};

const STEP: Step = Step("registers");
const BYTES: usize = 0x10_000;
/// Where the guest stores, from the start of its memory; its code lies at the start.
const STORED: u64 = 0x4000;
/// Where the vectors go, behind the rest.
const VECTORS: u64 = 1024;
const START: u64 = 0x3c5;

const CORE_32: u64 = 0x6020_0000_0010_0000;
const CORE_128: u64 = 0x6040_0000_0010_0000;
const SYSTEM: u64 = 0x6030_0000_0013_0000;
const SP_EL1: u64 = KVM_REG_X0 + 0x44;
const SPSR_ABT: u64 = KVM_REG_X0 + 0x4a;
const FPSR: u64 = CORE_32 + 0xd4;
const FPCR: u64 = CORE_32 + 0xd5;

/// What KVM calls it, what MRS does, and which bits it holds whatever else is in force. AMAIR, AFSR0 and AFSR1 hold
/// nothing on some CPUs.
const SPECIAL: [(u64, u32, u64); 19] = [
    (SYSTEM + 0xc102, 0xc102, 0x30_8080), // TCR: no walks
    (SYSTEM + 0xc100, 0xc100, 0x00ff_ffff_f000),
    (SYSTEM + 0xc101, 0xc101, 0x00ff_ffff_f000),
    (SYSTEM + 0xc510, 0xc510, 0x4444_4444_4444_4444),
    (SYSTEM + 0xc600, 0xc600, 0x0000_ffff_ffff_f800),
    (SYSTEM + 0xc290, 0xc290, 0xffff_ffff),
    (SYSTEM + 0xc300, 0xc300, u64::MAX),
    (SYSTEM + 0xc681, 0xc681, 0xffff_ffff),
    (SYSTEM + 0xc3a0, 0xc3a0, 0x0000_ffff_ffff_f000),
    (SYSTEM + 0xde82, 0xde82, u64::MAX),
    (SYSTEM + 0xde83, 0xde83, u64::MAX),
    (SYSTEM + 0xc684, 0xc684, u64::MAX),
    (SYSTEM + 0xc708, 0xc708, 3),
    (KVM_REG_X0 + 0x3e, 0xc208, 0xffff_ffff_ffff_fff0), // SP_EL0
    (KVM_REG_X0 + 0x46, 0xc201, u64::MAX),              // ELR
    (KVM_REG_X0 + 0x48, 0xc200, 0xf000_0000),           // SPSR
    (FPCR, 0xda20, 0x07c0_0000),
    (FPSR, 0xda21, 0x0800_009f),
    (KVM_REG_PSTATE, 0xda10, 0xf000_0000), // its flags
];
/// SCTLR without a walk, CPACR with vectors: what the program needs, in two values each.
const NEEDED: [(u64, u32, [u64; 2]); 2] =
    [(SYSTEM + 0xc080, 0xc080, [0x30d0_0800, 0x30d0_1804]), (SYSTEM + 0xc082, 0xc082, [3 << 20, 0x30_0000])];

/// Runs the cases.
pub(crate) fn all() -> Result<(), String> {
    refusals()?;
    whole()
}

/// A VM of one slot and its vCPUs; the first would run the program.
fn new(vcpus: u64) -> Result<(VmFd, Vec<VcpuFd>, Mapping), String> {
    let vm = open()?.create_vm_with_type(40).map_err(|e| errno_name(e.errno()))?;
    let ram = Mapping::anonymous(BYTES, false).map_err(errno_name)?;
    let code: Vec<u8> = program().iter().flat_map(|word| word.to_le_bytes()).collect();
    ram.copy_in(0, &code);
    set_plain(&vm, 0, RAM_BASE, BYTES as u64, ram.at(0)).map_err(errno_name)?;
    let vcpus = (0..vcpus).map(|index| new_vcpu(&vm, index)).collect::<Result<_, _>>()?;
    Ok((vm, vcpus, ram))
}

/// Stores x0 to x30, the special ones and the vectors behind SP, then to a device, again and again.
fn program() -> Vec<u32> {
    let store = |register: u32, at: u32| 0xf900_0000 | at << 10 | 31 << 5 | register;
    let mut code: Vec<u32> = (0..31).map(|n| store(n, n)).collect();
    for ((_, name), at) in special().zip(31..) {
        code.extend([0xd520_0000 | name << 5, store(0, at)]);
    }
    let first = u32::try_from(VECTORS / 16).unwrap_or(0);
    code.extend((0..32).map(|n| 0x3d80_0000 | (first + n) << 10 | 31 << 5 | n));
    // movz x1, DEVICE; str x0, [x1]; b to the store
    code.extend([0xd2a0_0001 | u32::try_from(DEVICE >> 16).unwrap_or(0) << 5, 0xf900_0020, 0x17ff_ffff]);
    code
}

fn special() -> impl Iterator<Item = (u64, u32)> {
    NEEDED.iter().map(|(id, name, _)| (*id, *name)).chain(SPECIAL.iter().map(|(id, name, _)| (*id, *name)))
}

fn ask(vcpu: &impl AsRawFd, write: bool, id: u64, value: &mut [u64; 2]) -> String {
    let request = if write { KVM_SET_ONE_REG } else { KVM_GET_ONE_REG };
    outcome(ioctl(vcpu, request, &mut OneReg { id, addr: value.as_mut_ptr() as u64 }))
}

fn set(vcpu: &impl AsRawFd, id: u64, value: u64) -> String {
    ask(vcpu, true, id, &mut [value, !value])
}

fn get(vcpu: &impl AsRawFd, id: u64) -> Result<[u64; 2], String> {
    let mut value = [0; 2];
    match ask(vcpu, false, id, &mut value) {
        said if said == "0" => Ok(value),
        said => Err(said),
    }
}

/// What is refused of any vCPU, run or not.
pub(crate) fn refusals() -> Result<(), String> {
    let (_vm, vcpus, _ram) = new(1)?;
    let vcpu = &vcpus[0];
    for (case, id, value, expected) in [
        ("a PSTATE of EL2", KVM_REG_PSTATE, 0x3c9, "EINVAL"),
        ("a PSTATE of AArch32", KVM_REG_PSTATE, 0x1d3, "EINVAL"),
        ("a PSTATE of nobody", KVM_REG_PSTATE, 0x3cf, "EINVAL"),
        ("SPSR_abt", SPSR_ABT, 1, "EINVAL"),
        ("a core register of another size", CORE_32, 0, "ENOENT"),
        ("half of a vector", CORE_128 + 0x56, 0, "ENOENT"),
        ("a vector beyond the last", CORE_128 + 0xd4, 0, "ENOENT"),
        ("a system register that there is not", SYSTEM + 0xffff, 0, "ENOENT"),
        ("a PSTATE of EL0", KVM_REG_PSTATE, 0, "0"),
        ("a PC at no instruction", KVM_REG_PC, 2, "0"),
        ("x30", KVM_REG_X0 + 2 * 30, 1, "0"),
    ] {
        STEP.same(&format!("set: {case}"), expected, set(vcpu, id, value));
    }
    STEP.same("set: from nowhere", "EFAULT", outcome(ioctl(vcpu, KVM_SET_ONE_REG, &mut OneReg { id: FPCR, addr: 8 })));
    STEP.same("get: to nowhere", "EFAULT", outcome(ioctl(vcpu, KVM_GET_ONE_REG, &mut OneReg { id: FPCR, addr: 8 })));
    let now = || get(vcpu, KVM_REG_TIMER_CNT).map_or(0, |[low, _]| low);
    // No machine has counted so far.
    STEP.same("counter: it may be written", "0", set(vcpu, KVM_REG_TIMER_CNT, 1 << 60));
    STEP.same("counter: what is written is not taken", true, (1..1 << 60).contains(&now()));
    let again = new_vcpu_init(vcpu);
    let read = [KVM_REG_PSTATE, KVM_REG_PC, KVM_REG_X0 + 60].map(|id| get(vcpu, id).map(|[low, _]| low).unwrap_or(99));
    STEP.same("initialised again: as after reset", format!("0, {:x?}", [START, 0, 0]), format!("{again}, {read:x?}"));
    Ok(())
}

fn new_vcpu_init(vcpu: &VcpuFd) -> String {
    let target = u32::try_from(KVM_ARM_TARGET_GENERIC_V8).unwrap_or(0);
    outcome(ioctl(
        vcpu,
        KVM_ARM_VCPU_INIT,
        &mut VcpuInit { target, features: [1 << KVM_ARM_VCPU_PSCI_0_2, 0, 0, 0, 0, 0, 0] },
    ))
}

/// What the VMM writes in a round: name and value, of the vectors both halves.
fn values(round: usize) -> Vec<(u64, [u64; 2])> {
    let seed = round as u64 + 1;
    let of = |id: u64| pattern(seed, id);
    let general = (0..31).map(|n| KVM_REG_X0 + 2 * n).map(|id| (id, [of(id), 0]));
    let needed = NEEDED.iter().map(|(id, _, value)| (*id, [value[round % 2], 0]));
    let special = SPECIAL.iter().map(|(id, _, mask)| match *id {
        KVM_REG_PSTATE => (*id, [START | of(*id) & mask, 0]),
        id if *mask == 0x30_8080 => (id, [*mask, 0]),
        id => (id, [of(id) & mask, 0]),
    });
    let vectors = (0..32).map(|n| CORE_128 + 0x54 + 4 * n).map(|id| (id, [of(id), !of(id)]));
    let fixed = [(SP_EL1, [RAM_BASE + STORED, 0]), (KVM_REG_PC, [RAM_BASE, 0])];
    general.chain(needed).chain(special).chain(vectors).chain(fixed).collect()
}

/// The names whose value is another one than was written.
fn differ(vcpu: &VcpuFd, wrote: &[(u64, [u64; 2])]) -> String {
    let wrong = |(id, value): &&(u64, [u64; 2])| get(vcpu, *id).as_ref() != Ok(value);
    format!("{:x?}", wrote.iter().filter(wrong).map(|(id, _)| *id).collect::<Vec<_>>())
}

/// The names of what the guest found otherwise than it was written.
fn found(ram: &Mapping, wrote: &[(u64, [u64; 2])]) -> String {
    let wrote = |id: u64| wrote.iter().find(|(name, _)| *name == id).map_or([0; 2], |(_, value)| *value);
    let at = |offset: u64| ram.load(usize::try_from(STORED + offset).unwrap_or(0));
    let general = (0..31u64).map(|n| (KVM_REG_X0 + 2 * n, [at(8 * n), 0]));
    let special = special().zip(31u64..).map(|((id, _), n)| match id {
        KVM_REG_PSTATE => (id, [START | at(8 * n), 0]),
        id => (id, [at(8 * n), 0]),
    });
    let vectors = (0..32u64).map(|n| {
        let offset = VECTORS + 16 * n;
        (CORE_128 + 0x54 + 4 * n, [at(offset), at(offset + 8)])
    });
    let wrong = general.chain(special).chain(vectors).filter(|(id, seen)| *seen != wrote(*id));
    format!("{:x?}", wrong.map(|(id, _)| id).collect::<Vec<_>>())
}

/// Runs to the store to the device, and completes it.
fn runs(vcpu: &mut VcpuFd) -> String {
    let event = match vcpu.run() {
        Ok(VcpuExit::MmioWrite(DEVICE, _)) => "at the device".to_owned(),
        other => format!("{other:?}"),
    };
    vcpu.set_kvm_immediate_exit(1);
    let completed = vcpu.run().map(|exit| format!("{exit:?}")).map_err(|e| errno_name(e.errno()));
    vcpu.set_kvm_immediate_exit(0);
    format!("{event}, {completed:?}")
}

/// Three lives' worth of registers, written, run with, read; the second and third time by a vCPU that ran.
fn whole() -> Result<(), String> {
    let (_vm, mut vcpus, ram) = new(2)?;
    let second = vcpus.pop().ok_or("no vCPU")?;
    let mut first = vcpus.pop().ok_or("no vCPU")?;
    for round in 0..3 {
        let wrote = values(round);
        let refused = wrote.iter().filter(|(id, value)| ask(&first, true, *id, &mut value.clone()) != "0");
        let refused: Vec<u64> = refused.map(|(id, _)| *id).collect();
        STEP.same(&format!("round {round}: each is written"), "[]", format!("{refused:x?}"));
        STEP.same(&format!("round {round}: each reads back"), "[]", differ(&first, &wrote));
        ram.copy_in(usize::try_from(STORED).unwrap_or(0), &[0; 2048]);
        STEP.same(&format!("round {round}: the guest runs"), "at the device, Err(\"EINTR\")", runs(&mut first));
        STEP.same(&format!("round {round}: the guest has each"), "[]", found(&ram, &wrote));
        let own = [KVM_REG_X0, KVM_REG_X0 + 2, KVM_REG_PC];
        let kept: Vec<_> = wrote.into_iter().filter(|(id, _)| !own.contains(id)).collect();
        STEP.same(&format!("round {round}: what it did not touch is as it was"), "[]", differ(&first, &kept));
        let pc = RAM_BASE + 4 * (program().len() as u64 - 1);
        let flags = kept.iter().find(|(id, _)| *id == KVM_REG_PSTATE).map_or(0, |(_, [value, _])| value & 0xf000_0000);
        let own = own.map(|id| get(&first, id).map(|[low, _]| low).unwrap_or(99));
        STEP.same(
            &format!("round {round}: what it did is read"),
            format!("{:x?}", [flags, DEVICE, pc]),
            format!("{own:x?}"),
        );
    }
    // A vCPU that never ran, beside one that did.
    STEP.same("the other vCPU: x4", "0", set(&second, KVM_REG_X0 + 8, 44));
    STEP.same("the other vCPU: x4 reads back", "Ok([44, 0])", format!("{:?}", get(&second, KVM_REG_X0 + 8)));
    all_of_them(&mut first)
}

/// Every register that the list names is read and written back, and the guest goes on as if nothing had been.
fn all_of_them(vcpu: &mut VcpuFd) -> Result<(), String> {
    let mut room = vec![0u64; 2048];
    room[0] = 2047;
    let listed = crate::sys::ioctl_value(vcpu, KVM_GET_REG_LIST, room.as_mut_ptr() as u64);
    STEP.same("the list", "0", outcome(listed));
    let names = room[1..].iter().copied().take(usize::try_from(room[0]).unwrap_or(0)).collect::<Vec<_>>();
    if !is_the_peer() {
        STEP.same("names in it", 95, names.len());
    }
    let unheld = [0xc518, 0xc288, 0xc289].map(|name| SYSTEM + name);
    let of_guest: Vec<u64> = unheld.into_iter().chain(values(0).iter().map(|(id, _)| *id)).collect();
    let of_guest: Vec<_> = of_guest.iter().filter(|id| !names.contains(id)).collect();
    STEP.same("it names each of the guest's", "[]", format!("{of_guest:x?}"));
    let mut wrong = Vec::new();
    for id in names.into_iter().filter(|id| id >> 52 & 0xf <= 4) {
        let mut value = [0; 2];
        let answers = [ask(vcpu, false, id, &mut value), ask(vcpu, true, id, &mut value)];
        if answers != ["0", "0"] {
            wrong.push(format!("{id:#x}: {answers:?}"));
        }
    }
    STEP.same("each is read and written back", "[]", format!("{wrong:?}"));
    STEP.same("and the guest goes on", "at the device, Err(\"EINTR\")", runs(vcpu));
    Ok(())
}
