// SPDX-License-Identifier: MIT OR Apache-2.0
//! `tests/mutants/survivors.toml`: the only faults that may survive, each with its reason.

use anyhow::{Context as _, Result};
use serde::Deserialize;

use super::faults::Fault;
use crate::env::Env;

/// Every explanation.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Survivors {
    #[serde(default)]
    planted: Vec<Planted>,
    #[serde(default)]
    generated: Vec<Generated>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Planted {
    name: String,
    reason: String,
}

/// What survives of cargo-mutants' ideas.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Generated {
    /// Its description there, without line and column: `FILE: replace A with B in FUNCTION`.
    pub what: String,
    /// How many of this description survive: a function may have several that read the same.
    #[serde(default = "once")]
    pub count: usize,
    /// Why no test can, or needs to, tell it from the original.
    pub reason: String,
}

const fn once() -> usize {
    1
}

/// Reads the list.
///
/// # Errors
/// If it is missing or can not be read.
pub(super) fn read(env: &Env) -> Result<Survivors> {
    let path = env.root.join("tests/mutants/survivors.toml");
    let text = std::fs::read_to_string(&path).with_context(|| env.shown(&path))?;
    toml::from_str(&text).with_context(|| env.shown(&path))
}

impl Survivors {
    /// Why the planted fault of this name may survive.
    pub(super) fn planted(&self, name: &str) -> Option<&str> {
        self.planted.iter().find(|p| p.name == name).map(|p| p.reason.as_str())
    }

    /// The explanation of what cargo-mutants describes so.
    pub(super) fn generated(&self, what: &str) -> Option<&Generated> {
        self.generated.iter().find(|g| g.what == what)
    }

    /// All explanations of what cargo-mutants made of these files.
    pub(super) fn generated_in<'s>(&'s self, file: &'s str) -> impl Iterator<Item = &'s Generated> {
        self.generated.iter().filter(move |g| g.what.split(": ").next() == Some(file))
    }

    /// Explanations of faults that do not exist, and explanations that say nothing.
    pub(super) fn strangers(&self, all: &[Fault]) -> Vec<String> {
        let unknown = self.planted.iter().filter(|p| !all.iter().any(|f| f.name == p.name));
        let unknown = unknown.map(|p| format!("survivors: no fault is called {}", p.name));
        let mut reasons = self.planted.iter().map(|p| (&p.name, &p.reason)).collect::<Vec<_>>();
        reasons.extend(self.generated.iter().map(|g| (&g.what, &g.reason)));
        let empty = reasons.into_iter().filter(|(_, reason)| reason.trim().is_empty());
        unknown.chain(empty.map(|(name, _)| format!("survivors: no reason for {name}"))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explanations_are_found_by_name_and_strangers_are_named() {
        let text = "[[planted]]\nname = 'a'\nreason = 'equal'\n[[planted]]\nname = 'b'\nreason = ' '\n\
                    [[generated]]\nwhat = 'x.rs: replace + with -'\nreason = 'why'\n";
        let list: Survivors = toml::from_str(text).unwrap();
        assert_eq!(list.planted("a"), Some("equal"));
        assert_eq!(list.planted("c"), None);
        assert_eq!(list.generated("x.rs: replace + with -").map(|g| g.count), Some(1));
        assert_eq!((list.generated_in("x.rs").count(), list.generated_in("y.rs").count()), (1, 0));
        let all = [super::super::faults::tests::fault("a")];
        assert_eq!(list.strangers(&all).len(), 2, "b is unknown, and has no reason");
        assert!(toml::from_str::<Survivors>("[[planted]]\nname = 'a'\n").is_err(), "a reason is a must");
    }
}
