// SPDX-License-Identifier: MIT OR Apache-2.0
//! What came of an operation, beside what the specification says of it.

use std::sync::PoisonError;

use freehold_oracle::{Act, Call, Done, Env, Op as Said, State, Stray, Value, VcpuLife, World};
use freehold_oracle::{Life, apply, invariant};
use freehold_uapi::guest;
use freehold_uapi::hvc::{self, Record};

use super::{Cell, Entry, Lockstep, STRIDES, Taken, vm_of};
use crate::op::{self, Op};
use crate::rig::Answer;

impl<'r, const P: usize, const V: usize, const U: usize, const G: usize, const C: usize>
    Lockstep<'r, World<P, V, U, G, C>>
{
    /// The records that a list frame holds which nobody wrote for this operation.
    pub(crate) fn found(&self, op: &Op) -> Vec<Record> {
        let Op::Host(Call::MemDonateList { list, records, .. }) = *op else { return Vec::new() };
        let words = self.rig.words(list, usize::try_from(records.saturating_mul(2)).unwrap_or(usize::MAX));
        words.as_chunks::<2>().0.iter().map(|[pfn, gfn_count]| Record { pfn: *pfn, gfn_count: *gfn_count }).collect()
    }

    pub(crate) fn env<'e>(&self, world: &World<P, V, U, G, C>, call: &Call, list: &'e [Record]) -> Env<'e> {
        let free = (0..).zip(&world.vms).find(|(_, vm)| !vm.exists()).map_or(0, |(slot, _)| slot);
        let need = self.needed().unwrap_or_else(|| need(world, call, list));
        Env { slot: free, need, list, ..Env::CALM }
    }

    /// Says how many pool pages the next calls need, tables for instance.
    pub(crate) fn needs(&self, pages: Option<u64>) {
        *self.need.lock().unwrap_or_else(PoisonError::into_inner) = pages;
    }

    fn needed(&self) -> Option<u64> {
        *self.need.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn called(
        &self,
        world: &mut World<P, V, U, G, C>,
        call: Call,
        list: &[Record],
        answer: Answer,
        hurried: bool,
    ) -> Result<Taken, String> {
        let done = if hurried { stride(world, &call) } else { u64::MAX };
        let env = Env { done, ..self.env(world, &call, list) };
        let said = Said::Host { cpu: 0, call };
        let outcome = (self.decide)(world, &said, &env);
        let mut x = answer.x;
        if call == Call::Version {
            // The machine has fewer slots than el2 has room for, and its VMs fewer vCPUs.
            x[2] = x[2].min(V as u64);
            x[3] = x[3].min(U as u64);
        }
        if !outcome.permits(answer.status, x) {
            return Err(format!("el2 answers {} {:x?}, oracle permits {outcome:x?}", answer.name(), answer.x));
        }
        if answer.status == hvc::NEED_PAGES {
            let free = self.free_of(world, &call);
            if answer.x != [env.need.saturating_sub(free), 0, 0, 0] {
                return Err(format!("it wants {:x?} more pages, of {} and {free} free", answer.x, env.need));
            }
        } else if !answer.is_success() && answer.x != [0; 4] {
            return Err(format!("{} with results {:x?}", answer.name(), answer.x));
        }
        if answer.is_success() {
            apply(world, &said, &env);
        }
        let cell = Cell { what: op::name(call.id()), outcome: answer.name() };
        Ok(Taken { cell, inner: None, done: answer.is_success() })
    }

    fn free_of(&self, world: &World<P, V, U, G, C>, call: &Call) -> u64 {
        match *call {
            Call::VmCreate { count, .. } => count,
            _ => vm_of(call).map_or(0, |slot| world.vm(slot).free.into()),
        }
    }

    pub(super) fn touched(
        &self,
        world: &mut World<P, V, U, G, C>,
        pfn: u64,
        write: bool,
        from: Stray,
        answer: Answer,
    ) -> Result<Taken, String> {
        let said = Said::Touch { pfn, write, from };
        let outcome = (self.decide)(world, &said, &Env::CALM);
        let seen = match answer.status {
            0 => Done::Allowed,
            1 => Done::Revoked,
            _ => Done::Injected,
        };
        if outcome.done != Some(seen) {
            return Err(format!("the access: el2 {seen:?}, oracle {:?}", outcome.done));
        }
        apply(world, &said, &Env::CALM);
        let effect = match seen {
            Done::Allowed => "goes through",
            Done::Revoked => "takes the frame",
            _ => "faults",
        };
        let cell = Cell { what: if write { "host write" } else { "host read" }, outcome: effect };
        Ok(Taken { cell, inner: None, done: seen != Done::Injected })
    }

    pub(super) fn run(
        &self,
        world: &mut World<P, V, U, G, C>,
        call: Call,
        act: Act,
        answer: Answer,
    ) -> Result<Taken, String> {
        let found = match self.entered(world, 0, call, answer)? {
            Entry::Over(outcome) => {
                let cell = Cell { what: "VCPU_RUN", outcome };
                return Ok(Taken { cell, inner: None, done: answer.is_success() });
            }
            Entry::Runs(found) => found,
        };
        if let (Some((x0, x1)), Act::Interrupt) = (found, act) {
            let real = self.registers(call);
            if real != Some([x0, x1, 0, 0]) {
                return Err(format!("the guest finds {real:x?}, oracle says {x0:x} {x1:x}"));
            }
        }
        let inner = self.acted(world, 0, (self.registers(call), self.is_told(call)), act, answer)?;
        let cell = Cell { what: "VCPU_RUN", outcome: exit_name(answer.x[0]) };
        Ok(Taken { cell, inner: Some(inner), done: true })
    }

    /// How a run of this answer began.
    pub(crate) fn entered(
        &self,
        world: &mut World<P, V, U, G, C>,
        cpu: u8,
        call: Call,
        answer: Answer,
    ) -> Result<Entry, String> {
        let entry = Said::Host { cpu, call };
        let outcome = (self.decide)(world, &entry, &Env::CALM);
        if !answer.is_success() {
            let good = outcome.refused.has(answer.status) && answer.x == [0; 4];
            let wrong = || format!("the run is refused with {}, oracle permits {outcome:x?}", answer.name());
            return if good { Ok(Entry::Over(answer.name())) } else { Err(wrong()) };
        }
        match outcome.done {
            Some(Done::Exit(_)) if outcome.permits(0, answer.x) => {
                apply(world, &entry, &Env::CALM);
                Ok(Entry::Over(exit_name(answer.x[0])))
            }
            Some(Done::Entered(found)) => {
                apply(world, &entry, &Env::CALM);
                Ok(Entry::Runs(found))
            }
            _ => Err(format!("the run exits with {:x?}, oracle permits {outcome:x?}", answer.x)),
        }
    }

    /// What the guest did once it ran, and how it came out. Known are x0 to x3, if nobody else has run it since, and
    /// whether it was given an exception.
    pub(crate) fn acted(
        &self,
        world: &mut World<P, V, U, G, C>,
        cpu: u8,
        (registers, is_told): (Option<[u64; 4]>, bool),
        act: Act,
        answer: Answer,
    ) -> Result<Cell, String> {
        let env = Env::CALM;
        let said = Said::Guest { cpu, act };
        let outcome = (self.decide)(world, &said, &env);
        let what = act_name(act);
        if let Some((slot, _)) = world.cpu(cpu) {
            // Whatever the specification's step says of it.
            invariant::exit(world, slot, answer.x).map_err(|broken| format!("{act:x?}: {broken:x?}"))?;
        }
        // Whom to wake is not specified; it can only be one whom this call started.
        let wakes = matches!(act, Act::Call { id: guest::PSCI_CPU_ON | guest::PSCI_CPU_ON_64, .. });
        let goes_on = match answer.x {
            [hvc::EXIT_IRQ, 0, 0, 0] => true,
            [hvc::EXIT_WAKE, 0, 0, 0] => wakes && outcome.done.is_some(),
            _ => false,
        };
        if let Some(Done::Exit(_)) = outcome.done
            && outcome.permits(0, answer.x)
        {
            apply(world, &said, &env);
            return Ok(Cell { what, outcome: exit_name(answer.x[0]) });
        }
        if !goes_on {
            return Err(format!("{act:x?} exits with {:x?}, oracle permits {outcome:x?}", answer.x));
        }
        // Where another CPU ended the VM or ran its guest meanwhile, nobody can see what this one found.
        let refused = registers.is_none_or(|x| outcome.refused.has(x[0].cast_signed()) && x[1..] == [0; 3]);
        let answers = |values: [Value; 4]| registers.is_none_or(|x| values.iter().zip(x).all(|(v, x)| v.permits(x)));
        let outcome = match outcome.done {
            _ if refused && !outcome.refused.is_empty() => "refused",
            Some(Done::Answered(values)) if answers(values) => {
                apply(world, &said, &env);
                "answered"
            }
            Some(Done::Allowed) => {
                apply(world, &said, &env);
                "goes through"
            }
            Some(Done::Aborted) if is_told => "is told so itself",
            _ => return Err(format!("{act:x?} returns {registers:x?}, oracle permits {outcome:x?}")),
        };
        apply(world, &Said::Guest { cpu, act: Act::Interrupt }, &env);
        Ok(Cell { what, outcome })
    }

    /// Whether the vCPU was given an exception since this was asked last.
    pub(crate) fn is_told(&self, call: Call) -> bool {
        let Call::VcpuRun { vm, vcpu, mmio: _ } = call else { return false };
        self.rig.take_injected(self.handle(vm), vcpu) != 0
    }

    pub(crate) fn registers(&self, call: Call) -> Option<[u64; 4]> {
        let Call::VcpuRun { vm, vcpu, mmio: _ } = call else { return None };
        self.rig.guest_registers(self.handle(vm), vcpu)
    }
}

/// Pool pages that a call needs: those of tables are counted by what the VM has used of its pool so far, which holds
/// for worlds whose guest frames all lie under one table.
fn need<const P: usize, const V: usize, const U: usize, const G: usize, const C: usize>(
    world: &World<P, V, U, G, C>,
    call: &Call,
    _list: &[Record],
) -> u64 {
    match *call {
        // A root of two frames starts at an even one.
        Call::VmCreate { ipa_bits: 40, pfn, .. } => pfn % 2 + 2,
        Call::VmCreate { .. } | Call::VcpuCreate { .. } => 1,
        Call::MemDonate { .. } | Call::MemDonateList { .. } | Call::MemShare { .. } => {
            let Some(slot) = vm_of(call) else { return 0 };
            let vm = world.vm(slot);
            let vcpus = world.vcpus[usize::from(slot)].iter().filter(|vcpu| vcpu.life != VcpuLife::Absent);
            let root_and_vcpus = 1 + u32::try_from(vcpus.count()).expect("few");
            if vm.pool.saturating_sub(vm.free) > root_and_vcpus { 0 } else { 2 }
        }
        _ => 0,
    }
}

/// Frames between two looks for interrupts.
fn stride(world: &impl State, call: &Call) -> u64 {
    let open = vm_of(call).is_some_and(|slot| world.vm(slot).life == Life::Open);
    STRIDES[usize::from(open && matches!(call, Call::MemDonate { .. } | Call::MemDonateList { .. }))]
}

/// Name of an exit.
fn exit_name(reason: u64) -> &'static str {
    hvc::EXITS.iter().find(|item| item.value.cast_unsigned() == reason).map_or("an unknown exit", |item| item.name)
}

/// Name of what a guest does.
fn act_name(act: Act) -> &'static str {
    match act {
        Act::Access { store: None, .. } => "guest load",
        Act::Access { store: Some(_), .. } => "guest store",
        Act::Fetch { .. } => "guest fetch",
        Act::Walk { .. } => "guest walk",
        Act::Call { id, .. } => {
            freehold_uapi::guest::CALLS.iter().find(|call| call.id == id).map_or("unknown guest call", |call| call.name)
        }
        Act::Wfi => "guest wfi",
        Act::Interrupt => "interrupt",
        Act::Kicked => "kick",
        Act::BadState => "guest bad state",
        Act::Abort => "guest abort",
    }
}
