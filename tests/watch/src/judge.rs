// SPDX-License-Identifier: MIT OR Apache-2.0
//! Compares a call with what the specification says of it.
//!
//! Where a call takes locks, it is judged when the last of them is let go: what changed must be what the specification
//! changes, and a call that it refuses must have changed nothing. The answer is compared when the CPU leaves. What is
//! decided without a lock (handles, claims on vCPUs, kicks) is judged by the records as they were when the CPU came and
//! as they are when it leaves; if they changed meanwhile, or another CPU made a call that names the same VM, any
//! documented answer will do, and that is counted.

use core::fmt;
use freehold_el2::calls::MAX_CPUS;
use freehold_oracle::{Call, Done, Env, Life, Op, Outcome, Pending, Stray, Who, apply, decide};
use freehold_uapi::hvc;
use freehold_virt::handle::{Handle, MAX_VMS};

use crate::cpu::{Books, Cpu, Verdict};
use crate::given::Found;
use crate::shadow::{Shadow, Word};
use crate::spec::{View, Vms};
use crate::turn::{self, Stopped};

/// What is not as it must be.
#[derive(Clone, Copy)]
pub enum Difference {
    /// The call went through, and must be refused.
    Went(Outcome),
    /// The call was refused, and must go through.
    Refused(Outcome),
    /// It answered so.
    Answer {
        /// x0–x4.
        x: [u64; 5],
        /// What it may answer.
        outcome: Outcome,
    },
    /// The VM's books are not what they must be.
    Books {
        /// The slot.
        slot: u8,
        /// As they must be.
        must: freehold_oracle::Vm,
        /// As they are.
        are: Books,
    },
    /// A run does not end as what its guest did must.
    Exit {
        /// What it did last, if it ran.
        did: Option<Stopped>,
        /// x1 to x4.
        x: [u64; 4],
    },
    /// A vCPU does not wait for what its exit asks for.
    Waits {
        /// x1 to x4.
        x: [u64; 4],
        /// What it waits for.
        now: Pending,
    },
    /// A guest goes on that must come out, or finds an answer that its call does not have.
    Guest {
        /// What it did.
        did: Stopped,
        /// x0 to x3 when it goes on.
        x: [u64; 4],
    },
    /// A guest does not find the external abort that its access is, or finds more than that.
    Given {
        /// What it did.
        did: Stopped,
        /// x0 to x3 afterwards.
        x: [u64; 4],
        /// What else it finds.
        found: Found,
    },
    /// Something in one sentence.
    Said(&'static str),
}

impl fmt::Debug for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Went(outcome) => write!(f, "it went through, and must be refused with {:?}", outcome.refused),
            Self::Refused(outcome) => write!(f, "it changed nothing, and must come to {:x?}", outcome.done),
            Self::Answer { x, outcome } => {
                let status = x[0].cast_signed();
                write!(f, "it answers {status} {:x?}, may be refused with {:?}", &x[1..], outcome.refused)?;
                write!(f, " or come to {:x?}", outcome.done)
            }
            Self::Books { slot, must, are } => write!(f, "slot {slot} must be {must:?}, and is {are:x?}"),
            Self::Exit { did, x } => write!(f, "the run ends with {x:x?}, and its guest did {did:x?}"),
            Self::Waits { x, now } => write!(f, "the run ends with {x:x?}, and its vCPU waits for {now:x?}"),
            Self::Guest { did, x } => write!(f, "the guest goes on with {x:x?}, and did {did:x?}"),
            Self::Given { did, x, found } => {
                write!(
                    f,
                    "the guest must find its own external abort, and finds {x:x?} and {found:x?}; it did {did:x?}"
                )
            }
            Self::Said(what) => f.write_str(what),
        }
    }
}

/// Whether a function identifier is of the host's calls.
#[must_use]
pub const fn is_ours(id: u32) -> bool {
    id >= hvc::BASE && id < hvc::BASE + 0x80
}

fn call_of(vms: &Vms, id: u32, x: [u64; 5]) -> Call {
    Call::decode(id, x, |handle| vms.who(handle))
}

/// The slot of a call's VM.
#[must_use]
pub fn slot_of(vms: &Vms, id: u32, x: [u64; 5]) -> Option<u8> {
    if matches!(id, hvc::VERSION | hvc::COUNTER | hvc::VM_CREATE) {
        return None;
    }
    match vms.who(x[0]) {
        Who::Slot(slot) => Some(slot),
        Who::Ended | Who::Never => None,
    }
}

/// The slot whose next VM a call names: there is none yet, as the records have it.
#[must_use]
pub fn next_of(vms: &Vms, id: u32, x: [u64; 5]) -> Option<u8> {
    if matches!(id, hvc::VERSION | hvc::COUNTER | hvc::VM_CREATE) {
        return None;
    }
    let handle = Handle::decode(x[0]).ok()?;
    let slot = handle.slot().raw();
    let records = vms.slot(slot)?;
    (records.vm.life == Life::Free && handle.generation().get() == records.generation).then_some(slot)
}

/// Whether a call claims a vCPU, if only for a moment.
#[must_use]
pub const fn claims(id: u32) -> bool {
    matches!(id, hvc::VCPU_RUN | hvc::VCPU_SET_REG | hvc::VCPU_GET_REG | hvc::GUEST_ACCEPT)
}

/// Guest frames that a call is about.
#[derive(Clone, Copy, Debug)]
pub enum Places {
    /// None.
    None,
    /// A run: its first and how many.
    Run((u64, u64)),
    /// Those of the list that el2 has copied.
    List,
}

/// The guest frames of this CPU's call, by the records as they are before it is judged.
#[must_use]
pub fn places(cpu: &Cpu, vms: &Vms, pages: &Shadow, slot: u8) -> Places {
    use crate::cpu::Trap;
    let run = |first, count| if count <= hvc::MAX_RUN { Places::Run((first, count)) } else { Places::None };
    match cpu.trap {
        Trap::Call { id: hvc::MEM_DONATE | hvc::MEM_SHARE, x } => run(x[2], x[3]),
        Trap::Call { id: hvc::MEM_UNSHARE, x } => run(x[1], x[2]),
        Trap::Call { id: hvc::MEM_DONATE_LIST, x: _ } => Places::List,
        Trap::Call { id: hvc::GUEST_ACCEPT, x } => match vms.vcpu(slot, x[1]).pending {
            Pending::Request { gfn, count, kind: _ } => run(gfn.into(), count.into()),
            Pending::None | Pending::Load { .. } | Pending::Answer { .. } => Places::None,
        },
        Trap::Abort { page, kernel: _ } => match pages.word(page >> 12).and_then(Word::place) {
            Some((of, gfn)) if of == slot => run(gfn, 1),
            Some(_) | None => Places::None,
        },
        Trap::Call { .. } | Trap::Other => Places::None,
    }
}

/// A VM's lock is about to be let go, its books having been `then` and being `now`.
///
/// # Errors
/// What is not as it must be.
pub fn guest(
    cpu: &mut Cpu,
    vms: &Vms,
    pages: &mut Shadow,
    slot: u8,
    then: &Books,
    now: &Books,
) -> Result<(), Difference> {
    use crate::cpu::Trap;
    match cpu.trap {
        Trap::Call { id, x } if is_ours(id) => {
            let call = call_of(vms, id, x);
            if let Call::VcpuRun { vcpu, .. } = call {
                run(cpu, vms, pages, (slot, vcpu), then, now)?;
            } else {
                one(cpu, vms, pages, slot, &call, then, now)?;
            }
        }
        Trap::Abort { page, kernel } => touch(cpu, vms, pages, page, kernel),
        // The machine goes off, and its VMs end.
        Trap::Call { .. } | Trap::Other => {
            if now.life == freehold_mem::Life::Dying {
                vms.change(slot, |slot| slot.vm.life = Life::Dying);
            }
        }
    }
    books(vms, slot, now)
}

/// A call that takes its locks once.
fn one(
    cpu: &mut Cpu,
    vms: &Vms,
    pages: &mut Shadow,
    slot: u8,
    call: &Call,
    then: &Books,
    now: &Books,
) -> Result<(), Difference> {
    if cpu.verdict.is_some() {
        return Err(Difference::Said("it takes the VM's lock twice"));
    }
    let need = if let Call::VmCreate { count, .. } = *call {
        count.saturating_sub(now.pool_free.into())
    } else {
        then.pool_free.saturating_sub(now.pool_free).into()
    };
    let (looks, wanted) = cpu.looks;
    let measured = then.life == freehold_mem::Life::Building;
    let measured = measured && matches!(call, Call::MemDonate { .. } | Call::MemDonateList { .. });
    let done = if wanted { (if measured { 4 } else { 32 }) * looks } else { hvc::MAX_RUN };
    let op = Op::Host { cpu: 0, call: *call };
    let env = Env { slot, need, done, list: cpu.records(), ..Env::CALM };
    let mut view = View { pages: Some(pages), vms, runs: None };
    let outcome = decide(&view, &op, &env);
    // What some change does not always show in the VM's books.
    let hidden = matches!(
        call,
        Call::VmReclaim { .. }
            | Call::VmGic { .. }
            | Call::MemUnshare { .. }
            | Call::GuestAccept { .. }
            | Call::VcpuSetReg { .. }
            | Call::VcpuGetReg { .. }
    );
    let did = if hidden { outcome.done.is_some() } else { then != now };
    let verdict = if did {
        if outcome.done.is_none() {
            return Err(Difference::Went(outcome));
        }
        apply(&mut view, &op, &env);
        if let Call::VmGic { distributor, redistributors, .. } = *call {
            vms.change(slot, |slot| slot.frames = Some([distributor, redistributors]));
        }
        Verdict { outcome, did: true }
    } else {
        // A pool that is too small is the one thing that the specification is told.
        let short = decide(&view, &op, &Env { need: u64::MAX, ..env });
        let refused = outcome.refused.and(short.refused);
        Verdict { outcome: Outcome { refused, done: None, ..outcome }, did: false }
    };
    cpu.verdict = Some(verdict);
    Ok(())
}

/// One of the looks at a VM's memory that a run takes.
fn run(
    cpu: &mut Cpu,
    vms: &Vms,
    pages: &mut Shadow,
    (slot, vcpu): (u8, u64),
    then: &Books,
    now: &Books,
) -> Result<(), Difference> {
    if then != now {
        let starts = (then.life, now.life) == (freehold_mem::Life::Building, freehold_mem::Life::Running);
        if !starts || (Books { life: now.life, ..*then }) != *now {
            return Err(Difference::Said("a run changes the VM's books"));
        }
        vms.change(slot, |slot| slot.vm.life = Life::Ran);
    }
    if let Some(stopped) = &mut cpu.stopped {
        stopped.look(&mut View { pages: Some(pages), vms, runs: Some((slot, vcpu as u8)) }, cpu.holds_host)?;
    }
    Ok(())
}

/// The host touched a page that was not mapped for it.
pub fn touch(cpu: &mut Cpu, vms: &Vms, pages: &mut Shadow, page: u64, kernel: bool) {
    if cpu.verdict.is_some() {
        return;
    }
    let from = if kernel { Stray::Kernel } else { Stray::User };
    let op = Op::Touch { pfn: page >> 12, write: false, from };
    let mut view = View { pages: Some(pages), vms, runs: None };
    let outcome = decide(&view, &op, &Env::CALM);
    let did = outcome.done == Some(Done::Revoked);
    if did {
        apply(&mut view, &op, &Env::CALM);
    }
    cpu.verdict = Some(Verdict { outcome, did });
}

/// A VM's books against its records.
fn books(vms: &Vms, slot: u8, now: &Books) -> Result<(), Difference> {
    use freehold_mem::Life as Real;
    let Some(records) = vms.slot(slot) else { return Ok(()) };
    let vm = records.vm;
    let life = match now.life {
        Real::Free => Life::Free,
        Real::Building => Life::Open,
        Real::Running => Life::Ran,
        Real::Dying => Life::Dying,
    };
    // Of a VM that is being taken apart the free list is not kept any more.
    let free = life == Life::Dying || u64::from(vm.free) == u64::from(now.pool_free);
    let frames = (u64::from(vm.guest), u64::from(vm.borrowed)) == now.frames;
    let range = |run: &Option<freehold_mem::GfnRun>| run.as_ref().map(|run| (run.start().raw(), run.count()));
    let ram = life == Life::Free || now.ram.iter().zip(&records.ranges).all(|(are, must)| range(are) == *must);
    if life == vm.life && free && frames && ram { Ok(()) } else { Err(Difference::Books { slot, must: vm, are: *now }) }
}

/// What a CPU knew when it came.
#[derive(Clone, Copy, Debug, Default)]
pub struct Came {
    /// The slot that its call names.
    pub slot: Option<u8>,
    /// That, or the one whose next VM it names.
    pub counts: Option<u8>,
    /// Version of the slot's records.
    pub version: u64,
    /// What might come of it.
    pub outcome: Option<Outcome>,
}

/// The CPU comes with a call, which names this slot's VM, or its next one.
#[must_use]
pub fn comes(vms: &Vms, id: u32, x: [u64; 5], slot: Option<u8>, counts: Option<u8>) -> Came {
    let version = slot.and_then(|slot| vms.slot(slot)).map_or(0, |slot| slot.version);
    Came { slot, counts, version, outcome: Some(unlocked(vms, id, x)) }
}

/// What the records say of a call without a look at any page.
fn unlocked(vms: &Vms, id: u32, x: [u64; 5]) -> Outcome {
    let view = View { pages: None, vms, runs: None };
    decide(&view, &Op::Host { cpu: 0, call: call_of(vms, id, x) }, &Env::CALM)
}

/// Whether the documents list the status for the call.
fn is_documented(id: u32, status: i64) -> bool {
    let name = hvc::STATUSES.iter().find(|item| item.value == status).map(|item| item.name);
    let errors = hvc::CALLS.iter().find(|call| call.id == id).map(|call| call.errors);
    status == hvc::SUCCESS || errors.zip(name).is_some_and(|(errors, name)| errors.contains(&name))
}

/// What other CPUs did with the VM of a call while it was made.
#[derive(Clone, Copy, Debug)]
pub struct Others {
    /// One made a call that names it.
    pub called: bool,
    /// One had a claim on a vCPU of it.
    pub claimed: bool,
    /// One made a VM.
    pub created: bool,
}

/// The CPU leaves with this in x0–x4. Says whether the answer could be judged.
///
/// # Errors
/// What is not as it must be.
pub fn answer(cpu: &Cpu, vms: &Vms, id: u32, x: [u64; 5], others: Others) -> Result<bool, Difference> {
    use crate::cpu::Trap;
    let Trap::Call { x: arguments, .. } = cpu.trap else { return Ok(true) };
    let status = x[0].cast_signed();
    let results = [x[1], x[2], x[3], x[4]];
    let busy = status == hvc::VCPU_BUSY && others.claimed;
    let closing = status == hvc::NO_VMS && cpu.closing;
    if cpu.busy {
        let right = id == hvc::VCPU_RUN && status == hvc::DENIED && results == [0; 4];
        return if right { Ok(true) } else { Err(Difference::Said("it runs a guest while the host can not be left")) };
    }
    if let Some(Verdict { outcome, did }) = cpu.verdict {
        let short = status == hvc::NEED_PAGES && !did && results[0] != 0 && results[1..] == [0; 3];
        let listed = outcome.refused.has(status);
        let right = if did { outcome.permits(status, results) } else { busy || closing || listed };
        let silent = status == hvc::SUCCESS || short || results == [0; 4];
        let wrong = Difference::Answer { x, outcome };
        return if right && silent { Ok(true) } else { Err(wrong) };
    }
    let before = cpu.came.outcome.unwrap_or(Outcome::refused(freehold_oracle::Statuses::NONE));
    let after = unlocked(vms, id, arguments);
    if id == hvc::VCPU_RUN && status == hvc::SUCCESS {
        turn::exit(cpu, cpu.came.counts.and_then(|slot| vms.slot(slot)).is_some_and(|slot| slot.vm.gic), results)?;
        // Whether it may be run at all.
        let may = before.done.is_some() || after.done.is_some();
        return if may || others.called { Ok(may) } else { Err(Difference::Answer { x, outcome: after }) };
    }
    // A refusal leaves what the vCPU waits for.
    if id == hvc::VCPU_RUN && cpu.waits.is_some_and(|(then, now)| then != now) {
        return Err(Difference::Said("a run was refused, and its vCPU waits for something else"));
    }
    // A value that is counted while others count on is not compared.
    let counted = id == hvc::COUNTER && status == hvc::SUCCESS;
    let permits = |outcome: &Outcome| outcome.permits(status, results) || (counted && outcome.done.is_some());
    if permits(&before) || permits(&after) || busy || closing {
        return Ok(true);
    }
    let version = cpu.came.slot.and_then(|slot| vms.slot(slot)).map_or(0, |slot| slot.version);
    // A slot is free or taken a moment before its records say so.
    if (id, status) == (hvc::VM_CREATE, hvc::NO_SLOT) && vms.count() + MAX_CPUS >= MAX_VMS {
        return Ok(false);
    }
    let changed = slot_of(vms, id, arguments) != cpu.came.slot || version != cpu.came.version;
    // A VM can be named a moment before its records say so.
    let born = others.created && cpu.came.slot.is_none() && cpu.came.counts.is_some();
    if (changed || born || others.called) && is_documented(id, status) {
        return Ok(false);
    }
    Err(Difference::Answer { x, outcome: after })
}
