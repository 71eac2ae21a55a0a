// SPDX-License-Identifier: MIT OR Apache-2.0
//! World switch: runs one vCPU on this CPU until something needs EL2's attention.
//!
//! Guarantees: once [`leave`] is back no register of a guest is left where the host can read it, and no
//! register of the host was ever left where the guest could (D9, I4). What the host may see of
//! an exit is decided elsewhere, from the saved context. The host's own state, its full-length
//! vectors included, is the same before and after.
//!
//! Does not know: what an exit means, whether the vCPU may run, which VM owns what. An exit that EL2 answers itself does
//! not need the host: between [`enter`] and [`leave`] the guest's EL1 state and stage 2 stay in force while EL2 decides.
//! For what is answered at once, calls by `freehold_virt::guest_call` and else by who enters, not even the timer and the
//! list registers are taken off.
//!
//! The order of the steps follows the rules for speculative address translation (errata 1319367 and
//! 1530923 of A57, A72 and A76): stage-1 walks are off whenever stage 1 and stage 2 belong to
//! different worlds. It costs a few ISBs and is done on every CPU. In both directions a DSB between
//! the end of the walks and the change of stage 2 waits for the walks that were under way.

mod context;
mod el1;
mod entry;
mod errors;
mod fp;
mod gic;
mod keys;
mod partitions;
mod profiling;
mod stage2;
mod timer;
mod traps;
mod vgic;

pub use context::{GuestContext, HostContext};
pub use stage2::GuestRegime;
pub(crate) use stage2::with_other_stage2;
pub(crate) use vgic::list_registers;

use crate::features::Has;
use crate::host::midr;
use crate::{barrier, gicr, vectors};
use el1::{start_walks, stop_walks};
use entry::Cause;
use freehold_virt::guest_call::answer_at_once;
use freehold_virt::vcpu::{Answer, Stop, Trap, lacks_page, page_of};
use freehold_virt::vgic::Lists;

/// Exception class of an FP or SIMD instruction that CPTR_EL2 trapped.
const CLASS_FP: u64 = 0x07;
/// Of an HVC.
const CLASS_HVC: u64 = 0x16;
/// ISR_EL1: a physical SError, IRQ or FIQ is pending.
const ISR_PENDING: u64 = 1 << 8 | 1 << 7 | 1 << 6;

/// Whether the host left a state in which no guest may be entered: streaming mode. Asked before anything of the vCPU
/// moves; [`enter`] asks again.
#[must_use]
pub fn host_is_busy() -> bool {
    fp::host_is_streaming(Has::here())
}

/// Runs the guest in `ctx` until it exits. [`leave`] must follow before anything else is done for the host, or to tables.
///
/// An interrupt that is pending already, or a host that must not be left, returns at once. `lists` is what a guest with
/// an interrupt controller has in its CPU interface; without one it has none.
///
/// # Safety
/// `regime` names complete stage-2 tables and the VMID of the VM that `ctx` belongs to, and they
/// stay so until [`leave`]. The caller handles a trap of the host on this CPU: DAIF is masked, and the host's stage 2
/// and registers are in force, or those of this guest since an earlier call.
pub unsafe fn enter(
    ctx: &mut GuestContext,
    host: &mut HostContext,
    regime: &GuestRegime,
    mut lists: Option<&mut Lists>,
    mut answer: impl Answer<GuestContext>,
) -> Stop {
    let ids = Has::here();
    if !ctx.is_servable() {
        return Stop::BadState;
    }
    if !ctx.is_live {
        if fp::host_is_streaming(ids) {
            return Stop::HostBusy;
        }
        host.gic.open(ids);
    }
    barrier::registers_in_effect();
    if is_pending() {
        if !ctx.is_live {
            host.gic.close(ids);
        }
        return Stop::Interrupt;
    }
    if !ctx.is_live {
        leave_host(host, ids);
        load_guest(ctx, host, regime, ids);
        ctx.is_live = true;
    }
    load_interface(ctx, lists.as_deref_mut());
    let cause = run(ctx, host, ids, &mut answer);
    save_interface(ctx, lists);
    exit_of(cause, ctx, errors::guest_deferred(ids))
}

/// Whether something is pending for this CPU that no mask of the host's GIC holds back: they are open.
fn is_pending() -> bool {
    read_sysreg!("isr_el1") & ISR_PENDING != 0
}

/// Puts the host back after [`enter`], if it was left.
pub fn leave(ctx: &mut GuestContext, host: &mut HostContext) {
    if core::mem::take(&mut ctx.is_live) {
        let ids = Has::here();
        ctx.keys.save(ids);
        ctx.el1.save();
        errors::forget_virtual(ids);
        return_to_host(ctx, host, ids);
    }
}

/// Saves what the host has, and stops everything that observes execution on its behalf. The DSB that
/// completes it is that of `stop_walks`, which comes next.
fn leave_host(host: &mut HostContext, ids: Has) {
    host.el1.save();
    host.el2.save(ids);
    host.keys.save(ids);
    host.profiling.stop(ids);
    host.partitions.hide(ids);
    host.errors.set_aside(ids);
    host.fp.guest_has_it = false;
}

/// Loads the guest's EL1 state, stage 2 and traps. Its vectors follow when it first asks for them.
#[inline(never)]
fn load_guest(ctx: &GuestContext, host: &HostContext, regime: &GuestRegime, ids: Has) {
    stop_walks(ctx.el1.sctlr, ctx.el1.tcr);
    ctx.el1.load_all_but_regime();
    host.el2.apply_guest_traps(ids);
    stage2::load(regime.stage2.beside(host.el2.stage2));
    // Name and revision are this CPU's.
    write_sysreg!("vpidr_el2", midr());
    write_sysreg!("vmpidr_el2", regime.vmpidr);
    barrier::registers_in_effect();
    if regime.flush_local {
        stage2::forget_sibling_here();
    }
    start_walks(ctx.el1.sctlr, ctx.el1.tcr);
    ctx.keys.load(ids);
    gicr::allow_own();
}

/// Loads the guest's timer and list registers.
fn load_interface(ctx: &GuestContext, lists: Option<&mut Lists>) {
    if let Some(lists) = lists {
        ctx.gic.load(lists);
        timer::limit(lists.deadline());
    } else {
        gicr::hold_timer();
    }
    timer::load(ctx.timer);
    barrier::registers_in_effect();
}

/// Runs the guest; gives it the vector registers when it first asks for them.
#[inline(always)]
fn run(ctx: &mut GuestContext, host: &mut HostContext, ids: Has, answer: &mut impl Answer<GuestContext>) -> Cause {
    loop {
        write_sysreg!("vbar_el2", entry::guest_vectors());
        barrier::registers_in_effect();
        // SAFETY: the whole of the guest's state but its general registers is loaded, traps and
        // stage 2 are the guest's, VBAR_EL2 is the table that `run_guest` returns through, and
        // `enter` has checked that PSTATE names EL0 or EL1.
        let cause = Cause(unsafe { entry::run_guest(ctx) });
        write_sysreg!("vbar_el2", vectors::host_vectors());
        barrier::registers_in_effect();
        // What takes no more than an answer takes no switch. An interrupt for the host ends the next stay at once.
        if cause != Cause::SYNC {
            return cause;
        }
        let trap = ctx.exit;
        if ctx.is_servable() {
            let is_call = trap.class() == CLASS_HVC;
            let goes_on = if is_call && answer_at_once(trap.esr, ctx) { Some(true) } else { answer(trap, ctx) };
            match goes_on {
                Some(true) => continue,
                Some(false) => return Cause::AGAIN,
                None => {}
            }
        }
        if trap.class() != CLASS_FP || host.fp.guest_has_it {
            return if names_page(&mut ctx.exit) { cause } else { Cause::AGAIN };
        }
        host.fp.give_to_guest(&ctx.fp, ids);
    }
}

/// Sees to it that HPFAR_EL2 names the page of an abort: of a permission fault it does not, and the address is translated
/// by the guest's own tables, which are in force still. `false`: the guest has changed them, and makes the access again.
fn names_page(exit: &mut Trap) -> bool {
    if !lacks_page(exit.esr) {
        return true;
    }
    let kept = read_sysreg!("par_el1");
    // SAFETY: a translation, whose result goes to a register that is the guest's and is put back.
    unsafe { core::arch::asm!("at s1e1r, {}", in(reg) exit.far, options(nostack, preserves_flags)) };
    barrier::registers_in_effect();
    let found = read_sysreg!("par_el1");
    write_sysreg!("par_el1", kept);
    page_of(found).map(|hpfar| exit.hpfar = hpfar).is_some()
}

/// Takes the guest's timer and list registers off, and with them whatever interrupts of EL2's own they raise.
fn save_interface(ctx: &mut GuestContext, lists: Option<&mut Lists>) {
    ctx.timer = timer::save_and_stop();
    if let Some(lists) = lists {
        timer::lift_limit();
        ctx.gic.save(lists);
    } else {
        gicr::release_timer();
    }
    barrier::registers_in_effect();
    // The writes above are done. The GIC hears of a level that fell in its own time, which no barrier bounds: what was
    // under way to it goes first, so that as little as can be is left to the host and to the next look at what is pending.
    barrier::system_done();
}

/// Puts the host's stage 2, traps, EL1 state and observers back.
fn return_to_host(ctx: &mut GuestContext, host: &mut HostContext, ids: Has) {
    stop_walks(ctx.el1.sctlr, ctx.el1.tcr);
    // Where the guest's last abort was: the exits of another VM, whose host sees it, would carry it on.
    write_sysreg!("far_el2", 0);
    host.el2.restore(ids);
    barrier::registers_in_effect();
    host.el1.load_all_but_regime();
    start_walks(host.el1.sctlr, host.el1.tcr);
    host.keys.load(ids);
    if host.fp.guest_has_it {
        host.fp.take_from_guest(&mut ctx.fp, ids);
    }
    host.partitions.show(ids);
    host.profiling.resume(ids);
    host.gic.close(ids);
    host.errors.put_back(ids);
    barrier::registers_in_effect();
}

fn exit_of(cause: Cause, ctx: &GuestContext, deferred: bool) -> Stop {
    match cause {
        _ if deferred || cause.has_serror() => Stop::SError,
        Cause::AGAIN => Stop::Own,
        Cause::SYNC if ctx.is_servable() => Stop::Trap(ctx.exit),
        // What EL2 lets through fell when the guest's state was taken off. The host's priorities are not masked yet:
        // an interrupt that it masks is still the host's.
        Cause::IRQ | Cause::FIQ if ctx.is_servable() => {
            gicr::forget_kick();
            barrier::registers_in_effect();
            if is_pending() { Stop::Interrupt } else { Stop::Own }
        }
        Cause::SERROR => Stop::SError,
        _ => Stop::BadState,
    }
}
