// SPDX-License-Identifier: MIT OR Apache-2.0
//! What el2 says about itself and the machine when it boots.

use crate::dtb::machine::{Gic, Machine};
use crate::layout::Span;
use core::fmt::Write;

/// What there is to say once memory is planned.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The machine.
    pub machine: &'a Machine,
    /// Carve-out of the image.
    pub own: &'a Span,
    /// Carve-out of ledger and tables.
    pub ledger: &'a Span,
    /// Where the host's kernel starts.
    pub payload: u64,
    /// Address bits of the host.
    pub ipa_bits: u32,
}

/// Writes the first line.
pub fn open(to: &mut impl Write, version: &str, midr: u64) {
    let part = midr >> 4 & 0xfff;
    let name = match (midr >> 24 & 0xff, part) {
        (0x41, 0xd03) => "Cortex-A53",
        (0x41, 0xd05) => "Cortex-A55",
        (0x41, 0xd07) => "Cortex-A57",
        (0x41, 0xd08) => "Cortex-A72",
        (0x41, 0xd0b) => "Cortex-A76",
        (0x41, 0xd0c) => "Neoverse-N1",
        (0x41, 0xd40) => "Neoverse-V1",
        (0x41, 0xd47) => "Cortex-A710",
        (0x41, 0xd49) => "Neoverse-N2",
        (0x00, 0x051) => "QEMU max",
        _ => "unnamed CPU",
    };
    // The console cannot fail.
    let _ = writeln!(to, "freehold: el2 {version} on {name} (MIDR {midr:#010x})");
}

/// Writes what was found, what is kept, and what is protected.
pub fn facts(to: &mut impl Write, facts: &Facts<'_>) {
    let machine = facts.machine;
    let ram: u64 = machine.banks.iter().map(|bank| bank.end.saturating_sub(bank.start)).sum();
    let _ = writeln!(
        to,
        "freehold: {} CPUs, {} MiB RAM in {} bank(s), host address space {} bits",
        machine.cpus.len(),
        ram >> 20,
        machine.banks.len(),
        facts.ipa_bits
    );
    let _ = writeln!(to, "freehold: carve-out 0 (image) {}", Bytes(facts.own));
    let _ = writeln!(to, "freehold: carve-out 1 (ledger and tables) {}", Bytes(facts.ledger));
    let _ = writeln!(to, "freehold: protects guest memory and registers from the host's CPUs at EL1 and EL0");
    let dma = if machine.has_smmu { "DMA (the SMMU is left to the host)" } else { "DMA (no SMMU)" };
    let _ = writeln!(to, "freehold: does not protect from {dma}, side channels, external debug");
    if !matches!(machine.gic, Gic::V3 { .. }) {
        let _ = writeln!(to, "freehold: VMs are refused: this machine has no GICv3");
    }
    let _ = writeln!(to, "freehold: starting the host at {:#x}", facts.payload);
}

struct Bytes<'a>(&'a Span);

impl core::fmt::Display for Bytes<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Span { start, end } = self.0;
        write!(f, "{start:#x}-{:#x} ({} MiB)", end.saturating_sub(1), end.saturating_sub(*start) >> 20)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtb::Dtb;
    use crate::dtb::testing::board;

    #[test]
    fn every_line_is_marked_and_the_limits_are_said() {
        let blob = board().blob();
        let machine = Machine::read(&Dtb::parse(&blob).unwrap()).unwrap();
        let mut text = String::new();
        open(&mut text, "0.1.0", 0x410f_d083);
        let (own, ledger) = (0x4020_0000..0x4060_0000, 0xbfa0_0000..0xc000_0000);
        facts(&mut text, &Facts { machine: &machine, own: &own, ledger: &ledger, payload: 0x4060_0000, ipa_bits: 40 });
        assert!(text.lines().all(|line| line.starts_with("freehold: ")), "{text}");
        assert!(text.starts_with("freehold: el2 0.1.0 on Cortex-A72 "), "{text}");
        assert!(text.contains("2 CPUs, 2048 MiB RAM"), "{text}");
        assert!(text.contains("0x40200000-0x405fffff (4 MiB)"), "{text}");
        assert!(text.contains("does not protect from DMA"), "{text}");
        assert!(!text.contains("VMs are refused"), "{text}");
    }

    #[test]
    fn a_machine_without_gicv3_is_told_that_vms_are_refused() {
        let blob = board().without("intc@8000000").blob();
        let machine = Machine::read(&Dtb::parse(&blob).unwrap()).unwrap();
        let mut text = String::new();
        let span = 0..0;
        facts(&mut text, &Facts { machine: &machine, own: &span, ledger: &span, payload: 0, ipa_bits: 40 });
        assert!(text.contains("VMs are refused: this machine has no GICv3"), "{text}");
    }
}
