// SPDX-License-Identifier: MIT OR Apache-2.0
//! The specification's records of this machine, as far as they are followed: pages, VMs, ranges, poison.
//!
//! A page's record is a [`Word`] of the shadow ledger, which stands under the host's lock as the ledger does; a VM's
//! records are changed by who holds that VM's lock, as the VM is. What a vCPU does is followed on its own.

use core::ops::Range;
use core::sync::atomic::{AtomicU8, Ordering};
use freehold_oracle as oracle;
use freehold_oracle::{Life, Mark, Owner, Page, State, Vcpu, Vm, Who};
use freehold_virt::handle::{Handle, MAX_VCPUS, MAX_VMS};
use spin::mutex::SpinMutex;

use crate::marks::Marks;
use crate::shadow::{Shadow, Word};

/// RAM ranges that a VM may have.
pub const RANGES: usize = 8;

/// One slot.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// The VM.
    pub vm: Vm,
    /// Its ranges.
    pub ranges: [Option<(u64, u64)>; RANGES],
    /// The first guest frames of its distributor and of its redistributors, if it has an interrupt controller.
    pub frames: Option<[u64; 2]>,
    /// Its vCPUs.
    pub vcpus: [Vcpu; MAX_VCPUS],
    /// Generation that its handle has, or that the next one will have.
    pub generation: u64,
    /// How often any of this changed.
    pub version: u64,
}

impl Slot {
    const ABSENT: Vcpu = Vcpu {
        life: oracle::VcpuLife::Absent,
        running: false,
        kicked: false,
        pending: oracle::Pending::None,
        power: oracle::Power::Off,
    };
    const EMPTY: Self = Self {
        vm: Vm {
            life: Life::Free,
            used: false,
            protected: false,
            ipa_bits: 0,
            pool: 0,
            free: 0,
            guest: 0,
            borrowed: 0,
            gic: false,
            guarded: false,
            windows: 0,
        },
        ranges: [None; RANGES],
        frames: None,
        vcpus: [Self::ABSENT; MAX_VCPUS],
        generation: 1,
        version: 0,
    };
}

impl Slot {
    /// Whether a guest frame is one of its interrupt controller's: 16 of the distributor, then 32 of each vCPU up to the
    /// last one.
    #[must_use]
    pub fn is_of_controller(&self, gfn: u64) -> bool {
        self.controller(self.redistributors()).is_some_and(|runs| runs.iter().any(|run| run.contains(&gfn)))
    }

    /// How many vCPUs have redistributors: all up to the last one that there is.
    #[must_use]
    pub fn redistributors(&self) -> u64 {
        let there = |vcpu: &Vcpu| vcpu.life != oracle::VcpuLife::Absent;
        self.vcpus.iter().rposition(there).map_or(0, |last| last as u64 + 1)
    }

    /// Whether RAM lies where the frames are.
    #[must_use]
    pub fn has_ram_below_controller(&self) -> bool {
        let runs = self.controller(self.redistributors()).unwrap_or_default();
        let ram = || self.ranges.iter().flatten();
        runs.iter().any(|run| ram().any(|(first, count)| *first < run.end && run.start < first + count))
    }

    /// The guest frames of its interrupt controller, with the redistributors of so many vCPUs.
    fn controller(&self, vcpus: u64) -> Option<[Range<u64>; 2]> {
        self.frames.map(|[distributor, redistributors]| {
            [distributor..distributor + 16, redistributors..redistributors + 32 * vcpus]
        })
    }
}

/// The slots, and what was poisoned.
#[derive(Debug)]
pub struct Vms {
    slots: [SpinMutex<Slot>; MAX_VMS],
    marks: SpinMutex<Marks>,
    /// CPUs of the machine.
    pub cpus: AtomicU8,
}

impl Vms {
    /// No VM, nor was there ever one.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "only a static holds one")]
    pub const fn new() -> Self {
        Self {
            slots: [const { SpinMutex::new(Slot::EMPTY) }; MAX_VMS],
            marks: SpinMutex::new(Marks::new()),
            cpus: AtomicU8::new(0),
        }
    }

    /// A slot's records.
    #[must_use]
    pub fn slot(&self, slot: u8) -> Option<Slot> {
        self.slots.get(usize::from(slot)).map(|slot| *slot.lock())
    }

    /// Changes a slot's records.
    pub fn change(&self, slot: u8, what: impl FnOnce(&mut Slot)) {
        if let Some(slot) = self.slots.get(usize::from(slot)) {
            let mut slot = slot.lock();
            what(&mut slot);
            slot.version += 1;
        }
    }

    /// A vCPU's record; of none that there is not.
    #[must_use]
    pub fn vcpu(&self, slot: u8, vcpu: u64) -> Vcpu {
        let index = usize::try_from(vcpu).unwrap_or(usize::MAX);
        self.slot(slot).and_then(|slot| slot.vcpus.get(index).copied()).unwrap_or_default()
    }

    /// Changes a vCPU's record.
    pub fn change_vcpu(&self, slot: u8, vcpu: u64, what: impl FnMut(&mut Vcpu)) {
        let index = usize::try_from(vcpu).unwrap_or(usize::MAX);
        self.change(slot, |slot| slot.vcpus.get_mut(index).into_iter().for_each(what));
    }

    /// How many VMs there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.slots.iter().filter(|slot| slot.lock().vm.life != Life::Free).count()
    }

    /// What a handle names now.
    #[must_use]
    pub fn who(&self, handle: u64) -> Who {
        let Ok(handle) = Handle::decode(handle) else { return Who::Never };
        let slot = handle.slot().raw();
        let Some(records) = self.slot(slot) else { return Who::Never };
        match handle.generation().get().cmp(&records.generation) {
            core::cmp::Ordering::Less => Who::Ended,
            core::cmp::Ordering::Equal if records.vm.life != Life::Free => Who::Slot(slot),
            core::cmp::Ordering::Equal | core::cmp::Ordering::Greater => Who::Never,
        }
    }
}

/// All records, for one operation. Who makes it holds the locks that the operation takes.
#[derive(Debug)]
pub struct View<'a> {
    /// Pages; none while the host's lock is not held, when no operation asks.
    pub pages: Option<&'a mut Shadow>,
    /// VMs.
    pub vms: &'a Vms,
    /// Slot and vCPU that run, where a guest's act is decided.
    pub runs: Option<(u8, u8)>,
}

fn page_of(word: Word) -> Page {
    let guest = |slot: u8, gfn: u64| Owner::Guest { slot, gfn: u32::try_from(gfn).unwrap_or(u32::MAX) };
    let of = |owner| Page { owner, ..Page::default() };
    match word.tag() {
        Word::NO_MAP => of(Owner::NoMap),
        Word::HOST => of(Owner::Host),
        Word::LENT => Page { borrows: u16::try_from(word.payload()).unwrap_or(u16::MAX), ..of(Owner::Host) },
        Word::EL2 => of(Owner::El2),
        Word::POOL => of(Owner::Pool { slot: word.vm() }),
        tag => Page { lent: tag == Word::SHARED, revocable: word.revocable(), ..of(guest(word.vm(), word.payload())) },
    }
}

fn word_of(page: &Page) -> Word {
    match page.owner {
        Owner::NotMemory | Owner::NoMap => Word::new(Word::NO_MAP, false, 0, 0),
        Owner::El2 => Word::new(Word::EL2, false, 0, 0),
        Owner::Host if page.borrows > 0 => Word::new(Word::LENT, false, 0, page.borrows.into()),
        Owner::Host => Word::new(Word::HOST, false, 0, 0),
        Owner::Pool { slot } => Word::new(Word::POOL, false, slot, 0),
        Owner::Guest { slot, gfn } => {
            Word::new(if page.lent { Word::SHARED } else { Word::PRIVATE }, page.revocable, slot, gfn.into())
        }
    }
}

impl State for View<'_> {
    fn machine(&self) -> oracle::Machine {
        oracle::Machine {
            slots: MAX_VMS as u8,
            vcpus: MAX_VCPUS as u8,
            cpus: self.vms.cpus.load(Ordering::Relaxed),
            ranges: RANGES as u8,
            ordinary: true,
        }
    }

    fn page(&self, pfn: u64) -> Page {
        self.pages.as_ref().and_then(|pages| pages.word(pfn)).map(page_of).unwrap_or_default()
    }

    fn set_page(&mut self, pfn: u64, page: Page) {
        if let Some(pages) = &mut self.pages {
            pages.set(pfn, word_of(&page));
        }
    }

    fn backing(&self, slot: u8, gfn: u64) -> Option<u64> {
        self.pages.as_ref().and_then(|pages| pages.find(slot, gfn))
    }

    fn mark(&self, slot: u8, gfn: u64) -> Mark {
        self.vms.marks.lock().get(slot, gfn)
    }

    fn set_mark(&mut self, slot: u8, gfn: u64, mark: Mark) {
        self.vms.marks.lock().set(slot, gfn, mark);
    }

    fn vm(&self, slot: u8) -> Vm {
        self.vms.slot(slot).map(|slot| slot.vm).unwrap_or_default()
    }

    fn set_vm(&mut self, slot: u8, vm: Vm) {
        self.vms.change(slot, |records| records.vm = vm);
    }

    fn range(&self, slot: u8, n: u8) -> Option<(u64, u64)> {
        self.vms.slot(slot).and_then(|slot| slot.ranges.get(usize::from(n)).copied().flatten())
    }

    fn add_range(&mut self, slot: u8, gfn: u64, count: u64) {
        self.vms.change(slot, |slot| {
            if let Some(place) = slot.ranges.iter_mut().find(|place| place.is_none()) {
                *place = Some((gfn, count));
            }
        });
    }

    fn clear_slot(&mut self, slot: u8) {
        self.vms.change(slot, |slot| {
            *slot = Slot { generation: slot.generation + 1, version: slot.version, vm: slot.vm, ..Slot::EMPTY };
        });
        self.vms.marks.lock().clear(slot);
    }

    fn vcpu(&self, slot: u8, vcpu: u8) -> Vcpu {
        self.vms.slot(slot).and_then(|slot| slot.vcpus.get(usize::from(vcpu)).copied()).unwrap_or_default()
    }

    fn set_vcpu(&mut self, slot: u8, vcpu: u8, record: Vcpu) {
        self.vms.change(slot, |slot| {
            if let Some(place) = slot.vcpus.get_mut(usize::from(vcpu)) {
                *place = record;
            }
        });
    }

    fn cpu(&self, _: u8) -> Option<(u8, u8)> {
        self.runs
    }

    fn set_cpu(&mut self, _: u8, _: Option<(u8, u8)>) {}
}
