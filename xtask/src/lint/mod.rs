// SPDX-License-Identifier: MIT OR Apache-2.0
//! House law as code: who may import whom, licences, where `unsafe` may stand, size of the trusted base, clippy, format.

mod imports;
mod obligations;
mod once;
mod requirements;
mod size;
mod source;
mod text;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::cmd;
use crate::env::Env;
use crate::test::{Context, Item, Work};

/// The checks, as a suite.
pub(crate) fn works() -> Vec<Work> {
    let check = |name: &'static str, run: fn(&Env) -> Result<Vec<String>>| {
        Work::new(name, move |context: &Context<'_>| {
            let found = run(context.env)?;
            Ok(vec![Item::new(name, (!found.is_empty()).then(|| found.join("\n")))])
        })
    };
    vec![
        check("lint/imports", imports::check),
        check("lint/licences", text::licences),
        check("lint/paths", text::paths),
        check("lint/unsafe", source::unsafe_code),
        check("lint/one-place", once::check),
        check("lint/obligations", obligations::check),
        check("lint/requirements", requirements::check),
        check("lint/size", size::check),
        check("lint/format", |env| {
            ran(cmd::cargo(&env.root).args(["fmt", "--all", "--check", "--", "--color", "never"]))
        }),
        check("lint/clippy-host", |env| clippy(env, &HOST, &["--all-targets"])),
        check("lint/clippy-el2", |env| clippy(env, &EL2, &["--target", BARE])),
        check("lint/clippy-driver", |env| clippy(env, &["freehold-driver-linux"], &["--target", BARE])),
        check("lint/clippy-guest", |env| clippy(env, &["freehold-guest"], &["--target", BARE])),
        check("lint/clippy-vmm", |env| clippy(env, &MUSL, &["--target", "aarch64-unknown-linux-musl"])),
    ]
}

const BARE: &str = "aarch64-unknown-none-softfloat";
const HOST: [&str; 13] = [
    "freehold-count",
    "freehold-vmm-boot",
    "freehold-uapi",
    "freehold-mem",
    "freehold-virt",
    "freehold-el2",
    "freehold-el2-watch",
    "freehold-driver-core",
    "freehold-model",
    "freehold-fuzz",
    "freehold-states",
    "freehold-trace",
    "xtask",
];
const MUSL: [&str; 2] = ["freehold-vmm", "freehold-selftest"];
const EL2: [&str; 5] = ["freehold-mem", "freehold-virt", "freehold-arch", "freehold-el2", "freehold-el2-watch"];

fn clippy(env: &Env, packages: &[&str], more: &[&str]) -> Result<Vec<String>> {
    let mut command = cmd::cargo(&env.root);
    command.arg("clippy").args(more);
    for package in packages {
        command.args(["--package", package]);
    }
    ran(command.args(["--", "-D", "warnings"]))
}

/// Nothing, or what a failing `command` said.
fn ran(command: &mut Command) -> Result<Vec<String>> {
    Ok(cmd::output(command).err().map(|error| error.to_string()).into_iter().collect())
}

/// Every file of the work tree that git tracks or would track, relative to the root.
fn files(env: &Env) -> Result<Vec<PathBuf>> {
    let mut git = Command::new("git");
    git.current_dir(&env.root).args(["ls-files", "--cached", "--others", "--exclude-standard"]);
    let listed = cmd::output(&mut git)?;
    Ok(listed.lines().map(PathBuf::from).filter(|f| env.root.join(f).is_file()).collect())
}

fn is_rust(file: &Path) -> bool {
    file.extension().is_some_and(|e| e == "rs")
}
