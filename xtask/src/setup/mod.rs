// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sees to it that the machine has what a build and a boot need, and says where it is.
//!
//! Installs only through the distribution's package manager, names each package first, and leaves the system's apt
//! configuration as it is. arm64 packages are unpacked into the cache, never installed.

mod apt;
mod distro;
pub(crate) mod modules;
pub(crate) mod vmm;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::env::Env;
use crate::{Usage, cmd, ui};

const STAMP_VERSION: u32 = 3;
const CROSS_GCC: &str = "aarch64-linux-gnu-gcc";
const QEMU: &str = "qemu-system-aarch64";
const QEMU_MAJOR: u32 = 10;
const RUST_TARGETS: [&str; 2] = ["aarch64-unknown-none-softfloat", "aarch64-unknown-linux-musl"];

/// Where the tools and the stock host are.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct Tools {
    version: u32,
    /// The emulator.
    pub qemu: PathBuf,
    /// Debian's kernel release, as in `uname -r`.
    pub release: String,
    /// Debian's stock arm64 kernel Image.
    pub kernel: PathBuf,
    /// Its headers, ready for an out-of-tree module build.
    pub headers: PathBuf,
    /// A static arm64 busybox.
    pub busybox: PathBuf,
    /// U-Boot for the `virt` machine.
    pub uboot: PathBuf,
    /// Debian's newer stock kernel Image, which guests boot beside the host's.
    pub guest_kernel: PathBuf,
    /// Kernel and headers are those of `cargo xtask kernel --debug`, not Debian's build.
    #[serde(skip)]
    pub debug: bool,
}

/// Returns the tools, after it installed or unpacked what was missing.
///
/// # Errors
/// [`Usage`] where it cannot install: it names the packages then.
pub(crate) fn ensure(env: &Env) -> Result<Tools> {
    rust_targets(env)?;
    if let Some(tools) = stamped(env)
        && installed_missing().is_empty()
    {
        return Ok(tools);
    }
    std::fs::create_dir_all(&env.cache)?;
    let lock = std::fs::File::create(env.cache.join("lock"))?;
    lock.lock().context("cannot lock the cache")?;
    // Another set-up may have ended while this one waited for it.
    if let Some(tools) = stamped(env)
        && installed_missing().is_empty()
    {
        return Ok(tools);
    }
    ui::stage("set-up", |_| from_scratch(env))
}

fn stamp_path(env: &Env) -> PathBuf {
    env.cache.join("stamp.json")
}

fn stamped(env: &Env) -> Option<Tools> {
    let text = std::fs::read(stamp_path(env)).ok()?;
    let tools: Tools = serde_json::from_slice(&text).ok()?;
    let files = [&tools.qemu, &tools.kernel, &tools.busybox, &tools.uboot, &tools.guest_kernel];
    let there = files.iter().all(|f| f.is_file()) && tools.headers.join("Makefile").is_file();
    (there && tools.version == STAMP_VERSION).then_some(tools)
}

/// A package that must be installed, and what it is for.
type Wanted = (&'static str, &'static str);

fn installed_missing() -> Vec<Wanted> {
    let mut missing = Vec::new();
    if qemu_major().is_none_or(|major| major < QEMU_MAJOR) {
        missing.push(("qemu-system-arm", "QEMU 10 or newer, the machine that Freehold boots on"));
    }
    if cmd::which(CROSS_GCC).is_none() {
        missing.push(("gcc-aarch64-linux-gnu", "the C compiler for the kernel module"));
    }
    if cmd::which("make").is_none() {
        missing.push(("make", "drives the kernel module's build"));
    }
    if cmd::which("c++").is_none() {
        missing.push(("g++", "the C++ compiler for the fuzzer's engine"));
    }
    missing
}

fn qemu_major() -> Option<u32> {
    let program = cmd::which(QEMU)?;
    let said = cmd::output(Command::new(program).arg("--version")).ok()?;
    parse_qemu_major(&said)
}

fn parse_qemu_major(said: &str) -> Option<u32> {
    let version = said.strip_prefix("QEMU emulator version ")?;
    version.split('.').next()?.parse().ok()
}

/// The nightly whose Miri runs the tests; the build itself uses none.
pub(crate) const NIGHTLY: &str = "nightly-2026-10-30";

/// Sees to it that Miri is there.
///
/// # Errors
/// [`Usage`] where there is no rustup to install it with.
pub(crate) fn miri(env: &Env) -> Result<()> {
    let Some(rustup) = cmd::which("rustup") else {
        bail!(Usage(format!("Miri needs rustup, to install {NIGHTLY}")));
    };
    let mut list = Command::new(&rustup);
    list.args(["component", "list", "--installed", "--toolchain", NIGHTLY]);
    let there = cmd::output(&mut list).unwrap_or_default();
    if ["miri", "rust-src"].iter().all(|part| there.lines().any(|line| line.starts_with(part))) {
        return Ok(());
    }
    ui::note(&format!("installing {NIGHTLY} with Miri: interprets tests, and finds undefined behaviour"));
    let mut install = Command::new(&rustup);
    install.current_dir(&env.root).args(["toolchain", "install", NIGHTLY, "--profile", "minimal", "--no-self-update"]);
    cmd::output(install.args(["--component", "miri", "--component", "rust-src"]))?;
    Ok(())
}

fn rust_targets(env: &Env) -> Result<()> {
    let sysroot = cmd::output(Command::new("rustc").current_dir(&env.root).args(["--print", "sysroot"]))?;
    let libraries = Path::new(sysroot.trim()).join("lib/rustlib");
    let missing: Vec<_> = RUST_TARGETS.into_iter().filter(|t| !libraries.join(t).join("lib").is_dir()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let Some(rustup) = cmd::which("rustup") else {
        bail!(Usage(format!("missing Rust targets: install rustup, or add {}", missing.join(" "))));
    };
    ui::note(&format!("adding Rust targets: {}", missing.join(" ")));
    cmd::output(Command::new(rustup).current_dir(&env.root).args(["target", "add"]).args(&missing))?;
    Ok(())
}

fn from_scratch(env: &Env) -> Result<Tools> {
    let missing = installed_missing();
    let distro = distro::Distro::this_machine();
    let Some(debian) = distro.debian() else {
        bail!(Usage(by_hand(&distro.name, &missing)));
    };
    let root = is_root();
    let sudo = if root { None } else { cmd::which("sudo") };
    if !missing.is_empty() && !root && sudo.is_none() {
        bail!(Usage(by_hand("neither root nor sudo", &missing)));
    }
    let apt = apt::Apt::prepare(&env.cache, debian, root)?;
    install(&apt, debian, &missing, sudo.as_deref())?;
    let tools = unpack(env, &apt)?;
    let text = serde_json::to_vec_pretty(&tools)?;
    std::fs::write(stamp_path(env), text).context("cannot write the set-up stamp")?;
    Ok(tools)
}

fn by_hand(why: &str, missing: &[Wanted]) -> String {
    let mut packages: Vec<&str> = missing.iter().map(|(package, _)| *package).collect();
    packages.extend([
        "(unpacked, arm64) linux-image-6.12, linux-headers-6.12, linux-kbuild-6.12, busybox-static, u-boot-qemu, \
         linux-image-7.2",
    ]);
    format!("set-up needs Debian 12 or 13 on x86-64 ({why}); have installed: {}", packages.join(", "))
}

fn install(apt: &apt::Apt, debian: distro::Debian, missing: &[Wanted], sudo: Option<&Path>) -> Result<()> {
    install_all(apt, debian, missing, sudo)?;
    match installed_missing().first() {
        None => Ok(()),
        Some((package, why)) => bail!("package {package} is installed, but still missing: {why}"),
    }
}

fn install_all(apt: &apt::Apt, debian: distro::Debian, missing: &[Wanted], sudo: Option<&Path>) -> Result<()> {
    for (package, why) in missing {
        ui::note(&format!("installing package {package}: {why}"));
    }
    for (package, _) in missing {
        let from = if *package == "qemu-system-arm" { debian.backports() } else { None };
        apt.install(package, from, sudo)?;
    }
    Ok(())
}

fn unpack(env: &Env, apt: &apt::Apt) -> Result<Tools> {
    let release = apt.newest_kernel()?;
    let short = release.strip_suffix("-arm64").unwrap_or(&release);
    let (guest_release, guest_package) = apt.newest_guest_kernel()?;
    let packages = [
        (format!("linux-image-{release}:arm64"), "the stock host kernel"),
        (format!("linux-headers-{release}:arm64"), "its headers"),
        (format!("linux-headers-{short}-common"), "its headers"),
        (format!("linux-kbuild-{short}"), "its build scripts"),
        ("busybox-static:arm64".to_owned(), "the host's userspace"),
        ("u-boot-qemu".to_owned(), "the second boot loader"),
        (format!("{guest_package}:arm64"), "the second stock guest kernel"),
    ];
    let root = env.cache.join("root");
    let fresh = env.cache.join("root.new");
    remove_tree(&fresh)?;
    for (package, why) in &packages {
        ui::note(&format!("unpacking package {package} (not installing): {why}"));
    }
    let names: Vec<&str> = packages.iter().map(|(name, _)| name.as_str()).collect();
    apt.unpack(&names, &fresh)?;
    remove_tree(&root)?;
    std::fs::rename(&fresh, &root)?;
    let tools = Tools {
        version: STAMP_VERSION,
        qemu: cmd::which(QEMU).context("no QEMU")?,
        kernel: root.join("boot").join(format!("vmlinuz-{release}")),
        headers: root.join("usr/src").join(format!("linux-headers-{release}")),
        busybox: first_file(&[root.join("bin/busybox"), root.join("usr/bin/busybox")])?,
        uboot: root.join("usr/lib/u-boot/qemu_arm64/u-boot.bin"),
        guest_kernel: first_file(&[
            root.join("usr/lib/modules").join(&guest_release).join("vmlinuz"),
            root.join("boot").join(format!("vmlinuz-{guest_release}")),
        ])?,
        release: release.clone(),
        debug: false,
    };
    // The package names /usr/src; this copy was never installed there.
    let common = root.join("usr/src").join(format!("linux-headers-{short}-common/Makefile"));
    std::fs::write(tools.headers.join("Makefile"), format!("include {}\n", common.display()))?;
    for file in [&tools.kernel, &tools.uboot, &common] {
        if !file.is_file() {
            bail!("a package was unpacked, but {} is not there", file.display());
        }
    }
    Ok(tools)
}

/// What a kernel's build needs beside a compiler.
const KERNEL_BUILD: [(&str, Wanted); 4] = [
    ("flex", ("flex", "scanners of the kernel's configuration")),
    ("bison", ("bison", "parsers of the kernel's configuration")),
    ("bc", ("bc", "constants of the kernel's clocks")),
    ("xz", ("xz-utils", "unpacks the kernel's source")),
];

/// Downloads Debian's source of the stock host kernel and unpacks it to `to`; installs what its build needs.
///
/// # Errors
/// [`Usage`] where it cannot install: it names the packages then.
pub(crate) fn kernel_source(env: &Env, tools: &Tools, to: &Path) -> Result<()> {
    let missing: Vec<Wanted> = KERNEL_BUILD
        .into_iter()
        .filter(|(program, _)| cmd::which(program).is_none())
        .map(|(_, wanted)| wanted)
        .collect();
    let distro = distro::Distro::this_machine();
    let root = is_root();
    let sudo = if root { None } else { cmd::which("sudo") };
    let Some(debian) = distro.debian().filter(|_| missing.is_empty() || root || sudo.is_some()) else {
        bail!(Usage(by_hand(&distro.name, &missing)));
    };
    let apt = apt::Apt::prepare(&env.cache, debian, root)?;
    install_all(&apt, debian, &missing, sudo.as_deref())?;
    let version = tools.release.split('+').next().unwrap_or_default();
    let package = apt.version_of("linux-source-6.12", version)?;
    ui::note(&format!("unpacking package {package} (not installing): the source of the stock host kernel"));
    let fresh = to.with_extension("new");
    remove_tree(&fresh)?;
    apt.unpack(&[&package], &fresh)?;
    let archive = fresh.join("usr/src/linux-source-6.12.tar.xz");
    cmd::output(Command::new("tar").arg("-xJf").arg(&archive).arg("-C").arg(&fresh))?;
    remove_tree(to)?;
    std::fs::rename(fresh.join("linux-source-6.12"), to).context("the package has no source")?;
    remove_tree(&fresh)
}

fn remove_tree(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

fn first_file(candidates: &[PathBuf]) -> Result<PathBuf> {
    candidates
        .iter()
        .find(|f| f.is_file())
        .cloned()
        .with_context(|| format!("a package was unpacked, but {} is not there", candidates[0].display()))
}

fn is_root() -> bool {
    cmd::output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemu_version_is_read() {
        assert_eq!(parse_qemu_major("QEMU emulator version 10.0.2 (Debian 1:10.0.2)\n"), Some(10));
        assert_eq!(parse_qemu_major("QEMU emulator version 7.2.0"), Some(7));
        assert_eq!(parse_qemu_major("something else"), None);
    }

    #[test]
    fn by_hand_names_each_missing_package_in_one_line() {
        let line = by_hand("fedora", &[("make", "x"), ("qemu-system-arm", "y")]);
        assert!(line.contains("make, qemu-system-arm") && !line.contains('\n'), "{line}");
    }
}
