// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where EL2's instructions go: executions of addresses, by the function that each lies in.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context as _, Result, ensure};
use object::{Object as _, ObjectSymbol as _, SymbolKind};

/// Functions that take less than this share of all are one line together.
const LEAST: u64 = 200;

/// What zeroes frames and cleans caches, by parts of the names.
const MAINTENANCE: [&str; 5] = ["5scrub", "settle_for_guest", "memset", "zero_to_poc", "clean_invalidate_to_poc"];

/// Instructions by function.
fn costs(elf: &[u8], profile: &BTreeMap<u64, u64>) -> Result<BTreeMap<String, u64>> {
    let file = object::File::parse(elf)?;
    let mut functions: Vec<(u64, &str)> = file
        .symbols()
        .filter(|s| matches!(s.kind(), SymbolKind::Text | SymbolKind::Label | SymbolKind::Unknown) && !s.is_undefined())
        .filter_map(|s| Some((s.address(), s.name().ok()?)))
        .filter(|(_, name)| !name.is_empty() && !name.starts_with(['$', '.']))
        .collect();
    functions.sort_unstable();
    let base = loaded_at(&functions, profile).context("what was executed is not this program")?;
    let mut costs = BTreeMap::new();
    for (address, times) in profile {
        let at = functions.partition_point(|(start, _)| *start <= address - base);
        let name = at.checked_sub(1).and_then(|at| functions.get(at)).map_or("?", |(_, name)| name);
        *costs.entry(name.to_owned()).or_insert(0) += times;
    }
    Ok(costs)
}

/// Instructions of a round without zeroing of frames and maintenance of caches.
///
/// # Errors
/// As [`shown`].
pub(super) fn lean(elf: &[u8], profile: &BTreeMap<u64, u64>, rounds: u64) -> Result<u64> {
    let costs = costs(elf, profile)?;
    let ours = |name: &str| MAINTENANCE.iter().any(|part| name.contains(part));
    ensure!(costs.keys().any(|name| ours(name)), "no frame is zeroed where frames change hands");
    Ok(costs.iter().filter(|(name, _)| !ours(name)).map(|(_, times)| times).sum::<u64>() / rounds.max(1))
}

/// The functions, the dearest first, per round.
///
/// # Errors
/// If the program has no symbols.
pub(super) fn shown(elf: &[u8], profile: &BTreeMap<u64, u64>, rounds: u64) -> Result<String> {
    let costs = costs(elf, profile)?;
    let all: u64 = costs.values().sum();
    let mut costs: Vec<(u64, String)> = costs.into_iter().map(|(name, times)| (times, name)).collect();
    costs.sort_unstable_by(|a, b| b.cmp(a));
    let mut text = format!("{} instructions of EL2 in a round\n", all / rounds);
    let mut rest = 0;
    for (times, name) in costs {
        if times * LEAST < all {
            rest += times;
            continue;
        }
        let _ = writeln!(text, "{:8}  {name}", times / rounds);
    }
    let _ = writeln!(text, "{:8}  (others)", rest / rounds);
    Ok(text)
}

/// The program is position independent and starts on a boundary of 2 MiB.
fn loaded_at(functions: &[(u64, &str)], profile: &BTreeMap<u64, u64>) -> Option<u64> {
    let (first, last) = (profile.keys().next()?, profile.keys().next_back()?);
    let base = first & !((2 << 20) - 1);
    let end = functions.last()?.0 + (1 << 20);
    (last - base < end).then_some(base)
}
