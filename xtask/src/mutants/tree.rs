// SPDX-License-Identifier: MIT OR Apache-2.0
//! A copy of the tree to plant faults in, with a build directory of its own that outlives it.
//!
//! Guarantees that the user's own files are only read, and that a fault is gone again once its guard is dropped. A file
//! is written only where it differs, so that what was built of it stays good.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::faults::Fault;
use crate::cmd;
use crate::env::Env;

/// The copy. Only one program at a time works in it.
pub(super) struct Tree {
    root: PathBuf,
    build: PathBuf,
    _lock: File,
}

impl Tree {
    /// Makes the copy what the tree is now.
    ///
    /// # Errors
    /// If git does not list the files, or one can not be copied.
    pub(super) fn copy(env: &Env) -> Result<Self> {
        let home = env.out.join("mutants");
        let (root, build) = (home.join("tree"), home.join("build"));
        std::fs::create_dir_all(&root)?;
        let lock = File::create(home.join("lock"))?;
        lock.lock().context("cannot lock the copy of the tree")?;
        let mut git = Command::new("git");
        git.current_dir(&env.root).args(["ls-files", "--cached", "--others", "--exclude-standard"]);
        let listed: BTreeSet<PathBuf> = cmd::output(&mut git)?.lines().map(PathBuf::from).collect();
        for file in &listed {
            let from = env.root.join(file);
            if from.is_file() {
                refresh(&from, &root.join(file)).with_context(|| file.display().to_string())?;
            }
        }
        forget_others(&root, &root, &|file| listed.contains(file) && env.root.join(file).is_file())?;
        Ok(Self { root, build, _lock: lock })
    }

    /// Where the copy stands.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Where it is built.
    pub(super) fn build(&self) -> &Path {
        &self.build
    }

    /// A `cargo` that builds in the copy, quickly rather than well.
    pub(super) fn cargo(&self) -> Command {
        let mut command = cmd::cargo(&self.root);
        command.env("CARGO_TARGET_DIR", &self.build).env("CARGO_INCREMENTAL", "1");
        command.env("CARGO_PROFILE_DEV_DEBUG", "0").env("CARGO_PROFILE_DEV_OPT_LEVEL", "1");
        command.env("RUST_BACKTRACE", "0");
        command
    }

    /// Puts a fault into the copy, for as long as the guard lives.
    ///
    /// # Errors
    /// If it has no place there.
    pub(super) fn plant(&self, fault: &Fault) -> Result<Guard> {
        let file = self.root.join(&fault.file);
        let original = std::fs::read_to_string(&file).with_context(|| fault.file.clone())?;
        let planted = fault.planted_in(&original).map_err(|why| anyhow::anyhow!("{}: {why}", fault.name))?;
        let guard = Guard { file, original };
        std::fs::write(&guard.file, planted)?;
        Ok(guard)
    }
}

/// A fault is in the copy.
#[must_use = "the fault is gone when it is dropped"]
pub(super) struct Guard {
    file: PathBuf,
    original: String,
}

impl Drop for Guard {
    fn drop(&mut self) {
        // What stays behind is put right by the next copy.
        let _ = std::fs::write(&self.file, &self.original);
    }
}

/// Copies `from` to `to` unless they are the same already.
fn refresh(from: &Path, to: &Path) -> Result<()> {
    let new = std::fs::read(from)?;
    if std::fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(to, new)?;
    Ok(std::fs::set_permissions(to, from.metadata()?.permissions())?)
}

/// Removes files below `dir` that `stays` does not know by their path from `root`.
fn forget_others(root: &Path, dir: &Path, stays: &dyn Fn(&Path) -> bool) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            forget_others(root, &path, stays)?;
        } else if !stays(path.strip_prefix(root)?) {
            std::fs::remove_file(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory that goes when the test ends.
    struct Scratch(PathBuf);

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn scratch(name: &str) -> Scratch {
        let dir = std::env::temp_dir().join(format!("freehold-mutants-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Scratch(dir)
    }

    #[test]
    fn a_planted_fault_is_gone_afterwards() {
        let dir = scratch("plant");
        let fault = Fault { file: "a.rs".to_owned(), ..super::super::faults::tests::fault("x") };
        std::fs::write(dir.0.join("a.rs"), "if a < b {}").unwrap();
        let lock = File::create(dir.0.join("lock")).unwrap();
        let tree = Tree { root: dir.0.clone(), build: dir.0.clone(), _lock: lock };
        let read = || std::fs::read_to_string(dir.0.join("a.rs")).unwrap();
        let guard = tree.plant(&fault).unwrap();
        assert_eq!(read(), "if a <= b {}");
        drop(guard);
        assert_eq!(read(), "if a < b {}");
    }

    #[test]
    fn an_unchanged_file_is_left_alone_and_a_stranger_goes() {
        let dir = scratch("copy");
        let (from, to) = (dir.0.join("from"), dir.0.join("to/a"));
        std::fs::write(&from, "x").unwrap();
        refresh(&from, &to).unwrap();
        let first = to.metadata().unwrap().modified().unwrap();
        refresh(&from, &to).unwrap();
        assert_eq!(to.metadata().unwrap().modified().unwrap(), first);
        std::fs::write(dir.0.join("to/b"), "x").unwrap();
        let root = dir.0.join("to");
        forget_others(&root, &root, &|file| file == Path::new("a")).unwrap();
        assert!(to.is_file() && !dir.0.join("to/b").exists());
    }
}
