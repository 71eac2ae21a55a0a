// SPDX-License-Identifier: MIT OR Apache-2.0
//! Bad input to the driver: each refusal with KVM's errno, and nothing changed by it.
//!
//! Expected numbers are those of Linux `virt/kvm` and `arch/arm64/kvm` for the same mistake, and design §4 where KVM
//! has no such call.

use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use freehold_uapi::ioctl::*;
use kvm_ioctls::{Kvm, VmFd};

use crate::gmem::{CONVERT, converted};
use crate::machine::{Machine, NODE, Plan, VM_TYPE, counter, new_gmem, open, set_slot};
use crate::probe::{Access, probe};
use crate::proto;
use crate::report::Step;
use crate::sheet;
use crate::sys::{self, errno_name, ioctl, ioctl_value, outcome};

const STEP: Step = Step("ioctls");
const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;

fn region(gmem: &impl AsRawFd) -> MemoryRegion2 {
    MemoryRegion2 {
        slot: 0,
        flags: flag(KVM_MEM_GUEST_MEMFD),
        guest_phys_addr: proto::RAM_BASE,
        memory_size: MIB,
        userspace_addr: 0,
        guest_memfd_offset: 0,
        guest_memfd: gmem.as_raw_fd().cast_unsigned(),
        pad1: 0,
        pad2: [0; 14],
    }
}

fn flag(value: u64) -> u32 {
    u32::try_from(value).expect("a 32-bit flag")
}

fn new_vm(kvm: &Kvm) -> Result<VmFd, String> {
    kvm.create_vm_with_type(VM_TYPE).map_err(|e| format!("CREATE_VM: {}", errno_name(e.errno())))
}

/// Runs every part.
pub(crate) fn all() -> Result<(), String> {
    let kvm = open()?;
    system(&kvm);
    sheet::all(&kvm)?;
    counters(&kvm);
    vm(&kvm)?;
    slots(&kvm)?;
    vcpu(&kvm)?;
    files(&kvm)?;
    conversions(&kvm)?;
    broken_memory(&kvm)?;
    slots_in_use()
}

pub(crate) fn system(kvm: &Kvm) {
    let ask = |case: &str, expected: &str, request: u32, argument: u64| {
        STEP.same(&format!("system: {case}"), expected, outcome(ioctl_value(kvm, request, argument)));
    };
    ask("api version", "12", KVM_GET_API_VERSION, 0);
    ask("api version, argument", "EINVAL", KVM_GET_API_VERSION, 1);
    ask("mmap size, argument", "EINVAL", KVM_GET_VCPU_MMAP_SIZE, 1);
    ask("unknown cap", "0", KVM_CHECK_EXTENSION, 0x7fff);
    ask("unknown cap, 64 bits", "0", KVM_CHECK_EXTENSION, u64::MAX);
    ask("one reg", "1", KVM_CHECK_EXTENSION, KVM_CAP_ONE_REG.into());
    ask("address size", "40", KVM_CHECK_EXTENSION, KVM_CAP_ARM_VM_IPA_SIZE.into());
    ask("vm type: unknown bit", "EINVAL", KVM_CREATE_VM, VM_TYPE | 1 << 30);
    ask("vm type: unknown high bit", "EINVAL", KVM_CREATE_VM, VM_TYPE | 1 << 40);
    ask("vm type: address size 31", "EINVAL", KVM_CREATE_VM, KVM_VM_TYPE_ARM_PROTECTED | 31);
    ask("vm type: address size 60", "EINVAL", KVM_CREATE_VM, KVM_VM_TYPE_ARM_PROTECTED | 60);
    ask("vm type: ordinary, address size 31", "EINVAL", KVM_CREATE_VM, 31);
    ask("ioctl of a vm", "EINVAL", KVM_CREATE_VCPU, 0);
    ask("ioctl of a vcpu", "EINVAL", KVM_RUN, 0);
    ask("unknown ioctl", "EINVAL", ioc(0, KVM_MAGIC, 0x7f, 0), 0);
    ask("unknown magic", "EINVAL", ioc(0, 0x99, 0x01, 0), 0);
}

/// What KVM has not.
fn counters(kvm: &Kvm) {
    let seen = outcome(ioctl_value(kvm, FREEHOLD_COUNTER, 8));
    STEP.same("system: counter: bad address", "EFAULT", seen);
    let mut unknown = 0xffffu64;
    STEP.same("system: counter: unknown", "EINVAL", outcome(ioctl(kvm, FREEHOLD_COUNTER, &mut unknown)));
    STEP.same("system: counter: an answer", "Ok(0)", format!("{:?}", counter(kvm, freehold_uapi::hvc::COUNTER_VMS, 0)));
}

pub(crate) fn vm(kvm: &Kvm) -> Result<(), String> {
    let vm = new_vm(kvm)?;
    let ask = |case: &str, expected: &str, request: u32, argument: u64| {
        STEP.same(&format!("vm: {case}"), expected, outcome(ioctl_value(&vm, request, argument)));
    };
    ask("protected cap", "1", KVM_CHECK_EXTENSION, KVM_CAP_ARM_PROTECTED_VM.into());
    ask("unknown cap", "0", KVM_CHECK_EXTENSION, 0x7fff);
    ask("create vm", "EINVAL", KVM_CREATE_VM, VM_TYPE);
    ask("unknown ioctl", "EINVAL", ioc(0, KVM_MAGIC, 0x7f, 0), 0);
    ask("known number, wrong size", "EINVAL", ioc(1, KVM_MAGIC, 0x49, 152), 0);
    ask("slot: bad address", "EFAULT", KVM_SET_USER_MEMORY_REGION2, 8);
    ask("guest_memfd: bad address", "EFAULT", KVM_CREATE_GUEST_MEMFD, 8);
    ask("vcpu index 512", "EINVAL", KVM_CREATE_VCPU, 512);
    ask("vcpu index, 64 bits", "EINVAL", KVM_CREATE_VCPU, 1 << 32);
    let mut cap = EnableCap { cap: 0x7fff, flags: 0, args: [0; 4], pad: [0; 64] };
    STEP.same("vm: enable unknown cap", "EINVAL", outcome(ioctl(&vm, KVM_ENABLE_CAP, &mut cap)));
    firmware(&vm);
    for (case, size, flags) in [
        ("size 0", 0, 0),
        ("size unaligned", PAGE + 1, 0),
        ("size huge", 1 << 63, 0),
        ("unknown flag", MIB, 4),
        ("unknown high flag", MIB, 1 << 63),
    ] {
        let mut ask = CreateGuestMemfd { size, flags, reserved: [0; 6] };
        STEP.same(&format!("vm: guest_memfd {case}"), "EINVAL", outcome(ioctl(&vm, KVM_CREATE_GUEST_MEMFD, &mut ask)));
    }
    // More than any machine of ours has: its books alone would take the host's memory.
    let mut ask = CreateGuestMemfd { size: 256 << 30, flags: 0, reserved: [0; 6] };
    let seen = outcome(ioctl(&vm, KVM_CREATE_GUEST_MEMFD, &mut ask));
    STEP.same("vm: guest_memfd larger than the machine", "ENOMEM", seen);
    Ok(())
}

/// Android's form of `KVM_ENABLE_CAP`: a protected VM's firmware, of which there is none.
fn firmware(vm: &VmFd) {
    let ask = |case: &str, expected: &str, flags: u32, args: [u64; 4]| {
        let mut cap = EnableCap { cap: KVM_CAP_ARM_PROTECTED_VM, flags, args, pad: [0; 64] };
        STEP.same(&format!("vm: firmware: {case}"), expected, outcome(ioctl(vm, KVM_ENABLE_CAP, &mut cap)));
    };
    let mut info = ProtectedVmInfo { firmware_size: u64::MAX, reserved: [u64::MAX; 7] };
    let at = &raw mut info;
    let to = at as u64;
    ask("its size, an argument too many", "EINVAL", 1, [to, 0, 0, 1]);
    ask("an unknown flag", "EINVAL", 2, [to, 0, 0, 0]);
    let all = |value: u64| {
        // SAFETY: it lives; the kernel may have written it, hence the volatile read.
        let seen = unsafe { at.read_volatile() };
        format!("{}", seen.firmware_size == value && seen.reserved == [value; 7])
    };
    STEP.same("vm: firmware: what is refused writes nothing", "true", all(u64::MAX));
    ask("its size, nowhere", "EFAULT", 1, [8, 0, 0, 0]);
    ask("its size", "0", 1, [to, 0, 0, 0]);
    STEP.same("vm: firmware: there is none", "true", all(0));
    ask("where it starts", "EINVAL", 0, [0x7fc0_0000, 0, 0, 0]);
}

fn slots(kvm: &Kvm) -> Result<(), String> {
    let vm = new_vm(kvm)?;
    let other = new_vm(kvm)?;
    let gmem = new_gmem(&vm, 2 * MIB).map_err(errno_name)?;
    let foreign = new_gmem(&other, 2 * MIB).map_err(errno_name)?;
    let good = region(&gmem);
    let (pipe, _writer) = sys::pipe();
    let ask = |case: &str, expected: &str, mut region: MemoryRegion2| {
        let seen = outcome(ioctl(&vm, KVM_SET_USER_MEMORY_REGION2, &mut region));
        STEP.same(&format!("slot: {case}"), expected, seen);
    };
    ask("unknown flag", "EINVAL", MemoryRegion2 { flags: good.flags | 1 << 20, ..good });
    ask("read only", "EINVAL", MemoryRegion2 { flags: good.flags | flag(KVM_MEM_READONLY), ..good });
    ask("dirty log", "EINVAL", MemoryRegion2 { flags: good.flags | flag(KVM_MEM_LOG_DIRTY_PAGES), ..good });
    ask("address unaligned", "EINVAL", MemoryRegion2 { guest_phys_addr: proto::RAM_BASE + 8, ..good });
    ask("size unaligned", "EINVAL", MemoryRegion2 { memory_size: MIB + 8, ..good });
    ask("address overflow", "EINVAL", MemoryRegion2 { guest_phys_addr: 0u64.wrapping_sub(PAGE), ..good });
    ask("beyond address size", "EFAULT", MemoryRegion2 { guest_phys_addr: 1 << 40, ..good });
    ask("slot number", "EINVAL", MemoryRegion2 { slot: 0x7fff, ..good });
    ask("address space", "EINVAL", MemoryRegion2 { slot: 1 << 16, ..good });
    ask("file closed", "EBADF", MemoryRegion2 { guest_memfd: 9999, ..good });
    ask("file of another kind", "EINVAL", MemoryRegion2 { guest_memfd: pipe.as_raw_fd().cast_unsigned(), ..good });
    ask("file of another vm", "EINVAL", MemoryRegion2 { guest_memfd: foreign.as_raw_fd().cast_unsigned(), ..good });
    ask("offset unaligned", "EINVAL", MemoryRegion2 { guest_memfd_offset: 8, ..good });
    ask("range beyond the file", "EINVAL", MemoryRegion2 { guest_memfd_offset: 3 * MIB / 2, ..good });
    ask("offset overflow", "EINVAL", MemoryRegion2 { guest_memfd_offset: 0u64.wrapping_sub(PAGE), ..good });
    ask("delete what is not there", "EINVAL", MemoryRegion2 { memory_size: 0, ..good });
    ask("good", "0", good);
    ask("same slot again", "EINVAL", MemoryRegion2 { guest_phys_addr: proto::RAM_BASE + 2 * MIB, ..good });
    ask("overlap", "EEXIST", MemoryRegion2 { slot: 1, guest_memfd_offset: MIB, ..good });
    ask("same offsets twice", "EEXIST", MemoryRegion2 { slot: 1, guest_phys_addr: proto::RAM_BASE + MIB, ..good });
    ask("delete", "0", MemoryRegion2 { memory_size: 0, ..good });
    ask("good again", "0", good);
    let mut plain = MemoryRegion { slot: 5, flags: 0, guest_phys_addr: 0, memory_size: MIB, userspace_addr: 0x10000 };
    STEP.same("slot: plain memory beside it", "0", outcome(ioctl(&vm, KVM_SET_USER_MEMORY_REGION, &mut plain)));
    Ok(())
}

pub(crate) fn vcpu(kvm: &Kvm) -> Result<(), String> {
    let vm = new_vm(kvm)?;
    let vcpu = vm.create_vcpu(0).map_err(|e| errno_name(e.errno()))?;
    STEP.same("vcpu: same index again", "EEXIST", outcome(ioctl_value(&vm, KVM_CREATE_VCPU, 0)));
    STEP.same("vcpu: run before init", "ENOEXEC", outcome(ioctl_value(&vcpu, KVM_RUN, 0)));
    let mut word = 0u64;
    let mut reg = |id: u64, value: u64, write: bool| {
        word = value;
        let mut ask = OneReg { id, addr: (&raw mut word) as u64 };
        outcome(ioctl(&vcpu, if write { KVM_SET_ONE_REG } else { KVM_GET_ONE_REG }, &mut ask))
    };
    STEP.same("vcpu: set reg before init", "ENOEXEC", reg(KVM_REG_X0, 1, true));
    STEP.same("vcpu: get reg before init", "ENOEXEC", reg(KVM_REG_X0, 1, false));
    let init =
        |target: u32, features: [u32; 7]| outcome(ioctl(&vcpu, KVM_ARM_VCPU_INIT, &mut VcpuInit { target, features }));
    let target = flag(KVM_ARM_TARGET_GENERIC_V8);
    let psci = 1u32 << KVM_ARM_VCPU_PSCI_0_2;
    STEP.same("vcpu: unknown target", "EINVAL", init(0x77, [psci, 0, 0, 0, 0, 0, 0]));
    STEP.same("vcpu: unknown feature", "ENOENT", init(target, [1 << 31, 0, 0, 0, 0, 0, 0]));
    STEP.same("vcpu: unknown feature word", "ENOENT", init(target, [psci, 1, 0, 0, 0, 0, 0]));
    STEP.same("vcpu: init", "0", init(target, [psci, 0, 0, 0, 0, 0, 0]));
    STEP.same("vcpu: init again", "0", init(target, [psci, 0, 0, 0, 0, 0, 0]));
    STEP.same("vcpu: unknown register", "ENOENT", reg(0x6030_0000_0010_f000, 1, true));
    STEP.same("vcpu: x4 is not the host's", "EPERM", reg(KVM_REG_X0 + 8, 1, true));
    STEP.same("vcpu: pstate of EL2", "EINVAL", reg(KVM_REG_PSTATE, 0x3c9, true));
    STEP.same("vcpu: pc unaligned", "EINVAL", reg(KVM_REG_PC, 2, true));
    STEP.same("vcpu: x0", "0", reg(KVM_REG_X0, 0x1234, true));
    let read = reg(KVM_REG_X0, 0, false);
    STEP.same("vcpu: x0 reads back", "0, 0x1234", format!("{read}, {word:#x}"));
    let mut preferred = VcpuInit { target: 0x77, features: [0x77; 7] };
    STEP.same("vcpu: preferred target", "0", outcome(ioctl(&vm, KVM_ARM_PREFERRED_TARGET, &mut preferred)));
    let told = (preferred.target, preferred.features);
    STEP.same("vcpu: preferred target's answer", format!("{:?}", (target, [0u32; 7])), format!("{told:?}"));
    STEP.same("vcpu: run with an argument", "EINVAL", outcome(ioctl_value(&vcpu, KVM_RUN, 1)));
    STEP.same("vcpu: unknown ioctl", "EINVAL", outcome(ioctl_value(&vcpu, ioc(0, KVM_MAGIC, 0x7f, 0), 0)));
    STEP.same("vcpu: reg, bad address", "EFAULT", outcome(ioctl_value(&vcpu, KVM_SET_ONE_REG, 8)));
    Ok(())
}

fn files(kvm: &Kvm) -> Result<(), String> {
    let vm = new_vm(kvm)?;
    let gmem = new_gmem(&vm, MIB).map_err(errno_name)?;
    let mut byte = [0u8; 8];
    STEP.same("file: read(2)", "EINVAL", outcome(sys::read_to(&gmem, byte.as_mut_ptr(), 8)));
    STEP.same("file: write(2)", "EINVAL", outcome(sys::write_from(&gmem, byte.as_ptr(), 8)));
    let keep = libc::FALLOC_FL_KEEP_SIZE;
    let punch = keep | libc::FALLOC_FL_PUNCH_HOLE;
    STEP.same("file: fallocate without keep-size", "EOPNOTSUPP", outcome(sys::fallocate(&gmem, 0, 0, 4096)));
    STEP.same("file: fallocate unaligned", "EINVAL", outcome(sys::fallocate(&gmem, keep, 1, 4096)));
    STEP.same("file: fallocate", "0", outcome(sys::fallocate(&gmem, keep, 0, 8192)));
    STEP.same("file: punch unaligned", "EINVAL", outcome(sys::fallocate(&gmem, punch, 1, 4096)));
    STEP.same("file: punch", "0", outcome(sys::fallocate(&gmem, punch, 0, 8192)));
    // SAFETY: plain numbers.
    let cut = unsafe { libc::ftruncate(gmem.as_raw_fd(), 4096) };
    STEP.same("file: ftruncate", "EINVAL", if cut == 0 { "0".to_string() } else { errno_name(sys::last_errno()) });
    // SAFETY: a new mapping at an address of the kernel's choice.
    let private =
        unsafe { libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, libc::MAP_PRIVATE, gmem.as_raw_fd(), 0) };
    STEP.same(
        "file: private mapping",
        "EINVAL",
        if private == libc::MAP_FAILED { errno_name(sys::last_errno()) } else { "mapped".to_string() },
    );
    let map = gmem.map(2 * 1024 * 1024).map_err(errno_name)?;
    STEP.same(
        "file: load beyond its end",
        "SIGBUS",
        crate::probe::probe(map.at(1024 * 1024), crate::probe::Access::Load),
    );
    STEP.same("file: unknown ioctl", "ENOTTY", outcome(ioctl_value(&gmem, ioc(0, KVM_MAGIC, 0x7f, 0), 0)));
    Ok(())
}

fn conversions(kvm: &Kvm) -> Result<(), String> {
    let vm = new_vm(kvm)?;
    let gmem = new_gmem(&vm, MIB).map_err(errno_name)?;
    let good = Convert { size: PAGE, to: CONVERT_TO_PRIVATE, ..CONVERT };
    let ask = |case: &str, convert: Convert| {
        let seen = gmem.convert(convert).map_or_else(|(error, _)| errno_name(error), |()| "0".to_string());
        STEP.same(&format!("convert: {case}"), "EINVAL", seen);
    };
    ask("offset unaligned", Convert { offset: 8, ..good });
    ask("size unaligned", Convert { size: PAGE + 8, ..good });
    ask("size 0", Convert { size: 0, ..good });
    ask("beyond the file", Convert { offset: MIB, ..good });
    ask("over the end", Convert { offset: MIB - PAGE, size: 2 * PAGE, ..good });
    ask("overflow", Convert { offset: 0u64.wrapping_sub(PAGE), size: 2 * PAGE, ..good });
    ask("to nowhere", Convert { to: 0, ..good });
    ask("to unknown", Convert { to: 3, ..good });
    ask("unknown mode", Convert { mode: 3, ..good });
    ask("reserved", Convert { reserved: [0, 0, 1], ..good });
    STEP.same("convert: wrong file", "EINVAL", outcome(ioctl(&vm, FREEHOLD_CONVERT, &mut { good })));
    STEP.same("convert: bad address", "EFAULT", outcome(ioctl_value(&gmem, FREEHOLD_CONVERT, 8)));
    STEP.same("pending: bad address", "EFAULT", outcome(ioctl_value(&gmem, FREEHOLD_PENDING, 8)));
    let map = gmem.map(1024 * 1024).map_err(errno_name)?;
    map.store(0, 0x1122_3344);
    STEP.same("convert: unbound file freezes", "0", converted(gmem.to_private(0, 2 * PAGE, 1000)));
    STEP.same("convert: host's load", "SIGBUS", crate::probe::probe(map.at(0), crate::probe::Access::Load));
    STEP.same("convert: again", "0", converted(gmem.to_private(0, PAGE, 1000)));
    STEP.same("convert: thaws", "0", converted(gmem.to_shared(0, 2 * PAGE)));
    STEP.same("convert: contents kept", format!("{:#x}", 0x1122_3344), format!("{:#x}", map.load(0)));
    Ok(())
}

/// Frame number behind an address of this process.
fn pfn(at: *mut u8) -> Result<u64, String> {
    let mut entry = [0; 8];
    std::fs::File::open("/proc/self/pagemap")
        .and_then(|file| file.read_exact_at(&mut entry, at.addr() as u64 / PAGE * 8))
        .map_err(|e| format!("pagemap: {e}"))?;
    Ok(u64::from_le_bytes(entry) & ((1 << 55) - 1))
}

/// A page that turns out to be broken memory is the host's loss alone: SIGBUS, no conversion, a clean close.
fn broken_memory(kvm: &Kvm) -> Result<(), String> {
    let vm = new_vm(kvm)?;
    let gmem = new_gmem(&vm, MIB).map_err(errno_name)?;
    let map = gmem.map(usize::try_from(MIB).expect("a megabyte")).map_err(errno_name)?;
    STEP.same("gmem: a page", "0", map.load(0).to_string());
    let address = pfn(map.at(0))? * PAGE;
    drop(map);
    // The kernel can not handle a page of a kind that it does not know, and says so; it marks it all the same.
    let _ = std::fs::write("/sys/devices/system/memory/hard_offline_page", format!("{address:#x}"));
    let map = gmem.map(usize::try_from(MIB).expect("a megabyte")).map_err(errno_name)?;
    STEP.same("gmem: a mapping of broken memory", "SIGBUS", probe(map.at(0), Access::Load));
    STEP.same("gmem: a mapping of it, again", "SIGBUS", probe(map.at(0), Access::Load));
    STEP.same("convert: broken memory", "errno 133 at 0x0", converted(gmem.to_private(0, PAGE, 1000)));
    STEP.same("gmem: the page beside it", "done", probe(map.at(4096), Access::Load));
    Ok(())
}

fn slots_in_use() -> Result<(), String> {
    let mut machine = Machine::new(Plan::default())?;
    machine.gmem.to_private(0, proto::RAM_MIN, 0).map_err(|(e, _)| errno_name(e))?;
    let delete = |machine: &Machine| {
        let mut region = MemoryRegion2 { memory_size: 0, ..region(&*machine.gmem) };
        outcome(ioctl(&machine.vm, KVM_SET_USER_MEMORY_REGION2, &mut region))
    };
    STEP.same("in use: delete slot before first run", "EBUSY", delete(&machine));
    STEP.same("in use: to shared", "EPERM at 0x0", converted(machine.gmem.to_shared(0, PAGE)));
    let punch = libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE;
    STEP.same("in use: punch hole", "EBUSY", outcome(sys::fallocate(&*machine.gmem, punch, 0, 4096)));
    machine.boot()?;
    STEP.same("in use: delete slot after first run", "EPERM", delete(&machine));
    let word = 7u64;
    let set = machine
        .vcpu
        .set_one_reg(KVM_REG_X0, &word.to_le_bytes())
        .map_or_else(|e| errno_name(e.errno()), |n| n.to_string());
    STEP.same("in use: set register after first run", "EPERM", set);
    let mut late = [0xffu8; 8];
    let get =
        machine.vcpu.get_one_reg(KVM_REG_X0, &mut late).map_or_else(|e| errno_name(e.errno()), |_| format!("{late:?}"));
    STEP.judged(
        "in use: get register after first run",
        "EPERM or zeros",
        &get,
        get == "EPERM" || get == format!("{:?}", [0u8; 8]),
    );
    let again = new_gmem(&machine.vm, MIB).map_err(errno_name)?;
    let second = set_slot(&machine.vm, 1, proto::RAM_BASE + proto::RAM_MIN, MIB, &again, 0);
    STEP.same("in use: new slot after first run", "Err(\"EPERM\")", format!("{:?}", second.map_err(errno_name)));
    let mut info = [u64::MAX; 8];
    for (case, flags, expected) in [("its size", 1, "0"), ("where it starts", 0, "EINVAL")] {
        let args = [if flags == 1 { info.as_mut_ptr() as u64 } else { 0x7fc0_0000 }, 0, 0, 0];
        let mut ask = EnableCap { cap: KVM_CAP_ARM_PROTECTED_VM, flags, args, pad: [0; 64] };
        let seen = outcome(ioctl(&machine.vm, KVM_ENABLE_CAP, &mut ask));
        STEP.same(&format!("in use: firmware: {case}"), expected, seen);
    }
    STEP.same("in use: firmware: there is none", true, info == [0; 8]);
    Ok(())
}

/// Where no `el2` answers: neither module loads and no node appears.
pub(crate) fn no_el2() {
    let step = Step("noel2");
    let node = NODE.to_str().unwrap_or_default();
    step.same("no node", false, std::path::Path::new(node).exists());
}
