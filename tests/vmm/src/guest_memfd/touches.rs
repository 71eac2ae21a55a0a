// SPDX-License-Identifier: MIT OR Apache-2.0
//! A process that loads and stores where others convert: what it has mapped it reaches without asking the kernel, and where
//! the kernel refuses it a handler steps over the instruction.

use std::sync::Mutex;

use super::calls::{Child, forked};
use super::rig::PAGE_BYTES;
use crate::sys::{Mapping, errno_name};

/// Offsets of what it counts.
const SERVED: usize = 0;
const REFUSED: usize = 8;
const STORED: usize = 16;

/// The child, and what it has counted so far.
pub(super) struct Toucher {
    child: Mutex<Option<Child>>,
    counts: Mapping,
}

extern "C" fn step_over(_signal: i32, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: the kernel passes the interrupted context to an SA_SIGINFO handler, and takes it back from there; the
    // instruction that faulted is the one load or store of `reached`, 4 bytes long.
    unsafe { (*context).uc_mcontext.pc += 4 };
    // SAFETY: as above; that instruction's register for it is this one.
    unsafe { (*context).uc_mcontext.regs[9] = 1 };
}

/// Whether one load, or one store of what was loaded last, went through.
fn reached(at: *mut u8, value: &mut u64, store: bool) -> bool {
    let mut refused = 0_u64;
    if store {
        // SAFETY: the address is a test mapping's; a fault is stepped over, which shows in x9.
        unsafe {
            core::arch::asm!("str {value}, [{at}]", at = in(reg) at, value = in(reg) *value, inout("x9") refused)
        };
    } else {
        // SAFETY: as above; the register has a value even if the load was stepped over.
        unsafe {
            core::arch::asm!("ldr {value}, [{at}]", at = in(reg) at, value = inout(reg) *value, inout("x9") refused)
        };
    }
    refused == 0
}

impl Toucher {
    /// A child that touches `pages` pages of `ram` from byte `first` on, in an order of its own, until it is ended.
    pub(super) fn new(ram: &Mapping, first: usize, pages: u64, seed: u64) -> Result<Self, String> {
        let counts = Mapping::anonymous(PAGE_BYTES, true).map_err(errno_name)?;
        let child = forked(|| {
            // SAFETY: all zeroes is a valid sigaction.
            let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
            action.sa_sigaction = step_over as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            // SAFETY: the handler only changes the context that it is passed.
            unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) };
            // SAFETY: a plain number: it is ended by whoever made it, however long that takes, and dies with them.
            unsafe { libc::alarm(0) };
            let (mut dice, mut value) = (seed | 1, 0);
            loop {
                dice ^= dice << 13;
                dice ^= dice >> 7;
                dice ^= dice << 17;
                let page = usize::try_from(dice % pages).unwrap_or(0);
                let store = dice >> 40 & 1 != 0;
                let seen = reached(ram.at(first + page * PAGE_BYTES), &mut value, store);
                let count = match (seen, store) {
                    (false, _) => REFUSED,
                    (true, false) => SERVED,
                    (true, true) => STORED,
                };
                counts.store(count, counts.load(count) + 1);
            }
        });
        Ok(Self { child: Mutex::new(Some(child)), counts })
    }

    /// Loads that went through, stores that did, and accesses that were refused.
    pub(super) fn seen(&self) -> [u64; 3] {
        [SERVED, STORED, REFUSED].map(|at| self.counts.load(at))
    }

    /// Whether there was some of each.
    pub(super) fn has_all(&self) -> bool {
        self.seen().into_iter().all(|count| count > 0)
    }

    /// Ends the child; how it ended.
    pub(super) fn end(&self) -> String {
        let child = self.child.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        child.map_or_else(String::new, |child| {
            child.signal(libc::SIGKILL);
            child.end()
        })
    }
}

impl Drop for Toucher {
    fn drop(&mut self) {
        self.end();
    }
}
