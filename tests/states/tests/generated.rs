// SPDX-License-Identifier: MIT OR Apache-2.0
//! The document in the tree says what the code does, and it says it of every verb.

use std::path::Path;

#[test]
fn the_document_in_the_tree_is_current() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/page-states.md");
    let there = std::fs::read_to_string(file).unwrap_or_default();
    assert!(there == freehold_states::document(), "docs/page-states.md is out of date; run `cargo xtask gen`");
}

#[test]
fn every_state_is_left_and_entered_and_every_verb_does_something() {
    let text = freehold_states::document();
    for state in ["Host", "Pool", "Private", "Shared", "Lent"] {
        assert!(text.contains(&format!("→ `{state}`, ")), "no verb leads to {state}");
    }
    for state in ["Held", "Given", "Vacant", "Lent", "Host"] {
        assert!(text.contains(&format!("→ `{state}`")), "no move leads to {state}");
    }
    let verbs: Vec<&str> = text.split("\n### ").skip(1).collect();
    assert_eq!(verbs.len(), 10);
    for verb in verbs {
        assert!(verb.contains("| → `"), "a verb that does nothing: {verb}");
    }
}

#[test]
fn what_the_host_gets_back_is_zeroed() {
    for line in freehold_states::document().lines().filter(|line| line.starts_with("| `P") || line.starts_with("| `S"))
    {
        assert!(!line.contains("→ `Host`, kept"), "{line}");
    }
}
