// SPDX-License-Identifier: MIT OR Apache-2.0
//! A VMM that nobody here wrote: Debian's own arm64 QEMU, unpacked with the libraries that it needs, never installed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::{apt, distro, is_root, remove_tree};
use crate::env::Env;
use crate::{Usage, cmd, ui};

const PACKAGE: &str = "qemu-system-arm";
const PROGRAM: &str = "usr/bin/qemu-system-aarch64";
const LOADER: &str = "lib/ld-linux-aarch64.so.1";
/// Where Debian's loader looks.
const LIBRARIES: [&str; 4] = ["usr/lib/aarch64-linux-gnu", "lib/aarch64-linux-gnu", "usr/lib", "lib"];

/// Files of the program and its libraries, by their path in the host, after it unpacked them if they were not there.
///
/// # Errors
/// [`Usage`] where there is no apt to get them with; if a library is missing.
pub(crate) fn files(env: &Env) -> Result<BTreeMap<String, PathBuf>> {
    let root = env.cache.join("vmm");
    if !root.join(PROGRAM).is_file() {
        std::fs::create_dir_all(&env.cache)?;
        let lock = std::fs::File::create(env.cache.join("lock"))?;
        lock.lock().context("cannot lock the cache")?;
        if !root.join(PROGRAM).is_file() {
            unpack(env, &root)?;
        }
    }
    closure(&root)
}

fn unpack(env: &Env, root: &Path) -> Result<()> {
    let Some(debian) = distro::Distro::this_machine().debian() else {
        bail!(Usage(format!("{PACKAGE}:arm64 is unpacked on Debian 12 or 13 on x86-64 only")));
    };
    ui::note(&format!("unpacking package {PACKAGE}:arm64 and what it needs (not installing): a VMM for the host"));
    let apt = apt::Apt::prepare(&env.cache, debian, is_root())?;
    let names = apt.needs(PACKAGE, debian.backports())?;
    let fresh = env.cache.join("vmm.new");
    remove_tree(&fresh)?;
    apt.unpack(&names.iter().map(String::as_str).collect::<Vec<_>>(), &fresh)?;
    remove_tree(root)?;
    std::fs::rename(&fresh, root)?;
    Ok(())
}

/// The program, its loader, and every library that one of them names.
fn closure(root: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    let mut open: BTreeSet<String> = [PROGRAM, LOADER].map(str::to_owned).into();
    while let Some(path) = open.pop_first() {
        let file = root.join(&path);
        for name in needed(&file)? {
            let places = LIBRARIES.map(|dir| format!("{dir}/{name}"));
            let place = places.iter().find(|place| root.join(place).is_file());
            let place = place.with_context(|| format!("{path} needs {name}, which no package brought"))?;
            if !found.contains_key(place) {
                open.insert(place.clone());
            }
        }
        found.insert(path, file);
    }
    Ok(found)
}

fn needed(file: &Path) -> Result<Vec<String>> {
    let said = cmd::output(Command::new("aarch64-linux-gnu-readelf").arg("-d").arg(file))?;
    Ok(names(&said))
}

/// The libraries that the dynamic section of a file names.
fn names(said: &str) -> Vec<String> {
    let name = |line: &str| Some(line.split_once('[')?.1.split_once(']')?.0.to_owned());
    said.lines().filter(|line| line.contains("(NEEDED)")).filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needed_libraries_are_read_and_nothing_else() {
        let said = " 0x0000000000000001 (NEEDED)             Shared library: [libfdt.so.1]\n \
                    0x000000000000000e (SONAME)             Library soname: [libz.so.1]\n";
        assert_eq!(names(said), ["libfdt.so.1"]);
    }
}
