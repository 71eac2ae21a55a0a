// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest that says which of its accesses outside RAM its host may see.

use freehold_uapi::guest;
use freehold_uapi::hvc::*;

use super::{Bench, STEP};
use crate::hostile::Hostile;
use crate::proto::*;

/// Nobody's, and not opened at first.
const HOLE: u64 = DEVICE + 0x10_0000;
/// `ESR_EL1` of an external abort of EL1's own: a data access, one that stores, and a fetch.
const ABORT: u64 = 0x25 << 26 | 1 << 25 | 0x10;
const STORED: u64 = ABORT | 1 << 6;
const FETCHED: u64 = 0x21 << 26 | 1 << 25 | 0x10;

/// Where the guest sees its first gigabyte as a program too.
const EXECUTABLE: u64 = 65 << 30;
/// What a load finds where the VMM answers.
const ANSWERED: u64 = u64::MAX;

pub(super) fn all(hostile: &Hostile) -> Result<(), String> {
    let mut bench = Bench::new(hostile, true)?;
    let says = |bench: &mut Bench<'_>, id: u32, ipa: u64| bench.command(CMD_HVC, [id.into(), ipa, 0]).map(|x| x[0]);
    let exits = |bench: &Bench<'_>| bench.exits.get(&EXIT_MMIO).copied().unwrap_or(0);
    let same = |case: &str, must: &[u64], is: &[u64]| STEP.same(case, format!("{must:x?}"), format!("{is:x?}"));
    // What a command takes that does nothing else.
    let before = exits(&bench);
    bench.command(CMD_NOP, [0; 3])?;
    let least = exits(&bench) - before;

    let loaded = bench.command(CMD_LOAD, [HOLE, 0, 0])?;
    same("guard: a guest that guards nothing reaches whatever its VMM answers", &[ANSWERED, 0], &loaded[..2]);
    let controller = bench.command(CMD_LOAD, [GICD_GFN << 12, 0, 0])?;
    let told = [
        says(&mut bench, guest::MMIO_GUARD_INFO, 0)?,
        says(&mut bench, guest::MMIO_GUARD_MAP, DEVICE)?,
        says(&mut bench, guest::MMIO_GUARD_MAP, RAM_BASE)?.wrapping_neg(),
        says(&mut bench, guest::MMIO_GUARD_MAP, DEVICE + 8)?.wrapping_neg(),
        says(&mut bench, guest::MMIO_GUARD_ENROLL, 0)?,
    ];
    same("guard: its granule, one opened, RAM and half a granule refused, enrolled", &[GRANULE, 0, 3, 3, 0], &told);

    bench.leaked = 0;
    for (case, command, at, syndrome) in [
        ("load", CMD_LOAD, HOLE, ABORT),
        ("store", CMD_STORE, HOLE, STORED),
        ("load of a pair", CMD_LOAD_PAIR, HOLE, ABORT),
        ("fetch", CMD_JUMP, EXECUTABLE + HOLE, FETCHED),
    ] {
        let before = exits(&bench);
        let [value, esr, _] = bench.command(command, [at, CANARY, 0])?;
        // Which register, and how wide, is the guest's to know.
        let seen = [value, esr & (0x7f << 25 | 1 << 6 | 0x3f)];
        same(&format!("guard: a {case} of what is not opened aborts in the guest"), &[0, syndrome], &seen);
        STEP.same(&format!("guard: nobody hears of the {case}"), least, exits(&bench) - before);
    }
    STEP.same("guard: no exit showed what was stored", 0, bench.leaked);
    let after = bench.command(CMD_LOAD, [GICD_GFN << 12, 0, 0])?;
    same("guard: its interrupt controller need not be opened", &controller[..2], &after[..2]);

    let told = says(&mut bench, guest::MMIO_GUARD_MAP, HOLE)?;
    let [value, esr, _] = bench.command(CMD_LOAD, [HOLE, 0, 0])?;
    same("guard: what it opens it reaches", &[0, ANSWERED, 0], &[told, value, esr]);
    let told = says(&mut bench, guest::MMIO_GUARD_UNMAP, HOLE)?;
    let [value, esr, _] = bench.command(CMD_LOAD, [HOLE, 0, 0])?;
    same("guard: and no more when it shuts it", &[0, 0, 0x25], &[told, value, esr >> 26]);
    let mut opened = 1;
    while says(&mut bench, guest::MMIO_GUARD_MAP, HOLE + opened * 2 * GRANULE)? == 0 && opened < 100 {
        opened += 1;
    }
    STEP.same("guard: so many runs may be open, and no more", guest::MMIO_RUNS, opened);
    bench.close();
    Ok(())
}
