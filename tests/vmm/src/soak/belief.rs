// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the soak's threads believe of the VMs: a guide for what they call next, never what is judged.

use std::collections::{BTreeMap, BTreeSet};

use freehold_uapi::hvc::*;

use super::PLAY;
use super::guest::HAS_GIC;
use crate::fuzz::{Call, Random};
use crate::kinds::{self, GFN, Kind, RANGE};
use crate::raw::Arena;

/// vCPUs of a VM that are aimed at.
const VCPUS: usize = 2;
/// Guest frames that an aimed VM borrows at most.
const LOANS: usize = 128;
/// Of a frame that a VM is known to borrow and nobody knows which it is.
const UNKNOWN: u64 = u64::MAX;

/// What a guest waits for.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Wants {
    Nothing,
    Frame(u64),
    Answer(u64),
}

/// A VM as the threads believe it to be.
pub(super) struct Belief {
    pub(super) kind: Kind,
    pub(super) dying: bool,
    pub(super) ranged: bool,
    pub(super) gic: bool,
    /// vCPUs that were created.
    pub(super) vcpus: u64,
    pub(super) program: bool,
    pub(super) start: bool,
    pub(super) running: [bool; VCPUS],
    pub(super) dead: bool,
    /// Every frame was tried once; twice, and the VM still has some.
    pub(super) searched: bool,
    pub(super) lost: bool,
    pub(super) age: u64,
    pub(super) next_gfn: u64,
    pub(super) wants: [Wants; VCPUS],
    pub(super) guest: Vec<u64>,
    /// Of an ordinary VM: frames of the host's, by guest frame.
    pub(super) lent: BTreeMap<u64, u64>,
    pub(super) pool: Vec<u64>,
}

impl Belief {
    pub(super) fn new(kind: Kind, pool: Vec<u64>) -> Self {
        Self {
            kind,
            dying: false,
            ranged: false,
            gic: false,
            vcpus: 0,
            program: false,
            start: false,
            running: [false; VCPUS],
            dead: false,
            searched: false,
            lost: false,
            age: 0,
            next_gfn: PLAY + 1,
            wants: [Wants::Nothing; VCPUS],
            guest: Vec::new(),
            lent: BTreeMap::new(),
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

    /// A run of frames is lent as guest frames from `gfn` on.
    pub(super) fn lend(&mut self, handle: u64, pfn: u64, gfn: u64, count: u64) {
        if let Some(vm) = self.vms.get_mut(&handle) {
            vm.lent.extend((0..count).map(|n| (gfn + n, pfn + n)));
            self.given.extend(pfn..pfn + count);
        }
    }

    /// Loans of a VM have ended.
    pub(super) fn unlend(&mut self, handle: u64, gfns: impl Iterator<Item = u64>) {
        for gfn in gfns {
            let pfn = self.vms.get_mut(&handle).and_then(|vm| vm.lent.remove(&gfn));
            self.let_go(pfn.into_iter());
        }
    }

    /// A VM is gone, with all it had.
    pub(super) fn gone(&mut self, handle: u64) {
        if let Some(vm) = self.vms.remove(&handle) {
            for pfn in vm.guest.iter().chain(&vm.pool) {
                self.given.remove(pfn);
            }
            self.let_go(vm.lent.into_values());
        }
    }

    /// Loans of these have ended; those of which others go on stay where they are.
    fn let_go(&mut self, frames: impl Iterator<Item = u64>) {
        for pfn in frames {
            if !self.vms.values().any(|vm| vm.lent.values().any(|lent| *lent == pfn)) {
                self.given.remove(&pfn);
            }
        }
    }

    /// A frame that is lent to somebody already.
    fn lent(&self, random: &mut Random) -> Option<u64> {
        let known = |pfn: &u64| *pfn != UNKNOWN;
        let all: Vec<u64> = self.vms.values().flat_map(|vm| vm.lent.values().copied().filter(known)).collect();
        all.get(usize::try_from(random.below(all.len() as u64)).unwrap_or(0)).copied()
    }

    /// A frame to lend: one of four is lent already.
    pub(super) fn to_lend(&self, blocks: &[Arena], count: u64, random: &mut Random) -> Option<u64> {
        let again = if count == 1 && random.one_in(4) { self.lent(random) } else { None };
        again.or_else(|| self.free_run(blocks, count, random))
    }
}

impl Belief {
    pub(super) fn learn(&mut self, function: u32, arguments: &[u64], status: i64, x: &[u64; 18]) {
        match (function, status) {
            (VM_DESTROY, SUCCESS | WRONG_STATE) => self.dying = true,
            (VM_RECLAIM, WRONG_STATE) => self.dying = false,
            (VM_RANGE, SUCCESS | BAD_RANGE | WRONG_STATE) => self.ranged = true,
            (VM_GIC, SUCCESS | WRONG_STATE) => self.gic = true,
            (VCPU_CREATE, SUCCESS | VCPU_EXISTS) if arguments[1] < VCPUS as u64 => {
                self.vcpus = self.vcpus.max(arguments[1] + 1);
            }
            (VCPU_CREATE, WRONG_STATE) => self.vcpus = self.kind.vcpus,
            (MEM_DONATE | MEM_SHARE, SUCCESS | GFN_MAPPED) if arguments[2] == GFN => self.program = true,
            (VCPU_SET_REG, SUCCESS) if arguments[2] == REG_PC => self.start = true,
            (VCPU_SET_REG, WRONG_STATE) => (self.start, self.age) = (true, self.age.max(8)),
            (VCPU_RUN, _) => self.after_run(arguments[1], status, x),
            (MEM_DONATE | MEM_SHARE, SUCCESS | GFN_MAPPED | GFN_POISONED) => {
                for wants in self.wants.iter_mut().filter(|wants| **wants == Wants::Frame(arguments[2])) {
                    *wants = Wants::Nothing;
                }
                if (function, status) == (MEM_SHARE, GFN_MAPPED) {
                    self.lent.entry(arguments[2]).or_insert(UNKNOWN);
                }
            }
            (MEM_DONATE | MEM_SHARE | VCPU_CREATE, NEED_PAGES) => self.age += 20,
            (GUEST_ACCEPT, _) => self.wanted(arguments[1], Wants::Nothing),
            _ => {}
        }
    }

    fn wanted(&mut self, vcpu: u64, wants: Wants) {
        if let Some(place) = usize::try_from(vcpu).ok().and_then(|vcpu| self.wants.get_mut(vcpu)) {
            *place = wants;
        }
    }

    fn after_run(&mut self, vcpu: u64, status: i64, x: &[u64; 18]) {
        if let Some(running) = usize::try_from(vcpu).ok().and_then(|vcpu| self.running.get_mut(vcpu)) {
            *running = false;
        }
        let wants = match (status, x[1]) {
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
        self.wanted(vcpu, wants);
    }

    /// A vCPU that no thread is thought to run; any where all are.
    pub(super) fn idle(&self, random: &mut Random) -> usize {
        let all = usize::try_from(self.vcpus).unwrap_or(0).clamp(1, VCPUS);
        let first = usize::try_from(random.below(all as u64)).unwrap_or(0);
        (0..all).map(|n| (first + n) % all).find(|n| !self.running[*n]).unwrap_or(first)
    }

    pub(super) fn is_busy(&self) -> bool {
        self.running[..usize::try_from(self.vcpus).unwrap_or(0).clamp(1, VCPUS)].iter().all(|running| *running)
    }

    /// What is still to be done before it runs, but for its program.
    pub(super) fn next_of_birth(&self, handle: u64) -> Option<Call> {
        match self {
            _ if !self.ranged => Some(Call(VM_RANGE, vec![handle, GFN, RANGE])),
            _ if self.kind.gic && !self.gic => Some(kinds::gic(handle)),
            _ if self.vcpus < self.kind.vcpus => Some(Call(VCPU_CREATE, vec![handle, self.vcpus])),
            _ => None,
        }
    }

    /// x0 that its program begins with.
    pub(super) fn seed(&self, random: &mut Random) -> u64 {
        let seed = random.next() & !HAS_GIC | 1;
        if self.kind.gic { seed | HAS_GIC } else { seed }
    }

    /// Whether it may borrow more.
    pub(super) fn borrows(&self) -> bool {
        !self.kind.protected && self.lent.len() < LOANS
    }
}
