// SPDX-License-Identifier: MIT OR Apache-2.0
//! Everything at once: threads convert, fault, punch and pin the same pages that a guest touches, shares, takes back and
//! gives away. What the guest wrote to its own pages never changes, and what is new to it is zero (D6, I4, I5, I8, I9).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::STEP;
use super::calls::{call, fd};
use super::rig::{PAGE, PAGE_BYTES, bytes, open_attempts};
use super::touches::Toucher;
use crate::cpus::beside;
use crate::gmem::Gmem;
use crate::hostile::{Hostile, runs};
use crate::machine::{Machine, Plan, entropy};
use crate::proto;
use crate::raw::{resting, settle};
use crate::sys::{self, Mapping, errno_name};
use crate::vgic::let_signals_interrupt;

/// Pages behind the guest's program that everybody fights for.
const PAGES: u64 = 64;
const FIRST: u64 = proto::RAM_MIN / PAGE;
/// Rounds that a guest gets through on the slowest of machines.
const ROUNDS: u64 = 10;

/// A generator of its own for each thread.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    /// A range of the fought-for pages, in bytes.
    fn range(&mut self) -> (u64, u64) {
        let first = self.roll(PAGES);
        let count = 1 + self.roll((PAGES - first).min(4));
        ((FIRST + first) * PAGE, count * PAGE)
    }

    fn page(&mut self) -> usize {
        bytes(FIRST + self.roll(PAGES))
    }
}

/// What the threads did, by outcome.
#[derive(Default)]
struct Tally {
    private: AtomicU64,
    /// Of these, those before which the host could touch the first page, and not behind.
    moved: AtomicU64,
    /// Conversions that were seen to wait for a page in a pipe, and went through when it was let go.
    waited: AtomicU64,
    together: AtomicU64,
    busy: AtomicU64,
    shared: AtomicU64,
    faults: AtomicU64,
    refused: AtomicU64,
    punched: AtomicU64,
    /// Holes behind which a word reads zero that did not before.
    emptied: AtomicU64,
    pinned: AtomicU64,
    /// Who loads and stores by itself.
    toucher: Option<Toucher>,
    /// Answers that none of the calls may give.
    wrong: std::sync::Mutex<Vec<String>>,
}

impl Tally {
    fn add(place: &AtomicU64) {
        place.fetch_add(1, Ordering::Relaxed);
    }

    fn wrong(&self, what: &str, error: i32) {
        self.wrong
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .push(format!("{what}: {}", errno_name(error)));
    }
}

/// Runs for `seconds`.
pub(crate) fn all(seconds: u64, seed: Option<u64>) -> Result<(), String> {
    let seed = seed.unwrap_or_else(entropy) | 1;
    let_signals_interrupt();
    println!("stress: seed {seed:#x}, {seconds} s");
    let hostile = Hostile::open()?;
    let rest = resting(&hostile);
    // Two guests at a time, of two vCPUs and of one, each with its file and everybody who fights for that.
    std::thread::scope(|scope| {
        let first = scope.spawn(|| one("", 2, seconds, seed));
        let second = one(", beside it", 1, seconds, seed.rotate_left(32) | 1);
        first.join().unwrap_or_else(|_| Err("panicked".to_owned())).and(second)
    })?;
    settle(STEP, "stress: all is back", &hostile, &rest);
    STEP.same("stress: all frames in reach", "", runs(&hostile.unreachable()));
    Ok(())
}

type Job = fn(&Gmem, &Mapping, &Tally, &mut Dice);
const JOBS: [Job; 5] = [convert, fault, punch, pin, wait];

/// One guest, its file, and what is done to that.
fn one(which: &str, vcpus: u64, seconds: u64, seed: u64) -> Result<(), String> {
    let bytes = proto::RAM_MIN + PAGES * PAGE;
    let plan = Plan { bytes, boot: proto::BOOT_NO_SHARE, gic: vcpus > 1, vcpus, ..Plan::default() };
    let (mut machine, _) = Machine::booted(plan)?;
    let (gmem, ram) = (std::sync::Arc::clone(&machine.gmem), std::sync::Arc::clone(&machine.ram));
    let wire = crate::vgic::Cloned::as_fd_clone(&machine.vm)?;
    let mut others = std::mem::take(&mut machine.others);
    // A process of its own, which asks nobody before it loads or stores.
    let toucher = Toucher::new(&ram, crate::guest_memfd::rig::bytes(FIRST), PAGES, seed.rotate_left(17))?;
    let tally = Tally { toucher: Some(toucher), ..Tally::default() };
    let stop = AtomicBool::new(false);
    let (rounds, served) = std::thread::scope(|scope| {
        let (gmem, ram, tally, stop) = (&*gmem, &*ram, &tally, &stop);
        for (number, job) in (1..).zip(JOBS) {
            scope.spawn(move || {
                let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15 ^ number) | 1);
                while !stop.load(Ordering::Relaxed) {
                    job(gmem, ram, tally, &mut dice);
                }
            });
        }
        let end = Instant::now() + Duration::from_secs(seconds);
        let result = beside(&mut others, &wire, |_| guest(&mut machine, &mut Dice(seed), end, tally, vcpus > 1));
        stop.store(true, Ordering::Relaxed);
        result
    });
    let ended = tally.toucher.as_ref().map_or_else(String::new, Toucher::end);
    STEP.same(&format!("stress: loads and stores go on to the end{which}"), "signal 9", ended);
    let broken: Vec<_> = served.into_iter().filter_map(Result::err).collect();
    STEP.same(&format!("stress: what its other vCPUs ended with{which}"), "[]", format!("{broken:?}"));
    tally.report(which, rounds, vcpus);
    STEP.same(&format!("stress: as many attempts have ended as begun{which}"), "0 of some", open_attempts(&gmem));
    Ok(())
}

impl Tally {
    /// Whether everything has happened that must.
    fn has_all(&self, two: bool) -> bool {
        let some = |place: &AtomicU64| place.load(Ordering::Relaxed) > 0;
        let all = [
            &self.moved,
            &self.waited,
            &self.shared,
            &self.faults,
            &self.refused,
            &self.punched,
            &self.emptied,
            &self.pinned,
        ];
        let touched = self.toucher.as_ref().is_none_or(Toucher::has_all);
        all.into_iter().all(some) && touched && (!two || some(&self.together))
    }

    fn report(self, which: &str, rounds: Result<u64, String>, vcpus: u64) {
        let show = |place: &AtomicU64| place.load(Ordering::Relaxed);
        println!(
            "stress{which}: {rounds:?} rounds of the guest; converted {}, moved {}, waited for {}, busy {}, shared {}, touched {}, refused {}, \
         punched {}, pinned {}, touched by two vCPUs {}",
            show(&self.private),
            show(&self.moved),
            show(&self.waited),
            show(&self.busy),
            show(&self.shared),
            show(&self.faults),
            show(&self.refused),
            show(&self.punched),
            show(&self.pinned),
            show(&self.together)
        );
        STEP.judged(
            &format!("stress: the guest's pages{which}"),
            &format!("no damage, {ROUNDS} rounds or more"),
            format!("{rounds:?}"),
            rounds.is_ok_and(|n| n >= ROUNDS),
        );
        for (case, place) in [
            ("stress: conversions that took a page from the host", &self.moved),
            ("stress: conversions that waited for a pin and went through", &self.waited),
            ("stress: back to shared", &self.shared),
            ("stress: host faults served", &self.faults),
            ("stress: host faults refused", &self.refused),
            ("stress: holes", &self.punched),
            ("stress: holes that took a word with them", &self.emptied),
            ("stress: pins", &self.pinned),
        ] {
            STEP.judged(&format!("{case}{which}"), "some", show(place), show(place) > 0);
        }
        let touched = self.toucher.as_ref().map_or([0; 3], Toucher::seen);
        for (what, count) in ["loads served", "stores served", "refused"].into_iter().zip(touched) {
            STEP.judged(&format!("stress: of a process' own accesses, {what}{which}"), "some", count, count > 0);
        }
        if vcpus > 1 {
            let together = show(&self.together);
            STEP.judged(
                &format!("stress: new pages that two vCPUs touched at once{which}"),
                "some",
                together,
                together > 0,
            );
        }
        let wrong = self.wrong.into_inner().unwrap_or_default();
        let first: Vec<_> = wrong.iter().take(8).collect();
        STEP.same(&format!("stress: answers that may not be{which}"), "[]", format!("{first:?}"));
    }
}

/// Whether the host can touch a page now: it is brought, if it is the host's and was not there.
fn touches(ram: &Mapping, at: usize) -> Result<bool, i32> {
    reads(ram, at).map(|word| word.is_some())
}

/// The word there, if the host can read it.
fn reads(ram: &Mapping, at: usize) -> Result<Option<u64>, i32> {
    let mut word = 0u64;
    match moves(libc::SYS_process_vm_readv, ram, at, &mut word) {
        Ok(_) => Ok(Some(word)),
        Err(libc::EFAULT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Has the kernel read or write a word there.
fn moves(number: libc::c_long, ram: &Mapping, at: usize, word: &mut u64) -> Result<i64, i32> {
    let local = libc::iovec { iov_base: std::ptr::from_mut(word).cast(), iov_len: 8 };
    let remote = libc::iovec { iov_base: ram.at(at).cast(), iov_len: 8 };
    let me = u64::from(std::process::id());
    call(number, &[me, (&raw const local) as u64, 1, (&raw const remote) as u64, 1, 0])
}

fn convert(gmem: &Gmem, ram: &Mapping, tally: &Tally, dice: &mut Dice) {
    let (offset, size) = dice.range();
    std::thread::sleep(Duration::from_micros(dice.roll(500)));
    let first = usize::try_from(offset).expect("small");
    let before = touches(ram, first) == Ok(true);
    let result = match dice.roll(8) {
        0 => gmem.to_private_now(offset, size),
        1 => gmem.to_private(offset, size, 1 + dice.roll(20)),
        2 => gmem.to_private_notify(offset, size, 1 + dice.roll(20)),
        _ => {
            match gmem.to_shared(offset, size) {
                Ok(()) => Tally::add(&tally.shared),
                Err((libc::EAGAIN | libc::EPERM, _)) => Tally::add(&tally.busy),
                Err((error, _)) => tally.wrong("to shared", error),
            }
            return;
        }
    };
    match result {
        Ok(()) => {
            Tally::add(&tally.private);
            if before && touches(ram, first) == Ok(false) {
                Tally::add(&tally.moved);
            }
        }
        // Held, another's attempt, lent by the guest, or cancelled.
        Err((libc::EAGAIN | libc::ETIMEDOUT | libc::EPERM | libc::EBUSY | libc::EINPROGRESS | libc::ECANCELED, _)) => {
            Tally::add(&tally.busy)
        }
        Err((error, _)) => tally.wrong("to private", error),
    }
    if dice.roll(4) == 0 {
        let _ = gmem.outcome();
    }
    if dice.roll(64) == 0 {
        let _ = gmem.cancel();
    }
}

/// Touches a page through the kernel, which says EFAULT where a load would say SIGBUS.
fn fault(_: &Gmem, ram: &Mapping, tally: &Tally, dice: &mut Dice) {
    let mut word = dice.roll(u64::MAX);
    let at = dice.page();
    let number = if dice.roll(2) == 0 { libc::SYS_process_vm_readv } else { libc::SYS_process_vm_writev };
    match moves(number, ram, at, &mut word) {
        Ok(8) => Tally::add(&tally.faults),
        Err(libc::EFAULT) => Tally::add(&tally.refused),
        other => tally.wrong("touch", other.err().unwrap_or(0)),
    }
    if dice.roll(16) == 0 {
        let _ = super::calls::madvise(ram.at(dice.page()), PAGE_BYTES, libc::MADV_DONTNEED);
    }
}

fn punch(gmem: &Gmem, ram: &Mapping, tally: &Tally, dice: &mut Dice) {
    empty(gmem, ram, tally, dice.page());
    let (offset, size) = dice.range();
    let mode = libc::FALLOC_FL_KEEP_SIZE | if dice.roll(3) == 0 { 0 } else { libc::FALLOC_FL_PUNCH_HOLE };
    match sys::fallocate(gmem, mode, offset.cast_signed(), size.cast_signed()) {
        Ok(_) => Tally::add(&tally.punched),
        Err(libc::EBUSY) => Tally::add(&tally.busy),
        Err(error) => tally.wrong("fallocate", error),
    }
    std::thread::sleep(Duration::from_micros(dice.roll(2000)));
}

/// Writes a word where the host may, and punches a hole there. Others may write there again before it is looked at.
fn empty(gmem: &Gmem, ram: &Mapping, tally: &Tally, at: usize) {
    let mode = libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE;
    let written = moves(libc::SYS_process_vm_writev, ram, at, &mut 0x6877_6f6c_6500).is_ok();
    if written && reads(ram, at).is_ok_and(|word| word.is_some_and(|word| word != 0)) {
        let punched = sys::fallocate(gmem, mode, at as i64, PAGE.cast_signed());
        if punched.is_ok() && reads(ram, at) == Ok(Some(0)) {
            Tally::add(&tally.emptied);
        }
    }
}

fn pin(_: &Gmem, ram: &Mapping, tally: &Tally, dice: &mut Dice) {
    let (reader, writer) = sys::pipe();
    for _ in 0..=dice.roll(4) {
        let at = libc::iovec { iov_base: ram.at(dice.page()).cast(), iov_len: PAGE_BYTES };
        // SPLICE_F_NONBLOCK
        match call(libc::SYS_vmsplice, &[fd(&writer), (&raw const at) as u64, 1, 2]) {
            Ok(_) => Tally::add(&tally.pinned),
            Err(libc::EFAULT) => Tally::add(&tally.refused),
            Err(error) => tally.wrong("vmsplice", error),
        }
    }
    std::thread::sleep(Duration::from_micros(dice.roll(10_000)));
    drop((reader, writer));
}

/// A page goes into a pipe, and comes out when a conversion is seen to wait for it.
fn wait(gmem: &Gmem, ram: &Mapping, tally: &Tally, dice: &mut Dice) {
    std::thread::sleep(Duration::from_micros(dice.roll(5000)));
    let at = dice.page();
    let offset = at as u64;
    let pipe = sys::pipe();
    if sys::vmsplice(&pipe.1, ram.at(at), PAGE_BYTES) != Ok(PAGE_BYTES as i64) {
        return Tally::add(&tally.refused);
    }
    let (seen, done) = std::thread::scope(|scope| {
        let waiter = scope.spawn(|| gmem.to_private(offset, PAGE, 2000));
        let waits = || gmem.pending().is_ok_and(|p| p.pending == 1 && p.offset == offset && p.tries > 0);
        let mut seen = false;
        while !seen && !waiter.is_finished() {
            seen = waits();
        }
        drop(pipe);
        (seen, waiter.join().unwrap_or(Err((0, 0))))
    });
    match done {
        Ok(()) if seen => Tally::add(&tally.waited),
        Ok(()) => Tally::add(&tally.private),
        // It is the guest's meanwhile, and lent; somebody cancelled; others wait in a row.
        Err((libc::EPERM | libc::ECANCELED | libc::ETIMEDOUT, _)) => Tally::add(&tally.busy),
        Err((error, _)) => tally.wrong("to private, pinned", error),
    }
}

/// The guest's part, until `end`: rounds that it went through, or what it found wrong.
fn guest(machine: &mut Machine, dice: &mut Dice, end: Instant, tally: &Tally, two: bool) -> Result<u64, String> {
    let mut rounds = 0;
    second_vcpu(machine, two)?;
    // A machine that is busy gets as long again, and a minute, for what must have happened once.
    let latest = end + (end - Instant::now()) + Duration::from_secs(60);
    while Instant::now() < end || (Instant::now() < latest && !(rounds >= ROUNDS && tally.has_all(two))) {
        if two && dice.roll(4) == 0 {
            together(machine, dice, tally).map_err(|why| format!("round {rounds}: {why}"))?;
        }
        let at = proto::RAM_BASE + dice.page() as u64;
        let seed = dice.roll(1 << 32);
        let fresh = machine.command(proto::CMD_ZERO, [at, PAGE, 0])?;
        if fresh[0] != 0 {
            return Err(format!("round {rounds}: {} words of a new page at {at:#x} are not zero", fresh[0]));
        }
        machine.command(proto::CMD_FILL, [at, PAGE, seed])?;
        // Others have time to do harm.
        machine.command(proto::CMD_SPIN, [dice.roll(200_000), 0, 0])?;
        if dice.roll(3) == 0 {
            // While it is lent the host writes to it, and may: it is new afterwards.
            let lent = machine.command(proto::CMD_SHARE, [at, 1, 0])?;
            machine.command(proto::CMD_SPIN, [dice.roll(200_000), 0, 0])?;
            let back = machine.command(proto::CMD_UNSHARE, [at, 1, 0])?;
            if lent[..2] != [0, 1] || back[..2] != [0, 1] {
                return Err(format!("round {rounds}: share {lent:?}, unshare {back:?} at {at:#x}"));
            }
            machine.command(proto::CMD_FILL, [at, PAGE, seed])?;
            machine.command(proto::CMD_SPIN, [dice.roll(200_000), 0, 0])?;
        }
        let differ = machine.command(proto::CMD_CHECK, [at, PAGE, seed])?;
        if differ[0] != 0 {
            return Err(format!("round {rounds}: {} words of its page at {at:#x} have changed", differ[0]));
        }
        let given = machine.command(proto::CMD_RELINQUISH, [at, 0, 0])?;
        if given[0] != 0 {
            return Err(format!("round {rounds}: relinquish {given:?} at {at:#x}"));
        }
        rounds += 1;
    }
    Ok(rounds)
}

/// Starts the second vCPU, where there is one.
fn second_vcpu(machine: &mut Machine, two: bool) -> Result<(), String> {
    if two {
        for (command, argument) in [(proto::CMD_GIC, 2), (proto::CMD_CPU_ON, 1)] {
            let done = machine.command(command, [argument, 0, 0])?[0];
            if done != 0 {
                return Err(format!("the second vCPU does not start: command {command} says {done:#x}"));
            }
        }
    }
    Ok(())
}

/// Both vCPUs add to the same new pages, at the same time, and find what the other added and nothing else.
fn together(machine: &mut Machine, dice: &mut Dice, tally: &Tally) -> Result<(), String> {
    const RUN: u64 = 3;
    let at = proto::RAM_BASE + (FIRST + dice.roll(PAGES - RUN + 1)) * PAGE;
    let wrong = machine.command(proto::CMD_TOGETHER, [1, at, RUN])?;
    if wrong[0] != 0 {
        return Err(format!("{} of {RUN} new pages at {at:#x} do not show what both vCPUs added", wrong[0]));
    }
    Tally::add(&tally.together);
    for page in 0..RUN {
        let given = machine.command(proto::CMD_RELINQUISH, [at + page * PAGE, 0, 0])?;
        if given[0] != 0 {
            return Err(format!("relinquish {given:?} at {at:#x}, page {page}"));
        }
    }
    Ok(())
}
