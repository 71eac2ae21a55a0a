// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the design allows in one place of the code only.

use anyhow::Result;

use super::{files, is_rust};
use crate::env::Env;

/// A call, and the files where it stands, each as often as it does. A method may be called by its path too, or be handed on:
/// `.seal(` stands for `::seal`.
struct Rule {
    call: &'static str,
    at: &'static [&'static str],
    why: &'static str,
}

/// Where calls are counted.
const BELOW: &str = "host-driver/";
/// Ways to a `GuestMappable` state. `put`, behind them all, is private to its file, as are the states; but that the module has
/// them in memory of its own.
const RULES: [Rule; 7] = [
    Rule {
        call: ".seal(",
        at: &["host-driver/core/src/drain.rs"],
        why: "one place makes a page GuestMappable (design, section 4)",
    },
    Rule {
        call: ".renew(",
        at: &["host-driver/core/src/end.rs", "host-driver/core/src/end.rs", "host-driver/core/src/guest.rs"],
        why: "an offset is as in a new file, maybe Vacant, when its VM has ended or its guest has given it away",
    },
    Rule {
        call: ".hollow(",
        at: &["host-driver/core/src/convert.rs"],
        why: "a hole in what is private leaves it private",
    },
    Rule { call: "Pages::new(", at: &["host-driver/linux/src/file.rs"], why: "states change by their book's moves" },
    Rule {
        call: "alloc::<Page>(",
        at: &["host-driver/linux/src/file.rs"],
        why: "states are in one place of memory, which a new file fills",
    },
    Rule {
        call: "(*state).pages",
        at: &["host-driver/linux/src/file.rs", "host-driver/linux/src/file.rs"],
        why: "their memory is freed, and looked at by a fault",
    },
    Rule { call: "self.pages,", at: &["host-driver/linux/src/file.rs"], why: "it is what a book has, and nobody else" },
];

/// Each call that stands elsewhere, too often, or not where it should.
pub(super) fn check(env: &Env) -> Result<Vec<String>> {
    Ok(judge_all(&sources(env)?))
}

/// Name and text of what is shipped of the driver.
fn sources(env: &Env) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for file in files(env)?.into_iter().filter(|file| is_rust(file)) {
        let name = file.to_string_lossy().into_owned();
        if name.starts_with(BELOW) && !name.contains("/model") && !name.contains("/tests/") {
            found.push((name, std::fs::read_to_string(env.root.join(&file))?));
        }
    }
    Ok(found)
}

fn judge_all(sources: &[(String, String)]) -> Vec<String> {
    let seen = |rule: &Rule| -> Vec<String> {
        let places = sources.iter().flat_map(|(name, text)| lines(text, rule.call).map(move |n| format!("{name}:{n}")));
        places.collect()
    };
    RULES.iter().filter_map(|rule| judge(rule, &seen(rule))).collect()
}

/// Lines of shipped code that have `call`.
fn lines(text: &str, call: &str) -> impl Iterator<Item = usize> {
    let shipped = text.split("\n#[cfg(test)]\nmod ").next().unwrap_or_default();
    let path = call.strip_prefix('.').and_then(|name| name.strip_suffix('(')).map(|name| format!("::{name}"));
    let has = |line: &str| line.contains(call) || path.as_ref().is_some_and(|path| has_word(line, path));
    let hits = shipped.lines().enumerate().filter(|(_, l)| has(l) && !l.trim_start().starts_with("//"));
    hits.map(|(at, _)| at + 1).collect::<Vec<_>>().into_iter()
}

/// Whether `word` stands in the line, and is not the beginning of a longer name.
fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word)
        .any(|(at, _)| !line[at + word.len()..].starts_with(|next: char| next.is_ascii_alphanumeric() || next == '_'))
}

fn judge(rule: &Rule, seen: &[String]) -> Option<String> {
    let files: Vec<&str> = seen.iter().filter_map(|place| place.rsplit_once(':')).map(|(file, _)| file).collect();
    (files != rule.at)
        .then(|| format!("`{}` must stand in {:?}, once each: {}; it stands at {seen:?}", rule.call, rule.at, rule.why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_a_misplaced_and_a_missing_call_are_findings() {
        let rule = &RULES[0];
        let place = |file: &str| format!("{file}:7");
        assert!(judge(rule, &[place(rule.at[0])]).is_none());
        assert!(judge(rule, &[]).is_some());
        assert!(judge(rule, &[place(rule.at[0]), place(rule.at[0])]).is_some());
        assert!(judge(rule, &[place("host-driver/core/src/guest.rs")]).is_some());
    }

    #[test]
    fn the_tree_has_each_way_to_a_private_page_where_it_belongs_and_another_one_is_found() {
        let env = Env::find();
        let tree = sources(&env).unwrap();
        assert_eq!(judge_all(&tree), Vec::<String>::new());
        for rule in &RULES {
            for file in ["host-driver/core/src/slots.rs", rule.at[0]] {
                let mut wrong = tree.clone();
                let (_, text) = wrong.iter_mut().find(|(name, _)| name == file).unwrap();
                text.insert_str(0, &format!("fn more(book: &mut Book<'_>) {{ x{}0) }}\n", rule.call));
                let found = judge_all(&wrong);
                assert!(matches!(&found[..], [one] if one.contains(rule.call)), "{file}: {found:?}");
            }
        }
    }

    #[test]
    fn a_call_by_its_path_and_a_method_that_is_handed_on_are_calls() {
        let text = "Book::seal(book, 2)\npages.for_each(Book::seal);\nBook::sealed(2);\nuse x::seal_all;\n";
        assert_eq!(lines(text, ".seal(").collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn comments_and_tests_are_no_calls() {
        let text = "// x.seal(1)\nbook.seal(2)\n#[cfg(test)]\nmod tests {\n    book.seal(3);\n}\n";
        assert_eq!(lines(text, ".seal(").collect::<Vec<_>>(), [2]);
    }
}
