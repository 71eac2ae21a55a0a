// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a guest does while it runs, as data.

use freehold_el2::calls::Stop;
use freehold_virt::vcpu::Trap;

use crate::vcpus::Registers;

/// One step of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Act {
    /// An interrupt for the host arrives.
    Interrupt,
    /// A call with x0–x3.
    Hvc {
        /// The immediate.
        imm: u16,
        /// x0–x3.
        x: [u64; 4],
    },
    /// A data abort: a translation fault at an address of the guest's.
    Abort {
        /// The address.
        ipa: u64,
        /// Whether it was a store, of this.
        store: Option<u64>,
    },
    /// An instruction abort.
    Fetch {
        /// The address.
        ipa: u64,
    },
    /// A stage-1 walk that found no table.
    Walk {
        /// The address of the table.
        ipa: u64,
    },
    /// Any other exception: the syndrome, as the CPU would write it.
    Trap {
        /// `ESR_EL2`.
        esr: u64,
    },
    /// An `SError`.
    SError,
    /// A state that is not served.
    BadState,
    /// The host left streaming mode on.
    HostBusy,
}

const HVC: u64 = 0x16 << 26;
const FETCH: u64 = 0x20 << 26;
const DATA: u64 = 0x24 << 26;
/// Valid syndrome, 4 bytes, register x5, translation fault of level 3.
const LOAD: u64 = DATA | 1 << 24 | 2 << 22 | 5 << 16 | 7;
const WRITE: u64 = 1 << 6;
const STAGE1_WALK: u64 = 1 << 7;

impl Act {
    /// Does it to the registers, and says why the guest stopped.
    pub(crate) fn perform(self, registers: &mut Registers) -> Stop {
        match self {
            Self::Interrupt => Stop::Interrupt,
            Self::Hvc { imm, x } => {
                for (register, value) in registers.x.iter_mut().zip(x) {
                    *register = value;
                }
                registers.pc = registers.pc.wrapping_add(4);
                Stop::Trap(Trap { esr: HVC | u64::from(imm), far: 0, hpfar: 0 })
            }
            Self::Abort { ipa, store: None } => at(LOAD, ipa),
            Self::Abort { ipa, store: Some(value) } => {
                registers.x[5] = value;
                at(LOAD | WRITE, ipa)
            }
            Self::Fetch { ipa } => at(FETCH | 7, ipa),
            Self::Walk { ipa } => at(DATA | STAGE1_WALK | 7, ipa),
            Self::Trap { esr } => Stop::Trap(Trap { esr, far: 0, hpfar: 0 }),
            Self::SError => Stop::SError,
            Self::BadState => Stop::BadState,
            Self::HostBusy => Stop::HostBusy,
        }
    }
}

fn at(esr: u64, ipa: u64) -> Stop {
    Stop::Trap(Trap { esr, far: ipa, hpfar: ipa >> 12 << 4 })
}
