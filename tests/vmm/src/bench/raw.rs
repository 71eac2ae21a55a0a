// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pages given to a VM that runs, and taken back from one that has ended, by single calls past the driver.

use freehold_uapi::hvc::*;

use super::{STEP, marked};
use crate::hostile::Hostile;
use crate::proto::RAM_BASE;
use crate::raw::{Arena, end};
use crate::rows;
use crate::switch::Bench;

/// The guest's frames that are declared and not backed.
const GFN: u64 = (RAM_BASE >> 12) + 512;

/// One VM per batch.
pub(super) fn batches() -> Result<(), String> {
    let hostile = Hostile::open()?;
    for (donate, reclaim, size, times) in [
        (rows::DONATE_1, rows::RECLAIM_1, 1, 32),
        (rows::DONATE_64, rows::RECLAIM_64, 64, 8),
        (rows::DONATE_512, rows::RECLAIM_512, 512, 1),
    ] {
        // Twice, for the first batch of all meets cold tables.
        for _ in 0..2 {
            runs(&hostile, (donate, reclaim), size, times)?;
        }
    }
    for (row, count) in [(rows::DONATE_LIST_64, 64), (rows::DONATE_LIST_256, 256)] {
        for _ in 0..2 {
            scattered(&hostile, row, count)?;
        }
    }
    Ok(())
}

fn runs(hostile: &Hostile, (donate, reclaim): (u64, u64), size: u64, times: u64) -> Result<(), String> {
    let bench = Bench::new(hostile, false)?;
    let arena = Arena::new(hostile, 9)?;
    let mut done = 0;
    for batch in 0..times {
        done += marked(donate, || {
            whole(size, |done| {
                let at = batch * size + done;
                hostile.raw(MEM_DONATE.into(), &[bench.handle, arena.first + at, GFN + at, size - done, 0])
            })
        });
    }
    STEP.same(&format!("pages donated, {size} by {size}"), size * times, done);
    let _ = hostile.call(VM_DESTROY, &[bench.handle]);
    let mut back = 0;
    for batch in 0..times {
        back += marked(reclaim, || {
            whole(size, |done| {
                let first = arena.first + batch * size + done;
                hostile.raw(VM_RECLAIM.into(), &[bench.handle, first, size - done])
            })
        });
    }
    STEP.same(&format!("pages taken back, {size} by {size}"), size * times, back);
    leave(hostile, bench, &arena);
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

/// Every other frame, by a list.
fn scattered(hostile: &Hostile, row: u64, count: u64) -> Result<(), String> {
    let bench = Bench::new(hostile, false)?;
    let (list, arena) = (Arena::new(hostile, 0)?, Arena::new(hostile, 9)?);
    let words: Vec<u64> = (0..count)
        .flat_map(|n| {
            let record = Record::new(arena.first + 2 * n, GFN + n, 1);
            [record.pfn, record.gfn_count]
        })
        .collect();
    let done = marked(row, || {
        whole(count, |done| {
            // What is left moves to the front; the host pays for that, not EL2.
            let rest = &words[usize::try_from(2 * done).unwrap_or(0)..];
            let _ = hostile.fill(list.first, rest);
            hostile.raw(MEM_DONATE_LIST.into(), &[bench.handle, list.first, count - done, 0])
        })
    });
    STEP.same(&format!("{count} scattered pages donated"), count, done);
    leave(hostile, bench, &arena);
    let _ = hostile.free(list.first);
    Ok(())
}

fn leave(hostile: &Hostile, bench: Bench<'_>, arena: &Arena) {
    let frames: Vec<u64> = arena.all().collect();
    end(hostile, bench.handle, &frames);
    bench.close();
    let _ = hostile.free(arena.first);
}
