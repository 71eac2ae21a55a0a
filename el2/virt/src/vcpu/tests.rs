// SPDX-License-Identifier: MIT OR Apache-2.0
//! Exceptions of a guest, one by one.

use super::*;
use crate::registers::fake::Fake;
use crate::sysreg::RawIds;
use freehold_uapi::guest;

/// 0x80000..0x80100 private, 0x80100..0x80104 shared, 0x80104 poisoned, then empty up to 0x80200.
struct Map;

impl Space for Map {
    fn is_protected(&self) -> bool {
        true
    }
    fn backing(&self, gfn: Gfn) -> Backing {
        match gfn.raw() {
            0x8_0000..0x8_0100 => Backing::Private,
            0x8_0100..0x8_0104 => Backing::Shared,
            0x8_0104 => Backing::Poisoned,
            0x8_0105..0x8_0200 => Backing::Empty,
            _ => Backing::Outside,
        }
    }

    fn attest(&self) -> Option<[u64; 5]> {
        Some([1, 2, 3, 4, 5])
    }
}

const IDS: RawIds = RawIds {
    pfr0: 0x11_0011,
    pfr1: 0,
    isar0: 0,
    isar1: 0,
    isar2: 0,
    mmfr0: 2,
    mmfr1: 0,
    mmfr2: 0,
    ctr: 0x8444_c004,
    clidr: 0,
};

fn run(vcpu: &mut Vcpu, registers: &mut Fake, esr: u64, ipa: u64) -> Next {
    let trap = Trap { esr, far: 0xffff_0000_dead_0000 | ipa & 0xfff, hpfar: ipa >> 12 << 4 };
    vcpu.handle(trap, registers, &Map, &IdView::new(&IDS, 40))
}

const DABT: u64 = 0x24 << 26 | 1 << 25;
const IABT: u64 = 0x20 << 26 | 1 << 25;
const TRANSLATION: u64 = 7;

fn syndrome(sas: u64, rt: u64) -> u64 {
    DABT | ISV | sas << 22 | rt << 16 | SF | TRANSLATION
}

#[test]
fn a_store_to_ram_that_is_not_backed_tells_the_frame_only() {
    let (mut vcpu, mut r) = (Vcpu::new(), Fake::new());
    r.x[5] = 0x5ec2e7;
    let before = r.clone();
    let next = run(&mut vcpu, &mut r, syndrome(3, 5) | WRITE, 0x8015_0ab8);
    assert_eq!(next, Next::Leave(Exit::MemFault(Gfn::new(0x8_0150).unwrap())));
    let Next::Leave(exit) = next else { unreachable!() };
    assert!(!exit.results().contains(&0x5ec2e7));
    assert_eq!(r, before, "the store is made again");
    assert_eq!(vcpu.pending(), Pending::None, "no answer of the host's goes anywhere");
    vcpu.complete(0xbad, &mut r);
    assert_eq!(r, before);
}

#[test]
fn only_a_permission_fault_of_an_access_itself_lacks_its_page() {
    for class in [0x20, 0x24] {
        for status in 0..0x40 {
            let esr = class << 26 | 1 << 25 | status;
            assert_eq!(lacks_page(esr), (0xc..=0xf).contains(&status), "{esr:#x}");
            assert!(!lacks_page(esr | 1 << 7), "a walk's is named: {esr:#x}");
        }
    }
    for class in (0..0x40).filter(|class| ![0x20, 0x24].contains(class)) {
        assert!(!lacks_page(class << 26 | 0xf), "no abort of a lower EL: {class:#x}");
    }
    // Attributes above and below the address are not part of it.
    assert_eq!(page_of(0xff0f_edcb_a987_6000 | 0xb80), Some(0x0fed_cba9_8760));
    assert_eq!(page_of(0x0000_0000_8000_1001), None, "the guest has changed its tables");
}

/// The same memory, of an ordinary VM.
struct Borrowed;

impl Space for Borrowed {
    fn is_protected(&self) -> bool {
        false
    }
    fn backing(&self, gfn: Gfn) -> Backing {
        Map.backing(gfn)
    }
    fn attest(&self) -> Option<[u64; 5]> {
        None
    }
}

#[test]
fn what_a_loan_does_not_permit_is_the_hosts_to_lend_anew() {
    const DENIED: u64 = 0xf;
    let fault = |gfn| Next::Leave(Exit::MemFault(Gfn::new(gfn).unwrap()));
    let (mut vcpu, mut r) = (Vcpu::new(), Fake::new());
    let before = r.clone();
    let mut touch = |esr: u64, ipa: u64| {
        let trap = Trap { esr, far: ipa, hpfar: ipa >> 12 << 4 };
        vcpu.handle(trap, &mut r, &Borrowed, &IdView::new(&IDS, 40))
    };
    for esr in [DABT | WRITE | DENIED, DABT | ISV | WRITE | 0xd, IABT | DENIED, DABT | STAGE1_WALK | DENIED] {
        assert_eq!(touch(esr, 0x8000_3008), fault(0x8_0003), "{esr:#x}");
    }
    assert_eq!(touch(DABT | WRITE | DENIED, 0x8015_0000), fault(0x8_0150), "taken back meanwhile");
    assert_eq!(touch(DABT | WRITE | DENIED, 0x900_0000), Next::Leave(Exit::Crash(Crash::Abort)), "lent nowhere");
    for status in [8, 9, 0xb, 0x10, 0x30] {
        assert_eq!(touch(DABT | WRITE | status, 0x8000_3008), Next::Leave(Exit::Crash(Crash::Abort)), "{status:#x}");
    }
    assert_eq!((&r, vcpu.pending()), (&before, Pending::None), "the access is made again");
}

#[test]
fn a_fetch_or_a_walk_in_ram_that_is_not_backed_is_a_memory_fault_too() {
    let fault = Next::Leave(Exit::MemFault(Gfn::new(0x8_0150).unwrap()));
    let (mut vcpu, mut r) = (Vcpu::new(), Fake::new());
    assert_eq!(run(&mut vcpu, &mut r, IABT | TRANSLATION, 0x8015_0000), fault);
    assert_eq!(run(&mut vcpu, &mut r, IABT | STAGE1_WALK | TRANSLATION, 0x8015_0000), fault);
    assert_eq!(run(&mut vcpu, &mut r, DABT | STAGE1_WALK | TRANSLATION, 0x8015_0000), fault);
    assert_eq!(run(&mut vcpu, &mut r, DABT | CACHE_OPERATION | TRANSLATION, 0x8015_0000), fault);
}

#[test]
fn a_fault_that_was_cured_meanwhile_is_tried_again() {
    let (mut vcpu, mut r) = (Vcpu::new(), Fake::new());
    for ipa in [0x8000_0000, 0x8010_0000] {
        assert_eq!(run(&mut vcpu, &mut r, syndrome(3, 5), ipa), Next::Resume);
    }
    assert_eq!(r, Fake::new());
}

#[test]
fn a_load_takes_the_answer_cut_to_its_width() {
    let answer = 0xfedc_ba98_8765_43a1;
    for (esr, expected) in [
        (syndrome(0, 7), 0xa1),
        (syndrome(0, 7) | SSE, 0xffff_ffff_ffff_ffa1),
        (syndrome(0, 7) & !SF | SSE, 0xffff_ffa1),
        (syndrome(1, 7), 0x43a1),
        (syndrome(1, 7) | SSE, 0x43a1),
        (syndrome(2, 7) & !SF, 0x8765_43a1),
        (syndrome(2, 7) | SSE, 0xffff_ffff_8765_43a1),
        (syndrome(3, 7), answer),
    ] {
        let (mut vcpu, mut r) = (Vcpu::new(), Fake::new());
        let width = Width::of_sas(esr >> 22);
        assert_eq!(run(&mut vcpu, &mut r, esr, 0x900_0008), Next::Leave(Exit::MmioLoad { ipa: 0x900_0008, width }));
        assert_eq!(r.pc, 0x8000_0000, "not before the answer");
        vcpu.complete(answer, &mut r);
        assert_eq!((r.x[7], r.pc), (expected, 0x8000_0004), "{esr:#x}");
        vcpu.complete(1, &mut r);
        assert_eq!((r.x[7], r.pc), (expected, 0x8000_0004), "an answer counts once");
    }
}

#[test]
fn register_31_is_zero() {
    let (mut vcpu, mut r) = (Vcpu::new(), Fake::new());
    let before = r.x;
    let next = run(&mut vcpu, &mut r, syndrome(3, 31) | WRITE, 0x900_0000);
    assert_eq!(next, Next::Leave(Exit::MmioStore { ipa: 0x900_0000, width: Width::Double, data: 0 }));
    assert_eq!(r.pc, 0x8000_0004);
    let _ = run(&mut vcpu, &mut r, syndrome(3, 31), 0x900_0000);
    vcpu.complete(u64::MAX, &mut r);
    assert_eq!(r.x, before);
}

#[test]
fn what_cannot_be_described_ends_the_vcpu() {
    let crash = |why| Next::Leave(Exit::Crash(why));
    let (mut vcpu, mut r) = (Vcpu::new(), Fake::new());
    assert_eq!(run(&mut vcpu, &mut r, DABT | TRANSLATION, 0x900_0000), crash(Crash::NoSyndrome));
    assert_eq!(run(&mut vcpu, &mut r, IABT | TRANSLATION, 0x900_0000), crash(Crash::NoSyndrome));
    let described = IABT | ISV | WRITE | TRANSLATION;
    assert_eq!(run(&mut vcpu, &mut r, described, 0x900_0000), crash(Crash::NoSyndrome), "a fetch is no access");
    assert_eq!(run(&mut vcpu, &mut r, DABT | STAGE1_WALK | 5, 0x900_0000), crash(Crash::Walk));
    assert_eq!(run(&mut vcpu, &mut r, syndrome(3, 5), 0x8010_4000), crash(Crash::Poisoned));
    assert_eq!(run(&mut vcpu, &mut r, DABT | 0x10, 0x8000_0000), crash(Crash::Abort));
    assert_eq!(run(&mut vcpu, &mut r, DABT | 0xf, 0x8000_0000), crash(Crash::Abort));
    assert_eq!(run(&mut vcpu, &mut r, 0x2f << 26, 0), crash(Crash::Abort));
    assert_eq!(run(&mut vcpu, &mut r, 0x0e << 26, 0), crash(Crash::BadState));
    assert_eq!(run(&mut vcpu, &mut r, 0x11 << 26, 0), crash(Crash::BadState));
}

#[test]
fn an_access_beyond_the_address_space_is_mmio_not_ram() {
    let (mut vcpu, mut r) = (Vcpu::new(), Fake::new());
    let ipa = 1 << 44 | 0x8015_0000;
    let next = run(&mut vcpu, &mut r, syndrome(2, 1), ipa);
    assert_eq!(next, Next::Leave(Exit::MmioLoad { ipa, width: Width::Word }));
}

#[test]
fn cache_operations_outside_ram_do_nothing() {
    let (mut vcpu, mut r) = (Vcpu::new(), Fake::new());
    assert_eq!(run(&mut vcpu, &mut r, DABT | CACHE_OPERATION | WRITE | TRANSLATION, 0x900_0000), Next::Resume);
    assert_eq!(r.pc, 0x8000_0004);
}

const HVC: u64 = 0x16 << 26 | 1 << 25;

fn hvc(vcpu: &mut Vcpu, r: &mut Fake, x: [u64; 4]) -> Next {
    // The hardware leaves the program counter behind an HVC.
    r.pc += 4;
    r.x[..4].copy_from_slice(&x);
    run(vcpu, r, HVC, 0)
}

#[test]
fn a_request_is_asked_again_until_it_is_accepted() {
    let (mut vcpu, mut r) = (Vcpu::new(), Fake::new());
    let x = [u64::from(guest::MEM_UNSHARE), 0x8010_1000, 2, 0];
    let request = Request { wish: Wish::Unshare, first: Gfn::new(0x8_0101).unwrap(), count: 2 };
    assert_eq!(hvc(&mut vcpu, &mut r, x), Next::Leave(Exit::Request(request)));
    assert_eq!(r.pc, 0x8000_0000, "on the HVC");
    assert_eq!(vcpu.request(2), Ok(request));
    assert_eq!(vcpu.request(1), Ok(Request { count: 1, ..request }), "as many as the host accepts");
    assert_eq!(vcpu.request(0), Err(Refused::Memory(freehold_mem::Refused::ZeroCount)));
    assert_eq!(vcpu.request(3), Err(Refused::Memory(freehold_mem::Refused::CountTooLarge)));
    // The host runs it without an answer: nothing happened, and its word for a load goes nowhere.
    vcpu.complete(77, &mut r);
    assert_eq!((r.pc, &r.x[..4]), (0x8000_0000, &x[..]));
    assert_eq!(vcpu.request(1), Err(Refused::NoRequest));
    // Again, and accepted in part.
    let _ = hvc(&mut vcpu, &mut r, x);
    vcpu.accept(1);
    assert_eq!(vcpu.request(1), Err(Refused::NoRequest), "once");
    vcpu.complete(77, &mut r);
    assert_eq!((r.pc, &r.x[..4]), (0x8000_0004, &[0, 1, 0, 0][..]));
}

#[test]
fn a_relinquished_frame_returns_nothing_but_success() {
    let (mut vcpu, mut r) = (Vcpu::new(), Fake::new());
    let _ = hvc(&mut vcpu, &mut r, [u64::from(guest::MEM_RELINQUISH), 0x8000_1000, 0, 0]);
    vcpu.accept(1);
    vcpu.complete(0, &mut r);
    assert_eq!(&r.x[..4], &[0; 4]);
}

#[test]
fn sharing_what_is_not_backed_faults_it_in_first() {
    let (mut vcpu, mut r) = (Vcpu::new(), Fake::new());
    let x = [u64::from(guest::MEM_SHARE), 0x8015_0000, 1, 0];
    assert_eq!(hvc(&mut vcpu, &mut r, x), Next::Leave(Exit::MemFault(Gfn::new(0x8_0150).unwrap())));
    assert_eq!((r.pc, vcpu.pending()), (0x8000_0000, Pending::None));
}

#[test]
fn a_report_has_the_nonce_that_was_asked_with_and_leaves_other_registers_alone() {
    let (mut vcpu, mut r) = (Vcpu::new(), Fake::new());
    r.x[4] = 14;
    let others = r.x[10..].to_vec();
    assert_eq!(hvc(&mut vcpu, &mut r, [guest::ATTEST.into(), 11, 12, 13]), Next::Resume);
    assert_eq!(r.x[..10], [0, 1, 2, 3, 4, 5, 11, 12, 13, 14]);
    assert_eq!(r.x[10..], others);
    assert_eq!(r.pc, 0x8000_0004, "behind the HVC");
}

#[test]
fn hidden_instructions_are_undefined_where_they_stand() {
    for ec in class::HIDDEN {
        let (mut vcpu, mut r) = (Vcpu::new(), Fake::new());
        assert_eq!(run(&mut vcpu, &mut r, ec << 26, 0), Next::Resume);
        assert_eq!((r.injected.as_slice(), r.pc), (&[(1 << 25, None)][..], 0x8000_0000), "{ec:#x}");
    }
}

#[test]
fn a_wait_with_a_time_is_undefined_for_it_is_hidden() {
    // Served as WFI it would last for ever.
    for wait in [2, 3] {
        let (mut vcpu, mut r) = (Vcpu::new(), Fake::new());
        assert_eq!(run(&mut vcpu, &mut r, 0x01 << 26 | 1 << 25 | wait, 0), Next::Resume);
        assert_eq!((r.injected.as_slice(), r.pc), (&[(1 << 25, None)][..], 0x8000_0000), "{wait}");
    }
}

#[test]
fn system_registers_go_through_the_policy() {
    let (mut vcpu, mut r) = (Vcpu::new(), Fake::new());
    let sys = |op0: u64, op1: u64, crn: u64, crm: u64, op2: u64, rt: u64, read: u64| {
        0x18 << 26 | 1 << 25 | op0 << 20 | op2 << 17 | op1 << 14 | crn << 10 | rt << 5 | crm << 1 | read
    };
    assert_eq!(run(&mut vcpu, &mut r, sys(3, 0, 0, 4, 0, 9, 1), 0), Next::Resume);
    assert_eq!((r.x[9], r.pc), (0x11_0011, 0x8000_0004));
    r.x[3] = 5;
    let _ = run(&mut vcpu, &mut r, sys(3, 2, 0, 0, 0, 3, 0), 0);
    let _ = run(&mut vcpu, &mut r, sys(3, 2, 0, 0, 0, 4, 1), 0);
    assert_eq!((r.x[4], r.pc), (5, 0x8000_000c), "CSSELR_EL1 keeps what was written");
    let _ = run(&mut vcpu, &mut r, sys(3, 3, 9, 13, 0, 3, 1), 0);
    assert_eq!((r.injected.len(), r.pc), (1, 0x8000_000c), "PMCCNTR_EL0");
}

#[test]
fn wfi_waits_wfe_does_not_and_smc_is_unknown() {
    let (mut vcpu, mut r) = (Vcpu::new(), Fake::new());
    assert_eq!(run(&mut vcpu, &mut r, 0x01 << 26, 0), Next::Leave(Exit::Wfi(0)));
    assert_eq!(run(&mut vcpu, &mut r, 0x01 << 26 | 1, 0), Next::Resume);
    assert_eq!(run(&mut vcpu, &mut r, 0x17 << 26, 0), Next::Resume);
    assert_eq!((r.x[0], r.pc), (u64::MAX, 0x8000_000c));
}

#[test]
fn a_branch_targets_mark_is_spent_with_the_instruction() {
    let (mut vcpu, mut r) = (Vcpu::new(), Fake::new());
    r.pstate |= 3 << 10;
    let _ = run(&mut vcpu, &mut r, 0x01 << 26, 0);
    assert_eq!(r.pstate, 0x3c5);
}

#[test]
fn the_host_sets_a_start_of_a_protected_vm_and_nothing_more() {
    let mut r = Fake::new();
    let set = |n, v, r: &mut Fake| HostRegister::decode(n).and_then(|reg| reg.set(v, false, r));
    assert_eq!(set(2, 9, &mut r), Ok(()));
    assert_eq!(set(32, 0x8000_0004, &mut r), Ok(()));
    assert_eq!(set(32, 0x8000_0002, &mut r), Err(Refused::Unaligned));
    assert_eq!(set(33, 0x3c5, &mut r), Ok(()));
    for pstate in [0, 0x3c9, 0x3c4, 0x1d3, 0x3c5 | 1 << 22] {
        assert_eq!(set(33, pstate, &mut r), Err(Refused::Denied));
    }
    for never in [4, 30, 34, 128, 149, 150, 215, 216, 217] {
        assert_eq!(set(never, 0, &mut r), Err(Refused::Denied), "{never}");
    }
    let seen: Vec<_> = [0, 3, 4, 30, 32, 33, 34, 128, 215]
        .map(|n| HostRegister::decode(n).and_then(|reg| reg.get(false, &mut r)).ok())
        .into();
    assert_eq!(seen, [Some(0x1000), Some(0x1003), None, None, Some(0x8000_0004), Some(0x3c5), None, None, None]);
    let mut only = Fake::new();
    (only.x[2], only.pc) = (9, 0x8000_0004);
    assert_eq!(r, only);
}

#[test]
fn every_register_of_an_ordinary_vm_is_the_hosts_each_by_its_own_number() {
    let mut r = Fake::new();
    let numbers = || (0..=30).chain([32, 33]).chain(128..=217);
    let reg = |n| HostRegister::decode(n).unwrap();
    assert_eq!(reg(0).get(true, &mut r), Ok(0x1000), "as the guest left it");
    numbers().for_each(|n| assert_eq!(reg(n).set(0x1001 * n, true, &mut r), Ok(())));
    numbers().for_each(|n| assert_eq!(reg(n).get(true, &mut r), Ok(0x1001 * n), "{n}"));
    assert_eq!((r.x[30], r.pc, r.pstate), (0x1e01e, 0x20020, 0x21021), "also what no vCPU starts with");
    assert_eq!((r.kept[0], r.kept[22], r.kept[89]), (128 * 0x1001, 150 * 0x1001, 217 * 0x1001));
    assert_eq!(reg(34).set(0, true, &mut r), Err(Refused::Denied), "but MPIDR");
    assert_eq!((reg(35).set(1, true, &mut r), reg(35).get(true, &mut r)), (Err(Refused::Denied), Err(Refused::Denied)));
    for none in [31, 36, 99, 127, 218, 1 << 32, u64::MAX] {
        assert_eq!(HostRegister::decode(none), Err(Refused::BadArgument), "{none}");
    }
}

#[test]
fn a_load_is_answered_at_once_only_if_its_syndrome_describes_it_and_nothing_is_mapped() {
    const IPA: u64 = 0x12_3456_7ab8;
    let load = |esr| Trap { esr, far: 0xffff_0000_dead_0ab8, hpfar: IPA >> 12 << 4 }.load();
    for status in 0..0x40 {
        let esr = DABT | ISV | 2 << 22 | 9 << 16 | status;
        let told = load(esr).map(|(ipa, load)| (ipa, load.rt, load.width()));
        assert_eq!(told, (4..8).contains(&status).then_some((IPA, 9, Width::Word)), "{status:#x}");
    }
    let good = syndrome(3, 5);
    assert!(load(good).is_some() && load(good | SSE).is_some() && load(good & !SF).is_some());
    assert_eq!(load(good & !ISV), None);
    assert_eq!(load(good & !DABT | IABT), None, "a fetch");
    for other in 1..8 {
        let esr = good | other << 6;
        assert_eq!(load(esr), None, "a store, a walk, a cache operation: {esr:#x}");
    }
}

#[test]
fn what_goes_on_behind_its_page_has_no_syndrome() {
    for (sas, bytes) in [(0, 1), (1, 2), (2, 4), (3, 8)] {
        for offset in 0xff0..0x1000 {
            let trap = Trap { esr: syndrome(sas, 7), far: 0xffff_0000_dead_0000 | offset, hpfar: 0x8_0000 };
            let told = (offset + bytes > 0x1000).then_some(Trap { esr: trap.esr & !ISV, ..trap });
            assert_eq!(trap.across(), told, "{bytes} at {offset:#x}");
        }
    }
}

#[test]
fn no_exception_panics() {
    let (mut vcpu, mut r) = (Vcpu::new(), Fake::new());
    let mut x = 88_172_645_463_325_252u64;
    for _ in 0..if cfg!(miri) { 300 } else { 300_000 } {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        let trap = Trap { esr: x & 0xffff_ffff, far: x.rotate_left(17), hpfar: x.rotate_left(31) };
        r.x[0] = x >> 32 | 0x8000_0000;
        r.pc = x;
        let _ = vcpu.handle(trap, &mut r, &Map, &IdView::new(&IDS, 40));
        vcpu.complete(x, &mut r);
        r.injected.clear();
    }
}
