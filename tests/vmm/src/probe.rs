// SPDX-License-Identifier: MIT OR Apache-2.0
//! Makes one access and says what became of it: in a forked child, or in this process.
//!
//! The child's handler turns the signal into an exit status; an alarm ends a child that a fault loop would keep. A child
//! starts without the page-table entries of a shared mapping, so whether an old entry is gone only this process can tell:
//! here the handler steps over the one instruction that faulted.

use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, Ordering};

use crate::sys::errno_name;

/// How to touch an address.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Access {
    /// A load of 8 bytes.
    Load,
    /// A store of 8 bytes.
    Store,
    /// A jump to it.
    Fetch,
    /// No access: `HVC #0`, `HVC #1`, `SMC #0` or `NOP`.
    Call(Call),
}

/// An instruction that asks a higher level for something.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Call {
    Hvc,
    HvcOne,
    Smc,
    Nop,
}

extern "C" fn on_signal(signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo to an SA_SIGINFO handler.
    let code = unsafe { (*info).si_code };
    // SAFETY: ends the process without running anything of ours.
    unsafe { libc::_exit(0x80 | (signal << 3) | (code & 7)) }
}

fn touch(at: *mut u8, access: Access) {
    match access {
        Access::Load => {
            // SAFETY: in the child; a fault ends it, and that is the answer.
            let value = unsafe { at.cast::<u64>().read_volatile() };
            std::hint::black_box(value);
        }
        // SAFETY: as above; the address is a test mapping's.
        Access::Store => unsafe { at.cast::<u64>().write_volatile(0x5a5a) },
        Access::Fetch => {
            // SAFETY: an address is a valid function pointer; what it does is the child's own end.
            let there: extern "C" fn() = unsafe { std::mem::transmute(at) };
            there();
        }
        Access::Call(which) => call(which),
    }
}

fn call(which: Call) {
    match which {
        // SAFETY: UNDEFINED at EL0, so it ends the child; were it not, what lies below keeps SMCCC's registers.
        Call::Hvc => unsafe { core::arch::asm!(".inst 0xd4000002", clobber_abi("C")) },
        // SAFETY: as above.
        Call::HvcOne => unsafe { core::arch::asm!(".inst 0xd4000022", clobber_abi("C")) },
        // SAFETY: as above.
        Call::Smc => unsafe { core::arch::asm!(".inst 0xd4000003", clobber_abi("C")) },
        // SAFETY: it does nothing.
        Call::Nop => unsafe { core::arch::asm!("nop") },
    }
}

fn arm_handlers() {
    for signal in [libc::SIGBUS, libc::SIGSEGV, libc::SIGILL, libc::SIGTRAP] {
        // SAFETY: all zeroes is a valid sigaction.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_signal as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        // SAFETY: the handler only calls _exit, which is async-signal-safe.
        unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    }
    // SAFETY: a plain number.
    unsafe { libc::alarm(20) };
}

/// Says "done" if the access went through, else the signal, as `SIGBUS`, `SIGSEGV`, or `stuck` after 20 seconds.
pub(crate) fn probe(at: *mut u8, access: Access) -> String {
    // SAFETY: the child only touches one address and leaves by _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        arm_handlers();
        touch(at, access);
        // SAFETY: ends the child.
        unsafe { libc::_exit(0) };
    }
    if child < 0 {
        return format!("no child: {}", errno_name(crate::sys::last_errno()));
    }
    let mut status = 0;
    // SAFETY: waits for the child just made.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    describe(status)
}

/// The signal that the access of this process met; 0 for none.
static MET: AtomicI32 = AtomicI32::new(0);
/// The handlers are the process's: one access at a time.
static ALONE: Mutex<()> = Mutex::new(());

extern "C" fn step_over(signal: i32, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    MET.store(signal, Ordering::SeqCst);
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: the kernel passes the interrupted context to an SA_SIGINFO handler, and takes it back from there; the
    // instruction that faulted is the one load or store of `access_here`, 4 bytes long.
    unsafe { (*context).uc_mcontext.pc += 4 };
}

/// One load or one store of 8 bytes, as one instruction.
fn access_here(at: *mut u8, store: bool) {
    if store {
        // SAFETY: the address is a test mapping's; a fault is stepped over.
        unsafe { core::arch::asm!("str {value}, [{at}]", at = in(reg) at, value = in(reg) 0x5a5a_u64) };
    } else {
        // SAFETY: as above; the register has a value even if the load was stepped over.
        unsafe { core::arch::asm!("ldr {value}, [{at}]", at = in(reg) at, value = inout(reg) 0_u64 => _) };
    }
}

/// Says "done" if a load or a store of this very process went through, else the signal.
pub(crate) fn probe_here(at: *mut u8, store: bool) -> String {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    // SAFETY: all zeroes is a valid sigaction.
    let mut old: [libc::sigaction; 2] = unsafe { std::mem::zeroed() };
    for (signal, old) in [libc::SIGBUS, libc::SIGSEGV].into_iter().zip(&mut old) {
        // SAFETY: as above.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = step_over as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        // SAFETY: the handler only stores a number and moves the context's PC.
        unsafe { libc::sigaction(signal, &raw const action, old) };
    }
    MET.store(0, Ordering::SeqCst);
    access_here(at, store);
    let met = MET.load(Ordering::SeqCst);
    for (signal, old) in [libc::SIGBUS, libc::SIGSEGV].into_iter().zip(&old) {
        // SAFETY: puts back what was there.
        unsafe { libc::sigaction(signal, old, std::ptr::null_mut()) };
    }
    match met {
        0 => "done".to_string(),
        libc::SIGBUS => "SIGBUS".to_string(),
        libc::SIGSEGV => "SIGSEGV".to_string(),
        other => format!("signal {other}"),
    }
}

fn describe(status: i32) -> String {
    if libc::WIFSIGNALED(status) {
        return match libc::WTERMSIG(status) {
            libc::SIGALRM => "stuck".to_string(),
            other => format!("killed by signal {other}"),
        };
    }
    match libc::WEXITSTATUS(status) {
        0 => "done".to_string(),
        coded if coded & 0x80 != 0 => match (coded & 0x78) >> 3 {
            libc::SIGBUS => "SIGBUS".to_string(),
            libc::SIGSEGV => "SIGSEGV".to_string(),
            libc::SIGILL => "SIGILL".to_string(),
            other => format!("signal {other}"),
        },
        other => format!("exit {other}"),
    }
}
