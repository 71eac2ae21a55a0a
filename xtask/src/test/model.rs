// SPDX-License-Identifier: MIT OR Apache-2.0
//! Small worlds, exhausted: the shipped code and its specification in lock-step (`tests/model`).

use std::time::Duration;

use anyhow::Result;

use super::{Context, Item, Work};
use crate::{cmd, ui};

/// What says what was seen.
const WORLDS: &str = "freehold-model";
/// Cases for every run, the longest first.
const CASES: [&str; 20] = [
    "lockstep-2x2x2",
    "lockstep-2x1x2",
    "ordinary-2x2x1",
    "interleavings",
    "interleavings-1x1x2",
    "interleavings-2x1x1",
    "interleavings-of-loans",
    "interleavings-of-a-pair",
    "cells",
    "apart-1x2x1",
    "pair-1x1x1",
    "lockstep-1x1x2",
    "ordinary-1x1x2",
    "guarded-1x2x2",
    "idle-vcpus",
    "block",
    "guarded-1x1x4",
    "no-memory",
    "batches",
    "controls",
];
/// Cases for `--long`.
const LONG: [&str; 3] = ["lockstep-3x2x2", "idle-vcpus-2x2x2", "interleavings-1x2x1"];
/// No case takes a tenth of it on an idle machine.
const LIMIT: Duration = Duration::from_secs(900);

pub(super) fn works() -> Vec<Work> {
    let work = |case: &'static str| Work::new(format!("model/{case}"), move |c| run(c, case));
    let alone = Work::new("model/oracle-alone".to_owned(), oracle_alone);
    CASES.into_iter().map(work).chain([alone]).chain(LONG.into_iter().map(|case| work(case).only_long())).collect()
}

fn run(context: &Context<'_>, case: &str) -> Result<Vec<Item>> {
    let mut build = cmd::cargo(&context.env.root);
    cmd::output(build.args(["build", "--profile", "model", "--package", WORLDS]))?;
    let mut command = cmd::cargo(&context.env.root);
    command.args(["run", "--quiet", "--profile", "model", "--package", WORLDS, "--", case]);
    let limit = if LONG.contains(&case) { LIMIT * 8 } else { LIMIT };
    let name = format!("model/{case}");
    match cmd::output(&mut cmd::bounded(&command, limit)) {
        Ok(said) => {
            // The first line has the numbers.
            ui::note(&format!("{case}: {}", said.lines().next().unwrap_or_default()));
            Ok(vec![Item::new(name, None)])
        }
        Err(error) => Ok(vec![Item::new(name, Some(format!("{error:#}")))]),
    }
}

/// The specification by itself: its own worlds, every invariant on each transition, counts that must not shrink.
fn oracle_alone(context: &Context<'_>) -> Result<Vec<Item>> {
    let mut command = cmd::cargo(&context.env.root);
    command.args(["run", "--quiet", "--profile", "model", "--package", "freehold-oracle", "--bin", "enumerate"]);
    let name = "model/oracle-alone".to_owned();
    match cmd::output(&mut cmd::bounded(&command, LIMIT)) {
        Ok(said) => {
            said.lines().filter(|l| l.contains("states") || l.starts_with("cells")).for_each(ui::note);
            Ok(vec![Item::new(name, None)])
        }
        Err(error) => Ok(vec![Item::new(name, Some(format!("{error:#}")))]),
    }
}
