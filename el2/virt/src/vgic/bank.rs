// SPDX-License-Identifier: MIT OR Apache-2.0
//! The state of 32 interrupts, one bit each.
//!
//! # Invariants
//! While a bit of `held` is set, a list register of one vCPU has the interrupt: the pending state that was moved there
//! is remembered in `held_latch`, `active` says what was so when it was loaded, and a bit of `forced` says that
//! software wrote `active` since and is right. `latch` is what came since.

use super::intid::Bits;

/// Which bits a register shows, and how a write changes them (IHI 0069, 12.9 and 12.11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    Group,
    SetEnable,
    ClearEnable,
    SetPending,
    ClearPending,
    SetActive,
    ClearActive,
}

/// Implemented bits of a priority: 32 levels, as few as a virtual CPU interface may have.
pub(super) const PRIORITY: u8 = 0xf8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Bank {
    /// Group 1; else group 0.
    pub(super) group: u32,
    pub(super) enabled: u32,
    /// Edge-triggered; else level-sensitive.
    pub(super) edge: u32,
    /// The wire is high.
    pub(super) line: u32,
    /// Pending by an edge or by software.
    pub(super) latch: u32,
    pub(super) active: u32,
    pub(super) held: u32,
    held_latch: u32,
    forced: u32,
    /// The host wants to hear when the guest is done with a raised wire.
    pub(super) resample: u32,
    /// It is done with these, and the host has not heard.
    pub(super) ended: u32,
    priority: [u8; 32],
}

impl Bank {
    /// After reset, with these interrupts edge-triggered.
    pub(super) const fn new(edge: u32) -> Self {
        Self {
            group: 0,
            enabled: 0,
            edge,
            line: 0,
            latch: 0,
            active: 0,
            held: 0,
            held_latch: 0,
            forced: 0,
            resample: 0,
            ended: 0,
            priority: [0; 32],
        }
    }

    pub(super) fn priority(&self, at: u32) -> u8 {
        self.priority.get(at as usize).copied().unwrap_or(0)
    }

    pub(super) fn set_priority(&mut self, at: u32, value: u8) {
        if let Some(priority) = self.priority.get_mut(at as usize) {
            *priority = value & PRIORITY;
        }
    }

    /// Pending, and forwarded if it is pending. `groups` has bit 0 and bit 1 for the groups that are open.
    fn forwarded(&self, groups: u32) -> u32 {
        let open = if groups & 1 != 0 { !self.group } else { 0 } | if groups & 2 != 0 { self.group } else { 0 };
        self.pending() & self.enabled & open & !self.held
    }

    /// Pending, as far as no list register has it.
    pub(super) fn pending(&self) -> u32 {
        self.latch | self.line & !self.edge
    }

    /// Something of it may be pending or active. Most often nothing is, and each entry of a guest asks.
    pub(super) fn is_busy(&self) -> bool {
        self.latch | self.line | self.active != 0
    }

    /// Can be given to a vCPU now. What is active is not: it is looked at again when it is deactivated.
    pub(super) fn ready(&self, groups: u32) -> u32 {
        self.forwarded(groups) & !self.active
    }

    /// Active, and pending again by an edge, which a list register can keep behind the active state.
    pub(super) fn again(&self, groups: u32) -> u32 {
        self.forwarded(groups) & self.active & self.edge
    }

    /// Active, and in no list register.
    pub(super) fn stranded(&self) -> u32 {
        self.active & !self.held
    }

    pub(super) fn read(&self, field: Field) -> u32 {
        match field {
            Field::Group => self.group,
            Field::SetEnable | Field::ClearEnable => self.enabled,
            Field::SetPending | Field::ClearPending => self.pending() | self.held_latch,
            Field::SetActive | Field::ClearActive => self.active,
        }
    }

    pub(super) fn write(&mut self, field: Field, value: u32) {
        match field {
            Field::Group => self.group = value,
            Field::SetEnable => self.enabled |= value,
            Field::ClearEnable => self.enabled &= !value,
            Field::SetPending => self.latch |= value,
            Field::ClearPending => {
                self.latch &= !value;
                self.held_latch &= !value;
            }
            Field::SetActive => {
                self.active |= value;
                self.forced |= value & self.held;
            }
            Field::ClearActive => {
                self.end(value & self.active);
                self.active &= !value;
                self.forced |= value & self.held;
            }
        }
    }

    /// `ICFGR` of the lower or upper 16: two bits each, of which the upper one says edge.
    pub(super) fn config(&self, upper: bool) -> u32 {
        let half = self.edge.unbounded_shr(if upper { 16 } else { 0 }) & 0xffff;
        Bits(half).fold(0, |all, at| all | 2u32.unbounded_shl(at.wrapping_mul(2)))
    }

    pub(super) fn set_config(&mut self, upper: bool, value: u32) {
        let half = Bits(value & 0xaaaa_aaaa).fold(0, |all, at| all | 1u32.unbounded_shl(at >> 1));
        self.edge = if upper { self.edge & 0xffff | half << 16 } else { self.edge & !0xffff | half };
    }

    /// Sets the wire of `bit`. A rising edge stays.
    pub(super) fn set_line(&mut self, bit: u32, high: bool) {
        if high {
            self.latch |= bit & self.edge & !self.line;
            self.line |= bit;
        } else {
            self.line &= !bit;
        }
    }

    /// Moves what is active of `bit` to a list register, and what is pending of it too if so said.
    pub(super) fn hold(&mut self, bit: u32, pending: bool) {
        self.held |= bit;
        if pending {
            self.held_latch |= self.latch & bit;
            self.latch &= !bit;
        }
    }

    /// Takes `bit` back out of a list register that holds it in this state.
    pub(super) fn release(&mut self, bit: u32, pending: bool, active: bool) {
        if !pending {
            self.held_latch &= !bit;
            if !active {
                self.end(bit);
            }
        }
        if self.forced & bit == 0 {
            self.active = if active { self.active | bit } else { self.active & !bit };
        }
        self.take_back(bit);
    }

    /// Takes these back out of list registers that hold them as they were loaded.
    pub(super) fn take_back(&mut self, bits: u32) {
        // Of a wire that was high nothing stays but the wire.
        self.latch |= self.held_latch & bits;
        self.held &= !bits;
        self.held_latch &= !bits;
        self.forced &= !bits;
    }

    /// The guest is done with these.
    fn end(&mut self, bits: u32) {
        self.ended |= bits & self.resample & self.line & !self.edge;
    }
}
