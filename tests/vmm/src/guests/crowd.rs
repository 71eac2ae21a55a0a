// SPDX-License-Identifier: MIT OR Apache-2.0
//! Eight protected guests of two CPUs at once, three of them bad: one crashes, one spins with interrupts masked, one
//! floods the VMM with exits. The others come to their end, and the host's CPUs answer meanwhile.
//!
//! The guests' program is an arm64 Image of a page, so that `freehold-vmm run` boots it as any kernel.

use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use freehold_vmm_boot::layout;

use super::child::{Child, Read};
use super::debugger;
use super::terminal::{self, Terminal};
use crate::beats::{BEAT, beating};
use crate::proto::CANARY;
use crate::report::Step;
use crate::sys;

const STEP: Step = Step("guests");
const IMAGE: &str = "/tmp/crowd";
/// Guests that do their work.
const WORKERS: usize = 5;
const LIMIT: Duration = Duration::from_secs(300);

/// From the program's start on, where the CPUs of those that do not end count.
const COUNTS: u64 = 4 << 20;
/// CPUs of the host.
const CPUS: usize = 4;

/// What a guest does; the program finds it in its header.
#[derive(Clone, Copy)]
enum Role {
    Work = 0,
    Crash = 1,
    Spin = 2,
    Flood = 3,
    /// Both CPUs print for ever.
    Print = 4,
}

core::arch::global_asm!(
    ".balign 8",
    ".global fh_crowd_begin",
    // The header of an arm64 Image. The role is where it has a reserved word; the two after it are for the CPUs.
    "fh_crowd_begin:",
    "    b       1f",
    "    .word   0",
    "    .quad   0, 4096, 0xa",
    "    .quad   0, 0, 0",
    "    .ascii  \"ARM\\x64\"",
    "    .word   0",
    // x19: this CPU, x20: the program's start, x21: the role, x22: the port. The second CPU starts at 2.
    "1:  mov     x19, xzr",
    "    adr     x20, fh_crowd_begin",
    "    movz    x0, #0xc400, lsl #16",
    "    movk    x0, #3",
    "    mov     x1, #1",
    "    adr     x2, 2f",
    "    mov     x3, #1",
    "    hvc     #0",
    "    cbnz    x0, 9f",
    "    b       3f",
    "2:  mov     x19, x0",
    "    adr     x20, fh_crowd_begin",
    "3:  ldr     x21, [x20, #0x20]",
    "    movz    x22, #{port}, lsl #16",
    "    cmp     x21, #2",
    "    b.hs    14f",
    // Those that end wait for a key, and say so once both are here: the first looks at the port, the second at a word.
    "    cbnz    x19, 19f",
    "17: ldr     x0, [x20, #0x28]",
    "    cbz     x0, 17b",
    "    str     xzr, [x20, #0x28]",
    "    mov     w0, #'w'",
    "    strb    w0, [x22]",
    "    mov     w0, #'\\n'",
    "    strb    w0, [x22]",
    "18: ldrb    w0, [x22, #5]",
    "    tbz     w0, #0, 18b",
    "    str     x22, [x20, #0x30]",
    "    b       21f",
    "19: str     x22, [x20, #0x28]",
    "20: ldr     x0, [x20, #0x30]",
    "    cbz     x0, 20b",
    "21: cbnz    x21, 5f",
    // Work: fills memory of its own, and finds what it filled in. x23: the memory, x24: rounds, x25: a running number.
    "    add     x23, x20, #0x200, lsl #12",
    "    add     x23, x23, x19, lsl #20",
    "    mov     x24, #{rounds}",
    "    mov     x25, x19",
    "10: mov     x26, x23",
    "    mov     x27, #{words}",
    "11: add     x25, x25, #1",
    "    str     x25, [x26], #8",
    "    subs    x27, x27, #1",
    "    b.ne    11b",
    "    sub     x28, x25, #{words}",
    "    mov     x26, x23",
    "    mov     x27, #{words}",
    "12: add     x28, x28, #1",
    "    ldr     x0, [x26], #8",
    "    cmp     x0, x28",
    "    b.ne    9f",
    "    subs    x27, x27, #1",
    "    b.ne    12b",
    "    subs    x24, x24, #1",
    "    b.ne    10b",
    // The second tells the first and switches itself off; the first waits, and ends the VM.
    "    cbz     x19, 13f",
    "    str     x19, [x20, #0x28]",
    "    movz    x0, #0x8400, lsl #16",
    "    movk    x0, #2",
    "    hvc     #0",
    "    b       9f",
    "13: ldr     x0, [x20, #0x28]",
    "    cbz     x0, 13b",
    "    mov     w0, #'k'",
    "    strb    w0, [x22]",
    "    mov     w0, #'\\n'",
    "    strb    w0, [x22]",
    "    movz    x0, #0x8400, lsl #16",
    "    movk    x0, #8",
    "    hvc     #0",
    "    b       .",
    // Crash: the first loads a pair from a device, which no exit can describe; the second runs on.
    "5:  cbnz    x19, 4f",
    "    ldp     x0, x1, [x22]",
    "    b       9f",
    "4:  msr     daifset, #15",
    "    b       .",
    // The others lend a page to the host, in which each CPU counts: x27. x28: its count.
    "14: add     x26, x20, #{counts}",
    "    add     x27, x26, x19, lsl #3",
    "    mov     x28, xzr",
    "    cbnz    x19, 15f",
    "    movz    x0, #0xc600, lsl #16",
    "    movk    x0, #3",
    "    mov     x1, x26",
    "    mov     x2, #1",
    "    mov     x3, xzr",
    "    hvc     #0",
    "    cbnz    x0, 9f",
    "15: cmp     x21, #3",
    "    b.eq    7f",
    "    b.hi    8f",
    // Spin, with a word in every other register that nobody is to see, vectors among them.
    "    msr     daifset, #15",
    "    mov     x0, #0x300000",
    "    msr     cpacr_el1, x0",
    "    isb",
    "    ldr     x0, 16f",
    ".irp v, v0.2d, v1.2d, v2.2d, v3.2d, v4.2d, v5.2d, v6.2d, v7.2d, v8.2d, v9.2d, v10.2d, v11.2d, v12.2d, v13.2d, v14.2d, v15.2d, v16.2d, v17.2d, v18.2d, v19.2d, v20.2d, v21.2d, v22.2d, v23.2d, v24.2d, v25.2d, v26.2d, v27.2d, v28.2d, v29.2d, v30.2d, v31.2d",
    "    dup     \\v, x0",
    ".endr",
    ".irp n, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 29, 30",
    "    mov     x\\n, x0",
    ".endr",
    "6:  add     x28, x28, #1",
    "    str     x28, [x27]",
    "    b       6b",
    // Flood: each store to the port's scratch register is an exit.
    "7:  strb    w0, [x22, #7]",
    "    add     x28, x28, #1",
    "    str     x28, [x27]",
    "    b       7b",
    // Print: bytes to the port, and never a line's end.
    "8:  mov     w0, #'x'",
    "    strb    w0, [x22]",
    "    add     x28, x28, #1",
    "    str     x28, [x27]",
    "    b       8b",
    // What must not be: a reset, which nobody expects.
    "9:  movz    x0, #0x8400, lsl #16",
    "    movk    x0, #9",
    "    hvc     #0",
    "    b       .",
    ".balign 8",
    "16: .quad   {canary}",
    ".global fh_crowd_end",
    "fh_crowd_end:",
    port = const layout::SERIAL >> 16,
    rounds = const 1000,
    words = const 4096,
    counts = const COUNTS,
    canary = const CANARY,
);

unsafe extern "C" {
    static fh_crowd_begin: u8;
    static fh_crowd_end: u8;
}

/// The program for `role`, as a file of one page.
fn image(role: Role) -> Vec<u8> {
    let (begin, end) = (&raw const fh_crowd_begin, &raw const fh_crowd_end);
    // SAFETY: the assembly above stands between the two symbols, and nobody writes there.
    let mut bytes = unsafe { std::slice::from_raw_parts(begin, end.addr() - begin.addr()) }.to_vec();
    bytes[0x20] = role as u8;
    bytes.resize(4096, 0);
    bytes
}

/// Starts a guest, from a file of its own: a VMM may still be reading that of the guest before.
fn guest(role: Role, number: usize) -> Result<Child, String> {
    let file = format!("{IMAGE}-{number}");
    std::fs::write(&file, image(role)).map_err(|e| format!("{file}: {e}"))?;
    Child::run(&arguments(&file))
}

fn arguments(file: &str) -> [String; 7] {
    ["--kernel", file, "--mem", "36M", "--cpus", "2", "--protected"].map(str::to_owned)
}

/// How far each CPU of a guest has counted, in the page that it has lent to the host.
fn counted(process: u32) -> Result<[u64; 2], String> {
    let maps = std::fs::read_to_string(format!("/proc/{process}/maps")).map_err(|e| e.to_string())?;
    let line = maps.lines().find(|line| line.contains("guest_memfd")).ok_or("no guest_memfd is mapped")?;
    let start = line.split('-').next().and_then(|start| u64::from_str_radix(start, 16).ok()).ok_or("no address")?;
    let memory = std::fs::File::open(format!("/proc/{process}/mem")).map_err(|e| e.to_string())?;
    let mut bytes = [0; 16];
    memory.read_exact_at(&mut bytes, start + COUNTS).map_err(|e| format!("the lent page: {e}"))?;
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|n| bytes[at + n]));
    Ok([word(0), word(8)])
}

/// The same, once both have counted beyond `from`.
fn counts_on(child: &Child, from: [u64; 2]) -> Result<[u64; 2], String> {
    let deadline = Instant::now() + LIMIT;
    loop {
        match counted(child.id()) {
            Ok(now) if now[0] > from[0] && now[1] > from[1] => return Ok(now),
            // It is not lent yet.
            Ok(_) | Err(_) if Instant::now() < deadline => std::thread::sleep(BEAT),
            seen => return seen.and_then(|seen| Err(format!("{seen:?} after {from:?}"))),
        }
    }
}

/// Waits until a guest's VMM has ended, and says how: its status, and what it said.
fn ended(child: Child, deadline: Instant) -> (String, String) {
    loop {
        match child.line(deadline) {
            Read::Line(_) => {}
            Read::Closed => return child.ended(),
            Read::Late => return ("none: it runs on".to_owned(), String::new()),
        }
    }
}

/// A VMM whose output nobody reads, with a guest that prints for ever and a user who types, is ended by a signal; and by the
/// key, which the user has at a terminal.
fn unheard(by_key: bool) -> Result<(), String> {
    let file = format!("{IMAGE}-unheard-{by_key}");
    std::fs::write(&file, image(Role::Print)).map_err(|e| format!("{file}: {e}"))?;
    let terminal = by_key.then(Terminal::new).transpose()?;
    let (mut child, unread) = Child::unheard(&arguments(&file), terminal.as_ref())?;
    let deadline = Instant::now() + LIMIT;
    // Its pipe is full, and its guest does not go on.
    let mut before = counted(child.id());
    let mut still = 0;
    while still < 10 {
        std::thread::sleep(BEAT);
        let now = counted(child.id());
        still = if now.is_ok() && now == before && unread.is_full() { still + 1 } else { 0 };
        before = now;
        if Instant::now() > deadline {
            return Err(format!("the guest that nobody hears: {before:?}, {} bytes", unread.bytes()));
        }
    }
    child.type_in("keys\n");
    let (who, how) = if by_key { ("Ctrl-]", "ended by Ctrl-]") } else { ("a signal", "ended by signal 15") };
    if by_key {
        child.type_in(terminal::QUIT);
    } else {
        child.end();
    }
    let (status, said) = child.ended();
    STEP.same(&format!("crowd: {who} ends a VMM whose output nobody takes"), "12", status);
    STEP.judged("crowd: and it says so, with its exits", how, &said, terminal::summary(&said, how, 2));
    Ok(())
}

/// Whether a guest that is to end has come so far that it waits for a key, with both CPUs.
fn waits(child: &Child, deadline: Instant) -> bool {
    matches!(child.line(deadline), Read::Line(line) if line == "w")
}

/// Runs them.
pub(crate) fn all() -> Result<(), String> {
    let mut crash = guest(Role::Crash, WORKERS)?;
    let (mut spin, mut flood) = (guest(Role::Spin, WORKERS + 1)?, guest(Role::Flood, WORKERS + 2)?);
    let mut workers = (0..WORKERS).map(|number| guest(Role::Work, number)).collect::<Result<Vec<_>, _>>()?;
    STEP.same("crowd: CPUs of the host", CPUS, sys::cpus());
    let deadline = Instant::now() + LIMIT;
    let waiting = workers.iter().chain([&crash]).filter(|child| waits(child, deadline)).count();
    let before = [counts_on(&spin, [0; 2])?, counts_on(&flood, [0; 2])?];
    // These six end after a key alone, and have none yet.
    let all = workers.iter_mut().chain([&mut crash, &mut spin, &mut flood]);
    let run = all.map(Child::runs).filter(|runs| *runs).count();
    let seen = format!("{waiting} wait, 2 count, {run} run");
    STEP.same("crowd: all eight live at once", format!("{} wait, 2 count, {} run", WORKERS + 1, WORKERS + 3), seen);
    let deadline = Instant::now() + LIMIT;
    let ((statuses, crashed), beats) = beating(|| {
        workers.iter_mut().chain([&mut crash]).for_each(|child| child.type_in("k\n"));
        let statuses: Vec<String> = workers.into_iter().map(|worker| ended(worker, deadline).0).collect();
        (statuses, ended(crash, deadline))
    });
    STEP.same("crowd: those that work come to their end", format!("{:?}", ["0"; WORKERS]), format!("{statuses:?}"));
    let (status, said) = crashed;
    STEP.same("crowd: the one that crashes is told so", 11, status);
    let held = said.contains("the guest crashed: vCPU 0: CRASH_NO_SYNDROME");
    STEP.judged("crowd: and which CPU of it, and why", "vCPU 0: CRASH_NO_SYNDROME", &said, held);
    STEP.same("crowd: those that spin and flood run on", "true, true", format!("{}, {}", spin.runs(), flood.runs()));
    let seen = format!("{:?} in {} ms", beats.counts, beats.took.as_millis());
    let least = format!("at least {} times each", beats.least());
    STEP.judged("crowd: every host CPU answers", &least, seen, beats.are_enough());
    let seen = format!("{:?}", beats.longest);
    STEP.judged("crowd: nobody on any of them waits long", "10 s at most", seen, beats.are_prompt());
    debugger::looks(STEP, spin.id())?;
    for (who, child, before) in [("spins", &spin, before[0]), ("floods", &flood, before[1])] {
        let now = counted(child.id())?;
        let case = format!("crowd: both CPUs of the one that {who} have gone on meanwhile");
        let held = now[0] > before[0] && now[1] > before[1];
        STEP.judged(&case, "each further than before", format!("{before:?}, {now:?}"), held);
        let after = counts_on(child, now);
        let case = format!("crowd: both CPUs of the one that {who} go on still");
        STEP.judged(&case, "each further than then", format!("{now:?}, {after:?}"), after.is_ok());
    }
    for (who, child, exits) in [("spins", spin, 0), ("floods", flood, 1000)] {
        child.end();
        let (status, said) = child.ended();
        STEP.same(&format!("crowd: the one that {who} is ended by a signal"), 12, status);
        let stores = stores(&said);
        let held = stores >= exits && (exits > 0 || stores < 1000);
        STEP.judged(&format!("crowd: exits of the one that {who}"), "1000 or more of who floods", stores, held);
    }
    unheard(false)?;
    unheard(true)
}

/// Stores to devices, as the VMM's summary says.
fn stores(said: &str) -> u64 {
    let line = said.lines().find_map(|line| line.strip_prefix("device stores"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
