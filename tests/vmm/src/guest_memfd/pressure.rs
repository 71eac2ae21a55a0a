// SPDX-License-Identifier: MIT OR Apache-2.0
//! A machine that is short of memory keeps its guests: the kernel takes what it can, and of theirs it can take nothing.

use freehold_uapi::hvc;

use super::STEP;
use super::calls::{forked, tell, told};
use super::lives::Group;
use crate::hostile::Hostile;
use crate::kill::mem_free;
use crate::machine::{Machine, Plan};
use crate::proto::{self, GRANULE, RAM_BASE, RAM_MIN};
use crate::sys::{self, Mapping};

const BYTES: u64 = 32 << 20;
/// What the guest writes and finds again, behind its program.
const DATA: [u64; 3] = [RAM_BASE + RAM_MIN, 4 << 20, 11];
/// The host's free memory while it is short of it, in KiB: enough that nobody must be killed.
const SHORT: i64 = 64 << 10;
const SCALE: &str = "/proc/sys/vm/watermark_scale_factor";

/// One number of the kernel's statistics.
fn counted(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok()).unwrap_or(0)
}

/// Takes memory until little is free; for a child.
fn take() -> Vec<Mapping> {
    const CHUNK: usize = 4 << 20;
    let mut taken = Vec::new();
    while mem_free() > SHORT {
        let Ok(chunk) = Mapping::anonymous(CHUNK, false) else { break };
        let _ = chunk.advise(0, CHUNK, libc::MADV_HUGEPAGE);
        if chunk.advise(0, CHUNK, libc::MADV_POPULATE_WRITE).is_err() {
            break;
        }
        taken.push(chunk);
    }
    taken
}

/// Runs every part.
pub(crate) fn all() -> Result<(), String> {
    let hostile = Hostile::open()?;
    let group = Group::new("pressed")?;
    group.set("cgroup.procs", &std::process::id().to_string())?;
    let (mut machine, _) = Machine::booted(Plan { bytes: BYTES, private: BYTES, ..Plan::default() })?;
    let page = proto::SHARE_BASE + 16 * GRANULE;
    for data in [DATA, [page, GRANULE, 5]] {
        machine.command(proto::CMD_FILL, data)?;
    }
    let owned = hostile.counter(hvc::COUNTER_FOREIGN_FRAMES, 0);
    // All that the group has is to go, and the guest's is most of it.
    let reclaimed = group.set("memory.reclaim", &BYTES.to_string());
    let refused = matches!(&reclaimed, Err(error) if error.ends_with("(os error 11)"));
    STEP.judged("pressure: the group's memory is to go", "EAGAIN", format!("{reclaimed:?}"), refused);
    // The kernel begins to reclaim while there is enough left for those that wait for it.
    std::fs::write(SCALE, "400").map_err(|e| format!("{SCALE}: {e}"))?;
    let (ran, killed) = (counted("pageoutrun"), counted("oom_kill"));
    let (done, says_done) = sys::pipe();
    let (go, say_go) = sys::pipe();
    let child = forked(|| {
        // SAFETY: a plain number: the machine is slow meanwhile.
        unsafe { libc::alarm(900) };
        let taken = take();
        tell(&says_done);
        let _ = told(&go);
        u8::from(!taken.is_empty())
    });
    STEP.same("pressure: memory is taken", true, told(&done));
    for (file, value) in [("drop_caches", "3"), ("compact_memory", "1")] {
        std::fs::write(format!("/proc/sys/vm/{file}"), value).map_err(|e| format!("{file}: {e}"))?;
    }
    let short = mem_free();
    STEP.judged("pressure: free memory", "less than 128 MiB", format!("{short} KiB"), short < 2 * SHORT);
    let found = machine.command(proto::CMD_CHECK, DATA)?;
    STEP.same("pressure: the guest finds what it wrote", 0, found[0]);
    // It gives a page away, and touches it anew: that needs a frame of the host's.
    machine.command(proto::CMD_RELINQUISH, [page, 0, 0])?;
    let zeros = machine.command(proto::CMD_ZERO, [page, GRANULE, 0])?;
    STEP.same("pressure: and gets a page", 0, zeros[0]);
    STEP.same("pressure: frames that are not the host's", owned, hostile.counter(hvc::COUNTER_FOREIGN_FRAMES, 0));
    let ran = counted("pageoutrun") - ran;
    STEP.judged("pressure: times that the kernel reclaimed", "1 or more", ran, ran >= 1);
    tell(&say_go);
    STEP.same("pressure: it ends", "exit 1", child.end());
    STEP.same("pressure: processes that were killed", killed, counted("oom_kill"));
    std::fs::write(SCALE, "10").map_err(|e| format!("{SCALE}: {e}"))?;
    std::fs::write("/sys/fs/cgroup/cgroup.procs", std::process::id().to_string()).map_err(|e| e.to_string())?;
    Ok(())
}
