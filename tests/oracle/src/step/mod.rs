// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an operation may answer, and what it changes.
//!
//! [`decide`] collects every objection that holds: where several do, and no document says which one wins, any may be
//! the answer. An objection that cannot be told without an earlier one's subject (frames against a VM that a handle
//! does not name) is left out.

mod change;
mod devices;
mod driver;
mod frames;
mod guest;
mod host;
mod memory;
mod power;
mod touch;
mod vcpu;
mod vm;

use crate::op::{Env, Op};
use crate::outcome::Outcome;
use crate::state::State;

/// Says what may come of an operation. Changes nothing.
#[must_use]
pub fn decide(state: &impl State, op: &Op, env: &Env<'_>) -> Outcome {
    match *op {
        Op::Host { cpu: _, ref call } => host::decide(state, call, env),
        Op::Guest { cpu, ref act } => guest::decide(state, cpu, act),
        Op::Touch { pfn, write: _, from } => touch::decide(state, pfn, from),
        Op::Driver(ref step) => driver::decide(state, step, env),
    }
}

/// Carries out an operation that [`decide`] said may be done. What it returns there is what it does here.
pub fn apply(state: &mut impl State, op: &Op, env: &Env<'_>) {
    match *op {
        Op::Host { cpu, ref call } => host::apply(state, cpu, call, env),
        Op::Guest { cpu, ref act } => guest::apply(state, cpu, act),
        Op::Touch { pfn, write, from } => touch::apply(state, pfn, write, from),
        Op::Driver(ref step) => driver::apply(state, step, env),
    }
}

/// Decides an operation, and carries it out if it may be done.
///
/// Where it may be done or refused (the outcome has both), the caller that saw a refusal must not use this but
/// [`decide`] alone.
pub fn step(state: &mut impl State, op: &Op, env: &Env<'_>) -> Outcome {
    let outcome = decide(state, op, env);
    if outcome.done.is_some() {
        apply(state, op, env);
    }
    outcome
}
