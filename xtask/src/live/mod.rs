// SPDX-License-Identifier: MIT OR Apache-2.0
//! The live tables of a booted machine, read from outside by QEMU's debug stub and walked by a walker of our own.
//!
//! EL2's stage 1: code is read and execute, constants are read, the rest is read and write, and nothing is two of them;
//! the pages below stacks are mapped by nothing. The host's stage 2: an identity map without any of el2's memory. Every
//! CPU has the same tables in force. Then the tables are doctored, and the same checks find it.

mod gdb;
mod own;
mod stops;
mod walk;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use object::{Object as _, ObjectSymbol as _};

use crate::builds;
use crate::qemu::{Machine, Read, Running};
use crate::test::boot::{image, log};
use crate::test::{Context, Item, Work};
use gdb::Gdb;
use walk::{Frames, Leaf, Walk};

const LIMIT: Duration = Duration::from_secs(200);
const PAGE: u64 = 4096;

/// Stage 1 at EL2: AP[2] and XN. Stage 2: S2AP[1].
const READ_ONLY: u64 = 1 << 7;
const EXECUTE_NEVER: u64 = 1 << 54;
const STAGE2_WRITE: u64 = 1 << 7;
const SCTLR_M: u64 = 1;
const SCTLR_WXN: u64 = 1 << 19;
const HCR_VM: u64 = 1;

/// `el2.ld`: per CPU a guard, a stack, a guard and an emergency stack; behind them the boot's guard and stack.
const SLOT: u64 = 28 << 10;
const STACK: u64 = 16 << 10;

pub(crate) fn works() -> Vec<Work> {
    vec![
        Work::new("boot/live-tables", case),
        Work::new(stops::NAME, stops::case),
        Work::new(own::NAME, own::case).only_long(),
    ]
}

/// Where el2 is.
struct Layout {
    base: u64,
    symbols: Vec<(String, u64)>,
    carve_outs: Vec<(u64, u64)>,
}

impl Layout {
    fn at(&self, name: &str) -> Result<u64> {
        let found = self.symbols.iter().find(|(symbol, _)| symbol == name);
        found.map(|(_, offset)| self.base + offset).with_context(|| format!("the image has no {name}"))
    }
}

/// What the machine has in force, as it was read.
struct Live {
    layout: Layout,
    el2_root: u64,
    host_root: u64,
    host_roots: u64,
    frames: Frames,
}

fn case(context: &Context<'_>) -> Result<Vec<Item>> {
    let mut live = look(context)?;
    let item = |name: &str, found: &[String]| {
        let what = (!found.is_empty()).then(|| found.iter().take(8).cloned().collect::<Vec<_>>().join("\n"));
        Item::new(format!("boot/live-tables/{name}"), what)
    };
    Ok(vec![
        item("el2-is-x-or-w-or-neither", &judge_el2(&live)?),
        item("host-sees-nothing-of-el2", &judge_host(&live)?),
        item("controls", &controls(&mut live)?),
    ])
}

/// Boots to the host's userspace, with all CPUs on, and reads every table.
fn look(context: &Context<'_>) -> Result<Live> {
    let name = "boot/live-tables";
    let (tools, parts) = context.boot.as_ref().context("nothing was built to boot")?;
    let socket = std::env::temp_dir().join(format!("freehold-{}.gdb", std::process::id()));
    let mut machine = Machine::new(image(parts)?, &parts.initramfs);
    machine.append = "fh.job=boot".to_owned();
    machine.extra.extend(["-gdb".to_owned(), format!("unix:{},server=on,wait=off", socket.display())]);
    let mut running = Running::start(&tools.qemu, &machine, &log(context, name))?;
    let carve_outs = to_userspace(&mut running)?;
    let mut gdb = Gdb::open(&socket)?;
    // The machine has it open; the name is not needed any more.
    let _ = std::fs::remove_file(&socket);
    let cpus = gdb.cpus()?;
    ensure!(cpus.len() == machine.smp as usize, "{} CPUs", cpus.len());
    let mut all = |name: &str| -> Result<u64> {
        let values = cpus.iter().map(|cpu| gdb.register(cpu, name)).collect::<Result<Vec<u64>>>()?;
        ensure!(values.iter().all(|value| *value == values[0]), "{name} differs between CPUs: {values:x?}");
        Ok(values[0])
    };
    let (sctlr, hcr) = (all("SCTLR_EL2")?, all("HCR_EL2")?);
    ensure!(sctlr & SCTLR_M != 0 && sctlr & SCTLR_WXN != 0, "SCTLR_EL2 is {sctlr:#x}");
    ensure!(hcr & HCR_VM != 0, "HCR_EL2 is {hcr:#x}: no stage 2");
    let (ttbr, vttbr, vtcr) = (all("TTBR0_EL2")?, all("VTTBR_EL2")?, all("VTCR_EL2")?);
    ensure!(vttbr >> 48 == 0, "VTTBR_EL2 is {vttbr:#x}: not the host's VMID");
    let bits = 64 - (vtcr & 0x3f);
    ensure!(vtcr >> 6 & 3 == 1 && (31..=43).contains(&bits), "VTCR_EL2 is {vtcr:#x}: no start at level 1");
    let (el2_root, host_root) = ((ttbr & 0xffff_ffff_fffe) >> 12, (vttbr & 0xffff_ffff_fffe) >> 12);
    let host_roots = 1 << bits.saturating_sub(39);
    let mut frames = Frames::new();
    let mut keep = |frame: u64| -> Result<Vec<u64>> {
        let words = gdb.frame(frame)?;
        frames.insert(frame, words.clone());
        Ok(words)
    };
    walk::walk(el2_root, 1, 0, &mut keep)?;
    walk::walk(host_root, host_roots, 1, &mut keep)?;
    let file = std::fs::read(builds::el2_elf(context.env)?)?;
    let elf = object::File::parse(&*file)?;
    let symbols = elf.symbols().filter_map(|s| Some((s.name().ok()?.to_owned(), s.address()))).collect();
    let base = carve_outs.first().context("el2 named no carve-out")?.0;
    let layout = Layout { base, symbols, carve_outs };
    Ok(Live { layout, el2_root, host_root, host_roots, frames })
}

/// Follows the console until the host's first program speaks; the carve-outs that el2 named on the way.
fn to_userspace(running: &mut Running) -> Result<Vec<(u64, u64)>> {
    let deadline = Instant::now() + LIMIT;
    let mut carve_outs = Vec::new();
    loop {
        let Read::Line(line) = running.console.line(deadline) else { anyhow::bail!("the host never came up") };
        if let Some(range) =
            line.strip_prefix("freehold: carve-out ").and_then(|l| l.split_once(") 0x")?.1.split(' ').next())
        {
            let (from, to) = range.split_once("-0x").with_context(|| format!("no range: {range}"))?;
            carve_outs.push((u64::from_str_radix(from, 16)?, u64::from_str_radix(to, 16)? + 1));
        }
        if line.contains("@fh ") {
            return Ok(carve_outs);
        }
    }
}

impl Live {
    fn el2(&self) -> Result<Walk> {
        walk::walk(self.el2_root, 1, 0, &mut |frame| self.read(frame))
    }

    fn host(&self) -> Result<Walk> {
        walk::walk(self.host_root, self.host_roots, 1, &mut |frame| self.read(frame))
    }

    fn read(&self, frame: u64) -> Result<Vec<u64>> {
        self.frames.get(&frame).cloned().with_context(|| format!("table {frame:#x} was not there when it was read"))
    }
}

const fn is_executable(leaf: &Leaf) -> bool {
    leaf.word & EXECUTE_NEVER == 0
}

const fn is_writable(leaf: &Leaf) -> bool {
    leaf.word & READ_ONLY == 0
}

/// What is wrong with EL2's own map.
fn judge_el2(live: &Live) -> Result<Vec<String>> {
    let (walk, at) = (live.el2()?, |name| live.layout.at(name));
    let mut found = Vec::new();
    for leaf in &walk.leaves {
        if is_executable(leaf) && is_writable(leaf) {
            found.push(format!("{:#x} can be written and executed", leaf.from));
        }
        if leaf.from != leaf.to {
            found.push(format!("{:#x} is mapped to {:#x}", leaf.from, leaf.to));
        }
        let text = at("__image_start")?..at("__text_end")?;
        if is_executable(leaf) && !(text.contains(&leaf.from) && leaf.from + leaf.size <= text.end) {
            found.push(format!("{:#x} can be executed and is no code", leaf.from));
        }
    }
    let mut pages = |from: u64, to: u64, what: &str, holds: &dyn Fn(Option<&Leaf>) -> bool| {
        let wrong = (from..to).step_by(PAGE as usize).filter(|page| !holds(walk.at(*page)));
        found.extend(wrong.map(|page| format!("{page:#x} is not mapped as {what} must be: {:x?}", walk.at(page))));
        assert!(from < to, "no {what}");
    };
    let is = |execute, write| {
        move |leaf: Option<&Leaf>| leaf.is_some_and(|l| is_executable(l) == execute && is_writable(l) == write)
    };
    let unmapped = |leaf: Option<&Leaf>| leaf.is_none();
    let (stacks, stacks_end) = (at("__stacks_start")?, at("__stacks_end")?);
    pages(at("__image_start")?, at("__text_end")?, "code", &is(true, false));
    pages(at("__text_end")?, at("__rodata_end")?, "a constant", &is(false, false));
    pages(at("__rodata_end")?, stacks, "data", &is(false, true));
    for slot in (stacks..stacks_end).step_by(SLOT as usize) {
        let (stack, second) = (slot + PAGE, slot + PAGE + STACK);
        pages(slot, stack, "a guard", &unmapped);
        pages(stack, second, "a stack", &is(false, true));
        pages(second, second + PAGE, "a guard", &unmapped);
        pages(second + PAGE, slot + SLOT, "an emergency stack", &is(false, true));
    }
    pages(stacks_end, at("__boot_stack_start")?, "the boot's guard", &unmapped);
    Ok(found)
}

/// What is wrong with the host's view.
fn judge_host(live: &Live) -> Result<Vec<String>> {
    let (walk, el2) = (live.host()?, live.el2()?);
    let mut found = Vec::new();
    for leaf in walk.leaves.iter().filter(|leaf| leaf.from != leaf.to) {
        found.push(format!("{:#x} is mapped to {:#x}", leaf.from, leaf.to));
    }
    let overlaps = |from: u64, to: u64| walk.leaves.iter().find(|l| l.to < to && from < l.to + l.size);
    for (from, to) in &live.layout.carve_outs {
        found.extend(overlaps(*from, *to).map(|l| format!("{:#x} of el2's {from:#x} is mapped", l.from)));
    }
    // Image, tables of both maps: whatever the carve-outs are said to be.
    let (start, end) = (live.layout.at("__image_start")?, live.layout.at("__image_end")?);
    found.extend(overlaps(start, end).map(|l| format!("{:#x} of the image is mapped", l.from)));
    for table in walk.tables.iter().chain(&el2.tables) {
        found.extend(
            overlaps(table << 12, (table + 1) << 12).map(|l| format!("table {table:#x} is mapped by {:#x}", l.from)),
        );
    }
    let ram = walk.leaves.iter().filter(|l| l.word & STAGE2_WRITE != 0 && l.word & EXECUTE_NEVER == 0);
    let ram: u64 = ram.map(|l| l.size).sum();
    ensure!(ram > 1 << 30, "only {ram:#x} bytes of RAM are mapped: that is no host");
    Ok(found)
}

/// Tables that were changed, each found by the check that it is for.
fn controls(live: &mut Live) -> Result<Vec<String>> {
    let mut missed = Vec::new();
    let (el2, host) = (live.el2()?, live.host()?);
    let of = |name: &str| -> Result<Leaf> { el2.at(live.layout.at(name)?).copied().context("not mapped") };
    let (text, rodata, data) = (of("__image_start")?, of("__text_end")?, of("__rodata_end")?);
    let stack = live.layout.at("__stacks_start")? + PAGE;
    let stack = *el2.at(stack).context("no stack")?;
    // The block that would map an address, where a neighbour shows how.
    let block = |address: u64| -> Result<Leaf> {
        let mut blocks = host.leaves.iter().filter(|l| l.size == 2 << 20);
        let near = blocks.find(|l| l.from >> 30 == address >> 30).context("no block in the host's map nearby")?;
        let at = (near.at.0, (address >> 21 & 511) as usize);
        Ok(Leaf { at, word: near.word - near.to + (address & !0x1f_ffff), ..*near })
    };
    let (image, tables) = (block(live.layout.base)?, block(live.host_root << 12)?);
    let guard = Leaf { at: (stack.at.0, stack.at.1 - 1), word: stack.word - PAGE, ..stack };
    type Judge = fn(&Live) -> Result<Vec<String>>;
    let changes: [(&str, Leaf, u64, Judge); 7] = [
        ("code that can be written", text, text.word & !READ_ONLY, judge_el2),
        ("constants that can be executed", rodata, rodata.word & !EXECUTE_NEVER, judge_el2),
        ("data that can be executed", data, data.word & !EXECUTE_NEVER, judge_el2),
        ("a guard that is mapped", guard, guard.word, judge_el2),
        ("el2 elsewhere", data, data.word ^ 1 << 21, judge_el2),
        ("el2's image in the host's view", image, image.word, judge_host),
        ("tables in the host's view", tables, tables.word, judge_host),
    ];
    for (what, leaf, word, judge) in changes {
        let (table, index) = leaf.at;
        let place = |live: &mut Live, word: u64| -> Option<u64> {
            let words = live.frames.get_mut(&table)?;
            Some(std::mem::replace(words.get_mut(index)?, word))
        };
        let before = place(live, word).context("no such table")?;
        if before == word || judge(live)?.is_empty() {
            missed.push(format!("not found: {what}"));
        }
        place(live, before);
    }
    Ok(missed)
}
