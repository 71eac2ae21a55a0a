// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether the machine is what the oracle says: ledger, tables, TLB, contents, VMs and vCPUs, one by one.

use core::fmt::Debug;

use freehold_mem::{GuestView, Kind, Life, State as Ledger};
use freehold_oracle::{Content, Mark, Owner, Page, Pending, State, Vcpu, VcpuLife, World};
use freehold_virt::exit::Wish;
use freehold_virt::vcpu::Pending as Waits;
use freehold_virt::vm::VcpuPhase;

use crate::label::Label;
use crate::picture::{FrameView, Picture, VcpuView, VmView};
use crate::tlb::{ELSEWHERE, Rights};

/// Compares a picture with a world whose first pages are the last frames of `el2`'s, and whose others are the host's.
///
/// # Errors
/// The first difference.
pub fn agree<const P: usize, const V: usize, const U: usize, const G: usize, const C: usize>(
    picture: &Picture,
    world: &World<P, V, U, G, C>,
) -> Result<(), String> {
    let first = first_of(world);
    for (frame, number) in picture.frames.iter().zip(&picture.watched) {
        let pfn = first + number;
        frame_agrees(frame, &world.page(pfn), |slot| picture.vms.get(usize::from(slot)).and_then(Option::as_ref))
            .map_err(|what| format!("frame {pfn:x}: {what}"))?;
    }
    let foreign = world.frames().filter(|(pfn, page)| *pfn >= first && !page.host_reaches()).count() as u64;
    same("frames out of the host's reach", picture.foreign, foreign)?;
    for (slot, vm) in (0..).zip(&picture.vms) {
        vm_agrees(vm.as_ref(), slot, world, picture).map_err(|what| format!("VM {slot}: {what}"))?;
    }
    Ok(())
}

/// The first frame that is not `el2`'s.
fn first_of<const P: usize, const V: usize, const U: usize, const G: usize, const C: usize>(
    world: &World<P, V, U, G, C>,
) -> u64 {
    world.frames().find(|(_, page)| page.owner != Owner::El2).map_or(world.first_pfn, |(pfn, _)| pfn)
}

fn same<T: PartialEq + Debug>(what: &str, real: T, said: T) -> Result<(), String> {
    if real == said { Ok(()) } else { Err(format!("{what}: el2 {real:?}, oracle {said:?}")) }
}

fn frame_agrees<'v>(frame: &FrameView, page: &Page, vm: impl Fn(u8) -> Option<&'v VmView>) -> Result<(), String> {
    let said = match page.owner {
        Owner::NotMemory => None,
        Owner::NoMap => Some(Ledger::NoMap),
        Owner::El2 => Some(Ledger::El2),
        Owner::Host if page.borrows != 0 => Some(Ledger::Lent(page.borrows.into())),
        Owner::Host => Some(Ledger::Host),
        Owner::Guest { slot, gfn } => {
            let vm = freehold_mem::VmSlot::new(slot).ok_or("no such slot")?;
            let gfn = freehold_mem::Gfn::new(gfn.into()).ok_or("no such guest frame")?;
            let revocable = page.revocable;
            Some(if page.lent { Ledger::Shared { vm, gfn, revocable } } else { Ledger::Private { vm, gfn, revocable } })
        }
        // Which frame of a pool is free, and where its list goes on, is el2's own business.
        Owner::Pool { slot } => match frame.state {
            Some(Ledger::Pool { vm, .. }) if vm.raw() == slot => frame.state,
            _ => return Err(format!("owner: el2 {:?}, oracle {:?}", frame.state, page.owner)),
        },
    };
    same("owner", frame.state, said)?;
    same("the host's tables map it", frame.host_maps, page.host_reaches())?;
    same("the host may reach it", frame.host_reaches, page.host_reaches())?;
    let secret_of = |slot: u8| vm(slot).map(|vm| Label::of_vm(vm.handle));
    let good = match (page.content, page.owner) {
        (_, Owner::Pool { .. } | Owner::NotMemory | Owner::El2) => true,
        (Content::Public | Content::Initial, _) => frame.label == Label::Host,
        (Content::Zero, _) => frame.label == Label::Zero,
        (Content::Secret(slot), _) => Some(frame.label) == secret_of(slot),
        (Content::Shared, Owner::Guest { slot, .. }) => {
            frame.label == Label::Host || Some(frame.label) == secret_of(slot)
        }
        (Content::Shared, Owner::Host | Owner::NoMap) => false,
    };
    if good { Ok(()) } else { Err(format!("it holds {:?}, oracle says {:?}", frame.label, page.content)) }
}

fn vm_agrees<const P: usize, const V: usize, const U: usize, const G: usize, const C: usize>(
    view: Option<&VmView>,
    slot: u8,
    world: &World<P, V, U, G, C>,
    picture: &Picture,
) -> Result<(), String> {
    let vm = world.vm(slot);
    same("it is there", view.is_some(), vm.exists())?;
    let Some(view) = view else { return Ok(()) };
    let life = match vm.life {
        freehold_oracle::Life::Free => Life::Free,
        freehold_oracle::Life::Open => Life::Building,
        freehold_oracle::Life::Ran => Life::Running,
        freehold_oracle::Life::Dying => Life::Dying,
    };
    same("life", view.life, life)?;
    same("frames of its own", view.owned, vm.guest.into())?;
    same("frames that it borrows", view.borrowed, vm.borrowed.into())?;
    same("it is protected", view.kind.map(|kind| kind != Kind::Ordinary), Some(vm.protected))?;
    if life == Life::Dying {
        return Ok(());
    }
    same("free pool frames", view.pool_free, vm.free)?;
    same("an interrupt controller", view.gic, vm.gic)?;
    let declared = || (0..world.machine().ranges).map_while(|n| world.range(slot, n));
    if !view.ram.iter().copied().eq(declared()) {
        return Err(format!("RAM: el2 {:x?}, oracle {:x?}", view.ram, declared().collect::<Vec<_>>()));
    }
    for (vcpu, index) in view.vcpus.iter().zip(0..) {
        vcpu_agrees(vcpu.as_ref(), &world.vcpu(slot, index))?;
    }
    let places = view.gfns.iter().zip(&view.reaches).zip(&view.rights).zip(&view.barred);
    for (gfn, (((found, reaches), rights), barred_there)) in picture.places.iter().copied().zip(places) {
        let is_ram = declared().any(|(first, count)| gfn.checked_sub(first).is_some_and(|at| at < count));
        let backing = world.backing(slot, gfn);
        let all = Rights { write: true, execute: true };
        let lent = match world.mark(slot, gfn) {
            Mark::Borrow { pfn, write, exec } => Some((pfn, Rights { write, execute: exec })),
            Mark::None | Mark::Poisoned | Mark::Device => None,
        };
        let agrees = match *found {
            GuestView::Device => !is_ram && backing.is_none() && lent.is_none(),
            GuestView::Absent(_) => is_ram && backing.is_none() && world.mark(slot, gfn) == Mark::None,
            GuestView::Poisoned(_) => backing.is_none() && world.mark(slot, gfn) == Mark::Poisoned,
            GuestView::Mapped(frame) => backing.map(|pfn| (pfn, all)).or(lent) == rights.map(|may| (frame.raw(), may)),
        };
        if !agrees {
            let mark = world.mark(slot, gfn);
            return Err(format!(
                "guest frame {gfn:x}: el2 {found:x?} {rights:?}, oracle {backing:x?} {mark:x?}, RAM {is_ram}"
            ));
        }
        let barred = vm.guarded && !is_ram && world.mark(slot, gfn) != Mark::Device;
        same("what its guest lets nobody see", *barred_there, barred)?;
        let first = first_of(world);
        let number = |pfn: u64| picture.watched.iter().position(|at| first + at == pfn);
        let set =
            backing.or(lent.map(|(pfn, _)| pfn)).map_or(0, |pfn| number(pfn).map_or(ELSEWHERE, |number| 1 << number));
        same("frames that its CPUs may reach", *reaches, set)?;
    }
    Ok(())
}

fn vcpu_agrees(view: Option<&VcpuView>, vcpu: &Vcpu) -> Result<(), String> {
    let phase = match (vcpu.life, vcpu.running) {
        (_, true) => VcpuPhase::Claimed,
        (VcpuLife::Absent, false) => VcpuPhase::Absent,
        (VcpuLife::Ready, false) => VcpuPhase::Ready,
        (VcpuLife::Ran | VcpuLife::Off, false) => VcpuPhase::Parked,
        (VcpuLife::Crashed, false) => VcpuPhase::Crashed,
    };
    same("vCPU", view.map_or(VcpuPhase::Absent, |view| view.phase), phase)?;
    let Some(view) = view.filter(|view| matches!(view.phase, VcpuPhase::Ready | VcpuPhase::Parked)) else {
        return Ok(());
    };
    same("kicked", view.kicked, vcpu.kicked)?;
    same("it waits for", waits_of(view, vcpu), vcpu.pending)
}

/// A vCPU's life as far as its phase tells it; none while it is on a CPU.
pub(crate) const fn life_of(phase: VcpuPhase) -> Option<VcpuLife> {
    match phase {
        VcpuPhase::Absent => Some(VcpuLife::Absent),
        VcpuPhase::Ready => Some(VcpuLife::Ready),
        VcpuPhase::Parked => Some(VcpuLife::Ran),
        VcpuPhase::Crashed => Some(VcpuLife::Crashed),
        VcpuPhase::Claimed => None,
    }
}

/// What a vCPU waits for, in the oracle's words, which has it like `said`.
pub(crate) fn waits_of(view: &VcpuView, said: &Vcpu) -> Pending {
    let kind = |wish| match wish {
        Wish::Share => freehold_oracle::Kind::Share,
        Wish::Unshare => freehold_oracle::Kind::Unshare,
        Wish::Relinquish => freehold_oracle::Kind::Relinquish,
    };
    let short = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    match (view.pending, said.pending) {
        (Waits::None, _) => Pending::None,
        // Of which width a load is does not show; its value does, when it is answered.
        (Waits::Load(_), Pending::Load { size }) => Pending::Load { size },
        (Waits::Load(_), _) => Pending::Load { size: 0 },
        (Waits::Request(request), _) => {
            Pending::Request { kind: kind(request.wish), gfn: short(request.first.raw()), count: short(request.count) }
        }
        (Waits::Accepted { wish, done }, _) => Pending::Answer { kind: kind(wish), count: short(done) },
    }
}
