// SPDX-License-Identifier: MIT OR Apache-2.0
//! What stays the host's of a block that is split and rejoined stays written to meanwhile (A10), and VMs by the thousand
//! leave nothing behind (F7). Past the driver.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use freehold_uapi::hvc::*;

use crate::hostile::{Hostile, How, runs};
use crate::proto;
use crate::raw::{Arena, PATIENCE, end, resting, settle, status_name};
use crate::report::Step;
use crate::sys::{self, Mapping};

const GFN: u64 = proto::RAM_BASE >> 12;
/// How often the block is split and rejoined.
const SPLITS: u64 = 64;
const WORDS: usize = 512;

/// A VM that has so many frames of `pool`, and a guest frame number for each of its RAM.
fn create(hostile: &Hostile, pool: &Arena) -> Result<u64, String> {
    let x = hostile.raw(VM_CREATE.into(), &[VM_PROTECTED, 40, pool.first, pool.frames]);
    let status = match x[0].cast_signed() {
        SUCCESS => hostile.call(VM_RANGE, &[x[1], GFN, 64]),
        other => other,
    };
    if status == SUCCESS { Ok(x[1]) } else { Err(status_name(status)) }
}

/// What a writer did to its page.
struct Written {
    words: [u64; WORDS],
    stores: u64,
    lost: u64,
}

/// Writes to every word of the page in turn, and reads the one before it, until it is over.
fn write(page: &Mapping, over: &AtomicBool, stores: &AtomicU64) -> Written {
    let mut written = Written { words: [0; WORDS], stores: 0, lost: 0 };
    while !over.load(Ordering::Relaxed) {
        for at in 0..WORDS {
            written.stores += 1;
            written.words[at] = written.stores;
            page.store(8 * at, written.stores);
            let before = (at + WORDS - 1) % WORDS;
            written.lost += u64::from(page.load(8 * before) != written.words[before]);
        }
        stores.store(written.stores, Ordering::Relaxed);
    }
    written
}

fn differ(page: &Mapping, words: &[u64; WORDS]) -> usize {
    words.iter().enumerate().filter(|(at, word)| page.load(8 * at) != **word).count()
}

/// Splits and rejoins a block while each other CPU writes to a page of it.
pub(crate) fn split_under_writers(step: Step, hostile: &Hostile) -> Result<(), String> {
    let (block, pool) = (Arena::new(hostile, 9)?, Arena::new(hostile, 4)?);
    let before = resting(hostile);
    let counted = || [COUNTER_SPLITS, COUNTER_JOINS].map(|counter| hostile.counter(counter, 0));
    let (first, over) = (counted(), AtomicBool::new(false));
    let cpus = sys::cpus();
    let stores: Vec<AtomicU64> = (1..cpus).map(|_| AtomicU64::new(0)).collect();
    let page_of = |cpu: usize| block.first + 509 - cpu as u64;
    let writers: Vec<Result<Written, String>> = std::thread::scope(|scope| {
        let (over, stores) = (&over, &stores);
        let writer = |cpu: usize| {
            sys::pin_to(cpu);
            let page = hostile.map(page_of(cpu), 1).map_err(sys::errno_name)?;
            Ok(write(&page, over, &stores[cpu - 1]))
        };
        let threads: Vec<_> = (1..cpus).map(|cpu| scope.spawn(move || writer(cpu))).collect();
        sys::pin_to(0);
        let result = splits(hostile, &block, &pool, stores);
        over.store(true, Ordering::Relaxed);
        step.same("neighbours: a block is split and rejoined", "Ok(())", format!("{result:?}"));
        threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err("died".to_owned()))).collect()
    });
    let grown: Vec<u64> = counted().iter().zip(first).map(|(now, then)| now - then).collect();
    // The pool's block is split and joined with it.
    let often = grown.iter().all(|count| *count >= 2 * SPLITS);
    step.judged(
        "neighbours: splits and joins",
        &format!("{} of each or more", 2 * SPLITS),
        format!("{grown:?}"),
        often,
    );
    for (cpu, written) in (1..cpus).zip(writers) {
        let written = written?;
        let page = hostile.map(page_of(cpu), 1).map_err(sys::errno_name)?;
        let enough = written.stores > SPLITS;
        step.judged(&format!("neighbours: stores of CPU {cpu}"), "one for each or more", written.stores, enough);
        step.same(&format!("neighbours: of them lost, CPU {cpu}"), 0, written.lost);
        step.same(&format!("neighbours: at the end, CPU {cpu}"), 0, differ(&page, &written.words));
        hostile.access(page_of(cpu), How::Linear, Some(u64::MAX));
        step.same(&format!("neighbours: tools: one lost store, CPU {cpu}"), 1, differ(&page, &written.words));
    }
    settle(step, "neighbours: back as before", hostile, &before);
    let freed = [&block, &pool].map(|arena| hostile.free(arena.first));
    step.same("neighbours: frames are the host's again", "[Ok(0), Ok(0)]", format!("{freed:?}"));
    Ok(())
}

/// Each time, every writer has written since the last.
fn splits(hostile: &Hostile, block: &Arena, pool: &Arena, stores: &[AtomicU64]) -> Result<(), String> {
    let mut seen = vec![0; stores.len()];
    for round in 0..SPLITS {
        for (seen, stores) in seen.iter_mut().zip(stores) {
            *seen = newer(stores, *seen)?;
        }
        let vm = create(hostile, pool)?;
        // Another part of the block each time, always before the writers' pages.
        let from = block.first + round * 6;
        let x = hostile.raw(MEM_DONATE.into(), &[vm, from, GFN, 8, 0]);
        if x[0].cast_signed() != SUCCESS {
            return Err(format!("round {round}: {}", status_name(x[0].cast_signed())));
        }
        // An interrupt may have cut it short.
        let frames: Vec<u64> = (from..from + x[1]).chain(pool.all()).collect();
        match end(hostile, vm, &frames) {
            0 => {}
            left => return Err(format!("round {round}: {left} frames did not come back")),
        }
    }
    Ok(())
}

/// Waits until a writer has made more stores than `seen`.
fn newer(stores: &AtomicU64, seen: u64) -> Result<u64, String> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        match stores.load(Ordering::Relaxed) {
            now if now > seen => return Ok(now),
            _ => std::thread::yield_now(),
        }
    }
    Err(format!("a writer stands still after {seen} stores"))
}

/// So many VMs are made, run and ended, one after the other.
pub(crate) fn rounds(step: Step, count: u64) -> Result<(), String> {
    let hostile = Hostile::open()?;
    let pool = Arena::new(&hostile, 4)?;
    let before = resting(&hostile);
    let mut handles = BTreeSet::new();
    for number in 0..count {
        handles.insert(round(&hostile, &pool).map_err(|what| format!("round {number}: {what}"))?);
    }
    step.same("VMs that came and went, each with a handle of its own", count, handles.len());
    settle(step, "and left nothing", &hostile, &before);
    step.same("nor a frame out of reach", "", runs(&hostile.unreachable()));
    step.same("the pool is the host's", "Ok(0)", format!("{:?}", hostile.free(pool.first)));
    Ok(())
}

/// The handle of a VM that ran, as far as its first instruction, which is not there; it is gone again.
fn round(hostile: &Hostile, pool: &Arena) -> Result<u64, String> {
    let vm = create(hostile, pool)?;
    for (call, arguments) in [(VCPU_CREATE, &[vm, 0][..]), (VCPU_SET_REG, &[vm, 0, REG_PC, proto::RAM_BASE])] {
        match hostile.call(call, arguments) {
            SUCCESS => {}
            other => return Err(status_name(other)),
        }
    }
    let mut x = hostile.raw(VCPU_RUN.into(), &[vm, 0, 0]);
    while (x[0].cast_signed(), x[1]) == (SUCCESS, EXIT_IRQ) {
        x = hostile.raw(VCPU_RUN.into(), &[vm, 0, 0]);
    }
    let ran = (x[0].cast_signed(), x[1], x[2]) == (SUCCESS, EXIT_MEM_FAULT, GFN);
    match end(hostile, vm, &pool.all().collect::<Vec<_>>()) {
        0 if ran => Ok(vm),
        left => Err(format!("a run answered {:x?}, {left} frames left", &x[..3])),
    }
}
