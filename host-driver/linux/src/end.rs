// SPDX-License-Identifier: GPL-2.0-only
//! The end of a VM: its vCPUs come out, every frame comes back, its state goes.
// UNSAFETY: entries, and the state that goes.

use crate::plain::Backing;
use crate::port::{Undertaker, EL2};
use crate::sys::{self, log, Level};
use crate::vm::{Inner, Life, RawVm, Vm, VmState};
use freehold_driver_core::convert::cancel;
use freehold_driver_core::end;
use freehold_driver_core::error::Error;
use freehold_driver_core::file::{any, Thread};
use freehold_driver_core::page::Page;

/// Rounds of a millisecond that an ending VM waits for its vCPUs, and for conversions under way.
const END_ROUNDS: u32 = 5000;

impl Vm {
    /// Ends the VM: stops its vCPUs, takes every frame back. Safe to call again, and while its descriptors are open.
    pub(crate) fn halt(self) {
        let created = self.locked(|inner| {
            let was = core::mem::replace(&mut inner.life, Life::Ended);
            (was != Life::Ended).then_some(inner.created)
        });
        let Some(created) = created else { return };
        if let Err(error) = self.doom(created) {
            // It refuses each frame too, below, which marks it: a page that is the dead VM's is nobody's to touch.
            log(Level::Error, format_args!("el2 would not end a VM: {error:?}"));
        }
        let mut lost = 0;
        for _ in 0..END_ROUNDS {
            let (more, draining) = self.reclaim_slots();
            lost += more;
            if !draining {
                break;
            }
            Undertaker.pause(1000);
        }
        lost += end::reclaim_pool(&EL2, &self, self.handle(), &Undertaker);
        if lost > 0 {
            log(Level::Error, format_args!("el2 would not return {lost} frames of a VM: they are lost"));
        }
    }

    fn doom(self, created: u64) -> Result<(), Error> {
        for _ in 0..END_ROUNDS {
            match end::doom(&EL2, self.handle()) {
                Err(Error::Busy) => {}
                other => return other,
            }
            self.kick(created);
            Undertaker.pause(1000);
        }
        Err(Error::Busy)
    }

    /// One pass over every slot: frames lost, and whether a conversion is under way somewhere.
    fn reclaim_slots(self) -> (u64, bool) {
        self.locked(|inner| {
            let mut lost = 0;
            let mut draining = false;
            for slot in inner.slots.iter() {
                let file = match slot.file {
                    Backing::File(file) => file,
                    Backing::Plain(plain) => {
                        plain.recall(true);
                        continue;
                    }
                    Backing::Pinned(pinned) => {
                        lost += pinned.reclaim(self.handle());
                        continue;
                    }
                };
                if !self.is_protected() {
                    lost += file.unbind(slot.pages);
                    continue;
                }
                // A conversion for this VM would outlast it as long as somebody holds a page.
                cancel(&file);
                lost += end::reclaim_pages(&file, slot.pages, file.initial(), &EL2, self.handle(), &Undertaker);
                draining |= any(&file, slot.pages, |page| matches!(page, Page::Draining { .. }));
            }
            (lost, draining)
        })
    }

    /// Has these vCPUs, one bit each, come out of the guest or wake up.
    pub(crate) fn kick(self, vcpus: u64) {
        for vcpu in (0..64).filter(|&vcpu| vcpus >> vcpu & 1 != 0) {
            // A vCPU that is not there has nothing to leave.
            let _ = EL2.vcpu_kick(self.handle(), vcpu);
        }
        self.ring(vcpus);
    }
}

/// Ends a VM whose descriptors may still be open, before a reboot.
// SAFETY: the name is the module's own (prefix `fh_`), declared once in glue.h with this signature.
#[unsafe(no_mangle)]
extern "C" fn fh_vm_halt(raw: *mut RawVm, state: *mut VmState) {
    if let Some(vm) = Vm::new(raw, state) {
        vm.halt();
    }
}

/// Ends a VM that nobody refers to any more, and frees its state.
// SAFETY: the name is the module's own (prefix `fh_`), declared once in glue.h with this signature.
#[unsafe(no_mangle)]
extern "C" fn fh_vm_end(raw: *mut RawVm, state: *mut VmState) {
    let Some(vm) = Vm::new(raw, state) else { return };
    vm.halt();
    vm.locked(Inner::drop_doorbells);
    while let Some(slot) = vm.locked(|inner| inner.slots.pop()) {
        slot.file.put();
    }
    // SAFETY: came from `alloc` in `build`, and the VM is gone.
    unsafe { sys::free(state) };
}
