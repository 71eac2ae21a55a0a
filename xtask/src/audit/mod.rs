// SPDX-License-Identifier: MIT OR Apache-2.0
//! The audit of the linked release image: what no source check can promise, on the instructions that run.
//!
//! `no-panic`: nothing that the host or a guest can do reaches a panic of Rust. `barriers` and `maintenance`: what must
//! stand behind exception returns, at entries, and around TLB and cache maintenance. `controls`: the same audit finds
//! each fault that is patched into a copy of the image. `size`: what is loaded stays small.

mod code;
mod graph;
mod order;

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};

use crate::builds;
use crate::image::{Extent, flatten};
use crate::test::{Context, Item, Work};
use code::{Code, Does, plain};

/// Names of the functions that stop the machine; the audit ends there.
const STOPS: [&str; 2] = ["freehold_arch::fatal::panic", "freehold_arch::fatal::stop"];

/// Who may stop the machine on the way from a trap, and why that is no input's doing.
const MAY_STOP: [(&str, &str); 3] = [
    ("freehold_mem..ports..Fatal$GT$::fatal", "ledger and tables contradict each other: el2 itself is wrong (I1, I6)"),
    ("freehold_arch::fatal::defect", "a CPU or vCPU without the record that the boot or its creation made"),
    ("secondary_main", "firmware started a CPU that is unlike the boot CPU, or that nobody asked for"),
];

/// Exception returns in an image, at least: to the host, to a guest, out of the `SError` window, first entry.
const RETURNS: usize = 4;
/// Maintenance instructions, at least: three TLBI broadcasts with their repeats, DC CVAC and CIVAC, IC IALLUIS.
const MAINTENANCE: usize = 8;
/// Index masks ([`freehold_mem::confine`]), at least: one per use in the source.
const MASKS: usize = 4;

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
        case("image/maintenance-is-waited-for", maintenance),
        case("image/controls", controls),
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
    Ok([no_panic(&code)?, barriers(&code)?, maintenance(&code)?].concat())
}

fn image(context: &Context<'_>) -> Result<Code> {
    Code::read(&std::fs::read(builds::el2_elf(context.env)?)?)
}

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
    for stop in STOPS {
        ensure!(code.functions().iter().any(|f| plain(&f.name) == stop), "the image has no {stop}");
    }
    let returning = graph::returning(code);
    let reach = graph::reach(code, &entries, &returning, &|name| STOPS.contains(&plain(name).as_str()));
    let served = code.functions().iter().filter(|f| reach.contains(f.start)).count();
    ensure!(reach.len() > 10_000 && served > 60, "only {} instructions of {served} functions reached", reach.len());
    let mut found = Vec::new();
    for at in &reach.indirect {
        let way = reach.way(code, *at);
        found.push(format!("{}: a call through a register, which could go anywhere ({way})", code.shown(*at)));
    }
    for (at, to) in &reach.ends {
        let Some(target) = code.function(*to) else {
            found.push(format!("{}: leaves the code", code.shown(*at)));
            continue;
        };
        let name = plain(&target.name);
        let from = code.function(*at).map_or_else(String::new, |f| plain(&f.name));
        let may_stop = MAY_STOP.iter().any(|(who, _)| from.ends_with(who));
        let stops = STOPS.contains(&name.as_str());
        if (stops && !may_stop) || (!stops && is_panic(&target.name)) {
            found.push(format!("{} reaches {name} ({})", code.shown(*at), reach.way(code, *at)));
        }
    }
    Ok(found)
}

/// Whether a function is of the machinery of panics.
fn is_panic(symbol: &str) -> bool {
    let name = symbol.to_lowercase();
    ["panic", "unwind", "unwrap_failed", "expect_failed", "fatal_exception"].iter().any(|word| name.contains(word))
}

fn barriers(code: &Code) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let returns = order::exception_returns(code, &mut found);
    ensure!(returns >= RETURNS, "only {returns} exception returns");
    order::forgets_branches(code, &exceptions(code)?, code.label("freehold_forget_branches")?, &mut found);
    let masks = code.all().filter(|(_, does)| *does == Does::SignMask).count();
    if masks < MASKS {
        found.push(format!("only {masks} masks of indices that a lower level chose"));
    }
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
    let every = |wanted: fn(&Does) -> bool| of(wanted).map(|at| (at, NOP)).collect::<Vec<_>>();
    let tlbi = of(|does| *does == Does::Tlbi { broadcast: true }).collect::<BTreeSet<_>>();
    let behind = |at: u64| (1..40).map(move |n| at + 4 * n).filter(|at| matches!(code.does(*at), Some(Does::Dsb(_))));
    let before = |at: u64| (1..8).map(move |n| at - 4 * n).filter(|at| matches!(code.does(*at), Some(Does::Dsb(_))));
    let tlbi = *tlbi.first().context("no broadcast")?;
    let clean = first(Does::CleanData).context("no clean")?;
    let again = first(Does::TlbiAgain).context("no repeated wait")?;
    let faults: [Fault<'_>; 11] = [
        ("a panic at the host's entry", vec![(entry, branch)], no_panic),
        ("a call through a register", vec![(entry, CALL_REGISTER)], no_panic),
        ("an ERET without a DSB behind it", vec![(eret + 4, NOP)], barriers),
        ("an ERET without an ISB behind it", vec![(eret + 8, NOP)], barriers),
        ("a return in front of the branch history", vec![(vectors, RETURN)], barriers),
        ("no CLRBHB", (0..16).map(|n| (forget + 4 * n, NOP)).collect(), barriers),
        ("no masks", every(|does| *does == Does::SignMask), barriers),
        ("a TLBI that nobody waits for", behind(tlbi).map(|at| (at, NOP)).collect(), maintenance),
        ("a wait that is not repeated", vec![(again, NOP)], maintenance),
        ("a TLBI before the stores", before(tlbi).map(|at| (at, NOP)).collect(), maintenance),
        ("a clean that nobody waits for", behind(clean).map(|at| (at, NOP)).collect(), maintenance),
    ];
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_are_known_by_name() {
        for name in ["_RNvNtCs_4core9panicking9panic_fmt", "_RNvCs_7___rustc17rust_begin_unwind", "x13unwrap_failed"] {
            assert!(is_panic(name), "{name}");
        }
        assert!(!is_panic("_ZN12freehold_mem5guest5Guest11declare_ram17h0E"));
    }
}
