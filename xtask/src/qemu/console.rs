// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine's serial line: every byte goes to the log, whole lines go to whoever waits.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, ChildStdin};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Instant;

use anyhow::{Context as _, Result};

/// What came next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// A line, without its end.
    Line(String),
    /// The machine closed its console.
    Closed,
    /// Nothing until the deadline.
    Late,
}

/// Both directions of a machine's console.
pub(crate) struct Console {
    input: ChildStdin,
    chunks: Receiver<Vec<u8>>,
    pending: String,
}

impl Console {
    /// Takes over the standard streams of `child`, and writes what it prints to `log`.
    pub(super) fn attach(child: &mut Child, log: &Path) -> Result<Self> {
        if let Some(dir) = log.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let input = child.stdin.take().context("no stdin")?;
        let (sender, chunks) = channel();
        let errors = child.stderr.take().context("no stderr")?;
        pump(errors, file.try_clone()?, sender.clone());
        pump(child.stdout.take().context("no stdout")?, file, sender);
        Ok(Self { input, chunks, pending: String::new() })
    }

    /// The next line, waiting for it until `deadline`.
    pub(crate) fn line(&mut self, deadline: Instant) -> Read {
        loop {
            if let Some(end) = self.pending.find('\n') {
                let line: String = self.pending.drain(..=end).collect();
                return Read::Line(line.trim_end().to_owned());
            }
            match self.more(deadline) {
                Some(Read::Closed) if !self.pending.is_empty() => {
                    return Read::Line(std::mem::take(&mut self.pending).trim_end().to_owned());
                }
                Some(end) => return end,
                None => {}
            }
        }
    }

    /// Waits until `text` stands in what was printed, in the middle of a line too; consumes up to its end.
    pub(crate) fn wait_for(&mut self, text: &str, deadline: Instant) -> bool {
        loop {
            if let Some(at) = self.pending.find(text) {
                self.pending.drain(..at + text.len());
                return true;
            }
            if self.more(deadline).is_some() {
                return false;
            }
        }
    }

    /// Types `line` and return.
    ///
    /// # Errors
    /// If the machine has ended.
    pub(crate) fn send(&mut self, line: &str) -> Result<()> {
        writeln!(self.input, "{line}").and_then(|()| self.input.flush()).context("the machine's console is closed")
    }

    fn more(&mut self, deadline: Instant) -> Option<Read> {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.chunks.recv_timeout(left) {
            Ok(bytes) => {
                // A character that is cut by a chunk's end shows as a replacement; nothing that is parsed has any.
                self.pending.push_str(&String::from_utf8_lossy(&bytes).replace('\r', ""));
                None
            }
            Err(RecvTimeoutError::Timeout) => Some(Read::Late),
            Err(RecvTimeoutError::Disconnected) => Some(Read::Closed),
        }
    }
}

fn pump(mut from: impl std::io::Read + Send + 'static, mut log: File, to: Sender<Vec<u8>>) {
    std::thread::spawn(move || {
        let mut buffer = [0u8; 4096];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            // A full disk must not stop the machine; whoever waits still sees the line.
            let _ = log.write_all(&buffer[..count]);
            if to.send(buffer[..count].to_vec()).is_err() {
                break;
            }
        }
    });
}
