// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where ledger and tables disagree, `el2` stops rather than hand out a frame twice (I1).

use super::rig::{GUEST_RAM, RAM, Rig, gfn, pfn};
use crate::batch::Batch;
use crate::guest_space::{Access, Near, Tables};
use crate::pte::{self, Form};
use crate::{Attributes, Entry, Kind, State, VmSlot};

const FREE: u64 = RAM + 512;

fn rig() -> Rig {
    let mut rig = Rig::new();
    rig.with_vm(0, Kind::Protected, RAM, 16);
    rig.start(0);
    rig.donate(0, FREE, GUEST_RAM, 2).unwrap();
    rig
}

fn lie(rig: &mut Rig, frame: u64, state: State) {
    let Rig { host, m, .. } = rig;
    host.ledger.write(pfn(frame), state, m);
}

#[test]
#[should_panic(expected = "fatal: OneOwner")]
fn a_frame_that_the_host_lost_can_not_be_its_to_give() {
    let mut rig = rig();
    lie(&mut rig, FREE, State::Host);
    let _ = rig.donate(0, FREE, GUEST_RAM + 9, 1);
}

#[test]
#[should_panic(expected = "fatal: OneOwner")]
fn a_frame_that_the_guest_maps_can_not_be_anothers() {
    let mut rig = rig();
    lie(&mut rig, FREE, State::Host);
    let _ = rig.share(0, GUEST_RAM, 1);
}

#[test]
#[should_panic(expected = "fatal: OneOwner")]
fn a_free_pool_frame_can_not_be_a_guests() {
    let mut rig = rig();
    // Whichever frame the pool gives next, its record says something else.
    let vm = rig.guests[0].vm();
    for frame in RAM..RAM + 16 {
        lie(&mut rig, frame, State::Private { vm, gfn: gfn(1), revocable: false });
    }
    let Rig { host, guests, m } = &mut rig;
    let _ = guests[0].take_frame(host, m);
}

#[test]
#[should_panic(expected = "fatal: OneOwner")]
fn a_fault_on_a_frame_that_is_the_hosts_but_not_mapped_is_el2s_own_mistake() {
    let mut rig = rig();
    lie(&mut rig, FREE, State::Host);
    let _ = rig.host.view(crate::Claim::new(crate::Ipa::new(FREE << 12).unwrap()), &rig.m);
}

#[test]
#[should_panic(expected = "fatal: OneOwner")]
fn a_free_pool_frame_can_not_be_of_another_pool() {
    let mut rig = rig();
    let vm = rig.guests[1].vm();
    for frame in RAM..RAM + 16 {
        lie(&mut rig, frame, State::Pool { vm, next: None });
    }
    let Rig { host, guests, m } = &mut rig;
    let _ = guests[0].take_frame(host, m);
}

/// Makes the host's page at `frame` map another one.
fn bend(rig: &mut Rig, frame: u64, to: u64) {
    let Form::Table(level2) = pte::form(rig.m.word(Entry::of(rig.host.root(), frame >> 18))) else { panic!("no RAM") };
    let Form::Table(level3) = pte::form(rig.m.word(Entry::of(level2, frame >> 9))) else { panic!("a block") };
    rig.m.words.insert(Entry::of(level3, frame), pte::host_page(pfn(to), Attributes::Combined));
}

#[test]
#[should_panic(expected = "fatal: OneOwner")]
fn a_host_page_that_maps_another_frame_is_not_taken_for_the_frame() {
    let mut rig = rig();
    bend(&mut rig, FREE + 3, FREE + 4);
    let _ = rig.donate(0, FREE + 3, GUEST_RAM + 3, 1);
}

#[test]
#[should_panic(expected = "fatal: OneOwner")]
fn a_host_page_that_maps_another_frame_is_not_taken_for_one_that_came_back() {
    let mut rig = rig();
    rig.share(0, GUEST_RAM, 1).unwrap();
    rig.die(0);
    bend(&mut rig, FREE, FREE + 4);
    let _ = rig.reclaim(0, FREE, 1);
}

#[test]
#[should_panic(expected = "fatal: OneOwner")]
fn a_guest_frame_that_maps_another_frame_is_not_unmapped_for_it() {
    let mut rig = rig();
    let vm = rig.guests[0].vm();
    lie(&mut rig, FREE, State::Private { vm, gfn: gfn(GUEST_RAM + 1), revocable: true });
    let _ = rig.revoke(0, FREE);
}

/// What `el2` stops with when a guest asks about its first frame while the ledger says this of it.
fn stops_with(said: State, ask: impl FnOnce(&mut Rig)) -> std::string::String {
    let mut rig = rig();
    lie(&mut rig, FREE, said);
    stops(&mut rig, ask)
}

fn stops(rig: &mut Rig, ask: impl FnOnce(&mut Rig)) -> std::string::String {
    let stopped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| ask(rig)));
    stopped.err().and_then(|why| why.downcast::<std::string::String>().ok()).map_or_else(Default::default, |why| *why)
}

#[test]
fn a_guest_moves_only_what_the_ledger_says_is_its_own_and_there() {
    let (mine, other) = (VmSlot::new(0).unwrap(), VmSlot::new(1).unwrap());
    let (right, wrong) = (gfn(GUEST_RAM), gfn(GUEST_RAM + 5));
    let revocable = false;
    let truth = State::Private { vm: mine, gfn: right, revocable };
    for (vm, gfn) in [(other, right), (mine, wrong), (other, wrong)] {
        let private = State::Private { vm, gfn, revocable };
        let shared = State::Shared { vm, gfn, revocable };
        assert_eq!(stops_with(private, |rig| _ = rig.share(0, GUEST_RAM, 1)), "fatal: OneOwner");
        let unshare = |rig: &mut Rig| {
            // The host's page is there: only the record is wrong.
            rig.share(0, GUEST_RAM, 1).unwrap();
            lie(rig, FREE, shared);
            _ = rig.unshare(0, GUEST_RAM, 1);
        };
        assert_eq!(stops_with(truth, unshare), "fatal: OneOwner");
    }
    assert_eq!(stops_with(truth, |rig| assert_eq!(rig.share(0, GUEST_RAM, 1), Ok(1))), "");
}

/// Maps a frame behind every check, after a walk to `first`, which leaves the table at hand.
fn map_unasked(rig: &mut Rig, first: Option<u64>, at: u64, frame: u64) {
    let Rig { host, guests, m } = rig;
    let (vm, body) = (guests[0].vm(), guests[0].body.as_mut().unwrap());
    let mut near = Near::default();
    if let Some(first) = first {
        body.space.leaf(gfn(first), &mut near, m);
    }
    let mut tables = Tables { pool: &mut body.pool, ledger: &mut host.ledger, vm };
    let mut words = [0];
    let mut batch = Batch::new(&mut words);
    batch.push(pfn(frame), gfn(at)).unwrap();
    for granule in batch.granules().iter() {
        body.space.map(granule, Access::ALL, host.space.how, &mut tables, &mut near, m);
    }
}

#[test]
fn nothing_is_mapped_over_a_page_or_over_what_was_revoked() {
    // Far from the walk before, and near to it.
    for first in [None, Some(GUEST_RAM + 7)] {
        let mut rig = rig();
        assert_eq!(stops(&mut rig, |rig| map_unasked(rig, first, GUEST_RAM, FREE + 9)), "fatal: OneOwner");
        rig = self::rig();
        rig.donate_with(0, FREE + 3, GUEST_RAM + 3, 1, true, &mut || false).unwrap();
        rig.revoke(0, FREE + 3).unwrap();
        assert_eq!(stops(&mut rig, |rig| map_unasked(rig, first, GUEST_RAM + 3, FREE + 9)), "fatal: OneOwner");
    }
}
