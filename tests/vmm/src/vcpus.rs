// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest of several vCPUs, past the driver: its guest alone starts them, and an interrupt for one that waits has its
//! thread woken.
//!
//! Each vCPU has a thread, which moves to another CPU every few runs. One whose vCPU waits sleeps until somebody is told
//! to wake it, however long that takes: a wake-up that is lost is a case that does not hold.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use freehold_uapi::guest;
use freehold_uapi::hvc::*;

use crate::beats::beating;
use crate::hostile::Hostile;
use crate::proto::*;
use crate::raw::{resting, settle, status_name};
use crate::report::Step;
use crate::switch::{Bench, Makeup, leaked};
use crate::sys;
use crate::vgic::frequency;

const STEP: Step = Step("vcpus");
const VCPUS: u64 = 3;
/// Nothing that is not lost takes as long, on whatever machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(100);
/// Runs after which a thread moves to the next CPU.
const STAY: usize = 8;
/// vCPUs of the largest VM.
const MOST: u64 = 8;
/// Words of random numbers that are looked at together.
const DRAWN: usize = 512;
/// Cortex-A72, which has no random numbers.
const WITHOUT_RANDOM: u64 = 0xd08;

/// Whose threads are to be woken.
#[derive(Default)]
pub(crate) struct Wakes {
    woken: Mutex<u64>,
    somebody: Condvar,
    over: AtomicBool,
    /// The SPI falls when el2 tells of its end, not when the guest makes its store; and how often that was.
    pub(crate) resamples: AtomicBool,
    /// It rises again after so many ends.
    pub(crate) again: AtomicUsize,
    pub(crate) ended: AtomicUsize,
    /// How often each vCPU's thread went on elsewhere after an interrupt of the host's had preempted it.
    carried: [AtomicUsize; MOST as usize],
}

/// The counter, which guests read too.
fn counter() -> u64 {
    let value: u64;
    // SAFETY: Linux lets processes read the counter.
    unsafe { core::arch::asm!("mrs {}, cntvct_el0", out(reg) value, options(nomem, nostack)) };
    value
}

impl Wakes {
    fn woken(&self) -> MutexGuard<'_, u64> {
        self.woken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A vCPU is about to run: whoever is to wake it from here on does so anew.
    pub(crate) fn runs(&self, vcpu: u64) {
        *self.woken() &= !(1 << vcpu);
    }

    /// These are to be woken.
    pub(crate) fn wake(&self, vcpus: u64) {
        *self.woken() |= vcpus;
        self.somebody.notify_all();
    }

    /// Flags with which the SPI is raised.
    pub(crate) fn high(&self) -> u64 {
        if self.resamples.load(Ordering::SeqCst) { IRQ_HIGH | IRQ_RESAMPLE } else { IRQ_HIGH }
    }

    /// The guest has ended an interrupt whose wire is high.
    pub(crate) fn ends(&self, hostile: &Hostile, handle: u64, intid: u64) {
        if intid == SPI {
            self.ended.fetch_add(1, Ordering::SeqCst);
        }
        let again = self.again.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
        let flags = if again { IRQ_HIGH | IRQ_RESAMPLE } else { IRQ_RESAMPLE };
        self.wake(hostile.raw(VM_IRQ.into(), &[handle, intid, flags])[1]);
    }

    fn carried(&self, vcpu: u64) -> Option<&AtomicUsize> {
        self.carried.get(usize::try_from(vcpu).ok()?)
    }

    /// Nothing runs any more.
    fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
        self.wake(u64::MAX);
    }

    /// Sleeps until the vCPU is woken, or until this time of the counter.
    ///
    /// # Errors
    /// It was not for so long.
    pub(crate) fn sleep(&self, vcpu: u64, deadline: u64, patience: Duration) -> Result<(), String> {
        let start = Instant::now();
        let mut woken = self.woken();
        while *woken >> vcpu & 1 == 0 && (deadline == 0 || counter() < deadline) {
            if start.elapsed() > patience {
                return Err(format!("vCPU {vcpu} was not woken within {patience:?}"));
            }
            let little = if deadline == 0 { Duration::from_secs(1) } else { Duration::from_micros(200) };
            woken = self.somebody.wait_timeout(woken, little).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }
}

/// What became of a vCPU's runs.
#[derive(Debug, Default)]
struct Runs {
    /// By exit reason.
    exits: BTreeMap<u64, usize>,
    /// CPUs on which one began, and how often that was another one than before.
    places: BTreeSet<usize>,
    moves: usize,
    /// What exits showed beside what they need.
    stray: Vec<String>,
    /// Registers in which they showed the canary.
    leaked: usize,
}

impl Runs {
    /// A run begins; whether on another CPU than the last.
    fn begins(&mut self, last: &mut usize) -> bool {
        let here = sys::here();
        let moved = *last != here;
        self.moves += usize::from(moved);
        self.places.insert(here);
        *last = here;
        moved
    }

    fn ends(&mut self, makeup: Makeup, x: &[u64; 18]) {
        *self.exits.entry(x[1]).or_default() += 1;
        self.stray.extend(makeup.stray(x));
        self.leaked += leaked(x);
    }
}

/// Judges what the exits of these vCPUs showed.
fn nothing_shown(prefix: &str, runs: &[Result<Runs, String>]) {
    let runs = || runs.iter().flatten();
    let stray: Vec<&String> = runs().flat_map(|run| &run.stray).take(5).collect();
    STEP.same(&format!("{prefix}exits of the others show nothing beside their payload"), "[]", format!("{stray:?}"));
    let leaked: usize = runs().map(|run| run.leaked).sum();
    STEP.same(&format!("{prefix}no exit of the others showed the canary"), 0, leaked);
}

/// Runs one of so many vCPUs until nothing runs any more.
fn run(hostile: &Hostile, handle: u64, [vcpu, vcpus]: [u64; 2], wakes: &Wakes) -> Result<Runs, String> {
    let mut seen = Runs::default();
    let (mut answer, mut last, mut preempted) = (0, usize::MAX, false);
    for runs in 0usize.. {
        if wakes.over.load(Ordering::SeqCst) {
            break;
        }
        if runs.is_multiple_of(STAY) {
            sys::pin_to((runs / STAY + usize::try_from(vcpu).unwrap_or(0)) % sys::cpus());
        }
        wakes.runs(vcpu);
        let moved = seen.begins(&mut last);
        if let Some(count) = wakes.carried(vcpu).filter(|_| moved && preempted) {
            count.fetch_add(1, Ordering::SeqCst);
        }
        // The host's leftovers must not come back.
        let mut arguments = [0x5ca1_ab1e; 17];
        arguments[..3].copy_from_slice(&[handle, vcpu, answer]);
        let x = hostile.raw(VCPU_RUN.into(), &arguments);
        wakes.wake(x[5]);
        answer = u64::MAX;
        preempted = x[1] == EXIT_IRQ;
        if x[0] != 0 {
            return Err(format!("VCPU_RUN of {vcpu}: {}", status_name(x[0].cast_signed())));
        }
        seen.ends(Makeup { gic: true, vcpus }, &x);
        match x[1] {
            EXIT_OFF => wakes.sleep(vcpu, 0, Duration::MAX)?,
            EXIT_WFI => wakes.sleep(vcpu, x[2], PATIENCE)?,
            EXIT_EOI => wakes.ends(hostile, handle, x[2]),
            EXIT_MMIO if x[2] == DEVICE + REG_SCRATCH && wakes.resamples.load(Ordering::SeqCst) => {}
            EXIT_MMIO if x[2] == DEVICE + REG_SCRATCH => {
                wakes.wake(hostile.raw(VM_IRQ.into(), &[handle, SPI, 0])[1]);
            }
            EXIT_IRQ | EXIT_WAKE | EXIT_KICKED => {}
            reason => return Err(format!("vCPU {vcpu} left with {reason}: {:x?}", &x[2..5])),
        }
    }
    Ok(seen)
}

/// Does something with a VM while each of its other vCPUs has a thread; what became of these.
fn beside<R>(
    hostile: &Hostile,
    bench: &mut Bench<'_>,
    vcpus: u64,
    act: impl FnOnce(&mut Bench<'_>) -> R,
) -> (R, Vec<Result<Runs, String>>) {
    let (handle, wakes) = (bench.handle, Arc::clone(&bench.wakes));
    std::thread::scope(|scope| {
        let wakes = &*wakes;
        let others: Vec<_> = (1..vcpus).map(|n| scope.spawn(move || run(hostile, handle, [n, vcpus], wakes))).collect();
        let outcome = act(bench);
        wakes.end();
        let runs = others.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err("panicked".to_owned())));
        (outcome, runs.collect())
    })
}

/// Runs the suite.
pub(crate) fn all() -> Result<(), String> {
    let hostile = Hostile::open()?;
    let before = resting(&hostile);
    let mut bench = Bench::with(&hostile, true, VCPUS)?;
    let handle = bench.handle;
    STEP.same("the host starts no vCPU", EXIT_OFF, hostile.raw(VCPU_RUN.into(), &[handle, 1, 0])[1]);
    let late = hostile.call(VCPU_SET_REG, &[handle, 1, REG_PC, RAM_BASE]);
    STEP.same("nor says where one starts", "WRONG_STATE", status_name(late));
    let (outcome, runs) = beside(&hostile, &mut bench, VCPUS, commands);
    nothing_shown("", &runs);
    for (vcpu, run) in (1..).zip(runs) {
        let all = [EXIT_OFF, EXIT_WFI, EXIT_WAKE, EXIT_IRQ, EXIT_MMIO];
        let held = matches!(&run, Ok(seen) if all.iter().all(|reason| seen.exits.contains_key(reason)));
        STEP.judged(
            &format!("vCPU {vcpu} was off, waited, woke, was preempted"),
            "exits 13, 4, 12, 1, 2",
            format!("{run:?}"),
            held,
        );
        // Each stay is on another CPU than the one before.
        let moved = run.is_ok_and(|seen| seen.places.len() == sys::cpus() && seen.moves >= 2 * sys::cpus());
        STEP.same(&format!("vCPU {vcpu} began runs on every CPU of the host, and went on"), true, moved);
    }
    outcome?;
    let woken = bench.exits.get(&EXIT_WAKE).copied().unwrap_or(0);
    STEP.judged("vCPU 0 left to have others woken", "some EXIT_WAKE", woken, woken > 0);
    bench.close();
    eight(&hostile)?;
    settle(STEP, "counters at rest", &hostile, &before);
    Ok(())
}

/// A VM with all the vCPUs that one can have: each has both timers, one after the other and all at once.
fn eight(hostile: &Hostile) -> Result<(), String> {
    const PERIOD: u64 = 62_500;
    let mut bench = Bench::with(hostile, true, MOST)?;
    let (outcome, runs) = beside(hostile, &mut bench, MOST, |bench| {
        bench.clean("eight: the controller is what it says", CMD_GIC, [MOST, 0, 0])?;
        for (name, how) in [("virtual", TICK_WAIT), ("physical", TICK_PHYSICAL)] {
            bench.clean(&format!("eight: the {name} timer of CPU 0"), CMD_TICKS, [10, PERIOD, how])?;
        }
        for cpu in 1..MOST {
            let on = bench.command(CMD_CPU_ON, [cpu, 0, 0])?;
            STEP.same(&format!("eight: CPU {cpu} is on"), "0, 0", format!("{}, {}", on[0], on[2]));
            for (name, job) in [("virtual", JOB_TICKS), ("physical", JOB_PHYSICAL)] {
                bench.clean(&format!("eight: the {name} timer of CPU {cpu}"), CMD_CPU, [cpu, job, 10])?;
            }
        }
        for (name, job) in [("virtual", JOB_TICKS), ("physical", JOB_PHYSICAL)] {
            let all =
                bench.clean(&format!("eight: the {name} timers of all others at once"), CMD_ALL, [MOST, job, 10])?;
            STEP.same("eight: others", MOST - 1, all[1]);
        }
        bench.clean("eight: all others hold the canary, and exit", CMD_ALL, [MOST, JOB_HOLD, PERIOD])?;
        Ok::<(), String>(())
    });
    let failed: Vec<_> = runs.iter().filter_map(|run| run.as_ref().err()).collect();
    nothing_shown("eight: ", &runs);
    STEP.same("eight: the host was asked for nothing else", "[]", format!("{failed:?}"));
    outcome?;
    bench.close();
    Ok(())
}

/// What the guest is asked to do with its CPUs.
fn commands(bench: &mut Bench<'_>) -> Result<(), String> {
    bench.clean("the controller is what it says", CMD_GIC, [VCPUS, 0, 0])?;
    for cpu in 1..VCPUS {
        for time in ["starts", "starts again"] {
            let [first, again, state] = bench.command(CMD_CPU_ON, [cpu, 0, 0])?;
            let twice = [guest::ON_PENDING, guest::ALREADY_ON].contains(&again.cast_signed());
            let held = first == 0 && twice && state == 0;
            STEP.judged(
                &format!("CPU {cpu} {time}"),
                "0, then pending or on, and it is on",
                format!("{first:x}, {again:x}, {state:x}"),
                held,
            );
            work(bench, cpu)?;
            let [off, ..] = bench.command(CMD_CPU, [cpu, JOB_OFF, 0])?;
            STEP.same(&format!("CPU {cpu} goes off"), 0, off);
        }
        bench.command(CMD_CPU_ON, [cpu, 0, 0])?;
    }
    for cpu in 1..VCPUS {
        bench.clean(&format!("CPU {cpu} is woken beside the others"), CMD_CPU_PING, [cpu, 100, 0])?;
    }
    flood(bench)?;
    bench.wakes.resamples.store(true, Ordering::SeqCst);
    bench.raises = true;
    let [got, after, _] = bench.command(CMD_CPU, [1, JOB_SPI, 0])?;
    STEP.same(
        "an SPI that the host holds until its end",
        format!("{SPI}, then {NO_INTERRUPT}"),
        format!("{got}, then {after}"),
    );
    STEP.same("the host hears of its end", 1, bench.wakes.ended.load(Ordering::SeqCst));
    random(bench)?;
    let [wrong, ..] = bench.command(CMD_CPU_ON, [VCPUS, 0, 0])?;
    STEP.same("a CPU that there is not does not start", guest::INVALID_PARAMETERS, wrong.cast_signed());
    Ok(())
}

/// Two CPUs send each other SGIs as fast as they can, and every CPU of the host answers meanwhile.
fn flood(bench: &mut Bench<'_>) -> Result<(), String> {
    let second = frequency();
    let (done, beats) = beating(|| bench.clean("two CPUs flood each other with SGIs", CMD_FLOOD, [1, second, 0]));
    let [_, sent, got] = done?;
    let held = (40..=sent).contains(&got);
    STEP.judged("SGIs of the flood", "40 or more taken, of more", format!("{sent} sent, {got} taken"), held);
    let seen = format!("{:?}, at the latest after {:?}", beats.counts, beats.longest);
    let held = beats.are_there() && beats.are_prompt();
    STEP.judged("every CPU of the host answers beside the flood", "each, and none after 10 s only", seen, held);
    Ok(())
}

/// Where the CPU has random numbers, no two are alike; where it has not, there is no such interface.
fn random(bench: &mut Bench<'_>) -> Result<(), String> {
    if sys::part()? == WITHOUT_RANDOM {
        return no_random(bench);
    }
    let version = bench.command(CMD_HVC, [guest::TRNG_VERSION.into(), 0, 0])?[0];
    STEP.same("random numbers: version", 0x1_0000, version);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..8 {
        let [status, high, middle] = bench.command(CMD_HVC, [guest::TRNG_RND_64.into(), 192, 0])?;
        STEP.same("random numbers: 192 bits", 0, status);
        seen.extend([high, middle]);
    }
    STEP.same("no two are alike", 16, seen.len());
    let mut drawn = Vec::new();
    while drawn.len() < DRAWN {
        let [status, high, middle] = bench.command(CMD_HVC, [guest::TRNG_RND_64.into(), 192, 0])?;
        if status != 0 {
            return Err(format!("random numbers: status {status:#x}"));
        }
        drawn.extend([high, middle]);
    }
    let (even, seen) = evenness(&drawn);
    STEP.judged("random numbers: their bits, changes and bytes", EVEN, seen, even);
    // Controls: what is not random is seen as that: values that are even to a fault, bits in pairs, too many ones.
    let counted: Vec<u64> = (0..DRAWN as u64).map(|n| n % 256 * 0x0101_0101_0101_0101).collect();
    let doubled: Vec<u64> =
        drawn.iter().map(|word| word & 0x5555_5555_5555_5555 | (word & 0x5555_5555_5555_5555) << 1).collect();
    let heavy: Vec<u64> = drawn.iter().map(|word| word | word.rotate_left(7) & 0x1111_1111_1111_1111).collect();
    let found = [counted, doubled, heavy].map(|words| evenness(&words).0);
    STEP.same("random numbers: what is not random is seen", "[false, false, false]", format!("{found:?}"));
    let none = bench.command(CMD_HVC, [guest::TRNG_RND_64.into(), 193, 0])?[0];
    STEP.same("random numbers: too many", guest::INVALID_PARAMETERS, none.cast_signed());
    Ok(())
}

/// What [`evenness`] wants: what is further from chance's average is less than one set in 100,000.
const EVEN: &str = "each within 6 deviations of chance";

/// Counts the ones, the changes from one bit to the next, and each value of a byte, and says how many standard deviations
/// they are from what even chance gives.
fn evenness(words: &[u64]) -> (bool, String) {
    let bits = words.len() as f64 * 64.0;
    let deviation = bits.sqrt() / 2.0;
    let ones: u32 = words.iter().map(|word| word.count_ones()).sum();
    let within: u32 = words.iter().map(|word| ((word ^ word >> 1) & (u64::MAX >> 1)).count_ones()).sum();
    let between = words.windows(2).filter(|pair| (pair[0] >> 63) != (pair[1] & 1)).count();
    let mut values = [0u32; 256];
    words.iter().flat_map(|word| word.to_le_bytes()).for_each(|byte| values[usize::from(byte)] += 1);
    let expected = words.len() as f64 * 8.0 / 256.0;
    let squares: f64 = values.iter().map(|seen| (f64::from(*seen) - expected).powi(2) / expected).sum();
    let changes = f64::from(within) + between as f64;
    let apart = [
        (f64::from(ones) - bits / 2.0) / deviation,
        (changes - (bits - 1.0) / 2.0) / deviation,
        (squares - 255.0) / 510f64.sqrt(),
    ];
    let seen = format!("ones {:+.1}, changes {:+.1}, bytes {:+.1}", apart[0], apart[1], apart[2]);
    (apart.iter().all(|apart| apart.abs() <= 6.0), seen)
}

/// What one CPU does.
fn work(bench: &mut Bench<'_>, cpu: u64) -> Result<(), String> {
    bench.clean(&format!("CPU {cpu} is woken 50 times"), CMD_CPU_PING, [cpu, 50, 0])?;
    bench.clean(&format!("the virtual timer of CPU {cpu} ends its waits"), CMD_CPU, [cpu, JOB_TICKS, 10])?;
    bench.clean(&format!("the physical timer of CPU {cpu} ends its waits"), CMD_CPU, [cpu, JOB_PHYSICAL, 10])?;
    bench.raises = true;
    let [got, after, _] = bench.command(CMD_CPU, [cpu, JOB_SPI, 0])?;
    STEP.same(
        &format!("an SPI ends a wait of CPU {cpu}"),
        format!("{SPI}, then {NO_INTERRUPT}"),
        format!("{got}, then {after}"),
    );
    held_elsewhere(bench, cpu)?;
    bench.clean(&format!("CPU {cpu} holds the canary, and exits"), CMD_CPU, [cpu, JOB_HOLD, 1_000_000])?;
    Ok(())
}

/// A CPU holds full vectors while its thread is preempted and goes on elsewhere, twice: as long apart as that is, both fall
/// into the time that it holds them.
fn held_elsewhere(bench: &mut Bench<'_>, cpu: u64) -> Result<(), String> {
    const ROUNDS: usize = 32;
    let ticks = frequency() * 16 / 100;
    let carried = |bench: &Bench<'_>| bench.wakes.carried(cpu).map_or(0, |count| count.load(Ordering::SeqCst));
    let (mut wrong, mut moves) = (Vec::new(), 0);
    for _ in 0..ROUNDS {
        let before = carried(bench);
        wrong.push(bench.command(CMD_CPU, [cpu, JOB_FP, ticks])?[0]);
        moves = carried(bench) - before;
        if moves >= 2 {
            break;
        }
    }
    let held = moves >= 2 && wrong.iter().all(|wrong| *wrong == 0);
    let seen = format!("{wrong:?} wrong, {moves} moves in the last round");
    STEP.judged(&format!("vectors of CPU {cpu} survive preemption"), "0 wrong, 2 moves or more", seen, held);
    Ok(())
}

/// Every call for random numbers is refused, and the guest is given none by another name.
fn no_random(bench: &mut Bench<'_>) -> Result<(), String> {
    for (name, function) in [
        ("version", guest::TRNG_VERSION),
        ("features", guest::TRNG_FEATURES),
        ("UUID", guest::TRNG_GET_UUID),
        ("32 bits", guest::TRNG_RND),
        ("64 bits", guest::TRNG_RND_64),
    ] {
        let seen = bench.command(CMD_HVC, [function.into(), 32, 0])?;
        let expected = [guest::NOT_SUPPORTED, 0, 0];
        STEP.same(
            &format!("a CPU without random numbers: {name}"),
            format!("{expected:?}"),
            format!("{:?}", seen.map(u64::cast_signed)),
        );
    }
    Ok(())
}
