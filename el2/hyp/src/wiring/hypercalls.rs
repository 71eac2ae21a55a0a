// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine under the handlers of [`crate::calls`].

use super::{Kind, counters, statics};
use crate::calls::{self, GuestSlot, Loaded, Platform};
use core::marker::PhantomData;
use core::sync::atomic::{AtomicU64, Ordering};
use freehold_arch::gicr;
use freehold_arch::lock::Ticket;
use freehold_arch::percpu::this_cpu;
use freehold_arch::phys;
use freehold_arch::random;
use freehold_arch::switch::{self, GuestContext};
use freehold_arch::vcpu;
use freehold_arch::vectors::HostFrame;
use freehold_mem::lock::Permit;
use freehold_mem::{Pfn, VmSlot};
use freehold_virt::board::Board;
use freehold_virt::handle::Slot;
use freehold_virt::setting::Setting;
use freehold_virt::sha256::Sha256;
use freehold_virt::sysreg::RawIds;
use freehold_virt::timer::Timer;
use freehold_virt::vcpu::{Answer, Stop, Vcpu};
use freehold_virt::vgic::Lists;
use freehold_virt::vm::{Claimed, Vms};

const _: () = assert!(freehold_arch::percpu::MAX_CPUS <= calls::MAX_CPUS, "every CPU's turns are kept");

/// Serves one call. The program counter is behind it already.
#[inline(always)]
pub(crate) fn handle<K: Kind>(frame: &mut HostFrame) {
    calls::serve(&K::PLATFORM, frame.registers());
}

/// All VMs.
pub(crate) fn vms() -> Vms<'static, AtomicU64> {
    Vms::new(&statics::VMS)
}

/// Slot number `index`, without a VM.
pub(crate) fn empty_slot(index: usize) -> GuestSlot {
    match u8::try_from(index).ok().and_then(VmSlot::new) {
        Some(slot) => GuestSlot::new(slot),
        None => freehold_arch::fatal::defect("a VM slot without a VMID"),
    }
}

/// This machine.
#[derive(Debug)]
pub struct El2<K>(PhantomData<K>);

impl<K> El2<K> {
    /// There is one.
    pub const HERE: Self = Self(PhantomData);
}

impl<'a> Loaded<'a> for vcpu::Loaded<'a> {
    type Registers = GuestContext;

    fn claim(&mut self) -> &mut Claimed<'a, AtomicU64> {
        self.claim()
    }

    fn parts(&mut self) -> (&mut GuestContext, &mut Vcpu) {
        self.parts()
    }

    fn setting(&self) -> Option<&Setting> {
        self.setting()
    }

    fn settle(&mut self, setting: Setting) {
        self.settle(setting);
    }

    fn reset(&mut self) {
        self.reset();
    }

    fn timer(&self) -> Timer {
        self.timer()
    }

    fn leave(&mut self) {
        self.leave();
    }

    fn lists(&mut self) -> &mut Lists {
        self.lists()
    }

    fn run(&mut self, flushes: bool, answer: impl Answer<GuestContext>) -> Stop {
        self.run(flushes, answer)
    }
}

impl<K: Kind> Platform for El2<K> {
    type Machine = K::Machine;
    type HostLock = K::HostLock;
    type GuestLock = K::GuestLock;
    type BoardLock = Ticket<Board>;
    type Loaded<'a> = vcpu::Loaded<'a>;

    fn machine(&self) -> K::Machine {
        K::MACHINE
    }

    fn world(&self) -> &statics::Locks<K> {
        &statics::machine::<K>().world
    }

    fn board(&self, slot: Slot) -> &Ticket<Board> {
        match statics::BOARDS.get(slot.index()) {
            Some(board) => board,
            None => freehold_arch::fatal::defect("a VM slot without a board"),
        }
    }

    fn vms(&self) -> Vms<'_, AtomicU64> {
        vms()
    }

    fn serves_vms(&self) -> bool {
        statics::machine::<K>().serves_vms
    }

    fn is_closing(&self) -> bool {
        statics::CLOSING.load(Ordering::Acquire) != 0
    }

    fn set_closing(&self, closing: bool) {
        // One that goes takes one that came away: around the end of the numbers is one less.
        statics::CLOSING.fetch_add(if closing { 1 } else { u32::MAX }, Ordering::AcqRel);
    }

    fn cpu(&self) -> usize {
        this_cpu().index()
    }

    fn now(&self) -> u64 {
        vcpu::now()
    }

    fn list_registers(&self) -> usize {
        vcpu::list_registers()
    }

    fn interrupt(&self, cpus: u32) {
        gicr::kick(cpus);
    }

    fn forget_interrupt(&self) {
        gicr::forget_kick();
    }

    fn host_is_wanted(&self) -> bool {
        vcpu::host_is_wanted()
    }

    fn hash_frame(&self, hash: &mut Sha256, frame: Pfn) {
        phys::hash(hash, frame);
    }

    fn create_vcpu(&self, frame: Pfn) -> u64 {
        vcpu::create(frame)
    }

    fn open<'a>(&'a self, claim: Claimed<'a, AtomicU64>) -> vcpu::Loaded<'a> {
        vcpu::Loaded::open(claim)
    }

    fn host_is_busy(&self) -> bool {
        switch::host_is_busy()
    }

    fn raw_ids(&self) -> RawIds {
        vcpu::raw_ids()
    }

    fn has_random(&self) -> bool {
        random::is_there()
    }

    fn random(&self) -> Option<u64> {
        random::draw()
    }

    fn counter(&self, permit: &mut Permit, counter: u64, index: u64) -> Option<u64> {
        counters::counter::<K>(permit, counter, index)
    }
}
