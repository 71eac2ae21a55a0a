// SPDX-License-Identifier: GPL-2.0-only
//! The slots of a VM as they come and go, and what an ordinary VM is lent from them. Nothing here is unsafe.

use crate::file::FileRef;
use crate::port::EL2;
use crate::sys::{log, Level};
use crate::vm::{Life, Vm};
use freehold_driver_core::abi::Region;
use freehold_driver_core::error::Error;
use freehold_driver_core::file::any;
use freehold_driver_core::lend::{self, Binding, NotLent};
use freehold_driver_core::page::{Page, Span};
use freehold_driver_core::pool;
use freehold_driver_core::slots::Slot;
use freehold_driver_core::status::Refused;
use freehold_uapi::{hvc, ioctl as io};

/// Pages that are lent for one touch, if they are there.
const AROUND: u64 = 64;

impl Vm {
    /// Lends the page of an ordinary VM behind `gfn`, which a vCPU touched, and some behind it that are there.
    /// `Ok(false)`: no slot has it, or it is not the host's to lend.
    pub(crate) fn lend(self, gfn: u64) -> Result<bool, Error> {
        // A slot may go while it is lent from: the file must not.
        let found = self.living(|inner| {
            let Some(slot) = inner.slots.of_gfn(gfn) else { return Ok(None) };
            let Some(page) = slot.page(gfn) else { return Ok(None) };
            slot.file.hold();
            Ok(Some((slot.file, page, slot.pages.end().saturating_sub(page))))
        })?;
        let Some((file, page, left)) = found else { return Ok(false) };
        let lent = self.lend_from(file, page, left);
        file.put();
        lent
    }

    fn lend_from(self, file: FileRef, page: u64, left: u64) -> Result<bool, Error> {
        let span = Span::new(page, left.min(AROUND)).ok_or(Error::Invalid)?;
        // Each round adds what was asked for, as in `pool::supplied`.
        for _ in 0..16 {
            match lend::touch(&file, span) {
                Ok(()) => return Ok(true),
                Err(NotLent::Refused(Refused { status: hvc::NEED_PAGES, detail })) => {
                    pool::grow(&EL2, &self, self.handle(), detail)?;
                }
                // The slot has gone meanwhile.
                Err(NotLent::Refused(Refused { status: hvc::GFN_NOT_MAPPED, .. })) => return Ok(false),
                Err(NotLent::Refused(refused)) => return Err(refused.into()),
                Err(NotLent::Error(Error::Fault)) => return Ok(false),
                Err(NotLent::Error(error)) => return Err(error),
            }
        }
        Err(Error::NoMemory)
    }

    pub(crate) fn set_region(self, region: &io::MemoryRegion2) -> Result<(), Error> {
        match Region::decode(region, self.ipa_bits())? {
            Region::Plain => {
                log(Level::Warning, format_args!("slots of plain memory are not served yet: use KVM_MEM_GUEST_MEMFD"));
                Err(Error::Invalid)
            }
            Region::Delete { id } => self.delete_slot(id),
            Region::Add { id, gfn, pages, fd } => {
                let file = FileRef::get(fd)?;
                let added = self.add_slot(Slot { id, gfn, pages, file, declared: false });
                if added.is_err() {
                    file.put();
                }
                added
            }
        }
    }

    fn add_slot(self, slot: Slot<FileRef>) -> Result<(), Error> {
        let file = slot.file;
        self.living(|inner| {
            if inner.life == Life::Ran {
                return Err(Error::Denied);
            }
            file.claim(self.id(), !self.is_protected())?;
            if slot.pages.end() > file.len() {
                return Err(Error::Invalid);
            }
            let (pages, gfn) = (slot.pages, slot.gfn);
            let id = slot.id;
            if self.is_protected() {
                return inner.slots.add(slot);
            }
            // What is private could not be lent.
            if any(&file, pages, |page| page != Page::Host) {
                return Err(Error::Invalid);
            }
            inner.slots.add(slot)?;
            file.bind(Binding { vm: self.handle(), pages, gfn }).inspect_err(|_| {
                // It was added just now.
                let _ = inner.slots.remove(id);
            })
        })
    }

    fn delete_slot(self, id: u32) -> Result<(), Error> {
        let slot = self.living(|inner| {
            let slot = inner.slots.get(id).ok_or(Error::Invalid)?;
            if !self.is_protected() {
                slot.file.unbind(slot.pages);
                return inner.slots.remove(id);
            }
            if inner.life == Life::Ran {
                return Err(Error::Denied);
            }
            let used =
                any(&slot.file, slot.pages, |page| page.is_the_guests() || matches!(page, Page::Draining { .. }));
            if used || slot.declared {
                return Err(Error::Busy);
            }
            inner.slots.remove(id)
        })?;
        slot.file.put();
        Ok(())
    }
}
