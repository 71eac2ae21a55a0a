// SPDX-License-Identifier: MIT OR Apache-2.0
//! The answer sheet: what is said of each capability on each descriptor, and to each of KVM's ioctls that is not served.
//!
//! `docs/kvm-abi.md` has the same in words. The kernel's own KVM is asked too, where that leaves no descriptor or state.

use std::os::fd::AsRawFd;

use freehold_uapi::ioctl::*;
use kvm_ioctls::{Kvm, VmFd};

use crate::machine::{VM_TYPE, init_vcpu, is_the_peer};
use crate::report::Step;
use crate::sys::{self, Mapping, errno_name, ioctl_value, outcome};

const STEP: Step = Step("sheet");
const PAGE: usize = 4096;
/// Numbers that KVM has given to capabilities so far end before it.
const NUMBERS: u64 = 300;

/// Capabilities by number, in the document's order; what the node, an ordinary VM and a protected one answer.
const CAPABILITIES: [(&[u32], [u64; 3]); 9] = [
    (&[0, 3, 14, 21, 30, 32, 36, 40, 70, 82, 87, 89, 102, 105, 122, 136, 231, 232, 234], [1; 3]),
    (&[9, 66, 128], [8; 3]),
    (&[10], [512; 3]),
    (&[165], [40; 3]),
    (&[233, 250], [8, 0, 8]),
    (&[244], [3; 3]),
    (&[KVM_CAP_ARM_PROTECTED_VM], [0, 0, 1]),
    (&[81], [1, 1, 0]),
    (&[15, 23, 25, 41, 77, 126, 131, 170, 171, 172, 187, 205], [0; 3]),
];

/// A vCPU's: name, number, direction, size.
const OF_A_VCPU: [(&str, u32, u32, u32); 11] = [
    ("GET_REGS", 0x81, 2, 864),
    ("SET_REGS", 0x82, 1, 864),
    ("GET_SREGS", 0x83, 2, 0),
    ("TRANSLATE", 0x85, 3, 24),
    ("SET_SIGNAL_MASK", 0x8b, 1, 4),
    ("GET_FPU", 0x8c, 2, 0),
    ("SET_GUEST_DEBUG", 0x9b, 1, 520),
    ("GET_VCPU_EVENTS", 0x9f, 2, 64),
    ("SET_VCPU_EVENTS", 0xa0, 1, 64),
    ("ARM_VCPU_FINALIZE", 0xc2, 1, 4),
    ("GET_STATS_FD", 0xce, 0, 0),
];

/// A VM's.
const OF_A_VM: [(&str, u32, u32, u32); 10] = [
    ("GET_DIRTY_LOG", 0x42, 1, 16),
    ("CREATE_IRQCHIP", 0x60, 0, 0),
    ("REGISTER_COALESCED_MMIO", 0x67, 1, 16),
    ("SET_GSI_ROUTING", 0x6a, 1, 8),
    ("SIGNAL_MSI", 0xa5, 1, 32),
    ("ARM_MTE_COPY_TAGS", 0xb4, 2, 48),
    ("ARM_SET_COUNTER_OFFSET", 0xb5, 1, 16),
    ("CLEAR_DIRTY_LOG", 0xc0, 3, 24),
    ("GET_STATS_FD", 0xce, 0, 0),
    ("RESET_DIRTY_RINGS", 0xc7, 0, 0),
];

/// The node's.
const OF_THE_NODE: [(&str, u32, u32, u32); 4] = [
    ("GET_MSR_INDEX_LIST", 0x02, 3, 4),
    ("GET_SUPPORTED_CPUID", 0x05, 3, 8),
    ("GET_EMULATED_CPUID", 0x09, 3, 8),
    ("GET_MSR_FEATURE_INDEX_LIST", 0x0a, 3, 4),
];

/// Asks; a descriptor that comes is closed again.
fn ask(fd: &impl AsRawFd, (name, nr, dir, size): (&str, u32, u32, u32)) -> String {
    let mut room = [0u64; 128];
    let seen = ioctl_value(fd, ioc(dir, KVM_MAGIC, nr, size), (&raw mut room) as u64);
    if let (Ok(fd), "GET_STATS_FD") = (seen, name) {
        drop(sys::owned(fd));
        return "a descriptor".into();
    }
    outcome(seen)
}

/// What is not served of a VM and of a vCPU, each with its errno.
pub(crate) fn refused(step: Step, whose: &str, vm: &VmFd, vcpu: &impl AsRawFd) {
    for row in OF_A_VCPU {
        step.same(&format!("{whose}no {} of a vCPU", row.0), "EINVAL", ask(vcpu, row));
    }
    for row in OF_A_VM {
        step.same(&format!("{whose}no {} of a VM", row.0), "EINVAL", ask(vm, row));
    }
    for (name, nr) in [("SET", 0xe1), ("GET", 0xe2), ("HAS", 0xe3)] {
        let name = format!("{name}_DEVICE_ATTR");
        step.same(&format!("{whose}no {name} of a vCPU"), "ENXIO", ask(vcpu, (&name, nr, 1, 24)));
        step.same(&format!("{whose}no {name} of a VM"), "ENXIO", ask(vm, (&name, nr, 1, 24)));
    }
}

/// Asks the node, an ordinary VM and a protected one.
pub(crate) fn all(kvm: &Kvm) -> Result<(), String> {
    let made = |kind| kvm.create_vm_with_type(kind).map_err(|e| format!("CREATE_VM: {}", errno_name(e.errno())));
    let vms = [("ordinary", made(40)?), ("protected", made(VM_TYPE)?)];
    let fds = [("system", kvm.as_raw_fd()), ("ordinary", vms[0].1.as_raw_fd()), ("protected", vms[1].1.as_raw_fd())];
    for (at, (whose, fd)) in fds.iter().enumerate() {
        let says = |cap: u64| outcome(ioctl_value(fd, KVM_CHECK_EXTENSION, cap));
        for (caps, answers) in CAPABILITIES {
            for cap in caps {
                STEP.same(&format!("{whose}: capability {cap:#x}"), answers[at], says((*cap).into()));
            }
        }
        if !is_the_peer() {
            let named = |cap: &u64| CAPABILITIES.iter().any(|(caps, _)| caps.iter().any(|n| u64::from(*n) == *cap));
            let more: Vec<u64> = (0..NUMBERS).filter(|cap| !named(cap) && says(*cap) != "0").collect();
            STEP.same(&format!("{whose}: other capabilities"), "[]", format!("{more:?}"));
        }
    }
    for row in OF_THE_NODE {
        STEP.same(&format!("system: no {}", row.0), "EINVAL", ask(kvm, row));
    }
    for (whose, vm) in &vms {
        let vcpu = vm.create_vcpu(0).map_err(|e| format!("CREATE_VCPU: {}", errno_name(e.errno())))?;
        init_vcpu(vm, &vcpu, 0)?;
        refused(STEP, &format!("{whose}: "), vm, &vcpu);
        run_page(kvm, whose, &vcpu)?;
    }
    Ok(())
}

/// The run page: mapped as often as anybody likes, and nothing behind it.
fn run_page(kvm: &Kvm, whose: &str, vcpu: &impl AsRawFd) -> Result<(), String> {
    let bytes = kvm.get_vcpu_mmap_size().map_err(|e| errno_name(e.errno()))?;
    let both = libc::PROT_READ | libc::PROT_WRITE;
    let map = |bytes: usize| Mapping::new(vcpu, 0, bytes, both).map_err(|e| format!("mmap: {}", errno_name(e)));
    let (first, second) = (map(bytes)?, map(bytes + PAGE)?);
    // `immediate_exit`.
    first.store(0, 1 << 8);
    STEP.same(&format!("{whose}: run page: a second mapping shows the same"), 1 << 8, second.load(0));
    let seen = crate::probe::probe(second.at(bytes), crate::probe::Access::Load);
    STEP.same(&format!("{whose}: run page: nothing behind it"), "SIGBUS", seen);
    first.store(0, 0);
    Ok(())
}
