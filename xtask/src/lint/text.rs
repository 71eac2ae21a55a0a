// SPDX-License-Identifier: MIT OR Apache-2.0
//! What every file must say and must not say: its licence, and nothing about the machine that it was written on.

use std::path::Path;

use anyhow::Result;

use super::files;
use crate::env::Env;

const GPL_TREES: [&str; 3] = ["host-driver/linux/", "tests/hostile/", "tests/wide/"];
const SOURCES: [&str; 13] = ["rs", "c", "h", "S", "s", "ld", "lds", "x", "sh", "py", "toml", "yml", "mk"];
const BY_NAME: [&str; 4] = ["Kbuild", "Makefile", "init", "run"];

/// Each source whose first line (second, below a `#!`) does not name the right licence.
pub(super) fn licences(env: &Env) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for file in files(env)? {
        if is_source(&file) {
            let text = String::from_utf8_lossy(&std::fs::read(env.root.join(&file))?).into_owned();
            found.extend(licence(&file, &text));
        }
    }
    Ok(found)
}

fn is_source(file: &Path) -> bool {
    let by_extension = file.extension().and_then(|e| e.to_str()).is_some_and(|e| SOURCES.contains(&e));
    let by_name = file.file_name().and_then(|n| n.to_str()).is_some_and(|n| BY_NAME.contains(&n));
    by_extension || by_name || file.starts_with("tests/initramfs/jobs")
}

fn licence(file: &Path, text: &str) -> Option<String> {
    let mut lines = text.lines();
    let mut first = lines.next().unwrap_or_default();
    if first.starts_with("#!") && !first.starts_with("#![") {
        first = lines.next().unwrap_or_default();
    }
    let gpl = GPL_TREES.iter().any(|tree| file.starts_with(tree));
    let wanted = if gpl { "GPL-2.0-only" } else { "MIT OR Apache-2.0" };
    let named = first.split_once("SPDX-License-Identifier: ").map(|(_, l)| l.trim_end_matches("*/").trim());
    (named != Some(wanted)).then(|| format!("{}:1: not `SPDX-License-Identifier: {wanted}`", file.display()))
}

/// Each line that names a directory of this machine, and each lock entry from another registry than the public one.
pub(super) fn paths(env: &Env) -> Result<Vec<String>> {
    let mut private = vec![env.root.display().to_string()];
    for variable in ["HOME", "CARGO_HOME", "RUSTUP_HOME"] {
        private.extend(std::env::var(variable).ok().filter(|dir| dir.len() > 1));
    }
    let mut found = Vec::new();
    for file in files(env)? {
        let Ok(text) = String::from_utf8(std::fs::read(env.root.join(&file))?) else { continue };
        found.extend(private_lines(&file, &text, &private));
    }
    Ok(found)
}

fn private_lines(file: &Path, text: &str, private: &[String]) -> Vec<String> {
    let lock = file.file_name().is_some_and(|n| n == "Cargo.lock");
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let at = format!("{}:{}", file.display(), number + 1);
        if private.iter().any(|dir| line.contains(&format!("{dir}/"))) {
            found.push(format!("{at}: a path of this machine"));
        }
        if lock
            && line.starts_with("source = ")
            && !line.contains("registry+https://github.com/rust-lang/crates.io-index")
        {
            found.push(format!("{at}: not from the public registry"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_tree_has_its_licence() {
        let free = "// SPDX-License-Identifier: MIT OR Apache-2.0\n";
        let gpl = "/* SPDX-License-Identifier: GPL-2.0-only */\n";
        assert_eq!(licence(Path::new("uapi/src/lib.rs"), free), None);
        assert_eq!(licence(Path::new("host-driver/linux/glue/main.c"), gpl), None);
        assert!(licence(Path::new("host-driver/linux/src/lib.rs"), free).is_some());
        assert!(licence(Path::new("el2/mem/src/lib.rs"), gpl).is_some());
        assert!(licence(Path::new("el2/mem/src/lib.rs"), "\n// SPDX-License-Identifier: MIT OR Apache-2.0").is_some());
        assert_eq!(licence(Path::new(".ci/run"), "#!/bin/sh\n# SPDX-License-Identifier: MIT OR Apache-2.0"), None);
    }

    #[test]
    fn paths_of_this_machine_are_found() {
        let private = ["/some/where".to_owned()];
        assert_eq!(private_lines(Path::new("a.md"), "x\nsee /some/where/else", &private).len(), 1);
        assert!(private_lines(Path::new("a.md"), "see /some/wherever", &private).is_empty());
    }

    #[test]
    fn the_lock_names_the_public_registry_only() {
        let public = "source = \"registry+https://github.com/rust-lang/crates.io-index\"";
        assert!(private_lines(Path::new("Cargo.lock"), public, &[]).is_empty());
        assert_eq!(private_lines(Path::new("Cargo.lock"), "source = \"registry+https://other\"", &[]).len(), 1);
    }
}
