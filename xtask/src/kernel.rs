// SPDX-License-Identifier: MIT OR Apache-2.0
//! A host kernel that watches itself: Debian's source of the stock host kernel, with the few parts that the suites need
//! and with KASAN, lockdep and their kin (`tests/kernel/debug.config`). Too long for CI; it stays in the cache.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::env::Env;
use crate::setup::{self, Tools};
use crate::{Usage, cmd, ui};

/// What make is told of the machine that it builds for.
pub(crate) const CROSS: [&str; 2] = ["ARCH=arm64", "CROSS_COMPILE=aarch64-linux-gnu-"];
const CONFIG: &str = "tests/kernel/debug.config";

/// What the user may choose.
#[derive(clap::Args)]
pub(crate) struct KernelArgs {
    /// The kernel that watches itself (there is no other to build)
    #[arg(long, required = true)]
    debug: bool,
    /// Compilers at a time
    #[arg(long, default_value_t = 2)]
    jobs: u32,
}

/// Where it is built, and its source beside it.
struct Place {
    source: PathBuf,
    build: PathBuf,
}

impl Place {
    fn of(env: &Env) -> Self {
        let dir = env.cache.join("debug-kernel");
        // The kernel's build asks the shell where it is, which knows of no link on the way there.
        let dir = dir.canonicalize().unwrap_or(dir);
        Self { source: dir.join("source"), build: dir.join("build") }
    }

    fn image(&self) -> PathBuf {
        self.build.join("arch/arm64/boot/Image")
    }

    fn make(&self) -> Command {
        let mut make = Command::new("make");
        make.arg("-s").arg("-C").arg(&self.source).arg(format!("O={}", self.build.display())).args(CROSS);
        make.env_remove("MAKEFLAGS");
        make
    }
}

/// Builds it.
///
/// # Errors
/// If the source is not to be had, an option of the configuration is not to be had, or the build fails.
pub(crate) fn build(env: &Env, args: &KernelArgs) -> Result<()> {
    debug_assert!(args.debug);
    let tools = setup::ensure(env)?;
    std::fs::create_dir_all(env.cache.join("debug-kernel"))?;
    let place = Place::of(env);
    if !place.source.join("Makefile").is_file() {
        setup::kernel_source(env, &tools, &place.source)?;
    }
    let begin = std::time::Instant::now();
    ui::stage("configure", |_| configure(&place, &env.root.join(CONFIG)))?;
    ui::stage("build the kernel", |_| {
        cmd::output(place.make().arg(format!("-j{}", args.jobs)).args(["Image", "modules"]))
    })?;
    println!("{} in {} s", env.shown(&place.image()), begin.elapsed().as_secs());
    Ok(())
}

fn configure(place: &Place, wanted: &Path) -> Result<()> {
    std::fs::create_dir_all(&place.build)?;
    let file = place.build.join(".config");
    let kept = place.build.join("wanted");
    let text = std::fs::read_to_string(wanted)?;
    // A configuration that is written anew has everything compiled anew.
    if std::fs::read_to_string(&kept).is_ok_and(|old| old == text) && file.is_file() {
        return Ok(());
    }
    cmd::output(place.make().arg(format!("KCONFIG_ALLCONFIG={}", wanted.display())).arg("allnoconfig"))?;
    if let [first, ..] = lost(&text, &std::fs::read_to_string(&file)?).as_slice() {
        bail!("{CONFIG}: {first} can not be had");
    }
    std::fs::write(kept, text)?;
    Ok(())
}

/// Options that were asked for and did not come out.
fn lost<'t>(wanted: &'t str, got: &str) -> Vec<&'t str> {
    wanted.lines().filter(|line| line.starts_with("CONFIG_") && !got.lines().any(|have| have == *line)).collect()
}

/// The tools, with this kernel as the host's.
///
/// # Errors
/// [`Usage`] if it was not built yet.
pub(crate) fn instead(env: &Env, mut tools: Tools) -> Result<Tools> {
    let place = Place::of(env);
    let release = std::fs::read_to_string(place.build.join("include/config/kernel.release")).unwrap_or_default();
    if !place.image().is_file() || !place.build.join("Module.symvers").is_file() {
        bail!(Usage("--kernel debug: there is none; `cargo xtask kernel --debug` builds it".to_owned()));
    }
    tools.kernel = place.image();
    tools.headers = place.build;
    tools.release = release.trim().to_owned();
    tools.debug = true;
    Ok(tools)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_that_did_not_come_out_is_found() {
        let wanted = "# comment\nCONFIG_A=y\nCONFIG_B=y\nCONFIG_C=\"x\"\n";
        assert_eq!(lost(wanted, "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=\"x\"\n"), ["CONFIG_B=y"]);
        assert!(lost(wanted, wanted).is_empty());
    }
}
