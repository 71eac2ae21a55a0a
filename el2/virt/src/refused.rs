// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why a call of the host's was refused, and the one table from there to status codes of the ABI.
//!
//! A refusal means that nothing changed (I6). Tests walk the table against `freehold_uapi::hvc`.

use freehold_mem::Refused as Memory;
use freehold_uapi::hvc;

/// What was wrong, and with whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There is no such call.
    NoSuchCall,
    /// The handle never named a VM.
    WrongHandle,
    /// The handle's VM has ended.
    StaleHandle,
    /// The VM has no such vCPU.
    WrongVcpu,
    /// The vCPU is in use on some CPU.
    VcpuBusy,
    /// The vCPU exists.
    VcpuExists,
    /// The call does not fit the VM's or the vCPU's life.
    WrongState,
    /// Every VM slot is taken.
    NoSlot,
    /// This machine can not run VMs.
    NoVms,
    /// An unknown flag, selector or size, or a reserved argument that is not zero.
    BadArgument,
    /// A program counter that is no multiple of 4.
    Unaligned,
    /// The vCPU has asked for nothing.
    NoRequest,
    /// The register or the machine's state is out of the host's reach.
    Denied,
    /// What the memory model said.
    Memory(Memory),
}

impl From<Memory> for Refused {
    fn from(why: Memory) -> Self {
        Self::Memory(why)
    }
}

impl Refused {
    /// The status code, and x1.
    #[must_use]
    pub const fn status(self) -> (i64, u64) {
        let code = match self {
            Self::NoSuchCall => hvc::NOT_SUPPORTED,
            Self::WrongHandle => hvc::WRONG_HANDLE,
            Self::StaleHandle => hvc::STALE_HANDLE,
            Self::WrongVcpu => hvc::WRONG_VCPU,
            Self::VcpuBusy => hvc::VCPU_BUSY,
            Self::VcpuExists => hvc::VCPU_EXISTS,
            Self::WrongState => hvc::WRONG_STATE,
            Self::NoSlot => hvc::NO_SLOT,
            Self::NoVms => hvc::NO_VMS,
            Self::BadArgument => hvc::BAD_ARGUMENT,
            Self::Unaligned => hvc::UNALIGNED,
            Self::NoRequest => hvc::NO_REQUEST,
            Self::Denied => hvc::DENIED,
            Self::Memory(why) => return memory_status(why),
        };
        (code, 0)
    }
}

const fn memory_status(why: Memory) -> (i64, u64) {
    let code = match why {
        Memory::ZeroCount => hvc::ZERO_COUNT,
        Memory::CountTooLarge => hvc::COUNT_TOO_LARGE,
        Memory::Overflow => hvc::OVERFLOW,
        Memory::NotMemory => hvc::NOT_MEMORY,
        Memory::NoMap => hvc::NO_MAP,
        Memory::El2Owned => hvc::EL2_OWNED,
        Memory::AlreadyDonated => hvc::ALREADY_DONATED,
        Memory::Foreign => hvc::FOREIGN,
        Memory::Shared | Memory::LentTooOften => hvc::SHARED,
        Memory::Twice => hvc::TWICE,
        Memory::GfnOutOfRange => hvc::GFN_OUT_OF_RANGE,
        Memory::GfnMapped => hvc::GFN_MAPPED,
        // A page that the guest does not share is, to who wants it unshared, not there.
        Memory::GfnNotMapped | Memory::NotShared => hvc::GFN_NOT_MAPPED,
        Memory::GfnPoisoned => hvc::GFN_POISONED,
        Memory::HostOwned => hvc::HOST_OWNED,
        Memory::NeedPages(pages) => return (hvc::NEED_PAGES, pages as u64),
        Memory::WrongState | Memory::WrongKind => hvc::WRONG_STATE,
        Memory::BadIpaSize => hvc::BAD_ARGUMENT,
        Memory::RamOverlap | Memory::TooManyRanges => hvc::BAD_RANGE,
        Memory::GuestFramesLeft => hvc::GUEST_FRAMES_LEFT,
    };
    (code, 0)
}
