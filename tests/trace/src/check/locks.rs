// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who holds which lock, and what may be done with it. Lock 0 is the host's, lock `n` that of VMID `n`.

use super::{Findings, Rule};
use crate::record::HOST;
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(super) struct Locks {
    started: bool,
    holders: BTreeMap<u8, u8>,
}

impl Locks {
    pub(super) fn start(&mut self) {
        self.started = true;
    }

    fn holds(&self, cpu: u8, lock: u8) -> bool {
        self.holders.get(&lock) == Some(&cpu)
    }

    fn holds_any(&self, cpu: u8) -> bool {
        self.holders.values().any(|holder| *holder == cpu)
    }

    pub(super) fn acquire(&mut self, cpu: u8, lock: u8, out: &mut Findings) {
        let free = !self.holders.contains_key(&lock);
        out.decide(Rule::Lock, free, || format!("lock {lock} is taken while it is held"));
        let in_order = self.holders.iter().all(|(held, holder)| *holder != cpu || *held == HOST && lock != HOST);
        out.decide(Rule::Lock, in_order, || format!("lock {lock} is taken after a guest's lock"));
        self.holders.insert(lock, cpu);
    }

    pub(super) fn release(&mut self, cpu: u8, lock: u8, out: &mut Findings) {
        let held = self.holds(cpu, lock);
        out.decide(Rule::Lock, held, || format!("lock {lock} is let go of by a CPU that does not hold it"));
        self.holders.remove(&lock);
    }

    /// A word of a table that `owner`'s walkers use, or nobody's yet.
    pub(super) fn may_store(&self, cpu: u8, owner: Option<u8>, table: u64, out: &mut Findings) {
        if self.started {
            let kept = owner.map_or_else(|| self.holds_any(cpu), |vmid| self.holds(cpu, vmid));
            out.decide(Rule::Lock, kept, || format!("table {table:#x} of {owner:?} is written without its lock"));
        }
    }

    pub(super) fn may_touch(&self, cpu: u8, frame: u64, out: &mut Findings) {
        if self.started {
            let kept = self.holds(cpu, HOST);
            out.decide(Rule::Lock, kept, || format!("frame {frame:#x} is zeroed without the host's lock"));
        }
    }

    pub(super) fn may_invalidate(&self, cpu: u8, vmid: u8, out: &mut Findings) {
        if self.started {
            let kept = self.holds(cpu, vmid);
            out.decide(Rule::Lock, kept, || format!("VMID {vmid} is invalidated without its lock"));
        }
    }

    pub(super) fn leave(&self, cpu: u8, out: &mut Findings) {
        let none = !self.holds_any(cpu);
        out.decide(Rule::Debt, none, || "EL2 is left with a lock held".to_owned());
    }
}
