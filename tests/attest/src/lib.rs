// SPDX-License-Identifier: MIT OR Apache-2.0
//! A verifier: recomputes what a VM's launch measurement must be from its image and parameters, and judges the report
//! that its guest got.
//!
//! Written from docs/attestation.md, over bytes and with another SHA-256 than `el2`'s. It imports nothing of this
//! repository, not even the ABI: it must not believe what it judges.

use sha2::{Digest as _, Sha256};

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// Bytes of a report.
pub const REPORT: usize = 72;
/// RAM ranges that a VM may have.
const RANGES: usize = 8;

/// A SHA-256 digest.
pub type Digest = [u8; 32];

/// What a VM starts from, beside its pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// Bits of the guest's address space.
    pub ipa_bits: u64,
    /// The vCPUs that exist, one bit each.
    pub vcpus: u64,
    /// Program counter, PSTATE and x0–x3 of the boot vCPU.
    pub registers: [u64; 6],
    /// Addresses of distributor and first redistributor.
    pub gic: Option<[u64; 2]>,
    /// RAM: addresses and bytes, in the order of declaration; at most eight count.
    pub ranges: Vec<(u64, u64)>,
}

/// A transcript that goes on: pages in the order of their donation.
#[derive(Clone, Debug, Default)]
pub struct Transcript(Sha256);

impl Transcript {
    /// Of nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A page with its contents; what is short of a page is zeros.
    ///
    /// # Panics
    /// For more than a page.
    pub fn page(&mut self, address: u64, contents: &[u8]) {
        let mut record = [0; 64 + PAGE];
        record[..8].copy_from_slice(b"FHpage 1");
        record[8..16].copy_from_slice(&address.to_le_bytes());
        record[16..24].copy_from_slice(&4096u64.to_le_bytes());
        record[64..64 + contents.len()].copy_from_slice(contents);
        self.0.update(record);
    }

    /// An image from an address on, page by page.
    pub fn image(&mut self, address: u64, image: &[u8]) {
        (address..).step_by(PAGE).zip(image.chunks(PAGE)).for_each(|(address, page)| self.page(address, page));
    }

    /// The first run: the measurement.
    #[must_use]
    pub fn start(mut self, start: &Start) -> Digest {
        let [pc, pstate, x0, x1, x2, x3] = start.registers;
        let [distributor, redistributors] = start.gic.unwrap_or_default();
        let ranges = start.ranges.iter().take(RANGES);
        let words = [
            1,
            start.ipa_bits,
            start.vcpus,
            pc,
            pstate,
            x0,
            x1,
            x2,
            x3,
            start.gic.is_some().into(),
            distributor,
            redistributors,
            ranges.len() as u64,
            0,
            0,
        ];
        let mut record = b"FHstart1".to_vec();
        record.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        record.extend(ranges.flat_map(|(address, bytes)| [address.to_le_bytes(), bytes.to_le_bytes()]).flatten());
        record.resize(256, 0);
        self.0.update(record);
        self.0.finalize().into()
    }
}

/// What is wrong with a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// It is not as long as a report.
    Length,
    /// A version, or a flag, that this verifier does not know.
    Format,
    /// The VM was not measured.
    NotMeasured,
    /// It answers another question.
    Nonce,
    /// The VM started from something else.
    Digest,
}

/// Judges a report against a nonce and what the VM should have started from.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn verify(report: &[u8], nonce: &[u8; 32], expected: &Digest) -> Result<(), Wrong> {
    let report: &[u8; REPORT] = report.try_into().map_err(|_| Wrong::Length)?;
    let (version, rest) = report.split_at(4);
    let (flags, rest) = rest.split_at(4);
    let (digest, echo) = rest.split_at(32);
    if version != 1u32.to_le_bytes() || flags[0] & !1 != 0 || flags[1..] != [0; 3] {
        return Err(Wrong::Format);
    }
    if flags[0] == 0 {
        return Err(Wrong::NotMeasured);
    }
    if echo != nonce {
        return Err(Wrong::Nonce);
    }
    if digest == expected { Ok(()) } else { Err(Wrong::Digest) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: [u8; 32] = [7; 32];
    const DIGEST: Digest = [9; 32];

    fn report() -> Vec<u8> {
        [&[1, 0, 0, 0, 1, 0, 0, 0][..], &DIGEST, &NONCE].concat()
    }

    #[test]
    fn a_report_is_believed_only_as_it_is() {
        assert_eq!(verify(&report(), &NONCE, &DIGEST), Ok(()));
        for bit in 0..REPORT * 8 {
            let mut changed = report();
            changed[bit / 8] ^= 1 << (bit % 8);
            let wrong = match bit / 8 {
                0..4 => Wrong::Format,
                4 if bit % 8 == 0 => Wrong::NotMeasured,
                4..8 => Wrong::Format,
                8..40 => Wrong::Digest,
                _ => Wrong::Nonce,
            };
            assert_eq!(verify(&changed, &NONCE, &DIGEST), Err(wrong), "bit {bit}");
        }
        assert_eq!(verify(&report()[1..], &NONCE, &DIGEST), Err(Wrong::Length));
        assert_eq!(verify(&report(), &[8; 32], &DIGEST), Err(Wrong::Nonce), "an old report");
    }

    #[test]
    fn the_empty_vm_has_the_documented_measurement() {
        let start = Start { ipa_bits: 40, vcpus: 1, registers: [0; 6], gic: None, ranges: Vec::new() };
        let hex: String = Transcript::new().start(&start).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "b9d7dc5fd2e79c8b215f3f6ccf16ac122b6313f20dc409d057823631ac840ebd");
    }
}
