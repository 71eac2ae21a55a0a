// SPDX-License-Identifier: MIT OR Apache-2.0
//! The saved state of a vCPU, and what one CPU keeps of its host meanwhile.
//!
//! A [`GuestContext`] lies in memory that belongs to `el2` or to the VM's pool: the host never reads
//! it. It is plain data, and only [`GuestContext::new`] is a reset state.

use super::el1::El1State;
use super::errors::HostErrors;
use super::fp::{GuestFp, HostFp};
use super::gic::HostGic;
use super::keys::Keys;
use super::partitions::HostPartitions;
use super::profiling::HostProfiling;
use super::traps::HostTraps;
use super::vgic::GuestGic;
use crate::features::Ids;
use crate::inject;
use freehold_virt::registers::Registers;
use freehold_virt::timer::Timer;
use freehold_virt::vcpu::Trap;

/// EL1h, everything masked: the state of a vCPU before its first instruction.
const RESET_PSTATE: u64 = 0x3c5;
/// M[4:0] of SPSR_EL2.
const MODE: u64 = 0x1f;
const EL0: u64 = 0x0;
const EL1T: u64 = 0x4;
const EL1H: u64 = 0x5;

/// Everything that a vCPU is while it does not run.
#[derive(Clone, Debug)]
#[repr(C, align(16))]
pub struct GuestContext {
    pub(super) x: [u64; 31],
    pub(super) pc: u64,
    pub(super) pstate: u64,
    /// Syndrome of the last exit, as the exit code stores it.
    pub(super) exit: Trap,
    /// Its EL1 state is in the CPU's registers, and what follows here is older.
    pub(super) is_live: bool,
    pub(super) el1: El1State,
    pub(super) keys: Keys,
    pub(super) timer: Timer,
    pub(super) gic: GuestGic,
    pub(super) fp: GuestFp,
}

impl GuestContext {
    /// A vCPU that was just reset: all zero, MMU off, EL1h with everything masked.
    pub(crate) const fn new() -> Self {
        Self {
            x: [0; 31],
            pc: 0,
            pstate: RESET_PSTATE,
            exit: Trap { esr: 0, far: 0, hpfar: 0 },
            is_live: false,
            el1: El1State::reset(),
            keys: Keys::new(),
            timer: Timer::new(),
            gic: GuestGic::new(),
            fp: GuestFp::new(),
        }
    }

    /// The virtual timer, as it was at the last exit.
    #[must_use]
    pub const fn timer(&self) -> Timer {
        self.timer
    }

    /// Whether PSTATE names a state that a guest may run in.
    #[inline(always)]
    #[must_use]
    pub(super) const fn is_servable(&self) -> bool {
        const SERVED: u64 = 1 << EL0 | 1 << EL1T | 1 << EL1H;
        SERVED >> (self.pstate & MODE) & 1 != 0
    }
}

impl Registers for GuestContext {
    fn x(&self, n: u8) -> u64 {
        self.x.get(usize::from(n)).copied().unwrap_or(0)
    }

    fn set_x(&mut self, n: u8, value: u64) {
        if let Some(register) = self.x.get_mut(usize::from(n)) {
            *register = value;
        }
    }

    fn pc(&self) -> u64 {
        self.pc
    }

    fn set_pc(&mut self, pc: u64) {
        self.pc = pc;
    }

    fn pstate(&self) -> u64 {
        self.pstate
    }

    fn set_pstate(&mut self, pstate: u64) {
        self.pstate = pstate;
    }

    fn kept(&mut self, n: usize) -> Option<&mut u64> {
        self.el1.words().chain(self.fp.words()).chain([&mut self.exit.esr, &mut self.exit.far]).nth(n)
    }

    fn inject(&mut self, esr: u64, far: Option<u64>) {
        if self.is_live {
            self.el1.save();
        }
        self.el1.esr = esr;
        self.el1.far = far.unwrap_or(self.el1.far);
        self.el1.elr = self.pc;
        self.el1.spsr = self.pstate;
        self.pc = self.el1.vbar.wrapping_add(inject::vector_offset(self.pstate));
        self.pstate = inject::exception_state(self.pstate, self.el1.sctlr, &Ids);
        if self.is_live {
            // Nothing that walks depend on is another one than in the registers.
            self.el1.load_all_but_regime();
        }
    }
}

/// What one CPU keeps of the host while a guest runs there. About 10 KB, for vectors of any length.
#[derive(Debug)]
#[repr(C, align(16))]
pub struct HostContext {
    pub(super) el1: El1State,
    pub(super) el2: HostTraps,
    pub(super) keys: Keys,
    pub(super) profiling: HostProfiling,
    pub(super) partitions: HostPartitions,
    pub(super) errors: HostErrors,
    pub(super) gic: HostGic,
    pub(super) fp: HostFp,
}

impl HostContext {
    /// Room for one CPU's host.
    pub(crate) const fn new() -> Self {
        Self {
            el1: El1State::new(),
            el2: HostTraps::new(),
            keys: Keys::new(),
            profiling: HostProfiling::new(),
            partitions: HostPartitions::new(),
            errors: HostErrors::new(),
            gic: HostGic::new(),
            fp: HostFp::new(),
        }
    }
}
