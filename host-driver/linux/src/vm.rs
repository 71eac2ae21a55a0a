// SPDX-License-Identifier: GPL-2.0-only
//! A VM: its slots, its life, its ioctls and its end.
// UNSAFETY: foreign calls and entries; state that the VM's lock protects.

mod lock;

use crate::event::Event;
use crate::file::{self, errno, from_errno, FileRef};
use crate::moves;
use crate::plain::Backing;
use crate::port::EL2;
use crate::sys;
use crate::vcpu;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering};
use freehold_driver_core::abi::{self, Asked, Conversion, NewFile, VmType};
use freehold_driver_core::convert::{to_private, Mode};
use freehold_driver_core::doorbell::Place;
use freehold_driver_core::drain::Aim;
use freehold_driver_core::el2::Handle;
use freehold_driver_core::error::Error;
use freehold_driver_core::file::Thread;
use freehold_driver_core::give::ToVm;
use freehold_driver_core::guest;
use freehold_driver_core::page::Span;
use freehold_driver_core::pool;
use freehold_driver_core::slots::{Holes, Slot, Slots, MAX_SLOTS};
use freehold_driver_core::vgic::Vgic;
use freehold_uapi::ioctl as io;

/// The glue's `struct fh_vm`.
#[repr(C)]
pub(crate) struct RawVm {
    _opaque: [u8; 0],
}

/// Rust's part of a VM.
pub(crate) struct VmState {
    handle: Handle,
    ipa_bits: u64,
    protected: bool,
    /// Its guest has ended it.
    ended: AtomicBool,
    /// It has an interrupt controller. Changed under the lock, before a vCPU runs.
    has_gic: AtomicBool,
    /// It has a doorbell, or had one.
    has_doorbells: AtomicBool,
    inner: Inner,
}

/// What the VM's lock protects.
pub(crate) struct Inner {
    pub(crate) slots: Slots<Backing>,
    /// What `el2` does not know as RAM of an ordinary VM, once it knows what is.
    pub(crate) holes: Option<Holes>,
    pub(crate) life: Life,
    /// vCPUs that `el2` has, a bit each.
    pub(crate) created: u64,
    /// vCPUs that have a descriptor, or had one.
    pub(crate) opened: u64,
    /// Its interrupt controller, if it was given one.
    pub(crate) gic: Option<Vgic>,
    /// Stores that signal somebody: null, or an allocation of so many places.
    pub(crate) doorbells: *mut Place<Event>,
}

/// Life of a VM, as the driver sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// No vCPU ran yet.
    New,
    /// A vCPU ran, or is about to: slots are fixed.
    Ran,
    /// Its frames come back.
    Ended,
    /// They have: nothing of it is left with `el2`.
    Over,
}

#[expect(improper_ctypes, reason = "the state is opaque to C, which only passes its address on")]
extern "C" {
    fn fhc_vm_new() -> *mut RawVm;
    fn fhc_vm_open(vm: *mut RawVm, state: *mut VmState) -> i32;
    fn fhc_vm_find(id: u64) -> *mut RawVm;
    fn fhc_vm_id(vm: *mut RawVm) -> u64;
    fn fhc_vm_state(vm: *mut RawVm) -> *mut VmState;
    fn fhc_vm_put(vm: *mut RawVm);
}

/// A VM, borrowed: whoever holds one holds a reference to the glue's object, or is called with one.
///
/// # Invariants
/// `raw` is a live VM. `state` is its state, or null while it is being created.
#[derive(Clone, Copy)]
pub(crate) struct Vm {
    raw: NonNull<RawVm>,
    state: *mut VmState,
}

impl Vm {
    pub(crate) fn new(raw: *mut RawVm, state: *mut VmState) -> Option<Self> {
        // INVARIANT: the glue passes the two pointers of the VM that it was called for.
        Some(Self { raw: NonNull::new(raw)?, state })
    }

    /// The VM of a vCPU that the glue was called for.
    pub(crate) fn of_raw(raw: *mut RawVm) -> Option<Self> {
        let raw = NonNull::new(raw)?;
        // SAFETY: the vCPU's descriptor holds a reference to the VM.
        let state = unsafe { fhc_vm_state(raw.as_ptr()) };
        // INVARIANT: both belong to the VM that the vCPU holds.
        Some(Self { raw, state })
    }

    /// The VM of this number, with a reference that [`Vm::put`] drops.
    pub(crate) fn find(id: u64) -> Option<Self> {
        // SAFETY: takes a number.
        let vm = Self::of_raw(unsafe { fhc_vm_find(id) })?;
        if vm.state.is_null() {
            vm.put();
            return None;
        }
        Some(vm)
    }

    /// Drops a reference.
    pub(crate) fn put(self) {
        // SAFETY: alive by the invariant, and the caller gives the reference up.
        unsafe { fhc_vm_put(self.raw.as_ptr()) }
    }

    pub(crate) fn raw(self) -> *mut RawVm {
        self.raw.as_ptr()
    }

    pub(crate) fn id(self) -> u64 {
        // SAFETY: alive by the invariant; the number never changes.
        unsafe { fhc_vm_id(self.raw.as_ptr()) }
    }

    /// Its handle.
    pub(crate) fn handle(self) -> Handle {
        // SAFETY: only a VM that has its state is asked; the field never changes.
        unsafe { (*self.state).handle }
    }

    /// Whether it is protected; else ordinary.
    pub(crate) fn is_protected(self) -> bool {
        // SAFETY: only a VM that has its state is asked; the field never changes.
        unsafe { (*self.state).protected }
    }

    pub(crate) fn ipa_bits(self) -> u64 {
        // SAFETY: only a VM that has its state is asked; the field never changes.
        unsafe { (*self.state).ipa_bits }
    }

    /// Whether its guest has ended it.
    pub(crate) fn is_ended(self) -> bool {
        // SAFETY: only a VM that has its state is asked; the flag is an atomic.
        unsafe { &(*self.state).ended }.load(Ordering::Acquire)
    }

    /// Its guest has ended it: every vCPU comes out, and none goes in again until the VMM sets the first one back.
    pub(crate) fn set_ended(self, ended: bool) {
        // SAFETY: only a VM that has its state is asked; the flag is an atomic.
        unsafe { &(*self.state).ended }.store(ended, Ordering::Release);
        self.kick(self.locked(|inner| inner.created));
    }

    /// Whether it has an interrupt controller.
    pub(crate) fn has_gic(self) -> bool {
        // SAFETY: only a VM that has its state is asked; the flag is an atomic.
        unsafe { &(*self.state).has_gic }.load(Ordering::Acquire)
    }

    /// Notes whether it has one.
    pub(crate) fn set_gic(self, has: bool) {
        // SAFETY: only a VM that has its state is asked; the flag is an atomic.
        unsafe { &(*self.state).has_gic }.store(has, Ordering::Release);
    }

    /// Whether it may have a doorbell.
    pub(crate) fn has_doorbells(self) -> bool {
        // SAFETY: only a VM that has its state is asked; the flag is an atomic.
        unsafe { &(*self.state).has_doorbells }.load(Ordering::Acquire)
    }

    /// Notes that it may have one.
    pub(crate) fn set_doorbells(self) {
        // SAFETY: only a VM that has its state is asked; the flag is an atomic.
        unsafe { &(*self.state).has_doorbells }.store(true, Ordering::Release);
    }

    /// The guest frame of `span`'s first page, if one slot has the whole span; the slot's range is `el2`'s RAM then. `None`
    /// where somebody else has the VM.
    pub(crate) fn prepare(self, file: &FileRef, span: Span) -> Option<Result<Option<u64>, Error>> {
        self.living_now(|inner| {
            let Some(slot) = inner.slots.of_pages(&Backing::File(*file), span) else { return Ok(None) };
            self.declare(slot)?;
            Ok(slot.gfn_of(span.first()))
        })
    }

    /// As [`Vm::prepare`], and runs `give` with that, under the lock that a first run takes, so that none comes between.
    pub(crate) fn prepare_unrun<R>(
        self,
        file: &FileRef,
        span: Span,
        give: impl FnOnce(Option<u64>) -> R,
    ) -> Option<Result<R, Error>> {
        self.living_now(|inner| {
            if inner.life == Life::Ran {
                return Err(Error::Denied);
            }
            let Some(slot) = inner.slots.of_pages(&Backing::File(*file), span) else { return Ok(give(None)) };
            self.declare(slot)?;
            Ok(give(slot.gfn_of(span.first())))
        })
    }

    fn declare(self, slot: &mut Slot<Backing>) -> Result<(), Error> {
        if !slot.declared {
            let (gfn, count) = (slot.gfn, slot.pages.count());
            pool::supplied(&EL2, &self, self.handle(), || EL2.vm_range(self.handle(), gfn, count))?;
            slot.declared = true;
        }
        Ok(())
    }

    /// Tells `el2` the RAM of an ordinary VM: all that its slots may ever have.
    fn declare_ordinary(self, inner: &mut Inner) -> Result<(), Error> {
        if inner.holes.is_some() {
            return Ok(());
        }
        // `el2` has frames for every vCPU up to the last one that it made.
        let vcpus = u64::from(u64::BITS.saturating_sub(inner.created.leading_zeros()));
        let windows = inner.gic.as_ref().map(|gic| gic.windows(self.facts(inner), vcpus)).transpose()?;
        let holes = windows.map_or(Holes::default(), Holes::of);
        if windows.is_some_and(|frames| frames.iter().any(|&run| inner.slots.meet(run))) {
            return Err(Error::Exists);
        }
        let end = 1_u64.unbounded_shl(u32::try_from(self.ipa_bits()).unwrap_or(0)) / abi::PAGE_SIZE;
        let mut from = 0;
        while let Some(run) = holes.next(from, end) {
            EL2.vm_range(self.handle(), run.first(), run.count())?;
            from = run.end();
        }
        inner.holes = Some(holes);
        Ok(())
    }

    /// Of a protected VM, whose slots stay: what is behind a guest frame, and how many pages of the slot follow from there.
    pub(crate) fn resolve(self, gfn: u64) -> Option<(Backing, u64, u64)> {
        self.locked(|inner| {
            let slot = inner.slots.of_gfn(gfn)?;
            let page = slot.page(gfn)?;
            Some((slot.file, page, slot.pages.end().saturating_sub(page)))
        })
    }

    /// Gives one page to the guest because a vCPU touched it, or has it touch the page again.
    pub(crate) fn touch(self, file: FileRef, page: u64, gfn: u64, thread: &impl Thread) -> Result<(), Error> {
        let mut giver = ToVm { el2: &EL2, vm: self.handle(), kernel: &self, thread, gfn };
        guest::touch(&file, page, thread, &mut giver)
    }

    /// Fixes the VM's memory before its first run: declares every slot, and donates what was converted before its file
    /// was bound, while its contents still count.
    ///
    /// A kill stops it with a prefix donated; no vCPU ran then, and the rest is still held.
    pub(crate) fn first_run(self, thread: &impl Thread) -> Result<(), Error> {
        self.living(|inner| {
            if inner.life == Life::Ran {
                return Ok(());
            }
            self.check_gic(inner)?;
            if !self.is_protected() {
                self.declare_ordinary(inner)?;
            }
            for slot in inner.slots.iter_mut().filter(|_| self.is_protected()) {
                self.declare(slot)?;
                if let Backing::Pinned(pinned) = slot.file {
                    self.populate_pinned(pinned, slot.gfn, thread)?;
                    continue;
                }
                let mut giver = ToVm { el2: &EL2, vm: self.handle(), kernel: &self, thread, gfn: slot.gfn };
                to_private(&slot.file.file()?, slot.pages, Aim::Bind, Mode::Wait, thread, &mut giver)
                    .map_err(|stopped| stopped.error)?;
            }
            self.declare_gic(inner)?;
            inner.life = Life::Ran;
            Ok(())
        })
    }

    /// Makes a range of guest frames private or shared, slot by slot. No lock is held while pages drain: a slot that goes
    /// meanwhile ends it.
    fn set_attributes(self, ask: &io::MemoryAttributes) -> Result<(), Error> {
        let (gfns, private) = abi::attributes(ask)?;
        if !self.living(|inner| Ok(inner.slots.cover(gfns)))? {
            return Err(Error::Fault);
        }
        let mut gfn = gfns.first();
        while gfn < gfns.end() {
            let (backing, span) = self.living(|inner| {
                let (backing, span) = inner.slots.part(gfns, gfn).ok_or(Error::Fault)?;
                backing.hold();
                Ok((backing, span))
            })?;
            let how = if private { Conversion::ToPrivate(span, Mode::Wait) } else { Conversion::ToShared(span) };
            let moved = backing.file().map(|file| moves::convert(file, how));
            backing.put();
            moved?.map_err(|stopped| moves::resumed(stopped.error))?;
            gfn = gfn.saturating_add(span.count());
        }
        Ok(())
    }

    fn create_vcpu(self, id: usize) -> Result<i64, Error> {
        let id =
            u32::try_from(id).ok().filter(|&id| u64::from(id) < crate::system::max_vcpus()).ok_or(Error::Invalid)?;
        let bit = 1_u64.checked_shl(id).ok_or(Error::Invalid)?;
        self.living(|inner| {
            if inner.gic.as_ref().is_some_and(Vgic::is_complete) {
                return Err(Error::Busy);
            }
            if inner.opened & bit != 0 {
                return Err(Error::Exists);
            }
            if inner.created & bit == 0 {
                pool::supplied(&EL2, &self, self.handle(), || EL2.vcpu_create(self.handle(), u64::from(id)))?;
                inner.created |= bit;
            }
            let fd = vcpu::open(self, id)?;
            inner.opened |= bit;
            Ok(fd)
        })
    }

    fn ioctl(self, cmd: u32, arg: usize) -> Result<i64, Error> {
        match cmd {
            io::KVM_CHECK_EXTENSION => {
                let cap = u64::try_from(arg).map_err(|_| Error::Invalid)?;
                let asked = if self.is_protected() { Asked::Vm } else { Asked::OrdinaryVm };
                let value = abi::capability(asked, cap, crate::system::max_vcpus());
                i64::try_from(value).map_err(|_| Error::Invalid)
            }
            io::KVM_CREATE_VCPU => self.create_vcpu(arg),
            io::KVM_SET_USER_MEMORY_REGION => {
                let old: io::MemoryRegion = sys::copy_in(arg)?;
                let secret = u64::from(old.flags) & io::KVM_MEM_GUEST_MEMFD != 0;
                if secret {
                    return Err(Error::Invalid);
                }
                self.set_region(&io::MemoryRegion2 {
                    slot: old.slot,
                    flags: old.flags,
                    guest_phys_addr: old.guest_phys_addr,
                    memory_size: old.memory_size,
                    userspace_addr: old.userspace_addr,
                    guest_memfd_offset: 0,
                    guest_memfd: 0,
                    pad1: 0,
                    pad2: [0; 14],
                })
                .map(|()| 0)
            }
            io::KVM_SET_USER_MEMORY_REGION2 => self.set_region(&sys::copy_in(arg)?).map(|()| 0),
            io::KVM_CREATE_GUEST_MEMFD => {
                let new = NewFile::decode(&sys::copy_in(arg)?)?;
                if !self.is_protected() && !new.shared {
                    // Its offsets would be private, and could never be lent.
                    return Err(Error::Invalid);
                }
                file::open(new, self.id())
            }
            io::KVM_SET_MEMORY_ATTRIBUTES if !self.is_protected() => Err(Error::Invalid),
            io::KVM_SET_MEMORY_ATTRIBUTES => self.set_attributes(&sys::copy_in(arg)?).map(|()| 0),
            io::KVM_ARM_PREFERRED_TARGET => {
                let target = u32::try_from(io::KVM_ARM_TARGET_GENERIC_V8).map_err(|_| Error::Invalid)?;
                sys::copy_out(arg, &io::VcpuInit { target, features: [0; 7] }).map(|()| 0)
            }
            io::KVM_CREATE_DEVICE => self.create_device(arg),
            io::KVM_IRQFD => self.irqfd(&sys::copy_in(arg)?).map(|()| 0),
            io::KVM_IOEVENTFD => self.ioeventfd(&sys::copy_in(arg)?).map(|()| 0),
            // No attribute is served: a VMM that asks goes on without.
            io::KVM_HAS_DEVICE_ATTR | io::KVM_GET_DEVICE_ATTR | io::KVM_SET_DEVICE_ATTR => Err(Error::NoAddress),
            io::KVM_IRQ_LINE => self.irq_line(sys::copy_in(arg)?).map(|()| 0),
            io::KVM_ENABLE_CAP => {
                let (to, info) = abi::enable(&sys::copy_in(arg)?, self.is_protected())?;
                sys::copy_out(usize::try_from(to).map_err(|_| Error::Fault)?, &info).map(|()| 0)
            }
            // KVM's answer for an ioctl that it does not know on this descriptor.
            _ => Err(Error::Invalid),
        }
    }
}

/// `KVM_CREATE_VM`, of a protected VM in any case if `protect`.
pub(crate) fn create(argument: usize, protect: bool) -> Result<i64, Error> {
    let mut kind = VmType::decode(u64::try_from(argument).map_err(|_| Error::Invalid)?)?;
    kind.protected |= protect;
    // SAFETY: takes nothing; the answer is null or a VM with one reference.
    let vm = Vm::new(unsafe { fhc_vm_new() }, core::ptr::null_mut()).ok_or(Error::NoMemory)?;
    let opened = build(vm, kind);
    if opened.is_err() {
        vm.put();
    }
    opened
}

fn build(vm: Vm, kind: VmType) -> Result<i64, Error> {
    let ipa_bits = kind.ipa_bits;
    let (state, places) = (sys::alloc::<VmState>(1), sys::alloc::<Option<Slot<Backing>>>(MAX_SLOTS));
    let born = if state.is_null() || places.is_null() {
        Err(Error::NoMemory)
    } else {
        pool::create(&EL2, &vm, kind.protected, ipa_bits)
    };
    let handle = match born {
        Ok(handle) => handle,
        Err(error) => {
            // SAFETY: fresh from `alloc`, or null, and nobody knows it.
            unsafe { sys::free(places) };
            // SAFETY: fresh from `alloc`, or null, and nobody knows it.
            unsafe { sys::free(state) };
            return Err(error);
        }
    };
    for number in 0..MAX_SLOTS {
        // SAFETY: the number is below the length of the allocation.
        let place = unsafe { places.add(number) };
        // SAFETY: in the allocation, of this type's size and alignment, and nobody else knows it.
        unsafe { place.write(None) };
    }
    // SAFETY: each was written just now; the VM's end frees them, after this has gone.
    let slots = Slots::over(unsafe { core::slice::from_raw_parts_mut(places, MAX_SLOTS) });
    let flag = || AtomicBool::new(false);
    let (ended, has_gic, has_doorbells) = (flag(), flag(), flag());
    let doorbells = core::ptr::null_mut();
    let inner = Inner { slots, holes: None, life: Life::New, created: 0, opened: 0, gic: None, doorbells };
    // SAFETY: the allocation is of this type's size and alignment, and nobody else knows it.
    unsafe {
        state.write(VmState { handle, ipa_bits, protected: kind.protected, ended, has_gic, has_doorbells, inner })
    };
    // SAFETY: the VM is alive; from here on its state is the glue's, which ends it with the VM whatever happens.
    match unsafe { fhc_vm_open(vm.raw(), state) } {
        fd if fd >= 0 => Ok(i64::from(fd)),
        error => Err(from_errno(error)),
    }
}

/// Ioctls of a VM.
// SAFETY: the name is the module's own (prefix `fh_`), declared once in glue.h with this signature.
#[unsafe(no_mangle)]
extern "C" fn fh_vm_ioctl(raw: *mut RawVm, state: *mut VmState, cmd: u32, arg: usize) -> i64 {
    let Some(vm) = Vm::new(raw, state) else { return errno(Error::BadFile) };
    vm.ioctl(cmd, arg).unwrap_or_else(errno)
}
