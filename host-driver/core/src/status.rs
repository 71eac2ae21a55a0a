// SPDX-License-Identifier: MIT OR Apache-2.0
//! One table from the statuses of host calls to the driver's errors.

use crate::error::Error;
use freehold_uapi::hvc;

/// A host call that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The status, one of `hvc::STATUSES` except success.
    pub status: i64,
    /// x1 of the answer: frames needed for `NEED_PAGES`, else zero.
    pub detail: u64,
}

/// Status and error, for every status but success.
pub const TABLE: &[(i64, Error)] = &[
    (hvc::NOT_SUPPORTED, Error::NoDevice),
    (hvc::WRONG_HANDLE, Error::Io),
    (hvc::STALE_HANDLE, Error::Ended),
    (hvc::WRONG_VCPU, Error::Invalid),
    (hvc::VCPU_BUSY, Error::Busy),
    (hvc::VCPU_EXISTS, Error::Exists),
    (hvc::WRONG_STATE, Error::Denied),
    (hvc::NO_SLOT, Error::NoSpace),
    (hvc::NO_VMS, Error::NoDevice),
    (hvc::ZERO_COUNT, Error::Invalid),
    (hvc::COUNT_TOO_LARGE, Error::Invalid),
    (hvc::OVERFLOW, Error::Invalid),
    (hvc::UNALIGNED, Error::Invalid),
    (hvc::BAD_ARGUMENT, Error::Invalid),
    (hvc::NOT_MEMORY, Error::Fault),
    (hvc::NO_MAP, Error::Fault),
    (hvc::EL2_OWNED, Error::Fault),
    (hvc::ALREADY_DONATED, Error::Exists),
    (hvc::FOREIGN, Error::Fault),
    (hvc::SHARED, Error::Busy),
    (hvc::TWICE, Error::Invalid),
    (hvc::HOST_OWNED, Error::Fault),
    (hvc::GFN_OUT_OF_RANGE, Error::Fault),
    (hvc::GFN_MAPPED, Error::Exists),
    (hvc::GFN_NOT_MAPPED, Error::Fault),
    (hvc::GFN_POISONED, Error::Poisoned),
    (hvc::BAD_RANGE, Error::Exists),
    (hvc::NEED_PAGES, Error::NoMemory),
    (hvc::GUEST_FRAMES_LEFT, Error::Busy),
    (hvc::NO_REQUEST, Error::Io),
    (hvc::DENIED, Error::Denied),
];

impl From<Refused> for Error {
    /// A status that the table lacks means an `el2` of another ABI: `EIO`.
    fn from(refused: Refused) -> Self {
        TABLE.iter().find(|row| row.0 == refused.status).map_or(Self::Io, |row| row.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_but_success_has_exactly_one_error() {
        for item in hvc::STATUSES {
            let rows = TABLE.iter().filter(|row| row.0 == item.value).count();
            assert_eq!(rows, usize::from(item.value != hvc::SUCCESS), "{}", item.name);
        }
        assert_eq!(TABLE.len() + 1, hvc::STATUSES.len());
    }

    #[test]
    fn unknown_status_is_an_io_error() {
        assert_eq!(Error::from(Refused { status: -9999, detail: 0 }), Error::Io);
    }
}
