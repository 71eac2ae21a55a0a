// SPDX-License-Identifier: MIT OR Apache-2.0
//! What of a run concerns the VM's board: list registers before and after, what its controller answers itself, and the
//! guest's calls about its CPUs. The board's lock is held for no other, and never while a guest runs.

use super::{CLASS_HVC, CLASS_SYSREG, Run, Turn};
use crate::calls::{Loaded, Platform, Stop, give};
use freehold_mem::lock::Mutex;
use freehold_virt::board::Timers;
use freehold_virt::exit::Exit;
use freehold_virt::guest_call::identifier;
use freehold_virt::handle::MAX_VCPUS;
use freehold_virt::registers::Registers;
use freehold_virt::sysreg::Access;
use freehold_virt::trng;
use freehold_virt::vcpu::{Next, Trap};
use freehold_virt::vgic::Window;

impl<'a, P: Platform> Run<'a, P> {
    fn board(&self) -> <P::BoardLock as Mutex>::Guard<'a> {
        self.p.board(self.vm.slot()).acquire()
    }

    fn timers(&mut self) -> Timers {
        let cntv = self.loaded.timer();
        Timers { cntv, cntp: *self.loaded.parts().1.physical_timer() }
    }

    /// Runs the vCPU until it stops, with what its controller has for it.
    ///
    /// # Errors
    /// How it leaves without having run. A kick is looked for when who kicks can know that it is here.
    pub(super) fn enter(&mut self, turn: &Turn<P::Regime>) -> Result<Stop, Exit> {
        let (p, index, timers) = (self.p, self.index, self.timers());
        let place = (p.cpu(), p.list_registers());
        let board = p.board(self.vm.slot());
        board.acquire().enter(index, place, timers, p.now(), self.loaded.lists())?;
        let Self { loaded, window, is_clear, wake, .. } = self;
        let may_answer = |trap: Trap| match trap.load() {
            Some((ipa, _)) => *is_clear && may_hold(*window, ipa),
            None => window.is_some() && trap.class() == CLASS_SYSREG,
        };
        let stop = if loaded.claim().take_kick() {
            Err(Exit::Kicked)
        } else {
            Ok(loaded.run(&turn.regime, window.is_some(), |trap, registers| {
                if !may_answer(trap) {
                    return None;
                }
                let mut board = board.acquire();
                let kicks = board.answer_at_once(index, trap, registers)?;
                *wake |= give(p, kicks);
                // What it has sent to itself takes a list register.
                Some(*wake == 0 && kicks.cpus & 1u32.unbounded_shl(place.0 as u32) == 0)
            }))
        };
        // Under the lock, which is held to the end of the statement.
        self.wake |= give(p, board.acquire().leave(index, self.loaded.lists()));
        p.forget_interrupt();
        stop
    }

    /// Serves a trap of the controller's system registers or of the physical timer's, a PSCI call, and a call for random
    /// numbers; `None` if it is another one.
    pub(super) fn trap(&mut self, trap: Trap) -> Option<Next> {
        let p = self.p;
        let (registers, vcpu) = self.loaded.parts();
        let mut board;
        let (next, kicks) = match trap.class() {
            CLASS_SYSREG => {
                let (access, timer) = (Access::decode(trap.esr), vcpu.physical_timer());
                board = p.board(self.vm.slot()).acquire();
                board.vgic()?;
                (Next::Resume, board.system_register(self.index, access, registers, timer, p.now())?)
            }
            CLASS_HVC if trap.esr & 0xffff == 0 => {
                let source = p.has_random().then_some(|| p.random());
                if let Some(results) = trng::serve(identifier(registers.x(0)), registers.x(1), source) {
                    registers.answer(results);
                    return Some(Next::Resume);
                }
                board = p.board(self.vm.slot()).acquire();
                board.power_call(self.index, registers)?
            }
            _ => return None,
        };
        self.wake |= give(p, kicks);
        Some(next)
    }

    /// Keeps an exit from the host if the VM's controller answers it.
    pub(super) fn keep(&mut self, next: Next) -> Next {
        let mut board;
        let kicks = match next {
            Next::Leave(Exit::MmioStore { ipa, width, data }) if may_hold(self.window, ipa) => {
                board = self.board();
                board.store(ipa, width, data)
            }
            Next::Leave(Exit::MmioLoad { ipa, width }) if may_hold(self.window, ipa) => {
                board = self.board();
                board.load(ipa, width).map(|(value, kicks)| {
                    let (registers, vcpu) = self.loaded.parts();
                    vcpu.complete(value, registers);
                    kicks
                })
            }
            Next::Leave(Exit::Wfi(_)) => {
                let (timers, vmcr) = (self.timers(), self.loaded.lists().vmcr());
                let exit = self.board().idle(self.index, vmcr, timers, self.p.now());
                return exit.map_or(Next::Resume, Next::Leave);
            }
            Next::Leave(_) | Next::Resume => return next,
        };
        kicks.map_or(next, |kicks| {
            self.wake |= give(self.p, kicks);
            Next::Resume
        })
    }
}

/// Whether one of the controller's frames may be at an address.
fn may_hold(window: Option<Window>, ipa: u64) -> bool {
    window.is_some_and(|window| window.locate(ipa, MAX_VCPUS).is_some())
}
