// SPDX-License-Identifier: MIT OR Apache-2.0
//! The table, and the same as JSON.

use std::fmt::Write as _;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::baseline::Accepted;
use super::marks::Marks;
use super::plot;
use super::rows::{ROWS, Row, Seen};
use crate::env::Env;
use crate::ui;

/// What one CPU showed.
pub(super) struct Column {
    cpu: String,
    lines: Vec<Line>,
}

struct Line {
    row: &'static Row,
    freehold: Option<Seen>,
    peer: Option<Seen>,
}

/// How a figure stands to its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// There is none.
    Untold,
    Met,
    Missed,
    /// Nothing was measured.
    NotThere,
}

impl Line {
    /// Targets are for `max`.
    fn verdict(&self, cpu: &str) -> Verdict {
        match (self.row.target.filter(|_| cpu == "max"), self.freehold) {
            (_, None) => Verdict::NotThere,
            (None, Some(_)) => Verdict::Untold,
            (Some(target), Some(seen)) if seen.figure <= target => Verdict::Met,
            (Some(_), Some(_)) => Verdict::Missed,
        }
    }
}

impl Column {
    /// The figures of the machines; `plain` is the peer of what the host does without el2.
    pub(super) fn new(cpu: &str, freehold: &Marks, peer: &Marks, plain: &Marks) -> Self {
        let line = |row: &'static Row| {
            let other = if row.is_of_the_host() { plain } else { peer };
            let peer = if row.no_peer.is_some() { None } else { row.seen(other, true) };
            Line { row, freehold: row.seen(freehold, false), peer }
        };
        Self { cpu: cpu.to_owned(), lines: ROWS.iter().map(line).collect() }
    }

    /// Freehold's figures alone, as a baseline keeps them.
    pub(super) fn accepted(&self) -> Vec<Accepted> {
        let one = |line: &Line| {
            let Seen { figure, least, .. } = line.freehold?;
            Some(Accepted { cpu: self.cpu.clone(), name: line.row.name.to_owned(), figure, least })
        };
        self.lines.iter().filter_map(one).collect()
    }

    /// The rows that both have, for a picture.
    fn bars(&self) -> Vec<plot::Bars<'static>> {
        let target = |line: &Line| line.row.target.filter(|_| self.cpu == "max");
        let one = |line: &Line| Some((line.row.name, line.freehold?.figure, line.peer?.figure, target(line)));
        self.lines.iter().filter_map(one).collect()
    }
}

/// Whether a target is missed, or a row has no figure.
pub(super) fn missed(columns: &[Column]) -> bool {
    let bad = |c: &Column, l: &Line| matches!(l.verdict(&c.cpu), Verdict::Missed | Verdict::NotThere);
    columns.iter().any(|c| c.lines.iter().any(|l| bad(c, l)))
}

/// Lines of text, one per row and CPU.
pub(super) fn table(columns: &[Column]) -> String {
    let mut text = String::new();
    for column in columns {
        let _ = writeln!(
            text,
            "{:<34} {:>13} {:>21} {:>13} {:>21} {:>6} {:>7}",
            format!("-cpu {}", column.cpu),
            "Freehold",
            "(EL2+kernel+VMM)",
            "peer",
            "(EL2+kernel+VMM)",
            "ratio",
            "target"
        );
        for line in &column.lines {
            let _ = writeln!(text, "{}", shown(line, &column.cpu));
        }
    }
    text
}

fn shown(line: &Line, cpu: &str) -> String {
    let (ours, parts) = figure(line.freehold);
    let (theirs, their_parts) = figure(line.peer);
    let target = line.row.target.filter(|_| cpu == "max").map(|t| t.to_string()).unwrap_or_default();
    let text = format!(
        "{:<34} {ours:>13} {parts:>21} {theirs:>13} {their_parts:>21} {:>6} {target:>7}",
        line.row.name,
        ratio(line).map(|r| format!("{r:.2}")).unwrap_or_default()
    );
    match line.verdict(cpu) {
        Verdict::Met => format!("{text} {}", ui::green("met")),
        Verdict::Missed => format!("{text} {}", ui::red("missed")),
        Verdict::NotThere => format!("{text} {}", ui::red("not measured")),
        Verdict::Untold => text.trim_end().to_owned(),
    }
}

fn figure(seen: Option<Seen>) -> (String, String) {
    let Some(seen) = seen else { return ("-".to_owned(), String::new()) };
    (seen.figure.to_string(), format!("{}+{}+{}", seen.el2, seen.kernel, seen.user))
}

fn ratio(line: &Line) -> Option<f64> {
    let (ours, theirs) = (line.freehold?.figure, line.peer?.figure);
    // Figures of single operations and of boots: far below what a double holds exactly.
    (theirs != 0).then(|| ours as f64 / theirs as f64)
}

/// Rows of name, cpu, freehold, peer, target, unit, and whose instructions they are.
pub(super) fn json(columns: &[Column], versions: &[(&str, String)]) -> String {
    let parts = |seen: Option<Seen>| {
        seen.map(|s| {
            json!({ "el2": s.el2, "kernel": s.kernel, "vmm": s.user, "broadcasts": s.broadcasts,
                    "least": s.least, "most": s.most })
        })
    };
    let mut rows: Vec<Value> = Vec::new();
    for column in columns {
        rows.extend(column.lines.iter().map(|line| {
            json!({
                "name": line.row.name, "cpu": column.cpu, "unit": line.row.unit,
                "freehold": line.freehold.map(|s| s.figure), "peer": line.peer.map(|s| s.figure),
                "target": line.row.target.filter(|_| column.cpu == "max"),
                "freehold_parts": parts(line.freehold), "peer_parts": parts(line.peer),
                "no_peer": line.row.no_peer,
            })
        }));
    }
    let versions: serde_json::Map<String, Value> =
        versions.iter().map(|(name, text)| ((*name).to_owned(), json!(text))).collect();
    format!("{:#}\n", json!({ "versions": versions, "rows": rows }))
}

const BEGIN: &str = "<!-- figures: begin -->";
const END: &str = "<!-- figures: end -->";

/// Writes the tables and the pictures into the documentation.
///
/// # Errors
/// If docs/performance.md lacks its marks, or a file cannot be written.
pub(super) fn document(env: &Env, columns: &[Column], versions: &[(&str, String)]) -> Result<()> {
    let docs = env.root.join("docs");
    let mut new = String::from("\n");
    let of: Vec<String> = versions.iter().map(|(name, text)| format!("{name} {text}")).collect();
    let _ = writeln!(new, "Counted with {}.\n", of.join("; "));
    for column in columns {
        let picture = format!("performance-{}.svg", column.cpu);
        std::fs::write(docs.join(&picture), plot::svg(&format!("Instructions, -cpu {}", column.cpu), &column.bars()))?;
        let _ = writeln!(new, "### -cpu {}\n\n![figures]({picture})\n\n{}", column.cpu, markdown(column));
    }
    let path = docs.join("performance.md");
    let text = std::fs::read_to_string(&path)?;
    let begin = text.find(BEGIN).map(|at| at + BEGIN.len());
    let (Some(begin), Some(end)) = (begin, text.find(END)) else {
        bail!("docs/performance.md lacks `{BEGIN}` and `{END}`");
    };
    Ok(std::fs::write(path, format!("{}{new}{}", &text[..begin], &text[end..]))?)
}

fn markdown(column: &Column) -> String {
    let mut text = String::from(
        "| row | Freehold | EL2 + kernel + VMM | pKVM | EL2 + kernel + VMM | ratio | target |\n|---|---|---|---|---|---|---|\n",
    );
    for line in &column.lines {
        let (ours, parts) = figure(line.freehold);
        let (theirs, their_parts) = figure(line.peer);
        let target = line.row.target.filter(|_| column.cpu == "max").map(|t| t.to_string()).unwrap_or_default();
        let verdict = match line.verdict(&column.cpu) {
            Verdict::Met => " met",
            Verdict::Missed => " **missed**",
            Verdict::NotThere => " **not measured**",
            Verdict::Untold => "",
        };
        let ratio = ratio(line).map(|r| format!("{r:.2}")).unwrap_or_default();
        let name = line.row.name;
        let _ =
            writeln!(text, "| {name} | {ours} | {parts} | {theirs} | {their_parts} | {ratio} | {target}{verdict} |");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_target_and_a_missing_figure_are_told_apart() {
        let row = ROWS.iter().find(|row| row.target == Some(70)).unwrap();
        let line = |figure: Option<u64>| Line {
            row,
            freehold: figure.map(|figure| Seen { figure, ..Seen::default() }),
            peer: None,
        };
        assert_eq!(line(Some(70)).verdict("max"), Verdict::Met);
        assert_eq!(line(Some(71)).verdict("max"), Verdict::Missed);
        assert_eq!(line(Some(71)).verdict("cortex-a72"), Verdict::Untold);
        assert_eq!(line(None).verdict("max"), Verdict::NotThere);
    }
}
