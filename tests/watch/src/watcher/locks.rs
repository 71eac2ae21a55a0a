// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is compared when a lock is taken, and when it is let go.

use freehold_el2::calls::GuestSlot;
use freehold_mem::{Host, Life, Pfn};
use freehold_trace::record::{Event, HOST};
use freehold_uapi::hvc;

use super::{FULL_WALK, Ground, WALK, Watcher};
use crate::board::Told;
use crate::cpu::{Books, Trap};
use crate::judge;
use crate::lock::Observer;
use crate::spec::View;
use crate::turn;

impl<G: Ground, const RECORDS: usize> Observer<Host<'static>> for &'static Watcher<G, RECORDS> {
    fn taken(&self, host: &Host<'static>) {
        self.event(Event::Acquire { lock: HOST });
        self.here(|cpu| {
            cpu.holds_host = true;
            let mut shadow = self.shadow.lock();
            let named = cpu.frames().iter().find(|pfn| !shadow.agrees(**pfn, host.ledger())).copied();
            named.or_else(|| shadow.walk(WALK, host.ledger()).map(Pfn::raw))
        })
        .inspect(|pfn| {
            self.diverged(format_args!(
                "frame {pfn:#x} was {:x?} when the host's lock was let go, and is {:?}: written without it",
                self.shadow.lock().word(*pfn),
                Pfn::new(*pfn).and_then(|pfn| host.ledger().state(pfn)),
            ))
        });
    }

    fn letting_go(&self, host: &Host<'static>) {
        let ports = self.ground.ports();
        let (step, wrong) = self.here(|cpu| {
            let mut shadow = self.shadow.lock();
            if let Trap::Abort { page, kernel } = cpu.trap {
                judge::touch(cpu, &self.vms, &mut shadow, page, kernel);
            }
            cpu.holds_host = false;
            let wrong = self.note_owners(cpu.trap, &mut shadow, host);
            let named = cpu.frames().iter().find(|pfn| !shadow.agrees(**pfn, host.ledger())).copied();
            (cpu.step, named.or(wrong))
        });
        if let Some(pfn) = self.here(|cpu| cpu.left) {
            self.diverged(format_args!("frame {pfn:#x} was zeroed, and is not zero"));
        }
        if let Some(pfn) = wrong {
            let must = self.shadow.lock().word(pfn);
            let state = Pfn::new(pfn).and_then(|pfn| host.ledger().state(pfn));
            self.diverged(format_args!("frame {pfn:#x} must be {must:x?}, and is {state:x?}"));
        }
        // The named frames once more, against the tables.
        let mut at = 0;
        while let Some(pfn) = self.here(|cpu| cpu.frames().get(at).copied()) {
            at += 1;
            if let Some(pfn) = Pfn::new(pfn) {
                self.check_tables(host, pfn, &ports);
            }
        }
        if step.is_multiple_of(FULL_WALK) {
            let differs = self.shadow.lock().differs(host.ledger());
            if let Some(pfn) = differs {
                self.diverged(format_args!("frame {:#x} changed in no call that names it", pfn.raw()));
            }
            // Only who holds the host's lock changes it; let go of it, for a divergence looks into it.
            let mut from = 0;
            while let Some(pfn) = {
                let shadow = self.shadow.lock();
                shadow.worth_a_look(&mut from)
            } {
                self.check_tables(host, pfn, &ports);
            }
        }
        self.event(Event::Release { lock: HOST });
    }
}

impl<G: Ground, const RECORDS: usize> Told for &'static Watcher<G, RECORDS> {
    fn written(&self) {
        self.diverged(format_args!("a board of a VM changed, and nobody held its lock"))
    }

    fn let_go(&self) {
        let Some((slot, vcpu, hvc::VCPU_RUN)) = self.claimed() else { return };
        self.here(|cpu| match &mut cpu.stopped {
            Some(stopped) => stopped.let_go_of_board(&self.vms, (slot, vcpu)),
            None if cpu.arrived.is_none() => cpu.arrived = Some(turn::arrives(&self.vms, (slot, vcpu))),
            None => {}
        });
    }
}

impl<G: Ground, const RECORDS: usize> Observer<GuestSlot> for &'static Watcher<G, RECORDS> {
    fn taken(&self, slot: &GuestSlot) {
        let vm = slot.memory.vm();
        self.event(Event::Acquire { lock: vm.vmid().raw() });
        let now = Books::of(&slot.memory);
        let then = self.books.get(usize::from(vm.raw())).map(|books| *books.lock());
        if then.is_some_and(|then| then != now) {
            self.diverged(format_args!("VM slot {} was {then:?}, and is {now:?}: written without its lock", vm.raw()));
        }
    }

    fn letting_go(&self, slot: &GuestSlot) {
        let vm = slot.memory.vm();
        let vmid = vm.vmid().raw();
        let now = Books::of(&slot.memory);
        if let Some(books) = self.books.get(usize::from(vm.raw())) {
            let then = core::mem::replace(&mut *books.lock(), now);
            let (judged, mapped) = self.here(|cpu| {
                let mut shadow = self.shadow.lock();
                let places = judge::places(cpu, &self.vms, &shadow, vm.raw());
                let judged = judge::guest(cpu, &self.vms, &mut shadow, vm.raw(), &then, &now);
                let view = View { pages: Some(&mut shadow), vms: &self.vms, runs: None };
                (judged, self.maps(&view, vm.raw(), (&then, &now), places, cpu))
            });
            if let Err(difference) = judged {
                self.diverged(format_args!("{difference:?}"));
            }
            if let Err(wrong) = mapped {
                self.diverged(format_args!("the tables of slot {}: {wrong:x?}", vm.raw()));
            }
            if now.life == Life::Free && then.life != Life::Free {
                let left = self.shadow.lock().of_vm(vm.raw());
                if left != 0 {
                    self.diverged(format_args!("slot {} is free, and {left} frames are still its", vm.raw()));
                }
            }
            match (then.root, now.root) {
                (None, Some((table, bits))) => {
                    self.event(Event::Root { vmid, table, tables: 1 << bits.saturating_sub(39) });
                }
                (Some(_), None) => self.event(Event::Unroot { vmid }),
                (Some(_), Some(_)) | (None, None) => {}
            }
        }
        self.event(Event::Release { lock: vmid });
    }
}
