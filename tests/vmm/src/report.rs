// SPDX-License-Identifier: MIT OR Apache-2.0
//! One line per case on standard output, as the runner on the other side of the console reads them.
//!
//! Guarantees that a case which did not hold makes the program's exit status 1. Knows nothing of what the cases mean.

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::atomic::{AtomicU32, Ordering};

static CASES: AtomicU32 = AtomicU32::new(0);
static FAILED: AtomicU32 = AtomicU32::new(0);

/// The cases of one step of the main job, or of one suite.
#[derive(Clone, Copy)]
pub(crate) struct Step(pub(crate) &'static str);

impl Step {
    /// Reports a case that holds if what was seen is what was expected.
    pub(crate) fn same(self, case: &str, expected: impl ToString, seen: impl ToString) -> bool {
        let (expected, seen) = (expected.to_string(), seen.to_string());
        self.judged(case, &expected, &seen, expected == seen)
    }

    /// Reports a case that was judged already.
    pub(crate) fn judged(self, case: &str, expected: &str, seen: impl ToString, held: bool) -> bool {
        CASES.fetch_add(1, Ordering::Relaxed);
        if !held {
            FAILED.fetch_add(1, Ordering::Relaxed);
        }
        line(&format!(
            "{{\"step\":{},\"case\":{},\"expected\":{},\"seen\":{},\"held\":{held}}}",
            quoted(self.0),
            quoted(case),
            quoted(expected),
            quoted(&seen.to_string())
        ));
        held
    }
}

/// Prints one `@fh` line in a single write, so that lines of several threads do not mix.
pub(crate) fn line(json: &str) {
    let text = format!("@fh {json}\n");
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes());
    let _ = out.flush();
}

/// Exit status of the program: 0 if at least one case ran and all held.
pub(crate) fn status() -> i32 {
    i32::from(CASES.load(Ordering::Relaxed) == 0 || FAILED.load(Ordering::Relaxed) != 0)
}

/// Quotes a string for JSON.
pub(crate) fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c < ' ' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
