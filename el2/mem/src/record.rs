// SPDX-License-Identifier: MIT OR Apache-2.0
//! The 8-byte ledger record of one frame.
//!
//! | bits  | meaning |
//! |-------|---------|
//! | 2:0   | tag: 0 no-map, 1 host, 2 lent, 3 el2, 4 pool, 5 private, 6 shared |
//! | 4     | revocable (private, shared) |
//! | 15:8  | VM slot (pool, private, shared) |
//! | 63:16 | guest frame number (private, shared), times lent (lent), next free frame plus one (pool) |
//!
//! Guarantees that every word decodes to a [`State`], a word that was never written to one that
//! nobody may have, and that encoding loses nothing (I1).

use crate::{Gfn, Pfn, VmSlot};

/// Who has a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// RAM that firmware keeps: the host may map it, nobody can be given it.
    NoMap,
    /// The host's alone.
    Host,
    /// The host's, lent to ordinary VMs this many times; never zero.
    Lent(u32),
    /// `el2`'s since boot.
    El2,
    /// In a VM's pool: free, or in use as a table or a vCPU.
    Pool {
        /// The VM.
        vm: VmSlot,
        /// The free frame after this one, if this one is free and not the last.
        next: Option<Pfn>,
    },
    /// A protected VM's alone.
    Private {
        /// The VM.
        vm: VmSlot,
        /// Where the VM sees it.
        gfn: Gfn,
        /// Whether a stray host access takes it away (D8).
        revocable: bool,
    },
    /// A protected VM's, lent by it to the host.
    Shared {
        /// The VM.
        vm: VmSlot,
        /// Where the VM sees it.
        gfn: Gfn,
        /// Whether a stray host access takes it away (D8), once it is private again.
        revocable: bool,
    },
}

const NO_MAP: u64 = 0;
const HOST: u64 = 1;
const LENT: u64 = 2;
const EL2: u64 = 3;
const POOL: u64 = 4;
const PRIVATE: u64 = 5;
const SHARED: u64 = 6;
const TAG: u64 = 7;
const REVOCABLE: u64 = 1 << 4;
const VM_SHIFT: u32 = 8;
const PAYLOAD_SHIFT: u32 = 16;

impl State {
    /// The record that says this.
    pub(crate) fn encode(self) -> u64 {
        match self {
            Self::NoMap => NO_MAP,
            Self::Host => HOST,
            Self::Lent(times) => LENT | u64::from(times) << PAYLOAD_SHIFT,
            Self::El2 => EL2,
            Self::Pool { vm, next } => {
                let link = next.map_or(0, |next| next.raw().saturating_add(1));
                POOL | of_vm(vm) | link << PAYLOAD_SHIFT
            }
            Self::Private { vm, gfn, revocable } => PRIVATE | of_guest(vm, gfn, revocable),
            Self::Shared { vm, gfn, revocable } => SHARED | of_guest(vm, gfn, revocable),
        }
    }

    /// What a record says. A tag that is never written reads as [`State::NoMap`]: nobody's.
    pub(crate) fn decode(word: u64) -> Self {
        let payload = word >> PAYLOAD_SHIFT;
        let vm = VmSlot::from_bits((word >> VM_SHIFT) as u8);
        let revocable = word & REVOCABLE != 0;
        match word & TAG {
            HOST => Self::Host,
            LENT => Self::Lent(payload as u32),
            EL2 => Self::El2,
            POOL => Self::Pool { vm, next: payload.checked_sub(1).map(Pfn::from_bits) },
            PRIVATE => Self::Private { vm, gfn: Gfn::from_bits(payload), revocable },
            SHARED => Self::Shared { vm, gfn: Gfn::from_bits(payload), revocable },
            _ => Self::NoMap,
        }
    }
}

fn of_vm(vm: VmSlot) -> u64 {
    u64::from(vm.raw()) << VM_SHIFT
}

fn of_guest(vm: VmSlot, gfn: Gfn, revocable: bool) -> u64 {
    let flag = if revocable { REVOCABLE } else { 0 };
    of_vm(vm) | gfn.raw() << PAYLOAD_SHIFT | flag
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    #[test]
    fn every_state_survives_its_record() {
        let vms = [0, 1, 253].map(|raw| VmSlot::new(raw).unwrap());
        let gfns = [0, 1, (1 << 28) - 1].map(|raw| Gfn::new(raw).unwrap());
        let pfns = [0, 1, (1 << 36) - 1].map(|raw| Pfn::new(raw).unwrap());
        let mut all = vec![State::NoMap, State::Host, State::El2];
        all.extend([1, u32::MAX].map(State::Lent));
        for vm in vms {
            all.push(State::Pool { vm, next: None });
            all.extend(pfns.map(|pfn| State::Pool { vm, next: Some(pfn) }));
            for gfn in gfns {
                for revocable in [false, true] {
                    all.push(State::Private { vm, gfn, revocable });
                    all.push(State::Shared { vm, gfn, revocable });
                }
            }
        }
        for state in &all {
            assert_eq!(State::decode(state.encode()), *state);
        }
        let mut words: vec::Vec<u64> = all.iter().map(|state| state.encode()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), all.len(), "two states share a record");
    }

    #[test]
    fn what_was_never_written_is_nobodys() {
        assert_eq!(State::decode(0), State::NoMap);
        assert_eq!(State::decode(7), State::NoMap);
        assert_eq!(State::decode(u64::MAX), State::NoMap);
    }
}
