// SPDX-License-Identifier: MIT OR Apache-2.0
//! Numbers that `docs/oracle.md` tells: each must be what was counted.

const DOCUMENT: &str = include_str!("../../../../../docs/oracle.md");

/// Whether the document says what a world came to; complains if not.
pub(crate) fn tells_world(name: &str, [states, transitions]: [u64; 2]) -> bool {
    tells(&format!("| `{name}` | {} | {} |", grouped(states), grouped(transitions)))
}

/// The same of (call, outcome) pairs: met, of all, and met as the only permitted answer.
pub(crate) fn tells_cells(met: usize, all: usize, alone: usize) -> bool {
    tells(&format!(
        "{met} of the {all} documented (call, outcome) pairs are met, {alone} of them as the only permitted answer"
    ))
}

fn tells(text: &str) -> bool {
    let there = flat(DOCUMENT).contains(text);
    if !there {
        println!("docs/oracle.md does not say: {text}");
    }
    there
}

/// The text on one line.
fn flat(text: &str) -> String {
    text.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
}

/// With a comma at each thousand.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let parts: Vec<&str> = digits.as_bytes().rchunks(3).rev().filter_map(|part| str::from_utf8(part).ok()).collect();
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_document_does_not_say_is_noticed() {
        assert_eq!([0, 999, 1000, 24_756_700].map(grouped), ["0", "999", "1,000", "24,756,700"]);
        assert!(!tells_world("pages-3x2x2", [1, 2]) && !tells_cells(1, 2, 3));
    }
}
