// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest's turn: what brought it out, read from its registers, and what the specification makes of that.
//!
//! What was decided under a lock is judged when that lock is let go: calls about CPUs under the board's, whatever is
//! about memory under the VM's. The rest depends on nothing that can change. Interrupt controllers are not specified: in a
//! VM with one, what a guest does to its frames stays in el2, whatever comes of it, and a wait may.

use freehold_el2::calls::Stop;
use freehold_oracle::{
    Act, Done, Env, Kind, Mark, Op, Outcome, Pending, Power, State, Statuses, Value, VcpuLife, apply, decide,
};
use freehold_uapi::{guest, hvc};

use crate::cpu::Cpu;
use crate::given::{Found, Made, is_external_abort};
use crate::judge::Difference;
use crate::spec::{View, Vms};

/// What can be seen of a guest that stopped.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// x0 to x3.
    pub x: [u64; 4],
    /// Where it was, and in which state.
    pub at: [u64; 2],
    /// The register that an access's syndrome names.
    pub stored: u64,
    /// When its timers will fire that may; zero: never.
    pub deadlines: [u64; 2],
}

/// What brought it out.
#[derive(Clone, Copy, Debug)]
enum Reason {
    /// Nothing that anybody is told.
    Nothing,
    /// This.
    Act(Act),
    /// An access to what is mapped, but not for this.
    Denied(Act),
    /// Maintenance of caches by address.
    Cleans(Act),
    /// A call that nobody serves.
    Unserved,
}

/// How the running guest stopped last, and what may come of it.
#[derive(Clone, Copy, Debug)]
pub struct Stopped {
    reason: Reason,
    x: [u64; 4],
    /// What it was told by, if an exception of its own did that.
    made: Option<Made>,
    deadlines: [u64; 2],
    /// Said when it stopped, without a look at any page.
    first: Outcome,
    /// Said under the lock under which el2 decides.
    looked: Option<Outcome>,
    /// The VM's lock was taken since, and let go of.
    has_looked: bool,
    /// How often the board was let go of since: once with what the list registers held, then behind a call about CPUs.
    boards: u8,
}

/// Exception classes and bits of a syndrome (Arm ARM, `ESR_ELx`).
mod esr {
    pub(super) const WFX: u64 = 0x01;
    pub(super) const ILLEGAL_STATE: u64 = 0x0e;
    pub(super) const HVC: u64 = 0x16;
    pub(super) const SMC: u64 = 0x17;
    pub(super) const SYSREG: u64 = 0x18;
    pub(super) const FETCH: u64 = 0x20;
    pub(super) const DATA: u64 = 0x24;
    /// Of instructions that only `AArch32` has.
    pub(super) const NARROW: [u64; 8] = [0x03, 0x04, 0x05, 0x06, 0x08, 0x0c, 0x11, 0x12];
    /// Of instructions that a guest is told it does not have.
    pub(super) const HIDDEN: [u64; 10] = [0x00, 0x07, 0x09, 0x0a, 0x14, 0x19, 0x1a, 0x1b, 0x1d, 0x27];
    pub(super) const WALK: u64 = 1 << 7;
    pub(super) const STORE: u64 = 1 << 6;
    pub(super) const CLEANS: u64 = 1 << 8;
    pub(super) const DESCRIBED: u64 = 1 << 24;
}

fn reason(stop: &Stop, seen: &Seen) -> Reason {
    let trap = match stop {
        Stop::Trap(trap) => *trap,
        Stop::Interrupt => return Reason::Act(Act::Interrupt),
        Stop::SError => return Reason::Act(Act::Abort),
        Stop::BadState => return Reason::Act(Act::BadState),
        Stop::Own | Stop::HostBusy => return Reason::Nothing,
    };
    match trap.esr >> 26 & 0x3f {
        // WFI; WFE waits for nothing, and their forms with a time are hidden.
        esr::WFX if trap.esr & 3 == 0 => Reason::Act(Act::Wfi),
        esr::HVC if trap.esr & 0xffff == 0 => {
            let [id, x @ ..] = seen.x;
            // 32 bits of it, without SMCCC's hint that no SVE state is live.
            Reason::Act(Act::Call { id: id as u32 & !(1 << 16), x })
        }
        esr::HVC | esr::SMC => Reason::Unserved,
        esr::WFX | esr::SYSREG => Reason::Nothing,
        class if esr::HIDDEN.contains(&class) => Reason::Nothing,
        class if class == esr::ILLEGAL_STATE || esr::NARROW.contains(&class) => Reason::Act(Act::BadState),
        class @ (esr::FETCH | esr::DATA) => access(&trap, class == esr::FETCH, seen.stored),
        _ => Reason::Act(Act::Abort),
    }
}

/// An abort of a load, a store or a fetch.
fn access(trap: &freehold_virt::vcpu::Trap, fetches: bool, stored: u64) -> Reason {
    let has = |bit: u64| trap.esr & bit != 0;
    let status = trap.esr & 0x3f;
    let denied = status & !3 == 0xc;
    if status >= 8 && !denied {
        return Reason::Act(Act::Abort);
    }
    let page = (trap.hpfar >> 4 & 0xff_ffff_ffff) << 12;
    let ipa = page | trap.far & 0xfff;
    let size = 1 << (trap.esr >> 22 & 3);
    let act = match (has(esr::WALK), fetches) {
        (true, _) => Act::Walk { ipa: page },
        (false, true) => Act::Fetch { ipa },
        (false, false) => {
            Act::Access { ipa, size, store: has(esr::STORE).then_some(stored), described: has(esr::DESCRIBED) }
        }
    };
    match (denied, matches!(act, Act::Access { .. }) && has(esr::CLEANS)) {
        (true, _) => Reason::Denied(act),
        (false, true) => Reason::Cleans(act),
        (false, false) => Reason::Act(act),
    }
}

/// Whether a call is PSCI's.
fn is_of_cpus(id: u32) -> bool {
    guest::CALLS.iter().any(|call| call.id == id && call.name.starts_with("PSCI"))
}

/// Whether a call says what of its devices a guest lets its host see.
fn is_of_devices(id: u32) -> bool {
    matches!(id, guest::MMIO_GUARD_ENROLL | guest::MMIO_GUARD_MAP | guest::MMIO_GUARD_UNMAP)
}

const fn exits(reason: u64, payload: u64) -> Outcome {
    Outcome::done(Done::Exit([Value::Is(reason), Value::Is(payload), Value::Is(0), Value::Is(0)]))
}

/// The reason of an exit.
fn reason_of(done: Option<Done>) -> Option<u64> {
    match done {
        Some(Done::Exit([Value::Is(reason), ..])) => Some(reason),
        _ => None,
    }
}

impl Stopped {
    /// A vCPU stopped so.
    #[must_use]
    pub fn new(stop: &Stop, seen: &Seen, vms: &Vms, vcpu: (u8, u64)) -> Self {
        let reason = reason(stop, seen);
        let first = reason.outcome(&View { pages: None, vms, runs: Some((vcpu.0, vcpu.1 as u8)) });
        let [pc, pstate] = seen.at;
        let made = match stop {
            Stop::Trap(trap) => Some(Made { esr: trap.esr, far: trap.far, pc, pstate }),
            Stop::Interrupt | Stop::SError | Stop::BadState | Stop::Own | Stop::HostBusy => None,
        };
        Self { reason, x: seen.x, made, deadlines: seen.deadlines, first, looked: None, has_looked: false, boards: 0 }
    }

    /// The VM's lock is held for the last moment, in which el2 has decided. A call about devices is decided, and carried
    /// out, with the host's lock held too: a look without that is none.
    ///
    /// # Errors
    /// If el2 looked before: what it saw then may be otherwise by now.
    pub fn look(&mut self, view: &mut View<'_>, holds_host: bool) -> Result<(), Difference> {
        if core::mem::replace(&mut self.has_looked, true) {
            return Err(Difference::Said("a run takes the VM's lock twice for one decision"));
        }
        if let Reason::Act(act @ Act::Call { id, .. }) = self.reason
            && is_of_devices(id)
        {
            if !holds_host {
                return Ok(());
            }
            let op = Op::Guest { cpu: 0, act };
            let outcome = decide(view, &op, &Env::CALM);
            if outcome.done.is_some() {
                apply(view, &op, &Env::CALM);
            }
            self.looked = Some(outcome);
        } else if !matches!(self.reason, Reason::Act(Act::Call { id, .. }) if is_of_cpus(id)) {
            self.looked = Some(self.reason.outcome(view));
        }
        Ok(())
    }

    /// The board's lock is. If a call about CPUs was served under it, that is carried out.
    pub fn let_go_of_board(&mut self, vms: &Vms, (slot, vcpu): (u8, u64)) {
        self.boards = self.boards.saturating_add(1);
        if let Reason::Act(act @ Act::Call { id, .. }) = self.reason
            && is_of_cpus(id)
            && self.boards == 2
        {
            let mut view = View { pages: None, vms, runs: Some((slot, vcpu as u8)) };
            let op = Op::Guest { cpu: 0, act };
            let outcome = decide(&view, &op, &Env::CALM);
            if outcome.done.is_some() {
                apply(&mut view, &op, &Env::CALM);
            }
            self.looked = Some(outcome);
        }
    }

    fn outcome(&self) -> Outcome {
        self.looked.unwrap_or(self.first)
    }

    /// Whether the vCPU can not go on.
    #[must_use]
    pub fn crashes(&self) -> bool {
        reason_of(self.outcome().done) == Some(hvc::EXIT_CRASH)
    }

    /// Whether el2 must have looked at the VM's memory to decide it; of a call about devices with the host's lock held too.
    fn needs_a_look(&self) -> bool {
        match self.reason {
            Reason::Act(Act::Access { .. } | Act::Fetch { .. } | Act::Walk { .. }) => true,
            Reason::Act(Act::Call { id, .. }) => is_of_devices(id),
            Reason::Denied(_) | Reason::Cleans(_) => true,
            Reason::Act(_) | Reason::Nothing | Reason::Unserved => false,
        }
    }

    /// Whether the guest finds what it must, where what it did is its own external abort: that, and its registers as they
    /// were.
    fn is_given(&self, x: [u64; 4], found: &Found) -> bool {
        let barred = self.outcome().done == Some(Done::Aborted);
        !barred || x == self.x && self.made.is_some_and(|made| is_external_abort(&made, found))
    }

    /// The guest goes on, with this in x0 to x3, and finds this. `gic`: its VM has an interrupt controller.
    ///
    /// # Errors
    /// If it must come out, or finds an answer that its call does not have, or another exception than its own.
    pub fn goes_on(&self, gic: bool, x: [u64; 4], found: &Found) -> Result<(), Difference> {
        let outcome = self.outcome();
        // A controller answers without a look at memory.
        let looks = outcome.done == Some(Done::Aborted) || matches!(self.reason, Reason::Act(Act::Call { .. }));
        if looks && self.needs_a_look() && self.looked.is_none() {
            return Err(Difference::Said(
                "what a guest did about its devices was decided without the locks that it takes",
            ));
        }
        if !self.is_given(x, found) {
            return Err(Difference::Given { did: *self, x, found: *found });
        }
        let calls = matches!(self.reason, Reason::Act(Act::Call { .. }) | Reason::Unserved);
        let right = match outcome.done {
            _ if calls && outcome.refused.has(x[0].cast_signed()) => x[1..] == [0; 3],
            Some(Done::Answered(values)) => values.iter().zip(x).all(|(value, x)| value.permits(x)),
            Some(Done::Allowed | Done::Aborted | Done::Unsaid) => true,
            done => match reason_of(done) {
                Some(hvc::EXIT_WFI) => gic && (!calls || x == [0; 4]),
                _ => false,
            },
        };
        if right { Ok(()) } else { Err(Difference::Guest { did: *self, x }) }
    }

    /// Whether a run may end so because of it: x1 to x4.
    fn permits(&self, gic: bool, x: [u64; 4]) -> bool {
        let Outcome { refused, done, .. } = self.outcome();
        let reason = reason_of(done);
        let goes = !refused.is_empty() || !matches!(done, Some(Done::Exit(_)));
        let stays = gic && reason == Some(hvc::EXIT_WFI);
        let rests = gic && reason == Some(hvc::EXIT_OFF) && x[0] == hvc::EXIT_EOI;
        if besides(gic, x) && (goes || stays || rests) {
            return true;
        }
        match done {
            Some(Done::Exit([Value::Is(hvc::EXIT_WFI), ..])) => {
                let known = x[1] == 0 || gic && self.deadlines.contains(&x[1]);
                x[0] == hvc::EXIT_WFI && known && x[2..] == [0; 2]
            }
            Some(Done::Exit(values)) => values.iter().zip(x).all(|(value, x)| value.permits(x)),
            _ => false,
        }
    }
}

impl Reason {
    fn outcome(&self, view: &View<'_>) -> Outcome {
        let said = |act| decide(view, &Op::Guest { cpu: 0, act }, &Env::CALM);
        match *self {
            Self::Nothing => Outcome::done(Done::Allowed),
            Self::Unserved => Outcome::refused(Statuses::one(guest::NOT_SUPPORTED)),
            Self::Act(act) | Self::Cleans(act) | Self::Denied(act) => {
                let outcome = said(act);
                match (self, page_of(&act).map(|gfn| (gfn, stands(view, gfn)))) {
                    // Another vCPU's fault brought it meanwhile; whether it may do this is for the next try to show.
                    (Self::Act(_) | Self::Cleans(_), Some((_, true))) => Outcome::done(Done::Allowed),
                    // Its interrupt controller answers, or the guest gets a fault.
                    (Self::Act(_), Some((gfn, _))) if !is_of_ram(&outcome) && is_of_controller(view, gfn) => {
                        Outcome::done(Done::Allowed)
                    }
                    // There is no cache of what is no memory.
                    (Self::Cleans(_), Some(_)) if !is_of_ram(&outcome) => Outcome::done(Done::Allowed),
                    // A protected guest's memory is mapped for everything; the host is asked for what it lent for less.
                    (Self::Denied(_), Some((gfn, true))) if !is_protected(view) => exits(hvc::EXIT_MEM_FAULT, gfn),
                    (Self::Denied(_), Some((_, true))) => exits(hvc::EXIT_CRASH, hvc::CRASH_ABORT),
                    (Self::Denied(_), _) if !is_of_ram(&outcome) => exits(hvc::EXIT_CRASH, hvc::CRASH_ABORT),
                    _ => outcome,
                }
            }
        }
    }
}

fn is_protected(view: &View<'_>) -> bool {
    view.runs.is_some_and(|(slot, _)| view.vm(slot).protected)
}

/// The guest frame that an act is about.
const fn page_of(act: &Act) -> Option<u64> {
    match act {
        Act::Access { ipa, .. } | Act::Fetch { ipa } | Act::Walk { ipa } => Some(*ipa >> 12),
        Act::Call { .. } | Act::Wfi | Act::Interrupt | Act::Kicked | Act::BadState | Act::Abort => None,
    }
}

/// Whether something is mapped there.
fn stands(view: &View<'_>, gfn: u64) -> bool {
    let backed = |slot| view.backing(slot, gfn).is_some() || matches!(view.mark(slot, gfn), Mark::Borrow { .. });
    view.runs.is_some_and(|(slot, _)| backed(slot))
}

/// Whether that is a frame of its interrupt controller.
fn is_of_controller(view: &View<'_>, gfn: u64) -> bool {
    view.runs.and_then(|(slot, _)| view.vms.slot(slot)).is_some_and(|slot| slot.is_of_controller(gfn))
}

/// Whether an access comes to what one to RAM comes to.
fn is_of_ram(outcome: &Outcome) -> bool {
    match outcome.done {
        Some(Done::Exit([Value::Is(hvc::EXIT_CRASH), why, ..])) => why.permits(hvc::CRASH_POISONED),
        Some(Done::Aborted) => false,
        done => reason_of(done) != Some(hvc::EXIT_MMIO),
    }
}

/// Ways to come out that have nothing to do with what the guest did: x1 to x4.
fn besides(gic: bool, x: [u64; 4]) -> bool {
    match x {
        [hvc::EXIT_KICKED | hvc::EXIT_WAKE, 0, 0, 0] => true,
        [hvc::EXIT_EOI, spi, 0, 0] => gic && (32..256).contains(&spi),
        _ => false,
    }
}

/// What an exit leaves to be answered. How wide a load is, is not looked at.
fn leaves(x: [u64; 4]) -> Pending {
    let [reason, a, b, _] = x;
    let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    let ask = |kind| Pending::Request { kind, gfn: number(a), count: number(b) };
    match reason {
        hvc::EXIT_SHARE => ask(Kind::Share),
        hvc::EXIT_UNSHARE => ask(Kind::Unshare),
        hvc::EXIT_RELINQUISH => ask(Kind::Relinquish),
        hvc::EXIT_MMIO if b & hvc::MMIO_WRITE == 0 => Pending::Load { size: 0 },
        _ => Pending::None,
    }
}

/// A run ends with this in x1 to x4.
///
/// # Errors
/// If it is not what the last thing that its guest did comes to, or if it leaves something else to be answered.
pub fn exit(cpu: &Cpu, gic: bool, x: [u64; 4]) -> Result<(), Difference> {
    let right = match (cpu.arrived, &cpu.stopped) {
        (None, _) => return Err(Difference::Said("a run ends that never began")),
        (Some(Power::Off), None) => x == [hvc::EXIT_OFF, 0, 0, 0] || x[0] == hvc::EXIT_EOI && besides(gic, x),
        (Some(_), None) => x[0] != hvc::EXIT_WAKE && besides(gic, x),
        (Some(_), Some(stopped)) if stopped.needs_a_look() && stopped.looked.is_none() => {
            return Err(Difference::Said("an access was decided without a look at the VM's memory"));
        }
        (Some(_), Some(stopped)) => {
            // It was given its own abort, and comes out before it goes on.
            let (found_x, found) = cpu.found;
            if !stopped.is_given(found_x, &found) {
                return Err(Difference::Given { did: *stopped, x: found_x, found });
            }
            stopped.permits(gic, x)
        }
    };
    match cpu.waits {
        _ if !right => Err(Difference::Exit { did: cpu.stopped, x }),
        Some((_, now)) if now != leaves(x) => Err(Difference::Waits { x, now }),
        Some(_) | None => Ok(()),
    }
}

/// The board is let go of for the first time in a run: the vCPU arrived. One that is not off has run from here, and one
/// that was started is on.
pub fn arrives(vms: &Vms, (slot, vcpu): (u8, u64)) -> Power {
    let power = vms.vcpu(slot, vcpu).power;
    if power != Power::Off {
        vms.change_vcpu(slot, vcpu, |vcpu| (vcpu.power, vcpu.life) = (Power::On, VcpuLife::Ran));
    }
    power
}
