// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory that changes hands while a VM lives. Each is one verb of `freehold_mem` under both locks.

use super::{vms, with_both};
use freehold_arch::phys::Hardware;
use freehold_arch::vcpu::{Loaded, host_is_wanted};
use freehold_mem::lock::Permit;
use freehold_mem::verbs::{
    guest_relinquish, guest_share_host, guest_unshare_host, host_donate_guest, host_share_guest, host_unshare_guest,
};
use freehold_mem::{Access, Claim, Gfn, GfnRun, Lot, Pfn};
use freehold_virt::Refused;
use freehold_virt::call::Reply;
use freehold_virt::exit::Wish;
use freehold_virt::handle::{Handle, VcpuIndex};
use freehold_virt::vm::Purpose;

/// Contents that stay are not measured yet.
fn unmeasured(_: Gfn, _: Pfn) {}

/// `MEM_DONATE`.
pub(super) fn donate(permit: &mut Permit, vm: Handle, lot: Claim<Lot>, revocable: bool) -> Result<Reply, Refused> {
    with_both(permit, vm, |host, guest| {
        let checked = host_donate_guest::check(host, &mut guest.memory, lot, revocable, &Hardware)?;
        Ok(Reply::value(checked.commit(&mut Hardware, &mut { host_is_wanted }, &mut { unmeasured })))
    })
}

/// `MEM_DONATE_LIST`.
pub(super) fn donate_list(
    permit: &mut Permit,
    vm: Handle,
    list: Claim<Pfn>,
    records: u64,
    revocable: bool,
) -> Result<Reply, Refused> {
    with_both(permit, vm, |host, guest| {
        let checked = host_donate_guest::check_list(host, &mut guest.memory, list, records, revocable, &Hardware)?;
        Ok(Reply::value(checked.commit(&mut Hardware, &mut { host_is_wanted }, &mut { unmeasured })))
    })
}

/// `MEM_SHARE`.
pub(super) fn share(permit: &mut Permit, vm: Handle, lot: Claim<Lot>, access: Access) -> Result<Reply, Refused> {
    with_both(permit, vm, |host, guest| {
        let checked = host_share_guest::check(host, &mut guest.memory, lot, access, &Hardware)?;
        Ok(Reply::value(checked.commit(&mut Hardware, &mut { host_is_wanted })))
    })
}

/// `MEM_UNSHARE`.
pub(super) fn unshare(permit: &mut Permit, vm: Handle, run: Claim<GfnRun>) -> Result<Reply, Refused> {
    with_both(permit, vm, |host, guest| {
        let checked = host_unshare_guest::check(host, &mut guest.memory, run, &Hardware)?;
        Ok(Reply::value(checked.commit(&mut Hardware)))
    })
}

/// `GUEST_ACCEPT`: what the guest asked for happens now, if it still can.
pub(super) fn accept(permit: &mut Permit, vm: Handle, index: VcpuIndex, count: u64) -> Result<Reply, Refused> {
    let mut loaded = Loaded::open(vms().claim(vm, index, Purpose::Answer)?);
    let (_, vcpu) = loaded.parts();
    let request = vcpu.request(count)?;
    let run = Claim::new(GfnRun::decode(request.first.raw(), request.count)?);
    let done = with_both(permit, vm, |host, guest| {
        let guest = &mut guest.memory;
        let machine = &mut Hardware;
        Ok(match request.wish {
            Wish::Share => guest_share_host::check(host, guest, run, machine)?.commit(machine),
            Wish::Unshare => guest_unshare_host::check(host, guest, run, machine)?.commit(machine),
            Wish::Relinquish => guest_relinquish::check(host, guest, run, machine)?.commit(machine),
        })
    })?;
    vcpu.accept(done);
    Ok(Reply::value(done))
}
