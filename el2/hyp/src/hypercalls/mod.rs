// SPDX-License-Identifier: MIT OR Apache-2.0
//! Calls of the host to el2: decode, take the locks, ask the memory model or the VM table, answer.
//!
//! Guarantees that an unknown call answers `NOT_SUPPORTED` and changes nothing, and that registers
//! which are not results come back zero. What a call may do is decided in `freehold_mem` and `freehold_virt`; the
//! handlers here only bring them together, host lock before guest lock. Keeps I6 and I7.

mod memory;
mod power;
mod vcpu;
mod version;
mod vm;

pub(crate) use power::quiesce;

use crate::statics::{self, VMS};
use core::sync::atomic::AtomicU64;
use freehold_arch::percpu::MAX_CPUS;
use freehold_arch::vectors::HostFrame;
use freehold_mem::lock::Permit;
use freehold_mem::{Guest, Host, VmSlot};
use freehold_uapi::hvc;
use freehold_virt::Refused;
use freehold_virt::call::{Call, Reply};
use freehold_virt::handle::{Handle, VcpuIndex};
use freehold_virt::vm::Vms;

/// What a VM slot's lock protects.
#[derive(Debug)]
pub(crate) struct GuestSlot {
    /// The VM's memory.
    pub(crate) memory: Guest,
    /// Which of its vCPUs ran last on each CPU.
    last: [Option<VcpuIndex>; MAX_CPUS],
}

impl GuestSlot {
    /// Slot number `index`, without a VM.
    pub(crate) fn new(index: usize) -> Self {
        let slot = u8::try_from(index).ok().and_then(VmSlot::new);
        let Some(slot) = slot else {
            freehold_arch::fatal::panic(format_args!("VM slot {index} has no VMID"));
        };
        Self { memory: Guest::new(slot), last: [None; MAX_CPUS] }
    }

    /// Notes that `vcpu` runs on `cpu` now. Whether another one of the VM was there last.
    pub(crate) fn take_turn(&mut self, cpu: usize, vcpu: VcpuIndex) -> bool {
        let last = self.last.get_mut(cpu).and_then(|last| last.replace(vcpu));
        last.is_some_and(|last| last != vcpu)
    }

    /// Forgets where the vCPUs of the slot's former VM ran: its translations are gone.
    fn forget_turns(&mut self) {
        self.last = [None; MAX_CPUS];
    }
}

/// All VMs.
pub(crate) fn vms() -> Vms<'static, AtomicU64> {
    Vms::new(&VMS)
}

/// SMCCC's hint that no SVE state is live; not part of an identifier.
const SVE_HINT: u64 = 1 << 16;

/// Serves one call. The program counter is behind it already.
pub(crate) fn handle(frame: &mut HostFrame) {
    let id = u32::try_from(frame.x(0) & !SVE_HINT).unwrap_or(0);
    if id == hvc::CALL_UID {
        return uid(frame);
    }
    let arguments = core::array::from_fn(|n| frame.x(n + 1));
    let reply: Reply = Call::decode(id, arguments).and_then(serve).into();
    // A run leaves nothing of what the host passed, so that nobody relies on it; other calls keep SMCCC's x8 and up.
    let last = if id == hvc::VCPU_RUN { 17 } else { 7 };
    for n in 0..=last {
        frame.set_x(n, reply.x(n));
    }
}

fn serve(call: Call) -> Result<Reply, Refused> {
    // The one permit of this entry to EL2.
    let permit = &mut Permit::for_this_entry();
    match call {
        Call::Version => Ok(version::version()),
        Call::Counter { counter, index } => version::counter(permit, counter, index),
        Call::VmCreate { ipa_bits, pool } => vm::create(permit, ipa_bits, pool),
        Call::VmRange { vm, run } => vm::range(permit, vm, run),
        Call::VmDestroy { vm } => vm::destroy(permit, vm),
        Call::VmReclaim { vm, run } => vm::reclaim(permit, vm, run),
        Call::PoolTopup { vm, run } => vm::top_up(permit, vm, run),
        Call::VcpuCreate { vm, vcpu } => vcpu::create(permit, vm, vcpu),
        Call::VcpuSetReg { vm, vcpu, register, value } => vcpu::set_register(vm, vcpu, register, value),
        Call::VcpuGetReg { vm, vcpu, register } => vcpu::register(vm, vcpu, register),
        Call::VcpuRun { vm, vcpu, mmio } => crate::guest::run(permit, vm, vcpu, mmio),
        Call::VcpuKick { vm, vcpu } => vms().kick(vm, vcpu).map(|()| Reply::done()),
        Call::MemDonate { vm, lot, revocable } => memory::donate(permit, vm, lot, revocable),
        Call::MemDonateList { vm, list, records, revocable } => {
            memory::donate_list(permit, vm, list, records, revocable)
        }
        Call::MemShare { vm, lot, access } => memory::share(permit, vm, lot, access),
        Call::MemUnshare { vm, run } => memory::unshare(permit, vm, run),
        Call::GuestAccept { vm, vcpu, count } => memory::accept(permit, vm, vcpu, count),
    }
}

fn uid(frame: &mut HostFrame) {
    for (n, word) in hvc::UID.into_iter().enumerate() {
        frame.set_x(n, word.into());
    }
}

/// Does something under the host's lock and the VM's. The handle is checked under them, so that the slot can not get
/// another VM meanwhile.
fn with_both<R>(
    permit: &mut Permit,
    vm: Handle,
    what: impl FnOnce(&mut Host<'static>, &mut GuestSlot) -> Result<R, Refused>,
) -> Result<R, Refused> {
    let world = &statics::machine().world;
    let mut both = world.host(permit).with_guest(world, vm.slot().index()).ok_or(Refused::WrongHandle)?;
    vms().phase(vm)?;
    let (host, guest) = both.get();
    what(host, guest)
}

/// Does something under the VM's lock alone.
pub(crate) fn with_guest<R>(
    permit: &mut Permit,
    vm: Handle,
    what: impl FnOnce(&mut GuestSlot) -> Result<R, Refused>,
) -> Result<R, Refused> {
    let mut guest = statics::machine().world.guest(permit, vm.slot().index()).ok_or(Refused::WrongHandle)?;
    vms().phase(vm)?;
    what(guest.get())
}
