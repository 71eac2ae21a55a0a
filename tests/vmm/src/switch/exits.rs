// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an exit shows the host: whether that is more than its reason needs.

use freehold_uapi::hvc::*;

use super::STEP;
use crate::proto::*;

/// Bits of the canary that make a finding.
const PART: u32 = 32;
/// The register that tells which vCPUs are to be woken.
const WOKEN: usize = 5;

/// What a VM is made of that its exits speak of.
#[derive(Clone, Copy)]
pub(crate) struct Makeup {
    pub(crate) gic: bool,
    pub(crate) vcpus: u64,
}

impl Makeup {
    /// What the registers of a run that was made show beside its exit's payload: each that is not zero, and, of a VM of
    /// several vCPUs, whom to wake if it names one that there is not.
    pub(crate) fn stray(self, x: &[u64; 18]) -> Vec<String> {
        let payload = match x[1] {
            EXIT_WFI if self.gic => 1,
            EXIT_IRQ | EXIT_WFI | EXIT_WAKE | EXIT_KICKED | EXIT_OFF => 0,
            EXIT_MEM_FAULT | EXIT_SYSTEM | EXIT_CRASH | EXIT_EOI => 1,
            EXIT_MMIO if x[3] & MMIO_WRITE == 0 => 2,
            _ => 3,
        };
        let created = if self.vcpus > 1 { (1 << self.vcpus) - 1 } else { 0 };
        let allowed = |n: usize| if n == WOKEN { created } else { 0 };
        let stray = x.iter().enumerate().skip(2 + payload).filter(|(n, word)| **word & !allowed(*n) != 0);
        stray.map(|(n, word)| format!("exit {} x{n}={word:#x}", x[1])).collect()
    }
}

/// How many registers of an exit show the canary.
pub(crate) fn leaked(x: &[u64; 18]) -> usize {
    x[1..].iter().filter(|word| shows(CANARY, **word)).count()
}

/// The controls: what is to be found is found.
pub(super) fn controls() {
    finds_parts();
    finds_stray();
}

/// A word behind the payload, and a vCPU that there is not.
fn finds_stray() {
    let of = |reason: u64, n: usize, word: u64| {
        let mut x = [0; 18];
        x[1] = reason;
        x[n] = word;
        Makeup { gic: true, vcpus: 3 }.stray(&x).len()
    };
    let shown = [(EXIT_IRQ, 2), (EXIT_OFF, 2), (EXIT_WFI, 3), (EXIT_EOI, 3), (EXIT_MMIO, 4), (EXIT_IRQ, 17)];
    let stray: usize = shown.iter().map(|(reason, n)| of(*reason, *n, 1)).sum();
    let not = of(EXIT_WFI, 2, 1) + of(EXIT_MMIO, 2, DEVICE) + of(EXIT_WAKE, WOKEN, 0b111);
    let seen = format!("{stray}, {} and {not}", of(EXIT_WAKE, WOKEN, 0b1000));
    STEP.same("tools: what an exit shows too much is found, and nothing else", "6, 1 and 0", seen);
}

/// Whether 32 neighbouring bits of `word` are such of `secret`, wherever in either.
pub(crate) fn shows(secret: u64, word: u64) -> bool {
    let parts = |word: u64| (0..=u64::BITS - PART).map(move |shift| (word >> shift) as u32);
    word != 0 && parts(word).any(|part| part != 0 && parts(secret).any(|of| of == part))
}

/// The control: what is to be found is found, whole, in part and shifted.
fn finds_parts() {
    let shown = [CANARY, CANARY >> 7, CANARY << 9, CANARY & 0xffff_ffff, CANARY >> 32, (CANARY >> 13) << 32];
    let not = [0, u64::MAX, RAM_BASE, DEVICE, !CANARY, CANARY >> 33, CANARY.reverse_bits()];
    let count = |words: &[u64]| words.iter().filter(|word| shows(CANARY, **word)).count();
    STEP.same(
        "tools: parts of a canary are found, and nothing else",
        "6 and 0",
        format!("{} and {}", count(&shown), count(&not)),
    );
}
