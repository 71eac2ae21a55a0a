// SPDX-License-Identifier: MIT OR Apache-2.0
//! The tables of obligations in `docs/testing.md`, of what a guest finds in `docs/guests.md` and of a phone's VMs in
//! `docs/kvm-abi.md`: every row is there, and what it names exists.
//!
//! A reference is `unit/PACKAGE/TEST`, a piece of a suite, or a piece with the name of a case behind it:
//! `life/main "odd-ways"`. A row without any says `not yet` or `does not arise`, and why. Here only the parts of a case's
//! name are looked for, wherever cases are made; that the piece reports it the piece itself is held to when it runs
//! (`test::cited`).

use anyhow::{Context as _, Result};
use std::path::Path;

use super::{files, is_rust};
use crate::env::Env;
use crate::test;
use crate::test::cited::{cited, references, words};

/// A table: its document, and the name between the marks that enclose it.
struct Table(&'static str, &'static str);

const OBLIGATIONS: Table = Table("docs/testing.md", "obligations");
const GUESTS: Table = Table("docs/guests.md", "guests");
const CHECKLIST: Table = Table("docs/kvm-abi.md", "checklist");
/// The tables whose rows are numbered, and up to which number.
const NUMBERED: [(&Table, u32); 2] = [(&GUESTS, 42), (&CHECKLIST, 30)];

/// The rows that must be there: a group, and its numbers.
const ROWS: [(&str, &[u32]); 13] = [
    ("A", &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
    ("B", &[1, 2, 3, 4, 5, 6, 7, 8, 9]),
    ("C", &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]),
    ("D", &[1, 2, 3, 4, 5, 6]),
    ("E", &[1, 2, 3, 4, 6, 7, 8, 10]),
    ("F", &[1, 2, 3, 4, 5, 6, 7]),
    ("G", &[1, 2, 3, 4, 5, 6]),
    ("H", &[1, 2, 3, 4, 5, 6]),
    ("J", &[1, 2, 3, 5]),
    ("K", &[1, 2, 3, 4, 5]),
    ("L", &[1, 2, 3, 4, 5]),
    ("M", &[1, 3]),
    ("N", &[1, 2, 3, 4, 5, 6, 7]),
];

/// What there is to name.
pub(super) struct Known {
    /// Package and text of all its sources.
    pub(super) packages: Vec<(String, String)>,
    /// Pieces of suites.
    pub(super) works: Vec<String>,
    /// Text of everything that may report a case.
    pub(super) reporters: String,
}

/// Each row that is missing, shows nothing, or names what does not exist.
pub(super) fn check(env: &Env) -> Result<Vec<String>> {
    let known = known(env)?;
    let mut found = judge(OBLIGATIONS.0, &OBLIGATIONS.read(env)?, &obligations(), &known);
    for (table, rows) in NUMBERED {
        let ids: Vec<String> = (1..=rows).map(|id| id.to_string()).collect();
        found.extend(judge(table.0, &table.read(env)?, &ids, &known));
    }
    Ok(found)
}

impl Table {
    fn read(&self, env: &Env) -> Result<String> {
        let Self(document, name) = self;
        let text = std::fs::read_to_string(env.root.join(document))?;
        let [begin, end] = ["begin", "end"].map(|word| format!("<!-- {name}: {word} -->"));
        let (_, rest) = text.split_once(&begin).with_context(|| format!("{document}: no {begin}"))?;
        let (table, _) = rest.split_once(&end).with_context(|| format!("{document}: no {end}"))?;
        Ok(table.to_owned())
    }
}

fn obligations() -> Vec<String> {
    ROWS.iter().flat_map(|(group, numbers)| numbers.iter().map(move |n| format!("{group}{n}"))).collect()
}

pub(super) fn known(env: &Env) -> Result<Known> {
    let (mut packages, mut reporters) = (Vec::new(), String::new());
    let all = files(env)?;
    for manifest in all.iter().filter(|f| f.file_name().is_some_and(|name| name == "Cargo.toml")) {
        let text = std::fs::read_to_string(env.root.join(manifest))?;
        let name = text.lines().find_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'));
        let (Some(name), Some(dir)) = (name, manifest.parent()) else { continue };
        if dir == Path::new("") {
            continue;
        }
        let mut sources = String::new();
        for file in all.iter().filter(|f| f.starts_with(dir) && is_rust(f)) {
            sources.push_str(&std::fs::read_to_string(env.root.join(file))?);
        }
        packages.push((name.to_owned(), sources));
    }
    for file in all.iter().filter(|f| f.starts_with("tests") || f.starts_with("xtask/src")) {
        if !file.ends_with("obligations.rs")
            && let Ok(text) = std::fs::read_to_string(env.root.join(file))
        {
            reporters.push_str(&text);
        }
    }
    Ok(Known { packages, works: test::works(), reporters })
}

fn judge(document: &str, table: &str, ids: &[String], known: &Known) -> Vec<String> {
    let rows: Vec<Vec<&str>> = table
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| # "))
        .map(|line| line.trim_matches('|').splitn(3, " | ").map(str::trim).collect())
        .collect();
    let mut found = Vec::new();
    for id in ids {
        match rows.iter().filter(|row| row.first() == Some(&id.as_str())).collect::<Vec<_>>()[..] {
            [row] => found.extend(judge_row(row, known).into_iter().map(|what| format!("{document}: {id}: {what}"))),
            [] => found.push(format!("{document}: no row for {id}")),
            _ => found.push(format!("{document}: more than one row for {id}")),
        }
    }
    found
}

fn judge_row(row: &[&str], known: &Known) -> Vec<String> {
    let [_, what, shown] = row else { return vec!["not three columns".to_owned()] };
    if what.len() < 20 {
        return vec!["says nothing".to_owned()];
    }
    let references: Vec<&str> = references(shown).collect();
    let admits = ["not yet: ", "does not arise: "].iter().any(|word| shown.contains(word));
    let mut found: Vec<String> = references.iter().filter_map(|name| unknown(name, known)).collect();
    if references.is_empty() && !admits {
        found.push("names nothing that shows it, and does not say why".to_owned());
    }
    found
}

/// What is wrong with a reference.
pub(super) fn unknown(reference: &str, known: &Known) -> Option<String> {
    if let Some((package, test)) = reference.strip_prefix("unit/").and_then(|rest| rest.split_once('/')) {
        let sources = known.packages.iter().find(|(name, _)| name == package).map(|(_, sources)| sources);
        let is_there = sources.is_some_and(|sources| is_test(test, sources));
        return (!is_there).then(|| format!("no test {reference}"));
    }
    let named = cited(reference);
    if !known.works.iter().any(|work| work == named.piece) {
        return Some(format!("no piece of a suite is called {}", named.piece));
    }
    // Names are put together, at a colon most often.
    let mut parts = words(named.case).into_iter().flat_map(|word| word.split(": "));
    let lacks = parts.find(|part| !known.reporters.contains(part));
    lacks.map(|part| format!("no case \"{}\" is reported by anything: nothing says \"{part}\"", named.case))
}

/// Whether a function of this name is a test.
fn is_test(name: &str, sources: &str) -> bool {
    sources.match_indices(&format!("fn {name}(")).any(|(at, _)| {
        let before = sources[..at].rsplit("\n\n").next().unwrap_or_default();
        before.contains("#[test]") && !before.contains("}\n")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Known {
        Known {
            packages: vec![("freehold-x".to_owned(), "#[test]\nfn a_rule() {}\n\nfn a_helper() {}".to_owned())],
            works: vec!["life/main".to_owned()],
            reporters: "STEP.same(\"odd-ways\")".to_owned(),
        }
    }

    #[test]
    fn what_does_not_exist_is_found() {
        let unknown = |name| unknown(name, &known());
        assert_eq!(unknown("unit/freehold-x/a_rule"), None);
        assert_eq!(unknown("life/main"), None);
        assert_eq!(unknown("life/main \"odd-ways\""), None);
        for name in [
            "unit/freehold-x/a_rul",
            "unit/freehold-x/a_helper",
            "unit/freehold-y/a_rule",
            "life/mai",
            "life/main \"even-ways\"",
        ] {
            assert!(unknown(name).is_some(), "{name}");
        }
    }

    #[test]
    fn a_row_shows_something_or_says_why_not() {
        let row = |shown| judge_row(&["A1", "something that must hold, in words", shown], &known());
        assert!(row("`life/main`").is_empty());
        assert!(row("not yet: nobody wrote it").is_empty());
        assert_eq!(row("somehow").len(), 1);
        assert_eq!(row("`life/nothing`; not yet: more").len(), 1);
    }

    #[test]
    fn a_missing_row_is_found() {
        let row = "| A1 | something that must hold, in words | `life/main` |\n";
        let found = judge("a.md", row, &obligations(), &known());
        assert!(!found.iter().any(|what| what.contains(" A1:")) && found.iter().any(|what| what.ends_with("for A2")));
    }
}
