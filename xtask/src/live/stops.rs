// SPDX-License-Identifier: MIT OR Apache-2.0
//! What becomes of the machine when el2 itself fails: no input makes it, so the debug stub does, on the released image.
//!
//! A CPU that comes from the host finds its stack used up, or goes on where there is no code, or does so while it says
//! why it stops, or at the vector of an SError. Each time the machine must end the same way: at most one line, of exception registers and nothing
//! else; every CPU halted at EL2; the host without any memory, and stage 2 on.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use object::{Object as _, ObjectSymbol as _};

use super::gdb::{Gdb, Stop};
use super::{HCR_VM, LIMIT, STACK};
use crate::builds;
use crate::qemu::{Machine, Read, Running};
use crate::test::boot::{image, log};
use crate::test::{Context, Item};

pub(super) const NAME: &str = "boot/stops";
/// Where QEMU puts an arm64 `Image`.
const BASE: u64 = 0x4020_0000;
/// Of QEMU's console, which el2 maps where it is.
const UART: u64 = 0x0900_0000;
/// The vector of a synchronous exception of a lower level.
const FROM_HOST: u64 = 0x400;
/// The vector of an SError of EL2's own.
const SERROR: u64 = 0x380;
/// What its handler keeps on the stack.
const FRAME: u64 = 176;
/// In every register that the host can fill, when el2 fails.
const SECRET: u64 = 0x5ec2_e7ba_d5ec_2e70;
const SP: u32 = 31;
const PC: u32 = 32;
const WFE: u32 = 0xd503_205f;
/// What a line of el2's begins with when it stops by itself.
const LINE: &str = "freehold: panic: ";

/// How el2 fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// Less stack is left than it needs.
    Overflow,
    /// It goes on in its stack, where nothing may be executed.
    NoCode,
    /// The same, and again with the first character of what it says.
    NoCodeWhileSpeaking,
    /// It meets an SError, which no device of QEMU's raises.
    SError,
}

/// What the machine was like in the end.
struct End {
    /// El2's last words, whole lines and not.
    said: String,
    /// The stack pointer that the CPU failed with.
    sp: u64,
    wrong: Vec<String>,
}

pub(super) fn case(context: &Context<'_>) -> Result<Vec<Item>> {
    let cases = [
        ("a-stack-that-is-used-up", Failure::Overflow),
        ("an-exception-in-el2", Failure::NoCode),
        ("a-panic-in-a-panic", Failure::NoCodeWhileSpeaking),
        ("an-serror-in-el2", Failure::SError),
    ];
    let item = |(case, failure): (&str, Failure)| {
        let name = format!("{NAME}/{case}");
        let end = fail(context, &name, failure)?;
        let mut wrong = judge(failure, &end);
        wrong.extend(end.wrong);
        let at = context.env.shown(&log(context, &name));
        Ok(Item::new(name, (!wrong.is_empty()).then(|| format!("{}\nconsole log: {at}", wrong.join("\n")))))
    };
    cases.into_iter().map(item).collect()
}

/// What is wrong with el2's last words.
fn judge(failure: Failure, end: &End) -> Vec<String> {
    let mut wrong = Vec::new();
    let lines: Vec<&str> = end.said.lines().filter(|line| line.starts_with(LINE)).collect();
    let expected = match failure {
        Failure::Overflow => format!("synchronous exception at EL2 (vector 4, sp {:#x}, stack overflow)", end.sp),
        Failure::NoCode => format!("synchronous exception at EL2 (vector 4, sp {:#x})", end.sp),
        Failure::SError => format!("SError at EL2 (vector 7, sp {:#x})", end.sp),
        Failure::NoCodeWhileSpeaking => String::new(),
    };
    match (failure, &lines[..]) {
        (Failure::NoCodeWhileSpeaking, []) => {}
        (Failure::Overflow | Failure::NoCode | Failure::SError, [line])
            if line[LINE.len()..].starts_with(&expected) => {}
        _ => wrong.push(format!("it says {lines:?}, and not once {expected:?}")),
    }
    if end.said.contains(&format!("{SECRET:x}")[..8]) {
        wrong.push("it tells what was in its registers".to_owned());
    }
    wrong
}

/// A machine in which CPUs call and guests run, until one of them fails and all have stopped.
fn fail(context: &Context<'_>, name: &str, failure: Failure) -> Result<End> {
    let (tools, parts) = context.boot.as_ref().context("nothing was built to boot")?;
    let socket = std::env::temp_dir().join(format!("freehold-{}-stop.gdb", std::process::id()));
    let mut machine = Machine::new(image(parts)?, &parts.initramfs);
    machine.append = "fh.job=soak fh.seconds=600".to_owned();
    machine.extra.extend(["-gdb".to_owned(), format!("unix:{},server=on,wait=off", socket.display())]);
    let mut running = Running::start(&tools.qemu, &machine, &log(context, name))?;
    ensure!(running.console.wait_for("soak: seed ", Instant::now() + LIMIT), "the host never came up");
    let mut gdb = Gdb::open(&socket)?;
    let _ = std::fs::remove_file(&socket);
    let vectors = BASE + symbol(&builds::el2_elf(context.env)?, "freehold_vectors")?;
    let stop = at_el2(&mut gdb, vectors + FROM_HOST)?;
    for register in 0..=30 {
        gdb.set(&stop.cpu, register, SECRET)?;
    }
    let top = gdb.register(&stop.cpu, "sp")?;
    let sp = if failure == Failure::Overflow { top - STACK + 64 } else { top };
    gdb.set(&stop.cpu, SP, sp)?;
    match failure {
        Failure::Overflow => {}
        Failure::NoCode | Failure::NoCodeWhileSpeaking => gdb.set(&stop.cpu, PC, top - STACK)?,
        Failure::SError => gdb.set(&stop.cpu, PC, vectors + SERROR)?,
    }
    if failure == Failure::NoCodeWhileSpeaking {
        gdb.watch_stores(UART, 4)?;
        let stop = speaks(&mut gdb)?;
        gdb.set(&stop.cpu, PC, top - STACK)?;
        gdb.forget_stores(UART, 4)?;
    }
    let wrong = halted(&mut gdb)?;
    let mut said = String::new();
    while let Read::Line(line) = running.console.line(Instant::now()) {
        writeln!(said, "{line}")?;
    }
    Ok(End { said, sp: if failure == Failure::Overflow { sp - FRAME } else { sp }, wrong })
}

fn symbol(elf: &Path, name: &str) -> Result<u64> {
    let file = std::fs::read(elf)?;
    let elf = object::File::parse(&*file)?;
    let found = elf.symbols().find(|symbol| symbol.name() == Ok(name));
    found.map(|symbol| symbol.address()).with_context(|| format!("the image has no {name}"))
}

/// Lets the machine go until a CPU comes to an address at EL2; a program's may be the same number.
fn at_el2(gdb: &mut Gdb, address: u64) -> Result<Stop> {
    loop {
        let stop = gdb.go_to(address, LIMIT)?;
        if stop.level == 2 {
            return Ok(stop);
        }
        gdb.step(&stop.cpu)?;
    }
}

/// Lets it go until el2 has written a character.
fn speaks(gdb: &mut Gdb) -> Result<Stop> {
    loop {
        gdb.go()?;
        let stop = gdb.stopped(LIMIT)?.context("el2 says nothing")?;
        if stop.level == 2 && stop.watched.is_some() {
            return Ok(stop);
        }
    }
}

/// Lets it go until every CPU stands still at EL2, and says what is wrong with what it stands on.
fn halted(gdb: &mut Gdb) -> Result<Vec<String>> {
    let deadline = Instant::now() + LIMIT;
    let cpus = gdb.cpus()?;
    loop {
        gdb.go()?;
        if gdb.stopped(Duration::from_millis(500))?.is_none() {
            gdb.interrupt()?;
        }
        let mut running = Vec::new();
        for cpu in &cpus {
            if !is_halted(gdb, cpu)? {
                running.push(format!(
                    "CPU {cpu} is at {:#x}, cpsr {:#x}",
                    gdb.register(cpu, "pc")?,
                    gdb.register(cpu, "cpsr")?
                ));
            }
        }
        if running.is_empty() {
            break;
        }
        ensure!(Instant::now() < deadline, "not stopped: {running:?}");
    }
    let mut wrong = Vec::new();
    for cpu in &cpus {
        let [hcr, vttbr, vtcr] =
            [gdb.register(cpu, "HCR_EL2")?, gdb.register(cpu, "VTTBR_EL2")?, gdb.register(cpu, "VTCR_EL2")?];
        let entries = 1 << (64 - (vtcr & 0x3f)).saturating_sub(30);
        let left = gdb.words(vttbr & 0xffff_ffff_fffe, 8 * entries)?.iter().filter(|word| **word != 0).count();
        let host = vttbr >> 48 == 0;
        if hcr & HCR_VM == 0 || (host && left != 0) {
            wrong.push(format!("CPU {cpu}: HCR_EL2 {hcr:#x}, {left} entries in the root of the host's tables"));
        }
    }
    Ok(wrong)
}

/// Whether a CPU is in a loop that waits for ever.
fn is_halted(gdb: &mut Gdb, cpu: &str) -> Result<bool> {
    let (pc, level) = (gdb.register(cpu, "pc")?, gdb.register(cpu, "cpsr")? >> 2 & 3);
    if level != 2 {
        return Ok(false);
    }
    // The wait, or the branch behind it that leads back to it.
    let words = gdb.words((pc & !7) - 8, 24)?;
    let code: Vec<u32> = words.iter().flat_map(|word| [*word as u32, (*word >> 32) as u32]).collect();
    let at = 2 + usize::from(pc & 4 != 0);
    let back = 0x17ff_ffff;
    Ok(code[at] == WFE && code[at + 1] == back || code[at] == back && code[at - 1] == WFE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(failure: Failure, said: &str) -> usize {
        judge(failure, &End { said: said.to_owned(), sp: 0x1000, wrong: Vec::new() }).len()
    }

    #[test]
    fn last_words_are_one_line_and_tell_nothing() {
        let fine = "freehold: panic: synchronous exception at EL2 (vector 4, sp 0x1000) (cpu 1, esr 0x8600000f)\n";
        assert_eq!(wrong(Failure::NoCode, fine), 0);
        assert_eq!(wrong(Failure::Overflow, fine), 1, "of another kind");
        assert_eq!(wrong(Failure::SError, fine), 1, "nor is it this one");
        assert_eq!(wrong(Failure::NoCode, &format!("{fine}{fine}")), 1, "twice");
        assert_eq!(wrong(Failure::NoCode, ""), 1, "nothing");
        assert_eq!(wrong(Failure::NoCodeWhileSpeaking, fine), 1, "it spoke on");
        assert_eq!(wrong(Failure::NoCodeWhileSpeaking, "f"), 0);
        assert_eq!(wrong(Failure::NoCode, &format!("{fine}x0 {SECRET:#x}\n")), 1);
    }
}
