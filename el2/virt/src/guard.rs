// SPDX-License-Identifier: MIT OR Apache-2.0
//! The MMIO guard: calls by which a protected guest says which accesses outside RAM its host may see (D15).
//!
//! pKVM's functions 5 to 8. What is open is kept by `freehold_mem`; that nothing else leaves is for whoever runs the vCPU.

use freehold_mem::{GfnRun, Guest, Kind, MAX_DEVICES};
use freehold_uapi::guest::{self, GRANULE};

use crate::guest_call::identifier;

const _: () = assert!(MAX_DEVICES as u64 == guest::MMIO_RUNS);

/// Serves the call with x0–x3 and says what x0 takes; `None` if it is another one, or the VM has no such calls.
pub fn serve([x0, x1, x2, x3]: [u64; 4], vm: &mut Guest) -> Option<i64> {
    let id = u32::try_from(identifier(x0)).ok().filter(|_| vm.kind() == Some(Kind::Protected))?;
    let run = if (x1 % GRANULE) | x2 | x3 == 0 { GfnRun::decode(x1 / GRANULE, 1).ok() } else { None };
    let done = match id {
        guest::MMIO_GUARD_INFO if x1 | x2 | x3 == 0 => return Some(GRANULE.cast_signed()),
        guest::MMIO_GUARD_ENROLL if x1 | x2 | x3 == 0 => {
            vm.guard();
            true
        }
        guest::MMIO_GUARD_MAP | guest::MMIO_GUARD_UNMAP => {
            run.is_some_and(|run| vm.set_open(run, id == guest::MMIO_GUARD_MAP).is_ok())
        }
        guest::MMIO_GUARD_INFO | guest::MMIO_GUARD_ENROLL => false,
        _ => return None,
    };
    Some(if done { guest::OK } else { guest::INVALID_PARAMETER })
}

#[cfg(test)]
mod tests;
