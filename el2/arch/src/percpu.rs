// SPDX-License-Identifier: MIT OR Apache-2.0
//! What one physical CPU has for itself: stacks, boot slot, counters. TPIDR_EL2 points at it.
//!
//! Guarantees: `this_cpu` is this CPU's record from the first Rust instruction on. The counters are
//! written by their own CPU only, so that counting costs no contended access.

use crate::image;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// Most CPUs that this build serves. A DTB that lists more is refused.
pub const MAX_CPUS: usize = 32;
/// Bytes of one stack.
pub const STACK_SIZE: usize = 16 * 1024;
/// Bytes of the unmapped guard below each stack.
pub const GUARD_SIZE: usize = 4096;
/// Bytes of the stack on which a fatal exception is reported.
pub const EMERGENCY_SIZE: usize = 4096;
/// Distance from one CPU's guard to the next: guard, stack, guard, emergency stack.
pub const SLOT_SIZE: usize = GUARD_SIZE + STACK_SIZE + GUARD_SIZE + EMERGENCY_SIZE;
/// An MPIDR that no CPU has.
pub const NO_CPU: u64 = u64::MAX;
/// The affinity fields of MPIDR_EL1.
pub const AFFINITY: u64 = 0xff_00ff_ffff;

/// One CPU's events, counted since boot.
#[derive(Debug, Default)]
pub struct Counters {
    /// Exceptions taken to EL2 from the host.
    pub entries: Counter,
    /// Hypercalls from the host.
    pub hypercalls: Counter,
    /// SMCs from the host.
    pub smcs: Counter,
    /// Host stage-2 aborts.
    pub faults: Counter,
    /// Aborts that were injected into the host.
    pub injected: Counter,
}

/// A number that only its own CPU increases and anyone may read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Adds one. Only the owning CPU may call this: it is a load and a store, not an atomic add.
    #[inline(always)]
    pub fn bump(&self) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One CPU's record. The first fields are read by assembly.
#[derive(Debug)]
#[repr(C, align(128))]
pub struct PerCpu {
    /// Top of this CPU's stack.
    pub stack_top: AtomicUsize,
    /// Top of its emergency stack.
    pub emergency_top: AtomicUsize,
    /// Index in the table of CPUs.
    index: AtomicUsize,
    /// Affinity of this CPU, or `NO_CPU`.
    pub mpidr: AtomicU64,
    /// Address of its redistributor, or 0.
    pub(crate) redistributor: AtomicUsize,
    /// Branches that the vectors run to overwrite the branch history; 0 where it is not needed.
    pub bhb_loops: AtomicU32,
    /// What the world switch finds here (`features::Has`).
    pub(crate) has: AtomicU32,
    /// Events.
    pub counters: Counters,
}

impl PerCpu {
    const fn new() -> Self {
        Self {
            stack_top: AtomicUsize::new(0),
            emergency_top: AtomicUsize::new(0),
            index: AtomicUsize::new(0),
            mpidr: AtomicU64::new(NO_CPU),
            redistributor: AtomicUsize::new(0),
            bhb_loops: AtomicU32::new(0),
            has: AtomicU32::new(0),
            counters: Counters {
                entries: Counter::new(),
                hypercalls: Counter::new(),
                smcs: Counter::new(),
                faults: Counter::new(),
                injected: Counter::new(),
            },
        }
    }

    /// Index of this CPU, below `MAX_CPUS`.
    #[inline(always)]
    pub fn index(&self) -> usize {
        self.index.load(Ordering::Relaxed)
    }
}

pub(crate) static CPUS: [PerCpu; MAX_CPUS] = [const { PerCpu::new() }; MAX_CPUS];

/// Every record, used or not.
pub fn all() -> &'static [PerCpu] {
    &CPUS
}

/// This CPU's record.
#[inline(always)]
pub fn this_cpu() -> &'static PerCpu {
    let record = read_sysreg!("tpidr_el2") as *const PerCpu;
    // SAFETY: the entry code stores the address of an element of `CPUS` in TPIDR_EL2 before any Rust
    // that can call this, and nothing else writes that register while EL2 runs.
    unsafe { &*record }
}

/// Affinity of this CPU as the hardware says it.
pub fn hardware_mpidr() -> u64 {
    read_sysreg!("mpidr_el1") & AFFINITY
}

/// Fills the records' stack addresses. Called once, by the boot CPU, before tables are built.
pub(crate) fn assign_stacks() {
    let mut slot = image::stacks_start();
    for (index, cpu) in CPUS.iter().enumerate() {
        let stack_top = slot + GUARD_SIZE + STACK_SIZE;
        cpu.index.store(index, Ordering::Relaxed);
        cpu.stack_top.store(stack_top, Ordering::Relaxed);
        cpu.emergency_top.store(stack_top + GUARD_SIZE + EMERGENCY_SIZE, Ordering::Relaxed);
        slot += SLOT_SIZE;
    }
}
