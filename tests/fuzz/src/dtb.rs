// SPDX-License-Identifier: MIT OR Apache-2.0
//! The device tree reader and editor: any blob ends in a machine or in a `Stop`, and never in anything else (I7).
//!
//! What is accepted is read a second time, by a reader that shares nothing with the first. What was edited is read
//! again: it is the same machine without the carve-outs, and editing it again changes nothing.

mod build;
mod reread;

use core::ops::Range;

use freehold_el2::dtb::machine::Machine;
use freehold_el2::dtb::{Dtb, edit};

use crate::Tally;
use build::Bytes;

/// Edited blobs are at most a little larger than their source.
const ROOM: usize = 4096;
const BLOCK: u64 = 2 << 20;

/// Reads and edits the blob that `data` is (if its first byte is odd) or describes.
///
/// # Panics
/// On a finding.
#[must_use]
pub fn run(data: &[u8]) -> Tally {
    let mut bytes = Bytes(data);
    let mode = bytes.byte();
    let holes = [bytes.byte(), bytes.byte()];
    let blob = if mode & 1 == 1 { bytes.0.to_vec() } else { build::build(&mut bytes) };
    Tally { steps: 1, done: u64::from(judge(&blob, holes)) }
}

/// Whether the blob describes a machine that could be edited.
fn judge(blob: &[u8], holes: [u8; 2]) -> bool {
    let Ok(dtb) = Dtb::parse(blob) else { return false };
    let events: Vec<_> = dtb.events().collect();
    assert_eq!(Some(events), reread::events(blob), "the two readers disagree");
    let Ok(machine) = Machine::read(&dtb) else { return false };
    check(&machine);
    let carve_outs = carve_outs(&machine, holes);
    let mut out = vec![0xa5; blob.len() + ROOM];
    let Ok(size) = edit::rewrite(&dtb, &carve_outs, &mut out) else { return false };
    let edited = &out[..size];
    exact_room(&dtb, &carve_outs, edited);
    let again = Dtb::parse(edited).expect("what was edited is a tree");
    assert_eq!(Some(again.events().collect()), reread::events(edited), "the two readers disagree on the edited tree");
    let after = match Machine::read(&again) {
        Ok(after) => after,
        // Taking out the middle of a bank leaves one bank more; taking out all of them leaves none.
        Err(stop) => return assert_reason(stop.what()),
    };
    check(&after);
    compare(&machine, &after, &carve_outs);
    let mut third = vec![0; size + ROOM];
    let size = edit::rewrite(&again, &carve_outs, &mut third).expect("it was edited before");
    let third = Machine::read(&Dtb::parse(&third[..size]).expect("a tree")).expect("a machine");
    assert!(third == after, "editing twice is not editing once");
    true
}

fn assert_reason(what: &str) -> bool {
    assert!(what.contains("RAM banks") || what.contains("memory"), "an edited tree is refused: {what}");
    false
}

/// What `Machine` promises.
fn check(machine: &Machine) {
    assert!(machine.banks.iter().all(|bank| bank.start < bank.end), "an empty bank");
    assert!(machine.banks.is_sorted_by(|one, next| one.end <= next.start), "banks meet: {:x?}", machine.banks);
    let mut cpus = machine.cpus.to_vec();
    cpus.sort_unstable();
    cpus.dedup();
    assert_eq!(cpus.len(), machine.cpus.len(), "a CPU twice");
}

/// Blocks of the machine's RAM, as the boot would take them.
fn carve_outs(machine: &Machine, holes: [u8; 2]) -> Vec<Range<u64>> {
    let mut found: Vec<Range<u64>> = Vec::new();
    for hole in holes {
        let Some(bank) = machine.banks.get(usize::from(hole & 7) % machine.banks.len().max(1)) else { continue };
        let first = bank.start.div_ceil(BLOCK).saturating_add(u64::from(hole >> 3)).saturating_mul(BLOCK);
        let Some(end) = first.checked_add(BLOCK).filter(|end| *end <= bank.end) else { continue };
        if found.iter().all(|other| end <= other.start || other.end <= first) {
            found.push(first..end);
        }
    }
    found
}

/// An edited tree fits where there is just room for it, and does not where there is one byte less.
fn exact_room(dtb: &Dtb<'_>, carve_outs: &[Range<u64>], edited: &[u8]) {
    let mut exact = vec![0; edited.len()];
    assert_eq!(edit::rewrite(dtb, carve_outs, &mut exact), Ok(edited.len()));
    assert!(exact == edited, "the room that there is changes what is written");
    let mut short = vec![0; edited.len() - 1];
    assert!(edit::rewrite(dtb, carve_outs, &mut short).is_err(), "it does not fit, and was written");
}

/// The same machine, without the carve-outs and what was hidden.
fn compare(before: &Machine, after: &Machine, carve_outs: &[Range<u64>]) {
    let mut left: Vec<Range<u64>> = before.banks.to_vec();
    for hole in carve_outs {
        let cut = |bank: Range<u64>| {
            let whole = bank.end <= hole.start || hole.end <= bank.start;
            if whole { vec![bank] } else { vec![bank.start..hole.start, hole.end..bank.end] }
        };
        left = left.into_iter().flat_map(cut).filter(|bank| !bank.is_empty()).collect();
    }
    assert_eq!(after.banks.as_slice(), left, "the carve-outs, and nothing else, leave memory");
    assert_eq!(after.cpus, before.cpus);
    assert_eq!(after.reserved, before.reserved);
    assert_eq!((&after.initrd, &after.gic, after.has_smmu), (&before.initrd, &before.gic, before.has_smmu));
    assert!(after.hidden.is_empty(), "a device that does DMA of its own is still named");
}
