// SPDX-License-Identifier: MIT OR Apache-2.0
//! The platform of the shipped el2, with somebody who hears what the machine tells it.

use core::marker::PhantomData;
use core::sync::atomic::AtomicU64;
use freehold_el2::calls::{Loaded, Platform, Stop};
use freehold_mem::Pfn;
use freehold_mem::lock::{Mutex, Permit, World};
use freehold_virt::board::Board;
use freehold_virt::handle::{MAX_VMS, Slot};
use freehold_virt::registers::Registers;
use freehold_virt::setting::Setting;
use freehold_virt::sha256::Sha256;
use freehold_virt::sysreg::RawIds;
use freehold_virt::timer::Timer;
use freehold_virt::vcpu::{Answer, Pending, Vcpu};
use freehold_virt::vgic::Lists;
use freehold_virt::vm::{Claimed, Vms};

use crate::given::Found;
use crate::turn::Seen;

/// Who hears.
pub trait Listener {
    /// Whether an interrupt waited for the host when el2 looked.
    fn looked(&self, wanted: bool);
    /// el2 was told that the machine closes, or not.
    fn closing(&self, closing: bool);
    /// el2 asked whether the host can be left, and it can not.
    fn busy(&self);
    /// Whether the address that EL1 is told of an exception is to be another one. Never, but in a control.
    fn misleads(&self) -> bool;
    /// A vCPU is about to run, in this, with this in x0 to x3, and finds this.
    fn entering(&self, setting: Option<&Setting>, x: [u64; 4], found: &Found);
    /// It stopped, and this can be seen of it.
    fn left(&self, stop: &Stop, seen: &Seen);
    /// The host's own tables are in force here again.
    fn host_is_back(&self);
    /// A vCPU was claimed that waits for this.
    fn opened(&self, pending: Pending);
    /// Its claim is about to go, and it waits for this; with this in x0 to x3, and it will find this.
    fn gives_back(&self, pending: Pending, x: [u64; 4], found: &Found);
}

/// The platform, who hears, and the VMs' boards, which stand behind other locks here.
#[derive(Debug)]
pub struct Watched<P, L: 'static, B: 'static> {
    platform: P,
    listener: &'static L,
    boards: &'static [B; MAX_VMS],
}

impl<P, L, B> Watched<P, L, B> {
    /// Has `listener` hear what `platform` says.
    pub const fn new(platform: P, listener: &'static L, boards: &'static [B; MAX_VMS]) -> Self {
        Self { platform, listener, boards }
    }
}

/// A claimed vCPU.
#[derive(Debug)]
pub struct Open<'a, O: Loaded<'a>, L: Listener + 'static> {
    open: O,
    listener: &'static L,
    /// The guest is in place of the host since it ran.
    is_here: bool,
    claim: PhantomData<&'a ()>,
}

impl<'a, O: Loaded<'a>, L: Listener + 'static> Drop for Open<'a, O, L> {
    fn drop(&mut self) {
        self.leave();
        let (x, found) = (arguments(&mut self.open), found(&mut self.open));
        self.listener.gives_back(self.open.parts().1.pending(), x, &found);
    }
}

impl<'a, O: Loaded<'a>, L: Listener + 'static> Loaded<'a> for Open<'a, O, L> {
    type Registers = O::Registers;

    fn claim(&mut self) -> &mut Claimed<'a, AtomicU64> {
        self.open.claim()
    }

    fn parts(&mut self) -> (&mut O::Registers, &mut Vcpu) {
        self.open.parts()
    }

    fn reset(&mut self) {
        self.open.reset();
    }

    fn timer(&self) -> Timer {
        self.open.timer()
    }

    fn leave(&mut self) {
        self.open.leave();
        if core::mem::take(&mut self.is_here) {
            self.listener.host_is_back();
        }
    }

    fn lists(&mut self) -> &mut Lists {
        self.open.lists()
    }

    fn setting(&self) -> Option<&Setting> {
        self.open.setting()
    }

    fn settle(&mut self, setting: Setting) {
        self.open.settle(setting);
    }

    fn run(&mut self, flushes: bool, answer: impl Answer<O::Registers>) -> Stop {
        self.is_here = true;
        if self.listener.misleads() {
            self.open.parts().0.kept(FAR).into_iter().for_each(|far| *far ^= 8);
        }
        let (x, found) = (arguments(&mut self.open), found(&mut self.open));
        self.listener.entering(self.open.setting(), x, &found);
        let stop = self.open.run(flushes, answer);
        self.listener.left(&stop, &seen(&mut self.open, &stop));
        stop
    }
}

/// x0 to x3.
fn arguments<'a>(open: &mut impl Loaded<'a>) -> [u64; 4] {
    let (registers, _) = open.parts();
    [0, 1, 2, 3].map(|n| registers.x(n))
}

/// Where these are among the words that are kept: the order of the host's ABI, from `REG_EL1` on.
const VBAR: usize = 7;
const ESR: usize = 8;
const FAR: usize = 9;
const ELR: usize = 20;
const SPSR: usize = 21;

/// What a vCPU finds when it goes on. Of EL1's registers true after an exception that el2 gave it, or once it has left.
fn found<'a>(open: &mut impl Loaded<'a>) -> Found {
    let (registers, _) = open.parts();
    let [vbar, esr, far, elr, spsr] = [VBAR, ESR, FAR, ELR, SPSR].map(|n| registers.kept(n).map_or(0, |word| *word));
    Found { pc: registers.pc(), pstate: registers.pstate(), vbar, esr, far, elr, spsr }
}

/// What can be seen of a vCPU that stopped.
fn seen<'a>(open: &mut impl Loaded<'a>, stop: &Stop) -> Seen {
    let esr = if let Stop::Trap(trap) = stop { trap.esr } else { 0 };
    let x = arguments(open);
    let virtual_timer = open.timer();
    let (registers, vcpu) = open.parts();
    let deadlines = [virtual_timer, *vcpu.physical_timer()].map(|timer| match timer.registers() {
        // Enabled and not masked.
        (1, compare) => compare,
        _ => 0,
    });
    let at = [registers.pc(), registers.pstate()];
    Seen { x, at, stored: registers.x((esr >> 16 & 31) as u8), deadlines }
}

impl<P: Platform, L: Listener + 'static, B: Mutex<Value = Board>> Platform for Watched<P, L, B> {
    type Machine = P::Machine;
    type HostLock = P::HostLock;
    type GuestLock = P::GuestLock;
    type BoardLock = B;
    type Loaded<'a>
        = Open<'a, P::Loaded<'a>, L>
    where
        Self: 'a;

    fn machine(&self) -> P::Machine {
        self.platform.machine()
    }

    fn world(&self) -> &World<P::HostLock, P::GuestLock, MAX_VMS> {
        self.platform.world()
    }

    fn vms(&self) -> Vms<'_, AtomicU64> {
        self.platform.vms()
    }

    fn board(&self, slot: Slot) -> &B {
        // Slots are numbered below it.
        &self.boards[slot.index()]
    }

    fn now(&self) -> u64 {
        self.platform.now()
    }

    fn list_registers(&self) -> usize {
        self.platform.list_registers()
    }

    fn interrupt(&self, cpus: u32) {
        self.platform.interrupt(cpus);
    }

    fn forget_interrupt(&self) {
        self.platform.forget_interrupt();
    }

    fn serves_vms(&self) -> bool {
        self.platform.serves_vms()
    }

    fn is_closing(&self) -> bool {
        let closing = self.platform.is_closing();
        self.listener.closing(closing);
        closing
    }

    fn set_closing(&self, closing: bool) {
        self.platform.set_closing(closing);
    }

    fn cpu(&self) -> usize {
        self.platform.cpu()
    }

    fn host_is_wanted(&self) -> bool {
        let wanted = self.platform.host_is_wanted();
        self.listener.looked(wanted);
        wanted
    }

    fn hash_frame(&self, hash: &mut Sha256, frame: Pfn) {
        self.platform.hash_frame(hash, frame);
    }

    fn create_vcpu(&self, frame: Pfn) -> u64 {
        self.platform.create_vcpu(frame)
    }

    fn open<'a>(&'a self, claim: Claimed<'a, AtomicU64>) -> Self::Loaded<'a> {
        let mut open = self.platform.open(claim);
        self.listener.opened(open.parts().1.pending());
        Open { open, listener: self.listener, is_here: false, claim: PhantomData }
    }

    fn host_is_busy(&self) -> bool {
        let busy = self.platform.host_is_busy();
        if busy {
            self.listener.busy();
        }
        busy
    }

    fn raw_ids(&self) -> RawIds {
        self.platform.raw_ids()
    }

    fn has_random(&self) -> bool {
        self.platform.has_random()
    }

    fn random(&self) -> Option<u64> {
        self.platform.random()
    }

    fn counter(&self, permit: &mut Permit, counter: u64, index: u64) -> Option<u64> {
        self.platform.counter(permit, counter, index)
    }
}
