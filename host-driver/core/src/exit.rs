// SPDX-License-Identifier: MIT OR Apache-2.0
//! What ended a run of a vCPU, decoded from the answer of `VCPU_RUN`.

use freehold_uapi::hvc;

/// Why a vCPU needs the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A host interrupt, a kick, or another vCPU to wake, which the answer names besides.
    Irq,
    /// An access outside RAM.
    Mmio(Mmio),
    /// RAM that is not backed.
    MemFault {
        /// Guest frame.
        gfn: u64,
    },
    /// The guest waits for an interrupt.
    Wfi {
        /// When its next timer fires by the counter; `None`: none does.
        deadline: Option<u64>,
    },
    /// The guest asks to move memory.
    Request {
        /// Which way.
        kind: Request,
        /// First guest frame.
        gfn: u64,
        /// Frames.
        count: u64,
    },
    /// The guest has ended an interrupt whose wire is high, as was asked.
    Ended {
        /// Its INTID.
        intid: u64,
    },
    /// The vCPU is off.
    Off,
    /// The guest ended the VM.
    System(Power),
    /// The vCPU can not go on.
    Crash {
        /// One of `CRASH_*`.
        code: u64,
    },
}

/// How a guest ends its VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// `SYSTEM_OFF`.
    Off,
    /// `SYSTEM_RESET`.
    Reset,
    /// `SYSTEM_RESET2`.
    Reset2,
}

/// An access that the VMM serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mmio {
    /// Guest physical address.
    pub address: u64,
    /// Bytes: 1, 2, 4 or 8.
    pub size: u8,
    /// Data of a store; `None` for a load.
    pub store: Option<u64>,
}

/// Direction of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Lend to the host.
    Share,
    /// Take back from the host.
    Unshare,
    /// Give to the host for good.
    Relinquish,
}

impl Exit {
    /// Decodes an answer; `None` for one that this ABI does not have.
    #[must_use]
    pub fn decode([reason, a, b, c]: [u64; 4]) -> Option<Self> {
        let request = |kind| Some(Self::Request { kind, gfn: a, count: b });
        match reason {
            hvc::EXIT_IRQ | hvc::EXIT_KICKED | hvc::EXIT_WAKE => Some(Self::Irq),
            hvc::EXIT_EOI => Some(Self::Ended { intid: a }),
            hvc::EXIT_OFF => Some(Self::Off),
            hvc::EXIT_MMIO => {
                let size = match b & hvc::MMIO_SIZE_MASK {
                    1 => 1,
                    2 => 2,
                    4 => 4,
                    8 => 8,
                    _ => return None,
                };
                let store = (b & hvc::MMIO_WRITE != 0).then_some(c);
                Some(Self::Mmio(Mmio { address: a, size, store }))
            }
            hvc::EXIT_MEM_FAULT => Some(Self::MemFault { gfn: a }),
            hvc::EXIT_WFI => Some(Self::Wfi { deadline: (a != 0).then_some(a) }),
            hvc::EXIT_SHARE => request(Request::Share),
            hvc::EXIT_UNSHARE => request(Request::Unshare),
            hvc::EXIT_RELINQUISH => request(Request::Relinquish),
            hvc::EXIT_SYSTEM => Some(Self::System(match a {
                0 => Power::Off,
                2 => Power::Reset2,
                _ => Power::Reset,
            })),
            hvc::EXIT_CRASH => Some(Self::Crash { code: a }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_exit_reason_is_decoded() {
        for item in hvc::EXITS {
            let answer = [u64::try_from(item.value).unwrap(), 1, 4, 0];
            assert!(Exit::decode(answer).is_some(), "{}", item.name);
        }
        assert_eq!(Exit::decode([0, 0, 0, 0]), None);
        assert_eq!(Exit::decode([10, 0, 0, 0]), None, "a number that no reason has");
        assert_eq!(Exit::decode([99, 0, 0, 0]), None);
    }

    #[test]
    fn the_ends_of_a_vm_are_told_apart() {
        let ends = [0, 1, 2].map(|how| Exit::decode([hvc::EXIT_SYSTEM, how, 0, 0]));
        assert_eq!(ends, [Power::Off, Power::Reset, Power::Reset2].map(|power| Some(Exit::System(power))));
    }

    #[test]
    fn mmio_carries_size_direction_and_data() {
        let load = Exit::decode([hvc::EXIT_MMIO, 0x9000, 4, 77]);
        assert_eq!(load, Some(Exit::Mmio(Mmio { address: 0x9000, size: 4, store: None })));
        let store = Exit::decode([hvc::EXIT_MMIO, 0x9000, 8 | hvc::MMIO_WRITE, 77]);
        assert_eq!(store, Some(Exit::Mmio(Mmio { address: 0x9000, size: 8, store: Some(77) })));
        for size in [1, 2, 4, 8] {
            let exit = Exit::decode([hvc::EXIT_MMIO, 0x9000, u64::from(size), 0]);
            assert_eq!(exit, Some(Exit::Mmio(Mmio { address: 0x9000, size, store: None })));
        }
        for size in [0, 3, 5, 6, 7] {
            assert_eq!(Exit::decode([hvc::EXIT_MMIO, 0x9000, size, 77]), None, "{size}");
        }
    }
}
