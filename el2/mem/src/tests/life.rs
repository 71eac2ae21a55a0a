// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whole lives of VMs: who sees what, and that everything comes back.

use std::vec::Vec;

use super::fake::{HOST_DATA, SECRET};
use super::rig::{GUEST_RAM, RAM, Rig, gfn, pfn};
use crate::pte::Leaf;
use crate::{Claim, Entry, GuestView, HostView, Ipa, Kind, Life, Lot, Refused, State, VmSlot};

const POOL: u64 = RAM;
const FREE: u64 = RAM + 512;

fn view(rig: &Rig, frame: u64) -> HostView {
    rig.host.view(Claim::new(Ipa::new(frame << 12).unwrap()), &rig.m)
}

fn guest_view(rig: &Rig, at: u64) -> GuestView {
    rig.guests[0].view(Claim::new(Ipa::new(at << 12).unwrap()), &rig.m)
}

/// Ends a VM: guest frames, then pool.
fn bury(rig: &mut Rig, slot: usize, frames: &[(u64, u64)], pool: &[(u64, u64)]) {
    rig.die(slot);
    for (from, count) in frames {
        assert_eq!(rig.reclaim(slot, *from, *count), Ok(*count));
    }
    for (index, (from, count)) in pool.iter().enumerate() {
        assert_eq!(rig.return_pool(slot, *from, *count), Ok((*count, index + 1 == pool.len())));
    }
    assert_eq!(rig.guests[slot].life(), Life::Free);
}

#[test]
fn host_cannot_reach_a_donated_frame_and_the_guest_can() {
    let mut rig = Rig::new();
    rig.with_vm(0, Kind::Protected, POOL, 16);
    assert_eq!(guest_view(&rig, GUEST_RAM), GuestView::Absent(gfn(GUEST_RAM)));
    assert_eq!(guest_view(&rig, GUEST_RAM - 1), GuestView::Device);
    rig.donate(0, FREE, GUEST_RAM, 1).unwrap();
    let vm = VmSlot::new(0).unwrap();
    assert_eq!(view(&rig, FREE), HostView::Private { vm, gfn: gfn(GUEST_RAM), revocable: false });
    assert_eq!(view(&rig, POOL), HostView::Pool(vm));
    assert_eq!(guest_view(&rig, GUEST_RAM), GuestView::Mapped(pfn(FREE)));
    assert!(rig.m.cleaned.contains(&pfn(FREE)), "cleaned for a guest with caches off");
}

#[test]
fn before_the_first_run_contents_stay_and_are_measured_after_it_they_are_zeroed() {
    let mut rig = Rig::new();
    rig.with_vm(0, Kind::Protected, POOL, 16);
    let mut measured = Vec::new();
    for (from, at, started) in [(FREE, GUEST_RAM, false), (FREE + 8, GUEST_RAM + 8, true)] {
        if started {
            rig.start(0);
        }
        let Rig { host, guests, m } = &mut rig;
        let lot = Claim::new(Lot::decode(from, at, 2).unwrap());
        let checked = crate::verbs::host_donate_guest::check(host, &mut guests[0], lot, false, m).unwrap();
        let cleaned = std::rc::Rc::clone(&m.clean_log);
        checked.commit(m, &mut || false, &mut |gfn, pfn| {
            assert!(cleaned.borrow().contains(&pfn), "measured while a cache may hide what the guest will find");
            measured.push((gfn.raw(), pfn.raw()));
        });
        rig.check();
        for frame in [from, from + 1] {
            assert_eq!(rig.m.content(pfn(frame)), if started { 0 } else { HOST_DATA });
        }
    }
    assert_eq!(measured, [(GUEST_RAM, FREE), (GUEST_RAM + 1, FREE + 1)]);
}

#[test]
fn what_the_host_left_in_pool_frames_is_never_walked() {
    let mut rig = Rig::new();
    // Every frame of the pool looks like a table that maps the ledger, or points to itself.
    for frame in POOL..POOL + 8 {
        for index in 0..512 {
            rig.m.words.insert(Entry::of(pfn(frame), index), frame << 12 | 0x7ff);
        }
    }
    rig.with_vm(0, Kind::Protected, POOL, 8);
    assert_eq!(rig.leaves(0), []);
    rig.donate(0, FREE, GUEST_RAM, 1).unwrap();
    assert_eq!(rig.leaves(0), [(GUEST_RAM, Leaf::Page(pfn(FREE)))]);
}

#[test]
fn a_lazy_vm_keeps_contents_after_its_first_run() {
    let mut rig = Rig::new();
    rig.with_vm(0, Kind::Lazy, POOL, 16);
    rig.start(0);
    rig.donate(0, FREE, GUEST_RAM, 1).unwrap();
    assert_eq!(rig.m.content(pfn(FREE)), HOST_DATA);
}

#[test]
fn sharing_keeps_contents_both_ways_and_relinquishing_zeroes() {
    let mut rig = Rig::new();
    rig.with_vm(0, Kind::Protected, POOL, 16);
    rig.start(0);
    rig.donate(0, FREE, GUEST_RAM, 3).unwrap();
    for frame in FREE..FREE + 3 {
        rig.m.contents.insert(pfn(frame), SECRET);
    }
    rig.share(0, GUEST_RAM, 1).unwrap();
    assert_eq!((view(&rig, FREE), rig.m.content(pfn(FREE))), (HostView::Mapped, SECRET));
    assert_ne!(view(&rig, FREE + 1), HostView::Mapped);
    rig.m.cleaned.clear();
    rig.unshare(0, GUEST_RAM, 1).unwrap();
    assert_eq!(rig.m.content(pfn(FREE)), SECRET);
    assert!(rig.m.cleaned.contains(&pfn(FREE)), "the host's cache lines are gone");
    assert!(rig.m.executable.contains(&pfn(FREE)), "and after them what was fetched");
    assert_ne!(view(&rig, FREE), HostView::Mapped);
    rig.relinquish(0, GUEST_RAM + 1, 2).unwrap();
    assert_eq!((view(&rig, FREE + 1), rig.m.content(pfn(FREE + 1))), (HostView::Mapped, 0));
    assert_eq!(guest_view(&rig, GUEST_RAM + 1), GuestView::Absent(gfn(GUEST_RAM + 1)));
    rig.donate(0, FREE + 9, GUEST_RAM + 1, 1).unwrap();
    assert!(rig.leaks().is_empty());
}

#[test]
fn a_revoked_frame_comes_back_zeroed_and_its_place_is_poisoned() {
    let mut rig = Rig::new();
    rig.with_vm(0, Kind::Protected, POOL, 16);
    rig.start(0);
    rig.donate_with(0, FREE, GUEST_RAM, 1, true, &mut || false).unwrap();
    rig.m.contents.insert(pfn(FREE), SECRET);
    rig.revoke(0, FREE).unwrap();
    assert_eq!((view(&rig, FREE), rig.m.content(pfn(FREE))), (HostView::Mapped, 0));
    assert_eq!(guest_view(&rig, GUEST_RAM), GuestView::Poisoned(gfn(GUEST_RAM)));
    // In a dying VM too, where no table is edited any more.
    rig.donate_with(0, FREE, GUEST_RAM + 1, 1, true, &mut || false).unwrap();
    rig.m.contents.insert(pfn(FREE), SECRET);
    rig.die(0);
    rig.revoke(0, FREE).unwrap();
    assert_eq!(rig.m.content(pfn(FREE)), 0);
    assert_eq!(rig.return_pool(0, POOL, 16), Ok((16, true)));
}

#[test]
fn after_the_last_vm_everything_is_as_before() {
    let mut rig = Rig::new();
    let before = rig.rest();
    for kind in [Kind::Protected, Kind::Lazy] {
        rig.with_vm(0, kind, POOL, 16);
        rig.start(0);
        rig.top_up(0, FREE + 100, 5).unwrap();
        rig.donate(0, FREE, GUEST_RAM, 64).unwrap();
        rig.share(0, GUEST_RAM, 3).unwrap();
        for frame in FREE..FREE + 64 {
            rig.m.contents.insert(pfn(frame), SECRET);
        }
        bury(&mut rig, 0, &[(FREE + 1, 63), (FREE, 1)], &[(FREE + 100, 5), (POOL, 16)]);
        assert_eq!(rig.rest(), before, "I8");
        assert!(rig.leaks().is_empty(), "I4");
        assert!((FREE..FREE + 64).all(|frame| rig.m.content(pfn(frame)) == 0), "I4");
    }
}

#[test]
fn death_is_one_broadcast_whatever_the_size() {
    let mut rig = Rig::new();
    rig.with_vm(1, Kind::Protected, POOL, 16);
    rig.donate(1, FREE, GUEST_RAM, 512).unwrap();
    rig.die(1);
    assert_eq!(rig.m.vm_broadcasts, [2]);
    rig.reclaim(1, FREE, 512).unwrap();
    assert_eq!(rig.m.vm_broadcasts, [2]);
}

#[test]
fn a_slot_can_be_used_again_with_other_frames() {
    let mut rig = Rig::new();
    rig.with_vm(0, Kind::Protected, POOL, 8);
    rig.donate(0, FREE, GUEST_RAM, 1).unwrap();
    bury(&mut rig, 0, &[(FREE, 1)], &[(POOL, 8)]);
    // The pool of the next is made of what the guest had, and the other way round.
    rig.with_vm(0, Kind::Protected, FREE, 8);
    assert_eq!(rig.guests[0].ram().count(), 1, "ranges do not survive");
    rig.donate(0, POOL, GUEST_RAM, 8).unwrap();
    bury(&mut rig, 0, &[(POOL, 8)], &[(FREE, 8)]);
}

#[test]
fn loans_are_counted_across_vms_and_end_in_death_too() {
    let mut rig = Rig::new();
    let before = rig.rest();
    rig.with_vm(0, Kind::Ordinary, POOL, 8);
    rig.with_vm(1, Kind::Ordinary, POOL + 8, 8);
    rig.lend(0, FREE, GUEST_RAM, 4, false).unwrap();
    rig.lend(1, FREE, GUEST_RAM + 7, 4, true).unwrap();
    rig.lend(1, FREE, GUEST_RAM + 70, 1, true).unwrap();
    assert_eq!((rig.state(FREE), rig.state(FREE + 1)), (Some(State::Lent(3)), Some(State::Lent(2))));
    assert_eq!(rig.host.counters().foreign, 16, "nothing but the pools left the host");
    rig.unlend(1, GUEST_RAM + 70, 1).unwrap();
    rig.die(1);
    assert_eq!(rig.return_pool(1, POOL + 8, 8), Err(crate::Refused::GuestFramesLeft));
    rig.unlend(1, GUEST_RAM + 7, 4).unwrap();
    assert_eq!(rig.return_pool(1, POOL + 8, 8), Ok((8, true)));
    assert_eq!(rig.state(FREE), Some(State::Lent(1)));
    rig.unlend(0, GUEST_RAM, 4).unwrap();
    bury(&mut rig, 0, &[], &[(POOL, 8)]);
    assert_eq!(rig.rest(), before);
    assert_eq!(rig.m.content(pfn(FREE)), HOST_DATA, "lent frames keep what the host wrote");
}

#[test]
fn a_loan_grants_what_it_says_and_donation_everything() {
    let mut rig = Rig::new();
    rig.with_vm(0, Kind::Ordinary, POOL, 8);
    rig.lend(0, FREE, GUEST_RAM, 1, false).unwrap();
    rig.lend(0, FREE, GUEST_RAM + 1, 1, true).unwrap();
    rig.with_vm(1, Kind::Protected, POOL + 8, 8);
    rig.donate(1, FREE + 1, GUEST_RAM, 1).unwrap();
    let (write, never) = (1 << 7, 1 << 54);
    let bits = |slot, at| rig.descriptor(slot, at) & (write | never);
    assert_eq!([bits(0, GUEST_RAM), bits(0, GUEST_RAM + 1), bits(1, GUEST_RAM)], [never, write | never, write]);
    assert!(rig.m.cleaned.contains(&pfn(FREE)), "an uncached read of the borrower finds what the host wrote");
}

#[test]
fn a_batch_drops_fetched_instructions_once() {
    let mut rig = Rig::new();
    rig.with_vm(0, Kind::Protected, POOL, 16);
    rig.donate(0, FREE, GUEST_RAM, 200).unwrap();
    assert_eq!(rig.m.fetch_broadcasts, 1, "contents kept");
    rig.start(0);
    rig.donate(0, FREE + 200, GUEST_RAM + 200, 200).unwrap();
    assert_eq!(rig.m.fetch_broadcasts, 2, "zeroed");
    rig.share(0, GUEST_RAM, 100).unwrap();
    assert_eq!(rig.m.fetch_broadcasts, 2, "the guest's view stays as it is");
    rig.unshare(0, GUEST_RAM, 100).unwrap();
    assert_eq!(rig.m.fetch_broadcasts, 3);
    rig.with_vm(1, Kind::Ordinary, POOL + 16, 16);
    rig.lend(1, FREE + 400, GUEST_RAM, 100, true).unwrap();
    assert_eq!(rig.m.fetch_broadcasts, 4);
}

#[test]
fn a_long_call_stops_for_an_interrupt_and_goes_on() {
    let mut rig = Rig::new();
    rig.with_vm(0, Kind::Protected, POOL, 16);
    rig.start(0);
    let mut asked = 0;
    let mut second = || {
        asked += 1;
        asked == 2
    };
    assert_eq!(rig.donate_with(0, FREE, GUEST_RAM, 200, false, &mut second), Ok(64));
    assert_eq!((view(&rig, FREE + 64), rig.m.content(pfn(FREE + 64))), (HostView::Mapped, HOST_DATA));
    assert_eq!(rig.donate_with(0, FREE + 64, GUEST_RAM + 64, 136, false, &mut || true), Ok(32));
    assert_eq!(rig.donate(0, FREE + 96, GUEST_RAM + 96, 104), Ok(104));
    rig.die(0);
    assert_eq!(rig.reclaim_with(0, FREE, 200, &mut || true), Ok(32));
    assert_eq!(rig.reclaim_with(0, FREE + 32, 20, &mut || true), Ok(20), "short calls never ask");
    assert_eq!(rig.reclaim(0, FREE + 52, 148), Ok(148));
    assert_eq!(rig.return_pool(0, POOL, 16), Ok((16, true)));
}

/// What is left of it holds tables and registers, which nobody has zeroed yet.
#[test]
fn a_pool_that_comes_back_in_parts_stays_out_of_reach_until_its_turn() {
    let mut rig = Rig::new();
    rig.with_vm(0, Kind::Protected, POOL, 80);
    rig.die(0);
    assert_eq!(rig.return_pool_with(0, POOL, 80, &mut || true), Ok((32, false)));
    let vm = VmSlot::new(0).unwrap();
    assert_eq!(
        [31, 32, 79].map(|at| view(&rig, POOL + at)),
        [HostView::Mapped, HostView::Pool(vm), HostView::Pool(vm)]
    );
    assert_eq!((rig.m.content(pfn(POOL + 31)), rig.m.content(pfn(POOL + 32))), (0, HOST_DATA));
    assert_eq!(rig.return_pool_with(0, POOL + 32, 48, &mut || true), Ok((32, false)));
    assert_eq!(rig.return_pool(0, POOL + 64, 16), Ok((16, true)));
}

#[test]
fn where_contents_stay_it_stops_sooner() {
    let mut rig = Rig::new();
    rig.with_vm(0, Kind::Protected, POOL, 16);
    assert_eq!(rig.donate_with(0, FREE, GUEST_RAM, 200, false, &mut || true), Ok(4));
    assert_eq!(rig.m.content(pfn(FREE + 3)), HOST_DATA);
    rig.start(0);
    assert_eq!(rig.donate_with(0, FREE + 4, GUEST_RAM + 4, 196, false, &mut || true), Ok(32));
}

#[test]
fn a_loan_that_is_cut_short_counts_what_it_lent() {
    let mut rig = Rig::new();
    rig.with_vm(0, Kind::Ordinary, POOL, 16);
    let Rig { host, guests, m } = &mut rig;
    let lot = Claim::new(Lot::decode(FREE, GUEST_RAM, 100).unwrap());
    let access = crate::Access { write: true, execute: false };
    m.sharing = true;
    let checked = crate::verbs::host_share_guest::check(host, &mut guests[0], lot, access, m).unwrap();
    assert_eq!(checked.commit(m, &mut || true), 32);
    m.sharing = false;
    assert_eq!(guests[0].frames(), (0, 32));
    rig.die(0);
    rig.unlend(0, GUEST_RAM, 32).unwrap();
    assert_eq!(rig.return_pool(0, POOL, 16), Ok((16, true)));
}

#[test]
fn dropping_a_checked_call_changes_nothing() {
    let mut rig = Rig::new();
    rig.with_vm(0, Kind::Protected, POOL, 16);
    let before = rig.picture();
    let Rig { host, guests, m } = &mut rig;
    let lot = Claim::new(Lot::decode(FREE, GUEST_RAM, 100).unwrap());
    drop(crate::verbs::host_donate_guest::check(host, &mut guests[0], lot, false, m).unwrap());
    let run = Claim::new(crate::PfnRun::decode(FREE, 4).unwrap());
    drop(crate::verbs::host_donate_el2::check(host, &mut guests[0], run).unwrap());
    assert_eq!(rig.picture(), before);
}

#[test]
fn a_vm_with_two_root_tables_lives() {
    let mut rig = Rig::of(40);
    let before = rig.rest();
    rig.birth(0, POOL + 1, 10, Kind::Protected, 40).unwrap();
    for at in [1, 0xfff_fff0] {
        let ram = crate::GfnRun::decode(at, 8).unwrap();
        rig.guests[0].declare_ram(Claim::new(ram)).unwrap();
        // The rig's own walk covers four gigabytes: look through the guest's view.
        let Rig { host, guests, m } = &mut rig;
        let lot = Claim::new(Lot::decode(FREE + at % 16, at, 1).unwrap());
        let checked = crate::verbs::host_donate_guest::check(host, &mut guests[0], lot, false, m).unwrap();
        assert_eq!(checked.commit(m, &mut || false, &mut |_, _| {}), 1);
        assert_eq!(guest_view(&rig, at), GuestView::Mapped(pfn(FREE + at % 16)));
    }
    rig.guests[0].begin_death(&mut rig.m).unwrap();
    assert_eq!(rig.reclaim(0, FREE, 2), Ok(2));
    assert_eq!(rig.return_pool(0, POOL + 1, 10), Ok((10, true)));
    assert_eq!(rig.rest(), before);
}

/// The dearest VM that there is: each page has two tables of its own, and may not take what is not there.
#[test]
fn ranges_run_out_and_a_page_in_every_gigabyte_costs_its_own_tables() {
    let mut rig = Rig::of(40);
    let before = rig.rest();
    rig.birth(0, POOL, 2, Kind::Protected, 40).unwrap();
    let places: Vec<u64> = (0..=8).map(|n| n << 18 | n).collect();
    let (last, held) = places.split_last().unwrap();
    let declares = |rig: &mut Rig, at| rig.guests[0].declare_ram(Claim::new(crate::GfnRun::decode(at, 1).unwrap()));
    for at in held {
        assert_eq!(declares(&mut rig, *at), Ok(()));
    }
    assert_eq!(declares(&mut rig, *last), Err(Refused::TooManyRanges));
    for (n, at) in (0..).zip(held) {
        for short in [2, 1, 0] {
            // The rig's own walk covers four gigabytes.
            let Rig { host, guests, m } = &mut rig;
            let lot = Claim::new(Lot::decode(FREE + n, *at, 1).unwrap());
            let free = guests[0].pool_free();
            match crate::verbs::host_donate_guest::check(host, &mut guests[0], lot, false, m) {
                Ok(checked) => assert_eq!((short, checked.commit(m, &mut || false, &mut |_, _| {})), (0, 1)),
                Err(refused) => {
                    assert_eq!(refused, Refused::NeedPages(short));
                    assert_eq!(guests[0].pool_free(), free, "a refusal keeps none");
                    let more = crate::PfnRun::decode(POOL + 2 + 2 * n + u64::from(2 - short), 1).unwrap();
                    let more = crate::verbs::host_donate_el2::check(host, &mut guests[0], Claim::new(more)).unwrap();
                    assert_eq!(more.commit(m), 3 - short);
                }
            }
        }
        assert_eq!((guest_view(&rig, *at), rig.guests[0].pool_free()), (GuestView::Mapped(pfn(FREE + n)), 0));
    }
    rig.guests[0].begin_death(&mut rig.m).unwrap();
    assert_eq!(rig.reclaim(0, FREE, 8), Ok(8));
    assert_eq!(rig.return_pool(0, POOL, 18), Ok((18, true)));
    assert_eq!(rig.rest(), before);
}

#[test]
fn tables_that_went_back_to_the_host_are_not_walked() {
    let mut rig = Rig::new();
    rig.with_vm(0, Kind::Ordinary, POOL, 16);
    rig.lend(0, FREE, GUEST_RAM, 1, true).unwrap();
    rig.die(0);
    rig.unlend(0, GUEST_RAM, 1).unwrap();
    assert_eq!(rig.return_pool(0, POOL, 4), Ok((4, false)));
    // The host writes what it likes into the frames that it has back, the root among them.
    for frame in POOL..POOL + 4 {
        for index in 0..512 {
            // A table, or a page that a guest may use: both lead on to the root.
            rig.m.words.insert(Entry::of(pfn(frame), index), POOL << 12 | 1 << 10 | 3);
        }
    }
    let ram = crate::GfnRun::decode(GUEST_RAM, 1).unwrap();
    let refused = crate::verbs::host_unshare_guest::check(&mut rig.host, &mut rig.guests[0], Claim::new(ram), &rig.m);
    assert_eq!(refused.err(), Some(crate::Refused::WrongState));
    let at = crate::Ipa::new(GUEST_RAM << 12).unwrap();
    assert_eq!(rig.guests[0].view(Claim::new(at), &rig.m), crate::GuestView::Absent(ram.start()));
}
