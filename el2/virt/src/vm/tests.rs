// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every phase against every call.

use core::sync::atomic::AtomicU64;
use std::vec::Vec;

use super::*;

fn cells(n: usize) -> Vec<VmCell<AtomicU64>> {
    (0..n).map(|_| VmCell::new(|| AtomicU64::new(0))).collect()
}

fn vcpu(n: u8) -> VcpuIndex {
    VcpuIndex::decode(n.into()).unwrap()
}

fn live(vms: Vms<'_, AtomicU64>) -> Handle {
    let handle = vms.reserve().map(Reserved::publish).unwrap();
    vms.create_vcpu(handle, vcpu(0), 0x77);
    handle
}

#[test]
fn a_handle_goes_stale_when_its_slot_is_freed() {
    let c = cells(1);
    let vms = Vms::new(&c);
    let first = live(vms);
    assert_eq!(vms.free(first), Err(Refused::WrongState));
    assert_eq!(vms.destroy(first), Ok(()));
    assert_eq!(vms.phase(first), Ok(Phase::Dying));
    assert_eq!(vms.destroy(first), Err(Refused::WrongState));
    assert_eq!(vms.free(first), Ok(()));
    assert_eq!(vms.phase(first), Err(Refused::StaleHandle));
    let second = live(vms);
    assert_ne!(first, second);
    assert_eq!(first.slot(), second.slot());
    for stale in [vms.destroy(first), vms.free(first), vms.kick(first, vcpu(0))] {
        assert_eq!(stale, Err(Refused::StaleHandle));
    }
    assert_eq!(vms.claim(first, vcpu(0), Purpose::Run).err(), Some(Refused::StaleHandle));
    assert_eq!(vms.phase(second), Ok(Phase::Live));
}

#[test]
fn the_created_vcpus_are_counted_bit_by_bit() {
    let c = cells(2);
    let vms = Vms::new(&c);
    let handle = vms.reserve().map(Reserved::publish).unwrap();
    assert_eq!(vms.created(handle), 0);
    for (n, bits) in [(2, 0b100), (0, 0b101), (7, 0b1000_0101)] {
        vms.create_vcpu(handle, vcpu(n), 0x77);
        assert_eq!(vms.created(handle), bits);
    }
    assert_eq!(vms.created(live(vms)), 1, "another VM has its own");
    assert_eq!(vms.created(Handle::decode(1 << 16 | 9).unwrap()), 0, "none of a VM that there is not");
}

#[test]
fn a_handle_from_the_future_is_wrong() {
    let c = cells(2);
    let vms = Vms::new(&c);
    let handle = live(vms);
    let future = Handle::decode(handle.encode() + (1 << 16)).unwrap();
    assert_eq!(vms.phase(future), Err(Refused::WrongHandle));
    assert_eq!(vms.phase(Handle::decode(1 << 16 | 1).unwrap()), Err(Refused::WrongHandle), "a free slot");
    assert_eq!(vms.phase(Handle::decode(1 << 16 | 9).unwrap()), Err(Refused::WrongHandle), "beyond the slots");
}

#[test]
fn slots_run_out_and_a_dropped_reservation_returns_one() {
    let c = cells(2);
    let vms = Vms::new(&c);
    let a = vms.reserve().unwrap();
    let handle = a.handle();
    assert_eq!(vms.phase(handle), Err(Refused::WrongHandle), "not published yet");
    let b = vms.reserve().unwrap();
    assert_eq!(vms.reserve().err(), Some(Refused::NoSlot));
    assert_eq!(vms.count(), 2);
    drop(a);
    assert_eq!(vms.reserve().unwrap().handle(), handle);
    drop(b);
    assert_eq!(vms.count(), 0);
}

#[test]
fn a_vcpu_is_on_one_cpu_at_a_time_and_holds_its_vm() {
    let c = cells(1);
    let vms = Vms::new(&c);
    let handle = live(vms);
    let claim = vms.claim(handle, vcpu(0), Purpose::Run).unwrap();
    assert_eq!(claim.block(), 0x77);
    for purpose in [Purpose::Run, Purpose::Registers, Purpose::Answer] {
        assert_eq!(vms.claim(handle, vcpu(0), purpose).err(), Some(Refused::VcpuBusy));
    }
    assert_eq!(vms.destroy(handle), Err(Refused::VcpuBusy));
    drop(claim);
    assert_eq!(vms.destroy(handle), Ok(()));
    assert_eq!(vms.claim(handle, vcpu(0), Purpose::Run).err(), Some(Refused::WrongState));
    assert_eq!(vms.kick(handle, vcpu(0)), Err(Refused::WrongState));
    assert_eq!(vms.check_vcpu(handle, vcpu(1)), Err(Refused::WrongState));
}

#[test]
fn the_registers_of_a_vcpu_are_claimed_whenever_nobody_else_has_it() {
    let c = cells(1);
    let vms = Vms::new(&c);
    let handle = live(vms);
    assert!(vms.claim(handle, vcpu(0), Purpose::Registers).is_ok());
    assert_eq!(vms.claim(handle, vcpu(0), Purpose::Answer).err(), Some(Refused::NoRequest));
    let mut claim = vms.claim(handle, vcpu(0), Purpose::Run).unwrap();
    assert!(claim.is_fresh());
    claim.ran();
    drop(claim);
    let claim = vms.claim(handle, vcpu(0), Purpose::Registers).unwrap();
    assert!(!claim.is_fresh(), "whoever asks for them learns that it ran");
    drop(claim);
    assert!(vms.claim(handle, vcpu(0), Purpose::Answer).is_ok());
    assert!(!vms.claim(handle, vcpu(0), Purpose::Run).unwrap().is_fresh());
}

#[test]
fn a_crashed_vcpu_never_runs_again() {
    let c = cells(1);
    let vms = Vms::new(&c);
    let handle = live(vms);
    vms.claim(handle, vcpu(0), Purpose::Run).unwrap().crashed();
    for purpose in [Purpose::Run, Purpose::Answer, Purpose::Run] {
        assert_eq!(vms.claim(handle, vcpu(0), purpose).err(), Some(Refused::WrongState));
        assert!(!vms.claim(handle, vcpu(0), Purpose::Registers).unwrap().is_fresh());
    }
    assert_eq!(vms.destroy(handle), Ok(()));
}

#[test]
fn a_vcpu_is_created_once() {
    let c = cells(1);
    let vms = Vms::new(&c);
    let handle = live(vms);
    assert_eq!(vms.check_vcpu(handle, vcpu(0)), Err(Refused::VcpuExists));
    vms.create_vcpu(handle, vcpu(0), 0x99);
    assert_eq!(vms.claim(handle, vcpu(0), Purpose::Run).unwrap().block(), 0x77);
    assert_eq!(vms.claim(handle, vcpu(1), Purpose::Run).err(), Some(Refused::WrongVcpu));
    assert_eq!(vms.kick(handle, vcpu(1)), Err(Refused::WrongVcpu));
    assert_eq!(vms.destroy(handle), Ok(()), "a refused claim holds nothing");
}

#[test]
fn a_kick_is_taken_once() {
    let c = cells(1);
    let vms = Vms::new(&c);
    let handle = live(vms);
    vms.kick(handle, vcpu(0)).unwrap();
    vms.kick(handle, vcpu(0)).unwrap();
    let claim = vms.claim(handle, vcpu(0), Purpose::Run).unwrap();
    assert!(claim.take_kick());
    assert!(!claim.take_kick());
}

#[test]
fn a_new_vm_in_an_old_slot_inherits_nothing() {
    let c = cells(1);
    let vms = Vms::new(&c);
    let first = live(vms);
    (1..8).for_each(|n| vms.create_vcpu(first, vcpu(n), 0x77));
    vms.kick(first, vcpu(0)).unwrap();
    vms.destroy(first).unwrap();
    vms.free(first).unwrap();
    let second = vms.reserve().map(Reserved::publish).unwrap();
    for n in 0..8 {
        assert_eq!(vms.claim(second, vcpu(n), Purpose::Run).err(), Some(Refused::WrongVcpu), "{n}");
    }
    vms.create_vcpu(second, vcpu(0), 1);
    assert!(!vms.claim(second, vcpu(0), Purpose::Run).unwrap().take_kick());
    assert_eq!(vms.handles().collect::<Vec<_>>(), [second]);
}

#[test]
fn a_slot_without_generations_rests() {
    let c = cells(1);
    let vms = Vms::new(&c);
    let last = Word { generation: Generation::from_bits(u64::MAX), phase: Phase::Dying, claims: 0 };
    c[0].word.store(last.pack(), core::sync::atomic::Ordering::SeqCst);
    let handle = Handle::new(Slot::new(0).unwrap(), last.generation);
    assert_eq!(vms.free(handle), Ok(()));
    assert_eq!(vms.reserve().err(), Some(Refused::NoSlot));
    assert_eq!(vms.phase(handle), Err(Refused::StaleHandle));
}

#[test]
fn more_claims_than_can_be_counted_are_refused() {
    let c = cells(1);
    let vms = Vms::new(&c);
    let handle = live(vms);
    let full = Word { generation: handle.generation(), phase: Phase::Live, claims: CLAIMS_MASK };
    c[0].word.store(full.pack(), core::sync::atomic::Ordering::SeqCst);
    assert_eq!(vms.claim(handle, vcpu(0), Purpose::Run).err(), Some(Refused::VcpuBusy));
    assert_eq!(Word::unpack(c[0].word.load(core::sync::atomic::Ordering::SeqCst)), full);
}

#[test]
fn run_and_destroy_race_to_one_winner() {
    for _ in 0..if cfg!(miri) { 5 } else { 200 } {
        let c = cells(1);
        let vms = Vms::new(&c);
        let handle = live(vms);
        std::thread::scope(|scope| {
            let run = scope.spawn(|| {
                vms.claim(handle, vcpu(0), Purpose::Run).map(|claim| {
                    assert_eq!(vms.phase(handle), Ok(Phase::Live), "alive for as long as it is claimed");
                    drop(claim);
                })
            });
            let end = scope.spawn(|| vms.destroy(handle));
            let (run, end) = (run.join().unwrap(), end.join().unwrap());
            assert!(run.is_ok() || end.is_ok());
            assert!(matches!(run, Ok(()) | Err(Refused::WrongState)));
            assert!(matches!(end, Ok(()) | Err(Refused::VcpuBusy)));
        });
    }
}
