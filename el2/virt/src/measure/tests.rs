// SPDX-License-Identifier: MIT OR Apache-2.0
//! The measurement against a verifier that was written from the document.

use super::*;
use crate::registers::fake::Fake;
use freehold_attest::{Digest, Start, Transcript};
use std::vec;
use std::vec::Vec;

/// A VM that is measured: by the shipped code, and as the verifier is told.
#[derive(Clone)]
struct Case {
    pages: Vec<(u64, [u8; 4096])>,
    start: Start,
}

fn case() -> Case {
    let page = |seed: u8| core::array::from_fn(|n| seed.wrapping_mul(n as u8) ^ (n >> 8) as u8);
    Case {
        pages: vec![(0x8000_0000, page(3)), (0x8000_1000, page(5)), (0x4000_0000, page(3))],
        start: Start {
            ipa_bits: 40,
            vcpus: 0b11,
            registers: [0x8000_0000, 0x3c5, 1, 2, 3, 4],
            gic: Some([0x800_0000, 0x80a_0000]),
            ranges: vec![(0x8000_0000, 0x20_0000), (0x4000_0000, 0x1000)],
        },
    }
}

/// The same with one page: an interpreter hashes slowly.
fn small() -> Case {
    let mut case = case();
    case.pages.truncate(if cfg!(miri) { 1 } else { 3 });
    case
}

fn gfn(address: u64) -> Gfn {
    Gfn::new(address >> 12).unwrap()
}

fn hash_page(hash: &mut Sha256, page: &[u8; 4096]) {
    let words: Vec<u64> = page.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
    words.as_chunks().0.iter().for_each(|block| hash.block(block));
}

impl Case {
    fn started(&self) -> Measurement {
        let mut measurement = Measurement::new();
        for (address, page) in &self.pages {
            measurement.page(gfn(*address), |hash| hash_page(hash, page));
        }
        let [pc, pstate, x0, x1, x2, x3] = self.start.registers;
        let mut boot = Fake { pc, pstate, ..Fake::new() };
        boot.x[..4].copy_from_slice(&[x0, x1, x2, x3]);
        let gic = self.start.gic.map(|at| Window::new(at[0] >> 12, at[1] >> 12, 40).unwrap());
        let shape = Shape { ipa_bits: self.start.ipa_bits as u32, vcpus: self.start.vcpus, gic };
        let ranges = self.start.ranges.iter().map(|(at, bytes)| GfnRun::decode(at >> 12, bytes >> 12).unwrap());
        measurement.start(&shape, &boot, ranges.collect::<Vec<_>>().into_iter());
        measurement
    }

    fn measured(&self) -> Digest {
        let [format, digest @ ..] = self.started().attest();
        assert_eq!(format, 1 << 32 | 1);
        let bytes: Vec<u8> = digest.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.try_into().unwrap()
    }

    fn expected(&self) -> Digest {
        let mut transcript = Transcript::new();
        self.pages.iter().for_each(|(address, page)| transcript.page(*address, page));
        transcript.start(&self.start)
    }
}

#[test]
fn a_verifier_that_knows_image_and_parameters_comes_to_the_same() {
    let full = small();
    assert_eq!(full.measured(), full.expected());
    let mut bare = case();
    (bare.start.gic, bare.start.ranges, bare.pages) = (None, Vec::new(), Vec::new());
    assert_eq!(bare.measured(), bare.expected());
    let mut many = small();
    many.start.ranges = (0..MAX_RANGES as u64).map(|n| (n << 24, 0x1000 * (n + 1))).collect();
    assert_eq!(many.measured(), many.expected());
}

#[test]
#[cfg_attr(miri, ignore = "hashes 20,000 blocks, by code that the other tests hash with")]
fn whatever_the_guest_starts_from_changes_the_measurement() {
    type Change = fn(&mut Case);
    let changes: [(&str, Change); 26] = [
        ("first byte of a page", |case| case.pages[0].1[0] ^= 1),
        ("last byte of a page", |case| case.pages[2].1[4095] ^= 0x80),
        ("address of a page", |case| case.pages[1].0 += 4096),
        ("order of pages", |case| case.pages.swap(0, 1)),
        ("order of equal pages", |case| case.pages.swap(0, 2)),
        ("a page less", |case| case.pages.truncate(2)),
        ("a page twice", |case| case.pages.push(case.pages[2])),
        ("a page of zeros more", |case| case.pages.push((0x8001_0000, [0; 4096]))),
        ("address size", |case| case.start.ipa_bits = 39),
        ("a vCPU more", |case| case.start.vcpus = 0b111),
        ("another vCPU", |case| case.start.vcpus = 0b101),
        ("the last vCPU", |case| case.start.vcpus = 0b1000_0011),
        ("program counter", |case| case.start.registers[0] += 4),
        ("PSTATE", |case| case.start.registers[1] ^= 1),
        ("x0", |case| case.start.registers[2] ^= 1),
        ("x1", |case| case.start.registers[3] ^= 1 << 63),
        ("x2", |case| case.start.registers[4] ^= 1),
        ("x3", |case| case.start.registers[5] ^= 1),
        ("no GIC", |case| case.start.gic = None),
        ("a GIC at zero", |case| case.start.gic = Some([0, 0])),
        ("its distributor", |case| case.start.gic = Some([0x801_0000, 0x80a_0000])),
        ("its redistributors", |case| case.start.gic = Some([0x800_0000, 0x80b_0000])),
        ("start of a range", |case| case.start.ranges[1].0 += 4096),
        ("length of a range", |case| case.start.ranges[0].1 -= 4096),
        ("order of ranges", |case| case.start.ranges.swap(0, 1)),
        ("a range less", |case| case.start.ranges.truncate(1)),
    ];
    let mut seen = vec![case().measured()];
    for (what, change) in changes {
        let mut changed = case();
        change(&mut changed);
        let measured = changed.measured();
        assert!(!seen.contains(&measured), "{what}");
        assert_eq!(measured, changed.expected(), "{what}");
        seen.push(measured);
    }
}

#[test]
fn after_the_first_run_nothing_counts() {
    let started = small().started();
    let mut later = started.clone();
    later.page(gfn(0x8000_5000), |_| panic!("hashed"));
    let shape = Shape { ipa_bits: 32, vcpus: 1, gic: None };
    later.start(&shape, &Fake::new(), core::iter::empty());
    assert_eq!(later, started);
}

#[test]
fn what_did_not_run_has_no_digest() {
    let mut measurement = Measurement::new();
    assert_eq!(measurement.attest(), [1, 0, 0, 0, 0]);
    measurement.page(gfn(0), |hash| hash_page(hash, &[1; 4096]));
    assert_eq!(measurement.attest(), [1, 0, 0, 0, 0]);
}
