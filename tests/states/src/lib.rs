// SPDX-License-Identifier: MIT OR Apache-2.0
//! `docs/page-states.md`, made by running the code: every verb of `el2/mem` from every state of a frame, and every move
//! of the driver's engine from every state of a page offset.
//!
//! Nothing here says what should come out; it is written down as it comes, and a test compares it with the tree.
#![forbid(unsafe_code)]

mod frames;
mod machine;
mod offsets;

use std::fmt;

/// A table: the heads of its columns, and its rows.
struct Table {
    heads: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| {} |", self.heads.join(" | "))?;
        writeln!(f, "|{}", "---|".repeat(self.heads.len()))?;
        self.rows.iter().try_for_each(|row| writeln!(f, "| {} |", row.join(" | ")))
    }
}

/// The whole document.
#[must_use]
pub fn document() -> String {
    let mut out = String::from(
        "<!-- SPDX-License-Identifier: MIT OR Apache-2.0 -->\n\
         <!-- Made by `cargo xtask gen` by running the code; do not edit. -->\n\
         # States of a page\n\n\
         A page has two states: that of its *frame*, kept by `el2` in the ledger, and that of its *offset* in a\n\
         `guest_memfd`, kept by the driver. `el2` trusts the first only. Every cell below is what the code did when it\n\
         was run from that state: `→ State` with what became of the contents, or the reason of a refusal, which changes\n\
         nothing.\n\n## Frames\n\n",
    );
    // A `String` takes all that is written to it.
    let _ = frames::write(&mut out);
    out.push_str("\n## Offsets of a `guest_memfd`\n\n");
    let _ = offsets::write(&mut out);
    out
}
