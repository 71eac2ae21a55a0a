// SPDX-License-Identifier: MIT OR Apache-2.0
//! VMs made by raw calls, past the driver, out of frames of the hostile module.

use std::time::{Duration, Instant};

use freehold_uapi::hvc;

use crate::hostile::Hostile;
use crate::report::Step;

/// How long the driver may take to give everything back.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Name of a status.
pub(crate) fn status_name(status: i64) -> String {
    hvc::STATUSES
        .iter()
        .find(|item| item.value == status)
        .map_or_else(|| format!("status {status}"), |item| item.name.to_string())
}

/// A block of 512 frames of the module's.
pub(crate) struct Arena {
    pub(crate) first: u64,
    pub(crate) frames: u64,
}

impl Arena {
    /// Allocates 2^order frames.
    pub(crate) fn new(hostile: &Hostile, order: u64) -> Result<Self, String> {
        let first = hostile.alloc(order).map_err(|e| format!("frames of 2^{order}: {}", crate::sys::errno_name(e)))?;
        Ok(Self { first, frames: 1 << order })
    }

    /// Every frame number.
    pub(crate) fn all(&self) -> impl Iterator<Item = u64> + use<> {
        self.first..self.first + self.frames
    }
}

/// Ends a VM and takes back every frame of `frames` that is its own; the calls that are still refused at the end.
pub(crate) fn end(hostile: &Hostile, handle: u64, frames: &[u64]) -> usize {
    let _ = hostile.call(hvc::VM_DESTROY, &[handle]);
    let mut left: Vec<u64> = frames.to_vec();
    loop {
        let before = left.len();
        left.retain(|&pfn| hostile.call(hvc::VM_RECLAIM, &[handle, pfn, 1]) != hvc::SUCCESS);
        if left.len() == before || left.is_empty() {
            return left.len();
        }
    }
}

/// All counters that a refused call must leave alone.
pub(crate) fn books(hostile: &Hostile) -> Vec<(&'static str, u64)> {
    [
        ("blocks", hvc::COUNTER_HOST_BLOCKS),
        ("tables", hvc::COUNTER_HOST_TABLES),
        ("tables free", hvc::COUNTER_TABLES_FREE),
        ("broadcasts", hvc::COUNTER_TLB_BROADCASTS),
        ("splits", hvc::COUNTER_SPLITS),
        ("joins", hvc::COUNTER_JOINS),
        ("foreign", hvc::COUNTER_FOREIGN_FRAMES),
        ("vms", hvc::COUNTER_VMS),
    ]
    .map(|(name, counter)| (name, hostile.counter(counter, 0)))
    .to_vec()
}

/// The counters that must be as before once every VM is gone: [`books`] without what only ever grows.
pub(crate) fn resting(hostile: &Hostile) -> Vec<(&'static str, u64)> {
    let grows = ["broadcasts", "splits", "joins"];
    books(hostile).into_iter().filter(|(name, _)| !grows.contains(name)).collect()
}

/// Waits until the resting counters are as they were, and reports what they are at last.
pub(crate) fn settle(step: Step, case: &str, hostile: &Hostile, before: &[(&'static str, u64)]) {
    let start = Instant::now();
    let mut now = resting(hostile);
    while now != before && start.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(50));
        now = resting(hostile);
    }
    step.same(case, format!("{before:?}"), format!("{now:?}"));
}
