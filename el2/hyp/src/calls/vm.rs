// SPDX-License-Identifier: MIT OR Apache-2.0
//! The life of a VM: made out of a run of frames, given RAM ranges and more pool, ended, and taken apart.
//!
//! Keeps I8: the slot is free again when the last frame went back, and its handle is stale from then on.

use super::{Platform, with_both, with_guest};
use freehold_mem::lock::{Mutex, Permit};
use freehold_mem::verbs::{el2_return_host, host_donate_el2, host_reclaim};
use freehold_mem::{Claim, GfnRun, Kind, PfnRun, Refused as Memory};
use freehold_virt::Refused;
use freehold_virt::board::Board;
use freehold_virt::call::Reply;
use freehold_virt::handle::Handle;

/// `VM_CREATE`.
pub(super) fn create(
    p: &impl Platform,
    permit: &mut Permit,
    protected: bool,
    ipa_bits: u32,
    pool: Claim<PfnRun>,
) -> Result<Reply, Refused> {
    if !p.serves_vms() {
        return Err(Refused::NoVms);
    }
    // Dropped on refusal, which frees the slot again.
    let slot = p.vms().reserve()?;
    let index = slot.handle().slot().index();
    let mut both = p.world().host(permit).with_guest(p.world(), index).ok_or(Refused::NoSlot)?;
    // Under the host's lock: whoever closes the machine takes it once, and finds this VM then, or none.
    if p.is_closing() {
        return Err(Refused::NoVms);
    }
    let (host, guest) = both.get();
    let kind = if protected { Kind::Protected } else { Kind::Ordinary };
    let checked = host_donate_el2::check_birth(host, &mut guest.memory, pool, kind, ipa_bits)?;
    checked.commit(&mut p.machine());
    guest.forget();
    *p.board(slot.handle().slot()).acquire() = Board::new();
    Ok(Reply::value(slot.publish().encode()))
}

/// `VM_RANGE`.
pub(super) fn range(p: &impl Platform, permit: &mut Permit, vm: Handle, run: Claim<GfnRun>) -> Result<Reply, Refused> {
    with_guest(p, permit, vm, |guest| {
        guest.memory.declare_ram(run)?;
        Ok(Reply::done())
    })
}

/// `VM_DESTROY`.
pub(super) fn destroy(p: &impl Platform, permit: &mut Permit, vm: Handle) -> Result<Reply, Refused> {
    with_guest(p, permit, vm, |guest| {
        // From here on no vCPU of it can be claimed, and none is.
        p.vms().destroy(vm)?;
        // A VM that could be destroyed lives, so this is not refused.
        guest.memory.begin_death(&mut p.machine())?;
        Ok(Reply::done())
    })
}

/// `VM_RECLAIM`.
pub(super) fn reclaim(
    p: &impl Platform,
    permit: &mut Permit,
    vm: Handle,
    run: Claim<PfnRun>,
) -> Result<Reply, Refused> {
    let mut pause = || p.host_is_wanted();
    with_both(p, permit, vm, |host, guest| {
        match host_reclaim::check(host, &mut guest.memory, run) {
            Ok(checked) => return Ok(Reply::value(checked.commit(&mut p.machine(), &mut pause))),
            // Pool frames are in the run; they go only when no guest frame is left.
            Err(Memory::GuestFramesLeft) => {}
            Err(why) => return Err(why.into()),
        }
        let returned = el2_return_host::check(host, &mut guest.memory, run)?.commit(&mut p.machine(), &mut pause);
        if returned.freed {
            // The VM is dying and the lock is held, so this is not refused.
            p.vms().free(vm)?;
        }
        Ok(Reply::value(returned.done))
    })
}

/// `POOL_TOPUP`.
pub(super) fn top_up(p: &impl Platform, permit: &mut Permit, vm: Handle, run: Claim<PfnRun>) -> Result<Reply, Refused> {
    with_both(p, permit, vm, |host, guest| {
        let free = host_donate_el2::check(host, &mut guest.memory, run)?.commit(&mut p.machine());
        Ok(Reply::value(free.into()))
    })
}
