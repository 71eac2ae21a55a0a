// SPDX-License-Identifier: MIT OR Apache-2.0
//! Compares the machine with the naive map: ledger, tables as the hardware walks them, caches, and contents.

use freehold_mem::{Claim, GuestView, HostView, Ipa, Kind, Life, Pfn, State};

use super::naive::{Owner, Run, Spot};
use super::{BITS, CARVE_OUT, RAM, RAM2, RAM2_FRAMES, VMS, World};
use crate::machine::Label;
use crate::walk::{self, Reach};

const HOST_DATA: Label = 0x1057_da7a;
const SECRET: Label = 0x5ec2_e700;

/// What of a VM a refused call must leave as it was.
type Picture = (Life, Option<Kind>, (u64, u64), u32, u64);

impl World<'_> {
    pub(super) fn pictures(&self) -> [Picture; VMS] {
        self.guests.each_ref().map(|vm| (vm.life(), vm.kind(), vm.frames(), vm.pool_free(), vm.broadcasts()))
    }

    /// The host writes to all of its memory.
    pub(super) fn host_writes_everything(&mut self) {
        for (pfn, _) in self.naive.ram().filter(|(_, owner)| *owner == Owner::Host) {
            self.m.set_label(pfn, HOST_DATA);
        }
    }

    /// The host takes its records out of a frame that is still its own.
    pub(super) fn host_forgets_list(&mut self, page: u64) {
        if self.naive.owner(page).is_some_and(Owner::is_the_hosts_to_reach) {
            (0..6).for_each(|index| self.m.write(page, index, 0));
        }
    }

    /// A running guest writes to everything that is its own.
    pub(super) fn guest_writes(&mut self, slot: usize) {
        let Some(vm) = self.naive.vms[slot].as_ref().filter(|vm| vm.life == Life::Running) else { return };
        if vm.kind == Kind::Ordinary {
            return;
        }
        for spot in vm.map.values() {
            if let Spot::Frame { pfn, .. } = spot {
                self.m.set_label(*pfn, SECRET | slot as u64);
            }
        }
    }

    /// I9: what a donation brought is what it may be. Then the guest uses it.
    pub(super) fn donated(&mut self, slot: usize, pairs: Option<Vec<(u64, u64)>>, done: Option<u64>) {
        let Some(vm) = self.naive.vms[slot].as_ref() else { return };
        let zeroed = vm.kind == Kind::Protected && vm.life == Life::Running;
        for (pfn, _) in pairs.into_iter().flatten().take(done.unwrap_or(0) as usize) {
            let label = self.m.label(pfn);
            assert!(label == if zeroed { 0 } else { HOST_DATA }, "I9: a guest gets {pfn:#x} with {label:#x}");
            assert!(!zeroed || self.m.is_zero(pfn), "I9: a guest gets {pfn:#x} with words in it");
        }
        self.guest_writes(slot);
    }

    /// I4: what the host got back holds nothing. Then the host uses it.
    pub(super) fn came_back(&mut self, frames: impl Iterator<Item = u64>) {
        for pfn in frames {
            assert!(self.m.is_zero(pfn), "I4: {pfn:#x} comes back with {:#x}", self.m.label(pfn));
            self.m.set_label(pfn, HOST_DATA);
        }
    }

    /// The frames behind a run of guest frames.
    pub(super) fn behind(&self, slot: usize, run: Run) -> Vec<u64> {
        let map = self.naive.vms[slot].as_ref().map(|vm| &vm.map);
        let pages = map.into_iter().flat_map(|map| map.range(run.0..run.0.saturating_add(run.1)));
        pages.filter_map(|(_, spot)| if let Spot::Frame { pfn, .. } = spot { Some(*pfn) } else { None }).collect()
    }

    /// The host touches an address, and `el2` says what it finds (D7).
    pub(super) fn look(&self, pfn: u64) {
        let Some(ipa) = Pfn::new(pfn).and_then(|pfn| Ipa::new(pfn.pa().raw())) else { return };
        let view = self.host.view(Claim::new(ipa), &self.m);
        let expected = match self.naive.owner(pfn) {
            _ if pfn >> (BITS - 12) != 0 => view == HostView::Outside,
            None => view == HostView::Mapped,
            Some(owner) if owner.is_the_hosts_to_reach() => view == HostView::Mapped,
            Some(Owner::El2) => view == HostView::El2,
            Some(Owner::Pool(vm)) => matches!(view, HostView::Pool(slot) if usize::from(slot.raw()) == vm),
            Some(Owner::Private { vm, gfn, revocable }) => {
                matches!(view, HostView::Private { vm: slot, gfn: at, revocable: may }
                if usize::from(slot.raw()) == vm && at.raw() == gfn && may == revocable)
            }
            Some(Owner::NoMap | Owner::Host | Owner::Lent(_) | Owner::Shared { .. }) => false,
        };
        assert!(expected, "{pfn:#x} is {:?}, the host finds {view:?}", self.naive.owner(pfn));
    }

    /// I3: whatever is still cached grants only what its owner may reach anyway. No change is unpublished.
    pub(super) fn check_caches(&self) {
        assert!(!self.m.dirty, "tables changed, and nobody published it");
        for pfn in self.m.stale(0) {
            let owner = self.naive.owner(pfn);
            assert!(owner.is_none_or(Owner::is_the_hosts_to_reach), "I3: the host may still reach {pfn:#x}, {owner:?}");
        }
        for slot in 0..VMS {
            let vmid = self.guests[slot].vmid().raw();
            for pfn in self.m.stale(vmid) {
                let owner = self.naive.owner(pfn);
                let its = matches!(owner, Some(Owner::Private { vm, .. } | Owner::Shared { vm, .. }) if vm == slot);
                assert!(its, "I3: VM {slot} may still reach {pfn:#x}, {owner:?}");
            }
        }
    }

    /// Compares everything.
    pub(super) fn check_all(&self) {
        let word = |frame, index| self.m.word(frame, index);
        let beyond = [0, RAM - 1, RAM2 - 1, RAM2 + RAM2_FRAMES, (1 << (BITS - 12)) - 1, 1 << (BITS - 12)];
        for pfn in self.naive.ram().map(|(pfn, _)| pfn).chain(beyond) {
            let owner = self.naive.owner(pfn);
            self.check_record(pfn, owner);
            let reach = walk::walk(CARVE_OUT, BITS, pfn, word);
            let may = pfn >> (BITS - 12) == 0 && owner.is_none_or(Owner::is_the_hosts_to_reach);
            // Carve-outs apart, all RAM is the host's to use, and devices are not to be executed.
            let expected = Reach { frame: pfn, read: true, write: true, execute: owner.is_some() };
            assert_eq!(reach, may.then_some(expected), "I2: the host and {pfn:#x}, {owner:?}");
            self.look(pfn);
        }
        (0..VMS).for_each(|slot| self.check_vm(slot));
        let host = self.host.counters();
        let gone = |owner| matches!(owner, Owner::Pool(_) | Owner::Private { .. });
        assert_eq!(host.foreign, self.naive.ram().filter(|(_, owner)| gone(*owner)).count() as u64);
    }

    fn check_record(&self, pfn: u64, owner: Option<Owner>) {
        let state = Pfn::new(pfn).and_then(|pfn| self.host.ledger().state(pfn));
        let same = match (owner, state) {
            (None, None)
            | (Some(Owner::NoMap), Some(State::NoMap))
            | (Some(Owner::El2), Some(State::El2))
            | (Some(Owner::Host), Some(State::Host)) => true,
            (Some(Owner::Lent(times)), Some(State::Lent(said))) => times == said,
            (Some(Owner::Pool(vm)), Some(State::Pool { vm: slot, .. })) => usize::from(slot.raw()) == vm,
            (
                Some(Owner::Private { vm, gfn, revocable }),
                Some(State::Private { vm: slot, gfn: at, revocable: may }),
            )
            | (Some(Owner::Shared { vm, gfn, revocable }), Some(State::Shared { vm: slot, gfn: at, revocable: may })) => {
                usize::from(slot.raw()) == vm && at.raw() == gfn && may == revocable
            }
            _ => false,
        };
        assert!(same, "I1: {pfn:#x} should be {owner:?}, the ledger says {state:?}");
    }

    fn check_vm(&self, slot: usize) {
        let guest = &self.guests[slot];
        let Some(vm) = &self.naive.vms[slot] else { return assert_eq!(guest.life(), Life::Free) };
        assert_eq!((guest.life(), guest.kind()), (vm.life, Some(vm.kind)));
        let (owned, borrowed) = guest.frames();
        assert_eq!(owned + borrowed, self.naive.out(slot), "frames of VM {slot}");
        if vm.life == Life::Dying {
            return;
        }
        assert_eq!(u64::from(guest.pool_free()), vm.free, "pool of VM {slot}");
        let (root, bits) = guest.root().expect("it lives");
        let near = vm.map.keys().flat_map(|gfn| [gfn.saturating_sub(1), *gfn, gfn + 1]);
        let ends = vm.ram.iter().flat_map(|(first, end)| [*first, end - 1]);
        for gfn in near.chain(ends).filter(|gfn| gfn >> (bits - 12) == 0) {
            let reach = walk::walk(root.raw(), bits, gfn, |frame, index| self.m.word(frame, index));
            let expected = match vm.map.get(&gfn) {
                Some(Spot::Frame { pfn, write, execute }) => {
                    Some(Reach { frame: *pfn, read: true, write: *write, execute: *execute })
                }
                Some(Spot::Poison) | None => None,
            };
            assert_eq!(reach, expected, "I2: VM {slot} at {gfn:#x}");
            let view = guest.view(Claim::new(Ipa::new(gfn << 12).expect("small")), &self.m);
            let ram = vm.ram.iter().any(|(first, end)| (*first..*end).contains(&gfn));
            let same = match (vm.map.get(&gfn), view) {
                (Some(Spot::Frame { pfn, .. }), GuestView::Mapped(frame)) => *pfn == frame.raw(),
                (Some(Spot::Poison), GuestView::Poisoned(_)) => true,
                (None, GuestView::Absent(_)) => ram,
                (None, GuestView::Device) => !ram,
                _ => false,
            };
            assert!(same, "VM {slot} at {gfn:#x} finds {view:?}");
        }
    }

    /// Ends every VM, whatever it has.
    pub(super) fn end_all(&mut self) {
        for slot in 0..VMS {
            let Some(vm) = self.naive.vms[slot].clone() else { continue };
            if vm.life != Life::Dying {
                self.guests[slot].begin_death(&mut self.m).expect("it lives");
                assert!(self.naive.die(slot).is_some());
            }
            if vm.kind == Kind::Ordinary {
                for gfn in vm.map.keys() {
                    assert_eq!(self.unlend_run(slot, (*gfn, 1)).ok(), self.naive.unlend(slot, (*gfn, 1)));
                }
            }
            let frames: Vec<_> = self.naive.ram().collect();
            for (pfn, owner) in &frames {
                if matches!(owner, Owner::Private { vm, .. } | Owner::Shared { vm, .. } if *vm == slot) {
                    assert_eq!(self.reclaim_run(slot, (*pfn, 1), false), Ok(1));
                    assert_eq!(self.naive.reclaim(slot, (*pfn, 1), false), Some(1));
                    self.came_back([*pfn].into_iter());
                }
            }
            for (pfn, _) in frames.iter().filter(|(_, owner)| *owner == Owner::Pool(slot)) {
                assert_eq!(self.return_run(slot, (*pfn, 1), false), Ok(1));
                assert_eq!(self.naive.return_pool(slot, (*pfn, 1), false), Some(1));
                self.came_back([*pfn].into_iter());
            }
        }
    }

    /// I8: no VM, no foreign frame, and no table of the host's but the one of the bank that ends inside blocks.
    pub(super) fn check_rest(&self) {
        let counters = self.host.counters();
        assert!(self.guests.iter().all(|guest| guest.life() == Life::Free), "I8: a VM is left");
        assert_eq!((counters.blocks, counters.tables, counters.foreign), (3, 2, 0), "I8: {counters:?}");
    }
}
