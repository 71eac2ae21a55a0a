// SPDX-License-Identifier: MIT OR Apache-2.0
//! The registers of a vCPU that is not running, as a port.

use crate::vcpu::Trap;

/// General registers, program counter and state of one vCPU, and how its EL1 is given an exception.
pub trait Registers {
    /// Reads x0–x30; 31 reads as zero.
    fn x(&self, n: u8) -> u64;
    /// Writes x0–x30; a write to 31 is dropped.
    fn set_x(&mut self, n: u8, value: u64);
    /// Address of the next instruction.
    fn pc(&self) -> u64;
    /// Sets the address of the next instruction.
    fn set_pc(&mut self, pc: u64);
    /// PSTATE in the layout of `SPSR_EL2`.
    fn pstate(&self) -> u64;
    /// Sets PSTATE.
    fn set_pstate(&mut self, pstate: u64);
    /// The `n`th word of what else is kept: EL1's registers, the vectors, and what the last exit was, in the order of
    /// the host's ABI.
    fn kept(&mut self, n: usize) -> Option<&mut u64>;
    /// Gives EL1 a synchronous exception with this syndrome, and this address if it has one, at the current instruction.
    fn inject(&mut self, esr: u64, far: Option<u64>);

    /// Continues behind the trapped instruction; a branch target's mark (`BTYPE`) is spent with it.
    fn advance(&mut self) {
        self.set_pc(self.pc().wrapping_add(4));
        self.set_pstate(self.pstate() & !BTYPE);
    }

    /// Goes back to the HVC that was just made, so that it is made again.
    fn rewind(&mut self) {
        self.set_pc(self.pc().wrapping_sub(4));
    }

    /// Gives the results of a call, in x0–x3.
    fn answer(&mut self, results: [u64; 4]) {
        for (n, value) in (0u8..).zip(results) {
            self.set_x(n, value);
        }
    }

    /// Gives EL1 the exception of an undefined instruction.
    fn inject_undefined(&mut self) {
        self.inject(UNDEFINED, None);
    }

    /// Gives EL1 an external abort for the access, the fetch or the walk that this trap of it or of EL0 was.
    fn inject_external(&mut self, trap: Trap) {
        let same_level = u64::from(self.pstate() & LEVEL != 0) << 26;
        self.inject(trap.esr & OF_ABORT | same_level | EXTERNAL, Some(trap.far));
    }
}

/// `SPSR_EL2.BTYPE`, bits \[11:10\].
const BTYPE: u64 = 3 << 10;
/// Exception class 0 (unknown reason), 32-bit instruction.
const UNDEFINED: u64 = 1 << 25;
/// `SPSR_EL2.M[3:2]`: zero of EL0.
const LEVEL: u64 = 3 << 2;
/// What of an abort's syndrome another level is told too: its class, of which bit 26 says that it was that level's own,
/// the instruction's length, whether it was maintenance of caches, and whether it stored.
const OF_ABORT: u64 = 0x3f << 26 | 1 << 25 | 1 << 8 | 1 << 6;
/// Fault status of an external abort.
const EXTERNAL: u64 = 0x10;

#[cfg(test)]
pub(crate) mod fake {
    use super::Registers;
    use std::vec::Vec;

    /// Registers that remember what was injected.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) struct Fake {
        pub(crate) x: [u64; 31],
        pub(crate) pc: u64,
        pub(crate) pstate: u64,
        pub(crate) kept: [u64; 90],
        pub(crate) injected: Vec<(u64, Option<u64>)>,
    }

    impl Fake {
        pub(crate) fn new() -> Self {
            Self {
                x: core::array::from_fn(|n| 0x1000 + n as u64),
                pc: 0x8000_0000,
                pstate: 0x3c5,
                kept: core::array::from_fn(|n| 0x2000 + n as u64),
                injected: Vec::new(),
            }
        }
    }

    impl Registers for Fake {
        fn x(&self, n: u8) -> u64 {
            self.x.get(usize::from(n)).copied().unwrap_or(0)
        }
        fn set_x(&mut self, n: u8, value: u64) {
            if let Some(x) = self.x.get_mut(usize::from(n)) {
                *x = value;
            }
        }
        fn pc(&self) -> u64 {
            self.pc
        }
        fn set_pc(&mut self, pc: u64) {
            self.pc = pc;
        }
        fn pstate(&self) -> u64 {
            self.pstate
        }
        fn set_pstate(&mut self, pstate: u64) {
            self.pstate = pstate;
        }
        fn kept(&mut self, n: usize) -> Option<&mut u64> {
            self.kept.get_mut(n)
        }
        fn inject(&mut self, esr: u64, far: Option<u64>) {
            self.injected.push((esr, far));
        }
    }
}
