// SPDX-License-Identifier: MIT OR Apache-2.0
//! Blocks of the host: split when the first frame leaves, whole again when the last is back.

use super::rig::{GUEST_RAM, RAM, RAM2, Rig};
use crate::{Claim, HostView, Ipa, Kind};

const FREE: u64 = RAM + 1024;

fn rig() -> Rig {
    let mut rig = Rig::new();
    rig.with_vm(0, Kind::Protected, RAM, 32);
    rig.start(0);
    rig
}

#[test]
fn neighbours_stay_mapped_through_split_and_join() {
    let mut rig = rig();
    let at_rest = rig.host.counters();
    rig.donate(0, FREE + 5, GUEST_RAM, 2).unwrap();
    let split = rig.host.counters();
    assert_eq!(
        (split.splits, split.blocks, split.tables),
        (at_rest.splits + 1, at_rest.blocks - 1, at_rest.tables + 1)
    );
    for frame in FREE..FREE + 512 {
        let view = rig.host.view(Claim::new(Ipa::new(frame << 12).unwrap()), &rig.m);
        assert_eq!(view == HostView::Mapped, !(FREE + 5..FREE + 7).contains(&frame), "{frame:#x}");
    }
    rig.relinquish(0, GUEST_RAM, 1).unwrap();
    assert_eq!(rig.host.counters().joins, at_rest.joins, "one frame is still away");
    rig.relinquish(0, GUEST_RAM + 1, 1).unwrap();
    let joined = rig.host.counters();
    assert_eq!((joined.joins, joined.blocks, joined.tables), (at_rest.joins + 1, at_rest.blocks, at_rest.tables));
    assert_eq!(joined.foreign, at_rest.foreign);
}

#[test]
fn a_run_over_two_blocks_splits_both_with_one_broadcast() {
    let mut rig = rig();
    let before = rig.host.counters();
    rig.donate(0, FREE + 510, GUEST_RAM, 4).unwrap();
    let after = rig.host.counters();
    assert_eq!((after.splits, after.broadcasts), (before.splits + 2, before.broadcasts + 1));
    // Both come back together: two joins, one broadcast.
    rig.relinquish(0, GUEST_RAM, 4).unwrap();
    let back = rig.host.counters();
    assert_eq!((back.joins, back.broadcasts), (before.joins + 2, after.broadcasts + 1));
}

#[test]
fn a_whole_block_comes_and_goes() {
    let mut rig = rig();
    let before = rig.host.counters();
    rig.donate(0, FREE, GUEST_RAM, 512).unwrap();
    assert_eq!(rig.host.counters().foreign, before.foreign + 512);
    rig.relinquish(0, GUEST_RAM, 512).unwrap();
    let after = rig.host.counters();
    assert_eq!((after.blocks, after.tables, after.foreign), (before.blocks, before.tables, before.foreign));
}

#[test]
fn giving_back_without_a_join_needs_no_broadcast() {
    let mut rig = rig();
    rig.donate(0, FREE, GUEST_RAM, 2).unwrap();
    let before = rig.host.counters().broadcasts;
    rig.relinquish(0, GUEST_RAM, 1).unwrap();
    assert_eq!(rig.host.counters().broadcasts, before);
    assert_eq!(rig.m.vm_broadcasts.len(), 1, "the guest lost it: one broadcast for the VM");
}

#[test]
fn sharing_the_last_foreign_frame_joins_and_taking_it_back_splits() {
    let mut rig = rig();
    let before = rig.host.counters();
    rig.donate(0, FREE, GUEST_RAM, 1).unwrap();
    rig.share(0, GUEST_RAM, 1).unwrap();
    assert_eq!(rig.host.counters().tables, before.tables);
    rig.unshare(0, GUEST_RAM, 1).unwrap();
    assert_eq!(rig.host.counters().tables, before.tables + 1);
    // Shared again, its frame lies under a block; the VM dies, and it comes back from there.
    rig.share(0, GUEST_RAM, 1).unwrap();
    rig.die(0);
    rig.reclaim(0, FREE, 1).unwrap();
    assert_eq!(rig.host.counters().tables, before.tables);
}

#[test]
fn a_block_that_is_ram_in_part_is_never_joined() {
    let mut rig = rig();
    let before = rig.host.counters();
    rig.donate(0, RAM2 + 400, GUEST_RAM, 100).unwrap();
    rig.relinquish(0, GUEST_RAM, 100).unwrap();
    let after = rig.host.counters();
    assert_eq!((after.splits, after.joins, after.tables), (before.splits, before.joins, before.tables));
    let below = rig.host.view(Claim::new(Ipa::new((RAM2 - 1) << 12).unwrap()), &rig.m);
    assert_eq!(below, HostView::Mapped, "the device next to it");
}

#[test]
fn every_block_may_be_split_at_once() {
    let mut rig = rig();
    let list: std::vec::Vec<(u64, u64, u64)> = (1..7)
        .map(|block| (RAM + block * 512 + 9, GUEST_RAM + block, 1))
        .chain([(RAM2, GUEST_RAM, 1), (RAM2 + 599, GUEST_RAM + 9, 1)])
        .collect();
    rig.donate_list(0, RAM + 300, &list, 8).unwrap();
    assert_eq!(rig.host.counters().blocks, 0);
    // Left in the reserve: the carve-out's own.
    assert_eq!(rig.host.counters().tables_free, 1);
}
