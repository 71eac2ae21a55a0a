// SPDX-License-Identifier: GPL-2.0-only
//! A vCPU: its ioctls, and the machine that the core's run loop drives.
// UNSAFETY: foreign calls and entries; state that the vCPU's lock protects.

mod one_reg;

use crate::file::{errno, from_errno, FileRef};
use crate::plain::Backing;
use crate::port::{Caller, EL2};
use crate::sys;
use crate::vm::{RawVm, Vm};
use core::ptr::NonNull;
use freehold_driver_core::abi::{self, Features};
use freehold_driver_core::access::{self, Registers};
use freehold_driver_core::el2::Ran;
use freehold_driver_core::error::Error;
use freehold_driver_core::exit::{Mmio, Power, Request};
use freehold_driver_core::file::{Thread, Wake};
use freehold_driver_core::guest::{self, NotYet};
use freehold_driver_core::idle::{self, Bell, Slept};
use freehold_driver_core::page::Span;
use freehold_driver_core::registers::{self, Entry};
use freehold_driver_core::run::{self, Machine, Memory, Served, Told, Wait};
use freehold_driver_core::status::Refused;
use freehold_uapi::hvc;
use freehold_uapi::ioctl as io;

/// The glue's `struct fh_vcpu`.
#[repr(C)]
pub(crate) struct RawVcpu {
    _opaque: [u8; 0],
}

/// Rust's part of a vCPU; under the vCPU's lock.
pub(crate) struct VcpuState {
    id: u64,
    features: Option<Features>,
    memory: Memory,
    /// It was entered, or may have been: its registers are closed.
    ran: bool,
    /// What the VMM wrote, of a vCPU that a protected guest starts.
    entry: Entry,
}

#[expect(improper_ctypes, reason = "the state is opaque to C, which only passes its address on")]
extern "C" {
    fn fhc_vcpu_open(vm: *mut RawVm, id: u32, state: *mut VcpuState) -> i32;
    fn fhc_vcpu_vm(vcpu: *mut RawVcpu) -> *mut RawVm;
    fn fhc_run_immediate_exit(vcpu: *mut RawVcpu) -> bool;
    fn fhc_run_mmio_data(vcpu: *mut RawVcpu) -> u64;
    fn fhc_bell_mute(vcpu: *mut RawVcpu);
    fn fhc_bell_rang(vcpu: *mut RawVcpu) -> bool;
    fn fhc_bell_enlist(vcpu: *mut RawVcpu);
    fn fhc_bell_sleep(nanoseconds: u64) -> bool;
    fn fhc_bell_leave(vcpu: *mut RawVcpu);
    fn fhc_run_tell(vcpu: *mut RawVcpu, what: u32, a: u64, b: u64, c: u64);
}

/// A descriptor of a new vCPU.
pub(crate) fn open(vm: Vm, id: u32) -> Result<i64, Error> {
    let state = sys::alloc::<VcpuState>(1);
    if state.is_null() {
        return Err(Error::NoMemory);
    }
    let fresh = VcpuState {
        id: u64::from(id),
        features: None,
        memory: Memory::new(u64::from(id)),
        ran: false,
        entry: Entry::default(),
    };
    // SAFETY: the allocation is of this type's size and alignment, and nobody else knows it.
    unsafe { state.write(fresh) };
    // SAFETY: the VM is alive; the state is the glue's unless it fails.
    match unsafe { fhc_vcpu_open(vm.raw(), id, state) } {
        fd if fd >= 0 => Ok(i64::from(fd)),
        error => {
            // SAFETY: came from `alloc`, and the glue did not keep it.
            unsafe { sys::free(state) };
            Err(from_errno(error))
        }
    }
}

/// A running vCPU: the run loop's machine, and a thread that a kick interrupts too.
struct Running {
    raw: NonNull<RawVcpu>,
    vm: Vm,
    id: u64,
}

impl Running {
    fn accept(&self, count: u64) -> Result<u64, Refused> {
        EL2.guest_accept(self.vm.handle(), self.id, count)
    }

    fn share(&self, file: FileRef, span: Span, gfn: u64) -> Result<(), Error> {
        self.until_served(file, gfn, || guest::share(&file, span, |count| self.accept(count)))
    }

    fn relinquish(&self, file: FileRef, span: Span, gfn: u64) -> Result<(), Error> {
        self.until_served(file, gfn, || guest::relinquish(&file, span, file.initial(), |count| self.accept(count)))
    }

    fn until_served(&self, file: FileRef, gfn: u64, ask: impl FnMut() -> Result<u64, NotYet>) -> Result<(), Error> {
        guest::until_served(self, ask, |page| self.vm.touch(file, page, gfn, self))
    }
}

impl Thread for Running {
    fn now(&self) -> u64 {
        Caller.now()
    }

    fn pause(&self, micros: u32) -> Wake {
        sys::pause(micros, false);
        if Machine::interrupted(self) {
            Wake::Interrupted
        } else {
            Wake::Elapsed
        }
    }

    fn breathe(&self) {
        sys::breathe();
    }

    fn dying(&self) -> bool {
        sys::dying()
    }
}

impl Bell for Running {
    fn enlist(&self) {
        // SAFETY: the vCPU is alive while its ioctl runs, and this thread is the only one that runs it.
        unsafe { fhc_bell_enlist(self.raw.as_ptr()) }
    }

    fn rang(&self) -> bool {
        // SAFETY: the vCPU is alive while its ioctl runs.
        unsafe { fhc_bell_rang(self.raw.as_ptr()) }
    }

    fn interrupted(&self) -> bool {
        sys::signal()
    }

    fn sleep(&self, nanoseconds: Option<u64>) -> bool {
        // SAFETY: called from a thread that may sleep, as every entry of this module is.
        unsafe { fhc_bell_sleep(nanoseconds.unwrap_or(u64::MAX)) }
    }

    fn leave(&self) {
        // SAFETY: this thread enlisted before, as the core does.
        unsafe { fhc_bell_leave(self.raw.as_ptr()) }
    }
}

impl Registers for Running {
    fn register(&self, number: u64) -> Option<u64> {
        // It has just come back from a run: nothing can be wrong with it but that its VM ends, and then it runs no more.
        EL2.vcpu_get_reg(self.vm.handle(), self.id, number).ok()
    }

    fn set_register(&self, number: u64, value: u64) -> Option<()> {
        EL2.vcpu_set_reg(self.vm.handle(), self.id, number, value).ok()
    }
}

impl Machine for Running {
    fn enter(&self, mmio: u64) -> Option<Ran> {
        EL2.vcpu_run(self.vm.handle(), self.id, mmio)
    }

    fn touch(&self, gfn: u64) -> Result<Served, Error> {
        if !self.vm.is_protected() {
            return self.vm.lend(gfn, || access::stores(self));
        }
        let Some((backing, page, _)) = self.vm.resolve(gfn) else { return Ok(Served::Nobodys(gfn)) };
        match backing {
            Backing::File(file) => self.vm.touch(file, page, gfn, self).map(|()| Served::Done),
            Backing::Pinned(pinned) => unless_nobodys(gfn, self.vm.touch_pinned(pinned, page, gfn)),
            Backing::Plain(_) => Err(Error::Io),
        }
    }

    fn request(&self, kind: Request, gfn: u64, count: u64) -> Result<Served, Error> {
        if !self.vm.is_protected() {
            // `el2` passes on no such request of a guest that has nothing of its own.
            return Err(Error::Io);
        }
        let Some((backing, page, left)) = self.vm.resolve(gfn) else { return Ok(Served::Nobodys(gfn)) };
        let span = Span::new(page, count.min(left).min(hvc::MAX_RUN)).ok_or(Error::Io)?;
        if let Backing::Pinned(pinned) = backing {
            let accept = |count| self.accept(count);
            return unless_nobodys(gfn, self.vm.request_pinned(pinned, kind, span, gfn, accept));
        }
        let file = backing.file()?;
        match kind {
            Request::Share => self.share(file, span, gfn)?,
            Request::Relinquish => self.relinquish(file, span, gfn)?,
            Request::Unshare => {
                guest::unshare(&file, span, self, |count| self.accept(count)).map_err(|stopped| stopped.error)?;
            }
        }
        Ok(Served::Done)
    }

    fn interrupted(&self) -> bool {
        // SAFETY: the vCPU is alive while its ioctl runs.
        sys::signal() || unsafe { fhc_run_immediate_exit(self.raw.as_ptr()) }
    }

    fn called_away(&self) -> bool {
        sys::called_away()
    }

    fn mute(&self) {
        // SAFETY: the vCPU is alive while its ioctl runs.
        unsafe { fhc_bell_mute(self.raw.as_ptr()) }
    }

    fn ring(&self, vcpus: u64) {
        self.vm.ring(vcpus);
    }

    fn sleep(&self, what: Wait) -> Slept {
        match what {
            Wait::Interrupt { .. } if !self.vm.has_gic() => {
                // Nothing tells when a guest without a controller has something to do.
                sys::doze();
                if sys::signal() {
                    Slept::Interrupted
                } else {
                    Slept::Elapsed
                }
            }
            Wait::Interrupt { deadline } => {
                let frequency = sys::counter_frequency();
                idle::wait(self, || deadline.map(|at| idle::nanoseconds(at, sys::counter(), frequency)))
            }
            Wait::Power | Wait::Signal => idle::wait(self, || None),
        }
    }

    fn is_ended(&self) -> bool {
        self.vm.is_ended()
    }

    fn end(&self) {
        self.vm.set_ended(true);
    }

    fn breathe(&self) {
        sys::breathe();
    }

    fn ended(&self, intid: u64) {
        self.vm.ended(intid);
    }

    fn rings(&self, mmio: &Mmio) -> bool {
        self.vm.rings(mmio)
    }

    fn loaded(&self, size: u8) -> u64 {
        // SAFETY: the vCPU is alive while its ioctl runs.
        let data = unsafe { fhc_run_mmio_data(self.raw.as_ptr()) };
        match size {
            1 => data & 0xff,
            2 => data & 0xffff,
            4 => data & 0xffff_ffff,
            _ => data,
        }
    }

    fn tell(&self, told: Told) {
        let (what, a, b, c) = match told {
            Told::Nothing => (io::KVM_EXIT_UNKNOWN, 0, 0, 0),
            Told::Mmio(mmio) => {
                let write = u64::from(mmio.store.is_some()) << 8;
                (io::KVM_EXIT_MMIO, mmio.address, u64::from(mmio.size) | write, mmio.store.unwrap_or(0))
            }
            Told::Ended(Power::Off) => (io::KVM_EXIT_SYSTEM_EVENT, io::KVM_SYSTEM_EVENT_SHUTDOWN, 1, 0),
            Told::Ended(Power::Reset) => (io::KVM_EXIT_SYSTEM_EVENT, io::KVM_SYSTEM_EVENT_RESET, 1, 0),
            Told::Ended(Power::Reset2) => {
                let flag = io::KVM_SYSTEM_EVENT_RESET_FLAG_PSCI_RESET2;
                (io::KVM_EXIT_SYSTEM_EVENT, io::KVM_SYSTEM_EVENT_RESET, 1, flag)
            }
            Told::Crash(code) => (io::KVM_EXIT_SYSTEM_EVENT, io::KVM_SYSTEM_EVENT_CRASH, 1, code),
            Told::FailEntry(status) => (io::KVM_EXIT_FAIL_ENTRY, status, 0, 0),
            Told::MemoryFault(gfn) => {
                (io::KVM_EXIT_MEMORY_FAULT, gfn.saturating_mul(abi::PAGE_SIZE), abi::PAGE_SIZE, 0)
            }
            Told::Intr => (io::KVM_EXIT_INTR, 0, 0, 0),
        };
        let what = u32::try_from(what).unwrap_or(0);
        // SAFETY: the vCPU is alive while its ioctl runs; the glue knows every reason named here.
        unsafe { fhc_run_tell(self.raw.as_ptr(), what, a, b, c) }
    }
}

/// Where the VMM has no memory, a page is nobody's.
fn unless_nobodys(gfn: u64, done: Result<(), Error>) -> Result<Served, Error> {
    match done {
        Ok(()) => Ok(Served::Done),
        Err(Error::Fault) => Ok(Served::Nobodys(gfn)),
        Err(error) => Err(error),
    }
}

/// A vCPU in an ioctl, with its lock held.
struct Vcpu<'a> {
    raw: NonNull<RawVcpu>,
    vm: Vm,
    state: &'a mut VcpuState,
}

impl Vcpu<'_> {
    fn run(&mut self) -> Result<(), Error> {
        self.state.features.ok_or(Error::NotReady)?;
        let running = Running { raw: self.raw, vm: self.vm, id: self.state.id };
        // Another vCPU than number 0 does not begin its VM: it is off until the guest starts it.
        let begun = if self.state.id == 0 { self.vm.first_run(&running) } else { self.vm.may_run() };
        match begun {
            // The VM ended under us, before a reboot: the run itself says so.
            Ok(()) | Err(Error::Ended) => {}
            Err(error) => {
                // A VMM that looks at the page whatever the errno is finds no exit of an earlier run in it.
                running.tell(if error == Error::Interrupted { Told::Intr } else { Told::Nothing });
                return Err(error);
            }
        }
        self.state.ran = true;
        run::run(&running, &mut self.state.memory)
    }

    fn init(&mut self, arg: usize) -> Result<(), Error> {
        let features = Features::decode(&sys::copy_in(arg)?)?.fit(self.state.id, !self.vm.is_protected())?;
        if self.state.ran && self.vm.is_protected() {
            return Err(Error::Denied);
        }
        if self.state.features.is_some_and(|before| before != features) {
            return Err(Error::Invalid);
        }
        if self.state.ran {
            // As a reset of the machine: the first one is on, and the others wait for it.
            let on = self.state.id == 0;
            EL2.vcpu_set_reg(self.vm.handle(), self.state.id, hvc::REG_POWER, on.into())?;
            self.state.memory = Memory::new(self.state.id);
            if on {
                self.vm.set_ended(false);
            }
        }
        if self.vm.is_protected() {
            self.state.entry = Entry::default();
            for reg in [hvc::REG_X0, hvc::REG_X1, hvc::REG_X2, hvc::REG_X3, hvc::REG_PC] {
                self.write(reg, 0)?;
            }
        } else {
            for (reg, value) in registers::reset() {
                self.write(reg, value)?;
            }
        }
        self.state.features = Some(features);
        Ok(())
    }

    fn mp_state(&self) -> io::MpState {
        abi::mp_state(self.state.memory.is_off() || self.vm.is_ended())
    }

    fn ioctl(&mut self, cmd: u32, arg: usize) -> Result<(), Error> {
        match cmd {
            io::KVM_RUN if arg != 0 => Err(Error::Invalid),
            io::KVM_RUN => self.run(),
            io::KVM_ARM_VCPU_INIT => self.init(arg),
            io::KVM_SET_ONE_REG => self.set_reg(arg),
            io::KVM_GET_ONE_REG => self.get_reg(arg),
            io::KVM_GET_REG_LIST => self.reg_list(arg),
            // No attribute is served: a VMM that asks goes on without.
            io::KVM_HAS_DEVICE_ATTR | io::KVM_GET_DEVICE_ATTR | io::KVM_SET_DEVICE_ATTR => Err(Error::NoAddress),
            io::KVM_GET_MP_STATE => sys::copy_out(arg, &self.mp_state()),
            io::KVM_SET_MP_STATE => {
                let idle = !self.vm.is_protected() && self.state.id != 0 && !self.state.ran;
                abi::set_mp_state(self.mp_state(), sys::copy_in(arg)?, idle)
            }
            // KVM's answer for an ioctl that it does not know on this descriptor.
            _ => Err(Error::Invalid),
        }
    }
}

/// Ioctls of a vCPU, with its lock held.
// SAFETY: the name is the module's own (prefix `fh_`), declared once in glue.h with this signature.
#[unsafe(no_mangle)]
extern "C" fn fh_vcpu_ioctl(raw: *mut RawVcpu, state: *mut VcpuState, cmd: u32, arg: usize) -> i64 {
    // SAFETY: the glue passes a live vCPU.
    let vm = Vm::of_raw(unsafe { fhc_vcpu_vm(raw) });
    // SAFETY: the state is alive with the vCPU, and the vCPU's lock makes this the only reference.
    let state = unsafe { state.as_mut() };
    let (Some(raw), Some(vm), Some(state)) = (NonNull::new(raw), vm, state) else { return errno(Error::BadFile) };
    Vcpu { raw, vm, state }.ioctl(cmd, arg).map_or_else(errno, |()| 0)
}

/// Frees the state of a vCPU whose descriptor is gone.
// SAFETY: the name is the module's own (prefix `fh_`), declared once in glue.h with this signature.
#[unsafe(no_mangle)]
extern "C" fn fh_vcpu_free(state: *mut VcpuState) {
    // SAFETY: came from `alloc` in `open`, and the vCPU is gone.
    unsafe { sys::free(state) };
}
