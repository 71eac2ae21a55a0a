// SPDX-License-Identifier: MIT OR Apache-2.0
//! A machine whose TLBs forget nothing until they are told to.
//!
//! Every translation that an overwritten descriptor granted stays cached until the right
//! invalidation. The fake stops the test when an order that the architecture or I3 asks for is not
//! kept: break-before-make, frames touched while somebody may still reach them, changes that were
//! not published.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::vec::Vec;

use crate::ports::{Broken, Fatal, Frames, TableMemory, Tlb};
use crate::pte::{self, Form, Leaf};
use crate::{Entry, Pfn, PfnRun, Vmid};

/// What a frame of the host's holds at first: anything but zero.
pub(crate) const HOST_DATA: u64 = 0x1057_da7a;
/// What a guest writes.
pub(crate) const SECRET: u64 = 0x005e_c2e7;

/// Memory by tables: all that was ever stored, and zero elsewhere. An interpreter finds a word in it with few steps.
#[derive(Clone, Debug, Default, Hash)]
pub(crate) struct Words(BTreeMap<Pfn, Vec<u64>>);

impl Words {
    fn word(&self, at: Entry) -> u64 {
        self.0.get(&at.table()).map_or(0, |table| table[usize::from(at.index())])
    }

    pub(crate) fn insert(&mut self, at: Entry, word: u64) {
        self.0.entry(at.table()).or_insert_with(|| std::vec![0; 512])[usize::from(at.index())] = word;
    }

    /// What is not zero, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Entry, u64)> {
        let of = |(table, words): (&Pfn, &Vec<u64>)| {
            let table = *table;
            (0..).zip(words.clone()).map(move |(index, word)| (Entry::of(table, index), word))
        };
        self.0.iter().flat_map(of).filter(|(_, word)| *word != 0)
    }
}

/// What a machine that has booted, and did nothing since, differs in from one that is new.
#[derive(Debug)]
pub(crate) struct Image {
    words: Words,
    contents: BTreeMap<Pfn, u64>,
    host_tables: Option<(u64, u64)>,
    host_root: Option<Pfn>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Fake {
    pub(crate) words: Words,
    /// Frames that the fake's owner declared as tables of somebody.
    tables: BTreeMap<Pfn, u8>,
    host_tables: Option<(u64, u64)>,
    /// Frames that somebody may still reach through a cached translation.
    pub(crate) cached: BTreeMap<u8, BTreeSet<Pfn>>,
    /// Frames that the tables of a VM which lives map, and the VM.
    mapped: BTreeSet<(Pfn, u8)>,
    /// Entries that were valid and are not, until their owner's invalidation.
    broken: BTreeMap<Entry, u64>,
    /// One word per frame stands for all of it.
    pub(crate) contents: BTreeMap<Pfn, u64>,
    pub(crate) lists: BTreeMap<Pfn, Vec<u64>>,
    pub(crate) dirty: bool,
    /// Tables with words that a walker may not see yet.
    unseen: BTreeSet<Pfn>,
    pub(crate) host_broadcasts: u64,
    pub(crate) vm_broadcasts: Vec<u8>,
    /// Set while a guest lends: only then may a frame be reachable from both sides.
    pub(crate) sharing: bool,
    pub(crate) cleaned: BTreeSet<Pfn>,
    /// Frames that were cleaned, without and with a later drop of fetched instructions. Only the latter
    /// may become a guest's page, and each once.
    unfetched: BTreeSet<Pfn>,
    pub(crate) executable: BTreeSet<Pfn>,
    pub(crate) fetch_broadcasts: u64,
    /// The same in order, for who has to look while the machine is at work.
    pub(crate) clean_log: Rc<RefCell<Vec<Pfn>>>,
    pub(crate) host_root: Option<Pfn>,
    pub(crate) reads: Cell<u64>,
}

impl Fake {
    pub(crate) fn image(self) -> Image {
        let Self { words, contents, host_tables, host_root, .. } = self;
        Image { words, contents, host_tables, host_root }
    }

    pub(crate) fn of_image(image: &Image) -> Self {
        let Image { words, contents, host_tables, host_root } = image;
        let (words, contents) = (words.clone(), contents.clone());
        Self { words, contents, host_tables: *host_tables, host_root: *host_root, ..Self::default() }
    }

    pub(crate) fn host_tables(&mut self, run: PfnRun) {
        self.host_tables = Some((run.start().raw(), run.end()));
    }

    /// Tells whose table a frame is; children follow when they are linked.
    pub(crate) fn adopt(&mut self, table: Pfn, vmid: Vmid) {
        self.tables.insert(table, vmid.raw());
    }

    pub(crate) fn content(&self, pfn: Pfn) -> u64 {
        self.contents.get(&pfn).copied().unwrap_or(HOST_DATA)
    }

    fn owner(&self, table: Pfn) -> Option<u8> {
        match self.host_tables {
            Some((from, to)) if (from..to).contains(&table.raw()) => Some(0),
            _ => self.tables.get(&table).copied(),
        }
    }

    /// Frames that a descriptor gives access to, tables below it included.
    fn grants(&self, descriptor: u64, page_level: bool) -> Vec<Pfn> {
        if page_level {
            return match pte::leaf(descriptor) {
                Leaf::Page(pfn) => [pfn].to_vec(),
                Leaf::Empty | Leaf::Poisoned | Leaf::Unknown => Vec::new(),
            };
        }
        match pte::form(descriptor) {
            Form::Block => {
                let first = (descriptor & 0xffff_ffff_f000) >> 12;
                (first..first + 512).filter_map(Pfn::new).collect()
            }
            Form::Table(table) => (0..512)
                .map(|index| self.word(Entry::of(table, index)))
                .filter_map(|word| match pte::leaf(word) {
                    Leaf::Page(pfn) => Some(pfn),
                    _ => None,
                })
                .collect(),
            _ => Vec::new(),
        }
    }

    pub(crate) fn word(&self, at: Entry) -> u64 {
        self.words.word(at)
    }

    /// Whether somebody's cached translations reach the frame.
    pub(crate) fn may_reach(&self, who: u8, pfn: Pfn) -> bool {
        self.cached.get(&who).is_some_and(|set| set.contains(&pfn))
    }

    /// Whether the host's tables map the frame, by a walk of the words themselves.
    pub(crate) fn host_reaches(&self, pfn: Pfn) -> bool {
        let Some(root) = self.host_root else { return true };
        let Form::Table(level2) = pte::form(self.word(Entry::of(root, pfn.raw() >> 18))) else { return true };
        match pte::form(self.word(Entry::of(level2, pfn.raw() >> 9))) {
            Form::Block => true,
            Form::Table(level3) => self.word(Entry::of(level3, pfn.raw())) & 1 != 0,
            _ => false,
        }
    }

    fn put(&mut self, at: Entry, word: u64) {
        if self.unseen.last() != Some(&at.table()) {
            self.unseen.insert(at.table());
        }
        self.words.insert(at, word);
        self.dirty = true;
    }

    fn wipe(&mut self, frame: Pfn) {
        self.words.0.remove(&frame);
        self.contents.insert(frame, 0);
    }

    fn forget(&mut self, who: u8) {
        self.cached.remove(&who);
        let mine: Vec<Entry> = self.broken.keys().copied().filter(|at| self.owner(at.table()) == Some(who)).collect();
        for at in mine {
            self.broken.remove(&at);
        }
        self.publish_tables();
    }
}

/// Level-3 tables are told apart by a descriptor that maps itself to a page; blocks lack bit 1.
fn is_page(descriptor: u64, is_leaf_table: bool) -> bool {
    descriptor & 3 == 3 && is_leaf_table
}

impl TableMemory for Fake {
    fn load(&self, at: Entry) -> u64 {
        self.word(at)
    }

    fn store(&mut self, at: Entry, new: u64) {
        let old = self.word(at);
        let owner = self.owner(at.table()).expect("a store outside every table");
        // A split fills 512 entries; an interpreter is not asked to judge each of them.
        if cfg!(miri) && owner == 0 && old & 1 == 0 {
            return self.put(at, new);
        }
        // A page descriptor carries the access flag (bit 10); a table descriptor of ours does not.
        let page_level = is_page(old, old & 1 << 10 != 0);
        let page = |word: u64| match pte::leaf(word) {
            Leaf::Page(pfn) if owner != 0 && word & 1 << 10 != 0 => Some((pfn, owner)),
            _ => None,
        };
        page(old).map(|gone| self.mapped.remove(&gone));
        self.mapped.extend(page(new));
        if old & 1 != 0 && old != new {
            assert!(new & 1 == 0, "break-before-make: {old:#x} became {new:#x} at {at:?}");
            // Nor does it remember each frame of a block that is split or joined.
            let gone = if cfg!(miri) && !page_level { Vec::new() } else { self.grants(old, page_level) };
            for pfn in gone {
                self.cached.entry(owner).or_default().insert(pfn);
            }
            self.broken.insert(at, old);
        }
        if new & 1 != 0 && old & 1 == 0 {
            if let Some(before) = self.broken.get(&at) {
                assert_eq!(*before, new, "made before the break was broadcast, at {at:?}");
            }
            let leaf = new & 1 << 10 != 0;
            if leaf && let Leaf::Page(pfn) = pte::leaf(new) {
                let was_ready = self.executable.remove(&pfn);
                self.unfetched.remove(&pfn);
                assert!(
                    owner == 0 || was_ready,
                    "{pfn:?} is mapped for {owner} while a CPU may hold old data or instructions of it"
                );
            }
            if leaf && new & 2 != 0 && !self.sharing {
                let Leaf::Page(pfn) = pte::leaf(new) else { panic!("not a page") };
                assert!(owner != 0 || self.content(pfn) != SECRET, "I4: {pfn:?} is mapped for the host with a secret");
                assert!(
                    owner == 0 || !self.host_reaches(pfn),
                    "I2: {pfn:?} is mapped for {owner} while the host reaches it"
                );
                for (who, set) in &self.cached {
                    assert!(
                        *who == owner || !set.contains(&pfn),
                        "I3: {pfn:?} is mapped for {owner} while {who} may still reach it"
                    );
                }
            }
            if !leaf && let Form::Table(child) = pte::form(new) {
                // At boot nobody walks the host's tables yet.
                let walked = owner != 0 || self.host_root.is_some();
                assert!(!walked || !self.unseen.contains(&child), "{child:?} is linked before its words can be seen");
                if owner != 0 {
                    self.tables.insert(child, owner);
                }
            }
        }
        self.put(at, new);
    }

    fn clear(&mut self, frame: Pfn) {
        assert!(!self.may_reach(0, frame), "I3: cleared while the host may reach it");
        assert!(self.host_root.is_none() || !self.host_reaches(frame), "cleared while the host reaches it");
        self.wipe(frame);
        self.tables.remove(&frame);
        self.unseen.insert(frame);
        self.dirty = true;
    }

    fn publish_tables(&mut self) {
        self.unseen.clear();
        self.dirty = false;
    }
}

impl Tlb for Fake {
    fn invalidate_host(&mut self) {
        self.host_broadcasts += 1;
        self.forget(0);
    }

    fn invalidate_vm(&mut self, vmid: Vmid) {
        assert_ne!(vmid, Vmid::HOST);
        self.vm_broadcasts.push(vmid.raw());
        // One that ends no entry is the VM's death: nobody walks its tables any more.
        if !self.broken.keys().any(|at| self.owner(at.table()) == Some(vmid.raw())) {
            self.mapped.retain(|(_, who)| *who != vmid.raw());
        }
        self.forget(vmid.raw());
    }
}

impl Frames for Fake {
    fn scrub(&mut self, frame: Pfn) {
        for (who, set) in &self.cached {
            assert!(
                !set.contains(&frame) || *who == 0 && self.sharing,
                "I3: {frame:?} scrubbed while {who} may still write to it"
            );
        }
        let guests = self.mapped.range((frame, 0)..=(frame, u8::MAX)).count();
        assert!(guests == 0, "I4: {frame:?} scrubbed while a guest may still write to it");
        self.wipe(frame);
        self.tables.remove(&frame);
        self.executable.remove(&frame);
        // It may go to a guest: the host's fetches are dropped by who gives it to one.
        self.cleaned.insert(frame);
        self.unfetched.insert(frame);
    }

    fn settle_for_guest(&mut self, frame: Pfn) {
        assert!(
            self.sharing || !(self.may_reach(0, frame) || self.host_root.is_some() && self.host_reaches(frame)),
            "settled while the host may still write to {frame:?}"
        );
        self.cleaned.insert(frame);
        self.unfetched.insert(frame);
        self.clean_log.borrow_mut().push(frame);
    }

    fn settle_instructions(&mut self) {
        self.fetch_broadcasts += 1;
        self.executable.append(&mut self.unfetched);
    }

    fn copy_words(&self, frame: Pfn, into: &mut [u64]) {
        self.reads.set(self.reads.get() + 1);
        let list = self.lists.get(&frame).map_or(&[][..], |list| list);
        for (index, word) in into.iter_mut().enumerate() {
            *word = list.get(index).copied().unwrap_or(0);
        }
    }
}

impl Fatal for Fake {
    fn fatal(&self, what: Broken) -> ! {
        panic!("fatal: {what:?}")
    }
}
