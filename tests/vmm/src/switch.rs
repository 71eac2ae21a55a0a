// SPDX-License-Identifier: MIT OR Apache-2.0
//! The world switch, past the driver: what a guest has survives every exit, what the host has survives every run, and
//! an exit shows the host what that exit needs and nothing else (D9).
//!
//! The whole loop is here, so that each `VCPU_RUN` is made with every vector register of the host filled, and so that
//! every register that comes back can be looked at.

mod counted;
mod ends;
mod exits;
mod guarded;
mod storms;

use std::collections::BTreeMap;
use std::sync::Arc;

use freehold_uapi::hvc::*;

use crate::hostile::{COUNTING, Counted, El1, Hostile, STREAMING, WATCHING};
use crate::interrupts;
use crate::proto::{self, *};
use crate::raw::{Arena, end, resting, settle, status_name};
use crate::report::Step;
use crate::sys::Mapping;
use crate::vcpus::{PATIENCE, Wakes};

pub(crate) use exits::{Makeup, leaked, shows};

pub(crate) const STEP: Step = Step("world-switch");
const GFN: u64 = RAM_BASE >> 12;
/// Declared RAM; only the first 512 frames are donated before the first run.
const FRAMES: u64 = 1024;
/// RAM of a VM whose addresses have 33 bits, out of reach of 32.
const HIGH: u64 = 4 << 30;
/// More exits than this for one command mean that the guest is lost.
const MOST_EXITS: usize = 200_000;

/// How a vCPU stopped doing commands.
#[derive(Debug, PartialEq, Eq)]
enum Stopped {
    Asks,
    Ended(u64, u64),
}

/// One VM made by raw calls, and everything that was seen of it.
pub(crate) struct Bench<'h> {
    hostile: &'h Hostile,
    pub(crate) handle: u64,
    /// The VM has an interrupt controller; whether its SPI is to be raised when it waits, and whom that woke.
    gic: bool,
    /// Its memory is lent to it.
    ordinary: bool,
    /// Its addresses have 40 bits.
    wide: bool,
    pub(crate) raises: bool,
    /// What the host has armed while the guest runs: a watchpoint, or its cycle counter, and what that counted in each
    /// run.
    manner: u32,
    counted: Vec<Counted>,
    pub(crate) woke: Vec<u64>,
    pool: Arena,
    memory: Arena,
    more: Vec<Arena>,
    /// Who is to be woken; looked at for a VM of several vCPUs.
    pub(crate) wakes: Arc<Wakes>,
    vcpus: u64,
    answer: u64,
    arguments: [u64; 3],
    results: BTreeMap<u64, u64>,
    console: String,
    /// Runs, by exit reason.
    pub(crate) exits: BTreeMap<u64, usize>,
    compared: u32,
    /// Bytes of the host's vectors that a run changed.
    differ: u64,
    /// Debug registers that the host had set at the last run, and those that runs changed.
    debug_set: u32,
    debug_differ: u32,
    /// How many of FPCR and FPSR of the host runs changed, and of its virtual timer's registers showed a guest's.
    control_differ: u32,
    timer_shown: u32,
    /// Registers of EL1 in which the host had values of its own at the last run, and those that runs changed.
    el1: El1,
    /// Registers beyond an exit's payload that were not zero.
    stray: Vec<String>,
    /// Registers that held the canary.
    leaked: usize,
}

impl<'h> Bench<'h> {
    pub(crate) fn new(hostile: &'h Hostile, gic: bool) -> Result<Self, String> {
        Self::with(hostile, gic, 1)
    }

    /// The same, with so many vCPUs.
    pub(crate) fn with(hostile: &'h Hostile, gic: bool, vcpus: u64) -> Result<Self, String> {
        Self::of_kind(hostile, gic, vcpus, false, 40)
    }

    /// One of less than 40 address bits has a page of RAM at [`HIGH`] too.
    fn of_kind(hostile: &'h Hostile, gic: bool, vcpus: u64, ordinary: bool, bits: u64) -> Result<Self, String> {
        let image = std::fs::read("/lib/guest.bin").map_err(|e| format!("/lib/guest.bin: {e}"))?;
        let (pool, memory) = (Arena::new(hostile, 6)?, Arena::new(hostile, 9)?);
        for (pfn, page) in memory.all().zip(image.chunks(4096)) {
            let mut words = [0u64; 512];
            for (word, bytes) in words.iter_mut().zip(page.chunks(8)) {
                let mut whole = [0; 8];
                whole[..bytes.len()].copy_from_slice(bytes);
                *word = u64::from_le_bytes(whole);
            }
            hostile.fill(pfn, &words).map_err(|e| format!("fill: {}", crate::sys::errno_name(e)))?;
        }
        let created =
            hostile.raw(VM_CREATE.into(), &[if ordinary { 0 } else { VM_PROTECTED }, bits, pool.first, pool.frames]);
        let handle = created[1];
        for (call, arguments) in [
            (VM_RANGE, vec![handle, GFN, FRAMES]),
            (VCPU_CREATE, vec![handle, 0]),
            (VCPU_SET_REG, vec![handle, 0, REG_PC, RAM_BASE]),
            (VCPU_SET_REG, vec![handle, 0, REG_X0, BOOT_NO_SHARE]),
        ] {
            let status = hostile.call(call, &arguments);
            if status != SUCCESS {
                return Err(format!("call {call:#x}: {}", status_name(status)));
            }
        }
        if bits < 40 {
            let status = hostile.call(VM_RANGE, &[handle, HIGH >> 12, 1]);
            STEP.same("a VM gets RAM at 4 GiB", "SUCCESS", status_name(status));
        }
        for vcpu in 1..vcpus {
            let status = hostile.call(VCPU_CREATE, &[handle, vcpu]);
            STEP.same(&format!("a VM gets vCPU {vcpu}"), "SUCCESS", status_name(status));
        }
        if gic {
            let status = hostile.call(VM_GIC, &[handle, GICD_GFN, GICR_GFN]);
            STEP.same("a VM gets an interrupt controller", "SUCCESS", status_name(status));
        }
        let give = if ordinary { lend } else { donate };
        give(hostile, handle, &memory, GFN)?;
        let expected = proto::hash_words(image.get(HASH_FROM..).unwrap_or_default());
        let mut bench = Self {
            hostile,
            handle,
            gic,
            ordinary,
            wide: bits == 40,
            raises: false,
            manner: 0,
            counted: Vec::new(),
            woke: Vec::new(),
            pool,
            memory,
            more: Vec::new(),
            wakes: Arc::default(),
            vcpus,
            answer: 0,
            arguments: [0; 3],
            results: BTreeMap::new(),
            console: String::new(),
            exits: BTreeMap::new(),
            compared: 0,
            differ: 0,
            debug_set: 0,
            debug_differ: 0,
            control_differ: 0,
            timer_shown: 0,
            el1: El1::default(),
            stray: Vec::new(),
            leaked: 0,
        };
        let stopped = bench.go()?;
        let kind = match (gic, ordinary) {
            (true, _) => ", with a controller",
            (false, true) => ", ordinary",
            (false, false) if bits < 40 => ", of few address bits",
            (false, false) => "",
        };
        let case = |what: &str| format!("{what}{kind}");
        STEP.same(&case("a guest boots"), format!("{:?}", Stopped::Asks), format!("{stopped:?}"));
        STEP.same(
            &case("it runs what was written"),
            format!("{expected:#x}"),
            format!("{:#x}", bench.result(REG_BOOT_HASH)),
        );
        STEP.same(
            &case("its stage 1 is on, its FP computes, it finds no register set"),
            BOOT_ALL,
            bench.result(REG_BOOT_FACTS),
        );
        STEP.same(&case("it prints"), BOOT_LINE, bench.console.trim_end());
        Ok(bench)
    }

    fn result(&self, register: u64) -> u64 {
        self.results.get(&register).copied().unwrap_or(u64::MAX)
    }

    /// Runs the guest until it asks for a command or ends.
    fn go(&mut self) -> Result<Stopped, String> {
        for _ in 0..MOST_EXITS {
            let x = self.run_once(self.manner)?;
            if x[0] != 0 {
                return Err(format!("VCPU_RUN: {}", status_name(x[0].cast_signed())));
            }
            match x[1] {
                EXIT_MMIO if self.device(x[2], x[3], x[4]) => return Ok(Stopped::Asks),
                EXIT_WFI => self.waits(x[2])?,
                EXIT_EOI => self.wakes.ends(self.hostile, self.handle, x[2]),
                EXIT_MMIO | EXIT_IRQ | EXIT_WAKE => {}
                EXIT_MEM_FAULT => self.back(x[2])?,
                reason => return Ok(Stopped::Ended(reason, x[2])),
            }
        }
        Err(format!("{MOST_EXITS} exits and no end: {:?}", self.exits))
    }

    /// One run, with the host's vectors filled; judges the registers that come back.
    fn run_once(&mut self, manner: u32) -> Result<[u64; 18], String> {
        let mut call = [0u64; 18];
        call[..4].copy_from_slice(&[VCPU_RUN.into(), self.handle, 0, self.answer]);
        self.wakes.runs(0);
        // The host's leftovers must not come back either.
        call[4..].fill(0x5ca1_ab1e);
        let (x, compared) = self
            .hostile
            .raw_with_vectors(call, manner)
            .map_err(|e| format!("call with vectors: {}", crate::sys::errno_name(e)))?;
        self.compared |= compared.kinds;
        self.differ += compared.differ;
        self.debug_set = compared.debug.0;
        self.debug_differ += compared.debug.1;
        self.control_differ += compared.control;
        self.timer_shown += compared.timer;
        self.el1 = El1 { set: compared.el1.set, differ: self.el1.differ | compared.el1.differ };
        if manner == COUNTING {
            self.counted.push(compared.counted);
        }
        self.answer = 0;
        *self.exits.entry(x[1]).or_default() += 1;
        self.wakes.wake(x[5]);
        if x[0] == 0 {
            self.stray.extend(Makeup { gic: self.gic, vcpus: self.vcpus }.stray(&x));
        }
        self.leaked += leaked(&x);
        Ok(x)
    }

    /// The guest waits: for its timer, which it looks for itself, or for the SPI; in a VM of several vCPUs until it is
    /// woken.
    fn waits(&mut self, deadline: u64) -> Result<(), String> {
        if core::mem::take(&mut self.raises) {
            let woken = self.hostile.raw(VM_IRQ.into(), &[self.handle, SPI, self.wakes.high()])[1];
            self.wakes.wake(woken);
            self.woke.push(woken);
        } else if self.vcpus > 1 {
            self.wakes.sleep(0, deadline, PATIENCE)?;
        } else if self.gic {
            std::thread::sleep(std::time::Duration::from_micros(100));
        }
        Ok(())
    }

    /// Serves one device access; whether the guest asks for a command.
    fn device(&mut self, ipa: u64, bits: u64, data: u64) -> bool {
        let register = ipa.wrapping_sub(DEVICE);
        if bits & MMIO_WRITE != 0 {
            match register {
                REG_CONSOLE => self.console.push(char::from(data as u8)),
                REG_SCRATCH if self.gic => drop(self.hostile.call(VM_IRQ, &[self.handle, SPI, 0])),
                _ => drop(self.results.insert(register, data)),
            }
            return false;
        }
        self.answer = match register {
            REG_ARG0 => self.arguments[0],
            REG_ARG1 => self.arguments[1],
            REG_ARG2 => self.arguments[2],
            _ => u64::MAX,
        };
        register == REG_COMMAND
    }

    fn back(&mut self, gfn: u64) -> Result<(), String> {
        if self.ordinary {
            return self.lend_anew(gfn, SHARE_WRITE | SHARE_EXEC);
        }
        let frame = Arena::new(self.hostile, 0)?;
        let donated = donate(self.hostile, self.handle, &frame, gfn);
        self.more.push(frame);
        donated
    }

    /// Takes a page of an ordinary VM back and lends it again with these rights.
    fn lend_anew(&self, gfn: u64, rights: u64) -> Result<(), String> {
        let frame = gfn.checked_sub(GFN).filter(|n| *n < self.memory.frames).map(|n| self.memory.first + n);
        let frame = frame.ok_or_else(|| format!("asks for {gfn:#x}, which it has not"))?;
        for (call, arguments) in
            [(MEM_UNSHARE, vec![self.handle, gfn, 1]), (MEM_SHARE, vec![self.handle, frame, gfn, 1, rights])]
        {
            let status = self.hostile.call(call, &arguments);
            if status != SUCCESS {
                return Err(format!("call {call:#x} of {gfn:#x}: {}", status_name(status)));
            }
        }
        Ok(())
    }

    /// Has the guest do a command; its results. The guest must be asking.
    pub(crate) fn command(&mut self, command: u64, arguments: [u64; 3]) -> Result<[u64; 3], String> {
        self.arguments = arguments;
        self.answer = command;
        for register in [REG_RESULT0, REG_RESULT1, REG_RESULT2] {
            self.results.remove(&register);
        }
        match self.go()? {
            Stopped::Asks => Ok([REG_RESULT0, REG_RESULT1, REG_RESULT2].map(|register| self.result(register))),
            Stopped::Ended(reason, what) => Err(format!(
                "command {command} ended with exit {reason}, {what:#x}; guest's last words {:x?}",
                [REG_PANIC_ESR, REG_PANIC_ELR, REG_PANIC_FAR].map(|register| self.result(register))
            )),
        }
    }

    /// Has the guest do a command that counts what is wrong.
    pub(crate) fn clean(&mut self, case: &str, command: u64, arguments: [u64; 3]) -> Result<[u64; 3], String> {
        let results = self.command(command, arguments)?;
        STEP.judged(case, "0 wrong", format!("{} wrong ({results:x?})", results[0]), results[0] == 0);
        Ok(results)
    }

    pub(crate) fn close(self) {
        let mut frames: Vec<u64> = self.pool.all().collect();
        if self.ordinary {
            let loans = self.hostile.call(VM_DESTROY, &[self.handle]) == SUCCESS
                && self.hostile.call(MEM_UNSHARE, &[self.handle, GFN, self.memory.frames]) == SUCCESS;
            STEP.same("every loan of the ordinary one ends", true, loans);
        } else {
            frames.extend(self.memory.all());
        }
        frames.extend(self.more.iter().flat_map(Arena::all));
        let case = match (self.gic, self.ordinary) {
            (true, _) => "every frame comes back, of the one with a controller",
            (false, true) => "every frame comes back, of the ordinary one",
            (false, false) if !self.wide => "every frame comes back, of the one of few address bits",
            (false, false) => "every frame comes back",
        };
        STEP.same(case, 0, end(self.hostile, self.handle, &frames));
        let stray = format!("{:?}", self.stray);
        STEP.same(&case.replace("every frame comes back", "exits show nothing beside their payload"), "[]", stray);
        STEP.same(&case.replace("every frame comes back", "the host's vectors survive its runs"), 0, self.differ);
        STEP.same(&case.replace("every frame comes back", "so do FPCR and FPSR"), 0, self.control_differ);
        let differ = format!("{:#x}", self.el1.differ);
        STEP.same(&case.replace("every frame comes back", "so do the host's EL1 registers"), "0x0", differ);
        let timer = case.replace("every frame comes back", "its virtual timer is shown to nobody");
        STEP.same(&timer, 0, self.timer_shown);
        for arena in self.more.iter().chain([&self.memory, &self.pool]) {
            let _ = self.hostile.free(arena.first);
        }
    }
}

/// Donates all frames of an arena, in as many calls as the interrupts leave it.
fn donate(hostile: &Hostile, handle: u64, arena: &Arena, gfn: u64) -> Result<(), String> {
    give(hostile, MEM_DONATE, 0, handle, arena, gfn)
}

/// Lends them, to be written and executed.
fn lend(hostile: &Hostile, handle: u64, arena: &Arena, gfn: u64) -> Result<(), String> {
    give(hostile, MEM_SHARE, SHARE_WRITE | SHARE_EXEC, handle, arena, gfn)
}

fn give(hostile: &Hostile, call: u32, flags: u64, handle: u64, arena: &Arena, gfn: u64) -> Result<(), String> {
    let mut done = 0;
    while done < arena.frames {
        let arguments = [handle, arena.first + done, gfn + done, arena.frames - done, flags];
        let x = hostile.raw(call.into(), &arguments);
        if x[0] != 0 {
            return Err(format!("frames at {:#x}: {}", gfn + done, status_name(x[0].cast_signed())));
        }
        done += x[1];
    }
    Ok(())
}

/// Runs the suite.
pub(crate) fn all() -> Result<(), String> {
    let hostile = Hostile::open()?;
    let before = resting(&hostile);
    let mut bench = Bench::new(&hostile, false)?;
    let hash = bench.command(CMD_HASH, [0; 3])?[0];
    bench.clean("vectors of the guest survive 100 exits", CMD_FP, [100, 0, 0])?;
    bench.clean("registers of the guest survive 100 exits", CMD_STATE, [100, 0, 0])?;
    let tried = bench.clean("hidden registers are UNDEFINED", CMD_HIDDEN, [0; 3])?[2];
    STEP.judged("hidden registers tried", "at least 36", tried, tried >= 36);
    bench.clean("ID registers show nothing hidden", CMD_ID, [0; 3])?;
    bench.clean("MMIO loads of every width and sign", CMD_MMIO, [0; 3])?;
    spin(&mut bench)?;
    watched(&mut bench)?;
    debugged(&mut bench)?;
    counted::stays(&mut bench)?;
    bench.clean("a canary to RAM not donated is stored", CMD_CANARY, [RAM_BASE + 0x20_1000, 0, 0])?;
    STEP.same("no exit showed the canary", 0, bench.leaked);
    let backed = bench.exits.get(&EXIT_MEM_FAULT).copied().unwrap_or(0);
    STEP.same("each page of it was asked for once", CANARY_PAGES, backed);
    ends::firmware(&mut bench)?;
    let damage = bench.command(CMD_SECRET, [0; 3])?[2];
    STEP.same("secrets undamaged", 0, damage);
    STEP.same("memory unchanged", format!("{hash:#x}"), format!("{:#x}", bench.command(CMD_HASH, [0; 3])?[0]));
    streaming(&mut bench)?;
    STEP.same("exits show nothing beside their payload", "[]", format!("{:?}", bench.stray));
    let what = ends::vectors(bench.compared)?;
    let runs: usize = bench.exits.values().sum();
    STEP.judged(
        "the host's vectors survive",
        "0 bytes differ",
        format!("{} bytes differ, {what}, {runs} runs", bench.differ),
        bench.differ == 0 && bench.compared & 1 == 1 && runs > 300,
    );
    STEP.same("the host's FPCR and FPSR survive", 0, bench.control_differ);
    STEP.same("the host reads nothing of a guest's virtual timer", 0, bench.timer_shown);
    let El1 { set, differ } = bench.el1;
    STEP.judged(
        "the host's EL1 registers survive",
        "none differs of all, with own values in nine, beside x18 to x30",
        format!("{differ:#x} differ, own values in {set:#x}"),
        differ == 0 && set & El1::OWN == El1::OWN,
    );
    bench.arguments = [1 << 38, 0, 0];
    bench.answer = CMD_LOAD_PAIR;
    let ended = bench.go()?;
    STEP.same(
        "a pair outside RAM ends the guest",
        format!("{:?}", Stopped::Ended(EXIT_CRASH, CRASH_NO_SYNDROME)),
        format!("{ended:?}"),
    );
    let again = bench.run_once(0)?[0].cast_signed();
    STEP.same("and it runs no more", "WRONG_STATE", status_name(again));
    bench.close();
    rights(&hostile)?;
    wide(&hostile)?;
    guarded::all(&hostile)?;
    interrupts::all(&hostile)?;
    ends::all(&hostile)?;
    storms::kicks(&hostile)?;
    storms::storms(&hostile)?;
    settle(STEP, "counters at rest", &hostile, &before);
    Ok(())
}

/// What an ordinary guest was lent without the right to write or to execute: the host hears which page, and lends it anew.
fn rights(hostile: &Hostile) -> Result<(), String> {
    let mut bench = Bench::of_kind(hostile, false, 1, true, 40)?;
    let asked = |bench: &Bench<'_>| bench.exits.get(&EXIT_MEM_FAULT).copied().unwrap_or(0);
    let hash = bench.command(CMD_HASH, [0; 3])?[0];
    let lend = |bench: &Bench<'_>, first: u64, pages: u64| {
        (first..first + pages * GRANULE).step_by(4096).try_for_each(|at| bench.lend_anew(at >> 12, 0))
    };
    bench.command(CMD_FILL, [SHARE_BASE, 8 * GRANULE, 3])?;
    lend(&bench, SHARE_BASE, 8)?;
    bench.clean("what was lent read only is read", CMD_CHECK, [SHARE_BASE, 8 * GRANULE, 3])?;
    STEP.same("and nobody is asked", 0, asked(&bench));
    bench.command(CMD_FILL, [SHARE_BASE, 2 * GRANULE, 4])?;
    STEP.same("a write to it is asked for, once a page", 2, asked(&bench));
    bench.clean("and is made", CMD_CHECK, [SHARE_BASE, 2 * GRANULE, 4])?;
    bench.clean("what is beside it stays", CMD_CHECK, [SHARE_BASE + 2 * GRANULE, 6 * GRANULE, 3])?;
    for gfn in 2..2 + CANARY_PAGES {
        let frame = bench.memory.first + (SHARE_BASE >> 12) - GFN + gfn;
        hostile.fill(frame, &[0; 512]).map_err(|e| format!("fill: {}", crate::sys::errno_name(e)))?;
    }
    bench.clean("stores of every kind to it are made", CMD_CANARY, [SHARE_BASE + 2 * GRANULE, 0, 0])?;
    STEP.same("each page of them was asked for", 2 + CANARY_PAGES, asked(&bench));
    STEP.same("no exit showed what was stored", 0, bench.leaked);
    // All of the program; what it writes is not among it.
    lend(&bench, RAM_BASE, IMAGE_MAX / GRANULE)?;
    let before = asked(&bench);
    let after = bench.command(CMD_HASH, [0; 3])?[0];
    STEP.same(
        "code that was lent without the right to execute it runs on",
        format!("{hash:#x}"),
        format!("{after:#x}"),
    );
    let fetched = asked(&bench) - before;
    STEP.judged("each of its pages was asked for", "some pages", fetched, (1..64).contains(&fetched));
    bench.close();
    Ok(())
}

/// What the host has armed for debugging stands still while a guest runs that would take it.
fn watched(bench: &mut Bench<'_>) -> Result<(), String> {
    let stops = |at: *const u8| format!("{:?}", bench.hostile.is_stopped_at(at));
    let at = usize::try_from(SHARE_BASE).map_err(|e| e.to_string())?;
    let same =
        Mapping::at_address(at, 4096).map_err(|e| format!("memory at {at:#x}: {}", crate::sys::errno_name(e)))?;
    STEP.same("the watchpoint stops the host itself, where the guest will load", "Ok(true)", stops(same.at(0)));
    STEP.same("and nowhere else", "Ok(false)", stops((&raw const at).cast()));
    bench.command(CMD_FILL, [SHARE_BASE, GRANULE, 5])?;
    bench.manner = WATCHING;
    let [wrong, esr, _] = bench.command(CMD_UNMASKED, [SHARE_BASE, GRANULE, 5])?;
    bench.manner = 0;
    STEP.same("a watchpoint of the host's stops no guest", "0 wrong, ESR 0", format!("{wrong} wrong, ESR {esr:x}"));
    Ok(())
}

/// A guest's debug registers hold nothing, and are none of the host's, which has a watchpoint armed.
fn debugged(bench: &mut Bench<'_>) -> Result<(), String> {
    bench.manner = WATCHING;
    let tried = bench.clean("debug registers read as zero, whatever is written", CMD_DEBUG, [0; 3])?[2];
    bench.manner = 0;
    STEP.judged("debug registers tried", "at least 14", tried, tried >= 14);
    let set = bench.debug_set;
    STEP.judged("tools: the host's own are seen", "3 or more set: the watchpoint, and that it is on", set, set >= 3);
    STEP.same("a guest changes no debug register of the host's", 0, bench.debug_differ);
    Ok(())
}

/// A VM of 33 address bits has RAM that 32 do not reach. Its guest's stage 1 is as wide as the ID register says.
fn wide(hostile: &Hostile) -> Result<(), String> {
    let mut bench = Bench::of_kind(hostile, false, 1, false, 33)?;
    let [_, stored, _] = bench.command(CMD_STORE, [HIGH, CANARY, 0])?;
    let [value, loaded, _] = bench.command(CMD_LOAD, [HIGH, 0, 0])?;
    STEP.same(
        "a guest of 33 address bits reaches its RAM at 4 GiB",
        format!("{CANARY:#x}, ESR 0 and 0"),
        format!("{value:#x}, ESR {stored:x} and {loaded:x}"),
    );
    STEP.same("it was asked for once", 1, bench.exits.get(&EXIT_MEM_FAULT).copied().unwrap_or(0));
    bench.close();
    Ok(())
}

/// A guest that never exits by itself does not hold the host's CPU.
fn spin(bench: &mut Bench<'_>) -> Result<(), String> {
    let interrupts = |bench: &Bench<'_>| bench.exits.get(&EXIT_IRQ).copied().unwrap_or(0);
    let before = interrupts(bench);
    // A second each at 62.5 MHz, a sixteenth of one at 1 GHz; a loaded machine may make few interrupts of that.
    let mut seen = 0;
    for _ in 0..32 {
        bench.command(CMD_SPIN, [62_500_000, 0, 0])?;
        seen = interrupts(bench) - before;
        if seen >= 3 {
            break;
        }
    }
    STEP.judged("interrupts end a guest's run", "at least 3", seen, seen >= 3);
    Ok(())
}

/// A host that is in streaming mode is refused, and nothing of the guest moves.
fn streaming(bench: &mut Bench<'_>) -> Result<(), String> {
    const HAS_ZA: u32 = 4;
    if bench.compared & HAS_ZA == 0 {
        return Ok(());
    }
    let answer = bench.answer;
    let x = bench.run_once(STREAMING)?;
    bench.answer = answer;
    *bench.exits.entry(x[1]).or_default() -= 1;
    STEP.same("a host in streaming mode is refused", "DENIED", status_name(x[0].cast_signed()));
    Ok(())
}
