// SPDX-License-Identifier: MIT OR Apache-2.0
//! What can happen in a world, in words that mean the same to the rig and to the oracle.

use core::fmt;

use freehold_oracle::{Act as GuestAct, Call, Stray, Who};
use freehold_uapi::{guest, hvc};

use crate::act::Act;

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// A call of the host's, but for a run.
    Host(Call),
    /// The same, while an interrupt waits for the host: a long call stops at its first look.
    Hurried(Call),
    /// The same, made by one CPU while another has a vCPU 0 in its guest, which is interrupted then.
    During {
        /// Whose vCPU.
        who: Who,
        /// The call.
        call: Call,
    },
    /// A vCPU 0 is to run on a CPU whose host is in streaming mode.
    Streaming(Who),
    /// A call to a machine that can run no VMs.
    Unserved(Call),
    /// A list, by its number, is written and donated.
    List {
        /// To whom.
        who: Who,
        /// The frame that it is written to, and where the call says it is.
        frame: u64,
        /// Which list.
        list: usize,
        /// Records that the call says there are.
        records: u64,
        /// Flags.
        flags: u64,
    },
    /// A vCPU runs, does one thing, and is interrupted if that did not stop it.
    Run {
        /// Whose vCPU 0.
        who: Who,
        /// The index.
        vcpu: u64,
        /// The answer to a load.
        mmio: u64,
        /// What it does.
        act: GuestAct,
    },
    /// A vCPU's guest asks for something about its memory, the host accepts all that it is shown, and the guest is told.
    Ask {
        /// Whose vCPU 0.
        who: Who,
        /// The call.
        act: GuestAct,
    },
    /// The host touches a frame.
    Touch {
        /// Which.
        frame: u64,
        /// It writes.
        write: bool,
        /// From where.
        from: Stray,
    },
}

/// The handle by which a call names a VM, and registers x2–x5 of it; of a call without a handle x1–x5.
pub(crate) fn registers(call: &Call, handle: impl Fn(Who) -> u64) -> [u64; 5] {
    match *call {
        Call::Version | Call::Unknown { .. } => [0; 5],
        Call::Counter { counter, index } => [counter, index, 0, 0, 0],
        Call::VmCreate { flags, ipa_bits, pfn, count } => [flags, ipa_bits, pfn, count, 0],
        Call::VmRange { vm, gfn, count } | Call::MemUnshare { vm, gfn, count } => [handle(vm), gfn, count, 0, 0],
        Call::VmDestroy { vm } => [handle(vm), 0, 0, 0, 0],
        Call::VmReclaim { vm, pfn, count } | Call::PoolTopup { vm, pfn, count } => [handle(vm), pfn, count, 0, 0],
        Call::VcpuCreate { vm, vcpu } | Call::VcpuKick { vm, vcpu } => [handle(vm), vcpu, 0, 0, 0],
        Call::VcpuSetReg { vm, vcpu, reg, value } => [handle(vm), vcpu, reg, value, 0],
        Call::VcpuGetReg { vm, vcpu, reg } => [handle(vm), vcpu, reg, 0, 0],
        Call::VcpuRun { vm, vcpu, mmio } => [handle(vm), vcpu, mmio, 0, 0],
        Call::MemDonate { vm, pfn, gfn, count, flags } | Call::MemShare { vm, pfn, gfn, count, flags } => {
            [handle(vm), pfn, gfn, count, flags]
        }
        Call::MemDonateList { vm, list, records, flags } => [handle(vm), list, records, flags, 0],
        Call::GuestAccept { vm, vcpu, count } => [handle(vm), vcpu, count, 0, 0],
        Call::VmGic { vm, distributor, redistributors } => [handle(vm), distributor, redistributors, 0, 0],
        Call::VmIrq { vm, intid, level } => [handle(vm), intid, level, 0, 0],
    }
}

const WFI: u64 = 0x01 << 26;

/// The same act, as the rig's hardware shows it.
pub(crate) fn act(act: GuestAct) -> Act {
    match act {
        GuestAct::Access { ipa, size, store, described } => Act::Access { ipa, size, store, described },
        GuestAct::Fetch { ipa } => Act::Fetch { ipa },
        GuestAct::Walk { ipa } => Act::Walk { ipa },
        GuestAct::Call { id, x } => Act::Hvc { imm: 0, x: [id.into(), x[0], x[1], x[2]] },
        GuestAct::Wfi => Act::Trap { esr: WFI },
        GuestAct::Interrupt | GuestAct::Kicked => Act::Interrupt,
        GuestAct::BadState => Act::BadState,
        GuestAct::Abort => Act::SError,
    }
}

/// The name of a host call.
pub(crate) fn name(id: u32) -> &'static str {
    hvc::CALLS.iter().find(|call| call.id == id).map_or("an unknown call", |call| call.name)
}

/// The name of a guest call.
fn guest_name(id: u32) -> &'static str {
    guest::CALLS.iter().find(|call| call.id == id).map_or("an unknown call", |call| call.name)
}

struct Named(Who);

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Who::Slot(slot) => write!(f, "vm{slot}"),
            Who::Ended => f.write_str("ended"),
            Who::Never => f.write_str("never"),
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Host(call) => {
                let at = core::cell::Cell::new(None);
                let x = registers(&call, |who| {
                    at.set(Some(who));
                    0
                });
                write!(f, "{}(", name(call.id()))?;
                if let Some(who) = at.get() {
                    write!(f, "{}, {:x?})", Named(who), &x[1..])
                } else {
                    write!(f, "{x:x?})")
                }
            }
            Self::Hurried(call) => write!(f, "interrupted {}", Self::Host(call)),
            Self::During { who, call } => write!(f, "while {} is in its guest, {}", Named(who), Self::Host(call)),
            Self::Streaming(who) => write!(f, "in streaming mode, VCPU_RUN({}, 0)", Named(who)),
            Self::Unserved(call) => write!(f, "without VMs, {}", Self::Host(call)),
            Self::List { who, frame, list, records, flags } => {
                write!(f, "MEM_DONATE_LIST({}, frame {frame:x}, list {list}, {records}, {flags})", Named(who))
            }
            Self::Run { who, vcpu, mmio, act: GuestAct::Call { id, x } } => {
                write!(f, "VCPU_RUN({}, {vcpu}, {mmio:x}) {{ {}({x:x?}) }}", Named(who), guest_name(id))
            }
            Self::Run { who, vcpu, mmio, act } => {
                write!(f, "VCPU_RUN({}, {vcpu}, {mmio:x}) {{ {act:x?} }}", Named(who))
            }
            Self::Ask { who, act: GuestAct::Call { id, x } } => {
                write!(f, "{} asks {}({x:x?}), accepted", Named(who), guest_name(id))
            }
            Self::Ask { who, act } => write!(f, "{} does {act:x?}", Named(who)),
            Self::Touch { frame, write, from } => {
                write!(f, "the host {} {frame:x} ({from:?})", if write { "writes" } else { "reads" })
            }
        }
    }
}
