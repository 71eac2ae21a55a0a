// SPDX-License-Identifier: MIT OR Apache-2.0
//! A vCPU's life: created, given registers, run, kicked.

use freehold_uapi::{guest, hvc};

use super::change;
use super::frames::named;
use super::host::{NOTHING, unless};
use crate::op::{Env, Who};
use crate::outcome::{Done, Outcome, Statuses, Value};
use crate::record::{Kind, Life, Pending, Power, Vcpu, VcpuLife, Vm};
use crate::state::State;

/// The only PSTATE that a vCPU may start with: EL1h, DAIF masked.
const START: u64 = 0x3c5;

/// A vCPU by its index.
fn at(s: &impl State, slot: u8, index: u64) -> Option<(u8, Vcpu)> {
    let index = u8::try_from(index).ok().filter(|i| *i < s.machine().vcpus)?;
    let vcpu = s.vcpu(slot, index);
    (vcpu.life != VcpuLife::Absent).then_some((index, vcpu))
}

/// VM and vCPU, or why there is none.
pub(super) fn find(s: &impl State, who: Who, index: u64) -> Result<(u8, Vm, u8, Vcpu), Statuses> {
    // An index that no VM has may be seen before the handle is.
    let beyond = index >= s.machine().vcpus.into();
    let (slot, vm) = named(s, who).map_err(|e| e.when(beyond, hvc::WRONG_VCPU))?;
    // A dying VM has no vCPU that could be spoken to.
    if vm.life == Life::Dying {
        return Err(Statuses::one(hvc::WRONG_STATE).when(beyond, hvc::WRONG_VCPU));
    }
    let missing = Statuses::one(hvc::WRONG_VCPU);
    let (index, vcpu) = at(s, slot, index).ok_or(missing)?;
    Ok((slot, vm, index, vcpu))
}

pub(super) fn decide_create(s: &impl State, who: Who, index: u64, env: &Env<'_>) -> Outcome {
    let beyond = index >= s.machine().vcpus.into();
    let (slot, vm) = match named(s, who) {
        Ok(found) => found,
        Err(e) => return Outcome::refused(e.when(beyond, hvc::WRONG_VCPU)),
    };
    let no = change::short(&vm, env)
        .when(vm.life != Life::Open, hvc::WRONG_STATE)
        .when(beyond, hvc::WRONG_VCPU)
        .when(at(s, slot, index).is_some(), hvc::VCPU_EXISTS);
    unless(no, Done::Host(NOTHING))
}

pub(super) fn create(s: &mut impl State, who: Who, index: u64, env: &Env<'_>) {
    if let Ok((slot, vm)) = named(s, who) {
        s.set_vm(slot, change::spend(vm, env));
        let index = u8::try_from(index).unwrap_or(u8::MAX);
        // Which one is on from the start is not the host's to say.
        let power = if index == 0 { Power::On } else { Power::Off };
        s.set_vcpu(slot, index, Vcpu { life: VcpuLife::Ready, power, ..Vcpu::default() });
    }
}

pub(super) fn decide_set(s: &impl State, who: Who, index: u64, reg: u64, value: u64) -> Outcome {
    let mut no = named_register(reg).when(reg == hvc::REG_MPIDR, hvc::DENIED);
    match find(s, who, index) {
        Ok((_, vm, _, vcpu)) => {
            no = no.and(closed(&vm, &vcpu, reg)).when(vm.protected && vm.life != Life::Open, hvc::WRONG_STATE);
            // What an ordinary VM's host puts there is between the two of them.
            no = no
                .when(vm.protected && reg == hvc::REG_PC && !value.is_multiple_of(4), hvc::UNALIGNED)
                .when(vm.protected && reg == hvc::REG_PSTATE && value != START, hvc::DENIED)
                .when(reg == hvc::REG_POWER && !vm.protected && vm.life != Life::Ran, hvc::WRONG_STATE)
                .when(reg == hvc::REG_POWER && !vm.protected && value > 1, hvc::BAD_ARGUMENT);
        }
        Err(e) => no = no.and(e),
    }
    unless(no, Done::Host(NOTHING))
}

/// An ordinary VM's host sets a vCPU back, and says whether it is on.
pub(super) fn set(s: &mut impl State, who: Who, index: u64, reg: u64, value: u64) {
    if let (hvc::REG_POWER, Ok((slot, _, index, vcpu))) = (reg, find(s, who, index)) {
        let power = if value == 0 { Power::Off } else { Power::On };
        s.set_vcpu(slot, index, Vcpu { life: VcpuLife::Ran, power, pending: Pending::None, ..vcpu });
    }
}

/// Whether the number names a register.
fn named_register(reg: u64) -> Statuses {
    let single = [hvc::REG_PC, hvc::REG_PSTATE, hvc::REG_MPIDR, hvc::REG_POWER].contains(&reg);
    let known = single || reg <= hvc::REG_X30 || (hvc::REG_EL1..=hvc::REG_EXIT_FAR).contains(&reg);
    Statuses::NONE.when(!known, hvc::BAD_ARGUMENT)
}

/// Why a register is not the host's to see. An ordinary VM's are open as long as its vCPU does not run. Of a protected
/// one it sees what the vCPU starts with, until it does; of one that is off it may still read that when the others run.
fn closed(vm: &Vm, vcpu: &Vcpu, reg: u64) -> Statuses {
    let start = reg <= hvc::REG_X3 || [hvc::REG_PC, hvc::REG_PSTATE, hvc::REG_MPIDR].contains(&reg);
    Statuses::NONE
        .when(vcpu.running, hvc::VCPU_BUSY)
        .when(vm.protected && vcpu.life != VcpuLife::Ready, hvc::WRONG_STATE)
        .when(vm.protected && !start && named_register(reg).is_empty(), hvc::DENIED)
}

pub(super) fn decide_get(s: &impl State, who: Who, index: u64, reg: u64) -> Outcome {
    let no = named_register(reg).when(reg == hvc::REG_POWER, hvc::DENIED);
    let value = Done::Host([Value::Any, NOTHING[1], NOTHING[2], NOTHING[3]]);
    match find(s, who, index) {
        // MPIDR follows from the index: it may be read as long as the VM's slot is not free.
        Err(e) if reg == hvc::REG_MPIDR && exists(s, who, index) => Outcome { refused: e, ..Outcome::done(value) },
        Err(e) => Outcome::refused(no.and(e)),
        Ok(_) if reg == hvc::REG_MPIDR => Outcome::done(value),
        Ok((_, vm, _, vcpu)) => unless(no.and(closed(&vm, &vcpu, reg)), value),
    }
}

/// Whether the handle names a VM, dying or not, that has or had this vCPU.
fn exists(s: &impl State, who: Who, index: u64) -> bool {
    named(s, who).is_ok_and(|(slot, _)| at(s, slot, index).is_some())
}

pub(super) fn decide_run(s: &impl State, who: Who, index: u64, _mmio: u64, env: &Env<'_>) -> Outcome {
    let (_, vm, _, vcpu) = match find(s, who, index) {
        Ok(found) => found,
        Err(e) => return Outcome::refused(e),
    };
    let no = Statuses::NONE
        .when(vcpu.life == VcpuLife::Crashed, hvc::WRONG_STATE)
        .when(vcpu.running, hvc::VCPU_BUSY)
        .when(vm.life == Life::Ran && vcpu.life == VcpuLife::Ready && vcpu.power == Power::On, hvc::WRONG_STATE);
    let done = match (vcpu.power, vcpu.kicked, env.irq) {
        (Power::Off, ..) => exit(hvc::EXIT_OFF),
        (_, _, true) => exit(hvc::EXIT_IRQ),
        (_, true, false) => exit(hvc::EXIT_KICKED),
        (_, false, false) => Done::Entered(answer(&vcpu)),
    };
    let mut outcome = unless(no, done);
    // A CPU whose host is in streaming mode enters no guest; nothing here knows of that.
    if env.busy {
        outcome = Outcome::refused(no.when(true, hvc::DENIED));
    }
    outcome
}

/// An exit without payload.
pub(super) const fn exit(reason: u64) -> Done {
    Done::Exit([Value::Is(reason), Value::Is(0), Value::Is(0), Value::Is(0)])
}

/// What the guest finds in x0 and x1. A vCPU that starts finds what its guest said, and nothing of what was before.
fn answer(vcpu: &Vcpu) -> Option<(u64, u64)> {
    let ok = guest::OK.unsigned_abs();
    if vcpu.power == Power::Starting {
        return None;
    }
    match vcpu.pending {
        Pending::Answer { kind: Kind::Relinquish, .. } => Some((ok, 0)),
        Pending::Answer { kind: Kind::Share | Kind::Unshare, count } => Some((ok, count.into())),
        Pending::None | Pending::Load { .. } | Pending::Request { .. } => None,
    }
}

pub(super) fn run(s: &mut impl State, cpu: u8, who: Who, index: u64, env: &Env<'_>) {
    let Ok((slot, vm, index, vcpu)) = find(s, who, index) else { return };
    if vcpu.power == Power::Off {
        return;
    }
    s.set_vm(slot, Vm { life: Life::Ran, ..vm });
    let stays = !vcpu.kicked && !env.irq;
    // An entry ends what was pending: a load has its value, a request that was not accepted is made again.
    let kicked = vcpu.kicked && env.irq;
    let (life, power) = (VcpuLife::Ran, Power::On);
    s.set_vcpu(slot, index, Vcpu { life, running: stays, kicked, pending: Pending::None, power });
    if stays {
        s.set_cpu(cpu, Some((slot, index)));
    }
}

pub(super) fn decide_kick(s: &impl State, who: Who, index: u64) -> Outcome {
    match find(s, who, index) {
        Err(e) => Outcome::refused(e),
        Ok(_) => Outcome::done(Done::Host(NOTHING)),
    }
}

pub(super) fn kick(s: &mut impl State, who: Who, index: u64) {
    if let Ok((slot, _, index, vcpu)) = find(s, who, index) {
        s.set_vcpu(slot, index, Vcpu { kicked: true, ..vcpu });
    }
}
