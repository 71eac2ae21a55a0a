// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every error that the ABI documents for a call can be produced, and changes nothing (I6).

use std::collections::{BTreeMap, BTreeSet};

use freehold_uapi::hvc::{self, *};

use super::rig::{CARVE_OUT, DEVICE, GUEST_FRAMES, GUEST_RAM, NO_MAP, RAM, Rig, name};
use crate::calls::Stop;
use freehold_virt::vcpu::Trap;

/// Collects what was produced.
#[derive(Default)]
struct Seen(BTreeMap<u32, BTreeSet<&'static str>>);

impl Seen {
    fn no(&mut self, rig: &Rig, id: u32, arguments: &[u64], expected: i64) {
        let status = rig.no(id, arguments);
        assert_eq!(name(status), name(expected), "{id:#x} {arguments:x?}");
        self.0.entry(id).or_default().insert(name(status));
    }

    /// What a call says of a handle.
    fn handles(&mut self, rig: &Rig, id: u32, stale: u64, rest: &[u64]) {
        for (handle, expected) in
            [(0, WRONG_HANDLE), (5, WRONG_HANDLE), (stale + (9 << 16), WRONG_HANDLE), (stale, STALE_HANDLE)]
        {
            self.no(rig, id, &[&[handle], rest].concat(), expected);
        }
    }

    /// What a call says of a run of host frames; `at` is put before and `after` behind it.
    fn runs(&mut self, rig: &Rig, id: u32, at: &[u64], after: &dyn Fn(u64) -> Vec<u64>, foreign: u64) {
        for (pfn, count, expected) in [
            (RAM, 0, ZERO_COUNT),
            (RAM, 513, COUNT_TOO_LARGE),
            (RAM, u64::MAX, COUNT_TOO_LARGE),
            (u64::MAX, 2, OVERFLOW),
            (DEVICE, 1, NOT_MEMORY),
            (RAM - 1, 2, NOT_MEMORY),
            (1 << 40, 1, NOT_MEMORY),
            (NO_MAP, 1, NO_MAP_STATUS),
            (CARVE_OUT, 1, EL2_OWNED),
            (foreign, 1, FOREIGN),
        ] {
            self.no(rig, id, &[at, &[pfn], &after(count)].concat(), expected);
        }
    }
}

const NO_MAP_STATUS: i64 = hvc::NO_MAP;

/// A guest's HVC.
fn hvc_exit(x: [u64; 4]) -> impl FnOnce(&mut super::rig::Fake) -> Stop + Send + 'static {
    move |registers| {
        registers.x[..4].copy_from_slice(&x);
        registers.pc += 4;
        Stop::Trap(Trap { esr: 0x16 << 26, far: 0, hpfar: 0 })
    }
}

#[test]
fn every_documented_error_can_be_produced_and_no_other() {
    let rig = &Rig::new();
    let seen = &mut Seen::default();
    let (pool_a, pool_b, pool_c, memory) = (RAM, RAM + 16, RAM + 32, RAM + 512);

    rig.serves_vms.store(false, std::sync::atomic::Ordering::Relaxed);
    seen.no(rig, VM_CREATE, &[VM_PROTECTED, 40, pool_a, 16], NO_VMS);
    rig.serves_vms.store(true, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(rig.yes(COUNTER, &[0, 0]), 7);
    seen.no(rig, COUNTER, &[99, 0], BAD_ARGUMENT);
    seen.no(rig, COUNTER, &[0, 99], BAD_ARGUMENT);

    // One VM that has ended, one that never ran (b), one that runs (a).
    let stale = rig.vm(pool_c);
    rig.end(stale, &[], pool_c, 16);
    let b = rig.vm(pool_b);
    let a = rig.vm(pool_a);
    // a's guest has a private page and one that it has shared.
    rig.yes(MEM_DONATE, &[a, memory, GUEST_RAM, 2, 0]);
    rig.yes(MEM_DONATE, &[b, memory + 8, GUEST_RAM, 1, 0]);
    rig.next(hvc_exit([0xC600_0003, GUEST_RAM << 12, 1, 0]));
    assert_eq!(rig.run(a, 0)[..3], [EXIT_SHARE, GUEST_RAM, 1]);
    assert_eq!(rig.yes(GUEST_ACCEPT, &[a, 0, 1]), 1);
    let shared = memory;

    // VM_CREATE
    for (flags, bits) in [(0, 31), (2, 40), (VM_PROTECTED | 2, 40), (VM_PROTECTED, 31), (VM_PROTECTED, 41)] {
        seen.no(rig, VM_CREATE, &[flags, bits, pool_c, 16], BAD_ARGUMENT);
    }
    seen.runs(rig, VM_CREATE, &[VM_PROTECTED, 40], &|count| vec![count], memory + 8);
    seen.no(rig, VM_CREATE, &[VM_PROTECTED, 40, shared, 1], SHARED);
    seen.no(rig, VM_CREATE, &[VM_PROTECTED, 40, pool_c, 1], NEED_PAGES);

    // VM_RANGE
    seen.handles(rig, VM_RANGE, stale, &[GUEST_RAM, 1]);
    seen.no(rig, VM_RANGE, &[a, GUEST_RAM + GUEST_FRAMES, 1], WRONG_STATE);
    seen.no(rig, VM_RANGE, &[b, 0, 0], ZERO_COUNT);
    seen.no(rig, VM_RANGE, &[b, u64::MAX, 2], OVERFLOW);
    seen.no(rig, VM_RANGE, &[b, (1 << 28) - 1, 2], GFN_OUT_OF_RANGE);
    seen.no(rig, VM_RANGE, &[b, GUEST_RAM + 5, 1], BAD_RANGE);

    // POOL_TOPUP
    seen.handles(rig, POOL_TOPUP, stale, &[pool_c, 1]);
    seen.runs(rig, POOL_TOPUP, &[a], &|count| vec![count], memory + 8);
    seen.no(rig, POOL_TOPUP, &[a, memory + 1, 1], ALREADY_DONATED);
    seen.no(rig, POOL_TOPUP, &[a, pool_a, 1], ALREADY_DONATED);
    seen.no(rig, POOL_TOPUP, &[b, shared, 1], SHARED);

    // vCPUs
    for (id, rest) in [
        (VCPU_CREATE, &[0][..]),
        (VCPU_SET_REG, &[0, REG_X0, 1]),
        (VCPU_GET_REG, &[0, REG_X0]),
        (VCPU_RUN, &[0, 0]),
        (VCPU_KICK, &[0]),
    ] {
        seen.handles(rig, id, stale, rest);
        let tail = &rest[1..];
        seen.no(rig, id, &[&[b, 8], tail].concat(), WRONG_VCPU);
        if id != VCPU_CREATE {
            seen.no(rig, id, &[&[b, 1], tail].concat(), WRONG_VCPU);
        }
    }
    seen.no(rig, VCPU_CREATE, &[b, 0], VCPU_EXISTS);
    seen.no(rig, VCPU_SET_REG, &[a, 0, REG_X0, 1], WRONG_STATE);
    seen.no(rig, VCPU_GET_REG, &[a, 0, REG_X0], WRONG_STATE);
    seen.no(rig, VCPU_SET_REG, &[b, 0, REG_PC, 2], UNALIGNED);
    seen.no(rig, VCPU_SET_REG, &[b, 0, REG_PSTATE, 0], DENIED);
    seen.no(rig, VCPU_SET_REG, &[b, 0, REG_MPIDR, 0], DENIED);
    seen.no(rig, VCPU_SET_REG, &[b, 0, REG_POWER, 1], DENIED);
    seen.no(rig, VCPU_GET_REG, &[b, 0, REG_POWER], DENIED);
    seen.no(rig, VCPU_SET_REG, &[b, 0, 4, 0], DENIED);
    seen.no(rig, VCPU_SET_REG, &[b, 0, 99, 0], BAD_ARGUMENT);
    seen.no(rig, VCPU_GET_REG, &[b, 0, 4], DENIED);
    seen.no(rig, VCPU_GET_REG, &[b, 0, REG_EL1], DENIED);
    seen.no(rig, VCPU_SET_REG, &[b, 0, REG_V0, 0], DENIED);
    seen.no(rig, VCPU_GET_REG, &[a, 0, REG_EL1], WRONG_STATE);
    seen.no(rig, VCPU_GET_REG, &[b, 0, 99], BAD_ARGUMENT);
    assert_eq!(rig.yes(VCPU_GET_REG, &[a, 0, REG_MPIDR]), 0x8000_0000);

    // Memory
    seen.handles(rig, MEM_DONATE, stale, &[memory + 16, GUEST_RAM + 16, 1, 0]);
    seen.runs(rig, MEM_DONATE, &[a], &|count| vec![GUEST_RAM + 16, count, 0], memory + 8);
    seen.no(rig, MEM_DONATE, &[a, memory + 16, GUEST_RAM + 16, 1, 2], BAD_ARGUMENT);
    seen.no(rig, MEM_DONATE, &[a, memory + 1, GUEST_RAM + 16, 1, 0], ALREADY_DONATED);
    seen.no(rig, MEM_DONATE, &[b, shared, GUEST_RAM + 16, 1, 0], SHARED);
    seen.no(rig, MEM_DONATE, &[a, memory + 16, GUEST_RAM - 1, 1, 0], GFN_OUT_OF_RANGE);
    seen.no(rig, MEM_DONATE, &[a, memory + 16, GUEST_RAM + GUEST_FRAMES - 1, 2, 0], GFN_OUT_OF_RANGE);
    seen.no(rig, MEM_DONATE, &[a, memory + 16, GUEST_RAM + 1, 1, 0], GFN_MAPPED);
    let list = RAM + 5 * 512;
    let record = |n: u64, pfn, gfn, count| {
        let record = Record::new(pfn, gfn, count);
        rig.memory.write(list, 2 * n, record.pfn);
        rig.memory.write(list, 2 * n + 1, record.gfn_count);
    };
    seen.handles(rig, MEM_DONATE_LIST, stale, &[list, 1, 0]);
    seen.no(rig, MEM_DONATE_LIST, &[a, list, 0, 0], ZERO_COUNT);
    seen.no(rig, MEM_DONATE_LIST, &[a, list, 257, 0], COUNT_TOO_LARGE);
    seen.no(rig, MEM_DONATE_LIST, &[a, list, 1, 2], BAD_ARGUMENT);
    seen.no(rig, MEM_DONATE_LIST, &[a, DEVICE, 1, 0], NOT_MEMORY);
    seen.no(rig, MEM_DONATE_LIST, &[a, CARVE_OUT, 1, 0], EL2_OWNED);
    seen.no(rig, MEM_DONATE_LIST, &[a, memory + 8, 1, 0], FOREIGN);
    record(0, memory + 16, GUEST_RAM + 16, 2);
    for (pfn, gfn, count, expected) in [
        (memory + 17, GUEST_RAM + 32, 1, TWICE),
        (memory + 32, GUEST_RAM + 17, 1, TWICE),
        (memory + 32, GUEST_RAM + 32, 600, COUNT_TOO_LARGE),
        (memory + 32, GUEST_RAM + 32, 511, COUNT_TOO_LARGE),
        (u64::MAX, GUEST_RAM + 32, 2, OVERFLOW),
        (NO_MAP, GUEST_RAM + 32, 1, NO_MAP_STATUS),
        (memory + 1, GUEST_RAM + 32, 1, ALREADY_DONATED),
        (memory + 32, GUEST_RAM - 1, 1, GFN_OUT_OF_RANGE),
        (memory + 32, GUEST_RAM + 1, 1, GFN_MAPPED),
        (memory, GUEST_RAM + 32, 1, SHARED),
    ] {
        record(1, pfn, gfn, count);
        let vm = if expected == SHARED { b } else { a };
        seen.no(rig, MEM_DONATE_LIST, &[vm, list, 2, 0], expected);
    }
    // Nothing can be lent to a protected VM, so the rest of their documented errors wait for ordinary ones.
    seen.handles(rig, MEM_SHARE, stale, &[memory + 16, GUEST_RAM + 16, 1, 0]);
    seen.no(rig, MEM_SHARE, &[a, memory + 16, GUEST_RAM + 16, 1, 0], WRONG_STATE);
    seen.no(rig, MEM_SHARE, &[a, memory + 16, GUEST_RAM + 16, 1, 4], BAD_ARGUMENT);
    seen.handles(rig, MEM_UNSHARE, stale, &[GUEST_RAM, 1]);
    seen.no(rig, MEM_UNSHARE, &[a, GUEST_RAM, 1], WRONG_STATE);

    // Interrupts
    seen.handles(rig, VM_GIC, stale, &[0x10, 0x20]);
    seen.no(rig, VM_GIC, &[a, 0x10, 0x20], WRONG_STATE);
    for (distributor, redistributors, expected) in [
        (1, 0, UNALIGNED),
        (0, 8, UNALIGNED),
        (u64::MAX, 0, UNALIGNED),
        (1 << 28, 0, GFN_OUT_OF_RANGE),
        (0, (1 << 28) - 16, GFN_OUT_OF_RANGE),
        (0, 1 << 60, GFN_OUT_OF_RANGE),
    ] {
        seen.no(rig, VM_GIC, &[b, distributor, redistributors], expected);
    }
    seen.handles(rig, VM_IRQ, stale, &[32, 1]);
    seen.no(rig, VM_IRQ, &[b, 32, 1], WRONG_STATE);
    for (intid, level) in
        [(0, 1), (15, 1), (16, 1), (27, 1), (31, 0), (256, 1), (1 << 32 | 32, 1), (32, 4), (32, 1 << 63)]
    {
        seen.no(rig, VM_IRQ, &[b, intid, level], BAD_ARGUMENT);
    }

    // Answers
    seen.handles(rig, GUEST_ACCEPT, stale, &[0, 1]);
    seen.no(rig, GUEST_ACCEPT, &[a, 9, 1], WRONG_VCPU);
    seen.no(rig, GUEST_ACCEPT, &[a, 0, 1], NO_REQUEST);
    seen.no(rig, GUEST_ACCEPT, &[b, 0, 1], NO_REQUEST);
    rig.next(hvc_exit([0xC600_0003, (GUEST_RAM + 1) << 12, 1, 0]));
    assert_eq!(rig.run(a, 0)[0], EXIT_SHARE);
    seen.no(rig, GUEST_ACCEPT, &[a, 0, 0], ZERO_COUNT);
    seen.no(rig, GUEST_ACCEPT, &[a, 0, 2], COUNT_TOO_LARGE);

    running_out(rig, seen);
    reclaiming(rig, seen, stale, a, b);

    for call in CALLS {
        let documented: BTreeSet<&str> = call.errors.iter().copied().collect();
        let produced = seen.0.remove(&call.id).unwrap_or_default();
        let excused = excused(call.id);
        assert!(produced.is_subset(&documented), "{}: {:?}", call.name, produced.difference(&documented));
        let missing: BTreeSet<&str> = documented.difference(&produced).copied().collect();
        assert_eq!(missing, excused, "{}: documented and not produced", call.name);
    }
}

/// What this test does not produce, and why.
fn excused(id: u32) -> BTreeSet<&'static str> {
    let list: &[&str] = match id {
        // `slots_run_out`.
        VM_CREATE => &["NO_SLOT"],
        // A vCPU is in use only while another CPU runs it: `a_running_vcpu_is_busy`.
        VM_DESTROY => &["VCPU_BUSY"],
        VCPU_SET_REG | VCPU_GET_REG => &["VCPU_BUSY"],
        // `a_running_vcpu_is_busy`, and `a_host_in_streaming_mode_is_told`.
        VCPU_RUN => &["VCPU_BUSY", "DENIED"],
        // `a_poisoned_frame_stays_poisoned`.
        MEM_DONATE | MEM_DONATE_LIST => &["GFN_POISONED"],
        // `ordinary::`.
        MEM_SHARE => &[
            "ZERO_COUNT",
            "COUNT_TOO_LARGE",
            "OVERFLOW",
            "NOT_MEMORY",
            "NO_MAP",
            "EL2_OWNED",
            "ALREADY_DONATED",
            "FOREIGN",
            "SHARED",
            "GFN_OUT_OF_RANGE",
            "GFN_MAPPED",
            "NEED_PAGES",
        ],
        MEM_UNSHARE => &["ZERO_COUNT", "COUNT_TOO_LARGE", "OVERFLOW", "GFN_OUT_OF_RANGE", "GFN_NOT_MAPPED"],
        // Another vCPU, or D8, must come between the request and the answer: `runs::`.
        GUEST_ACCEPT => &["VCPU_BUSY", "GFN_NOT_MAPPED", "SHARED", "GFN_POISONED"],
        _ => &[],
    };
    list.iter().copied().collect()
}

/// The pool runs dry: a clean "need pages" that changes nothing.
fn running_out(rig: &Rig, seen: &mut Seen) {
    let lean = rig.yes(VM_CREATE, &[VM_PROTECTED, 39, RAM + 64, 1]);
    rig.yes(VM_RANGE, &[lean, GUEST_RAM, GUEST_FRAMES]);
    seen.no(rig, VCPU_CREATE, &[lean, 0], NEED_PAGES);
    assert_eq!(rig.call(MEM_DONATE, &[lean, RAM + 1024, GUEST_RAM, 1, 0]), (NEED_PAGES, [2, 0, 0, 0, 0]));
    seen.no(rig, MEM_DONATE, &[lean, RAM + 1024, GUEST_RAM, 1, 0], NEED_PAGES);
    seen.no(rig, MEM_DONATE_LIST, &[lean, RAM + 5 * 512, 1, 0], NEED_PAGES);
    assert_eq!(rig.yes(POOL_TOPUP, &[lean, RAM + 65, 2]), 2);
    assert_eq!(rig.yes(MEM_DONATE, &[lean, RAM + 1024, GUEST_RAM, 1, 0]), 1);
    rig.end(lean, &[RAM + 1024], RAM + 64, 3);
}

/// The end of VMs, and what is refused on the way.
fn reclaiming(rig: &Rig, seen: &mut Seen, stale: u64, a: u64, b: u64) {
    let (pool_a, pool_b, memory) = (RAM, RAM + 16, RAM + 512);
    seen.handles(rig, VM_DESTROY, stale, &[]);
    seen.handles(rig, VM_RECLAIM, stale, &[memory, 1]);
    seen.no(rig, VM_RECLAIM, &[a, memory, 1], WRONG_STATE);
    rig.yes(VM_DESTROY, &[a]);
    for (id, rest) in [
        (VM_DESTROY, &[][..]),
        (VM_RANGE, &[GUEST_RAM + GUEST_FRAMES, 1]),
        (POOL_TOPUP, &[RAM + 2000, 1]),
        (VCPU_CREATE, &[0]),
        (VCPU_SET_REG, &[0, REG_X0, 1]),
        (VCPU_GET_REG, &[0, REG_MPIDR]),
        (VCPU_RUN, &[0, 0]),
        (VCPU_KICK, &[0]),
        (MEM_DONATE, &[RAM + 2000, GUEST_RAM + 16, 1, 0]),
        (MEM_DONATE_LIST, &[RAM + 2000, 1, 0]),
        (GUEST_ACCEPT, &[0, 1]),
        (VM_GIC, &[0x10, 0x20]),
        (VM_IRQ, &[32, 1]),
    ] {
        seen.no(rig, id, &[&[a], rest].concat(), WRONG_STATE);
    }
    seen.runs(rig, VM_RECLAIM, &[a], &|count| vec![count], memory + 8);
    seen.no(rig, VM_RECLAIM, &[a, RAM + 2000, 1], HOST_OWNED);
    seen.no(rig, VM_RECLAIM, &[a, pool_a, 16], GUEST_FRAMES_LEFT);
    assert_eq!(rig.yes(VM_RECLAIM, &[a, memory, 2]), 2);
    assert_eq!(rig.yes(VM_RECLAIM, &[a, pool_a, 15]), 15);
    assert_eq!(rig.yes(VM_RECLAIM, &[a, pool_a + 15, 1]), 1);
    seen.no(rig, VM_RECLAIM, &[a, pool_a, 1], STALE_HANDLE);
    rig.end(b, &[memory + 8], pool_b, 16);
}

#[test]
fn slots_run_out() {
    let rig = Rig::new();
    let vms: Vec<u64> = (0..64).map(|n| rig.yes(VM_CREATE, &[VM_PROTECTED, 39, RAM + n, 1])).collect();
    assert_eq!(rig.no(VM_CREATE, &[VM_PROTECTED, 39, RAM + 64, 1]), NO_SLOT);
    assert_eq!(vms.iter().collect::<BTreeSet<_>>().len(), 64);
    rig.end(vms[7], &[], RAM + 7, 1);
    let again = rig.yes(VM_CREATE, &[VM_PROTECTED, 39, RAM + 7, 1]);
    assert_eq!((again & 0xffff, again != vms[7]), (7, true));
}

#[test]
fn an_unknown_call_is_not_supported() {
    let rig = Rig::new();
    for id in [0, BASE - 1, BASE + 19, CALL_UID + 1, u32::MAX, 0xC400_0003] {
        assert_eq!(rig.no(id, &[1, 2, 3, 4, 5]), NOT_SUPPORTED);
    }
}

/// What keeps the host's x8-x17 and what does not (ABI): `VCPU_RUN` alone clears them, run or refused. x0 to x7 are the
/// answer's, but for the UID's words; the hint of SVE is no part of an identifier, and what is wider than one is none.
#[test]
fn a_run_alone_clears_what_smccc_lets_a_callee_keep() {
    let rig = Rig::new();
    let ids = freehold_uapi::hvc::CALLS.iter().map(|call| call.id);
    for (id, hint) in ids.chain([CALL_UID, BASE + 100]).flat_map(|id| [0, 1 << 16].map(|hint| (id, hint))) {
        let mut before = rig.caller(id, &[]);
        before[0] |= hint;
        let mut x = before;
        crate::calls::serve(&rig, &mut x);
        if id == CALL_UID {
            assert_eq!(x[..4], UID.map(u64::from));
            assert_eq!(x[4..], before[4..]);
            continue;
        }
        assert_eq!(x[0] as i64 == NOT_SUPPORTED, id == BASE + 100, "{id:#x}");
        assert_eq!(x[6..8], [0; 2]);
        assert_eq!(x[8..18], if id == VCPU_RUN { [0; 10] } else { before[8..18].try_into().unwrap() });
        assert_eq!(x[18], before[18]);
    }
    let mut version = rig.caller(VERSION, &[]);
    crate::calls::serve(&rig, &mut version);
    assert_eq!((version[0], version[2]), (0, 0x100), "0.1.0");
    for wide in [1 << 32, 1 << 63] {
        let mut x = rig.caller(VERSION, &[]);
        x[0] |= wide;
        crate::calls::serve(&rig, &mut x);
        assert_eq!(x[0] as i64, NOT_SUPPORTED);
    }
}
