// SPDX-License-Identifier: GPL-2.0-only
//! A slot of the VMM's own memory: the core's lease over the glue, and what a slot stands for.
// UNSAFETY: foreign calls and entries; state that the slot's lock protects.

use crate::file::{from_errno, FileRef};
use crate::pinned::PinnedRef;
use crate::port::EL2;
use crate::sys::{self, log, Level};
use core::ptr::NonNull;
use freehold_driver_core::el2::Handle;
use freehold_driver_core::error::Error;
use freehold_driver_core::page::Span;
use freehold_driver_core::plain::{self, Access, Lease, Lent, Way, AROUND};
use freehold_driver_core::status::Refused;

/// The glue's `struct fh_plain`.
#[repr(C)]
pub(crate) struct RawPlain {
    _opaque: [u8; 0],
}

/// Rust's part of a plain slot.
pub(crate) struct PlainState {
    start: u64,
    pages: Span,
    read_only: bool,
    kept: Kept,
}

/// What the slot's lock protects.
struct Kept {
    /// Changed only while nothing is lent.
    at: At,
    /// It has gone.
    over: bool,
    /// A bit for each page that is lent.
    bits: *mut u64,
    words: usize,
}

/// Where a slot's first page is found.
#[derive(Clone, Copy)]
pub(crate) struct At {
    vm: Handle,
    gfn: u64,
}

#[expect(improper_ctypes, reason = "the state is opaque to C, which only passes its address on")]
extern "C" {
    fn fhc_plain_new(made: *mut *mut RawPlain, start: usize, pages: u64, state: *mut PlainState) -> i32;
    fn fhc_plain_hold(plain: *mut RawPlain);
    fn fhc_plain_put(plain: *mut RawPlain);
    fn fhc_plain_lock(plain: *mut RawPlain);
    fn fhc_plain_unlock(plain: *mut RawPlain);
    fn fhc_plain_begin(plain: *mut RawPlain) -> usize;
    fn fhc_plain_passed(plain: *mut RawPlain, seen: usize) -> bool;
    fn fhc_plain_bring(plain: *mut RawPlain, first: u64, frames: *mut u64, count: u32, write: bool) -> i32;
    fn fhc_plain_let_go(frames: *const u64, count: u32);
}

/// A plain slot, borrowed: whoever holds one keeps the glue's object alive.
///
/// # Invariants
/// Both pointers are those of one live object.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct PlainRef {
    raw: NonNull<RawPlain>,
    state: NonNull<PlainState>,
}

/// What the guest frames of a slot stand for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backing {
    /// Offsets of a `guest_memfd`.
    File(FileRef),
    /// The VMM's own memory, of an ordinary VM.
    Plain(PlainRef),
    /// The VMM's own memory, of a protected VM.
    Pinned(PinnedRef),
}

impl Backing {
    /// Takes a reference, which [`Backing::put`] drops.
    pub(crate) fn hold(self) {
        match self {
            Self::File(file) => file.hold(),
            // SAFETY: alive by the invariant.
            Self::Plain(plain) => unsafe { fhc_plain_hold(plain.raw.as_ptr()) },
            Self::Pinned(pinned) => pinned.hold(),
        }
    }

    /// Drops a reference.
    pub(crate) fn put(self) {
        match self {
            Self::File(file) => file.put(),
            // SAFETY: alive by the invariant, and the caller gives the reference up.
            Self::Plain(plain) => unsafe { fhc_plain_put(plain.raw.as_ptr()) },
            Self::Pinned(pinned) => pinned.put(),
        }
    }

    /// The file; a slot of the VMM's own memory has none.
    pub(crate) const fn file(self) -> Result<FileRef, Error> {
        match self {
            Self::File(file) => Ok(file),
            Self::Plain(_) | Self::Pinned(_) => Err(Error::Invalid),
        }
    }
}

impl Kept {
    fn change<R>(&mut self, change: impl FnOnce(&mut Lent<'_>, &At) -> R) -> R {
        // SAFETY: `bits` is an allocation of so many words, zeroed by `alloc`; `&mut self` makes it the only reference.
        let bits = unsafe { core::slice::from_raw_parts_mut(self.bits, self.words) };
        change(&mut Lent { bits, over: &mut self.over }, &self.at)
    }
}

impl PlainRef {
    /// Watches `count` pages of the caller's memory from `start` on, which a VM finds from `gfn` on.
    pub(crate) fn new(vm: Handle, start: u64, count: u64, gfn: u64, read_only: bool) -> Result<Self, Error> {
        let pages = Span::new(0, count).ok_or(Error::Invalid)?;
        let words = usize::try_from(count.div_ceil(64)).map_err(|_| Error::Invalid)?;
        let (bits, state) = (sys::alloc::<u64>(words), sys::alloc::<PlainState>(1));
        let Some(owned) = NonNull::new(state).filter(|_| !bits.is_null()) else {
            // SAFETY: fresh from `alloc`, or null.
            unsafe { sys::free(bits) };
            // SAFETY: fresh from `alloc`, or null.
            unsafe { sys::free(state) };
            return Err(Error::NoMemory);
        };
        let kept = Kept { at: At { vm, gfn }, over: false, bits, words };
        // SAFETY: the allocation is of this type's size and alignment, and nobody else knows it.
        unsafe { owned.write(PlainState { start, pages, read_only, kept }) };
        let mut raw = core::ptr::null_mut();
        let from = usize::try_from(start).map_err(|_| Error::Invalid);
        // SAFETY: `raw` is writable for one pointer; the state is whole, and the glue's unless it fails.
        let made = from.map(|from| unsafe { fhc_plain_new(&raw mut raw, from, count, state) });
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

    /// Where it lies in the VMM, and how many pages it has.
    pub(crate) fn place(self) -> (u64, u64) {
        (self.start(), self.pages().count())
    }

    /// Whether its guest's stores go to the VMM.
    pub(crate) fn is_read_only(self) -> bool {
        // SAFETY: alive by the invariant; the field never changes.
        unsafe { (*self.state.as_ptr()).read_only }
    }

    fn start(self) -> u64 {
        // SAFETY: alive by the invariant; the field never changes.
        unsafe { (*self.state.as_ptr()).start }
    }

    fn pages(self) -> Span {
        // SAFETY: alive by the invariant; the field never changes.
        unsafe { (*self.state.as_ptr()).pages }
    }

    /// Ends every loan; nothing more is lent if it is `over`.
    pub(crate) fn recall(self, over: bool) {
        told(plain::recall_all(&self, self.pages(), over));
    }

    /// Ends every loan and is found from `gfn` on from here on.
    pub(crate) fn move_to(self, gfn: u64) {
        self.locked(|kept| {
            told(kept.change(|lent, at| plain::recall(at, lent, self.pages())));
            kept.at.gfn = gfn;
        });
    }

    fn locked<R>(self, change: impl FnOnce(&mut Kept) -> R) -> R {
        // SAFETY: alive by the invariant, and no lock that comes after this one is held: there is none.
        unsafe { fhc_plain_lock(self.raw.as_ptr()) };
        // SAFETY: alive by the invariant, and the lock makes this the only reference.
        let result = change(unsafe { &mut (*self.state.as_ptr()).kept });
        // SAFETY: this thread took the lock above.
        unsafe { fhc_plain_unlock(self.raw.as_ptr()) };
        result
    }
}

impl Way for At {
    fn lend(&self, frame: u64, page: u64, access: Access) -> Result<u64, Refused> {
        EL2.mem_share(self.vm, frame, self.gfn.saturating_add(page), access == Access::Write)
    }

    fn recall(&self, run: Span) -> bool {
        let done = EL2.mem_unshare(self.vm, self.gfn.saturating_add(run.first()), run.count());
        done == Ok(run.count())
    }
}

/// Frames that `el2` keeps lent are still the guest's to write: the kernel is told, for it will use them again.
fn told(kept: u64) {
    if kept > 0 {
        log(Level::Error, format_args!("el2 would not end the loans of {kept} pages"));
    }
}

impl Lease for PlainRef {
    type Way = At;

    fn access(&self) -> Access {
        if self.is_read_only() {
            Access::Read
        } else {
            Access::Write
        }
    }

    fn begin(&self) -> u64 {
        // SAFETY: alive by the invariant.
        let seen = unsafe { fhc_plain_begin(self.raw.as_ptr()) };
        u64::try_from(seen).unwrap_or(0)
    }

    fn bring(&self, span: Span, access: Access, frames: &mut [u64; AROUND]) -> Result<usize, Error> {
        let count = u32::try_from(span.count()).unwrap_or(u32::MAX).min(AROUND as u32);
        let (at, write) = (frames.as_mut_ptr(), access == Access::Write);
        // SAFETY: alive by the invariant; `frames` has room for as many as are asked for.
        match unsafe { fhc_plain_bring(self.raw.as_ptr(), span.first(), at, count, write) } {
            // The guest makes the access again when the signal has been handled.
            -4 | -512 => Err(Error::Interrupted),
            -14 => Err(Error::Fault),
            -133 => Err(Error::Poisoned),
            brought => usize::try_from(brought).map_err(|_| from_errno(brought)),
        }
    }

    fn let_go(&self, frames: &[u64]) {
        // SAFETY: these are frames that `bring` held, and the core lets go of each once.
        unsafe { fhc_plain_let_go(frames.as_ptr(), u32::try_from(frames.len()).unwrap_or(0)) }
    }

    fn change<R>(&self, change: impl FnOnce(&mut Lent<'_>, &At) -> R) -> R {
        self.locked(|kept| kept.change(change))
    }

    fn passed(&self, seen: u64) -> bool {
        // SAFETY: alive by the invariant; the core asks with the lock held.
        unsafe { fhc_plain_passed(self.raw.as_ptr(), usize::try_from(seen).unwrap_or(0)) }
    }
}

/// Mappings of these pages are about to change. Called with the slot's lock held.
// SAFETY: the name is the module's own (prefix `fh_`), declared once in glue.h with this signature.
#[unsafe(no_mangle)]
extern "C" fn fh_plain_changes(state: *mut PlainState, first: u64, count: u64) {
    let Some(part) = Span::new(first, count) else { return };
    // SAFETY: the glue's object lives, and with it its state; the caller has the lock, which makes this the only reference.
    let kept = unsafe { &mut (*state).kept };
    told(kept.change(|lent, at| plain::recall(at, lent, part)));
}

/// Frees a state and what is its own.
///
/// # Safety
/// It came from `alloc` in `new`, and nobody else has it any more.
unsafe fn free(state: *mut PlainState) {
    // SAFETY: alive, by the caller's promise; only its own allocation's address is taken out.
    let bits = unsafe { (*state).kept.bits };
    // SAFETY: came from `alloc` in `new`, and goes with its owner.
    unsafe { sys::free(bits) };
    // SAFETY: came from `alloc` in `new`, by the caller's promise.
    unsafe { sys::free(state) };
}

/// Frees the state of a plain slot that nobody watches any more.
// SAFETY: the name is the module's own (prefix `fh_`), declared once in glue.h with this signature.
#[unsafe(no_mangle)]
extern "C" fn fh_plain_free(state: *mut PlainState) {
    // SAFETY: the glue's object goes, and with it this.
    unsafe { free(state) };
}
