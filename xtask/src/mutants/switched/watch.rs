// SPDX-License-Identifier: MIT OR Apache-2.0
//! Watches a test binary that runs with `-q`, for the first test that fails.

use std::io::Read as _;
use std::process::ChildStdout;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Instant;

/// Reads the harness's one letter for each test until one failed, or the time is over; false at the end.
pub(super) fn first_failure(mut from: ChildStdout, until: Instant) -> bool {
    let (send, receive) = channel();
    std::thread::spawn(move || {
        let mut some = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut some) {
            if send.send(some[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    let mut said = Vec::new();
    loop {
        match receive.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(more) => said.extend(more),
            Err(RecvTimeoutError::Timeout) => return true,
            Err(RecvTimeoutError::Disconnected) => return false,
        }
        if said.split(|c| *c == b'\n').any(letters_with_failure) {
            return true;
        }
    }
}

/// A line of letters, one for each test: `.` passed, `i` ignored, `F` failed.
pub(super) fn letters_with_failure(line: &[u8]) -> bool {
    let at = line.iter().position(|c| !matches!(c, b'.' | b'i'));
    at.is_some_and(|at| line[at] == b'F' && line[at + 1..].iter().all(|c| matches!(c, b'.' | b'i' | b'F')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_results_with_a_failure_is_told_from_other_lines() {
        for line in ["F", "..F", ".i.F.", "FF"] {
            assert!(letters_with_failure(line.as_bytes()), "{line}");
        }
        for line in ["", "...", "running 3 tests", "..... 88/173", "Found", "test result: FAILED", ".F x"] {
            assert!(!letters_with_failure(line.as_bytes()), "{line}");
        }
    }
}
