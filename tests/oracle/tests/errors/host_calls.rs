// SPDX-License-Identifier: MIT OR Apache-2.0
//! Host calls.

use freehold_oracle::{Call, Kind, Owner, Statuses, VcpuLife, Who};
use freehold_uapi::hvc::{self, Record};

use super::stage::*;

/// A test for each error of each call, and for the call as it should be; and the table of all of them.
macro_rules! refusals {
    ($($call:ident: $good:expr => { $($name:ident $error:ident: $wrong:expr;)* })*) => {
        $(mod $call {
            #[allow(unused_imports, reason = "each call needs some of them")]
            use super::*;

            #[test]
            fn is_done_if_nothing_is_wrong() {
                let mut w = stage();
                let good: fn(&mut Stage) -> Asked = $good;
                let asked = good(&mut w);
                let outcome = said(&w, &asked);
                assert!(outcome.done.is_some() && outcome.refused.is_empty(), "{outcome:?}");
            }
            $(#[test]
            fn $name() {
                let mut w = stage();
                let wrong: fn(&mut Stage) -> Asked = $wrong;
                let asked = wrong(&mut w);
                let outcome = said(&w, &asked);
                assert_eq!((outcome.refused, outcome.done), (Statuses::one(hvc::$error), None));
            })*
        })*
        const TABLE: &[(&str, &[&str])] = &[$((stringify!($call), &[$(stringify!($error)),*])),*];
    };
}

#[test]
fn each_documented_error_has_its_test_and_no_other() {
    let sorted = |errors: &[&'static str]| {
        let mut errors = errors.to_vec();
        errors.sort_unstable();
        errors
    };
    let tested: Vec<_> = TABLE.iter().map(|(call, errors)| (call.to_uppercase(), sorted(errors))).collect();
    for call in hvc::CALLS.iter().filter(|call| call.id != hvc::VERSION) {
        let found = tested.iter().find(|(name, _)| name == call.name);
        assert_eq!(found.map(|(_, errors)| errors), Some(&sorted(call.errors)), "{}", call.name);
    }
    assert_eq!(tested.len() + 1, hvc::CALLS.len());
}

/// What is wrong with the places of such a list is not said: nobody promises how much of it is looked at.
#[test]
fn a_list_of_more_frames_than_a_run_may_have_is_too_long() {
    let asked = listed(&[Record::new(HOST, VACANT, 1), Record::new(EL2, GFN, hvc::MAX_RUN)]);
    let outcome = said(&stage(), &asked);
    assert_eq!((outcome.refused, outcome.done), (Statuses::one(hvc::COUNT_TOO_LARGE), None));
    let asked = listed(&[Record::new(HUGE, GFN, hvc::MAX_RUN), Record::new(HOST, VACANT, 1)]);
    assert!(said(&stage(), &asked).refused.has(hvc::OVERFLOW));
}

fn vm_create_of(pfn: u64, count: u64) -> Asked {
    Call::VmCreate { flags: hvc::VM_PROTECTED, ipa_bits: 32, pfn, count }.into()
}

fn vm_range_of(vm: Who, gfn: u64, count: u64) -> Asked {
    Call::VmRange { vm, gfn, count }.into()
}

fn reclaim(vm: Who, pfn: u64, count: u64) -> Asked {
    Call::VmReclaim { vm, pfn, count }.into()
}

fn topup(vm: Who, pfn: u64, count: u64) -> Asked {
    Call::PoolTopup { vm, pfn, count }.into()
}

fn set_reg(vm: Who, vcpu: u64, reg: u64, value: u64) -> Asked {
    Call::VcpuSetReg { vm, vcpu, reg, value }.into()
}

fn get_reg(vm: Who, vcpu: u64, reg: u64) -> Asked {
    Call::VcpuGetReg { vm, vcpu, reg }.into()
}

fn run(vm: Who, vcpu: u64) -> Asked {
    Call::VcpuRun { vm, vcpu, mmio: 0 }.into()
}

fn donate(vm: Who, pfn: u64, gfn: u64, count: u64) -> Asked {
    Call::MemDonate { vm, pfn, gfn, count, flags: 0 }.into()
}

fn share(vm: Who, pfn: u64, gfn: u64, count: u64) -> Asked {
    Call::MemShare { vm, pfn, gfn, count, flags: 0 }.into()
}

fn unshare(vm: Who, gfn: u64, count: u64) -> Asked {
    Call::MemUnshare { vm, gfn, count }.into()
}

fn accept(vm: Who, vcpu: u64, count: u64) -> Asked {
    Call::GuestAccept { vm, vcpu, count }.into()
}

/// A list of one record.
fn one(pfn: u64, gfn: u64, count: u64) -> Asked {
    listed(&[Record::new(pfn, gfn, count)])
}

/// A list that is sound, and numbers of the call that may not be.
fn sound(vm: Who, frame: u64, records: u64, flags: u64) -> Asked {
    list(vm, frame, records, flags, &[Record::new(HOST, VACANT, 1)])
}

refusals! {
    counter: |_| Call::Counter { counter: hvc::COUNTER_VMS, index: 0 }.into() => {
        bad_argument BAD_ARGUMENT: |_| Call::Counter { counter: 99, index: 0 }.into();
    }
    vm_create: |_| vm_create_of(HOST, 2) => {
        no_vms NO_VMS: |w| { w.machine.slots = 0; vm_create_of(HOST, 1) };
        bad_argument BAD_ARGUMENT: |_| Call::VmCreate { flags: 0x10, ipa_bits: 32, pfn: HOST, count: 1 }.into();
        zero_count ZERO_COUNT: |_| vm_create_of(HOST, 0);
        count_too_large COUNT_TOO_LARGE: |_| vm_create_of(HOST, MANY);
        overflow OVERFLOW: |_| vm_create_of(HUGE, 2);
        not_memory NOT_MEMORY: |_| vm_create_of(super::NOT_MEMORY, 1);
        no_map NO_MAP: |_| vm_create_of(super::NO_MAP, 1);
        el2_owned EL2_OWNED: |_| vm_create_of(EL2, 1);
        foreign FOREIGN: |_| vm_create_of(PRIVATE, 1);
        shared SHARED: |_| vm_create_of(BORROWED, 1);
        no_slot NO_SLOT: |w| { w.vms[4].life = freehold_oracle::Life::Open; vm_create_of(HOST, 1) };
        need_pages NEED_PAGES: |_| short(vm_create_of(HOST, 1).call);
    }
    vm_range: |_| vm_range_of(OPEN, OUTSIDE, 9) => {
        wrong_handle WRONG_HANDLE: |_| vm_range_of(NEVER, OUTSIDE, 1);
        stale_handle STALE_HANDLE: |_| vm_range_of(ENDED, OUTSIDE, 1);
        wrong_state WRONG_STATE: |_| vm_range_of(RAN, OUTSIDE, 1);
        zero_count ZERO_COUNT: |_| vm_range_of(OPEN, OUTSIDE, 0);
        overflow OVERFLOW: |_| vm_range_of(OPEN, HUGE, 2);
        gfn_out_of_range GFN_OUT_OF_RANGE: |_| vm_range_of(OPEN, 1 << 20, 1);
        bad_range BAD_RANGE: |_| vm_range_of(OPEN, GFN - 1, 2);
    }
    vm_destroy: |_| Call::VmDestroy { vm: OPEN }.into() => {
        wrong_handle WRONG_HANDLE: |_| Call::VmDestroy { vm: NEVER }.into();
        stale_handle STALE_HANDLE: |_| Call::VmDestroy { vm: ENDED }.into();
        wrong_state WRONG_STATE: |_| Call::VmDestroy { vm: DYING }.into();
        vcpu_busy VCPU_BUSY: |w| { runs(w, 1); Call::VmDestroy { vm: RAN }.into() };
    }
    vm_reclaim: |_| reclaim(DYING, LEFT, 1) => {
        wrong_handle WRONG_HANDLE: |_| reclaim(NEVER, LEFT, 1);
        stale_handle STALE_HANDLE: |_| reclaim(ENDED, LEFT, 1);
        wrong_state WRONG_STATE: |_| reclaim(RAN, PRIVATE, 1);
        zero_count ZERO_COUNT: |_| reclaim(DYING, LEFT, 0);
        count_too_large COUNT_TOO_LARGE: |_| reclaim(DYING, LEFT, MANY);
        overflow OVERFLOW: |_| reclaim(DYING, HUGE, 2);
        not_memory NOT_MEMORY: |_| reclaim(DYING, super::NOT_MEMORY, 1);
        no_map NO_MAP: |_| reclaim(DYING, super::NO_MAP, 1);
        el2_owned EL2_OWNED: |_| reclaim(DYING, EL2, 1);
        host_owned HOST_OWNED: |_| reclaim(DYING, HOST, 1);
        foreign FOREIGN: |_| reclaim(DYING, PRIVATE, 1);
        guest_frames_left GUEST_FRAMES_LEFT: |_| reclaim(DYING, POOL, 1);
    }
    pool_topup: |_| topup(RAN, HOST, 2) => {
        wrong_handle WRONG_HANDLE: |_| topup(NEVER, HOST, 1);
        stale_handle STALE_HANDLE: |_| topup(ENDED, HOST, 1);
        wrong_state WRONG_STATE: |_| topup(DYING, HOST, 1);
        zero_count ZERO_COUNT: |_| topup(RAN, HOST, 0);
        count_too_large COUNT_TOO_LARGE: |_| topup(RAN, HOST, MANY);
        overflow OVERFLOW: |_| topup(RAN, HUGE, 2);
        not_memory NOT_MEMORY: |_| topup(RAN, super::NOT_MEMORY, 1);
        no_map NO_MAP: |_| topup(RAN, super::NO_MAP, 1);
        el2_owned EL2_OWNED: |_| topup(RAN, EL2, 1);
        already_donated ALREADY_DONATED: |_| topup(RAN, PRIVATE, 1);
        foreign FOREIGN: |_| topup(RAN, ITS, 1);
        shared SHARED: |_| topup(RAN, BORROWED, 1);
    }
    vcpu_create: |_| Call::VcpuCreate { vm: OPEN, vcpu: 1 }.into() => {
        wrong_handle WRONG_HANDLE: |_| Call::VcpuCreate { vm: NEVER, vcpu: 1 }.into();
        stale_handle STALE_HANDLE: |_| Call::VcpuCreate { vm: ENDED, vcpu: 1 }.into();
        wrong_state WRONG_STATE: |_| Call::VcpuCreate { vm: RAN, vcpu: 1 }.into();
        wrong_vcpu WRONG_VCPU: |_| Call::VcpuCreate { vm: OPEN, vcpu: 2 }.into();
        vcpu_exists VCPU_EXISTS: |_| Call::VcpuCreate { vm: OPEN, vcpu: 0 }.into();
        need_pages NEED_PAGES: |_| short(Call::VcpuCreate { vm: OPEN, vcpu: 1 });
    }
    vcpu_set_reg: |_| set_reg(OPEN, 0, hvc::REG_PC, 8) => {
        wrong_handle WRONG_HANDLE: |_| set_reg(NEVER, 0, hvc::REG_PC, 8);
        stale_handle STALE_HANDLE: |_| set_reg(ENDED, 0, hvc::REG_PC, 8);
        wrong_state WRONG_STATE: |_| set_reg(RAN, 0, hvc::REG_PC, 8);
        wrong_vcpu WRONG_VCPU: |_| set_reg(OPEN, 1, hvc::REG_PC, 8);
        vcpu_busy VCPU_BUSY: |w| { runs(w, 0); set_reg(OPEN, 0, hvc::REG_PC, 8) };
        denied DENIED: |_| set_reg(OPEN, 0, hvc::REG_PSTATE, 0x3c9);
        unaligned UNALIGNED: |_| set_reg(OPEN, 0, hvc::REG_PC, 6);
        bad_argument BAD_ARGUMENT: |_| set_reg(OPEN, 0, 99, 0);
    }
    vcpu_get_reg: |_| get_reg(OPEN, 0, hvc::REG_PC) => {
        wrong_handle WRONG_HANDLE: |_| get_reg(NEVER, 0, hvc::REG_PC);
        stale_handle STALE_HANDLE: |_| get_reg(ENDED, 0, hvc::REG_PC);
        wrong_state WRONG_STATE: |_| get_reg(RAN, 0, hvc::REG_PC);
        wrong_vcpu WRONG_VCPU: |_| get_reg(OPEN, 1, hvc::REG_PC);
        vcpu_busy VCPU_BUSY: |w| { runs(w, 3); get_reg(ORDINARY, 0, hvc::REG_EL1) };
        denied DENIED: |_| get_reg(OPEN, 0, 4);
        bad_argument BAD_ARGUMENT: |_| get_reg(OPEN, 0, 99);
    }
    vcpu_run: |_| run(RAN, 0) => {
        wrong_handle WRONG_HANDLE: |_| run(NEVER, 0);
        stale_handle STALE_HANDLE: |_| run(ENDED, 0);
        wrong_state WRONG_STATE: |w| { w.vcpus[1][0].life = VcpuLife::Crashed; run(RAN, 0) };
        wrong_vcpu WRONG_VCPU: |_| run(RAN, 1);
        vcpu_busy VCPU_BUSY: |w| { runs(w, 1); run(RAN, 0) };
        denied DENIED: |_| Asked { env: freehold_oracle::Env { busy: true, ..freehold_oracle::Env::CALM }, ..run(RAN, 0) };
    }
    vcpu_kick: |_| Call::VcpuKick { vm: RAN, vcpu: 0 }.into() => {
        wrong_handle WRONG_HANDLE: |_| Call::VcpuKick { vm: NEVER, vcpu: 0 }.into();
        stale_handle STALE_HANDLE: |_| Call::VcpuKick { vm: ENDED, vcpu: 0 }.into();
        wrong_state WRONG_STATE: |_| Call::VcpuKick { vm: DYING, vcpu: 0 }.into();
        wrong_vcpu WRONG_VCPU: |_| Call::VcpuKick { vm: RAN, vcpu: 1 }.into();
    }
    mem_donate: |_| donate(OPEN, HOST, VACANT, 2) => {
        wrong_handle WRONG_HANDLE: |_| donate(NEVER, HOST, VACANT, 1);
        stale_handle STALE_HANDLE: |_| donate(ENDED, HOST, VACANT, 1);
        wrong_state WRONG_STATE: |_| donate(ORDINARY, HOST, VACANT, 1);
        bad_argument BAD_ARGUMENT: |_| Call::MemDonate { vm: OPEN, pfn: HOST, gfn: VACANT, count: 1, flags: 2 }.into();
        zero_count ZERO_COUNT: |_| donate(OPEN, HOST, VACANT, 0);
        count_too_large COUNT_TOO_LARGE: |_| donate(OPEN, HOST, VACANT, MANY);
        overflow OVERFLOW: |_| donate(OPEN, HUGE, VACANT, 1);
        not_memory NOT_MEMORY: |_| donate(OPEN, super::NOT_MEMORY, VACANT, 1);
        no_map NO_MAP: |_| donate(OPEN, super::NO_MAP, VACANT, 1);
        el2_owned EL2_OWNED: |_| donate(OPEN, EL2, VACANT, 1);
        already_donated ALREADY_DONATED: |_| donate(OPEN, ITS, VACANT, 1);
        foreign FOREIGN: |_| donate(OPEN, PRIVATE, VACANT, 1);
        shared SHARED: |_| donate(OPEN, BORROWED, VACANT, 1);
        gfn_out_of_range GFN_OUT_OF_RANGE: |_| donate(OPEN, HOST, OUTSIDE, 1);
        gfn_mapped GFN_MAPPED: |_| donate(OPEN, HOST, GFN, 1);
        gfn_poisoned GFN_POISONED: |_| donate(OPEN, HOST, POISONED, 1);
        need_pages NEED_PAGES: |_| short(donate(OPEN, HOST, VACANT, 1).call);
    }
    mem_donate_list: |_| one(HOST, VACANT, 2) => {
        wrong_handle WRONG_HANDLE: |_| sound(NEVER, HOST, 1, 0);
        stale_handle STALE_HANDLE: |_| sound(ENDED, HOST, 1, 0);
        wrong_state WRONG_STATE: |_| sound(ORDINARY, HOST, 1, 0);
        bad_argument BAD_ARGUMENT: |_| sound(OPEN, HOST, 1, 2);
        zero_count ZERO_COUNT: |_| sound(OPEN, HOST, 0, 0);
        count_too_large COUNT_TOO_LARGE: |_| sound(OPEN, HOST, hvc::MAX_RECORDS + 1, 0);
        overflow OVERFLOW: |_| one(HUGE, VACANT, 1);
        not_memory NOT_MEMORY: |_| sound(OPEN, super::NOT_MEMORY, 1, 0);
        no_map NO_MAP: |_| one(super::NO_MAP, VACANT, 1);
        el2_owned EL2_OWNED: |_| sound(OPEN, EL2, 1, 0);
        already_donated ALREADY_DONATED: |_| one(ITS, VACANT, 1);
        foreign FOREIGN: |_| one(PRIVATE, VACANT, 1);
        shared SHARED: |_| one(BORROWED, VACANT, 1);
        twice TWICE: |_| listed(&[Record::new(HOST, VACANT, 1), Record::new(HOST, VACANT + 1, 1)]);
        gfn_out_of_range GFN_OUT_OF_RANGE: |_| one(HOST, OUTSIDE, 1);
        gfn_mapped GFN_MAPPED: |_| one(HOST, GFN, 1);
        gfn_poisoned GFN_POISONED: |_| one(HOST, POISONED, 1);
        need_pages NEED_PAGES: |_| {
            let asked = one(HOST, VACANT, 1);
            Asked { env: freehold_oracle::Env { need: 99, ..asked.env }, ..asked }
        };
    }
    mem_share: |_| share(ORDINARY, HOST, VACANT, 2) => {
        wrong_handle WRONG_HANDLE: |_| share(NEVER, HOST, VACANT, 1);
        stale_handle STALE_HANDLE: |_| share(ENDED, HOST, VACANT, 1);
        wrong_state WRONG_STATE: |_| share(OPEN, HOST, VACANT, 1);
        bad_argument BAD_ARGUMENT: |_| Call::MemShare { vm: ORDINARY, pfn: HOST, gfn: VACANT, count: 1, flags: 8 }.into();
        zero_count ZERO_COUNT: |_| share(ORDINARY, HOST, VACANT, 0);
        count_too_large COUNT_TOO_LARGE: |_| share(ORDINARY, HOST, VACANT, MANY);
        overflow OVERFLOW: |_| share(ORDINARY, HUGE, VACANT, 1);
        not_memory NOT_MEMORY: |_| share(ORDINARY, super::NOT_MEMORY, VACANT, 1);
        no_map NO_MAP: |_| share(ORDINARY, super::NO_MAP, VACANT, 1);
        el2_owned EL2_OWNED: |_| share(ORDINARY, EL2, VACANT, 1);
        already_donated ALREADY_DONATED: |w| {
            w.pages[7].owner = Owner::Guest { slot: 3, gfn: 0x103 };
            share(ORDINARY, PRIVATE, VACANT, 1)
        };
        foreign FOREIGN: |_| share(ORDINARY, PRIVATE, VACANT, 1);
        shared SHARED: |w| { w.pages[5].borrows = u16::MAX; share(ORDINARY, BORROWED, VACANT, 1) };
        gfn_out_of_range GFN_OUT_OF_RANGE: |_| share(ORDINARY, HOST, OUTSIDE, 1);
        gfn_mapped GFN_MAPPED: |_| share(ORDINARY, HOST, GFN, 1);
        need_pages NEED_PAGES: |_| short(share(ORDINARY, HOST, VACANT, 1).call);
    }
    mem_unshare: |_| unshare(ORDINARY, GFN, 1) => {
        wrong_handle WRONG_HANDLE: |_| unshare(NEVER, GFN, 1);
        stale_handle STALE_HANDLE: |_| unshare(ENDED, GFN, 1);
        wrong_state WRONG_STATE: |w| { w.vms[3].protected = true; unshare(ORDINARY, GFN, 1) };
        zero_count ZERO_COUNT: |_| unshare(ORDINARY, GFN, 0);
        count_too_large COUNT_TOO_LARGE: |_| unshare(ORDINARY, GFN, MANY);
        overflow OVERFLOW: |_| unshare(ORDINARY, HUGE, 1);
        gfn_out_of_range GFN_OUT_OF_RANGE: |w| { w.ranges[3] = [None; 8]; unshare(ORDINARY, GFN, 1) };
        gfn_not_mapped GFN_NOT_MAPPED: |_| unshare(ORDINARY, VACANT, 1);
    }
    guest_accept: |w| { asks(w, Kind::Share, GFN); accept(RAN, 0, 1) } => {
        wrong_handle WRONG_HANDLE: |_| accept(NEVER, 0, 1);
        stale_handle STALE_HANDLE: |_| accept(ENDED, 0, 1);
        wrong_state WRONG_STATE: |_| accept(DYING, 0, 1);
        wrong_vcpu WRONG_VCPU: |_| accept(RAN, 1, 1);
        vcpu_busy VCPU_BUSY: |w| { asks(w, Kind::Share, GFN); runs(w, 1); accept(RAN, 0, 1) };
        no_request NO_REQUEST: |_| accept(RAN, 0, 1);
        zero_count ZERO_COUNT: |w| { asks(w, Kind::Share, GFN); accept(RAN, 0, 0) };
        count_too_large COUNT_TOO_LARGE: |w| {
            asks(w, Kind::Unshare, GFN + 1);
            w.vcpus[1][0].pending = freehold_oracle::Pending::Request {
                kind: Kind::Share, gfn: u32::try_from(GFN).unwrap(), count: 1,
            };
            accept(RAN, 0, 2)
        };
        gfn_not_mapped GFN_NOT_MAPPED: |w| { asks(w, Kind::Relinquish, VACANT); accept(RAN, 0, 1) };
        shared SHARED: |w| { asks(w, Kind::Share, GFN + 1); accept(RAN, 0, 1) };
        gfn_poisoned GFN_POISONED: |w| {
            w.marks[1][2] = freehold_oracle::Mark::Poisoned;
            asks(w, Kind::Share, GFN + 2);
            accept(RAN, 0, 1)
        };
    }
    vm_gic: |_| Call::VmGic { vm: OPEN, distributor: 0x10, redistributors: 0x40 }.into() => {
        wrong_handle WRONG_HANDLE: |_| Call::VmGic { vm: NEVER, distributor: 0x10, redistributors: 0x40 }.into();
        stale_handle STALE_HANDLE: |_| Call::VmGic { vm: ENDED, distributor: 0x10, redistributors: 0x40 }.into();
        wrong_state WRONG_STATE: |_| Call::VmGic { vm: RAN, distributor: 0x10, redistributors: 0x40 }.into();
        unaligned UNALIGNED: |_| Call::VmGic { vm: OPEN, distributor: 0x11, redistributors: 0x40 }.into();
        gfn_out_of_range GFN_OUT_OF_RANGE: |_| Call::VmGic { vm: OPEN, distributor: 0x10, redistributors: 1 << 20 }.into();
    }
    vm_irq: |w| { w.vms[1].gic = true; Call::VmIrq { vm: RAN, intid: 32, level: 1 }.into() } => {
        wrong_handle WRONG_HANDLE: |_| Call::VmIrq { vm: NEVER, intid: 32, level: 1 }.into();
        stale_handle STALE_HANDLE: |_| Call::VmIrq { vm: ENDED, intid: 32, level: 1 }.into();
        wrong_state WRONG_STATE: |_| Call::VmIrq { vm: RAN, intid: 32, level: 1 }.into();
        bad_argument BAD_ARGUMENT: |w| { w.vms[1].gic = true; Call::VmIrq { vm: RAN, intid: 31, level: 1 }.into() };
    }
}
