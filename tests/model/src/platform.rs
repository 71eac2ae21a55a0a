// SPDX-License-Identifier: MIT OR Apache-2.0
//! One CPU of the rig, as the shipped calls see it.

use std::sync::atomic::{AtomicU64, Ordering};

use freehold_el2::calls::{GuestSlot, Loaded, Platform, Stop};
use freehold_mem::lock::{Permit, World};
use freehold_mem::ports::Frames as _;
use freehold_mem::{Host, Pfn};
use freehold_uapi::hvc;
use freehold_virt::board::Board;
use freehold_virt::handle::{MAX_VMS, Slot};
use freehold_virt::setting::Setting;
use freehold_virt::sha256::Sha256;
use freehold_virt::sysreg::RawIds;
use freehold_virt::timer::Timer;
use freehold_virt::vcpu::{Answer, Vcpu};
use freehold_virt::vgic::Lists;
use freehold_virt::vm::{Claimed, Vms};

use crate::act::Act;
use crate::lock::{Leaf, Lock};
use crate::ports::Ports;
use crate::rig::{Reached, Rig};
use crate::turns;
use crate::vcpus::{Block, Registers};

/// One CPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cpu<'r> {
    pub(crate) rig: &'r Rig,
    pub(crate) number: usize,
}

/// A vCPU that a CPU has claimed. What it holds goes back to its frame when it is let go.
pub(crate) struct Open<'r> {
    cpu: Cpu<'r>,
    claim: Claimed<'r, AtomicU64>,
    frame: u64,
    block: Block,
    lists: Lists,
    /// An access that faulted, at which instruction, and how often: it is made again if the guest goes on there.
    faulted: Option<(Act, (u64, u64), u32)>,
}

/// How often a guest's access is made again within one run.
const FAULTS: u32 = 4;

impl<'r> Loaded<'r> for Open<'r> {
    type Registers = Registers;

    fn claim(&mut self) -> &mut Claimed<'r, AtomicU64> {
        turns::point();
        &mut self.claim
    }

    fn parts(&mut self) -> (&mut Registers, &mut Vcpu) {
        (&mut self.block.registers, &mut self.block.vcpu)
    }

    fn setting(&self) -> Option<&Setting> {
        self.block.setting.as_ref()
    }

    fn settle(&mut self, setting: Setting) {
        self.block.setting = Some(setting);
    }

    fn reset(&mut self) {
        self.block = Block { setting: self.block.setting, ..Block::new() };
    }

    fn timer(&self) -> Timer {
        Timer::new()
    }

    fn leave(&mut self) {}

    fn lists(&mut self) -> &mut Lists {
        &mut self.lists
    }

    // Whatever could be answered at once may be answered later.
    fn run(&mut self, flushes: bool, _: impl Answer<Registers>) -> Stop {
        turns::point();
        let rig = self.cpu.rig;
        let vmid = self.block.setting.expect("what it runs in").vmid;
        rig.entered(self.cpu.number, flushes);
        rig.guest_runs(self.cpu.number);
        // Where it is: with an exception that it was given it is elsewhere.
        let pc = (self.block.registers.pc, self.block.registers.injected);
        let mut again = self.faulted.take().filter(|(_, at, _)| *at == pc).map(|(act, _, times)| (act, times));
        loop {
            let (act, times) = again.take().unwrap_or_else(|| (rig.next_act(self.cpu.number), 0));
            let touches = act.touches();
            let reached = touches.map(|(ipa, right)| rig.guest_touches(vmid, ipa, right));
            if reached != Some(Reached::Yes) {
                if times == FAULTS {
                    // Of a frame that nobody watches el2 knows more than the rig, and says each time that it is there.
                    // On a machine the access would be done. A frame that is watched must be reached or refused (I7).
                    if let Some((ipa, _)) = touches.filter(|(ipa, _)| rig.board.layout.gfns.contains(&(ipa >> 12))) {
                        rig.board.complain(format!("a guest's access to {ipa:#x} is made again for ever"));
                    }
                    return Stop::Interrupt;
                }
                self.faulted = touches.map(|_| (act, pc, times + 1));
                return act.stop(&mut self.block.registers, reached == Some(Reached::Denied));
            }
        }
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        let mut blocks = self.cpu.rig.board.blocks();
        match blocks.iter_mut().find(|(frame, _)| *frame == self.frame) {
            Some((_, block)) => block.clone_from(&self.block),
            None => self.cpu.rig.board.complain(format!("a vCPU lost its frame {:#x} while in use", self.frame)),
        }
    }
}

impl<'r> Platform for Cpu<'r> {
    type Machine = Ports<'r>;
    type HostLock = Lock<Host<'static>>;
    type GuestLock = Lock<GuestSlot>;
    type BoardLock = Leaf<Board>;
    type Loaded<'a>
        = Open<'a>
    where
        Self: 'a;

    fn machine(&self) -> Ports<'r> {
        Ports(&self.rig.board)
    }

    fn world(&self) -> &World<Self::HostLock, Self::GuestLock, MAX_VMS> {
        &self.rig.world
    }

    fn board(&self, slot: Slot) -> &Leaf<Board> {
        self.rig.boards.get(slot.index()).expect("a slot's board")
    }

    fn now(&self) -> u64 {
        0
    }

    fn list_registers(&self) -> usize {
        4
    }

    fn interrupt(&self, _: u32) {}

    fn forget_interrupt(&self) {}

    fn vms(&self) -> Vms<'_, AtomicU64> {
        turns::point();
        self.rig.board.vms()
    }

    fn serves_vms(&self) -> bool {
        !self.rig.no_vms.load(Ordering::Relaxed)
    }

    fn is_closing(&self) -> bool {
        self.rig.closing.load(Ordering::Relaxed) != 0
    }

    fn set_closing(&self, closing: bool) {
        self.rig.closing.fetch_add(if closing { 1 } else { u32::MAX }, Ordering::Relaxed);
    }

    fn cpu(&self) -> usize {
        self.number
    }

    fn host_is_wanted(&self) -> bool {
        self.rig.wanted.load(Ordering::Relaxed)
    }

    fn host_is_busy(&self) -> bool {
        self.rig.busy.load(Ordering::Relaxed)
    }

    // A label is all that a frame holds: one block says it.
    fn hash_frame(&self, hash: &mut Sha256, frame: Pfn) {
        let ports = self.machine();
        ports.measure(frame);
        let mut words = [0; 8];
        ports.copy_words(frame, &mut words);
        hash.block(&words);
    }

    fn create_vcpu(&self, frame: Pfn) -> u64 {
        self.rig.board.blocks().push((frame.raw(), Block::new()));
        frame.raw()
    }

    fn open<'a>(&'a self, claim: Claimed<'a, AtomicU64>) -> Open<'a> {
        let frame = claim.block();
        let found = self.rig.board.blocks().iter().find(|(at, _)| *at == frame).map(|(_, block)| block.clone());
        let block = found.unwrap_or_else(|| panic!("a vCPU without its frame {frame:#x}"));
        Open { cpu: *self, claim, frame, block, faulted: None, lists: Lists::EMPTY }
    }

    fn raw_ids(&self) -> RawIds {
        RawIds::default()
    }

    fn has_random(&self) -> bool {
        false
    }

    fn random(&self) -> Option<u64> {
        None
    }

    fn counter(&self, permit: &mut Permit, counter: u64, index: u64) -> Option<u64> {
        if index != 0 {
            return None;
        }
        if counter == hvc::COUNTER_VMS {
            return Some(self.rig.board.vms().count());
        }
        let counters = self.rig.world.host(permit).get().counters();
        match counter {
            hvc::COUNTER_HOST_BLOCKS => Some(counters.blocks),
            hvc::COUNTER_HOST_TABLES => Some(counters.tables),
            hvc::COUNTER_FOREIGN_FRAMES => Some(counters.foreign),
            hvc::COUNTER_TABLES_FREE => Some(counters.tables_free),
            _ => None,
        }
    }
}
