// SPDX-License-Identifier: MIT OR Apache-2.0
//! The PSCI relay: how the host powers its CPUs while every one of them starts and resumes in `el2`.
//!
//! Guarantees that an entry point of the host's is never handed to firmware: it is kept in the target's [`Slot`] and
//! only ever becomes the address where that CPU is dropped to EL1. A slot belongs to one caller at a time. Power
//! goes off or the machine resets only after memory of VMs is scrubbed ([`Firmware::quiesce`]). Every wait is bounded
//! (I7). It does not know how a CPU is set up; the entry path asks [`Relay::arrive`] where to drop the host.
//! Source: Arm DEN0022 (PSCI 1.3).

use crate::cell::Cell;
use crate::smc::{self, Call, Platform};

/// PSCI return codes (DEN0022 §5.2.2).
pub mod code {
    /// Done.
    pub const SUCCESS: i64 = 0;
    /// Not implemented.
    pub const NOT_SUPPORTED: i64 = -1;
    /// No such CPU, or another bad argument.
    pub const INVALID_PARAMETERS: i64 = -2;
    /// Not now.
    pub const DENIED: i64 = -3;
    /// The CPU is on.
    pub const ALREADY_ON: i64 = -4;
    /// The CPU is being started.
    pub const ON_PENDING: i64 = -5;
    /// The entry point is no instruction's address.
    pub const INVALID_ADDRESS: i64 = -9;
}

/// A PSCI function that the relay serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    /// Passed on as it is, results in x0–x3.
    Pass(u32),
    /// `PSCI_FEATURES`, filtered to what the relay serves.
    Features,
    /// `CPU_ON` with 32-bit arguments.
    CpuOn32,
    /// `CPU_ON` with 64-bit arguments.
    CpuOn64,
    /// `CPU_OFF`.
    CpuOff,
    /// `CPU_SUSPEND`, `CPU_DEFAULT_SUSPEND` or `SYSTEM_SUSPEND`.
    Suspend(Suspend),
    /// `SYSTEM_OFF`, `SYSTEM_RESET`, `SYSTEM_RESET2` or `SYSTEM_OFF2`: the identifier.
    Power(u32),
}

/// The three ways to suspend, each with its arguments' width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspend {
    /// Which call.
    pub kind: SuspendKind,
    /// Arguments are 32 bits wide.
    pub narrow: bool,
}

/// Which suspend call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SuspendKind {
    /// `CPU_SUSPEND`: x1 power state, x2 entry, x3 context.
    Cpu,
    /// `CPU_DEFAULT_SUSPEND`: x1 entry, x2 context.
    Default,
    /// `SYSTEM_SUSPEND`: x1 entry, x2 context.
    System,
}

impl Function {
    /// Names the function of an identifier of the PSCI range; `None` for one that the relay denies.
    #[must_use]
    pub fn decode(id: u32) -> Option<Self> {
        let narrow = id & 1 << 30 == 0;
        let suspend = |kind| Some(Self::Suspend(Suspend { kind, narrow }));
        match id & 0x1f {
            // Calls that exist in 32-bit form only.
            0x00 | 0x06 | 0x0f if narrow => Some(Self::Pass(id)),
            0x02 if narrow => Some(Self::CpuOff),
            0x08 | 0x09 if narrow => Some(Self::Power(id)),
            0x0a if narrow => Some(Self::Features),
            // AFFINITY_INFO, MIGRATE, MIGRATE_INFO_UP_CPU, NODE_HW_STATE, STAT_RESIDENCY, STAT_COUNT.
            0x04 | 0x05 | 0x07 | 0x0d | 0x10 | 0x11 => Some(Self::Pass(id)),
            0x01 => suspend(SuspendKind::Cpu),
            0x0c => suspend(SuspendKind::Default),
            0x0e => suspend(SuspendKind::System),
            0x03 if narrow => Some(Self::CpuOn32),
            0x03 => Some(Self::CpuOn64),
            0x12 | 0x15 => Some(Self::Power(id)),
            _ => None,
        }
    }
}

/// An affinity value: `MPIDR_EL1`'s Aff0–Aff3 in place, all other bits zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affinity(u64);

/// Bits of `MPIDR_EL1` that are affinity.
const AFFINITY_BITS: u64 = 0xff_00ff_ffff;

impl Affinity {
    /// Reads the affinity out of a `MPIDR_EL1` value.
    #[must_use]
    pub const fn of_mpidr(mpidr: u64) -> Self {
        Self(mpidr & AFFINITY_BITS)
    }

    /// Takes a PSCI target argument, which must be an affinity and nothing else.
    #[must_use]
    pub const fn from_target(target: u64) -> Option<Self> {
        if target & !AFFINITY_BITS == 0 { Some(Self(target)) } else { None }
    }

    /// The value as PSCI takes it.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// What the relay needs of the machine below it.
pub trait Firmware {
    /// Makes the call `x[0]` with x1–x3 and returns x0–x3.
    fn call(&mut self, x: [u64; 4]) -> [u64; 4];
    /// `CPU_ON` of CPU number `cpu`, entered at `el2`'s own start with that CPU's own context.
    fn cpu_on(&mut self, target: Affinity, cpu: usize) -> i64;
    /// Suspends this CPU (number `cpu`), to resume at `el2`'s own start. `power_state` is for `CPU_SUSPEND` only.
    /// Returns only if the CPU kept or regained its state at this call.
    fn suspend(&mut self, kind: SuspendKind, power_state: u64, cpu: usize) -> i64;
    /// Ends all VMs, lets no new one begin, and scrubs every frame of theirs. `false`: a vCPU still runs somewhere,
    /// nothing was scrubbed.
    fn quiesce(&mut self) -> bool;
    /// Lets VMs begin again: the machine stays on after all.
    fn reopen(&mut self);
}

/// Power states of a slot.
mod state {
    /// The CPU is off and nobody starts it.
    pub(super) const OFF: u64 = 0;
    /// A caller owns the slot: the CPU is being started.
    pub(super) const PENDING: u64 = 1;
    /// The CPU runs, or went to sleep by itself.
    pub(super) const ON: u64 = 2;
    /// The CPU has asked firmware to switch it off and may not be off yet.
    pub(super) const LEAVING: u64 = 3;
}

/// What is kept of one CPU.
///
/// # Invariants
/// `pc` and `context` are written only by whoever moved `state` to pending, or by the CPU itself while it is on.
#[derive(Debug)]
pub struct Slot<A> {
    affinity: Affinity,
    state: A,
    pc: A,
    context: A,
}

impl<A: Cell> Slot<A> {
    /// A slot of a CPU that is off; `zero` makes words that hold zero.
    pub fn off(affinity: Affinity, zero: impl Fn() -> A) -> Self {
        // INVARIANT: nobody else can reach the slot yet; `zero` is `OFF`.
        Self { affinity, state: zero(), pc: zero(), context: zero() }
    }

    /// The CPU's affinity.
    pub fn affinity(&self) -> Affinity {
        self.affinity
    }

    fn keep(&self, entry: Entry) {
        self.pc.store(entry.pc);
        self.context.store(entry.context);
    }
}

/// Where a CPU is dropped to EL1, and what x0 holds there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Program counter at EL1.
    pub pc: u64,
    /// x0 at EL1.
    pub context: u64,
}

impl Entry {
    fn new(pc: u64, context: u64) -> Result<Self, i64> {
        if pc & 3 == 0 { Ok(Self { pc, context }) } else { Err(code::INVALID_ADDRESS) }
    }
}

/// What the trap loop does with an SMC of the host. The program counter steps over the SMC in every case.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// x0 takes this; x1 and up stay.
    Status(i64),
    /// x0–x3 take these; x4 and up stay.
    Results([u64; 4]),
}

/// Tries of `CPU_ON` while its target is still on its way off. Firmware takes microseconds for that.
const OFF_RACE_TRIES: u32 = 10_000;

/// `power_state` bit 16 (original format) or bit 30 (extended StateID): the state loses the CPU's context.
const fn loses_context(power_state: u64, extended: bool) -> bool {
    power_state & (if extended { 1 << 30 } else { 1 << 16 }) != 0
}

/// The relay over all CPUs of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Relay<'a, A> {
    slots: &'a [Slot<A>],
    platform: Platform,
    extended_state: bool,
}

impl<'a, A: Cell> Relay<'a, A> {
    /// A relay over `slots`, one per CPU. `extended_state` is bit 1 of firmware's `PSCI_FEATURES(CPU_SUSPEND)`.
    pub const fn new(slots: &'a [Slot<A>], platform: Platform, extended_state: bool) -> Self {
        Self { slots, platform, extended_state }
    }

    /// Notes that CPU number `me` runs `el2`, and says where the host wanted it. Called once per start or resume,
    /// on that CPU. `None`: no such CPU, or nobody asked for it.
    pub fn arrive(&self, me: usize) -> Option<Entry> {
        let slot = self.slots.get(me)?;
        match slot.state.load() {
            // Leaving: its CPU_OFF was refused while another CPU tried to start it, and it went to sleep since.
            state::PENDING | state::ON | state::LEAVING => {
                let entry = Entry { pc: slot.pc.load(), context: slot.context.load() };
                slot.state.store(state::ON);
                Some(entry)
            }
            _ => None,
        }
    }

    /// Notes that CPU number `me` is the one that booted.
    pub fn booted(&self, me: usize) {
        if let Some(slot) = self.slots.get(me) {
            slot.state.store(state::ON);
        }
    }

    /// Serves an SMC that CPU number `me` of the host made with immediate `imm` and registers x0–x3.
    pub fn smc(&self, me: usize, imm: u16, x: [u64; 4], firmware: &mut impl Firmware) -> Reply {
        let [x0, x1, x2, x3] = x;
        match smc::classify(imm, x0, self.platform) {
            Call::Version => Reply::Status(smc::SMCCC_VERSION.cast_signed()),
            Call::Forward(id) => Reply::Results(firmware.call([u64::from(id), x1, x2, x3])),
            Call::Denied => Reply::Status(code::NOT_SUPPORTED),
            Call::Psci(function) => self.psci(me, function, [x1, x2, x3], firmware),
        }
    }

    fn psci(&self, me: usize, function: Function, [x1, x2, x3]: [u64; 3], firmware: &mut impl Firmware) -> Reply {
        let low = |x: u64| x & 0xffff_ffff;
        match function {
            Function::Pass(id) => Reply::Results(firmware.call([u64::from(id), x1, x2, x3])),
            Function::Features => Reply::Status(features(low(x1), firmware)),
            Function::CpuOn64 => Reply::Status(self.cpu_on(x1, x2, x3, firmware)),
            Function::CpuOn32 => Reply::Status(self.cpu_on(low(x1), low(x2), low(x3), firmware)),
            Function::CpuOff => Reply::Status(self.cpu_off(me, firmware)),
            Function::Suspend(Suspend { kind, narrow }) => {
                let cut = |x| if narrow { low(x) } else { x };
                Reply::Status(self.suspend(me, kind, cut(x1), cut(x2), cut(x3), firmware))
            }
            Function::Power(id) => Reply::Status(power(id, [x1, x2, x3], firmware)),
        }
    }

    fn cpu_on(&self, target: u64, pc: u64, context: u64, firmware: &mut impl Firmware) -> i64 {
        let Some(affinity) = Affinity::from_target(target) else { return code::INVALID_PARAMETERS };
        let Some((cpu, slot)) = (0..self.slots.len()).zip(self.slots).find(|(_, s)| s.affinity == affinity) else {
            return code::INVALID_PARAMETERS;
        };
        let entry = match Entry::new(pc, context) {
            Ok(entry) => entry,
            Err(code) => return code,
        };
        let before = match claim(slot) {
            Ok(before) => before,
            Err(code) => return code,
        };
        slot.keep(entry);
        let mut result = firmware.cpu_on(affinity, cpu);
        let mut tries = 0u32;
        while result == code::ALREADY_ON && before == state::LEAVING && tries < OFF_RACE_TRIES {
            core::hint::spin_loop();
            result = firmware.cpu_on(affinity, cpu);
            tries = tries.saturating_add(1);
        }
        if result != code::SUCCESS {
            // Fails only if the CPU arrived meanwhile, and is marked on.
            let _ = slot.state.exchange(state::PENDING, before);
        }
        result
    }

    fn cpu_off(&self, me: usize, firmware: &mut impl Firmware) -> i64 {
        let Some(slot) = self.slots.get(me) else { return code::DENIED };
        // Only from on: a caller that owns the slot already keeps it, and starts this CPU when it is off.
        let _ = slot.state.exchange(state::ON, state::LEAVING);
        let result = firmware.call([0x8400_0002, 0, 0, 0])[0].cast_signed();
        // CPU_OFF returns only if it failed: this CPU runs on. A caller that owns the slot finds that out itself.
        let _ = slot.state.exchange(state::LEAVING, state::ON);
        result
    }

    fn suspend(&self, me: usize, kind: SuspendKind, x1: u64, x2: u64, x3: u64, firmware: &mut impl Firmware) -> i64 {
        let Some(slot) = self.slots.get(me) else { return code::DENIED };
        let (power_state, pc, context) = match kind {
            SuspendKind::Cpu => (x1, x2, x3),
            SuspendKind::Default | SuspendKind::System => (0, x1, x2),
        };
        if kind == SuspendKind::Cpu && !loses_context(power_state, self.extended_state) {
            return firmware.suspend(kind, power_state, me);
        }
        match Entry::new(pc, context) {
            Ok(entry) => slot.keep(entry),
            Err(code) => return code,
        }
        firmware.suspend(kind, power_state, me)
    }
}

/// Takes the slot of a CPU that is off or nearly so; returns what it was.
fn claim<A: Cell>(slot: &Slot<A>) -> Result<u64, i64> {
    for from in [state::OFF, state::LEAVING] {
        match slot.state.exchange(from, state::PENDING) {
            Ok(()) => return Ok(from),
            Err(state::ON) => return Err(code::ALREADY_ON),
            Err(state::PENDING) => return Err(code::ON_PENDING),
            Err(_) => {}
        }
    }
    // The state moved between off and leaving while we looked: somebody is at it.
    Err(code::ON_PENDING)
}

/// Switches off or resets, once nothing of a VM is left. Returns only if that failed.
fn power(id: u32, [x1, x2, x3]: [u64; 3], firmware: &mut impl Firmware) -> i64 {
    // The later additions may be missing: no VM is ended for a call that firmware does not know.
    let optional = id & 0x1f > 0x09;
    if optional && firmware.call([0x8400_000a, u64::from(id), 0, 0])[0].cast_signed() < 0 {
        return code::NOT_SUPPORTED;
    }
    if !firmware.quiesce() {
        return code::DENIED;
    }
    let result = firmware.call([u64::from(id), x1, x2, x3])[0].cast_signed();
    firmware.reopen();
    result
}

fn features(asked: u64, firmware: &mut impl Firmware) -> i64 {
    match smc::classify(0, asked, Platform::default()) {
        Call::Version => code::SUCCESS,
        Call::Psci(_) => firmware.call([0x8400_000a, asked, 0, 0])[0].cast_signed(),
        Call::Forward(_) | Call::Denied => code::NOT_SUPPORTED,
    }
}

#[cfg(test)]
mod tests;
