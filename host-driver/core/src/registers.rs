// SPDX-License-Identifier: MIT OR Apache-2.0
//! Registers by KVM's names: which there are, whose they are, and what may be written.
//!
//! A vCPU starts with every register zero but those that its VMM gives it: x0 to x3, where it begins, and the one PSTATE.
//! Of a protected VM nothing else is named. Of an ordinary one every core register is; what `el2` does not take must be
//! written with what it is.
//!
//! Source: Linux `Documentation/virt/kvm/api.rst`, `KVM_SET_ONE_REG`.

use crate::error::Error;
use freehold_uapi::hvc;
use freehold_uapi::ioctl as io;

/// First of KVM's core registers that are 32 bits wide, and of those that are 128: x0's name in another size.
const CORE_32: u64 = 0x6020_0000_0010_0000;
const CORE_128: u64 = 0x6040_0000_0010_0000;
/// Offsets of core registers, in words of 32 bits: `SP_EL0`, `SP_EL1`, the last SPSR, V0, V31, FPSR, FPCR.
const SP: u64 = 0x3e;
const SP_EL1: u64 = 0x44;
const LAST_SPSR: u64 = 0x50;
const V0: u64 = 0x54;
const V31: u64 = 0xd0;
const FPSR: u64 = 0xd4;
const FPCR: u64 = 0xd5;
/// The PSCI version that guests find.
pub const PSCI_VERSION: u64 = 0x1_0001;

/// A register that a VMM may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// The VMM's to give before the first run: the hypervisor's number for it.
    Entry(u64),
    /// Zero at the start, and not the VMM's to give: its bytes.
    Zero(usize),
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
    pub const fn decode(id: u64, ordinary: bool) -> Result<Self, Error> {
        match (register(id), ordinary) {
            (Ok(number), _) => Ok(Self::Entry(number)),
            (Err(_), _) if id == io::KVM_REG_PSCI_VERSION => Ok(Self::Psci),
            (Err(_), _) if id == io::KVM_REG_TIMER_CNT => Ok(Self::Counter),
            (Err(_), true) => match zero(id) {
                Some(bytes) => Ok(Self::Zero(bytes)),
                None => Err(Error::NoEntry),
            },
            (Err(error), false) => Err(error),
        }
    }

    /// Bytes of its value.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::Zero(bytes) => bytes,
            Self::Entry(_) | Self::Psci | Self::Counter => 8,
        }
    }
}

/// Bytes of a core register that is zero at the start.
const fn zero(id: u64) -> Option<usize> {
    const FPSR_ID: u64 = CORE_32 + FPSR;
    const FPCR_ID: u64 = CORE_32 + FPCR;
    const SP_ID: u64 = io::KVM_REG_X0 + SP;
    const SP_EL1_ID: u64 = io::KVM_REG_X0 + SP_EL1;
    const LAST_SPSR_ID: u64 = io::KVM_REG_X0 + LAST_SPSR;
    const V0_ID: u64 = CORE_128 + V0;
    const V31_ID: u64 = CORE_128 + V31;
    match id {
        io::KVM_REG_X0..=SP_ID | SP_EL1_ID..=LAST_SPSR_ID if id & 1 == 0 => Some(8),
        V0_ID..=V31_ID if id & 3 == 0 => Some(16),
        FPSR_ID | FPCR_ID => Some(4),
        _ => None,
    }
}

/// The names of all registers of a vCPU, as `KVM_GET_REG_LIST` tells them.
pub fn list(ordinary: bool) -> impl Iterator<Item = u64> {
    let general = (0..=LAST_SPSR).step_by(2).map(|at| io::KVM_REG_X0.wrapping_add(at));
    let vector = (V0..=V31).step_by(4).map(|at| CORE_128.wrapping_add(at));
    let status = [FPSR, FPCR].map(|at| CORE_32.wrapping_add(at));
    let fixed = [io::KVM_REG_MPIDR, io::KVM_REG_PSCI_VERSION];
    // The counter can be read, but not be given back: it is not what a VMM should save.
    general.chain(vector).chain(status).chain(fixed).filter(move |&id| Register::decode(id, ordinary).is_ok())
}

/// What a VMM wrote to the registers of a vCPU that its guest starts. Nothing else comes of it: the guest says where the
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

/// Checks a value for a register, as KVM does before it looks at anything else; the value that the register gets.
///
/// The flags of an ordinary VM's PSTATE may be set, and are clear when its guest starts: what begins there sets its own.
///
/// # Errors
/// `Invalid` for a PSTATE that a vCPU can not start in, a PC that is not aligned, or a register that is read only.
pub const fn writable(reg: u64, value: u64, ordinary: bool) -> Result<u64, Error> {
    /// N, Z, C and V.
    const FLAGS: u64 = 0xf000_0000;
    let flags = if ordinary { FLAGS } else { 0 };
    match reg {
        hvc::REG_PSTATE if value & !flags == START_PSTATE => Ok(START_PSTATE),
        hvc::REG_PC if value & 3 == 0 => Ok(value),
        hvc::REG_PSTATE | hvc::REG_PC | hvc::REG_MPIDR => Err(Error::Invalid),
        _ => Ok(value),
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
    fn a_vcpu_starts_in_el1_at_an_instruction() {
        for ordinary in [false, true] {
            assert_eq!(writable(hvc::REG_PSTATE, 0x3c5, ordinary), Ok(0x3c5));
            assert_eq!(writable(hvc::REG_PSTATE, 0x3c9, ordinary), Err(Error::Invalid));
            assert_eq!(writable(hvc::REG_PSTATE, 0x800_03c5, ordinary), Err(Error::Invalid));
            assert_eq!(writable(hvc::REG_PC, 0x8000_0000, ordinary), Ok(0x8000_0000));
            assert_eq!(writable(hvc::REG_PC, 0x8000_0002, ordinary), Err(Error::Invalid));
            assert_eq!(writable(hvc::REG_X0, u64::MAX, ordinary), Ok(u64::MAX));
            assert_eq!(writable(hvc::REG_MPIDR, 0, ordinary), Err(Error::Invalid));
        }
        // QEMU's has Z set.
        assert_eq!(writable(hvc::REG_PSTATE, 0x4000_03c5, true), Ok(0x3c5));
        assert_eq!(writable(hvc::REG_PSTATE, 0x4000_03c5, false), Err(Error::Invalid));
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
        assert_eq!(Register::decode(CORE_128 + V0, false), Err(Error::NoEntry));
    }

    #[test]
    fn an_ordinary_vm_names_every_core_register_with_kvms_size() {
        let names: Vec<u64> = list(true).collect();
        // 31 general, SP, PC, PSTATE, SP_EL1, ELR_EL1, 5 SPSRs; 32 vectors, FPSR and FPCR; MPIDR and PSCI.
        assert_eq!(names.len(), 41 + 34 + 2);
        for id in &names {
            let bytes = Register::decode(*id, true).unwrap().bytes();
            assert_eq!(1 << (id >> 52 & 0xf), bytes, "{id:#x}");
        }
        let mut unique = names.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), names.len());
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
            0x6030_0000_0013_c080,
            u64::MAX,
        ];
        for id in bad {
            assert_eq!(Register::decode(id, true), Err(Error::NoEntry), "{id:#x}");
        }
    }
}
