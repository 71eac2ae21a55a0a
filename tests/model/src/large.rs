// SPDX-License-Identifier: MIT OR Apache-2.0
//! Worlds that a few pages do not have: a 2 MB block that is split and rejoined, tables that run out, long lists.

use std::collections::BTreeSet;

use freehold_oracle::{Act, Call, Life, Who, World};
use freehold_uapi::guest;
use freehold_uapi::hvc::{self, Record};

use crate::board::{Board, Fault, Layout};
use crate::lockstep::{Lockstep, Tally};
use crate::op::Op;
use crate::rig::Rig;
use crate::search::{self, Report};

const VM: Who = Who::Slot(0);
const BLOCK: u64 = 512;
const GFN: u64 = 0x8_0000;

fn create(pool: u64, count: u64) -> Op {
    Op::Host(Call::VmCreate { flags: hvc::VM_PROTECTED, ipa_bits: 32, pfn: Board::HOST + pool, count })
}

/// A whole block of the host's, of which parts and all of it are given away and come back, with and without an
/// interrupt on the way. In each state the block stands as a block exactly if nobody else has a frame of it.
pub(crate) fn block() -> Result<Report, String> {
    const FRAMES: u64 = BLOCK + 8;
    let watched = [0, 1, 30, 31, 32, 33, 255, 256, 510, 511].into_iter().chain(BLOCK..FRAMES).collect();
    let gfns = [0, 1, 31, 32, 255, 511].map(|gfn| GFN + gfn).into();
    let rig = Rig::new(Layout { frames: FRAMES, no_map: 0, vms: 1, watched, gfns }, Fault::None);
    let both: Lockstep<'_, World<521, 1, 1, 1, 1>> = Lockstep::new(&rig, &[]);
    both.warm_up(Board::HOST + BLOCK)?;
    let mut ops = vec![
        Op::Host(Call::VmRange { vm: VM, gfn: GFN, count: BLOCK }),
        Op::Host(Call::VcpuCreate { vm: VM, vcpu: 0 }),
        Op::Host(Call::VmDestroy { vm: VM }),
        Op::Host(Call::VmReclaim { vm: VM, pfn: Board::HOST + BLOCK, count: 4 }),
        Op::Run { who: VM, vcpu: 0, mmio: 0, act: Act::Interrupt },
    ];
    for (first, count) in [(0, 1), (511, 1), (0, BLOCK)] {
        let (vm, pfn, gfn) = (VM, Board::HOST + first, GFN + first);
        ops.push(Op::Host(Call::MemDonate { vm, pfn, gfn, count, flags: 0 }));
        ops.push(Op::Host(Call::VmReclaim { vm, pfn, count }));
    }
    let (vm, pfn, gfn, count) = (VM, Board::HOST, GFN, BLOCK);
    ops.push(Op::Hurried(Call::MemDonate { vm, pfn, gfn, count, flags: 0 }));
    ops.push(Op::Hurried(Call::VmReclaim { vm, pfn, count }));
    for id in [guest::MEM_SHARE, guest::MEM_UNSHARE] {
        ops.push(Op::Ask { who: VM, act: Act::Call { id, x: [GFN << 12, BLOCK, 0] } });
    }
    ops.push(Op::Ask { who: VM, act: Act::Call { id: guest::MEM_RELINQUISH, x: [GFN << 12, 0, 0] } });
    let possible = |world: &World<521, 1, 1, 1, 1>| {
        if world.vms[0].life == Life::Free { vec![create(BLOCK, 4)] } else { ops.clone() }
    };
    let mut wrong = None;
    let report = search::exhaust(&both, &[], possible, |way, world| {
        let whole = world.pages[1..=512].iter().all(freehold_oracle::Page::host_reaches);
        // The rest of RAM is less than a block, and stands as a table for good.
        let expected = if whole { [1, 1] } else { [0, 2] };
        let blocks = rig.picture().blocks;
        if blocks != expected && wrong.is_none() {
            wrong = Some(format!("after {} operations: blocks and tables {blocks:?}, not {expected:?}", way.len()));
        }
    })?;
    wrong.map_or(Ok(report), Err)
}

/// Guest frames in several 1 GB regions and 2 MB blocks of them.
const FAR: [u64; 8] = [0, 1, 0x200, 0x3ff, 0x4_0000, 0x4_0200, 0x8_0000, 0xf_ffff];

/// Donations that need tables, out of pools that are short by every number.
pub(crate) fn no_memory() -> Result<String, String> {
    const FRAMES: u64 = 16;
    let lists: Vec<Vec<Record>> = chosen();
    let lists: Vec<&[Record]> = lists.iter().map(Vec::as_slice).collect();
    let layout = Layout { frames: FRAMES, no_map: 0, vms: 1, watched: (0..FRAMES).collect(), gfns: FAR.into() };
    let rig = Rig::new(layout, Fault::None);
    let both: Lockstep<'_, World<17, 1, 1, 1, 1>> = Lockstep::new(&rig, &lists);
    both.warm_up(Board::HOST + 4)?;
    let mut tally = Tally::default();
    for (number, list) in lists.iter().enumerate() {
        let tables: BTreeSet<(u64, u64)> = list.iter().flat_map(|r| [(18, r.gfn() >> 18), (9, r.gfn() >> 9)]).collect();
        let need = tables.len() as u64;
        for free in 0..=need {
            let donate =
                Op::List { who: VM, frame: Board::HOST + 3, list: number, records: list.len() as u64, flags: 0 };
            let topup = |from: u64, count| Op::Host(Call::PoolTopup { vm: VM, pfn: Board::HOST + 4 + from, count });
            let range = Op::Host(Call::VmRange { vm: VM, gfn: 0, count: 1 << 20 });
            let mut ops = vec![(None, create(4, 1 + free)), (None, range), (Some(need), donate)];
            if free < need {
                if need - free > 1 {
                    ops.extend([(None, topup(1 + free, need - free - 1)), (Some(need), donate)]);
                }
                ops.extend([(None, topup(need, 1)), (Some(need), donate)]);
            }
            // What stands now is not made again.
            ops.push((Some(1), Op::Host(Call::VcpuCreate { vm: VM, vcpu: 0 })));
            rig.reset()?;
            let mut world = both.world();
            for (pages, op) in &ops {
                both.needs(*pages);
                let told = |what| format!("list {number}, {free} of {need} tables: {op}: {what}");
                tally.add(&both.step(&mut world, op).map_err(told)?);
            }
            both.needs(None);
            if world.vms[0].free != 0 || world.vms[0].guest != list.len() as u32 {
                return Err(format!("list {number} with {free} of {need} tables: {:?}", world.vms[0]));
            }
        }
    }
    let hits = |outcome| tally.cells.iter().filter(|(cell, _)| cell.outcome == outcome).map(|(_, n)| n).sum::<u64>();
    let short = hits("NEED_PAGES");
    if [lists.len() as u64, tally.transitions, short] == NO_MEMORY {
        Ok(format!("{} lists, {} calls, {short} of them short of pages", lists.len(), tally.transitions))
    } else {
        Err(format!("{} lists, {} calls, {short} short: not {NO_MEMORY:?}", lists.len(), tally.transitions))
    }
}

/// Lists, calls, and calls that were short of pages.
const NO_MEMORY: [u64; 3] = [400, 16_304, 5_814];

/// Lists of one, two and three frames at all the places, in every order.
fn chosen() -> Vec<Vec<Record>> {
    let mut lists: Vec<Vec<Record>> = Vec::new();
    let record = |frame: usize, gfn: u64| Record::new(Board::HOST + frame as u64, gfn, 1);
    for one in FAR {
        lists.push(vec![record(0, one)]);
        for two in FAR.into_iter().filter(|two| *two != one) {
            lists.push(vec![record(0, one), record(1, two)]);
            for three in FAR.into_iter().filter(|three| ![one, two].contains(three)) {
                lists.push(vec![record(0, one), record(1, two), record(2, three)]);
            }
        }
    }
    lists
}

/// Lists of four records, of which one or two are wrong, in every place and every way.
pub(crate) fn batches() -> Result<String, String> {
    const FRAMES: u64 = 24;
    let lists = spoilt();
    let lists: Vec<&[Record]> = lists.iter().map(Vec::as_slice).collect();
    let layout =
        Layout { frames: FRAMES, no_map: 1, vms: 2, watched: (0..FRAMES).collect(), gfns: (GFN..GFN + 8).collect() };
    let rig = Rig::new(layout, Fault::None);
    let both: Lockstep<'_, World<25, 2, 1, 8, 1>> = Lockstep::new(&rig, &lists);
    both.warm_up(Board::HOST + 12)?;
    let mut world = both.world();
    let (other, flags) = (Who::Slot(1), hvc::DONATE_REVOCABLE);
    let give = |vm, page, gfn, flags| {
        Op::Host(Call::MemDonate { vm, pfn: Board::HOST + page, gfn: GFN + gfn, count: 1, flags })
    };
    let ram = |vm| Op::Host(Call::VmRange { vm, gfn: GFN, count: 8 });
    // VM 0 has a frame at 4 and lends one at 5; 6 is poisoned; VM 1 has a frame.
    let setup = [
        create(12, 4),
        create(16, 4),
        ram(VM),
        ram(other),
        Op::Host(Call::VcpuCreate { vm: VM, vcpu: 0 }),
        give(VM, 4, 4, 0),
        give(VM, 5, 5, 0),
        give(VM, 6, 6, flags),
        Op::Touch { frame: Board::HOST + 6, write: true, from: freehold_oracle::Stray::Kernel },
        give(other, 7, 0, 0),
        Op::Ask { who: VM, act: Act::Call { id: guest::MEM_SHARE, x: [(GFN + 5) << 12, 0, 0] } },
    ];
    for op in &setup {
        both.step(&mut world, op).map_err(|what| format!("{op}: {what}"))?;
    }
    let mut tally = Tally::default();
    for (list, records) in (0..).zip(lists.iter().map(|list| list.len() as u64)) {
        let op = Op::List { who: VM, frame: Board::HOST + 8, list, records, flags: 0 };
        tally.add(&both.step(&mut world, &op).map_err(|what| format!("list {list} {:x?}: {what}", lists[list]))?);
    }
    let outcomes: Vec<_> = tally.cells.iter().map(|(cell, times)| format!("{} {times}", cell.outcome)).collect();
    if tally.refused != tally.transitions {
        return Err(format!("{} of the lists were taken", tally.transitions - tally.refused));
    }
    let seen = [tally.transitions, tally.refused, outcomes.len() as u64];
    let text = format!("{} lists of four, all refused: {}", seen[0], outcomes.join(", "));
    if seen == BATCHES { Ok(text) } else { Err(format!("{text}: {seen:?}, not {BATCHES:?}")) }
}

/// Lists, refused ones, and cells.
const BATCHES: [u64; 3] = [1_698, 1_698, 12];

/// Good records with one or two of them replaced by a wrong one.
fn spoilt() -> Vec<Vec<Record>> {
    let page = |n: u64| Board::HOST + n;
    let good: Vec<Record> = (0..4).map(|n| Record::new(page(n), GFN + n, 1)).collect();
    let wrong = [
        Record::new(page(23), GFN + 7, 1),               // no-map
        Record::new(Board::HOST - 1, GFN + 7, 1),        // el2's
        Record::new(page(24), GFN + 7, 1),               // beyond RAM
        Record::new(page(4), GFN + 7, 1),                // its own
        Record::new(page(5), GFN + 7, 1),                // its own, lent
        Record::new(page(7), GFN + 7, 1),                // another VM's
        Record::new(page(13), GFN + 7, 1),               // its pool's
        Record::new(page(17), GFN + 7, 1),               // another pool's
        Record::new(page(9), GFN + 4, 1),                // backed
        Record::new(page(9), GFN + 6, 1),                // poisoned
        Record::new(page(9), GFN + 8, 1),                // not RAM
        Record::new(page(9), 1 << 40, 1),                // no guest frame
        Record::new(u64::MAX, GFN + 7, 1),               // no frame
        Record::new(page(9), GFN + 7, hvc::MAX_RUN + 1), // too long
        Record::new(page(9), GFN + 7, hvc::MAX_RUN),     // too many, with the others
        Record::new(page(0), GFN + 7, 1),                // the first one's frame again
        Record::new(page(9), GFN, 1),                    // the first one's guest frame again
    ];
    let mut lists = Vec::new();
    for at in 0..good.len() {
        // In place of the first record, what it names is not named again.
        for one in wrong.into_iter().take(if at == 0 { wrong.len() - 2 } else { wrong.len() }) {
            let mut list = good.clone();
            list[at] = one;
            lists.push(list.clone());
            for later in at + 1..good.len() {
                for two in wrong {
                    let mut list = list.clone();
                    list[later] = two;
                    lists.push(list);
                }
            }
        }
    }
    lists
}
