// SPDX-License-Identifier: MIT OR Apache-2.0
//! The real verbs of `el2/mem` over real tables, traced and judged: random lives of three VMs of three kinds.
//!
//! What a machine forgets to do, or does in another order, is planted in the same walk, and must be found.

use freehold_mem::ports::{Broken, Fatal, Frames, TableMemory, Tlb};
use freehold_mem::verbs::{
    el2_return_host, el2_revoke_guest, guest_relinquish, guest_share_host, guest_unshare_host, host_donate_el2,
    host_donate_guest, host_reclaim, host_share_guest, host_unshare_guest,
};
use freehold_mem::{
    Access, Attributes, Claim, Entry, GfnRun, Guest, Host, Kind, Lot, MemoryMap, Pfn, PfnRun, State, VmSlot, Vmid,
};
use freehold_trace::check::{Checker, RULES, Report, Rule};
use freehold_trace::record::{Barrier, Event, Record};
use freehold_trace::traced::{Loan, Sink, Traced, owner};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};

const RAM: u64 = 0x4_0000;
const BLOCKS: u64 = 4;
const CARVE_OUT: u64 = RAM + (BLOCKS - 1) * 512;
/// Frames that take part: three blocks, a few frames around their borders.
const PLAY: [u64; 3] = [RAM, RAM + 500, RAM + 1000];
const PLAY_FRAMES: u64 = 48;
const GUEST_RAM: u64 = 0x8_0000;
const GUEST_FRAMES: u64 = 1024;
/// Guest frames that take part: on both sides of a border between two tables.
const AT: [u64; 2] = [GUEST_RAM, GUEST_RAM + 500];
const AT_FRAMES: u64 = 24;

/// Words of tables; contents of frames do not matter here.
#[derive(Clone, Default)]
struct Memory(HashMap<Entry, u64>);

impl TableMemory for Memory {
    fn load(&self, at: Entry) -> u64 {
        self.0.get(&at).copied().unwrap_or(0)
    }
    fn store(&mut self, at: Entry, descriptor: u64) {
        self.0.insert(at, descriptor);
    }
    fn clear(&mut self, frame: Pfn) {
        self.0.retain(|at, _| at.table() != frame);
    }
    fn publish_tables(&mut self) {}
}

impl Tlb for Memory {
    fn invalidate_host(&mut self) {}
    fn invalidate_vm(&mut self, _: Vmid) {}
}

impl Frames for Memory {
    fn scrub(&mut self, frame: Pfn) {
        self.clear(frame);
    }
    fn settle_for_guest(&mut self, _: Pfn) {}
    fn settle_instructions(&mut self) {}
    fn copy_words(&self, _: Pfn, into: &mut [u64]) {
        into.fill(0);
    }
}

impl Fatal for Memory {
    fn fatal(&self, what: Broken) -> ! {
        panic!("{what:?}")
    }
}

/// What a machine does wrong: it leaves out each event that this picks.
type Fault = fn(&Event) -> bool;

/// Judges as it goes.
struct Log {
    judge: RefCell<(u64, Checker)>,
    fault: Fault,
}

impl Sink for Log {
    fn note(&self, event: Event) {
        if (self.fault)(&event) {
            return;
        }
        let (sequence, checker) = &mut *self.judge.borrow_mut();
        *sequence += 1;
        // Through the words, as a machine's memory holds them.
        checker.words(Record { sequence: *sequence, cpu: 0, event }.encode());
    }
}

type Machine<'l> = Traced<Memory, &'l Log>;

struct Rig<'l> {
    host: Host<'static>,
    guests: Vec<Guest>,
    m: Machine<'l>,
    states: BTreeMap<u64, State>,
    roots: [Option<Pfn>; 4],
}

fn playing() -> impl Iterator<Item = u64> {
    PLAY.into_iter().flat_map(|from| from..from + PLAY_FRAMES)
}

fn pfns(from: u64, count: u64) -> PfnRun {
    PfnRun::decode(from, count).unwrap()
}

impl<'l> Rig<'l> {
    fn new(log: &'l Log) -> Self {
        let mut map = MemoryMap::new(32).unwrap();
        map.add_bank(pfns(RAM, BLOCKS * 512)).unwrap();
        map.add_carve_out(pfns(CARVE_OUT, 512)).unwrap();
        let storage = vec![0; map.needs().words as usize].leak();
        let mut m = Traced { machine: Memory::default(), sink: log };
        let host = Host::build(map, Pfn::new(CARVE_OUT).unwrap(), storage, Attributes::Combined, &mut m).unwrap();
        log.note(Event::Root { vmid: 0, table: host.root().raw(), tables: 1 });
        log.note(Event::Start);
        let guests = (0..4).map(|slot| Guest::new(VmSlot::new(slot).unwrap())).collect();
        let mut rig = Self { host, guests, m, states: BTreeMap::new(), roots: [None; 4] };
        rig.note_owners(0);
        rig
    }

    fn state(&self, frame: u64) -> State {
        self.host.ledger().state(Pfn::new(frame).unwrap()).unwrap()
    }

    /// A call about the VM in this slot has come to its end.
    fn note_owners(&mut self, slot: usize) {
        let vmid = self.guests[slot].vmid();
        let times = |state| if let State::Lent(times) = state { times } else { 0 };
        for frame in playing() {
            let state = self.state(frame);
            let old = self.states.insert(frame, state);
            if old != Some(state) {
                let more = times(state) > old.map_or(0, times);
                let loan = if more { Loan::Made(vmid) } else { Loan::Returned(vmid) };
                self.m.sink.note(owner(Pfn::new(frame).unwrap(), state, loan));
            }
        }
    }

    fn note_root(&mut self, slot: usize) {
        let now = self.guests[slot].root().map(|(root, _)| root);
        let vmid = self.guests[slot].vmid().raw();
        match (std::mem::replace(&mut self.roots[slot], now), now) {
            (None, Some(root)) => self.m.sink.note(Event::Root { vmid, table: root.raw(), tables: 1 }),
            (Some(_), None) => self.m.sink.note(Event::Unroot { vmid }),
            _ => {}
        }
    }

    /// A call under both locks, as the handlers make it.
    fn call<T, E>(
        &mut self,
        slot: usize,
        what: impl FnOnce(&mut Host<'static>, &mut Guest, &mut Machine<'l>) -> Result<T, E>,
    ) -> bool {
        let lock = self.guests[slot].vmid().raw();
        self.m.sink.note(Event::Acquire { lock: 0 });
        self.m.sink.note(Event::Acquire { lock });
        let done = what(&mut self.host, &mut self.guests[slot], &mut self.m).is_ok();
        self.note_owners(slot);
        self.note_root(slot);
        self.m.sink.note(Event::Release { lock });
        self.m.sink.note(Event::Release { lock: 0 });
        self.m.sink.note(Event::Leave);
        done
    }

    fn die(&mut self, slot: usize) -> bool {
        let lock = self.guests[slot].vmid().raw();
        self.m.sink.note(Event::Acquire { lock });
        let done = self.guests[slot].begin_death(&mut self.m).is_ok();
        self.note_root(slot);
        self.m.sink.note(Event::Release { lock });
        self.m.sink.note(Event::Leave);
        done
    }

    /// A vCPU runs for a while.
    fn run(&mut self, slot: usize) -> bool {
        let Some((root, _)) = self.guests[slot].root() else { return false };
        let vmid = self.guests[slot].vmid().raw();
        self.m.sink.note(Event::Vttbr { vmid, table: root.raw() });
        self.m.sink.note(Event::Vttbr { vmid: 0, table: self.host.root().raw() });
        self.guests[slot].start().is_ok()
    }

    fn pick(&self, dice: &mut Dice, want: impl Fn(State) -> bool) -> u64 {
        let all: Vec<u64> = playing().filter(|frame| want(self.state(*frame))).collect();
        all.get(dice.below(all.len().max(1) as u64) as usize).copied().unwrap_or(RAM)
    }

    fn step(&mut self, dice: &mut Dice) -> bool {
        let (verb, slot, count) = (dice.below(15), dice.below(4) as usize, 1 + dice.below(3));
        let vm = self.guests[slot].vm();
        // What reaches over the end of a range is refused, for nothing but the ranges is noted.
        let lent = verb == 5;
        let free = self.pick(dice, |state| state == State::Host || lent && matches!(state, State::Lent(_)));
        let room = PLAY.iter().any(|from| (*from..from + PLAY_FRAMES - 6).contains(&free));
        let at = AT[dice.below(2) as usize] + dice.below(AT_FRAMES);
        let mine = |state| matches!(state, State::Private { vm: of, .. } | State::Shared { vm: of, .. } if of == vm);
        let owned = self.pick(dice, mine);
        let seen = match self.state(owned) {
            State::Private { gfn, .. } | State::Shared { gfn, .. } => gfn.raw(),
            State::NoMap | State::Host | State::Lent(_) | State::El2 | State::Pool { .. } => at,
        };
        let lot = Claim::new(Lot::decode(free, at, count).unwrap());
        let asked = || Claim::new(GfnRun::decode(seen, 1).unwrap());
        match verb {
            0..=5 if !room => false,
            0 => {
                let kind = [Kind::Protected, Kind::Lazy, Kind::Ordinary, Kind::Ordinary][slot];
                let born = self.call(slot, |host, guest, m| {
                    let pool = Claim::new(pfns(free, 6));
                    host_donate_el2::check_birth(host, guest, pool, kind, 32).map(|checked| checked.commit(m))
                });
                let ram = Claim::new(GfnRun::decode(GUEST_RAM, GUEST_FRAMES).unwrap());
                born && self.guests[slot].declare_ram(ram).is_ok()
            }
            1 => self.call(slot, |host, guest, m| {
                let run = Claim::new(pfns(free, count));
                host_donate_el2::check(host, guest, run).map(|checked| checked.commit(m))
            }),
            2..=4 => {
                let (revocable, stop) = (dice.below(2) == 0, dice.below(4) == 0);
                self.call(slot, |host, guest, m| {
                    let checked = host_donate_guest::check(host, guest, lot, revocable, m);
                    checked.map(|checked| checked.commit(m, &mut || stop, &mut |_, _| {}))
                })
            }
            5 => self.call(slot, |host, guest, m| {
                let access = Access { write: true, execute: true };
                host_share_guest::check(host, guest, lot, access, m).map(|checked| checked.commit(m, &mut || false))
            }),
            6 => self.call(slot, |host, guest, m| {
                let run = Claim::new(GfnRun::decode(at, 1).unwrap());
                host_unshare_guest::check(host, guest, run, m).map(|checked| checked.commit(m))
            }),
            7 => self.call(slot, |host, guest, m| {
                guest_share_host::check(host, guest, asked(), m).map(|checked| checked.commit(m))
            }),
            8 => self.call(slot, |host, guest, m| {
                guest_unshare_host::check(host, guest, asked(), m).map(|checked| checked.commit(m))
            }),
            9 => self.call(slot, |host, guest, m| {
                guest_relinquish::check(host, guest, asked(), m).map(|checked| checked.commit(m))
            }),
            10 => self.call(slot, |host, guest, m| {
                let frame = Claim::new(Pfn::new(owned).unwrap());
                el2_revoke_guest::check(host, guest, frame).map(|checked| checked.commit(m))
            }),
            11 => self.run(slot),
            12 => self.reclaim(slot, owned),
            13 => {
                let pool = self.pick(dice, |state| matches!(state, State::Pool { vm: of, .. } if of == vm));
                self.give_back(slot, pool)
            }
            _ => dice.below(6) == 0 && self.die(slot),
        }
    }

    fn reclaim(&mut self, slot: usize, frame: u64) -> bool {
        self.call(slot, |host, guest, m| {
            let run = Claim::new(pfns(frame, 1));
            host_reclaim::check(host, guest, run).map(|checked| checked.commit(m, &mut || false))
        })
    }

    fn give_back(&mut self, slot: usize, frame: u64) -> bool {
        self.call(slot, |host, guest, m| {
            let run = Claim::new(pfns(frame, 1));
            el2_return_host::check(host, guest, run).map(|checked| checked.commit(m, &mut || false))
        })
    }

    /// Ends every VM, whatever it has.
    fn end(&mut self) {
        for slot in 0..4 {
            self.die(slot);
            for at in AT.into_iter().flat_map(|from| from..from + AT_FRAMES + 3) {
                if self.guests[slot].frames().1 == 0 {
                    break;
                }
                self.call(slot, |host, guest, m| {
                    let run = Claim::new(GfnRun::decode(at, 1).unwrap());
                    host_unshare_guest::check(host, guest, run, m).map(|checked| checked.commit(m))
                });
            }
            let vm = self.guests[slot].vm();
            for frame in playing() {
                if matches!(self.state(frame), State::Private { vm: of, .. } | State::Shared { vm: of, .. } if of == vm)
                {
                    assert!(self.reclaim(slot, frame));
                }
            }
            for frame in playing() {
                if matches!(self.state(frame), State::Pool { vm: of, .. } if of == vm) {
                    assert!(self.give_back(slot, frame));
                }
            }
        }
        assert!((RAM..CARVE_OUT).all(|frame| self.state(frame) == State::Host), "not all came back");
    }
}

struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// A walk of so many steps, and the end of all VMs.
fn walk(seed: u64, steps: u32, fault: Fault) -> (Report, u32) {
    let log = Log { judge: RefCell::default(), fault };
    let mut rig = Rig::new(&log);
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let served = (0..steps).filter(|_| rig.step(&mut dice)).count();
    rig.end();
    drop(rig);
    (log.judge.into_inner().1.finish(), served as u32)
}

#[test]
fn the_verbs_keep_every_rule() {
    let mut decided: BTreeMap<Rule, u64> = BTreeMap::new();
    for seed in 1..=4 {
        let (report, served) = walk(seed, 1500, |_| false);
        assert_eq!(report.violations, [], "seed {seed}");
        assert!(served > 100, "seed {seed}: only {served} steps were served");
        for (rule, times) in report.decided {
            *decided.entry(rule).or_default() += times;
        }
    }
    for rule in RULES {
        let times = decided.get(&rule).copied().unwrap_or(0);
        assert!(times >= 50, "{rule:?} had only {times} times anything to decide");
    }
}

/// What a faulty machine's walk is found out for.
fn found(fault: Fault) -> Vec<Rule> {
    let (report, _) = walk(1, 500, fault);
    report.broken.into_keys().collect()
}

#[test]
fn a_machine_that_forgets_is_found_out() {
    let forgets: [(&str, Fault, Rule); 9] = [
        ("TLBI of the host", |e| *e == Event::Tlbi { vmid: 0 }, Rule::InvalidateBeforeReuse),
        ("TLBI of a VM", |e| *e == Event::Tlbi { vmid: 1 }, Rule::InvalidateBeforeReuse),
        ("barrier before", |e| *e == Event::Barrier(Barrier::StoresVisible), Rule::PublishBeforeLink),
        ("barrier after", |e| *e == Event::Barrier(Barrier::MaintenanceDone), Rule::BreakBeforeMake),
        ("DSB SY", |e| *e == Event::Barrier(Barrier::SystemDone), Rule::ScrubBeforeHost),
        ("zeroing", |e| matches!(e, Event::Zero { .. }), Rule::ScrubBeforeHost),
        ("cleaning", |e| matches!(e, Event::CleanInvalidate { .. }), Rule::ScrubBeforeHost),
        ("cleaning for a guest", |e| matches!(e, Event::CleanInvalidate { .. }), Rule::CleanBeforeGuest),
        ("instruction caches", |e| *e == Event::Fetches, Rule::CleanBeforeGuest),
    ];
    for (what, fault, rule) in forgets {
        let rules = found(fault);
        assert!(rules.contains(&rule), "{what}: {rules:?}");
    }
}

#[test]
fn a_machine_without_its_locks_is_found_out() {
    assert!(found(|e| matches!(e, Event::Acquire { lock: 0 })).contains(&Rule::Lock));
    assert!(found(|e| matches!(e, Event::Acquire { lock: 1 })).contains(&Rule::Lock));
    assert!(found(|e| matches!(e, Event::Release { .. })).contains(&Rule::Debt));
}
