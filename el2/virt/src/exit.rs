// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the host is told when a vCPU comes back, and nothing else (D9).
//!
//! An exit is a value; [`Exit::results`] is the only place where it becomes registers. What an exit does not name
//! stays in EL2.

use crate::vgic::Intid;
use freehold_mem::Gfn;
use freehold_uapi::hvc;

/// Width of a memory access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// One byte.
    Byte,
    /// Two bytes.
    Half,
    /// Four bytes.
    Word,
    /// Eight bytes.
    Double,
}

impl Width {
    /// Decodes `ISS.SAS`.
    #[must_use]
    pub const fn of_sas(sas: u64) -> Self {
        match sas & 3 {
            0 => Self::Byte,
            1 => Self::Half,
            2 => Self::Word,
            _ => Self::Double,
        }
    }

    /// Bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Byte => 1,
            Self::Half => 2,
            Self::Word => 4,
            Self::Double => 8,
        }
    }

    /// Keeps the bits of an access of this width.
    #[must_use]
    pub const fn cut(self, value: u64) -> u64 {
        match self {
            Self::Byte => value & 0xff,
            Self::Half => value & 0xffff,
            Self::Word => value & 0xffff_ffff,
            Self::Double => value,
        }
    }

    /// Extends the sign of a value of this width to 64 bits.
    #[must_use]
    pub const fn sign_extend(self, value: u64) -> u64 {
        match self {
            Self::Byte => value as i8 as u64,
            Self::Half => value as i16 as u64,
            Self::Word => value as i32 as u64,
            Self::Double => value,
        }
    }
}

/// What a guest asked of its host about its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// To lend.
    Share,
    /// To take back.
    Unshare,
    /// To give away for good.
    Relinquish,
}

/// A wish that the host has to act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What.
    pub wish: Wish,
    /// From here on.
    pub first: Gfn,
    /// So many guest frames, at least 1.
    pub count: u64,
}

/// Why a vCPU can not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// An access outside RAM that its syndrome does not describe.
    NoSyndrome,
    /// A state that is not served, such as `AArch32`.
    BadState,
    /// A stage-1 walk outside RAM.
    Walk,
    /// The guest frame was revoked by force.
    Poisoned,
    /// An exception that no guest should be able to cause.
    Abort,
}

/// Why a vCPU is back. Its first word says which, so that it is moved in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Exit {
    /// An interrupt for the host.
    Irq,
    /// A load outside RAM.
    MmioLoad {
        /// Address.
        ipa: u64,
        /// Width.
        width: Width,
    },
    /// A store outside RAM.
    MmioStore {
        /// Address.
        ipa: u64,
        /// Width.
        width: Width,
        /// What is stored, cut to the width.
        data: u64,
    },
    /// RAM that is not backed.
    MemFault(Gfn),
    /// The guest waits, until this time of the counter at the latest; zero: for an interrupt of the host's.
    Wfi(u64),
    /// The guest wants something done with its memory.
    Request(Request),
    /// The guest switched itself off.
    SystemOff,
    /// The guest asked to be reset; by `SYSTEM_RESET2` or not.
    SystemReset(bool),
    /// The vCPU can not go on.
    Crash(Crash),
    /// The host asked for the vCPU back.
    Kicked,
    /// Another vCPU is to be woken.
    Wake,
    /// The vCPU is off.
    Off,
    /// The guest has ended this SPI, whose wire is still high.
    Ended(Intid),
}

impl Exit {
    /// x1–x4 of `VCPU_RUN`.
    #[inline]
    #[must_use]
    pub const fn results(self) -> [u64; 4] {
        match self {
            Self::Irq => [hvc::EXIT_IRQ, 0, 0, 0],
            Self::MmioLoad { ipa, width } => [hvc::EXIT_MMIO, ipa, width.bytes(), 0],
            Self::MmioStore { ipa, width, data } => {
                [hvc::EXIT_MMIO, ipa, width.bytes() | hvc::MMIO_WRITE, width.cut(data)]
            }
            Self::MemFault(gfn) => [hvc::EXIT_MEM_FAULT, gfn.raw(), 0, 0],
            Self::Wfi(deadline) => [hvc::EXIT_WFI, deadline, 0, 0],
            Self::Request(Request { wish, first, count }) => {
                let reason = match wish {
                    Wish::Share => hvc::EXIT_SHARE,
                    Wish::Unshare => hvc::EXIT_UNSHARE,
                    Wish::Relinquish => hvc::EXIT_RELINQUISH,
                };
                [reason, first.raw(), count, 0]
            }
            Self::SystemOff => [hvc::EXIT_SYSTEM, 0, 0, 0],
            Self::SystemReset(second) => [hvc::EXIT_SYSTEM, if second { 2 } else { 1 }, 0, 0],
            Self::Crash(why) => {
                let code = match why {
                    Crash::NoSyndrome => hvc::CRASH_NO_SYNDROME,
                    Crash::BadState => hvc::CRASH_BAD_STATE,
                    Crash::Walk => hvc::CRASH_WALK,
                    Crash::Poisoned => hvc::CRASH_POISONED,
                    Crash::Abort => hvc::CRASH_ABORT,
                };
                [hvc::EXIT_CRASH, code, 0, 0]
            }
            Self::Kicked => [hvc::EXIT_KICKED, 0, 0, 0],
            Self::Wake => [hvc::EXIT_WAKE, 0, 0, 0],
            Self::Off => [hvc::EXIT_OFF, 0, 0, 0],
            Self::Ended(spi) => [hvc::EXIT_EOI, spi.number() as u64, 0, 0],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memory_fault_tells_the_guest_frame_and_nothing_else() {
        assert_eq!(Exit::MemFault(Gfn::new(0x8_0123).unwrap()).results(), [hvc::EXIT_MEM_FAULT, 0x8_0123, 0, 0]);
    }

    #[test]
    fn a_store_tells_no_more_than_its_width() {
        for (width, seen) in [
            (Width::Byte, 0xef),
            (Width::Half, 0xcdef),
            (Width::Word, 0x89ab_cdef),
            (Width::Double, 0x0123_4567_89ab_cdef),
        ] {
            let exit = Exit::MmioStore { ipa: 0x900_0000, width, data: 0x0123_4567_89ab_cdef };
            assert_eq!(exit.results(), [hvc::EXIT_MMIO, 0x900_0000, width.bytes() | hvc::MMIO_WRITE, seen]);
        }
    }

    #[test]
    fn signs_are_extended_from_the_width() {
        assert_eq!(Width::Byte.sign_extend(0x80), 0xffff_ffff_ffff_ff80);
        assert_eq!(Width::Half.sign_extend(0x7fff), 0x7fff);
        assert_eq!(Width::Word.sign_extend(0x8000_0000), 0xffff_ffff_8000_0000);
    }
}
