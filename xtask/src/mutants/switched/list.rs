// SPDX-License-Identifier: MIT OR Apache-2.0
//! cargo-mutants' list of the mutants of a package: what there is, and where.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::cmd;

/// One mutant.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Mutant {
    /// File below the root.
    pub file: String,
    pub genre: Genre,
    /// `FILE:LINE:COLUMN: WHAT`.
    pub name: String,
    pub replacement: String,
    pub span: Span,
    function: Option<Function>,
}

/// Which kind of change it is.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Genre {
    FnValue,
    BinaryOperator,
    UnaryOperator,
    MatchArm,
    MatchArmGuard,
    #[serde(other)]
    Other,
}

/// What it replaces.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Span {
    pub start: Place,
}

/// Both from 1 on.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Place {
    pub line: usize,
    pub column: usize,
}

#[derive(Clone, Debug, Deserialize)]
struct Function {
    return_type: String,
}

impl Mutant {
    /// Whether it can be there beside the original: of a type that has no name there is only one value's.
    pub(super) fn switchable(&self) -> bool {
        !self.function.as_ref().is_some_and(|f| self.genre == Genre::FnValue && f.return_type.contains("impl "))
    }

    /// What the names of its module's tests begin with.
    pub(super) fn module(&self) -> String {
        let inside = self.file.split_once("/src/").map_or(self.file.as_str(), |(_, inside)| inside);
        format!("{}::", inside.split(['/', '.']).next().unwrap_or(inside))
    }
}

/// Asks cargo-mutants.
///
/// # Errors
/// If it does not answer, or in another format.
pub(super) fn list(root: &Path, program: &Path, package: &str, filter: &[String]) -> Result<Vec<Mutant>> {
    let mut command = Command::new(program);
    command.current_dir(root).args(["mutants", "--list", "--json", "--package", package]);
    for expression in filter {
        command.args(["--re", expression]);
    }
    serde_json::from_str(&cmd::output(&mut command)?).context("cargo-mutants lists in another format")
}
