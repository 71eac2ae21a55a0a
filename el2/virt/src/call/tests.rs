// SPDX-License-Identifier: MIT OR Apache-2.0
//! Decoding against the table of the ABI.

use std::collections::BTreeSet;
use std::vec::Vec;

use freehold_mem::Refused as Memory;

use super::*;

fn code(why: Refused) -> i64 {
    why.status().0
}

const HANDLE: u64 = 1 << 16;

/// What decodes this call: nothing of VERSION is decoded, and [`vcpu_run`] is a run's.
fn decode(id: u32, x: [u64; 5]) -> Result<(), Refused> {
    match id {
        hvc::VERSION => Ok(()),
        hvc::VCPU_RUN => vcpu_run([x[0], x[1]]).map(|_| ()),
        _ => Call::decode(id, x).map(|_| ()),
    }
}

#[test]
fn every_declared_call_is_decoded_and_no_other() {
    for declared in hvc::CALLS {
        let result = decode(declared.id, [HANDLE, 0, 1, 1, 0]);
        assert!(!matches!(result, Err(Refused::NoSuchCall)), "{}", declared.name);
    }
    let known: BTreeSet<u32> = hvc::CALLS.iter().map(|call| call.id).collect();
    for id in (hvc::BASE - 0x80..hvc::BASE + 0x80).chain([0, u32::MAX, 0x8600_0080, 0x8600_FF01]) {
        let unknown = matches!(decode(id, [HANDLE, 0, 1, 1, 0]), Err(Refused::NoSuchCall));
        assert_eq!(unknown, !known.contains(&id), "{id:#x}");
    }
}

#[test]
fn bad_arguments_have_their_own_errors() {
    let refused = |id, x: [u64; 5]| decode(id, x).map_err(code);
    for (id, x, expected) in [
        (hvc::VM_CREATE, [1 << 63, 40, 1, 1, 0], hvc::BAD_ARGUMENT),
        (hvc::VM_CREATE, [2, 40, 1, 1, 0], hvc::BAD_ARGUMENT),
        (hvc::VM_CREATE, [1, 1 << 40, 1, 1, 0], hvc::BAD_ARGUMENT),
        (hvc::VM_CREATE, [1, 40, 1, 0, 0], hvc::ZERO_COUNT),
        (hvc::VM_CREATE, [1, 40, u64::MAX, 1, 0], hvc::OVERFLOW),
        (hvc::VM_CREATE, [1, 40, 1 << 40, 1, 0], hvc::NOT_MEMORY),
        (hvc::VM_RANGE, [0, 0, 1, 0, 0], hvc::WRONG_HANDLE),
        (hvc::VM_RANGE, [HANDLE, 0, 0, 0, 0], hvc::ZERO_COUNT),
        (hvc::VM_RANGE, [HANDLE, u64::MAX, 2, 0, 0], hvc::OVERFLOW),
        (hvc::VM_RANGE, [HANDLE, 1 << 28, 1, 0, 0], hvc::GFN_OUT_OF_RANGE),
        (hvc::VCPU_CREATE, [HANDLE, 8, 0, 0, 0], hvc::WRONG_VCPU),
        (hvc::VCPU_CREATE, [HANDLE, 1 << 32, 0, 0, 0], hvc::WRONG_VCPU),
        (hvc::VCPU_RUN, [1, 0, 0, 0, 0], hvc::WRONG_HANDLE),
        (hvc::VCPU_RUN, [HANDLE, 8, 0, 0, 0], hvc::WRONG_VCPU),
        (hvc::VM_IRQ, [HANDLE, 32, 4, 0, 0], hvc::BAD_ARGUMENT),
        (hvc::VCPU_SET_REG, [HANDLE, 0, 31, 0, 0], hvc::BAD_ARGUMENT),
        (hvc::VCPU_GET_REG, [HANDLE, 0, 127, 0, 0], hvc::BAD_ARGUMENT),
        (hvc::VCPU_GET_REG, [HANDLE, 0, 218, 0, 0], hvc::BAD_ARGUMENT),
        (hvc::MEM_DONATE, [HANDLE, 1, 1, 1, 2], hvc::BAD_ARGUMENT),
        (hvc::MEM_DONATE, [HANDLE, 1, 1, 0, 0], hvc::ZERO_COUNT),
        (hvc::MEM_DONATE, [HANDLE, 1, 1, 513, 0], hvc::COUNT_TOO_LARGE),
        (hvc::MEM_DONATE, [HANDLE, u64::MAX, 1, u64::MAX, 0], hvc::COUNT_TOO_LARGE),
        (hvc::MEM_UNSHARE, [HANDLE, 1, 513, 0, 0], hvc::COUNT_TOO_LARGE),
        (hvc::MEM_DONATE_LIST, [HANDLE, u64::MAX, 1, 0, 0], hvc::NOT_MEMORY),
        (hvc::MEM_DONATE_LIST, [HANDLE, 1, 1, 4, 0], hvc::BAD_ARGUMENT),
        (hvc::MEM_SHARE, [HANDLE, 1, 1, 1, 4], hvc::BAD_ARGUMENT),
    ] {
        assert_eq!(refused(id, x), Err(expected), "{id:#x} {x:?}");
    }
}

#[test]
fn every_flag_says_one_thing_and_no_other() {
    for (flags, wanted) in [(0, false), (hvc::VM_PROTECTED, true)] {
        let call = Call::decode(hvc::VM_CREATE, [flags, 40, 1, 1, 0]);
        assert!(matches!(call, Ok(Call::VmCreate { protected, ipa_bits: 40, .. }) if protected == wanted), "{call:?}");
    }
    for (flags, wanted) in [(0, false), (hvc::DONATE_REVOCABLE, true)] {
        let call = Call::decode(hvc::MEM_DONATE, [HANDLE, 1, 1, 1, flags]);
        assert!(matches!(call, Ok(Call::MemDonate { revocable, .. }) if revocable == wanted), "{call:?}");
        let call = Call::decode(hvc::MEM_DONATE_LIST, [HANDLE, 1, 1, flags, 0]);
        assert!(matches!(call, Ok(Call::MemDonateList { revocable, .. }) if revocable == wanted), "{call:?}");
    }
    for (id, wanted) in [(hvc::VCPU_SET_REG, Some(7)), (hvc::VCPU_GET_REG, None)] {
        let call = Call::decode(id, [HANDLE, 0, 3, 7, 0]);
        assert!(matches!(call, Ok(Call::VcpuReg { value, .. }) if value == wanted), "{call:?}");
    }
    for (first, second) in [(false, false), (true, false), (false, true), (true, true)] {
        let either = |one, two| if first { one } else { 0 } | if second { two } else { 0 };
        let flags = either(hvc::SHARE_WRITE, hvc::SHARE_EXEC);
        let call = Call::decode(hvc::MEM_SHARE, [HANDLE, 1, 1, 1, flags]);
        let wanted = Access { write: first, execute: second };
        assert!(matches!(call, Ok(Call::MemShare { access, .. }) if access == wanted), "{call:?}");
        let flags = either(hvc::IRQ_HIGH, hvc::IRQ_RESAMPLE);
        let call = Call::decode(hvc::VM_IRQ, [HANDLE, 32, flags, 0, 0]);
        assert!(
            matches!(call, Ok(Call::VmIrq { high, resample, .. }) if (high, resample) == (first, second)),
            "{call:?}"
        );
    }
}

#[test]
fn a_run_may_be_as_long_as_the_longest() {
    for (id, x) in [
        (hvc::VM_RECLAIM, [HANDLE, 1, hvc::MAX_RUN, 0, 0]),
        (hvc::MEM_DONATE, [HANDLE, 1, 1, hvc::MAX_RUN, 0]),
        (hvc::MEM_UNSHARE, [HANDLE, 1, hvc::MAX_RUN, 0, 0]),
    ] {
        assert!(Call::decode(id, x).is_ok(), "{id:#x}");
    }
}

#[test]
fn a_reply_fills_its_registers_and_zeroes_the_rest() {
    let reply = Reply::success([1, 2, 3, 4]);
    assert_eq!(reply.registers(), [0, 1, 2, 3, 4, 0]);
    let refused: Reply = Refused::Memory(Memory::NeedPages(3)).into();
    assert_eq!(refused.registers(), [hvc::NEED_PAGES.cast_unsigned(), 3, 0, 0, 0, 0]);
    for reply in [reply, refused] {
        let [x0, x1, x2, x3, x4, _] = reply.registers();
        assert_eq!(reply.waking(6).registers(), [x0, x1, x2, x3, x4, 6], "refusals too");
    }
}

/// Every refusal of this crate and of the memory model; the match fails to compile when one is added.
fn all_refusals() -> Vec<Refused> {
    let memory = [
        Memory::ZeroCount,
        Memory::CountTooLarge,
        Memory::Overflow,
        Memory::NotMemory,
        Memory::NoMap,
        Memory::El2Owned,
        Memory::AlreadyDonated,
        Memory::Foreign,
        Memory::Shared,
        Memory::LentTooOften,
        Memory::Twice,
        Memory::GfnOutOfRange,
        Memory::GfnMapped,
        Memory::GfnNotMapped,
        Memory::GfnPoisoned,
        Memory::NotShared,
        Memory::HostOwned,
        Memory::NeedPages(1),
        Memory::WrongState,
        Memory::WrongKind,
        Memory::BadIpaSize,
        Memory::RamOverlap,
        Memory::TooManyRanges,
        Memory::GuestFramesLeft,
    ];
    let own = [
        Refused::NoSuchCall,
        Refused::WrongHandle,
        Refused::StaleHandle,
        Refused::WrongVcpu,
        Refused::VcpuBusy,
        Refused::VcpuExists,
        Refused::WrongState,
        Refused::NoSlot,
        Refused::NoVms,
        Refused::BadArgument,
        Refused::Unaligned,
        Refused::NoRequest,
        Refused::Denied,
    ];
    own.into_iter().chain(memory.into_iter().map(Refused::Memory)).collect()
}

#[test]
fn every_status_of_the_abi_has_a_refusal_and_none_is_made_up() {
    let produced: BTreeSet<i64> = all_refusals().into_iter().map(code).collect();
    let declared: BTreeSet<i64> =
        hvc::STATUSES.iter().map(|status| status.value).filter(|value| *value != hvc::SUCCESS).collect();
    assert_eq!(produced, declared);
}

#[test]
fn every_refusal_of_decoding_is_documented_for_its_call() {
    // Random registers, with the interesting numbers drawn often.
    let odd = [0, 1, 2, 3, 4, 7, 8, 31, 32, 40, 512, 513, HANDLE, HANDLE | 63, 1 << 28, 1 << 36, 1 << 52, u64::MAX];
    let mut seed = 0x1234_5678_9abc_def1u64;
    let mut draw = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        odd[(seed >> 33) as usize % odd.len()]
    };
    for declared in hvc::CALLS {
        for _ in 0..if cfg!(miri) { 30 } else { 20_000 } {
            let x = [draw(), draw(), draw(), draw(), draw()];
            if let Err(why) = decode(declared.id, x) {
                let status = hvc::STATUSES.iter().find(|status| status.value == code(why)).map(|status| status.name);
                assert!(
                    declared.errors.iter().any(|name| Some(*name) == status),
                    "{} says {status:?} to {x:?}",
                    declared.name
                );
            }
        }
    }
}
