// SPDX-License-Identifier: MIT OR Apache-2.0
//! The committed corpus, without a fuzzer: every input of it passes, and it is worth having.

use std::path::PathBuf;

use freehold_fuzz::{Tally, calls, dtb, tables};

/// Plays every input of a target's corpus.
fn play(target: &str, run: fn(&[u8]) -> Tally) -> (usize, Tally) {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let mut tally = Tally::default();
    let mut files = 0;
    for entry in std::fs::read_dir(&dir).unwrap() {
        tally += run(&std::fs::read(entry.unwrap().path()).unwrap());
        files += 1;
    }
    println!("{target}: {files} files, {} steps, {} done", tally.steps, tally.done);
    (files, tally)
}

#[test]
fn each_stream_of_the_corpus_passes_and_a_third_of_its_steps_succeed() {
    for (target, run) in [
        ("tables", tables::run as fn(&[u8]) -> Tally),
        ("host", calls::run_host as fn(&[u8]) -> Tally),
        ("guest", calls::run_guest as fn(&[u8]) -> Tally),
    ] {
        let (files, tally) = play(target, run);
        assert!(files >= 20, "{target}: {files} inputs only");
        assert!(tally.steps > 300 && tally.done * 3 >= tally.steps, "{target}: {tally:?}");
    }
}

#[test]
fn each_tree_of_the_corpus_passes_and_some_are_edited() {
    let (files, tally) = play("dtb", dtb::run);
    assert!(files >= 20 && tally.done >= 10, "{files} inputs, {tally:?}");
}
