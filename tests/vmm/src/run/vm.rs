// SPDX-License-Identifier: MIT OR Apache-2.0
//! Makes a VM: memory from a `guest_memfd`, an interrupt controller, vCPUs, and what is loaded.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use freehold_uapi::ioctl as abi;
use freehold_vmm_boot::args::Args;
use freehold_vmm_boot::fdt;
use freehold_vmm_boot::layout::{self, Layout};
use kvm_bindings::{
    KVM_ARM_VCPU_POWER_OFF, KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CTRL,
    KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST, kvm_create_device,
    kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3, kvm_vcpu_init,
};
use kvm_ioctls::{DeviceFd, Kvm, VcpuFd, VmFd};

use crate::gmem::Gmem;
use crate::machine::{make_gmem, set_slot};
use crate::sys::{Mapping, errno_name};

/// `MPIDR_EL1` by its number as a register of KVM's.
const MPIDR: u64 = 0x6030_0000_0013_c005;
/// EL1 with its own stack pointer, interrupts masked.
const PSTATE: u64 = 0x3c5;

/// A VM that has not run yet.
pub(super) struct Vm {
    pub(super) vm: VmFd,
    pub(super) vcpus: Vec<VcpuFd>,
    controller: DeviceFd,
    /// Kept: the host's view of the guest's memory is what attacks go through.
    pub(super) ram: Mapping,
    gmem: Gmem,
    layout: Layout,
    protected: bool,
}

fn failed(what: &str, error: i32) -> String {
    match (what, error) {
        ("CREATE_VM", libc::EOPNOTSUPP | libc::EINVAL) => {
            format!("{what}: {}: the driver offers no such VM", errno_name(error))
        }
        _ => format!("{what}: {}", errno_name(error)),
    }
}

fn open(path: &Path) -> Result<Kvm, String> {
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| "a NUL in the device's name".to_owned())?;
    let kvm = Kvm::new_with_path(name).map_err(|e| {
        let hint = if e.errno() == libc::ENOENT { " (is the driver loaded?)" } else { "" };
        format!("{}: {}{hint}", path.display(), errno_name(e.errno()))
    })?;
    match kvm.get_api_version() {
        12 => Ok(kvm),
        other => Err(format!("{}: not a KVM device (it answers {other})", path.display())),
    }
}

impl Vm {
    /// Creates the VM with empty memory.
    pub(super) fn new(args: &Args, layout: Layout) -> Result<Self, String> {
        let kvm = open(&args.device)?;
        let protection = if args.protected { abi::KVM_VM_TYPE_ARM_PROTECTED } else { 0 };
        let kind = protection | u64::from(layout::ADDRESS_BITS);
        let vm = kvm.create_vm_with_type(kind).map_err(|e| failed("CREATE_VM", e.errno()))?;
        let flags = abi::GUEST_MEMFD_FLAG_MMAP | abi::GUEST_MEMFD_FLAG_INIT_SHARED;
        let gmem = make_gmem(&vm, layout.memory, flags).map_err(|e| failed("CREATE_GUEST_MEMFD", e))?;
        let bytes = usize::try_from(layout.memory).map_err(|e| e.to_string())?;
        let ram = gmem.map(bytes).map_err(|e| failed("mmap of the guest_memfd", e))?;
        set_slot(&vm, 0, layout::RAM, layout.memory, &gmem, 0).map_err(|e| failed("SET_USER_MEMORY_REGION2", e))?;
        let controller = new_controller(&vm, args.cpus)?;
        let vcpus = (0..args.cpus).map(|index| new_vcpu(&vm, index)).collect::<Result<_, _>>()?;
        Ok(Self { vm, vcpus, controller, ram, gmem, layout, protected: args.protected })
    }

    /// Writes kernel, initial file system and device tree into memory.
    pub(super) fn load(&mut self, kernel: &[u8], initrd: Option<&[u8]>, cmdline: &str) -> Result<(), String> {
        let mpidr = |vcpu: &VcpuFd| {
            let mut word = [0; 8];
            vcpu.get_one_reg(MPIDR, &mut word).map_err(|e| failed("GET_ONE_REG of MPIDR_EL1", e.errno()))?;
            Ok(u64::from_le_bytes(word))
        };
        let cpus = self.vcpus.iter().map(mpidr).collect::<Result<Vec<_>, String>>()?;
        let tree = fdt::write(&fdt::Machine { layout: self.layout, cpus: &cpus, cmdline });
        let tree = tree.map_err(|e| format!("device tree: {e}"))?;
        self.write(self.layout.kernel, kernel)?;
        self.write(self.layout.tree, &tree)?;
        if let (Some(bytes), Some((start, _))) = (initrd, self.layout.initrd) {
            self.write(start, bytes)?;
        }
        Ok(())
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), String> {
        let offset = usize::try_from(address - layout::RAM).map_err(|e| e.to_string())?;
        self.ram.copy_in(offset, bytes);
        Ok(())
    }

    /// Makes memory private, where it is to be, and sets what the first vCPU starts with.
    pub(super) fn finish(&mut self) -> Result<(), String> {
        if self.protected {
            let done = self.gmem.to_private(0, self.layout.memory, 0);
            done.map_err(|(e, at)| failed(&format!("conversion to private, at {at:#x}"), e))?;
        }
        set(&self.controller, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, Some(&layout::INTERRUPTS))?;
        set::<u32>(&self.controller, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, None)?;
        let first = self.vcpus.first().ok_or("no vCPU")?;
        for (register, value) in
            [(abi::KVM_REG_X0, self.layout.tree), (abi::KVM_REG_PC, self.layout.kernel), (abi::KVM_REG_PSTATE, PSTATE)]
        {
            first.set_one_reg(register, &value.to_le_bytes()).map_err(|e| failed("SET_ONE_REG", e.errno()))?;
        }
        Ok(())
    }
}

fn new_controller(vm: &VmFd, cpus: u32) -> Result<DeviceFd, String> {
    let mut ask = kvm_create_device { type_: kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3, ..Default::default() };
    let controller = vm.create_device(&mut ask).map_err(|e| failed("CREATE_DEVICE of a GICv3", e.errno()))?;
    for (what, address) in [
        (KVM_VGIC_V3_ADDR_TYPE_REDIST, layout::redistributors(cpus)),
        (KVM_VGIC_V3_ADDR_TYPE_DIST, layout::DISTRIBUTOR),
    ] {
        set(&controller, KVM_DEV_ARM_VGIC_GRP_ADDR, what, Some(&address))?;
    }
    Ok(controller)
}

fn set<T>(controller: &DeviceFd, group: u32, attribute: u32, value: Option<&T>) -> Result<(), String> {
    let addr = value.map_or(0, |value| std::ptr::from_ref(value) as u64);
    let ask = kvm_device_attr { group, attr: attribute.into(), addr, flags: 0 };
    let done = controller.set_device_attr(&ask);
    done.map_err(|e| failed(&format!("SET_DEVICE_ATTR {group}/{attribute} of the GICv3"), e.errno()))
}

fn new_vcpu(vm: &VmFd, index: u32) -> Result<VcpuFd, String> {
    let vcpu = vm.create_vcpu(index.into()).map_err(|e| failed(&format!("CREATE_VCPU {index}"), e.errno()))?;
    let mut init = kvm_vcpu_init::default();
    vm.get_preferred_target(&mut init).map_err(|e| failed("ARM_PREFERRED_TARGET", e.errno()))?;
    init.features[0] |= 1 << abi::KVM_ARM_VCPU_PSCI_0_2;
    if index > 0 {
        init.features[0] |= 1 << KVM_ARM_VCPU_POWER_OFF;
    }
    vcpu.vcpu_init(&init).map_err(|e| failed("ARM_VCPU_INIT", e.errno()))?;
    Ok(vcpu)
}
