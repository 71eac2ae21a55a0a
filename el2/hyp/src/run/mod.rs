// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs a vCPU: enters the guest, has `freehold_virt` decide what its exit means, and goes on or answers the host.
//!
//! Guarantees that what the host learns of an exit is an [`Exit`] and nothing else (D9): the guest's registers stay in
//! the vCPU's block. The loop ends at the first physical interrupt, so the host's CPU is never held (I7). Takes the VM's
//! lock only to look at its memory, and the host's as well only for the guest's own calls.

mod space;

use crate::calls::{Loaded, Platform, Stop, with_guest};
use freehold_mem::lock::Permit;
use freehold_virt::Refused;
use freehold_virt::call::Reply;
use freehold_virt::exit::{Crash, Exit};
use freehold_virt::handle::{Handle, VcpuIndex};
use freehold_virt::sysreg::{IdView, RawIds};
use freehold_virt::vcpu::{Next, Trap};
use freehold_virt::vm::Purpose;
use space::View;

const CLASS_HVC: u64 = 0x16;
const CLASS_SYSREG: u64 = 0x18;
const CLASS_FETCH: u64 = 0x20;
const CLASS_DATA: u64 = 0x24;

/// `VCPU_RUN`.
pub(crate) fn run<P: Platform>(
    p: &P,
    permit: &mut Permit,
    vm: Handle,
    index: VcpuIndex,
    answer: u64,
) -> Result<Reply, Refused> {
    let mut loaded = p.open(p.vms().claim(vm, index, Purpose::Run)?);
    if p.host_is_busy() {
        return Err(Refused::Denied);
    }
    let (regime, ipa_bits) = prepare(p, permit, vm, index)?;
    let (registers, vcpu) = loaded.parts();
    vcpu.complete(answer, registers);
    loaded.claim().ran();
    loop {
        if loaded.claim().take_kick() {
            return Ok(leave(Exit::Kicked));
        }
        let next = match loaded.run(&regime) {
            Stop::Trap(trap) => decide(p, permit, vm, ipa_bits, &mut loaded, trap)?,
            Stop::Interrupt => Next::Leave(Exit::Irq),
            Stop::SError => Next::Leave(Exit::Crash(Crash::Abort)),
            Stop::BadState => Next::Leave(Exit::Crash(Crash::BadState)),
            Stop::HostBusy => return Err(Refused::Denied),
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
fn prepare<P: Platform>(p: &P, permit: &mut Permit, vm: Handle, index: VcpuIndex) -> Result<(P::Regime, u32), Refused> {
    with_guest(p, permit, vm, |guest| {
        let (root, ipa_bits) = guest.memory.root().ok_or(Refused::WrongState)?;
        guest.memory.start()?;
        let sibling = guest.take_turn(p.cpu(), index);
        Ok((p.regime((root, ipa_bits), guest.memory.vmid(), index, sibling), ipa_bits))
    })
}

/// Has a synchronous exception decided, with as much of the VM's memory in view as it needs.
fn decide<'a, P: Platform>(
    p: &'a P,
    permit: &mut Permit,
    vm: Handle,
    ipa_bits: u32,
    loaded: &mut P::Loaded<'a>,
    trap: Trap,
) -> Result<Next, Refused> {
    let class = trap.esr >> 26 & 0x3f;
    let raw_ids = if class == CLASS_SYSREG { p.raw_ids() } else { RawIds::default() };
    let ids = IdView::new(&raw_ids, ipa_bits);
    let (registers, vcpu) = loaded.parts();
    let (world, slot, machine) = (p.world(), vm.slot().index(), p.machine());
    Ok(match class {
        CLASS_HVC => {
            let mut both = world.host(permit).with_guest(world, slot).ok_or(Refused::WrongHandle)?;
            let (host, guest) = both.get();
            vcpu.handle(trap, registers, &View::owned(host, &guest.memory, &machine), &ids)
        }
        CLASS_FETCH | CLASS_DATA => {
            let mut guest = world.guest(permit, slot).ok_or(Refused::WrongHandle)?;
            vcpu.handle(trap, registers, &View::mapped(&guest.get().memory, &machine), &ids)
        }
        _ => vcpu.handle(trap, registers, &View::nothing(&machine), &ids),
    })
}

fn leave(exit: Exit) -> Reply {
    Reply::success(exit.results())
}
