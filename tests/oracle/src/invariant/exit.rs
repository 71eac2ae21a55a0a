// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an exit may show the host of an access outside RAM.

use freehold_uapi::hvc;

use super::{Broken, must};
use crate::record::Mark;
use crate::state::State;

const PAGE: u64 = 4096;

/// Holds I4 (by D9) against an exit of a VM's vCPU, x1 to x4, and the records as they were when its guest stopped: no
/// byte of an access that the host is shown is RAM, and where the guest guards, each lies in a frame that it has opened.
///
/// # Errors
/// The first frame that the host must not hear of.
pub fn exit(s: &impl State, slot: u8, [reason, ipa, how, _]: [u64; 4]) -> Result<(), Broken> {
    if reason != hvc::EXIT_MMIO {
        return Ok(());
    }
    let size = how & !hvc::MMIO_WRITE;
    must(size.is_power_of_two() && size <= 8, 4, "an access of no size that there is", how)?;
    let last = ipa.checked_add(size - 1);
    must(last.is_some(), 4, "an access beyond every address", ipa)?;
    for gfn in ipa / PAGE..=last.unwrap_or(ipa) / PAGE {
        let mut declared = (0..s.machine().ranges).map_while(|n| s.range(slot, n));
        let is_ram = declared.any(|(first, count)| gfn.checked_sub(first).is_some_and(|at| at < count));
        must(!is_ram, 4, "an access to RAM was shown to the host", gfn)?;
        let open = !s.vm(slot).guarded || s.mark(slot, gfn) == Mark::Device;
        must(open, 4, "the host was shown what its guest has not opened", gfn)?;
    }
    Ok(())
}
