// SPDX-License-Identifier: GPL-2.0-only
//! A VM's locks: its own, which whoever looks up user memory may have for long, and its pool's, which nobody has for long.
// UNSAFETY: foreign calls; state that the VM's lock protects.

use super::{Inner, Life, RawVm, Vm};
use crate::sys;
use freehold_driver_core::el2::Run;
use freehold_driver_core::error::Error;
use freehold_driver_core::status::Refused;

extern "C" {
    fn fhc_vm_lock(vm: *mut RawVm);
    fn fhc_vm_lock_killable(vm: *mut RawVm) -> bool;
    fn fhc_vm_lock_try(vm: *mut RawVm) -> i32;
    fn fhc_vm_is_free(vm: *mut RawVm) -> bool;
    fn fhc_vm_unlock(vm: *mut RawVm);
    fn fhc_pool_lock(vm: *mut RawVm);
    fn fhc_pool_unlock(vm: *mut RawVm);
    fn fhc_pool_keep(vm: *mut RawVm, pfn: u64, count: u64);
    fn fhc_pool_next(vm: *mut RawVm, pfn: *mut u64, count: *mut u64) -> bool;
}

impl Inner {
    /// The same, of a VM that has not ended.
    fn alive(&mut self) -> Result<&mut Self, Error> {
        match self.life {
            Life::Ended | Life::Over => Err(Error::Ended),
            Life::New | Life::Ran => Ok(self),
        }
    }
}

impl Vm {
    /// Whether nobody has its lock at this moment.
    pub(crate) fn is_free(self) -> bool {
        // SAFETY: alive by the invariant.
        unsafe { fhc_vm_is_free(self.raw.as_ptr()) }
    }

    /// Runs `change` with the VM's lock held.
    pub(crate) fn locked<R>(self, change: impl FnOnce(&mut Inner) -> R) -> R {
        // SAFETY: alive by the invariant, and no lock that comes after this one is held.
        unsafe { fhc_vm_lock(self.raw.as_ptr()) };
        self.unlock_after(change)
    }

    /// As [`Vm::locked`], unless the VM has ended, the machine goes down, or the thread is being killed.
    pub(crate) fn living<R>(self, change: impl FnOnce(&mut Inner) -> Result<R, Error>) -> Result<R, Error> {
        // SAFETY: alive by the invariant, and no lock that comes after this one is held.
        if !unsafe { fhc_vm_lock_killable(self.raw.as_ptr()) } {
            return Err(if sys::dying() { Error::Interrupted } else { Error::Ended });
        }
        self.unlock_after(|inner| inner.alive().and_then(change))
    }

    /// As [`Vm::living`], and `None` where somebody else has the lock.
    pub(super) fn living_now<R>(self, change: impl FnOnce(&mut Inner) -> Result<R, Error>) -> Option<Result<R, Error>> {
        // SAFETY: alive by the invariant; it does not wait, whatever lock is held.
        match unsafe { fhc_vm_lock_try(self.raw.as_ptr()) } {
            0 => None,
            1 => Some(self.unlock_after(|inner| inner.alive().and_then(change))),
            _ => Some(Err(Error::Ended)),
        }
    }

    /// Runs `change` and gives up the VM's lock, which this thread has taken.
    fn unlock_after<R>(self, change: impl FnOnce(&mut Inner) -> R) -> R {
        // SAFETY: the state is alive with the VM, and the lock makes this the only reference to `inner`.
        let inner = unsafe { &mut (*self.state).inner };
        let result = change(inner);
        // SAFETY: this thread has the lock, as each caller took it.
        unsafe { fhc_vm_unlock(self.raw.as_ptr()) };
        result
    }

    /// Runs `give` and keeps the chunk if it did, under the lock that [`Vm::pool_next`] takes.
    pub(crate) fn pool_keep<R>(self, chunk: Run, give: impl FnOnce() -> Result<R, Refused>) -> Result<R, Refused> {
        // SAFETY: alive by the invariant; the lock comes after all others, and `give` takes none.
        unsafe { fhc_pool_lock(self.raw.as_ptr()) };
        let given = give();
        if given.is_ok() {
            // SAFETY: alive by the invariant; the chunk is one that `page_take` returned and nobody else links.
            unsafe { fhc_pool_keep(self.raw.as_ptr(), chunk.pfn, chunk.count) }
        }
        // SAFETY: this thread has the lock.
        unsafe { fhc_pool_unlock(self.raw.as_ptr()) };
        given
    }

    pub(crate) fn pool_next(self) -> Option<Run> {
        let (mut pfn, mut count) = (0, 0);
        // SAFETY: alive by the invariant; both places are writable.
        let any = unsafe { fhc_pool_next(self.raw.as_ptr(), &raw mut pfn, &raw mut count) };
        any.then_some(Run { pfn, count })
    }
}
