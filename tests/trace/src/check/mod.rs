// SPDX-License-Identifier: MIT OR Apache-2.0
//! Judges a trace by the architecture's rules (Arm ARM D8.16, D7.5) and by who may reach a frame.
//!
//! It follows every table word, so it knows at each moment which frames a walker could reach, and for whom; and which
//! it may still reach through a translation that nobody has invalidated to the end: written, made visible by a barrier,
//! invalidated under the right VMID, and waited for. It never looks at what `el2` thinks.

mod frames;
mod locks;
mod tables;
#[cfg(test)]
mod tests;

use crate::record::{Event, HOST, Owner, Record, Words};
use frames::Frames;
use locks::Locks;
use std::collections::BTreeMap;
use tables::Tables;

/// The rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// The trace itself: numbers without a gap, kinds that exist, old words that were there.
    Trace,
    /// A valid descriptor becomes another valid one only by way of invalid, visible, invalidated and waited for.
    BreakBeforeMake,
    /// A frame gets a new use only when no translation that reached it is left: as memory of another owner, ...
    InvalidateBeforeReuse,
    /// ... as a table, or written to as one while walkers may still be in it.
    TableReuse,
    /// A table's words are visible to walkers before the table is linked.
    PublishBeforeLink,
    /// What a guest gets was cleaned to the point of coherency, and fetches dropped, after its last writer could write.
    CleanBeforeGuest,
    /// What the host gets back was zeroed, and the zeros cleaned to the point of coherency, before it could look.
    ScrubBeforeHost,
    /// A frame's owner and whom it is lent to reach it, and nobody else.
    Reach,
    /// Tables and TLBs are changed under their lock, the host's before a guest's.
    Lock,
    /// Nothing is owed when a lock or EL2 is left: stores visible, invalidations complete, no lock held.
    Debt,
    /// A CPU translates with a declared root only; a root goes only when no CPU and no TLB knows it.
    Root,
}

/// All rules.
pub const RULES: [Rule; 11] = [
    Rule::Trace,
    Rule::BreakBeforeMake,
    Rule::InvalidateBeforeReuse,
    Rule::TableReuse,
    Rule::PublishBeforeLink,
    Rule::CleanBeforeGuest,
    Rule::ScrubBeforeHost,
    Rule::Reach,
    Rule::Lock,
    Rule::Debt,
    Rule::Root,
];

/// A rule that was not kept, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Number of the event.
    pub sequence: u64,
    /// Its CPU.
    pub cpu: u8,
    /// The rule.
    pub rule: Rule,
    /// What was seen.
    pub what: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} at event {} on cpu {}: {}", self.rule, self.sequence, self.cpu, self.what)
    }
}

/// What was looked at, and what was wrong with it.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Events.
    pub events: u64,
    /// How often each rule had something to decide. A rule that never had shows nothing.
    pub decided: BTreeMap<Rule, u64>,
    /// The first of what was not kept.
    pub violations: Vec<Violation>,
    /// How many there were in all, by rule.
    pub broken: BTreeMap<Rule, u64>,
}

impl Report {
    /// How often a rule had something to decide.
    #[must_use]
    pub fn decided(&self, rule: Rule) -> u64 {
        self.decided.get(&rule).copied().unwrap_or(0)
    }
}

/// Violations of each rule that a report keeps the words of.
const KEPT: u64 = 5;

/// Where a finding goes, with the event that is looked at.
#[derive(Debug, Default)]
struct Findings {
    report: Report,
    sequence: u64,
    cpu: u8,
}

impl Findings {
    /// Counts a decision; notes it if the rule was not kept.
    fn decide(&mut self, rule: Rule, kept: bool, what: impl FnOnce() -> String) {
        *self.report.decided.entry(rule).or_default() += 1;
        if !kept {
            let broken = self.report.broken.entry(rule).or_default();
            *broken += 1;
            if *broken <= KEPT {
                let (sequence, cpu) = (self.sequence, self.cpu);
                self.report.violations.push(Violation { sequence, cpu, rule, what: what() });
            }
        }
    }
}

/// Judges events one by one.
#[derive(Debug, Default)]
pub struct Checker {
    findings: Findings,
    tables: Tables,
    frames: Frames,
    locks: Locks,
    /// How often which frame of the host's is lent to which VM.
    loans: BTreeMap<u64, BTreeMap<u8, u64>>,
}

impl Checker {
    /// One that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a record as it stands in memory.
    pub fn words(&mut self, words: Words) {
        match Record::decode(words) {
            Some(record) => self.record(record),
            None => self.findings.decide(Rule::Trace, false, || format!("no event: {words:x?}")),
        }
    }

    /// Takes an event.
    pub fn record(&mut self, Record { sequence, cpu, event }: Record) {
        let out = &mut self.findings;
        let expected = out.sequence + 1;
        (out.sequence, out.cpu) = (sequence, cpu);
        out.report.events += 1;
        out.decide(Rule::Trace, sequence == expected, || format!("event {expected} is missing"));
        let (tables, frames, locks) = (&mut self.tables, &mut self.frames, &mut self.locks);
        match event {
            Event::Start => locks.start(),
            Event::Root { vmid, table, tables: count } => tables.root(vmid, table, count, frames, out),
            Event::Unroot { vmid } => tables.unroot(vmid, frames, out),
            Event::Store { table, index, old, new } => {
                locks.may_store(cpu, tables.owner(table), table, out);
                tables.store(cpu, (table, index), old, new, frames, out);
            }
            Event::Zero { frame } => {
                locks.may_touch(cpu, frame, out);
                tables.zero(cpu, frame, frames.owner(frame), out);
                frames.zero(sequence, frame);
            }
            Event::CleanInvalidate { frame } => frames.clean_invalidate(cpu, frame, tables.may_reach(HOST, frame)),
            Event::Fetches => frames.fetches(cpu),
            Event::Barrier(barrier) => {
                tables.barrier(cpu, barrier);
                frames.barrier(sequence, cpu, barrier);
            }
            Event::Tlbi { vmid } => {
                locks.may_invalidate(cpu, vmid, out);
                // The instruction is of the VMID in force.
                out.decide(Rule::Root, vmid != HOST || tables.has_host(cpu), || {
                    "an invalidation for the host with a guest's tables in force".to_owned()
                });
                tables.invalidate(cpu, vmid);
            }
            Event::Acquire { lock } => locks.acquire(cpu, lock, out),
            Event::Release { lock } => {
                tables.nothing_owed(cpu, Some(lock), out);
                locks.release(cpu, lock, out);
            }
            Event::Vttbr { vmid, table } => tables.load(cpu, vmid, table, out),
            Event::Owner { frame, owner, vmid } => self.owner(frame, owner, vmid),
            Event::Leave => {
                tables.nothing_owed(cpu, None, out);
                locks.leave(cpu, out);
            }
        }
    }

    fn owner(&mut self, frame: u64, owner: Owner, vmid: u8) {
        let out = &mut self.findings;
        let loans = &mut self.loans;
        match owner {
            Owner::Lent if vmid != HOST => *loans.entry(frame).or_default().entry(vmid).or_default() += 1,
            Owner::Lent => {}
            Owner::Returned => {
                let times = loans.entry(frame).or_default().entry(vmid).or_default();
                out.decide(Rule::Reach, *times > 0, || format!("VMID {vmid} returns {frame:#x}, which it has not"));
                *times = times.saturating_sub(1);
            }
            // Whoever had it has returned it.
            Owner::NoMap | Owner::Host | Owner::El2 | Owner::Pool | Owner::Private | Owner::Shared => {
                loans.remove(&frame);
            }
        }
        let lent = matches!(owner, Owner::Shared | Owner::Host | Owner::Lent | Owner::Returned | Owner::NoMap);
        for other in self.tables.known() {
            let borrows = || loans.get(&frame).and_then(|of| of.get(&other)).is_some_and(|times| *times > 0);
            let allowed = match owner {
                _ if other == HOST => lent,
                Owner::Private | Owner::Shared => other == vmid,
                Owner::Lent | Owner::Returned => borrows(),
                Owner::NoMap | Owner::Host | Owner::El2 | Owner::Pool => false,
            };
            let reached = self.tables.may_reach(other, frame);
            out.decide(Rule::Reach, allowed || !reached, || {
                format!("frame {frame:#x} is {owner:?} of {vmid}, and VMID {other} may still reach it")
            });
        }
        self.frames.give(frame, owner, vmid, out);
    }

    /// What came of it.
    #[must_use]
    pub fn finish(self) -> Report {
        self.findings.report
    }
}

/// Judges a whole trace as it stands in memory: records up to the first that was never written.
#[must_use]
pub fn check(bytes: &[u8]) -> Report {
    let mut checker = Checker::new();
    for record in bytes.chunks_exact(crate::record::BYTES) {
        let word = |n: usize| u64::from_le_bytes(record[8 * n..8 * n + 8].try_into().unwrap_or_default());
        let words = [word(0), word(1), word(2), word(3)];
        if words[0] == 0 {
            break;
        }
        checker.words(words);
    }
    checker.finish()
}
