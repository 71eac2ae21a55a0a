// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random calls from every CPU at once: `el2` does not panic, the host lives, and everything comes back (I6, I7, I8).
//!
//! Frames are those of the hostile module, the carve-outs, device memory, holes and numbers out of range; never a frame
//! that the host uses, for giving that away is the host's own end and no bug. A model that is only a guide keeps enough
//! calls meaningful; it is never what is judged.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Instant;

use freehold_uapi::hvc::*;

use crate::hostile::{Hostile, runs};
use crate::kinds::{self, GFN, RANGE, take_back};
use crate::machine::entropy;
use crate::raw::{Arena, end, resting, settle, status_name};
use crate::report::Step;
use crate::sys;

use belief::{Belief, Model};

mod belief;

const STEP: Step = Step("hvc-fuzz");
const CALLS: u64 = 100_000;
const BLOCKS: usize = 4;

/// A small generator with a seed that can be printed and given again.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 11) % limit.max(1)
    }

    pub(crate) fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }
}

pub(crate) struct World {
    pub(crate) blocks: Vec<Arena>,
    carve_outs: [(u64, u64); 2],
    model: Mutex<Model>,
}

/// One call: function and arguments.
#[derive(Clone)]
pub(crate) struct Call(pub(crate) u32, pub(crate) Vec<u64>);

/// A call, and the runs of the list that it names.
pub(crate) struct Chosen {
    pub(crate) call: Call,
    pub(crate) runs: Vec<(u64, u64)>,
}

impl From<Call> for Chosen {
    fn from(call: Call) -> Self {
        Self { call, runs: Vec::new() }
    }
}

impl World {
    /// The module's frames, and where the carve-outs are.
    pub(crate) fn new(hostile: &Hostile) -> Result<Self, String> {
        let carve_out = |i| (hostile.counter(COUNTER_CARVEOUT_BASE, i), hostile.counter(COUNTER_CARVEOUT_FRAMES, i));
        Ok(Self {
            blocks: (0..BLOCKS).map(|_| Arena::new(hostile, 9)).collect::<Result<_, _>>()?,
            carve_outs: [carve_out(0), carve_out(1)],
            model: Mutex::default(),
        })
    }

    /// Lets calls of [`Self::wild`] name a VM.
    pub(crate) fn knows(&self, handle: u64) {
        let mut model = self.model.lock().expect("model");
        model.vms.insert(handle, Belief::default());
        model.ever.push(handle);
        if model.ever.len() > 512 {
            // Of those that are gone a few would do; all of them would be too many to look at when it is over.
            let Model { ever, vms, .. } = &mut *model;
            ever.retain(|handle| vms.contains_key(handle));
        }
    }

    /// A VM is gone.
    pub(crate) fn forgets(&self, handle: u64) {
        self.model.lock().expect("model").vms.remove(&handle);
    }

    fn arena(&self, random: &mut Random, most: u64) -> (u64, u64) {
        let index = usize::try_from(random.below(self.blocks.len() as u64)).unwrap_or(0);
        let block = &self.blocks[index];
        let at = random.below(block.frames);
        (block.first + at, 1 + random.below(most.min(block.frames - at)))
    }

    /// A run of frames, most of them good; a bad count never reaches past the module's own frames.
    fn frames(&self, random: &mut Random) -> (u64, u64) {
        let (pfn, count) = self.arena(random, 8);
        match random.below(20) {
            0 => {
                let (base, frames) = self.carve_outs[usize::try_from(random.below(2)).unwrap_or(0)];
                (base + random.below(frames), 1 + random.below(4))
            }
            1 => (0x8000 + random.below(0x2000), count),
            2 => (random.below(0x8000), count),
            3 => (1 << (28 + random.below(36)), count),
            4 => (u64::MAX - random.below(4), count),
            5 => (pfn, 0),
            6 => (pfn, 513 + random.next() % (u64::MAX - 513)),
            7 => self.arena(random, 512),
            _ => (pfn, count),
        }
    }

    fn gfn(&self, random: &mut Random) -> u64 {
        match random.below(16) {
            0 => random.next(),
            1 => random.below(1 << 30),
            _ => GFN + random.below(0x1000),
        }
    }

    fn handle(&self, random: &mut Random) -> u64 {
        let model = self.model.lock().expect("model");
        match random.below(16) {
            0 => random.next(),
            1 => random.below(1 << 22),
            2 if !model.ever.is_empty() => pick(&model.ever, random),
            3 => model.some_vm(true, random).unwrap_or(0),
            _ => model.some_vm(false, random).unwrap_or(0),
        }
    }

    /// A run of `count` frames that nobody was given, if a few tries find one.
    fn free_run(&self, model: &Model, count: u64, random: &mut Random) -> Option<u64> {
        (0..16).find_map(|_| {
            let block = &self.blocks[usize::try_from(random.below(self.blocks.len() as u64)).unwrap_or(0)];
            let pfn = block.first + random.below(block.frames - count);
            (model.given.range(pfn..pfn + count).next().is_none()).then_some(pfn)
        })
    }

    /// A call that should succeed, if no other CPU comes in between.
    fn aimed(&self, hostile: &Hostile, list: u64, random: &mut Random) -> Option<Chosen> {
        let model = self.model.lock().expect("model");
        let live = model.vms.values().filter(|vm| !vm.dying).count();
        if live < 6 || (live < 24 && random.one_in(64)) {
            let count = 24 + random.below(24);
            if let Some(pfn) = self.free_run(&model, count, random) {
                return Some(Call(VM_CREATE, vec![kinds::flags(random), 32 + random.below(9), pfn, count]).into());
            }
        }
        if random.below(8) < model.vms.values().filter(|vm| vm.dying).count() as u64
            && let Some(handle) = model.some_vm(true, random)
        {
            let vm = &model.vms[&handle];
            if let Some(gfn) = vm.lent.keys().next() {
                return Some(Call(MEM_UNSHARE, vec![handle, *gfn, 1]).into());
            }
            let from = if vm.guest.is_empty() { &vm.pool } else { &vm.guest };
            return (!from.is_empty()).then(|| Call(VM_RECLAIM, vec![handle, pick(from, random), 1]).into());
        }
        let handle = model.some_vm(false, random)?;
        let vm = &model.vms[&handle];
        if !vm.ranged && !vm.ran {
            return Some(Call(VM_RANGE, vec![handle, GFN, RANGE]).into());
        }
        if vm.kind.gic && !vm.gic && !vm.ran {
            return Some(kinds::gic(handle).into());
        }
        if vm.vcpus < vm.kind.vcpus && !vm.ran {
            return Some(Call(VCPU_CREATE, vec![handle, vm.vcpus]).into());
        }
        let count = 1 + random.below(8);
        let vcpu = random.below(vm.vcpus);
        // Calls that pay a broadcast are the slow ones, under emulation most of all: they are the smaller part.
        let call = match random.below(64) {
            0 => Call(VM_DESTROY, vec![handle]),
            1 | 2 => Call(VCPU_RUN, vec![handle, vcpu, random.next()]),
            3 => Call(POOL_TOPUP, vec![handle, self.free_run(&model, count, random)?, count]),
            4..8 if vm.kind.protected && vm.next_gfn + 16 < RANGE => {
                let pfn = self.free_run(&model, count, random)?;
                Call(MEM_DONATE, vec![handle, pfn, GFN + vm.next_gfn, count, 0])
            }
            8..11 if !vm.lent.is_empty() => {
                let gfns: Vec<u64> = vm.lent.keys().copied().collect();
                Call(MEM_UNSHARE, vec![handle, pick(&gfns, random), 1])
            }
            4..8 | 44..56 if !vm.kind.protected && vm.next_gfn + 16 < RANGE => {
                let pfn = self.free_run(&model, count, random)?;
                Call(MEM_SHARE, vec![handle, pfn, GFN + vm.next_gfn, count, kinds::rights(random)])
            }
            11..14 if vm.gic => kinds::irq(handle, random),
            14..24 if !vm.ran => Call(VCPU_SET_REG, vec![handle, vcpu, random.below(4), random.next()]),
            24..34 if !vm.ran || !vm.kind.protected => Call(VCPU_GET_REG, vec![handle, vcpu, random.below(4)]),
            34..44 => Call(VCPU_KICK, vec![handle, vcpu]),
            8..11 if vm.kind.protected && vm.next_gfn + 16 < RANGE => {
                let runs = [(self.free_run(&model, 4, random)?, 4), (self.free_run(&model, 2, random)?, 2)];
                let gfn = GFN + vm.next_gfn;
                let records = [Record::new(runs[0].0, gfn, 4), Record::new(runs[1].0, gfn + 4, 2)];
                let words = records.map(|r| [r.pfn, r.gfn_count]).concat();
                let _ = hostile.fill(list, &words);
                return Some(Chosen { call: Call(MEM_DONATE_LIST, vec![handle, list, 2, 0]), runs: runs.to_vec() });
            }
            _ => Call(VCPU_GET_REG, vec![handle, vcpu, REG_MPIDR]),
        };
        Some(call.into())
    }

    fn choose(&self, hostile: &Hostile, list: u64, random: &mut Random) -> Chosen {
        if random.below(16) < 6
            && let Some(chosen) = self.aimed(hostile, list, random)
        {
            return chosen;
        }
        self.wild(hostile, list, random)
    }

    /// A call that is not aimed at all, but spares what the host needs.
    pub(crate) fn wild(&self, hostile: &Hostile, list: u64, random: &mut Random) -> Chosen {
        let (pfn, count) = self.frames(random);
        let handle = self.handle(random);
        let gfn = self.gfn(random);
        let vcpu = if random.one_in(6) { random.next() } else { random.below(2) };
        let call = match random.below(100) {
            0..2 => Call(BASE + 19 + u32::try_from(random.below(0x6d)).unwrap_or(0), vec![handle, pfn, gfn, count]),
            2..3 => Call(VM_GIC, vec![handle, 16 * random.below(0x2000), 16 * random.below(0x2000)]),
            3..4 => Call(VM_IRQ, vec![handle, random.below(300), random.below(2)]),
            4..6 => Call(VERSION, vec![]),
            6..9 => Call(COUNTER, vec![random.below(20), random.below(6)]),
            9..12 => {
                let (pfn, _) = self.arena(random, 1);
                let room = self.room(pfn);
                let flags = if random.one_in(8) { random.next() } else { kinds::flags(random) };
                let bits = if random.one_in(8) { random.below(70) } else { 32 + random.below(9) };
                Call(VM_CREATE, vec![flags, bits, pfn, (8 + random.below(40)).min(room)])
            }
            12..20 => Call(VM_RANGE, vec![handle, GFN + random.below(16) * 0x100, 1 + random.below(0x100)]),
            20..21 => Call(VM_DESTROY, vec![handle]),
            21..40 => Call(VM_RECLAIM, vec![handle, pfn, count]),
            40..46 => Call(POOL_TOPUP, vec![handle, pfn, count]),
            46..51 => Call(VCPU_CREATE, vec![handle, vcpu]),
            51..55 => Call(VCPU_SET_REG, vec![handle, vcpu, register(random), random.next() & !3]),
            55..58 => Call(VCPU_GET_REG, vec![handle, vcpu, register(random)]),
            58..64 => Call(VCPU_RUN, vec![handle, vcpu, random.next()]),
            64..67 => Call(VCPU_KICK, vec![handle, vcpu]),
            67..82 => Call(MEM_DONATE, vec![handle, pfn, gfn, count, u64::from(random.one_in(8))]),
            82..92 => return self.list(hostile, list, handle, random),
            92..94 => Call(MEM_SHARE, vec![handle, pfn, gfn, count, random.below(4)]),
            94..96 => Call(MEM_UNSHARE, vec![handle, gfn, count]),
            96..98 => Call(GUEST_ACCEPT, vec![handle, vcpu, count]),
            _ => {
                let wild = random.next() | 0x8000_0000_0000_0000;
                Call(BASE + u32::try_from(random.below(19)).unwrap_or(0), vec![handle, wild, wild, wild, wild])
            }
        };
        call.into()
    }

    fn room(&self, pfn: u64) -> u64 {
        self.blocks.iter().map(|b| (b.first + b.frames).saturating_sub(pfn)).filter(|r| *r <= 512).max().unwrap_or(1)
    }

    fn list(&self, hostile: &Hostile, list: u64, handle: u64, random: &mut Random) -> Chosen {
        let records = 1 + random.below(4);
        let mut runs = Vec::new();
        let words: Vec<u64> = (0..records)
            .flat_map(|_| {
                let (pfn, count) = self.frames(random);
                // A record's count has 12 bits: keep what it can say inside the module's frames.
                let count = if count == 0 || count > 512 { 4096 } else { count };
                runs.push((pfn, count));
                let record = Record::new(pfn, self.gfn(random), count);
                [record.pfn, record.gfn_count]
            })
            .collect();
        let _ = hostile.fill(list, &words);
        let said = if random.one_in(16) { random.next() } else { records };
        let at = if random.one_in(12) { self.frames(random).0 } else { list };
        // Records past those just written are zeros: they name frame 0, which is no memory.
        Chosen { call: Call(MEM_DONATE_LIST, vec![handle, at, said, u64::from(random.one_in(16))]), runs }
    }
}

fn pick(from: &[u64], random: &mut Random) -> u64 {
    from[usize::try_from(random.below(from.len() as u64)).unwrap_or(0)]
}

/// Calls that random arguments can make succeed; each must have. GUEST_ACCEPT only refuses here: it answers a request of
/// a guest's program, which nobody has written.
const SUCCEED: [u32; 18] = [
    VERSION,
    COUNTER,
    VM_CREATE,
    VM_RANGE,
    VM_DESTROY,
    VM_RECLAIM,
    POOL_TOPUP,
    VCPU_CREATE,
    VCPU_SET_REG,
    VCPU_GET_REG,
    VCPU_RUN,
    VCPU_KICK,
    MEM_DONATE,
    MEM_DONATE_LIST,
    MEM_SHARE,
    MEM_UNSHARE,
    VM_GIC,
    VM_IRQ,
];

/// Per status how often it came, and per call how often it succeeded.
#[derive(Default)]
struct Tally(BTreeMap<i64, u64>, BTreeMap<u32, u64>);

fn one_cpu(world: &World, cpu: usize, calls: u64, seed: u64) -> Result<Tally, String> {
    sys::pin_to(cpu);
    let hostile = Hostile::open()?;
    let list = Arena::new(&hostile, 0)?;
    let mut random = Random(seed | 1);
    let mut tally = Tally::default();
    let start = Instant::now();
    for done in 0..calls {
        if done.is_multiple_of(5000) {
            println!("hvc-fuzz: CPU {cpu}: {done} calls after {} s", start.elapsed().as_secs());
        }
        let chosen = world.choose(&hostile, list.first, &mut random);
        let Call(function, arguments) = &chosen.call;
        let x = hostile.raw((*function).into(), arguments);
        let status = x[0].cast_signed();
        *tally.0.entry(status).or_default() += 1;
        if status == SUCCESS {
            *tally.1.entry(*function).or_default() += 1;
            world.model.lock().expect("model").learn(&chosen, &x);
        }
        world.model.lock().expect("model").mend(&chosen, status);
    }
    // A list frame may have been named as memory by no call: it is still the host's.
    hostile.free(list.first).map_err(|e| format!("list frame: {}", sys::errno_name(e)))?;
    Ok(tally)
}

/// Runs the suite; the seed may be given again, and fewer calls for a quick look.
pub(crate) fn all(seed: Option<u64>, calls: Option<u64>) -> Result<(), String> {
    let ask = calls.unwrap_or(CALLS);
    let hostile = Hostile::open()?;
    let seed = seed.unwrap_or_else(entropy);
    println!("hvc-fuzz: seed {seed:#x}");
    let before = resting(&hostile);
    let world = World::new(&hostile)?;
    let cpus = sys::cpus();
    let tallies: Vec<Result<Tally, String>> = std::thread::scope(|scope| {
        let world = &world;
        let threads: Vec<_> = (0..cpus)
            .map(|cpu| {
                let seed = seed.wrapping_add((cpu as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
                scope.spawn(move || one_cpu(world, cpu, ask / cpus as u64, seed))
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err("a thread died".to_string()))).collect()
    });
    let mut total = Tally::default();
    for tally in tallies {
        let tally = tally?;
        for (function, count) in tally.1 {
            *total.1.entry(function).or_default() += count;
        }
        for (status, count) in tally.0 {
            *total.0.entry(status).or_default() += count;
        }
    }
    for (status, count) in &total.0 {
        println!("hvc-fuzz: {count:7} {}", status_name(*status));
    }
    for (function, count) in &total.1 {
        println!("hvc-fuzz: {count:7} successes of {function:#x}");
    }
    STEP.same("CPUs that call", 4, cpus);
    let never: Vec<String> =
        SUCCEED.iter().filter(|call| !total.1.contains_key(call)).map(|call| format!("{call:#x}")).collect();
    STEP.same("served calls that never succeeded", "", never.join(", "));
    let succeeded: u64 =
        total.1.iter().filter(|(call, _)| ![VERSION, COUNTER].contains(call)).map(|(_, count)| count).sum();
    let calls: u64 = total.0.values().sum();
    STEP.same("calls made", ask / cpus as u64 * cpus as u64, calls);
    STEP.judged(
        "a quarter or more succeed, VERSION and COUNTER not counted",
        "25% or more",
        format!("{}% of {calls}, seed {seed:#x}", succeeded * 100 / calls.max(1)),
        succeeded * 4 >= calls,
    );
    finish(STEP, &hostile, world, &before, |_| Vec::new());
    Ok(())
}

/// Ends every VM, and sees that all is as it was. `more` says which frames a VM may have beside those that the host can
/// not read.
pub(crate) fn finish(
    step: Step,
    hostile: &Hostile,
    world: World,
    before: &[(&'static str, u64)],
    more: impl Fn(u64) -> Vec<u64>,
) {
    let model = world.model.into_inner().expect("model");
    let frames: Vec<u64> = world.blocks.iter().flat_map(Arena::all).collect();
    let foreign: Vec<u64> = hostile.unreachable().into_iter().filter(|pfn| frames.contains(pfn)).collect();
    for handle in model.ever {
        if ![SUCCESS, WRONG_STATE].contains(&hostile.call(VM_DESTROY, &[handle])) {
            continue;
        }
        take_back(hostile, handle);
        // What its guest had lent to the host can be read.
        let all: Vec<u64> = foreign.iter().copied().chain(more(handle)).collect();
        end(hostile, handle, &all);
    }
    step.same("every frame is back", "", runs(&hostile.unreachable()));
    for block in &world.blocks {
        step.same("frames freed", "0", sys::outcome(hostile.free(block.first)));
    }
    settle(step, "el2's books are as before", hostile, before);
    step.same("el2 answers", "SUCCESS", status_name(hostile.call(VERSION, &[])));
}

/// A register's number, or one that is near.
fn register(random: &mut Random) -> u64 {
    random.below(44) * (1 + random.below(5))
}
