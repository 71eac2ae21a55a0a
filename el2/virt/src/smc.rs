// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which SMC of the host passes to firmware (design D12): an allow-list by owning entity.
//!
//! Guarantees that firmware never learns an address of the host's to enter or to write at EL2's expense: SDEI, FF-A,
//! RMI, DRTM and every service that is not listed answer `NOT_SUPPORTED`. PSCI is decided in [`crate::psci`].
//! Source: Arm DEN0028 (SMCCC 1.4), DEN0022 (PSCI 1.3), DEN0098 (TRNG).

use crate::psci::Function;

/// SMCCC's `NOT_SUPPORTED`.
pub const NOT_SUPPORTED: i64 = -1;

/// The SMCCC version that `el2` answers for itself, whatever firmware lacks: 1.2.
pub const SMCCC_VERSION: u64 = 0x1_0002;

/// Identifier of the `SMCCC_VERSION` call.
pub const FN_SMCCC_VERSION: u32 = 0x8000_0000;

/// A hint that the caller has no live SVE state (DEN0028 §2.5.1); not part of the identifier.
const SVE_HINT: u32 = 1 << 16;

/// What an SMC of the host asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// `SMCCC_VERSION`: `el2` answers.
    Version,
    /// A PSCI call of the relay.
    Psci(Function),
    /// Harmless in firmware: passed on with x1–x3, results in x0–x3.
    Forward(u32),
    /// Anything else.
    Denied,
}

/// What the platform adds to the allow-list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Platform {
    /// Silicon-provider and OEM services (owners 2 and 3) pass, for boards whose EL3 the guest trusts anyway.
    pub vendor_services: bool,
}

/// Whether the SMC with immediate `imm` and function word `x0` is one of Freehold's own calls: fast, of owner 6, of either
/// width, with or without the hint, and nothing else in it but the number.
#[inline]
#[must_use]
pub const fn is_own(imm: u16, x0: u64) -> bool {
    const FREE: u64 = 1 << 30 | SVE_HINT as u64 | 0xffff;
    imm == 0 && x0 & !FREE == 1 << 31 | 6 << 24
}

/// Decides what the SMC with immediate `imm` and function word `x0` is. Freehold's own calls are told before, by [`is_own`],
/// and are nothing that the relay knows.
#[must_use]
pub fn classify(imm: u16, x0: u64, platform: Platform) -> Call {
    let Ok(word) = u32::try_from(x0) else { return Call::Denied };
    let id = word & !SVE_HINT;
    let fast = id >> 31 == 1;
    // Bits [23:17] of a fast call must be zero; bit 16 was the hint.
    if imm != 0 || !fast || id & 0x00fe_0000 != 0 {
        return Call::Denied;
    }
    let wide = id & 1 << 30 != 0;
    match (id >> 24 & 0x3f, id & 0xffff) {
        (0, 0) if !wide => Call::Version,
        // Architecture calls: workarounds, features, SOC_ID. None takes an address.
        (0, _) if !wide => Call::Forward(id),
        (2 | 3, _) if platform.vendor_services => Call::Forward(id),
        // TRNG: version, features, UUID, random bits in registers.
        (4, 0x50..=0x53) => Call::Forward(id),
        (4, 0..=0x1f) => Function::decode(id).map_or(Call::Denied, Call::Psci),
        _ => Call::Denied,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(x0: u64) -> Call {
        classify(0, x0, Platform::default())
    }

    #[test]
    fn psci_is_recognised_with_and_without_the_sve_hint() {
        assert_eq!(plain(0xC400_0003), Call::Psci(Function::CpuOn64));
        assert_eq!(plain(0xC401_0003), Call::Psci(Function::CpuOn64));
    }

    #[test]
    fn services_that_could_enter_the_host_at_el2_are_denied() {
        for id in [
            0xC400_0020u64, // SDEI_VERSION
            0xC400_0021,    // SDEI_EVENT_REGISTER
            0xC400_003F,    // end of SDEI
            0x8400_0063,    // FFA_VERSION
            0xC400_0066,    // FFA_RXTX_MAP
            0x8400_0071,    // FFA_MEM_DONATE
            0xC400_0150,    // RMI_VERSION
            0xC400_0110,    // DRTM
            0x8400_0013,    // MEM_PROTECT
            0x8400_000B,    // CPU_FREEZE
            0xB200_0000,    // trusted OS
            0xF200_0000,
            0xC200_0001, // SiP without the platform's consent
            0x8300_0001, // OEM
            0x8500_0001, // standard hypervisor
        ] {
            assert_eq!(plain(id), Call::Denied, "{id:#x}");
        }
        assert_eq!(NOT_SUPPORTED.cast_unsigned(), u64::MAX, "what its caller finds in x0 (DEN0028 section 7)");
    }

    #[test]
    fn silicon_provider_calls_pass_only_where_the_platform_says_so() {
        let board = Platform { vendor_services: true };
        assert_eq!(classify(0, 0xC200_0001, board), Call::Forward(0xC200_0001));
        assert_eq!(classify(0, 0xB200_0001, board), Call::Denied);
    }

    #[test]
    fn a_call_with_stray_bits_is_denied() {
        assert_eq!(classify(1, 0xC400_0003, Platform::default()), Call::Denied);
        assert_eq!(plain(0x1_C400_0003), Call::Denied);
        assert_eq!(plain(u64::MAX), Call::Denied);
        assert_eq!(plain(0x4400_0003), Call::Denied, "yielding");
        assert_eq!(plain(0xC402_0003), Call::Denied, "reserved bit 17");
    }

    #[test]
    fn an_architecture_call_takes_32_bits() {
        for id in [0xC000_0000, 0xC000_0001, 0xC000_8000] {
            assert_eq!(plain(id), Call::Denied, "{id:#x}");
        }
    }

    #[test]
    fn the_sve_hint_is_no_part_of_what_is_passed_on() {
        assert_eq!(plain(0x8001_8000), Call::Forward(0x8000_8000));
        assert_eq!(plain(0x8001_0000), Call::Version);
    }

    #[test]
    fn version_workarounds_and_entropy_have_their_place() {
        assert_eq!(plain(0x8000_0000), Call::Version);
        for id in [0x8000_0001u32, 0x8000_0002, 0x8000_8000, 0x8000_7FFF, 0x8000_3FFF, 0x8400_0050, 0xC400_0053] {
            assert_eq!(plain(u64::from(id)), Call::Forward(id));
        }
    }

    #[test]
    fn an_own_call_is_fast_of_its_owner_and_has_no_stray_bit() {
        assert!(is_own(0, 0xC600_0080) && is_own(0, 0x8601_FFFF));
        assert!(!is_own(1, 0xC600_0080));
        for bit in (0..64).filter(|bit| !matches!(bit, 0..=16 | 30)) {
            assert!(!is_own(0, 0xC600_0080 ^ 1 << bit), "bit {bit}");
        }
        for id in [0xC600_0080, 0xC601_0080, 0x8600_FF01] {
            assert_eq!(plain(id), Call::Denied, "the relay knows none: {id:#x}");
        }
    }

    #[test]
    fn nothing_but_the_list_passes() {
        // Every fast identifier of the standard-secure owner, both widths, against the list written out again.
        for wide in [0u32, 1 << 30] {
            for f in 0..if cfg!(miri) { 0x100 } else { 0x1_0000_u32 } {
                let id = 1 << 31 | wide | 4 << 24 | f;
                let passes = !matches!(plain(u64::from(id)), Call::Denied);
                let narrow = wide == 0;
                let listed = match f {
                    0x00 | 0x02 | 0x06 | 0x08 | 0x09 | 0x0a | 0x0f => narrow,
                    0x05 => true,
                    0x01 | 0x03 | 0x04 | 0x07 | 0x0c | 0x0d | 0x0e | 0x10 | 0x11 | 0x12 | 0x15 => true,
                    0x50..=0x53 => true,
                    _ => false,
                };
                assert_eq!(passes, listed, "{id:#x}");
            }
        }
    }
}
