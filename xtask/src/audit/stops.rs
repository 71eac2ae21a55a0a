// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who may stop the machine, and why that is no input's doing.
//!
//! On the image: which functions lead to the stop. For the port that ends there, also in the source, place by place: what
//! the compiler puts in line has no name in the image.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};

use super::code::{Code, plain};
use super::graph;
use crate::env::Env;

/// Names of the functions that stop the machine; the audit ends there.
pub(super) const STOPS: [&str; 2] = ["freehold_arch::fatal::panic", "freehold_arch::fatal::stop"];

/// `mem`'s port for what it can not repair.
const PORT: &str = "freehold_mem..ports..Fatal$GT$::fatal";
/// Only `mem` may call it, or what the compiler has put it into: those whose source has no call of it, which is looked at.
const CALLERS: [&str; 2] = ["freehold_mem::", "freehold_el2::calls::"];
const NO_CALLER: &str = "el2/hyp/src/calls";

/// Who may stop the machine on the way from a trap, and why that is no input's doing.
const MAY_STOP: [(&str, &str); 3] = [
    (PORT, "ledger and tables contradict each other: el2 itself is wrong (I1, I6); CALLS says where"),
    ("freehold_arch::fatal::defect", "a CPU or vCPU without the record that the boot or its creation made"),
    ("secondary_main", "firmware started a CPU that is unlike the boot CPU, or that nobody asked for"),
];

/// File of `el2/mem/src`, function, how often it calls the port, and why nothing that host or guest say leads there.
const CALLS: [(&str, &str, usize, &str); 20] = [
    ("guest_space.rs", "make_room", 1, "the verb's check found the guest frame vacant, under the same lock"),
    ("guest_space.rs", "unmap", 1, "the granules were gathered from these tables, under the same lock"),
    ("guest_space.rs", "walk", 1, "nobody but el2 writes a guest's tables, and it writes no other form"),
    ("guest_space.rs", "take", 1, "the verb's check counted the tables that are missing, and found them in the pool"),
    ("guest_space.rs", "table_at", 1, "as `walk`; blocks are never mapped for guests"),
    ("host.rs", "view", 1, "RAM that the ledger gives to the host is mapped for it: I1 itself"),
    ("host_space.rs", "walk", 3, "nobody but el2 writes the host's tables, and no broken form outlives the lock"),
    ("host_space.rs", "broken_up", 1, "as `unmap_one`: its block is one, or has a table"),
    (
        "host_space.rs",
        "unmap_one",
        1,
        "the verb's check read from the ledger that the frame is the host's, so it is mapped",
    ),
    ("host_space.rs", "map_turn", 2, "what comes back was taken: its block has a table, its entry is empty or its own"),
    ("host_space.rs", "level2", 1, "the boot made a level-2 table for all RAM, and only RAM is named"),
    ("host_space.rs", "table_of", 1, "the boot kept a level-3 table for each block of RAM"),
    (
        "host_space.rs",
        "count_gone",
        1,
        "as many frames come back as were taken, and no more than a block has are taken",
    ),
    ("ledger.rs", "give_all", 1, "as `write`, and frames of RAM that follow each other have records that do"),
    ("ledger.rs", "lend", 1, "the verb's check found the frame the host's, or lent less often than the record can say"),
    ("ledger.rs", "unlend", 1, "the borrower's tables had it, so it is lent"),
    ("ledger.rs", "write", 1, "frames that are named were found in the ledger before"),
    ("pool.rs", "take", 1, "the list of free frames leads through frames of this VM's pool, which only el2 writes"),
    ("verbs/host_unshare_guest.rs", "check", 1, "the borrower's tables had it, so it is lent"),
    ("verbs/mod.rs", "owned", 1, "the guest's own tables map it there, so it is the guest's there"),
];

/// What the image has that stops or panics where it must not.
pub(super) fn judge(code: &Code, entries: &[u64]) -> Result<Vec<String>> {
    for stop in STOPS {
        ensure!(code.functions().iter().any(|f| plain(&f.name) == stop), "the image has no {stop}");
    }
    let returning = graph::returning(code);
    let reach = graph::reach(code, entries, &returning, &|name| STOPS.contains(&plain(name).as_str()));
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
        let is_strangers = name.ends_with(PORT) && !CALLERS.iter().any(|caller| from.starts_with(caller));
        if (stops && !may_stop) || (!stops && is_panic(&target.name)) || is_strangers {
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

/// Calls of the port in the source that are not in the list, and the reverse.
pub(super) fn reasons(env: &Env) -> Result<Vec<String>> {
    let root = env.root.join("el2/mem/src");
    let mut seen = BTreeMap::new();
    for folder in ["", "verbs"] {
        for entry in std::fs::read_dir(root.join(folder)).with_context(|| env.shown(&root))? {
            let path = entry?.path();
            if path.extension().is_some_and(|kind| kind == "rs") {
                let file = path.strip_prefix(&root)?.to_string_lossy().into_owned();
                for function in calls(&std::fs::read_to_string(&path)?) {
                    *seen.entry((file.clone(), function)).or_insert(0) += 1;
                }
            }
        }
    }
    let mut found = compare(&seen);
    for entry in std::fs::read_dir(env.root.join(NO_CALLER)).context(NO_CALLER)? {
        let path = entry?.path();
        if path.is_file() && !calls(&std::fs::read_to_string(&path)?).is_empty() {
            found.push(format!("{}: only mem may stop the machine by its port", env.shown(&path)));
        }
    }
    Ok(found)
}

/// The functions in which the port is called, once for each call, tests left out.
fn calls(source: &str) -> Vec<String> {
    let shipped = source.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let mut function = "";
    let mut found = Vec::new();
    for line in shipped.lines().filter(|line| !line.trim_start().starts_with("//")) {
        if let Some((before, after)) = line.split_once("fn ")
            && !before.ends_with(|c: char| c.is_ascii_alphanumeric())
            && before.chars().all(|c| c.is_ascii_alphabetic() || c.is_whitespace() || "()".contains(c))
        {
            function = after.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or_default();
        }
        found.extend(line.match_indices("fatal(").filter(|_| function != "fatal").map(|_| function.to_owned()));
    }
    found
}

fn compare(seen: &BTreeMap<(String, String), usize>) -> Vec<String> {
    let listed: BTreeMap<_, _> =
        CALLS.iter().map(|(file, function, count, _)| ((file.to_string(), function.to_string()), *count)).collect();
    let of = |all: &BTreeMap<_, usize>, key| all.get(key).copied().unwrap_or(0);
    let keys = seen.keys().chain(listed.keys().filter(|key| !seen.contains_key(*key)));
    let differ = keys.filter(|key| of(seen, key) != of(&listed, key));
    differ
        .map(|key| {
            let (have, may) = (of(seen, key), of(&listed, key));
            format!("{}: `{}` stops the machine in {have} places, {may} of which have a reason", key.0, key.1)
        })
        .collect()
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

    #[test]
    fn a_call_is_its_functions() {
        let source = "impl A {\n    pub(crate) fn one(&self) {\n        let pfn = 1;\n        m.fatal(X);\n        // m.fatal(X)\n    }\n}\n\
            const fn two(f: impl Fn(u8)) { m.fatal(Y) }\n#[cfg(test)]\nimpl A {}\n#[cfg(test)]\nmod tests {\n    m.fatal(Z)\n}\n";
        assert_eq!(calls(source), ["one", "two"]);
    }

    #[test]
    fn a_stop_that_comes_or_goes_is_named() {
        let mut seen: BTreeMap<_, _> =
            CALLS.iter().map(|(file, name, count, _)| ((file.to_string(), name.to_string()), *count)).collect();
        assert_eq!(compare(&seen), [""; 0]);
        *seen.get_mut(&("host.rs".to_owned(), "view".to_owned())).unwrap() += 1;
        seen.insert(("host.rs".to_owned(), "gather_list".to_owned()), 1);
        seen.remove(&("ledger.rs".to_owned(), "lend".to_owned()));
        assert_eq!(compare(&seen).len(), 3);
    }

    #[test]
    fn every_stop_has_a_reason() {
        assert!(CALLS.iter().all(|(_, _, count, why)| *count > 0 && why.len() > 20));
    }
}
