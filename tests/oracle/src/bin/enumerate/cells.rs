// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which (call, outcome) pairs were met: each status that a call documents must be the answer somewhere.

use freehold_oracle::{Act, Done, Op, Outcome, Statuses, Value};
use freehold_uapi::table::{Call as Documented, Item};
use freehold_uapi::{guest, hvc};

use super::document::tells_cells;

/// Statuses of each call: met at all, and met as the only permitted one.
#[derive(Default)]
pub(crate) struct Cells {
    /// By function identifier: host calls and guest calls.
    host: Vec<(u32, Met)>,
    guest: Vec<(u32, Met)>,
    /// Exit reasons, and crash codes as reason 100 and up.
    exits: Vec<u64>,
    /// Ends of stray accesses and moves.
    rest: Vec<(&'static str, u64)>,
}

#[derive(Clone, Copy, Default)]
struct Met {
    done: u64,
    refused: Statuses,
    alone: Statuses,
}

/// The value of a key in a short list.
fn entry<K: PartialEq, T: Default>(list: &mut Vec<(K, T)>, key: K) -> &mut T {
    let at = list.iter().position(|(k, _)| *k == key).unwrap_or_else(|| {
        list.push((key, T::default()));
        list.len() - 1
    });
    &mut list[at].1
}

impl Met {
    fn hit(&mut self, outcome: &Outcome) {
        self.done += u64::from(outcome.done.is_some());
        self.refused = self.refused.and(outcome.refused);
        if outcome.refused.len() == 1 && outcome.done.is_none() {
            self.alone = self.alone.and(outcome.refused);
        }
    }
}

/// A side's name, its calls, its statuses, and what was met of them.
type Table<'m> = (&'static str, &'static [Documented], &'static [Item], &'m [(u32, Met)]);

/// Cells that these worlds can not reach, and why.
const UNREACHABLE: &[(&str, &str, &str)] = &[
    ("ATTEST", "success", "it answers alike in every state; `tests/errors`"),
    ("GUEST_ACCEPT", "GFN_NOT_MAPPED", "a request is for what is there, and there is one vCPU"),
    ("GUEST_ACCEPT", "SHARED", "a request is for what is there, and there is one vCPU"),
    ("MEM_SHARE", "FOREIGN", "there is one ordinary VM, and no other beside it: tests/oracle/tests/errors"),
    ("VCPU_RUN", "EXIT_WAKE", "whom to wake is not specified"),
    ("VCPU_RUN", "EXIT_EOI", "which interrupts a guest ends is not specified"),
    ("VCPU_RUN", "EXIT_OFF", CPUS),
    ("PSCI_CPU_ON", "*", CPUS),
    ("PSCI_CPU_ON_64", "*", CPUS),
    ("PSCI_CPU_OFF", "*", CPUS),
    ("PSCI_CPU_SUSPEND", "*", CPUS),
    ("PSCI_CPU_SUSPEND_64", "*", CPUS),
    ("PSCI_AFFINITY_INFO", "*", CPUS),
    ("PSCI_AFFINITY_INFO_64", "*", CPUS),
    ("PSCI_MIGRATE_INFO_TYPE", "*", CPUS),
    ("PSCI_SYSTEM_RESET2", "*", CPUS),
    ("PSCI_SYSTEM_RESET2_64", "*", CPUS),
    ("TRNG_VERSION", "*", RANDOM),
    ("TRNG_FEATURES", "*", RANDOM),
    ("TRNG_GET_UUID", "*", RANDOM),
    ("TRNG_RND", "*", RANDOM),
    ("TRNG_RND_64", "*", RANDOM),
];

const CPUS: &str = "one vCPU, which its guest leaves on: tests/oracle/tests/cpus.rs has two";
const RANDOM: &str = "numbers change no record: tests/oracle/tests/errors";

impl Cells {
    pub(crate) fn hit(&mut self, op: &Op, outcome: &Outcome) {
        match *op {
            Op::Host { call, .. } => entry(&mut self.host, call.id()).hit(outcome),
            Op::Guest { act: Act::Call { id, .. }, .. } => entry(&mut self.guest, id).hit(outcome),
            Op::Guest { .. } => {}
            Op::Touch { .. } | Op::Driver(_) => *entry(&mut self.rest, name(op, outcome)) += 1,
        }
        if let Some(Done::Exit([Value::Is(reason), Value::Is(code), ..])) = outcome.done {
            let which = if reason == hvc::EXIT_CRASH { 100 + code } else { reason };
            if !self.exits.contains(&which) {
                self.exits.push(which);
            }
        }
    }

    /// Prints the numbers of cells; whether all that must be were met.
    pub(crate) fn judge(&self) -> bool {
        let mut good = true;
        let (mut met, mut alone, mut all) = (0, 0, 0);
        let tables: [Table<'_>; 2] = [
            ("host", hvc::CALLS, hvc::STATUSES, &self.host),
            ("guest", guest::CALLS, guest::GUEST_STATUSES, &self.guest),
        ];
        for (side, calls, statuses, found) in tables {
            for call in calls {
                let cell = found.iter().find(|(id, _)| *id == call.id).map(|(_, met)| *met).unwrap_or_default();
                all += 1 + call.errors.len();
                met += usize::from(cell.done > 0);
                alone += usize::from(cell.done > 0);
                good &= must(cell.done > 0, side, call.name, "success");
                for error in call.errors {
                    let value = statuses.iter().find(|s| s.name == *error).map_or(0, |s| s.value);
                    let (seen, sole) = (cell.refused.has(value), cell.alone.has(value));
                    met += usize::from(seen);
                    alone += usize::from(sole);
                    good &= must(seen, side, call.name, error);
                }
            }
        }
        println!("cells: {met} of {all} documented (call, outcome) pairs met, {alone} as the only permitted answer");
        good &= tells_cells(met, all, alone);
        for (table, base) in [(hvc::EXITS, 0), (hvc::CRASHES, 100)] {
            for item in table.iter().filter(|i| base > 0 || i.value != hvc::EXIT_CRASH.cast_signed()) {
                good &= must(self.exits.contains(&(base + item.value.unsigned_abs())), "exit", "VCPU_RUN", item.name);
            }
        }
        println!("exits: {} kinds; accesses and moves: {:?}", self.exits.len(), self.rest);
        good
    }
}

/// Complains about a cell that was not met, unless it is known to be out of reach; or about one that is, and was.
fn must(met: bool, side: &str, call: &str, what: &str) -> bool {
    let known = UNREACHABLE.iter().find(|(c, w, _)| *c == call && (*w == what || *w == "*"));
    match (met, known) {
        (true, None) => true,
        (false, Some((_, _, why))) => {
            println!("not met: {side} {call} {what}: {why}");
            true
        }
        (true, Some(_)) => {
            println!("met, though it was said to be out of reach: {side} {call} {what}");
            false
        }
        (false, None) => {
            println!("not met: {side} {call} {what}");
            false
        }
    }
}

fn name(op: &Op, outcome: &Outcome) -> &'static str {
    match (op, outcome.done) {
        (Op::Touch { .. }, Some(Done::Allowed)) => "access allowed",
        (Op::Touch { .. }, Some(Done::Injected)) => "access injected",
        (Op::Touch { .. }, Some(Done::Revoked)) => "page revoked",
        (Op::Touch { .. }, _) => "access unsaid",
        (_, Some(_)) => "move done",
        (_, None) => "move refused",
    }
}
