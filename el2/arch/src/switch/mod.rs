// SPDX-License-Identifier: MIT OR Apache-2.0
//! World switch: runs one vCPU on this CPU until something needs EL2's attention.
//!
//! Guarantees: between two calls of [`enter`] no register of a guest is left where the host can read
//! it, and no register of the host is left where the guest could (D9, I4). What the host may see of
//! an exit is decided elsewhere, from the saved context. The host's own state, its full-length
//! vectors included, is the same before and after.
//!
//! Does not know: what an exit means, whether the vCPU may run, which VM owns what. A call that
//! `freehold_virt::guest_call` answers at once is no exit: nothing is switched for it.
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

use crate::features::Ids;
use crate::{barrier, gicr, vectors};
use entry::Cause;
use freehold_virt::guest_call::answer_at_once;
use freehold_virt::vcpu::{lacks_page, page_of};
use freehold_virt::vgic::Lists;

/// Exception class of an FP or SIMD instruction that CPTR_EL2 trapped.
const CLASS_FP: u64 = 0x07;
/// ISR_EL1: a physical SError, IRQ or FIQ is pending.
const ISR_PENDING: u64 = 1 << 8 | 1 << 7 | 1 << 6;

/// Why a guest left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitKind {
    /// A synchronous exception; the syndrome says which.
    Sync,
    /// A physical interrupt is pending for the host.
    Interrupt,
    /// An interrupt of EL2's own brought the guest out: a timer's, or maintenance of the list registers. Or nothing did
    /// that is there any more.
    Own,
    /// An SError came while the guest ran, or the guest's last accesses caused it.
    SError,
    /// The guest runs, or would run, in a state that is not served: AArch32, or above EL1.
    BadState,
    /// The host left streaming mode on; it must be off before a guest may run.
    HostBusy,
}

/// What the hardware said at an exit. The syndrome registers mean something for `Sync` only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawExit {
    /// Why.
    pub kind: ExitKind,
    /// ESR_EL2.
    pub esr: u64,
    /// FAR_EL2.
    pub far: u64,
    /// HPFAR_EL2.
    pub hpfar: u64,
}

impl RawExit {
    const fn bare(kind: ExitKind) -> Self {
        Self { kind, esr: 0, far: 0, hpfar: 0 }
    }
}

/// Whether the host left a state in which no guest may be entered: streaming mode. Asked before anything of the vCPU
/// moves; [`enter`] asks again.
#[must_use]
pub fn host_is_busy() -> bool {
    fp::host_is_streaming(&Ids::read())
}

/// Runs the guest in `ctx` until it exits, and puts the host back.
///
/// An interrupt that is pending already, or a host that must not be left, returns at once. `lists` is what a guest with
/// an interrupt controller has in its CPU interface; without one it has none.
///
/// # Safety
/// `regime` names complete stage-2 tables and the VMID of the VM that `ctx` belongs to, and they
/// stay so for the length of the call. The caller handles a trap of the host on this CPU: DAIF is
/// masked and the host's stage 2 and registers are in force.
pub unsafe fn enter(
    ctx: &mut GuestContext,
    host: &mut HostContext,
    regime: &GuestRegime,
    mut lists: Option<&mut Lists>,
) -> RawExit {
    if !ctx.is_servable() {
        return RawExit::bare(ExitKind::BadState);
    }
    let ids = Ids::read();
    if fp::host_is_streaming(&ids) {
        return RawExit::bare(ExitKind::HostBusy);
    }
    host.gic.open(&ids);
    barrier::registers_in_effect();
    if read_sysreg!("isr_el1") & ISR_PENDING != 0 {
        host.gic.close(&ids);
        return RawExit::bare(ExitKind::Interrupt);
    }
    leave_host(host, &ids);
    load_guest(ctx, host, regime, lists.as_deref_mut(), &ids);
    let cause = run(ctx, host, &ids);
    save_guest(ctx, lists, &ids);
    return_to_host(ctx, host, &ids);
    exit_of(cause, ctx)
}

/// Saves what the host has, and stops everything that observes execution on its behalf. The DSB that
/// completes it is that of `stop_walks`, which comes next.
fn leave_host(host: &mut HostContext, ids: &Ids) {
    host.el1.save();
    host.el2.save(ids);
    host.keys.save(ids);
    host.profiling.stop(ids);
    host.partitions.hide(ids);
    host.errors.set_aside(ids);
}

/// Loads everything of the guest but its general registers and, until first use, its vectors.
fn load_guest(ctx: &GuestContext, host: &HostContext, regime: &GuestRegime, lists: Option<&mut Lists>, ids: &Ids) {
    ctx.el1.stop_walks();
    ctx.el1.load_all_but_regime();
    host.el2.apply_guest_traps(ids);
    stage2::load(regime.vtcr, regime.vttbr);
    write_sysreg!("vpidr_el2", regime.vpidr);
    write_sysreg!("vmpidr_el2", regime.vmpidr);
    barrier::registers_in_effect();
    if regime.flush_local {
        stage2::forget_sibling_here();
    }
    ctx.el1.start_walks();
    if let Some(lists) = lists {
        ctx.gic.load(lists);
        timer::limit(lists.deadline());
    } else {
        gicr::hold_timer();
    }
    timer::load(ctx.timer);
    ctx.keys.load(ids);
    barrier::registers_in_effect();
}

/// Runs the guest; gives it the vector registers when it first asks for them.
fn run(ctx: &mut GuestContext, host: &mut HostContext, ids: &Ids) -> Cause {
    host.fp.guest_has_it = false;
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
        if cause == Cause::SYNC && ctx.is_servable() && answer_at_once(ctx.exit.esr, ctx) {
            continue;
        }
        let wants_fp = cause == Cause::SYNC && ctx.exit.esr >> 26 & 0x3f == CLASS_FP;
        if !wants_fp || host.fp.guest_has_it {
            return if cause == Cause::SYNC && !names_page(&mut ctx.exit) { Cause::AGAIN } else { cause };
        }
        host.fp.give_to_guest(&ctx.fp, ids);
    }
}

/// Sees to it that HPFAR_EL2 names the page of an abort: of a permission fault it does not, and the address is translated
/// by the guest's own tables, which are in force still. `false`: the guest has changed them, and makes the access again.
fn names_page(exit: &mut context::ExitRegisters) -> bool {
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

/// Saves what the guest has, and leaves none of it where nothing will overwrite it.
fn save_guest(ctx: &mut GuestContext, lists: Option<&mut Lists>, ids: &Ids) {
    ctx.timer = timer::save_and_stop();
    ctx.exit.own = lists.is_some().into();
    if let Some(lists) = lists {
        timer::lift_limit();
        ctx.gic.save(lists);
    } else {
        gicr::release_timer();
    }
    ctx.keys.save(ids);
    ctx.el1.save();
    errors::forget_virtual(ids);
}

/// Puts the host's stage 2, traps, EL1 state and observers back.
fn return_to_host(ctx: &mut GuestContext, host: &mut HostContext, ids: &Ids) {
    ctx.el1.stop_walks();
    host.el2.restore(ids);
    barrier::registers_in_effect();
    host.el1.load_all_but_regime();
    host.el1.start_walks();
    host.keys.load(ids);
    if host.fp.guest_has_it {
        host.fp.take_from_guest(&mut ctx.fp, ids);
    }
    host.partitions.show(ids);
    host.profiling.resume(ids);
    // Before the host's priorities are masked again: one that it masks is still the host's.
    ctx.exit.wanted = read_sysreg!("isr_el1") & ISR_PENDING;
    host.gic.close(ids);
    ctx.exit.deferred = host.errors.put_back(ids).into();
    barrier::registers_in_effect();
}

fn exit_of(cause: Cause, ctx: &mut GuestContext) -> RawExit {
    let deferred = core::mem::take(&mut ctx.exit.deferred) != 0;
    // Whatever EL2 lets through fell when the guest's state was taken off.
    let own = ctx.exit.own != 0 && ctx.exit.wanted == 0;
    let kind = match cause {
        _ if deferred || cause.has_serror() => ExitKind::SError,
        Cause::AGAIN => ExitKind::Own,
        Cause::SYNC if ctx.is_servable() => ExitKind::Sync,
        Cause::IRQ | Cause::FIQ if ctx.is_servable() && own => ExitKind::Own,
        Cause::IRQ | Cause::FIQ if ctx.is_servable() => ExitKind::Interrupt,
        Cause::SERROR => ExitKind::SError,
        _ => ExitKind::BadState,
    };
    RawExit { kind, esr: ctx.exit.esr, far: ctx.exit.far, hpfar: ctx.exit.hpfar }
}
