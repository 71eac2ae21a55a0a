// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where `unsafe` may stand, and that each block says why it is sound.

use anyhow::Result;

use super::{files, is_rust};
use crate::env::Env;

/// Trees where `unsafe` is a means.
const ALLOWED: [&str; 7] =
    ["el2/arch/", "host-driver/linux/", "tests/count/", "tests/guest/", "tests/miri/", "tests/selftest/", "tests/vmm/"];
/// The entry and trap symbols of the two binaries, and nothing else there,
const SYMBOLS: [&str; 2] = ["el2/hyp/", "tests/watch/"];
/// but where it takes over what the boot loader left, before anything else runs.
const TAKES_OVER: &str = "el2/hyp/src/wiring/boot.rs";
/// Crates that must forbid it in their first file.
const FORBIDDING: [&str; 4] = ["uapi", "el2/mem", "el2/virt", "host-driver/core"];

/// Each place that breaks the rule.
pub(super) fn unsafe_code(env: &Env) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for file in files(env)?.into_iter().filter(|f| is_rust(f)) {
        let name = file.display().to_string();
        let text = std::fs::read_to_string(env.root.join(&file))?;
        found.extend(in_file(&name, &text));
    }
    for krate in FORBIDDING {
        let text = std::fs::read_to_string(env.root.join(krate).join("src/lib.rs"))?;
        if !code_only(&text).contains("#![forbid(unsafe_code)]") {
            found.push(format!("{krate}/src/lib.rs: no #![forbid(unsafe_code)]"));
        }
    }
    Ok(found)
}

fn in_file(name: &str, text: &str) -> Vec<String> {
    let code = code_only(text);
    let originals: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (number, line) in code.lines().enumerate() {
        if !has_word(line, "unsafe") {
            continue;
        }
        let at = format!("{name}:{}", number + 1);
        let symbol = line.contains("unsafe(no_mangle)")
            || line.contains("unsafe(link_section")
            || line.contains("unsafe extern");
        let allowed = name == TAKES_OVER
            || ALLOWED.iter().any(|dir| name.starts_with(dir))
            || (SYMBOLS.iter().any(|dir| name.starts_with(dir)) && symbol);
        if !allowed {
            found.push(format!("{at}: `unsafe` outside of the places that may have it"));
        } else if line.contains("unsafe {") && !says_why(&originals, number) {
            found.push(format!("{at}: an unsafe block without `// SAFETY:` above it"));
        }
    }
    found
}

/// Whether a comment right above line `number`, or on it, says `SAFETY:`; a statement may begin some lines earlier.
fn says_why(lines: &[&str], number: usize) -> bool {
    let window = lines.get(number.saturating_sub(12)..=number).unwrap_or_default();
    window.iter().any(|line| line.contains("SAFETY:"))
}

fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back().is_some_and(part);
        let after = line[at + word.len()..].chars().next().is_some_and(part);
        !before && !after
    })
}

/// `text` with comments and the contents of string and character literals blanked, line for line.
pub(super) fn code_only(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let length = match rest {
            [b'/', b'/', ..] => rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len()),
            [b'/', b'*', ..] => block_comment(rest),
            [b'"', ..] => string(rest),
            [b'r', b'"' | b'#', ..] if !out.last().is_some_and(|b: &u8| b.is_ascii_alphanumeric() || *b == b'_') => {
                raw_string(rest).unwrap_or(0)
            }
            [b'\'', ..] => character(rest),
            _ => 0,
        };
        if length == 0 {
            out.push(bytes[at]);
            at += 1;
            continue;
        }
        out.extend(rest[..length].iter().map(|b| if *b == b'\n' { b'\n' } else { b' ' }));
        at += length;
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut at, mut depth) = (0, 0usize);
    while at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => (at, depth) = (at + 2, depth + 1),
            [b'*', b'/', ..] => (at, depth) = (at + 2, depth - 1),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn string(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

fn raw_string(rest: &[u8]) -> Option<usize> {
    let hashes = rest[1..].iter().take_while(|b| **b == b'#').count();
    if rest.get(1 + hashes) != Some(&b'"') {
        return None;
    }
    let mut end = vec![b'"'];
    end.resize(1 + hashes, b'#');
    let body = 2 + hashes;
    let length = rest[body..].windows(end.len()).position(|w| w == end)?;
    Some(body + length + end.len())
}

/// The length of a character literal, or 0 for a lifetime.
fn character(rest: &[u8]) -> usize {
    match rest {
        [_, b'\\', _, b'\'', ..] => 4,
        [_, b'\\', ..] => rest.iter().skip(3).position(|b| *b == b'\'').map_or(0, |p| p + 4),
        [_, _, b'\'', ..] => 3,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_no_code() {
        let text = "a // unsafe\n\"unsafe \\\" x\" b /* unsafe\n /* n */ */ c r#\"un\"safe\"# '\"' 'x d\n";
        let code = code_only(text);
        assert!(!code.contains("unsafe") && !code.contains("safe\""), "{code}");
        assert_eq!(code.lines().count(), text.lines().count());
        for word in ["a", "b", "c", "'x d"] {
            assert!(code.contains(word), "{code}");
        }
    }

    #[test]
    fn unsafe_outside_its_places_is_found() {
        let block = "fn f() {\n    unsafe { g() }\n}\n";
        assert!(in_file("el2/mem/src/x.rs", block)[0].contains("el2/mem/src/x.rs:2"));
        assert_eq!(in_file("el2/arch/src/x.rs", block).len(), 1, "no SAFETY");
        let said = block.replace("    unsafe", "    // SAFETY: because\n    unsafe");
        assert!(in_file("el2/arch/src/x.rs", &said).is_empty());
        assert!(in_file("el2/mem/src/x.rs", "// unsafe\n#![forbid(unsafe_code)]\n").is_empty());
    }

    #[test]
    fn the_wiring_may_name_symbols_only() {
        let symbol = "#[unsafe(no_mangle)]\nextern \"C\" fn trap() {}\n";
        assert!(in_file("el2/hyp/src/main.rs", symbol).is_empty());
        assert_eq!(in_file("el2/hyp/src/main.rs", "// SAFETY: x\nunsafe { y() }").len(), 1);
        assert_eq!(in_file("el2/virt/src/x.rs", symbol).len(), 1);
    }
}
