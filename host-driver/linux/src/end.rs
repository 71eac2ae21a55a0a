// SPDX-License-Identifier: GPL-2.0-only
//! The end of a VM: its vCPUs come out, every frame comes back, its state goes.
// UNSAFETY: entries, and the state that goes.

use crate::plain::Backing;
use crate::port::{Undertaker, EL2};
use crate::sys::{self, log, Level};
use crate::vm::{Inner, Life, RawVm, Vm, VmState};
use freehold_driver_core::convert::bereave;
use freehold_driver_core::end::{self, abandon_pool, Pass, Pool};
use freehold_driver_core::error::Error;
use freehold_driver_core::file::Thread;

impl Vm {
    /// Ends the VM: stops its vCPUs, takes every frame back. May be called again, and while its descriptors are open;
    /// whether every frame came back.
    pub(crate) fn halt(self) -> bool {
        let created = self.locked(|inner| {
            let created = inner.created;
            (core::mem::replace(&mut inner.life, Life::Ended) != Life::Over).then_some(created)
        });
        let Some(created) = created else { return true };
        if let Err(error) = self.doom(created) {
            log(Level::Error, format_args!("el2 would not end a VM: {error:?}"));
            // A vCPU is in the guest: the frames are the guest's still, and nothing is known to be lost.
            if error == Error::Busy {
                return false;
            }
            // It refuses each frame too, below, which marks it: a page that is the dead VM's is nobody's to touch.
        }
        let mut lost = self.reclaim_all_slots();
        let pool = end::reclaim_pool(&EL2, &self, self.handle(), &Undertaker);
        if let Pool::Back(more) = pool {
            lost += more;
        }
        self.say_lost(lost);
        let over = lost == 0 && pool == Pool::Back(0);
        self.locked(|inner| inner.life = if over { Life::Over } else { Life::Ended });
        over
    }

    fn say_lost(self, lost: u64) {
        if lost > 0 {
            log(Level::Error, format_args!("el2 would not return {lost} frames of a VM: they are lost"));
        }
    }

    fn doom(self, created: u64) -> Result<(), Error> {
        let mut doomed = Ok(());
        end::settles(&Undertaker, patience(), || {
            doomed = end::doom(&EL2, self.handle());
            let busy = doomed == Err(Error::Busy);
            if busy {
                self.kick(created);
            }
            !busy
        });
        doomed
    }

    /// Passes over the slots until no attempt is under way: each gives up when it looks next. Frames lost.
    fn reclaim_all_slots(self) -> u64 {
        end::reclaim_all(&Undertaker, patience(), || self.reclaim_slots())
    }

    /// One pass over every slot.
    fn reclaim_slots(self) -> Pass {
        self.locked(|inner| {
            inner.slots.iter().fold(Pass::default(), |so_far, slot| {
                let lost = |lost| Pass { lost, draining: false };
                so_far.and(match slot.file {
                    Backing::Plain(plain) => {
                        plain.recall(true);
                        Pass::default()
                    }
                    Backing::Pinned(pinned) => lost(pinned.reclaim(self.handle())),
                    Backing::File(file) if !self.is_protected() => lost(file.unbind(slot.pages)),
                    Backing::File(file) => {
                        // What is under way for this VM would outlast it as long as somebody holds a page.
                        bereave(&file);
                        let initial = file.initial();
                        end::reclaim_pages(&file, slot.pages, initial, &EL2, self.handle(), &Undertaker)
                    }
                })
            })
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

/// The time until which something is waited for.
fn patience() -> u64 {
    Undertaker.now().saturating_add(end::SETTLES)
}

/// The time until which a reboot waits for those that have a VM's lock.
// SAFETY: the name is the module's own (prefix `fh_`), declared once in glue.h with this signature.
#[unsafe(no_mangle)]
extern "C" fn fh_vms_patience() -> u64 {
    patience()
}

/// Ends a VM whose descriptors may still be open, before a reboot; whether every frame came back. Whoever comes for its lock
/// by now lets it go at once; who has had it longer is waited for, until `until`.
// SAFETY: the name is the module's own (prefix `fh_`), declared once in glue.h with this signature.
#[unsafe(no_mangle)]
extern "C" fn fh_vm_halt(raw: *mut RawVm, state: *mut VmState, until: u64) -> bool {
    let Some(vm) = Vm::new(raw, state) else { return false };
    if !end::settles(&Undertaker, until, || vm.is_free()) {
        log(Level::Error, format_args!("the machine goes down over a VM whose memory is being looked up"));
        return false;
    }
    vm.halt()
}

/// Ends a VM that nobody refers to any more, and frees its state.
// SAFETY: the name is the module's own (prefix `fh_`), declared once in glue.h with this signature.
#[unsafe(no_mangle)]
extern "C" fn fh_vm_end(raw: *mut RawVm, state: *mut VmState) {
    let Some(vm) = Vm::new(raw, state) else { return };
    if !vm.halt() {
        vm.say_lost(abandon_pool(&vm));
    }
    vm.locked(Inner::drop_doorbells);
    while let Some(slot) = vm.locked(|inner| inner.slots.pop()) {
        slot.file.put();
    }
    let places = vm.locked(|inner| inner.slots.places().as_mut_ptr());
    // SAFETY: came from `alloc` in `build`; each is empty, and the VM does not know them any more.
    unsafe { sys::free(places) };
    // SAFETY: came from `alloc` in `build`, and the VM is gone.
    unsafe { sys::free(state) };
}
