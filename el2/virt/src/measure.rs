// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a protected VM starts from, as one hash over an ordered transcript, and the report that its guest gets of it.
//!
//! Guarantees D18: each page whose contents stay is in it with its address, in the order of donation, and at the first
//! run everything else that the guest's start depends on; from then on it is fixed. docs/attestation.md says it byte by
//! byte. It does not know what the hash should be, nor how a frame is read.

use crate::registers::Registers;
use crate::sha256::Sha256;
use crate::vgic::Window;
use freehold_mem::{Gfn, GfnRun, MAX_RANGES, PAGE_SIZE};
use freehold_uapi::{guest, hvc};

/// Tags of the two kinds of records: their first eight bytes.
const PAGE: u64 = u64::from_le_bytes(*b"FHpage 1");
const START: u64 = u64::from_le_bytes(*b"FHstart1");

/// The measurement of one VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Measurement {
    /// The VM did not run yet; or it is of a kind that is not measured.
    Open(Sha256),
    /// It ran.
    Fixed([u64; 4]),
}

/// What a VM is at its first run, beside its memory and its boot vCPU's registers.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Bits of its address space.
    pub ipa_bits: u32,
    /// Its vCPUs, one bit each.
    pub vcpus: u64,
    /// Its interrupt controller, if it has one.
    pub gic: Option<Window>,
}

impl Measurement {
    /// Of a VM that has nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        Self::Open(Sha256::new())
    }

    /// Takes in a page that the VM was given with its contents, which `contents` hashes. Nothing once the VM ran.
    pub fn page(&mut self, gfn: Gfn, contents: impl FnOnce(&mut Sha256)) {
        if let Self::Open(hash) = self {
            hash.block(&[PAGE, gfn.ipa().raw(), PAGE_SIZE, 0, 0, 0, 0, 0]);
            contents(hash);
        }
    }

    /// Takes in what else the guest starts from, and is fixed.
    pub fn start(&mut self, shape: &Shape, boot: &impl Registers, ram: impl Iterator<Item = GfnRun> + Clone) {
        let Self::Open(hash) = self else { return };
        let [distributor, redistributors] = shape.gic.map_or([0; 2], Window::addresses);
        let ranges = ram.clone().flat_map(|run| [run.start().raw(), run.count()].map(|n| n.wrapping_mul(PAGE_SIZE)));
        #[rustfmt::skip]
        let fixed = [
            START, hvc::VM_PROTECTED, shape.ipa_bits.into(), shape.vcpus,
            boot.pc(), boot.pstate(), boot.x(0), boot.x(1),
            boot.x(2), boot.x(3), shape.gic.is_some().into(), distributor,
            redistributors, ram.fold(0, |count: u64, _| count.saturating_add(1)), 0, 0,
        ];
        let mut record = [0; FIXED + 2 * MAX_RANGES];
        record.iter_mut().zip(fixed.into_iter().chain(ranges)).for_each(|(to, word)| *to = word);
        record.as_chunks().0.iter().for_each(|block| hash.block(block));
        *self = Self::Fixed(hash.finish());
    }

    /// The first five words of a report: its format, and the digest.
    #[must_use]
    pub const fn attest(&self) -> [u64; 5] {
        match *self {
            Self::Open(_) => [guest::REPORT_VERSION, 0, 0, 0, 0],
            Self::Fixed([a, b, c, d]) => [guest::REPORT_VERSION | guest::REPORT_MEASURED, a, b, c, d],
        }
    }
}

impl Default for Measurement {
    fn default() -> Self {
        Self::new()
    }
}

/// Words of a start record before its ranges.
const FIXED: usize = 16;

#[cfg(test)]
mod tests;
