// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine under the handlers of [`freehold_el2::calls`], and the registers that a call comes and goes in.

use crate::{counters, statics};
use core::sync::atomic::{AtomicU64, Ordering};
use freehold_arch::lock::Ticket;
use freehold_arch::percpu::this_cpu;
use freehold_arch::phys::Hardware;
use freehold_arch::switch::{self, ExitKind, GuestContext};
use freehold_arch::vcpu::{self, Regime};
use freehold_arch::vectors::HostFrame;
pub(crate) use freehold_el2::calls::GuestSlot;
use freehold_el2::calls::{self, Loaded, Platform, Stop};
use freehold_mem::lock::Permit;
use freehold_mem::{Host, Pfn, VmSlot, Vmid};
use freehold_uapi::hvc;
use freehold_virt::handle::VcpuIndex;
use freehold_virt::sysreg::RawIds;
use freehold_virt::vcpu::{Trap, Vcpu};
use freehold_virt::vm::{Claimed, Vms};

const _: () = assert!(freehold_arch::percpu::MAX_CPUS <= calls::MAX_CPUS, "every CPU's turns are kept");

/// SMCCC's hint that no SVE state is live; not part of an identifier.
const SVE_HINT: u64 = 1 << 16;

/// Serves one call. The program counter is behind it already.
pub(crate) fn handle(frame: &mut HostFrame) {
    let id = u32::try_from(frame.x(0) & !SVE_HINT).unwrap_or(0);
    if id == hvc::CALL_UID {
        return uid(frame);
    }
    let reply = calls::serve(&El2, id, core::array::from_fn(|n| frame.x(n + 1)));
    // A run leaves nothing of what the host passed, so that nobody relies on it; other calls keep SMCCC's x8 and up.
    let last = if calls::clears_all(id) { 17 } else { 7 };
    for n in 0..=last {
        frame.set_x(n, reply.x(n));
    }
}

fn uid(frame: &mut HostFrame) {
    for (n, word) in hvc::UID.into_iter().enumerate() {
        frame.set_x(n, word.into());
    }
}

/// Ends all VMs before the machine goes down. `false` if one still runs.
pub(crate) fn quiesce() -> bool {
    calls::quiesce(&El2)
}

/// Lets VMs begin again: the machine stays on after all.
pub(crate) fn reopen() {
    calls::reopen(&El2);
}

/// All VMs.
pub(crate) fn vms() -> Vms<'static, AtomicU64> {
    Vms::new(&statics::VMS)
}

/// Slot number `index`, without a VM.
pub(crate) fn empty_slot(index: usize) -> GuestSlot {
    match u8::try_from(index).ok().and_then(VmSlot::new) {
        Some(slot) => GuestSlot::new(slot),
        None => freehold_arch::fatal::panic(format_args!("VM slot {index} has no VMID")),
    }
}

/// This machine.
struct El2;

/// A claimed vCPU on this CPU.
struct Here<'a>(vcpu::Loaded<'a>);

impl<'a> Loaded<'a> for Here<'a> {
    type Registers = GuestContext;
    type Regime = Regime;

    fn claim(&mut self) -> &mut Claimed<'a, AtomicU64> {
        self.0.claim()
    }

    fn parts(&mut self) -> (&mut GuestContext, &mut Vcpu) {
        self.0.parts()
    }

    fn run(&mut self, regime: &Regime) -> Stop {
        let exit = self.0.run(regime);
        match exit.kind {
            ExitKind::Sync => Stop::Trap(Trap { esr: exit.esr, far: exit.far, hpfar: exit.hpfar }),
            ExitKind::Interrupt => Stop::Interrupt,
            ExitKind::SError => Stop::SError,
            ExitKind::BadState => Stop::BadState,
            ExitKind::HostBusy => Stop::HostBusy,
        }
    }
}

impl Platform for El2 {
    type Machine = Hardware;
    type HostLock = Ticket<Host<'static>>;
    type GuestLock = Ticket<GuestSlot>;
    type Regime = Regime;
    type Loaded<'a> = Here<'a>;

    fn machine(&self) -> Hardware {
        Hardware
    }

    fn world(&self) -> &statics::Locks {
        &statics::machine().world
    }

    fn vms(&self) -> Vms<'_, AtomicU64> {
        vms()
    }

    fn serves_vms(&self) -> bool {
        statics::machine().serves_vms
    }

    fn is_closing(&self) -> bool {
        statics::CLOSING.load(Ordering::Acquire)
    }

    fn set_closing(&self, closing: bool) {
        statics::CLOSING.store(closing, Ordering::Release);
    }

    fn cpu(&self) -> usize {
        this_cpu().index()
    }

    fn host_is_wanted(&self) -> bool {
        vcpu::host_is_wanted()
    }

    fn create_vcpu(&self, frame: Pfn) -> u64 {
        vcpu::create(frame)
    }

    fn open<'a>(&'a self, claim: Claimed<'a, AtomicU64>) -> Here<'a> {
        Here(vcpu::Loaded::open(claim))
    }

    fn regime(&self, root: (Pfn, u32), vmid: Vmid, index: VcpuIndex, flush: bool) -> Regime {
        vcpu::regime(root, vmid, index, flush)
    }

    fn host_is_busy(&self) -> bool {
        switch::host_is_busy()
    }

    fn raw_ids(&self) -> RawIds {
        vcpu::raw_ids()
    }

    fn counter(&self, permit: &mut Permit, counter: u64, index: u64) -> Option<u64> {
        counters::counter(permit, counter, index)
    }
}
