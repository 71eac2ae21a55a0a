// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a person sees while work goes on: one line per stage, a spinner on a terminal, colours only there.
//!
//! All of this goes to stderr; stdout belongs to results.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Runs `work` as a named stage: a spinner while it runs, one line with its seconds afterwards.
pub(crate) fn stage<T>(name: &str, work: impl FnOnce(&Stage) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let begin = Instant::now();
    let stage = Stage::new(name);
    let result = work(&stage);
    stage.bar.finish_and_clear();
    let took = begin.elapsed();
    if result.is_err() {
        note(&format!("{} {name} ({})", red("failed"), seconds(took)));
    } else if took > Duration::from_millis(300) {
        note(&format!("{} {name} ({})", green("done"), seconds(took)));
    }
    result
}

/// A stage under way.
pub(crate) struct Stage {
    bar: ProgressBar,
}

impl Stage {
    fn new(name: &str) -> Self {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("  {spinner} {prefix} {elapsed} {wide_msg}") {
            bar.set_style(style);
        }
        bar.set_prefix(name.to_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
        Self { bar }
    }

    /// Shows what the stage is doing at the moment.
    pub(crate) fn say(&self, what: &str) {
        self.bar.set_message(what.to_owned());
    }

    /// Prints one line and goes on.
    pub(crate) fn note(&self, line: &str) {
        self.bar.suspend(|| note(line));
    }
}

/// Prints one line to stderr.
pub(crate) fn note(line: &str) {
    // A closed stderr is no reason to stop.
    let _ = writeln!(std::io::stderr(), "  {line}");
}

/// `took`, as seconds with one decimal.
pub(crate) fn seconds(took: Duration) -> String {
    format!("{:.1} s", took.as_secs_f64())
}

/// `text` in green, on a terminal.
pub(crate) fn green(text: &str) -> String {
    paint("32", text)
}

/// `text` in red, on a terminal.
pub(crate) fn red(text: &str) -> String {
    paint("31", text)
}

/// `text` in yellow, on a terminal.
pub(crate) fn yellow(text: &str) -> String {
    paint("33", text)
}

fn paint(colour: &str, text: &str) -> String {
    let plain = std::env::var_os("NO_COLOR").is_some();
    if plain || !std::io::stdout().is_terminal() || !std::io::stderr().is_terminal() {
        return text.to_owned();
    }
    format!("\u{1b}[{colour}m{text}\u{1b}[0m")
}
