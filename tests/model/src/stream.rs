// SPDX-License-Identifier: MIT OR Apache-2.0
//! The oracle beside a stream of arbitrary calls: registers instead of names, guests that do several things in a run,
//! and a book of which handle was whose.
//!
//! What no document can predict is read off the machine, within bounds: pool pages that a call took, and what becomes of
//! a vCPU whose guest trapped in a way that the specification does not tell.

use std::collections::HashSet;

use freehold_oracle::{Act as GuestAct, Call, Done, Env, Op as Said, State as _, Stray, Who, World, apply};
use freehold_uapi::hvc::{self, Record};

use crate::act::Act;
use crate::agree::{agree, life_of, waits_of};
use crate::lockstep::{Decide, Entry, Lockstep, vm_of};
use crate::picture::Picture;
use crate::rig::{Answer, Rig};

/// Every handle that a machine ever returned.
pub type Handles = HashSet<u64>;

/// The world of one machine with one vCPU per VM.
pub type Whole<const P: usize, const V: usize, const G: usize> = World<P, V, 1, G, 1>;

/// A machine, the specification, and what it knows of handles.
pub struct Stream<'r, const P: usize, const V: usize, const G: usize> {
    both: Lockstep<'r, Whole<P, V, G>>,
    world: Box<Whole<P, V, G>>,
    decide: Decide<Whole<P, V, G>>,
    now: [Option<u64>; V],
    returned: Handles,
}

/// A call that is about to be made.
#[derive(Clone, Debug)]
pub struct Asked {
    call: Call,
    list: Vec<Record>,
    hurried: bool,
}

/// Pool pages that one call may take for a root, or for the tables of a run.
const MOST_TABLES: u64 = 4;

impl<'r, const P: usize, const V: usize, const G: usize> Stream<'r, P, V, G> {
    /// Beside a machine that was just made or reset, and has returned these handles so far.
    #[must_use]
    pub fn new(rig: &'r Rig, decide: Decide<Whole<P, V, G>>, returned: Handles) -> Self {
        let both = Lockstep::new(rig, &[]).with(decide);
        let world = Box::new(both.world());
        Self { both, world, decide, now: [None; V], returned }
    }

    /// The machine was reset.
    pub fn restart(&mut self) {
        *self.world = self.both.world();
        self.now = [None; V];
    }

    /// What it knows of handles, for the next stream on this machine.
    #[must_use]
    pub fn into_handles(self) -> Handles {
        self.returned
    }

    fn who(&self, handle: u64) -> Who {
        let slot = (0..).zip(self.now).find(|(_, now)| *now == Some(handle)).map(|(slot, _)| Who::Slot(slot));
        slot.unwrap_or(if self.returned.contains(&handle) { Who::Ended } else { Who::Never })
    }

    /// What these registers ask for, before the call is made. `hurried`: an interrupt waits for the host.
    #[must_use]
    pub fn ask(&self, id: u32, x: [u64; 5], hurried: bool) -> Asked {
        let call = Call::decode(id, x, |handle| self.who(handle));
        Asked { call, list: self.both.found(&crate::op::Op::Host(call)), hurried }
    }

    /// A call that is no run was answered so.
    ///
    /// # Errors
    /// If the specification permits no such answer.
    pub fn heard(&mut self, asked: &Asked, answer: Answer, after: &Picture) -> Result<(), String> {
        let Asked { call, list, hurried } = asked;
        self.both.needs(Some(self.needed(call, list, answer, after)?));
        self.both.called(&mut self.world, *call, list, answer, *hurried)?;
        if let (Call::VmCreate { .. }, true) = (call, answer.is_success()) {
            self.begins(answer.x[0])?;
        }
        for (slot, now) in (0..).zip(&mut self.now) {
            *now = now.filter(|_| self.world.vm(slot).exists());
        }
        Ok(())
    }

    fn begins(&mut self, handle: u64) -> Result<(), String> {
        if !self.returned.insert(handle) {
            return Err(format!("{handle:#x} was the handle of another VM"));
        }
        let slot = usize::try_from(handle & 0xffff).map_err(|_| "a slot")?;
        let place = self.now.get_mut(slot).ok_or("a slot that is none")?;
        *place = Some(handle);
        Ok(())
    }

    /// Pool pages that a call needed, as the machine tells it.
    fn needed(&self, call: &Call, list: &[Record], answer: Answer, after: &Picture) -> Result<u64, String> {
        let slot = if let Call::VmCreate { .. } = call { self.free_slot() } else { vm_of(call) };
        let had = match *call {
            Call::VmCreate { count, .. } => count,
            _ => slot.map_or(0, |slot| self.world.vm(slot).free.into()),
        };
        let left = slot.and_then(|slot| after.vms.get(usize::from(slot))?.as_ref()).map(|vm| u64::from(vm.pool_free));
        let (most, least) = match call {
            Call::VcpuCreate { .. } => (1, 1),
            Call::VmCreate { .. } => (MOST_TABLES, 1),
            Call::MemDonate { .. } | Call::MemShare { .. } => (MOST_TABLES, 0),
            Call::MemDonateList { .. } => (MOST_TABLES * (list.len() as u64).max(1), 0),
            _ => return Ok(0),
        };
        let need = match (answer.status, left) {
            (hvc::SUCCESS, Some(left)) => had.checked_sub(left).ok_or("the pool has grown")?,
            (hvc::NEED_PAGES, _) => had.saturating_add(answer.x[0]),
            _ => return Ok(0),
        };
        if (least..=most).contains(&need) { Ok(need) } else { Err(format!("{call:x?} takes {need} pool pages")) }
    }

    fn free_slot(&self) -> Option<u8> {
        (0..).zip(&self.world.vms).find(|(_, vm)| !vm.exists()).map(|(slot, _)| slot)
    }

    /// A vCPU 0 was run, did these things, and the run was answered so. `busy`: the CPU was in streaming mode.
    ///
    /// # Errors
    /// If the specification permits no such end.
    pub fn ran(
        &mut self,
        asked: &Asked,
        acts: &[Act],
        busy: bool,
        answer: Answer,
        after: &Picture,
    ) -> Result<(), String> {
        let call = asked.call;
        let entry = Said::Host { cpu: 0, call };
        if busy {
            let outcome = (self.decide)(&self.world, &entry, &Env { busy, ..Env::CALM });
            let fine = outcome.permits(answer.status, answer.x) && answer.x == [0; 4];
            return if fine { Ok(()) } else { Err(format!("in streaming mode: {}, {outcome:x?}", answer.name())) };
        }
        let left_late = answer.status == hvc::DENIED && acts.contains(&Act::HostBusy);
        let told = if left_late { Answer { status: hvc::SUCCESS, x: [hvc::EXIT_IRQ, 0, 0, 0] } } else { answer };
        let Entry::Runs(found) = self.both.entered(&mut self.world, 0, call, told)? else { return Ok(()) };
        let idle = acts.iter().rev().take_while(|act| **act == Act::Interrupt).count();
        let acts = &acts[..acts.len() - idle];
        let Some((last, before)) = acts.split_last() else {
            let answered = found.map(|(x0, x1)| [x0, x1, 0, 0]);
            if answered.is_some() && self.both.registers(call) != answered {
                return Err(format!("the guest finds {:x?}, oracle says {answered:x?}", self.both.registers(call)));
            }
            return self.both.acted(&mut self.world, 0, (None, false), GuestAct::Interrupt, told).map(|_| ());
        };
        for act in before {
            if self.passes(*act)? {
                return self.end(call, *act, told, after);
            }
        }
        self.end(call, *last, told, after)
    }

    /// The guest does something behind which it does more; whether that ends its run.
    fn passes(&mut self, act: Act) -> Result<bool, String> {
        let said = Said::Guest { cpu: 0, act: told(act).ok_or("something that is not told, and not at the end")? };
        let outcome = (self.decide)(&self.world, &said, &Env::CALM);
        match outcome.done {
            Some(Done::Allowed | Done::Answered(_)) => apply(&mut *self.world, &said, &Env::CALM),
            Some(Done::Exit(_)) => return Ok(true),
            _ => {}
        }
        Ok(false)
    }

    /// The last thing that it does.
    fn end(&mut self, call: Call, act: Act, answer: Answer, after: &Picture) -> Result<(), String> {
        match told(act) {
            Some(act) => {
                let found = (self.both.registers(call), self.both.is_told(call));
                self.both.acted(&mut self.world, 0, found, act, answer).map(|_| ())
            }
            None => self.adopt(&call, after),
        }
    }

    /// Nobody says what becomes of the vCPU: it is as the machine has it. All else is as it was.
    fn adopt(&mut self, call: &Call, after: &Picture) -> Result<(), String> {
        let slot = vm_of(call).ok_or("a VM that ran")?;
        let view =
            after.vms.get(usize::from(slot)).and_then(|vm| vm.as_ref()?.vcpus[0].as_ref()).ok_or("a vCPU that ran")?;
        let old = self.world.vcpu(slot, 0);
        let vcpu = freehold_oracle::Vcpu {
            life: life_of(view.phase).ok_or("a vCPU that runs on")?,
            running: false,
            kicked: view.kicked,
            pending: waits_of(view, &old),
            power: old.power,
        };
        self.world.set_vcpu(slot, 0, vcpu);
        self.world.set_cpu(0, None);
        Ok(())
    }

    /// The host wrote to a frame, or its access faulted.
    ///
    /// # Errors
    /// If it was the other way round.
    pub fn wrote(&mut self, pfn: u64, reached: bool) -> Result<(), String> {
        if self.world.page(pfn).host_reaches() != reached {
            return Err(format!("the host reaches {pfn:#x}: {reached}, oracle {:?}", self.world.page(pfn)));
        }
        if reached {
            apply(&mut *self.world, &Said::Touch { pfn, write: true, from: Stray::User }, &Env::CALM);
        }
        Ok(())
    }

    /// A fault of the host's at a frame was reported, true or not: whether the access is made again.
    ///
    /// # Errors
    /// If it should be otherwise.
    pub fn aborted(&mut self, pfn: u64, kernel: bool, again: bool) -> Result<(), String> {
        let from = if kernel { Stray::Kernel } else { Stray::User };
        let said = Said::Touch { pfn, write: false, from };
        let right = match (self.decide)(&self.world, &said, &Env::CALM).done {
            Some(Done::Injected) => !again,
            Some(Done::Unsaid) => true,
            _ => again,
        };
        apply(&mut *self.world, &said, &Env::CALM);
        if right { Ok(()) } else { Err(format!("a fault at {pfn:#x} ({from:?}) is made again: {again}")) }
    }

    /// Compares the machine with the world.
    ///
    /// # Errors
    /// The first difference.
    pub fn agrees(&self, after: &Picture) -> Result<(), String> {
        agree(after, &*self.world)
    }
}

const WFI: u64 = 0x01 << 26;

/// What a CPU can say of an intermediate address: HPFAR_EL2 has 52 bits of it.
const fn reported(ipa: u64) -> u64 {
    ipa & ((1 << 52) - 1)
}

/// The same in the specification's words, if it has any.
fn told(act: Act) -> Option<GuestAct> {
    match act {
        Act::Interrupt => Some(GuestAct::Interrupt),
        Act::Hvc { imm: 0, x } => Some(GuestAct::Call { id: u32::try_from(x[0]).ok()?, x: [x[1], x[2], x[3]] }),
        Act::Access { ipa, size, store, described } => {
            Some(GuestAct::Access { ipa: reported(ipa), size, store, described })
        }
        Act::Fetch { ipa } => Some(GuestAct::Fetch { ipa: reported(ipa) }),
        Act::Walk { ipa } => Some(GuestAct::Walk { ipa: reported(ipa) }),
        Act::Trap { esr: WFI } => Some(GuestAct::Wfi),
        Act::SError => Some(GuestAct::Abort),
        Act::BadState => Some(GuestAct::BadState),
        // Of leaving streaming mode on it tells the entry only; behind that the vCPU has left.
        Act::HostBusy => Some(GuestAct::Interrupt),
        Act::Hvc { .. } | Act::Trap { .. } | Act::Abort { .. } => None,
    }
}
