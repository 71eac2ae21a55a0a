// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a guest lets its accesses outside RAM reach, beside a set of frames.

use std::collections::BTreeSet;

use super::rig::{GUEST_RAM, RAM, Rig, gfn};
use crate::{GfnRun, Guest, Kind, MAX_DEVICES, Refused};

const AT: u64 = 0x1000;

fn run(at: u64, count: u64) -> GfnRun {
    GfnRun::decode(at, count).unwrap()
}

fn running(rig: &mut Rig) -> &mut Guest {
    rig.with_vm(0, Kind::Protected, RAM, 16);
    rig.start(0);
    &mut rig.guests[0]
}

/// How many runs a set of frames is.
fn runs(set: &BTreeSet<u64>) -> usize {
    set.iter().filter(|at| !set.contains(&(*at + 1))).count()
}

#[test]
fn ram_is_no_device_and_there_are_so_many_runs_and_no_more() {
    let mut rig = Rig::new();
    rig.with_vm(0, Kind::Protected, RAM, 16);
    assert_eq!(rig.guests[0].set_open(run(AT, 1), true), Err(Refused::WrongState), "nobody runs who could say so");
    rig.start(0);
    let guest = &mut rig.guests[0];
    for (at, count) in [(GUEST_RAM, 1), (GUEST_RAM - 1, 2), (0, 1 << 28)] {
        for open in [true, false] {
            assert_eq!(guest.set_open(run(at, count), open), Err(Refused::RamOverlap), "{at:#x}");
        }
    }
    guest.guard();
    for n in 0..MAX_DEVICES as u64 {
        assert_eq!(guest.set_open(run(AT + 2 * n, 1), true), Ok(()));
    }
    let last = AT + 2 * MAX_DEVICES as u64;
    let refused = Err(Refused::TooManyRanges);
    assert_eq!(guest.set_open(run(last, 1), true), refused);
    assert!(guest.bars(Some(gfn(last))), "a refusal changes nothing");
    assert_eq!(guest.set_open(run(AT, 1), true), Ok(()), "it is open");
    assert_eq!(guest.set_open(run(AT + 1, 1), true), Ok(()), "two become one");
    assert_eq!(guest.set_open(run(last, 1), true), Ok(()));
    assert_eq!(guest.set_open(run(AT + 1, 1), false), refused, "one would become two");
    assert!(!guest.bars(Some(gfn(AT + 1))), "a refusal changes nothing");
}

#[test]
fn a_guest_that_guards_nothing_is_barred_from_nothing_and_ram_is_never_barred() {
    let mut rig = Rig::new();
    let guest = running(&mut rig);
    guest.set_open(run(AT, 1), true).unwrap();
    let beyond = [Some(gfn(AT)), Some(gfn(AT + 1)), Some(gfn(GUEST_RAM)), None];
    assert!(!beyond.iter().any(|at| guest.bars(*at)));
    guest.guard();
    assert_eq!(beyond.map(|at| guest.bars(at)), [false, true, false, true]);
    guest.guard();
    guest.set_open(run(AT, 1), false).unwrap();
    assert_eq!(beyond.map(|at| guest.bars(at)), [true, true, false, true], "it guards for good");
    rig.die(0);
    rig.return_pool(0, RAM, 16).unwrap();
    assert!(!rig.guests[0].bars(None));
    let guest = running(&mut rig);
    assert!(!guest.bars(Some(gfn(AT))), "what the former VM of the slot has said is forgotten");
}

#[test]
fn what_is_open_is_what_was_opened_and_not_shut_since() {
    const STEPS: u32 = if cfg!(miri) { 30 } else { 10_000 };
    let mut rig = Rig::new();
    let guest = running(&mut rig);
    guest.guard();
    let (mut set, mut refused) = (BTreeSet::new(), 0);
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for step in 0..STEPS {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let (at, count) = (AT + random % 130, 1 + (random >> 20) % 3);
        let open = random >> 40 & 7 < 5;
        let mut next = set.clone();
        for frame in at..at + count {
            if open {
                next.insert(frame)
            } else {
                next.remove(&frame)
            };
        }
        let fits = runs(&next) <= MAX_DEVICES;
        let done = guest.set_open(run(at, count), open);
        assert_eq!(done, if fits { Ok(()) } else { Err(Refused::TooManyRanges) }, "step {step}");
        refused += u32::from(!fits);
        if fits {
            set = next;
        }
        for frame in AT - 1..AT + 134 {
            assert_eq!(guest.bars(Some(gfn(frame))), !set.contains(&frame), "step {step}, {frame:#x}");
        }
        // Full again and again, and then empty.
        if random >> 50 & 63 == 0 {
            guest.set_open(run(AT, 140), false).unwrap();
            set.clear();
            (0..MAX_DEVICES as u64).for_each(|n| guest.set_open(run(AT + 4 * n, 1), true).unwrap());
            set.extend((0..MAX_DEVICES as u64).map(|n| AT + 4 * n));
        }
    }
    assert!(cfg!(miri) || refused > 20, "{refused}");
}
