// SPDX-License-Identifier: MIT OR Apache-2.0
//! The system registers that a protected guest meets when its access traps.
//!
//! ID registers are an allow-list of fields, each with the highest value that the world switch can serve; what is not
//! listed reads as zero, so a feature of a newer core is hidden until somebody writes it down here. Debug, OS lock and
//! error records read as zero and ignore writes, because stock kernels touch them before they look. Everything else
//! is UNDEFINED: PMU, SPE, trace, AMU, LOR, set/way operations, the physical timer, the interrupt controller.
//! Encodings are data; nothing here reads a register. Source: Arm ARM D19, D24.2.

/// Encoding of a system register or instruction: op0, op1, `CRn`, `CRm`, op2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoding {
    op0: u8,
    op1: u8,
    crn: u8,
    crm: u8,
    op2: u8,
}

impl Encoding {
    /// Names a register.
    #[must_use]
    pub const fn new(op0: u8, op1: u8, crn: u8, crm: u8, op2: u8) -> Self {
        Self { op0, op1, crn, crm, op2 }
    }
}

/// A trapped access, out of the ISS of exception class 0x18.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Which register.
    pub register: Encoding,
    /// General register that takes or gives the value.
    pub rt: u8,
    /// A read (MRS); else a write or an instruction.
    pub read: bool,
}

impl Access {
    /// Decodes an ISS.
    #[must_use]
    pub const fn decode(iss: u64) -> Self {
        Self {
            register: Encoding::new(
                ((iss >> 20) & 3) as u8,
                ((iss >> 14) & 7) as u8,
                ((iss >> 10) & 15) as u8,
                ((iss >> 1) & 15) as u8,
                ((iss >> 17) & 7) as u8,
            ),
            rt: ((iss >> 5) & 31) as u8,
            read: iss & 1 == 1,
        }
    }
}

/// What the hardware says of itself, on the CPU that asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawIds {
    /// `ID_AA64PFR0_EL1`.
    pub pfr0: u64,
    /// `ID_AA64PFR1_EL1`.
    pub pfr1: u64,
    /// `ID_AA64ISAR0_EL1`.
    pub isar0: u64,
    /// `ID_AA64ISAR1_EL1`.
    pub isar1: u64,
    /// `ID_AA64ISAR2_EL1`.
    pub isar2: u64,
    /// `ID_AA64MMFR0_EL1`.
    pub mmfr0: u64,
    /// `ID_AA64MMFR1_EL1`.
    pub mmfr1: u64,
    /// `ID_AA64MMFR2_EL1`.
    pub mmfr2: u64,
    /// `CTR_EL0`.
    pub ctr: u64,
    /// `CLIDR_EL1`.
    pub clidr: u64,
}

impl RawIds {
    /// Nothing: for what asks for none of them.
    pub const NONE: Self =
        Self { pfr0: 0, pfr1: 0, isar0: 0, isar1: 0, isar2: 0, mmfr0: 0, mmfr1: 0, mmfr2: 0, ctr: 0, clidr: 0 };
}

/// The fields of an ID register that are shown, 4 bits each: as the hardware says, but at most this.
type Most = u64;

/// EL0 and EL1 `AArch64` only; FP and Advanced SIMD; DIT; CSV2 without `SCXTNUM`; CSV3. No SVE, RAS, GIC, AMU, MPAM.
const PFR0: Most = 0x1101_0000_0011_0011;
/// `ID_AA64PFR0_EL1.GIC`: the system registers of `GICv3`, of a VM that has one.
const GIC_REGISTERS: u64 = 1 << 24;
/// BTI, SSBS. No MTE, SME, NMI, GCS.
const PFR1: Most = 0x21;
/// All but TME: instructions only, none of which traps or has state of its own.
const ISAR0: Most = 0x1221_1111_1031_2120;
/// DPB2, pointer authentication, JSCVT, FCMA, LRCPC2, FRINTTS, SB, SPECRES, BF16, DGH, I8MM. No XS, LS64.
const ISAR1: Most = 0x0011_1111_1121_1552;
/// Pointer authentication by QARMA3, BC, `PAC_frac`, CLRBHB. No WFxT, MOPS, CSSC, SYSREG_128.
const ISAR2: Most = 0x1110_5100;
/// ASIDs, endianness, `SNSMem`, 64K and 4K granules without 52-bit addresses, `ExS`. `PARange` is the VM's.
const MMFR0: Most = 0x1000_0001_1120;
/// Access flag and dirty state, HPDS2, PAN3, `SpecSEI`, ETS, `nTLBPA`, ECBHB. No VHE, LOR, XNX, TWED, HCX, AFP.
const MMFR1: Most = 0x1001_0020_0130_2002;
/// `CnP`, UAO, LSMAOC, IESB, small tables, unaligned atomics, TTL, BBM, E0PD. No LVA, CCIDX, NV, IDS, FWB, EVT.
const MMFR2: Most = 0x1021_0001_1000_1111;
/// The fields, FP and Advanced SIMD, of which 0xf says "not there", which stays.
const PFR0_SIGNED: u64 = 0xff_0000;
/// The same of the two granules.
const MMFR0_SIGNED: u64 = 0xff00_0000;

fn view(raw: u64, most: Most, signed: u64) -> u64 {
    (0..64).step_by(4).map(|at| 0xf_u64.unbounded_shl(at)).fold(0, |shown, field| {
        let there = if raw & signed & field == field { field } else { (raw & field).min(most & field) };
        shown | there
    })
}

/// What one VM's guest reads: the machine, seen through the lists above.
#[derive(Clone, Copy, Debug)]
pub struct IdView<'a> {
    raw: &'a RawIds,
    ipa_bits: u32,
    /// The VM has an interrupt controller.
    gic: bool,
}

impl<'a> IdView<'a> {
    /// The view of a VM whose address space has `ipa_bits` bits.
    #[must_use]
    pub const fn new(raw: &'a RawIds, ipa_bits: u32) -> Self {
        Self { raw, ipa_bits, gic: false }
    }

    /// The same, and whether the VM has an interrupt controller.
    #[must_use]
    pub const fn with_gic(self, gic: bool) -> Self {
        Self { gic, ..self }
    }

    /// The ID register with this `CRm` and op2 (op0 3, op1 0, `CRn` 0): zero where nothing is shown.
    #[must_use]
    pub fn id(&self, crm: u8, op2: u8) -> u64 {
        match (crm, op2) {
            (4, 0) => view(self.raw.pfr0, PFR0, PFR0_SIGNED) | if self.gic { GIC_REGISTERS } else { 0 },
            (4, 1) => view(self.raw.pfr1, PFR1, 0),
            (6, 0) => view(self.raw.isar0, ISAR0, 0),
            (6, 1) => view(self.raw.isar1, ISAR1, 0),
            (6, 2) => view(self.raw.isar2, ISAR2, 0),
            (7, 0) => view(self.raw.mmfr0, MMFR0, MMFR0_SIGNED) | self.pa_range(),
            (7, 1) => view(self.raw.mmfr1, MMFR1, 0),
            (7, 2) => view(self.raw.mmfr2, MMFR2, 0),
            _ => 0,
        }
    }

    /// `PARange`: the least size that covers the VM, as far as the machine goes. What a VM of 33 bits has at 4 GiB must be
    /// in reach of its stage 1.
    fn pa_range(&self) -> u64 {
        // The first sizes are 32, 36 and 40 bits, and a VM has no more.
        let vm = [32, 36].iter().filter(|size| self.ipa_bits > **size).count() as u64;
        (self.raw.mmfr0 & 0xf).min(vm)
    }

    /// `CCSIDR_EL1` of whatever cache is selected: one line of the size that `CTR_EL0` names, one set, one way. Set/way
    /// operations are not served, so nobody may conclude anything from more.
    fn ccsidr(&self, instruction: bool) -> u64 {
        let log2_words = if instruction { self.raw.ctr & 0xf } else { self.raw.ctr >> 16 & 0xf };
        // CCSIDR counts log2 of the bytes less 4; a word is 2 bits of that.
        log2_words.saturating_sub(2) & 7
    }
}

/// What is to be done about a trapped access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The register reads so.
    Read(u64),
    /// The write is dropped.
    Ignore,
    /// `CSSELR_EL1` takes the value, cut to its bits.
    SelectCache(u64),
    /// There is no such register for this guest.
    Undefined,
}

/// Decides an access. `written` is the value of a write; `selected` is the guest's `CSSELR_EL1`.
#[must_use]
pub fn decide(access: Access, written: u64, selected: u64, ids: &IdView<'_>) -> Verdict {
    use Verdict::{Ignore, Read, SelectCache, Undefined};
    let Encoding { op0, op1, crn, crm, op2 } = access.register;
    let zero = if access.read { Read(0) } else { Ignore };
    match ((op0, op1, crn, crm, op2), access.read) {
        // Identification: HCR_EL2.TID1, TID2, TID3.
        ((3, 0, 0, 1..=7, _), true) => Read(ids.id(crm, op2)),
        ((3, 0, 0, 0, 6) | (3, 1, 0, 0, 7), true) => Read(0), // REVIDR_EL1, AIDR_EL1
        ((3, 3, 0, 0, 1), true) => Read(ids.raw.ctr),
        ((3, 1, 0, 0, 1), true) => Read(ids.raw.clidr),
        ((3, 1, 0, 0, 0), true) => Read(ids.ccsidr(selected & 1 == 1)),
        ((3, 2, 0, 0, 0), true) => Read(selected),
        ((3, 2, 0, 0, 0), false) => SelectCache(written & 0xf),
        ((3, 0, 1, 0, 1), _) => zero, // ACTLR_EL1
        // Debug and OS lock: MDSCR, OSDTR*, OSECCR, MDCCINT, breakpoints and watchpoints.
        ((2, 0, 0, 0, 2) | (2, 0, 0, 2, 0 | 2) | (2, 0, 0, 3 | 6, 2) | (2, 0, 0, _, 4..=7), _) => zero,
        ((2, 0, 1, 0, 4), false) => Ignore,                     // OSLAR_EL1
        ((2, 0, 1, 0, 0) | (2, 0, 1, 1, 4), true) => Read(0),   // MDRAR_EL1, OSLSR_EL1
        ((2, 0, 1, 3 | 4, 4) | (2, 0, 7, 8 | 9, 6), _) => zero, // OSDLR, DBGPRCR, DBGCLAIMSET/CLR
        ((2, 0, 7, 14, 6) | (2, 3, 0, 1, 0), true) => Read(0),  // DBGAUTHSTATUS, MDCCSR_EL0
        ((2, 3, 0, 4 | 5, 0), _) => zero,                       // DBGDTR*_EL0
        // Error records: ERRIDR, ERRSELR, ERX*.
        ((3, 0, 5, 3, 0), true) => Read(0),
        ((3, 0, 5, 3, 1) | (3, 0, 5, 4 | 5, _), _) => zero,
        _ => Undefined,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Verdict::{Ignore, Read, SelectCache, Undefined};

    fn everything() -> RawIds {
        let all = 0xeeee_eeee_eeee_eeee;
        RawIds {
            pfr0: all,
            pfr1: all,
            isar0: all,
            isar1: all,
            isar2: all,
            mmfr0: all,
            mmfr1: all,
            mmfr2: all,
            ctr: 0x9444_c004,
            clidr: 0xa20_0023,
        }
    }

    fn read(register: Encoding) -> Verdict {
        let raw = everything();
        decide(Access { register, rt: 0, read: true }, 0, 0, &IdView::new(&raw, 40))
    }

    fn write(register: Encoding, value: u64) -> Verdict {
        let raw = everything();
        decide(Access { register, rt: 0, read: false }, value, 0, &IdView::new(&raw, 40))
    }

    #[test]
    fn an_access_is_decoded() {
        // MRS x9, ID_AA64PFR0_EL1 (S3_0_C0_C4_0).
        let iss = 3 << 20 | 9 << 5 | 4 << 1 | 1;
        let access = Access::decode(iss);
        assert_eq!(access, Access { register: Encoding::new(3, 0, 0, 4, 0), rt: 9, read: true });
        let iss = 1 << 20 | 2 << 17 | 7 << 10 | 14 << 1 | 31 << 5;
        assert_eq!(Access::decode(iss), Access { register: Encoding::new(1, 0, 7, 14, 2), rt: 31, read: false });
    }

    #[test]
    fn a_core_of_the_future_shows_no_feature_that_is_not_listed() {
        let raw = everything();
        let ids = IdView::new(&raw, 40);
        let pfr0 = ids.id(4, 0);
        for (name, shift) in [
            ("EL2", 8),
            ("EL3", 12),
            ("GIC", 24),
            ("RAS", 28),
            ("SVE", 32),
            ("SEL2", 36),
            ("MPAM", 40),
            ("AMU", 44),
            ("RME", 52),
        ] {
            assert_eq!(pfr0 >> shift & 0xf, 0, "{name}");
        }
        let pfr1 = ids.id(4, 1);
        for (name, shift) in [("MTE", 8), ("SME", 24), ("NMI", 36), ("GCS", 44)] {
            assert_eq!(pfr1 >> shift & 0xf, 0, "{name}");
        }
        assert_eq!(ids.id(5, 0), 0, "debug, PMU, SPE, trace");
        assert_eq!(ids.id(4, 4) | ids.id(4, 5), 0, "SVE and SME details");
        assert_eq!(ids.id(7, 2) >> 40 & 0xf, 0, "FWB");
        assert_eq!(ids.id(7, 1) >> 8 & 0xf, 0, "VHE");
        assert_eq!(ids.id(7, 0) >> 56, 0, "FGT, ECV");
        assert_eq!(ids.id(6, 2) >> 16 & 0xf, 0, "MOPS");
        assert_eq!(ids.id(6, 1) >> 56, 0, "XS, LS64");
        for crm in 1..=7 {
            for op2 in 0..=7 {
                if !matches!((crm, op2), (4, 0 | 1) | (6, 0..=2) | (7, 0..=2)) {
                    assert_eq!(ids.id(crm, op2), 0, "{crm} {op2}");
                }
            }
        }
    }

    #[test]
    fn every_field_that_is_shown_is_written_here_again() {
        /// Places of fields of four bits, and the most that is shown of each; all else is hidden.
        type Shown = &'static [(u32, u64)];
        let raw = everything();
        let ids = IdView::new(&raw, 40);
        let fields: [(u8, u8, Shown); 8] = [
            // EL0, EL1, FP, AdvSIMD, DIT, CSV2, CSV3.
            (4, 0, &[(0, 1), (1, 1), (4, 1), (5, 1), (12, 1), (14, 1), (15, 1)]),
            // BT, SSBS.
            (4, 1, &[(0, 1), (1, 2)]),
            // AES, SHA1, SHA2, CRC32, Atomic, RDM, SHA3, SM3, SM4, DP, FHM, TS, TLB, RNDR.
            (
                6,
                0,
                &[
                    (1, 2),
                    (2, 1),
                    (3, 2),
                    (4, 1),
                    (5, 3),
                    (7, 1),
                    (8, 1),
                    (9, 1),
                    (10, 1),
                    (11, 1),
                    (12, 1),
                    (13, 2),
                    (14, 2),
                    (15, 1),
                ],
            ),
            // DPB, APA, API, JSCVT, FCMA, LRCPC, GPA, GPI, FRINTTS, SB, SPECRES, BF16, DGH, I8MM.
            (
                6,
                1,
                &[
                    (0, 2),
                    (1, 5),
                    (2, 5),
                    (3, 1),
                    (4, 1),
                    (5, 2),
                    (6, 1),
                    (7, 1),
                    (8, 1),
                    (9, 1),
                    (10, 1),
                    (11, 1),
                    (12, 1),
                    (13, 1),
                ],
            ),
            // GPA3, APA3, BC, PAC_frac, CLRBHB.
            (6, 2, &[(2, 1), (3, 5), (5, 1), (6, 1), (7, 1)]),
            // PARange of 40 bits, ASIDBits, BigEnd, SNSMem, BigEndEL0, ExS.
            (7, 0, &[(0, 2), (1, 2), (2, 1), (3, 1), (4, 1), (11, 1)]),
            // HAFDBS, HPDS, PAN, SpecSEI, ETS, nTLBPA, ECBHB.
            (7, 1, &[(0, 2), (3, 2), (5, 3), (6, 1), (9, 2), (12, 1), (15, 1)]),
            // CnP, UAO, LSM, IESB, ST, AT, TTL, BBM, E0PD.
            (7, 2, &[(0, 1), (1, 1), (2, 1), (3, 1), (7, 1), (8, 1), (12, 1), (13, 2), (15, 1)]),
        ];
        for (crm, op2, shown) in fields {
            let all = shown.iter().fold(0, |all, (place, most)| all | most << (4 * place));
            assert_eq!(ids.id(crm, op2), all, "{crm} {op2}: {:#x}", ids.id(crm, op2) ^ all);
        }
    }

    #[test]
    fn a_listed_feature_that_hardware_has_is_shown() {
        // Every field says 1, the least that is "there" for each of these.
        let one = 0x1111_1111_1111_1111;
        let raw = RawIds { pfr1: one, isar0: one, isar1: one, isar2: one, mmfr1: one, mmfr2: one, ..RawIds::default() };
        let ids = IdView::new(&raw, 40);
        for (name, crm, op2, shift) in [
            ("BT", 4, 1, 0),
            ("SSBS", 4, 1, 4),
            ("AES", 6, 0, 4),
            ("RNDR", 6, 0, 60),
            ("APA", 6, 1, 4),
            ("SB", 6, 1, 36),
            ("APA3", 6, 2, 12),
            ("CLRBHB", 6, 2, 28),
            ("HAFDBS", 7, 1, 0),
            ("PAN", 7, 1, 20),
            ("CnP", 7, 2, 0),
            ("E0PD", 7, 2, 60),
        ] {
            assert_eq!(ids.id(crm, op2) >> shift & 0xf, 1, "{name}");
        }
    }

    #[test]
    fn more_than_the_world_switch_serves_is_not_shown() {
        let raw = everything();
        let ids = IdView::new(&raw, 40);
        for (name, crm, shift, most) in
            [("FP", 4, 16, 1), ("AdvSIMD", 4, 20, 1), ("TGran64", 7, 24, 0), ("TGran4", 7, 28, 0)]
        {
            assert_eq!(ids.id(crm, 0) >> shift & 0xf, most, "{name}");
        }
    }

    #[test]
    fn what_hardware_lacks_is_not_shown() {
        let raw = RawIds { pfr0: 0x00ff_0011, mmfr0: 0xff00_0001, ..RawIds::default() };
        let ids = IdView::new(&raw, 40);
        assert_eq!(ids.id(4, 0), 0x00ff_0011, "no FP stays no FP");
        assert_eq!(ids.id(7, 0), 0xff00_0001, "no granule stays none; 36 bits are all there are");
        assert_eq!(ids.id(6, 0) | ids.id(6, 1) | ids.id(6, 2) | ids.id(7, 1) | ids.id(7, 2), 0);
    }

    #[test]
    fn a_gic_is_shown_to_a_vm_that_has_one() {
        let raw = RawIds::default();
        for (gic, field) in [(false, 0), (true, 1)] {
            assert_eq!(IdView::new(&raw, 40).with_gic(gic).id(4, 0) >> 24 & 0xf, field);
        }
    }

    #[test]
    fn the_address_size_is_the_vms() {
        let raw = everything();
        for bits in 32..=40 {
            // Linux addresses no more than it is shown, so that has to cover the VM's RAM; and no more than it must.
            let sizes = [32, 36, 40, 42, 44, 48];
            let least = sizes.iter().position(|size| *size >= bits).unwrap() as u64;
            assert_eq!(IdView::new(&raw, bits).id(7, 0) & 0xf, least, "{bits}");
        }
        let raw = RawIds { mmfr0: 0, ..everything() };
        assert_eq!(IdView::new(&raw, 33).id(7, 0) & 0xf, 0, "the machine has no more");
    }

    #[test]
    fn id_registers_cannot_be_written() {
        for crm in 1..=7 {
            for op2 in 0..=7 {
                assert_eq!(write(Encoding::new(3, 0, 0, crm, op2), 1), Undefined);
            }
        }
    }

    #[test]
    fn debug_registers_are_zero_and_ignore_writes() {
        for register in [
            Encoding::new(2, 0, 0, 2, 2),  // MDSCR_EL1
            Encoding::new(2, 0, 0, 0, 5),  // DBGBCR0_EL1
            Encoding::new(2, 0, 0, 15, 7), // DBGWCR15_EL1
            Encoding::new(2, 0, 1, 3, 4),  // OSDLR_EL1
            Encoding::new(3, 0, 5, 4, 0),  // ERXFR_EL1
            Encoding::new(3, 0, 1, 0, 1),  // ACTLR_EL1
            Encoding::new(2, 3, 0, 4, 0),  // DBGDTR_EL0
            Encoding::new(2, 3, 0, 5, 0),  // DBGDTRRX_EL0, DBGDTRTX_EL0
        ] {
            assert_eq!(read(register), Read(0), "{register:?}");
            assert_eq!(write(register, u64::MAX), Ignore, "{register:?}");
        }
        for register in [
            Encoding::new(2, 0, 1, 0, 0),  // MDRAR_EL1
            Encoding::new(2, 0, 1, 1, 4),  // OSLSR_EL1
            Encoding::new(2, 0, 7, 14, 6), // DBGAUTHSTATUS_EL1
            Encoding::new(2, 3, 0, 1, 0),  // MDCCSR_EL0
            Encoding::new(3, 0, 5, 3, 0),  // ERRIDR_EL1
            Encoding::new(3, 0, 0, 0, 6),  // REVIDR_EL1
            Encoding::new(3, 1, 0, 0, 7),  // AIDR_EL1
        ] {
            assert_eq!(read(register), Read(0), "{register:?}");
            assert_eq!(write(register, 0), Undefined, "{register:?} is read only");
        }
        assert_eq!(write(Encoding::new(2, 0, 1, 0, 4), 1), Ignore, "OSLAR_EL1");
        assert_eq!(read(Encoding::new(2, 0, 1, 0, 4)), Undefined, "OSLAR_EL1 is write only");
    }

    #[test]
    fn hidden_and_unknown_registers_are_undefined() {
        for register in [
            Encoding::new(3, 3, 9, 12, 0),  // PMCR_EL0
            Encoding::new(3, 3, 9, 13, 0),  // PMCCNTR_EL0
            Encoding::new(3, 0, 9, 9, 0),   // PMSCR_EL1
            Encoding::new(3, 0, 9, 11, 0),  // TRBLIMITR_EL1
            Encoding::new(2, 1, 0, 0, 1),   // trace
            Encoding::new(3, 3, 13, 2, 0),  // AMCR_EL0
            Encoding::new(3, 0, 10, 4, 3),  // LORC_EL1
            Encoding::new(3, 3, 14, 2, 1),  // CNTP_CTL_EL0
            Encoding::new(3, 0, 12, 11, 5), // ICC_SGI1R_EL1
            Encoding::new(3, 0, 12, 12, 0), // ICC_IAR1_EL1
            Encoding::new(3, 0, 1, 2, 0),   // ZCR_EL1
            Encoding::new(3, 0, 11, 0, 0),  // IMPLEMENTATION DEFINED
            Encoding::new(1, 0, 7, 6, 2),   // DC ISW
            Encoding::new(1, 0, 7, 14, 2),  // DC CISW
            Encoding::new(3, 4, 1, 1, 0),   // HCR_EL2
            Encoding::new(3, 1, 0, 0, 2),   // CCSIDR2_EL1
        ] {
            assert_eq!(read(register), Undefined, "{register:?}");
            assert_eq!(write(register, 0), Undefined, "{register:?}");
        }
    }

    #[test]
    fn caches_look_small_and_selectable() {
        assert_eq!(write(Encoding::new(3, 2, 0, 0, 0), 0xffff_fff3), SelectCache(3));
        assert_eq!(read(Encoding::new(3, 1, 0, 0, 0)), Read(2), "64 bytes");
        assert_eq!(read(Encoding::new(3, 1, 0, 0, 1)), Read(0xa20_0023), "CLIDR_EL1");
        // Lines of 32 bytes for instructions, of 128 for data.
        let raw = RawIds { ctr: 0x9445_c003, ..everything() };
        let ccsidr = Access { register: Encoding::new(3, 1, 0, 0, 0), rt: 0, read: true };
        for (selected, shown) in [(0, 3), (1, 1), (2, 3), (3, 1)] {
            let read = decide(ccsidr, 0, selected, &IdView::new(&raw, 40));
            assert_eq!(read, Read(shown), "level and kind {selected}");
        }
        assert_eq!(read(Encoding::new(3, 3, 0, 0, 1)), Read(0x9444_c004));
    }

    #[test]
    fn no_access_panics_and_every_write_of_an_unlisted_register_is_refused() {
        let raw = everything();
        let ids = IdView::new(&raw, 40);
        for iss in (0..1u64 << 22).step_by(if cfg!(miri) { 20_011 } else { 1 }) {
            let access = Access::decode(iss);
            let verdict = decide(access, u64::MAX, 0, &ids);
            if access.read {
                assert!(!matches!(verdict, Ignore | SelectCache(_)));
            } else {
                assert!(!matches!(verdict, Read(_)));
            }
        }
    }
}
