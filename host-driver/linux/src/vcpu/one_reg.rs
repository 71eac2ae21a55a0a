// SPDX-License-Identifier: GPL-2.0-only
//! A vCPU's registers, as its VMM names, writes and reads them.

use super::Vcpu;
use crate::port::EL2;
use crate::sys;
use freehold_driver_core::error::Error;
use freehold_driver_core::registers::{self, Register};
use freehold_uapi::hvc;
use freehold_uapi::ioctl as io;

impl Vcpu<'_> {
    /// Whether `el2` keeps what the VMM writes and reads; else it is nothing that comes to the guest.
    fn is_kept(&self) -> bool {
        !self.vm.is_protected() || self.state.id == 0
    }

    pub(super) fn write(&mut self, reg: u64, value: u64) -> Result<(), Error> {
        if self.is_kept() {
            EL2.vcpu_set_reg(self.vm.handle(), self.state.id, reg, value)?;
        } else {
            self.state.entry.set(reg, value);
        }
        Ok(())
    }

    /// The name that an ioctl says, and the address of its value.
    fn named(&self, arg: usize) -> Result<(u64, usize), Error> {
        self.state.features.ok_or(Error::NotReady)?;
        let ask: io::OneReg = sys::copy_in(arg)?;
        Ok((ask.id, usize::try_from(ask.addr).map_err(|_| Error::Fault)?))
    }

    pub(super) fn set_reg(&mut self, arg: usize) -> Result<(), Error> {
        let (id, from) = self.named(arg)?;
        let reg = Register::decode(id, !self.vm.is_protected())?;
        let (value, above) = match reg.bytes() {
            4 => (u64::from(sys::copy_in::<u32>(from)?), 0),
            16 => sys::copy_in::<[u64; 2]>(from).map(|[low, high]| (low, high))?,
            _ => (sys::copy_in(from)?, 0),
        };
        match reg {
            Register::Counter => Ok(()),
            // What it is already may be written.
            Register::Zero | Register::Psci | Register::Kept(hvc::REG_MPIDR) if value == self.read(reg)? => Ok(()),
            Register::Zero | Register::Psci => Err(Error::Invalid),
            Register::Vector(number) => {
                self.write(number, value)?;
                self.write(number.saturating_add(1), above)
            }
            Register::Kept(number) | Register::Short(number) => {
                registers::writable(number, value, !self.vm.is_protected())?;
                if self.state.ran && self.vm.is_protected() {
                    return Err(Error::Denied);
                }
                self.write(number, value)
            }
        }
    }

    fn read(&self, reg: Register) -> Result<u64, Error> {
        let of_el2 = |number| EL2.vcpu_get_reg(self.vm.handle(), self.state.id, number);
        Ok(match reg {
            Register::Counter => sys::counter(),
            Register::Psci => registers::PSCI_VERSION,
            Register::Zero => 0,
            Register::Kept(hvc::REG_MPIDR) => of_el2(hvc::REG_MPIDR)?,
            // What a protected vCPU that ran holds is its own: its registers read as zero.
            _ if self.state.ran && self.vm.is_protected() => 0,
            Register::Kept(number) if !self.is_kept() => self.state.entry.get(number),
            Register::Kept(number) | Register::Short(number) | Register::Vector(number) => of_el2(number)?,
        })
    }

    pub(super) fn get_reg(&self, arg: usize) -> Result<(), Error> {
        let (id, to) = self.named(arg)?;
        let (reg, hidden) = Register::read(id, !self.vm.is_protected())?;
        let value = |reg| if hidden { Ok(0) } else { self.read(reg) };
        let low = value(reg)?;
        match reg {
            Register::Short(_) => sys::copy_out(to, &u32::try_from(low).map_err(|_| Error::Invalid)?),
            Register::Vector(number) => {
                let above = value(Register::Kept(number.saturating_add(1)))?;
                sys::copy_out(to, &[low, above])
            }
            Register::Kept(_) | Register::Zero | Register::Psci | Register::Counter => sys::copy_out(to, &low),
        }
    }

    /// `KVM_GET_REG_LIST`: how many, and as many names if there is room for all.
    pub(super) fn reg_list(&self, arg: usize) -> Result<(), Error> {
        self.state.features.ok_or(Error::NotReady)?;
        let room: u64 = sys::copy_in(arg)?;
        let names = || registers::list(!self.vm.is_protected());
        let count = u64::try_from(names().count()).unwrap_or(0);
        sys::copy_out(arg, &count)?;
        if room < count {
            return Err(Error::TooBig);
        }
        for (name, at) in names().zip((arg..).step_by(8).skip(1)) {
            sys::copy_out(at, &name)?;
        }
        Ok(())
    }
}
