// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where the guest's console goes: standard output, as fast as somebody takes it and no longer than the VM runs.
//!
//! Whoever waits for a reader holds nothing that keys and signals need, and stops waiting when the VM has ended.

use std::io::IsTerminal as _;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Mutex, PoisonError};

use crate::sys::{self, errno_name};

const STDOUT: RawFd = 1;

/// How long a reader is waited for.
#[derive(Clone, Copy)]
pub(super) enum Patience {
    /// Until there is one.
    Endless,
    /// Only what fits goes out.
    None,
}

/// What was printed and is on its way.
#[derive(Default)]
pub(super) struct Output(Mutex<Vec<u8>>);

/// Whether a user reads the output.
pub(super) fn watched() -> bool {
    std::io::stdout().is_terminal()
}

impl Output {
    /// Writes what is on its way and then what `take` gives, until `over` can be read. What nobody took stays on its way.
    ///
    /// In the order in which it was printed: it is taken by whoever writes next.
    pub(super) fn put(
        &self,
        take: impl FnOnce() -> Vec<u8>,
        over: &impl AsRawFd,
        patience: Patience,
    ) -> Result<(), String> {
        // So much fits where anything does.
        let most = if watched() { 1 } else { libc::PIPE_BUF };
        let mut way = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        way.extend(take());
        while !way.is_empty() && has_reader(over, patience) {
            match sys::write_from(&STDOUT, way.as_ptr(), way.len().min(most)) {
                Ok(done) => drop(way.drain(..usize::try_from(done).unwrap_or(0))),
                Err(libc::EINTR | libc::EAGAIN) => {}
                Err(error) => return Err(format!("standard output: {}", errno_name(error))),
            }
        }
        Ok(())
    }
}

/// Waits until something fits; false if `over` can be read, or nothing fits and nobody has the patience.
fn has_reader(over: &impl AsRawFd, patience: Patience) -> bool {
    let timeout = match patience {
        Patience::Endless => -1,
        Patience::None => 0,
    };
    let ask = |fd, events| libc::pollfd { fd, events, revents: 0 };
    let mut both = [ask(STDOUT, libc::POLLOUT), ask(over.as_raw_fd(), libc::POLLIN)];
    loop {
        // SAFETY: the array is alive during the call, and as long as it says.
        let ready = unsafe { libc::poll(both.as_mut_ptr(), both.len() as libc::nfds_t, timeout) };
        if ready >= 0 || sys::last_errno() != libc::EINTR {
            return both[0].revents != 0 && both[1].revents == 0;
        }
    }
}
