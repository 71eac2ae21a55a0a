// SPDX-License-Identifier: MIT OR Apache-2.0
//! A thread whose guest spins, with interrupts masked, no exit and a word in every register: what a signal shows of it,
//! how soon it comes out, and how soon others have its CPU.

use std::arch::asm;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::machine::{Event, Machine, Plan};
use crate::proto::{BOOT_NO_SHARE, CANARY, CMD_LAST, LAST_SPIN};
use crate::switch::shows;
use crate::sys::{self, Mapping, errno_name, last_errno};
use crate::vgic::{STEP, myself};

/// Room for all that the kernel shows to a signal's handler, with the longest vectors.
const STACK: usize = 1 << 17;
/// Signals, each after the thread has worked for so many of the kernel's ticks of 10 ms.
const SIGNALS: usize = 20;
const WORK: u64 = 2;
/// Sleeps of a thread that wants the CPU, in a round, and most rounds until one of them was not disturbed.
const BEATS: usize = 21;
const BEAT: Duration = Duration::from_millis(2);
const ROUNDS: usize = 20;
/// So late half of the sleeps of a round may end; the guest would not let go for ever.
const LATE: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(60);
/// So long after its handler has run a signal has brought nobody out.
const LOST: Duration = Duration::from_secs(2);

/// Times that the handler ran.
static HANDLED: AtomicU32 = AtomicU32::new(0);

extern "C" fn handler(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    HANDLED.fetch_add(1, Ordering::SeqCst);
}

/// This thread's stack for signals, on which the kernel puts `siginfo` and `ucontext` in front of the handler.
struct SignalStack {
    memory: Mapping,
    before: libc::stack_t,
}

impl SignalStack {
    fn new() -> Result<Self, String> {
        let failed = |what: &str| format!("{what}: {}", errno_name(last_errno()));
        let memory = Mapping::anonymous(STACK, false).map_err(errno_name)?;
        let new = libc::stack_t { ss_sp: memory.at(0).cast(), ss_flags: 0, ss_size: STACK };
        // SAFETY: all zeroes is a value of this plain structure.
        let mut before: libc::stack_t = unsafe { std::mem::zeroed() };
        // SAFETY: the memory stays until the old stack is set again.
        if unsafe { libc::sigaltstack(&raw const new, &raw mut before) } != 0 {
            return Err(failed("sigaltstack"));
        }
        // SAFETY: all zeroes is a valid sigaction.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: the handler only counts, and the structure is alive during the call.
        if unsafe { libc::sigaction(libc::SIGUSR2, &raw const action, std::ptr::null_mut()) } != 0 {
            return Err(failed("sigaction"));
        }
        Ok(Self { memory, before })
    }
}

/// Words that the kernel put on a stack for signals, and those of them that show a part of the canary. Forgets them.
fn look(stack: &Mapping) -> (usize, usize) {
    let (mut words, mut found) = (0, 0);
    for at in (0..STACK).step_by(8) {
        let word = stack.load(at);
        words += usize::from(word != 0);
        found += usize::from(shows(CANARY, word));
        stack.store(at, 0);
    }
    (words, found)
}

impl Drop for SignalStack {
    fn drop(&mut self) {
        // SAFETY: the stack that was in use before.
        unsafe { libc::sigaltstack(&raw const self.before, std::ptr::null_mut()) };
    }
}

fn signal(thread: libc::pid_t) {
    // SAFETY: plain numbers; a thread that is gone gets nothing.
    unsafe { libc::syscall(libc::SYS_tgkill, std::process::id().cast_signed(), thread, libc::SIGUSR2) };
}

/// Runs the cases.
pub(crate) fn all() -> Result<(), String> {
    let own_stack = SignalStack::new()?;
    let stack = &own_stack.memory;
    // In a thread of its own: this one is to have no canary in any register of its own.
    let own = std::thread::scope(|scope| scope.spawn(of_a_thread).join().map_err(|_| "panicked".to_owned()))??;
    STEP.judged("tools: a signal shows the registers of a program of the host's", "some", own.1, own.1 > 0);
    let (mut machine, _) = Machine::booted(Plan { boot: BOOT_NO_SHARE, ..Plan::default() })?;
    machine.answer(CMD_LAST, [LAST_SPIN, 0, 0]);
    let (over, came, looked) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let thread = myself();
    let (ended, watched) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let seen = watch(thread, stack, &came, &looked);
            over.store(true, Ordering::SeqCst);
            while came.load(Ordering::SeqCst) != usize::MAX {
                signal(thread);
                std::thread::sleep(Duration::from_millis(1));
            }
            seen
        });
        sys::pin_to(1);
        let ended = loop {
            match machine.step() {
                Event::Interrupted if over.load(Ordering::SeqCst) => break None,
                Event::Interrupted => {
                    let times = came.fetch_add(1, Ordering::SeqCst) + 1;
                    while looked.load(Ordering::SeqCst) < times && !over.load(Ordering::SeqCst) {
                        std::thread::yield_now();
                    }
                }
                other @ (Event::Asks | Event::Stored(..) | Event::System(_) | Event::Broken(_)) => break Some(other),
            }
        };
        came.store(usize::MAX, Ordering::SeqCst);
        (ended, watcher.join().unwrap_or_else(|_| Err("panicked".to_owned())))
    });
    sys::allow(thread, &(0..sys::cpus()).collect::<Vec<_>>());
    STEP.same("a guest that spins goes on until the end", "None", format!("{ended:?}"));
    let Watched { found, words, longest, least } = watched?;
    STEP.same("a signal shows no register of a guest that runs", 0, found);
    STEP.judged("of all that it shows", "30 words or more each time", words, words >= 30);
    let seen = format!("{SIGNALS} signals, the longest took {longest:?}");
    STEP.judged(
        "a vCPU comes out for each signal from another CPU",
        "20, within the patience",
        seen,
        longest < PATIENCE,
    );
    let seen = format!("half of them {least:?} late or less");
    STEP.judged(
        "others have its CPU at once",
        &format!("half of {BEATS} sleeps late by less than {LATE:?}, in some round"),
        seen,
        least < LATE,
    );
    Ok(())
}

/// The control: this thread has the canary in its registers when the signal comes.
fn of_a_thread() -> Result<(usize, usize), String> {
    let stack = SignalStack::new()?;
    let (ready, thread, before) = (AtomicU32::new(0), myself(), HANDLED.load(Ordering::SeqCst));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while ready.load(Ordering::SeqCst) == 0 {
                std::hint::spin_loop();
            }
            signal(thread);
        });
        // SAFETY: touches registers that are declared, and two words that live on.
        unsafe {
            asm!(
                ".irp n, 9, 10, 11, 12, 13, 14, 15",
                "mov x\\n, {canary}",
                ".endr",
                "dup v0.2d, {canary}",
                "dup v31.2d, {canary}",
                "str {canary:w}, [{ready}]",
                "2: ldr {now:w}, [{handled}]",
                "cmp {now:w}, {before:w}",
                "b.eq 2b",
                canary = in(reg) CANARY, ready = in(reg) ready.as_ptr(), handled = in(reg) HANDLED.as_ptr(),
                before = in(reg) before, now = out(reg) _,
                out("x9") _, out("x10") _, out("x11") _, out("x12") _, out("x13") _, out("x14") _, out("x15") _,
                out("v0") _, out("v31") _,
                options(nostack)
            );
        }
    });
    Ok(look(&stack.memory))
}

/// What was seen from outside.
struct Watched {
    /// Words that show a part of the canary, of all; and the fewest that a signal showed.
    found: usize,
    words: usize,
    /// The longest that a signal took.
    longest: Duration,
    /// By how much half of the sleeps on its CPU were late, in the best round.
    least: Duration,
}

/// Interrupts the thread so many times, and then wants its CPU.
fn watch(thread: libc::pid_t, stack: &Mapping, came: &AtomicUsize, looked: &AtomicUsize) -> Result<Watched, String> {
    sys::pin_to(0);
    let (mut found, mut words, mut longest) = (0, usize::MAX, Duration::ZERO);
    for turn in 0..=SIGNALS {
        let (begin, worked) = (Instant::now(), work(thread)?);
        while work(thread)? < worked + WORK {
            if begin.elapsed() > PATIENCE {
                return Err("its thread does no work".to_owned());
            }
            std::thread::yield_now();
        }
        let (before, mut start) = (came.load(Ordering::SeqCst), Instant::now());
        let (mut handled, first) = (HANDLED.load(Ordering::SeqCst), start);
        signal(thread);
        while came.load(Ordering::SeqCst) == before {
            if first.elapsed() > PATIENCE {
                return Err("a signal that brings nobody out".to_owned());
            }
            // The first may come before the guest runs. On a machine that is short of CPUs a later one, too, can meet the
            // thread between two runs: its handler has run, and it brings nobody out.
            let is_lost = start.elapsed() > LOST && HANDLED.load(Ordering::SeqCst) != handled;
            if turn == 0 || is_lost {
                (start, handled) = (Instant::now(), HANDLED.load(Ordering::SeqCst));
                signal(thread);
            }
            std::thread::yield_now();
        }
        let took = start.elapsed();
        let (all, shown) = look(stack);
        if turn > 0 {
            (found, words, longest) = (found + shown, words.min(all), longest.max(took));
        }
        looked.fetch_add(1, Ordering::SeqCst);
    }
    sys::pin_to(1);
    first_of_all()?;
    let mut least = Duration::MAX;
    for _ in 0..ROUNDS {
        let mut late: Vec<Duration> = (0..BEATS).map(|_| beat()).collect();
        late.sort_unstable();
        least = least.min(late[BEATS / 2]);
        if least < LATE {
            break;
        }
    }
    Ok(Watched { found, words, longest, least })
}

/// How late a sleep ends.
fn beat() -> Duration {
    let start = Instant::now();
    std::thread::sleep(BEAT);
    start.elapsed().saturating_sub(BEAT)
}

/// This thread goes before all others of its CPU.
fn first_of_all() -> Result<(), String> {
    let parameter: libc::c_int = 50;
    // SAFETY: the structure is one number, which is alive during the call.
    let done = unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_FIFO, &raw const parameter) };
    if done == 0 { Ok(()) } else { Err(format!("sched_setscheduler: {}", errno_name(last_errno()))) }
}

/// Processor time of a thread of this process, in the kernel's ticks.
pub(crate) fn work(thread: libc::pid_t) -> Result<u64, String> {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat")).map_err(|e| e.to_string())?;
    // Fields 14 and 15; the third stands behind the name.
    let fields = stat.rsplit(") ").next().unwrap_or_default().split_whitespace().skip(11).take(2);
    Ok(fields.filter_map(|field| field.parse::<u64>().ok()).sum())
}
