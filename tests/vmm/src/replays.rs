// SPDX-License-Identifier: MIT OR Apache-2.0
//! What kvmtool and crosvm say to KVM on arm64, said in their order, and each answer as KVM gives it.
//!
//! The sequences are those of a start with each VMM's default controller, two vCPUs and 256 MiB asked of the layout; the
//! guest is the tests' own program at the address where both VMMs put a kernel, and the controller where that program
//! looks. What each of them asks for and does without, when it is refused, is refused here too: kvmtool's ITS among it.
//! Each runs ordinary and protected, on the VMM's own memory, as both VMMs have it.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use freehold_uapi::ioctl::*;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use crate::beside::executes;
use crate::gmem::Gmem;
use crate::hostile::Hostile;
use crate::machine::{Event, Machine, is_the_peer, read_program};
use crate::proto::*;
use crate::raw::{resting, settle};
use crate::report::Step;
use crate::sys::{self, Mapping, errno_name, ioctl, ioctl_value, outcome};
use crate::vgic::{frequency, interrupt, let_signals_interrupt, myself};

const STEP: Step = Step("replays");
const BYTES: u64 = 2 * RAM_MIN;
const VCPUS: u64 = 2;
const PATIENCE: Duration = Duration::from_secs(60);
/// Capabilities that are asked for by number alone.
const KVMCLOCK_CTRL: u32 = 76;
const COALESCED_MMIO: u32 = 15;
const SIGNAL_MSI: u32 = 77;
const READONLY_MEM: u32 = 81;
const PMU_V3: u32 = 126;
const MSI_DEVID: u32 = 131;
const SVE: u32 = 170;
const PTRAUTH: [u32; 2] = [171, 172];
const STEAL_TIME: u32 = 187;
const MTE: u32 = 205;
/// `KVM_DEV_TYPE_ARM_VGIC_ITS`.
const ITS: u32 = 8;
const IRQ_ROUTING: u32 = 25;
/// `SCTLR_EL1`, by KVM's name.
const SCTLR: u64 = 0x6030_0000_0013_c080;
/// vCPU attribute groups.
const PMU_CTRL: u32 = 0;
const PVTIME_CTRL: u32 = 2;
/// `KVM_UNREGISTER_COALESCED_MMIO`.
const UNREGISTER_COALESCED: u32 = ioc(1, KVM_MAGIC, 0x68, 16);

/// Runs the cases.
pub(crate) fn all() -> Result<(), String> {
    let_signals_interrupt();
    let hostile = Hostile::open()?;
    let before = resting(&hostile);
    for protected in [false, true] {
        kvmtool(protected)?;
        crosvm(protected)?;
    }
    firmware()?;
    crate::passed::all(STEP)?;
    settle(STEP, "all is as before", &hostile, &before);
    Ok(())
}

/// A VMM on its way: what it says, and what it should be answered.
struct Vmm {
    who: String,
    kvm: Kvm,
}

impl Vmm {
    fn new(who: &str, protected: bool, node: &CStr) -> Result<Self, String> {
        let kvm =
            Kvm::new_with_path(node).map_err(|e| format!("{}: {}", node.to_string_lossy(), errno_name(e.errno())))?;
        Ok(Self { who: format!("{who}, {}", if protected { "protected" } else { "ordinary" }), kvm })
    }

    fn says(&self, what: &str, expected: impl ToString, seen: impl ToString) {
        STEP.same(&format!("{}: {what}", self.who), expected, seen);
    }

    /// `CHECK_EXTENSION` on a descriptor.
    fn checks(&self, fd: &impl AsRawFd, name: &str, caps: &[(u32, u64)]) {
        for &(cap, expected) in caps {
            let seen = outcome(ioctl_value(fd, KVM_CHECK_EXTENSION, cap.into()));
            self.says(&format!("{name}: capability {cap:#x}"), expected, seen);
        }
    }

    /// An attribute of a device or of a vCPU, set or asked for.
    fn attr(&self, fd: &impl AsRawFd, request: u32, what: &str, expected: &str, attr: [u64; 3]) {
        let [group, attr, value] = attr;
        let group = u32::try_from(group).unwrap_or(u32::MAX);
        let mut ask = DeviceAttr { flags: 0, group, attr, addr: (&raw const value) as u64 };
        self.says(what, expected, outcome(ioctl(fd, request, &mut ask)));
    }

    fn creates(&self, kind: u64) -> Result<VmFd, String> {
        self.kvm.create_vm_with_type(kind).map_err(|e| format!("{}: CREATE_VM: {}", self.who, errno_name(e.errno())))
    }

    /// A vGICv3: the answer to each step.
    fn gic(&self, vm: &VmFd) -> Result<OwnedFd, String> {
        let kind = u32::try_from(KVM_DEV_TYPE_ARM_VGIC_V3).unwrap_or(0);
        let mut ask = CreateDevice { kind, fd: 0, flags: 0 };
        ioctl(vm, KVM_CREATE_DEVICE, &mut ask)
            .map_err(|e| format!("{}: CREATE_DEVICE: {}", self.who, errno_name(e)))?;
        let gic = sys::owned(ask.fd.into());
        let frames = [(KVM_VGIC_V3_ADDR_TYPE_REDIST, GICR_GFN << 12), (KVM_VGIC_V3_ADDR_TYPE_DIST, GICD_GFN << 12)];
        for (attr, at) in frames {
            let what = format!("vGIC: address {attr}");
            self.attr(&gic, KVM_SET_DEVICE_ATTR, &what, "0", [KVM_DEV_ARM_VGIC_GRP_ADDR, attr, at]);
        }
        Ok(gic)
    }

    fn slot(&self, vm: &VmFd, slot: u32, bytes: u64, at: *mut u8) -> String {
        let userspace_addr = at.addr() as u64;
        let mut region = MemoryRegion { slot, flags: 0, guest_phys_addr: RAM_BASE, memory_size: bytes, userspace_addr };
        let seen = outcome(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &mut region));
        if bytes != 0 {
            self.says("slot of RAM", "0", &seen);
        }
        seen
    }

    fn vcpus(&self, vm: &VmFd) -> Result<Vec<VcpuFd>, String> {
        let made = (0..VCPUS).map(|id| vm.create_vcpu(id));
        made.collect::<Result<_, _>>().map_err(|e| format!("{}: CREATE_VCPU: {}", self.who, errno_name(e.errno())))
    }

    fn initialises(&self, vm: &impl AsRawFd, vcpu: &VcpuFd, id: u64) {
        let mut init = VcpuInit { target: 0, features: [0; 7] };
        self.says("preferred target", "0", outcome(ioctl(vm, KVM_ARM_PREFERRED_TARGET, &mut init)));
        init.features[0] = 1 << KVM_ARM_VCPU_PSCI_0_2 | u32::from(id != 0) << KVM_ARM_VCPU_POWER_OFF;
        self.says(&format!("vCPU {id}: init"), "0", outcome(ioctl(vcpu, KVM_ARM_VCPU_INIT, &mut init)));
    }

    fn mpidr(&self, vcpu: &VcpuFd, id: u64) {
        let mut value = 0u64;
        let seen = ioctl(vcpu, KVM_GET_ONE_REG, &mut OneReg { id: KVM_REG_MPIDR, addr: (&raw mut value) as u64 });
        self.says(&format!("vCPU {id}: MPIDR"), format!("0, {id}"), format!("{}, {}", outcome(seen), value & 0xff));
    }

    fn registers(&self, vcpu: &VcpuFd, id: u64, values: &[(u64, u64)]) {
        for (reg, value) in values {
            let mut ask = OneReg { id: *reg, addr: value as *const u64 as u64 };
            self.says(&format!("vCPU {id}: register {reg:#x}"), "0", outcome(ioctl(vcpu, KVM_SET_ONE_REG, &mut ask)));
        }
    }
}

const fn x(n: u64) -> u64 {
    KVM_REG_X0 + 2 * n
}

/// The other vCPU's thread: `enter` says what is said before its runs, which come back for signals only. `meanwhile` is
/// done beside what is said, `act` beside the runs.
fn beside<R>(
    vcpu: VcpuFd,
    machine: &mut Machine,
    enter: impl FnOnce(&VcpuFd) + Send,
    meanwhile: impl FnOnce(&mut Machine) -> Result<(), String>,
    act: impl FnOnce(&mut Machine) -> Result<R, String>,
) -> (Result<R, String>, String) {
    let (thread, over, gone) = (AtomicI32::new(0), AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let seat = scope.spawn(|| {
            let mut vcpu = vcpu;
            enter(&vcpu);
            thread.store(myself(), Ordering::SeqCst);
            let mut told = String::new();
            while !over.load(Ordering::SeqCst) && told.is_empty() {
                match vcpu.run().map_err(|e| e.errno()) {
                    Err(libc::EINTR) => {}
                    Ok(other) => told = format!("{other:?}"),
                    Err(error) => told = errno_name(error),
                }
            }
            gone.store(true, Ordering::SeqCst);
            told
        });
        let begun = meanwhile(machine);
        let start = Instant::now();
        while thread.load(Ordering::SeqCst) == 0 && start.elapsed() < PATIENCE {
            std::thread::yield_now();
        }
        let done = begun.and_then(|()| act(machine));
        over.store(true, Ordering::SeqCst);
        let start = Instant::now();
        // A signal that comes before its run is of no use, so it gets more.
        while !gone.load(Ordering::SeqCst) && start.elapsed() < PATIENCE {
            interrupt(thread.load(Ordering::SeqCst));
            std::thread::sleep(Duration::from_millis(1));
        }
        (done, seat.join().unwrap_or_else(|_| "panicked".into()))
    })
}

/// One vCPU's spins, in which the other one's registers are set.
#[derive(Default)]
struct Spins {
    /// The spin under way: its number, 0 outside of any.
    now: AtomicU32,
    enough: AtomicBool,
}

/// Spins at most.
const TRIES: u32 = 10;

impl Spins {
    /// Has the guest spin until that is enough, without an exit in each spin.
    fn spin(&self, machine: &mut Machine) -> Result<(), String> {
        for number in 1..=TRIES {
            self.now.store(number, Ordering::SeqCst);
            let done = machine.command(CMD_SPIN, [2 * frequency(), 0, 0]);
            self.now.store(0, Ordering::SeqCst);
            done?;
            if self.enough.load(Ordering::SeqCst) {
                break;
            }
        }
        Ok(())
    }

    /// Does `act` until it was done once in the midst of a spin of `thread`'s; whether it was.
    fn within(&self, thread: libc::pid_t, act: impl Fn()) -> bool {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            let number = self.now.load(Ordering::SeqCst);
            if number == 0 || !executes(thread) {
                std::thread::yield_now();
                continue;
            }
            act();
            if self.now.load(Ordering::SeqCst) == number {
                self.enough.store(true, Ordering::SeqCst);
                return true;
            }
        }
        self.enough.store(true, Ordering::SeqCst);
        false
    }
}

fn boots(vmm: &Vmm, machine: &mut Machine) -> Result<(), String> {
    let boot = machine.boot()?;
    vmm.says("its guest boots", format!("{BOOT_LINE}\n"), &boot.console);
    vmm.says("and has what was loaded", 1, boot.hash_ok);
    dumps(vmm, &machine.vcpu);
    Ok(())
}

/// What kvmtool reads of a vCPU that ran: for a dump when it ends in a way that it does not know, and where a guest resets a
/// device of the older kind. An error would be its end; of a protected vCPU it gets zeros.
fn dumps(vmm: &Vmm, vcpu: &VcpuFd) {
    let closed = vmm.who.ends_with("protected");
    for (name, id) in [("x30", x(30)), ("SP_EL1", KVM_REG_X0 + 0x44), ("PSTATE", KVM_REG_PSTATE), ("SCTLR", SCTLR)] {
        let mut value = u64::MAX;
        let seen = outcome(ioctl(vcpu, KVM_GET_ONE_REG, &mut OneReg { id, addr: (&raw mut value) as u64 }));
        // KVM's own answer for a protected guest is what its VMM wrote last.
        let held = seen == "0" && (is_the_peer() || (value == 0) == closed);
        let expected = if closed { "0, and it is zero" } else { "0, and what it has" };
        STEP.judged(&format!("{}: reading {name} after a run", vmm.who), expected, format!("{seen}, {value:#x}"), held);
    }
}

/// Has the other vCPU started, and ends the VM.
fn ends(vmm: &Vmm, machine: &mut Machine) -> Result<(), String> {
    // The peer's SPIs are edges until a guest says what they are, so that the UART's wire that was high waits to be taken;
    // the tests' program wants to find nothing.
    if !is_the_peer() {
        vmm.says("its guest's controller is one", 0, machine.command(CMD_GIC, [VCPUS, 0, 0])?[0]);
        vmm.says("its guest starts the other vCPU", 0, machine.command(CMD_CPU_ON, [1, 0, 0])?[0]);
    }
    let off = machine.last_command(CMD_OFF, [0; 3]);
    vmm.says("its guest turns itself off", format!("{:?}", Event::System(1)), format!("{off:?}"));
    Ok(())
}

fn around(vmm: &Vmm, vm: VmFd, vcpu: VcpuFd, ram: Arc<Mapping>) -> Result<Machine, String> {
    let bytes = vmm.kvm.get_vcpu_mmap_size().map_err(|e| errno_name(e.errno()))?;
    let page = Mapping::new(&vcpu, 0, bytes, libc::PROT_READ).map_err(errno_name)?;
    let gmem = Arc::new(Gmem::new(sys::memfd(4096).map_err(errno_name)?));
    Ok(Machine::around(vm, vcpu, gmem, ram, (page, bytes)))
}

/// `lkvm run -m 256 -c 2`; it can not ask for protection, so that the node does.
pub(crate) fn kvmtool(protected: bool) -> Result<(), String> {
    let vmm = Vmm::new("kvmtool", protected, if protected { c"/dev/kvm-protected" } else { c"/dev/kvm" })?;
    let sys = &vmm.kvm;
    vmm.says("API version", 12, outcome(ioctl_value(sys, KVM_GET_API_VERSION, 0)));
    vmm.checks(sys, "system", &[(KVM_CAP_ARM_VM_IPA_SIZE, 40)]);
    let vm = vmm.creates(32)?;
    vmm.checks(sys, "system", &[(KVM_CAP_IRQCHIP, 1), (KVM_CAP_ONE_REG, 1), (KVM_CAP_ARM_PSCI, 1)]);
    // Its default is a controller with an ITS. Without one it closes the controller, and makes one that has none.
    let gic = vmm.gic(&vm)?;
    let mut ask = CreateDevice { kind: ITS, fd: 0, flags: 0 };
    let its = ioctl(&vm, KVM_CREATE_DEVICE, &mut ask);
    vmm.says("no ITS", "ENODEV", outcome(its));
    let gic = match its {
        Ok(_) => {
            drop(sys::owned(ask.fd.into()));
            gic
        }
        Err(_) => {
            drop(gic);
            vmm.gic(&vm)?
        }
    };
    vmm.checks(sys, "system", &[(MTE, 0)]);
    let ram = Arc::new(Mapping::anonymous(usize::try_from(BYTES).unwrap_or(0), false).map_err(errno_name)?);
    for advice in [libc::MADV_MERGEABLE, libc::MADV_HUGEPAGE] {
        let _ = ram.advise(0, usize::try_from(BYTES).unwrap_or(0), advice);
    }
    vmm.slot(&vm, 0, BYTES, ram.at(0));
    // Kernel and initrd come after the slot, the device tree later still.
    ram.copy_in(0, &read_program()?);
    vmm.checks(sys, "system", &[(KVM_CAP_IOEVENTFD, 1), (KVM_CAP_MAX_VCPUS, 8), (KVM_CAP_NR_VCPUS, 8)]);
    let asked = [(KVM_CAP_ARM_PSCI_0_2, 1), (PTRAUTH[0], 0), (PTRAUTH[1], 0), (SVE, 0)];
    let (mut vcpus, mut pages) = (Vec::new(), Vec::new());
    for id in 0..VCPUS {
        // One vCPU is whole before the next one is made.
        let made = vm.create_vcpu(id).map_err(|e| format!("{}: CREATE_VCPU: {}", vmm.who, errno_name(e.errno())))?;
        vmm.says("run page", 4096, outcome(ioctl_value(sys, KVM_GET_VCPU_MMAP_SIZE, 0)));
        let bytes = vmm.kvm.get_vcpu_mmap_size().map_err(|e| errno_name(e.errno()))?;
        let both = libc::PROT_READ | libc::PROT_WRITE;
        let page = Mapping::new(&made, 0, bytes, both).map_err(errno_name);
        vmm.says(&format!("vCPU {id}: its run page is mapped"), true, page.is_ok());
        pages.push(page?);
        vmm.checks(sys, "system", &asked);
        vmm.initialises(&vm, &made, id);
        vmm.checks(sys, "system", &[(STEAL_TIME, 0), (COALESCED_MMIO, 0)]);
        vcpus.push(made);
    }
    vmm.checks(sys, "system", &[(SIGNAL_MSI, 0)]);
    let (irqs, ctrl) = (KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_DEV_ARM_VGIC_GRP_CTRL);
    for (request, name) in [(KVM_HAS_DEVICE_ATTR, "has"), (KVM_SET_DEVICE_ATTR, "set")] {
        vmm.attr(&gic, request, &format!("vGIC: {name} number of interrupts"), "0", [irqs, 0, 64]);
        vmm.attr(&gic, request, &format!("vGIC: {name} init"), "0", [ctrl, KVM_DEV_ARM_VGIC_CTRL_INIT, 0]);
    }
    vmm.checks(sys, "system", &[(KVM_CAP_CHECK_EXTENSION_VM, 1)]);
    vmm.checks(&vm, "VM", &[(MSI_DEVID, 0)]);
    for (vcpu, id) in vcpus.iter().zip(0..) {
        vmm.mpidr(vcpu, id);
    }
    let (Some(other), Some(first)) = (vcpus.pop(), vcpus.pop()) else { return Err("no vCPUs".into()) };
    let entry = [(KVM_REG_PSTATE, START_PSTATE), (x(1), 0), (x(2), 0), (x(3), 0)];
    vmm.registers(&first, 0, &entry);
    vmm.registers(&first, 0, &[(x(0), BOOT_NO_SHARE), (KVM_REG_PC, RAM_BASE)]);
    let mut machine = around(&vmm, vm, first, ram.clone())?;
    // The first vCPU is in its guest when the other thread comes to its registers.
    boots(&vmm, &mut machine)?;
    let (spins, thread) = (Spins::default(), myself());
    let (lived, told) = beside(
        other,
        &mut machine,
        |vcpu| {
            let beside = spins.within(thread, || vmm.registers(vcpu, 1, &entry));
            vmm.says("vCPU 1: its registers were set while vCPU 0 executed", true, beside);
        },
        |machine| spins.spin(machine),
        |machine| {
            let wire = |machine: &Machine, level| {
                let irq = u32::try_from(KVM_ARM_IRQ_TYPE_SPI << 24 | SPI).unwrap_or(0);
                outcome(ioctl(&machine.vm, KVM_IRQ_LINE, &mut IrqLevel { irq, level }))
            };
            vmm.says("its UART's wire: high, low", "0, 0", format!("{}, {}", wire(machine, 1), wire(machine, 0)));
            queues(&vmm, machine);
            ends(&vmm, machine)
        },
    );
    vmm.says("its other vCPU came back for signals only", "", told);
    lived?;
    // At its exit it deletes the slot of stolen time, which it did not get, and looks at no answer.
    vmm.says("slot of stolen time", "EINVAL", vmm.slot(&machine.vm, 1, 0, ram.at(0)));
    vmm.says("coalesced MMIO", "EINVAL", outcome(ioctl(&machine.vm, UNREGISTER_COALESCED, &mut [0u64; 2])));
    Ok(())
}

/// Its virtio devices on PCI, which are its default for a disk or a network: whether there are messages, and each queue's
/// bell by the queue's number, set, and taken away where a device is reset.
fn queues(vmm: &Vmm, machine: &Machine) {
    // Without messages its devices have wires, as its UART has.
    vmm.checks(&machine.vm, "VM", &[(IRQ_ROUTING, 0)]);
    for (queue, len) in [(0u64, 2), (1, 2), (0, 4), (1, 4)] {
        let bell = event();
        let (addr, fd) = (DEVICE + 0x900 + u64::from(len), bell.as_raw_fd().cast_unsigned());
        let flag = |bit| u32::try_from(bit).unwrap_or(0);
        let good =
            Ioeventfd { datamatch: queue, addr, len, fd, flags: flag(KVM_IOEVENTFD_FLAG_DATAMATCH), pad: [0; 36] };
        let gone = Ioeventfd { flags: good.flags | flag(KVM_IOEVENTFD_FLAG_DEASSIGN), ..good };
        let seen = [good, gone].map(|mut ask| outcome(ioctl(&machine.vm, KVM_IOEVENTFD, &mut ask)));
        vmm.says(&format!("queue {queue}, {len} bytes: its bell, set and taken away"), "0, 0", seen.join(", "));
    }
}

/// Sealed memory with a descriptor, as crosvm has it.
fn sealed(bytes: u64) -> Result<(Mapping, OwnedFd), String> {
    // SAFETY: a constant name; the answer is a descriptor of ours or -1.
    let fd = unsafe { libc::memfd_create(c"crosvm_guest".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    let fd = sys::owned(fd.into());
    // SAFETY: plain numbers.
    let sized = unsafe { libc::ftruncate(fd.as_raw_fd(), bytes.cast_signed()) };
    let seals = libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;
    // SAFETY: plain numbers.
    let done = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) };
    if sized != 0 || done != 0 {
        return Err("sealed memory".into());
    }
    let bytes = usize::try_from(bytes).map_err(|e| e.to_string())?;
    let map = Mapping::new(&fd, 0, bytes, libc::PROT_READ | libc::PROT_WRITE).map_err(errno_name)?;
    Ok((map, fd))
}

fn event() -> OwnedFd {
    // SAFETY: plain numbers; the answer is a descriptor of ours or -1.
    sys::owned(i64::from(unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) }))
}

/// `crosvm run --mem 256 --cpus 2`, and with `--protected-vm-without-firmware`.
pub(crate) fn crosvm(protected: bool) -> Result<(), String> {
    let vmm = Vmm::new("crosvm", protected, c"/dev/kvm")?;
    let sys = &vmm.kvm;
    vmm.says("API version", 12, outcome(ioctl_value(sys, KVM_GET_API_VERSION, 0)));
    vmm.says("run page", 4096, outcome(ioctl_value(sys, KVM_GET_VCPU_MMAP_SIZE, 0)));
    let (ram, _memory) = sealed(BYTES)?;
    let ram = Arc::new(ram);
    vmm.checks(sys, "system", &[(KVM_CAP_ARM_VM_IPA_SIZE, 40)]);
    let vm = vmm.creates(if protected { KVM_VM_TYPE_ARM_PROTECTED | 40 } else { 40 })?;
    vmm.checks(&vm, "VM", &[(KVMCLOCK_CTRL, 0), (236, 0), (239, 0), (KVM_CAP_USER_MEMORY2, 1)]);
    vmm.slot(&vm, 0, BYTES, ram.at(0));
    vmm.checks(&vm, "VM", &[(KVM_CAP_ARM_PROTECTED_VM, u64::from(protected))]);
    let gic = vmm.gic(&vm)?;
    vmm.attr(&gic, KVM_SET_DEVICE_ATTR, "vGIC: number of interrupts", "0", [KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, 64]);
    vmm.checks(sys, "system", &[(KVM_CAP_ARM_VM_IPA_SIZE, 40)]);
    vmm.checks(&vm, "VM", &[(PMU_V3, 0)]);
    let mut vcpus = vmm.vcpus(&vm)?;
    for (vcpu, id) in vcpus.iter().zip(0..) {
        let what = format!("vCPU {id}: stolen time, before init");
        vmm.attr(vcpu, KVM_HAS_DEVICE_ATTR, &what, "ENXIO", [PVTIME_CTRL.into(), 0, 0]);
        // The VM's descriptor is another one for each vCPU.
        // SAFETY: a plain number; the answer is a descriptor of ours or -1.
        let dup = sys::owned(i64::from(unsafe { libc::fcntl(vm.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 3) }));
        vmm.checks(&dup, "VM, another descriptor", &[(PTRAUTH[0], 0), (PTRAUTH[1], 0), (SVE, 0)]);
        vmm.initialises(&dup, vcpu, id);
    }
    let ctrl = KVM_DEV_ARM_VGIC_GRP_CTRL;
    vmm.attr(&gic, KVM_SET_DEVICE_ATTR, "vGIC: init", "0", [ctrl, KVM_DEV_ARM_VGIC_CTRL_INIT, 0]);
    for (vcpu, attr) in vcpus.iter().flat_map(|vcpu| [(vcpu, 0), (vcpu, 1)]) {
        for request in [KVM_HAS_DEVICE_ATTR, KVM_SET_DEVICE_ATTR] {
            vmm.attr(vcpu, request, "the PMU it does not get", "ENXIO", [PMU_CTRL.into(), attr, 23]);
        }
    }
    vmm.checks(&vm, "VM", &[(READONLY_MEM, u64::from(!protected))]);
    let pci = if protected { None } else { Some(configuration(&vmm, &vm)?) };
    let events: Vec<[OwnedFd; 2]> = (0..7).map(|_| [event(), event()]).collect();
    for (gsi, [event, again]) in (0u32..).zip(&events) {
        // Four wires of the serial ports, the clock and the watchdog; the rest are levels of the bus.
        let level = gsi >= 4;
        let (fd, resamplefd) = (event.as_raw_fd().cast_unsigned(), again.as_raw_fd().cast_unsigned());
        let flags = if level { u32::try_from(KVM_IRQFD_FLAG_RESAMPLE).unwrap_or(0) } else { 0 };
        let mut ask = Irqfd { fd, gsi, flags, resamplefd: if level { resamplefd } else { 0 }, pad: [0; 16] };
        vmm.says(&format!("interrupt {gsi} by an eventfd"), "0", outcome(ioctl(&vm, KVM_IRQFD, &mut ask)));
    }
    ram.copy_in(0, &read_program()?);
    for (vcpu, id) in vcpus.iter().zip(0..) {
        let mut value = 0u64;
        let mut ask = OneReg { id: KVM_REG_PSCI_VERSION, addr: (&raw mut value) as u64 };
        let seen = outcome(ioctl(vcpu, KVM_GET_ONE_REG, &mut ask));
        vmm.says(&format!("vCPU {id}: PSCI 1.1"), "0, 0x10001", format!("{seen}, {value:#x}"));
        vmm.mpidr(vcpu, id);
    }
    vmm.checks(sys, "system", &[(KVM_CAP_IMMEDIATE_EXIT, 1)]);
    let (Some(other), Some(first)) = (vcpus.pop(), vcpus.pop()) else { return Err("no vCPUs".into()) };
    vmm.registers(&first, 0, &[(KVM_REG_PSTATE, START_PSTATE), (x(0), BOOT_NO_SHARE), (KVM_REG_PC, RAM_BASE)]);
    let mut machine = around(&vmm, vm, first, ram)?;
    // All are ready before one runs.
    let (lived, told) = beside(
        other,
        &mut machine,
        |vcpu| vmm.registers(vcpu, 1, &[(KVM_REG_PSTATE, START_PSTATE)]),
        |_| Ok(()),
        |machine| {
            boots(&vmm, machine)?;
            if let Some(pci) = &pci {
                configured(&vmm, machine, pci)?;
            }
            rings(&vmm, machine);
            ends(&vmm, machine)
        },
    );
    vmm.says("its other vCPU came back for signals only", "", told);
    lived
}

/// Where it has the configuration of its PCI devices, and for how many.
const PCI: u64 = 0x1_0000;
const FUNCTIONS: u64 = 3;

/// The configuration of each of its PCI devices is a slot that is read only, of a page that it writes by one mapping and
/// gives its guest by another one, for reading.
fn configuration(vmm: &Vmm, vm: &VmFd) -> Result<[Mapping; 2], String> {
    let page = |n: u64| usize::try_from(n * GRANULE).unwrap_or(0);
    let (pen, file) = Mapping::memfd(page(FUNCTIONS), true).map_err(errno_name)?;
    let rom = Mapping::new(&file, 0, page(FUNCTIONS), libc::PROT_READ).map_err(errno_name)?;
    for n in 0..FUNCTIONS {
        pen.store(page(n), identity(n));
        let mut region = MemoryRegion {
            slot: 1 + u32::try_from(n).unwrap_or(0),
            flags: u32::try_from(KVM_MEM_READONLY).unwrap_or(0),
            guest_phys_addr: PCI + n * GRANULE,
            memory_size: GRANULE,
            userspace_addr: rom.at(page(n)).addr() as u64,
        };
        let seen = outcome(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &mut region));
        vmm.says(&format!("slot of a PCI device, {n}"), "0", seen);
    }
    Ok([pen, rom])
}

/// Vendor and device.
const fn identity(n: u64) -> u64 {
    0x1040_1af4 + (n << 16)
}

/// The guest finds its devices, and what its VMM writes there later.
fn configured(vmm: &Vmm, machine: &mut Machine, [pen, _]: &[Mapping; 2]) -> Result<(), String> {
    for n in 0..FUNCTIONS {
        let at = PCI + n * GRANULE;
        let [seen, ..] = machine.command(CMD_LOAD, [at, 0, 0])?;
        vmm.says(&format!("PCI device {n}: its guest finds it"), format!("{:#x}", identity(n)), format!("{seen:#x}"));
        pen.store(usize::try_from(n * GRANULE + 8).unwrap_or(0), n);
        let [seen, ..] = machine.command(CMD_LOAD, [at + 8, 0, 0])?;
        vmm.says(&format!("PCI device {n}: and what is written later"), n, seen);
        let mut told = false;
        machine
            .command_with(CMD_STORE, [at + 16, 1, 0], |register| told |= register == (at + 16).wrapping_sub(DEVICE))?;
        vmm.says(&format!("PCI device {n}: its store is an exit"), true, told);
    }
    Ok(())
}

/// `--protected-vm`: what the firmware's size is, and where it should be. There is none, and there crosvm ends.
fn firmware() -> Result<(), String> {
    let vmm = Vmm::new("crosvm --protected-vm", true, c"/dev/kvm")?;
    let vm = vmm.creates(KVM_VM_TYPE_ARM_PROTECTED | 40)?;
    vmm.checks(&vm, "VM", &[(KVM_CAP_ARM_PROTECTED_VM, 1)]);
    let mut info = [u64::MAX; 8];
    let ask = |flags: u32, args: [u64; 4]| {
        outcome(ioctl(&vm, KVM_ENABLE_CAP, &mut EnableCap { cap: KVM_CAP_ARM_PROTECTED_VM, flags, args, pad: [0; 64] }))
    };
    vmm.says("the firmware's size is told", "0", ask(1, [info.as_mut_ptr() as u64, 0, 0, 0]));
    vmm.says("and it is none", true, info == [0; 8]);
    // Did it go on all the same:
    vmm.says("where it should be", "EINVAL", ask(0, [0x7fc0_0000, 0, 0, 0]));
    Ok(())
}

/// A device is switched on: a queue of it rings, of any length, set while both vCPUs are in their runs.
fn rings(vmm: &Vmm, machine: &mut Machine) {
    const QUEUE: u64 = DEVICE + 0x800;
    let bell = event();
    let fd = bell.as_raw_fd().cast_unsigned();
    let mut ask = Ioeventfd { datamatch: 0, addr: QUEUE, len: 0, fd, flags: 0, pad: [0; 36] };
    vmm.says("a queue that rings", "0", outcome(ioctl(&machine.vm, KVM_IOEVENTFD, &mut ask)));
    let mut exits = 0;
    let stored =
        machine.command_with(CMD_STORE, [QUEUE, 3, 0], |register| exits += u32::from(register == QUEUE - DEVICE));
    let mut rung = 0u64;
    let read = sys::read_to(&bell, (&raw mut rung).cast(), 8);
    vmm.says("it rings, and is no exit", "true, 0, Ok(8), 1", format!("{}, {exits}, {read:?}, {rung}", stored.is_ok()));
}
