// SPDX-License-Identifier: MIT OR Apache-2.0
//! What `el2` counted until the host was up: few entries, no fault, no small table.
//!
//! Judges the boot as a whole, so it runs before anything else asks `el2` for something.

use freehold_uapi::hvc;

use crate::hostile::Hostile;
use crate::report::Step;

const STEP: Step = Step("2");
/// Entries of one CPU that a boot may take: PSCI, discovery, and the calls that read the counters.
const ENTRIES: u64 = 20;

/// Reports the counters of a host that has just come up.
pub(crate) fn at_boot() -> Result<(), String> {
    let hostile = Hostile::open()?;
    let cpus = hostile.counter(hvc::COUNTER_CPUS, 0);
    let entries: Vec<u64> = (0..cpus).map(|cpu| hostile.counter(hvc::COUNTER_ENTRIES, cpu)).collect();
    // A secondary may never have entered; the first CPU has, or nothing is counted at all.
    let counted = entries.first().is_some_and(|first| *first > 0);
    let few = counted && entries.iter().all(|count| *count <= ENTRIES);
    STEP.judged("el2-entries-per-cpu", &format!("at most {ENTRIES} each"), format!("{entries:?}"), few);
    STEP.same("host-stage2-faults", 0, hostile.counter(hvc::COUNTER_HOST_FAULTS, 0));
    STEP.same("host-4k-tables", 0, hostile.counter(hvc::COUNTER_HOST_TABLES, 0));
    let blocks = hostile.counter(hvc::COUNTER_HOST_BLOCKS, 0);
    STEP.judged("host-blocks", "some", blocks, blocks > 0);
    Ok(())
}
