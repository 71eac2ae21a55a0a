// SPDX-License-Identifier: GPL-2.0-only
//! The slots of a VM as they come and go, and what an ordinary VM is lent from them. Nothing here is unsafe.

use crate::file::FileRef;
use crate::pinned::PinnedRef;
use crate::plain::{Backing, PlainRef};
use crate::port::EL2;
use crate::vm::{Inner, Life, Vm};
use freehold_driver_core::abi::Region;
use freehold_driver_core::error::Error;
use freehold_driver_core::file::{any, Owner};
use freehold_driver_core::lend::{self, Binding, NotLent};
use freehold_driver_core::page::{Page, Span};
use freehold_driver_core::plain::{self, Touched};
use freehold_driver_core::pool;
use freehold_driver_core::run::Served;
use freehold_driver_core::slots::{Slot, MAX_PROTECTED};
use freehold_driver_core::status::Refused;
use freehold_uapi::{hvc, ioctl as io};

/// Pages of a file that are lent for one touch, if they are there.
const AROUND: u64 = 64;

impl Vm {
    /// Lends the page of an ordinary VM behind `gfn`, which a vCPU touched, and some behind it. `stores` says whether it
    /// wanted to store.
    pub(crate) fn lend(self, gfn: u64, stores: impl FnOnce() -> bool) -> Result<Served, Error> {
        // A slot may go while it is lent from: what it stands for must not.
        let found = self.living(|inner| {
            let Some(slot) = inner.slots.of_gfn(gfn) else { return Ok(None) };
            let Some(page) = slot.page(gfn) else { return Ok(None) };
            slot.file.hold();
            Ok(Some((slot.file, page, slot.pages.end().saturating_sub(page))))
        })?;
        let Some((backing, page, left)) = found else { return Ok(Served::Devices(gfn)) };
        let served = match backing {
            Backing::Plain(plain) if plain.is_read_only() && stores() => Ok(Served::Devices(gfn)),
            Backing::File(_) | Backing::Plain(_) | Backing::Pinned(_) => {
                self.lend_from(backing, page, left).map(|lent| if lent { Served::Done } else { Served::Nobodys(gfn) })
            }
        };
        backing.put();
        served
    }

    /// `Ok(false)`: there is nothing that could be lent. Where the slot has gone meanwhile the guest touches it again, and then
    /// no slot has it: the access is the VMM's.
    fn lend_from(self, backing: Backing, page: u64, left: u64) -> Result<bool, Error> {
        let most = match backing {
            Backing::File(_) => AROUND,
            Backing::Plain(_) | Backing::Pinned(_) => plain::AROUND as u64,
        };
        let span = Span::new(page, left.min(most)).ok_or(Error::Invalid)?;
        // Each round adds what was asked for, as in `pool::supplied`.
        for _ in 0..16 {
            let touched = match backing {
                Backing::File(file) => lend::touch(&file, span).map(|()| Touched::Done),
                Backing::Plain(plain) => plain::touch(&plain, span),
                // An ordinary VM has none.
                Backing::Pinned(_) => Err(NotLent::Error(Error::Io)),
            };
            match touched {
                Ok(Touched::Done | Touched::Gone) => return Ok(true),
                Err(NotLent::Refused(Refused { status: hvc::NEED_PAGES, detail })) => {
                    pool::grow(&EL2, &self, self.handle(), detail)?;
                }
                // As `Gone`, of a file.
                Err(NotLent::Refused(Refused { status: hvc::GFN_NOT_MAPPED, .. })) => return Ok(true),
                Err(NotLent::Refused(refused)) => return Err(refused.into()),
                Err(NotLent::Error(Error::Fault)) => return Ok(false),
                Err(NotLent::Error(error)) => return Err(error),
            }
        }
        Err(Error::NoMemory)
    }

    pub(crate) fn set_region(self, region: &io::MemoryRegion2) -> Result<(), Error> {
        match Region::decode(region, self.ipa_bits(), self.is_protected())? {
            Region::Plain { id, gfn, count, start, read_only } => {
                let place = (start, count, read_only);
                if self.living(|inner| inner.set_plain(id, gfn, place, self.is_protected()))? {
                    return Ok(());
                }
                let file = if self.is_protected() {
                    Backing::Pinned(PinnedRef::new(start, count)?)
                } else {
                    Backing::Plain(PlainRef::new(self.handle(), start, count, gfn, read_only)?)
                };
                let pages = Span::new(0, count).ok_or(Error::Invalid)?;
                self.add_or_put(Slot { id, gfn, pages, file, declared: false })
            }
            Region::Delete { id } => self.delete_slot(id),
            Region::Add { id, gfn, pages, fd } => {
                let file = Backing::File(FileRef::get(fd)?);
                self.add_or_put(Slot { id, gfn, pages, file, declared: false })
            }
        }
    }

    fn add_or_put(self, slot: Slot<Backing>) -> Result<(), Error> {
        let backing = slot.file;
        self.add_slot(slot).inspect_err(|_| backing.put())
    }

    fn add_slot(self, slot: Slot<Backing>) -> Result<(), Error> {
        self.living(|inner| {
            inner.may_have(slot.gfns().ok_or(Error::Invalid)?, self.is_protected())?;
            if self.is_protected() && inner.slots.iter().count() >= MAX_PROTECTED {
                return Err(Error::NoSpace);
            }
            let Backing::File(file) = slot.file else { return inner.slots.add(slot) };
            let (id, pages, gfn) = (slot.id, slot.pages, slot.gfn);
            let owner = Owner { vm: self.id(), ordinary: !self.is_protected() };
            file.claim(owner, pages, || {
                inner.slots.add(slot)?;
                if self.is_protected() {
                    return Ok(());
                }
                file.bind(Binding { vm: self.handle(), pages, gfn }).inspect_err(|_| {
                    // It was added just now.
                    let _ = inner.slots.remove(id);
                })
            })
        })
    }

    fn delete_slot(self, id: u32) -> Result<(), Error> {
        let slot = self.living(|inner| {
            let slot = inner.slots.get(id).ok_or(Error::Invalid)?;
            match slot.file {
                Backing::Plain(plain) => plain.recall(true),
                Backing::File(file) if !self.is_protected() => {
                    file.unbind(slot.pages);
                }
                Backing::Pinned(_) | Backing::File(_) if inner.life == Life::Ran => return Err(Error::Denied),
                Backing::Pinned(pinned) => {
                    if slot.declared || pinned.is_in_use() {
                        return Err(Error::Busy);
                    }
                }
                Backing::File(file) => {
                    let gone = |page: Page| page.is_the_guests() || matches!(page, Page::Draining { .. });
                    if slot.declared || any(&file, slot.pages, gone) {
                        return Err(Error::Busy);
                    }
                }
            }
            inner.slots.remove(id)
        })?;
        slot.file.put();
        Ok(())
    }
}

impl Inner {
    /// Whether a slot may have these guest frames. A protected VM's slots are fixed at its first run; an ordinary VM's
    /// come and go, but not where `el2` has its interrupt controller.
    fn may_have(&self, gfns: Span, protected: bool) -> Result<(), Error> {
        match self.life {
            Life::Ran if protected => Err(Error::Denied),
            _ if self.holes.is_some_and(|holes| holes.meet(gfns)) => Err(Error::Exists),
            Life::New | Life::Ran | Life::Ended | Life::Over => Ok(()),
        }
    }

    /// Moves the slot of this number, if there is one of the VMM's own memory: `Ok(false)`: there is none.
    fn set_plain(&mut self, id: u32, gfn: u64, wanted: (u64, u64, bool), protected: bool) -> Result<bool, Error> {
        let Some(slot) = self.slots.get(id) else { return Ok(false) };
        let place = match slot.file {
            Backing::Plain(plain) => (plain.place(), plain.is_read_only()),
            Backing::Pinned(pinned) => (pinned.place(), false),
            Backing::File(_) => return Err(Error::Invalid),
        };
        let (start, count, read_only) = wanted;
        if place != ((start, count), read_only) {
            return Err(Error::Invalid);
        }
        if slot.gfn != gfn {
            let declared = slot.declared;
            self.may_have(Span::new(gfn, count).ok_or(Error::Invalid)?, protected)?;
            // `el2` has its range already: a first run was interrupted.
            if declared {
                return Err(Error::Busy);
            }
            self.slots.relocate(id, gfn, |backing| {
                if let Backing::Plain(plain) = backing {
                    plain.move_to(gfn);
                }
            })?;
        }
        Ok(true)
    }
}
