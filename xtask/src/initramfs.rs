// SPDX-License-Identifier: MIT OR Apache-2.0
//! Makes the host's initramfs: a newc archive, uncompressed, byte for byte the same from the same inputs.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use cpio::newc;

use crate::env::Env;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// What goes in, by its path without the leading slash.
#[derive(Default)]
pub(crate) struct Archive {
    files: BTreeMap<String, Vec<u8>>,
}

impl Archive {
    /// The files of `tests/initramfs` and `busybox`.
    ///
    /// # Errors
    /// If one of them cannot be read.
    pub(crate) fn base(env: &Env, busybox: &Path) -> Result<Self> {
        let mut archive = Self::default();
        archive.add("bin/busybox", busybox)?;
        let dir = env.root.join("tests/initramfs");
        archive.add("init", &dir.join("init"))?;
        for entry in std::fs::read_dir(dir.join("jobs")).context("no tests/initramfs/jobs")? {
            let file = entry?.path();
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            archive.add(&format!("jobs/{name}"), &file)?;
        }
        Ok(archive)
    }

    /// Adds the file at `from` as `path`.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) fn add(&mut self, path: &str, from: &Path) -> Result<()> {
        let bytes = std::fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        self.files.insert(path.trim_start_matches('/').to_owned(), bytes);
        Ok(())
    }

    /// The archive's bytes.
    ///
    /// # Errors
    /// If a file is larger than the format can say.
    pub(crate) fn bytes(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        let mut inode = 1;
        for directory in self.directories() {
            let entry = newc::Builder::new(&directory).mode(DIRECTORY).ino(inode).nlink(2);
            entry.write(&mut out, 0).finish()?;
            inode += 1;
        }
        for (path, bytes) in &self.files {
            let size = u32::try_from(bytes.len()).context("a file larger than 4 GiB")?;
            let mut entry = newc::Builder::new(path).mode(PROGRAM).ino(inode).nlink(1).write(&mut out, size);
            std::io::Write::write_all(&mut entry, bytes)?;
            entry.finish()?;
            inode += 1;
        }
        newc::trailer(&mut out)?;
        Ok(out)
    }

    /// The same, and zeros, which the kernel passes over, up to a whole number of `unit` bytes: a path that a module was
    /// built in is longer or shorter, and may not move what the host has behind the archive.
    ///
    /// # Errors
    /// As [`Archive::bytes`].
    pub(crate) fn padded(&self, unit: usize) -> Result<Vec<u8>> {
        let mut bytes = self.bytes()?;
        bytes.resize(bytes.len().next_multiple_of(unit), 0);
        Ok(bytes)
    }

    fn directories(&self) -> Vec<String> {
        let mut found: Vec<String> = ["proc", "sys", "dev", "tmp"].map(str::to_owned).to_vec();
        for path in self.files.keys() {
            for (at, _) in path.match_indices('/') {
                found.push(path[..at].to_owned());
            }
        }
        found.sort();
        found.dedup();
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Archive {
        let mut archive = Archive::default();
        archive.files.insert("b/c/program".to_owned(), b"hello".to_vec());
        archive.files.insert("init".to_owned(), b"#!/bin/sh\n".to_vec());
        archive
    }

    #[test]
    fn parents_come_before_their_files_and_the_archive_is_repeatable() {
        let bytes = sample().bytes().unwrap();
        assert_eq!(bytes, sample().bytes().unwrap());
        let mut names = Vec::new();
        let mut rest = std::io::Cursor::new(&bytes);
        loop {
            let reader = newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            names.push(reader.entry().name().to_owned());
            rest = reader.finish().unwrap();
        }
        assert_eq!(names, ["b", "b/c", "dev", "proc", "sys", "tmp", "b/c/program", "init"]);
    }
}
