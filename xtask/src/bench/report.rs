// SPDX-License-Identifier: MIT OR Apache-2.0
//! The table, and the same as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::marks::Marks;
use super::rows::{ROWS, Row, Seen};
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
            let other = if row.name == "host boot" { plain } else { peer };
            let peer = if row.no_peer.is_some() { None } else { row.seen(other, true) };
            Line { row, freehold: row.seen(freehold, false), peer }
        };
        Self { cpu: cpu.to_owned(), lines: ROWS.iter().map(line).collect() }
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
