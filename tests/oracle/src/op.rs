// SPDX-License-Identifier: MIT OR Apache-2.0
//! What can happen: host calls, what a guest does, stray accesses, moves of the driver. And what the specification
//! is told because it may not predict it.

use freehold_uapi::hvc::{self, Record};

pub use crate::record::Kind as Request;

/// The VM that a handle names. The bits of a handle mean nothing here: whoever calls keeps a history of handles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Who {
    /// The VM that stands in this slot.
    Slot(u8),
    /// A handle that was returned once, and whose VM has ended.
    Ended,
    /// A number that was never a handle.
    Never,
}

/// A host call with its arguments as they came.
#[allow(missing_docs, reason = "the fields are the arguments of the ABI document, under its names")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    Version,
    Counter {
        counter: u64,
        index: u64,
    },
    VmCreate {
        flags: u64,
        ipa_bits: u64,
        pfn: u64,
        count: u64,
    },
    VmRange {
        vm: Who,
        gfn: u64,
        count: u64,
    },
    VmDestroy {
        vm: Who,
    },
    VmReclaim {
        vm: Who,
        pfn: u64,
        count: u64,
    },
    PoolTopup {
        vm: Who,
        pfn: u64,
        count: u64,
    },
    VcpuCreate {
        vm: Who,
        vcpu: u64,
    },
    VcpuSetReg {
        vm: Who,
        vcpu: u64,
        reg: u64,
        value: u64,
    },
    VcpuGetReg {
        vm: Who,
        vcpu: u64,
        reg: u64,
    },
    VcpuRun {
        vm: Who,
        vcpu: u64,
        mmio: u64,
    },
    VcpuKick {
        vm: Who,
        vcpu: u64,
    },
    MemDonate {
        vm: Who,
        pfn: u64,
        gfn: u64,
        count: u64,
        flags: u64,
    },
    MemDonateList {
        vm: Who,
        list: u64,
        records: u64,
        flags: u64,
    },
    MemShare {
        vm: Who,
        pfn: u64,
        gfn: u64,
        count: u64,
        flags: u64,
    },
    MemUnshare {
        vm: Who,
        gfn: u64,
        count: u64,
    },
    GuestAccept {
        vm: Who,
        vcpu: u64,
        count: u64,
    },
    VmGic {
        vm: Who,
        distributor: u64,
        redistributors: u64,
    },
    VmIrq {
        vm: Who,
        intid: u64,
        level: u64,
    },
    /// An identifier that names no call.
    Unknown {
        id: u32,
    },
}

impl Call {
    /// Reads a call from x0 to x5. `who` says what a handle names.
    #[must_use]
    pub fn decode(id: u32, x: [u64; 5], who: impl Fn(u64) -> Who) -> Self {
        let [x1, x2, x3, x4, x5] = x;
        match id {
            hvc::VERSION => Self::Version,
            hvc::COUNTER => Self::Counter { counter: x1, index: x2 },
            hvc::VM_CREATE => Self::VmCreate { flags: x1, ipa_bits: x2, pfn: x3, count: x4 },
            hvc::VM_RANGE => Self::VmRange { vm: who(x1), gfn: x2, count: x3 },
            hvc::VM_DESTROY => Self::VmDestroy { vm: who(x1) },
            hvc::VM_RECLAIM => Self::VmReclaim { vm: who(x1), pfn: x2, count: x3 },
            hvc::POOL_TOPUP => Self::PoolTopup { vm: who(x1), pfn: x2, count: x3 },
            hvc::VCPU_CREATE => Self::VcpuCreate { vm: who(x1), vcpu: x2 },
            hvc::VCPU_SET_REG => Self::VcpuSetReg { vm: who(x1), vcpu: x2, reg: x3, value: x4 },
            hvc::VCPU_GET_REG => Self::VcpuGetReg { vm: who(x1), vcpu: x2, reg: x3 },
            hvc::VCPU_RUN => Self::VcpuRun { vm: who(x1), vcpu: x2, mmio: x3 },
            hvc::VCPU_KICK => Self::VcpuKick { vm: who(x1), vcpu: x2 },
            hvc::MEM_DONATE => Self::MemDonate { vm: who(x1), pfn: x2, gfn: x3, count: x4, flags: x5 },
            hvc::MEM_DONATE_LIST => Self::MemDonateList { vm: who(x1), list: x2, records: x3, flags: x4 },
            hvc::MEM_SHARE => Self::MemShare { vm: who(x1), pfn: x2, gfn: x3, count: x4, flags: x5 },
            hvc::MEM_UNSHARE => Self::MemUnshare { vm: who(x1), gfn: x2, count: x3 },
            hvc::GUEST_ACCEPT => Self::GuestAccept { vm: who(x1), vcpu: x2, count: x3 },
            hvc::VM_GIC => Self::VmGic { vm: who(x1), distributor: x2, redistributors: x3 },
            hvc::VM_IRQ => Self::VmIrq { vm: who(x1), intid: x2, level: x3 },
            id => Self::Unknown { id },
        }
    }

    /// How many frames it was asked to move at most, where its result counts them.
    #[must_use]
    pub const fn frames(&self) -> Option<u64> {
        match *self {
            Self::VmReclaim { count, .. } | Self::MemDonate { count, .. } | Self::MemShare { count, .. } => Some(count),
            Self::MemUnshare { count, .. } | Self::GuestAccept { count, .. } => Some(count),
            Self::MemDonateList { .. } => Some(hvc::MAX_RUN),
            Self::Version | Self::Counter { .. } | Self::VmCreate { .. } | Self::VmRange { .. } => None,
            Self::VmDestroy { .. } | Self::PoolTopup { .. } | Self::VcpuCreate { .. } | Self::VcpuSetReg { .. } => None,
            Self::VcpuGetReg { .. } | Self::VcpuRun { .. } | Self::VcpuKick { .. } => None,
            Self::VmGic { .. } | Self::VmIrq { .. } | Self::Unknown { .. } => None,
        }
    }

    /// Its function identifier.
    #[must_use]
    pub const fn id(&self) -> u32 {
        match *self {
            Self::Version => hvc::VERSION,
            Self::Counter { .. } => hvc::COUNTER,
            Self::VmCreate { .. } => hvc::VM_CREATE,
            Self::VmRange { .. } => hvc::VM_RANGE,
            Self::VmDestroy { .. } => hvc::VM_DESTROY,
            Self::VmReclaim { .. } => hvc::VM_RECLAIM,
            Self::PoolTopup { .. } => hvc::POOL_TOPUP,
            Self::VcpuCreate { .. } => hvc::VCPU_CREATE,
            Self::VcpuSetReg { .. } => hvc::VCPU_SET_REG,
            Self::VcpuGetReg { .. } => hvc::VCPU_GET_REG,
            Self::VcpuRun { .. } => hvc::VCPU_RUN,
            Self::VcpuKick { .. } => hvc::VCPU_KICK,
            Self::MemDonate { .. } => hvc::MEM_DONATE,
            Self::MemDonateList { .. } => hvc::MEM_DONATE_LIST,
            Self::MemShare { .. } => hvc::MEM_SHARE,
            Self::MemUnshare { .. } => hvc::MEM_UNSHARE,
            Self::GuestAccept { .. } => hvc::GUEST_ACCEPT,
            Self::VmGic { .. } => hvc::VM_GIC,
            Self::VmIrq { .. } => hvc::VM_IRQ,
            Self::Unknown { id } => id,
        }
    }
}

/// What a running guest does, or what happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Act {
    /// It touches a guest address.
    Access {
        /// The intermediate physical address.
        ipa: u64,
        /// Bytes: 1, 2, 4 or 8.
        size: u8,
        /// The value of a store; none is a load.
        store: Option<u64>,
        /// The syndrome describes the access (`ISV`).
        described: bool,
    },
    /// It fetches an instruction.
    Fetch {
        /// The intermediate physical address.
        ipa: u64,
    },
    /// A stage-1 walk touches a guest address.
    Walk {
        /// The intermediate physical address.
        ipa: u64,
    },
    /// A call, HVC.
    Call {
        /// Function identifier, x0.
        id: u32,
        /// x1 to x3.
        x: [u64; 3],
    },
    /// It waits for an interrupt.
    Wfi,
    /// A physical interrupt for the host arrives.
    Interrupt,
    /// It looks whether it was kicked: what a kick from another CPU makes happen.
    Kicked,
    /// It leaves the architectural state that is served.
    BadState,
    /// It causes an `SError`, or an exception that no guest should be able to.
    Abort,
}

/// How the host touches a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stray {
    /// A process, at EL0.
    User,
    /// The kernel, by a user address.
    KernelOnUser,
    /// The kernel, by an address of its own.
    Kernel,
}

/// A move of the driver, or of somebody in the host whom it must reckon with. One page each: a range is a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Move {
    /// The file takes a fresh page for the host to fill.
    Populate {
        /// The page.
        pfn: u64,
    },
    /// The file takes a fresh page that the host never sees.
    Fill {
        /// The page.
        pfn: u64,
    },
    /// Somebody takes a reference.
    Pin {
        /// The page.
        pfn: u64,
    },
    /// Somebody lets go of one.
    Unpin {
        /// The page.
        pfn: u64,
    },
    /// An attempt to make the page private begins: it is zapped.
    Drain {
        /// The page.
        pfn: u64,
        /// The attempt.
        by: u8,
    },
    /// The attempt freezes the page.
    Freeze {
        /// The page.
        pfn: u64,
        /// The attempt.
        by: u8,
    },
    /// The attempt ends without success.
    Cancel {
        /// The page.
        pfn: u64,
        /// The attempt.
        by: u8,
    },
    /// A frozen page that is not donated yet goes back to the host.
    Thaw {
        /// The page.
        pfn: u64,
    },
    /// A frozen page is donated.
    Donate {
        /// The page.
        pfn: u64,
        /// To this VM.
        slot: u8,
        /// As this guest frame.
        gfn: u64,
    },
    /// A guest's pending request is carried out for its first page.
    Accept {
        /// The VM.
        slot: u8,
        /// Its vCPU.
        vcpu: u64,
    },
    /// A hole is punched.
    Punch {
        /// The page.
        pfn: u64,
    },
    /// The file is closed.
    Close {
        /// The page.
        pfn: u64,
    },
    /// A page of a dying VM is taken back.
    Reclaim {
        /// The page.
        pfn: u64,
        /// From this VM.
        slot: u8,
    },
}

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// A host call. [`Call::VcpuRun`] is the entry alone: what follows is the guest's, until it exits.
    Host {
        /// The CPU that calls.
        cpu: u8,
        /// The call.
        call: Call,
    },
    /// The vCPU that a CPU runs does something.
    Guest {
        /// The CPU.
        cpu: u8,
        /// What.
        act: Act,
    },
    /// The host touches a frame.
    Touch {
        /// The frame.
        pfn: u64,
        /// It writes.
        write: bool,
        /// From where.
        from: Stray,
    },
    /// A move of the driver.
    Driver(Move),
}

/// What the specification may not predict, and is told.
#[derive(Clone, Copy, Debug)]
pub struct Env<'a> {
    /// The free slot that [`Call::VmCreate`] takes.
    pub slot: u8,
    /// Pool pages that the operation needs; more than are free is a refusal.
    pub need: u64,
    /// Pool pages that came free by the operation.
    pub freed: u64,
    /// Frames after which an interrupt cut a long call short; at least one is always done.
    pub done: u64,
    /// What the list frame held when it was copied.
    pub list: &'a [Record],
    /// A physical interrupt ended the entry before the guest ran.
    pub irq: bool,
    /// The calling CPU is in a state (streaming mode) in which no guest may be entered.
    pub busy: bool,
}

impl Env<'_> {
    /// Nothing remarkable: slot 0, no pool page, no interrupt.
    pub const CALM: Env<'static> =
        Env { slot: 0, need: 0, freed: 0, done: u64::MAX, list: &[], irq: false, busy: false };
}
