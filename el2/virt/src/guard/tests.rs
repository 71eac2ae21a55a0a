// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which calls are answered, and how; what an access then meets is tried above, where accesses are.

use std::collections::HashMap;

use freehold_mem::ports::{Broken, Fatal, Frames, TableMemory, Tlb};
use freehold_mem::verbs::host_donate_el2;
use freehold_mem::{Attributes, Claim, Entry, Gfn, Host, MemoryMap, Pfn, PfnRun, VmSlot, Vmid};

use super::*;

const RAM: u64 = 0x4_0000;
const CARVE_OUT: u64 = RAM + 512;
/// The guest's.
const GUEST_RAM: u64 = 0x8_0000;
const DEVICE: u64 = 0x9000;
const OTHER: u64 = 0x9001;

/// Tables, and nothing else: no VM here has a page.
#[derive(Default)]
struct Tables(HashMap<Entry, u64>);

impl TableMemory for Tables {
    fn load(&self, at: Entry) -> u64 {
        self.0.get(&at).copied().unwrap_or(0)
    }
    fn store(&mut self, at: Entry, descriptor: u64) {
        self.0.insert(at, descriptor);
    }
    fn clear(&mut self, frame: Pfn) {
        self.0.retain(|at, _| at.table() != frame);
    }
    fn publish_tables(&mut self) {}
}

impl Tlb for Tables {
    fn invalidate_host(&mut self) {}
    fn invalidate_vm(&mut self, _: Vmid) {}
}

impl Frames for Tables {
    fn scrub(&mut self, _: Pfn) {}
    fn settle_for_guest(&mut self, _: Pfn) {}
    fn settle_instructions(&mut self) {}
    fn copy_words(&self, _: Pfn, into: &mut [u64]) {
        into.fill(0);
    }
}

impl Fatal for Tables {
    fn fatal(&self, what: Broken) -> ! {
        panic!("{what:?}")
    }
}

/// A VM of this kind that runs, with one frame of RAM.
fn running(kind: Kind) -> Guest {
    let mut map = MemoryMap::new(32).unwrap();
    map.add_bank(PfnRun::decode(RAM, 1024).unwrap()).unwrap();
    map.add_carve_out(PfnRun::decode(CARVE_OUT, 512).unwrap()).unwrap();
    let (storage, mut m) = (std::vec![0; map.needs().words as usize], Tables::default());
    let tables = Pfn::new(CARVE_OUT).unwrap();
    let mut host = Host::build(map, tables, storage.leak(), Attributes::Combined, &mut m).unwrap();
    let mut guest = Guest::new(VmSlot::new(0).unwrap());
    let pool = Claim::new(PfnRun::decode(RAM, 4).unwrap());
    let _ = host_donate_el2::check_birth(&mut host, &mut guest, pool, kind, 32).unwrap().commit(&mut m);
    guest.declare_ram(Claim::new(GfnRun::decode(GUEST_RAM, 1).unwrap())).unwrap();
    guest.start().unwrap();
    guest
}

fn call(guest: &mut Guest, id: u32, x: [u64; 3]) -> Option<i64> {
    serve([id.into(), x[0], x[1], x[2]], guest)
}

/// Of the device, the other one, and RAM.
fn barred(guest: &Guest) -> [bool; 3] {
    [DEVICE, OTHER, GUEST_RAM].map(|gfn| guest.bars(Gfn::new(gfn)))
}

#[test]
fn a_guest_asks_enrols_opens_and_shuts() {
    let (ok, device) = (Some(guest::OK), [DEVICE << 12, 0, 0]);
    let mut vm = running(Kind::Protected);
    assert_eq!(call(&mut vm, guest::MMIO_GUARD_INFO, [0; 3]), Some(4096));
    assert_eq!(call(&mut vm, guest::MMIO_GUARD_MAP, device), ok);
    assert_eq!(barred(&vm), [false; 3], "nothing is guarded yet");
    assert_eq!(call(&mut vm, guest::MMIO_GUARD_ENROLL, [0; 3]), ok);
    assert_eq!(barred(&vm), [false, true, false]);
    assert_eq!(call(&mut vm, guest::MMIO_GUARD_UNMAP, device), ok);
    assert_eq!(barred(&vm), [true, true, false]);
    assert_eq!(call(&mut vm, guest::MMIO_GUARD_UNMAP, device), ok, "it is shut");
}

#[test]
fn a_word_that_must_be_zero_is_looked_at_beside_each_other_one() {
    let mut vm = running(Kind::Protected);
    let (wrong, device) = (Some(guest::INVALID_PARAMETER), DEVICE << 12);
    for x in [[8, 0, 0], [0, 8, 0], [0, 0, 8], [8, 8, 0], [8, 0, 8], [0, 8, 8], [8, 8, 8]] {
        for id in [guest::MMIO_GUARD_INFO, guest::MMIO_GUARD_ENROLL] {
            assert_eq!(call(&mut vm, id, x), wrong, "{id:#x} {x:x?}");
        }
        for id in [guest::MMIO_GUARD_MAP, guest::MMIO_GUARD_UNMAP] {
            assert_eq!(call(&mut vm, id, [device + x[0], x[1], x[2]]), wrong, "{id:#x} {x:x?}");
        }
    }
    for id in [guest::MMIO_GUARD_MAP, guest::MMIO_GUARD_UNMAP] {
        for x1 in [GUEST_RAM << 12, 1 << 40, !0xfff] {
            assert_eq!(call(&mut vm, id, [x1, 0, 0]), wrong, "{id:#x} {x1:#x}");
        }
    }
    assert_eq!(barred(&vm), [false; 3], "none of them enrolled it");
    assert_eq!(call(&mut vm, guest::MMIO_GUARD_ENROLL, [0; 3]), Some(guest::OK));
    assert_eq!(barred(&vm), [true, true, false], "none of them opened anything");
}

#[test]
fn whoever_has_no_such_calls_is_not_answered() {
    const ALL: [u32; 4] =
        [guest::MMIO_GUARD_INFO, guest::MMIO_GUARD_ENROLL, guest::MMIO_GUARD_MAP, guest::MMIO_GUARD_UNMAP];
    for kind in [Kind::Ordinary, Kind::Lazy] {
        let mut vm = running(kind);
        assert_eq!(ALL.map(|id| call(&mut vm, id, [0; 3])), [None; 4], "{kind:?}");
        assert_eq!(barred(&vm), [false; 3], "{kind:?}");
    }
    let mut nobody = Guest::new(VmSlot::new(0).unwrap());
    assert_eq!(call(&mut nobody, guest::MMIO_GUARD_INFO, [0; 3]), None);
    let mut vm = running(Kind::Protected);
    for id in [0, guest::MMIO_GUARD_INFO - 1, guest::MMIO_GUARD_UNMAP + 1, guest::PSCI_CPU_OFF] {
        assert_eq!(call(&mut vm, id, [0; 3]), None, "{id:#x}");
    }
    let beyond = u64::from(guest::MMIO_GUARD_INFO) | 1 << 32;
    assert_eq!(serve([beyond, 0, 0, 0], &mut vm), Some(4096), "an identifier is 32 bits");
}
