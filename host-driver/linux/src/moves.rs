// SPDX-License-Identifier: GPL-2.0-only
//! What moves pages of a `guest_memfd` to the guest or back: conversions and populating, for the VM it is bound to.
// UNSAFETY: foreign calls.

use crate::file::{FileRef, RawFile};
use crate::port::{Caller, EL2};
use crate::sys;
use crate::vm::Vm;
use freehold_driver_core::abi::{self, Conversion};
use freehold_driver_core::convert::{self, Given, Giver, Nobody, Stopped};
use freehold_driver_core::drain::{Aim, Attempt, Rest};
use freehold_driver_core::error::Error;
use freehold_driver_core::give::ToVm;
use freehold_driver_core::notify;
use freehold_uapi::ioctl as io;

extern "C" {
    fn fhc_file_drive_later(file: *mut RawFile);
    fn fhc_file_fill(file: *mut RawFile, page: u64, from: usize) -> bool;
}

/// Moves a range of the file, for the VM that it is bound to if it is.
pub(crate) fn convert(file: FileRef, conversion: Conversion) -> Result<(), Stopped> {
    let mut giver = Bound { vm: None };
    let moved = match conversion {
        Conversion::ToShared(span) => convert::to_shared(&file, span),
        Conversion::ToPrivate(span, mode) => {
            convert::to_private(&file, span, Aim::Convert, mode, &Caller, &mut giver).map(|_| ())
        }
        Conversion::Notify(span, until) => {
            let begun = notify::start(&file, span, until, &Caller, &mut giver);
            if begun.is_err_and(|stopped| stopped.error == Error::InProgress) {
                // SAFETY: the file is alive by the invariant.
                unsafe { fhc_file_drive_later(file.raw()) }
            }
            begun
        }
    };
    if let Some(vm) = giver.vm {
        vm.put();
    }
    moved
}

pub(crate) fn convert_range(file: FileRef, arg: usize) -> Result<(), Error> {
    let mut ask: io::Convert = sys::copy_in(arg)?;
    let conversion = Conversion::decode(&ask, file.len(), sys::now())?;
    sys::copy_out(arg, &ask)?;
    let Err(Stopped { error, page }) = convert(file, conversion) else { return Ok(()) };
    ask.error_offset = page.saturating_mul(abi::PAGE_SIZE);
    answer(arg, &ask);
    // A wait without an end goes on after a stop, a freeze or a debugger's look.
    Err(if ask.timeout_ms == 0 { resumed(error) } else { error })
}

/// Writes the offset of what was begun, or stopped. That the argument can be written was seen before: where it can not be any
/// more, what happened counts, for a conversion that goes on by itself is no bad address.
fn answer<T: sys::Plain>(arg: usize, ask: &T) {
    let _ = sys::copy_out(arg, ask);
}

/// The error of a call that says the same when it is repeated. Without a signal the kernel would hand its own number for
/// that to the process.
pub(crate) fn resumed(error: Error) -> Error {
    if error == Error::Interrupted && sys::signal() {
        Error::Restart
    } else {
        error
    }
}

pub(crate) fn populate(file: FileRef, arg: usize) -> Result<(), Error> {
    let mut ask: io::Populate = sys::copy_in(arg)?;
    let span = abi::populated(&ask, file.len())?;
    sys::copy_out(arg, &ask)?;
    let copy = |page: u64| {
        let at = page.saturating_sub(span.first()).saturating_mul(abi::PAGE_SIZE);
        let from = usize::try_from(ask.source.saturating_add(at)).map_err(|_| Error::Fault)?;
        // SAFETY: the file is alive by the invariant; the core fills only frames of its own attempt, which are frozen.
        let done = unsafe { fhc_file_fill(file.raw(), page, from) };
        done.then_some(()).ok_or(Error::Fault)
    };
    let mut giver = Unrun { vm: None };
    let moved = convert::populate(&file, span, &Caller, copy, &mut giver);
    if let Some(vm) = giver.vm {
        vm.put();
    }
    let Err(Stopped { error, page }) = moved else { return Ok(()) };
    ask.error_offset = page.saturating_mul(abi::PAGE_SIZE);
    answer(arg, &ask);
    Err(error)
}

pub(crate) fn set_attributes(file: FileRef, arg: usize) -> Result<(), Error> {
    let mut ask: io::MemoryAttributes2 = sys::copy_in(arg)?;
    let conversion = Conversion::of_attributes(&ask, file.len())?;
    sys::copy_out(arg, &ask)?;
    let Err(Stopped { error, page }) = convert(file, conversion) else { return Ok(()) };
    ask.error_offset = page.saturating_mul(abi::PAGE_SIZE);
    answer(arg, &ask);
    Err(error)
}

/// Gives to the VM that the file is bound to, if it is. It is looked up only when the pages are frozen: a wait for them may
/// be long, must not keep a VM alive, and may outlast the binding. Nor does it wait for the VM's lock, which a first run has
/// while the kernel looks up the VMM's own memory: whoever serves that may take its time.
struct Bound {
    /// The VM that was found, with a reference. The reference outlasts the attempt: the last one ends the VM, which
    /// waits for its draining pages.
    vm: Option<Vm>,
}

impl Giver<FileRef> for Bound {
    fn give(&mut self, file: &FileRef, attempt: &Attempt) -> Option<Given> {
        let Some(vm) = owner(&mut self.vm, file) else { return Nobody.give(file, attempt) };
        match vm.prepare(file, attempt.span())? {
            Ok(Some(gfn)) => ToVm { el2: &EL2, vm: vm.handle(), kernel: &vm, thread: &Caller, gfn }.give(file, attempt),
            Ok(None) => Nobody.give(file, attempt),
            Err(error) => Some(Given { count: 0, rest: Rest::Restore, error: Some(error) }),
        }
    }
}

/// Gives to the VM that the file is bound to, while no vCPU of it ran: what was copied counts then.
struct Unrun {
    /// As [`Bound`]'s.
    vm: Option<Vm>,
}

impl Giver<FileRef> for Unrun {
    fn give(&mut self, file: &FileRef, attempt: &Attempt) -> Option<Given> {
        let Some(vm) = owner(&mut self.vm, file) else { return Nobody.give(file, attempt) };
        let given = vm.prepare_unrun(file, attempt.span(), |gfn| match gfn {
            Some(gfn) => ToVm { el2: &EL2, vm: vm.handle(), kernel: &vm, thread: &Caller, gfn }.give(file, attempt),
            None => Nobody.give(file, attempt),
        });
        given?.unwrap_or_else(|error| Some(Given { count: 0, rest: Rest::Restore, error: Some(error) }))
    }
}

/// The VM that the file is bound to, looked up once for an attempt: it is asked again where somebody else had it.
fn owner(found: &mut Option<Vm>, file: &FileRef) -> Option<Vm> {
    if found.is_none() {
        *found = Vm::find(file.owner());
    }
    *found
}
