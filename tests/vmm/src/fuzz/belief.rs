// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the threads believe of the VMs: a guide for what they call next, never what is judged.

use std::collections::{BTreeMap, BTreeSet};

use freehold_uapi::hvc::*;

use super::{Call, Chosen, Random, pick};
use crate::kinds::Kind;

/// A VM as the threads believe it to be.
#[derive(Default)]
pub(super) struct Belief {
    pub(super) kind: Kind,
    pub(super) dying: bool,
    pub(super) ranged: bool,
    pub(super) gic: bool,
    pub(super) vcpus: u64,
    pub(super) ran: bool,
    pub(super) next_gfn: u64,
    pub(super) guest: Vec<u64>,
    pub(super) pool: Vec<u64>,
    /// Of an ordinary VM: frames of the host's, by guest frame.
    pub(super) lent: BTreeMap<u64, u64>,
}

/// What the threads believe, to aim half of the calls well.
#[derive(Default)]
pub(super) struct Model {
    pub(super) ever: Vec<u64>,
    pub(super) vms: BTreeMap<u64, Belief>,
    pub(super) given: BTreeSet<u64>,
}

impl Model {
    pub(super) fn some_vm(&self, dying: bool, random: &mut Random) -> Option<u64> {
        let handles: Vec<u64> =
            self.vms.iter().filter(|(_, vm)| vm.dying == dying).map(|(handle, _)| *handle).collect();
        (!handles.is_empty()).then(|| pick(&handles, random))
    }

    /// Notes that frames went to a VM.
    fn give(&mut self, handle: u64, frames: impl Iterator<Item = u64>, guest: bool) {
        let Some(vm) = self.vms.get_mut(&handle) else { return };
        for pfn in frames {
            self.given.insert(pfn);
            if guest { &mut vm.guest } else { &mut vm.pool }.push(pfn);
        }
    }

    /// A frame that is lent once is lent no more, by what is known here.
    fn unlend(&mut self, handle: u64, gfns: impl Iterator<Item = u64>) {
        let Some(vm) = self.vms.get_mut(&handle) else { return };
        for pfn in gfns.filter_map(|gfn| vm.lent.remove(&gfn)) {
            self.given.remove(&pfn);
        }
    }

    fn take(&mut self, handle: u64, pfn: u64) {
        self.given.remove(&pfn);
        if let Some(vm) = self.vms.get_mut(&handle) {
            vm.guest.retain(|frame| *frame != pfn);
            vm.pool.retain(|frame| *frame != pfn);
        }
    }

    /// A call has succeeded.
    pub(super) fn learn(&mut self, chosen: &Chosen, x: &[u64; 18]) {
        let Call(function, arguments) = &chosen.call;
        match *function {
            VM_CREATE => {
                self.ever.push(x[1]);
                self.vms.insert(x[1], Belief { kind: Kind::of(arguments), ..Belief::default() });
                self.give(x[1], arguments[2]..arguments[2] + arguments[3], false);
            }
            POOL_TOPUP => self.give(arguments[0], arguments[1]..arguments[1] + arguments[2], false),
            MEM_DONATE => self.give(arguments[0], arguments[1]..arguments[1] + x[1], true),
            MEM_DONATE_LIST => {
                let frames = chosen.runs.iter().flat_map(|(pfn, count)| *pfn..pfn.saturating_add(*count));
                self.give(arguments[0], frames.take(usize::try_from(x[1]).unwrap_or(0)), true);
            }
            MEM_SHARE => {
                self.given.extend(arguments[1]..arguments[1] + x[1]);
                if let Some(vm) = self.vms.get_mut(&arguments[0]) {
                    vm.lent.extend((0..x[1]).map(|n| (arguments[2] + n, arguments[1] + n)));
                }
            }
            MEM_UNSHARE => self.unlend(arguments[0], arguments[1]..arguments[1] + x[1]),
            VM_RECLAIM => {
                (arguments[1]..arguments[1] + x[1]).for_each(|pfn| self.take(arguments[0], pfn));
                let empty = |vm: &Belief| vm.guest.is_empty() && vm.lent.is_empty() && vm.pool.is_empty();
                if self.vms.get(&arguments[0]).is_some_and(empty) {
                    self.vms.remove(&arguments[0]);
                }
            }
            _ => {}
        }
        if let Some(vm) = arguments.first().and_then(|handle| self.vms.get_mut(handle)) {
            match *function {
                VM_DESTROY => vm.dying = true,
                VM_RANGE => vm.ranged = true,
                VM_GIC => vm.gic = true,
                VCPU_CREATE => vm.vcpus += 1,
                // A vCPU that is off begins nothing.
                VCPU_RUN => vm.ran |= x[1] != EXIT_OFF,
                _ => {}
            }
        }
    }

    /// Mends a belief that a refusal has shown to be wrong, and moves on from a guest address that was used.
    pub(super) fn mend(&mut self, chosen: &Chosen, status: i64) {
        let Call(function, arguments) = &chosen.call;
        let Some(&handle) = arguments.first() else { return };
        if matches!(status, WRONG_HANDLE | STALE_HANDLE) {
            if let Some(vm) = self.vms.remove(&handle) {
                for pfn in vm.guest.iter().chain(&vm.pool).chain(vm.lent.values()) {
                    self.given.remove(pfn);
                }
            }
            return;
        }
        let Some(vm) = self.vms.get_mut(&handle) else { return };
        match (*function, status) {
            (MEM_DONATE | MEM_DONATE_LIST | MEM_SHARE, _) => vm.next_gfn += 8,
            (MEM_UNSHARE, GFN_NOT_MAPPED) if arguments[2] == 1 => {
                self.unlend(handle, arguments[1]..arguments[1] + 1);
            }
            (VM_RECLAIM, HOST_OWNED) => self.take(handle, arguments[1]),
            (VM_RECLAIM, WRONG_STATE) => vm.dying = false,
            (VM_DESTROY, WRONG_STATE) => vm.dying = true,
            (VM_RANGE | VCPU_CREATE | VCPU_SET_REG | VM_GIC, WRONG_STATE) => vm.ran = true,
            (VM_RANGE, BAD_RANGE) => vm.ranged = true,
            (VCPU_CREATE, VCPU_EXISTS) => vm.vcpus += 1,
            _ => {}
        }
    }
}
