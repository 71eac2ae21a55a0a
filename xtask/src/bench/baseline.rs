// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the figures were when they were last accepted, and which of them are worse now.
//!
//! A row is worse if its figure and its least round both grew by more than the tolerance: one round that something
//! else of the host fell into moves neither far. With other versions of QEMU, kernel or compiler nothing is judged.

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::report::Column;
use crate::env::Env;

/// Thousandths that a row may grow.
pub(super) const TOLERANCE: u64 = 20;

/// One row on one CPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Accepted {
    pub cpu: String,
    pub name: String,
    pub figure: u64,
    pub least: u64,
}

/// All rows, and what they were counted with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Baseline {
    pub versions: Vec<(String, String)>,
    pub rows: Vec<Accepted>,
}

fn path(env: &Env) -> std::path::PathBuf {
    env.root.join("docs/performance-baseline.json")
}

impl Baseline {
    /// Of this run.
    pub(super) fn new(columns: &[Column], versions: &[(&'static str, String)]) -> Self {
        Self {
            versions: versions.iter().map(|(name, text)| ((*name).to_owned(), text.clone())).collect(),
            rows: columns.iter().flat_map(Column::accepted).collect(),
        }
    }

    /// The committed one.
    ///
    /// # Errors
    /// If there is none, or it cannot be read.
    pub(super) fn committed(env: &Env) -> Result<Self> {
        let text = std::fs::read(path(env)).context("no docs/performance-baseline.json")?;
        serde_json::from_slice(&text).context("docs/performance-baseline.json")
    }

    /// Commits this one.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn write(&self, env: &Env) -> Result<()> {
        Ok(std::fs::write(path(env), serde_json::to_string_pretty(self)? + "\n")?)
    }

    /// Of these rows only.
    pub(super) fn only(mut self, names: &[&str]) -> Self {
        self.rows.retain(|row| names.contains(&row.name.as_str()));
        self
    }

    /// Whether both were counted with the same programs.
    pub(super) fn is_alike(&self, other: &Self) -> bool {
        self.versions == other.versions
    }

    /// One line per row of `now` that is worse than here; a row of a CPU that `now` has counted and that is gone is worse
    /// than any.
    pub(super) fn worse(&self, now: &Self) -> Vec<String> {
        let grew = |was: u64, is: u64| is * 1000 > was * (1000 + TOLERANCE);
        let counted = |cpu: &str| now.rows.iter().any(|row| row.cpu == cpu);
        self.rows
            .iter()
            .filter(|was| counted(&was.cpu))
            .filter_map(|was| {
                let name = format!("{} on {}", was.name, was.cpu);
                match now.rows.iter().find(|row| row.cpu == was.cpu && row.name == was.name) {
                    None => Some(format!("{name}: was {}, is not counted", was.figure)),
                    Some(is) if grew(was.figure, is.figure) && grew(was.least, is.least) => {
                        Some(format!("{name}: was {}, is {}", was.figure, is.figure))
                    }
                    Some(_) => None,
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(rows: &[(&str, u64, u64)]) -> Baseline {
        let row = |(name, figure, least): &(&str, u64, u64)| Accepted {
            cpu: "max".to_owned(),
            name: (*name).to_owned(),
            figure: *figure,
            least: *least,
        };
        Baseline { versions: vec![("qemu".to_owned(), "10".to_owned())], rows: rows.iter().map(row).collect() }
    }

    #[test]
    fn more_than_two_in_a_hundred_is_worse() {
        let was = of(&[("call", 1000, 1000)]);
        assert_eq!(was.worse(&of(&[("call", 1020, 1020)])), Vec::<String>::new());
        assert_eq!(was.worse(&of(&[("call", 1021, 1021)])), ["call on max: was 1000, is 1021"]);
        assert_eq!(was.worse(&of(&[("call", 500, 500)])), Vec::<String>::new());
        assert_eq!(was.worse(&of(&[("call", 2000, 1000)])), Vec::<String>::new(), "one odd round");
    }

    #[test]
    fn a_row_that_is_gone_is_worse_and_a_cpu_that_did_not_run_is_not() {
        let was = of(&[("call", 1000, 1000), ("other", 1, 1)]);
        assert_eq!(was.worse(&of(&[("call", 1000, 1000)])), ["other on max: was 1, is not counted"]);
        assert_eq!(was.worse(&of(&[])), Vec::<String>::new());
    }

    #[test]
    fn each_committed_row_that_grew_by_three_in_a_hundred_is_worse() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/performance-baseline.json");
        let was: Baseline = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert!(was.rows.len() > 40 && was.rows.iter().any(|row| row.cpu == "max"), "nothing to compare with");
        assert_eq!(was.worse(&was), Vec::<String>::new());
        let mut now = was.clone();
        for row in &mut now.rows {
            row.figure += row.figure * 3 / 100 + 1;
            row.least += row.least * 3 / 100 + 1;
        }
        assert_eq!(was.worse(&now).len(), was.rows.len());
    }

    #[test]
    fn of_some_rows_the_others_are_not_asked_for() {
        let was = of(&[("call", 1000, 1000), ("other", 1, 1)]).only(&["call"]);
        assert_eq!(was.worse(&of(&[("call", 1021, 1021)])), ["call on max: was 1000, is 1021"]);
        assert_eq!(was.worse(&of(&[("call", 1000, 1000)])), Vec::<String>::new());
        assert_eq!(was.worse(&of(&[("other", 9, 9)])), ["call on max: was 1000, is not counted"]);
    }

    #[test]
    fn other_versions_are_not_alike() {
        let mut other = of(&[]);
        assert!(other.is_alike(&of(&[])));
        other.versions[0].1 = "11".to_owned();
        assert!(!other.is_alike(&of(&[])));
    }
}
