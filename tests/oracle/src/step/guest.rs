// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a running guest does: accesses, calls, and ways to leave.

use freehold_uapi::{guest, hvc};

use super::frames::in_ram;
use super::vcpu::exit;
use super::{devices, power};
use crate::op::Act;
use crate::outcome::{Done, Outcome, Statuses, Value};
use crate::record::{Content, Kind, Mark, Page, Pending, Power, Vcpu, VcpuLife};
use crate::state::State;

const PAGE: u64 = 4096;

/// An exit with a reason and payload.
pub(super) const fn exit_with(reason: u64, a: u64, b: u64, c: u64) -> Done {
    Done::Exit([Value::Is(reason), Value::Is(a), Value::Is(b), Value::Is(c)])
}

pub(super) fn decide(s: &impl State, cpu: u8, act: &Act) -> Outcome {
    let Some((slot, index)) = s.cpu(cpu) else { return Outcome::refused(Statuses::NONE) };
    Outcome::done(match *act {
        Act::Access { ipa, size, store, described } => access(s, slot, ipa, size, store, described),
        Act::Fetch { ipa } if in_ram(s, slot, ipa / PAGE) => inside(s, slot, ipa / PAGE, Right::Execute),
        Act::Fetch { ipa } | Act::Walk { ipa } if outside(s, slot, ipa) => Done::Aborted,
        Act::Fetch { .. } => exit_with(hvc::EXIT_CRASH, hvc::CRASH_NO_SYNDROME, 0, 0),
        Act::Walk { ipa } if in_ram(s, slot, ipa / PAGE) => inside(s, slot, ipa / PAGE, Right::Read),
        Act::Walk { .. } => exit_with(hvc::EXIT_CRASH, hvc::CRASH_WALK, 0, 0),
        Act::Call { id, x } => return call(s, slot, id, x),
        Act::Wfi => exit(hvc::EXIT_WFI),
        Act::Interrupt => exit(hvc::EXIT_IRQ),
        Act::Kicked if s.vcpu(slot, index).kicked => exit(hvc::EXIT_KICKED),
        Act::Kicked => Done::Allowed,
        Act::BadState => exit_with(hvc::EXIT_CRASH, hvc::CRASH_BAD_STATE, 0, 0),
        Act::Abort => exit_with(hvc::EXIT_CRASH, hvc::CRASH_ABORT, 0, 0),
    })
}

fn access(s: &impl State, slot: u8, ipa: u64, size: u8, store: Option<u64>, described: bool) -> Done {
    if in_ram(s, slot, ipa / PAGE) {
        return inside(s, slot, ipa / PAGE, if store.is_some() { Right::Write } else { Right::Read });
    }
    if devices::bars(s, slot, ipa / PAGE) {
        return Done::Aborted;
    }
    let size = u64::from(size);
    // What lies behind the page's end is another page's affair.
    if !described || ipa % PAGE + size > PAGE {
        return exit_with(hvc::EXIT_CRASH, hvc::CRASH_NO_SYNDROME, 0, 0);
    }
    match store {
        None => exit_with(hvc::EXIT_MMIO, ipa, size, 0),
        Some(value) => exit_with(hvc::EXIT_MMIO, ipa, size | hvc::MMIO_WRITE, value & mask(size)),
    }
}

/// Whether an address outside RAM is one that the guest keeps to itself.
fn outside(s: &impl State, slot: u8, ipa: u64) -> bool {
    !in_ram(s, slot, ipa / PAGE) && devices::bars(s, slot, ipa / PAGE)
}

/// The bits of a value of so many bytes.
const fn mask(size: u64) -> u64 {
    if size >= 8 { u64::MAX } else { (1 << (size * 8)) - 1 }
}

/// What an access needs of a page that was lent.
#[derive(Clone, Copy)]
enum Right {
    Read,
    Write,
    Execute,
}

/// An access to RAM. An exit says the guest frame, and nothing of what was stored.
fn inside(s: &impl State, slot: u8, gfn: u64, right: Right) -> Done {
    let lent = |write: bool, exec: bool| match right {
        Right::Read => true,
        Right::Write => write,
        Right::Execute => exec,
    };
    match s.mark(slot, gfn) {
        Mark::Poisoned => exit_with(hvc::EXIT_CRASH, hvc::CRASH_POISONED, 0, 0),
        Mark::Borrow { write, exec, .. } if lent(write, exec) => Done::Allowed,
        Mark::None if s.backing(slot, gfn).is_some() => Done::Allowed,
        Mark::None | Mark::Borrow { .. } | Mark::Device => exit_with(hvc::EXIT_MEM_FAULT, gfn, 0, 0),
    }
}

/// A call that is for protected guests alone.
const fn protected_only(id: u32) -> bool {
    let of_memory = matches!(id, guest::HYP_MEMINFO | guest::MEM_SHARE | guest::MEM_UNSHARE | guest::MEM_RELINQUISH);
    of_memory || matches!(id, guest::MMIO_GUARD_INFO..=guest::MMIO_GUARD_UNMAP | guest::ATTEST)
}

fn call(s: &impl State, slot: u8, id: u32, x: [u64; 3]) -> Outcome {
    if protected_only(id) && !s.vm(slot).protected {
        return Outcome::refused(Statuses::one(guest::NOT_SUPPORTED));
    }
    match id {
        guest::SMCCC_VERSION => answers([0x1_0002, 0, 0, 0]),
        guest::SMCCC_ARCH_FEATURES => feature(x[0], &[guest::SMCCC_VERSION, guest::SMCCC_ARCH_FEATURES], true),
        guest::VENDOR_UID => answers(guest::PKVM_UID.map(u64::from)),
        guest::VENDOR_FEATURES if s.vm(slot).protected => {
            answers([guest::FEATURES.into(), 0, 0, guest::FEATURES_3.into()])
        }
        guest::VENDOR_FEATURES => Outcome::done(Done::Answered([Value::Any; 4])),
        guest::HYP_MEMINFO if x == [0; 3] => answers([guest::GRANULE, 1, 0, 0]),
        // A guest that can ask runs, so it was measured. What the digest must be is `tests/attest`'s to say.
        guest::ATTEST => {
            let format = Value::Is(guest::REPORT_VERSION | guest::REPORT_MEASURED);
            Outcome::done(Done::Answered([Value::Is(0), format, Value::Any, Value::Any]))
        }
        guest::MEM_SHARE | guest::MEM_UNSHARE | guest::MEM_RELINQUISH => request(s, slot, id, x),
        guest::HYP_MEMINFO => Outcome::refused(Statuses::one(guest::INVALID_PARAMETER)),
        _ => devices::decide(s, slot, id, x)
            .or_else(|| power::decide(s, slot, id, x))
            .or_else(|| power::random(id, x))
            .unwrap_or(Outcome::refused(Statuses::one(guest::NOT_SUPPORTED))),
    }
}

pub(super) fn answers(x: [u64; 4]) -> Outcome {
    Outcome::done(Done::Answered(x.map(Value::Is)))
}

/// A question for a function: there, or not. `more`: other functions than these may be there as well.
pub(super) fn feature(asked: u64, there: &[u32], more: bool) -> Outcome {
    let known = u32::try_from(asked).is_ok_and(|f| there.contains(&f));
    match (known, more) {
        (true, _) => answers([0; 4]),
        (false, false) => Outcome::refused(Statuses::one(guest::NOT_SUPPORTED)),
        (false, true) => {
            let refused = Statuses::one(guest::NOT_SUPPORTED);
            let any = Done::Answered([Value::Any, Value::Is(0), Value::Is(0), Value::Is(0)]);
            Outcome { refused, ..Outcome::done(any) }
        }
    }
}

/// What a guest asks for: kind, first guest frame, frames. Nothing if the arguments alone are wrong.
fn asked(s: &impl State, slot: u8, id: u32, x: [u64; 3]) -> Option<(Kind, u64, u64)> {
    let [ipa, count, zero] = x;
    let kind = match id {
        guest::MEM_SHARE => Kind::Share,
        guest::MEM_UNSHARE => Kind::Unshare,
        _ => Kind::Relinquish,
    };
    let sound = ipa % PAGE == 0 && zero == 0 && (kind != Kind::Relinquish || count == 0);
    (sound && in_ram(s, slot, ipa / PAGE)).then_some((kind, ipa / PAGE, count.max(1)))
}

/// What stands at a guest frame, as far as a request can tell.
#[derive(PartialEq)]
enum Stands {
    Empty,
    Private,
    Lent,
    Else,
}

fn stands(s: &impl State, slot: u8, gfn: u64) -> Stands {
    if !in_ram(s, slot, gfn) || s.mark(slot, gfn) != Mark::None {
        return Stands::Else;
    }
    match s.backing(slot, gfn).map(|p| s.page(p).lent) {
        None => Stands::Empty,
        Some(false) => Stands::Private,
        Some(true) => Stands::Lent,
    }
}

/// A request is checked, kept, and shown to the host: for the leading granules that are as the first.
fn request(s: &impl State, slot: u8, id: u32, x: [u64; 3]) -> Outcome {
    let invalid = Outcome::refused(Statuses::one(guest::INVALID_PARAMETER));
    let Some((kind, gfn, count)) = asked(s, slot, id, x) else { return invalid };
    let first = stands(s, slot, gfn);
    let reason = match (&first, kind) {
        (Stands::Private, Kind::Share) => hvc::EXIT_SHARE,
        (Stands::Private, Kind::Relinquish) => hvc::EXIT_RELINQUISH,
        (Stands::Lent, Kind::Unshare) => hvc::EXIT_UNSHARE,
        // Only what is there can be lent: it is faulted in, and the call made again.
        (Stands::Empty, Kind::Share) => return Outcome::done(exit_with(hvc::EXIT_MEM_FAULT, gfn, 0, 0)),
        // A balloon gives up what it never touched.
        (Stands::Empty, Kind::Relinquish) => return answers([0; 4]),
        (Stands::Empty | Stands::Private | Stands::Lent | Stands::Else, _) => return invalid,
    };
    let same = |n: &u64| stands(s, slot, gfn.saturating_add(*n)) == first;
    let taken = (1..count.min(hvc::MAX_RUN)).take_while(same).count() as u64;
    Outcome::done(exit_with(reason, gfn, taken.saturating_add(1), 0))
}

pub(super) fn apply(s: &mut impl State, cpu: u8, act: &Act) {
    let Some((slot, index)) = s.cpu(cpu) else { return };
    let outcome = decide(s, cpu, act);
    match outcome.done {
        Some(Done::Exit([Value::Is(reason), Value::Is(a), Value::Is(b), _])) => {
            leave(s, cpu, (slot, index), (reason, a, b));
        }
        Some(Done::Allowed) => {
            if let Act::Access { ipa, store: Some(_), .. } = *act {
                store(s, slot, ipa / PAGE);
            }
        }
        Some(Done::Answered(_)) => {
            if let Act::Call { id, x } = *act {
                power::start(s, slot, id, x);
                devices::apply(s, slot, id, x);
            }
        }
        _ => {}
    }
}

/// The guest's page holds what the guest wrote.
fn store(s: &mut impl State, slot: u8, gfn: u64) {
    let (pfn, shared) = match s.mark(slot, gfn) {
        Mark::Borrow { pfn, .. } => (Some(pfn), Content::Public),
        Mark::None | Mark::Poisoned | Mark::Device => (s.backing(slot, gfn), Content::Shared),
    };
    if let Some(pfn) = pfn {
        let page = s.page(pfn);
        let private = !page.lent && page.borrows == 0;
        s.set_page(pfn, Page { content: if private { Content::Secret(slot) } else { shared }, ..page });
    }
}

/// A vCPU stops running, and keeps what its exit leaves to be answered.
fn leave(s: &mut impl State, cpu: u8, (slot, index): (u8, u8), (reason, a, b): (u64, u64, u64)) {
    let vcpu = s.vcpu(slot, index);
    let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    let ask = |kind| Pending::Request { kind, gfn: number(a), count: number(b) };
    let pending = match reason {
        hvc::EXIT_SHARE => ask(Kind::Share),
        hvc::EXIT_UNSHARE => ask(Kind::Unshare),
        hvc::EXIT_RELINQUISH => ask(Kind::Relinquish),
        hvc::EXIT_MMIO if b & hvc::MMIO_WRITE == 0 => {
            Pending::Load { size: u8::try_from(b & hvc::MMIO_SIZE_MASK).unwrap_or(0) }
        }
        _ => Pending::None,
    };
    let life = match reason {
        hvc::EXIT_CRASH => VcpuLife::Crashed,
        hvc::EXIT_SYSTEM => VcpuLife::Off,
        _ => vcpu.life,
    };
    let kicked = vcpu.kicked && reason != hvc::EXIT_KICKED;
    let power = if reason == hvc::EXIT_OFF { Power::Off } else { vcpu.power };
    s.set_vcpu(slot, index, Vcpu { life, running: false, kicked, pending, power });
    s.set_cpu(cpu, None);
}
