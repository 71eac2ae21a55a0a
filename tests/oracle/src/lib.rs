// SPDX-License-Identifier: MIT OR Apache-2.0
//! What must happen: the executable specification of who owns a page, and of a VM's and a vCPU's life.
//!
//! It is written from the ABI document and the design, not from the code, and in another shape on purpose: records of
//! pages instead of page tables, so that a mistake in one does not repeat in the other. It predicts what the
//! documents fix. What they leave open it permits ([`Outcome`] is a set), and what no document can fix (which slot, how many
//! table pages, when an interrupt comes) it is told ([`Env`]).
//!
//! * [`step`] decides an [`Op`] and carries it out on any [`State`]: a whole small [`World`], or a part of a real machine.
//! * [`invariant`] holds I1 to I9 against a world and against a transition. It does not use the step.
//!
//! No allocation, no panic, no dependency but the ABI: it runs inside a debug `el2` as well.
#![no_std]
#![forbid(unsafe_code)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

pub mod code;
pub mod invariant;
pub mod lattice;
mod op;
mod outcome;
mod record;
mod state;
mod step;
mod world;

pub use op::{Act, Call, Env, Move, Op, Request, Stray, Who};
pub use outcome::{Debts, Done, Outcome, REFUSED, Statuses, Value};
pub use record::{Content, File, Kind, Life, Mark, Owner, Page, Pending, Power, Vcpu, VcpuLife, Vm};
pub use state::{Machine, State};
pub use step::{apply, decide, step};
pub use world::{RANGES, World};
