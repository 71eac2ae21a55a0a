// SPDX-License-Identifier: MIT OR Apache-2.0
//! Builds every part with the tool that it needs, and says which parts are not there yet.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::env::Env;
use crate::image::Extent;
use crate::initramfs::Archive;
use crate::setup::{self, Tools};
use crate::{cmd, image, ui};

#[path = "../../tests/guest/src/proto.rs"]
mod proto;

const BARE: &str = "aarch64-unknown-none-softfloat";
const MUSL: &str = "aarch64-unknown-linux-musl";
const BLOCK: u64 = 2 << 20;

/// What a boot needs, as files.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    /// The flat el2.
    pub el2: Option<PathBuf>,
    /// el2 with Debian's kernel.
    pub image: Option<PathBuf>,
    /// The host's initramfs, without a Linux guest.
    pub initramfs: PathBuf,
    /// Parts that are not there yet.
    pub missing: Vec<&'static str>,
}

/// Builds every part that is there; if `wanted` names any, only those.
///
/// # Errors
/// If something that is there does not build.
pub(crate) fn all(env: &Env, tools: &Tools, wanted: &[String]) -> Result<Parts> {
    let mut missing = Vec::new();
    let real = |name: &str, path: &str| (wanted.is_empty() || wanted.iter().any(|w| w == name)) && real(env, path);
    let mut archive = Archive::base(env, &tools.busybox)?;
    let el2 = optional("el2", real("el2", "el2/hyp/src/main.rs"), &mut missing, || el2(env))?;
    let guest = optional("guest", real("guest", "tests/guest/src/main.rs"), &mut missing, || guest(env))?;
    let vmm = optional("vmm", real("vmm", "tests/vmm/src/main.rs"), &mut missing, || vmm(env))?;
    let module = optional("module", real("module", "host-driver/linux/Kbuild"), &mut missing, || driver(env, tools))?;
    let wide = optional("wide", real("wide", "tests/wide/Kbuild"), &mut missing, || wide_driver(env, tools))?;
    let hostile = optional("hostile", real("hostile", "tests/hostile/Kbuild"), &mut missing, || hostile(env, tools))?;
    let beside = |name: &str| hostile.as_ref().map(|_| kbuild(env, tools).join("fh_hostile").join(name));
    optional("selftest", real("selftest", "tests/selftest/src/main.rs"), &mut missing, || selftest(env, tools))?;
    let places = [
        (guest, "lib/guest.bin"),
        (vmm, "bin/freehold-vmm"),
        (module, "lib/freehold.ko"),
        (wide, "lib/wide/freehold.ko"),
        // The same build makes the slow disk, and what a kernel that watches itself must complain of.
        (beside("fh_slow.ko"), "lib/fh_slow.ko"),
        (beside("fh_bad.ko"), "lib/fh_bad.ko"),
        (hostile, "lib/fh_hostile.ko"),
    ];
    for (file, path) in places {
        if let Some(file) = file {
            archive.add(path, &file)?;
        }
    }
    // The other kernel has them built in.
    let modules = if tools.debug { Vec::new() } else { setup::modules::files(env, tools)? };
    for file in modules {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        archive.add(&format!("lib/debian/{name}"), &file)?;
    }
    let initramfs = env.out.join("initramfs.cpio");
    image::write_whole(&initramfs, &archive.padded(1 << 20)?)?;
    let bundle = match &el2 {
        Some(el2) => {
            let out = env.out.join("freehold.img");
            image::bundle(el2, &tools.kernel, &out)?;
            Some(out)
        }
        None => None,
    };
    Ok(Parts { el2, image: bundle, initramfs, missing })
}

fn optional(
    name: &'static str,
    there: bool,
    missing: &mut Vec<&'static str>,
    build: impl FnOnce() -> Result<PathBuf>,
) -> Result<Option<PathBuf>> {
    if !there {
        missing.push(name);
        return Ok(None);
    }
    ui::stage(&format!("build {name}"), |_| build()).map(Some)
}

/// Whether the part whose main file is at `path` has been written.
fn real(env: &Env, path: &str) -> bool {
    std::fs::read_to_string(env.root.join(path)).is_ok_and(|text| !text.contains("//! Placeholder."))
}

/// Builds el2, as it is linked.
///
/// # Errors
/// If it does not build.
pub(crate) fn el2_elf(env: &Env) -> Result<PathBuf> {
    el2_elf_by(cmd::cargo(&env.root))
}

/// The same by another cargo, of another tree.
///
/// # Errors
/// If it does not build.
pub(crate) fn el2_elf_by(cargo: Command) -> Result<PathBuf> {
    build_by(cargo, "freehold-el2", BARE, &[])
}

/// Builds el2 and flattens it.
///
/// # Errors
/// If it does not build.
pub(crate) fn el2(env: &Env) -> Result<PathBuf> {
    let elf = el2_elf(env)?;
    let out = env.out.join("el2.bin");
    let flat = image::flatten(&std::fs::read(elf)?, BLOCK, Extent::Memory).context("el2")?;
    image::write_whole(&out, &flat)?;
    Ok(out)
}

/// The debug el2s, each with Debian's kernel.
#[derive(Clone, Debug)]
pub(crate) struct Watched {
    /// As shipped, and watched.
    pub sound: PathBuf,
    /// With a fault that must be found while it runs.
    pub broken: PathBuf,
    /// With another one, in a guest's tables.
    pub leaf: PathBuf,
    /// With another one, in what a guest is told of an exception.
    pub misled: PathBuf,
    /// With a fault that its trace alone shows.
    pub stale: PathBuf,
}

/// Builds them.
///
/// # Errors
/// If one does not build.
pub(crate) fn all_watched(env: &Env, tools: &Tools) -> Result<Watched> {
    ui::stage("build el2-watch", |_| {
        let one = |name| watched(env, tools, name);
        Ok(Watched {
            sound: one("el2-watch")?,
            broken: one("el2-watch-broken")?,
            leaf: one("el2-watch-leaf")?,
            misled: one("el2-watch-misled")?,
            stale: one("el2-watch-stale")?,
        })
    })
}

/// Builds the debug el2 called `name`, and bundles it with Debian's kernel.
///
/// # Errors
/// If it does not build.
pub(crate) fn watched(env: &Env, tools: &Tools, name: &str) -> Result<PathBuf> {
    let elf = build(env, "freehold-el2-watch", BARE, &["--bin", name])?;
    let out = env.out.join(format!("{name}.bin"));
    let flat = image::flatten(&std::fs::read(elf)?, BLOCK, Extent::Memory).context("the debug el2")?;
    image::write_whole(&out, &flat)?;
    let bundle = env.out.join(format!("freehold-{name}.img"));
    image::bundle(&out, &tools.kernel, &bundle)?;
    Ok(bundle)
}

fn guest(env: &Env) -> Result<PathBuf> {
    let elf = build(env, "freehold-guest", BARE, &[])?;
    let out = env.out.join("guest.bin");
    let flat = image::flatten(&std::fs::read(elf)?, 8, Extent::File).context("guest")?;
    image::write_whole(&out, &with_own_hash(flat)?)?;
    Ok(out)
}

/// Writes the payload's length and hash into its header, so that it can tell whether it is what was built.
fn with_own_hash(mut image: Vec<u8>) -> Result<Vec<u8>> {
    if image
        .get(proto::HEADER_MAGIC_OFFSET..proto::HASH_FROM)
        .is_none_or(|h| h[..8] != proto::HEADER_MAGIC.to_le_bytes())
    {
        bail!("the guest's image does not begin with its header");
    }
    let hash = proto::hash_words(&image[proto::HASH_FROM..]);
    let length = image.len() as u64;
    for (at, word) in [(proto::HEADER_LEN_OFFSET, length), (proto::HEADER_HASH_OFFSET, hash)] {
        image[at..at + 8].copy_from_slice(&word.to_le_bytes());
    }
    Ok(image)
}

fn vmm(env: &Env) -> Result<PathBuf> {
    build(env, "freehold-vmm", MUSL, &[])
}

/// Builds the program of Linux guests, and their initramfs.
fn selftest(env: &Env, tools: &Tools) -> Result<PathBuf> {
    let program = build(env, "freehold-selftest", MUSL, &[])?;
    let mut archive = Archive::default();
    archive.add("init", &env.root.join("tests/initramfs/guest/init"))?;
    archive.add("bin/busybox", &tools.busybox)?;
    archive.add("bin/selftest", &program)?;
    let out = guest_initramfs(env);
    image::write_whole(&out, &archive.bytes()?)?;
    Ok(out)
}

fn guest_initramfs(env: &Env) -> PathBuf {
    env.out.join("guest-initramfs.cpio")
}

/// The host's initramfs, as it was built last, with a Linux guest in it: Debian's kernel for the host or the newer one.
///
/// # Errors
/// If something is not there or cannot be written.
pub(crate) fn with_guest(env: &Env, tools: &Tools, newer: bool) -> Result<PathBuf> {
    let (kernel, name) = if newer { (&tools.guest_kernel, "newer") } else { (&tools.kernel, "older") };
    let mut guest = Archive::default();
    guest.add("guest/kernel", kernel)?;
    guest.add("guest/initrd", &guest_initramfs(env))?;
    let mut all = std::fs::read(env.out.join("initramfs.cpio")).context("no initramfs")?;
    // The kernel unpacks archives one after another.
    all.extend(guest.bytes()?);
    let out = env.out.join(format!("initramfs-{name}-guest.cpio"));
    image::write_whole(&out, &all)?;
    Ok(out)
}

/// As the host's initramfs, with the kernel and initramfs in it that a host would go on with by kexec: the same.
///
/// # Errors
/// If something is not there or cannot be written.
pub(crate) fn with_successor(env: &Env, tools: &Tools) -> Result<PathBuf> {
    let base = env.out.join("initramfs.cpio");
    let mut archive = Archive::default();
    archive.add("next/kernel", &tools.kernel)?;
    archive.add("next/initrd", &base)?;
    let mut all = std::fs::read(&base).context("no initramfs")?;
    all.extend(archive.bytes()?);
    let out = env.out.join("initramfs-successor.cpio");
    image::write_whole(&out, &all)?;
    Ok(out)
}

/// Where modules are built: a place for each kernel, for the objects of one are of no use to another.
fn kbuild(env: &Env, tools: &Tools) -> PathBuf {
    env.out.join(if tools.debug { "kbuild-debug" } else { "kbuild" })
}

/// As [`with_guest`], and a VMM that nobody here wrote.
///
/// # Errors
/// If something is not there or cannot be written.
pub(crate) fn with_foreign_vmm(env: &Env, tools: &Tools) -> Result<PathBuf> {
    let mut all = std::fs::read(with_guest(env, tools, false)?)?;
    let mut archive = Archive::default();
    for (path, file) in setup::vmm::files(env)? {
        archive.add(&path, &file)?;
    }
    all.extend(archive.bytes()?);
    let out = env.out.join("initramfs-foreign-vmm.cpio");
    image::write_whole(&out, &all)?;
    Ok(out)
}

fn driver(env: &Env, tools: &Tools) -> Result<PathBuf> {
    let work = kbuild(env, tools).join("freehold");
    driver_sources(env, &work, "Kbuild")?;
    kernel_module(env, tools, &work, "freehold", "freehold")
}

/// The shipped module with the layer of `tests/wide` in it.
fn wide_driver(env: &Env, tools: &Tools) -> Result<PathBuf> {
    let work = kbuild(env, tools).join("freehold-wide");
    driver_sources(env, &work, "Kbuild.shipped")?;
    copy_sources(&env.root.join("tests/wide"), &work, &[])?;
    kernel_module(env, tools, &work, "freehold", "freehold-wide")
}

fn hostile(env: &Env, tools: &Tools) -> Result<PathBuf> {
    let work = kbuild(env, tools).join("fh_hostile");
    copy_sources(&env.root.join("tests/hostile"), &work, &[])?;
    kernel_module(env, tools, &work, "fh_hostile", "fh_hostile")
}

/// Copies what the module is made of to `work`, its Kbuild as `kbuild`.
fn driver_sources(env: &Env, work: &Path, kbuild: &str) -> Result<()> {
    let source = env.root.join("host-driver/linux");
    copy_sources(&source, work, &["Kbuild"])?;
    copy_if_changed(&source.join("Kbuild"), &work.join(kbuild))?;
    for file in [build(env, "freehold-driver-linux", BARE, &[])?, env.root.join("uapi/include/freehold.h")] {
        copy_if_changed(&file, &work.join(file.file_name().unwrap_or_default()))?;
    }
    Ok(())
}

/// Builds `package` and returns the one file that it makes: a program, or a static library.
fn build(env: &Env, package: &str, target: &str, more: &[&str]) -> Result<PathBuf> {
    build_by(cmd::cargo(&env.root), package, target, more)
}

fn build_by(mut command: Command, package: &str, target: &str, more: &[&str]) -> Result<PathBuf> {
    command.args(["build", "--release", "--package", package, "--target", target]);
    command.args(["--message-format", "json-render-diagnostics"]).args(more);
    let said = cmd::output(&mut command)?;
    said.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|m| m["reason"] == "compiler-artifact")
        .filter(|m| m["package_id"].as_str().is_some_and(|id| id.contains(package)))
        .filter_map(|m| product(&m))
        .next_back()
        .with_context(|| format!("{package} builds, but makes neither a program nor a static library"))
}

/// Builds the emulator's plugin that counts, for this machine.
///
/// # Errors
/// If it does not build.
pub(crate) fn counter(env: &Env) -> Result<PathBuf> {
    let mut command = cmd::cargo(&env.root);
    command.args(["build", "--release", "--package", "freehold-count", "--message-format", "json-render-diagnostics"]);
    let said = cmd::output(&mut command)?;
    said.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|m| {
            let files = m["filenames"].as_array()?;
            files
                .iter()
                .filter_map(Value::as_str)
                .find(|f| f.ends_with(".so") && f.contains("count"))
                .map(PathBuf::from)
        })
        .next_back()
        .context("freehold-count builds, but makes no shared library")
}

fn product(message: &Value) -> Option<PathBuf> {
    if let Some(program) = message["executable"].as_str() {
        return Some(PathBuf::from(program));
    }
    let files = message["filenames"].as_array()?;
    files.iter().filter_map(Value::as_str).find(|f| f.ends_with(".a")).map(PathBuf::from)
}

/// Builds the module `name` from the sources in `work`, outside of the source tree, against the host kernel's headers.
fn kernel_module(env: &Env, tools: &Tools, work: &Path, name: &str, out: &str) -> Result<PathBuf> {
    let mut make = Command::new("make");
    make.arg("-s").arg("-C").arg(&tools.headers).arg(format!("M={}", work.display()));
    // The packaged headers ask for BTF, which needs pahole; the module does without.
    make.args(["CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"]);
    if tools.debug {
        make.args(crate::kernel::CROSS);
    }
    make.arg(concat!("FREEHOLD_RELEASE=", env!("CARGO_PKG_VERSION"))).env_remove("MAKEFLAGS");
    cmd::output(&mut make)?;
    let module = work.join(format!("{name}.ko"));
    if !module.is_file() {
        bail!("the kernel build made no {}", env.shown(&module));
    }
    let out = env.out.join(format!("{out}.ko"));
    copy_if_changed(&module, &out)?;
    Ok(out)
}

/// Copies a directory, save files of the names in `without`.
fn copy_sources(from: &Path, to: &Path, without: &[&str]) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default();
        if path.is_dir() {
            copy_sources(&path, &to.join(name), without)?;
        } else if !without.iter().any(|file| name == *file) {
            copy_if_changed(&path, &to.join(name))?;
        }
    }
    Ok(())
}

/// Keeps the time stamp of what has not changed, so that make does not build it again.
fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let bytes = std::fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if std::fs::read(to).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    image::write_whole(to, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_is_told_its_length_and_hash() {
        assert!(with_own_hash(vec![0; 4096]).is_err(), "no magic");
        assert!(with_own_hash(Vec::new()).is_err());
        let mut image = vec![7u8; 4096];
        let at = proto::HEADER_MAGIC_OFFSET;
        image[at..at + 8].copy_from_slice(&proto::HEADER_MAGIC.to_le_bytes());
        let told = with_own_hash(image.clone()).unwrap();
        let word = |at: usize| u64::from_le_bytes(told[at..at + 8].try_into().unwrap());
        assert_eq!(word(proto::HEADER_LEN_OFFSET), 4096);
        assert_eq!(word(proto::HEADER_HASH_OFFSET), proto::hash_words(&image[proto::HASH_FROM..]));
        assert_eq!(told[proto::HASH_FROM..], image[proto::HASH_FROM..]);
    }
}
