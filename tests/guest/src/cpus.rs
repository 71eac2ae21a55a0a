// SPDX-License-Identifier: MIT OR Apache-2.0
//! The payload's other CPUs: started and stopped by PSCI, given work by one word and an SGI, which they answer with one.
//!
//! Everything here waits by WFI with interrupts masked, so that an interrupt that does not end a wait is a hang.

use crate::proto::*;
use crate::sysreg::counter;
use crate::{device, fp, hypercall, interrupts, memory, mmu, storm, trap};
use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};

const CPU_OFF: u64 = 0x8400_0002;
const CPU_ON: u64 = 0xc400_0003;
const AFFINITY_INFO: u64 = 0xc400_0004;
const OFF: u64 = 1;
/// SMCCC's answer for a page that is not in the state that the call wants.
const INVALID_PARAMETER: u64 = (-3i64).cast_unsigned();
/// What a CPU is started with, to see that it gets it.
const CONTEXT: u64 = 0x5eed_0000;

/// What one CPU is to do, and what came of it. The CPU that gives the work is 0.
struct Desk {
    job: AtomicU64,
    arguments: [AtomicU64; 2],
    results: [AtomicU64; 3],
    /// 1 until the job is done, of which no SGI tells then.
    is_looked_at: AtomicU64,
}

impl Desk {
    const fn new() -> Self {
        Self {
            job: AtomicU64::new(0),
            arguments: [const { AtomicU64::new(0) }; 2],
            results: [const { AtomicU64::new(0) }; 3],
            is_looked_at: AtomicU64::new(0),
        }
    }
}

static DESKS: [Desk; MOST_CPUS as usize] = [const { Desk::new() }; MOST_CPUS as usize];

unsafe extern "C" {
    static guest_secondary: u8;
}

fn desk(cpu: u64) -> Option<&'static Desk> {
    usize::try_from(cpu).ok().and_then(|cpu| DESKS.get(cpu)).filter(|_| cpu != 0)
}

/// Starts a CPU and waits until it says that it is there.
pub(crate) fn start(cpu: u64) -> [u64; 3] {
    let on = || hypercall::hvc(CPU_ON, [cpu, &raw const guest_secondary as u64, CONTEXT | cpu])[0];
    let first = on();
    let again = on();
    let answered = if first == 0 { interrupts::take_sgi() } else { 0 };
    [first, again, hypercall::hvc(AFFINITY_INFO, [cpu, 0, 0])[0] | answered << 8]
}

/// Has a CPU begin something.
fn post(cpu: u64, job: u64, arguments: [u64; 2]) -> Option<&'static Desk> {
    let desk = desk(cpu)?;
    for (place, argument) in desk.arguments.iter().zip(arguments) {
        place.store(argument, Ordering::Relaxed);
    }
    desk.job.store(job, Ordering::Release);
    interrupts::route_spi(if job == JOB_SPI { cpu } else { 0 });
    interrupts::send(cpu);
    Some(desk)
}

/// Waits until the CPU is done; its results.
fn collect(desk: &Desk) -> [u64; 3] {
    let stray = interrupts::take_sgi();
    let [first, second, third] = desk.results.each_ref().map(|result| result.load(Ordering::Acquire));
    [first.wrapping_add(stray), second, third]
}

/// Has a CPU do something and waits for it; its results.
pub(crate) fn give(cpu: u64, job: u64, arguments: [u64; 2]) -> [u64; 3] {
    let Some(desk) = post(cpu, job, arguments) else { return [u64::MAX; 3] };
    if job == JOB_OFF {
        // It does not answer any more.
        while hypercall::hvc(AFFINITY_INFO, [cpu, 0, 0])[0] != OFF {
            core::hint::spin_loop();
        }
        return [0; 3];
    }
    collect(desk)
}

/// Has CPUs 1 to `cpus` - 1 do the same at the same time. One SGI is as good as several, so each says at its desk that it
/// is done.
pub(crate) fn all(cpus: u64, job: u64, arguments: [u64; 2]) -> [u64; 3] {
    (1..cpus).filter_map(desk).for_each(|desk| desk.is_looked_at.store(1, Ordering::Relaxed));
    let posted = (1..cpus).filter(|cpu| post(*cpu, job, arguments).is_some()).count() as u64;
    let mut wrong = cpus - 1 - posted;
    for desk in (1..cpus).filter_map(desk) {
        while desk.is_looked_at.load(Ordering::Acquire) != 0 {
            core::hint::spin_loop();
        }
        wrong = wrong.wrapping_add(desk.results[0].load(Ordering::Relaxed));
    }
    [wrong, posted, 0]
}

/// This CPU and another one lend the same granule and take it back, each so many times, in no order.
pub(crate) fn quarrel(cpu: u64, address: u64, rounds: u64) -> [u64; 3] {
    let Some(desk) = post(cpu, JOB_QUARREL, [address, rounds]) else { return [u64::MAX; 3] };
    let here = lend_and_take(address, rounds);
    let there = collect(desk);
    [0, 1, 2].map(|n| here.get(n).zip(there.get(n)).map_or(u64::MAX, |(here, there)| here + there))
}

/// Answers that are neither yes nor "not in that state", and how often each call was answered by yes.
fn lend_and_take(address: u64, rounds: u64) -> [u64; 3] {
    let mut seen = [0; 3];
    for _ in 0..rounds {
        for (call, yes) in [(hypercall::share as fn(u64, u64) -> [u64; 3], 1), (hypercall::unshare, 2)] {
            seen[match call(address, 1)[0] {
                0 => yes,
                INVALID_PARAMETER => continue,
                _ => 0,
            }] += 1;
        }
    }
    seen
}

/// The first CPU has what it waited for.
static IS_THERE: AtomicU64 = AtomicU64::new(0);

/// Takes a granule back, or touches one, with interrupts let through, while another CPU works in the first.
pub(crate) fn waiting(cpu: u64, address: u64, touched: u64, behind: u64) -> [u64; 3] {
    IS_THERE.store(0, Ordering::Relaxed);
    let Some(desk) = post(cpu, JOB_BESIDE, [address, 0]) else { return [u64::MAX; 3] };
    let (answer, taken) = interrupts::let_through(behind, || match touched {
        0 => hypercall::unshare(address, 1)[0],
        _ => memory::load(touched),
    });
    IS_THERE.store(1, Ordering::Release);
    let [wrong, rounds, _] = collect(desk);
    [answer.wrapping_add(wrong), taken, rounds]
}

/// Adds to a word until the first CPU has what it waits for, and says once that it has taken two interrupts.
fn beside(address: u64) -> [u64; 3] {
    let first = memory::load(address);
    let (mut wrong, mut rounds, mut is_told) = (0, 0, false);
    while IS_THERE.load(Ordering::Acquire) == 0 {
        memory::add(address, 1);
        rounds += 1;
        wrong += u64::from(memory::load(address) != first + rounds);
        if !is_told && interrupts::let_in() >= 2 {
            is_told = true;
            device::write64(REG_SCRATCH, rounds);
        }
        turn();
    }
    [wrong, rounds, 0]
}

/// The granule at which each of two CPUs is.
static PLACES: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// This CPU and another one touch the same granules at the same time; those that do not show both.
pub(crate) fn together(cpu: u64, address: u64, granules: u64) -> [u64; 3] {
    PLACES.iter().for_each(|place| place.store(0, Ordering::Relaxed));
    let Some(desk) = post(cpu, JOB_TOGETHER, [address, granules]) else { return [u64::MAX; 3] };
    add_to_each(0, address, granules);
    let [stray, ..] = collect(desk);
    let wrong = (0..granules).filter(|n| memory::load(address + n * GRANULE) != 2).count();
    [wrong as u64 + stray, 0, 0]
}

fn add_to_each(me: usize, address: u64, granules: u64) -> [u64; 3] {
    for n in 0..granules {
        PLACES[me].store(n + 1, Ordering::Release);
        while PLACES[1 - me].load(Ordering::Acquire) <= n {
            core::hint::spin_loop();
        }
        memory::add(address + n * GRANULE, 1);
    }
    [0; 3]
}

/// This CPU and another one send each other SGIs for so many ticks.
pub(crate) fn flood(cpu: u64, ticks: u64) -> [u64; 3] {
    storm::prepare();
    let Some(desk) = post(cpu, JOB_FLOOD, [cpu, ticks]) else { return [u64::MAX; 3] };
    storm::here(cpu, ticks, || desk.results.each_ref().map(|result| result.load(Ordering::Acquire)))
}

/// Gives a CPU nothing to do, so many times.
pub(crate) fn ping(cpu: u64, times: u64) -> [u64; 3] {
    let start = counter();
    let wrong = (0..times).filter(|n| give(cpu, JOB_ECHO, [*n, 0])[0] != 0 || echoed(cpu) != *n).count();
    [wrong as u64, counter() - start, 0]
}

fn echoed(cpu: u64) -> u64 {
    desk(cpu).map_or(u64::MAX, |desk| desk.results[1].load(Ordering::Acquire))
}

/// How many SGIs a CPU that answers has ended, and one more since it looks for them.
static ANSWERS: AtomicU64 = AtomicU64::new(0);

/// Has a CPU take so many SGIs while it runs, and waits until it looks for the first.
pub(crate) fn begin_answers(cpu: u64, times: u64) {
    ANSWERS.store(0, Ordering::Relaxed);
    if post(cpu, JOB_ANSWER, [times, 0]).is_some() {
        answered(0);
    }
}

/// Sends one, until it has been ended.
pub(crate) fn one_answer(cpu: u64) -> bool {
    let before = ANSWERS.load(Ordering::Acquire);
    interrupts::send(cpu);
    answered(before);
    ANSWERS.load(Ordering::Acquire) == before + 1
}

/// Waits until the CPU is done; what was wrong.
pub(crate) fn end_answers(cpu: u64) -> u64 {
    desk(cpu).map_or(u64::MAX, |desk| collect(desk)[0])
}

/// Waits until there are more than these. The hint has an emulator that runs one CPU at a time turn to the other.
fn answered(before: u64) {
    while ANSWERS.load(Ordering::Acquire) == before {
        turn();
    }
}

fn turn() {
    // SAFETY: a hint, which changes no register.
    unsafe { core::arch::asm!("yield", options(nostack, nomem)) };
}

fn answer(times: u64) -> [u64; 3] {
    let mut others = 0;
    for _ in 0..times {
        // The first time it says that it looks, then that one was ended.
        ANSWERS.fetch_add(1, Ordering::AcqRel);
        loop {
            match interrupts::acknowledge() {
                SGI => break,
                NO_INTERRUPT => turn(),
                _ => others += 1,
            }
        }
        interrupts::end(SGI);
    }
    ANSWERS.fetch_add(1, Ordering::AcqRel);
    [others, 0, 0]
}

/// The first Rust of another CPU: MMU off, its stack set.
#[unsafe(no_mangle)]
extern "C" fn guest_other(context: u64) -> ! {
    trap::install();
    mmu::join();
    fp::enable();
    let cpu = context & 0xff;
    interrupts::set_up_here(cpu);
    if context & !0xff == CONTEXT {
        interrupts::send(0);
    }
    loop {
        let stray = interrupts::take_sgi();
        let Some(desk) = desk(cpu) else { continue };
        let [a, b] = desk.arguments.each_ref().map(|argument| argument.load(Ordering::Relaxed));
        let results = match desk.job.load(Ordering::Acquire) {
            JOB_ECHO => [stray, a, 0],
            JOB_TICKS => interrupts::ticks(a, b, TICK_WAIT),
            JOB_PHYSICAL => interrupts::ticks(a, b, TICK_PHYSICAL),
            JOB_SPI => interrupts::wait_for_spi(),
            JOB_FP => [fp::survives_time(a), 0, 0],
            JOB_QUARREL => lend_and_take(a, b),
            JOB_ANSWER => answer(a),
            JOB_TOGETHER => add_to_each(1, a, b),
            JOB_FLOOD => storm::there(a, b),
            JOB_BESIDE => beside(a),
            JOB_HOLD => [interrupts::held(a, b), 0, 0],
            JOB_OFF => {
                hypercall::hvc(CPU_OFF, [0; 3]);
                [u64::MAX; 3]
            }
            _ => [UNKNOWN_COMMAND, 0, 0],
        };
        for (place, result) in desk.results.iter().zip(results) {
            place.store(result, Ordering::Release);
        }
        if desk.is_looked_at.swap(0, Ordering::AcqRel) == 0 {
            interrupts::send(0);
        }
    }
}

global_asm!(
    ".pushsection .text.guest_secondary, \"ax\"",
    ".global guest_secondary",
    // x0: the context, whose low byte is the CPU's number. Each has 8 KB of stack below the first one's 32 KB. What a
    // cache may hold of it is the same memory: nobody has written it with the MMU off.
    "guest_secondary:",
    "    msr     daifset, #15",
    "    msr     spsel, #1",
    "    adrp    x2, guest_stack_top",
    "    and     x3, x0, #0xff",
    "    add     x3, x3, #3",
    "    sub     x2, x2, x3, lsl #13",
    "    mov     sp, x2",
    "    mov     x29, xzr",
    "    mov     x30, xzr",
    "    bl      guest_other",
    ".popsection",
);
