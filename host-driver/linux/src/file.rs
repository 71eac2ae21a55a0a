// SPDX-License-Identifier: GPL-2.0-only
//! A `guest_memfd`: the core's file port over the glue, and the entries for its ioctls, `fallocate` and faults.
// UNSAFETY: foreign calls and entries; state that the file's lock protects.

use crate::moves;
use crate::port::{Caller, Undertaker, EL2};
use crate::sys;
use core::ptr::NonNull;
use freehold_driver_core::abi;
use freehold_driver_core::convert;
use freehold_driver_core::error::Error;
use freehold_driver_core::faults::{Faults, Moment};
use freehold_driver_core::file::{Book, File, Freeze, Owner, Pages, Report};
use freehold_driver_core::lend::{self, Binding, Bindings, Loan};
use freehold_driver_core::notify::{self, Next, Notice};
use freehold_driver_core::page::{HostFault, Initial, Page, Span};
use freehold_driver_core::status::Refused;
use freehold_uapi::{hvc, ioctl as io};

/// The glue's `struct fh_file`.
#[repr(C)]
pub(crate) struct RawFile {
    _opaque: [u8; 0],
}

/// Rust's part of a file. All but `initial`, `len`, `pages`, `bindings` and `faults` themselves is under the file's lock.
pub(crate) struct FileState {
    owner: Owner,
    /// What each offset is in a new file.
    initial: Initial,
    next: u64,
    report: Report,
    notice: Notice,
    len: usize,
    pages: *mut Page,
    /// An allocation of its own: it is looked at while the rest is borrowed.
    bindings: *mut Bindings,
    /// As that, and under a lock of its own: whoever faults has the file's lock shared, or not at all.
    faults: *mut Faults,
}

#[expect(improper_ctypes, reason = "the state is opaque to C, which only passes its address on")]
extern "C" {
    fn fhc_file_open(pages: u64, mappable: bool, shared: bool, vm: u64) -> i32;
    fn fhc_file_get(fd: u32, state: *mut *mut FileState) -> *mut RawFile;
    fn fhc_file_put(file: *mut RawFile);
    fn fhc_file_hold(file: *mut RawFile);
    fn fhc_file_tell(file: *mut RawFile, outcome: bool);
    fn fhc_file_lock(file: *mut RawFile);
    fn fhc_file_unlock(file: *mut RawFile);
    fn fhc_file_frame(file: *mut RawFile, page: u64) -> u64;
    fn fhc_file_allocate(file: *mut RawFile, page: u64) -> i32;
    fn fhc_file_release(file: *mut RawFile, page: u64);
    fn fhc_file_freeze(file: *mut RawFile, page: u64) -> i32;
    fn fhc_file_thaw(file: *mut RawFile, page: u64);
    fn fhc_file_shut(file: *mut RawFile, first: u64, count: u64);
    fn fhc_file_wake(file: *mut RawFile);
    fn fhc_vm_alive(id: u64) -> bool;
}

/// A `guest_memfd`, borrowed: whoever holds one keeps the kernel's file alive.
///
/// # Invariants
/// Both pointers are those of one live file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileRef {
    raw: NonNull<RawFile>,
    state: NonNull<FileState>,
}

/// A new file's descriptor.
pub(crate) fn open(new: abi::NewFile, vm: u64) -> Result<i64, Error> {
    // SAFETY: plain numbers; the glue answers a descriptor or a negative errno.
    match unsafe { fhc_file_open(new.pages, new.mappable, new.shared, vm) } {
        fd if fd >= 0 => Ok(i64::from(fd)),
        error => Err(from_errno(error)),
    }
}

/// The error of a negative errno of the glue's.
pub(crate) const fn from_errno(errno: i32) -> Error {
    match errno {
        -12 => Error::NoMemory,
        -16 => Error::Busy,
        -22 => Error::Invalid,
        // EMFILE, ENFILE: no room for a descriptor.
        -23 | -24 => Error::NoSpace,
        -108 => Error::Ended,
        _ => Error::Io,
    }
}

impl FileRef {
    /// The file behind a descriptor, with a reference that [`FileRef::put`] drops.
    pub(crate) fn get(fd: u32) -> Result<Self, Error> {
        let mut state = core::ptr::null_mut();
        // SAFETY: `state` is writable for one pointer.
        let raw = unsafe { fhc_file_get(fd, &raw mut state) };
        match (NonNull::new(raw), NonNull::new(state)) {
            // INVARIANT: the glue returned both for one file, with a reference to it.
            (Some(raw), Some(state)) => Ok(Self { raw, state }),
            (None, None) => Err(Error::BadFile),
            (Some(_), None) | (None, Some(_)) => Err(Error::Invalid),
        }
    }

    pub(crate) fn raw(self) -> *mut RawFile {
        self.raw.as_ptr()
    }

    /// Drops a reference of [`FileRef::get`].
    pub(crate) fn put(self) {
        // SAFETY: the file is alive by the invariant, and the caller gives the reference up.
        unsafe { fhc_file_put(self.raw.as_ptr()) }
    }

    /// Takes a reference, which [`FileRef::put`] drops.
    pub(crate) fn hold(self) {
        // SAFETY: the file is alive by the invariant.
        unsafe { fhc_file_hold(self.raw.as_ptr()) }
    }

    fn new(raw: *mut RawFile, state: *mut FileState) -> Option<Self> {
        // INVARIANT: the glue passes the two pointers of the file that it was called for.
        Some(Self { raw: NonNull::new(raw)?, state: NonNull::new(state)? })
    }

    /// What each offset is in a new file.
    pub(crate) fn initial(self) -> Initial {
        // SAFETY: the state is alive by the invariant, and this field never changes.
        unsafe { (*self.state.as_ptr()).initial }
    }

    /// Pages of the file.
    pub(crate) fn len(self) -> u64 {
        // SAFETY: the state is alive by the invariant, and this field never changes.
        let len = unsafe { (*self.state.as_ptr()).len };
        u64::try_from(len).unwrap_or(0)
    }

    /// Runs `change` on the whole state with the lock held.
    fn locked<R>(self, change: impl FnOnce(&mut FileState) -> R) -> R {
        // SAFETY: the file is alive by the invariant, and no lock that comes after this one is held.
        unsafe { fhc_file_lock(self.raw.as_ptr()) };
        // SAFETY: the state is alive, and the lock makes this the only reference: faults hold it shared, and they end.
        let state = unsafe { &mut *self.state.as_ptr() };
        let result = change(state);
        // SAFETY: this thread took the lock above.
        unsafe { fhc_file_unlock(self.raw.as_ptr()) };
        result
    }

    /// Makes the file `new`'s and binds `pages`, as [`lend::claim`] says.
    pub(crate) fn claim(self, new: Owner, pages: Span, bind: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
        // SAFETY: takes a number; looks at the glue's list under the list's lock.
        lend::claim(&self, new, pages, |vm| unsafe { fhc_vm_alive(vm) }, bind)
    }

    /// Runs `change` on the bindings, with the lock held.
    fn bindings<R>(self, change: impl FnOnce(&mut Bindings) -> R) -> R {
        self.locked(|state| {
            // SAFETY: an allocation of the state's own that lives as long, and the lock makes this the only reference.
            change(unsafe { &mut *state.bindings })
        })
    }

    /// Lends from these pages from here on, as the VM touches them.
    pub(crate) fn bind(self, binding: Binding) -> Result<(), Error> {
        self.bindings(|bindings| bindings.add(binding))
    }

    /// Ends every loan of these pages and lends no more of them; the number of pages that are lost.
    pub(crate) fn unbind(self, pages: Span) -> u64 {
        let before = lend::recall_all(&self, pages);
        // What was touched in between ends in the same hold of the lock as the binding.
        let after = self.locked(|state| {
            let bindings = state.bindings;
            let lost = lend::recall_last(&self, &mut state.book(), pages);
            // SAFETY: an allocation of the state's own, and the lock makes this the only reference.
            unsafe { &mut *bindings }.remove(pages);
            lost
        });
        before.max(after)
    }

    /// Who borrows `run` or may, and as what. Only with the file's lock held.
    fn loans(&self, run: Span) -> impl Iterator<Item = Loan> + '_ {
        // SAFETY: the state is alive by the invariant, and this field never changes.
        let bindings = unsafe { (*self.state.as_ptr()).bindings };
        // SAFETY: an allocation of the state's own; the core asks with the lock held, so that nobody changes it.
        unsafe { &*bindings }.loans(run)
    }

    /// Number of the VM that the file belongs to.
    pub(crate) fn owner(self) -> u64 {
        self.locked(|state| state.owner.vm)
    }
}

impl FileState {
    fn book(&mut self) -> Book<'_> {
        // SAFETY: `pages` is an allocation of `len` pages that `fh_file_new` filled; `&mut self` makes it the only reference.
        let pages = unsafe { core::slice::from_raw_parts_mut(self.pages, self.len) };
        Book {
            pages: Pages::new(pages),
            next: &mut self.next,
            report: &mut self.report,
            notice: &mut self.notice,
            owner: &mut self.owner,
        }
    }
}

impl File for FileRef {
    fn change<R>(&self, change: impl FnOnce(&mut Book<'_>) -> R) -> R {
        self.locked(|state| change(&mut state.book()))
    }

    fn frame(&self, page: u64) -> Option<u64> {
        // SAFETY: the file is alive by the invariant.
        match unsafe { fhc_file_frame(self.raw.as_ptr(), page) } {
            u64::MAX => None,
            pfn => Some(pfn),
        }
    }

    fn allocate(&self, page: u64) -> Result<(), Error> {
        // SAFETY: the file is alive by the invariant.
        match unsafe { fhc_file_allocate(self.raw.as_ptr(), page) } {
            0 => Ok(()),
            error => Err(from_errno(error)),
        }
    }

    fn release(&self, page: u64) {
        // SAFETY: the file is alive by the invariant; the core releases only what is neither frozen nor mapped.
        unsafe { fhc_file_release(self.raw.as_ptr(), page) }
    }

    fn freeze(&self, page: u64) -> Freeze {
        // SAFETY: the file is alive by the invariant; the core freezes only a page that has a frame.
        match unsafe { fhc_file_freeze(self.raw.as_ptr(), page) } {
            0 => Freeze::Frozen,
            1 => Freeze::Busy,
            _ => Freeze::Poisoned,
        }
    }

    fn thaw(&self, page: u64) {
        // SAFETY: the file is alive by the invariant; the core thaws only what it froze and the host owns.
        unsafe { fhc_file_thaw(self.raw.as_ptr(), page) }
    }

    fn shut(&self, span: Span) {
        // SAFETY: the file is alive by the invariant; the core calls this with the lock held.
        unsafe { fhc_file_shut(self.raw.as_ptr(), span.first(), span.count()) }
    }

    fn lend(&self, page: u64) -> Result<u64, Refused> {
        let nobody = Refused { status: hvc::GFN_NOT_MAPPED, detail: 0 };
        let loan = Span::one(page).and_then(|run| self.loans(run).next()).ok_or(nobody)?;
        EL2.mem_share(loan.vm, self.frame(page).ok_or(nobody)?, loan.gfn, true)
    }

    fn recall(&self, run: Span) -> bool {
        let ended = self.loans(run).map(|loan| EL2.mem_unshare(loan.vm, loan.gfn, loan.count).unwrap_or(0));
        ended.fold(0_u64, u64::saturating_add) == run.count()
    }

    fn wake(&self) {
        // SAFETY: the file is alive by the invariant.
        unsafe { fhc_file_wake(self.raw.as_ptr()) }
    }

    fn tell(&self, outcome: bool) {
        // SAFETY: the file is alive by the invariant.
        unsafe { fhc_file_tell(self.raw.as_ptr(), outcome) }
    }
}

/// State of a new file, or null.
// SAFETY: the name is the module's own (prefix `fh_`), declared once in glue.h with this signature.
#[unsafe(no_mangle)]
extern "C" fn fh_file_new(pages: u64, shared: bool, vm: u64) -> *mut FileState {
    let initial = if shared { Initial::Host } else { Initial::Vacant };
    let Ok(len) = usize::try_from(pages) else { return core::ptr::null_mut() };
    let states = sys::alloc::<Page>(len);
    let state = sys::alloc::<FileState>(1);
    let bindings = sys::alloc::<Bindings>(1);
    let faults = sys::alloc::<Faults>(1);
    if states.is_null() || state.is_null() || bindings.is_null() || faults.is_null() {
        // SAFETY: fresh from `alloc`, or null.
        unsafe { sys::free(faults) };
        // SAFETY: fresh from `alloc`, or null.
        unsafe { sys::free(bindings) };
        // SAFETY: fresh from `alloc`, or null.
        unsafe { sys::free(states) };
        // SAFETY: fresh from `alloc`, or null.
        unsafe { sys::free(state) };
        return core::ptr::null_mut();
    }
    for i in 0..len {
        // SAFETY: `i` is below the length of the allocation.
        let slot = unsafe { states.add(i) };
        // SAFETY: `slot` lies in the fresh allocation, which nobody else knows.
        unsafe { slot.write(initial.page()) };
        if i % 65536 == 65535 {
            sys::breathe();
        }
    }
    // SAFETY: the allocation is of this type's size and alignment, and nobody else knows it.
    unsafe { bindings.write(Bindings::default()) };
    // SAFETY: as above.
    unsafe { faults.write(Faults::default()) };
    let fresh = FileState {
        owner: Owner { vm, ordinary: false },
        initial,
        next: 0,
        report: Report::default(),
        notice: Notice::None,
        len,
        pages: states,
        bindings,
        faults,
    };
    // SAFETY: the allocation is of this type's size and alignment, and nobody else knows it.
    unsafe { state.write(fresh) };
    state
}

/// Frees a file's frames and state; nobody knows the file any more.
// SAFETY: the name is the module's own (prefix `fh_`), declared once in glue.h with this signature.
#[unsafe(no_mangle)]
extern "C" fn fh_file_drop(raw: *mut RawFile, state: *mut FileState) {
    // The file may not have been opened, and then it has no frames and no lock.
    if let Some(file) = FileRef::new(raw, state) {
        notify::abandon(&file);
        let lost = convert::empty(&file);
        if lost > 0 {
            sys::log(sys::Level::Error, format_args!("{lost} frames are lost: el2 did not return them"));
        }
    }
    // SAFETY: the state is alive until the end of this call, and this field never changes.
    let pages = unsafe { (*state).pages };
    // SAFETY: came from `alloc` in `fh_file_new`, and the file is gone.
    unsafe { sys::free(pages) };
    // SAFETY: the state is alive until the end of this call, and this field never changes.
    let bindings = unsafe { (*state).bindings };
    // SAFETY: came from `alloc` in `fh_file_new`, and the file is gone.
    unsafe { sys::free(bindings) };
    // SAFETY: the state is alive until the end of this call, and this field never changes.
    let faults = unsafe { (*state).faults };
    // SAFETY: came from `alloc` in `fh_file_new`, and the file is gone.
    unsafe { sys::free(faults) };
    // SAFETY: came from `alloc` in `fh_file_new`, and the file is gone.
    unsafe { sys::free(state) };
}

/// Decides a host fault: 0 map, 1 wait, 2 refuse. Called with the file's lock held shared.
// SAFETY: the name is the module's own (prefix `fh_`), declared once in glue.h with this signature.
#[unsafe(no_mangle)]
extern "C" fn fh_file_fault(state: *mut FileState, page: u64) -> i32 {
    // SAFETY: the state is alive while the file is, and this field never changes.
    let len = unsafe { (*state).len };
    // SAFETY: as above.
    let pages = unsafe { (*state).pages };
    let Some(index) = usize::try_from(page).ok().filter(|&index| index < len) else { return 2 };
    // SAFETY: `index` is below the length of the allocation.
    let slot = unsafe { pages.add(index) };
    // SAFETY: the slot is initialised, and nobody writes while the lock is held shared.
    match unsafe { slot.read() }.host_fault() {
        HostFault::Map => 0,
        HostFault::Wait => 1,
        HostFault::Refuse => 2,
    }
}

/// Ticks that the fault of thread `who` may wait; 0: it is refused. Called with the lock of the file's faults held.
// SAFETY: the name is the module's own (prefix `fh_`), declared once in glue.h with this signature.
#[unsafe(no_mangle)]
extern "C" fn fh_file_patience(state: *mut FileState, who: u64, again: bool, now: u64, since: u64, second: u64) -> u64 {
    // SAFETY: the state is alive while the file is, and this field never changes.
    let faults = unsafe { (*state).faults };
    // SAFETY: an allocation of the state's own, and the caller's lock makes this the only reference.
    unsafe { &mut *faults }.patience(who, again, Moment { now, since, second })
}

/// The fault of thread `who` is over. Called with the lock of the file's faults held.
// SAFETY: the name is the module's own (prefix `fh_`), declared once in glue.h with this signature.
#[unsafe(no_mangle)]
extern "C" fn fh_file_fault_over(state: *mut FileState, who: u64) {
    // SAFETY: the state is alive while the file is, and this field never changes.
    let faults = unsafe { (*state).faults };
    // SAFETY: an allocation of the state's own, and the caller's lock makes this the only reference.
    unsafe { &mut *faults }.over(who);
}

/// `fallocate`, with its flags checked by the glue.
// SAFETY: the name is the module's own (prefix `fh_`), declared once in glue.h with this signature.
#[unsafe(no_mangle)]
extern "C" fn fh_file_fallocate(raw: *mut RawFile, state: *mut FileState, punch: i32, offset: u64, len: u64) -> i64 {
    let Some(file) = FileRef::new(raw, state) else { return errno(Error::BadFile) };
    let done = abi::file_range(offset, len).and_then(|span| {
        if punch != 0 {
            // Beyond the end there is nothing to punch, which is fine.
            let end = span.end().min(file.len());
            let Some(inside) = end.checked_sub(span.first()).and_then(|count| Span::new(span.first(), count)) else {
                return Ok(());
            };
            convert::punch(&file, inside)
        } else {
            convert::reserve(&file, span, &Caller)
        }
    });
    done.map_or_else(errno, |()| 0)
}

/// Looks at the conversion that nobody waits for; whether to look again. Nothing outlives the file: its release waits.
// SAFETY: the name is the module's own (prefix `fh_`), declared once in glue.h with this signature.
#[unsafe(no_mangle)]
extern "C" fn fh_file_drive(raw: *mut RawFile, state: *mut FileState) -> bool {
    FileRef::new(raw, state).is_some_and(|file| notify::drive(&file, &Undertaker) == Next::Again)
}

/// The negative errno of an error.
pub(crate) fn errno(error: Error) -> i64 {
    -i64::from(error.errno())
}

/// Ioctls of a `guest_memfd`.
// SAFETY: the name is the module's own (prefix `fh_`), declared once in glue.h with this signature.
#[unsafe(no_mangle)]
extern "C" fn fh_file_ioctl(raw: *mut RawFile, state: *mut FileState, cmd: u32, arg: usize) -> i64 {
    let Some(file) = FileRef::new(raw, state) else { return errno(Error::BadFile) };
    let done = match cmd {
        io::FREEHOLD_CONVERT => moves::convert_range(file, arg),
        io::KVM_SET_MEMORY_ATTRIBUTES2 => moves::set_attributes(file, arg),
        io::FREEHOLD_PENDING => pending(file, arg),
        io::FREEHOLD_POPULATE => moves::populate(file, arg),
        io::FREEHOLD_OUTCOME => outcome(file, arg),
        io::FREEHOLD_CANCEL if arg != 0 => Err(Error::Invalid),
        io::FREEHOLD_CANCEL => {
            convert::cancel(&file);
            Ok(())
        }
        _ => Err(Error::NoIoctl),
    };
    done.map_or_else(errno, |()| 0)
}

fn pending(file: FileRef, arg: usize) -> Result<(), Error> {
    let report = file.change(|book| *book.report);
    let mut answer = io::Pending {
        pending: u32::from(report.waiting > 0),
        pad: 0,
        offset: 0,
        frozen: 0,
        total: 0,
        tries: 0,
        completed: report.completed,
        begun: report.begun,
        ended: report.ended,
    };
    if report.waiting > 0 {
        answer.offset = report.page.saturating_mul(abi::PAGE_SIZE);
        answer.frozen = report.frozen;
        answer.total = report.total;
        answer.tries = report.tries;
    }
    sys::copy_out(arg, &answer)
}

fn outcome(file: FileRef, arg: usize) -> Result<(), Error> {
    let outcome = notify::collect(&file)?;
    let (error, page) = outcome.result.map_or_else(|stopped| (stopped.error.errno(), stopped.page), |()| (0, 0));
    let answer = io::Outcome {
        offset: outcome.span.first().saturating_mul(abi::PAGE_SIZE),
        size: outcome.span.count().saturating_mul(abi::PAGE_SIZE),
        error: u32::try_from(error).unwrap_or(0),
        pad: 0,
        error_offset: page.saturating_mul(abi::PAGE_SIZE),
        reserved: [0; 4],
    };
    sys::copy_out(arg, &answer).inspect_err(|_| notify::keep(&file, outcome))
}
