// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every operation of a small world: what can be asked of it, and each argument wrong in each way.
//!
//! Sound values are combined with each other; a wrong value (a stale handle, a count of zero or far too large, a
//! frame of `el2`, a guest frame outside of RAM) stands among sound ones, one at a time. Operations that belong
//! together form one [`Play`]: where a guest runs on the only CPU, it enters, acts and leaves.

mod calls;
mod guests;
mod moves;

use core::ops::Range;

use crate::op::{Call, Env, Op, Who};
use crate::state::State;

/// What a world's operations are drawn from.
#[derive(Clone, Debug)]
pub struct Lattice {
    /// Frames for guests.
    pub data: Range<u64>,
    /// Frames for pools.
    pub pool: Range<u64>,
    /// Frames that can never be given: `el2`'s, `no-map`, no memory.
    pub odd: [u64; 3],
    /// Guest frames of the ranges.
    pub gfns: Range<u64>,
    /// A guest frame within the address space that no range holds.
    pub outside: u64,
    /// Ranges that are declared; the first is the usual one.
    pub ranges: &'static [(u64, u64)],
    /// What takes part.
    pub part: Part,
}

/// What takes part in a world.
#[allow(clippy::struct_excessive_bools, reason = "each is one independent choice")]
#[derive(Clone, Copy, Debug, Default)]
pub struct Part {
    /// The host gives and takes pages by calls of its own, with or against the driver's rules.
    pub raw: bool,
    /// Guests share, unshare and relinquish.
    pub requests: bool,
    /// Pages are donated revocable.
    pub revocable: bool,
    /// Runs and lists of two.
    pub pairs: bool,
    /// Guests run beside the host's calls: entry, act and exit are plays of their own.
    pub split: bool,
    /// Requests and answers stay pending from one play to the next.
    pub pending: bool,
    /// vCPUs are kicked, load from devices, crash and turn off.
    pub vcpus: bool,
    /// Ordinary VMs.
    pub ordinary: bool,
    /// The driver moves, with this many attempts at a time.
    pub attempts: u8,
    /// References at a time to one page that are told apart.
    pub holders: u8,
    /// Pool pages are used up.
    pub pools: bool,
    /// Wrong arguments of calls that no state could make right.
    pub wrong: bool,
    /// Interrupt controllers and the host's wires.
    pub gic: bool,
    /// Guests say what of their devices the host sees, and reach for them.
    pub guard: bool,
}

/// One to five operations that happen one after the other.
///
/// They end where the first is refused. What a guest does on a CPU that runs none is left out.
#[derive(Clone, Copy, Debug)]
pub struct Play<'a> {
    ops: [Option<(Op, Env<'a>)>; 5],
}

impl<'a> Play<'a> {
    fn one(op: Op, env: Env<'a>) -> Self {
        Self { ops: [Some((op, env)), None, None, None, None] }
    }

    fn then(mut self, op: Op, env: Env<'a>) -> Self {
        if let Some(free) = self.ops.iter_mut().find(|o| o.is_none()) {
            *free = Some((op, env));
        }
        self
    }

    /// Its operations in order.
    pub fn ops(&self) -> impl Iterator<Item = &(Op, Env<'a>)> {
        self.ops.iter().flatten()
    }
}

impl Lattice {
    /// Calls `f` with every play that fits the state.
    pub fn plays(&self, s: &impl State, f: &mut impl FnMut(&Play<'_>)) {
        calls::each(self, s, f);
        guests::each(self, s, f);
        moves::each(self, s, f);
    }

    /// Frames that are RAM.
    fn ram(&self) -> impl Iterator<Item = u64> + '_ {
        self.data.clone().chain(self.pool.clone())
    }

    /// Frames that the host may name as a pool's. An honest driver takes fresh ones.
    fn pools(&self) -> Range<u64> {
        if self.part.raw { self.data.start..self.pool.end } else { self.pool.clone() }
    }

    /// Every live or free slot as a handle, one that ended, and one that never was.
    fn whos(&self, slots: u8) -> impl Iterator<Item = Who> + use<> {
        let wrong = [Who::Ended, Who::Never].into_iter().take(if self.part.wrong { 2 } else { 0 });
        (0..slots).map(Who::Slot).chain(wrong)
    }
}

/// A host call on a CPU that can make one.
fn call(s: &impl State, call: Call) -> Option<Op> {
    let cpu = (0..s.machine().cpus).rev().find(|c| s.cpu(*c).is_none())?;
    Some(Op::Host { cpu, call })
}
