// SPDX-License-Identifier: MIT OR Apache-2.0
//! What things cost: each is done a number of times between two marks, which the emulator's plugin counts.
//!
//! The same program drives Freehold and the peer, the kernel's own protected KVM: what one of them has no call for is
//! left out there. Where the counting is off a mark does nothing, and this is a short functional test.

mod memory;
mod raw;

use crate::cpus::beside;
use crate::machine::{Machine, NODE, Plan};
use crate::proto::*;
use crate::report::Step;
use crate::rows::{self, begin, end, mark};
use crate::sys;
use crate::vgic::{Cloned as _, let_signals_interrupt, myself};

const STEP: Step = Step("bench");
/// Rounds of a row, of which the first few also warm the path.
const ROUNDS: u64 = 24;
/// Pages of the guest, behind those that it boots from.
const FREE: u64 = RAM_BASE + RAM_MIN;

/// Whether the peer is measured.
fn peer() -> bool {
    !std::path::Path::new(&*NODE.to_string_lossy()).exists()
}

/// The first program of the host is up; and what its kernel costs where it asks nothing of EL2.
pub(crate) fn boot() {
    mark!(begin(rows::BOOT));
    mark!(end(rows::BOOT));
    for _ in 0..ROUNDS {
        marked(rows::USER_NOTHING, || ());
    }
    for _ in 0..ROUNDS {
        // SAFETY: asks for a number.
        marked(rows::SYSTEM_CALL, || unsafe { libc::getppid() });
    }
    STEP.same("boot is marked", "", "");
}

/// All rows.
pub(crate) fn all() -> Result<(), String> {
    at_rest()?;
    guest()?;
    touches()?;
    neighbours()?;
    memory::lives()?;
    if !peer() {
        memory::rest()?;
        memory::kept()?;
        memory::calls()?;
        memory::conversions()?;
        memory::mappings()?;
        raw::batches()?;
    }
    Ok(())
}

/// Does something between the marks of a row.
fn marked<T>(row: u64, what: impl FnOnce() -> T) -> T {
    mark!(begin(row));
    let result = what();
    mark!(end(row));
    result
}

/// Waits for the host's next tick, so that what takes less than the time between two has none in it.
fn after_tick() {
    let now = || {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the structure has room for the answer. This clock moves at ticks alone.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut time) };
        (time.tv_sec, time.tv_nsec)
    };
    let begun = now();
    while now() == begun {}
}

/// Looks in a row at which nothing else may want to run.
const LOOKS_AT_REST: u32 = 10;
/// Looks in all, 10 ms apart.
const LOOKS: u32 = 6_000;

/// Waits until nothing but this program wants a CPU: for seconds after it has booted, a kernel of Debian's tests its ciphers
/// in a thread of its own, which a round that sleeps would share the CPU with.
fn at_rest() -> Result<(), String> {
    let mut alone = 0;
    for _ in 0..LOOKS {
        if alone == LOOKS_AT_REST {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
        let load = std::fs::read_to_string("/proc/loadavg").map_err(|error| format!("/proc/loadavg: {error}"))?;
        // The fourth word is how many run, this one among them, of how many there are.
        let running = load.split_whitespace().nth(3).and_then(|word| word.split_once('/')).map(|(running, _)| running);
        alone = if running == Some("1") { alone + 1 } else { 0 };
    }
    STEP.same("looks in a row at which nobody else ran", LOOKS_AT_REST, alone);
    Ok(())
}

fn plan() -> Plan {
    Plan { bytes: 8 * RAM_MIN, boot: BOOT_NO_SHARE | BOOT_QUIET, gic: true, peer: peer(), ..Plan::default() }
}

/// What a guest does.
pub(crate) fn guest() -> Result<(), String> {
    let (mut machine, _) = Machine::booted(plan())?;
    // What it says of itself is judged elsewhere.
    machine.command(CMD_GIC, [0; 3])?;
    let everywhere = [
        (rows::GUEST_NOTHING, "nothing"),
        (rows::GUEST_HVC, "a call answered at EL2, or by the host"),
        (rows::VGIC_READ, "a register of the controller"),
        (rows::VMM_READ, "a load that the VMM answers"),
        (rows::VMM_READ_LISTED, "the same, with two interrupts pending"),
        (rows::VMM_READ_FP, "the same, with FP in use"),
        (rows::SELF_SGI, "an SGI to itself"),
        (rows::TIMER, "the timer, taken"),
        (rows::WAKE, "the timer, waited for"),
        (rows::TOUCH, "first touch of a page"),
        (rows::SHARE, "a page is shared"),
        (rows::UNSHARE, "and taken back"),
    ];
    for (row, what) in everywhere {
        rounds(&mut machine, row, what)?;
    }
    if !peer() {
        rounds(&mut machine, rows::RELINQUISH, "and given back")?;
    }
    Ok(())
}

/// The last pages of guests of several sizes are touched for the first time.
fn touches() -> Result<(), String> {
    for (row, bytes) in [(rows::TOUCH_4M, 4 << 20), (rows::TOUCH_64M, 64 << 20), (rows::TOUCH_1G, 1 << 30)] {
        let (mut machine, _) = Machine::booted(Plan { bytes, ..plan() })?;
        let last = RAM_BASE + bytes - ROUNDS * GRANULE;
        rounds_at(&mut machine, row, last, &format!("first touch of the last pages of {bytes} bytes"))?;
    }
    Ok(())
}

/// A guest of two CPUs, each on a CPU of the host's, sends an interrupt from one to the other.
pub(crate) fn between() -> Result<(), String> {
    at_rest()?;
    let_signals_interrupt();
    let (mut machine, _) = Machine::booted(Plan { vcpus: 2, ..plan() })?;
    machine.command(CMD_GIC, [2, 0, 0])?;
    let mut others = std::mem::take(&mut machine.others);
    let wire = machine.vm.as_fd_clone()?;
    let (done, _) = beside(&mut others, &wire, |seats| {
        sys::allow(myself(), &[0]);
        seats.iter().for_each(|seat| sys::allow(seat.thread(), &[1]));
        machine.command(CMD_CPU_ON, [1, 0, 0])?;
        rounds(&mut machine, rows::IPI, "an SGI to another CPU")
    });
    done
}

/// A guest among others that have run and wait for their next command.
fn neighbours() -> Result<(), String> {
    let plan = Plan { bytes: RAM_MIN, ..plan() };
    let mut machines = Vec::new();
    for (row, count) in [(rows::VMM_READ_8, 8), (rows::VMM_READ_64, 64)] {
        while machines.len() < count {
            machines.push(Machine::booted(plan)?.0);
        }
        let Some(last) = machines.last_mut() else { break };
        rounds(last, row, &format!("a load that the VMM answers, in one of {count} VMs"))?;
    }
    Ok(())
}

fn rounds(machine: &mut Machine, row: u64, what: &str) -> Result<(), String> {
    rounds_at(machine, row, FREE, what)
}

fn rounds_at(machine: &mut Machine, row: u64, page: u64, what: &str) -> Result<(), String> {
    let [least, most, wrong] = machine.command(CMD_BENCH, [row, ROUNDS, page])?;
    STEP.judged(what, "0 rounds went wrong", format!("{wrong}; {least} to {most} ticks"), wrong == 0);
    Ok(())
}
