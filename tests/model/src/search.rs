// SPDX-License-Identifier: MIT OR Apache-2.0
//! Breadth first through all that can happen in a world, the machine and the oracle in lock-step.
//!
//! The machine is never copied: to come to a state it is reset by calls and takes the shortest way there again, so
//! every state is also reached from a machine with a long past. States that differ by names only are visited once.

use std::collections::{HashSet, VecDeque};
use std::fmt::Write as _;

use freehold_oracle::World;

use crate::digest::{Renaming, canonical};
use crate::lockstep::{Lockstep, Tally};
use crate::op::Op;

/// What a search saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// States, those that differ by names counted once.
    pub states: usize,
    /// The most operations that a state needs.
    pub depth: usize,
    /// What was tried.
    pub tally: Tally,
}

/// How a state was first reached.
#[derive(Clone, Copy)]
struct Step {
    from: u32,
    op: Op,
}

/// The operations by which a state is reached.
fn path(steps: &[Option<Step>], mut at: u32) -> Vec<Op> {
    let mut ops = Vec::new();
    while let Some(step) = steps[at as usize] {
        ops.push(step.op);
        at = step.from;
    }
    ops.reverse();
    ops
}

/// Visits every state, and shows each with the shortest way to it.
///
/// # Errors
/// A counterexample: the shortest list of operations after which the two differ, and the difference.
pub(crate) fn exhaust<const P: usize, const V: usize, const U: usize, const G: usize, const C: usize>(
    both: &Lockstep<'_, World<P, V, U, G, C>>,
    renamings: &[Renaming],
    ops: impl Fn(&World<P, V, U, G, C>) -> Vec<Op>,
    mut visit: impl FnMut(&[Op], &World<P, V, U, G, C>),
) -> Result<Report, String> {
    let mut report = Report::default();
    let first = both.world();
    let mut seen = HashSet::from([canonical(&first, renamings)]);
    let mut steps: Vec<Option<Step>> = vec![None];
    let mut frontier = VecDeque::from([(0_u32, 0_usize, first)]);
    while let Some((at, depth, world)) = frontier.pop_front() {
        report.depth = report.depth.max(depth);
        let way = path(&steps, at);
        let tell = |last: Option<&Op>, what: String| counterexample(&way, last, &what);
        both.replay(way.iter()).and_then(|()| both.compare(&world)).map_err(|what| tell(None, what))?;
        visit(&way, &world);
        for op in ops(&world) {
            let mut next = world;
            let tally = both.step(&mut next, &op).map_err(|what| tell(Some(&op), what))?;
            report.tally.add(&tally);
            if next == world {
                continue;
            }
            if seen.insert(canonical(&next, renamings)) {
                let number = u32::try_from(steps.len()).map_err(|_| "too many states")?;
                steps.push(Some(Step { from: at, op }));
                frontier.push_back((number, depth + 1, next));
            }
            both.replay(way.iter()).map_err(|what| tell(None, what))?;
        }
    }
    report.states = steps.len();
    Ok(report)
}

fn counterexample(way: &[Op], last: Option<&Op>, what: &str) -> String {
    let mut text = format!("{} operations and then they differ: {what}", way.len() + usize::from(last.is_some()));
    for (number, op) in way.iter().chain(last).enumerate() {
        let _ = write!(text, "\n  {:2}. {op}", number + 1);
    }
    text
}

impl Report {
    /// All of it, as lines.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!(
            "{} states, {} transitions ({} refused), depth {}, {} cells\n",
            self.states,
            self.tally.transitions,
            self.tally.refused,
            self.depth,
            self.tally.cells.len()
        );
        for (cell, times) in &self.tally.cells {
            let _ = writeln!(text, "  {:16} {:20} {times}", cell.what, cell.outcome);
        }
        text
    }
}
