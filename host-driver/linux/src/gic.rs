// SPDX-License-Identifier: GPL-2.0-only
//! A VM's interrupt controller: the device's ioctls, the VM's `KVM_IRQ_LINE`, and telling `el2` where it lies.
// UNSAFETY: foreign calls and entries.

use crate::file::{errno, from_errno};
use crate::port::EL2;
use crate::sys;
use crate::vm::{Inner, Life, RawVm, Vm, VmState};
use freehold_driver_core::error::Error;
use freehold_driver_core::vgic::{Attr, Facts, Vgic, Wire};
use freehold_uapi::ioctl as io;

/// INTID of the first SPI.
const FIRST_SPI: u64 = 32;

extern "C" {
    fn fhc_gic_open(vm: *mut RawVm) -> i32;
    fn fhc_bell_ring(vm: *mut RawVm, vcpus: u64);
    fn fhc_irqfd_assign(vm: *mut RawVm, fd: u32, gsi: u32, resample: bool, resamplefd: u32) -> i32;
    fn fhc_irqfd_deassign(vm: *mut RawVm, fd: u32, gsi: u32) -> i32;
    fn fhc_irqfds_ended(vm: *mut RawVm, gsi: u32);
}

impl Vm {
    /// Wakes the threads of these vCPUs, one bit each.
    pub(crate) fn ring(self, vcpus: u64) {
        if vcpus != 0 {
            // SAFETY: alive by the invariant; the glue passes over bits that are no vCPU's.
            unsafe { fhc_bell_ring(self.raw(), vcpus) }
        }
    }

    /// `KVM_CREATE_DEVICE`.
    pub(crate) fn create_device(self, arg: usize) -> Result<i64, Error> {
        let mut ask: io::CreateDevice = sys::copy_in(arg)?;
        let test = u64::from(ask.flags) & io::KVM_CREATE_DEVICE_TEST != 0;
        self.living(|inner| {
            Vgic::creatable(ask.kind, test, inner.gic.is_some(), inner.life != Life::New)?;
            if test {
                return Ok(());
            }
            // SAFETY: alive by the invariant; the glue takes a reference for the descriptor.
            ask.fd = u32::try_from(unsafe { fhc_gic_open(self.raw()) }).map_err(|_| Error::NoSpace)?;
            inner.gic = Some(Vgic::default());
            self.set_gic(true);
            Ok(())
        })?;
        // A caller whose memory went meanwhile has the descriptor all the same, as with KVM.
        sys::copy_out(arg, &ask).map(|()| 0)
    }

    pub(crate) fn facts(self, inner: &Inner) -> Facts {
        Facts { ipa_bits: self.ipa_bits(), vcpus: u64::from(inner.opened.count_ones()) }
    }

    fn set_attr(self, ask: &io::DeviceAttr) -> Result<(), Error> {
        let attr = Attr::decode(ask)?;
        let at = usize::try_from(ask.addr).map_err(|_| Error::Fault)?;
        let value = match attr {
            Attr::Init => 0,
            Attr::Irqs => u64::from(sys::copy_in::<u32>(at)?),
            Attr::Distributor | Attr::Redistributors | Attr::Region => sys::copy_in(at)?,
        };
        self.living(|inner| {
            let facts = self.facts(inner);
            inner.gic.as_mut().ok_or(Error::NoDevice)?.set(attr, value, facts)
        })
    }

    fn get_attr(self, ask: &io::DeviceAttr) -> Result<(), Error> {
        let attr = Attr::decode(ask)?;
        let at = usize::try_from(ask.addr).map_err(|_| Error::Fault)?;
        let asked = if attr == Attr::Region { sys::copy_in(at)? } else { 0 };
        let value = self.living(|inner| inner.gic.as_ref().ok_or(Error::NoDevice)?.get(attr, asked))?;
        match attr {
            Attr::Irqs => sys::copy_out(at, &u32::try_from(value).map_err(|_| Error::Invalid)?),
            Attr::Distributor | Attr::Redistributors | Attr::Region | Attr::Init => sys::copy_out(at, &value),
        }
    }

    /// Whether a vCPU that does not begin its VM may run.
    pub(crate) fn may_run(self) -> Result<(), Error> {
        self.living(|inner| self.check_gic(inner))
    }

    /// Whether a vCPU may run: a controller must be complete then.
    pub(crate) fn check_gic(self, inner: &Inner) -> Result<(), Error> {
        inner.gic.as_ref().map_or(Ok(()), |gic| gic.frames(self.facts(inner)).map(|_| ()))
    }

    /// Tells `el2` where the controller lies, and which wires are high already. The last step before the first run.
    pub(crate) fn declare_gic(self, inner: &Inner) -> Result<(), Error> {
        let Some(gic) = &inner.gic else { return Ok(()) };
        EL2.vm_gic(self.handle(), gic.frames(self.facts(inner))?)?;
        for (spi, wire) in gic.raised() {
            EL2.vm_irq(self.handle(), spi, wire)?;
        }
        for spi in gic.pulsed() {
            EL2.vm_irq(self.handle(), spi, Wire::High)?;
            EL2.vm_irq(self.handle(), spi, Wire::Low)?;
        }
        Ok(())
    }

    /// `KVM_IRQ_LINE`. Wires are noted until `el2` has the controller.
    pub(crate) fn irq_line(self, ask: io::IrqLevel) -> Result<(), Error> {
        let wire = if ask.level != 0 { Wire::High } else { Wire::Low };
        let woken = self.living(|inner| {
            let gic = inner.gic.as_mut().ok_or(Error::NoAddress)?;
            let spi = gic.spi(ask.irq)?;
            if inner.life == Life::Ran {
                return Ok(EL2.vm_irq(self.handle(), spi, wire)?);
            }
            gic.note(spi, wire);
            Ok(0)
        })?;
        self.ring(woken);
        Ok(())
    }
}

impl Vm {
    /// `KVM_IRQFD`.
    pub(crate) fn irqfd(self, ask: &io::Irqfd) -> Result<(), Error> {
        let flags = u64::from(ask.flags);
        if flags & !(io::KVM_IRQFD_FLAG_DEASSIGN | io::KVM_IRQFD_FLAG_RESAMPLE) != 0 {
            return Err(Error::Invalid);
        }
        let resample = flags & io::KVM_IRQFD_FLAG_RESAMPLE != 0;
        let done = if flags & io::KVM_IRQFD_FLAG_DEASSIGN != 0 {
            // SAFETY: alive by the invariant; plain numbers.
            unsafe { fhc_irqfd_deassign(self.raw(), ask.fd, ask.gsi) }
        } else {
            self.living(|inner| inner.gic.as_ref().ok_or(Error::Again)?.gsi(ask.gsi).map(|_| ()))?;
            // SAFETY: alive by the invariant; plain numbers.
            unsafe { fhc_irqfd_assign(self.raw(), ask.fd, ask.gsi, resample, ask.resamplefd) }
        };
        match done {
            0 => Ok(()),
            -9 => Err(Error::BadFile),
            -16 => Err(Error::Busy),
            errno => Err(from_errno(errno)),
        }
    }

    /// Raises an SPI for an eventfd: until the guest ends it, or for a moment.
    fn raise(self, gsi: u32, resample: bool) -> Result<(), Error> {
        let woken = self.living(|inner| {
            let gic = inner.gic.as_mut().ok_or(Error::NoAddress)?;
            let spi = gic.gsi(gsi)?;
            match (inner.life == Life::Ran, resample) {
                (true, true) => Ok(EL2.vm_irq(self.handle(), spi, Wire::HighUntilEnded)?),
                (true, false) => {
                    let woken = EL2.vm_irq(self.handle(), spi, Wire::High)?;
                    Ok(woken | EL2.vm_irq(self.handle(), spi, Wire::Low)?)
                }
                (false, true) => {
                    gic.note(spi, Wire::HighUntilEnded);
                    Ok(0)
                }
                (false, false) => {
                    gic.pulse(spi);
                    Ok(0)
                }
            }
        })?;
        self.ring(woken);
        Ok(())
    }

    /// The guest has ended an interrupt that an eventfd raised: its wire falls, and whoever raised it looks again.
    pub(crate) fn ended(self, intid: u64) {
        let gsi = intid.checked_sub(FIRST_SPI).and_then(|gsi| u32::try_from(gsi).ok());
        let Some(gsi) = gsi else { return };
        // A VM that has ended, or a wire that it does not have, is nobody's to lower.
        let _ = self.living(|inner| {
            let spi = inner.gic.as_ref().ok_or(Error::NoAddress)?.gsi(gsi)?;
            Ok(EL2.vm_irq(self.handle(), spi, Wire::Low)?)
        });
        // SAFETY: alive by the invariant.
        unsafe { fhc_irqfds_ended(self.raw(), gsi) }
    }
}

/// An eventfd was signalled that raises an interrupt.
// SAFETY: the name is the module's own (prefix `fh_`), declared once in glue.h with this signature.
#[unsafe(no_mangle)]
extern "C" fn fh_irqfd_raise(raw: *mut RawVm, state: *mut VmState, gsi: u32, resample: bool) {
    let Some(vm) = Vm::new(raw, state) else { return };
    // A VM that has ended takes no interrupt.
    let _ = vm.raise(gsi, resample);
}

/// A vGIC's descriptor is closed.
// SAFETY: the name is the module's own (prefix `fh_`), declared once in glue.h with this signature.
#[unsafe(no_mangle)]
extern "C" fn fh_gic_closed(raw: *mut RawVm, state: *mut VmState) {
    if let Some(vm) = Vm::new(raw, state) {
        vm.locked(|inner| vm.set_gic(Vgic::closed(&mut inner.gic)));
    }
}

/// Ioctls of a vGIC.
// SAFETY: the name is the module's own (prefix `fh_`), declared once in glue.h with this signature.
#[unsafe(no_mangle)]
extern "C" fn fh_gic_ioctl(raw: *mut RawVm, state: *mut VmState, cmd: u32, arg: usize) -> i64 {
    let Some(vm) = Vm::new(raw, state) else { return errno(Error::BadFile) };
    let ask = || sys::copy_in::<io::DeviceAttr>(arg);
    let done = match cmd {
        io::KVM_SET_DEVICE_ATTR => ask().and_then(|ask| vm.set_attr(&ask)),
        io::KVM_GET_DEVICE_ATTR => ask().and_then(|ask| vm.get_attr(&ask)),
        io::KVM_HAS_DEVICE_ATTR => ask().and_then(|ask| Attr::decode(&ask).map(|_| ())),
        // KVM's answer for an ioctl that it does not know on this descriptor.
        _ => Err(Error::NoIoctl),
    };
    done.map_or_else(errno, |()| 0)
}
