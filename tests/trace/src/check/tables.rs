// SPDX-License-Identifier: MIT OR Apache-2.0
//! The tables as walkers see them, and what TLBs may still hold of what they were.

use super::frames::Frames;
use super::{Findings, Rule};
use crate::record::{Barrier, HOST, Owner};
use std::collections::{BTreeMap, HashMap};

/// A table and an index.
type Entry = (u64, u16);
/// A table's words, as far as they were seen.
type Words = Box<[Option<u64>; 512]>;

const VALID: u64 = 1;
const TABLE_OR_PAGE: u64 = 2;
const OUTPUT: u64 = 0x0000_ffff_ffff_f000;

/// How far an invalidation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The descriptor was overwritten by this CPU.
    Written(u8),
    /// Walkers see that.
    Visible,
    /// TLBs were told by this CPU, which has not waited yet.
    Told(u8),
}

/// What a descriptor gave before it was overwritten: frames, or the table below it.
#[derive(Clone, Copy, Debug)]
struct Stale {
    vmid: u8,
    entry: Entry,
    first: u64,
    frames: u64,
    stage: Stage,
}

#[derive(Clone, Copy, Debug)]
struct Home {
    vmid: u8,
    level: u8,
}

#[derive(Debug, Default)]
struct Space {
    root: Option<u64>,
    /// How many leaves map a frame, by the number of frames that a leaf maps.
    leaves: BTreeMap<u64, HashMap<u64, u32>>,
    /// A CPU had the root since the last invalidation ended.
    cached: bool,
    /// TLBs were told to forget all of it by this CPU, which has not waited yet.
    told: Option<u8>,
}

#[derive(Debug, Default)]
pub(super) struct Tables {
    words: HashMap<u64, Words>,
    homes: HashMap<u64, Home>,
    spaces: BTreeMap<u8, Space>,
    stale: Vec<Stale>,
    /// Tables with words that walkers may not see yet, and who wrote them.
    unpublished: HashMap<u64, u8>,
    loaded: BTreeMap<u8, u8>,
}

fn size_of(level: u8) -> u64 {
    1 << (9 * (3 - level))
}

fn is_table(level: u8, word: u64) -> bool {
    word & (VALID | TABLE_OR_PAGE) == (VALID | TABLE_OR_PAGE) && level < 3
}

fn output(word: u64) -> u64 {
    (word & OUTPUT) >> 12
}

impl Tables {
    /// Whose walkers use a table.
    pub(super) fn owner(&self, table: u64) -> Option<u8> {
        self.homes.get(&table).map(|home| home.vmid)
    }

    /// Who has translations.
    pub(super) fn known(&self) -> Vec<u8> {
        let mut all: Vec<u8> = self.spaces.keys().copied().collect();
        all.extend(self.stale.iter().map(|stale| stale.vmid));
        all.sort_unstable();
        all.dedup();
        all
    }

    fn reaches(&self, vmid: u8, frame: u64) -> bool {
        let leaves = self.spaces.get(&vmid).map(|space| &space.leaves);
        leaves.is_some_and(|leaves| leaves.iter().any(|(size, set)| set.contains_key(&(frame & !(size - 1)))))
    }

    fn is_stale(&self, vmid: u8, first: u64, frames: u64) -> bool {
        self.stale.iter().any(|s| s.vmid == vmid && s.first < first + frames && first < s.first + s.frames)
    }

    /// Whether a translation of `vmid`, walked or cached, leads to the frame.
    pub(super) fn may_reach(&self, vmid: u8, frame: u64) -> bool {
        self.reaches(vmid, frame) || self.is_stale(vmid, frame, 1)
    }

    /// Whether this CPU has the host's tables in force.
    pub(super) fn has_host(&self, cpu: u8) -> bool {
        self.loaded.get(&cpu).is_none_or(|loaded| *loaded == HOST)
    }

    pub(super) fn root(&mut self, vmid: u8, table: u64, count: u16, frames: &mut Frames, out: &mut Findings) {
        let fresh = self.spaces.get(&vmid).is_none_or(|space| space.root.is_none());
        out.decide(Rule::Root, fresh, || format!("VMID {vmid} gets a second root"));
        self.spaces.entry(vmid).or_default().root = Some(table);
        for table in (table..).take(count.into()) {
            self.adopt(vmid, 1, table, frames, out);
        }
    }

    pub(super) fn unroot(&mut self, vmid: u8, frames: &mut Frames, out: &mut Findings) {
        let gone = self.spaces.get(&vmid).is_some_and(|space| !space.cached);
        let used = self.loaded.values().any(|loaded| *loaded == vmid);
        out.decide(Rule::Root, gone && !used, || format!("VMID {vmid}'s tables go while a CPU or a TLB knows them"));
        let space = self.spaces.remove(&vmid).unwrap_or_default();
        for (size, leaves) in space.leaves {
            for first in leaves.keys() {
                (*first..first + size).for_each(|frame| frames.guest_lost(out.sequence, frame));
            }
        }
        self.homes.retain(|_, home| home.vmid != vmid);
        frames.vm_ended(out.sequence, vmid);
    }

    pub(super) fn load(&mut self, cpu: u8, vmid: u8, table: u64, out: &mut Findings) {
        let space = self.spaces.entry(vmid).or_default();
        let root = space.root;
        out.decide(Rule::Root, root == Some(table), || format!("root {table:#x} for VMID {vmid}, which has {root:x?}"));
        (space.cached, space.told) = (true, None);
        self.loaded.insert(cpu, vmid);
    }

    pub(super) fn store(&mut self, cpu: u8, at: Entry, old: u64, new: u64, frames: &mut Frames, out: &mut Findings) {
        let (table, index) = at;
        let words = self.words.entry(table).or_insert_with(|| Box::new([None; 512]));
        let Some(word) = words.get_mut(usize::from(index)) else {
            return out.decide(Rule::Trace, false, || format!("index {index}"));
        };
        // A word that the trace has not seen before is taken as it is found.
        let there = word.replace(new).unwrap_or(old);
        out.decide(Rule::Trace, there == old, || format!("{old:#x} stood in {at:x?}, where {there:#x} was written"));
        if old != new {
            self.unpublished.insert(table, cpu);
        }
        let Some(Home { vmid, level }) = self.homes.get(&table).copied() else {
            let left = !self.stale.iter().any(|s| s.first <= table && table < s.first + s.frames);
            return out
                .decide(Rule::TableReuse, left, || format!("table {table:#x} is written before walkers left it"));
        };
        if there == new {
            return;
        }
        if there & VALID != 0 {
            out.decide(Rule::BreakBeforeMake, new & VALID == 0, || {
                format!("{there:#x} becomes {new:#x} in {at:x?} at level {level} of VMID {vmid}")
            });
            self.detach(cpu, vmid, level, at, there, frames, out);
        }
        if new & VALID != 0 {
            let settled = !self.stale.iter().any(|stale| stale.entry == at);
            out.decide(Rule::BreakBeforeMake, settled, || {
                format!("{new:#x} in {at:x?} of VMID {vmid} before what stood there was invalidated")
            });
            self.attach(vmid, level, new, frames, out);
        }
    }

    /// A descriptor gives nothing any more, but what it gave is remembered until TLBs forgot it.
    #[expect(clippy::too_many_arguments, reason = "they are one descriptor and where it stood")]
    fn detach(
        &mut self,
        cpu: u8,
        vmid: u8,
        level: u8,
        entry: Entry,
        word: u64,
        frames: &mut Frames,
        out: &mut Findings,
    ) {
        let first = output(word);
        let stale = |first, frames| Stale { vmid, entry, first, frames, stage: Stage::Written(cpu) };
        if is_table(level, word) {
            self.stale.push(stale(first, 1));
            self.homes.remove(&first);
            for (index, word) in self.valid_words(first) {
                self.detach(cpu, vmid, level + 1, (first, index), word, frames, out);
            }
            return;
        }
        let size = size_of(level);
        self.stale.push(stale(first, size));
        let leaves = self.spaces.entry(vmid).or_default().leaves.entry(size).or_default();
        if let Some(count) = leaves.get_mut(&first) {
            *count -= 1;
            if *count == 0 {
                leaves.remove(&first);
            }
        }
        if vmid != HOST {
            (first..first + size).for_each(|frame| frames.guest_lost(out.sequence, frame));
        }
    }

    fn attach(&mut self, vmid: u8, level: u8, word: u64, frames: &mut Frames, out: &mut Findings) {
        let first = output(word);
        if is_table(level, word) {
            return self.adopt(vmid, level + 1, first, frames, out);
        }
        let size = size_of(level);
        let others: Vec<u8> = self.known().into_iter().filter(|other| *other != vmid).collect();
        for other in others {
            let left = !self.is_stale(other, first, size);
            out.decide(Rule::InvalidateBeforeReuse, left, || {
                format!("{first:#x} goes to VMID {vmid} while TLBs may hold it for VMID {other}")
            });
        }
        if vmid == HOST {
            frames.host_reaches(out.sequence, first..first + size);
        } else {
            for frame in first..first + size {
                let host = self.reaches(HOST, frame);
                frames.guest_reaches(frame, host, out);
            }
        }
        let leaves = self.spaces.entry(vmid).or_default().leaves.entry(size).or_default();
        *leaves.entry(first).or_default() += 1;
    }

    /// Walkers come to a table from here on.
    fn adopt(&mut self, vmid: u8, level: u8, table: u64, frames: &mut Frames, out: &mut Findings) {
        let published = !self.unpublished.contains_key(&table);
        out.decide(Rule::PublishBeforeLink, published, || format!("table {table:#x} is linked before walkers see it"));
        let reached = self.known().into_iter().find(|vmid| self.may_reach(*vmid, table));
        let linked = self.homes.contains_key(&table);
        out.decide(Rule::TableReuse, reached.is_none() && !linked, || {
            format!("table {table:#x} of VMID {vmid}: reached by {reached:?}, linked already: {linked}")
        });
        let whole = self.words.get(&table).is_some_and(|words| words.iter().all(Option::is_some));
        out.decide(Rule::TableReuse, whole, || format!("table {table:#x} was neither zeroed nor written"));
        self.homes.insert(table, Home { vmid, level });
        for (_, word) in self.valid_words(table) {
            self.attach(vmid, level, word, frames, out);
        }
    }

    fn valid_words(&self, table: u64) -> Vec<(u16, u64)> {
        let words = self.words.get(&table).into_iter().flat_map(|words| (0..).zip(words.iter()));
        words.filter_map(|(index, word)| Some((index, (*word)?))).filter(|(_, word)| word & VALID != 0).collect()
    }

    pub(super) fn zero(&mut self, cpu: u8, frame: u64, owner: Option<Owner>, out: &mut Findings) {
        let mine = !self.homes.contains_key(&frame);
        out.decide(Rule::TableReuse, mine, || format!("frame {frame:#x} is zeroed while it is a table"));
        for vmid in self.known() {
            // What a dying guest had lent is the host's next, and the host reaches it all the time.
            let lent = vmid == HOST && owner == Some(Owner::Shared);
            let left = lent || !self.may_reach(vmid, frame);
            out.decide(Rule::InvalidateBeforeReuse, left, || {
                format!("frame {frame:#x} is zeroed while VMID {vmid} may write to it")
            });
        }
        self.words.insert(frame, Box::new([Some(0); 512]));
        self.unpublished.insert(frame, cpu);
    }

    pub(super) fn barrier(&mut self, cpu: u8, barrier: Barrier) {
        if barrier == Barrier::InEffect {
            return;
        }
        self.unpublished.retain(|_, by| *by != cpu);
        let waits = barrier != Barrier::StoresVisible;
        self.stale.retain_mut(|stale| match stale.stage {
            Stage::Written(by) if by == cpu => {
                stale.stage = Stage::Visible;
                true
            }
            Stage::Told(by) => !(waits && by == cpu),
            Stage::Written(_) | Stage::Visible => true,
        });
        for (vmid, space) in self.spaces.iter_mut().filter(|(_, space)| waits && space.told == Some(cpu)) {
            space.cached = self.loaded.values().any(|loaded| loaded == vmid);
            space.told = None;
        }
    }

    pub(super) fn invalidate(&mut self, cpu: u8, vmid: u8) {
        for stale in self.stale.iter_mut().filter(|stale| stale.vmid == vmid && stale.stage == Stage::Visible) {
            stale.stage = Stage::Told(cpu);
        }
        if let Some(space) = self.spaces.get_mut(&vmid) {
            space.told = Some(cpu);
        }
    }

    /// What a CPU owes when it lets go of a lock, or of EL2.
    pub(super) fn nothing_owed(&self, cpu: u8, lock: Option<u8>, out: &mut Findings) {
        // What no walker comes to yet may be no table at all: a vCPU's registers are zeroed in the same way.
        let mut hidden = self.unpublished.iter().filter(|(table, by)| **by == cpu && self.homes.contains_key(table));
        let hidden = hidden.next();
        out.decide(Rule::Debt, hidden.is_none(), || format!("words of {hidden:x?} are not visible to walkers yet"));
        let owed = self.stale.iter().find(|stale| lock.is_none_or(|lock| stale.vmid == lock));
        let owed = owed
            .filter(|stale| lock.is_some() || matches!(stale.stage, Stage::Written(by) | Stage::Told(by) if by == cpu));
        out.decide(Rule::Debt, owed.is_none(), || format!("not invalidated to the end: {owed:x?}"));
    }
}
