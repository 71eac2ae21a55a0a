// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine is about to go off or to be reset: nothing of a VM may be left in RAM for whoever boots next.
//!
//! A driver ends its VMs before a reboot; this is for a host that does not, or that has crashed. Keeps I4 beyond the
//! life of `el2`.

use super::Platform;
use freehold_mem::lock::Permit;
use freehold_mem::ports::Frames;
use freehold_mem::{Host, Kind, State};
use freehold_virt::Refused;
use freehold_virt::handle::Handle;

/// Tries to end a VM whose vCPU still runs: its CPU leaves at its next interrupt.
const TRIES: u32 = 1_000_000;

/// Ends all VMs, lets none begin, and scrubs every frame that is not the host's. `false` if a vCPU still runs: nothing
/// was scrubbed, and this caller keeps no VM from beginning.
pub fn quiesce(p: &impl Platform) -> bool {
    let permit = &mut Permit::for_this_entry();
    let world = p.world();
    p.set_closing(true);
    // A VM that was being created when the machine closed is there once the host's lock was free.
    drop(world.host(permit));
    let mut ordinary = 0u64;
    for vm in p.vms().handles() {
        if !end(p, vm) {
            p.set_closing(false);
            return false;
        }
        if let Some(mut guest) = world.guest(permit, vm.slot().index())
            && p.vms().phase(vm).is_ok()
        {
            let memory = &mut guest.get().memory;
            ordinary |= u64::from(memory.kind() == Some(Kind::Ordinary)).unbounded_shl(vm.slot().raw().into());
            // Refused if it is dying already.
            let _ = memory.begin_death(&mut p.machine());
        }
    }
    let mut host = world.host(permit);
    scrub(p, host.get(), ordinary);
    true
}

/// The machine stays on after all.
pub fn reopen(p: &impl Platform) {
    p.set_closing(false);
}

/// Marks the VM as dying. `false` if one of its vCPUs does not come back.
fn end(p: &impl Platform, vm: Handle) -> bool {
    for _ in 0..TRIES {
        match p.vms().destroy(vm) {
            Err(Refused::VcpuBusy) => core::hint::spin_loop(),
            // Dying, or gone meanwhile: that is as good.
            Ok(()) | Err(_) => return true,
        }
    }
    false
}

/// Zeroes the frames of VMs and their pools. They stay whose they are. The pools of ordinary VMs keep their tables: by
/// these the host ends its loans if the machine stays on after all.
fn scrub(p: &impl Platform, host: &mut Host<'static>, ordinary: u64) {
    if host.counters().foreign == 0 {
        return;
    }
    let mut machine = p.machine();
    for frame in host.map().ram().flat_map(|bank| bank.frames()) {
        match host.ledger().state(frame) {
            Some(State::Pool { vm, .. }) if ordinary.unbounded_shr(vm.raw().into()) & 1 != 0 => {}
            Some(State::Private { .. } | State::Shared { .. } | State::Pool { .. }) => machine.scrub(frame),
            Some(State::Host | State::Lent(_) | State::El2 | State::NoMap) | None => {}
        }
    }
}
