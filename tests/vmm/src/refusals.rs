// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every wrong call that a host can make has its own error and changes nothing (I6, I7).
//!
//! The calls go past the driver, over frames of the hostile module. After each refusal every counter of `el2` stands
//! where it stood, TLB broadcasts and splits among them.

use freehold_uapi::hvc::*;

use crate::attack::Target;
use crate::hostile::{Hostile, ram};
use crate::machine::Plan;
use crate::neighbours::split_under_writers;
use crate::probe::{Access, Call, probe};
use crate::proto;
use crate::raw::{Arena, books, end, resting, settle, status_name};
use crate::report::Step;

const STEP: Step = Step("hvc-refusals");
const GFN: u64 = proto::RAM_BASE >> 12;
const RANGE: u64 = 1024;
/// QEMU's UART, a page of device memory.
const DEVICE: u64 = 0x0900_0000 >> 12;

struct Bench {
    hostile: Hostile,
    pools: [Arena; 3],
    memory: Arena,
    list: Arena,
    /// Two blocks that the host still maps whole.
    blocks: [Arena; 2],
    a: u64,
    b: u64,
    stale: u64,
}

impl Bench {
    fn refuse(&self, case: &str, call: u32, arguments: &[u64], expected: i64) {
        let before = books(&self.hostile);
        let status = self.hostile.call(call, arguments);
        let after = books(&self.hostile);
        let mut seen = status_name(status);
        if before != after {
            seen.push_str(", and changed something");
        }
        STEP.same(case, status_name(expected), seen);
    }

    /// As [`Bench::refuse`], for a refusal that says how many pages would do.
    fn lacks(&self, case: &str, call: u32, arguments: &[u64], pages: u64) {
        self.refuse(case, call, arguments, NEED_PAGES);
        let x = self.hostile.raw(call.into(), arguments);
        STEP.same(&format!("{case}: how many"), pages, x[1]);
    }

    fn accept(&self, case: &str, call: u32, arguments: &[u64]) -> [u64; 18] {
        let x = self.hostile.raw(call.into(), arguments);
        STEP.same(case, "SUCCESS", status_name(x[0].cast_signed()));
        x
    }

    fn create(&self, pool: &Arena, case: &str) -> u64 {
        self.accept(case, VM_CREATE, &[VM_PROTECTED, 40, pool.first, pool.frames])[1]
    }
}

/// The last frame of RAM, plus one.
fn ram_end() -> u64 {
    ram().iter().map(|(first, count)| first + count).max().unwrap_or(0)
}

/// Runs of frames that every call which names host frames must refuse.
fn bad_runs(bench: &Bench) -> Vec<(&'static str, u64, u64, i64)> {
    let image = bench.hostile.counter(COUNTER_CARVEOUT_BASE, 0);
    let tables = bench.hostile.counter(COUNTER_CARVEOUT_BASE, 1);
    let kept = no_map_regions().into_iter().map(|(_, end)| end).max().unwrap_or(0);
    let beyond = ram_end().max(kept).max(tables + bench.hostile.counter(COUNTER_CARVEOUT_FRAMES, 1));
    let good = bench.memory.first;
    vec![
        ("count 0", good, 0, ZERO_COUNT),
        ("count 513", good, 513, COUNT_TOO_LARGE),
        ("count huge", good, 1 << 40, COUNT_TOO_LARGE),
        ("count that overflows", good, u64::MAX, COUNT_TOO_LARGE),
        ("overflow", u64::MAX - 1, 8, OVERFLOW),
        ("MMIO", DEVICE, 1, NOT_MEMORY),
        ("hole", beyond, 1, NOT_MEMORY),
        ("out of range", 1 << 40, 1, NOT_MEMORY),
        ("address beyond 64 bits", 1 << 60, 1, OVERFLOW),
        ("carve-out: image", image, 1, EL2_OWNED),
        ("carve-out: tables", tables, 1, EL2_OWNED),
    ]
}

/// Runs the suite.
pub(crate) fn all() -> Result<(), String> {
    let hostile = Hostile::open()?;
    let start = resting(&hostile);
    // A VM of the driver's, whose guest has shared one page.
    let mut target = Target::new(&hostile, Plan::default());
    let hash = target.as_mut().ok().map(|target| target.machine.command(proto::CMD_HASH, [0; 3]));
    let shared = match &target {
        Ok(target) => Some(target.frames[usize::try_from((proto::SHARE_BASE - proto::RAM_BASE) >> 12).expect("small")]),
        Err(error) => {
            STEP.same("a guest that shares a page", "runs", error);
            None
        }
    };
    let mut bench = Bench {
        pools: [Arena::new(&hostile, 6)?, Arena::new(&hostile, 6)?, Arena::new(&hostile, 6)?],
        memory: Arena::new(&hostile, 9)?,
        list: Arena::new(&hostile, 0)?,
        blocks: [Arena::new(&hostile, 9)?, Arena::new(&hostile, 9)?],
        hostile,
        a: 0,
        b: 0,
        stale: 0,
    };
    unknown(&bench);
    creation(&bench);
    bench.a = bench.create(&bench.pools[0], "create A");
    bench.b = bench.create(&bench.pools[1], "create B");
    bench.stale = bench.create(&bench.pools[2], "create C");
    let left = end(&bench.hostile, bench.stale, &bench.pools[2].all().collect::<Vec<_>>());
    STEP.same("C ends", 0, left);
    calls_of_a_process();
    handles(&bench);
    ranges(&bench);
    vcpus(&bench);
    donation(&bench, shared);
    lists(&bench);
    batches(&bench);
    running_out(&bench)?;
    late_vcpus(&bench);
    life(&bench);
    let after = target.as_mut().ok().map(|target| target.machine.command(proto::CMD_HASH, [0; 3]));
    let unharmed = matches!((&hash, &after), (Some(Ok(before)), Some(Ok(after))) if before == after);
    STEP.judged("the driver's guest is unharmed", &format!("{hash:x?}"), format!("{after:x?}"), unharmed);
    for (vm, pool) in [(bench.a, &bench.pools[0]), (bench.b, &bench.pools[1])] {
        let frames: Vec<u64> = bench
            .memory
            .all()
            .chain(bench.list.all())
            .chain(bench.blocks.iter().flat_map(Arena::all))
            .chain(pool.all())
            .collect();
        end(&bench.hostile, vm, &frames);
    }
    drop(target);
    let Bench { hostile, pools, memory, list, blocks, .. } = bench;
    for arena in pools.iter().chain(&blocks).chain([&memory, &list]) {
        STEP.same("frames are the host's again", "0", crate::sys::outcome(hostile.free(arena.first)));
    }
    settle(STEP, "all is as before", &hostile, &start);
    crate::loans::are_counted(STEP, &hostile)?;
    split_under_writers(STEP, &hostile)
}

fn unknown(bench: &Bench) {
    bench.refuse("unknown number: first free", BASE + 19, &[], NOT_SUPPORTED);
    bench.refuse("unknown number: last of the range", 0xC600_00FF, &[1, 2, 3], NOT_SUPPORTED);
    // What a kernel that was started at EL2 would ask of the stub that Linux leaves there.
    for (case, call) in [("set vectors", 0), ("soft restart", 1), ("reset vectors", 2), ("finalise", 3)] {
        bench.refuse(&format!("stub call: {case}"), call, &[0x4020_0000, 0x4020_0000], NOT_SUPPORTED);
    }
    bench.refuse("unknown counter", COUNTER, &[0xffff, 0], BAD_ARGUMENT);
    bench.refuse("counter of no CPU", COUNTER, &[COUNTER_ENTRIES, 4096], BAD_ARGUMENT);
    bench.refuse("counter of no carve-out", COUNTER, &[COUNTER_CARVEOUT_BASE, 2], BAD_ARGUMENT);
}

/// A process has no calls at all: HVC and SMC are UNDEFINED at EL0, whatever their number.
fn calls_of_a_process() {
    let seen = |call| probe(std::ptr::null_mut(), Access::Call(call));
    for (case, call) in [("HVC 0", Call::Hvc), ("HVC 1", Call::HvcOne), ("SMC 0", Call::Smc)] {
        STEP.same(&format!("EL0: {case}"), "SIGILL", seen(call));
    }
    STEP.same("EL0: tools: NOP", "done", seen(Call::Nop));
    crate::compat::all(STEP);
}

fn creation(bench: &Bench) {
    let pool = &bench.pools[0];
    let good = [VM_PROTECTED, 40, pool.first, pool.frames];
    let with = |index: usize, value: u64| {
        let mut arguments = good;
        arguments[index] = value;
        arguments
    };
    bench.refuse("create: ordinary VM, pool too small", VM_CREATE, &[0, 40, pool.first, 1], NEED_PAGES);
    bench.refuse("create: unknown flag", VM_CREATE, &with(0, VM_PROTECTED | 1 << 63), BAD_ARGUMENT);
    bench.refuse("create: 31 bits of address", VM_CREATE, &with(1, 31), BAD_ARGUMENT);
    bench.refuse("create: 41 bits of address", VM_CREATE, &with(1, 41), BAD_ARGUMENT);
    bench.refuse("create: 2^64 - 1 bits of address", VM_CREATE, &with(1, u64::MAX), BAD_ARGUMENT);
    for (case, pfn, count, expected) in bad_runs(bench) {
        bench.refuse(&format!("create: {case}"), VM_CREATE, &[VM_PROTECTED, 40, pfn, count], expected);
    }
    bench.refuse("create: pool too small", VM_CREATE, &with(3, 1), NEED_PAGES);
}

fn handles(bench: &Bench) {
    let pfn = bench.memory.first;
    let calls: [(u32, &[u64]); 16] = [
        (VM_RANGE, &[GFN, 1]),
        (VM_DESTROY, &[]),
        (VM_RECLAIM, &[pfn, 1]),
        (POOL_TOPUP, &[pfn, 1]),
        (VCPU_CREATE, &[0]),
        (VCPU_SET_REG, &[0, REG_PC, 0]),
        (VCPU_GET_REG, &[0, REG_PC]),
        (VCPU_RUN, &[0, 0]),
        (VCPU_KICK, &[0]),
        (MEM_DONATE, &[pfn, GFN, 1, 0]),
        (MEM_DONATE_LIST, &[bench.list.first, 1, 0]),
        (MEM_SHARE, &[pfn, GFN, 1, 0]),
        (MEM_UNSHARE, &[GFN, 1]),
        (GUEST_ACCEPT, &[0, 1]),
        (VM_GIC, &[0x8000, 0x8100]),
        (VM_IRQ, &[40, 1]),
    ];
    for (call, rest) in calls {
        let with = |handle: u64| [&[handle], rest].concat();
        bench.refuse(&format!("{call:#x}: handle 0"), call, &with(0), WRONG_HANDLE);
        bench.refuse(&format!("{call:#x}: handle of no slot"), call, &with(0x1_0000 | 0xfff), WRONG_HANDLE);
        bench.refuse(&format!("{call:#x}: handle of 64 bits"), call, &with(bench.a | 1 << 48), WRONG_HANDLE);
        bench.refuse(&format!("{call:#x}: stale handle"), call, &with(bench.stale), STALE_HANDLE);
    }
}

fn ranges(bench: &Bench) {
    let a = bench.a;
    bench.refuse("range: count 0", VM_RANGE, &[a, GFN, 0], ZERO_COUNT);
    bench.refuse("range: overflow", VM_RANGE, &[a, u64::MAX, 2], OVERFLOW);
    bench.refuse("range: beyond the address size", VM_RANGE, &[a, 1 << 28, 1], GFN_OUT_OF_RANGE);
    bench.refuse("donate: before any range", MEM_DONATE, &[a, bench.memory.first, GFN, 1, 0], GFN_OUT_OF_RANGE);
    bench.accept("range", VM_RANGE, &[a, GFN, RANGE]);
    bench.accept("range of B", VM_RANGE, &[bench.b, GFN, RANGE]);
    bench.refuse("interrupt: no controller", VM_IRQ, &[a, 40, 1], WRONG_STATE);
    bench.refuse("interrupt: an SGI", VM_IRQ, &[a, 15, 1], BAD_ARGUMENT);
    bench.refuse("interrupt: a timer's", VM_IRQ, &[a, 27, 1], BAD_ARGUMENT);
    bench.refuse("interrupt: an unknown flag", VM_IRQ, &[a, 40, 4], BAD_ARGUMENT);
    bench.refuse("controller: not at 64 KB", VM_GIC, &[a, 0x8001, 0x8100], UNALIGNED);
    bench.refuse("controller: beyond the address size", VM_GIC, &[a, 0x8000, 1 << 28], GFN_OUT_OF_RANGE);
    bench.refuse("range: overlap", VM_RANGE, &[a, GFN + RANGE - 1, 2], BAD_RANGE);
}

fn vcpus(bench: &Bench) {
    let a = bench.a;
    bench.refuse("vcpu: index out of range", VCPU_CREATE, &[a, 4096], WRONG_VCPU);
    bench.refuse("vcpu: index of 64 bits", VCPU_CREATE, &[a, 1 << 32], WRONG_VCPU);
    bench.refuse("run: no such vcpu", VCPU_RUN, &[a, 0, 0], WRONG_VCPU);
    bench.accept("vcpu", VCPU_CREATE, &[a, 0]);
    bench.refuse("vcpu: same again", VCPU_CREATE, &[a, 0], VCPU_EXISTS);
    bench.refuse("set: unaligned PC", VCPU_SET_REG, &[a, 0, REG_PC, 2], UNALIGNED);
    bench.refuse("set: PSTATE of EL2", VCPU_SET_REG, &[a, 0, REG_PSTATE, 0x3c9], DENIED);
    bench.refuse("set: MPIDR", VCPU_SET_REG, &[a, 0, REG_MPIDR, 0], DENIED);
    bench.refuse("set: unknown register", VCPU_SET_REG, &[a, 0, 99, 0], BAD_ARGUMENT);
    bench.refuse("get: unknown register", VCPU_GET_REG, &[a, 0, 99], BAD_ARGUMENT);
    for register in [4, 30, REG_EL1, REG_V0, REG_FPSR, REG_EXIT_ESR] {
        let case = format!("register {register} of a protected VM");
        bench.refuse(&format!("set: {case}"), VCPU_SET_REG, &[a, 0, register, 0], DENIED);
        bench.refuse(&format!("get: {case}"), VCPU_GET_REG, &[a, 0, register], DENIED);
    }
    bench.refuse("kick: no such vcpu", VCPU_KICK, &[a, 1], WRONG_VCPU);
    bench.refuse("accept: no request", GUEST_ACCEPT, &[a, 0, 1], NO_REQUEST);
    bench.refuse("destroyed only once: reclaim before", VM_RECLAIM, &[a, bench.pools[0].first, 1], WRONG_STATE);
}

fn donation(bench: &Bench, shared: Option<u64>) {
    let (a, b, first) = (bench.a, bench.b, bench.memory.first);
    for (case, pfn, count, expected) in bad_runs(bench) {
        bench.refuse(&format!("donate: {case}"), MEM_DONATE, &[a, pfn, GFN, count, 0], expected);
        bench.refuse(&format!("top-up: {case}"), POOL_TOPUP, &[a, pfn, count], expected);
    }
    bench.refuse("donate: unknown flag", MEM_DONATE, &[a, first, GFN, 1, 1 << 40], BAD_ARGUMENT);
    bench.refuse("donate: gfn overflow", MEM_DONATE, &[a, first, u64::MAX, 2, 0], OVERFLOW);
    bench.refuse("donate: gfn below the range", MEM_DONATE, &[a, first, GFN - 1, 2, 0], GFN_OUT_OF_RANGE);
    bench.refuse("donate: gfn over the range's end", MEM_DONATE, &[a, first, GFN + RANGE - 1, 2, 0], GFN_OUT_OF_RANGE);
    bench.accept("donate", MEM_DONATE, &[a, first, GFN, 4, 0]);
    bench.refuse("donate: already donated", MEM_DONATE, &[a, first, GFN + 16, 1, 0], ALREADY_DONATED);
    bench.refuse("donate: run into donated", MEM_DONATE, &[a, first + 3, GFN + 16, 4, 0], ALREADY_DONATED);
    bench.refuse(
        "donate: frame of its own pool",
        MEM_DONATE,
        &[a, bench.pools[0].first, GFN + 16, 1, 0],
        ALREADY_DONATED,
    );
    bench.refuse("donate: foreign guest frame", MEM_DONATE, &[b, first, GFN, 1, 0], FOREIGN);
    bench.refuse("donate: foreign pool frame", MEM_DONATE, &[b, bench.pools[0].first, GFN, 1, 0], FOREIGN);
    bench.refuse("donate: gfn mapped", MEM_DONATE, &[a, first + 8, GFN + 3, 1, 0], GFN_MAPPED);
    bench.refuse("top-up: already donated", POOL_TOPUP, &[a, first, 1], ALREADY_DONATED);
    bench.refuse("top-up: foreign", POOL_TOPUP, &[b, first, 1], FOREIGN);
    bench.refuse("create: foreign", VM_CREATE, &[VM_PROTECTED, 40, first, 8], FOREIGN);
    if let Some(shared) = shared {
        bench.refuse("donate: frame that a guest shares", MEM_DONATE, &[b, shared, GFN, 1, 0], SHARED);
        bench.refuse("top-up: frame that a guest shares", POOL_TOPUP, &[b, shared, 1], SHARED);
        bench.refuse("create: frame that a guest shares", VM_CREATE, &[VM_PROTECTED, 40, shared, 1], SHARED);
    }
    no_map(bench);
}

/// Once a VM has run, no vCPU of it starts where the host says: that would be a way to make it share its memory.
fn late_vcpus(bench: &Bench) {
    let b = bench.b;
    bench.accept("late: vcpu 0", VCPU_CREATE, &[b, 0]);
    bench.accept("late: a second vcpu", VCPU_CREATE, &[b, 1]);
    bench.accept("late: PC of the second vcpu", VCPU_SET_REG, &[b, 1, REG_PC, 0x8000_0000]);
    STEP.same("late: it is off", EXIT_OFF, bench.accept("late: run of the second vcpu", VCPU_RUN, &[b, 1, 0])[1]);
    let mut x = bench.accept("late: run vcpu 0 with nothing to run", VCPU_RUN, &[b, 0, 0]);
    // An interrupt of the host's may come first, as often as it likes.
    while x[1] == EXIT_IRQ && x[0] == 0 {
        x = bench.hostile.raw(VCPU_RUN.into(), &[b, 0, 0]);
    }
    STEP.same("late: it crashes", EXIT_CRASH, x[1]);
    bench.refuse("late: vcpu created after the first run", VCPU_CREATE, &[b, 2], WRONG_STATE);
    STEP.same("late: it is off still", EXIT_OFF, bench.accept("late: run of vcpu 1", VCPU_RUN, &[b, 1, 0])[1]);
    bench.refuse("late: PC of vcpu 1", VCPU_SET_REG, &[b, 1, REG_PC, 0x8000_0000], WRONG_STATE);
    bench.refuse("late: the same vcpu again", VCPU_CREATE, &[b, 0], VCPU_EXISTS);
    bench.refuse("late: PC of vcpu 0", VCPU_SET_REG, &[b, 0, REG_PC, 0x8000_0000], WRONG_STATE);
    bench.refuse("late: x0 of vcpu 0", VCPU_SET_REG, &[b, 0, REG_X0, 1], WRONG_STATE);
    for (name, register) in
        [("x0", REG_X0), ("PC", REG_PC), ("SCTLR", REG_EL1), ("V0", REG_V0), ("its exit", REG_EXIT_ESR)]
    {
        bench.refuse(&format!("late: {name} of vcpu 0 is not told"), VCPU_GET_REG, &[b, 0, register], WRONG_STATE);
    }
    bench.refuse("late: run of vcpu 0, which crashed", VCPU_RUN, &[b, 0, 0], WRONG_STATE);
    bench.refuse("late: run of vcpu 2, which is not there", VCPU_RUN, &[b, 2, 0], WRONG_VCPU);
}

/// First frame and the one behind the last of each part of memory that the device tree marks no-map.
fn no_map_regions() -> Vec<(u64, u64)> {
    let nodes = std::fs::read_dir("/proc/device-tree/reserved-memory").into_iter().flatten().flatten();
    let regions = nodes.filter(|node| node.path().join("no-map").exists()).filter_map(|node| {
        let reg = std::fs::read(node.path().join("reg")).ok()?;
        let word = |at: usize| Some(u64::from_be_bytes(reg.get(at..at + 8)?.try_into().ok()?));
        Some((word(0)? >> 12, (word(0)? + word(8)?) >> 12))
    });
    let mut regions: Vec<(u64, u64)> = regions.collect();
    regions.sort_unstable();
    regions
}

/// Memory that the device tree marks no-map; the boot of this suite has 2 MB, and the last frames of RAM.
fn no_map(bench: &Bench) {
    let regions = no_map_regions();
    let [(pfn, _), (low, high)] = regions[..] else {
        STEP.same("no-map memory in this boot", "two regions", format!("{regions:x?}"));
        return;
    };
    bench.refuse("donate: no-map", MEM_DONATE, &[bench.a, pfn, GFN + 16, 1, 0], NO_MAP);
    bench.refuse("top-up: no-map", POOL_TOPUP, &[bench.a, pfn, 1], NO_MAP);
    bench.refuse("create: no-map", VM_CREATE, &[VM_PROTECTED, 40, pfn, 8], NO_MAP);
    bench.refuse("donate: no-map at the end of RAM, first frame", MEM_DONATE, &[bench.a, low, GFN + 16, 1, 0], NO_MAP);
    let last = high - 1;
    bench.refuse("donate: no-map at the end of RAM, last frame", MEM_DONATE, &[bench.a, last, GFN + 16, 1, 0], NO_MAP);
}

fn lists(bench: &Bench) {
    let (a, first, list) = (bench.a, bench.memory.first + 64, bench.list.first);
    let fill = |records: &[Record]| {
        let words: Vec<u64> = records.iter().flat_map(|r| [r.pfn, r.gfn_count]).collect();
        let filled = bench.hostile.fill(list, &words);
        STEP.same("list written", "0", crate::sys::outcome(filled));
    };
    let image = bench.hostile.counter(COUNTER_CARVEOUT_BASE, 0);
    bench.refuse("list: no records", MEM_DONATE_LIST, &[a, list, 0, 0], ZERO_COUNT);
    bench.refuse("list: 257 records", MEM_DONATE_LIST, &[a, list, 257, 0], COUNT_TOO_LARGE);
    bench.refuse("list: unknown flag", MEM_DONATE_LIST, &[a, list, 1, 2], BAD_ARGUMENT);
    bench.refuse("list: in device memory", MEM_DONATE_LIST, &[a, DEVICE, 1, 0], NOT_MEMORY);
    bench.refuse("list: in the carve-out", MEM_DONATE_LIST, &[a, image, 1, 0], EL2_OWNED);
    bench.refuse("list: in a donated frame", MEM_DONATE_LIST, &[a, bench.memory.first, 1, 0], ALREADY_DONATED);
    let gfn = GFN + 64;
    fill(&[Record::new(first, gfn, 4), Record::new(first + 3, gfn + 8, 1)]);
    bench.refuse("list: same frame twice", MEM_DONATE_LIST, &[a, list, 2, 0], TWICE);
    fill(&[Record::new(first, gfn, 4), Record::new(first + 8, gfn + 3, 1)]);
    bench.refuse("list: same guest frame twice", MEM_DONATE_LIST, &[a, list, 2, 0], TWICE);
    fill(&[Record::new(first, gfn, 4), Record::new(first + 8, gfn + 8, 600)]);
    bench.refuse("list: record too long", MEM_DONATE_LIST, &[a, list, 2, 0], COUNT_TOO_LARGE);
    // Frames of its own, so many that they are the guest's or nobody's from the second record on.
    fill(&[Record::new(first, gfn, 300), Record::new(first + 300, gfn + 300, 213)]);
    bench.refuse("list: 513 frames in two records", MEM_DONATE_LIST, &[a, list, 2, 0], COUNT_TOO_LARGE);
    fill(&[Record::new(first, gfn, 512), Record::new(image, gfn, 512), Record::new(DEVICE, gfn, 1)]);
    bench.refuse("list: 1025 frames, some el2's", MEM_DONATE_LIST, &[a, list, 3, 0], COUNT_TOO_LARGE);
    fill(&[Record::new(first, gfn, 4), Record::new(image, gfn + 8, 1)]);
    bench.refuse("list: carve-out in the second record", MEM_DONATE_LIST, &[a, list, 2, 0], EL2_OWNED);
    fill(&[Record::new(first, gfn, 4), Record::new(list, gfn + 8, 1), Record::new(DEVICE, gfn + 9, 1)]);
    bench.refuse("list: device in the third record", MEM_DONATE_LIST, &[a, list, 3, 0], NOT_MEMORY);
}

/// A batch pays one broadcast, however many records it has and blocks it splits (D6).
///
/// Before the first run each page is measured, so `el2` looks for interrupts after a few pages: what it has left is given
/// with the next call, which pays its own.
fn batches(bench: &Bench) {
    let batch = |case: &str, records: &[Record], splits: u64| {
        let count = |counter| bench.hostile.counter(counter, 0);
        let begin = count(COUNTER_SPLITS);
        let frames: u64 = records.iter().map(|r| r.count()).sum();
        let (mut done, mut dear) = (0, 0);
        while done < frames {
            let rest = after(records, done);
            let words: Vec<u64> = rest.iter().flat_map(|r| [r.pfn, r.gfn_count]).collect();
            STEP.same(
                &format!("{case}: written"),
                "0",
                crate::sys::outcome(bench.hostile.fill(bench.list.first, &words)),
            );
            let before = count(COUNTER_TLB_BROADCASTS);
            let x = bench.accept(case, MEM_DONATE_LIST, &[bench.a, bench.list.first, rest.len() as u64, 0]);
            dear += u64::from(count(COUNTER_TLB_BROADCASTS) - before != 1);
            if x[0] != 0 || x[1] == 0 {
                break;
            }
            done += x[1];
        }
        STEP.same(&format!("{case}: frames done"), frames, done);
        STEP.same(&format!("{case}: calls that paid other than one broadcast"), 0, dear);
        STEP.same(&format!("{case}: blocks split"), splits, count(COUNTER_SPLITS) - begin);
    };
    let gfn = GFN + 64;
    let scattered: Vec<Record> =
        (0..16).map(|i| Record::new(bench.memory.first + 64 + i * 4, gfn + i * 3, 1 + i % 2)).collect();
    batch("16 scattered records", &scattered, 0);
    // From the end of each block to its start, the blocks in turn.
    let gfn = GFN + 512;
    let over_blocks: Vec<Record> = (0..20)
        .map(|i| Record::new(bench.blocks[usize::from(i % 2 == 1)].first + 500 - i * 25, gfn + (19 - i) * 7, 1))
        .collect();
    batch("20 records over 2 whole blocks", &over_blocks, 2);
}

/// What is left of a list of records when so many frames are done.
fn after(records: &[Record], mut done: u64) -> Vec<Record> {
    let rest = records.iter().filter_map(|r| {
        let skipped = done.min(r.count());
        done -= skipped;
        (skipped < r.count()).then(|| Record::new(r.pfn + skipped, r.gfn() + skipped, r.count() - skipped))
    });
    rest.collect()
}

/// A pool that runs dry: the refusal says how many pages would do, one fewer does not, and so many do.
fn running_out(bench: &Bench) -> Result<(), String> {
    let [pool, more] = [Arena::new(&bench.hostile, 0)?, Arena::new(&bench.hostile, 2)?];
    // So few bits of address need a single root table.
    let lean = bench.accept("lean: create", VM_CREATE, &[VM_PROTECTED, 39, pool.first, 1])[1];
    bench.accept("lean: range", VM_RANGE, &[lean, GFN, RANGE]);
    bench.lacks("lean: vcpu", VCPU_CREATE, &[lean, 0], 1);
    let one = bench.memory.first + 200;
    let donate = [lean, one, GFN, 1, 0];
    bench.lacks("lean: donate", MEM_DONATE, &donate, 2);
    let records = [Record::new(one, GFN, 1), Record::new(one + 1, GFN + 512, 1)];
    let words: Vec<u64> = records.iter().flat_map(|r| [r.pfn, r.gfn_count]).collect();
    STEP.same("lean: list written", "0", crate::sys::outcome(bench.hostile.fill(bench.list.first, &words)));
    let list = [lean, bench.list.first, 2, 0];
    bench.lacks("lean: list over two tables", MEM_DONATE_LIST, &list, 3);
    let top_up = |case: &str, index: u64| bench.accept(case, POOL_TOPUP, &[lean, more.first + index, 1]);
    top_up("lean: a page", 0);
    bench.lacks("lean: donate with a page too few", MEM_DONATE, &donate, 1);
    bench.lacks("lean: list with two pages too few", MEM_DONATE_LIST, &list, 2);
    top_up("lean: another page", 1);
    bench.accept("lean: donate with as many as were asked for", MEM_DONATE, &donate);
    bench.lacks("lean: vcpu, all pages used", VCPU_CREATE, &[lean, 0], 1);
    bench.lacks("lean: second table", MEM_DONATE, &[lean, one + 1, GFN + 512, 1, 0], 1);
    top_up("lean: a third page", 2);
    bench.accept("lean: vcpu with the page that was asked for", VCPU_CREATE, &[lean, 0]);
    let frames: Vec<u64> = [one].into_iter().chain(pool.all()).chain(more.all()).collect();
    // One page of the last block was never given away.
    STEP.same("lean: ends", 1, end(&bench.hostile, lean, &frames));
    for arena in [&pool, &more] {
        STEP.same("lean: frames are the host's again", "0", crate::sys::outcome(bench.hostile.free(arena.first)));
    }
    Ok(())
}

fn life(bench: &Bench) {
    let (a, b, first) = (bench.a, bench.b, bench.memory.first);
    bench.accept("destroy A", VM_DESTROY, &[a]);
    bench.refuse("dying: destroy again", VM_DESTROY, &[a], WRONG_STATE);
    bench.refuse("dying: donate", MEM_DONATE, &[a, first + 128, GFN + 128, 1, 0], WRONG_STATE);
    bench.refuse("dying: top-up", POOL_TOPUP, &[a, first + 128, 1], WRONG_STATE);
    bench.refuse("dying: range", VM_RANGE, &[a, GFN + 4096, 1], WRONG_STATE);
    bench.refuse("dying: vcpu", VCPU_CREATE, &[a, 0], WRONG_STATE);
    bench.refuse("dying: run", VCPU_RUN, &[a, 0, 0], WRONG_STATE);
    bench.refuse("reclaim: count 0", VM_RECLAIM, &[a, first, 0], ZERO_COUNT);
    bench.refuse("reclaim: count 513", VM_RECLAIM, &[a, first, 513], COUNT_TOO_LARGE);
    bench.refuse("reclaim: overflow", VM_RECLAIM, &[a, u64::MAX, 2], OVERFLOW);
    bench.refuse("reclaim: device", VM_RECLAIM, &[a, DEVICE, 1], NOT_MEMORY);
    bench.refuse("reclaim: carve-out", VM_RECLAIM, &[a, bench.hostile.counter(COUNTER_CARVEOUT_BASE, 0), 1], EL2_OWNED);
    bench.refuse("reclaim: the host's own", VM_RECLAIM, &[a, first + 128, 1], HOST_OWNED);
    bench.refuse("reclaim: another VM's", VM_RECLAIM, &[a, bench.pools[1].first, 1], FOREIGN);
    bench.refuse("reclaim: pool before guest", VM_RECLAIM, &[a, bench.pools[0].first, 1], GUEST_FRAMES_LEFT);
    bench.refuse("reclaim: a VM that lives", VM_RECLAIM, &[b, bench.pools[1].first, 1], WRONG_STATE);
}
