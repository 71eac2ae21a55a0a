// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs a vCPU: enters the guest, has `freehold_virt` decide what its exit means, and goes on or answers the host.
//!
//! Guarantees that what the host learns of an exit is an [`Exit`] and nothing else (D9): the guest's registers stay in
//! the vCPU's block. The loop ends at the first physical interrupt, so the host's CPU is never held (I7). Takes the VM's
//! lock only to look at its memory, and the host's as well only for the guest's own calls. A vCPU that its guest has not
//! started is told from one that runs before anything of it or of its VM changes.

mod board;
mod space;

use crate::calls::{Loaded, Platform, Stop, with_guest};
use freehold_mem::lock::{Mutex, Permit};
use freehold_mem::{Ipa, Life};
use freehold_virt::Refused;
use freehold_virt::call::Reply;
use freehold_virt::exit::{Crash, Exit};
use freehold_virt::guard;
use freehold_virt::guest_power::Arrival;
use freehold_virt::handle::{Handle, VcpuIndex};
use freehold_virt::measure::Shape;
use freehold_virt::registers::Registers;
use freehold_virt::sysreg::{IdView, RawIds};
use freehold_virt::vcpu::{Next, Trap};
use freehold_virt::vgic::Window;
use freehold_virt::vm::Purpose;
use space::View;

const CLASS_HVC: u64 = 0x16;
const CLASS_SYSREG: u64 = 0x18;
const CLASS_FETCH: u64 = 0x20;
const CLASS_DATA: u64 = 0x24;

/// `VCPU_RUN`. Whatever comes of it, the host learns whom it has to wake.
pub(crate) fn run<P: Platform>(
    p: &P,
    permit: &mut Permit,
    vm: Handle,
    index: VcpuIndex,
    answer: u64,
) -> Result<Reply, Refused> {
    let loaded = p.open(p.vms().claim(vm, index, Purpose::Run)?);
    let mut run = Run { p, vm, index, loaded, window: None, is_clear: false, wake: 0 };
    let exit = run.serve(permit, answer);
    Ok(Reply::from(exit.map(|exit| Reply::success(exit.results()))).waking(run.wake))
}

/// A vCPU that is being run here.
struct Run<'a, P: Platform> {
    p: &'a P,
    vm: Handle,
    index: VcpuIndex,
    loaded: P::Loaded<'a>,
    /// Where its VM's interrupt controller is, if it has one.
    window: Option<Window>,
    /// No RAM is there: what is met at those addresses is the controller.
    is_clear: bool,
    /// vCPUs whose threads the host has to wake.
    wake: u64,
}

/// How a vCPU runs on this CPU now.
struct Turn<R> {
    regime: R,
    ipa_bits: u32,
    /// Each entry drops what this CPU has cached of the VM.
    flushes: bool,
}

impl<'a, P: Platform> Run<'a, P> {
    fn serve(&mut self, permit: &mut Permit, answer: u64) -> Result<Exit, Refused> {
        if self.p.host_is_busy() {
            return Err(Refused::Denied);
        }
        let Some(mut turn) = self.begin(permit)? else {
            return Ok(self.p.board(self.vm.slot()).acquire().rest(Exit::Off));
        };
        let (registers, vcpu) = self.loaded.parts();
        vcpu.complete(answer, registers);
        self.loaded.claim().ran();
        loop {
            let next = match self.enter(&turn) {
                Err(exit) => Next::Leave(exit),
                Ok(Stop::Own) => Next::Resume,
                Ok(Stop::Trap(trap)) => {
                    // It trapped, so it was entered; an interrupt alone does not say that.
                    if turn.flushes {
                        self.keep_turn(permit, &mut turn)?;
                    }
                    match self.trap(trap) {
                        Some(next) => next,
                        None => self.decide(permit, &turn, trap)?,
                    }
                }
                Ok(Stop::Interrupt) => Next::Leave(Exit::Irq),
                Ok(Stop::SError) => Next::Leave(Exit::Crash(Crash::Abort)),
                Ok(Stop::BadState) => Next::Leave(Exit::Crash(Crash::BadState)),
                Ok(Stop::HostBusy) => return Err(Refused::Denied),
            };
            match if self.window.is_some() { self.keep(next) } else { next } {
                Next::Resume if self.wake == 0 => {}
                Next::Resume => return Ok(Exit::Wake),
                Next::Leave(exit) => {
                    if matches!(exit, Exit::Crash(_)) {
                        self.loaded.claim().crashed();
                    }
                    return Ok(exit);
                }
            }
        }
    }

    /// Marks the VM's first run, and finds its tables. They stay: the vCPU is claimed. With this call the
    /// measurement is fixed, whether or not the guest gets to its first instruction. `None`: the vCPU is off.
    ///
    /// A vCPU that never ran begins together with its VM, or where the guest has started it.
    fn begin(&mut self, permit: &mut Permit) -> Result<Option<Turn<P::Regime>>, Refused> {
        let (p, vm, index) = (self.p, self.vm, self.index);
        with_guest(p, permit, vm, |guest| {
            let root = guest.memory.root().ok_or(Refused::WrongState)?;
            let fresh = self.loaded.claim().is_fresh();
            let mut board = p.board(vm.slot()).acquire();
            self.window = board.window();
            let arrival = board.arrive(index);
            drop(board);
            match arrival {
                Arrival::Off => return Ok(None),
                Arrival::Runs if fresh && guest.memory.life() != Life::Building => return Err(Refused::WrongState),
                Arrival::Runs => {}
                Arrival::Starts(entry) => {
                    self.loaded.reset();
                    let (registers, _) = self.loaded.parts();
                    registers.set_pc(entry.pc);
                    registers.set_x(0, entry.context);
                }
            }
            let is_first = guest.memory.life() == Life::Building;
            guest.memory.start()?;
            if is_first {
                let shape = Shape { ipa_bits: root.1, vcpus: p.vms().created(vm), gic: self.window };
                guest.measurement.start(&shape, self.loaded.parts().0, guest.memory.ram());
            }
            let flushes = guest.begin_turn(p.cpu(), index);
            let regime = p.regime(root, guest.memory.vmid(), index, flushes);
            self.is_clear = self.window.is_some_and(|window| guest.memory.ram().all(|ram| window.is_clear_of(ram)));
            Ok(Some(Turn { regime, ipa_bits: root.1, flushes }))
        })
    }

    /// Notes that the vCPU has run here, with what siblings had left flushed.
    fn keep_turn(&self, permit: &mut Permit, turn: &mut Turn<P::Regime>) -> Result<(), Refused> {
        with_guest(self.p, permit, self.vm, |guest| {
            let root = guest.memory.root().ok_or(Refused::WrongState)?;
            guest.keep_turn(self.p.cpu(), self.index);
            turn.regime = self.p.regime(root, guest.memory.vmid(), self.index, false);
            turn.flushes = false;
            Ok(())
        })
    }

    /// Has a synchronous exception decided, with as much of the VM's memory in view as it needs.
    fn decide(&mut self, permit: &mut Permit, turn: &Turn<P::Regime>, trap: Trap) -> Result<Next, Refused> {
        let class = trap.class();
        let mut raw_ids = None;
        let raw_ids = if class == CLASS_SYSREG { raw_ids.insert(self.p.raw_ids()) } else { &RawIds::NONE };
        let ids = IdView::new(raw_ids, turn.ipa_bits).with_gic(self.window.is_some());
        if class == CLASS_HVC {
            // It may change tables, and those of the host too.
            self.loaded.leave();
        }
        match class {
            CLASS_HVC => self.call(permit, trap, &ids),
            CLASS_FETCH | CLASS_DATA => self.abort(permit, trap, &ids),
            _ => {
                let (registers, vcpu) = self.loaded.parts();
                Ok(vcpu.handle(trap, registers, &View::nothing(&self.p.machine()), &ids))
            }
        }
    }

    /// A call of the guest's, with all of its memory in view.
    fn call(&mut self, permit: &mut Permit, trap: Trap, ids: &IdView<'_>) -> Result<Next, Refused> {
        let (registers, vcpu) = self.loaded.parts();
        let (world, machine) = (self.p.world(), self.p.machine());
        let mut both = world.host(permit).with_guest(world, self.vm.slot().index()).ok_or(Refused::WrongHandle)?;
        let (host, guest) = both.get();
        let call = [0, 1, 2, 3].map(|n| registers.x(n));
        let guarded = if trap.esr & 0xffff == 0 { guard::serve(call, &mut guest.memory) } else { None };
        let Some(code) = guarded else {
            return Ok(vcpu.handle(trap, registers, &View::owned(host, guest, &machine), ids));
        };
        registers.answer([code.cast_unsigned(), 0, 0, 0]);
        Ok(Next::Resume)
    }

    /// An abort. What the guest does not let out, and what a machine's controller does not take because no syndrome
    /// describes it, is an external abort of the guest's.
    fn abort(&mut self, permit: &mut Permit, trap: Trap, ids: &IdView<'_>) -> Result<Next, Refused> {
        let (registers, vcpu) = self.loaded.parts();
        let mut guest = self.p.world().guest(permit, self.vm.slot().index()).ok_or(Refused::WrongHandle)?;
        let memory = &guest.get().memory;
        let is_of_controller = || self.p.board(self.vm.slot()).acquire().holds(trap.address());
        let trap = trap.across().filter(|_| !is_of_controller()).unwrap_or(trap);
        let is_barred = trap.misses() && memory.bars(Ipa::new(trap.address()).and_then(Ipa::gfn));
        if !is_barred || is_of_controller() {
            let next = vcpu.handle(trap, registers, &View::mapped(memory, &self.p.machine()), ids);
            let is_lost = matches!(next, Next::Leave(Exit::Crash(Crash::NoSyndrome | Crash::Walk)));
            if !is_lost || !is_of_controller() {
                return Ok(next);
            }
        }
        registers.inject_external(trap);
        Ok(Next::Resume)
    }
}
