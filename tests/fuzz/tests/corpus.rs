// SPDX-License-Identifier: MIT OR Apache-2.0
//! The committed corpus, without a fuzzer: every input of it passes, and it is worth having.

use std::path::PathBuf;

use freehold_fuzz::calls::Mistake;
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

/// Inputs of a target in which guests reach for what they have not let anybody see: a specification that does not
/// bar it is found wrong by each of them.
#[test]
fn guests_of_the_corpus_guard_their_devices() {
    for (target, least, run) in [
        ("guest", 10, calls::run_guest_beside as fn(Mistake, &[u8]) -> Tally),
        ("host", 5, calls::run_host_beside as fn(Mistake, &[u8]) -> Tally),
    ] {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
        let inputs = std::fs::read_dir(&dir).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap());
        let found = inputs.filter(|input| std::panic::catch_unwind(|| run(Mistake::NeverBars, input)).is_err()).count();
        println!("{target}: {found} inputs");
        assert!(found >= least, "{target}: {found} inputs only");
    }
}
