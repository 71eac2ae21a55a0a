// SPDX-License-Identifier: MIT OR Apache-2.0
//! One good life of a VM, and for each rule what breaks it.

use super::{Checker, RULES, Report, Rule};
use crate::record::{Barrier, Event, Owner, Record};

const ROOT: u64 = 0x100;
const LEVEL2: u64 = 0x101;
const LEVEL3: u64 = 0x102;
const BLOCK: u64 = 0x200;
const POOL: [u64; 3] = [0x210, 0x211, 0x212];
const FRAME: u64 = 0x220;
const OTHER: u64 = 0x230;

/// An event, by which CPU, and a name by which a test finds it.
type Step = (&'static str, u8, Event);

const fn page(frame: u64) -> u64 {
    frame << 12 | 3
}

const fn block(frame: u64) -> u64 {
    frame << 12 | 1
}

/// Writes down a life.
#[derive(Default)]
struct Life {
    steps: Vec<Step>,
    words: std::collections::BTreeMap<(u64, u16), u64>,
}

impl Life {
    fn say(&mut self, name: &'static str, event: Event) {
        self.steps.push((name, 0, event));
    }

    fn store(&mut self, name: &'static str, table: u64, index: u16, new: u64) {
        let old = self.words.insert((table, index), new).unwrap_or(0);
        self.say(name, Event::Store { table, index, old, new });
    }

    fn zero(&mut self, name: &'static str, frame: u64) {
        self.words.retain(|(table, _), _| *table != frame);
        self.say(name, Event::Zero { frame });
    }

    fn visible(&mut self, name: &'static str) {
        self.say(name, Event::Barrier(Barrier::StoresVisible));
    }

    fn invalidate(&mut self, name: &'static str, vmid: u8) {
        self.visible("visible");
        self.say(name, Event::Tlbi { vmid });
        self.say("waited", Event::Barrier(Barrier::MaintenanceDone));
    }

    fn settle(&mut self, frame: u64) {
        self.say("settle", Event::CleanInvalidate { frame });
        self.say("settled", Event::Barrier(Barrier::SystemDone));
        self.say("fetches", Event::Fetches);
        self.say("fetched", Event::Barrier(Barrier::MaintenanceDone));
    }

    fn scrub(&mut self, name: &'static str, clean: &'static str, frame: u64) {
        self.zero(name, frame);
        self.say(clean, Event::CleanInvalidate { frame });
        self.say("scrubbed", Event::Barrier(Barrier::SystemDone));
    }

    fn both(&mut self, what: impl FnOnce(&mut Self)) {
        self.say("host lock", Event::Acquire { lock: 0 });
        self.say("guest lock", Event::Acquire { lock: 1 });
        what(self);
        self.say("guest unlock", Event::Release { lock: 1 });
        self.say("host unlock", Event::Release { lock: 0 });
        self.say("leave", Event::Leave);
    }

    fn owner(&mut self, name: &'static str, frame: u64, owner: Owner) {
        let vmid = u8::from(matches!(owner, Owner::Pool | Owner::Private | Owner::Shared));
        self.say(name, Event::Owner { frame, owner, vmid });
    }
}

/// The host's tables, and a VM that lives from its making to its end.
fn life() -> Vec<Step> {
    let mut it = Life::default();
    for table in [ROOT, LEVEL2] {
        it.zero("boot", table);
    }
    it.store("boot", LEVEL2, 1, block(BLOCK));
    it.store("boot", ROOT, 0, page(LEVEL2));
    it.visible("boot visible");
    it.say("root", Event::Root { vmid: 0, table: ROOT, tables: 1 });
    it.say("start", Event::Start);
    it.both(|it| {
        for index in 0..512 {
            it.store("fill", LEVEL3, index, page(BLOCK + u64::from(index)));
        }
        it.store("split", LEVEL2, 1, LEVEL3 << 12 | 4);
        for frame in POOL {
            it.store("unmap pool", LEVEL3, (frame - BLOCK) as u16, 0);
        }
        it.invalidate("split tlbi", 0);
        it.store("split made", LEVEL2, 1, page(LEVEL3));
        for frame in POOL {
            it.owner("pool", frame, Owner::Pool);
            it.zero("clear", frame);
        }
        it.visible("pool visible");
        it.say("vm root", Event::Root { vmid: 1, table: POOL[0], tables: 1 });
    });
    it.both(|it| {
        it.store("unmap", LEVEL3, 0x20, 0);
        it.invalidate("donate tlbi", 0);
        it.settle(FRAME);
        it.store("link", POOL[0], 0, page(POOL[1]));
        it.store("link", POOL[1], 0, page(POOL[2]));
        it.store("donate", POOL[2], 0, page(FRAME));
        it.visible("mapped");
        it.owner("donated", FRAME, Owner::Private);
    });
    it.say("enter", Event::Vttbr { vmid: 1, table: POOL[0] });
    it.say("exit", Event::Vttbr { vmid: 0, table: ROOT });
    it.both(|it| {
        it.store("share", LEVEL3, 0x20, page(FRAME));
        it.visible("shared visible");
        it.owner("shared", FRAME, Owner::Shared);
    });
    it.both(|it| {
        it.store("unshare", LEVEL3, 0x20, 0);
        it.invalidate("unshare tlbi", 0);
        it.settle(FRAME);
        it.owner("unshared", FRAME, Owner::Private);
    });
    it.both(|it| {
        it.store("relinquish", POOL[2], 0, 0);
        it.invalidate("relinquish tlbi", 1);
        it.scrub("relinquish zero", "relinquish clean", FRAME);
        it.store("back", LEVEL3, 0x20, page(FRAME));
        it.visible("back visible");
        it.owner("relinquished", FRAME, Owner::Host);
    });
    it.say("enter again", Event::Vttbr { vmid: 1, table: POOL[0] });
    it.say("exit again", Event::Vttbr { vmid: 0, table: ROOT });
    it.both(|it| {
        it.invalidate("death tlbi", 1);
        it.say("unroot", Event::Unroot { vmid: 1 });
    });
    it.both(|it| {
        for frame in POOL {
            it.scrub("pool zero", "pool clean", frame);
            it.store("pool back", LEVEL3, (frame - BLOCK) as u16, page(frame));
        }
        it.store("join", LEVEL2, 1, LEVEL3 << 12 | 8);
        it.invalidate("join tlbi", 0);
        it.store("join made", LEVEL2, 1, block(BLOCK));
        it.visible("joined");
        for frame in POOL {
            it.owner("returned", frame, Owner::Host);
        }
    });
    it.steps
}

fn judge(steps: &[Step]) -> Report {
    let mut checker = Checker::new();
    for (sequence, (_, cpu, event)) in (1..).zip(steps) {
        checker.words(Record { sequence, cpu: *cpu, event: *event }.encode());
    }
    checker.finish()
}

/// The rules that a changed life breaks.
fn broken_by(change: impl FnOnce(&mut Vec<Step>)) -> Vec<Rule> {
    let mut steps = life();
    let before = steps.clone();
    change(&mut steps);
    assert_ne!(steps, before, "the change found nothing to change");
    let mut rules: Vec<Rule> = judge(&steps).violations.iter().map(|violation| violation.rule).collect();
    rules.dedup();
    rules
}

fn place(steps: &[Step], name: &str) -> usize {
    steps.iter().position(|step| step.0 == name).expect("a step of that name")
}

/// A life without the steps of this name.
fn without(name: &'static str) -> Vec<Rule> {
    broken_by(|steps| steps.retain(|step| step.0 != name))
}

/// A life without the first step of this name after another.
fn without_after(mark: &str, name: &str) -> Vec<Rule> {
    broken_by(|steps| {
        let from = place(steps, mark);
        let at = from + place(&steps[from..], name);
        steps.remove(at);
    })
}

/// A life in which the step happens only after another.
fn late(name: &str, mark: &str) -> Vec<Rule> {
    broken_by(|steps| {
        let step = steps.remove(place(steps, name));
        let at = place(steps, mark);
        steps.insert(at + 1, step);
    })
}

fn changed(name: &str, event: Event) -> Vec<Rule> {
    broken_by(|steps| {
        let at = place(steps, name);
        steps[at].2 = event;
    })
}

fn added(mark: &str, event: Event) -> Vec<Rule> {
    broken_by(|steps| {
        let at = place(steps, mark);
        steps.insert(at + 1, ("added", 0, event));
    })
}

#[test]
fn a_good_life_breaks_no_rule_and_every_rule_had_its_say() {
    let report = judge(&life());
    assert_eq!(report.violations, []);
    assert_eq!(report.events, life().len() as u64);
    for rule in RULES {
        assert!(report.decided(rule) > 0, "{rule:?} never had anything to decide");
    }
}

#[test]
fn a_trace_with_a_hole_is_no_trace() {
    let mut checker = Checker::new();
    checker.record(Record { sequence: 2, cpu: 0, event: Event::Start });
    checker.words([200, 0, 0, 0]);
    assert_eq!(checker.finish().violations.iter().filter(|v| v.rule == Rule::Trace).count(), 2);
    let lie = Event::Store { table: LEVEL2, index: 1, old: 7, new: 0 };
    assert_eq!(changed("split", lie)[0], Rule::Trace, "that word did not stand there");
}

#[test]
fn valid_to_valid_breaks_before_make() {
    let new = page(LEVEL3);
    let at_once = Event::Store { table: LEVEL2, index: 1, old: block(BLOCK), new };
    assert_eq!(changed("split", at_once)[0], Rule::BreakBeforeMake);
}

#[test]
fn made_before_the_break_was_invalidated() {
    assert_eq!(without("split tlbi")[0], Rule::BreakBeforeMake);
    assert_eq!(without_after("split", "visible")[0], Rule::BreakBeforeMake, "walkers had not seen it");
    assert_eq!(without_after("split", "waited")[0], Rule::BreakBeforeMake, "nobody waited");
    assert_eq!(changed("split tlbi", Event::Tlbi { vmid: 1 })[0], Rule::BreakBeforeMake, "of somebody else");
    assert_eq!(late("split tlbi", "split made")[0], Rule::BreakBeforeMake);
    assert_eq!(without("join tlbi")[0], Rule::BreakBeforeMake);
}

#[test]
fn a_barrier_of_another_cpu_completes_nothing() {
    let rules = broken_by(|steps| {
        let from = place(steps, "split tlbi");
        let at = from + place(&steps[from..], "waited");
        steps[at].1 = 1;
    });
    assert_eq!(rules[0], Rule::BreakBeforeMake);
}

#[test]
fn a_frame_is_anothers_before_it_was_invalidated() {
    assert_eq!(without("donate tlbi")[0], Rule::InvalidateBeforeReuse);
    assert_eq!(late("donate tlbi", "donate")[0], Rule::InvalidateBeforeReuse);
    assert_eq!(without("relinquish tlbi")[0], Rule::InvalidateBeforeReuse, "zeroed while the guest may write");
    assert_eq!(late("unmap", "donated")[0], Rule::Reach);
}

#[test]
fn a_table_is_used_while_it_is_something_else() {
    let pool = BLOCK + 0x30;
    assert_eq!(
        added("mapped", Event::Store { table: POOL[1], index: 1, old: 0, new: page(pool) })[0],
        Rule::TableReuse,
        "the host reaches it"
    );
    assert_eq!(
        added("mapped", Event::Store { table: POOL[1], index: 1, old: 0, new: page(POOL[2]) })[0],
        Rule::TableReuse,
        "linked twice"
    );
    assert_eq!(added("mapped", Event::Zero { frame: POOL[2] })[0], Rule::TableReuse, "zeroed while it is walked");
    let again = Event::Store { table: LEVEL3, index: 0, old: page(BLOCK), new: 0 };
    assert_eq!(added("join", again)[0], Rule::TableReuse, "written before walkers left it");
    assert_eq!(without("clear")[0], Rule::TableReuse, "never zeroed");
}

#[test]
fn a_table_is_linked_before_walkers_see_it() {
    assert_eq!(without("pool visible")[0], Rule::PublishBeforeLink);
    assert_eq!(without("boot visible")[0], Rule::PublishBeforeLink);
}

#[test]
fn a_guest_gets_what_caches_still_hold() {
    for name in ["settle", "fetches"] {
        assert_eq!(without_after("unmap", name)[0], Rule::CleanBeforeGuest, "{name}");
        assert_eq!(without_after("unshare", name)[0], Rule::CleanBeforeGuest, "{name}");
    }
    for name in ["settled", "fetched"] {
        assert_eq!(without_after("unmap", name)[0], Rule::CleanBeforeGuest, "{name} was not waited for");
    }
    let early = broken_by(|steps| {
        let at = place(steps, "settle");
        let settle: Vec<Step> = steps.drain(at..at + 4).collect();
        let at = place(steps, "unmap");
        steps.splice(at..at, settle);
    });
    assert_eq!(early[0], Rule::CleanBeforeGuest, "cleaned while the host could still write");
    assert_eq!(added("fetched", Event::Zero { frame: FRAME })[0], Rule::CleanBeforeGuest, "written after it");
}

#[test]
fn the_host_gets_what_was_not_scrubbed() {
    assert_eq!(without("relinquish zero")[0], Rule::ScrubBeforeHost);
    assert_eq!(without("relinquish clean")[0], Rule::ScrubBeforeHost);
    assert_eq!(without_after("relinquish", "scrubbed")[0], Rule::ScrubBeforeHost, "not waited for");
    assert_eq!(without("pool zero")[0], Rule::ScrubBeforeHost);
    assert_eq!(late("relinquish clean", "back")[0], Rule::ScrubBeforeHost, "after the host could look");
    assert!(late("relinquish zero", "back").contains(&Rule::InvalidateBeforeReuse), "while the host could write");
}

#[test]
fn somebody_reaches_what_is_not_his() {
    let lent = Event::Owner { frame: FRAME, owner: Owner::Private, vmid: 1 };
    assert_eq!(changed("shared", lent)[0], Rule::Reach, "the host still maps it");
    assert_eq!(added("mapped", Event::Owner { frame: FRAME, owner: Owner::El2, vmid: 0 })[0], Rule::Reach);
    let lent = |owner, vmid| added("mapped", Event::Owner { frame: FRAME, owner, vmid });
    assert_eq!(lent(Owner::Lent, 1), [], "to who reaches it");
    assert_eq!(lent(Owner::Lent, 2)[0], Rule::Reach, "to another VM");
    assert_eq!(lent(Owner::Lent, 0)[0], Rule::Reach, "to nobody");
    assert_eq!(lent(Owner::Returned, 1)[0], Rule::Reach, "it still reaches it, and never had it");
    assert_eq!(added("mapped", Event::Owner { frame: OTHER, owner: Owner::Pool, vmid: 1 })[0], Rule::Reach);
}

#[test]
fn locks_are_held_and_taken_in_order() {
    assert_eq!(without("host lock")[0], Rule::Lock);
    assert_eq!(without("guest lock")[0], Rule::Lock);
    let backwards = broken_by(|steps| {
        let at = place(steps, "host lock");
        steps.swap(at, at + 1);
    });
    assert_eq!(backwards[0], Rule::Lock);
    let anothers = broken_by(|steps| {
        let at = place(steps, "unmap");
        steps[at].1 = 1;
    });
    assert!(anothers.contains(&Rule::Lock), "a CPU that holds no lock writes");
    assert_eq!(added("host lock", Event::Acquire { lock: 0 })[0], Rule::Lock, "twice");
    assert_eq!(added("exit", Event::Release { lock: 1 })[0], Rule::Lock, "not held");
    assert_eq!(added("exit", Event::Tlbi { vmid: 1 })[0], Rule::Lock);
    assert_eq!(added("exit", Event::Zero { frame: OTHER })[0], Rule::Lock);
}

#[test]
fn nothing_is_owed_when_a_lock_or_el2_is_left() {
    assert_eq!(without("mapped")[0], Rule::Debt, "stores that walkers may not see");
    assert!(without("unshare tlbi").contains(&Rule::Debt), "a translation that nobody invalidated");
    assert_eq!(without("host unlock")[0], Rule::Debt, "EL2 is left with a lock");
}

#[test]
fn a_root_is_the_vms_and_goes_when_nobody_knows_it() {
    assert_eq!(without("death tlbi")[0], Rule::Root);
    assert_eq!(without("exit again")[0], Rule::Root, "a CPU still translates with it");
    assert_eq!(changed("enter", Event::Vttbr { vmid: 1, table: POOL[1] })[0], Rule::Root);
    assert_eq!(changed("enter", Event::Vttbr { vmid: 2, table: POOL[0] })[0], Rule::Root);
    assert!(added("enter", Event::Tlbi { vmid: 0 }).contains(&Rule::Root), "with the guest's tables in force");
    assert_eq!(added("exit", Event::Root { vmid: 1, table: OTHER, tables: 1 })[0], Rule::Root);
}

#[test]
fn what_no_walker_comes_to_is_not_owed_to_walkers() {
    // A vCPU's registers, for example.
    assert_eq!(added("pool visible", Event::Zero { frame: 0x900 }), []);
}

#[test]
fn half_a_terabyte_of_the_hosts_devices_is_judged_in_little_memory() {
    let mut it = Life::default();
    it.zero("boot", ROOT);
    for gigabyte in 0..512 {
        it.store("boot", ROOT, gigabyte, block(u64::from(gigabyte) << 18));
    }
    it.visible("boot visible");
    it.say("root", Event::Root { vmid: 0, table: ROOT, tables: 1 });
    let mut checker = Checker::new();
    for (sequence, (_, cpu, event)) in (1..).zip(it.steps) {
        checker.record(Record { sequence, cpu, event });
    }
    assert_eq!(checker.frames.known(), 1, "the root alone was touched");
}
