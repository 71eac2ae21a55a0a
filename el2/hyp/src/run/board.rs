// SPDX-License-Identifier: MIT OR Apache-2.0
//! What of a run concerns the VM's board: list registers before and after, what its controller answers itself, and the
//! guest's calls about its CPUs. The board's lock is held for no other, and never while a guest runs.

use super::{CLASS_HVC, CLASS_SYSREG, Held, Run};
use crate::calls::{Loaded, Platform, Stop, give};
use freehold_mem::lock::Mutex;
use freehold_virt::board::Timers;
use freehold_virt::exit::Exit;
use freehold_virt::guest_call::identifier;
use freehold_virt::registers::Registers;
use freehold_virt::sysreg::Access;
use freehold_virt::trng;
use freehold_virt::vcpu::{Next, Trap};

impl<'a, P: Platform> Run<'a, '_, P> {
    fn timers(&mut self) -> Timers {
        let cntv = self.loaded.timer();
        Timers { cntv, cntp: *self.loaded.parts().1.physical_timer() }
    }

    /// Runs the vCPU until it stops, with what its controller has for it.
    ///
    /// # Errors
    /// How it leaves without having run. A kick is looked for when who kicks can know that it is here.
    pub(super) fn enter(&mut self, mut board: Held<'a, P>) -> Result<Stop, Exit> {
        let (p, lock, index, timers) = (self.p, self.lock, self.index, self.timers());
        let (cpu, room) = (p.cpu(), p.list_registers());
        board.enter(index, (cpu, room), timers, p.now(), self.loaded.lists())?;
        drop(board);
        let has_gic = self.controller().is_some();
        // Where no RAM is, what is met there is the controller.
        let clear = self.controller().filter(|controller| controller.is_clear).map(|controller| controller.window);
        let Self { loaded, flushes, wake, .. } = self;
        let may_answer = |trap: Trap| match trap.load() {
            Some((ipa, _)) => clear.is_some_and(|window| window.is_near(ipa)),
            None => has_gic && trap.class() == CLASS_SYSREG,
        };
        let stop = if loaded.claim().take_kick() {
            Err(Exit::Kicked)
        } else {
            Ok(loaded.run(*flushes, |trap, registers| {
                if !may_answer(trap) {
                    return None;
                }
                let mut board = lock.acquire();
                let kicks = board.answer_at_once(index, trap, registers)?;
                *wake |= give(p, kicks);
                // What it has sent to itself takes a list register.
                Some(*wake == 0 && kicks.cpus & 1u32.unbounded_shl(cpu as u32) == 0)
            }))
        };
        let mut board = lock.acquire();
        if *flushes && matches!(stop, Ok(Stop::Trap(_))) {
            // It trapped, so it was entered; an interrupt alone does not say that.
            board.keep_turn(cpu, index);
            *flushes = false;
        }
        if board.is_told(index) {
            // Nobody sends another one: under this lock it goes out.
            p.forget_interrupt();
        }
        *wake |= give(p, board.leave(index, loaded.lists()));
        stop
    }

    /// Serves a trap of the controller's system registers or of the physical timer's, a PSCI call, and a call for random
    /// numbers; `None` if it is another one.
    #[inline(never)]
    pub(super) fn trap(&mut self, trap: Trap) -> Option<Next> {
        let p = self.p;
        let (registers, vcpu) = self.loaded.parts();
        let mut board;
        let (next, kicks) = match trap.class() {
            CLASS_SYSREG => {
                let (access, timer) = (Access::decode(trap.esr), vcpu.physical_timer());
                board = self.lock.acquire();
                board.vgic()?;
                (Next::Resume, board.system_register(self.index, access, registers, timer, p.now())?)
            }
            CLASS_HVC if trap.esr & 0xffff == 0 => {
                let source = p.has_random().then_some(|| p.random());
                if let Some(results) = trng::serve(identifier(registers.x(0)), registers.x(1), source) {
                    registers.answer(results);
                    return Some(Next::Resume);
                }
                board = self.lock.acquire();
                board.power_call(self.index, registers)?
            }
            _ => return None,
        };
        self.wake |= give(p, kicks);
        Some(next)
    }

    /// Keeps an access to one of the frames from the host: the VM's controller answers it.
    #[inline(never)]
    pub(super) fn keep(&mut self, next: Next) -> Next {
        let mut board;
        let kicks = match next {
            Next::Leave(Exit::MmioStore { ipa, width, data }) => {
                board = self.lock.acquire();
                board.store(ipa, width, data)
            }
            Next::Leave(Exit::MmioLoad { ipa, width }) => {
                board = self.lock.acquire();
                board.load(ipa, width).map(|(value, kicks)| {
                    let (registers, vcpu) = self.loaded.parts();
                    vcpu.complete(value, registers);
                    kicks
                })
            }
            Next::Leave(_) | Next::Resume => return next,
        };
        kicks.map_or(next, |kicks| {
            self.wake |= give(self.p, kicks);
            Next::Resume
        })
    }

    /// Keeps a wait from the host that is over.
    pub(super) fn idle(&mut self, next: Next) -> Next {
        if !matches!(next, Next::Leave(Exit::Wfi(_))) || self.controller().is_none() {
            return next;
        }
        let (timers, vmcr) = (self.timers(), self.loaded.lists().vmcr());
        let exit = self.lock.acquire().idle(self.index, vmcr, timers, self.p.now());
        exit.map_or(Next::Resume, Next::Leave)
    }
}
