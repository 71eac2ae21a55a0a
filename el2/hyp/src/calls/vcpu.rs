// SPDX-License-Identifier: MIT OR Apache-2.0
//! vCPUs: made out of the pool, and their registers while nobody runs them. Running them is `guest`'s.

use super::{Loaded, Platform, give, with_both, with_guest};
use freehold_mem::lock::{Mutex, Permit};
use freehold_mem::{Kind, Life};
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

/// `VCPU_SET_REG`, and without a value `VCPU_GET_REG`. The registers of an ordinary VM are open at any time; those of a
/// protected one until that vCPU runs, and to be set until the VM does.
pub(super) fn register(
    p: &impl Platform,
    permit: &mut Permit,
    vm: Handle,
    index: VcpuIndex,
    register: HostRegister,
    value: Option<u64>,
) -> Result<Reply, Refused> {
    if register == HostRegister::Mpidr && value.is_none() {
        // The index says it: the vCPU may be running.
        return match p.vms().check_vcpu(vm, index) {
            Ok(()) => Err(Refused::WrongVcpu),
            Err(Refused::VcpuExists) => Ok(Reply::value(index.mpidr())),
            Err(why) => Err(why),
        };
    }
    let mut loaded = p.open(p.vms().claim(vm, index, Purpose::Registers)?);
    let fresh = loaded.claim().is_fresh();
    // The VM may have its first run meanwhile if this is not the vCPU that begins: then its guest starts it, which
    // forgets all of them.
    let ordinary = with_guest(p, permit, vm, |guest| match (guest.memory.kind(), guest.memory.life()) {
        (Some(Kind::Ordinary), Life::Building) if register == HostRegister::Power && value.is_some() => {
            Err(Refused::WrongState)
        }
        (Some(Kind::Ordinary), _) => Ok(true),
        (_, Life::Building) if fresh => Ok(false),
        (_, Life::Running) if fresh && value.is_none() => Ok(false),
        _ => Err(Refused::WrongState),
    })?;
    if let (HostRegister::Power, true, Some(on)) = (register, ordinary, value) {
        if on > 1 {
            return Err(Refused::BadArgument);
        }
        loaded.reset();
        loaded.claim().ran();
        p.board(vm.slot()).acquire().reset(index, on == 1);
        return Ok(Reply::done());
    }
    let (registers, _) = loaded.parts();
    match value {
        Some(value) => register.set(value, ordinary, registers).map(|()| Reply::done()),
        None => register.get(ordinary, registers).map(Reply::value),
    }
}

/// `VCPU_KICK`.
pub(super) fn kick(p: &impl Platform, vm: Handle, index: VcpuIndex) -> Result<Reply, Refused> {
    p.vms().kick(vm, index)?;
    // Noted first: a vCPU that is not in its guest yet looks when it is known to be there.
    give(p, p.board(vm.slot()).acquire().kick(index));
    Ok(Reply::done())
}
