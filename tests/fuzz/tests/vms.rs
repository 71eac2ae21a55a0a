// SPDX-License-Identifier: MIT OR Apache-2.0
//! The life of VMs and vCPUs in `freehold_virt` against a naive book of it, over long random sequences.

use core::sync::atomic::AtomicU64;

use freehold_virt::Refused;
use freehold_virt::handle::{Handle, Slot, VcpuIndex};
use freehold_virt::vm::{Claimed, Phase, Purpose, Reserved, VmCell, Vms};
use proptest::collection::vec;
use proptest::prelude::*;

const SLOTS: usize = 3;

/// What a vCPU is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Vcpu {
    Absent,
    Ready,
    Parked,
    Crashed,
}

/// One slot, as it should be.
#[derive(Debug)]
struct Naive {
    handle: Option<Handle>,
    dying: bool,
    vcpu: Vcpu,
    kicked: bool,
    /// Handles of VMs that are gone.
    gone: Vec<Handle>,
}

/// A vCPU that is claimed, and of which slot.
type Held<'a> = Option<(usize, Claimed<'a, AtomicU64>)>;

fn name(naive: &Naive, old: bool) -> Handle {
    let stale = naive.gone.last().copied().filter(|_| old || naive.handle.is_none());
    stale.or(naive.handle).unwrap_or(Handle::new(Slot::new(9).unwrap(), freehold_virt::handle::Generation::FIRST))
}

/// What the state of a slot says to a handle.
fn known(naive: &Naive, handle: Handle) -> Result<(), Refused> {
    match naive.handle {
        Some(own) if own == handle => Ok(()),
        _ if naive.gone.contains(&handle) => Err(Refused::StaleHandle),
        _ => Err(Refused::WrongHandle),
    }
}

fn live(naive: &Naive, handle: Handle) -> Result<(), Refused> {
    known(naive, handle)?;
    if naive.dying { Err(Refused::WrongState) } else { Ok(()) }
}

fn may_claim(naive: &Naive, handle: Handle, purpose: Purpose, busy: bool) -> Result<(), Refused> {
    live(naive, handle)?;
    match (naive.vcpu, purpose) {
        (Vcpu::Absent, _) => Err(Refused::WrongVcpu),
        _ if busy => Err(Refused::VcpuBusy),
        (_, Purpose::Registers) => Ok(()),
        (Vcpu::Crashed, _) => Err(Refused::WrongState),
        (Vcpu::Ready, Purpose::Answer) => Err(Refused::NoRequest),
        (Vcpu::Ready | Vcpu::Parked, _) => Ok(()),
    }
}

/// Creates a VM in the first slot that is free.
fn create(vms: Vms<'_, AtomicU64>, naive: &mut [Naive]) {
    let free = naive.iter_mut().find(|slot| slot.handle.is_none());
    let made = vms.reserve().map(Reserved::publish);
    match free {
        None => assert_eq!(made, Err(Refused::NoSlot)),
        Some(slot) => {
            let handle = made.unwrap();
            assert!(!slot.gone.contains(&handle), "a handle names a second VM");
            *slot = Naive {
                handle: Some(handle),
                vcpu: Vcpu::Absent,
                kicked: false,
                dying: false,
                gone: slot.gone.clone(),
            };
        }
    }
}

fn step<'a>(vms: Vms<'a, AtomicU64>, naive: &mut [Naive], held: &mut Held<'a>, [verb, at, how]: [u8; 3]) {
    let index = usize::from(at) % SLOTS;
    let busy = held.as_ref().is_some_and(|(slot, _)| *slot == index);
    let slot = &mut naive[index];
    let handle = name(slot, how & 7 == 0);
    let purpose = [Purpose::Run, Purpose::Registers, Purpose::Answer][usize::from(how >> 3) % 3];
    match verb % 9 {
        0 => create(vms, naive),
        1 => {
            let can = live(slot, handle).and(if slot.vcpu == Vcpu::Absent { Ok(()) } else { Err(Refused::VcpuExists) });
            assert_eq!(vms.check_vcpu(handle, VcpuIndex::BOOT), can);
            vms.create_vcpu(handle, VcpuIndex::BOOT, 7 + index as u64);
            if can.is_ok() {
                (slot.vcpu, slot.kicked) = (Vcpu::Ready, false);
            }
        }
        2 | 3 if held.is_none() => {
            let claim = vms.claim(handle, VcpuIndex::BOOT, purpose);
            assert_eq!(claim.as_ref().map(|_| ()).map_err(|why| *why), may_claim(slot, handle, purpose, false));
            *held = claim.ok().map(|claim| (index, claim));
        }
        2 | 3 => {
            let again = vms.claim(handle, VcpuIndex::BOOT, purpose).map(|_| ());
            assert_eq!(again, may_claim(slot, handle, purpose, busy));
        }
        4 | 5 => {
            let Some((index, mut claim)) = held.take() else { return };
            let slot = &mut naive[index];
            assert_eq!(claim.block(), 7 + index as u64);
            assert_eq!(claim.take_kick(), std::mem::take(&mut slot.kicked), "a kick is seen once");
            assert_eq!(claim.is_fresh(), slot.vcpu == Vcpu::Ready);
            match how & 3 {
                0 => {}
                1 => (claim.crashed(), slot.vcpu = Vcpu::Crashed).0,
                _ => (claim.ran(), slot.vcpu = Vcpu::Parked).0,
            }
        }
        6 => {
            let can = live(slot, handle).and(if slot.vcpu == Vcpu::Absent { Err(Refused::WrongVcpu) } else { Ok(()) });
            assert_eq!(vms.kick(handle, VcpuIndex::BOOT), can);
            slot.kicked |= can.is_ok();
        }
        7 => {
            let can = known(slot, handle).and(match (slot.dying, busy) {
                (true, _) => Err(Refused::WrongState),
                (false, true) => Err(Refused::VcpuBusy),
                (false, false) => Ok(()),
            });
            assert_eq!(vms.destroy(handle), can);
            slot.dying |= can.is_ok();
        }
        _ => {
            let can = known(slot, handle).and(if slot.dying { Ok(()) } else { Err(Refused::WrongState) });
            assert_eq!(vms.free(handle), can);
            if can.is_ok() {
                slot.gone.push(handle);
                (slot.handle, slot.dying) = (None, false);
            }
        }
    }
}

fn play(steps: &[[u8; 3]]) {
    let cells: [VmCell<AtomicU64>; SLOTS] = core::array::from_fn(|_| VmCell::new(|| AtomicU64::new(0)));
    let vms = Vms::new(&cells);
    let new = || Naive { handle: None, dying: false, vcpu: Vcpu::Absent, kicked: false, gone: Vec::new() };
    let mut naive: [Naive; SLOTS] = core::array::from_fn(|_| new());
    let mut held = None;
    for bytes in steps {
        step(vms, &mut naive, &mut held, *bytes);
        for slot in &naive {
            let Some(handle) = slot.handle else { continue };
            assert_eq!(vms.phase(handle), Ok(if slot.dying { Phase::Dying } else { Phase::Live }));
        }
        let alive: Vec<Handle> = naive.iter().filter_map(|slot| slot.handle).collect();
        assert_eq!(vms.handles().collect::<Vec<_>>(), alive);
        assert_eq!(vms.count(), alive.len() as u64);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn vms_live_as_the_book_says(steps in vec(any::<[u8; 3]>(), 0..200)) {
        play(&steps);
    }
}
