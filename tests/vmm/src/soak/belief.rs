// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the soak's threads believe of the VMs: a guide for what they call next, never what is judged.

use std::collections::{BTreeMap, BTreeSet};

use freehold_uapi::hvc::*;

use super::{GFN, PLAY};
use crate::fuzz::Random;
use crate::raw::Arena;

/// What a guest waits for.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Wants {
    Nothing,
    Frame(u64),
    Answer(u64),
}

/// A VM as the threads believe it to be.
pub(super) struct Belief {
    pub(super) dying: bool,
    pub(super) ranged: bool,
    pub(super) vcpu: bool,
    pub(super) program: bool,
    pub(super) start: bool,
    pub(super) running: bool,
    pub(super) dead: bool,
    /// Every frame was tried once; twice, and the VM still has some.
    pub(super) searched: bool,
    pub(super) lost: bool,
    pub(super) age: u64,
    pub(super) next_gfn: u64,
    pub(super) wants: Wants,
    pub(super) guest: Vec<u64>,
    pub(super) pool: Vec<u64>,
}

impl Belief {
    pub(super) fn new(pool: Vec<u64>) -> Self {
        Self {
            dying: false,
            ranged: false,
            vcpu: false,
            program: false,
            start: false,
            running: false,
            dead: false,
            searched: false,
            lost: false,
            age: 0,
            next_gfn: PLAY + 1,
            wants: Wants::Nothing,
            guest: Vec::new(),
            pool,
        }
    }
}

#[derive(Default)]
pub(super) struct Model {
    pub(super) vms: BTreeMap<u64, Belief>,
    pub(super) given: BTreeSet<u64>,
}

impl Model {
    pub(super) fn some(&self, random: &mut Random, which: impl Fn(&Belief) -> bool) -> Option<u64> {
        let all: Vec<u64> = self.vms.iter().filter(|(_, vm)| which(vm)).map(|(handle, _)| *handle).collect();
        all.get(usize::try_from(random.below(all.len() as u64)).unwrap_or(0)).copied()
    }

    pub(super) fn free_run(&self, blocks: &[Arena], count: u64, random: &mut Random) -> Option<u64> {
        (0..16).find_map(|_| {
            let block = &blocks[usize::try_from(random.below(blocks.len() as u64)).unwrap_or(0)];
            let pfn = block.first + random.below(block.frames - count);
            self.given.range(pfn..pfn + count).next().is_none().then_some(pfn)
        })
    }

    pub(super) fn give(&mut self, handle: u64, frames: impl Iterator<Item = u64>, guest: bool) {
        let Some(vm) = self.vms.get_mut(&handle) else { return };
        for pfn in frames {
            self.given.insert(pfn);
            if guest { &mut vm.guest } else { &mut vm.pool }.push(pfn);
        }
    }

    pub(super) fn take(&mut self, handle: u64, pfn: u64) {
        self.given.remove(&pfn);
        if let Some(vm) = self.vms.get_mut(&handle) {
            vm.guest.retain(|frame| *frame != pfn);
            vm.pool.retain(|frame| *frame != pfn);
        }
    }
}

impl Belief {
    pub(super) fn learn(&mut self, function: u32, arguments: &[u64], status: i64, x: &[u64; 18]) {
        match (function, status) {
            (VM_DESTROY, SUCCESS | WRONG_STATE) => self.dying = true,
            (VM_RECLAIM, WRONG_STATE) => self.dying = false,
            (VM_RANGE, SUCCESS | BAD_RANGE | WRONG_STATE) => self.ranged = true,
            (VCPU_CREATE, SUCCESS | VCPU_EXISTS | WRONG_STATE) => self.vcpu = true,
            (MEM_DONATE, SUCCESS | GFN_MAPPED) if arguments[2] == GFN => self.program = true,
            (VCPU_SET_REG, SUCCESS) if arguments[2] == REG_PC => self.start = true,
            (VCPU_SET_REG, WRONG_STATE) => (self.start, self.age) = (true, self.age.max(8)),
            (VCPU_RUN, _) => {
                self.running = false;
                self.after_run(status, x);
            }
            (MEM_DONATE, SUCCESS | GFN_MAPPED | GFN_POISONED) if self.wants == Wants::Frame(arguments[2]) => {
                self.wants = Wants::Nothing;
            }
            (MEM_DONATE, NEED_PAGES) => self.age += 20,
            (GUEST_ACCEPT, _) => self.wants = Wants::Nothing,
            _ => {}
        }
    }

    fn after_run(&mut self, status: i64, x: &[u64; 18]) {
        self.wants = match (status, x[1]) {
            (SUCCESS, EXIT_MEM_FAULT) => Wants::Frame(x[2]),
            (SUCCESS, EXIT_SHARE | EXIT_UNSHARE | EXIT_RELINQUISH) => Wants::Answer(x[3]),
            (SUCCESS, EXIT_CRASH | EXIT_SYSTEM) => {
                self.dead = true;
                Wants::Nothing
            }
            (WRONG_STATE, _) => {
                self.dead = true;
                Wants::Nothing
            }
            _ => Wants::Nothing,
        };
    }
}
