// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pages given to a VM that runs, and taken back from one that has ended, by single calls past the driver.
//!
//! Guarantees that every round of a row meets the host's tables in one state, on each machine and in each directory:
//! frames stand in blocks of 2 MiB that are this program's alone, and whether those are whole or split before the call
//! is part of the row, and judged by EL2's own counter of splits. It begins at a tick of the host's, so that none of
//! them falls into it: a call that an interrupt cuts short is made again for the rest, which is checked anew.

use freehold_uapi::hvc::*;

use super::{STEP, after_tick, marked};
use crate::hostile::Hostile;
use crate::proto::RAM_BASE;
use crate::raw::{Arena, end};
use crate::rows;
use crate::switch::Bench;

/// The guest's frames that are declared and not backed.
const GFN: u64 = (RAM_BASE >> 12) + 512;
/// VMs of a row whose calls are few. One round that something of the host falls into is not the one in the middle.
const ROUNDS: u64 = 5;
/// Blocks of frames that stand apart.
const BLOCKS: u64 = 256;

/// One VM per batch.
pub(super) fn batches() -> Result<(), String> {
    let hostile = Hostile::open()?;
    let told = (0..ROUNDS).filter(|_| marked(rows::VERSION, || hostile.call(VERSION, &[])) == SUCCESS).count();
    STEP.same("the version is told", ROUNDS, told);
    for (donate, reclaim, size, times, rounds) in [
        (rows::DONATE_1, rows::RECLAIM_1, 1, 32, 2),
        (rows::DONATE_64, rows::RECLAIM_64, 64, 8, 2),
        (rows::DONATE_512, rows::RECLAIM_512, 512, 1, ROUNDS),
    ] {
        for _ in 0..rounds {
            runs(&hostile, (donate, reclaim), size, times)?;
        }
    }
    for (row, count) in [(rows::DONATE_LIST_64, 64), (rows::DONATE_LIST_256, 256)] {
        for _ in 0..ROUNDS {
            let arena = Arena::new(&hostile, 9)?;
            let frames: Vec<u64> = (0..count).map(|n| arena.first + 2 * n).collect();
            scattered(&hostile, row, &frames, 1, None)?;
            free(&hostile, &[arena]);
        }
    }
    apart(&hostile)
}

fn runs(hostile: &Hostile, (donate, reclaim): (u64, u64), size: u64, times: u64) -> Result<(), String> {
    let bench = Bench::new(hostile, false)?;
    let arena = Arena::new(hostile, 9)?;
    let splits = hostile.counter(COUNTER_SPLITS, 0);
    let mut done = 0;
    after_tick();
    for batch in 0..times {
        done += marked(donate, || {
            whole(size, |done| {
                let at = batch * size + done;
                hostile.raw(MEM_DONATE.into(), &[bench.handle, arena.first + at, GFN + at, size - done, 0])
            })
        });
    }
    STEP.same(&format!("pages donated, {size} by {size}"), size * times, done);
    let splits = hostile.counter(COUNTER_SPLITS, 0) - splits;
    STEP.same(&format!("blocks that pages split, {size} by {size}"), 1, splits);
    let _ = hostile.call(VM_DESTROY, &[bench.handle]);
    let mut back = 0;
    after_tick();
    for batch in 0..times {
        back += marked(reclaim, || {
            whole(size, |done| {
                let first = arena.first + batch * size + done;
                hostile.raw(VM_RECLAIM.into(), &[bench.handle, first, size - done])
            })
        });
    }
    STEP.same(&format!("pages taken back, {size} by {size}"), size * times, back);
    let frames: Vec<u64> = arena.all().collect();
    leave(hostile, bench, &frames);
    free(hostile, &[arena]);
    Ok(())
}

/// Calls again for what an interrupt left over. How many were done until one was refused.
fn whole(size: u64, call: impl Fn(u64) -> [u64; 18]) -> u64 {
    let mut done = 0;
    while done < size {
        match call(done) {
            [0, more, ..] => done += more,
            _ => break,
        }
    }
    done
}

/// One frame of each of many blocks: all of them whole before, or all of them split.
fn apart(hostile: &Hostile) -> Result<(), String> {
    let mut blocks = (0..BLOCKS).map(|_| Arena::new(hostile, 9)).collect::<Result<Vec<_>, _>>()?;
    // As the driver does; which of them the host happened to give first is nobody's cost.
    blocks.sort_by_key(|block| block.first);
    for (row, split_row, count) in
        [(rows::DONATE_WHOLE_64, rows::DONATE_SPLIT_64, 64), (rows::DONATE_WHOLE_256, rows::DONATE_SPLIT_256, BLOCKS)]
    {
        let frames: Vec<u64> = blocks.iter().take(usize::try_from(count).unwrap_or(0)).map(|b| b.first).collect();
        for _ in 0..ROUNDS {
            scattered(hostile, row, &frames, count, None)?;
        }
        for _ in 0..ROUNDS {
            // What the same VM was given before it is measured: the frame behind each of them.
            scattered(hostile, split_row, &frames, 0, Some(1))?;
        }
    }
    free(hostile, &blocks);
    Ok(())
}

/// A list of single frames, which is to split so many blocks; where told, a frame so far behind each of them is given before.
fn scattered(hostile: &Hostile, row: u64, frames: &[u64], splits: u64, before: Option<u64>) -> Result<(), String> {
    let bench = Bench::new(hostile, false)?;
    let (list, count) = (Arena::new(hostile, 0)?, frames.len() as u64);
    let mut given = frames.to_vec();
    if let Some(behind) = before {
        let others: Vec<u64> = frames.iter().map(|pfn| pfn + behind).collect();
        let done = donated(hostile, &bench, &list, &records(&others, GFN + BLOCKS));
        STEP.same(&format!("{count} blocks are split before"), count, done);
        given.extend(others);
    }
    let words = records(frames, GFN);
    let were = hostile.counter(COUNTER_SPLITS, 0);
    after_tick();
    let done = marked(row, || donated(hostile, &bench, &list, &words));
    STEP.same(&format!("{count} scattered pages donated"), count, done);
    let split = hostile.counter(COUNTER_SPLITS, 0) - were;
    STEP.same(&format!("blocks that {count} scattered pages split"), splits, split);
    leave(hostile, bench, &given);
    free(hostile, &[list]);
    Ok(())
}

/// The words of a list of single frames, the first of them for the guest's frame `gfn`.
fn records(frames: &[u64], gfn: u64) -> Vec<u64> {
    let one = |(gfn, pfn): (u64, &u64)| {
        let record = Record::new(*pfn, gfn, 1);
        [record.pfn, record.gfn_count]
    };
    (gfn..).zip(frames).flat_map(one).collect()
}

/// Donates what the words name; how many went.
fn donated(hostile: &Hostile, bench: &Bench<'_>, list: &Arena, words: &[u64]) -> u64 {
    let count = words.len() as u64 / 2;
    whole(count, |done| {
        // What is left moves to the front; the host pays for that, not EL2.
        let rest = &words[usize::try_from(2 * done).unwrap_or(0)..];
        let _ = hostile.fill(list.first, rest);
        hostile.raw(MEM_DONATE_LIST.into(), &[bench.handle, list.first, count - done, 0])
    })
}

fn leave(hostile: &Hostile, bench: Bench<'_>, frames: &[u64]) {
    end(hostile, bench.handle, frames);
    bench.close();
}

fn free(hostile: &Hostile, blocks: &[Arena]) {
    let freed = blocks.iter().filter(|block| hostile.free(block.first).is_ok()).count();
    STEP.same("blocks that the host has again", blocks.len(), freed);
}
