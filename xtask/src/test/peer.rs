// SPDX-License-Identifier: MIT OR Apache-2.0
//! The driver's cases asked of the peer, the newest stock kernel's own protected KVM: each answer that is another one
//! stands in `docs/kvm-abi.md`, with its reason, and nothing stands there that is not so.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::boot::log;
use super::{Context, Item, Work};
use crate::qemu::{Machine, Running};
use crate::session::{self, Case};

const NAME: &str = "kvm/peer";
const DOCUMENT: &str = "docs/kvm-abi.md";
const MARKS: [&str; 2] = ["<!-- peer: begin -->", "<!-- peer: end -->"];
const LIMIT: Duration = Duration::from_secs(600);

pub(super) fn work() -> Work {
    Work::new(NAME, run).with_inner_filter()
}

fn run(context: &Context<'_>) -> Result<Vec<Item>> {
    let (tools, parts) = context.boot.as_ref().context("nothing was built to boot")?;
    let mut machine = Machine::new(&tools.guest_kernel, &parts.initramfs);
    machine.append = "fh.job=peer kvm-arm.mode=protected".to_owned();
    let mut running = Running::start(&tools.qemu, &machine, &log(context, NAME))?;
    let outcome = session::follow(&mut running, LIMIT, |_| ())?;
    let text = std::fs::read_to_string(context.env.root.join(DOCUMENT))?;
    let mut items = judge(&outcome.cases, &differences(&text)?);
    items.push(Item::new(format!("{NAME}/runs-to-its-end"), outcome.problem));
    Ok(items)
}

/// A row of the document: the end of a case's name, the driver's answer, KVM's.
#[derive(Debug, PartialEq, Eq)]
struct Difference {
    case: String,
    here: String,
    there: String,
}

impl Difference {
    fn is_of(&self, case: &Case) -> bool {
        name(case).ends_with(&self.case) && self.here == case.expected && self.there == case.seen
    }
}

fn name(case: &Case) -> String {
    format!("{}: {}", case.step, case.case)
}

fn differences(document: &str) -> Result<Vec<Difference>> {
    let [begin, end] = MARKS;
    let (_, rest) = document.split_once(begin).with_context(|| format!("{DOCUMENT}: no {begin}"))?;
    let (table, _) = rest.split_once(end).with_context(|| format!("{DOCUMENT}: no {end}"))?;
    let rows = table.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let columns: Vec<&str> = row.trim_matches('|').split(" | ").map(|text| text.trim().trim_matches('`')).collect();
        let [case, here, there, why] = columns[..] else { anyhow::bail!("{DOCUMENT}: not four columns: {row}") };
        anyhow::ensure!(!why.is_empty(), "{DOCUMENT}: no reason: {row}");
        Ok(Difference { case: case.to_owned(), here: here.to_owned(), there: there.to_owned() })
    })
    .collect()
}

/// One item for each case that is as here or differs as the document says, and for each row that nothing shows.
fn judge(cases: &[Case], rows: &[Difference]) -> Vec<Item> {
    let of_case = |case: &Case| {
        let known = case.held || rows.iter().any(|row| row.is_of(case));
        let what = format!("here {}, KVM {}; {DOCUMENT} does not say so", case.expected, case.seen);
        Item::new(format!("{NAME}/{}", name(case)), (!known).then_some(what))
    };
    let of_row = |row: &Difference| {
        let what = format!("no case ends so and has these answers: {}, {}", row.here, row.there);
        Item::new(format!("{NAME}/row {}", row.case), Some(what))
    };
    let idle = rows.iter().filter(|row| !cases.iter().any(|case| !case.held && row.is_of(case)));
    cases.iter().map(of_case).chain(idle.map(of_row)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    const TABLE: &str = "<!-- peer: begin -->\n| case | here | KVM | why |\n|---|---|---|---|\n\
        | `: capability 0xaa` | `0` | `1` | no SVE |\n<!-- peer: end -->";

    fn case(name: &str, seen: &str) -> Case {
        let (expected, held) = ("0".to_owned(), seen == "0");
        Case { step: "s".to_owned(), case: name.to_owned(), expected, seen: seen.to_owned(), held, at: 0.0 }
    }

    fn failed(cases: &[Case]) -> Vec<String> {
        let rows = differences(TABLE).unwrap();
        let items = judge(cases, &rows).into_iter();
        items.filter(|item| matches!(item.verdict, Verdict::Failed(_))).map(|item| item.name).collect()
    }

    #[test]
    fn an_answer_that_is_the_same_or_differs_as_written_passes() {
        let told = [case("crosvm: capability 0xaa", "1"), case("lkvm: capability 0xaa", "1"), case("other", "0")];
        assert_eq!(failed(&told), Vec::<String>::new());
    }

    #[test]
    fn an_answer_that_differs_otherwise_is_found() {
        let told = [case("x: capability 0xaa", "1"), case("y: capability 0xaa", "2"), case("other", "EPERM")];
        assert_eq!(failed(&told), ["kvm/peer/s: y: capability 0xaa", "kvm/peer/s: other"]);
    }

    #[test]
    fn a_row_that_is_not_so_any_more_is_found() {
        assert_eq!(failed(&[case("x: capability 0xaa", "0")]), ["kvm/peer/row : capability 0xaa"]);
    }

    #[test]
    fn a_row_needs_a_reason() {
        let cut = TABLE.replace(" | no SVE |", " |");
        assert!(differences(&cut).is_err() && differences("no table").is_err());
    }
}
