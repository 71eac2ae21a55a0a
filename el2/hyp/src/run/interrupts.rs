// SPDX-License-Identifier: MIT OR Apache-2.0
//! What of a run is about interrupts, for a VM that has a controller: list registers before and after, and what it
//! answers itself. The board's lock is held for no other, and never while a guest runs.

use crate::calls::{Loaded, Platform, Stop, give};
use freehold_mem::lock::Mutex;
use freehold_virt::board::Timers;
use freehold_virt::exit::Exit;
use freehold_virt::handle::{Handle, VcpuIndex};
use freehold_virt::sysreg::Access;
use freehold_virt::vcpu::{Next, Trap};

use super::CLASS_SYSREG;

fn timers<'a>(loaded: &mut impl Loaded<'a>) -> Timers {
    let cntv = loaded.timer();
    Timers { cntv, cntp: *loaded.parts().1.physical_timer() }
}

/// Runs the vCPU until it stops, with what its controller has for it. `vmcr` takes its interface's masks.
pub(super) fn run<'a, P: Platform>(
    p: &'a P,
    vm: Handle,
    index: VcpuIndex,
    loaded: &mut P::Loaded<'a>,
    regime: &P::Regime,
    vmcr: &mut u64,
) -> Stop {
    let board = p.board(vm.slot());
    let timers = timers(loaded);
    let mut lists = board.acquire().enter(index, p.cpu(), p.list_registers(), timers, p.now());
    let stop = loaded.run(regime, Some(&mut lists));
    *vmcr = lists.vmcr();
    let kicks = board.acquire().leave(index, &mut lists);
    give(p, kicks);
    stop
}

/// Serves a trap of the controller's system registers, or of the physical timer's; `false` if it is another one.
pub(super) fn system_register<'a, P: Platform>(
    p: &'a P,
    vm: Handle,
    index: VcpuIndex,
    loaded: &mut P::Loaded<'a>,
    trap: Trap,
) -> bool {
    if trap.esr >> 26 & 0x3f != CLASS_SYSREG {
        return false;
    }
    let (registers, vcpu) = loaded.parts();
    let (access, timer) = (Access::decode(trap.esr), vcpu.physical_timer());
    let kicks = p.board(vm.slot()).acquire().system_register(index, access, registers, timer, p.now());
    kicks.map(|kicks| give(p, kicks)).is_some()
}

/// Keeps an exit from the host if the VM's controller answers it.
pub(super) fn keep<'a, P: Platform>(
    p: &'a P,
    vm: Handle,
    index: VcpuIndex,
    loaded: &mut P::Loaded<'a>,
    exit: Exit,
    vmcr: u64,
) -> Next {
    let timers = timers(loaded);
    let mut board = p.board(vm.slot()).acquire();
    let kicks = match exit {
        Exit::MmioStore { ipa, width, data } => board.store(ipa, width, data),
        Exit::MmioLoad { ipa, width } => board.load(ipa, width).map(|(value, kicks)| {
            let (registers, vcpu) = loaded.parts();
            vcpu.complete(value, registers);
            kicks
        }),
        Exit::Wfi(_) => return board.idle(index, vmcr, timers, p.now()).map_or(Next::Resume, Next::Leave),
        Exit::Irq
        | Exit::MemFault(_)
        | Exit::Request(_)
        | Exit::SystemOff
        | Exit::SystemReset
        | Exit::Crash(_)
        | Exit::Kicked => None,
    };
    drop(board);
    match kicks {
        Some(kicks) => {
            give(p, kicks);
            Next::Resume
        }
        None => Next::Leave(exit),
    }
}
