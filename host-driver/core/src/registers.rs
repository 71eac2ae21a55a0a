// SPDX-License-Identifier: MIT OR Apache-2.0
//! Registers by KVM's names: which there are, whose they are, and what may be written.
//!
//! Of a protected VM a vCPU starts with every register zero but those that its VMM gives it: x0 to x3, where it begins, and
//! the one PSTATE; nothing else is named, and nothing once it ran. Of an ordinary VM every core register is, and EL1's, and
//! each is the VMM's to read and to write whenever the vCPU does not run.
//!
//! Source: Linux `Documentation/virt/kvm/api.rst`, `KVM_SET_ONE_REG`.

use crate::error::Error;
use freehold_uapi::hvc;
use freehold_uapi::ioctl as io;

/// First of KVM's core registers that are 32 bits wide, and of those that are 128: x0's name in another size.
const CORE_32: u64 = 0x6020_0000_0010_0000;
const CORE_128: u64 = 0x6040_0000_0010_0000;
/// First of the system registers: op0, op1, `CRn`, `CRm` and op2 in the lower bits.
const SYSTEM: u64 = 0x6030_0000_0013_0000;
/// Offsets of core registers, in words of 32 bits: `SP_EL0`, `SP_EL1`, ELR, the first SPSR and the last, V0, V31, FPSR, FPCR.
const SP: u64 = 0x3e;
const SP_EL1: u64 = 0x44;
const ELR: u64 = 0x46;
const SPSR: u64 = 0x48;
const LAST_SPSR: u64 = 0x50;
const V0: u64 = 0x54;
const V31: u64 = 0xd0;
const FPSR: u64 = 0xd4;
const FPCR: u64 = 0xd5;
/// The PSCI version that guests find.
pub const PSCI_VERSION: u64 = 0x1_0001;
/// `SCTLR_EL1` after a reset: MMU and caches off.
const SCTLR_RESET: u64 = 0x30d0_0800;

/// EL1's system registers in the hypervisor's order, from `REG_EL1` on: `op0 << 14 | op1 << 11 | CRn << 7 | CRm << 3 | op2`.
const EL1: [u64; 18] = [
    0xc080, // SCTLR
    0xc102, // TCR
    0xc082, // CPACR
    0xc100, // TTBR0
    0xc101, // TTBR1
    0xc510, // MAIR
    0xc518, // AMAIR
    0xc600, // VBAR
    0xc290, // ESR
    0xc300, // FAR
    0xc288, // AFSR0
    0xc289, // AFSR1
    0xc681, // CONTEXTIDR
    0xc3a0, // PAR
    0xde82, // TPIDR_EL0
    0xde83, // TPIDRRO
    0xc684, // TPIDR_EL1
    0xc708, // CNTKCTL
];
/// The hypervisor's numbers of what follows them, which KVM has among the core registers.
const REG_SP: u64 = hvc::REG_EL1 + 18;
const REG_SP_EL1: u64 = hvc::REG_EL1 + 19;
const REG_ELR: u64 = hvc::REG_EL1 + 20;
const REG_SPSR: u64 = hvc::REG_EL1 + 21;

/// A register that a VMM may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// The hypervisor's number for it.
    Kept(u64),
    /// 32 bits of one.
    Short(u64),
    /// A vector: the number of its lower half; the upper one's is the next.
    Vector(u64),
    /// `AArch32`'s, which no guest has: zero.
    Zero,
    /// `KVM_REG_ARM_PSCI_VERSION`: fixed.
    Psci,
    /// `KVM_REG_ARM_TIMER_CNT`: the machine's own counter, which no VMM moves.
    Counter,
}

impl Register {
    /// Names a register of an ordinary VM's vCPU, or of a protected one's.
    ///
    /// # Errors
    /// `Denied` for a general register that a protected VM does not show, `NoEntry` for any other.
    pub fn decode(id: u64, ordinary: bool) -> Result<Self, Error> {
        match (register(id), ordinary) {
            (Ok(number), _) => Ok(Self::Kept(number)),
            (Err(_), _) if id == io::KVM_REG_PSCI_VERSION => Ok(Self::Psci),
            (Err(_), _) if id == io::KVM_REG_TIMER_CNT => Ok(Self::Counter),
            (Err(_), true) => core(id).or_else(|| system(id)).ok_or(Error::NoEntry),
            (Err(error), false) => Err(error),
        }
    }

    /// Names a register that is to be read, and whether its value is hidden: what an ordinary VM would show of a vCPU reads as
    /// zero of a protected one's, as KVM's does. A VMM that dumps registers does not fail by it.
    ///
    /// # Errors
    /// `NoEntry` for one that neither has.
    pub fn read(id: u64, ordinary: bool) -> Result<(Self, bool), Error> {
        match Self::decode(id, ordinary) {
            Ok(register) => Ok((register, false)),
            Err(_) => Self::decode(id, true).map(|register| (register, true)),
        }
    }

    /// Bytes of its value.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::Vector(_) => 16,
            Self::Short(_) => 4,
            Self::Kept(_) | Self::Zero | Self::Psci | Self::Counter => 8,
        }
    }
}

/// A core register of an ordinary VM.
const fn core(id: u64) -> Option<Register> {
    const LAST_X: u64 = io::KVM_REG_X0 + 2 * hvc::REG_X30;
    const FPSR_ID: u64 = CORE_32 + FPSR;
    const FPCR_ID: u64 = CORE_32 + FPCR;
    const SP_ID: u64 = io::KVM_REG_X0 + SP;
    const SP_EL1_ID: u64 = io::KVM_REG_X0 + SP_EL1;
    const ELR_ID: u64 = io::KVM_REG_X0 + ELR;
    const SPSR_ID: u64 = io::KVM_REG_X0 + SPSR;
    const LAST_SPSR_ID: u64 = io::KVM_REG_X0 + LAST_SPSR;
    const V0_ID: u64 = CORE_128 + V0;
    const V31_ID: u64 = CORE_128 + V31;
    Some(match id {
        io::KVM_REG_X0..=LAST_X if id & 1 == 0 => Register::Kept((id & 0xff) >> 1),
        SP_ID => Register::Kept(REG_SP),
        SP_EL1_ID => Register::Kept(REG_SP_EL1),
        ELR_ID => Register::Kept(REG_ELR),
        SPSR_ID => Register::Kept(REG_SPSR),
        SPSR_ID..=LAST_SPSR_ID if id & 1 == 0 => Register::Zero,
        // Two of the hypervisor's words for four of KVM's.
        V0_ID..=V31_ID if id & 3 == 0 => Register::Vector(hvc::REG_V0.wrapping_add(id.wrapping_sub(V0_ID) >> 1)),
        FPSR_ID => Register::Short(hvc::REG_FPSR),
        FPCR_ID => Register::Short(hvc::REG_FPCR),
        _ => return None,
    })
}

/// A system register of an ordinary VM.
fn system(id: u64) -> Option<Register> {
    let (_, number) = EL1.iter().zip(hvc::REG_EL1..).find(|(name, _)| SYSTEM.wrapping_add(**name) == id)?;
    Some(Register::Kept(number))
}

/// What a vCPU of an ordinary VM starts with, if its VMM does not say otherwise: every number that is not zero then, or is
/// the VMM's to write.
pub fn reset() -> impl Iterator<Item = (u64, u64)> {
    let fixed = [(hvc::REG_PC, 0), (hvc::REG_PSTATE, START_PSTATE), (hvc::REG_EL1, SCTLR_RESET)];
    let zero = (hvc::REG_X0..=hvc::REG_X30).chain(hvc::REG_EL1.wrapping_add(1)..=hvc::REG_FPSR);
    zero.map(|number| (number, 0)).chain(fixed)
}

/// The names of all registers of a vCPU, as `KVM_GET_REG_LIST` tells them.
pub fn list(ordinary: bool) -> impl Iterator<Item = u64> {
    let general = (0..=LAST_SPSR).step_by(2).map(|at| io::KVM_REG_X0.wrapping_add(at));
    let vector = (V0..=V31).step_by(4).map(|at| CORE_128.wrapping_add(at));
    let status = [FPSR, FPCR].map(|at| CORE_32.wrapping_add(at));
    let system = EL1.iter().map(|name| SYSTEM.wrapping_add(*name));
    let fixed = [io::KVM_REG_MPIDR, io::KVM_REG_PSCI_VERSION];
    // The counter can be read, but not be given back: it is not what a VMM should save.
    general
        .chain(vector)
        .chain(status)
        .chain(system)
        .chain(fixed)
        .filter(move |&id| Register::decode(id, ordinary).is_ok())
}

/// What a VMM wrote to the registers of a vCPU that a protected guest starts. Nothing else comes of it: the guest says where the
/// vCPU begins, and with what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    x: [u64; 4],
    pc: u64,
}

impl Entry {
    /// Keeps a value that [`writable`] accepted.
    pub fn set(&mut self, reg: u64, value: u64) {
        match reg {
            hvc::REG_PC => self.pc = value,
            _ => {
                if let Some(x) = usize::try_from(reg).ok().and_then(|reg| self.x.get_mut(reg)) {
                    *x = value;
                }
            }
        }
    }

    /// Reads it back.
    #[must_use]
    pub fn get(&self, reg: u64) -> u64 {
        match reg {
            hvc::REG_PC => self.pc,
            hvc::REG_PSTATE => START_PSTATE,
            _ => usize::try_from(reg).ok().and_then(|reg| self.x.get(reg)).copied().unwrap_or(0),
        }
    }
}

/// `EL1h`, with D, A, I and F masked: how every vCPU starts.
const START_PSTATE: u64 = 0x3c5;

/// The hypervisor's number of a register that `KVM_GET/SET_ONE_REG` names.
///
/// # Errors
/// `Denied` for a general register that a protected VM does not show, `NoEntry` for any other.
pub const fn register(id: u64) -> Result<u64, Error> {
    /// Last of KVM's 64-bit core registers: x4 to x30, SP, `SP_EL1`, `ELR_EL1` and the banked SPSRs among them.
    const LAST_CORE: u64 = io::KVM_REG_X0 + 0x54;
    match id {
        io::KVM_REG_X0 => Ok(hvc::REG_X0),
        0x6030_0000_0010_0002 => Ok(hvc::REG_X1),
        0x6030_0000_0010_0004 => Ok(hvc::REG_X2),
        0x6030_0000_0010_0006 => Ok(hvc::REG_X3),
        io::KVM_REG_PC => Ok(hvc::REG_PC),
        io::KVM_REG_PSTATE => Ok(hvc::REG_PSTATE),
        io::KVM_REG_MPIDR => Ok(hvc::REG_MPIDR),
        io::KVM_REG_X0..=LAST_CORE if id & 1 == 0 => Err(Error::Denied),
        _ => Err(Error::NoEntry),
    }
}

/// Checks a value for a register, as KVM does before it looks at anything else.
///
/// # Errors
/// `Invalid` for a PSTATE that is not EL0's or EL1's, or of a protected VM not a start's; for a PC of one that is not
/// aligned; for a register that is read only.
pub const fn writable(reg: u64, value: u64, ordinary: bool) -> Result<(), Error> {
    /// M\[4:0\]: the level, and which stack pointer.
    const MODE: u64 = 0x1f;
    match reg {
        hvc::REG_PSTATE if ordinary => match value & MODE {
            // EL0t, EL1t, EL1h.
            0 | 4 | 5 => Ok(()),
            _ => Err(Error::Invalid),
        },
        hvc::REG_PC if ordinary || value & 3 == 0 => Ok(()),
        hvc::REG_PSTATE if value == START_PSTATE => Ok(()),
        hvc::REG_PSTATE | hvc::REG_PC | hvc::REG_MPIDR => Err(Error::Invalid),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_to_a_vcpu_that_the_guest_starts_reads_back() {
        let mut entry = Entry::default();
        for (reg, value) in [(hvc::REG_X0, 1), (hvc::REG_X3, 4), (hvc::REG_PC, 0x8000_0000), (99, 5)] {
            entry.set(reg, value);
        }
        let read = [hvc::REG_X0, hvc::REG_X1, hvc::REG_X3, hvc::REG_PC, hvc::REG_PSTATE, 99].map(|reg| entry.get(reg));
        assert_eq!(read, [1, 0, 4, 0x8000_0000, 0x3c5, 0]);
    }

    #[test]
    fn a_protected_vcpu_starts_in_el1_at_an_instruction() {
        assert_eq!(writable(hvc::REG_PSTATE, 0x3c5, false), Ok(()));
        for pstate in [0x3c9, 0x3c4, 0x4000_03c5, 0x800_03c5, 0] {
            assert_eq!(writable(hvc::REG_PSTATE, pstate, false), Err(Error::Invalid), "{pstate:#x}");
        }
        assert_eq!(writable(hvc::REG_PC, 0x8000_0000, false), Ok(()));
        assert_eq!(writable(hvc::REG_PC, 0x8000_0002, false), Err(Error::Invalid));
        assert_eq!(writable(hvc::REG_X0, u64::MAX, false), Ok(()));
    }

    #[test]
    fn an_ordinary_vcpu_is_at_el0_or_el1_and_anywhere() {
        for pstate in [0, 0x3c4, 0x3c5, 0x4000_03c5, 0x6000_0000] {
            assert_eq!(writable(hvc::REG_PSTATE, pstate, true), Ok(()), "{pstate:#x}");
        }
        for pstate in [0x3c8, 0x3c9, 0x3cd, 0x10, 0x1d3, 1, u64::MAX] {
            assert_eq!(writable(hvc::REG_PSTATE, pstate, true), Err(Error::Invalid), "{pstate:#x}");
        }
        assert_eq!(writable(hvc::REG_PC, 3, true), Ok(()));
        for ordinary in [false, true] {
            assert_eq!(writable(hvc::REG_MPIDR, 0, ordinary), Err(Error::Invalid));
        }
    }

    #[test]
    fn an_ordinary_vcpu_is_reset_to_what_el2_makes() {
        let all: Vec<_> = reset().collect();
        let set = |number| all.iter().filter(|(n, _)| *n == number).map(|(_, value)| *value).collect::<Vec<_>>();
        assert_eq!([set(hvc::REG_PC), set(hvc::REG_PSTATE), set(hvc::REG_EL1)], [[0], [0x3c5], [0x30d0_0800]]);
        for number in (0..=30).chain(129..=215) {
            assert_eq!(set(number), [0], "{number}");
        }
        assert_eq!(all.len(), 31 + 87 + 3);
    }

    #[test]
    fn each_name_of_an_ordinary_vm_is_another_of_the_hypervisors_numbers() {
        let words = |id| match Register::decode(id, true).unwrap() {
            Register::Kept(n) | Register::Short(n) => vec![n],
            Register::Vector(n) => vec![n, n + 1],
            Register::Zero | Register::Psci | Register::Counter => vec![],
        };
        let mut numbers: Vec<u64> = list(true).flat_map(words).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..=30).chain(32..=34).chain(128..=215).collect::<Vec<_>>());
        let named = [
            (io::KVM_REG_X0 + 2 * 30, Register::Kept(30)),
            (io::KVM_REG_X0 + 0x3e, Register::Kept(146)),
            (io::KVM_REG_X0 + 0x48, Register::Kept(149)),
            (io::KVM_REG_X0 + 0x4a, Register::Zero),
            (CORE_128 + 0x58, Register::Vector(152)),
            (CORE_32 + 0xd4, Register::Short(215)),
            (0x6030_0000_0013_c080, Register::Kept(128)),
            (0x6030_0000_0013_c708, Register::Kept(145)),
        ];
        for (id, register) in named {
            assert_eq!(Register::decode(id, true), Ok(register), "{id:#x}");
        }
    }

    #[test]
    fn every_vcpu_has_the_machines_counter_and_a_psci_version() {
        for ordinary in [false, true] {
            assert_eq!(Register::decode(io::KVM_REG_TIMER_CNT, ordinary), Ok(Register::Counter));
            assert_eq!(Register::decode(io::KVM_REG_PSCI_VERSION, ordinary), Ok(Register::Psci));
        }
    }

    #[test]
    fn only_entry_registers_are_named() {
        assert_eq!(register(io::KVM_REG_X0 + 6), Ok(hvc::REG_X3));
        assert_eq!(register(io::KVM_REG_X0 + 8), Err(Error::Denied));
        assert_eq!(register(io::KVM_REG_X0 + 1), Err(Error::NoEntry));
        assert_eq!(register(io::KVM_REG_X0 + 0x100), Err(Error::NoEntry));
        assert_eq!(register(0), Err(Error::NoEntry));
    }

    #[test]
    fn a_protected_vm_names_what_its_vmm_gives_and_no_more() {
        let names: Vec<u64> = list(false).collect();
        let x = |n: u64| io::KVM_REG_X0 + 2 * n;
        let fixed = [io::KVM_REG_MPIDR, io::KVM_REG_PSCI_VERSION];
        assert_eq!(names, [x(0), x(1), x(2), x(3), io::KVM_REG_PC, io::KVM_REG_PSTATE, fixed[0], fixed[1]]);
        assert_eq!(Register::decode(x(4), false), Err(Error::Denied));
        for id in [CORE_128 + V0, CORE_32 + FPSR, SYSTEM + EL1[0]] {
            assert_eq!(Register::decode(id, false), Err(Error::NoEntry), "{id:#x}");
        }
    }

    #[test]
    fn what_a_protected_vm_does_not_name_reads_as_hidden() {
        for id in list(true) {
            let read = Register::read(id, false);
            assert_eq!(
                read,
                Ok((Register::decode(id, true).unwrap(), Register::decode(id, false).is_err())),
                "{id:#x}"
            );
            assert_eq!(Register::read(id, true), Ok((Register::decode(id, true).unwrap(), false)), "{id:#x}");
        }
        for id in [0, io::KVM_REG_X0 + 1, CORE_32, u64::MAX] {
            assert_eq!([Register::read(id, false), Register::read(id, true)], [Err(Error::NoEntry); 2], "{id:#x}");
        }
    }

    #[test]
    fn an_ordinary_vm_names_every_register_with_kvms_size() {
        let names: Vec<u64> = list(true).collect();
        // 31 general, SP, PC, PSTATE, SP_EL1, ELR_EL1, 5 SPSRs; 32 vectors, FPSR and FPCR; EL1's; MPIDR and PSCI.
        assert_eq!(names.len(), 41 + 34 + 18 + 2);
        for id in &names {
            let bytes = Register::decode(*id, true).unwrap().bytes();
            assert_eq!(1 << (id >> 52 & 0xf), bytes, "{id:#x}");
        }
        let mut unique = names.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), names.len());
    }

    /// Each is of 64 bits, and KVM counts in words of 32.
    #[test]
    fn no_name_begins_inside_a_core_register() {
        for at in (1..=LAST_SPSR).step_by(2) {
            assert_eq!(Register::decode(io::KVM_REG_X0 + at, true), Err(Error::NoEntry), "{at}");
        }
    }

    #[test]
    fn no_other_register_is_named() {
        let bad = [
            0,
            io::KVM_REG_X0 + 1,
            io::KVM_REG_X0 + 0x52,
            io::KVM_REG_X0 + V0,
            CORE_128 + V0 + 2,
            CORE_128 + V31 + 4,
            CORE_32 + FPCR + 1,
            CORE_32,
            0x6030_0000_0013_c081,
            0x6020_0000_0013_c080,
            u64::MAX,
        ];
        for id in bad {
            assert_eq!(Register::decode(id, true), Err(Error::NoEntry), "{id:#x}");
        }
    }
}
