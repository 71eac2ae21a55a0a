// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which number a step means: most often one that the call may succeed with, else anything.

use freehold_mem::{GuestView, Life, State};
use freehold_model::{Picture, Rig, VmView};

use freehold_uapi::hvc;

use super::{FIRST_WATCHED, FRAMES, GFN, GFNS, NO_MAP, STEP, VMS, WATCHED};

/// A step, taken apart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) verb: u8,
    how: u8,
    pub(super) frame: u8,
    pub(super) place: u8,
    count: u8,
    pub(super) more: u8,
    pub(super) raw: u16,
}

impl Step {
    pub(super) fn decode(bytes: &[u8; STEP]) -> Self {
        let [verb, how, frame, place, count, more, low, high] = *bytes;
        Self { verb, how, frame, place, count, more, raw: u16::from_le_bytes([low, high]) }
    }

    /// Whether a number is to be anything at all.
    pub(super) fn wild(self, bit: u8) -> bool {
        self.how >> 4 == bit && self.how & 4 == 0
    }

    /// Whether a guest that acts does something about its devices. Nothing else reads the upper of the two bits.
    pub(super) fn is_of_devices(self) -> bool {
        self.how & 9 == 9
    }

    /// The CPU that calls.
    pub(super) fn cpu(self) -> usize {
        usize::from(self.flag(7))
    }

    /// Whether an interrupt waits for the host meanwhile.
    pub(super) fn is_hurried(self) -> bool {
        self.raw & 3 == 3
    }

    /// A register of a vCPU, or the number of none.
    pub(super) fn register(self) -> u64 {
        let known = [0, 1, 2, 3, hvc::REG_PC, hvc::REG_MPIDR];
        if self.wild(13) { u64::from(self.raw) & 63 } else { known[usize::from(self.raw >> 2) % known.len()] }
    }

    /// First frame of a range that is not declared yet, most often.
    pub(super) fn range(self) -> u64 {
        if self.wild(4) { self.edge() } else { GFN + 64 + 16 * u64::from(self.place) }
    }

    /// A flag of the step.
    pub(super) fn flag(self, bit: u32) -> bool {
        self.more >> bit & 1 != 0
    }

    /// Numbers at which something ends.
    pub(super) fn edge(self) -> u64 {
        let bit = u32::from(self.raw) % 64;
        match self.raw >> 6 & 7 {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << bit,
            3 => (1 << bit) - 1,
            4 => !0 << bit,
            _ => u64::from(self.raw),
        }
    }

    /// The handle of a VM that fits; else of any, of one that is gone, or no handle at all.
    pub(super) fn handle(self, picture: &Picture, fits: impl Fn(&VmView) -> bool) -> u64 {
        let first = usize::from(self.how & 3);
        let vms = || (first..first + VMS).filter_map(|slot| picture.vms[slot % VMS].as_ref());
        let vm = vms().find(|vm| fits(vm)).or_else(|| vms().next());
        match vm {
            _ if self.wild(1) => self.edge(),
            Some(vm) if self.wild(2) => vm.handle.wrapping_sub(1 << 16),
            Some(vm) => vm.handle,
            None => 1 << 16 | u64::from(self.how & 3),
        }
    }

    /// A watched frame that fits; else any.
    pub(super) fn pfn(self, rig: &Rig, picture: &Picture, fits: impl Fn(State) -> bool) -> u64 {
        let first = rig.first_frame();
        let count = picture.frames.len();
        let start = usize::from(self.frame);
        if self.wild(3) {
            let edges = [first - 1, rig.carve_out(), first + FRAMES - NO_MAP, first + FRAMES, self.edge(), self.edge()];
            return edges[start % edges.len()];
        }
        let number = (0..count).map(|n| (start + n) % count).find(|n| picture.frames[*n].state.is_some_and(&fits));
        match number.unwrap_or(start % count) as u64 {
            number if number < WATCHED => first + FIRST_WATCHED + number,
            number => first + FRAMES - NO_MAP - 2 + (number - WATCHED),
        }
    }

    /// A guest frame at which the VM finds what fits; else any.
    pub(super) fn gfn(self, picture: &Picture, handle: u64, fits: impl Fn(GuestView) -> bool) -> u64 {
        if self.wild(4) {
            return self.edge();
        }
        let vm = picture.vms.iter().flatten().find(|vm| vm.handle == handle);
        let start = u64::from(self.place) % GFNS;
        let mut places = (0..GFNS).map(|n| (start + n) % GFNS);
        let found = vm.and_then(|vm| places.find(|place| fits(vm.gfns[*place as usize])));
        GFN + found.unwrap_or(start)
    }

    /// A small count, most often.
    pub(super) fn count(self) -> u64 {
        match self.count {
            0..160 => 1,
            160..230 => 1 + u64::from(self.count) % 5,
            230..240 => 33 + u64::from(self.count) % 40,
            240..244 => 0,
            _ => [511, 512, 513, u64::MAX, self.edge()][usize::from(self.count) % 5],
        }
    }
}

pub(super) fn alive(vm: &VmView) -> bool {
    matches!(vm.life, Life::Building | Life::Running)
}

pub(super) fn building(vm: &VmView) -> bool {
    vm.life == Life::Building
}

pub(super) fn dying(vm: &VmView) -> bool {
    vm.life == Life::Dying
}
