// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the tests print, and the one line that they end with.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Item, Verdict};
use crate::env::Env;
use crate::ui;

/// A suite may take its budget twice before it fails: the budget is for an idle machine.
const PATIENCE: u32 = 2;

/// A budget from here on is none.
const LONG: Duration = Duration::from_secs(1 << 20);

/// All results so far.
pub(super) struct Report {
    json: bool,
    suites: Vec<SuiteReport>,
}

struct SuiteReport {
    name: String,
    items: Vec<Item>,
    seconds: f64,
    budget: u64,
}

impl Report {
    pub(super) fn new(json: bool) -> Self {
        Self { json, suites: Vec::new() }
    }

    /// Set-up and build are judged by their time alone, and only if it was too long.
    pub(super) fn preparation(&mut self, took: Duration, budget: Duration) {
        if !self.json {
            println!("set-up and build: {} (budget {} s)", ui::seconds(took), budget.as_secs());
        }
        if took > budget.saturating_mul(PATIENCE) {
            self.begin("build");
            self.end(took, budget);
        }
    }

    pub(super) fn begin(&mut self, name: &str) {
        self.suites.push(SuiteReport { name: name.to_owned(), items: Vec::new(), seconds: 0.0, budget: 0 });
    }

    pub(super) fn item(&mut self, item: Item, took: Duration) {
        if !self.json {
            print_item(&item, took);
        }
        if let Some(suite) = self.suites.last_mut() {
            suite.items.push(item);
        }
    }

    pub(super) fn end(&mut self, took: Duration, budget: Duration) {
        let Some(name) = self.suites.last().map(|s| s.name.clone()) else { return };
        if took > budget.saturating_mul(PATIENCE) {
            let what = format!("took {}, more than twice its budget of {} s", ui::seconds(took), budget.as_secs());
            self.item(Item::new(format!("{name}/within-twice-its-budget"), Some(what)), took);
        }
        let Some(suite) = self.suites.last_mut() else { return };
        (suite.seconds, suite.budget) = (took.as_secs_f64(), budget.as_secs());
        if !self.json {
            let (passed, failed, skipped) = counts(&suite.items);
            let limit = if budget < LONG { format!(" (budget {} s)", budget.as_secs()) } else { String::new() };
            println!("{name}: {passed} passed, {failed} failed, {skipped} skipped in {}{limit}", ui::seconds(took));
        }
    }

    /// Whether no case ran at all.
    pub(super) fn is_empty(&self) -> bool {
        self.suites.iter().all(|s| s.items.is_empty())
    }

    /// Prints the summary; with `long`, writes it into the documentation too.
    pub(super) fn finish(self, env: &Env, long: bool) -> ExitCode {
        let all: Vec<&Item> = self.suites.iter().flat_map(|s| &s.items).collect();
        let (passed, failed, skipped) = counts(all.iter().copied());
        let summary = format!("{passed} passed, {failed} failed, {skipped} skipped");
        let mut code = if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        if long && let Err(error) = write_long(env, &self, &summary) {
            eprintln!("error: {error:#}");
            code = ExitCode::FAILURE;
        }
        if self.json {
            let suites: Vec<Value> = self
                .suites
                .iter()
                .map(|s| json!({ "name": s.name, "seconds": s.seconds, "budget": s.budget, "cases": s.items }))
                .collect();
            println!("{:#}", json!({ "suites": suites, "passed": passed, "failed": failed, "skipped": skipped }));
            return code;
        }
        if failed > 0 {
            println!("failed:");
            for item in all.iter().filter(|i| matches!(i.verdict, Verdict::Failed(_))) {
                println!("  {}", item.name);
            }
        }
        println!("{summary}");
        code
    }
}

fn counts<'i>(items: impl IntoIterator<Item = &'i Item>) -> (usize, usize, usize) {
    let mut count = (0, 0, 0);
    for item in items {
        match item.verdict {
            Verdict::Passed => count.0 += 1,
            Verdict::Failed(_) => count.1 += 1,
            Verdict::Skipped(_) => count.2 += 1,
        }
    }
    count
}

fn print_item(item: &Item, took: Duration) {
    match &item.verdict {
        Verdict::Passed => println!("  {}   {} ({})", ui::green("ok"), item.name, ui::seconds(took)),
        Verdict::Skipped(reason) => println!("  {} {}: {reason}", ui::yellow("skip"), item.name),
        Verdict::Failed(what) => {
            println!("  {} {} ({})", ui::red("FAIL"), item.name, ui::seconds(took));
            for line in what.lines() {
                println!("       {line}");
            }
        }
    }
}

const BEGIN: &str = "<!-- long run: begin -->";
const END: &str = "<!-- long run: end -->";

/// Replaces what stands between the two marks of `docs/testing.md`.
fn write_long(env: &Env, report: &Report, summary: &str) -> anyhow::Result<()> {
    let path = env.root.join("docs/testing.md");
    let text = std::fs::read_to_string(&path)?;
    let mut table = String::from("| suite | cases | failed | seconds |\n|---|---|---|---|\n");
    for suite in &report.suites {
        let (_, failed, _) = counts(&suite.items);
        table.push_str(&format!("| {} | {} | {failed} | {:.0} |\n", suite.name, suite.items.len(), suite.seconds));
    }
    let new = replace_between(&text, &format!("\n{table}\n{summary}\n"))
        .ok_or_else(|| anyhow::anyhow!("docs/testing.md lacks `{BEGIN}` and `{END}`"))?;
    Ok(std::fs::write(path, new)?)
}

fn replace_between(text: &str, new: &str) -> Option<String> {
    let begin = text.find(BEGIN)? + BEGIN.len();
    let end = begin + text.get(begin..)?.find(END)?;
    Some(format!("{}{new}{}", text.get(..begin)?, text.get(end..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_counted_by_kind() {
        let items = [
            Item::new("a", None),
            Item::new("b", Some("x".to_owned())),
            Item { name: "c".to_owned(), verdict: Verdict::Skipped("why".to_owned()) },
            Item::new("d", None),
        ];
        assert_eq!(counts(&items), (2, 1, 1));
    }

    #[test]
    fn a_suite_beyond_twice_its_budget_fails() {
        let second = Duration::from_secs(1);
        let mut report = Report::new(true);
        report.begin("s");
        report.end(second * 2, second);
        assert!(report.is_empty());
        report.end(second * 3, second);
        assert_eq!(counts(&report.suites[0].items), (0, 1, 0));
    }

    #[test]
    fn the_long_result_replaces_the_old_one() {
        let text = format!("a{BEGIN}old{END}b");
        assert_eq!(replace_between(&text, "new"), Some(format!("a{BEGIN}new{END}b")));
        assert_eq!(replace_between("nothing", "new"), None);
    }
}
