// SPDX-License-Identifier: MIT OR Apache-2.0
//! What went wrong, and KVM's errno for it.

/// Why the driver refuses. Each variant is one errno of the KVM ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Not allowed to this VM, or not any more (`EPERM`).
    Denied,
    /// No such register, capability or feature (`ENOENT`).
    NoEntry,
    /// A signal or `immediate_exit` ended the call (`EINTR`).
    Interrupted,
    /// A signal ended the call, which the kernel repeats unless it runs a handler (`EINTR` then): `ERESTARTNOHAND`.
    Restart,
    /// The hypervisor broke its word (`EIO`).
    Io,
    /// No such attribute, or an address that is missing (`ENXIO`).
    NoAddress,
    /// Beyond the address space (`E2BIG`).
    TooBig,
    /// The vCPU is not initialised (`ENOEXEC`).
    NotReady,
    /// Not a file, or not of the right kind (`EBADF`).
    BadFile,
    /// Somebody still holds a page (`EAGAIN`).
    Again,
    /// No memory (`ENOMEM`).
    NoMemory,
    /// A bad address, in the caller or in the guest (`EFAULT`).
    Fault,
    /// In use (`EBUSY`).
    Busy,
    /// Overlaps what is there (`EEXIST`).
    Exists,
    /// No such device (`ENODEV`).
    NoDevice,
    /// An argument is wrong (`EINVAL`).
    Invalid,
    /// No such ioctl (`ENOTTY`).
    NoIoctl,
    /// No room left (`ENOSPC`).
    NoSpace,
    /// Not supported by this file (`EOPNOTSUPP`).
    NotSupported,
    /// The deadline passed (`ETIMEDOUT`).
    TimedOut,
    /// The page is poisoned (`EHWPOISON`).
    Poisoned,
    /// The VM has ended (`ESHUTDOWN`).
    Ended,
    /// It goes on, and poll says when it has ended (`EINPROGRESS`).
    InProgress,
    /// It was cancelled (`ECANCELED`).
    Cancelled,
}

impl Error {
    /// Linux' number, positive; the same on every architecture that Freehold serves.
    #[must_use]
    pub const fn errno(self) -> i32 {
        match self {
            Self::Denied => 1,
            Self::NoEntry => 2,
            Self::Interrupted => 4,
            Self::Io => 5,
            Self::NoAddress => 6,
            Self::TooBig => 7,
            Self::NotReady => 8,
            Self::BadFile => 9,
            Self::Again => 11,
            Self::NoMemory => 12,
            Self::Fault => 14,
            Self::Busy => 16,
            Self::Exists => 17,
            Self::NoDevice => 19,
            Self::Invalid => 22,
            Self::NoIoctl => 25,
            Self::NoSpace => 28,
            Self::NotSupported => 95,
            Self::Ended => 108,
            Self::TimedOut => 110,
            Self::InProgress => 115,
            Self::Cancelled => 125,
            Self::Restart => 514,
            Self::Poisoned => 133,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;

    #[test]
    fn an_errno_is_what_linux_calls_by_that_name() {
        for (error, kind) in [
            (Error::Denied, ErrorKind::PermissionDenied),
            (Error::NoEntry, ErrorKind::NotFound),
            (Error::Interrupted, ErrorKind::Interrupted),
            (Error::TooBig, ErrorKind::ArgumentListTooLong),
            (Error::Again, ErrorKind::WouldBlock),
            (Error::NoMemory, ErrorKind::OutOfMemory),
            (Error::Busy, ErrorKind::ResourceBusy),
            (Error::Exists, ErrorKind::AlreadyExists),
            (Error::Invalid, ErrorKind::InvalidInput),
            (Error::NoSpace, ErrorKind::StorageFull),
            (Error::TimedOut, ErrorKind::TimedOut),
        ] {
            assert_eq!(std::io::Error::from_raw_os_error(error.errno()).kind(), kind, "{error:?}");
        }
    }
}
