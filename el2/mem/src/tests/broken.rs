// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where ledger and tables disagree, `el2` stops rather than hand out a frame twice (I1).

use super::rig::{GUEST_RAM, RAM, Rig, pfn};
use crate::{Kind, State};

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
        lie(&mut rig, frame, State::Private { vm, gfn: super::rig::gfn(1), revocable: false });
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
