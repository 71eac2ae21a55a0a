// SPDX-License-Identifier: MIT OR Apache-2.0
//! A hostile host that keeps at it: calls from every CPU for a while, with guests that run and ask for things.
//!
//! A light model aims most calls at what should succeed; the others are the wild ones of [`crate::fuzz`]. A thread
//! flips words of the lists that are being donated, between values that name frames of the module only. Whether `el2`
//! is right is judged by the `el2` that watches itself; here it must live, and give everything back.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use freehold_uapi::hvc::{self, *};

use crate::fuzz::{Call, Chosen, Random, World, finish};
use crate::hostile::{Hostile, How};
use crate::kinds::{self, GFN, Kind, RANGE};
use crate::machine::entropy;
use crate::proto;
use crate::raw::{Arena, resting, status_name};
use crate::report::Step;
use crate::sys;

use belief::{Belief, Model, Wants};
use guest::program;

mod belief;
mod guest;

const STEP: Step = Step("soak");
const SECONDS: u64 = 60;
/// From here on the rate is judged too: a short run says little about it on a loaded machine.
const LONG: u64 = 1800;
/// Calls a second, at least.
const RATE: u128 = 1000;
/// Guest frames that the guest's program is about, behind the one that holds it.
const PLAY: u64 = 32;
/// VMs that live at a time, at least.
const LIVE: usize = 6;
/// Calls that an aimed VM lives for.
const AGE: u64 = 400;
/// Records of a list that is flipped meanwhile.
const RECORDS: u64 = 4;

/// Calls that el2 serves.
const SERVED: usize = (VM_IRQ - BASE + 1) as usize;
/// Protected or not, two vCPUs or one, a controller or none.
const KINDS: usize = 8;

struct Soak {
    world: World,
    model: Mutex<Model>,
    /// One list at a time is flipped: its frame, and the block that its records name.
    flipped: Mutex<(Arena, Arena)>,
    /// Every frame that a VM can have.
    frames: Vec<u64>,
    over: AtomicBool,
    calls: AtomicU64,
    good: AtomicU64,
    /// Successes of each call.
    each: [AtomicU64; SERVED],
    /// Runs of a guest in each kind of VM, and by its second vCPU.
    ran: [AtomicU64; KINDS],
    seconds: AtomicU64,
}

/// One CPU.
struct Cpu<'s> {
    number: usize,
    soak: &'s Soak,
    hostile: Hostile,
    list: u64,
    random: Random,
}

impl Soak {
    /// For whoever watches.
    fn so_far(&self) -> String {
        let (calls, good) = (self.calls.load(Ordering::Relaxed), self.good.load(Ordering::Relaxed));
        let model = self.model.lock().expect("model");
        let dying = model.vms.values().filter(|vm| vm.dying).count();
        let (live, share) = (model.vms.len() - dying, good * 100 / calls.max(1));
        format!("{calls} calls, {share}% succeeded, {live} VMs live, {dying} end,")
    }
}

impl Cpu<'_> {
    /// A call that should succeed, if no other CPU comes in between.
    fn aimed(&mut self) -> Option<Call> {
        let mut model = self.soak.model.lock().expect("model");
        let random = &mut self.random;
        let blocks = &self.soak.world.blocks;
        if model.vms.values().filter(|vm| !vm.dying).count() < LIVE {
            let count = 16 + random.below(16);
            if let Some(pfn) = model.free_run(blocks, count, random) {
                return Some(Call(VM_CREATE, vec![kinds::flags(random), 32 + random.below(9), pfn, count]));
            }
        }
        // Else those that end would pile up, with all frames.
        let ending = model.vms.values().filter(|vm| vm.dying && !vm.lost).count();
        if random.below(12) < (3 + ending as u64).min(9)
            && let Some(handle) = model.some(random, |vm| vm.dying && !vm.lost)
        {
            let vm = &model.vms[&handle];
            if let Some(gfn) = vm.lent.keys().next() {
                return Some(Call(MEM_UNSHARE, vec![handle, *gfn, 1]));
            }
            let from = if vm.guest.is_empty() { &vm.pool } else { &vm.guest };
            return from.last().map(|pfn| Call(VM_RECLAIM, vec![handle, *pfn, 1]));
        }
        let apart = !random.one_in(16);
        let handle = model.some(random, |vm| !(vm.dying || apart && vm.is_busy()))?;
        let free = model.free_run(blocks, 8, random);
        let one = model.to_lend(blocks, 1, random);
        let vm = model.vms.get_mut(&handle)?;
        vm.age += 1;
        if vm.dead || vm.age > AGE {
            return Some(Call(VM_DESTROY, vec![handle]));
        }
        if let Some(call) = vm.next_of_birth(handle) {
            return Some(call);
        }
        if !vm.program {
            let pfn = free?;
            self.hostile.fill(pfn, program()).ok()?;
            let (call, flags) = if vm.kind.protected { (MEM_DONATE, 0) } else { (MEM_SHARE, SHARE_EXEC | SHARE_WRITE) };
            return Some(Call(call, vec![handle, pfn, GFN, 1, flags]));
        }
        if !vm.start {
            return Some(Call(VCPU_SET_REG, vec![handle, 0, REG_PC, proto::RAM_BASE]));
        }
        if vm.age < 8 {
            return Some(Call(VCPU_SET_REG, vec![handle, 0, REG_X0, vm.seed(random)]));
        }
        let vcpu = vm.idle(random);
        let index = vcpu as u64;
        let revocable = u64::from(random.one_in(8));
        match (vm.wants[vcpu], random.below(16)) {
            (_, 0) => Some(Call(VCPU_KICK, vec![handle, index])),
            (_, 1) if vm.kind.gic => Some(kinds::irq(handle, random)),
            (_, 1) => Some(Call(VCPU_GET_REG, vec![handle, index, REG_MPIDR])),
            (_, 2) => Some(Call(POOL_TOPUP, vec![handle, free?, 1 + random.below(2)])),
            (_, 3) if vm.next_gfn + 8 < RANGE && (vm.kind.protected || vm.borrows()) => {
                let (count, gfn) = (1 + random.below(8), GFN + vm.next_gfn);
                vm.next_gfn += count;
                Some(if vm.kind.protected {
                    Call(MEM_DONATE, vec![handle, free?, gfn, count, revocable])
                } else {
                    Call(MEM_SHARE, vec![handle, free?, gfn, count, kinds::rights(random)])
                })
            }
            (_, 4) if vm.lent.len() > 1 => {
                // Not the program, which is the first.
                let gfn = vm.lent.keys().nth(1 + usize::try_from(random.below(vm.lent.len() as u64 - 1)).ok()?);
                Some(Call(MEM_UNSHARE, vec![handle, *gfn?, 1]))
            }
            // It was lent, but for less than the guest wants to do.
            (Wants::Frame(gfn), _) if vm.lent.contains_key(&gfn) => Some(Call(MEM_UNSHARE, vec![handle, gfn, 1])),
            (Wants::Frame(gfn), _) if vm.kind.protected => {
                Some(Call(MEM_DONATE, vec![handle, free?, gfn, 1, revocable]))
            }
            (Wants::Frame(gfn), _) => Some(Call(MEM_SHARE, vec![handle, one?, gfn, 1, kinds::rights(random)])),
            (Wants::Answer(count), _) => Some(Call(GUEST_ACCEPT, vec![handle, index, count])),
            (Wants::Nothing, _) => {
                vm.running[vcpu] = true;
                Some(Call(VCPU_RUN, vec![handle, index, random.next()]))
            }
        }
    }

    /// A call that should succeed and changes no translation.
    fn light(&mut self) -> Option<Call> {
        let model = self.soak.model.lock().expect("model");
        let random = &mut self.random;
        let handle = model.some(random, |vm| !vm.dying && vm.vcpus > 0)?;
        let fresh = model.some(random, |vm| !vm.dying && vm.vcpus > 0 && vm.age < 8);
        let vm = &model.vms[&handle];
        let vcpu = random.below(vm.vcpus);
        let open = !vm.kind.protected && !vm.is_busy();
        Some(match (random.below(6), fresh) {
            (0, Some(fresh)) => Call(VCPU_SET_REG, vec![fresh, 0, REG_X1, random.next()]),
            (1, Some(fresh)) => Call(VCPU_GET_REG, vec![fresh, 0, REG_X1]),
            // What its program does not use.
            (0, None) if open => Call(VCPU_SET_REG, vec![handle, vm.idle(random) as u64, REG_X30, random.next()]),
            (1, None) if open => Call(VCPU_GET_REG, vec![handle, vm.idle(random) as u64, REG_V0 + random.below(64)]),
            (2, _) if vm.gic => kinds::irq(handle, random),
            (2 | 3, _) => Call(VCPU_KICK, vec![handle, vcpu]),
            _ => Call(VCPU_GET_REG, vec![handle, vcpu, REG_MPIDR]),
        })
    }

    /// Donates a list whose words are being flipped; frames that are gone after it were taken by it.
    fn flipped(&mut self) {
        let both = self.soak.flipped.lock().expect("list");
        let (list, arena) = (both.0.first, &both.1);
        let Some(handle) = self
            .soak
            .model
            .lock()
            .expect("model")
            .some(&mut self.random, |vm| !vm.dying && vm.ranged && vm.kind.protected)
        else {
            return;
        };
        let (over, flips) = (AtomicBool::new(false), AtomicU64::new(0));
        let mut random = Random(self.random.next() | 1);
        let x = std::thread::scope(|scope| {
            let (over, flips, hostile) = (&over, &flips, &self.hostile);
            let elsewhere = (self.number + 1) % sys::cpus();
            scope.spawn(move || {
                sys::pin_to(elsewhere);
                let Ok(page) = hostile.map(list, 1) else { return flips.store(u64::MAX, Ordering::Relaxed) };
                // At first every record in turn, so that none is left of another call.
                for turn in 0.. {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    let record = if turn < RECORDS { turn } else { random.next() % RECORDS };
                    let pfn = arena.first + random.next() % (arena.frames - 8);
                    let run = Record::new(pfn, GFN + 0x800 + random.next() % 0x700, 1 + random.next() % 8);
                    page.store(16 * record as usize, run.pfn);
                    page.store(16 * record as usize + 8, run.gfn_count);
                    flips.fetch_add(1, Ordering::Relaxed);
                }
            });
            while flips.load(Ordering::Relaxed) < RECORDS {
                std::thread::yield_now();
            }
            let x = self.made(&Call(MEM_DONATE_LIST, vec![handle, list, RECORDS, 0]));
            over.store(true, Ordering::Relaxed);
            x
        });
        if x[0].cast_signed() == SUCCESS {
            let gone = self.hostile.unreachable_of(arena.first, arena.frames);
            let mut model = self.soak.model.lock().expect("model");
            let new: Vec<u64> = gone.into_iter().filter(|pfn| !model.given.contains(pfn)).collect();
            model.give(handle, new.into_iter(), true);
        }
    }

    /// Makes a call and counts it.
    fn made(&self, Call(function, arguments): &Call) -> [u64; 18] {
        let x = self.hostile.raw((*function).into(), arguments);
        self.soak.calls.fetch_add(1, Ordering::Relaxed);
        if x[0].cast_signed() == SUCCESS {
            self.soak.good.fetch_add(1, Ordering::Relaxed);
            if let Some(each) = self.soak.each.get((*function).wrapping_sub(BASE) as usize) {
                each.fetch_add(1, Ordering::Relaxed);
            }
        }
        x
    }

    fn one(&mut self) {
        if self.random.one_in(512) {
            return self.flipped();
        }
        if self.random.one_in(64) {
            // A stray access; of a revocable frame, it takes the frame.
            let block = &self.soak.world.blocks[usize::try_from(self.random.below(4)).unwrap_or(0)];
            let store = self.random.one_in(2).then_some(0);
            drop(self.hostile.access(block.first + self.random.below(block.frames), How::Linear, store));
            return;
        }
        // Calls that change translations are the slow ones under emulation: they are the smaller part. The rest keeps
        // the successes at about a half, whatever the machine's load makes of what was aimed.
        let (calls, good) = (self.soak.calls.load(Ordering::Relaxed), self.soak.good.load(Ordering::Relaxed));
        let light = if 2 * good < calls { 14 } else { 6 };
        let aimed = match self.random.below(16) {
            0 => self.aimed(),
            n if n <= light => self.light(),
            _ => None,
        };
        let chosen = match aimed {
            Some(call) => Chosen { call, runs: Vec::new() },
            None => self.soak.world.wild(&self.hostile, self.list, &mut self.random),
        };
        let x = self.made(&chosen.call);
        self.learn(&chosen, &x);
        if (chosen.call.0, x[0].cast_signed()) == (VM_RECLAIM, GUEST_FRAMES_LEFT) {
            self.search(&chosen.call);
        }
    }

    /// Takes from a VM what it still has and nobody remembers, lest such VMs fill all slots: two threads can disagree
    /// about who was first, and of a list that was flipped or cut short less is known than was done. Where that did not
    /// help, the frames that another VM is thought to have are asked for too. A VM is lost if its frame is still
    /// refused after that, since one that ends gets no frame more.
    fn search(&mut self, refused: &Call) {
        let handle = refused.1[0];
        let (known, again): (BTreeSet<u64>, bool) = {
            let model = self.soak.model.lock().expect("model");
            let Some(vm) = model.vms.get(&handle) else { return };
            if !vm.dying || vm.lost || !vm.guest.is_empty() || !vm.lent.is_empty() {
                return;
            }
            if !vm.kind.protected {
                drop(model);
                return self.search_loans(refused);
            }
            (model.vms.values().flat_map(|vm| vm.guest.iter().chain(&vm.pool)).copied().collect(), vm.searched)
        };
        for pfn in self.soak.frames.iter().filter(|pfn| again || !known.contains(pfn)) {
            let call = Call(VM_RECLAIM, vec![handle, *pfn, 1]);
            let x = self.made(&call);
            let status = x[0].cast_signed();
            let over = matches!(status, WRONG_HANDLE | STALE_HANDLE | WRONG_STATE);
            if over || status == SUCCESS || !known.contains(pfn) {
                self.learn(&call.into(), &x);
            }
            if over || self.soak.over.load(Ordering::Relaxed) {
                return;
            }
        }
        let left = again && self.made(refused)[0].cast_signed() == GUEST_FRAMES_LEFT;
        let mut model = self.soak.model.lock().expect("model");
        if let Some(vm) = model.vms.get_mut(&handle) {
            vm.lost = left;
            vm.searched = true;
        }
    }

    /// The same of an ordinary VM, whose guest frames are tried one by one.
    fn search_loans(&self, refused: &Call) {
        let handle = refused.1[0];
        for gfn in GFN..GFN + RANGE {
            let call = Call(MEM_UNSHARE, vec![handle, gfn, 1]);
            let x = self.made(&call);
            let over = matches!(x[0].cast_signed(), WRONG_HANDLE | STALE_HANDLE | WRONG_STATE);
            if over || self.soak.over.load(Ordering::Relaxed) {
                return;
            }
        }
        let left = self.made(refused)[0].cast_signed() == GUEST_FRAMES_LEFT;
        if let Some(vm) = self.soak.model.lock().expect("model").vms.get_mut(&handle) {
            vm.lost = left;
        }
    }

    fn learn(&self, Chosen { call: Call(function, arguments), runs }: &Chosen, x: &[u64; 18]) {
        let status = x[0].cast_signed();
        let mut model = self.soak.model.lock().expect("model");
        let handle = arguments.first().copied().unwrap_or(0);
        match (*function, status) {
            (VM_CREATE, SUCCESS) => {
                let frames = arguments[2]..arguments[2] + arguments[3];
                model.given.extend(frames.clone());
                model.vms.insert(x[1], Belief::new(Kind::of(arguments), frames.collect()));
                self.soak.world.knows(x[1]);
            }
            (POOL_TOPUP, SUCCESS) => model.give(handle, arguments[1]..arguments[1] + arguments[2], false),
            (MEM_DONATE, SUCCESS) => model.give(handle, arguments[1]..arguments[1] + x[1], true),
            (MEM_DONATE_LIST, SUCCESS) => {
                let frames = runs.iter().flat_map(|(pfn, count)| *pfn..pfn.saturating_add(*count));
                model.give(handle, frames.take(usize::try_from(x[1]).unwrap_or(0)), true);
            }
            (MEM_SHARE, SUCCESS) => model.lend(handle, arguments[1], arguments[2], x[1]),
            (MEM_UNSHARE, SUCCESS) => model.unlend(handle, arguments[1]..arguments[1] + x[1]),
            (MEM_UNSHARE, GFN_NOT_MAPPED) if arguments[2] == 1 => model.unlend(handle, arguments[1]..arguments[1] + 1),
            (VM_RECLAIM, SUCCESS) => (arguments[1]..arguments[1] + x[1]).for_each(|pfn| model.take(handle, pfn)),
            (VM_RECLAIM, HOST_OWNED | FOREIGN) if arguments[2] == 1 => model.take(handle, arguments[1]),
            _ => {}
        }
        let gone = matches!(status, WRONG_HANDLE | STALE_HANDLE);
        let empty = |vm: &Belief| vm.dying && vm.guest.is_empty() && vm.lent.is_empty() && vm.pool.is_empty();
        if gone || model.vms.get(&handle).is_some_and(empty) {
            model.gone(handle);
            self.soak.world.forgets(handle);
            return;
        }
        if let Some(vm) = model.vms.get_mut(&handle) {
            vm.learn(*function, arguments, status, x);
            if (*function, status) == (VCPU_RUN, SUCCESS) && x[1] != EXIT_OFF {
                self.soak.ran[vm.kind.index()].fetch_add(1, Ordering::Relaxed);
                self.soak.seconds.fetch_add(u64::from(arguments[1] == 1), Ordering::Relaxed);
            }
        }
    }
}

/// Keeps at it for so many seconds.
pub(crate) fn all(seed: Option<u64>, seconds: Option<u64>) -> Result<(), String> {
    let hostile = Hostile::open()?;
    let seed = seed.unwrap_or_else(entropy);
    let seconds = seconds.unwrap_or(SECONDS);
    println!("soak: seed {seed:#x}, {seconds} s");
    let before = resting(&hostile);
    let world = World::new(&hostile)?;
    let flipped = (Arena::new(&hostile, 0)?, Arena::new(&hostile, 6)?);
    let soak = Soak {
        frames: world.blocks.iter().chain([&flipped.1]).flat_map(Arena::all).collect(),
        world,
        model: Mutex::default(),
        flipped: Mutex::new(flipped),
        over: AtomicBool::new(false),
        calls: AtomicU64::new(0),
        good: AtomicU64::new(0),
        each: [const { AtomicU64::new(0) }; SERVED],
        ran: [const { AtomicU64::new(0) }; KINDS],
        seconds: AtomicU64::new(0),
    };
    let cpus = sys::cpus();
    let begin = Instant::now();
    let ended: Vec<Result<(), String>> = std::thread::scope(|scope| {
        let soak = &soak;
        let threads: Vec<_> = (0..cpus)
            .map(|cpu| {
                let seed = seed.wrapping_add((cpu as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
                scope.spawn(move || one_cpu(soak, cpu, seed))
            })
            .collect();
        // By the clock: a sleep takes longer than it says while four threads hammer, the more so on a loaded machine.
        let mut told = 0;
        while begin.elapsed() < Duration::from_secs(seconds) {
            std::thread::sleep(Duration::from_secs(1));
            let passed = begin.elapsed().as_secs();
            if passed / 30 > told {
                told = passed / 30;
                println!("soak: {} after {passed} s", soak.so_far());
            }
        }
        soak.over.store(true, Ordering::Relaxed);
        threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err("a thread died".to_string()))).collect()
    });
    let took = begin.elapsed();
    ended.into_iter().collect::<Result<Vec<()>, String>>()?;
    let (calls, good) = (soak.calls.into_inner(), soak.good.into_inner());
    let rate = u128::from(calls) * 1000 / took.as_millis().max(1);
    let share = good * 100 / calls.max(1);
    STEP.same("CPUs that call", 4, cpus);
    // A minute is mostly the beginning, when little is there that a call could be about.
    let (low, high) = if seconds >= LONG { (45, 55) } else { (35, 65) };
    STEP.judged(
        "calls, of which about half succeed",
        &format!("{low}% to {high}%"),
        format!("{calls} calls in {} s, {rate} a second, {share}% succeeded, seed {seed:#x}", took.as_secs()),
        (low..=high).contains(&share),
    );
    if seconds >= LONG {
        STEP.judged("calls a second", &format!("{RATE} or more"), rate, rate >= RATE);
    }
    // It takes a guest that got far, and a host that was quick enough: a minute of a loaded machine may have none.
    let rare = |id| id == GUEST_ACCEPT && seconds < LONG;
    let silent = |call: &&freehold_uapi::table::Call| {
        let times = soak.each.get(call.id.wrapping_sub(BASE) as usize);
        !rare(call.id) && times.is_none_or(|times| times.load(Ordering::Relaxed) == 0)
    };
    let never: Vec<&str> = hvc::CALLS.iter().filter(silent).map(|call| call.name).collect();
    STEP.same("calls that never succeeded", "", never.join(", "));
    let ran = soak.ran.each_ref().map(|n| n.load(Ordering::Relaxed));
    let second = soak.seconds.load(Ordering::Relaxed);
    STEP.judged(
        "guests ran in each kind of VM, and on second vCPUs",
        "each more than once",
        format!("{ran:?}, {second}"),
        ran.iter().chain([&second]).all(|times| *times > 1),
    );
    let (list, own) = soak.flipped.into_inner().expect("list");
    let mut world = soak.world;
    world.blocks.extend([list, own]);
    let model = soak.model.into_inner().expect("model");
    STEP.same("VMs with frames that no frame of the module is", 0, model.vms.values().filter(|vm| vm.lost).count());
    finish(STEP, &hostile, world, &before, |handle| {
        model.vms.get(&handle).map(|vm| vm.guest.clone()).unwrap_or_default()
    });
    println!("soak: el2 answers {}", status_name(hostile.call(VERSION, &[])));
    Ok(())
}

fn one_cpu(soak: &Soak, cpu: usize, seed: u64) -> Result<(), String> {
    sys::pin_to(cpu);
    let hostile = Hostile::open()?;
    let list = Arena::new(&hostile, 0)?;
    let mut here = Cpu { number: cpu, soak, hostile, list: list.first, random: Random(seed | 1) };
    while !soak.over.load(Ordering::Relaxed) {
        here.one();
    }
    // The list frame was named as memory by no call: it is still the host's.
    here.hostile.free(list.first).map(drop).map_err(|e| format!("list frame: {}", sys::errno_name(e)))
}
