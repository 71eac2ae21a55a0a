// SPDX-License-Identifier: MIT OR Apache-2.0
//! A `guest_memfd` and what Freehold adds to it: conversion, and what a waiting conversion waits for.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use freehold_uapi::ioctl::{
    CONVERT_NOTIFY, CONVERT_NOW, CONVERT_TO_PRIVATE, CONVERT_TO_SHARED, CONVERT_WAIT, Convert, FREEHOLD_CANCEL,
    FREEHOLD_CONVERT, FREEHOLD_OUTCOME, FREEHOLD_PENDING, FREEHOLD_POPULATE, KVM_SET_MEMORY_ATTRIBUTES2,
    MemoryAttributes2, Outcome, Pending, Populate,
};

use crate::sys::{self, Mapping};

/// A conversion that says nothing yet.
pub(crate) const CONVERT: Convert =
    Convert { offset: 0, size: 0, to: 0, mode: CONVERT_WAIT, timeout_ms: 0, error_offset: 0, reserved: [0; 3] };
const PENDING: Pending =
    Pending { pending: 0, pad: 0, offset: 0, frozen: 0, total: 0, tries: 0, completed: 0, begun: 0, ended: 0 };

/// The descriptor.
pub(crate) struct Gmem(OwnedFd);

impl AsRawFd for Gmem {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Gmem {
    /// Takes over the descriptor that the VM's ioctl made.
    pub(crate) fn new(fd: RawFd) -> Self {
        Self(sys::owned(fd.into()))
    }

    /// Maps the file from its start.
    pub(crate) fn map(&self, bytes: usize) -> Result<Mapping, i32> {
        Mapping::new(self, 0, bytes, libc::PROT_READ | libc::PROT_WRITE)
    }

    /// Converts a range to private and waits, at most `timeout_ms` (0: for ever). The errno and the offset it names.
    pub(crate) fn to_private(&self, offset: u64, size: u64, timeout_ms: u64) -> Result<(), (i32, u64)> {
        self.convert(Convert { offset, size, to: CONVERT_TO_PRIVATE, timeout_ms, ..CONVERT })
    }

    /// Converts a range to private at once or not at all.
    pub(crate) fn to_private_now(&self, offset: u64, size: u64) -> Result<(), (i32, u64)> {
        self.convert(Convert { offset, size, to: CONVERT_TO_PRIVATE, mode: CONVERT_NOW, ..CONVERT })
    }

    /// Converts a range back to shared.
    pub(crate) fn to_shared(&self, offset: u64, size: u64) -> Result<(), (i32, u64)> {
        self.convert(Convert { offset, size, to: CONVERT_TO_SHARED, ..CONVERT })
    }

    /// Converts a range to private and does not wait; `EINPROGRESS` where it goes on by itself.
    pub(crate) fn to_private_notify(&self, offset: u64, size: u64, timeout_ms: u64) -> Result<(), (i32, u64)> {
        self.convert(Convert { offset, size, to: CONVERT_TO_PRIVATE, mode: CONVERT_NOTIFY, timeout_ms, ..CONVERT })
    }

    /// How that ended, once: the range, the errno, and the offset that it names.
    pub(crate) fn outcome(&self) -> Result<Outcome, i32> {
        let mut answer = Outcome { offset: 0, size: 0, error: 0, pad: 0, error_offset: 0, reserved: [0; 4] };
        sys::ioctl(self, FREEHOLD_OUTCOME, &mut answer)?;
        Ok(answer)
    }

    /// Has every pending conversion of the file give up.
    pub(crate) fn cancel(&self) -> Result<(), i32> {
        sys::ioctl_value(self, FREEHOLD_CANCEL, 0).map(|_| ())
    }

    /// Whether poll(2) says within `millis` that there is an outcome.
    pub(crate) fn polls_in(&self, millis: i32) -> bool {
        let mut poll = libc::pollfd { fd: self.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        unsafe { libc::poll(&raw mut poll, 1, millis) };
        poll.revents & libc::POLLIN != 0
    }

    /// Upstream's proposed call on the file.
    pub(crate) fn attributes(&self, mut ask: MemoryAttributes2) -> Result<(), (i32, u64)> {
        match sys::ioctl(self, KVM_SET_MEMORY_ATTRIBUTES2, &mut ask) {
            Ok(_) => Ok(()),
            Err(error) => Err((error, ask.error_offset)),
        }
    }

    /// Copies contents into private offsets that have none.
    pub(crate) fn populate(&self, mut ask: Populate) -> Result<(), (i32, u64)> {
        match sys::ioctl(self, FREEHOLD_POPULATE, &mut ask) {
            Ok(_) => Ok(()),
            Err(error) => Err((error, ask.error_offset)),
        }
    }

    /// Any conversion, right or wrong.
    pub(crate) fn convert(&self, mut ask: Convert) -> Result<(), (i32, u64)> {
        match sys::ioctl(self, FREEHOLD_CONVERT, &mut ask) {
            Ok(_) => Ok(()),
            Err(error) => Err((error, ask.error_offset)),
        }
    }

    /// What a conversion of this file waits for.
    pub(crate) fn pending(&self) -> Result<Pending, i32> {
        let mut answer = PENDING;
        sys::ioctl(self, FREEHOLD_PENDING, &mut answer)?;
        Ok(answer)
    }
}

/// A conversion's result as text: `0`, or the errno's name and the offset.
pub(crate) fn converted(result: Result<(), (i32, u64)>) -> String {
    match result {
        Ok(()) => "0".to_string(),
        Err((error, offset)) => format!("{} at {offset:#x}", sys::errno_name(error)),
    }
}
