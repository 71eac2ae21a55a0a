// SPDX-License-Identifier: GPL-2.0-only
//! The eventfds of a VMM, and the stores of its guest that ring them.
// UNSAFETY: foreign calls.

use crate::file::from_errno;
use crate::sys;
use crate::vm::{Inner, Vm};
use core::ptr::NonNull;
use freehold_driver_core::doorbell::{Ask, Doorbells, Place, MAX_DOORBELLS};
use freehold_driver_core::error::Error;
use freehold_driver_core::exit::Mmio;
use freehold_uapi::ioctl as io;

/// The kernel's `struct eventfd_ctx`.
#[repr(C)]
pub(crate) struct RawEvent {
    _opaque: [u8; 0],
}

extern "C" {
    fn fhc_event_get(event: *mut *mut RawEvent, fd: u32) -> i32;
    fn fhc_event_put(event: *mut RawEvent);
    fn fhc_event_signal(event: *mut RawEvent);
}

/// An eventfd, borrowed: whoever holds one keeps it alive.
///
/// # Invariants
/// It is alive.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Event(NonNull<RawEvent>);

impl Event {
    /// The eventfd behind a descriptor, with a reference that [`Event::put`] drops.
    pub(crate) fn get(fd: u32) -> Result<Self, Error> {
        let mut raw = core::ptr::null_mut();
        // SAFETY: `raw` is writable for one pointer.
        match (unsafe { fhc_event_get(&raw mut raw, fd) }, NonNull::new(raw)) {
            // INVARIANT: the kernel took a reference.
            (0, Some(event)) => Ok(Self(event)),
            (-9, _) => Err(Error::BadFile),
            (errno, _) => Err(from_errno(errno)),
        }
    }

    /// Drops a reference of [`Event::get`].
    pub(crate) fn put(self) {
        // SAFETY: alive by the invariant, and the caller gives the reference up.
        unsafe { fhc_event_put(self.0.as_ptr()) }
    }

    /// Adds one to it.
    pub(crate) fn signal(self) {
        // SAFETY: alive by the invariant.
        unsafe { fhc_event_signal(self.0.as_ptr()) }
    }
}

impl Inner {
    /// The doorbells, of which there are none until there is room for some.
    fn doorbells(&mut self) -> Doorbells<'_, Event> {
        if self.doorbells.is_null() {
            return Doorbells(&mut []);
        }
        // SAFETY: an allocation of so many places, each of them written; `&mut self` makes it the only reference.
        Doorbells(unsafe { core::slice::from_raw_parts_mut(self.doorbells, MAX_DOORBELLS) })
    }

    fn make_room(&mut self) -> Result<(), Error> {
        if !self.doorbells.is_null() {
            return Ok(());
        }
        let places = sys::alloc::<Place<Event>>(MAX_DOORBELLS);
        if places.is_null() {
            return Err(Error::NoMemory);
        }
        for i in 0..MAX_DOORBELLS {
            // SAFETY: `i` is below the length of the allocation.
            let place = unsafe { places.add(i) };
            // SAFETY: `place` lies in the fresh allocation, which nobody else knows.
            unsafe { place.write(None) };
        }
        self.doorbells = places;
        Ok(())
    }

    /// Lets go of every eventfd, at the end of the VM.
    pub(crate) fn drop_doorbells(&mut self) {
        while let Some(event) = self.doorbells().pop() {
            event.put();
        }
        // SAFETY: came from `alloc` in `make_room`, or is null, and is forgotten here.
        unsafe { sys::free(core::mem::replace(&mut self.doorbells, core::ptr::null_mut())) };
    }
}

impl Vm {
    /// `KVM_IOEVENTFD`.
    pub(crate) fn ioeventfd(self, ask: &io::Ioeventfd) -> Result<(), Error> {
        let what = Ask::decode(ask)?;
        let event = Event::get(ask.fd)?;
        let done = self.living(|inner| match what {
            Ask::Assign(what) => {
                inner.make_room()?;
                inner.doorbells().add(what, event)?;
                self.set_doorbells();
                Ok(None)
            }
            Ask::Deassign(what) => inner.doorbells().remove(what, &event).map(Some),
        });
        // The table keeps the reference of one that was added.
        match done {
            Ok(None) => {}
            Ok(Some(removed)) => {
                removed.put();
                event.put();
            }
            Err(_) => event.put(),
        }
        done.map(|_| ())
    }

    /// Signals whoever waits for this access; `false`: nobody does.
    pub(crate) fn rings(self, access: &Mmio) -> bool {
        self.has_doorbells()
            && self.locked(|inner| inner.doorbells().rung_by(access).map(|event| event.signal()).is_some())
    }
}
