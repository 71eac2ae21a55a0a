// SPDX-License-Identifier: MIT OR Apache-2.0
//! The table of requirements in `docs/guest-memfd.md`: complete, and each test that it names exists.

use anyhow::{Context as _, Result};

use super::obligations::{Known, known, unknown};
use crate::env::Env;

const DOCUMENT: &str = "docs/guest-memfd.md";
const ROWS: usize = 61;

/// What is wrong with the table.
pub(super) fn check(env: &Env) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(env.root.join(DOCUMENT)).context(DOCUMENT)?;
    Ok(judge(&text, &known(env)?, ROWS))
}

struct Row<'t> {
    number: usize,
    tests: Vec<&'t str>,
    status: &'t str,
}

/// Rows whose first cell is a number.
fn rows(text: &str) -> Vec<Row<'_>> {
    let mut found = Vec::new();
    for line in text.lines() {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        if let [number, _, tests, status] = cells[..]
            && let Ok(number) = number.parse()
        {
            found.push(Row { number, tests: tests.split('`').skip(1).step_by(2).collect(), status });
        }
    }
    found
}

fn judge(text: &str, known: &Known, count: usize) -> Vec<String> {
    let rows = rows(text);
    let mut found = Vec::new();
    let numbers: Vec<usize> = rows.iter().map(|row| row.number).collect();
    if numbers != (1..=count).collect::<Vec<_>>() {
        found.push(format!("{DOCUMENT}: rows are not 1 to {count}, each once and in order"));
    }
    for Row { number, tests, status } in rows {
        let word = status.split([':', ' ']).next().unwrap_or_default();
        match (word, tests.is_empty()) {
            ("holds" | "partly" | "refused", false) => {}
            ("not", true) if status.starts_with("not yet") => {}
            _ => found.push(format!("{DOCUMENT}: {number}: `{status}` does not go with the tests that it names")),
        }
        if word == "refused" && !status.contains("(adr/") {
            found.push(format!("{DOCUMENT}: {number}: refused without a decision"));
        }
        let missing = tests.iter().filter_map(|test| unknown(test, known));
        found.extend(missing.map(|what| format!("{DOCUMENT}: {number}: {what}")));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Known {
        Known {
            packages: vec![("x".to_owned(), "#[test]\nfn one_holds() {}\n\nfn helps() {}".to_owned())],
            works: vec!["guest-memfd/files".to_owned()],
            reporters: "STEP.same(\"two: a case\", 1, 1)".to_owned(),
        }
    }

    fn table(rows: &[&str]) -> String {
        rows.iter().map(|row| format!("| {row} |\n")).collect()
    }

    #[test]
    fn a_table_that_is_right_has_no_findings() {
        let text = table(&[
            "number | requirement | test | status",
            "1 | x | `unit/x/one_holds`, `guest-memfd/files \"two: a case\"` | holds",
            "2 | y | | not yet: why",
            "3 | z | `guest-memfd/files` | refused: [ADR 1](adr/1.md)",
        ]);
        assert_eq!(judge(&text, &known(), 3), Vec::<String>::new());
    }

    #[test]
    fn a_missing_row_a_missing_test_and_an_empty_claim_are_findings() {
        let findings = |rows: &[&str]| judge(&table(rows), &known(), 1).len();
        assert_eq!(findings(&["1 | x | `unit/x/one_holds` | holds"]), 0);
        assert_eq!(findings(&["2 | x | `unit/x/one_holds` | holds"]), 1);
        assert_eq!(findings(&[]), 1);
        for none in
            ["unit/x/helps", "unit/x/one", "guest-memfd/file", "guest-memfd/files \"three\"", "one_holds", "two"]
        {
            assert_eq!(findings(&[&format!("1 | x | `{none}` | holds")]), 1, "{none}");
        }
        assert_eq!(findings(&["1 | x | | holds"]), 1);
        assert_eq!(findings(&["1 | x | `unit/x/one_holds` | fine"]), 1);
        assert_eq!(findings(&["1 | x | `unit/x/one_holds` | refused"]), 1);
        assert_eq!(findings(&["1 | x | `unit/x/one_holds` | not yet"]), 1);
    }
}
