// SPDX-License-Identifier: MIT OR Apache-2.0
//! A small machine with three VM slots, and the checks that must hold after every call.

use std::collections::{BTreeMap, BTreeSet};
use std::format;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::string::String;
use std::sync::OnceLock;
use std::vec::Vec;

use super::fake::{Fake, HOST_DATA, Image};
use crate::pte::{self, Form, Leaf};
use crate::verbs::{
    el2_return_host, el2_revoke_guest, guest_relinquish, guest_share_host, guest_unshare_host, host_donate_el2,
    host_donate_guest, host_reclaim, host_share_guest, host_unshare_guest,
};
use crate::{
    Access, Attributes, Claim, Entry, Gfn, GfnRun, Guest, Host, Kind, Life, Lot, MemoryMap, Pfn, PfnRun, Refused,
    State, VmSlot,
};

/// First frame of RAM.
pub(crate) const RAM: u64 = 0x4_0000;
/// Frames of the first bank: eight blocks.
pub(crate) const RAM_FRAMES: u64 = 8 * 512;
/// The carve-out: the last block of the first bank.
pub(crate) const CARVE_OUT: u64 = RAM + 7 * 512;
/// A `no-map` run inside RAM.
pub(crate) const NO_MAP: u64 = RAM + 6 * 512;
pub(crate) const NO_MAP_FRAMES: u64 = 4;
/// A second bank, that starts and ends inside blocks.
pub(crate) const RAM2: u64 = 0x6_0000 + 100;
pub(crate) const RAM2_FRAMES: u64 = 600;
/// A device, a hole in a device, and beyond the address space.
pub(crate) const DEVICE: u64 = 0x9000;
pub(crate) const HOLE: u64 = 0x8010;
pub(crate) const HOLE_FRAMES: u64 = 16;
pub(crate) const IPA_BITS: u32 = 32;
pub(crate) const BEYOND: u64 = 1 << 20;
/// Where guests have their RAM.
pub(crate) const GUEST_RAM: u64 = 0x8_0000;
pub(crate) const GUEST_RAM_FRAMES: u64 = 4096;

pub(crate) struct Rig {
    pub(crate) host: Host<'static>,
    pub(crate) guests: Vec<Guest>,
    pub(crate) m: Fake,
}

pub(crate) fn pfn(raw: u64) -> Pfn {
    Pfn::new(raw).unwrap()
}

pub(crate) fn gfn(raw: u64) -> Gfn {
    Gfn::new(raw).unwrap()
}

pub(crate) fn run(from: u64, count: u64) -> PfnRun {
    PfnRun::decode(from, count).unwrap()
}

pub(crate) fn map() -> MemoryMap {
    map_of(IPA_BITS)
}

fn map_of(ipa_bits: u32) -> MemoryMap {
    let mut map = MemoryMap::new(ipa_bits).unwrap();
    map.add_bank(run(RAM2, RAM2_FRAMES)).unwrap();
    map.add_bank(run(RAM, RAM_FRAMES)).unwrap();
    map.add_hole(run(HOLE, HOLE_FRAMES)).unwrap();
    map
}

impl Rig {
    /// A machine that has booted, which takes long under an interpreter: once for all.
    pub(crate) fn new() -> Self {
        static BOOTED: OnceLock<(Host<'static>, Image)> = OnceLock::new();
        let (host, image) = BOOTED.get_or_init(|| {
            let Self { host, m, .. } = Self::of(IPA_BITS);
            (host, m.image())
        });
        Self::on(host.twin(), Fake::of_image(image))
    }

    /// Boots, with more physical address bits than its memory needs if so asked: one carve-out holds the tables; the
    /// ledger's words stand outside the fake.
    pub(crate) fn of(ipa_bits: u32) -> Self {
        let mut map = map_of(ipa_bits);
        map.add_carve_out(run(CARVE_OUT, 512)).unwrap();
        let needs = map.needs();
        let storage = std::vec![0; usize::try_from(needs.words).unwrap()].leak();
        let mut m = Fake::default();
        m.host_tables(run(CARVE_OUT, needs.table_frames));
        let mut host = Host::build(map, pfn(CARVE_OUT), storage, Attributes::Combined, &mut m).unwrap();
        host.mark_no_map(run(NO_MAP, NO_MAP_FRAMES), &m);
        m.host_root = Some(host.root());
        Self::on(host, m)
    }

    fn on(host: Host<'static>, m: Fake) -> Self {
        let guests = (0..3).map(|slot| Guest::new(VmSlot::new(slot).unwrap())).collect();
        let rig = Self { host, guests, m };
        rig.check();
        rig
    }

    /// A VM in `slot`, its pool made of `pool` frames from `from` on, with RAM, not started.
    pub(crate) fn with_vm(&mut self, slot: usize, kind: Kind, from: u64, pool: u64) {
        self.birth(slot, from, pool, kind, 32).unwrap();
        let ram = GfnRun::decode(GUEST_RAM, GUEST_RAM_FRAMES).unwrap();
        self.guests[slot].declare_ram(Claim::new(ram)).unwrap();
    }

    pub(crate) fn start(&mut self, slot: usize) {
        self.guests[slot].start().unwrap();
    }

    pub(crate) fn birth(&mut self, slot: usize, from: u64, count: u64, kind: Kind, bits: u32) -> Result<u32, Refused> {
        let before = self.picture();
        let run = PfnRun::decode(from, count)?;
        let checked = host_donate_el2::check_birth(&mut self.host, &mut self.guests[slot], Claim::new(run), kind, bits);
        let done = checked.map(|checked| checked.commit(&mut self.m));
        if done.is_ok() {
            let (root, bits) = self.guests[slot].root().unwrap();
            for frame in 0..1_u64 << bits.saturating_sub(39) {
                self.m.adopt(root.add(frame).unwrap(), self.guests[slot].vmid());
            }
        }
        self.judge(before, done)
    }

    pub(crate) fn top_up(&mut self, slot: usize, from: u64, count: u64) -> Result<u32, Refused> {
        let before = self.picture();
        let done = PfnRun::decode(from, count).and_then(|run| {
            let checked = host_donate_el2::check(&mut self.host, &mut self.guests[slot], Claim::new(run))?;
            Ok(checked.commit(&mut self.m))
        });
        self.judge(before, done)
    }

    pub(crate) fn donate(&mut self, slot: usize, from: u64, at: u64, count: u64) -> Result<u64, Refused> {
        self.donate_with(slot, from, at, count, false, &mut || false)
    }

    pub(crate) fn donate_with(
        &mut self,
        slot: usize,
        from: u64,
        at: u64,
        count: u64,
        revocable: bool,
        pause: &mut impl FnMut() -> bool,
    ) -> Result<u64, Refused> {
        let before = self.picture();
        let done = Lot::decode(from, at, count).and_then(|lot| {
            let guest = &mut self.guests[slot];
            let checked = host_donate_guest::check(&mut self.host, guest, Claim::new(lot), revocable, &self.m)?;
            Ok(checked.commit(&mut self.m, pause, &mut |_, _| {}))
        });
        self.judge(before, done)
    }

    /// Donates the records of a list that lies in the frame `page`.
    pub(crate) fn donate_list(
        &mut self,
        slot: usize,
        page: u64,
        records: &[(u64, u64, u64)],
        count: u64,
    ) -> Result<u64, Refused> {
        let words = records.iter().flat_map(|(pfn, gfn, count)| [*pfn, gfn | count.wrapping_sub(1) << 52]).collect();
        self.m.lists.insert(pfn(page), words);
        let before = self.picture();
        let guest = &mut self.guests[slot];
        let checked =
            host_donate_guest::check_list(&mut self.host, guest, Claim::new(pfn(page)), count, false, &self.m);
        let done = checked.map(|checked| checked.commit(&mut self.m, &mut || false, &mut |_, _| {}));
        self.judge(before, done)
    }

    pub(crate) fn lend(&mut self, slot: usize, from: u64, at: u64, count: u64, write: bool) -> Result<u64, Refused> {
        let before = self.picture();
        self.m.sharing = true;
        let done = Lot::decode(from, at, count).and_then(|lot| {
            let access = Access { write, execute: false };
            let guest = &mut self.guests[slot];
            let checked = host_share_guest::check(&mut self.host, guest, Claim::new(lot), access, &self.m)?;
            Ok(checked.commit(&mut self.m, &mut || false))
        });
        self.m.sharing = false;
        self.judge(before, done)
    }

    pub(crate) fn unlend(&mut self, slot: usize, at: u64, count: u64) -> Result<u64, Refused> {
        let before = self.picture();
        let done = GfnRun::decode(at, count).and_then(|run| {
            let guest = &mut self.guests[slot];
            let checked = host_unshare_guest::check(&mut self.host, guest, Claim::new(run), &self.m)?;
            Ok(checked.commit(&mut self.m))
        });
        self.judge(before, done)
    }

    pub(crate) fn share(&mut self, slot: usize, at: u64, count: u64) -> Result<u64, Refused> {
        let before = self.picture();
        self.m.sharing = true;
        let done = GfnRun::decode(at, count).and_then(|run| {
            let guest = &mut self.guests[slot];
            let checked = guest_share_host::check(&mut self.host, guest, Claim::new(run), &self.m)?;
            Ok(checked.commit(&mut self.m))
        });
        self.m.sharing = false;
        self.judge(before, done)
    }

    pub(crate) fn unshare(&mut self, slot: usize, at: u64, count: u64) -> Result<u64, Refused> {
        let before = self.picture();
        let done = GfnRun::decode(at, count).and_then(|run| {
            let guest = &mut self.guests[slot];
            let checked = guest_unshare_host::check(&mut self.host, guest, Claim::new(run), &self.m)?;
            Ok(checked.commit(&mut self.m))
        });
        self.judge(before, done)
    }

    pub(crate) fn relinquish(&mut self, slot: usize, at: u64, count: u64) -> Result<u64, Refused> {
        let before = self.picture();
        let done = GfnRun::decode(at, count).and_then(|run| {
            let guest = &mut self.guests[slot];
            let checked = guest_relinquish::check(&mut self.host, guest, Claim::new(run), &self.m)?;
            Ok(checked.commit(&mut self.m))
        });
        self.judge(before, done)
    }

    pub(crate) fn revoke(&mut self, slot: usize, frame: u64) -> Result<(), Refused> {
        let before = self.picture();
        let guest = &mut self.guests[slot];
        let checked = el2_revoke_guest::check(&mut self.host, guest, Claim::new(pfn(frame)));
        let done = checked.map(|checked| checked.commit(&mut self.m));
        self.judge(before, done)
    }

    pub(crate) fn die(&mut self, slot: usize) {
        self.guests[slot].begin_death(&mut self.m).unwrap();
        self.check();
    }

    pub(crate) fn reclaim(&mut self, slot: usize, from: u64, count: u64) -> Result<u64, Refused> {
        self.reclaim_with(slot, from, count, &mut || false)
    }

    pub(crate) fn reclaim_with(
        &mut self,
        slot: usize,
        from: u64,
        count: u64,
        pause: &mut impl FnMut() -> bool,
    ) -> Result<u64, Refused> {
        let before = self.picture();
        let done = PfnRun::decode(from, count).and_then(|run| {
            let checked = host_reclaim::check(&mut self.host, &mut self.guests[slot], Claim::new(run))?;
            Ok(checked.commit(&mut self.m, pause))
        });
        self.judge(before, done)
    }

    pub(crate) fn return_pool(&mut self, slot: usize, from: u64, count: u64) -> Result<(u64, bool), Refused> {
        self.return_pool_with(slot, from, count, &mut || false)
    }

    pub(crate) fn return_pool_with(
        &mut self,
        slot: usize,
        from: u64,
        count: u64,
        pause: &mut impl FnMut() -> bool,
    ) -> Result<(u64, bool), Refused> {
        let before = self.picture();
        let done = PfnRun::decode(from, count).and_then(|run| {
            let checked = el2_return_host::check(&mut self.host, &mut self.guests[slot], Claim::new(run))?;
            let returned = checked.commit(&mut self.m, pause);
            Ok((returned.done, returned.freed))
        });
        self.judge(before, done)
    }

    /// A refusal must have left everything as it was; a success must leave a world in order.
    fn judge<T>(&self, before: u64, done: Result<T, Refused>) -> Result<T, Refused> {
        if done.is_err() {
            assert_eq!(before, self.picture(), "I6: a refused call changed something");
        } else {
            self.check();
        }
        done
    }

    pub(crate) fn state(&self, frame: u64) -> Option<State> {
        self.host.ledger.state(pfn(frame))
    }

    pub(crate) fn ram(&self) -> impl Iterator<Item = Pfn> + use<> {
        run(RAM, RAM_FRAMES).frames().chain(run(RAM2, RAM2_FRAMES).frames())
    }

    /// A digest of all state: records, tables, TLBs, contents, VMs, counters. None under an interpreter, see
    /// [`Self::check`].
    pub(crate) fn picture(&self) -> u64 {
        if cfg!(miri) {
            return 0;
        }
        let mut digest = DefaultHasher::new();
        for frame in self.ram() {
            self.host.ledger.state(frame).unwrap().encode().hash(&mut digest);
        }
        (&self.m.words, &self.m.cached, &self.m.contents, &self.m.cleaned).hash(&mut digest);
        (self.m.host_broadcasts, &self.m.vm_broadcasts, self.m.fetch_broadcasts).hash(&mut digest);
        format!("{:?} {:?}", self.guests, self.host.space).hash(&mut digest);
        digest.finish()
    }

    /// What the host sees of its memory: records, tables and counters, but no history.
    pub(crate) fn rest(&self) -> String {
        let records: Vec<u64> = self.ram().map(|pfn| self.host.ledger.state(pfn).unwrap().encode()).collect();
        let table = |word| if let Form::Table(table) = pte::form(word) { Some(table) } else { None };
        let linked: BTreeSet<Pfn> = self.m.words.iter().filter_map(|(_, word)| table(word)).collect();
        // A level-3 table of the reserve that no block uses keeps old words, which nobody reads.
        let level3 = self.host.space.level3.raw();
        let reserve = level3..level3 + self.host.space.spans.count();
        let is_live = |at: Entry| linked.contains(&at.table()) || !reserve.contains(&at.table().raw());
        let live: Vec<_> = self.m.words.iter().filter(|(at, _)| is_live(*at)).collect();
        let tally = self.host.counters();
        format!("{records:x?} {live:x?} {:?} {:?}", self.guests, (tally.blocks, tally.tables, tally.foreign))
    }

    /// The descriptor that stands at a guest frame.
    pub(crate) fn descriptor(&self, slot: usize, at: u64) -> u64 {
        let (root, _) = self.guests[slot].root().unwrap();
        let Form::Table(level2) = pte::form(self.m.word(Entry::of(root, at >> 18))) else { return 0 };
        let Form::Table(level3) = pte::form(self.m.word(Entry::of(level2, at >> 9))) else { return 0 };
        self.m.word(Entry::of(level3, at))
    }

    /// Every leaf of a VM's tables.
    pub(crate) fn leaves(&self, slot: usize) -> Vec<(u64, Leaf)> {
        let Some((root, _)) = self.guests[slot].root() else { return Vec::new() };
        let mut found = Vec::new();
        for giant in 0..4 {
            let Form::Table(level2) = pte::form(self.m.word(Entry::of(root, giant))) else { continue };
            for block in 0..512 {
                let Form::Table(level3) = pte::form(self.m.word(Entry::of(level2, block))) else { continue };
                for page in 0..512 {
                    let leaf = pte::leaf(self.m.word(Entry::of(level3, page)));
                    if leaf != Leaf::Empty {
                        found.push((giant << 18 | block << 9 | page, leaf));
                    }
                }
            }
        }
        found
    }

    /// I1, I2 and I3 over the whole machine, and that every count agrees with what it counts. Not under an interpreter,
    /// which is asked about the verbs and not about this walk over each frame behind each of them.
    pub(crate) fn check(&self) {
        if cfg!(miri) {
            return;
        }
        assert!(!self.m.dirty, "tables changed and nobody published it");
        let mut borrowed: BTreeMap<Pfn, u32> = BTreeMap::new();
        let mut reached: BTreeMap<Pfn, (u8, u64)> = BTreeMap::new();
        for (slot, guest) in self.guests.iter().enumerate() {
            for (at, leaf) in self.leaves(slot) {
                let Leaf::Page(frame) = leaf else { continue };
                if guest.kind() == Some(Kind::Ordinary) {
                    *borrowed.entry(frame).or_default() += 1;
                } else {
                    assert!(reached.insert(frame, (guest.vm().raw(), at)).is_none(), "I1: {frame:?} mapped twice");
                }
            }
        }
        let (mut owned, mut pooled) = ([0_u64; 3], [0_u32; 3]);
        let (mut gone, mut lost) = (BTreeMap::<u64, u64>::new(), 0);
        for frame in self.ram() {
            let state = self.host.ledger.state(frame).unwrap();
            let hosts = matches!(state, State::Host | State::Lent(_) | State::Shared { .. } | State::NoMap);
            assert_eq!(self.m.host_reaches(frame), hosts, "I2: {frame:?} is {state:?}");
            assert!(hosts || !self.m.may_reach(0, frame), "I3: the host may still reach {frame:?}, {state:?}");
            if !hosts && state != State::El2 {
                *gone.entry(frame.raw() >> 9).or_default() += 1;
                lost += 1;
            }
            match state {
                State::Private { vm, gfn, .. } | State::Shared { vm, gfn, .. } => {
                    let slot = usize::from(vm.raw());
                    owned[slot] += 1;
                    if self.guests[slot].life() != Life::Dying {
                        assert_eq!(reached.remove(&frame), Some((vm.raw(), gfn.raw())), "I1: ledger and tables");
                    }
                }
                State::Pool { vm, .. } => pooled[usize::from(vm.raw())] += 1,
                State::Lent(times) => {
                    let seen = borrowed.remove(&frame).unwrap_or(0);
                    let dying = self.guests.iter().any(|guest| guest.life() == Life::Dying);
                    assert!(seen == times || dying && seen < times, "I2: {frame:?} lent {times}, borrowed {seen}");
                }
                State::NoMap | State::Host | State::El2 => {}
            }
            for (who, set) in &self.m.cached {
                if *who != 0 && set.contains(&frame) {
                    let mine = matches!(state, State::Private { vm, .. } | State::Shared { vm, .. } if vm.vmid().raw() == *who);
                    assert!(mine, "I3: VM {who} may still reach {frame:?}, {state:?}");
                }
            }
        }
        assert!(reached.is_empty() && borrowed.is_empty(), "I2: mapped without a record");
        for (slot, guest) in self.guests.iter().enumerate() {
            assert_eq!(guest.frames().0, owned[slot], "frames of slot {slot}");
            assert_eq!(guest.body.as_ref().map_or(0, |body| body.pool.total()), pooled[slot], "pool of slot {slot}");
        }
        let counters = self.host.counters();
        assert_eq!(counters.foreign, lost);
        let (mut tables, mut blocks) = (0, 0);
        for index in (RAM >> 9)..(RAM2 + RAM2_FRAMES).div_ceil(512) {
            let first = pfn(index << 9);
            if self.host.space.spans.index(index).is_none() {
                continue;
            }
            let Form::Table(level2) = pte::form(self.m.word(Entry::of(self.host.root(), first.raw() >> 18))) else {
                panic!("RAM without a level-2 table");
            };
            match pte::form(self.m.word(Entry::of(level2, index))) {
                Form::Block => {
                    blocks += 1;
                    assert!(!gone.contains_key(&index), "a block maps a foreign frame");
                }
                Form::Table(_) => {
                    tables += 1;
                    assert!(gone.contains_key(&index) || index >= RAM2 >> 9, "block {index:#x} was not rejoined");
                }
                Form::Empty => assert_eq!(index, CARVE_OUT >> 9),
                other => panic!("left broken: {other:?}"),
            }
        }
        // The block of devices with the hole has a table too, which does not count.
        assert_eq!((counters.blocks, counters.tables), (blocks, tables));
    }

    /// Frames of the host's that hold neither zeros nor what it had: something leaked.
    pub(crate) fn leaks(&self) -> Vec<Pfn> {
        self.ram()
            .filter(|frame| self.state(frame.raw()) == Some(State::Host))
            .filter(|frame| ![0, HOST_DATA].contains(&self.m.content(*frame)))
            .collect()
    }
}
