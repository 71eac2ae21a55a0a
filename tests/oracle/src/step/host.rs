// SPDX-License-Identifier: MIT OR Apache-2.0
//! Host calls: which rule serves which.

use freehold_uapi::{ABI_VERSION, hvc};

use super::{memory, vcpu, vm};
use crate::op::{Call, Env};
use crate::outcome::{Done, Outcome, Statuses, Value};
use crate::state::State;

/// No result register.
pub(super) const NOTHING: [Value; 4] = [Value::Is(0); 4];

/// One result register.
pub(super) const fn result(x1: u64) -> Done {
    Done::Host([Value::Is(x1), Value::Is(0), Value::Is(0), Value::Is(0)])
}

/// Refused if there is an objection, else done.
pub(super) const fn unless(objections: Statuses, done: Done) -> Outcome {
    if objections.is_empty() { Outcome::done(done) } else { Outcome::refused(objections) }
}

pub(super) fn decide(state: &impl State, call: &Call, env: &Env<'_>) -> Outcome {
    match *call {
        Call::Version => version(state),
        Call::Counter { counter, index } => counter_of(state, counter, index),
        Call::VmCreate { flags, ipa_bits, pfn, count } => vm::decide_create(state, flags, ipa_bits, pfn, count, env),
        Call::VmRange { vm, gfn, count } => vm::decide_range(state, vm, gfn, count),
        Call::VmDestroy { vm } => vm::decide_destroy(state, vm),
        Call::VmReclaim { vm, pfn, count } => vm::decide_reclaim(state, vm, pfn, count, env),
        Call::PoolTopup { vm, pfn, count } => vm::decide_topup(state, vm, pfn, count),
        Call::VcpuCreate { vm, vcpu } => vcpu::decide_create(state, vm, vcpu, env),
        Call::VcpuSetReg { vm, vcpu, reg, value } => vcpu::decide_set(state, vm, vcpu, reg, value),
        Call::VcpuGetReg { vm, vcpu, reg } => vcpu::decide_get(state, vm, vcpu, reg),
        Call::VcpuRun { vm, vcpu, mmio } => vcpu::decide_run(state, vm, vcpu, mmio, env),
        Call::VcpuKick { vm, vcpu } => vcpu::decide_kick(state, vm, vcpu),
        Call::MemDonate { vm, pfn, gfn, count, flags } => {
            memory::decide_donate(state, vm, memory::Run { pfn, gfn, count }, flags, env)
        }
        Call::MemDonateList { vm, list, records, flags } => memory::decide_list(state, vm, list, records, flags, env),
        Call::MemShare { vm, pfn, gfn, count, flags } => {
            memory::decide_share(state, vm, memory::Run { pfn, gfn, count }, flags, env)
        }
        Call::MemUnshare { vm, gfn, count } => memory::decide_unshare(state, vm, gfn, count),
        Call::GuestAccept { vm, vcpu, count } => memory::decide_accept(state, vm, vcpu, count, env),
        Call::VmGic { vm, distributor, redistributors } => vm::decide_gic(state, vm, distributor, redistributors),
        Call::VmIrq { vm, intid, level } => vm::decide_irq(state, vm, intid, level),
        Call::Unknown { .. } => Outcome::refused(Statuses::one(hvc::NOT_SUPPORTED)),
    }
}

pub(super) fn apply(state: &mut impl State, cpu: u8, call: &Call, env: &Env<'_>) {
    match *call {
        Call::VcpuSetReg { vm, vcpu, reg, value } => vcpu::set(state, vm, vcpu, reg, value),
        Call::Version | Call::Counter { .. } | Call::VcpuGetReg { .. } => {}
        Call::VmIrq { .. } | Call::Unknown { .. } => {}
        Call::VmGic { vm, .. } => vm::gic(state, vm),
        Call::VmCreate { flags, ipa_bits, pfn, count } => vm::create(state, flags, ipa_bits, pfn, count, env),
        Call::VmRange { vm, gfn, count } => vm::range(state, vm, gfn, count),
        Call::VmDestroy { vm } => vm::destroy(state, vm),
        Call::VmReclaim { vm, pfn, count } => vm::reclaim(state, vm, pfn, count, env),
        Call::PoolTopup { vm, pfn, count } => vm::topup(state, vm, pfn, count),
        Call::VcpuCreate { vm, vcpu } => vcpu::create(state, vm, vcpu, env),
        Call::VcpuRun { vm, vcpu, mmio: _ } => vcpu::run(state, cpu, vm, vcpu, env),
        Call::VcpuKick { vm, vcpu } => vcpu::kick(state, vm, vcpu),
        Call::MemDonate { vm, pfn, gfn, count, flags } => {
            memory::donate(state, vm, memory::Run { pfn, gfn, count }, flags, env);
        }
        Call::MemDonateList { vm, list: _, records, flags } => memory::donate_list(state, vm, records, flags, env),
        Call::MemShare { vm, pfn, gfn, count, flags } => {
            memory::share(state, vm, memory::Run { pfn, gfn, count }, flags, env);
        }
        Call::MemUnshare { vm, gfn, count } => memory::unshare(state, vm, gfn, count, env),
        Call::GuestAccept { vm, vcpu, count } => memory::accept(state, vm, vcpu, count, env),
    }
}

fn version(state: &impl State) -> Outcome {
    let m = state.machine();
    let vcpus = if m.slots == 0 { Value::Any } else { Value::Is(m.vcpus.into()) };
    Outcome::done(Done::Host([Value::Is(ABI_VERSION.into()), Value::Any, Value::Is(m.slots.into()), vcpus]))
}

/// Carve-outs: the image's, and that of ledger and tables.
const CARVE_OUTS: u64 = 2;

fn counter_of(state: &impl State, counter: u64, index: u64) -> Outcome {
    let known = hvc::COUNTERS.iter().any(|c| u64::try_from(c.value) == Ok(counter));
    let indices = match counter {
        hvc::COUNTER_ENTRIES => state.machine().cpus.into(),
        hvc::COUNTER_CARVEOUT_BASE | hvc::COUNTER_CARVEOUT_FRAMES => CARVE_OUTS,
        _ => 1,
    };
    let value = match counter {
        hvc::COUNTER_VMS => {
            Value::Is((0..state.machine().slots).filter(|s| state.vm(*s).exists()).count().try_into().unwrap_or(0))
        }
        hvc::COUNTER_CPUS => Value::Is(state.machine().cpus.into()),
        _ => Value::Any,
    };
    let objections = Statuses::NONE.when(!known || index >= indices, hvc::BAD_ARGUMENT);
    unless(objections, Done::Host([value, Value::Is(0), Value::Is(0), Value::Is(0)]))
}
