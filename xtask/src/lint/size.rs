// SPDX-License-Identifier: MIT OR Apache-2.0
//! The size of what a guest must trust: lines of code at EL2, without blanks, comments and tests.

use std::path::Path;

use anyhow::{Result, bail};

use super::source::code_only;
use super::{files, is_rust};
use crate::env::Env;
use crate::ui;

/// Crates that run at EL2.
const CRATES: [&str; 5] = ["uapi", "el2/mem", "el2/virt", "el2/arch", "el2/hyp"];
/// The most that they may have together.
const LIMIT: usize = 12_720;

/// Prints the lines per crate; one finding if there are too many.
pub(super) fn check(env: &Env) -> Result<Vec<String>> {
    let mut total = 0;
    let files = files(env)?;
    for krate in CRATES {
        let mut lines = 0;
        let sources = files.iter().filter(|f| f.starts_with(Path::new(krate).join("src")));
        let tests = test_files(env, krate, &files)?;
        for file in sources.filter(|f| is_rust(f) || f.extension().is_some_and(|e| e == "S" || e == "s")) {
            if !tests.iter().any(|t| file.starts_with(t) || file.with_extension("") == *t) {
                lines += count(&std::fs::read_to_string(env.root.join(file))?);
            }
        }
        ui::note(&format!("{krate:<10} {lines:>6} lines of code"));
        total += lines;
    }
    ui::note(&format!("{:<10} {total:>6} lines of code at EL2, of at most {LIMIT}", "together"));
    if total == 0 {
        bail!("no code at EL2 was counted");
    }
    Ok(if total > LIMIT { vec![format!("{total} lines of code at EL2, more than {LIMIT}")] } else { Vec::new() })
}

/// Modules that are compiled for tests only, as paths without extension.
fn test_files(env: &Env, krate: &str, files: &[std::path::PathBuf]) -> Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    for file in files.iter().filter(|f| f.starts_with(krate) && is_rust(f)) {
        let text = code_only(&std::fs::read_to_string(env.root.join(file))?);
        let own = match file.file_stem().and_then(|s| s.to_str()) {
            Some("lib" | "main" | "mod") => file.parent().unwrap_or(file).to_path_buf(),
            _ => file.with_extension(""),
        };
        let mut lines = text.lines().map(str::trim).filter(|l| !l.is_empty());
        while let Some(line) = lines.next() {
            let module = (line == "#[cfg(test)]").then(|| lines.next()).flatten();
            let module = module.map(|l| l.trim_start_matches("pub(crate) ").trim_start_matches("pub "));
            if let Some(name) = module.and_then(|l| l.strip_prefix("mod ")?.strip_suffix(';')) {
                found.push(own.join(name));
            }
        }
    }
    Ok(found)
}

/// Lines with code on them, outside of items that are for tests only.
fn count(text: &str) -> usize {
    let code = code_only(text);
    let mut lines = 0;
    let mut rest = code.lines();
    while let Some(line) = rest.next() {
        if line.trim().starts_with("#[cfg(test)]") {
            skip_item(&mut rest);
        } else if !line.trim().is_empty() {
            lines += 1;
        }
    }
    lines
}

/// Reads past one item: to the `;` or to the brace that closes it.
fn skip_item<'t>(lines: &mut impl Iterator<Item = &'t str>) {
    let mut depth = 0i64;
    for line in lines {
        let opened = line.matches('{').count() as i64;
        depth += opened - line.matches('}').count() as i64;
        let ended = line.contains('}') || line.trim_end().ends_with(';');
        if depth <= 0 && ended {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_comments_and_tests_do_not_count() {
        let text = "//! doc\n\nuse a;\n/* x\n y */\nfn f() {\n    g(); // why\n}\n#[cfg(test)]\nmod tests {\n    fn t() {\n    }\n}\nfn h() {}\n";
        assert_eq!(count(text), 5);
    }

    #[test]
    fn one_line_items_for_tests_are_skipped_too() {
        assert_eq!(count("#[cfg(test)]\nmod tests;\nfn f() {}\n#[cfg(test)]\nuse x::{y, z};\nfn g() {}\n"), 2);
    }
}
