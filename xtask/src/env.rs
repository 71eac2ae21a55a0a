// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where things are: the repository, the cache of unpacked packages, and the artefacts.
//!
//! Guarantees that every path handed out is absolute. Does not know what is built or unpacked there.

use std::path::{Path, PathBuf};

/// The directories that every command works in.
#[derive(Clone, Debug)]
pub(crate) struct Env {
    /// The root of the work tree.
    pub root: PathBuf,
    /// What this program makes: images, archives, logs.
    pub out: PathBuf,
    /// Downloaded and unpacked packages; survives `cargo clean`.
    pub cache: PathBuf,
}

impl Env {
    /// Finds the directories from where this crate was compiled and from `CARGO_TARGET_DIR`.
    pub(crate) fn find() -> Self {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = manifest.parent().unwrap_or(manifest).to_path_buf();
        let target = match std::env::var_os("CARGO_TARGET_DIR") {
            Some(dir) => root.join(dir),
            None => root.join("target"),
        };
        let out = target.join("freehold");
        let cache = root.join(".cache").join("freehold");
        Self { root, out, cache }
    }

    /// The directory of console logs.
    pub(crate) fn logs(&self) -> PathBuf {
        self.out.join("logs")
    }

    /// `path` as it is best shown: relative to the work tree where it is inside it.
    pub(crate) fn shown(&self, path: &Path) -> String {
        path.strip_prefix(&self.root).unwrap_or(path).display().to_string()
    }
}
