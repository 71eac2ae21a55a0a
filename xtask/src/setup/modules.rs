// SPDX-License-Identifier: MIT OR Apache-2.0
//! Modules of the stock host kernel that a suite loads: the kernel's own server of queues in a process's memory, and its
//! driver of a disk that reaches memory by itself.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::{Tools, apt, distro, is_root, remove_tree};
use crate::env::Env;
use crate::{Usage, ui};

/// Directories below the kernel's modules, as tar's patterns; little else is in them.
pub(super) const PATTERNS: [&str; 3] =
    ["*/kernel/drivers/vhost", "*/kernel/net/vmw_vsock", "*/kernel/drivers/block/virtio_blk.*"];
/// What is loaded, in an order in which each finds what it needs.
const FILES: [&str; 6] = [
    "net/vmw_vsock/vsock",
    "net/vmw_vsock/vmw_vsock_virtio_transport_common",
    "drivers/vhost/vhost_iotlb",
    "drivers/vhost/vhost",
    "drivers/vhost/vhost_vsock",
    "drivers/block/virtio_blk",
];

/// The modules, compressed as Debian packages them, after it unpacked them if they were not there.
///
/// # Errors
/// [`Usage`] where there is no apt to get them with; if the package lacks one.
pub(crate) fn files(env: &Env, tools: &Tools) -> Result<Vec<PathBuf>> {
    let root = env.cache.join("modules");
    // A set-up of an older release left only the kernel itself.
    for place in [env.cache.join("root"), root.clone()] {
        if let Some(files) = all_in(&place, &tools.release) {
            return Ok(files);
        }
    }
    let lock = std::fs::File::create(env.cache.join("lock"))?;
    lock.lock().context("cannot lock the cache")?;
    if all_in(&root, &tools.release).is_none() {
        unpack(env, tools, &root)?;
    }
    all_in(&root, &tools.release).context("the host kernel's package lacks a module")
}

fn all_in(root: &Path, release: &str) -> Option<Vec<PathBuf>> {
    FILES.iter().map(|name| one_in(root, release, name)).collect()
}

fn one_in(root: &Path, release: &str, name: &str) -> Option<PathBuf> {
    let places = ["lib/modules", "usr/lib/modules"].map(|dir| root.join(dir).join(release).join("kernel"));
    let mut files = places.iter().flat_map(|dir| ["ko.xz", "ko"].map(|kind| dir.join(format!("{name}.{kind}"))));
    files.find(|file| file.is_file())
}

fn unpack(env: &Env, tools: &Tools, root: &Path) -> Result<()> {
    let package = format!("linux-image-{}:arm64", tools.release);
    let Some(debian) = distro::Distro::this_machine().debian() else {
        bail!(Usage(format!("{package} is unpacked on Debian 12 or 13 on x86-64 only")));
    };
    ui::note(&format!("unpacking package {package} (not installing): modules of the stock host kernel"));
    let fresh = root.with_extension("new");
    remove_tree(&fresh)?;
    apt::Apt::prepare(&env.cache, debian, is_root())?.unpack(&[&package], &fresh)?;
    remove_tree(root)?;
    std::fs::rename(&fresh, root)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_found_only_if_all_are_there() {
        let root = std::env::temp_dir().join(format!("freehold-modules-{}", std::process::id()));
        let dir = root.join("lib/modules/1-arm64/kernel");
        for (at, name) in FILES.iter().enumerate() {
            assert_eq!(all_in(&root, "1-arm64"), None, "{at} of {}", FILES.len());
            let file = dir.join(format!("{name}.ko.xz"));
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, "").unwrap();
        }
        assert_eq!(all_in(&root, "1-arm64").map(|files| files.len()), Some(FILES.len()));
        assert_eq!(all_in(&root, "2-arm64"), None);
        remove_tree(&root).unwrap();
    }
}
