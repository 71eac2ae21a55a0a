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
use freehold_virt::setting::{Controller, Setting};
use freehold_virt::sysreg::{IdView, RawIds};
use freehold_virt::vcpu::{Next, Trap};
use freehold_virt::vm::Purpose;
use space::View;

const CLASS_HVC: u64 = 0x16;
const CLASS_SYSREG: u64 = 0x18;
/// With bit 2 set, a data access's.
const CLASS_FETCH: u64 = 0x20;

/// `VCPU_RUN`. Whatever comes of it, the host learns whom it has to wake.
#[inline(never)]
pub(crate) fn run<P: Platform>(p: &P, permit: &mut Permit, vm: Handle, index: VcpuIndex, answer: u64) -> Reply {
    match p.vms().claim(vm, index, Purpose::Run) {
        Ok(claim) => claimed(p, permit, (vm, index), &mut p.open(claim), answer),
        Err(why) => why.into(),
    }
}

#[inline(always)]
fn claimed<'a, P: Platform>(
    p: &'a P,
    permit: &mut Permit,
    (vm, index): (Handle, VcpuIndex),
    loaded: &mut P::Loaded<'a>,
    answer: u64,
) -> Reply {
    if p.host_is_busy() {
        return Refused::Denied.into();
    }
    let lock = p.board(vm.slot());
    let (mut board, arrival) = if loaded.setting().is_some() {
        // It is claimed, so its VM is not dying; and it has run, so its VM has.
        let mut board = lock.acquire();
        let arrival = board.arrive(index);
        (board, arrival)
    } else {
        match begin(p, permit, (vm, index), lock, loaded) {
            Ok(arrived) => arrived,
            Err(why) => return why.into(),
        }
    };
    match arrival {
        Arrival::Off => return Reply::success(board.rest(Exit::Off).results()),
        Arrival::Runs => {}
        Arrival::Starts(entry) => {
            loaded.reset();
            let (registers, _) = loaded.parts();
            registers.set_pc(entry.pc);
            registers.set_x(0, entry.context);
        }
    }
    let flushes = board.begin_turn(p.cpu(), index);
    let (registers, vcpu) = loaded.parts();
    vcpu.complete(answer, registers);
    loaded.claim().ran();
    let mut run = Run { p, vm, index, loaded, lock, flushes, wake: 0 };
    match run.serve(permit, board) {
        Ok(exit) => Reply::success(exit.results()).waking(run.wake),
        Err(why) => Reply::from(why).waking(run.wake),
    }
}

/// A VM's board, under its lock.
type Held<'a, P> = <<P as Platform>::BoardLock as Mutex>::Guard<'a>;

/// Marks the VM's first run, and finds its tables and its controller. They stay: the vCPU is claimed. With this call the
/// measurement is fixed, whether or not the guest gets to its first instruction.
///
/// A vCPU that never ran begins together with its VM, or where the guest has started it.
#[inline(never)]
fn begin<'a, P: Platform>(
    p: &'a P,
    permit: &mut Permit,
    (vm, index): (Handle, VcpuIndex),
    lock: &'a P::BoardLock,
    loaded: &mut P::Loaded<'a>,
) -> Result<(Held<'a, P>, Arrival), Refused> {
    with_guest(p, permit, vm, |guest| {
        let (root, ipa_bits) = guest.memory.root().ok_or(Refused::WrongState)?;
        let is_first = guest.memory.life() == Life::Building;
        let mut board = lock.acquire();
        let arrival = board.arrive(index);
        let window = board.window();
        if arrival == Arrival::Runs && loaded.claim().is_fresh() && !is_first {
            return Err(Refused::WrongState);
        }
        if arrival == Arrival::Off {
            return Ok((board, arrival));
        }
        guest.memory.start()?;
        if is_first {
            let shape = Shape { ipa_bits, vcpus: p.vms().created(vm), gic: window };
            guest.measurement.start(&shape, loaded.parts().0, guest.memory.ram());
        }
        let controller = window.map(|window| Controller {
            window,
            frames: board.frames(),
            is_clear: guest.memory.ram().all(|ram| window.is_clear_of(ram, board.frames())),
        });
        let vmid = guest.memory.vmid();
        loaded.settle(Setting { root, ipa_bits, vmid, vcpu: index, controller });
        Ok((board, arrival))
    })
}

/// A vCPU that is being run here.
struct Run<'a, 'l, P: Platform> {
    p: &'a P,
    vm: Handle,
    index: VcpuIndex,
    loaded: &'l mut P::Loaded<'a>,
    /// The lock around its VM's board.
    lock: &'a P::BoardLock,
    /// Each entry drops what this CPU has cached of the VM.
    flushes: bool,
    /// vCPUs whose threads the host has to wake.
    wake: u64,
}

impl<'a, P: Platform> Run<'a, '_, P> {
    fn serve(&mut self, permit: &mut Permit, board: Held<'a, P>) -> Result<Exit, Refused> {
        let mut held = Some(board);
        loop {
            let board = held.take().unwrap_or_else(|| self.lock.acquire());
            let next = match self.enter(board) {
                Err(exit) => Next::Leave(exit),
                Ok(Stop::Own) => Next::Resume,
                Ok(Stop::Trap(trap)) => self.decide(permit, trap)?,
                Ok(Stop::Interrupt) => Next::Leave(Exit::Irq),
                Ok(Stop::SError) => Next::Leave(Exit::Crash(Crash::Abort)),
                Ok(Stop::BadState) => Next::Leave(Exit::Crash(Crash::BadState)),
                Ok(Stop::HostBusy) => return Err(Refused::Denied),
            };
            match next {
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

    /// Has a synchronous exception decided, with as much of the VM's memory in view as it needs.
    fn decide(&mut self, permit: &mut Permit, trap: Trap) -> Result<Next, Refused> {
        let class = trap.class();
        if class & !4 == CLASS_FETCH {
            return self.abort(permit, trap);
        }
        if let Some(next) = self.trap(trap) {
            return Ok(self.idle(next));
        }
        let mut raw_ids = None;
        let raw_ids = if class == CLASS_SYSREG { raw_ids.insert(self.p.raw_ids()) } else { &RawIds::NONE };
        let ipa_bits = self.loaded.setting().map_or(0, |setting| setting.ipa_bits);
        let ids = IdView::new(raw_ids, ipa_bits).with_gic(self.controller().is_some());
        if class == CLASS_HVC {
            // It may change tables, and those of the host too.
            self.loaded.leave();
            return self.call(permit, trap, &ids);
        }
        let (registers, vcpu) = self.loaded.parts();
        let next = vcpu.handle(trap, registers, &View::nothing(&self.p.machine()), &ids);
        Ok(self.idle(next))
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
    fn abort(&mut self, permit: &mut Permit, trap: Trap) -> Result<Next, Refused> {
        let is_of_controller = self.holds(trap.address());
        let (registers, vcpu) = self.loaded.parts();
        let mut guest = self.p.world().guest(permit, self.vm.slot().index()).ok_or(Refused::WrongHandle)?;
        let memory = &guest.get().memory;
        let trap = trap.across().filter(|_| !is_of_controller).unwrap_or(trap);
        let is_barred = trap.misses() && memory.bars(Ipa::new(trap.address()).and_then(Ipa::gfn));
        if !is_barred || is_of_controller {
            let next = vcpu.abort(trap, registers, &View::mapped(memory, &self.p.machine()));
            if !is_of_controller {
                return Ok(next);
            }
            if !matches!(next, Next::Leave(Exit::Crash(Crash::NoSyndrome | Crash::Walk))) {
                drop(guest);
                return Ok(self.keep(next));
            }
        }
        registers.inject_external(trap);
        Ok(Next::Resume)
    }

    /// Whether one of the controller's frames is at an address.
    fn holds(&self, ipa: u64) -> bool {
        self.controller().is_some_and(|controller| controller.holds(ipa))
    }

    /// The controller of its VM, if there is one.
    fn controller(&self) -> Option<&Controller> {
        self.loaded.setting()?.controller.as_ref()
    }
}
