// SPDX-License-Identifier: MIT OR Apache-2.0
//! `freehold-vmm run` as a child: its output line by line, its input, its end.

use std::io::{BufRead as _, BufReader, Write};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::{ChildStderr, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use super::heard::{Heard, Open};
use super::terminal::Terminal;
use crate::sys;

/// What reading a line came to.
pub(super) enum Read {
    Line(String),
    /// No more comes.
    Closed,
    /// None came in time.
    Late,
}

/// A VMM that runs. Dropping it kills it.
pub(super) struct Child {
    process: std::process::Child,
    lines: Receiver<String>,
    open: Arc<Open>,
    input: Box<dyn Write>,
    /// What it says on standard error, until that is closed.
    said: Option<JoinHandle<String>>,
}

fn command(arguments: &[impl AsRef<std::ffi::OsStr>]) -> Result<Command, String> {
    let me = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut command = Command::new(me);
    command.arg("run").args(arguments);
    Ok(command)
}

/// Exit status and standard error of a run that is expected to be refused.
pub(super) fn refused(arguments: &[&str]) -> Result<(Option<i32>, String), String> {
    let out = command(arguments)?.stdin(Stdio::null()).output().map_err(|e| format!("spawn: {e}"))?;
    Ok((out.status.code(), String::from_utf8_lossy(&out.stderr).trim_end().to_owned()))
}

/// A VMM that prints there, and what a user types on.
fn begun(
    arguments: &[String],
    terminal: Option<&Terminal>,
    out: Stdio,
) -> Result<(std::process::Child, Box<dyn Write>), String> {
    let mut command = command(arguments)?;
    command.stdin(terminal.map_or(Ok(Stdio::piped()), Terminal::program)?);
    command.stdout(out).stderr(Stdio::piped());
    let mut process = command.spawn().map_err(|e| format!("spawn: {e}"))?;
    let input: Box<dyn Write> = match (terminal, process.stdin.take()) {
        (Some(terminal), _) => Box::new(terminal.keys()?),
        (None, input) => Box::new(input.ok_or("no pipe")?),
    };
    Ok((process, input))
}

/// A descriptor that can be read once the process has ended.
fn descriptor(process: &std::process::Child) -> Result<OwnedFd, String> {
    // SAFETY: takes numbers and returns a new descriptor; nobody has waited for the process.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, process.id(), 0) };
    if fd < 0 { Err(format!("pidfd_open: {}", sys::errno_name(sys::last_errno()))) } else { Ok(sys::owned(fd)) }
}

/// Collects what is said on standard error, and says it too.
fn listen(err: ChildStderr) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let lines = BufReader::new(err).lines().map_while(Result::ok);
        let lines = lines.inspect(|line| eprintln!("{line}"));
        lines.collect::<Vec<_>>().join("\n")
    })
}

/// The output of a VMM that nobody reads: a pipe that holds a page.
pub(super) struct Unread(ChildStdout);

impl Unread {
    const ROOM: libc::c_int = 4096;

    /// Bytes in it.
    pub(super) fn bytes(&self) -> libc::c_int {
        let mut bytes = 0;
        // SAFETY: the number is alive during the call.
        unsafe { libc::ioctl(self.0.as_raw_fd(), libc::FIONREAD as _, &raw mut bytes) };
        bytes
    }

    pub(super) fn is_full(&self) -> bool {
        self.bytes() == Self::ROOM
    }
}

impl Child {
    /// Starts it, perhaps with its input at a terminal, and reads nothing of what it prints.
    pub(super) fn unheard(arguments: &[String], terminal: Option<&Terminal>) -> Result<(Self, Unread), String> {
        let (mut process, input) = begun(arguments, terminal, Stdio::piped())?;
        let unread = Unread(process.stdout.take().ok_or("no pipe")?);
        // SAFETY: plain numbers.
        unsafe { libc::fcntl(unread.0.as_raw_fd(), libc::F_SETPIPE_SZ, Unread::ROOM) };
        let said = listen(process.stderr.take().ok_or("no pipe")?);
        // No line ever comes.
        let (lines, open) = (channel().1, Arc::default());
        Ok((Self { process, lines, open, input, said: Some(said) }, unread))
    }

    /// Starts it; what it prints goes to our own output too, marked as the guest's.
    pub(super) fn run(arguments: &[String]) -> Result<Self, String> {
        Self::at(arguments, None)
    }

    /// The same, at a terminal: its input and its output are that.
    pub(super) fn at(arguments: &[String], terminal: Option<&Terminal>) -> Result<Self, String> {
        let out = terminal.map_or(Ok(Stdio::piped()), Terminal::program)?;
        let (mut process, input) = begun(arguments, terminal, out)?;
        let said = listen(process.stderr.take().ok_or("no pipe")?);
        let (heard, lines, open) = Heard::new();
        match (terminal, process.stdout.take()) {
            (Some(terminal), _) => {
                let (user, ended) = (terminal.keys()?, descriptor(&process)?);
                std::thread::spawn(move || heard.take_terminal(user, &ended));
            }
            (None, out) => {
                let out = out.ok_or("no pipe")?;
                std::thread::spawn(move || heard.take_pipe(out));
            }
        }
        Ok(Self { process, lines, open, input, said: Some(said) })
    }

    /// Waits until it has printed this since its last line's end; what it has printed since then.
    pub(super) fn shows(&self, what: &str, deadline: Instant) -> String {
        self.open.shows(what, deadline)
    }

    /// The next line.
    pub(super) fn line(&self, deadline: Instant) -> Read {
        match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => Read::Line(line),
            Err(RecvTimeoutError::Disconnected) => Read::Closed,
            Err(RecvTimeoutError::Timeout) => Read::Late,
        }
    }

    /// Types on the guest's console; a guest that is gone says so by its end.
    pub(super) fn type_in(&mut self, text: &str) {
        let _ = self.input.write_all(text.as_bytes());
    }

    pub(super) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Whether it runs still.
    pub(super) fn runs(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    /// Asks it to end.
    pub(super) fn end(&self) {
        let Ok(id) = libc::pid_t::try_from(self.process.id()) else { return };
        // SAFETY: plain numbers; the process is our child and was not waited for.
        unsafe { libc::kill(id, libc::SIGTERM) };
    }

    /// Its exit status, as text, and what it said on standard error: it has closed its output, or is killed.
    pub(super) fn ended(mut self) -> (String, String) {
        let status = self.wait();
        let said = if status.starts_with("none") { None } else { self.said.take() };
        (status, said.and_then(|said| said.join().ok()).unwrap_or_default())
    }

    fn wait(&mut self) -> String {
        let limit = Instant::now() + std::time::Duration::from_secs(60);
        loop {
            match self.process.try_wait() {
                Ok(Some(status)) => return status.code().map_or_else(|| status.to_string(), |code| code.to_string()),
                Ok(None) if Instant::now() < limit => std::thread::sleep(std::time::Duration::from_millis(20)),
                Ok(None) => return "none: it runs on".to_owned(),
                Err(error) => return error.to_string(),
            }
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
