// SPDX-License-Identifier: MIT OR Apache-2.0
//! Calls of the host to el2.
//!
//! Guarantees that an unknown call answers `NOT_SUPPORTED` and changes nothing, and that registers
//! which are not results come back zero.

mod version;

use freehold_arch::vectors::HostFrame;
use freehold_uapi::hvc;

/// What a VM slot's lock protects.
#[derive(Debug)]
pub(crate) struct GuestSlot;

impl GuestSlot {
    /// A slot without a VM.
    pub(crate) const EMPTY: Self = Self;
}

/// Serves one call. The program counter is behind it already.
pub(crate) fn handle(frame: &mut HostFrame) {
    let results = match u32::try_from(frame.x(0)) {
        Ok(hvc::CALL_UID) => return uid(frame),
        Ok(hvc::VERSION) => version::version(),
        Ok(hvc::COUNTER) => version::counter(frame.x(1), frame.x(2)),
        _ => Err(hvc::NOT_SUPPORTED),
    };
    let (status, values) = match results {
        Ok(values) => (hvc::SUCCESS, values),
        Err(status) => (status, [0; 4]),
    };
    frame.set_x(0, status.cast_unsigned());
    for n in 1..=7 {
        frame.set_x(n, values.get(n - 1).copied().unwrap_or(0));
    }
}

fn uid(frame: &mut HostFrame) {
    for (n, word) in hvc::UID.into_iter().enumerate() {
        frame.set_x(n, word.into());
    }
}

/// Ends all VMs before the machine goes down. `false` if one still runs.
pub(crate) fn quiesce() -> bool {
    true
}
