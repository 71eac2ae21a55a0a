// SPDX-License-Identifier: MIT OR Apache-2.0
//! Everything that lives as long as the machine: written once before the second CPU, or behind a lock.

use super::Kind;
use arrayvec::ArrayVec;
use core::sync::atomic::{AtomicU32, AtomicU64};
use freehold_arch::host::Alike;
use freehold_arch::lock::Ticket;
use freehold_arch::percpu::MAX_CPUS;
use freehold_mem::lock::World;
use freehold_virt::board::Board;
use freehold_virt::psci::{Relay, Slot};
use freehold_virt::smc::Platform;
use freehold_virt::vm::VmCell;
use spin::Once;

/// How many VMs there can be at a time.
pub(crate) const VM_SLOTS: usize = freehold_virt::handle::MAX_VMS;

/// The locks of el2's memory.
pub(crate) type Locks<K> = World<<K as Kind>::HostLock, <K as Kind>::GuestLock, VM_SLOTS>;

/// What the boot leaves behind for the trap loop.
pub(crate) struct Machine<K: Kind> {
    /// The locks.
    pub(crate) world: Locks<K>,
    /// What the boot CPU has, and every other must have.
    pub(crate) alike: Alike,
    /// Root of the host's stage 2.
    pub(crate) host_root: u64,
    /// One PSCI slot per CPU; CPU `n`'s has index `n`.
    pub(crate) slots: ArrayVec<Slot<AtomicU64>, MAX_CPUS>,
    /// Whether firmware writes power states in the extended format.
    pub(crate) extended_power_state: bool,
    /// Whether VMs can run here; else the boot said why not.
    pub(crate) serves_vms: bool,
}

impl<K: Kind> Machine<K> {
    /// The PSCI relay over this machine's CPUs.
    pub(crate) fn relay(&self) -> Relay<'_, AtomicU64> {
        Relay::new(&self.slots, Platform::default(), self.extended_power_state)
    }
}

/// How many CPUs are about to switch the machine off; unless it is none, no VM may begin.
pub(crate) static CLOSING: AtomicU32 = AtomicU32::new(0);

/// Who lives in which slot.
pub(crate) static VMS: [VmCell<AtomicU64>; VM_SLOTS] = [VmCell::NEW; VM_SLOTS];

/// The board of each slot's VM.
pub(crate) static BOARDS: [Ticket<Board>; VM_SLOTS] = [const { Ticket::new(Board::NONE) }; VM_SLOTS];

/// Where a binary keeps the sealed machine.
pub struct Home<K: Kind>(Once<Machine<K>>);

impl<K: Kind> Home<K> {
    /// Before the boot.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "only a static holds one")]
    pub const fn new() -> Self {
        Self(Once::new())
    }
}

impl<K: Kind> core::fmt::Debug for Home<K> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Home")
    }
}

/// Seals what the boot has put together. Only the first call counts.
pub(crate) fn seal<K: Kind>(machine: Machine<K>) -> &'static Machine<K> {
    K::home().0.call_once(|| machine)
}

/// The sealed machine.
pub(crate) fn machine<K: Kind>() -> &'static Machine<K> {
    match K::home().0.get() {
        Some(machine) => machine,
        None => freehold_arch::fatal::defect("the machine was used before the boot sealed it"),
    }
}
