// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every verb from every state that a frame, a guest frame and a VM can be in.
//!
//! The rig compares the whole machine before and after each refusal, so naming the error is enough
//! here (I6).

use super::rig::{
    BEYOND, CARVE_OUT, DEVICE, GUEST_RAM, GUEST_RAM_FRAMES, HOLE, NO_MAP, RAM, RAM2, RAM2_FRAMES, Rig, pfn, run,
};
use crate::{Claim, GfnRun, Kind, Life, Lot, PfnRun, Refused, State};

const OWN_POOL: u64 = RAM;
const OWN_PRIVATE: u64 = RAM + 32;
const OWN_SHARED: u64 = RAM + 33;
const OTHER_POOL: u64 = RAM + 64;
const OTHER_PRIVATE: u64 = RAM + 96;
const OTHER_SHARED: u64 = RAM + 97;
const ORDINARY_POOL: u64 = RAM + 128;
const LENT: u64 = RAM + 160;
const HOST: u64 = RAM + 200;

const PRIVATE_AT: u64 = GUEST_RAM;
const SHARED_AT: u64 = GUEST_RAM + 1;
const POISONED_AT: u64 = GUEST_RAM + 2;
const VACANT_AT: u64 = GUEST_RAM + 3;
const FAR_AT: u64 = GUEST_RAM + 2048;

/// Slot 0: a running protected VM. Slot 1: another. Slot 2: an ordinary one. One frame in each state.
fn scene() -> Rig {
    let mut rig = Rig::new();
    for (slot, pool, private, shared) in
        [(0, OWN_POOL, OWN_PRIVATE, OWN_SHARED), (1, OTHER_POOL, OTHER_PRIVATE, OTHER_SHARED)]
    {
        rig.with_vm(slot, Kind::Protected, pool, 16);
        rig.start(slot);
        rig.donate(slot, private, PRIVATE_AT, 1).unwrap();
        rig.donate(slot, shared, SHARED_AT, 1).unwrap();
        rig.share(slot, SHARED_AT, 1).unwrap();
    }
    rig.donate_with(0, HOST + 9, POISONED_AT, 1, true, &mut || false).unwrap();
    rig.revoke(0, HOST + 9).unwrap();
    rig.with_vm(2, Kind::Ordinary, ORDINARY_POOL, 16);
    rig.start(2);
    rig.lend(2, LENT, PRIVATE_AT, 1, true).unwrap();
    rig
}

/// Frames that the host can not give to slot 0, and why.
const NOT_GIVEABLE: [(u64, Refused); 18] = [
    (DEVICE, Refused::NotMemory),
    (HOLE, Refused::NotMemory),
    (RAM - 1, Refused::NotMemory),
    (RAM2 - 1, Refused::NotMemory),
    (RAM2 + RAM2_FRAMES, Refused::NotMemory),
    (BEYOND, Refused::NotMemory),
    ((1 << 36) - 1, Refused::NotMemory),
    (NO_MAP, Refused::NoMap),
    (NO_MAP + 3, Refused::NoMap),
    (CARVE_OUT, Refused::El2Owned),
    (CARVE_OUT + 511, Refused::El2Owned),
    (OWN_POOL, Refused::AlreadyDonated),
    (OWN_PRIVATE, Refused::AlreadyDonated),
    (OWN_SHARED, Refused::Shared),
    (OTHER_POOL, Refused::Foreign),
    (OTHER_PRIVATE, Refused::Foreign),
    (OTHER_SHARED, Refused::Shared),
    (LENT, Refused::Shared),
];

#[test]
fn only_a_frame_that_is_the_hosts_alone_can_be_donated() {
    let mut rig = scene();
    for (frame, why) in NOT_GIVEABLE {
        assert_eq!(rig.donate(0, frame, VACANT_AT, 1), Err(why), "{frame:#x}");
        let list = [(HOST, VACANT_AT, 1), (frame, VACANT_AT + 1, 1), (HOST + 2, VACANT_AT + 2, 1)];
        assert_eq!(rig.donate_list(0, HOST + 5, &list, 3), Err(why), "{frame:#x} amid a list");
        assert_eq!(rig.top_up(0, frame, 1), Err(why), "{frame:#x}");
    }
    assert_eq!(rig.donate(0, HOST, VACANT_AT, 1), Ok(1));
    assert_eq!(rig.state(HOST).map(|state| matches!(state, State::Private { .. })), Some(true));
    assert_eq!(rig.top_up(0, HOST + 1, 1).map(|_| ()), Ok(()));
}

#[test]
fn a_run_is_refused_for_its_first_and_its_last_frame() {
    let mut rig = scene();
    for (from, why) in [
        (RAM - 1, Refused::NotMemory),
        (CARVE_OUT - 1, Refused::El2Owned),
        (NO_MAP - 1, Refused::NoMap),
        (OWN_PRIVATE - 1, Refused::AlreadyDonated),
        (OTHER_PRIVATE - 1, Refused::Foreign),
        (LENT - 1, Refused::Shared),
        (RAM2 + RAM2_FRAMES - 1, Refused::NotMemory),
    ] {
        assert_eq!(rig.donate(0, from, VACANT_AT, 2), Err(why), "{from:#x}");
        assert_eq!(rig.top_up(0, from, 2), Err(why), "{from:#x}");
    }
    assert_eq!(rig.donate(0, LENT, VACANT_AT, 2), Err(Refused::Shared));
    assert_eq!(rig.donate(0, NO_MAP + 3, VACANT_AT, 2), Err(Refused::NoMap));
}

#[test]
fn only_the_hosts_frames_can_be_lent() {
    let mut rig = scene();
    for (frame, why) in NOT_GIVEABLE {
        let why = match frame {
            LENT => continue,
            OWN_POOL | OWN_PRIVATE => Refused::Foreign,
            _ => why,
        };
        assert_eq!(rig.lend(2, frame, VACANT_AT, 1, true), Err(why), "{frame:#x}");
    }
    assert_eq!(rig.lend(2, ORDINARY_POOL, VACANT_AT, 1, true), Err(Refused::AlreadyDonated));
    assert_eq!(rig.lend(2, LENT, VACANT_AT, 1, false), Ok(1));
    assert_eq!(rig.state(LENT), Some(State::Lent(2)));
}

#[test]
fn a_frame_is_lent_only_as_often_as_can_be_counted() {
    let mut rig = scene();
    let (frame, Rig { host, m, .. }) = (pfn(LENT), &mut rig);
    host.ledger.write(frame, State::Lent(u32::MAX), m);
    assert_eq!(rig.lend(2, LENT, VACANT_AT, 1, true), Err(Refused::LentTooOften));
}

#[test]
fn counts_and_sums_are_bounded() {
    let mut rig = scene();
    for (from, at, count, why) in [
        (HOST, VACANT_AT, 0, Refused::ZeroCount),
        (RAM2, VACANT_AT, 513, Refused::CountTooLarge),
        (RAM, VACANT_AT, 1 << 28, Refused::GfnOutOfRange),
        (u64::MAX, VACANT_AT, 1, Refused::Overflow),
        (u64::MAX, VACANT_AT, u64::MAX, Refused::Overflow),
        (1, VACANT_AT, u64::MAX, Refused::Overflow),
        (1 << 52, VACANT_AT, 1, Refused::Overflow),
        ((1 << 52) - 1, VACANT_AT, 1, Refused::NotMemory),
        (1 << 36, VACANT_AT, 1, Refused::NotMemory),
        (HOST, u64::MAX, 1, Refused::Overflow),
        (HOST, 1 << 28, 1, Refused::GfnOutOfRange),
        (HOST, (1 << 28) - 1, 2, Refused::GfnOutOfRange),
    ] {
        assert_eq!(rig.donate(0, from, at, count), Err(why), "{from:#x} {at:#x} {count:#x}");
    }
    for verb in [Rig::share, Rig::unshare, Rig::relinquish] {
        assert_eq!(verb(&mut rig, 0, GUEST_RAM, 0), Err(Refused::ZeroCount));
        assert_eq!(verb(&mut rig, 0, GUEST_RAM, 513), Err(Refused::CountTooLarge));
        assert_eq!(verb(&mut rig, 0, u64::MAX, 2), Err(Refused::Overflow));
    }
    assert_eq!(rig.unlend(2, GUEST_RAM, 513), Err(Refused::CountTooLarge));
    assert_eq!(rig.top_up(0, RAM2, 513), Err(Refused::CountTooLarge));
    rig.die(0);
    assert_eq!(rig.reclaim(0, RAM2, 513), Err(Refused::CountTooLarge));
    assert_eq!(PfnRun::decode(5, 0), Err(Refused::ZeroCount));
    assert_eq!(GfnRun::decode(5, 0), Err(Refused::ZeroCount));
    assert_eq!(Lot::decode(5, 5, 0), Err(Refused::ZeroCount));
}

#[test]
fn a_guest_frame_must_be_vacant_ram() {
    let mut rig = scene();
    for (at, why) in [
        (PRIVATE_AT, Refused::GfnMapped),
        (SHARED_AT, Refused::GfnMapped),
        (POISONED_AT, Refused::GfnPoisoned),
        (GUEST_RAM - 1, Refused::GfnOutOfRange),
        (GUEST_RAM + GUEST_RAM_FRAMES, Refused::GfnOutOfRange),
        (0, Refused::GfnOutOfRange),
        ((1 << 28) - 1, Refused::GfnOutOfRange),
    ] {
        assert_eq!(rig.donate(0, HOST, at, 1), Err(why), "{at:#x}");
        assert_eq!(rig.donate_list(0, HOST + 5, &[(HOST, FAR_AT, 1), (HOST + 1, at, 1)], 2), Err(why), "{at:#x}");
    }
    assert_eq!(rig.donate(0, HOST, GUEST_RAM + GUEST_RAM_FRAMES - 1, 2), Err(Refused::GfnOutOfRange));
    assert_eq!(rig.lend(2, HOST, PRIVATE_AT, 1, true), Err(Refused::GfnMapped));
    assert_eq!(rig.lend(2, HOST, GUEST_RAM - 1, 1, true), Err(Refused::GfnOutOfRange));
}

#[test]
fn a_guest_may_only_ask_about_what_it_has() {
    let mut rig = scene();
    for (at, share, unshare, relinquish) in [
        (SHARED_AT, Refused::Shared, None, Refused::Shared),
        (POISONED_AT, Refused::GfnPoisoned, Some(Refused::GfnPoisoned), Refused::GfnPoisoned),
        (VACANT_AT, Refused::GfnNotMapped, Some(Refused::GfnNotMapped), Refused::GfnNotMapped),
        (FAR_AT, Refused::GfnNotMapped, Some(Refused::GfnNotMapped), Refused::GfnNotMapped),
        (GUEST_RAM - 1, Refused::GfnOutOfRange, Some(Refused::GfnOutOfRange), Refused::GfnOutOfRange),
    ] {
        assert_eq!(rig.share(0, at, 1), Err(share), "{at:#x}");
        assert_eq!(rig.relinquish(0, at, 1), Err(relinquish), "{at:#x}");
        if let Some(why) = unshare {
            assert_eq!(rig.unshare(0, at, 1), Err(why), "{at:#x}");
        }
    }
    assert_eq!(rig.unshare(0, PRIVATE_AT, 1), Err(Refused::NotShared));
    // The first may, the second may not: nothing changes.
    assert_eq!(rig.share(0, PRIVATE_AT, 2), Err(Refused::Shared));
    assert_eq!(rig.unshare(0, SHARED_AT, 2), Err(Refused::GfnPoisoned));
    assert_eq!(rig.relinquish(0, PRIVATE_AT, 2), Err(Refused::Shared));
    assert_eq!(rig.unlend(2, PRIVATE_AT, 2), Err(Refused::GfnNotMapped));
    assert_eq!(rig.unlend(2, GUEST_RAM - 1, 1), Err(Refused::GfnOutOfRange));
}

#[test]
fn verbs_keep_to_their_kind_of_vm() {
    let mut rig = scene();
    assert_eq!(rig.donate(2, HOST, VACANT_AT, 1), Err(Refused::WrongKind));
    assert_eq!(rig.donate_list(2, HOST + 5, &[(HOST, VACANT_AT, 1)], 1), Err(Refused::WrongKind));
    assert_eq!(rig.lend(0, HOST, VACANT_AT, 1, true), Err(Refused::WrongKind));
    assert_eq!(rig.unlend(0, PRIVATE_AT, 1), Err(Refused::WrongKind));
    for verb in [Rig::share, Rig::unshare, Rig::relinquish] {
        assert_eq!(verb(&mut rig, 2, PRIVATE_AT, 1), Err(Refused::WrongKind));
    }
}

#[test]
fn verbs_keep_to_their_time_in_a_vms_life() {
    let mut rig = scene();
    // Alive: nothing can be reclaimed, whatever the frame.
    for frame in [OWN_PRIVATE, OWN_SHARED, OWN_POOL, HOST, OTHER_PRIVATE] {
        assert_eq!(rig.reclaim(0, frame, 1), Err(Refused::WrongState));
        assert_eq!(rig.return_pool(0, frame, 1), Err(Refused::WrongState));
    }
    assert_eq!(rig.birth(0, HOST, 8, Kind::Protected, 32), Err(Refused::WrongState));
    rig.die(0);
    rig.die(2);
    for slot in [0, 2] {
        assert_eq!(rig.donate(slot, HOST, VACANT_AT, 1), Err(Refused::WrongState));
        assert_eq!(rig.donate_list(slot, HOST + 5, &[(HOST, VACANT_AT, 1)], 1), Err(Refused::WrongState));
        assert_eq!(rig.top_up(slot, HOST, 1), Err(Refused::WrongState));
        assert_eq!(rig.lend(slot, HOST, VACANT_AT, 1, true), Err(Refused::WrongState));
        assert_eq!(rig.birth(slot, HOST, 8, Kind::Protected, 32), Err(Refused::WrongState));
        for verb in [Rig::share, Rig::unshare, Rig::relinquish] {
            assert_eq!(verb(&mut rig, slot, PRIVATE_AT, 1), Err(Refused::WrongState));
        }
        assert_eq!(rig.guests[slot].root(), None, "a dying VM can not be entered");
        assert_eq!(rig.guests[slot].start(), Err(Refused::WrongState));
        assert_eq!(rig.guests[slot].begin_death(&mut rig.m), Err(Refused::WrongState));
    }
}

#[test]
fn an_empty_slot_has_nothing() {
    let mut rig = Rig::new();
    assert_eq!(rig.guests[0].life(), Life::Free);
    assert_eq!(rig.donate(0, HOST, VACANT_AT, 1), Err(Refused::WrongState));
    assert_eq!(rig.top_up(0, HOST, 1), Err(Refused::WrongState));
    assert_eq!(rig.lend(0, HOST, VACANT_AT, 1, true), Err(Refused::WrongState));
    assert_eq!(rig.unlend(0, VACANT_AT, 1), Err(Refused::WrongState));
    assert_eq!(rig.reclaim(0, HOST, 1), Err(Refused::WrongState));
    assert_eq!(rig.return_pool(0, HOST, 1), Err(Refused::WrongState));
    assert_eq!(rig.revoke(0, HOST), Err(Refused::WrongState));
    for verb in [Rig::share, Rig::unshare, Rig::relinquish] {
        assert_eq!(verb(&mut rig, 0, VACANT_AT, 1), Err(Refused::WrongState));
    }
    let Rig { host, guests, m } = &mut rig;
    assert_eq!(guests[0].take_frame(host, m), Err(Refused::WrongState));
    assert_eq!(guests[0].declare_ram(Claim::new(GfnRun::decode(1, 1).unwrap())), Err(Refused::WrongState));
    assert_eq!(guests[0].begin_death(m), Err(Refused::WrongState));
}

#[test]
fn a_guest_that_never_ran_asks_for_nothing() {
    let mut rig = Rig::new();
    rig.with_vm(0, Kind::Protected, OWN_POOL, 16);
    rig.donate(0, HOST, VACANT_AT, 1).unwrap();
    for verb in [Rig::share, Rig::unshare, Rig::relinquish] {
        assert_eq!(verb(&mut rig, 0, VACANT_AT, 1), Err(Refused::WrongState));
    }
}

#[test]
fn a_birth_needs_an_address_size_and_frames() {
    let mut rig = scene();
    rig.die(2);
    rig.unlend(2, PRIVATE_AT, 1).unwrap();
    assert_eq!(rig.return_pool(2, ORDINARY_POOL, 16), Ok((16, true)));
    // The rig is a machine of 32 bits: a guest can have no more than it.
    for bits in [0, 31, 33, 40, 41, 64, u32::MAX] {
        assert_eq!(rig.birth(2, HOST, 8, Kind::Protected, bits), Err(Refused::BadIpaSize));
    }
    for (frame, why) in NOT_GIVEABLE {
        let why = match frame {
            LENT => continue,
            OWN_POOL | OWN_PRIVATE => Refused::Foreign,
            _ => why,
        };
        assert_eq!(rig.birth(2, frame, 1, Kind::Protected, 32), Err(why), "{frame:#x}");
    }
    assert_eq!(rig.birth(2, RAM2, 513, Kind::Protected, 32), Err(Refused::CountTooLarge));
}

#[test]
fn a_birth_needs_an_aligned_pair_of_frames_for_a_large_address_size() {
    let mut rig = Rig::of(40);
    assert_eq!(rig.birth(2, HOST, 1, Kind::Protected, 40), Err(Refused::NeedPages(1)));
    assert_eq!(rig.birth(2, HOST + 1, 1, Kind::Protected, 40), Err(Refused::NeedPages(2)));
    assert_eq!(rig.birth(2, HOST + 1, 2, Kind::Protected, 40), Err(Refused::NeedPages(1)));
    assert_eq!(rig.birth(2, HOST + 1, 3, Kind::Protected, 40), Ok(1));
    assert_eq!(rig.guests[2].root(), Some((pfn(HOST + 2), 40)));
}

#[test]
fn ram_ranges_are_fixed_before_the_first_run() {
    let mut rig = Rig::new();
    rig.birth(0, OWN_POOL, 16, Kind::Protected, 32).unwrap();
    let guest = &mut rig.guests[0];
    let claim = |from, count| Claim::new(GfnRun::decode(from, count).unwrap());
    assert_eq!(guest.declare_ram(claim((1 << 20) - 1, 2)), Err(Refused::GfnOutOfRange));
    assert_eq!(guest.declare_ram(claim(100, 100)), Ok(()));
    for (from, count) in [(100, 1), (199, 1), (50, 51), (199, 5), (0, 1 << 20)] {
        assert_eq!(guest.declare_ram(claim(from, count)), Err(Refused::RamOverlap), "{from} {count}");
    }
    for from in 0..7 {
        assert_eq!(guest.declare_ram(claim(200 + from, 1)), Ok(()));
    }
    assert_eq!(guest.declare_ram(claim(300, 1)), Err(Refused::TooManyRanges));
    assert_eq!(guest.ram().count(), 8);
    guest.start().unwrap();
    assert_eq!(guest.declare_ram(claim(300, 1)), Err(Refused::WrongState));
}

#[test]
fn reclaim_takes_only_the_dying_vms_own() {
    let mut rig = scene();
    rig.die(0);
    for (frame, why) in [
        (DEVICE, Refused::NotMemory),
        (HOLE, Refused::NotMemory),
        (BEYOND, Refused::NotMemory),
        (NO_MAP, Refused::NoMap),
        (CARVE_OUT, Refused::El2Owned),
        (HOST, Refused::HostOwned),
        (LENT, Refused::HostOwned),
        (OTHER_POOL, Refused::Foreign),
        (OTHER_PRIVATE, Refused::Foreign),
        (OTHER_SHARED, Refused::Foreign),
        (OWN_POOL, Refused::GuestFramesLeft),
    ] {
        assert_eq!(rig.reclaim(0, frame, 1), Err(why), "{frame:#x}");
        assert_eq!(rig.return_pool(0, frame, 1), Err(Refused::GuestFramesLeft), "{frame:#x}");
    }
    assert_eq!(rig.reclaim(0, OWN_PRIVATE - 1, 2), Err(Refused::HostOwned));
    assert_eq!(rig.reclaim(0, OWN_SHARED, 2), Err(Refused::HostOwned));
    assert_eq!(rig.reclaim(0, OWN_PRIVATE, 2), Ok(2));
    for (frame, why) in [
        (DEVICE, Refused::NotMemory),
        (NO_MAP, Refused::NoMap),
        (CARVE_OUT, Refused::El2Owned),
        (HOST, Refused::HostOwned),
        (LENT, Refused::HostOwned),
        (OWN_PRIVATE, Refused::HostOwned),
        (OTHER_POOL, Refused::Foreign),
        (OTHER_PRIVATE, Refused::Foreign),
        (OTHER_SHARED, Refused::Foreign),
    ] {
        assert_eq!(rig.return_pool(0, frame, 1), Err(why), "{frame:#x}");
    }
    assert_eq!(rig.return_pool(0, OWN_POOL + 15, 2), Err(Refused::HostOwned));
    assert_eq!(rig.return_pool(0, OWN_POOL, 513), Err(Refused::CountTooLarge));
    assert_eq!(rig.return_pool(0, OWN_POOL, 15), Ok((15, false)));
    assert_eq!(rig.return_pool(0, OWN_POOL, 16), Err(Refused::HostOwned), "twice");
    assert_eq!(rig.return_pool(0, OWN_POOL + 15, 1), Ok((1, true)));
    assert_eq!(rig.guests[0].life(), Life::Free);
}

#[test]
fn only_a_revocable_private_frame_can_be_revoked() {
    let mut rig = scene();
    for (frame, why) in [
        (DEVICE, Refused::NotMemory),
        (NO_MAP, Refused::HostOwned),
        (CARVE_OUT, Refused::El2Owned),
        (HOST, Refused::HostOwned),
        (LENT, Refused::HostOwned),
        (OWN_POOL, Refused::Foreign),
        (OWN_PRIVATE, Refused::Foreign),
        (OWN_SHARED, Refused::HostOwned),
        (OTHER_PRIVATE, Refused::Foreign),
    ] {
        assert_eq!(rig.revoke(0, frame), Err(why), "{frame:#x}");
    }
    rig.donate_with(1, HOST, VACANT_AT, 1, true, &mut || false).unwrap();
    assert_eq!(rig.revoke(0, HOST), Err(Refused::Foreign), "of another VM");
    assert_eq!(rig.revoke(1, HOST), Ok(()));
    assert_eq!(rig.state(HOST), Some(State::Host));
}

#[test]
fn a_revocable_frame_stays_so_through_sharing() {
    let mut rig = scene();
    rig.donate_with(0, HOST, VACANT_AT, 1, true, &mut || false).unwrap();
    rig.share(0, VACANT_AT, 1).unwrap();
    assert_eq!(rig.revoke(0, HOST), Err(Refused::HostOwned), "the host may reach it: nothing to revoke");
    rig.unshare(0, VACANT_AT, 1).unwrap();
    assert_eq!(rig.revoke(0, HOST), Ok(()));
}

#[test]
fn running_out_of_tables_says_how_many_and_changes_nothing() {
    for pool in 1..=5_u64 {
        let mut rig = Rig::new();
        rig.with_vm(0, Kind::Protected, OWN_POOL, pool);
        // Two level-3 tables under one level-2 table: three pages besides the root.
        let lot = (HOST, GUEST_RAM + 510, 4);
        let short = 3_u64.saturating_sub(pool - 1);
        let done = rig.donate(0, lot.0, lot.1, lot.2);
        if short == 0 {
            assert_eq!(done, Ok(4), "pool {pool}");
            continue;
        }
        assert_eq!(done, Err(Refused::NeedPages(short as u32)), "pool {pool}");
        let list = [
            (HOST, GUEST_RAM + 600, 1),
            (HOST + 1, GUEST_RAM, 1),
            (HOST + 2, GUEST_RAM + 601, 1),
            (HOST + 3, GUEST_RAM + 1, 1),
        ];
        assert_eq!(rig.donate_list(0, HOST + 5, &list, 4), Err(Refused::NeedPages(short as u32)), "pool {pool}");
        rig.top_up(0, RAM + 400, short).unwrap();
        assert_eq!(rig.donate(0, lot.0, lot.1, lot.2), Ok(4), "exactly enough");
        assert_eq!(rig.guests[0].pool_free(), 0);
    }
}

#[test]
fn an_ordinary_vm_runs_out_of_tables_too() {
    let mut rig = Rig::new();
    rig.with_vm(0, Kind::Ordinary, OWN_POOL, 2);
    assert_eq!(rig.lend(0, HOST, GUEST_RAM, 1, true), Err(Refused::NeedPages(1)));
    rig.top_up(0, HOST + 1, 1).unwrap();
    assert_eq!(rig.lend(0, HOST, GUEST_RAM, 1, true), Ok(1));
}

#[test]
fn an_empty_pool_gives_no_vcpu() {
    let mut rig = Rig::new();
    rig.with_vm(0, Kind::Protected, OWN_POOL, 2);
    let Rig { host, guests, m } = &mut rig;
    let frame = guests[0].take_frame(host, m).unwrap();
    assert_eq!((frame, m.content(frame)), (pfn(OWN_POOL + 1), 0), "cleared");
    assert_eq!(guests[0].take_frame(host, m), Err(Refused::NeedPages(1)));
    assert_eq!(run(OWN_POOL, 2).end(), OWN_POOL + 2);
}
