// SPDX-License-Identifier: MIT OR Apache-2.0
//! Two CPUs in calls at the same time, cut at every lock, before each operation on the lock-free words, and at each guest
//! entry. What such an operation does with its words, one after the other, is loom's (`el2/virt/tests`).
//!
//! In each state of a small world, each pair of calls of which one could be done is made by two CPUs at once. All ways
//! to cut them once are tried, and all ways to cut them twice where both could be done; in larger worlds, the pairs of
//! which both could be done are cut once. What they answer and leave must
//! be what the oracle says of some serial order. A run is two steps: the entry, and what the guest does; whatever comes
//! between finds its vCPU busy.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use freehold_oracle::{Call, Done, Env, Life, Op as Said, Stray, Vm, Who, World, apply, decide};
use freehold_uapi::hvc::{self, Record};
use freehold_virt::handle::Handle;

use crate::agree::agree;
use crate::board::Fault;
use crate::lockstep::Lockstep;
use crate::op::Op;
use crate::owners::possible;
use crate::picture::Picture;
use crate::rig::Answer;
use crate::small::Shape;
use crate::turns::{Plan, Turns};

type Both<'r, const P: usize, const V: usize, const U: usize, const G: usize> = Lockstep<'r, World<P, V, U, G, 2>>;

/// Which pairs of calls are cut, and how often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Where one could be done: once. Where both could be: twice.
    #[default]
    Twice,
    /// Where both could be done: once. For worlds with too many pairs.
    Once,
}

/// What was tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) states: u64,
    pub(crate) pairs: u64,
    pub(crate) runs: u64,
    /// Calls that found a vCPU busy.
    pub(crate) busy: u64,
    excuses: bool,
    depth: Depth,
}

/// The CPU that is not this thread: what it is to do, and what came of it.
struct Other {
    work: Sender<(Arc<Turns>, Op, u64)>,
    done: Receiver<Result<Answer, String>>,
}

/// Tries all pairs in all states of a world of this shape.
///
/// `excuses`: a refusal may come of the other call being under way.
///
/// # Errors
/// The first interleaving that no serial order explains.
pub(crate) fn exhaust<const P: usize, const V: usize, const U: usize, const G: usize>(
    shape: Shape,
    depth: Depth,
    excuses: bool,
) -> Result<Seen, String> {
    let rig = shape.rig(Fault::None);
    let lists = shape.lists();
    let lists: Vec<&[Record]> = lists.iter().map(Vec::as_slice).collect();
    let both: Both<'_, P, V, U, G> = Lockstep::new(&rig, &lists);
    let mut states = Vec::new();
    shape.visit(&both, |way, world| states.push((way.to_vec(), *world)))?;
    let (anywhere, of_vms) = shape.ops();
    let mut seen = Seen { states: states.len() as u64, excuses, depth, ..Seen::default() };
    std::thread::scope(|scope| {
        let ((work, todo), (tell, done)) = (channel::<(Arc<Turns>, Op, u64)>(), channel());
        let both = &both;
        scope.spawn(move || {
            for (turns, op, handle) in todo {
                let answer = turns.join(1, || both.real_on(1, &op, handle));
                if tell.send(answer).is_err() {
                    return;
                }
            }
        });
        let other = Other { work, done };
        for (way, world) in &states {
            let ops = possible(world, &anywhere, &of_vms);
            for (number, one) in ops.iter().enumerate() {
                for two in &ops[number..] {
                    pair(both, &other, (way, world), [*one, *two], &mut seen)?;
                }
            }
        }
        Ok(seen)
    })
}

/// Whether an operation would be done if it were alone.
fn is_done<const P: usize, const V: usize, const U: usize, const G: usize>(
    both: &Both<'_, P, V, U, G>,
    world: &World<P, V, U, G, 2>,
    op: &Op,
) -> bool {
    match *op {
        Op::Host(call) => decide(world, &Said::Host { cpu: 0, call }, &Env { need: 0, ..Env::CALM }).done.is_some(),
        Op::Run { who, vcpu, mmio, .. } => {
            let call = Call::VcpuRun { vm: who, vcpu, mmio };
            decide(world, &Said::Host { cpu: 0, call }, &Env::CALM).done.is_some()
        }
        Op::Touch { frame, .. } => touch(world, frame) == Done::Revoked,
        Op::List { list, .. } => list_call(op).is_some_and(|call| {
            let env = Env { need: 0, list: both.list(list), ..Env::CALM };
            decide(world, &Said::Host { cpu: 0, call }, &env).done.is_some()
        }),
        _ => false,
    }
}

/// The call by which a list is donated.
const fn list_call(op: &Op) -> Option<Call> {
    match *op {
        Op::List { who: vm, frame: list, list: _, records, flags } => {
            Some(Call::MemDonateList { vm, list, records, flags })
        }
        _ => None,
    }
}

fn touch<const P: usize, const V: usize, const U: usize, const G: usize>(
    world: &World<P, V, U, G, 2>,
    pfn: u64,
) -> Done {
    let said = Said::Touch { pfn, write: false, from: Stray::Kernel };
    decide(world, &said, &Env::CALM).done.unwrap_or(Done::Unsaid)
}

fn pair<const P: usize, const V: usize, const U: usize, const G: usize>(
    both: &Both<'_, P, V, U, G>,
    other: &Other,
    (way, world): (&[Op], &World<P, V, U, G, 2>),
    ops: [Op; 2],
    seen: &mut Seen,
) -> Result<(), String> {
    let done = ops.iter().filter(|op| is_done(both, world, op)).count();
    let (least, twice) = match seen.depth {
        Depth::Twice => (1, done == 2),
        Depth::Once => (2, false),
    };
    if done < least {
        return Ok(());
    }
    seen.pairs += 1;
    for first in 0..2 {
        let mut points = 1;
        let mut at = 0;
        while at <= points {
            // At 0: not cut at all, which says how many points there are.
            let switches = if at == 0 { Vec::new() } else { vec![at] };
            let passed = interleaved(both, other, (way, world), ops, Plan { first, switches }, seen)?;
            points = points.max(passed);
            if at != 0 && twice {
                for again in at + 1..=passed {
                    interleaved(both, other, (way, world), ops, Plan { first, switches: vec![at, again] }, seen)?;
                }
            }
            at += 1;
        }
    }
    Ok(())
}

/// One run; the points that it passed.
fn interleaved<const P: usize, const V: usize, const U: usize, const G: usize>(
    both: &Both<'_, P, V, U, G>,
    other: &Other,
    (way, world): (&[Op], &World<P, V, U, G, 2>),
    ops: [Op; 2],
    plan: Plan,
    seen: &mut Seen,
) -> Result<usize, String> {
    let tell = |what: String| {
        let mut text = format!("{what}; after {} operations, {plan:?}", way.len());
        way.iter().for_each(|op| text.push_str(&format!("\n      {op}")));
        ops.iter().for_each(|op| text.push_str(&format!("\n  and {op}")));
        text
    };
    both.replay(way.iter()).map_err(tell)?;
    ops.iter().for_each(|op| both.write_list(op));
    let turns = Turns::new(plan.clone());
    let handles = ops.map(|op| both.handle_of(&op));
    other.work.send((Arc::clone(&turns), ops[1], handles[1])).map_err(|_| "the other CPU is gone")?;
    let mine = turns.join(0, || both.real_on(0, &ops[0], handles[0]));
    let others = other.done.recv().map_err(|_| "the other CPU is gone")?;
    let answers = [mine.map_err(tell)?, others.map_err(tell)?];
    both.rig().settle();
    ops.iter().for_each(|op| both.overwrite_list(op));
    if let Some(what) = both.rig().complaints().into_iter().next() {
        return Err(tell(what));
    }
    let picture = both.rig().picture();
    picture.judge().map_err(tell)?;
    explain(both, world, ops, answers, &picture, seen.excuses).map_err(tell)?;
    seen.runs += 1;
    seen.busy += answers.iter().filter(|answer| answer.status == hvc::VCPU_BUSY).count() as u64;
    Ok(turns.points())
}

/// Orders of two operations of up to two steps each: whose step comes next.
const ORDERS: [[usize; 4]; 6] = [[0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 1, 0], [1, 0, 0, 1], [1, 0, 1, 0], [1, 1, 0, 0]];

/// Finds a serial order that explains what was answered and left.
fn explain<const P: usize, const V: usize, const U: usize, const G: usize>(
    both: &Both<'_, P, V, U, G>,
    world: &World<P, V, U, G, 2>,
    ops: [Op; 2],
    answers: [Answer; 2],
    picture: &Picture,
    excuses: bool,
) -> Result<(), String> {
    let mut why = Vec::new();
    for order in ORDERS {
        let mut now = *world;
        let mut steps = [0, 0];
        let tried = order.into_iter().try_for_each(|cpu| {
            let step = steps[cpu];
            steps[cpu] += 1;
            if excuses && is_in_the_way(&now, ops[cpu], ops[1 - cpu], answers[cpu]) {
                return Ok(());
            }
            let kept = now.vms;
            let reserved = if excuses { reserved(&now, ops, answers[cpu]) } else { Vec::new() };
            reserved.iter().for_each(|slot| now.vms[*slot].life = Life::Open);
            let taken = advance(both, &mut now, cpu, ops, answers, step);
            reserved.iter().for_each(|slot| now.vms[*slot] = kept[*slot]);
            taken
        });
        match tried.and_then(|()| agree(picture, &now)) {
            Ok(()) => return Ok(()),
            Err(what) => why.push(what),
        }
    }
    let answers = answers.map(|answer| format!("{} {:x?}", answer.name(), answer.x));
    Err(format!("no order explains {answers:?}: {}", why.first().map_or("", String::as_str)))
}

/// The oracle takes one step of one CPU's operation.
fn advance<const P: usize, const V: usize, const U: usize, const G: usize>(
    both: &Both<'_, P, V, U, G>,
    world: &mut World<P, V, U, G, 2>,
    cpu: usize,
    ops: [Op; 2],
    answers: [Answer; 2],
    step: usize,
) -> Result<(), String> {
    let answer = answers[cpu];
    let number = u8::try_from(cpu).map_err(|_| "two CPUs")?;
    match (ops[cpu], step) {
        (Op::Host(call), 0) => both.called(world, call, &[], answer, false).map(|_| ()),
        (op @ Op::List { list, .. }, 0) => {
            let call = list_call(&op).ok_or("a list")?;
            both.called(world, call, both.list(list), answer, false).map(|_| ())
        }
        (Op::Touch { frame, .. }, 0) => {
            let again = !matches!(touch(world, frame), Done::Injected);
            apply(world, &Said::Touch { pfn: frame, write: false, from: Stray::Kernel }, &Env::CALM);
            if again == (answer.status == 1) { Ok(()) } else { Err("the access".to_owned()) }
        }
        (Op::Run { who, vcpu, mmio, .. }, 0) => {
            let call = Call::VcpuRun { vm: who, vcpu, mmio };
            both.entered(world, number, call, answer).map(|_| ())
        }
        (Op::Run { who, vcpu, mmio, act }, _) if world.cpus[cpu].is_some() => {
            let call = Call::VcpuRun { vm: who, vcpu, mmio };
            let registers = if changes_registers(ops[1 - cpu]) { None } else { both.registers(call) };
            both.acted(world, number, (registers, false), act, answer).map(|_| ())
        }
        _ => Ok(()),
    }
}

/// Whether an operation leaves a vCPU's registers other than a guest left them, so that nobody sees what that was.
const fn changes_registers(op: Op) -> bool {
    matches!(op, Op::Run { .. } | Op::Host(Call::VcpuSetReg { reg: hvc::REG_POWER, .. }))
}

/// Free slots below the one that a new VM got, where the other call creates one too: it held them for that moment.
fn reserved<const P: usize, const V: usize, const U: usize, const G: usize>(
    world: &World<P, V, U, G, 2>,
    ops: [Op; 2],
    answer: Answer,
) -> Vec<usize> {
    let creates = |op: Op| matches!(op, Op::Host(Call::VmCreate { .. }));
    let slot = Handle::decode(answer.x[0]).map_or(0, |handle| handle.slot().index());
    if !ops.into_iter().all(creates) || !answer.is_success() || world.vms.get(slot).is_none_or(Vm::exists) {
        return Vec::new();
    }
    (0..slot).filter(|slot| !world.vms[*slot].exists()).collect()
}

/// Whether a refusal comes of the other call being under way, which no serial order has: a vCPU that it has claimed
/// for a moment, or a slot that it has reserved and will not use.
fn is_in_the_way<const P: usize, const V: usize, const U: usize, const G: usize>(
    world: &World<P, V, U, G, 2>,
    op: Op,
    other: Op,
    answer: Answer,
) -> bool {
    let claims = |op: Op| match op {
        Op::Run { who, vcpu, .. }
        | Op::Host(
            Call::VcpuSetReg { vm: who, vcpu, .. }
            | Call::VcpuGetReg { vm: who, vcpu, .. }
            | Call::GuestAccept { vm: who, vcpu, .. },
        ) => Some((who, vcpu)),
        _ => None,
    };
    let creates = |op: Op| matches!(op, Op::Host(Call::VmCreate { .. }));
    if answer.status == hvc::NO_SLOT {
        return creates(op) && creates(other);
    }
    let claimed = claims(other).filter(|_| answer.status == hvc::VCPU_BUSY);
    let Some((Who::Slot(slot), vcpu)) = claimed else { return false };
    let mut busy = *world;
    let Some(vcpu) = usize::try_from(vcpu).ok().and_then(|vcpu| busy.vcpus[usize::from(slot)].get_mut(vcpu)) else {
        return false;
    };
    vcpu.running = true;
    let call = match op {
        Op::Host(call) => call,
        Op::Run { who, vcpu, mmio, .. } => Call::VcpuRun { vm: who, vcpu, mmio },
        _ => return false,
    };
    decide(&busy, &Said::Host { cpu: 0, call }, &Env::CALM).refused.has(hvc::VCPU_BUSY)
}
