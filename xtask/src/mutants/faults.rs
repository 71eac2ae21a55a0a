// SPDX-License-Identifier: MIT OR Apache-2.0
//! The faults of `tests/mutants`: one file per class of bug, one entry per fault.
//!
//! An entry names a file of the shipped code and the lines that are replaced. They must stand there exactly once, so
//! that a fault whose place was edited is noticed at once instead of being planted somewhere else.

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::env::Env;

/// The classes of bugs that trusted hypervisors had, each a file of the same name.
pub(super) const CLASSES: [&str; 14] = [
    "alignment",
    "overflow",
    "missing-check",
    "wrong-state",
    "missed-scrub",
    "missed-tlbi",
    "missed-barrier",
    "early-publish",
    "leaked-count",
    "lock-order",
    "aliased-arguments",
    "stale-generation",
    "unmeasured",
    "wrong-exit",
];

/// The class whose faults the compiler may refuse: there the types are the defence.
const TYPED: &str = "lock-order";
/// Faults in each class, and together, at least.
const LEAST_EACH: usize = 5;
const LEAST: usize = 60;
/// Where faults may be planted: the shipped code.
const SHIPPED: [&str; 6] =
    ["el2/mem/src/", "el2/virt/src/", "el2/hyp/src/", "el2/arch/src/", "host-driver/core/src/", "uapi/src/"];

/// One planted fault.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fault {
    /// What it is called: short, unique, with hyphens.
    pub name: String,
    /// Its class: the name of its file.
    #[serde(skip)]
    pub class: String,
    /// What goes wrong, in a sentence.
    pub says: String,
    /// The file, from the root of the tree.
    pub file: String,
    /// The lines as they are.
    pub old: String,
    /// The lines with the fault.
    pub new: String,
    /// The suites that are let at it, in this order, until one fails.
    pub killers: Vec<String>,
    /// The compiler refuses it, and is meant to.
    #[serde(default)]
    pub types: bool,
    /// It is one of the few that run in CI.
    #[serde(default)]
    pub subset: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    fault: Vec<Fault>,
}

/// All faults, class by class.
///
/// # Errors
/// If a list is missing or can not be read.
pub(super) fn read(env: &Env) -> Result<Vec<Fault>> {
    let mut all = Vec::new();
    for class in CLASSES {
        let path = env.root.join("tests/mutants").join(format!("{class}.toml"));
        let text = std::fs::read_to_string(&path).with_context(|| env.shown(&path))?;
        let list: List = toml::from_str(&text).with_context(|| env.shown(&path))?;
        all.extend(list.fault.into_iter().map(|fault| Fault { class: class.to_owned(), ..fault }));
    }
    Ok(all)
}

/// What is wrong with the lists as such.
pub(super) fn shape(all: &[Fault]) -> Vec<String> {
    let mut wrong = Vec::new();
    for class in CLASSES {
        let count = all.iter().filter(|f| f.class == class).count();
        if count < LEAST_EACH {
            wrong.push(format!("{class}: {count} faults, fewer than {LEAST_EACH}"));
        }
    }
    if all.len() < LEAST {
        wrong.push(format!("{} faults, fewer than {LEAST}", all.len()));
    }
    for (index, fault) in all.iter().enumerate() {
        let mut say = |what: &str| wrong.push(format!("{}: {}: {what}", fault.class, fault.name));
        if all.iter().take(index).any(|other| other.name == fault.name) {
            say("the name is taken");
        }
        if !SHIPPED.iter().any(|tree| fault.file.starts_with(tree)) {
            say("not in shipped code");
        }
        if fault.types && fault.class != TYPED {
            say("only faults of the lock order may be the compiler's to refuse");
        }
        if fault.killers.is_empty() || fault.killers.iter().any(|k| !super::suites::is_known(k)) {
            say("its killers are no suites");
        }
    }
    wrong
}

impl Fault {
    /// `text` with the fault in it.
    ///
    /// # Errors
    /// Why it has no place there.
    pub(super) fn planted_in(&self, text: &str) -> Result<String, String> {
        if self.old == self.new {
            return Err("it changes nothing".to_owned());
        }
        match text.matches(self.old.as_str()).count() {
            1 => Ok(text.replacen(self.old.as_str(), &self.new, 1)),
            0 => Err(format!("{} no longer has the lines that it replaces", self.file)),
            many => Err(format!("{} has the lines that it replaces {many} times", self.file)),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn fault(name: &str) -> Fault {
        Fault {
            name: name.to_owned(),
            class: "alignment".to_owned(),
            says: "A test.".to_owned(),
            file: "el2/mem/src/a.rs".to_owned(),
            old: "a < b".to_owned(),
            new: "a <= b".to_owned(),
            killers: vec!["mem".to_owned()],
            types: false,
            subset: false,
        }
    }

    #[test]
    fn a_fault_whose_place_is_gone_or_doubled_is_named() {
        assert_eq!(fault("x").planted_in("if a < b {").as_deref(), Ok("if a <= b {"));
        assert!(fault("x").planted_in("if b > a {").unwrap_err().contains("no longer"));
        assert!(fault("x").planted_in("a < b; a < b").unwrap_err().contains("2 times"));
        assert!(Fault { new: "a < b".to_owned(), ..fault("x") }.planted_in("a < b").is_err());
    }

    #[test]
    fn lists_that_are_short_or_odd_are_refused() {
        let full: Vec<Fault> = CLASSES
            .iter()
            .flat_map(|class| {
                (0..6).map(move |n| Fault { class: (*class).to_owned(), ..fault(&format!("{class}-{n}")) })
            })
            .collect();
        assert_eq!(shape(&full), Vec::<String>::new());
        let with = |odd: Fault| shape(&[full.clone(), vec![odd]].concat());
        assert_eq!(with(full[0].clone()).len(), 1, "twice");
        assert_eq!(with(Fault { file: "el2/mem/tests/a.rs".to_owned(), ..fault("x") }).len(), 1);
        assert_eq!(with(Fault { types: true, ..fault("x") }).len(), 1);
        assert_eq!(with(Fault { killers: vec!["nobody".to_owned()], ..fault("x") }).len(), 1);
        assert_eq!(with(Fault { killers: Vec::new(), ..fault("x") }).len(), 1);
        assert!(shape(&full[..59]).len() >= 2, "short together, and the last class");
    }
}
