// SPDX-License-Identifier: MIT OR Apache-2.0
//! Running other programs: quietly, with their output kept for the error message.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// Runs `command` to its end and returns its stdout.
///
/// # Errors
/// If it cannot be started, or exits with a failure: then the message ends with the last lines that it said.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let name = shown(command);
    let out = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{name}`"))?;
    let stdout = String::from_utf8_lossy(&out.stdout).into_owned();
    if !out.status.success() {
        let stderr = String::from_utf8_lossy(&out.stderr);
        let said = if stderr.trim().is_empty() { &stdout } else { stderr.as_ref() };
        bail!("`{name}` failed ({}):\n{}", out.status, tail(said, 30));
    }
    Ok(stdout)
}

/// The first program called `name` on PATH.
pub(crate) fn which(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .map(|dir| dir.join(name))
        .find(|file| is_program(file))
}

/// A `cargo` of the same toolchain, started at `root`.
pub(crate) fn cargo(root: &Path) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.current_dir(root);
    // Set by the cargo that runs this program; they describe xtask, not what is built now.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|n| n.starts_with("CARGO_PKG_") || n.starts_with("CARGO_MANIFEST_")) {
            command.env_remove(name);
        }
    }
    command
}

/// `command`, ended by force with all that it started if it takes longer than `limit`, or if the thread that waits for it
/// ends: whoever stops this program at the keyboard does not reach it, for it has a process group of its own.
pub(crate) fn bounded(command: &Command, limit: Duration) -> Command {
    let mut outer = bound_to_us(Path::new("timeout"), "TERM");
    outer.arg("--kill-after=5").arg(limit.as_secs().to_string()).arg(command.get_program()).args(command.get_args());
    if let Some(dir) = command.get_current_dir() {
        outer.current_dir(dir);
    }
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    outer
}

/// A command that gets `signal` from the kernel when the thread that started it ends, even by SIGKILL.
pub(crate) fn bound_to_us(program: &Path, signal: &str) -> Command {
    match which("setpriv") {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", signal]).arg(program);
            command
        }
        None => Command::new(program),
    }
}

/// The last `count` lines of `text`.
pub(crate) fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

fn shown(command: &Command) -> String {
    let words: Vec<&OsStr> = std::iter::once(command.get_program()).chain(command.get_args().take(4)).collect();
    words.join(OsStr::new(" ")).to_string_lossy().into_owned()
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn tail_keeps_the_last_lines() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc");
        assert_eq!(tail("a", 2), "a");
        assert_eq!(tail("", 2), "");
    }

    #[test]
    fn nothing_bounded_outlives_whoever_waits_for_it() {
        let mut sleep = Command::new("sleep");
        sleep.arg("1000");
        let mut sleep = bounded(&sleep, Duration::from_secs(60));
        let waits = move || {
            let timeout = sleep.spawn().unwrap();
            // Only from here on does it know of us, and it of what it is to end.
            let children = format!("/proc/{0}/task/{0}/children", timeout.id());
            let mut inner = String::new();
            while inner.is_empty() {
                std::thread::sleep(Duration::from_millis(50));
                inner = std::fs::read_to_string(&children).unwrap();
            }
            (timeout, PathBuf::from(format!("/proc/{}", inner.trim())))
        };
        let begin = Instant::now();
        let (mut timeout, inner) = std::thread::spawn(waits).join().unwrap();
        assert!(!timeout.wait().unwrap().success());
        while inner.exists() && begin.elapsed() < Duration::from_secs(30) {
            std::thread::yield_now();
        }
        assert!(begin.elapsed() < Duration::from_secs(30), "{} goes on", inner.display());
    }

    #[test]
    fn a_failing_program_is_reported_with_what_it_said() {
        let error = output(Command::new("sh").args(["-c", "echo sad >&2; exit 4"])).unwrap_err();
        assert!(error.to_string().contains("sad"), "{error}");
    }
}
