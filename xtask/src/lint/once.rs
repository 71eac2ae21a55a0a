// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the design allows in one place of the code only.

use anyhow::Result;

use super::{files, is_rust};
use crate::env::Env;

/// A call, the folder where it may stand, and how often.
struct Rule {
    call: &'static str,
    below: &'static str,
    at: &'static str,
    why: &'static str,
}

const RULES: [Rule; 1] = [Rule {
    call: ".seal(",
    below: "host-driver/",
    at: "host-driver/core/src/drain.rs",
    why: "one place makes a page GuestMappable (design, section 4)",
}];

/// Each call that stands elsewhere, twice, or nowhere.
pub(super) fn check(env: &Env) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for rule in &RULES {
        let mut seen = Vec::new();
        for file in files(env)?.into_iter().filter(|file| is_rust(file)) {
            let name = file.to_string_lossy().into_owned();
            if name.starts_with(rule.below) && !name.contains("/model") {
                let text = std::fs::read_to_string(env.root.join(&file))?;
                seen.extend(lines(&text, rule.call).map(|line| format!("{name}:{line}")));
            }
        }
        found.extend(judge(rule, &seen));
    }
    Ok(found)
}

/// Lines of shipped code that have `call`.
fn lines(text: &str, call: &str) -> impl Iterator<Item = usize> {
    let shipped = text.split("\n#[cfg(test)]\nmod ").next().unwrap_or_default();
    let hits = shipped.lines().enumerate().filter(|(_, l)| l.contains(call) && !l.trim_start().starts_with("//"));
    hits.map(|(at, _)| at + 1).collect::<Vec<_>>().into_iter()
}

fn judge(rule: &Rule, seen: &[String]) -> Option<String> {
    let right = seen.len() == 1 && seen.iter().all(|place| place.rsplit_once(':').is_some_and(|(f, _)| f == rule.at));
    (!right).then(|| format!("`{}` must stand once, in {}: {}; it stands at {seen:?}", rule.call, rule.at, rule.why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_a_misplaced_and_a_missing_call_are_findings() {
        let rule = &RULES[0];
        let place = |file: &str| format!("{file}:7");
        assert!(judge(rule, &[place(rule.at)]).is_none());
        assert!(judge(rule, &[]).is_some());
        assert!(judge(rule, &[place(rule.at), place(rule.at)]).is_some());
        assert!(judge(rule, &[place("host-driver/core/src/guest.rs")]).is_some());
    }

    #[test]
    fn comments_and_tests_are_no_calls() {
        let text = "// x.seal(1)\nbook.seal(2)\n#[cfg(test)]\nmod tests {\n    book.seal(3);\n}\n";
        assert_eq!(lines(text, ".seal(").collect::<Vec<_>>(), [2]);
    }
}
