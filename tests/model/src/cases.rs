// SPDX-License-Identifier: MIT OR Apache-2.0
//! The cases of the suite `model`, each with the numbers that it must come to: a world that shrank is a finding.

use freehold_oracle::{Call, Done, Env, Mark, Op as Said, Outcome, Statuses, decide};
use freehold_uapi::{guest, hvc};

use crate::board::Fault;
use crate::cells;
use crate::large;
use crate::lockstep::Decide;
use crate::pair::{self, Pair};
use crate::races::{self, Depth};
use crate::search::Report;
use crate::small::{self, Lattice, Shape, Small};

/// One case.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Its name.
    pub name: &'static str,
    /// What it shows.
    pub what: &'static str,
    /// Runs it; what was seen, or what is wrong.
    pub run: fn() -> Result<String, String>,
}

/// All cases.
pub const CASES: &[Case] = &[
    Case {
        name: "lockstep-1x1x2",
        what: "one page, one VM, two guest frames: every call, every act but of devices and CPU_OFF, right and wrong",
        run: || expect(small::exhaust::<8, 1, 2>(full(1, 1, 2), Fault::None, decide)?, [2_685, 569_913, 225]),
    },
    Case {
        name: "lockstep-2x1x2",
        what: "two pages, one VM, two guest frames: the same",
        run: || expect(small::exhaust::<9, 1, 2>(full(2, 1, 2), Fault::None, decide)?, [26_179, 5_884_946, 227]),
    },
    Case {
        name: "lockstep-2x2x2",
        what: "two pages, two VMs, two guest frames: all that moves pages, and what is refused about it",
        run: || expect(small::exhaust::<13, 2, 2>(owners(2, 2, 2), Fault::None, decide)?, [60_476, 5_125_414, 72]),
    },
    Case {
        name: "ordinary-1x1x2",
        what: "one page, one VM of either kind, two guest frames: loans, what is done with them, and what is refused",
        run: || expect(small::exhaust::<8, 1, 2>(ordinary(1, 1, 2), Fault::None, decide)?, [851, 62_770, 101]),
    },
    Case {
        name: "ordinary-2x2x1",
        what: "two pages, two VMs of either kind, one guest frame: the same",
        run: || expect(small::exhaust::<13, 2, 1>(ordinary(2, 2, 1), Fault::None, decide)?, [49_195, 4_953_634, 96]),
    },
    Case {
        name: "pair-1x1x1",
        what: "one page, one VM of two vCPUs, one guest frame: each starts and stops the other, and both ask",
        run: || expect(pair::exhaust::<9>(pair::PAIR, decide)?, [5_066, 197_466, 69]),
    },
    Case {
        name: "guarded-1x1x4",
        what: "one page, one VM of either kind, a guest frame of RAM and three of devices: what a guest lets out",
        run: || expect(small::exhaust::<8, 1, 4>(guarded(1, 4), Fault::None, decide)?, [460, 25_141, 51]),
    },
    Case {
        name: "guarded-1x2x2",
        what: "one page, two VMs of either kind, a guest frame of RAM and one of devices: what each guest lets out",
        run: || expect(small::exhaust::<12, 2, 2>(guarded(2, 2), Fault::None, decide)?, [8_744, 697_781, 54]),
    },
    Case {
        name: "apart-1x2x1",
        what: "one page, two VMs, one guest frame: pools that grow, requests that wait, kicks, CPU_OFF, in any order",
        run: || expect(small::exhaust::<12, 2, 1>(apart(1, 2, 1), Fault::None, decide)?, [17_784, 1_370_622, 88]),
    },
    Case {
        name: "idle-vcpus",
        what: "two pages, one VM, two guest frames: the same while the vCPU is kicked, waits for a load, or is off",
        run: || expect(small::exhaust::<9, 1, 2>(vcpus(2, 1, 2), Fault::None, decide)?, [2_508, 131_800, 71]),
    },
    Case {
        name: "idle-vcpus-2x2x2",
        what: "two pages, two VMs, two guest frames: the same",
        run: || expect(small::exhaust::<13, 2, 2>(vcpus(2, 2, 2), Fault::None, decide)?, [301_426, 26_969_523, 79]),
    },
    Case {
        name: "lockstep-3x2x2",
        what: "three pages, two VMs, two guest frames: all that moves pages, and what is refused about it",
        run: || expect(small::exhaust::<14, 2, 2>(owners(3, 2, 2), Fault::None, decide)?, [233_899, 23_553_558, 72]),
    },
    Case {
        name: "interleavings",
        what: "two CPUs in calls at once, cut at every lock, word and entry: some serial order explains it",
        run: || interleaved(races::exhaust::<8, 1, 1, 1>(racing(1, 1, 1), Depth::Twice, true)?, [138, 12_945, 455_325]),
    },
    Case {
        name: "interleavings-1x1x2",
        what: "the same with two guest frames, cut once where both calls could be done",
        run: || interleaved(races::exhaust::<8, 1, 1, 2>(racing(1, 1, 2), Depth::Once, true)?, [375, 24_859, 538_264]),
    },
    Case {
        name: "interleavings-2x1x1",
        what: "the same with two pages, cut once where both calls could be done",
        run: || interleaved(races::exhaust::<9, 1, 1, 1>(racing(2, 1, 1), Depth::Once, true)?, [357, 13_395, 251_530]),
    },
    Case {
        name: "interleavings-1x2x1",
        what: "the same with two VMs, cut once where both calls could be done",
        run: || {
            interleaved(races::exhaust::<12, 2, 1, 1>(racing(1, 2, 1), Depth::Once, true)?, [5_417, 468_460, 9_944_062])
        },
    },
    Case {
        name: "interleavings-of-loans",
        what: "one page, one VM of either kind: loans, lists, interrupts and registers of two CPUs at once",
        run: || interleaved(races::exhaust::<8, 1, 1, 1>(RACES_OF_LOANS, Depth::Once, true)?, [133, 2_726, 52_074]),
    },
    Case {
        name: "interleavings-of-a-pair",
        what: "one page, one VM of two vCPUs: each runs on a CPU of its own, starts and stops the other, and asks",
        run: || interleaved(races::exhaust::<9, 1, 2, 1>(RACES_OF_A_PAIR, Depth::Once, true)?, [131, 4_801, 95_494]),
    },
    Case {
        name: "block",
        what: "a 2 MB block that is split, given away in part and as a whole, and rejoined",
        run: || expect(large::block()?, [619, 10_216, 35]),
    },
    Case { name: "no-memory", what: "tables that the pool is short of, by every number", run: large::no_memory },
    Case { name: "batches", what: "lists that are wrong in the middle, in every way", run: large::batches },
    Case { name: "cells", what: "every documented outcome of every call is hit, or has its reason", run: cells },
    Case { name: "controls", what: "each planted fault, of the machine or of the oracle, is found", run: controls },
];

const fn full(pages: u64, vms: u8, gfns: u64) -> Shape {
    Shape { pages, vms, gfns, lattice: Lattice::Full }
}

const fn owners(pages: u64, vms: u8, gfns: u64) -> Shape {
    Shape { pages, vms, gfns, lattice: Lattice::Owners }
}

const fn apart(pages: u64, vms: u8, gfns: u64) -> Shape {
    Shape { pages, vms, gfns, lattice: Lattice::Apart }
}

const fn ordinary(pages: u64, vms: u8, gfns: u64) -> Shape {
    Shape { pages, vms, gfns, lattice: Lattice::Ordinary }
}

const fn guarded(vms: u8, gfns: u64) -> Shape {
    Shape { pages: 1, vms, gfns, lattice: Lattice::Guarded }
}

const fn vcpus(pages: u64, vms: u8, gfns: u64) -> Shape {
    Shape { pages, vms, gfns, lattice: Lattice::Vcpus }
}

/// States, transitions and cells must be as they were when this was written.
fn expect(report: Report, [states, transitions, cells]: [u64; 3]) -> Result<String, String> {
    let seen = [report.states as u64, report.tally.transitions, report.tally.cells.len() as u64];
    if seen == [states, transitions, cells] {
        Ok(report.text())
    } else {
        Err(format!(
            "{}states, transitions, cells: {seen:?}, and not {:?}: if the world was meant to change, say so here",
            report.text(),
            [states, transitions, cells]
        ))
    }
}

const fn racing(pages: u64, vms: u8, gfns: u64) -> Shape {
    Shape { pages, vms, gfns, lattice: Lattice::Races }
}

const RACES_OF_LOANS: Shape = Shape { pages: 1, vms: 1, gfns: 1, lattice: Lattice::RacesOfLoans };

const RACES_OF_A_PAIR: Shape = Shape { pages: 1, vms: 1, gfns: 1, lattice: Lattice::RacesOfPair };

/// States, pairs and interleavings must be as they were when this was written.
fn interleaved(seen: races::Seen, expected: [u64; 3]) -> Result<String, String> {
    let found = [seen.states, seen.pairs, seen.runs];
    if found == expected {
        Ok(format!(
            "{} states, {} pairs of calls, {} interleavings, {} calls that found a vCPU busy",
            seen.states, seen.pairs, seen.runs, seen.busy
        ))
    } else {
        Err(format!("{found:?}, and not {expected:?}: if the world was meant to change, say so in cases.rs"))
    }
}

fn cells() -> Result<String, String> {
    let mut tally = small::exhaust::<8, 1, 2>(full(1, 1, 2), Fault::None, decide)?.tally;
    tally.add(&small::exhaust::<12, 2, 1>(owners(1, 2, 1), Fault::None, decide)?.tally);
    tally.add(&small::exhaust::<12, 2, 1>(ordinary(1, 2, 1), Fault::None, decide)?.tally);
    tally.add(&small::exhaust::<8, 1, 4>(guarded(1, 4), Fault::None, decide)?.tally);
    tally.add(&small::exhaust::<8, 1, 1>(apart(1, 1, 1), Fault::None, decide)?.tally);
    tally.add(&pair::exhaust::<9>(pair::PAIR, decide)?.tally);
    cells::judge(&tally)
}

type Tiny = Small<8, 1, 1>;

/// A control: something is wrong, and the search must say so.
fn find(name: &str, fault: Fault, wrong: Decide<Tiny>) -> Result<String, String> {
    match small::exhaust::<8, 1, 1>(owners(1, 1, 1), fault, wrong) {
        Ok(report) => Err(format!("{name}: not found in {} transitions", report.tally.transitions)),
        Err(found) => Ok(format!("{name}: after {found}")),
    }
}

fn controls() -> Result<String, String> {
    let found = [
        find("the host's TLB is not invalidated", Fault::KeepsHostTlb, decide)?,
        find("a VM's TLB is not invalidated", Fault::KeepsVmTlb, decide)?,
        find("another VM's TLB is invalidated", Fault::WrongVmTlb, decide)?,
        find("a scrub that does nothing", Fault::NoScrub, decide)?,
        find("a scrub that stops half way", Fault::HalfScrub, decide)?,
        find("an oracle that takes frames of a living VM back", Fault::None, reclaims_alive)?,
        find("an oracle that never takes a revocable frame", Fault::None, never_revokes)?,
        find("an oracle that lets a mapped guest frame be backed", Fault::None, maps_twice)?,
        match small::exhaust::<12, 2, 2>(guarded(2, 2), Fault::None, opens_for_all) {
            Ok(report) => {
                return Err(format!("one opens for all: not found in {} transitions", report.tally.transitions));
            }
            Err(found) => format!("an oracle in which what one guest opens is open to the other: after {found}"),
        },
        match pair::exhaust::<9>(pair::PAIR, starts_twice) {
            Ok(report) => return Err(format!("two starts: not found in {} transitions", report.tally.transitions)),
            Err(found) => format!("an oracle that lets a vCPU be started that is on: after {found}"),
        },
    ];
    match races::exhaust::<8, 1, 1, 1>(racing(1, 1, 1), Depth::Twice, false) {
        Ok(seen) => Err(format!("calls in each other's way: not found in {} interleavings", seen.runs)),
        Err(what) => Ok(format!("{}\ncalls in each other's way, taken for serial: {what}", found.join("\n"))),
    }
}

/// The outcome, but where it is refused for this reason alone it is done.
fn without(outcome: Outcome, reason: i64) -> Outcome {
    if outcome.refused == Statuses::one(reason) {
        Outcome::done(Done::Host([freehold_oracle::Value::Any; 4]))
    } else {
        outcome
    }
}

fn reclaims_alive(world: &Tiny, op: &Said, env: &Env<'_>) -> Outcome {
    let outcome = decide(world, op, env);
    match op {
        Said::Host { call: Call::VmReclaim { .. }, .. } => without(outcome, hvc::WRONG_STATE),
        _ => outcome,
    }
}

fn never_revokes(world: &Tiny, op: &Said, env: &Env<'_>) -> Outcome {
    let outcome = decide(world, op, env);
    if outcome.done == Some(Done::Revoked) { Outcome::done(Done::Injected) } else { outcome }
}

fn starts_twice(world: &Pair<9>, op: &Said, env: &Env<'_>) -> Outcome {
    let outcome = decide(world, op, env);
    if outcome.refused.has(guest::ALREADY_ON) {
        Outcome::done(Done::Answered([freehold_oracle::Value::Is(0); 4]))
    } else {
        outcome
    }
}

fn opens_for_all(world: &Small<12, 2, 2>, op: &Said, env: &Env<'_>) -> Outcome {
    let mut all = *world;
    for gfn in 0..2 {
        if world.marks.iter().any(|marks| marks[gfn] == Mark::Device) {
            all.marks.iter_mut().for_each(|marks| marks[gfn] = Mark::Device);
        }
    }
    decide(&all, op, env)
}

fn maps_twice(world: &Tiny, op: &Said, env: &Env<'_>) -> Outcome {
    let outcome = decide(world, op, env);
    match op {
        Said::Host { call: Call::MemDonate { .. }, .. } => without(outcome, hvc::GFN_POISONED),
        _ => outcome,
    }
}
