// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs a vCPU: enters the guest, has `freehold_virt` decide what its exit means, and goes on or answers the host.
//!
//! Guarantees that what the host learns of an exit is an [`Exit`] and nothing else (D9): the guest's registers stay in
//! the vCPU's block. The loop ends at the first physical interrupt, so the host's CPU is never held (I7). Takes the VM's
//! lock only to look at its memory, and the host's as well only for the guest's own calls.

mod interrupts;
mod space;

use crate::calls::{Loaded, Platform, Stop, with_guest};
use freehold_mem::Life;
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
    let fresh = loaded.claim().is_fresh();
    let mut turn = begin(p, permit, vm, index, fresh)?;
    let (registers, vcpu) = loaded.parts();
    vcpu.complete(answer, registers);
    loaded.claim().ran();
    let mut vmcr = 0;
    loop {
        if loaded.claim().take_kick() {
            return Ok(leave(Exit::Kicked));
        }
        let stop = if turn.has_gic {
            interrupts::run(p, vm, index, &mut loaded, &turn.regime, &mut vmcr)
        } else {
            loaded.run(&turn.regime, None)
        };
        let next = match stop {
            Stop::Own => Next::Resume,
            Stop::Trap(trap) => {
                // It trapped, so it was entered; an interrupt alone does not say that.
                if turn.flushes {
                    turn = keep(p, permit, vm, index)?;
                }
                if turn.has_gic && interrupts::system_register(p, vm, index, &mut loaded, trap) {
                    Next::Resume
                } else {
                    match decide(p, permit, vm, &turn, &mut loaded, trap)? {
                        Next::Leave(exit) if turn.has_gic => interrupts::keep(p, vm, index, &mut loaded, exit, vmcr),
                        next @ (Next::Leave(_) | Next::Resume) => next,
                    }
                }
            }
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

/// How a vCPU runs on this CPU now.
struct Turn<R> {
    regime: R,
    ipa_bits: u32,
    has_gic: bool,
    /// Each entry drops what this CPU has cached of the VM.
    flushes: bool,
}

/// Marks the VM's first run, and finds its tables. They stay: the vCPU is claimed. From this call on nothing of the VM
/// is measured any more, whether or not the guest gets to its first instruction.
///
/// A vCPU that never ran begins together with its VM only: what starts later must be started by the guest.
fn begin<P: Platform>(
    p: &P,
    permit: &mut Permit,
    vm: Handle,
    index: VcpuIndex,
    fresh: bool,
) -> Result<Turn<P::Regime>, Refused> {
    with_guest(p, permit, vm, |guest| {
        let root = guest.memory.root().ok_or(Refused::WrongState)?;
        if fresh && guest.memory.life() != Life::Building {
            return Err(Refused::WrongState);
        }
        guest.memory.start()?;
        let flushes = guest.begin_turn(p.cpu(), index);
        let regime = p.regime(root, guest.memory.vmid(), index, flushes);
        Ok(Turn { regime, ipa_bits: root.1, has_gic: guest.has_gic(), flushes })
    })
}

/// Notes that the vCPU has run here, with what siblings had left flushed.
fn keep<P: Platform>(p: &P, permit: &mut Permit, vm: Handle, index: VcpuIndex) -> Result<Turn<P::Regime>, Refused> {
    with_guest(p, permit, vm, |guest| {
        let root = guest.memory.root().ok_or(Refused::WrongState)?;
        guest.keep_turn(p.cpu(), index);
        let regime = p.regime(root, guest.memory.vmid(), index, false);
        Ok(Turn { regime, ipa_bits: root.1, has_gic: guest.has_gic(), flushes: false })
    })
}

/// Has a synchronous exception decided, with as much of the VM's memory in view as it needs.
fn decide<'a, P: Platform>(
    p: &'a P,
    permit: &mut Permit,
    vm: Handle,
    turn: &Turn<P::Regime>,
    loaded: &mut P::Loaded<'a>,
    trap: Trap,
) -> Result<Next, Refused> {
    let class = trap.esr >> 26 & 0x3f;
    let raw_ids = if class == CLASS_SYSREG { p.raw_ids() } else { RawIds::default() };
    let ids = IdView::new(&raw_ids, turn.ipa_bits).with_gic(turn.has_gic);
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
