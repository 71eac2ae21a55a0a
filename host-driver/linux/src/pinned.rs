// SPDX-License-Identifier: GPL-2.0-only
//! A slot of the VMM's own memory behind a protected VM: the core's pins over the glue, and what the VM does with them.
// UNSAFETY: foreign calls and entries; state that the slot's lock protects.

use crate::file::from_errno;
use crate::port::{Undertaker, EL2};
use crate::sys;
use crate::vm::Vm;
use core::ptr::NonNull;
use freehold_driver_core::el2::Handle;
use freehold_driver_core::error::Error;
use freehold_driver_core::exit::Request;
use freehold_driver_core::file::Thread;
use freehold_driver_core::page::Span;
use freehold_driver_core::pinned::{self, Pins, Served};
use freehold_driver_core::pool;
use freehold_driver_core::status::Refused;

/// The glue's `struct fh_pinned`.
#[repr(C)]
pub(crate) struct RawPinned {
    _opaque: [u8; 0],
}

/// Rust's part of a pinned slot.
pub(crate) struct PinnedState {
    start: u64,
    pages: Span,
    /// The frame of each page. Under the slot's lock.
    frames: *mut u64,
}

#[expect(improper_ctypes, reason = "the state is opaque to C, which only passes its address on")]
extern "C" {
    fn fhc_pinned_new(made: *mut *mut RawPinned, start: usize, pages: u64, state: *mut PinnedState) -> i32;
    fn fhc_pinned_hold(pinned: *mut RawPinned);
    fn fhc_pinned_put(pinned: *mut RawPinned);
    fn fhc_pinned_lock(pinned: *mut RawPinned);
    fn fhc_pinned_unlock(pinned: *mut RawPinned);
    fn fhc_pinned_pin(pinned: *mut RawPinned, page: u64, present: bool, frame: *mut u64) -> i32;
    fn fhc_pinned_unpin(pinned: *mut RawPinned, frame: u64);
}

/// A pinned slot, borrowed: whoever holds one keeps the glue's object alive.
///
/// # Invariants
/// Both pointers are those of one live object.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct PinnedRef {
    raw: NonNull<RawPinned>,
    state: NonNull<PinnedState>,
}

impl PinnedRef {
    /// A slot on `count` pages of the caller's memory from `start` on. Nothing of it is pinned yet.
    pub(crate) fn new(start: u64, count: u64) -> Result<Self, Error> {
        let pages = Span::new(0, count).ok_or(Error::Invalid)?;
        let words = usize::try_from(count).map_err(|_| Error::Invalid)?;
        let (frames, state) = (sys::alloc::<u64>(words), sys::alloc::<PinnedState>(1));
        let Some(owned) = NonNull::new(state).filter(|_| !frames.is_null()) else {
            // SAFETY: fresh from `alloc`, or null.
            unsafe { sys::free(frames) };
            // SAFETY: fresh from `alloc`, or null.
            unsafe { sys::free(state) };
            return Err(Error::NoMemory);
        };
        // SAFETY: the allocation is of this type's size and alignment, and nobody else knows it.
        unsafe { owned.write(PinnedState { start, pages, frames }) };
        let mut raw = core::ptr::null_mut();
        let from = usize::try_from(start).map_err(|_| Error::Invalid);
        // SAFETY: `raw` is writable for one pointer; the state is whole, and the glue's unless it fails.
        let made = from.map(|from| unsafe { fhc_pinned_new(&raw mut raw, from, count, state) });
        match (made, NonNull::new(raw)) {
            // INVARIANT: the glue made `raw` for this state.
            (Ok(0), Some(raw)) => Ok(Self { raw, state: owned }),
            (failed, _) => {
                // SAFETY: the glue did not keep it.
                unsafe { free(state) };
                Err(failed.map_or_else(|error| error, from_errno))
            }
        }
    }

    /// Takes a reference, which [`PinnedRef::put`] drops.
    pub(crate) fn hold(self) {
        // SAFETY: alive by the invariant.
        unsafe { fhc_pinned_hold(self.raw.as_ptr()) }
    }

    /// Drops a reference.
    pub(crate) fn put(self) {
        // SAFETY: alive by the invariant, and the caller gives the reference up.
        unsafe { fhc_pinned_put(self.raw.as_ptr()) }
    }

    /// Where it lies in the VMM, and how many pages it has.
    pub(crate) fn place(self) -> (u64, u64) {
        // SAFETY: alive by the invariant; the field never changes.
        let start = unsafe { (*self.state.as_ptr()).start };
        (start, self.pages().count())
    }

    pub(crate) fn pages(self) -> Span {
        // SAFETY: alive by the invariant; the field never changes.
        unsafe { (*self.state.as_ptr()).pages }
    }

    /// Whether the guest has any of it.
    pub(crate) fn is_in_use(self) -> bool {
        pinned::any(&self, self.pages())
    }

    /// Takes everything back from a dying VM; the frames that `el2` would not return.
    pub(crate) fn reclaim(self, vm: Handle) -> u64 {
        pinned::reclaim(&self, self.pages(), &EL2, vm, &Undertaker)
    }
}

impl Pins for PinnedRef {
    fn pin(&self, page: u64, present: bool) -> Result<Option<u64>, Error> {
        let mut frame = 0;
        // SAFETY: alive by the invariant; `frame` is writable for one number.
        match unsafe { fhc_pinned_pin(self.raw.as_ptr(), page, present, &raw mut frame) } {
            0 => Ok(None),
            // The guest makes the access again when the signal has been handled.
            -4 | -512 => Err(Error::Interrupted),
            -12 => Err(Error::NoMemory),
            -14 => Err(Error::Fault),
            -133 => Err(Error::Poisoned),
            error if error < 0 => Err(from_errno(error)),
            _ => Ok(Some(frame)),
        }
    }

    fn unpin(&self, frame: u64) {
        // SAFETY: a frame that `pin` brought, of which the core lets go once.
        unsafe { fhc_pinned_unpin(self.raw.as_ptr(), frame) }
    }

    fn change<R>(&self, change: impl FnOnce(&mut [u64]) -> R) -> R {
        // SAFETY: alive by the invariant, and no lock that comes after this one is held: only a pool's does.
        unsafe { fhc_pinned_lock(self.raw.as_ptr()) };
        let words = usize::try_from(self.pages().count()).unwrap_or(0);
        // SAFETY: alive by the invariant; the field never changes.
        let frames = unsafe { (*self.state.as_ptr()).frames };
        // SAFETY: an allocation of so many words, zeroed by `alloc`; the lock makes this the only reference.
        let result = change(unsafe { core::slice::from_raw_parts_mut(frames, words) });
        // SAFETY: this thread took the lock above.
        unsafe { fhc_pinned_unlock(self.raw.as_ptr()) };
        result
    }
}

impl Vm {
    fn give(self, frame: u64, gfn: u64) -> Result<u64, Error> {
        pool::supplied(&EL2, &self, self.handle(), || EL2.mem_donate_revocable(self.handle(), frame, gfn))
    }

    /// Gives a protected guest the page of the VMM's memory that a vCPU touched.
    pub(crate) fn touch_pinned(self, slot: PinnedRef, page: u64, gfn: u64) -> Result<(), Error> {
        pinned::touch(&slot, page, false, |frame| self.give(frame, gfn))
    }

    /// Before the first run: gives a protected guest what the VMM has put there, from the guest frame `gfn` on.
    pub(crate) fn populate_pinned(self, slot: PinnedRef, gfn: u64, thread: &impl Thread) -> Result<(), Error> {
        pinned::populate(&slot, slot.pages(), thread, |page, frame| self.give(frame, gfn.saturating_add(page)))
    }

    /// Serves a guest's request for memory of the VMM's.
    pub(crate) fn request_pinned(
        self,
        slot: PinnedRef,
        kind: Request,
        span: Span,
        gfn: u64,
        accept: impl Fn(u64) -> Result<u64, Refused>,
    ) -> Result<(), Error> {
        match pinned::request(&slot, kind, span, &accept)? {
            Served::Done => Ok(()),
            // The guest makes its call again, and finds the page.
            Served::Untouched => self.touch_pinned(slot, span.first(), gfn),
        }
    }
}

/// Frees a state and what is its own.
///
/// # Safety
/// It came from `alloc` in `new`, and nobody else has it any more.
unsafe fn free(state: *mut PinnedState) {
    // SAFETY: alive, by the caller's promise; only its own allocation's address is taken out.
    let frames = unsafe { (*state).frames };
    // SAFETY: came from `alloc` in `new`, and goes with its owner.
    unsafe { sys::free(frames) };
    // SAFETY: came from `alloc` in `new`, by the caller's promise.
    unsafe { sys::free(state) };
}

/// Frees the state of a pinned slot that nobody has any more.
// SAFETY: the name is the module's own (prefix `fh_`), declared once in glue.h with this signature.
#[unsafe(no_mangle)]
extern "C" fn fh_pinned_free(state: *mut PinnedState) {
    // SAFETY: the glue's object goes, and with it this.
    unsafe { free(state) };
}
