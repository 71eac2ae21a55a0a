// SPDX-License-Identifier: MIT OR Apache-2.0
//! Breadth first over the states of a world, each held once in its canonical form.

use std::fmt;

use freehold_oracle::code::Codec;
use freehold_oracle::invariant::{self, Broken};
use freehold_oracle::lattice::{Lattice, Play};
use freehold_oracle::{Op, Owner, State as _, World, apply, decide};

use super::cells::Cells;

/// What an exploration counted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Count {
    states: u64,
    /// Operations decided.
    operations: u64,
    /// Of those, how many had to be refused.
    refused: u64,
    /// Plays that led over the border: a guest's frame as a pool, or the reverse.
    border: u64,
    depth: u32,
}

impl Count {
    pub(crate) const fn numbers(&self) -> [u64; 2] {
        [self.states, self.operations]
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { states, operations, refused, border, depth } = self;
        let share = refused * 100 / operations.max(&1);
        write!(
            f,
            "{states} states, {operations} transitions ({share} % refused), depth {depth}, {border} over the border"
        )
    }
}

/// States in the order of their discovery, and a table to find them again.
struct Seen {
    numbers: Vec<u128>,
    /// From where each came, and the depth.
    parents: Vec<(u32, u32)>,
    table: Vec<u32>,
}

impl Seen {
    fn new(first: u128) -> Self {
        let mut seen = Self { numbers: Vec::new(), parents: Vec::new(), table: vec![0; 1 << 16] };
        seen.add(first, 0, 0);
        seen
    }

    fn place(&self, number: u128) -> usize {
        let mask = self.table.len() - 1;
        let mixed = ((number >> 64) as u64 ^ (number as u64).rotate_left(23)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut at = (mixed >> 20) as usize & mask;
        while self.table[at] != 0 && self.numbers[self.table[at] as usize - 1] != number {
            at = (at + 1) & mask;
        }
        at
    }

    /// Whether the number is new.
    fn add(&mut self, number: u128, parent: u32, depth: u32) -> bool {
        let at = self.place(number);
        if self.table[at] != 0 {
            return false;
        }
        self.numbers.push(number);
        self.parents.push((parent, depth));
        self.table[at] = u32::try_from(self.numbers.len()).expect("fewer states than 2^32");
        if self.numbers.len() * 2 > self.table.len() {
            self.grow();
        }
        true
    }

    fn grow(&mut self) {
        self.table = vec![0; self.table.len() * 2];
        for n in 0..self.numbers.len() {
            let at = self.place(self.numbers[n]);
            self.table[at] = u32::try_from(n + 1).expect("fewer states than 2^32");
        }
    }
}

/// How a world is explored.
pub(crate) struct Plan {
    pub(crate) lattice: Lattice,
    pub(crate) codec: Codec,
    /// Only the driver moves the pages of its files: its books must be true.
    pub(crate) driven: bool,
}

type Small<const P: usize, const V: usize, const U: usize, const G: usize, const C: usize> = World<P, V, U, G, C>;

/// Explores everything that can be reached.
pub(crate) fn explore<const P: usize, const V: usize, const U: usize, const G: usize, const C: usize>(
    plan: &Plan,
    first: &Small<P, V, U, G, C>,
    cells: &mut Cells,
) -> Result<Count, String> {
    let start = plan.codec.canonical(first).ok_or("the first state does not fit its number")?;
    let mut seen = Seen::new(start);
    let mut count = Count::default();
    let mut next = 0;
    while next < seen.numbers.len() {
        let from = plan.codec.decode(seen.numbers[next], first);
        let depth = seen.parents[next].1;
        let mut wrong = None;
        plan.lattice.plays(&from, &mut |play| {
            if wrong.is_some() {
                return;
            }
            let result = act(plan, &from, play, &mut count, cells);
            wrong = result.and_then(|to| keep(plan, to, &mut seen, next as u32, depth, &mut count)).err();
        });
        if let Some(why) = wrong {
            return Err(format!("{why}\n{}", way(plan, first, &seen, next)));
        }
        next += 1;
    }
    count.states = seen.numbers.len() as u64;
    Ok(count)
}

/// Plays, and returns the state that it leads to if that is another.
fn act<const P: usize, const V: usize, const U: usize, const G: usize, const C: usize>(
    plan: &Plan,
    from: &Small<P, V, U, G, C>,
    play: &Play<'_>,
    count: &mut Count,
    cells: &mut Cells,
) -> Result<Option<Small<P, V, U, G, C>>, String> {
    let mut world = *from;
    for (n, (op, env)) in play.ops().enumerate() {
        if matches!(op, Op::Guest { cpu, .. } if world.cpu(*cpu).is_none()) {
            continue;
        }
        count.operations += 1;
        let outcome = decide(&world, op, env);
        cells.hit(op, &outcome);
        if outcome.done.is_none() {
            count.refused += 1;
            if outcome.refused.is_empty() {
                return Err(format!("I7 is broken: nothing may be the answer of {op:?}"));
            }
            if n == 0 {
                break;
            }
            continue;
        }
        let before = world;
        apply(&mut world, op, env);
        invariant::change(&before, op, &outcome, &world).map_err(|b| told(&b, op))?;
        if plan.driven {
            invariant::driven(&world).map_err(|b| told(&b, op))?;
        }
    }
    Ok((world != *from).then_some(world))
}

fn told(broken: &Broken, op: &Op) -> String {
    format!("I{} is broken at {}: {}; by {op:?}", broken.rule, broken.at, broken.what)
}

/// Adds a state that is new, and within the border.
fn keep<const P: usize, const V: usize, const U: usize, const G: usize, const C: usize>(
    plan: &Plan,
    to: Option<Small<P, V, U, G, C>>,
    seen: &mut Seen,
    parent: u32,
    depth: u32,
    count: &mut Count,
) -> Result<(), String> {
    let Some(world) = to else { return Ok(()) };
    if beyond(plan, &world) {
        count.border += 1;
        return invariant::standing(&world).map_err(|b| format!("I{}: {} at {}", b.rule, b.what, b.at));
    }
    let number = plan.codec.canonical(&world).ok_or_else(|| format!("a state does not fit its number: {world:?}"))?;
    if seen.add(number, parent, depth + 1) {
        count.depth = count.depth.max(depth + 1);
        // A state that its number does not hold whole would be explored wrongly.
        let again = plan.codec.canonical(&plan.codec.decode(number, &world));
        if again != Some(number) {
            return Err(format!("the number of a state does not hold it: {world:?}"));
        }
        invariant::standing(&world).map_err(|b| format!("I{}: {} at {}", b.rule, b.what, b.at))?;
    }
    Ok(())
}

/// Frames for guests stay guests', frames for pools stay pools'.
fn beyond<const P: usize, const V: usize, const U: usize, const G: usize, const C: usize>(
    plan: &Plan,
    world: &Small<P, V, U, G, C>,
) -> bool {
    world.frames().any(|(pfn, page)| match page.owner {
        Owner::Pool { .. } => plan.lattice.data.contains(&pfn),
        Owner::Guest { .. } => plan.lattice.pool.contains(&pfn),
        Owner::Host => plan.lattice.pool.contains(&pfn) && page.borrows > 0,
        Owner::NotMemory | Owner::NoMap | Owner::El2 => false,
    })
}

/// The states on the shortest way to one, each by what differs from boot.
fn way<const P: usize, const V: usize, const U: usize, const G: usize, const C: usize>(
    plan: &Plan,
    first: &Small<P, V, U, G, C>,
    seen: &Seen,
    last: usize,
) -> String {
    let mut steps = vec![last];
    while let Some(&at) = steps.last().filter(|n| **n != 0) {
        steps.push(seen.parents[at].0 as usize);
    }
    let mut lines = String::new();
    for pair in steps.iter().rev().collect::<Vec<_>>().windows(2) {
        let from = plan.codec.decode(seen.numbers[*pair[0]], first);
        lines += &format!("  {}\n", ops_between(plan, &from, seen.numbers[*pair[1]]));
    }
    lines + &format!("  in {:?}", plan.codec.decode(seen.numbers[last], first))
}

/// A play that leads from a state to a number.
fn ops_between<const P: usize, const V: usize, const U: usize, const G: usize, const C: usize>(
    plan: &Plan,
    from: &Small<P, V, U, G, C>,
    to: u128,
) -> String {
    let mut found = String::new();
    plan.lattice.plays(from, &mut |play| {
        let mut world = *from;
        for (op, env) in play.ops() {
            if decide(&world, op, env).done.is_some() {
                apply(&mut world, op, env);
            }
        }
        if found.is_empty() && plan.codec.canonical(&world) == Some(to) {
            found = play.ops().map(|(op, _)| format!("{op:?}")).collect::<Vec<_>>().join(", ");
        }
    });
    found
}
