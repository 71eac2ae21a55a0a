// SPDX-License-Identifier: MIT OR Apache-2.0
//! Lists of records: copied once, checked against themselves, one broadcast.

use super::rig::{CARVE_OUT, DEVICE, GUEST_RAM, HOLE, NO_MAP, RAM, RAM2, Rig, pfn};
use crate::{Kind, Refused, State};

const PAGE: u64 = RAM + 300;

fn rig() -> Rig {
    let mut rig = Rig::new();
    rig.with_vm(0, Kind::Protected, RAM, 64);
    rig
}

#[test]
fn a_scattered_list_costs_one_broadcast() {
    let mut rig = rig();
    let before = rig.m.host_broadcasts;
    // Five blocks, in no order, some runs and some single frames.
    let list = [
        (RAM + 512 * 5 + 7, GUEST_RAM + 900, 1),
        (RAM + 100, GUEST_RAM, 20),
        (RAM + 512 * 2, GUEST_RAM + 2000, 3),
        (RAM2 + 5, GUEST_RAM + 77, 1),
        (RAM + 512 * 3 + 510, GUEST_RAM + 1022, 4),
    ];
    assert_eq!(rig.donate_list(0, PAGE, &list, 5), Ok(29));
    assert_eq!(rig.m.host_broadcasts, before + 1);
    assert_eq!(rig.host.counters().broadcasts, rig.m.host_broadcasts);
    assert_eq!(rig.m.reads.get(), 1, "the list is read once");
    for (from, at, count) in list {
        for offset in 0..count {
            let state = rig.state(from + offset).unwrap();
            assert!(matches!(state, State::Private { gfn, .. } if gfn.raw() == at + offset), "{state:?}");
        }
    }
    assert_eq!(rig.state(PAGE), Some(State::Host), "the list's frame stays the host's");
}

#[test]
fn nothing_may_appear_twice() {
    let mut rig = rig();
    let (a, g) = (RAM + 100, GUEST_RAM);
    for list in [
        [(a, g, 1), (a + 9, g + 9, 1), (a, g + 1, 1)],
        [(a, g, 1), (a + 9, g + 9, 1), (a + 1, g, 1)],
        [(a, g, 8), (a + 20, g + 20, 1), (a + 7, g + 30, 1)],
        [(a + 7, g + 30, 1), (a + 20, g + 20, 1), (a, g, 8)],
        [(a, g, 8), (a + 20, g + 20, 4), (a + 40, g + 4, 20)],
        [(a, g, 1), (a, g, 1), (a, g, 1)],
        // Those that meet stand apart by their lengths.
        [(a, g, 1), (a + 9, g + 100, 2), (a + 20, g, 3)],
        [(a, g, 1), (a + 9, g + 100, 2), (a, g + 20, 3)],
    ] {
        assert_eq!(rig.donate_list(0, PAGE, &list, 3), Err(Refused::Twice), "{list:x?}");
    }
    // Neighbours do not meet.
    assert_eq!(rig.donate_list(0, PAGE, &[(a, g + 8, 8), (a + 8, g, 8), (a + 16, g + 16, 1)], 3), Ok(17));
}

#[test]
fn a_record_is_checked_like_a_run() {
    let mut rig = rig();
    let (a, g) = (RAM + 100, GUEST_RAM);
    for (record, why) in [
        ((u64::MAX, g, 2), Refused::Overflow),
        ((1 << 36, g, 1), Refused::NotMemory),
        ((a, (1 << 52) - 1, 2), Refused::Overflow),
        ((a, 1 << 28, 1), Refused::GfnOutOfRange),
        ((a, g, 513), Refused::CountTooLarge),
        ((a, g, 4096), Refused::CountTooLarge),
    ] {
        assert_eq!(rig.donate_list(0, PAGE, &[(a + 1, g + 1, 1), record], 2), Err(why), "{record:x?}");
    }
    assert_eq!(rig.donate_list(0, PAGE, &[(RAM + 1024, g + 512, 512)], 1), Ok(512), "the longest");
    assert_eq!(rig.donate_list(0, PAGE, &[], 0), Err(Refused::ZeroCount));
    assert_eq!(rig.donate_list(0, PAGE, &[], 257), Err(Refused::CountTooLarge));
    assert_eq!(rig.donate_list(0, PAGE, &[], u64::MAX), Err(Refused::CountTooLarge));
}

#[test]
fn the_lists_own_frame_must_be_the_hosts() {
    let mut rig = rig();
    rig.donate(0, RAM + 80, GUEST_RAM + 100, 1).unwrap();
    let list = [(RAM + 100, GUEST_RAM, 1)];
    for (page, why) in [
        (DEVICE, Refused::NotMemory),
        (HOLE, Refused::NotMemory),
        (NO_MAP, Refused::NoMap),
        (CARVE_OUT, Refused::El2Owned),
        (RAM, Refused::AlreadyDonated),
        (RAM + 80, Refused::AlreadyDonated),
    ] {
        assert_eq!(rig.donate_list(0, page, &list, 1), Err(why), "{page:#x}");
    }
    assert_eq!(rig.m.reads.get(), 0, "el2 does not even read a frame that is not the host's");
    // It may be donated by the very list that lies in it, for it was copied before.
    assert_eq!(rig.donate_list(0, PAGE, &[(PAGE, GUEST_RAM, 1)], 1), Ok(1));
}

#[test]
fn a_list_that_names_more_than_a_call_may_is_refused_whole() {
    let mut rig = rig();
    let with = |last: u64| {
        [(RAM + 512, GUEST_RAM, 300), (RAM + 1024, GUEST_RAM + 600, 200), (RAM + 1536, GUEST_RAM + 1200, last)]
    };
    let before = rig.m.host_broadcasts;
    assert_eq!(rig.donate_list(0, PAGE, &with(13), 3), Err(Refused::CountTooLarge), "513");
    assert_eq!(rig.donate_list(0, PAGE, &with(300), 3), Err(Refused::CountTooLarge));
    assert_eq!((rig.state(RAM + 512), rig.m.host_broadcasts), (Some(State::Host), before));
    // The count comes first: what stands behind it in the list is not looked at any more.
    let meet = [(RAM + 512, GUEST_RAM, 512), (RAM + 1024, GUEST_RAM + 600, 1), (u64::MAX, GUEST_RAM, 1)];
    assert_eq!(rig.donate_list(0, PAGE, &meet, 3), Err(Refused::CountTooLarge));
    assert_eq!(rig.donate_list(0, PAGE, &with(12), 3), Ok(512), "as many as may be");
    assert!(matches!(rig.state(RAM + 1536 + 11), Some(State::Private { .. })));
    assert_eq!(rig.state(RAM + 1536 + 12), Some(State::Host));
}

#[test]
fn a_full_list_of_single_frames_goes_at_once() {
    let mut rig = rig();
    let list: std::vec::Vec<(u64, u64, u64)> =
        (0..256).map(|i| (RAM + 512 + (i * 7) % 256 * 8, GUEST_RAM + (i * 11) % 256 * 16, 1)).collect();
    let before = rig.m.host_broadcasts;
    assert_eq!(rig.donate_list(0, PAGE, &list, 256), Ok(256));
    assert_eq!(rig.m.host_broadcasts, before + 1);
    assert!(matches!(rig.host.ledger().state(pfn(RAM + 512)), Some(State::Private { .. })));
}
