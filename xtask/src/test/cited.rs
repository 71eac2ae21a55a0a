// SPDX-License-Identifier: MIT OR Apache-2.0
//! What documents say that a job shows, held against what it reported: every case that they name is one of its own.
//!
//! A document names a case as `life/main "its name"`, word for word; `...` and `{anything}` in it stand for any text.

use anyhow::Result;

use crate::env::Env;
use crate::session::Case;

/// Documents whose words are held to it.
const DOCUMENTS: [&str; 4] = ["docs/guest-memfd.md", "docs/guests.md", "docs/kvm-abi.md", "docs/testing.md"];

/// A piece of a suite, and a case of its.
pub(crate) struct Cited<'t> {
    /// The piece.
    pub piece: &'t str,
    /// How the case's name reads; empty for the piece itself.
    pub case: &'t str,
}

/// A reference, as it stands between backticks.
pub(crate) fn cited(reference: &str) -> Cited<'_> {
    let (piece, case) = reference.split_once(' ').unwrap_or((reference, ""));
    Cited { piece, case: case.strip_prefix('"').and_then(|case| case.strip_suffix('"')).unwrap_or(case) }
}

/// Everything between backticks that names a suite's piece or a test.
pub(crate) fn references(text: &str) -> impl Iterator<Item = &str> {
    // Plain words and source files stand in backticks too.
    let quoted = text.lines().flat_map(|line| line.split('`').skip(1).step_by(2));
    quoted.filter(|word| word.contains('/') && !word.ends_with(".rs"))
}

/// Each case of `piece` that a document names, and that is not among those which it reported.
///
/// # Errors
/// A document is missing.
pub(super) fn missing(env: &Env, piece: &str, cases: &[Case]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for document in DOCUMENTS {
        let text = std::fs::read_to_string(env.root.join(document))?;
        let missing = unreported(&text, piece, cases);
        found.extend(missing.into_iter().map(|case| format!("{document}: {piece} reported no case \"{case}\"")));
    }
    Ok(found)
}

fn unreported<'t>(text: &'t str, piece: &str, cases: &[Case]) -> Vec<&'t str> {
    let named = references(text).map(cited).filter(|named| named.piece == piece && !named.case.is_empty());
    named.map(|named| named.case).filter(|named| !cases.iter().any(|case| says(named, &case.case))).collect()
}

/// The words of a name that stand for themselves, in order; between any two, and where one is empty, is any text.
pub(crate) fn words(name: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = name;
    loop {
        let dots = rest.find("...").map(|at| (at, at + 3));
        let brace = rest.find('{').and_then(|at| Some((at, at + rest.get(at..)?.find('}')? + 1)));
        let Some((at, end)) = [dots, brace].into_iter().flatten().min() else { break };
        found.push(&rest[..at]);
        rest = &rest[end..];
    }
    found.push(rest);
    found
}

/// Whether a case is called what `name` says.
fn says(name: &str, case: &str) -> bool {
    let words = words(name);
    let [first, middle @ .., last] = &words[..] else { return name == case };
    let Some(mut rest) = case.strip_prefix(first) else { return false };
    for word in middle {
        let Some((_, behind)) = rest.split_once(word) else { return false };
        rest = behind;
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reported(names: &[&str]) -> Vec<Case> {
        names.iter().map(|name| Case { case: (*name).to_owned(), ..Case::default() }).collect()
    }

    #[test]
    fn a_case_is_named_word_for_word_or_with_what_stands_for_any_text() {
        assert!(says("pread", "pread") && !says("pread", "pread of a hole") && !says("pread", "a pread"));
        assert!(says("pread...", "pread of a hole") && !says("pread...", "a pread"));
        assert!(says("...: back", "mlock: back") && !says("...: back", "mlock: back again"));
        assert!(says("CPU {cpu} goes off", "CPU 1 goes off") && !says("CPU {cpu} goes off", "CPU 1 goes on"));
        assert!(says("...a...b...", "xxayybzz") && !says("...a...b...", "xxbyyazz"));
        assert!(!says("ab...ba", "aba"), "a word is not two");
    }

    #[test]
    fn a_case_of_another_piece_or_with_a_longer_name_is_none_of_the_pieces() {
        let text = "| C1 | words | `life/main \"one\"`; `life/main \"two...\"`; `life/vgic \"three\"`; `life/main` |";
        assert_eq!(unreported(text, "life/main", &reported(&["one", "two of them"])), Vec::<&str>::new());
        assert_eq!(unreported(text, "life/main", &reported(&["one of them", "three"])), ["one", "two..."]);
        assert_eq!(unreported(text, "life/vgic", &reported(&["one"])), ["three"]);
    }
}
