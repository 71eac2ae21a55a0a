// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host's tables and ledger right after boot.

use super::rig::{
    BEYOND, CARVE_OUT, DEVICE, HOLE, HOLE_FRAMES, IPA_BITS, NO_MAP, NO_MAP_FRAMES, RAM, RAM_FRAMES, RAM2, RAM2_FRAMES,
    Rig, map, pfn, run,
};
use crate::pte;
use crate::{
    Attributes, Claim, Entry, Gfn, Host, HostView, Ipa, MapError, MemoryMap, Pa, Pfn, PfnRun, Refused, State, VmSlot,
    Vmid,
};

fn view(rig: &Rig, frame: u64) -> HostView {
    rig.host.view(Claim::new(Ipa::new(frame << 12).unwrap()), &rig.m)
}

#[test]
fn every_address_has_its_meaning() {
    let rig = Rig::new();
    for frame in [
        0,
        DEVICE,
        HOLE - 1,
        HOLE + HOLE_FRAMES,
        RAM - 1,
        RAM,
        NO_MAP,
        RAM2 - 1,
        RAM2,
        RAM2 + 599,
        RAM2 + 600,
        BEYOND - 1,
    ] {
        assert_eq!(view(&rig, frame), HostView::Mapped, "{frame:#x}");
    }
    assert_eq!(view(&rig, HOLE), HostView::Hole);
    assert_eq!(view(&rig, HOLE + HOLE_FRAMES - 1), HostView::Hole);
    assert_eq!(view(&rig, CARVE_OUT), HostView::El2);
    assert_eq!(view(&rig, CARVE_OUT + 511), HostView::El2);
    assert_eq!(view(&rig, BEYOND), HostView::Outside);
}

#[test]
fn ram_stands_in_blocks_and_devices_can_not_be_executed() {
    let rig = Rig::new();
    let root = rig.host.root();
    assert_eq!(rig.m.word(Entry::of(root, 2)), 2 << 30 | 0x7fd | 1 << 54, "a gigabyte of devices");
    let pte::Form::Table(level2) = pte::form(rig.m.word(Entry::of(root, 1))) else { panic!("RAM needs a table") };
    assert_eq!(rig.m.word(Entry::of(level2, 0)), RAM << 12 | 0x7fd);
    assert_eq!(rig.m.word(Entry::of(level2, 7)), 0, "the carve-out");
    assert_eq!(rig.m.word(Entry::of(level2, 8)), (RAM + 8 * 512) << 12 | 0x7fd | 1 << 54);
    let pte::Form::Table(level3) = pte::form(rig.m.word(Entry::of(level2, RAM2 >> 9))) else { panic!("a mixed block") };
    assert_eq!(rig.m.word(Entry::of(level3, RAM2 - 1)), (RAM2 - 1) << 12 | 0x7ff | 1 << 54);
    assert_eq!(rig.m.word(Entry::of(level3, RAM2)), RAM2 << 12 | 0x7ff);
    assert_eq!(rig.host.counters().blocks, 7);
}

#[test]
fn forced_attributes_are_as_stage_1() {
    let mut map = map();
    map.add_carve_out(run(CARVE_OUT, 512)).unwrap();
    let mut m = super::fake::Fake::default();
    m.host_tables(run(CARVE_OUT, map.needs().table_frames));
    let mut words = std::vec![0; map.needs().words as usize];
    let host = Host::build(map, pfn(CARVE_OUT), &mut words, Attributes::Forced, &mut m).unwrap();
    let pte::Form::Table(level2) = pte::form(m.word(Entry::of(host.root(), 1))) else { panic!("no table") };
    assert_eq!(m.word(Entry::of(level2, 0)), RAM << 12 | 0x7dd);
    assert_eq!(pte::guest_page(pfn(1), Attributes::Forced, true, true), 0x1000 | 0x7db);
    assert_eq!(pte::guest_page(pfn(1), Attributes::Combined, true, true), 0x1000 | 0x7ff);
    assert_eq!(pte::guest_page(pfn(1), Attributes::Combined, false, false), 0x1000 | 0x77f | 1 << 54);
}

#[test]
fn the_ledger_knows_ram_and_nothing_else() {
    let rig = Rig::new();
    assert_eq!(rig.state(RAM), Some(State::Host));
    assert_eq!(rig.state(RAM2 + RAM2_FRAMES - 1), Some(State::Host));
    assert_eq!(rig.state(CARVE_OUT), Some(State::El2));
    assert_eq!(rig.state(NO_MAP), Some(State::NoMap));
    assert_eq!(rig.state(NO_MAP + NO_MAP_FRAMES), Some(State::Host));
    for frame in [0, DEVICE, HOLE, RAM - 1, RAM + RAM_FRAMES, RAM2 - 1, RAM2 + RAM2_FRAMES, BEYOND, (1 << 36) - 1] {
        assert_eq!(rig.state(frame), None, "{frame:#x}");
    }
}

#[test]
fn forty_bits_have_two_root_tables() {
    let mut map = MemoryMap::new(40).unwrap();
    map.add_bank(run(RAM, 1024)).unwrap();
    // High memory, under the second root table.
    map.add_bank(run(0x800_0000, 1024)).unwrap();
    map.add_carve_out(run(RAM, 512)).unwrap();
    let needs = map.needs();
    assert_eq!((needs.table_align, needs.table_frames), (2, 2 + 2 + 4));
    let mut m = super::fake::Fake::default();
    m.host_tables(run(RAM, needs.table_frames));
    let mut words = std::vec![0; needs.words as usize];
    assert_eq!(
        Host::build(map, pfn(RAM + 1), &mut words, Attributes::Combined, &mut m).err(),
        Some(MapError::WrongStorage),
        "the root is not aligned"
    );
    let host = Host::build(map, pfn(RAM), &mut words, Attributes::Combined, &mut m).unwrap();
    let at = |frame: u64| host.view(Claim::new(Ipa::new(frame << 12).unwrap()), &m);
    assert_eq!(at(0x800_0000), HostView::Mapped);
    assert_eq!(at(0xfff_ffff), HostView::Mapped);
    assert_eq!(at(0x1000_0000), HostView::Outside);
    assert_eq!(at(RAM), HostView::El2);
    assert_eq!(m.word(Entry::of(pfn(RAM + 1), 511)), 0xff_c000_0000 | 0x7fd | 1 << 54);
}

#[test]
fn what_can_not_be_described_is_refused() {
    assert_eq!(MemoryMap::new(31).err(), Some(MapError::BadSpace));
    assert_eq!(MemoryMap::new(44).err(), Some(MapError::BadSpace));
    let mut map = map();
    for (from, count) in [(RAM + 4095, 1), (RAM + 4095, 2), (RAM - 1, 2), (RAM - 1, RAM_FRAMES + 2)] {
        assert_eq!(map.add_bank(run(from, count)), Err(MapError::BanksMeet), "{from:#x} {count}");
    }
    assert_eq!(map.add_bank(run(BEYOND - 1, 2)), Err(MapError::BeyondSpace));
    assert_eq!(map.add_hole(run(RAM - 1, 2)), Err(MapError::HoleInRam));
    assert_eq!(map.add_hole(run(BEYOND, 1)), Err(MapError::BeyondSpace));
    assert_eq!(map.add_carve_out(run(CARVE_OUT + 1, 512)), Err(MapError::NotWholeBlocks));
    assert_eq!(map.add_carve_out(run(CARVE_OUT, 511)), Err(MapError::NotWholeBlocks));
    assert_eq!(map.add_carve_out(run(RAM + RAM_FRAMES, 512)), Err(MapError::NotRam));
    assert_eq!(map.add_carve_out(run(CARVE_OUT, 1024)), Err(MapError::NotRam));
    for bank in 0..14 {
        map.add_bank(run(0xa_0000 + bank * 1024, 512)).unwrap();
    }
    assert_eq!(map.add_bank(run(0xf_0000, 512)), Err(MapError::TooMany));
    for hole in 0..15 {
        map.add_hole(run(0x9_0000 + hole, 1)).unwrap();
    }
    assert_eq!(map.add_hole(run(0x9_1000, 1)), Err(MapError::TooMany));
}

#[test]
fn storage_that_does_not_fit_is_refused() {
    let mut m = super::fake::Fake::default();
    let mut map = map();
    let mut words = std::vec![0; map.needs().words as usize];
    let build = |map: MemoryMap, at, words: &mut [u64], m: &mut super::fake::Fake| {
        Host::build(map, pfn(at), words, Attributes::Combined, m).err()
    };
    assert_eq!(build(map, CARVE_OUT, &mut words[..], &mut m), Some(MapError::WrongStorage), "no carve-out");
    map.add_carve_out(run(CARVE_OUT, 512)).unwrap();
    let short = words.len() - 1;
    assert_eq!(build(map, CARVE_OUT, &mut words[..short], &mut m), Some(MapError::WrongStorage));
    let end = CARVE_OUT + 512 - map.needs().table_frames + 1;
    assert_eq!(build(map, end, &mut words[..], &mut m), Some(MapError::WrongStorage), "sticks out");
    assert_eq!(IPA_BITS, map.ipa_bits());
}

#[test]
fn banks_may_share_a_block() {
    let mut map = MemoryMap::new(32).unwrap();
    map.add_bank(run(RAM, 700)).unwrap();
    map.add_bank(run(RAM + 800, 224 + 512)).unwrap();
    map.add_carve_out(run(RAM + 1024, 512)).unwrap();
    let needs = map.needs();
    assert_eq!(needs.table_frames, 1 + 1 + 3, "three blocks hold RAM");
    let mut m = super::fake::Fake::default();
    m.host_tables(run(RAM + 1024, needs.table_frames));
    let mut words = std::vec![0; needs.words as usize];
    let host = Host::build(map, pfn(RAM + 1024), &mut words, Attributes::Combined, &mut m).unwrap();
    assert_eq!((host.counters().blocks, host.counters().tables), (1, 1));
    assert_eq!(host.ledger().state(pfn(RAM + 750)), None);
    assert_eq!(host.ledger().state(pfn(RAM + 800)), Some(State::Host));
}

#[test]
fn no_map_takes_from_the_host_only() {
    let mut rig = Rig::new();
    rig.host.mark_no_map(run(CARVE_OUT - 1, RAM2 + 2 - CARVE_OUT), &rig.m);
    assert_eq!(rig.state(CARVE_OUT - 2), Some(State::Host));
    assert_eq!(rig.state(CARVE_OUT - 1), Some(State::NoMap));
    assert_eq!(rig.state(CARVE_OUT), Some(State::El2), "what is el2's stays so");
    assert_eq!(rig.state(CARVE_OUT + 511), Some(State::El2));
    assert_eq!((rig.state(RAM2), rig.state(RAM2 + 1)), (Some(State::NoMap), Some(State::Host)));
    rig.check();
}

#[test]
fn numbers_have_their_limits() {
    assert_eq!(PfnRun::decode(1 << 36, 1), Err(Refused::NotMemory));
    assert_eq!(PfnRun::decode((1 << 36) - 1, 2), Err(Refused::NotMemory));
    assert!(PfnRun::decode((1 << 36) - 1, 1).is_ok());
    assert_eq!((Pfn::new(1 << 36), Gfn::new(1 << 28), Pa::new(1 << 48)), (None, None, None));
    assert_eq!((Ipa::new(1 << 48), pfn((1 << 36) - 1).add(1), VmSlot::new(254)), (None, None, None));
    assert_eq!(Ipa::new(1 << 40).unwrap().gfn(), None);
    assert_eq!(VmSlot::new(253).unwrap().vmid().raw(), 254);
    assert_eq!((Pa::new(0x5fff).unwrap().pfn(), Vmid::HOST.raw()), (pfn(5), 0));
}
