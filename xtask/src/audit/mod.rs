// SPDX-License-Identifier: MIT OR Apache-2.0
//! The audit of the linked release image: what no source check can promise, on the instructions that run.
//!
//! `no-panic`: nothing that the host or a guest can do reaches a panic of Rust. `barriers` and `maintenance`: what must
//! stand behind exception returns, at entries, and around TLB and cache maintenance. `ports`: what `mem` relies on does
//! what it is called for. `controls`: the same audit finds each fault that is patched into a copy of the image. `size`:
//! what is loaded stays small. `masks`: indices of a lower level's are confined where they are taken. `random`: guests'
//! random numbers are the CPU's. `observers`: a switch stops what could watch a guest, and forgets where it was. `stack`:
//! the deepest chain of calls from each entry fits its stack. `stops`: each place of the source that may stop the machine
//! has its reason.

mod code;
mod graph;
mod masks;
mod observers;
mod order;
mod ports;
mod random;
mod stack;
mod stops;
mod value;

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};

use crate::builds;
use crate::image::{Extent, flatten};
use crate::test::{Context, Item, Work};
use code::{Code, Does};
use ports::Port;

/// Exception returns in an image, at least: to the host, to a guest, out of the `SError` window, first entry.
const RETURNS: usize = 4;
/// Maintenance instructions, at least: four TLBI broadcasts with their repeats, DC CVAC and CIVAC, IC IALLUIS.
const MAINTENANCE: usize = 11;

/// Bytes of code and data that a boot loader copies, at most.
const SIZE: usize = 256 << 10;

pub(crate) fn works() -> Vec<Work> {
    let case = |name: &'static str, judge: fn(&Code) -> Result<Vec<String>>| {
        Work::new(name, move |context| {
            let found = judge(&image(context)?)?;
            Ok(vec![Item::new(name, (!found.is_empty()).then(|| found.join("\n")))])
        })
    };
    vec![
        case("image/no-panic-from-a-lower-level", no_panic),
        case("image/speculation-barriers", barriers),
        case("image/indices-are-confined", masks::judge),
        case("image/maintenance-is-waited-for", maintenance),
        case("image/ports-do-what-they-say", ports::judge),
        case("image/observers-stand-still", observers::judge),
        case("image/random-numbers-are-the-cpus", random::judge),
        case("image/stacks-are-deep-enough", stack::judge),
        case("image/controls", controls),
        Work::new("image/stops-have-reasons", |context| {
            let found = stops::reasons(context.env)?;
            Ok(vec![Item::new("image/stops-have-reasons", (!found.is_empty()).then(|| found.join("\n")))])
        }),
        Work::new("image/size", |context| {
            let file = std::fs::read(builds::el2_elf(context.env)?)?;
            let bytes = |extent| Ok::<_, anyhow::Error>(flatten(&file, 1, extent)?.len());
            let (loaded, all) = (bytes(Extent::File)?, bytes(Extent::Memory)?);
            ensure!(all > SIZE, "the control, all that EL2 needs at run time, has {all} bytes only");
            let complaint =
                format!("{loaded} bytes are loaded, of at most {SIZE}: is a large static not zero at first?");
            Ok(vec![Item::new("image/size", (loaded > SIZE).then_some(complaint))])
        }),
    ]
}

/// All that is wrong with a linked image.
///
/// # Errors
/// If it is none, or lacks what every image has.
pub(crate) fn judge(elf: &[u8]) -> Result<Vec<String>> {
    let code = Code::read(elf)?;
    let found = [
        no_panic(&code)?,
        barriers(&code)?,
        masks::judge(&code)?,
        maintenance(&code)?,
        ports::judge(&code)?,
        observers::judge(&code)?,
        random::judge(&code)?,
        stack::judge(&code)?,
    ];
    Ok(found.concat())
}

fn image(context: &Context<'_>) -> Result<Code> {
    Code::read(&std::fs::read(builds::el2_elf(context.env)?)?)
}

/// How many of `exceptions` are the host's, which come first.
const HOSTS: usize = 2;

/// Where a CPU comes from a lower level: the host's and the guests' exceptions. IRQ, FIQ and SError of the host are not
/// among them: HCR_EL2.IMO, FMO and AMO are clear while it runs.
fn exceptions(code: &Code) -> Result<Vec<u64>> {
    let (host, guest) = (code.label("freehold_vectors")?, code.label("freehold_guest_vectors")?);
    let mut all = vec![host + 0x400, host + 0x600];
    all.extend((0..8).map(|n| guest + 0x400 + 0x80 * n));
    Ok(all)
}

fn no_panic(code: &Code) -> Result<Vec<String>> {
    let mut entries = exceptions(code)?;
    // Firmware comes here when the host starts or resumes a CPU.
    entries.push(code.label("freehold_secondary")?);
    stops::judge(code, &entries)
}

fn barriers(code: &Code) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let returns = order::exception_returns(code, &mut found);
    ensure!(returns >= RETURNS, "only {returns} exception returns");
    order::forgets_branches(code, &exceptions(code)?, code.label("freehold_forget_branches")?, &mut found);
    Ok(found)
}

fn maintenance(code: &Code) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let count = order::maintenance(code, &mut found);
    ensure!(count >= MAINTENANCE, "only {count} maintenance instructions");
    Ok(found)
}

const NOP: u32 = 0xd503_201f;
const RETURN: u32 = 0xd65f_03c0;
const CALL_REGISTER: u32 = 0xd63f_0100;

/// A fault that is patched into the image: its name, where and what, and which part of the audit must find it.
type Fault<'a> = (&'a str, Vec<(u64, u32)>, fn(&Code) -> Result<Vec<String>>);

/// Each fault in a copy of the image is found.
fn controls(code: &Code) -> Result<Vec<String>> {
    let first = |wanted: Does| code.all().find(|(_, does)| *does == wanted).map(|(at, _)| at);
    let entry = code.label("freehold_host_sync")?;
    let panic = code.functions().iter().find(|f| f.name.contains("9panicking9panic_fmt")).context("no panic_fmt")?;
    // CBZ x0.
    let branch = 0xb400_0000 | ((panic.start.wrapping_sub(entry) >> 2) as u32 & 0x7_ffff) << 5;
    let eret = first(Does::ExceptionReturn).context("no exception return")?;
    let vectors = code.label("freehold_guest_vectors")? + 0x400;
    let forget = code.label("freehold_forget_branches")?;
    let of = |wanted: fn(&Does) -> bool| code.all().filter(move |(_, does)| wanted(does)).map(|(at, _)| at);
    let tlbi = of(|does| *does == Does::Tlbi { broadcast: true }).collect::<BTreeSet<_>>();
    let behind = |at: u64| (1..40).map(move |n| at + 4 * n).filter(|at| matches!(code.does(*at), Some(Does::Dsb(_))));
    let before = |at: u64| (1..8).map(move |n| at - 4 * n).filter(|at| matches!(code.does(*at), Some(Does::Dsb(_))));
    let tlbi = *tlbi.first().context("no broadcast")?;
    let clean = first(Does::CleanData).context("no clean")?;
    let again = first(Does::TlbiAgain).context("no repeated wait")?;
    let mut faults: Vec<Fault<'_>> = vec![
        ("a panic at the host's entry", vec![(entry, branch)], no_panic),
        ("a call through a register", vec![(entry, CALL_REGISTER)], no_panic),
        ("an ERET without a DSB behind it", vec![(eret + 4, NOP)], barriers),
        ("an ERET without an ISB behind it", vec![(eret + 8, NOP)], barriers),
        ("a return in front of the branch history", vec![(vectors, RETURN)], barriers),
        ("no CLRBHB", (0..16).map(|n| (forget + 4 * n, NOP)).collect(), barriers),
        ("a TLBI that nobody waits for", behind(tlbi).map(|at| (at, NOP)).collect(), maintenance),
        ("a wait that is not repeated", vec![(again, NOP)], maintenance),
        ("a TLBI before the stores", before(tlbi).map(|at| (at, NOP)).collect(), maintenance),
        ("a clean that nobody waits for", behind(clean).map(|at| (at, NOP)).collect(), maintenance),
    ];
    faults.extend(masks::all(code).into_iter().map(|at| ("one mask less", vec![(at, NOP)], masks::judge as _)));
    faults.extend(of_ports(code)?);
    faults.extend(of_random(code, eret)?);
    faults.extend(of_stacks(code)?);
    let mut missed = Vec::new();
    for (what, patches, judge) in faults {
        let mut copy = code.clone();
        patches.iter().for_each(|(at, word)| copy.patch(*at, *word));
        if patches.is_empty() || judge(&copy)?.is_empty() {
            missed.push(format!("not found: {what}"));
        }
    }
    Ok(missed)
}

/// Faults in what is taken from the stacks, in the function that routes the host's calls.
fn of_stacks(code: &Code) -> Result<Vec<Fault<'_>>> {
    let call = |at: u64, to: u64| 0x9400_0000 | ((to.wrapping_sub(at) >> 2) as u32 & 0x3ff_ffff);
    let run = code.functions().iter().find(|f| code::plain(&f.name) == "freehold_el2::calls::run");
    let (start, end) = run.map(|f| (f.start, f.end)).context("no calls::run")?;
    let takes = (start..end).step_by(4).find(|at| stack::takes(code, *at)).context("it takes nothing")?;
    let within = takes + 4;
    let judge = stack::judge;
    Ok(vec![
        ("a frame of 48 KiB", vec![(takes, 0xd140_33ff)], judge),
        ("a frame of a size that is computed", vec![(within, 0xcb21_63ff)], judge),
        ("a frame that is not given back", vec![(within, 0xd100_43ff)], judge),
        ("a function that calls itself", vec![(within, call(within, start))], judge),
        ("a call through a register, of unknown depth", vec![(within, CALL_REGISTER)], judge),
    ])
}

/// Faults in the random numbers; `elsewhere` is no place for them.
fn of_random(code: &Code, elsewhere: u64) -> Result<Vec<Fault<'_>>> {
    let reads = random::places(code, random::READ_SEEDED);
    let first = *reads.first().context("no random number")?;
    let judge = random::judge;
    Ok(vec![
        ("no random number of the CPU's", reads.iter().map(|at| (*at, NOP)).collect(), judge),
        ("a random number that is not seeded anew", vec![(first, random::READ)], judge),
        ("a random number that is taken where there is none", vec![(first + 4, NOP)], judge),
        ("a random number whose lack leads nowhere", vec![(first + 8, NOP)], judge),
        ("a random number elsewhere", vec![(elsewhere, random::READ_SEEDED)], judge),
    ])
}

/// Faults in the ports. A branch on a bit becomes its opposite by bit 24.
fn of_ports(code: &Code) -> Result<Vec<Fault<'_>>> {
    let places = |port: &str, word: u32| Ok::<_, anyhow::Error>(Port::named(code, port)?.places(word));
    let everywhere = |word: u32| -> Vec<(u64, u32)> {
        let same = |at: &u64| code.word(*at).is_some_and(|found| found & !31 == word);
        code.all().map(|(at, _)| at).filter(same).map(|at| (at, NOP)).collect()
    };
    // Its last jump, out of it, or its last wait.
    let ends_early = |port: &str| -> Result<Vec<(u64, u32)>> {
        let function = Port::named(code, port)?.function;
        let all = (function.start..function.end).step_by(4);
        let ends = all.filter(|at| matches!(code.does(*at), Some(Does::Jump(_) | Does::Dsb(_))));
        Ok(vec![(ends.last().context("no end")?, RETURN)])
    };
    let empty = |port: &str| Ok::<_, anyhow::Error>(vec![(Port::named(code, port)?.function.start, RETURN)]);
    let opposite = |port: &str, at: Option<u64>| -> Result<Vec<(u64, u32)>> {
        let test = at.and_then(|at| Port::named(code, port).ok()?.test(at)).context("no test")?.at;
        Ok(vec![(test, code.word(test).context("no word")? ^ 1 << 24)])
    };
    let word_of = |does: Does| code.all().find(|(_, found)| *found == does).and_then(|(at, _)| code.word(at));
    let fetches = word_of(Does::DropFetches).context("no IC IALLUIS")?;
    let load = *places(ports::VM, ports::SET_VTTBR)?.first().context("no VTTBR_EL2")?;
    let line = *places(ports::LINER, ports::CLEAN_INVALIDATE)?.first().context("no line is cleaned")?;
    let begin = Port::named(code, ports::LINER)?.function.start;
    let claims_early = vec![(begin, ports::MOV_ONE), (begin + 4, RETURN)];
    // Of each loop over lines: the other field of CTR_EL0, and words of twice the size.
    let wrong_lines = |port: &str| -> Result<[(u64, u32); 2]> {
        let (field, four) = Port::named(code, port)?.line().context("no size of a line")?;
        let registers = code.word(field).context("no word")? & 0x3ff;
        Ok([(field, ports::INSTRUCTION_LINE | registers), (four, code.word(four).context("no word")? + (4 << 5))])
    };
    let ([liner_field, liner_words], [settler_field, settler_words]) =
        (wrong_lines(ports::LINER)?, wrong_lines(ports::SETTLER)?);
    let (judge, observers) = (ports::judge, observers::judge);
    Ok(vec![
        ("observers that go on", empty(observers::STOP)?, observers),
        ("counters that go on", everywhere(observers::STOP_COUNTERS), observers),
        ("breakpoints that go on", everywhere(observers::SET_MDSCR), observers),
        ("an address that stays", everywhere(observers::SET_FAR), observers),
        ("an empty publish_tables", empty(ports::PUBLISH)?, judge),
        ("an empty scrub", empty(ports::SCRUB)?, judge),
        ("a scrub by bytes without its clean", ends_early(ports::SCRUB)?, judge),
        ("a scrub that nobody waits for", ends_early(ports::LINER)?, judge),
        ("a scrub that says too early that it is done", claims_early, judge),
        ("zeroing that zeroes nothing", everywhere(ports::ZERO_BLOCK), judge),
        ("a line that is zeroed and stays in the cache", vec![(line, NOP)], judge),
        ("a scrub by lines of the instruction cache", vec![liner_field], judge),
        ("a scrub of every other line", vec![liner_words], judge),
        ("a settling clean by lines of the instruction cache", vec![settler_field], judge),
        ("a settling clean of every other line", vec![settler_words], judge),
        ("an empty settle_for_guest", empty(ports::SETTLE)?, judge),
        ("a settling clean that does nothing", everywhere(ports::CLEAN_INVALIDATE), judge),
        ("an empty settle_instructions", empty(ports::INSTRUCTIONS)?, judge),
        (
            "fetches that are dropped where they need not be",
            opposite(ports::INSTRUCTIONS, places(ports::INSTRUCTIONS, fetches)?.first().copied())?,
            judge,
        ),
        ("an empty invalidate_host", empty(ports::HOST)?, judge),
        ("an empty invalidate_vm", empty(ports::VM)?, judge),
        ("a VM's broadcast under the host's VMID", vec![(load, NOP)], judge),
        ("a VM's broadcast under VMID 0", vec![(load, ports::SET_VTTBR | 31)], judge),
        (
            "a sibling's translations that stay",
            opposite(ports::SWITCH, places(ports::SWITCH, ports::TLBI_STAGE1_HERE)?.first().copied())?,
            judge,
        ),
    ])
}
