// SPDX-License-Identifier: MIT OR Apache-2.0
//! Step 8 of the main job: `kill -9` of a VMM gives everything back (I8), and no word of the secret stays anywhere (I4).
//!
//! The scan of RAM is made from outside the machine; this side says what to look for, masked, and where it may be.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use freehold_uapi::hvc;

use crate::attack::Target;
use crate::hostile::{Hostile, runs};
use crate::machine::Plan;
use crate::proto;
use crate::raw::{PATIENCE, resting, settle};
use crate::report::{Step, line};

const STEP: Step = Step("8");
/// Large enough that a leak of it shows in the host's free memory.
const PLAN: Plan =
    Plan { bytes: 32 << 20, private: 32 << 20, boot: 0, gic: false, vcpus: 1, ordinary: false, peer: false };
/// How long the machine holds still for a scan; a byte on standard input ends it early.
const SCAN: Duration = Duration::from_secs(8);

/// What other work on the host may take meanwhile; the guest has twice as much, and `leaks` sees the small ones.
const NOISE_KIB: i64 = 16384;

/// Free memory of the host, in KiB.
pub(crate) fn mem_free() -> i64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("MemFree:")?.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// The VMM that is going to be killed: boots a guest, says what a scan may know, and spins in the guest for ever.
pub(crate) fn held() -> Result<(), String> {
    let hostile = Hostile::open()?;
    let mut target = Target::new(&hostile, PLAN)?;
    let words = |pair: [u64; 2]| format!("{:016x},{:016x}", pair[0], pair[1]);
    println!("{}", words(target.boot.secret));
    loop {
        match target.machine.command(proto::CMD_SPIN, [1_000_000, 0, 0]) {
            Ok(_) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Holds still for the scanner.
pub(crate) fn hold_still() {
    let mut poll = libc::pollfd { fd: 0, events: libc::POLLIN, revents: 0 };
    let limit = i32::try_from(SCAN.as_millis()).unwrap_or(8000);
    // SAFETY: one valid pollfd.
    unsafe { libc::poll(&raw mut poll, 1, limit) };
    if poll.revents & libc::POLLIN != 0 {
        let _ = std::io::stdin().read(&mut [0; 64]);
    } else if poll.revents != 0 {
        std::thread::sleep(SCAN);
    }
}

/// Tells the scanner what it looks for, from a child that is a [`held`] VMM, and where that may be; whether the child said.
pub(crate) fn tell_scanner(step: Step, child: &mut Child, hostile: &Hostile) -> Result<bool, String> {
    let mut secret = String::new();
    let out = child.stdout.take().ok_or("no pipe")?;
    let _ = BufReader::new(out).read_line(&mut secret);
    let told = secret.trim().len() == 33;
    step.judged("masked-secret", "two words", secret.trim(), told);
    if told {
        let [a, b] = proto::SECRET_MASK;
        line(&format!("{{\"secret_masked\":\"{}\",\"mask\":\"{a:016x},{b:016x}\"}}", secret.trim()));
        let foreign = hostile.unreachable();
        for part in runs(&foreign).split(',').collect::<Vec<_>>().chunks(32) {
            line(&format!("{{\"unreachable\":\"{}\"}}", part.join(",")));
        }
        let carveouts: Vec<String> = (0..2)
            .map(|i| {
                let base = hostile.counter(hvc::COUNTER_CARVEOUT_BASE, i);
                format!("{base:x}-{:x}", base + hostile.counter(hvc::COUNTER_CARVEOUT_FRAMES, i) - 1)
            })
            .collect();
        line(&format!("{{\"carveouts\":\"{}\"}}", carveouts.join(",")));
        // The one page that the guest shares is in reach, and not counted.
        let owned = hostile.counter(hvc::COUNTER_FOREIGN_FRAMES, 0);
        step.same("frames-out-of-reach-are-those-el2-counts", owned, foreign.len());
    }
    Ok(told)
}

/// Starts this program once more, to hold a protected guest that runs and to say where its secret is.
pub(crate) fn holder() -> Result<Child, String> {
    let me = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut held = Command::new(me);
    held.arg("held").stdin(Stdio::null()).stdout(Stdio::piped());
    held.spawn().map_err(|e| format!("spawn: {e}"))
}

/// Runs the step.
pub(crate) fn killed() -> Result<(), String> {
    let hostile = Hostile::open()?;
    let before = resting(&hostile);
    let free_before = mem_free();
    STEP.same("no-vm-before", 0, hostile.counter(hvc::COUNTER_VMS, 0));
    let mut child = holder()?;
    if tell_scanner(STEP, &mut child, &hostile)? {
        line("{\"scan\":\"alive\"}");
        hold_still();
    }
    STEP.judged(
        "vm-lives-during-the-scan",
        "1 VM",
        hostile.counter(hvc::COUNTER_VMS, 0),
        hostile.counter(hvc::COUNTER_VMS, 0) == 1,
    );
    child.kill().map_err(|e| format!("kill: {e}"))?;
    let _ = child.wait();
    settle(STEP, "memory-back", &hostile, &before);
    STEP.same("all-frames-in-reach", "", runs(&hostile.unreachable()));
    // The kernel frees a file's pages after the last of them came back from EL2.
    let start = Instant::now();
    let mut less = free_before - mem_free();
    while less.abs() >= NOISE_KIB && start.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(50));
        less = free_before - mem_free();
    }
    STEP.judged("host-memory-back", "within 16 MiB", format!("{less} KiB less"), less.abs() < NOISE_KIB);
    line("{\"scan\":\"dead\"}");
    hold_still();
    Ok(())
}
