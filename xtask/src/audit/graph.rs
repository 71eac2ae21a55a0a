// SPDX-License-Identifier: MIT OR Apache-2.0
//! What can be reached from an entry: instruction by instruction, and through every call.
//!
//! A call comes back only if the function that it names can. A switch (a jump through a register) may go anywhere in its
//! own function. A call through a register could go anywhere at all: it is reported, not followed.

#![expect(clippy::wildcard_enum_match_arm, reason = "most instructions are nothing to the question that is asked")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::code::{Code, Does};

/// What was reached, and from where.
pub(super) struct Reach {
    /// Each instruction, and the one that led to it.
    from: BTreeMap<u64, u64>,
    /// Calls, and jumps out of a function, by target.
    pub(super) ends: Vec<(u64, u64)>,
    /// Calls through a register.
    pub(super) indirect: Vec<u64>,
}

impl Reach {
    pub(super) fn contains(&self, at: u64) -> bool {
        self.from.contains_key(&at)
    }

    pub(super) fn len(&self) -> usize {
        self.from.len()
    }

    /// The functions on the way to `at`, the nearest first.
    pub(super) fn way(&self, code: &Code, at: u64) -> String {
        let (mut at, mut names) = (at, Vec::new());
        for _ in 0..100_000 {
            let name = code.function(at).map_or_else(String::new, |f| super::code::plain(&f.name));
            if names.last() != Some(&name) {
                names.push(name);
            }
            match self.from.get(&at) {
                Some(before) if *before != at => at = *before,
                _ => break,
            }
        }
        names.join(" < ")
    }
}

/// Follows control from `entries`. Functions that `stops` picks are reached but not entered.
pub(super) fn reach(code: &Code, entries: &[u64], returning: &BTreeSet<u64>, stops: &dyn Fn(&str) -> bool) -> Reach {
    let mut found =
        Reach { from: entries.iter().map(|at| (*at, *at)).collect(), ends: Vec::new(), indirect: Vec::new() };
    let mut todo: VecDeque<u64> = entries.iter().copied().collect();
    while let Some(at) = todo.pop_front() {
        let Some(does) = code.does(at) else { continue };
        let mut next = Vec::new();
        let leaves = |to: u64| code.function(to).map(|f| f.start) != code.function(at).map(|f| f.start);
        let mut go = |to: u64, found: &mut Reach| {
            if leaves(to) {
                found.ends.push((at, to));
            }
            if !code.function(to).is_some_and(|f| f.start == to && stops(&f.name)) {
                next.push(to);
            }
        };
        match does {
            Does::Jump(to) => go(to, &mut found),
            Does::Branch(to) => {
                go(to, &mut found);
                next.extend(after(code, at));
            }
            Does::Call(to) => {
                go(to, &mut found);
                if returning.contains(&to) {
                    next.extend(after(code, at));
                }
            }
            Does::CallRegister => {
                found.indirect.push(at);
                next.extend(after(code, at));
            }
            Does::JumpRegister => next.extend(code.function(at).into_iter().flat_map(|f| (f.start..f.end).step_by(4))),
            Does::Return | Does::ExceptionReturn | Does::Trap => {}
            _ => next.extend(after(code, at)),
        }
        for to in next {
            if let std::collections::btree_map::Entry::Vacant(place) = found.from.entry(to) {
                place.insert(at);
                todo.push_back(to);
            }
        }
    }
    found
}

/// The instruction behind one, unless the compiler's function ends there: then what comes last does not come back.
fn after(code: &Code, at: u64) -> Option<u64> {
    let function = code.function(at)?;
    (at + 4 < function.end || !function.is_closed).then_some(at + 4)
}

/// The functions that can come back to their caller.
pub(super) fn returning(code: &Code) -> BTreeSet<u64> {
    let mut known = BTreeSet::new();
    loop {
        let before = known.len();
        for function in code.functions() {
            if !known.contains(&function.start) && comes_back(code, function.start, &known) {
                known.insert(function.start);
            }
        }
        if known.len() == before {
            return known;
        }
    }
}

fn comes_back(code: &Code, start: u64, known: &BTreeSet<u64>) -> bool {
    let mut seen = BTreeSet::from([start]);
    let mut todo = vec![start];
    while let Some(at) = todo.pop() {
        let own = |to: u64| code.function(to).map(|f| f.start) == code.function(start).map(|f| f.start);
        let mut next = Vec::new();
        match code.does(at) {
            Some(Does::Return) => return true,
            // A switch; a tail call through a register looks the same and may come back.
            Some(Does::JumpRegister) => return true,
            Some(Does::Jump(to)) if !own(to) && code.function(to).is_some_and(|f| f.start == to) => {
                if known.contains(&to) {
                    return true;
                }
            }
            Some(Does::Jump(to)) => next.push(to),
            Some(Does::Branch(to)) => {
                next.push(to);
                next.extend(after(code, at));
            }
            Some(Does::Call(to)) if !known.contains(&to) => {}
            Some(Does::ExceptionReturn | Does::Trap) | None => {}
            Some(_) => next.extend(after(code, at)),
        }
        todo.extend(next.into_iter().filter(|at| seen.insert(*at)));
    }
    false
}
