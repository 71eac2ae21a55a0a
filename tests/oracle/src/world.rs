// SPDX-License-Identifier: MIT OR Apache-2.0
//! A whole small machine: every record, in fixed arrays.

use crate::record::{Content, Mark, Owner, Page, Vcpu, Vm};
use crate::state::{Machine, State};

/// RAM ranges that a world can hold per VM.
pub const RANGES: usize = 8;

/// A machine of `P` frames, `V` slots of `U` vCPUs and `G` guest frames each, and `C` CPUs.
///
/// Frames are numbered from `first_pfn` on, guest frames from `first_gfn` on. Guest frames outside of those `G` are
/// never backed or marked; declare RAM ranges accordingly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct World<const P: usize, const V: usize, const U: usize, const G: usize, const C: usize> {
    /// What is fixed.
    pub machine: Machine,
    /// Number of the first frame.
    pub first_pfn: u64,
    /// Number of the first guest frame, of every VM.
    pub first_gfn: u64,
    /// The frames.
    pub pages: [Page; P],
    /// The slots.
    pub vms: [Vm; V],
    /// Their ranges, in order of declaration.
    pub ranges: [[Option<(u64, u64)>; RANGES]; V],
    /// Their guest frames' marks.
    pub marks: [[Mark; G]; V],
    /// Their vCPUs.
    pub vcpus: [[Vcpu; U]; V],
    /// What each CPU runs.
    pub cpus: [Option<(u8, u8)>; C],
}

impl<const P: usize, const V: usize, const U: usize, const G: usize, const C: usize> World<P, V, U, G, C> {
    /// A machine after boot: every frame is the host's, no VM exists, ordinary VMs are not served.
    #[must_use]
    pub fn new(first_pfn: u64, first_gfn: u64) -> Self {
        let small = |n: usize| u8::try_from(n).unwrap_or(u8::MAX);
        let host = Page { owner: Owner::Host, content: Content::Public, ..Page::default() };
        Self {
            machine: Machine {
                slots: small(V),
                vcpus: small(U),
                cpus: small(C),
                ranges: small(RANGES),
                ordinary: false,
            },
            first_pfn,
            first_gfn,
            pages: [host; P],
            vms: [Vm::default(); V],
            ranges: [[None; RANGES]; V],
            marks: [[Mark::None; G]; V],
            vcpus: [[Vcpu::default(); U]; V],
            cpus: [None; C],
        }
    }

    /// Each frame's number and record.
    pub fn frames(&self) -> impl Iterator<Item = (u64, &Page)> {
        (self.first_pfn..).zip(&self.pages)
    }

    fn index(first: u64, n: u64) -> Option<usize> {
        usize::try_from(n.checked_sub(first)?).ok()
    }
}

impl<const P: usize, const V: usize, const U: usize, const G: usize, const C: usize> State for World<P, V, U, G, C> {
    fn machine(&self) -> Machine {
        self.machine
    }

    fn page(&self, pfn: u64) -> Page {
        Self::index(self.first_pfn, pfn).and_then(|i| self.pages.get(i)).copied().unwrap_or_default()
    }

    fn set_page(&mut self, pfn: u64, page: Page) {
        if let Some(p) = Self::index(self.first_pfn, pfn).and_then(|i| self.pages.get_mut(i)) {
            *p = page;
        }
    }

    fn backing(&self, slot: u8, gfn: u64) -> Option<u64> {
        let owner = Owner::Guest { slot, gfn: u32::try_from(gfn).ok()? };
        self.frames().find(|(_, p)| p.owner == owner).map(|(pfn, _)| pfn)
    }

    fn mark(&self, slot: u8, gfn: u64) -> Mark {
        let marks = self.marks.get(usize::from(slot));
        Self::index(self.first_gfn, gfn).and_then(|i| marks?.get(i)).copied().unwrap_or_default()
    }

    fn set_mark(&mut self, slot: u8, gfn: u64, mark: Mark) {
        let marks = self.marks.get_mut(usize::from(slot));
        if let Some(m) = Self::index(self.first_gfn, gfn).and_then(|i| marks?.get_mut(i)) {
            *m = mark;
        }
    }

    fn vm(&self, slot: u8) -> Vm {
        self.vms.get(usize::from(slot)).copied().unwrap_or_default()
    }

    fn set_vm(&mut self, slot: u8, vm: Vm) {
        if let Some(v) = self.vms.get_mut(usize::from(slot)) {
            *v = vm;
        }
    }

    fn range(&self, slot: u8, n: u8) -> Option<(u64, u64)> {
        self.ranges.get(usize::from(slot)).and_then(|r| r.get(usize::from(n))).copied().flatten()
    }

    fn add_range(&mut self, slot: u8, gfn: u64, count: u64) {
        let ranges = self.ranges.get_mut(usize::from(slot));
        if let Some(free) = ranges.and_then(|r| r.iter_mut().find(|r| r.is_none())) {
            *free = Some((gfn, count));
        }
    }

    fn clear_slot(&mut self, slot: u8) {
        let i = usize::from(slot);
        if let (Some(r), Some(m), Some(v)) = (self.ranges.get_mut(i), self.marks.get_mut(i), self.vcpus.get_mut(i)) {
            (*r, *m, *v) = ([None; RANGES], [Mark::None; G], [Vcpu::default(); U]);
        }
    }

    fn vcpu(&self, slot: u8, vcpu: u8) -> Vcpu {
        self.vcpus.get(usize::from(slot)).and_then(|v| v.get(usize::from(vcpu))).copied().unwrap_or_default()
    }

    fn set_vcpu(&mut self, slot: u8, vcpu: u8, record: Vcpu) {
        if let Some(v) = self.vcpus.get_mut(usize::from(slot)).and_then(|v| v.get_mut(usize::from(vcpu))) {
            *v = record;
        }
    }

    fn cpu(&self, cpu: u8) -> Option<(u8, u8)> {
        self.cpus.get(usize::from(cpu)).copied().flatten()
    }

    fn set_cpu(&mut self, cpu: u8, runs: Option<(u8, u8)>) {
        if let Some(c) = self.cpus.get_mut(usize::from(cpu)) {
            *c = runs;
        }
    }
}
