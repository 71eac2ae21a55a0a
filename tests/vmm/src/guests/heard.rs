// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a VMM prints, by a pipe or at a terminal: whole lines, and the beginning of one that has not ended.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

/// The beginning of a line.
#[derive(Default)]
pub(super) struct Open {
    text: Mutex<Vec<u8>>,
    more: Condvar,
}

impl Open {
    /// Waits until it contains `what`; what it is then, or at the deadline.
    pub(super) fn shows(&self, what: &str, deadline: Instant) -> String {
        let mut text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let seen = String::from_utf8_lossy(&text).into_owned();
            let left = deadline.saturating_duration_since(Instant::now());
            if seen.contains(what) || left.is_zero() {
                return seen;
            }
            text = self.more.wait_timeout(text, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Takes what is printed, and prints it too, marked as the guest's.
pub(super) struct Heard {
    lines: Sender<String>,
    open: Arc<Open>,
}

impl Heard {
    pub(super) fn new() -> (Self, Receiver<String>, Arc<Open>) {
        let (sender, lines) = channel();
        let open = Arc::<Open>::default();
        (Self { lines: sender, open: Arc::clone(&open) }, lines, open)
    }

    /// Takes these; whether anybody listens still.
    fn take(&self, bytes: &[u8]) -> bool {
        let mut text = self.open.text.lock().unwrap_or_else(PoisonError::into_inner);
        for byte in bytes {
            if *byte != b'\n' {
                text.push(*byte);
                continue;
            }
            let line = String::from_utf8_lossy(&text).trim_end().to_owned();
            text.clear();
            // Stamps are for us alone.
            if !line.contains("fh-guest: stamp ") {
                println!("guest| {line}");
            }
            if self.lines.send(line).is_err() {
                return false;
            }
        }
        self.open.more.notify_all();
        true
    }

    /// Takes all that a pipe gives.
    pub(super) fn take_pipe(&self, mut pipe: impl Read) {
        while self.some(&mut pipe) {}
    }

    /// Takes all that is printed at a terminal until a process has ended, by the user's end of one and a descriptor of the
    /// other.
    pub(super) fn take_terminal(&self, mut user: File, process: &OwnedFd) {
        let mut is_over = false;
        loop {
            let ask = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
            let mut both = [ask(user.as_raw_fd()), ask(process.as_raw_fd())];
            // SAFETY: the array is alive during the call, and as long as it says.
            unsafe { libc::poll(both.as_mut_ptr(), both.len() as libc::nfds_t, -1) };
            if both[0].revents & libc::POLLIN != 0 {
                if !self.some(&mut user) {
                    return;
                }
            } else if is_over {
                return;
            }
            // What it printed before is there now, and is taken first.
            is_over = both[1].revents != 0;
        }
    }

    /// Takes some; whether there may be more.
    fn some(&self, from: &mut impl Read) -> bool {
        let mut bytes = [0; 4096];
        match from.read(&mut bytes) {
            Ok(0) => false,
            Ok(count) => self.take(&bytes[..count]),
            Err(error) => error.kind() == ErrorKind::Interrupted,
        }
    }
}

impl Drop for Heard {
    /// What ended without its line's end is a line too.
    fn drop(&mut self) {
        let is_empty = self.open.text.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        if !is_empty {
            self.take(b"\n");
        }
    }
}
