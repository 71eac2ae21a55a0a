// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a guest does while it runs, as data.

use freehold_el2::calls::Stop;
use freehold_virt::vcpu::Trap;

use crate::tlb::Right;
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
    /// A load, or a store of a value. It goes through where a translation is at hand, and faults elsewhere.
    Access {
        /// The address.
        ipa: u64,
        /// Bytes: 1, 2, 4 or 8.
        size: u8,
        /// What is stored.
        store: Option<u64>,
        /// Whether the syndrome describes it.
        described: bool,
    },
    /// A fault at an address, whether or not a translation is at hand by now.
    Abort {
        /// The address.
        ipa: u64,
    },
    /// A fetch, which goes through as an access does.
    Fetch {
        /// The address.
        ipa: u64,
    },
    /// A stage-1 walk, which goes through as an access does.
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
/// Translation fault of level 3.
const FAULT: u64 = 7;
/// Permission fault of level 3.
const DENIED: u64 = 0xf;
const DESCRIBED: u64 = 1 << 24;
const WRITE: u64 = 1 << 6;
const STAGE1_WALK: u64 = 1 << 7;
/// The register that loads and stores use.
const REGISTER: usize = 5;

impl Act {
    /// Where it touches memory, and for what.
    pub(crate) const fn touches(self) -> Option<(u64, Right)> {
        match self {
            Self::Access { ipa, store: None, .. } | Self::Walk { ipa } => Some((ipa, Right::Read)),
            Self::Access { ipa, store: Some(_), .. } => Some((ipa, Right::Write)),
            Self::Fetch { ipa } => Some((ipa, Right::Execute)),
            Self::Interrupt
            | Self::Hvc { .. }
            | Self::Abort { .. }
            | Self::Trap { .. }
            | Self::SError
            | Self::BadState
            | Self::HostBusy => None,
        }
    }

    /// Does to the registers what stops the guest, and says why it stopped. `denied`: what it touches is mapped, but not
    /// for this.
    pub(crate) fn stop(self, registers: &mut Registers, denied: bool) -> Stop {
        let fault = if denied { DENIED } else { FAULT };
        match self {
            Self::Interrupt => Stop::Interrupt,
            Self::Hvc { imm, x } => {
                for (register, value) in registers.x.iter_mut().zip(x) {
                    *register = value;
                }
                registers.pc = registers.pc.wrapping_add(4);
                Stop::Trap(Trap { esr: HVC | u64::from(imm), far: 0, hpfar: 0 })
            }
            Self::Access { ipa, size, store, described } => {
                let syndrome = if described { DESCRIBED } else { 0 };
                let write = if store.is_some() { WRITE } else { 0 };
                if let Some(value) = store {
                    registers.x[REGISTER] = value;
                }
                let width = u64::from(size.max(1).ilog2()) << 22;
                at(DATA | syndrome | width | (REGISTER as u64) << 16 | write | fault, ipa)
            }
            Self::Abort { ipa } => at(DATA | FAULT, ipa),
            Self::Fetch { ipa } => at(FETCH | fault, ipa),
            Self::Walk { ipa } => at(DATA | STAGE1_WALK | fault, ipa),
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
