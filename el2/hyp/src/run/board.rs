// SPDX-License-Identifier: MIT OR Apache-2.0
//! What of a run concerns the VM's board: list registers before and after, what its controller answers itself, and the
//! guest's calls about its CPUs. The board's lock is held for no other, and never while a guest runs.

use super::{CLASS_HVC, CLASS_SYSREG, Run, Turn};
use crate::calls::{Loaded, Platform, Stop, give};
use freehold_mem::lock::Mutex;
use freehold_virt::board::Timers;
use freehold_virt::exit::Exit;
use freehold_virt::guest_call::identifier;
use freehold_virt::registers::Registers;
use freehold_virt::sysreg::Access;
use freehold_virt::trng;
use freehold_virt::vcpu::{Next, Trap};
use freehold_virt::vgic::Kicks;

impl<'a, P: Platform> Run<'a, P> {
    fn board(&self) -> <P::BoardLock as Mutex>::Guard<'a> {
        self.p.board(self.vm.slot()).acquire()
    }

    fn timers(&mut self) -> Timers {
        let cntv = self.loaded.timer();
        Timers { cntv, cntp: *self.loaded.parts().1.physical_timer() }
    }

    fn give(&mut self, kicks: Kicks) {
        self.wake |= give(self.p, kicks);
    }

    /// Runs the vCPU until it stops, with what its controller has for it.
    ///
    /// # Errors
    /// How it leaves without having run. A kick is looked for when who kicks can know that it is here.
    pub(super) fn enter(&mut self, turn: &Turn<P::Regime>) -> Result<Stop, Exit> {
        let (p, timers) = (self.p, self.timers());
        let place = (p.cpu(), p.list_registers());
        self.p.board(self.vm.slot()).acquire().enter(self.index, place, timers, p.now(), &mut self.lists)?;
        let stop = if self.loaded.claim().take_kick() {
            Err(Exit::Kicked)
        } else {
            Ok(self.loaded.run(&turn.regime, turn.has_gic.then_some(&mut self.lists)))
        };
        let kicks = self.p.board(self.vm.slot()).acquire().leave(self.index, &mut self.lists);
        self.give(kicks);
        stop
    }

    /// Serves a trap of the controller's system registers or of the physical timer's, a PSCI call, and a call for random
    /// numbers; `None` if it is another one.
    pub(super) fn trap(&mut self, trap: Trap) -> Option<Next> {
        let (registers, vcpu) = self.loaded.parts();
        let board = || self.p.board(self.vm.slot()).acquire();
        let (next, kicks) = match trap.esr >> 26 & 0x3f {
            CLASS_SYSREG => {
                let (access, timer) = (Access::decode(trap.esr), vcpu.physical_timer());
                let mut board = board();
                board.vgic()?;
                (Next::Resume, board.system_register(self.index, access, registers, timer, self.p.now())?)
            }
            CLASS_HVC if trap.esr & 0xffff == 0 => {
                let source = self.p.has_random().then_some(|| self.p.random());
                if let Some(results) = trng::serve(identifier(registers.x(0)), registers.x(1), source) {
                    registers.answer(results);
                    return Some(Next::Resume);
                }
                board().power_call(self.index, registers)?
            }
            _ => return None,
        };
        self.give(kicks);
        Some(next)
    }

    /// Keeps an exit from the host if the VM's controller answers it.
    pub(super) fn keep(&mut self, next: Next) -> Next {
        let kicks = match next {
            Next::Leave(Exit::MmioStore { ipa, width, data }) => self.board().store(ipa, width, data),
            Next::Leave(Exit::MmioLoad { ipa, width }) => self.board().load(ipa, width).map(|(value, kicks)| {
                let (registers, vcpu) = self.loaded.parts();
                vcpu.complete(value, registers);
                kicks
            }),
            Next::Leave(Exit::Wfi(_)) => {
                let timers = self.timers();
                let exit = self.board().idle(self.index, self.lists.vmcr(), timers, self.p.now());
                return exit.map_or(Next::Resume, Next::Leave);
            }
            Next::Leave(_) | Next::Resume => return next,
        };
        kicks.map_or(next, |kicks| {
            self.give(kicks);
            Next::Resume
        })
    }
}
