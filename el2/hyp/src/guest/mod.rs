// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs a vCPU: enters the guest, has `freehold_virt` decide what its exit means, and goes on or answers the host.
//!
//! Guarantees that what the host learns of an exit is an [`Exit`] and nothing else (D9): the guest's registers stay in
//! the vCPU's block. The loop ends at the first physical interrupt, so the host's CPU is never held (I7). Takes the VM's
//! lock only to look at its memory, and the host's as well only for the guest's own calls.

mod space;

use crate::hypercalls::{self, vms};
use crate::statics;
use freehold_arch::percpu::this_cpu;
use freehold_arch::switch::{ExitKind, RawExit};
use freehold_arch::vcpu::{self, Loaded, Regime};
use freehold_mem::lock::Permit;
use freehold_virt::Refused;
use freehold_virt::call::Reply;
use freehold_virt::exit::{Crash, Exit};
use freehold_virt::handle::{Handle, VcpuIndex};
use freehold_virt::sysreg::IdView;
use freehold_virt::vcpu::{Next, Trap};
use freehold_virt::vm::Purpose;
use space::View;

const CLASS_HVC: u64 = 0x16;
const CLASS_FETCH: u64 = 0x20;
const CLASS_DATA: u64 = 0x24;

/// `VCPU_RUN`.
pub(crate) fn run(permit: &mut Permit, vm: Handle, index: VcpuIndex, answer: u64) -> Result<Reply, Refused> {
    let mut loaded = Loaded::open(vms().claim(vm, index, Purpose::Run)?);
    let (regime, ipa_bits) = prepare(permit, vm, index)?;
    let (registers, vcpu) = loaded.parts();
    vcpu.complete(answer, registers);
    loaded.claim().ran();
    loop {
        if loaded.claim().take_kick() {
            return Ok(leave(Exit::Kicked));
        }
        let raw = loaded.run(&regime);
        let next = match raw.kind {
            ExitKind::Sync => decide(permit, vm, ipa_bits, &mut loaded, raw)?,
            ExitKind::Interrupt => Next::Leave(Exit::Irq),
            ExitKind::SError => Next::Leave(Exit::Crash(Crash::Abort)),
            ExitKind::BadState => Next::Leave(Exit::Crash(Crash::BadState)),
            // The host left streaming mode on, which a guest must not be entered under.
            ExitKind::HostBusy => return Err(Refused::Denied),
        };
        if let Next::Leave(exit) = next {
            if matches!(exit, Exit::Crash(_)) {
                loaded.claim().crashed();
            }
            return Ok(leave(exit));
        }
    }
}

/// Marks the VM's first run, and finds its tables. They stay: the vCPU is claimed.
fn prepare(permit: &mut Permit, vm: Handle, index: VcpuIndex) -> Result<(Regime, u32), Refused> {
    hypercalls::with_guest(permit, vm, |guest| {
        let (root, ipa_bits) = guest.memory.root().ok_or(Refused::WrongState)?;
        guest.memory.start()?;
        let sibling = guest.take_turn(this_cpu().index(), index);
        Ok((vcpu::regime((root, ipa_bits), guest.memory.vmid(), index, sibling), ipa_bits))
    })
}

/// Has a synchronous exception decided, with as much of the VM's memory in view as it needs.
fn decide(
    permit: &mut Permit,
    vm: Handle,
    ipa_bits: u32,
    loaded: &mut Loaded<'_>,
    raw: RawExit,
) -> Result<Next, Refused> {
    let trap = Trap { esr: raw.esr, far: raw.far, hpfar: raw.hpfar };
    let raw_ids = vcpu::raw_ids();
    let ids = IdView::new(&raw_ids, ipa_bits);
    let (registers, vcpu) = loaded.parts();
    let world = &statics::machine().world;
    let slot = vm.slot().index();
    Ok(match trap.esr >> 26 & 0x3f {
        CLASS_HVC => {
            let mut both = world.host(permit).with_guest(world, slot).ok_or(Refused::WrongHandle)?;
            let (host, guest) = both.get();
            vcpu.handle(trap, registers, &View::Owned(host, &guest.memory), &ids)
        }
        CLASS_FETCH | CLASS_DATA => {
            let mut guest = world.guest(permit, slot).ok_or(Refused::WrongHandle)?;
            vcpu.handle(trap, registers, &View::Mapped(&guest.get().memory), &ids)
        }
        _ => vcpu.handle(trap, registers, &View::Nothing, &ids),
    })
}

fn leave(exit: Exit) -> Reply {
    Reply::success(exit.results())
}
