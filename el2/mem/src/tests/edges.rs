// SPDX-License-Identifier: MIT OR Apache-2.0
//! Limits and numbers that every other test takes for granted: what mutants of the code survived by.

use super::rig::{GUEST_RAM, RAM, RAM2, Rig, gfn, pfn};
use crate::pte::{self, Form, Leaf};
use crate::{Claim, Entry, GfnRun, Kind, Needs, PAGE_SIZE, PfnRun, Refused};

#[test]
fn pages_are_4096_bytes() {
    assert_eq!((PAGE_SIZE, gfn(5).ipa().raw()), (4096, 0x5000));
}

#[test]
fn an_entry_is_a_table_and_nine_bits() {
    let entry = Entry::of(pfn(7), 0x1234);
    assert_eq!((entry.table(), entry.index()), (pfn(7), 0x34));
    assert_eq!(Entry::of(pfn(7), 511).index(), 511);
}

#[test]
fn what_no_verb_writes_is_no_form() {
    for word in [1 << 4, 1 << 63, 1 << 6] {
        assert_eq!((pte::form(word), pte::leaf(word | 1 << 62)), (Form::Unknown, Leaf::Unknown), "{word:#x}");
    }
    assert_eq!(pte::leaf(1), Leaf::Unknown, "a block where only pages can stand");
}

#[test]
fn the_last_guest_frame_is_a_run_and_the_one_behind_it_none() {
    assert!(GfnRun::decode((1 << 28) - 1, 1).is_ok());
    assert_eq!(GfnRun::decode((1 << 28) - 1, 2), Err(Refused::GfnOutOfRange));
    assert_eq!(GfnRun::decode(1 << 28, 1), Err(Refused::GfnOutOfRange));
}

#[test]
fn neighbours_do_not_meet_whichever_comes_first() {
    let (one, next) = (PfnRun::decode(8, 4).unwrap(), PfnRun::decode(12, 4).unwrap());
    assert!(!one.meets(&next) && !next.meets(&one) && one.meets(&one));
    let (one, next) = (GfnRun::decode(8, 4).unwrap(), GfnRun::decode(12, 4).unwrap());
    assert!(!one.meets(&next) && !next.meets(&one) && one.meets(&one));
    assert_eq!((one.count(), one.frames().count()), (4, 4));
}

#[test]
fn what_a_machine_needs_is_its_tables_and_its_words_in_whole_frames() {
    let needs = |table_frames, words| Needs { table_frames, table_align: 1, words }.frames();
    assert_eq!([needs(3, 0), needs(3, 1), needs(3, 512), needs(3, 513)], [3, 4, 4, 5]);
}

#[test]
fn a_list_may_lie_in_a_frame_that_the_host_has_lent() {
    let mut rig = Rig::new();
    rig.with_vm(0, Kind::Protected, RAM, 16);
    rig.with_vm(1, Kind::Ordinary, RAM + 16, 16);
    rig.lend(1, RAM + 300, GUEST_RAM, 1, true).unwrap();
    assert_eq!(rig.donate_list(0, RAM + 300, &[(RAM + 512, GUEST_RAM, 1)], 1), Ok(1));
}

#[test]
fn a_frozen_frame_stays_so_through_sharing() {
    let mut rig = Rig::new();
    rig.with_vm(0, Kind::Protected, RAM, 16);
    rig.start(0);
    rig.donate(0, RAM + 512, GUEST_RAM, 1).unwrap();
    rig.share(0, GUEST_RAM, 1).unwrap();
    rig.unshare(0, GUEST_RAM, 1).unwrap();
    assert_eq!(rig.revoke(0, RAM + 512), Err(Refused::Foreign), "no stray access takes it away");
}

#[test]
fn a_vm_counts_its_pool_and_its_broadcasts() {
    let mut rig = Rig::new();
    rig.with_vm(0, Kind::Protected, RAM, 16);
    assert_eq!((rig.guests[0].pool_free(), rig.guests[0].broadcasts()), (15, 0), "one frame is the root");
    rig.donate(0, RAM + 512, GUEST_RAM, 2).unwrap();
    rig.start(0);
    assert_eq!(rig.guests[0].pool_free(), 13, "two tables");
    rig.relinquish(0, GUEST_RAM, 1).unwrap();
    rig.relinquish(0, GUEST_RAM + 1, 1).unwrap();
    assert_eq!((rig.guests[0].pool_free(), rig.guests[0].broadcasts()), (13, 2), "tables stay");
}

#[test]
fn tables_of_places_that_alternate_are_counted_once() {
    // Guest frames under two level-2 tables, in turns; a third block under the first.
    let (near, far) = (GUEST_RAM, GUEST_RAM + (1 << 18));
    let list = [(RAM2, near, 1), (RAM2 + 1, far, 1), (RAM2 + 2, near + 512, 1), (RAM2 + 3, far + 512, 1)];
    for pool in [6, 7] {
        let mut rig = Rig::new();
        rig.birth(0, RAM, pool, Kind::Protected, 32).unwrap();
        for from in [near, far] {
            rig.guests[0].declare_ram(Claim::new(GfnRun::decode(from, 1024).unwrap())).unwrap();
        }
        let done = rig.donate_list(0, RAM + 300, &list, 4);
        // Two level-2 and four level-3 tables, besides the root.
        assert_eq!(done, if pool == 7 { Ok(4) } else { Err(Refused::NeedPages(1)) });
    }
}
