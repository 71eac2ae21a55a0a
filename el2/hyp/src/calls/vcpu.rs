// SPDX-License-Identifier: MIT OR Apache-2.0
//! vCPUs: made out of the pool, and their registers before their first run. Running them is `guest`'s.

use super::{Loaded, Platform, give, with_both, with_guest};
use freehold_mem::Life;
use freehold_mem::lock::{Mutex, Permit};
use freehold_virt::Refused;
use freehold_virt::call::Reply;
use freehold_virt::handle::{Handle, VcpuIndex};
use freehold_virt::vcpu::HostRegister;
use freehold_virt::vm::Purpose;

/// `VCPU_CREATE`.
pub(super) fn create(p: &impl Platform, permit: &mut Permit, vm: Handle, index: VcpuIndex) -> Result<Reply, Refused> {
    with_both(p, permit, vm, |host, guest| {
        p.vms().check_vcpu(vm, index)?;
        if guest.memory.life() != Life::Building {
            return Err(Refused::WrongState);
        }
        let frame = guest.memory.take_frame(host, &mut p.machine())?;
        p.vms().create_vcpu(vm, index, p.create_vcpu(frame));
        p.board(vm.slot()).acquire().add_vcpu(index);
        Ok(Reply::done())
    })
}

/// `VCPU_SET_REG`.
pub(super) fn set_register(
    p: &impl Platform,
    permit: &mut Permit,
    vm: Handle,
    index: VcpuIndex,
    register: HostRegister,
    value: u64,
) -> Result<Reply, Refused> {
    let mut loaded = p.open(p.vms().claim(vm, index, Purpose::Registers)?);
    // The VM may have its first run meanwhile if this is not the vCPU that begins: then its guest starts it, which
    // forgets all of them.
    with_guest(p, permit, vm, |guest| match guest.memory.life() {
        Life::Building => Ok(()),
        Life::Free | Life::Running | Life::Dying => Err(Refused::WrongState),
    })?;
    let (registers, _) = loaded.parts();
    register.set(value, registers)?;
    Ok(Reply::done())
}

/// `VCPU_KICK`.
pub(super) fn kick(p: &impl Platform, vm: Handle, index: VcpuIndex) -> Result<Reply, Refused> {
    p.vms().kick(vm, index)?;
    // Noted first: a vCPU that is not in its guest yet looks when it is known to be there.
    let kicks = p.board(vm.slot()).acquire().kick(index);
    give(p, kicks);
    Ok(Reply::done())
}

/// `VCPU_GET_REG`.
pub(super) fn register(
    p: &impl Platform,
    vm: Handle,
    index: VcpuIndex,
    register: HostRegister,
) -> Result<Reply, Refused> {
    if register == HostRegister::Mpidr {
        // The index says it: the vCPU may be running.
        return match p.vms().check_vcpu(vm, index) {
            Ok(()) => Err(Refused::WrongVcpu),
            Err(Refused::VcpuExists) => Ok(Reply::value(index.mpidr())),
            Err(why) => Err(why),
        };
    }
    let mut loaded = p.open(p.vms().claim(vm, index, Purpose::Registers)?);
    let (registers, _) = loaded.parts();
    Ok(Reply::value(register.get(index.mpidr(), registers)))
}
