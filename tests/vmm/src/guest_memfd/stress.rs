// SPDX-License-Identifier: MIT OR Apache-2.0
//! Everything at once: threads convert, fault, punch and pin the same pages that a guest touches, shares, takes back and
//! gives away. What the guest wrote to its own pages never changes, and what is new to it is zero (D6, I4, I5, I8, I9).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::STEP;
use super::calls::{call, fd};
use super::rig::{PAGE, PAGE_BYTES, bytes, open_attempts};
use crate::gmem::Gmem;
use crate::hostile::{Hostile, runs};
use crate::machine::{Machine, Plan, entropy};
use crate::proto;
use crate::raw::{resting, settle};
use crate::sys::{self, Mapping, errno_name};

/// Pages behind the guest's program that everybody fights for.
const PAGES: u64 = 64;
const FIRST: u64 = proto::RAM_MIN / PAGE;

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
    busy: AtomicU64,
    shared: AtomicU64,
    faults: AtomicU64,
    refused: AtomicU64,
    punched: AtomicU64,
    pinned: AtomicU64,
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
    println!("stress: seed {seed:#x}, {seconds} s");
    let hostile = Hostile::open()?;
    let rest = resting(&hostile);
    let plan = Plan { bytes: proto::RAM_MIN + PAGES * PAGE, boot: proto::BOOT_NO_SHARE, ..Plan::default() };
    let (mut machine, _) = Machine::booted(plan)?;
    let (gmem, ram) = (std::sync::Arc::clone(&machine.gmem), std::sync::Arc::clone(&machine.ram));
    let tally = Tally::default();
    let stop = AtomicBool::new(false);
    let rounds = std::thread::scope(|scope| {
        let (gmem, ram, tally, stop) = (&*gmem, &*ram, &tally, &stop);
        let jobs: [fn(&Gmem, &Mapping, &Tally, &mut Dice); 4] = [convert, fault, punch, pin];
        for (number, job) in (1..).zip(jobs) {
            scope.spawn(move || {
                let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15 ^ number) | 1);
                while !stop.load(Ordering::Relaxed) {
                    job(gmem, ram, tally, &mut dice);
                }
            });
        }
        let end = Instant::now() + Duration::from_secs(seconds);
        let result = guest(&mut machine, &mut Dice(seed), end);
        stop.store(true, Ordering::Relaxed);
        result
    });
    let show = |place: &AtomicU64| place.load(Ordering::Relaxed);
    println!(
        "stress: {rounds:?} rounds of the guest; converted {}, busy {}, shared {}, touched {}, refused {}, punched {}, pinned {}",
        show(&tally.private),
        show(&tally.busy),
        show(&tally.shared),
        show(&tally.faults),
        show(&tally.refused),
        show(&tally.punched),
        show(&tally.pinned)
    );
    STEP.judged(
        "stress: the guest's pages",
        "no damage, 20 rounds or more",
        format!("{rounds:?}"),
        rounds.is_ok_and(|n| n >= 20),
    );
    for (case, place) in [
        ("stress: conversions", &tally.private),
        ("stress: back to shared", &tally.shared),
        ("stress: host faults served", &tally.faults),
        ("stress: host faults refused", &tally.refused),
        ("stress: holes", &tally.punched),
        ("stress: pins", &tally.pinned),
    ] {
        STEP.judged(case, "some", show(place), show(place) > 0);
    }
    let wrong = tally.wrong.into_inner().unwrap_or_default();
    let first: Vec<_> = wrong.iter().take(8).collect();
    STEP.same("stress: answers that may not be", "[]", format!("{first:?}"));
    STEP.same("stress: as many attempts have ended as begun", "0 of some", open_attempts(&gmem));
    drop((machine, gmem, ram));
    settle(STEP, "stress: all is back", &hostile, &rest);
    STEP.same("stress: all frames in reach", "", runs(&hostile.unreachable()));
    Ok(())
}

fn convert(gmem: &Gmem, _: &Mapping, tally: &Tally, dice: &mut Dice) {
    let (offset, size) = dice.range();
    std::thread::sleep(Duration::from_micros(dice.roll(500)));
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
        Ok(()) => Tally::add(&tally.private),
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
    let local = libc::iovec { iov_base: (&raw mut word).cast(), iov_len: 8 };
    let remote = libc::iovec { iov_base: ram.at(dice.page()).cast(), iov_len: 8 };
    let number = if dice.roll(2) == 0 { libc::SYS_process_vm_readv } else { libc::SYS_process_vm_writev };
    let me = u64::from(std::process::id());
    match call(number, &[me, (&raw const local) as u64, 1, (&raw const remote) as u64, 1, 0]) {
        Ok(8) => Tally::add(&tally.faults),
        Err(libc::EFAULT) => Tally::add(&tally.refused),
        other => tally.wrong("touch", other.err().unwrap_or(0)),
    }
    if dice.roll(16) == 0 {
        let _ = super::calls::madvise(ram.at(dice.page()), PAGE_BYTES, libc::MADV_DONTNEED);
    }
}

fn punch(gmem: &Gmem, _: &Mapping, tally: &Tally, dice: &mut Dice) {
    let (offset, size) = dice.range();
    let mode = libc::FALLOC_FL_KEEP_SIZE | if dice.roll(3) == 0 { 0 } else { libc::FALLOC_FL_PUNCH_HOLE };
    match sys::fallocate(gmem, mode, offset.cast_signed(), size.cast_signed()) {
        Ok(_) => Tally::add(&tally.punched),
        Err(libc::EBUSY) => Tally::add(&tally.busy),
        Err(error) => tally.wrong("fallocate", error),
    }
    std::thread::sleep(Duration::from_micros(dice.roll(2000)));
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

/// The guest's part, until `end`: rounds that it went through, or what it found wrong.
fn guest(machine: &mut Machine, dice: &mut Dice, end: Instant) -> Result<u64, String> {
    let mut rounds = 0;
    while Instant::now() < end {
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
