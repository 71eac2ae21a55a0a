// SPDX-License-Identifier: MIT OR Apache-2.0
//! Calls that a protected guest makes (D15): pKVM's guest ABI and SMCCC, as far as `freehold_uapi::guest` says. PSCI is
//! [`crate::guest_power`]'s, random numbers are [`crate::trng`]'s, the MMIO guard is [`crate::guard`]'s.
//!
//! Decides only. A memory call names a run of guest frames that are all in the state the call wants *now*; the host
//! acts on it and `el2` checks again when it accepts. Nothing unknown succeeds.

use freehold_mem::Gfn;
use freehold_uapi::{guest, hvc};

use crate::exit::{Request, Wish};
use crate::guest_power;
use crate::registers::Registers;

/// What stands at a guest frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Outside every RAM range.
    Outside,
    /// RAM that was not given yet.
    Empty,
    /// The guest's alone.
    Private,
    /// The guest's, and lent to the host.
    Shared,
    /// Revoked by force.
    Poisoned,
}

/// What the memory model knows of a guest's address space.
pub trait Space {
    /// Whether its memory is the guest's own, so that it may lend it and give it up.
    fn is_protected(&self) -> bool;
    /// What stands at `gfn`.
    fn backing(&self, gfn: Gfn) -> Backing;
    /// What the VM's measurement says; nothing where no call of the guest's is decided.
    fn attest(&self) -> Option<[u64; 5]>;
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// x0–x3 take these and the guest goes on.
    Return([u64; 4]),
    /// The host must act; the call is made again unless it was accepted.
    Ask(Request),
    /// The call needs this guest frame backed first; it is made again then.
    Back(Gfn),
    /// x1–x5 take these, x6–x9 the nonce from x1–x4, and the guest goes on.
    Attest([u64; 5]),
}

const fn status(code: i64) -> Outcome {
    Outcome::Return([code.cast_unsigned(), 0, 0, 0])
}

const UNKNOWN: Outcome = status(guest::NOT_SUPPORTED);
const INVALID: Outcome = status(guest::INVALID_PARAMETER);

/// The identifier in x0: 32 bits, of which bit 16 is the SVE hint of SMCCC 1.3.
#[must_use]
pub const fn identifier(x0: u64) -> u64 {
    x0 & 0xfffe_ffff
}

/// The answer to a call that has the same one for every guest at any time: who answers, and what there is.
fn constant(x0: u64, x1: u64) -> Option<[u64; 4]> {
    let code = match u32::try_from(identifier(x0)).ok()? {
        guest::SMCCC_VERSION => 0x1_0002,
        guest::SMCCC_ARCH_FEATURES => match u32::try_from(x1 & 0xffff_ffff) {
            Ok(guest::SMCCC_VERSION | guest::SMCCC_ARCH_FEATURES) => guest::OK,
            Ok(_) | Err(_) => guest::NOT_SUPPORTED,
        },
        guest::PSCI_VERSION => guest_power::VERSION,
        guest::PSCI_FEATURES => guest_power::features(x1 & 0xffff_ffff),
        guest::VENDOR_UID => return Some(guest::PKVM_UID.map(u64::from)),
        _ => return None,
    };
    Some([code.cast_unsigned(), 0, 0, 0])
}

/// Answers an exception that is such a call; false if it is another one. For it nothing of the guest has to leave the CPU.
pub fn answer_at_once(esr: u64, registers: &mut impl Registers) -> bool {
    const HVC_0: u64 = 0x16 << 26;
    // EC and the immediate.
    let answer = if esr & 0xfc00_ffff == HVC_0 { constant(registers.x(0), registers.x(1)) } else { None };
    answer.map(|results| registers.answer(results)).is_some()
}

/// Decides the call with immediate `imm` and registers x0–x3.
pub fn serve(imm: u16, [x0, x1, x2, x3]: [u64; 4], space: &impl Space) -> Outcome {
    if imm != 0 {
        return UNKNOWN;
    }
    let Ok(id) = u32::try_from(identifier(x0)) else { return UNKNOWN };
    if let Some(results) = constant(x0, x1) {
        return Outcome::Return(results);
    }
    let of_memory = matches!(id, guest::HYP_MEMINFO | guest::MEM_SHARE | guest::MEM_UNSHARE | guest::MEM_RELINQUISH);
    match id {
        _ if of_memory && !space.is_protected() => UNKNOWN,
        guest::VENDOR_FEATURES if space.is_protected() => {
            Outcome::Return([guest::FEATURES.into(), 0, 0, guest::FEATURES_3.into()])
        }
        guest::VENDOR_FEATURES => Outcome::Return([1, 0, 0, 0]),
        guest::HYP_MEMINFO if x1 | x2 | x3 == 0 => Outcome::Return([guest::GRANULE, 1, 0, 0]),
        guest::ATTEST if space.is_protected() => space.attest().map_or(UNKNOWN, Outcome::Attest),
        guest::MEM_SHARE if x3 == 0 => run(Wish::Share, x1, x2, space),
        guest::MEM_UNSHARE if x3 == 0 => run(Wish::Unshare, x1, x2, space),
        guest::MEM_RELINQUISH if x2 | x3 == 0 => run(Wish::Relinquish, x1, 1, space),
        guest::HYP_MEMINFO | guest::MEM_SHARE | guest::MEM_UNSHARE | guest::MEM_RELINQUISH => INVALID,
        _ => UNKNOWN,
    }
}

/// The run from `ipa` on, `count` long (0 means 1), cut where a frame is not in the state that the wish needs.
fn run(wish: Wish, ipa: u64, count: u64, space: &impl Space) -> Outcome {
    if !ipa.is_multiple_of(guest::GRANULE) {
        return INVALID;
    }
    let Some(first) = Gfn::new(ipa / guest::GRANULE) else { return INVALID };
    match (space.backing(first), wish) {
        (Backing::Private, Wish::Share | Wish::Relinquish) | (Backing::Shared, Wish::Unshare) => {}
        // A balloon gives up pages that it never touched: there is nothing to give.
        (Backing::Empty, Wish::Relinquish) => return status(guest::OK),
        (Backing::Empty, Wish::Share) => return Outcome::Back(first),
        (Backing::Outside | Backing::Poisoned, _)
        | (Backing::Empty, Wish::Unshare)
        | (Backing::Private, Wish::Unshare)
        | (Backing::Shared, Wish::Share | Wish::Relinquish) => return INVALID,
    }
    let wanted = space.backing(first);
    let asked = count.clamp(1, hvc::MAX_RUN);
    let fits = |offset: &u64| {
        first.raw().checked_add(*offset).and_then(Gfn::new).is_some_and(|gfn| space.backing(gfn) == wanted)
    };
    let more = u64::try_from((1..asked).take_while(fits).count()).unwrap_or(0);
    Outcome::Ask(Request { wish, first, count: more.saturating_add(1) })
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;
    use crate::registers::fake::Fake;

    struct Map;

    /// The same of an ordinary VM.
    struct Borrowed;

    impl Space for Borrowed {
        fn is_protected(&self) -> bool {
            false
        }
        fn backing(&self, gfn: Gfn) -> Backing {
            Map.backing(gfn)
        }
        fn attest(&self) -> Option<[u64; 5]> {
            Map.attest()
        }
    }

    impl Space for Map {
        fn is_protected(&self) -> bool {
            true
        }
        // 0x100..0x200 private, 0x200..0x204 shared, 0x204 poisoned, 0x205..0x300 empty; the last frame is RAM too.
        fn backing(&self, gfn: Gfn) -> Backing {
            match gfn.raw() {
                0x100..0x200 | 0xfff_ffff => Backing::Private,
                0x200..0x204 => Backing::Shared,
                0x204 => Backing::Poisoned,
                0x205..0x300 => Backing::Empty,
                _ => Backing::Outside,
            }
        }

        fn attest(&self) -> Option<[u64; 5]> {
            Some([1, 2, 3, 4, 5])
        }
    }

    fn call(id: u32, x1: u64, x2: u64, x3: u64) -> Outcome {
        serve(0, [u64::from(id), x1, x2, x3], &Map)
    }

    fn ask(wish: Wish, first: u64, count: u64) -> Outcome {
        Outcome::Ask(Request { wish, first: Gfn::new(first).unwrap(), count })
    }

    #[test]
    fn every_declared_call_is_served() {
        for declared in
            guest::CALLS.iter().filter(|call| !["PSCI", "TRNG", "MMIO"].iter().any(|of| call.name.starts_with(of)))
        {
            // The feature queries ask about themselves.
            assert_ne!(call(declared.id, u64::from(guest::SMCCC_VERSION), 0, 0), UNKNOWN, "{}", declared.name);
        }
    }

    #[test]
    fn nothing_unknown_succeeds() {
        for id in [0, 0x8400_0003, 0x8600_0001, 0xC600_0005, 0xC600_0080, 0xC400_0003, 0xffff_ffff, 0x8600_003f] {
            assert_eq!(call(id, 0, 0, 0), UNKNOWN, "{id:#x}");
        }
        assert_eq!(serve(1, [u64::from(guest::SMCCC_VERSION), 0, 0, 0], &Map), UNKNOWN);
        assert_eq!(call(guest::SMCCC_ARCH_FEATURES, 0x8000_8000, 0, 0), UNKNOWN);
    }

    #[test]
    fn a_guest_whose_memory_is_the_hosts_lends_and_gives_up_nothing() {
        for id in [guest::HYP_MEMINFO, guest::MEM_SHARE, guest::MEM_UNSHARE, guest::MEM_RELINQUISH, guest::ATTEST] {
            assert_eq!(serve(0, [id.into(), 0x10_0000, 0, 0], &Borrowed), UNKNOWN, "{id:#x}");
        }
        let features = serve(0, [guest::VENDOR_FEATURES.into(), 0, 0, 0], &Borrowed);
        assert_eq!(features, Outcome::Return([1, 0, 0, 0]), "and is told so");
    }

    #[test]
    fn a_protected_guest_is_told_what_it_may_call() {
        let Outcome::Return(words) = serve(0, [guest::VENDOR_FEATURES.into(), 0, 0, 0], &Map) else { panic!() };
        let told: Vec<u32> = (0..128).filter(|n| words[*n as usize / 32] >> (n % 32) & 1 != 0).collect();
        let calls = [
            guest::VENDOR_FEATURES,
            guest::HYP_MEMINFO,
            guest::MEM_SHARE,
            guest::MEM_UNSHARE,
            guest::MMIO_GUARD_INFO,
            guest::MMIO_GUARD_ENROLL,
            guest::MMIO_GUARD_MAP,
            guest::MMIO_GUARD_UNMAP,
            guest::MEM_RELINQUISH,
            guest::ATTEST,
        ];
        assert_eq!(told, calls.map(|id| id & 0xff), "bit n of the words says function n");
        assert!(words.iter().all(|word| *word >> 32 == 0));
    }

    #[test]
    fn what_is_answered_at_once_is_what_the_board_answers() {
        let vcpu = crate::handle::VcpuIndex::decode(0).unwrap();
        for id in [guest::PSCI_VERSION, guest::PSCI_FEATURES] {
            for x1 in [0, 0x8400_0000, 0xc400_0003, 1 << 32 | 0x8400_0000, 0x8000_0000, 0x8400_001f, u64::MAX] {
                let mut r = Fake::new();
                (r.x[0], r.x[1]) = (id.into(), x1);
                assert!(answer_at_once(HVC, &mut r));
                let slow = guest_power::Power::new().serve(vcpu, id.into(), [x1, 0, 0], 1);
                assert_eq!(slow, Some(guest_power::Answer::Return(r.x[0].cast_signed())), "{id:#x} {x1:#x}");
                assert_eq!(r.x[1..4], [0; 3]);
                assert_eq!(r.x[4..], Fake::new().x[4..]);
                assert_eq!(r.pc, Fake::new().pc, "it is behind the call already");
            }
        }
    }

    /// `ESR_EL2` of `HVC #0`.
    const HVC: u64 = 0x16 << 26 | 1 << 25;

    #[test]
    fn nothing_else_is_answered_at_once() {
        let version = u64::from(guest::PSCI_VERSION);
        let others =
            [guest::PSCI_CPU_ON, guest::PSCI_SYSTEM_OFF, guest::MEM_SHARE, guest::VENDOR_FEATURES, guest::ATTEST];
        let others = others.map(|id| (HVC, id.into()));
        for (esr, id) in others.into_iter().chain([
            (HVC | 1, version),
            (0x17 << 26 | 1 << 25, version),
            (0x12 << 26 | 1 << 25, version),
            (0x24 << 26 | 1 << 25, version),
            (0, version),
            (HVC, 0),
            (HVC, u64::MAX),
        ]) {
            let mut r = Fake::new();
            r.x[0] = id;
            let before = r.x;
            assert!(!answer_at_once(esr, &mut r), "{esr:#x} {id:#x}");
            assert_eq!(r.x, before);
        }
    }

    #[test]
    fn queries_answer_what_the_abi_says() {
        assert_eq!(call(guest::VENDOR_UID, 9, 9, 9), Outcome::Return(guest::PKVM_UID.map(u64::from)));
        assert_eq!(call(guest::HYP_MEMINFO, 0, 0, 0), Outcome::Return([4096, 1, 0, 0]));
        for [x1, x2, x3] in [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1], [1, 1, 1]] {
            assert_eq!(call(guest::HYP_MEMINFO, x1, x2, x3), INVALID);
        }
        for id in [guest::SMCCC_VERSION, guest::SMCCC_ARCH_FEATURES] {
            assert_eq!(call(guest::SMCCC_ARCH_FEATURES, id.into(), 0, 0), status(guest::OK));
        }
        // With the hint; and an identifier is what stands in W0.
        for x0 in [u64::from(guest::SMCCC_VERSION | 1 << 16), u64::MAX << 32 | u64::from(guest::SMCCC_VERSION)] {
            assert_eq!(serve(0, [x0, 0, 0, 0], &Map), Outcome::Return([0x1_0002, 0, 0, 0]), "{x0:#x}");
        }
    }

    #[test]
    fn a_run_ends_where_the_state_changes() {
        assert_eq!(call(guest::MEM_SHARE, 0x1f_e000, 8, 0), ask(Wish::Share, 0x1fe, 2));
        assert_eq!(call(guest::MEM_SHARE, 0x10_0000, 0, 0), ask(Wish::Share, 0x100, 1));
        assert_eq!(call(guest::MEM_UNSHARE, 0x20_0000, u64::MAX, 0), ask(Wish::Unshare, 0x200, 4));
        assert_eq!(call(guest::MEM_SHARE, 0xff_ffff_f000, 5, 0), ask(Wish::Share, 0xfff_ffff, 1));
        assert_eq!(call(guest::MEM_RELINQUISH, 0x10_0000, 0, 0), ask(Wish::Relinquish, 0x100, 1));
    }

    #[test]
    fn a_frame_in_the_wrong_state_is_an_invalid_parameter() {
        for (id, ipa) in [
            (guest::MEM_SHARE, 0x20_0000),      // shared already
            (guest::MEM_SHARE, 0x20_4000),      // poisoned
            (guest::MEM_SHARE, 0x30_0000),      // outside
            (guest::MEM_SHARE, 0x10_0001),      // not aligned
            (guest::MEM_SHARE, 1 << 40),        // beyond the address space
            (guest::MEM_SHARE, u64::MAX << 12), // far beyond
            (guest::MEM_UNSHARE, 0x10_0000),    // private
            (guest::MEM_UNSHARE, 0x20_5000),    // empty
            (guest::MEM_RELINQUISH, 0x20_0000), // lent
        ] {
            assert_eq!(call(id, ipa, 0, 0), INVALID, "{id:#x} {ipa:#x}");
        }
        assert_eq!(call(guest::MEM_SHARE, 0x10_0000, 1, 7), INVALID, "reserved argument");
        assert_eq!(call(guest::MEM_UNSHARE, 0x20_0000, 1, 7), INVALID, "reserved argument");
        for (x2, x3) in [(1, 0), (0, 1), (1, 1)] {
            assert_eq!(call(guest::MEM_RELINQUISH, 0x10_0000, x2, x3), INVALID, "reserved arguments");
        }
    }

    #[test]
    fn an_empty_frame_is_backed_before_it_is_shared_and_nothing_to_relinquish() {
        assert_eq!(call(guest::MEM_SHARE, 0x20_5000, 1, 0), Outcome::Back(Gfn::new(0x205).unwrap()));
        assert_eq!(call(guest::MEM_RELINQUISH, 0x20_5000, 0, 0), status(guest::OK));
    }
}
