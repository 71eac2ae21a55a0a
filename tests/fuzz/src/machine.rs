// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory, and TLBs that forget nothing until they are told to.
//!
//! Whatever a descriptor granted when it was overwritten stays reachable for its owner until the right invalidation.
//! A store that breaks break-before-make, a frame that is touched while somebody may still reach it, and a guest's
//! page that holds old instructions stop the run.

use freehold_mem::ports::{Broken, Fatal, Frames, TableMemory, Tlb};
use freehold_mem::{Entry, Pfn, Vmid};

use crate::walk::{self, ENTRIES, Level};

/// First frame of all RAM.
pub(crate) const BASE: u64 = 0x4_0000;
/// Frames from there on that the machine has memory for; not all of them are RAM.
pub(crate) const SPAN: u64 = 4096;
/// VMIDs that are told apart: the host's and three VMs'.
pub(crate) const VMIDS: usize = 4;

/// One word says what a frame holds, for as long as it is no table.
pub(crate) type Label = u64;

/// What a table belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Use {
    vmid: u8,
    level: Level,
}

#[derive(Clone, Default)]
struct Frame {
    words: Option<Box<[u64; ENTRIES]>>,
    label: Label,
    table: Option<Use>,
    /// Cleaned, and what CPUs had fetched of it dropped since.
    fetched: bool,
    /// Cleaned, and not yet that.
    settled: bool,
}

/// The machine.
pub(crate) struct Machine {
    frames: Vec<Frame>,
    /// Per VMID: who may still reach which frame.
    stale: [Vec<bool>; VMIDS],
    any_stale: [bool; VMIDS],
    /// Entries that were valid, and what they were, until their owner's invalidation.
    broken: Vec<(u8, Entry, u64)>,
    pub(crate) dirty: bool,
    /// Frames that were cleaned since instructions were dropped last.
    settled: Vec<u64>,
    /// Everything that ever changed.
    pub(crate) events: u64,
    /// A frame may be reachable from both sides while it is being lent.
    pub(crate) lending: bool,
    /// A planted fault: the host's invalidations do nothing.
    deaf: bool,
}

impl Machine {
    pub(crate) fn new(deaf: bool) -> Self {
        Self {
            frames: vec![Frame::default(); SPAN as usize],
            stale: core::array::from_fn(|_| vec![false; SPAN as usize]),
            any_stale: [false; VMIDS],
            broken: Vec::new(),
            settled: Vec::new(),
            dirty: false,
            events: 0,
            lending: false,
            deaf,
        }
    }

    fn index(frame: u64) -> usize {
        let offset = frame.checked_sub(BASE).filter(|offset| *offset < SPAN);
        usize::try_from(offset.expect("el2 touched what is no memory")).expect("small")
    }

    fn frame(&self, frame: u64) -> &Frame {
        &self.frames[Self::index(frame)]
    }

    fn frame_mut(&mut self, frame: u64) -> &mut Frame {
        self.events += 1;
        &mut self.frames[Self::index(frame)]
    }

    /// Says whose table a frame is; the tables below follow when they are linked.
    pub(crate) fn adopt(&mut self, table: u64, vmid: u8, level: Level) {
        self.frame_mut(table).table = Some(Use { vmid, level });
    }

    /// The same for a table that stands already, and all below it.
    pub(crate) fn adopt_all(&mut self, table: u64, vmid: u8, level: Level) {
        self.adopt(table, vmid, level);
        for index in 0..ENTRIES {
            if let walk::Grant::Table(below) = walk::grant(self.word(table, index), level) {
                self.adopt_all(below, vmid, level + 1);
            }
        }
    }

    /// A word of memory.
    pub(crate) fn word(&self, frame: u64, index: usize) -> u64 {
        self.frame(frame).words.as_ref().map_or(0, |words| words[index])
    }

    /// Writes a word as the host does, which is no event.
    pub(crate) fn write(&mut self, frame: u64, index: usize, value: u64) {
        self.frames[Self::index(frame)].words.get_or_insert_with(|| Box::new([0; ENTRIES]))[index] = value;
    }

    pub(crate) fn label(&self, frame: u64) -> Label {
        self.frame(frame).label
    }

    pub(crate) fn set_label(&mut self, frame: u64, label: Label) {
        self.frames[Self::index(frame)].label = label;
    }

    /// Whether a frame holds nothing at all.
    pub(crate) fn is_zero(&self, frame: u64) -> bool {
        let frame = self.frame(frame);
        frame.label == 0 && frame.words.as_ref().is_none_or(|words| words.iter().all(|word| *word == 0))
    }

    /// Frames that `vmid` may reach although no table says so.
    pub(crate) fn stale(&self, vmid: u8) -> impl Iterator<Item = u64> + '_ {
        let all = if self.any_stale[usize::from(vmid)] { &self.stale[usize::from(vmid)][..] } else { &[] };
        (BASE..).zip(all).filter(|(_, stale)| **stale).map(|(frame, _)| frame)
    }

    fn may_reach(&self, vmid: u8, frame: u64) -> bool {
        let vmid = usize::from(vmid);
        self.any_stale[vmid] && self.stale[vmid][Self::index(frame)]
    }

    /// Notes that everything a descriptor granted may still be cached.
    fn keep(&mut self, owner: Use, descriptor: u64) {
        match walk::grant(descriptor, owner.level) {
            walk::Grant::Nothing => {}
            walk::Grant::Frames(first, count) => {
                for frame in (first..first + count).filter(|frame| (BASE..BASE + SPAN).contains(frame)) {
                    self.stale[usize::from(owner.vmid)][Self::index(frame)] = true;
                }
                self.any_stale[usize::from(owner.vmid)] = true;
            }
            walk::Grant::Table(table) => {
                let below = Use { level: owner.level + 1, ..owner };
                for index in 0..ENTRIES {
                    self.keep(below, self.word(table, index));
                }
            }
        }
    }

    fn forget(&mut self, vmid: u8) {
        self.stale[usize::from(vmid)].fill(false);
        self.any_stale[usize::from(vmid)] = false;
        self.broken.retain(|(owner, _, _)| *owner != vmid);
        self.dirty = false;
        self.events += 1;
    }

    fn check_page(&mut self, vmid: u8, page: u64) {
        let frame = self.frame_mut(page);
        frame.settled = false;
        if vmid == 0 {
            frame.fetched = false;
            return;
        }
        assert!(core::mem::take(&mut frame.fetched), "VM {vmid} gets {page:#x} with old instructions in caches");
        for other in (0..VMIDS as u8).filter(|other| *other != vmid) {
            assert!(self.lending || !self.may_reach(other, page), "I3: {page:#x} goes to {vmid}, {other} may reach it");
        }
    }
}

impl TableMemory for Machine {
    fn load(&self, at: Entry) -> u64 {
        self.word(at.table().raw(), usize::from(at.index()))
    }

    fn store(&mut self, at: Entry, new: u64) {
        let (table, index) = (at.table().raw(), usize::from(at.index()));
        let old = self.word(table, index);
        if let Some(owner) = self.frame(table).table
            && old != new
        {
            if old & 1 != 0 {
                assert!(new & 1 == 0, "break-before-make: {old:#x} became {new:#x} at {at:?}");
                self.keep(owner, old);
                self.broken.push((owner.vmid, at, old));
                if let walk::Grant::Table(below) = walk::grant(old, owner.level) {
                    self.frame_mut(below).table = None;
                }
            }
            if new & 1 != 0 {
                let broken = self.broken.iter().find(|(_, other, _)| *other == at);
                assert!(broken.is_none_or(|(_, _, was)| *was == new), "made before the break was broadcast, {at:?}");
                match walk::grant(new, owner.level) {
                    walk::Grant::Nothing => panic!("a descriptor of no known form: {new:#x}"),
                    walk::Grant::Table(below) => self.adopt(below, owner.vmid, owner.level + 1),
                    walk::Grant::Frames(page, 1) => self.check_page(owner.vmid, page),
                    walk::Grant::Frames(..) => {}
                }
            }
        }
        self.write(table, index, new);
        self.events += 1;
        self.dirty = true;
    }

    fn clear(&mut self, frame: Pfn) {
        assert!(!self.may_reach(0, frame.raw()), "I3: {frame:?} becomes a table while the host may reach it");
        *self.frame_mut(frame.raw()) = Frame::default();
        self.dirty = true;
    }

    fn publish_tables(&mut self) {
        self.dirty = false;
        self.events += 1;
    }
}

impl Tlb for Machine {
    fn invalidate_host(&mut self) {
        if self.deaf {
            self.broken.retain(|(owner, _, _)| *owner != 0);
            self.dirty = false;
        } else {
            self.forget(0);
        }
    }

    fn invalidate_vm(&mut self, vmid: Vmid) {
        assert_ne!(vmid, Vmid::HOST);
        self.forget(vmid.raw());
    }
}

impl Frames for Machine {
    fn scrub(&mut self, frame: Pfn) {
        for vmid in 0..VMIDS as u8 {
            let own = vmid == 0 && self.lending;
            assert!(
                own || !self.may_reach(vmid, frame.raw()),
                "I3: {frame:?} is scrubbed while {vmid} may write to it"
            );
        }
        *self.frame_mut(frame.raw()) = Frame { settled: true, ..Frame::default() };
        self.settled.push(frame.raw());
    }

    fn settle_for_guest(&mut self, frame: Pfn) {
        assert!(self.lending || !self.may_reach(0, frame.raw()), "{frame:?} is settled while the host may write to it");
        self.events += 1;
        self.frame_mut(frame.raw()).settled = true;
        self.settled.push(frame.raw());
    }

    fn settle_instructions(&mut self) {
        self.events += 1;
        for frame in core::mem::take(&mut self.settled) {
            let frame = self.frame_mut(frame);
            frame.fetched |= core::mem::take(&mut frame.settled);
        }
    }

    fn copy_words(&self, frame: Pfn, into: &mut [u64]) {
        for (index, word) in into.iter_mut().enumerate() {
            *word = self.word(frame.raw(), index);
        }
    }
}

impl Fatal for Machine {
    fn fatal(&self, what: Broken) -> ! {
        panic!("fatal: {what:?}")
    }
}
