// SPDX-License-Identifier: MIT OR Apache-2.0
//! VMs that come and go: the host's free memory does not shrink with them, and a file that outlives its VM serves another
//! (I8).
//!
//! Free memory is noisy, even with what every CPU keeps back of it. A single round says little, the middle one of a few
//! does: a leak takes it down with every round. A kernel with KASAN keeps what was freed for a while, megabytes of it; there
//! the caches are shrunk, which ends that, and what is free then counts.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::hostile::Hostile;
use crate::kill::mem_free;
use crate::machine::{Machine, Plan};
use crate::probe::probe_here;
use crate::proto;
use crate::raw::{PATIENCE, resting, settle};
use crate::report::Step;

const STEP: Step = Step("cycles");
/// Rounds in a group, of which the middle one counts.
const ROUNDS: usize = 8;
/// Groups at most, besides the first two.
const GROUPS: usize = 4;
/// Two pages per round.
const LEAK_KIB: i64 = 64;
/// What the control leaks in each round; half of a group's rounds show in its middle one.
const CONTROL_KIB: usize = 64;

/// It is where the kernel watches itself.
const WATCHES: &str = "/sys/kernel/debug/kmemleak";

/// Runs every part.
pub(crate) fn all() -> Result<(), String> {
    let hostile = Hostile::open()?;
    let rest = resting(&hostile);
    rounds(&hostile, &rest)?;
    outlives(&hostile, &rest)
}

/// VMMs die by SIGKILL until one group of rounds has not lost what the group before it had. Slabs grow in steps of 64 KiB
/// once in a while; a leak takes the same from every group.
fn rounds(hostile: &Hostile, rest: &[(&'static str, u64)]) -> Result<(), String> {
    let mut kept = Vec::new();
    let _warm_up = group(0, &mut || ())?;
    let mut before = group(1, &mut || ())?;
    let mut lost = Vec::new();
    for number in 2..2 + GROUPS {
        let now = group(number, &mut || ())?;
        lost.push(before - now);
        before = now;
        if lost.last().is_some_and(|&less| less < LEAK_KIB) {
            break;
        }
    }
    settle(STEP, "after so many rounds", hostile, rest);
    STEP.judged(
        "free memory over the rounds",
        &format!("less than {LEAK_KIB} KiB lost by {ROUNDS} rounds, once in {GROUPS} times"),
        format!("{lost:?} KiB lost"),
        lost.last().is_some_and(|&less| less < LEAK_KIB),
    );
    // Control: so little more per round would have been seen.
    let leaking = group(2 + GROUPS, &mut || kept.push(vec![1_u8; CONTROL_KIB << 10]))?;
    let seen = before - leaking;
    STEP.judged("a leak would be seen", &format!("{LEAK_KIB} KiB or more"), format!("{seen} KiB"), seen >= LEAK_KIB);
    Ok(())
}

/// The middle of the free memory after each of [`ROUNDS`] rounds, in KiB. By turns the guest runs when its VMM is killed,
/// and waits for a page in a pipe.
fn group(number: usize, each: &mut dyn FnMut()) -> Result<i64, String> {
    let me = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut free = Vec::new();
    for round in 0..ROUNDS {
        let stage = if round % 2 == 0 { "booted" } else { "unsharing" };
        let mut child = Command::new(&me)
            .args(["stage", stage])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("spawn: {e}"))?;
        let mut said = String::new();
        let _ = BufReader::new(child.stdout.take().ok_or("no pipe")?).read_line(&mut said);
        let _ = child.kill();
        let _ = child.wait();
        if said.trim() != stage {
            return Err(format!("round {round} of group {number} got to `{}`, not {stage}", said.trim()));
        }
        each();
        std::fs::write("/proc/sys/vm/drop_caches", "3").map_err(|e| format!("drop_caches: {e}"))?;
        std::thread::sleep(Duration::from_millis(100));
        free.push(mem_free() + kept_back());
    }
    if Path::new(WATCHES).exists() {
        shrink_caches();
        free = vec![mem_free() + kept_back(); ROUNDS];
    }
    println!("free memory after each round of group {number}: {free:?}");
    free.sort_unstable();
    free.get(ROUNDS / 2).copied().ok_or_else(|| "no round".to_owned())
}

/// Has every cache of the kernel's give back what it does not need.
fn shrink_caches() {
    for cache in std::fs::read_dir("/sys/kernel/slab").into_iter().flatten().flatten() {
        // Caches that were merged are links to one.
        if cache.file_type().is_ok_and(|kind| kind.is_dir()) {
            let _ = std::fs::write(cache.path().join("shrink"), "1");
        }
    }
}

/// What the CPUs keep back of the free memory, in KiB.
fn kept_back() -> i64 {
    let text = std::fs::read_to_string("/proc/zoneinfo").unwrap_or_default();
    let pages: i64 =
        text.lines().filter_map(|line| line.trim().strip_prefix("count:")?.trim().parse::<i64>().ok()).sum();
    pages * 4
}

/// A `guest_memfd` whose VM has ended is empty, and memory of another VM.
fn outlives(hostile: &Hostile, rest: &[(&'static str, u64)]) -> Result<(), String> {
    let plan = Plan::default();
    let (machine, first) = Machine::booted(plan)?;
    let Machine { vm, vcpu, gmem, ram, run_page, program, .. } = machine;
    drop((vm, vcpu, run_page));
    settle(STEP, "the VM has ended, its file has not", hostile, rest);
    // The driver lets go of the offsets after the last frame came back from el2.
    let start = Instant::now();
    let probe = |page: u64| probe_here(ram.at(usize::try_from(page * proto::GRANULE).unwrap_or(0)), false);
    let pages = plan.bytes / proto::GRANULE;
    let mut shut: Vec<u64> = (0..pages).collect();
    while !shut.is_empty() && start.elapsed() < PATIENCE / 6 {
        shut.retain(|page| probe(*page) != "done");
        std::thread::sleep(Duration::from_millis(20));
    }
    if !STEP.same("pages of it that the host can not map", "[]", format!("{shut:?}")) {
        return Ok(());
    }
    let zeros = ram.copy_out(0, usize::try_from(plan.bytes).unwrap_or(0)).iter().all(|byte| *byte == 0);
    STEP.same("what the host finds in it: zeros", true, zeros);
    let mut second = Machine::over(plan, Some(Arc::clone(&gmem)))?;
    STEP.same("the old mapping shows the new program", true, ram.copy_out(0, program.len()) == program);
    STEP.same("convert", "0", crate::gmem::converted(second.gmem.to_private(0, plan.private, 0)));
    let boot = second.boot()?;
    STEP.same("another VM runs in the same file", 1, boot.hash_ok);
    STEP.same("with a secret of its own", true, boot.secret != first.secret);
    let seen = probe_here(ram.at(usize::try_from(proto::SECRET_BASE - proto::RAM_BASE).unwrap_or(0)), false);
    STEP.same("which the old mapping does not show", "SIGBUS", seen);
    drop((second, gmem, ram));
    settle(STEP, "both have ended", hostile, rest);
    Ok(())
}
