// SPDX-License-Identifier: MIT OR Apache-2.0
//! The CPUs of a guest, as its PSCI calls see them: which are on, off or starting, and where they start (D10).
//!
//! Only the guest starts its CPUs, at the address that it says: a host that could would run any instruction of the guest
//! with registers of its own choice. The host runs a vCPU, and learns that it is off. All of it lies under the lock of
//! the VM's board. Suspension is a wait for an interrupt in every state: PSCI lets an implementation stay in a lighter
//! one. It knows no register. Source: Arm DEN0022 (PSCI 1.1).

use crate::handle::{MAX_VCPUS, VcpuIndex};
use crate::psci::{Entry, code};

/// What a CPU of the guest is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    Off,
    /// `CPU_ON` was called, and the host has not run it since.
    Starting(Entry),
    On,
}

/// All CPUs of one guest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Power {
    states: [State; MAX_VCPUS],
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// x0 takes this.
    Return(i64),
    /// x0 takes success, and the host has to run this vCPU.
    Start(VcpuIndex),
    /// The CPU is off.
    Stop,
    /// The CPU waits as for WFI, and then x0 takes success.
    Wait,
    /// The VM is to be switched off.
    Off,
    /// The VM is to be reset; by `SYSTEM_RESET2` or not.
    Reset(bool),
}

/// What a vCPU finds that the host wants to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It runs on.
    Runs,
    /// It starts here, with everything else as after reset.
    Starts(Entry),
    /// It is off.
    Off,
}

/// A function of PSCI, by the low bits of its identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Function {
    Version,
    Suspend,
    CpuOff,
    CpuOn,
    Affinity,
    MigrateInfo,
    SystemOff,
    SystemReset,
    Features,
    SystemReset2,
}

/// Version 1.1.
pub(crate) const VERSION: i64 = 0x1_0001;
/// Nothing to migrate: no trusted OS.
const NO_TRUSTED_OS: i64 = 2;
/// `AFFINITY_INFO`.
const IS_ON: i64 = 0;
const IS_OFF: i64 = 1;
const IS_STARTING: i64 = 2;
/// Bits of a power state in the original format: level, type, state.
const POWER_STATE: u64 = 3 << 24 | 1 << 16 | 0xffff;
/// Reset types from here on are the vendor's; below it only the architectural warm reset exists.
const VENDOR_RESET: u64 = 1 << 31;

/// The function, and whether its arguments are 64 bits wide.
fn decode(id: u64) -> Option<(Function, bool)> {
    use Function as F;
    let wide = match id & !0x1f {
        0x8400_0000 => false,
        0xc400_0000 => true,
        _ => return None,
    };
    Some((
        match (id & 0x1f, wide) {
            (0x00, false) => F::Version,
            (0x01, _) => F::Suspend,
            (0x02, false) => F::CpuOff,
            (0x03, _) => F::CpuOn,
            (0x04, _) => F::Affinity,
            (0x06, false) => F::MigrateInfo,
            (0x08, false) => F::SystemOff,
            (0x09, false) => F::SystemReset,
            (0x0a, false) => F::Features,
            (0x12, _) => F::SystemReset2,
            _ => return None,
        },
        wide,
    ))
}

impl Default for Power {
    fn default() -> Self {
        Self::new()
    }
}

impl Power {
    /// Of no VM: all zero.
    pub const NONE: Self = Self { states: [State::Off; MAX_VCPUS] };

    /// Of a VM before its first run: the first CPU is on, the others are off.
    #[must_use]
    pub const fn new() -> Self {
        let [_, a, b, c, d, e, f, g] = Self::NONE.states;
        Self { states: [State::On, a, b, c, d, e, f, g] }
    }

    /// Serves the call `id` with x1–x3 that `me` made in a VM of these vCPUs, a bit each. `None`: no such function.
    pub fn serve(&mut self, me: VcpuIndex, id: u64, x: [u64; 3], vcpus: u64) -> Option<Answer> {
        let (function, wide) = decode(id)?;
        let [x1, x2, x3] = if wide { x } else { x.map(|x| x & 0xffff_ffff) };
        Some(match function {
            Function::Version => Answer::Return(VERSION),
            Function::Features => Answer::Return(features(x1)),
            Function::MigrateInfo => Answer::Return(NO_TRUSTED_OS),
            Function::CpuOn => self.start(x1, x2, x3, vcpus),
            Function::Affinity => Answer::Return(self.affinity_info(x1, x2, vcpus)),
            Function::Suspend if x1 & !POWER_STATE != 0 => Answer::Return(code::INVALID_PARAMETERS),
            Function::Suspend => Answer::Wait,
            Function::CpuOff => {
                self.set(me, State::Off);
                Answer::Stop
            }
            Function::SystemOff => Answer::Off,
            Function::SystemReset => Answer::Reset(false),
            Function::SystemReset2 if x1 != 0 && x1 & VENDOR_RESET == 0 => Answer::Return(code::INVALID_PARAMETERS),
            Function::SystemReset2 => Answer::Reset(true),
        })
    }

    /// The host says that a vCPU of an ordinary VM is on, or off.
    pub fn put(&mut self, vcpu: VcpuIndex, on: bool) {
        self.set(vcpu, if on { State::On } else { State::Off });
    }

    /// The host runs a vCPU. One that starts is on from here.
    pub fn arrive(&mut self, vcpu: VcpuIndex) -> Arrival {
        match self.state(vcpu) {
            State::On => Arrival::Runs,
            State::Off => Arrival::Off,
            State::Starting(entry) => {
                self.set(vcpu, State::On);
                Arrival::Starts(entry)
            }
        }
    }

    fn start(&mut self, target: u64, pc: u64, context: u64, vcpus: u64) -> Answer {
        let Some(vcpu) = existing(target, vcpus) else { return Answer::Return(code::INVALID_PARAMETERS) };
        if !pc.is_multiple_of(4) {
            return Answer::Return(code::INVALID_ADDRESS);
        }
        match self.state(vcpu) {
            State::On => Answer::Return(code::ALREADY_ON),
            State::Starting(_) => Answer::Return(code::ON_PENDING),
            State::Off => {
                self.set(vcpu, State::Starting(Entry { pc, context }));
                Answer::Start(vcpu)
            }
        }
    }

    fn affinity_info(&self, target: u64, level: u64, vcpus: u64) -> i64 {
        match existing(target, vcpus).map(|vcpu| self.state(vcpu)) {
            Some(_) if level != 0 => code::INVALID_PARAMETERS,
            Some(State::On) => IS_ON,
            Some(State::Off) => IS_OFF,
            Some(State::Starting(_)) => IS_STARTING,
            None => code::INVALID_PARAMETERS,
        }
    }

    fn state(&self, vcpu: VcpuIndex) -> State {
        self.states.get(vcpu.index()).copied().unwrap_or(State::Off)
    }

    fn set(&mut self, vcpu: VcpuIndex, state: State) {
        if let Some(place) = self.states.get_mut(vcpu.index()) {
            *place = state;
        }
    }
}

/// The vCPU with this affinity, which is its number and nothing else.
fn existing(target: u64, vcpus: u64) -> Option<VcpuIndex> {
    VcpuIndex::decode(target).ok().filter(|vcpu| vcpus & vcpu.bit() != 0)
}

pub(crate) fn features(asked: u64) -> i64 {
    let served = decode(asked).is_some() || asked == freehold_uapi::guest::SMCCC_VERSION.into();
    if served { code::SUCCESS } else { code::NOT_SUPPORTED }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three of them.
    const VCPUS: u64 = 0b111;
    const ON64: u64 = 0xc400_0003;
    const ON32: u64 = 0x8400_0003;
    const INFO: u64 = 0xc400_0004;

    fn vcpu(n: u8) -> VcpuIndex {
        VcpuIndex::decode(n.into()).unwrap()
    }

    fn call(power: &mut Power, id: u64, x: [u64; 3]) -> Option<Answer> {
        power.serve(vcpu(0), id, x, VCPUS)
    }

    fn refused(code: i64) -> Option<Answer> {
        Some(Answer::Return(code))
    }

    #[test]
    fn a_cpu_is_started_once_and_where_the_guest_said() {
        let mut power = Power::new();
        for n in 1..8 {
            assert_eq!(power.arrive(vcpu(n)), Arrival::Off, "the host starts nobody, and {n} neither");
        }
        assert_eq!(call(&mut power, ON64, [1, 0x8000_0000_1000, 7]), Some(Answer::Start(vcpu(1))));
        assert_eq!(call(&mut power, ON64, [1, 0x2000, 8]), refused(code::ON_PENDING));
        assert_eq!(power.arrive(vcpu(1)), Arrival::Starts(Entry { pc: 0x8000_0000_1000, context: 7 }));
        assert_eq!(call(&mut power, ON64, [1, 0x3000, 9]), refused(code::ALREADY_ON));
        assert_eq!(power.arrive(vcpu(1)), Arrival::Runs, "once");
        assert_eq!(call(&mut power, ON64, [0, 0x3000, 9]), refused(code::ALREADY_ON), "the first one is on");
    }

    #[test]
    fn a_target_that_there_is_not_is_refused_and_changes_nothing() {
        let mut power = Power::new();
        for target in [3, 7, 8, 0x100, 1 << 16, 1 << 31 | 1, 1 << 32 | 1, 1 << 40, u64::MAX] {
            assert_eq!(call(&mut power, ON64, [target, 0x1000, 0]), refused(code::INVALID_PARAMETERS), "{target:#x}");
            assert_eq!(call(&mut power, INFO, [target, 0, 0]), refused(code::INVALID_PARAMETERS), "{target:#x}");
        }
        for pc in [1, 2, 3, u64::MAX] {
            assert_eq!(call(&mut power, ON64, [1, pc, 0]), refused(code::INVALID_ADDRESS));
        }
        assert_eq!(power, Power::new());
    }

    #[test]
    fn narrow_calls_see_the_low_half_of_their_arguments() {
        let mut power = Power::new();
        let garbage = 0xdead << 32;
        assert_eq!(call(&mut power, ON32, [garbage | 2, garbage | 0x1000, garbage | 5]), Some(Answer::Start(vcpu(2))));
        assert_eq!(power.arrive(vcpu(2)), Arrival::Starts(Entry { pc: 0x1000, context: 5 }));
    }

    #[test]
    fn affinity_info_follows_a_cpus_life() {
        let mut power = Power::new();
        let info = |power: &mut Power| call(power, INFO, [1, 0, 0]);
        assert_eq!(info(&mut power), refused(IS_OFF));
        call(&mut power, ON64, [1, 0x1000, 0]);
        assert_eq!(info(&mut power), refused(IS_STARTING));
        power.arrive(vcpu(1));
        assert_eq!(info(&mut power), refused(IS_ON));
        assert_eq!(power.serve(vcpu(1), 0x8400_0002, [0; 3], VCPUS), Some(Answer::Stop));
        assert_eq!(info(&mut power), refused(IS_OFF));
        assert_eq!(power.arrive(vcpu(1)), Arrival::Off);
        assert_eq!(call(&mut power, ON64, [1, 0x2000, 0]), Some(Answer::Start(vcpu(1))), "and on again");
        assert_eq!(call(&mut power, INFO, [0, 1, 0]), refused(code::INVALID_PARAMETERS), "level 0 only");
    }

    #[test]
    fn suspension_waits_and_its_reserved_bits_are_looked_at() {
        let mut power = Power::new();
        for state in [0, 1, 1 << 16, 3 << 24 | 1 << 16 | 0xffff] {
            assert_eq!(call(&mut power, 0xc400_0001, [state, 0x1000, 0]), Some(Answer::Wait));
        }
        for state in [1 << 17, 1 << 26, 1 << 30, 1 << 32] {
            assert_eq!(call(&mut power, 0xc400_0001, [state, 0, 0]), refused(code::INVALID_PARAMETERS));
        }
        assert_eq!(power, Power::new());
    }

    #[test]
    fn the_machine_goes_off_or_is_reset() {
        let mut power = Power::new();
        assert_eq!(call(&mut power, 0x8400_0008, [1, 2, 3]), Some(Answer::Off));
        assert_eq!(call(&mut power, 0x8400_0009, [1, 2, 3]), Some(Answer::Reset(false)));
        assert_eq!(call(&mut power, 0xc400_0012, [0, 5, 0]), Some(Answer::Reset(true)));
        assert_eq!(call(&mut power, 0xc400_0012, [1 << 31 | 3, 5, 0]), Some(Answer::Reset(true)));
        assert_eq!(call(&mut power, 0xc400_0012, [1, 5, 0]), refused(code::INVALID_PARAMETERS));
        assert_eq!(call(&mut power, 0x8400_0012, [1 << 32, 5, 0]), Some(Answer::Reset(true)), "32 bits of it");
    }

    #[test]
    fn features_names_what_is_served_and_nothing_else() {
        let served = [
            0x8400_0000,
            0x8400_0001,
            0xc400_0001,
            0x8400_0002,
            0x8400_0003,
            0xc400_0003,
            0x8400_0004,
            0xc400_0004,
            0x8400_0006,
            0x8400_0008,
            0x8400_0009,
            0x8400_000a,
            0x8400_0012,
            0xc400_0012,
        ];
        let mut power = Power::new();
        for n in 0..=0x3f {
            for id in [0x8400_0000 | n, 0xc400_0000 | n] {
                let is = served.contains(&id);
                let expected = if is { code::SUCCESS } else { code::NOT_SUPPORTED };
                assert_eq!(call(&mut power, 0x8400_000a, [id, 0, 0]), refused(expected), "{id:#x}");
                assert_eq!(decode(id).is_some(), is, "{id:#x}");
            }
        }
        assert_eq!(call(&mut power, 0x8400_000a, [0x8000_0000, 0, 0]), refused(code::SUCCESS), "SMCCC_VERSION");
        for id in [0, 0x8000_0000, 0x8600_0003, 1 << 32 | 0x8400_0000, 0x4400_0000, 0x8400_0023] {
            assert_eq!(call(&mut power, id, [0; 3]), None, "{id:#x}");
        }
        assert_eq!(call(&mut power, 0x8400_0000, [9; 3]), refused(0x1_0001));
        assert_eq!(call(&mut power, 0x8400_0006, [9; 3]), refused(2));
    }
}
