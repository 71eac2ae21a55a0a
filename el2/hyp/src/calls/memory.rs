// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory that changes hands while a VM lives. Each is one verb of `freehold_mem` under both locks.

use super::{GuestSlot, Loaded, Platform, with_both};
use freehold_mem::lock::Permit;
use freehold_mem::verbs::{
    guest_relinquish, guest_share_host, guest_unshare_host, host_donate_guest, host_share_guest, host_unshare_guest,
};
use freehold_mem::{Access, Claim, Gfn, GfnRun, Lot, Pfn};
use freehold_virt::Refused;
use freehold_virt::call::Reply;
use freehold_virt::exit::Wish;
use freehold_virt::handle::{Handle, VcpuIndex};
use freehold_virt::measure::Measurement;
use freehold_virt::vm::Purpose;

/// Contents that stay are measured.
fn measure(p: &impl Platform, measurement: &mut Measurement) -> impl FnMut(Gfn, Pfn) {
    move |gfn, pfn| measurement.page(gfn, |hash| p.hash_frame(hash, pfn))
}

/// `MEM_DONATE`.
pub(super) fn donate(
    p: &impl Platform,
    permit: &mut Permit,
    vm: Handle,
    lot: Claim<Lot>,
    revocable: bool,
) -> Result<Reply, Refused> {
    with_both(p, permit, vm, |host, GuestSlot { memory, measurement, .. }| {
        let checked = host_donate_guest::check(host, memory, lot, revocable, &p.machine())?;
        let measure = &mut measure(p, measurement);
        Ok(Reply::value(checked.commit(&mut p.machine(), &mut || p.host_is_wanted(), measure)))
    })
}

/// `MEM_DONATE_LIST`.
pub(super) fn donate_list(
    p: &impl Platform,
    permit: &mut Permit,
    vm: Handle,
    list: Claim<Pfn>,
    records: u64,
    revocable: bool,
) -> Result<Reply, Refused> {
    with_both(p, permit, vm, |host, GuestSlot { memory, measurement, .. }| {
        let checked = host_donate_guest::check_list(host, memory, list, records, revocable, &p.machine())?;
        let measure = &mut measure(p, measurement);
        Ok(Reply::value(checked.commit(&mut p.machine(), &mut || p.host_is_wanted(), measure)))
    })
}

/// `MEM_SHARE`.
pub(super) fn share(
    p: &impl Platform,
    permit: &mut Permit,
    vm: Handle,
    lot: Claim<Lot>,
    access: Access,
) -> Result<Reply, Refused> {
    with_both(p, permit, vm, |host, guest| {
        let checked = host_share_guest::check(host, &mut guest.memory, lot, access, &p.machine())?;
        Ok(Reply::value(checked.commit(&mut p.machine(), &mut || p.host_is_wanted())))
    })
}

/// `MEM_UNSHARE`.
pub(super) fn unshare(
    p: &impl Platform,
    permit: &mut Permit,
    vm: Handle,
    run: Claim<GfnRun>,
) -> Result<Reply, Refused> {
    with_both(p, permit, vm, |host, guest| {
        let checked = host_unshare_guest::check(host, &mut guest.memory, run, &p.machine())?;
        Ok(Reply::value(checked.commit(&mut p.machine())))
    })
}

/// `GUEST_ACCEPT`: what the guest asked for happens now, if it still can.
pub(super) fn accept(
    p: &impl Platform,
    permit: &mut Permit,
    vm: Handle,
    index: VcpuIndex,
    count: u64,
) -> Result<Reply, Refused> {
    let mut loaded = p.open(p.vms().claim(vm, index, Purpose::Answer)?);
    let (_, vcpu) = loaded.parts();
    let request = vcpu.request(count)?;
    let run = Claim::new(GfnRun::decode(request.first.raw(), request.count)?);
    let done = with_both(p, permit, vm, |host, guest| {
        let guest = &mut guest.memory;
        let machine = &mut p.machine();
        Ok(match request.wish {
            Wish::Share => guest_share_host::check(host, guest, run, machine)?.commit(machine),
            Wish::Unshare => guest_unshare_host::check(host, guest, run, machine)?.commit(machine),
            Wish::Relinquish => guest_relinquish::check(host, guest, run, machine)?.commit(machine),
        })
    })?;
    vcpu.accept(done);
    Ok(Reply::value(done))
}
