// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames that a VM's tables, vCPUs and records live in: given to `el2` in chunks, and kept on a list until the VM ends.
//!
//! Keeps the driver's half of I8. Knows nothing of the guest's own memory.

use crate::el2::{Conduit, El2, Handle, Run};
use crate::error::Error;
use crate::status::Refused;
use freehold_uapi::hvc;

/// Largest chunk: 512 frames, the most that one call takes.
const MAX_ORDER: u32 = 9;
/// First chunk of a VM: 16 frames.
const FIRST_ORDER: u32 = 4;
/// Smallest top-up: 8 frames, so that a VM that grows page by page does not ask each time.
const TOPUP_ORDER: u32 = 3;

/// The kernel's side of a pool.
pub trait Frames {
    /// Takes `1 << order` contiguous frames from the kernel, hidden from dumps and scanners.
    fn take(&self, order: u32) -> Option<Run>;
    /// Runs `give`, and puts the chunk on the VM's list if `el2` took it. Nobody takes a chunk off the list between the
    /// two: who empties it after the VM was doomed finds every chunk.
    fn keep<R>(&self, chunk: Run, give: impl FnOnce() -> Result<R, Refused>) -> Result<R, Refused>;
    /// Takes a chunk off the VM's list.
    fn next(&self) -> Option<Run>;
    /// Returns a chunk to the kernel.
    fn give_back(&self, chunk: Run);
}

fn order_for(frames: u64, least: u32) -> Option<u32> {
    (least..=MAX_ORDER).find(|&order| 1_u64.checked_shl(order).is_some_and(|n| n >= frames))
}

/// Creates a VM out of a first chunk.
///
/// # Errors
/// `NoMemory`, or what `el2` says.
pub fn create<C: Conduit>(el2: &El2<C>, frames: &impl Frames, protected: bool, ipa_bits: u64) -> Result<Handle, Error> {
    let mut order = FIRST_ORDER;
    loop {
        let chunk = frames.take(order).ok_or(Error::NoMemory)?;
        match frames.keep(chunk, || el2.vm_create(protected, ipa_bits, chunk)) {
            Ok(handle) => return Ok(handle),
            Err(refused) => {
                frames.give_back(chunk);
                let Refused { status: hvc::NEED_PAGES, detail } = refused else { return Err(refused.into()) };
                let more = chunk.count.saturating_add(detail.max(1));
                // The next order holds more than this one did, so the loop ends.
                order = order_for(more, order).ok_or(Error::NoMemory)?;
            }
        }
    }
}

/// Adds at least `need` frames to the VM's pool.
///
/// # Errors
/// `NoMemory`, or what `el2` says; chunks that it took before stay in the pool.
pub fn grow<C: Conduit>(el2: &El2<C>, frames: &impl Frames, vm: Handle, need: u64) -> Result<(), Error> {
    let mut left = need.max(1);
    while left > 0 {
        let order = order_for(left, TOPUP_ORDER).unwrap_or(MAX_ORDER);
        // A fragmented machine still has single chunks of the smallest size.
        let chunk = frames.take(order).or_else(|| frames.take(0)).ok_or(Error::NoMemory)?;
        if let Err(refused) = frames.keep(chunk, || el2.pool_topup(vm, chunk)) {
            frames.give_back(chunk);
            return Err(refused.into());
        }
        left = left.saturating_sub(chunk.count);
    }
    Ok(())
}

/// Repeats a call that may be short of pool frames, topping the pool up between tries.
///
/// # Errors
/// What the call says, or `NoMemory`.
pub fn supplied<C: Conduit, R>(
    el2: &El2<C>,
    frames: &impl Frames,
    vm: Handle,
    mut call: impl FnMut() -> Result<R, Refused>,
) -> Result<R, Error> {
    // Each round adds what was asked for; a VM needs a few rounds at most, one per table level.
    for _ in 0..16 {
        match call() {
            Ok(done) => return Ok(done),
            Err(Refused { status: hvc::NEED_PAGES, detail }) => grow(el2, frames, vm, detail)?,
            Err(refused) => return Err(refused.into()),
        }
    }
    Err(Error::NoMemory)
}
