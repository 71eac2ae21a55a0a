// SPDX-License-Identifier: MIT OR Apache-2.0
//! KVM's ABI: arguments decoded and checked, capabilities answered; each refusal with KVM's errno.
//!
//! Source: Linux `Documentation/virt/kvm/api.rst`.

use crate::convert::Mode;
use crate::error::Error;
use crate::page::Span;
use crate::slots::MAX_SLOTS;
use freehold_uapi::ioctl::{self as io, Convert, CreateGuestMemfd, EnableCap, MemoryRegion2, VcpuInit};
use freehold_uapi::ioctl::{MemoryAttributes, MemoryAttributes2, ProtectedVmInfo};

/// Bytes of a page; v1 loads only where the kernel's page is this large too.
pub const PAGE_SIZE: u64 = 4096;
/// Bits of [`PAGE_SIZE`].
const PAGE_SHIFT: u32 = 12;
/// Answer of `KVM_GET_API_VERSION`.
pub const API_VERSION: i64 = 12;
/// Answer of `KVM_GET_VCPU_MMAP_SIZE`.
pub const RUN_SIZE: u64 = PAGE_SIZE;
/// Bits of a guest physical address, at most, and where the VMM does not say.
pub const IPA_BITS: u64 = 40;
/// Bits of a guest physical address, at least.
const LEAST_IPA_BITS: u64 = 32;
/// Every flag that a `guest_memfd` knows.
pub const GUEST_MEMFD_FLAGS: u64 = io::GUEST_MEMFD_FLAG_MMAP | io::GUEST_MEMFD_FLAG_INIT_SHARED;

/// Every attribute that memory can have.
pub const ATTRIBUTES: u64 = io::KVM_MEMORY_ATTRIBUTE_PRIVATE;

const fn aligned(value: u64) -> bool {
    value & (PAGE_SIZE - 1) == 0
}

/// Type argument of `KVM_CREATE_VM`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmType {
    /// Asked to be protected.
    pub protected: bool,
    /// Bits of a guest physical address.
    pub ipa_bits: u64,
}

impl VmType {
    /// Decodes the argument.
    ///
    /// # Errors
    /// `Invalid` for unknown bits or an address size that is not served.
    pub const fn decode(argument: u64) -> Result<Self, Error> {
        if argument & !(io::KVM_VM_TYPE_ARM_PROTECTED | io::KVM_VM_TYPE_ARM_IPA_SIZE_MASK) != 0 {
            return Err(Error::Invalid);
        }
        let ipa_bits = match argument & io::KVM_VM_TYPE_ARM_IPA_SIZE_MASK {
            0 => IPA_BITS,
            bits if bits < LEAST_IPA_BITS || bits > IPA_BITS => return Err(Error::Invalid),
            bits => bits,
        };
        Ok(Self { protected: argument & io::KVM_VM_TYPE_ARM_PROTECTED != 0, ipa_bits })
    }
}

/// Which descriptor is asked for a capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// `/dev/freehold`.
    System,
    /// A protected VM.
    Vm,
    /// An ordinary VM.
    OrdinaryVm,
}

/// Answers `KVM_CHECK_EXTENSION`.
#[must_use]
pub fn capability(asked: Asked, cap: u64, max_vcpus: u64) -> u64 {
    let Ok(cap) = u32::try_from(cap) else { return 0 };
    match cap {
        io::KVM_CAP_IRQCHIP
        | io::KVM_CAP_USER_MEMORY
        | io::KVM_CAP_DESTROY_MEMORY_REGION_WORKS
        | io::KVM_CAP_JOIN_MEMORY_REGIONS_WORKS
        | io::KVM_CAP_IRQFD
        | io::KVM_CAP_IRQFD_RESAMPLE
        | io::KVM_CAP_IOEVENTFD
        | io::KVM_CAP_IOEVENTFD_ANY_LENGTH
        | io::KVM_CAP_INTERNAL_ERROR_DATA
        | io::KVM_CAP_ONE_REG
        | io::KVM_CAP_ARM_PSCI
        | io::KVM_CAP_MP_STATE
        | io::KVM_CAP_DEVICE_CTRL
        | io::KVM_CAP_ARM_PSCI_0_2
        | io::KVM_CAP_CHECK_EXTENSION_VM
        | io::KVM_CAP_IMMEDIATE_EXIT
        | io::KVM_CAP_USER_MEMORY2
        | io::KVM_CAP_MEMORY_FAULT_INFO
        | io::KVM_CAP_GUEST_MEMFD => 1,
        io::KVM_CAP_GUEST_MEMFD_FLAGS => GUEST_MEMFD_FLAGS,
        io::KVM_CAP_MEMORY_ATTRIBUTES | io::KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES if asked != Asked::OrdinaryVm => {
            ATTRIBUTES
        }
        io::KVM_CAP_NR_VCPUS | io::KVM_CAP_MAX_VCPUS | io::KVM_CAP_MAX_VCPU_ID => max_vcpus,
        io::KVM_CAP_NR_MEMSLOTS => MAX_SLOTS as u64,
        io::KVM_CAP_ARM_VM_IPA_SIZE => IPA_BITS,
        io::KVM_CAP_READONLY_MEM if asked != Asked::Vm => 1,
        io::KVM_CAP_ARM_PROTECTED_VM if asked == Asked::Vm => 1,
        _ => 0,
    }
}

/// Answers `KVM_ENABLE_CAP`: where in the VMM to write what, if it may be asked.
///
/// Nothing can be switched on. What a protected VM's VMM may ask is how large the firmware is: Android's form of the
/// capability. There is none, which is an answer; where it should start is then a question about nothing.
///
/// # Errors
/// `Invalid`: KVM's answer for a capability that is unknown or needs no enabling, and the one of Android's kernel for an
/// ordinary VM, an argument that must be 0, an unknown flag, and firmware's address where there is no firmware.
pub fn enable(asked: &EnableCap, protected: bool) -> Result<(u64, ProtectedVmInfo), Error> {
    let [to, rest @ ..] = asked.args;
    let info = u64::from(asked.flags) == io::KVM_CAP_ARM_PROTECTED_VM_FLAGS_INFO;
    if protected && asked.cap == io::KVM_CAP_ARM_PROTECTED_VM && info && rest == [0; 3] {
        return Ok((to, ProtectedVmInfo { firmware_size: 0, reserved: [0; 7] }));
    }
    Err(Error::Invalid)
}

/// What `KVM_SET_USER_MEMORY_REGION2` asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    /// A new slot of `guest_memfd` pages.
    Add {
        /// Slot number.
        id: u32,
        /// First guest frame.
        gfn: u64,
        /// Pages of the file.
        pages: Span,
        /// Descriptor of the file.
        fd: u32,
    },
    /// Delete this slot.
    Delete {
        /// Slot number.
        id: u32,
    },
    /// A slot of the VMM's own memory: a new one, or one that moves.
    Plain {
        /// Slot number.
        id: u32,
        /// First guest frame.
        gfn: u64,
        /// Pages.
        count: u64,
        /// Where they lie in the VMM.
        start: u64,
        /// The guest's stores go to the VMM.
        read_only: bool,
    },
}

impl Region {
    /// Decodes the argument, for a VM of `ipa_bits`.
    ///
    /// # Errors
    /// `Invalid`, or `Fault` beyond the VM's address size; `Denied` for a protected VM's memory of the VMM's that is to be
    /// read only or logged.
    pub fn decode(region: &MemoryRegion2, ipa_bits: u64, protected: bool) -> Result<Self, Error> {
        let flags = u64::from(region.flags);
        let known = io::KVM_MEM_LOG_DIRTY_PAGES | io::KVM_MEM_READONLY | io::KVM_MEM_GUEST_MEMFD;
        let secret = flags & io::KVM_MEM_GUEST_MEMFD != 0;
        // A guest_memfd slot is neither read-only nor logged.
        if flags & !known != 0 || (secret && flags != io::KVM_MEM_GUEST_MEMFD) {
            return Err(Error::Invalid);
        }
        let size = region.memory_size;
        if !aligned(size) || !aligned(region.guest_phys_addr) || !aligned(region.userspace_addr) {
            return Err(Error::Invalid);
        }
        let end = region.guest_phys_addr.checked_add(size).ok_or(Error::Invalid)?;
        // Bits 31:16 name an address space; there is only the first.
        if usize::try_from(region.slot).map_or(true, |id| id >= MAX_SLOTS) {
            return Err(Error::Invalid);
        }
        if size == 0 {
            return Ok(Self::Delete { id: region.slot });
        }
        if end > 1_u64.checked_shl(u32::try_from(ipa_bits).unwrap_or(0)).unwrap_or(0) {
            return Err(Error::Fault);
        }
        let gfn = region.guest_phys_addr >> PAGE_SHIFT;
        if !secret {
            let read_only = flags == io::KVM_MEM_READONLY;
            let (count, start) = (size >> PAGE_SHIFT, region.userspace_addr);
            return match flags {
                _ if flags != 0 && protected => Err(Error::Denied),
                // A log of what is written is not served.
                0 | io::KVM_MEM_READONLY => Ok(Self::Plain { id: region.slot, gfn, count, start, read_only }),
                _ => Err(Error::Invalid),
            };
        }
        let offset = region.guest_memfd_offset;
        if !aligned(offset) || offset.checked_add(size).is_none() {
            return Err(Error::Invalid);
        }
        let pages = Span::new(offset >> PAGE_SHIFT, size >> PAGE_SHIFT).ok_or(Error::Invalid)?;
        Ok(Self::Add { id: region.slot, gfn, pages, fd: region.guest_memfd })
    }
}

/// Checked argument of `KVM_CREATE_GUEST_MEMFD`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewFile {
    /// Pages.
    pub pages: u64,
    /// May be mapped.
    pub mappable: bool,
    /// Starts host mappable.
    pub shared: bool,
}

impl NewFile {
    /// Decodes the argument.
    ///
    /// # Errors
    /// `Invalid` for size 0, a size that is no multiple of the page, or an unknown flag.
    pub const fn decode(create: &CreateGuestMemfd) -> Result<Self, Error> {
        if create.flags & !GUEST_MEMFD_FLAGS != 0 || create.size == 0 || !aligned(create.size) {
            return Err(Error::Invalid);
        }
        // The kernel's file offsets are signed.
        if create.size > i64::MAX as u64 {
            return Err(Error::Invalid);
        }
        Ok(Self {
            pages: create.size >> PAGE_SHIFT,
            mappable: create.flags & io::GUEST_MEMFD_FLAG_MMAP != 0,
            shared: create.flags & io::GUEST_MEMFD_FLAG_INIT_SHARED != 0,
        })
    }
}

/// A checked conversion of a range of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conversion {
    /// To private.
    ToPrivate(Span, Mode),
    /// To private, and the caller does not wait; the clock's time at which it gives up.
    Notify(Span, Option<u64>),
    /// To shared.
    ToShared(Span),
}

impl Conversion {
    /// Decodes the argument for a file of `pages`; `now` is the thread's clock in milliseconds.
    ///
    /// # Errors
    /// `Invalid` for a bad direction, mode, alignment, range or reserved field.
    pub fn decode(convert: &Convert, pages: u64, now: u64) -> Result<Self, Error> {
        let known = matches!(convert.mode, io::CONVERT_WAIT | io::CONVERT_NOW | io::CONVERT_NOTIFY);
        if !known || convert.reserved != [0; 3] || !aligned(convert.offset) || !aligned(convert.size) {
            return Err(Error::Invalid);
        }
        let span = Span::new(convert.offset >> PAGE_SHIFT, convert.size >> PAGE_SHIFT).ok_or(Error::Invalid)?;
        if convert.offset.checked_add(convert.size).is_none() || span.end() > pages {
            return Err(Error::Invalid);
        }
        match convert.to {
            io::CONVERT_TO_SHARED => Ok(Self::ToShared(span)),
            io::CONVERT_TO_PRIVATE if convert.mode == io::CONVERT_NOW => Ok(Self::ToPrivate(span, Mode::Now)),
            io::CONVERT_TO_PRIVATE if convert.mode == io::CONVERT_NOTIFY => {
                let deadline = (convert.timeout_ms != 0).then(|| now.saturating_add(convert.timeout_ms));
                Ok(Self::Notify(span, deadline))
            }
            io::CONVERT_TO_PRIVATE if convert.timeout_ms == 0 => Ok(Self::ToPrivate(span, Mode::Wait)),
            io::CONVERT_TO_PRIVATE => Ok(Self::ToPrivate(span, Mode::Until(now.saturating_add(convert.timeout_ms)))),
            _ => Err(Error::Invalid),
        }
    }

    /// Decodes `KVM_SET_MEMORY_ATTRIBUTES2` for a file of `pages`.
    ///
    /// # Errors
    /// `Invalid` for a flag, an unknown attribute, a reserved field, a bad alignment or a range beyond the end.
    pub fn of_attributes(ask: &MemoryAttributes2, pages: u64) -> Result<Self, Error> {
        if ask.reserved != [0; 11] {
            return Err(Error::Invalid);
        }
        let (span, private) = attributed(ask.offset, ask.size, ask.attributes, ask.flags)?;
        if span.end() > pages {
            return Err(Error::Invalid);
        }
        Ok(if private { Self::ToPrivate(span, Mode::Now) } else { Self::ToShared(span) })
    }
}

/// The pages and whether they are to be private, by KVM's rules for `KVM_SET_MEMORY_ATTRIBUTES`.
fn attributed(first: u64, size: u64, attributes: u64, flags: u64) -> Result<(Span, bool), Error> {
    if flags != 0 || attributes & !ATTRIBUTES != 0 || !aligned(first) || !aligned(size) {
        return Err(Error::Invalid);
    }
    if first.checked_add(size).is_none() {
        return Err(Error::Invalid);
    }
    let span = Span::new(first >> PAGE_SHIFT, size >> PAGE_SHIFT).ok_or(Error::Invalid)?;
    Ok((span, attributes == io::KVM_MEMORY_ATTRIBUTE_PRIVATE))
}

/// Decodes `FREEHOLD_POPULATE` for a file of `pages`.
///
/// # Errors
/// `Invalid` for a bad alignment, range, source or reserved field.
pub fn populated(ask: &io::Populate, pages: u64) -> Result<Span, Error> {
    if ask.reserved != [0; 4] || ask.source.checked_add(ask.size).is_none() {
        return Err(Error::Invalid);
    }
    let span = file_range(ask.offset, ask.size)?;
    if span.end() > pages {
        return Err(Error::Invalid);
    }
    Ok(span)
}

/// Decodes `KVM_SET_MEMORY_ATTRIBUTES`: the guest frames, and whether they are to be private.
///
/// # Errors
/// `Invalid`, as KVM: a flag, an unknown attribute, size 0, misalignment, overflow.
pub fn attributes(ask: &MemoryAttributes) -> Result<(Span, bool), Error> {
    attributed(ask.address, ask.size, ask.attributes, ask.flags)
}

/// Byte range of `fallocate`.
///
/// # Errors
/// `Invalid` if it is empty, misaligned or overflows.
pub fn file_range(offset: u64, len: u64) -> Result<Span, Error> {
    if !aligned(offset) || !aligned(len) || offset.checked_add(len).is_none() {
        return Err(Error::Invalid);
    }
    Span::new(offset >> PAGE_SHIFT, len >> PAGE_SHIFT).ok_or(Error::Invalid)
}

/// Checked argument of `KVM_ARM_VCPU_INIT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Starts powered off.
    pub off: bool,
}

impl Features {
    /// Decodes the argument.
    ///
    /// # Errors
    /// `Invalid` for another target or a feature that is not served, `NoEntry` for one that KVM does not know.
    pub fn decode(init: &VcpuInit) -> Result<Self, Error> {
        const OFF: u32 = 1 << io::KVM_ARM_VCPU_POWER_OFF;
        const PSCI: u32 = 1 << io::KVM_ARM_VCPU_PSCI_0_2;
        /// Features 0 to 8 exist in KVM: EL1 in 32 bits, PMU, SVE, pointer authentication, nested.
        const KNOWN: u32 = 0x1ff;
        if u64::from(init.target) != io::KVM_ARM_TARGET_GENERIC_V8 {
            return Err(Error::Invalid);
        }
        let [first, rest @ ..] = init.features;
        if first & !KNOWN != 0 || rest != [0; 6] {
            return Err(Error::NoEntry);
        }
        if first & !(OFF | PSCI) != 0 {
            return Err(Error::Invalid);
        }
        Ok(Self { off: first & OFF != 0 })
    }

    /// Checks them for a vCPU: number 0 is on from the start, every other one is off until the guest starts it. The VMM of
    /// an ordinary VM need not say so of the others: QEMU says it later, by `KVM_SET_MP_STATE`.
    ///
    /// # Errors
    /// `Invalid` if they say otherwise.
    pub const fn fit(self, vcpu: u64, ordinary: bool) -> Result<Self, Error> {
        if self.off == (vcpu != 0) || (ordinary && !self.off) {
            Ok(self)
        } else {
            Err(Error::Invalid)
        }
    }
}

/// The state that `KVM_GET_MP_STATE` tells.
#[must_use]
pub fn mp_state(off: bool) -> io::MpState {
    let state = if off { io::KVM_MP_STATE_STOPPED } else { io::KVM_MP_STATE_RUNNABLE };
    io::MpState { mp_state: u32::try_from(state).unwrap_or(0) }
}

/// Checks `KVM_SET_MP_STATE` of a vCPU that is in the state `now`. Of an `idle` one, which its VMM has not run yet and only
/// its guest will start, either may be said: a VMM may say that it is on before it says that it is off.
///
/// # Errors
/// `Denied` for another state, which only the guest may choose; `Invalid` for one that there is not.
pub fn set_mp_state(now: io::MpState, wanted: io::MpState, idle: bool) -> Result<(), Error> {
    match u64::from(wanted.mp_state) {
        io::KVM_MP_STATE_RUNNABLE | io::KVM_MP_STATE_STOPPED if now == wanted || idle => Ok(()),
        io::KVM_MP_STATE_RUNNABLE | io::KVM_MP_STATE_STOPPED => Err(Error::Denied),
        _ => Err(Error::Invalid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region() -> MemoryRegion2 {
        MemoryRegion2 {
            slot: 0,
            flags: 4,
            guest_phys_addr: 0x8000_0000,
            memory_size: 0x20_0000,
            userspace_addr: 0,
            guest_memfd_offset: 0x1000,
            guest_memfd: 5,
            pad1: 0,
            pad2: [0; 14],
        }
    }

    #[test]
    fn vm_type_is_protection_and_address_size() {
        assert_eq!(VmType::decode(1 << 31), Ok(VmType { protected: true, ipa_bits: 40 }));
        for ipa_bits in [32, 36, 40] {
            assert_eq!(VmType::decode(ipa_bits), Ok(VmType { protected: false, ipa_bits }));
        }
        for bad in [31, 41, 0xff, 1 << 30, 1 << 32, 0x100] {
            assert_eq!(VmType::decode(bad), Err(Error::Invalid), "{bad:#x}");
        }
    }

    #[test]
    fn every_declared_capability_is_answered_and_no_other() {
        for item in io::CAPS {
            let cap = u64::try_from(item.value).unwrap();
            let asked = if item.name == "KVM_CAP_READONLY_MEM" { Asked::OrdinaryVm } else { Asked::Vm };
            assert!(capability(asked, cap, 8) > 0, "{}", item.name);
        }
        assert_eq!(capability(Asked::System, 81, 8), 1);
        assert_eq!(capability(Asked::System, 0xffba_dab1, 8), 0);
        assert_eq!(capability(Asked::Vm, 0xffba_dab1, 8), 1);
        // Nothing of an ordinary VM is private.
        for cap in [0xffba_dab1, 233, 250] {
            assert_eq!(capability(Asked::OrdinaryVm, cap, 8), 0, "{cap:#x}");
        }
        assert_eq!(capability(Asked::OrdinaryVm, 234, 8), 1);
        for unknown in [1, 15, 81, 126, 170, 187, 205, 236, 239, 5000, u64::MAX, 1 << 32 | 70] {
            assert_eq!(capability(Asked::Vm, unknown, 8), 0, "{unknown}");
        }
    }

    #[test]
    fn no_capability_is_switched_on() {
        for cap in io::CAPS.iter().map(|item| u32::try_from(item.value).unwrap()).chain([0, u32::MAX]) {
            for protected in [false, true] {
                let ask = EnableCap { cap, flags: 0, args: [0; 4], pad: [0; 64] };
                assert_eq!(enable(&ask, protected), Err(Error::Invalid), "{cap}");
            }
        }
    }

    #[test]
    fn a_protected_vms_firmware_is_none() {
        let ask = EnableCap { cap: 0xffba_dab1, flags: 1, args: [0x7000, 0, 0, 0], pad: [0; 64] };
        assert_eq!(enable(&ask, true), Ok((0x7000, ProtectedVmInfo { firmware_size: 0, reserved: [0; 7] })));
        assert_eq!(enable(&ask, false), Err(Error::Invalid), "ordinary");
        for flags in [0, 2, 3, 1 << 31, u32::MAX] {
            assert_eq!(enable(&EnableCap { flags, ..ask }, true), Err(Error::Invalid), "flags {flags:#x}");
        }
        for other in 1..4 {
            let mut args = ask.args;
            args[other] = 1;
            assert_eq!(enable(&EnableCap { args, ..ask }, true), Err(Error::Invalid), "argument {other}");
        }
        for cap in [0, 165, 205, 0xffba_dab0] {
            assert_eq!(enable(&EnableCap { cap, ..ask }, true), Err(Error::Invalid), "capability {cap:#x}");
        }
    }

    #[test]
    fn region_is_decoded() {
        let pages = Span::new(1, 512).unwrap();
        assert_eq!(Region::decode(&region(), 40, false), Ok(Region::Add { id: 0, gfn: 0x80000, pages, fd: 5 }));
        let delete = MemoryRegion2 { memory_size: 0, slot: 7, ..region() };
        assert_eq!(Region::decode(&delete, 40, false), Ok(Region::Delete { id: 7 }));
        let plain = MemoryRegion2 { flags: 0, userspace_addr: 0x7000, guest_memfd_offset: 3, ..region() };
        for (flags, read_only) in [(0, false), (2, true)] {
            let told = Region::Plain { id: 0, gfn: 0x80000, count: 0x200, start: 0x7000, read_only };
            assert_eq!(Region::decode(&MemoryRegion2 { flags, ..plain }, 40, false), Ok(told));
        }
    }

    #[test]
    fn region_refuses_what_kvm_refuses() {
        let bad = [
            MemoryRegion2 { flags: 8, ..region() },
            MemoryRegion2 { flags: 4 | 1, ..region() },
            MemoryRegion2 { flags: 4 | 2, ..region() },
            MemoryRegion2 { flags: 1, ..region() },
            MemoryRegion2 { flags: 3, ..region() },
            MemoryRegion2 { memory_size: 0x1001, ..region() },
            MemoryRegion2 { guest_phys_addr: 0x8000_0001, ..region() },
            MemoryRegion2 { userspace_addr: 1, ..region() },
            MemoryRegion2 { guest_phys_addr: u64::MAX - 0xfff, ..region() },
            MemoryRegion2 { slot: MAX_SLOTS as u32, ..region() },
            MemoryRegion2 { slot: 1 << 16, ..region() },
            MemoryRegion2 { guest_memfd_offset: 0x800, ..region() },
            MemoryRegion2 { guest_memfd_offset: u64::MAX - 0xfff, ..region() },
        ];
        for region in bad {
            assert_eq!(Region::decode(&region, 40, false), Err(Error::Invalid), "{region:?}");
        }
        let high = MemoryRegion2 { guest_phys_addr: (1 << 32) - 0x1000, memory_size: 0x2000, ..region() };
        for flags in [1, 2, 3] {
            let plain = MemoryRegion2 { flags, ..region() };
            assert_eq!(Region::decode(&plain, 40, true), Err(Error::Denied), "{flags}");
        }
        assert_eq!(Region::decode(&high, 32, false), Err(Error::Fault));
        assert!(Region::decode(&high, 33, false).is_ok());
        let last = MemoryRegion2 { memory_size: 0x1000, ..high };
        assert!(Region::decode(&last, 32, false).is_ok(), "it ends where the address size does");
    }

    #[test]
    fn guest_memfd_arguments() {
        let create = |size, flags| NewFile::decode(&CreateGuestMemfd { size, flags, reserved: [7; 6] });
        for (flags, mappable, shared) in [(0, false, false), (1, true, false), (2, false, true), (3, true, true)] {
            assert_eq!(create(0x2000, flags), Ok(NewFile { pages: 2, mappable, shared }));
        }
        for (size, flags) in [(0, 0), (0x1001, 0), (0x1000, 4), (1 << 63, 0)] {
            assert_eq!(create(size, flags), Err(Error::Invalid));
        }
    }

    #[test]
    fn conversion_arguments() {
        let ask = |offset, size, to, mode, timeout_ms, last| {
            let reserved = [0, 0, last];
            let convert = Convert { offset, size, to, mode, timeout_ms, error_offset: 0, reserved };
            Conversion::decode(&convert, 16, 1000)
        };
        let span = Span::new(1, 2).unwrap();
        assert_eq!(ask(0x1000, 0x2000, 1, 0, 0, 0), Ok(Conversion::ToPrivate(span, Mode::Wait)));
        assert_eq!(ask(0x1000, 0x2000, 1, 0, 5, 0), Ok(Conversion::ToPrivate(span, Mode::Until(1005))));
        assert_eq!(ask(0x1000, 0x2000, 1, 1, 5, 0), Ok(Conversion::ToPrivate(span, Mode::Now)));
        assert_eq!(ask(0x1000, 0x2000, 1, 2, 0, 0), Ok(Conversion::Notify(span, None)));
        assert_eq!(ask(0x1000, 0x2000, 1, 2, 5, 0), Ok(Conversion::Notify(span, Some(1005))));
        assert_eq!(ask(0x1000, 0x2000, 2, 0, 0, 0), Ok(Conversion::ToShared(span)));
        let all = Span::new(0, 16).unwrap();
        assert_eq!(ask(0, 0x10000, 2, 0, 0, 0), Ok(Conversion::ToShared(all)), "the whole file");
        for (offset, size, to, mode, last) in [
            (0x1000, 0x2000, 0, 0, 0),
            (0x1000, 0x2000, 3, 0, 0),
            (0x1000, 0x2000, 1, 3, 0),
            (0x1000, 0x2000, 1, 0, 1),
            (0x1001, 0x2000, 1, 0, 0),
            (0x1000, 0x2001, 1, 0, 0),
            (0x1000, 0, 1, 0, 0),
            (0x1000, 0x10000, 1, 0, 0),
            (u64::MAX - 0xfff, 0x1000, 1, 0, 0),
        ] {
            assert_eq!(ask(offset, size, to, mode, 0, last), Err(Error::Invalid));
        }
    }

    #[test]
    fn vcpu_features() {
        let init =
            |target, first, second| Features::decode(&VcpuInit { target, features: [first, second, 0, 0, 0, 0, 0] });
        assert_eq!(init(5, 0, 0), Ok(Features { off: false }));
        assert_eq!(init(5, 0b101, 0), Ok(Features { off: true }));
        assert_eq!(init(0, 0, 0), Err(Error::Invalid));
        assert_eq!(init(5, 1 << 3, 0), Err(Error::Invalid));
        assert_eq!(init(5, 1 << 9, 0), Err(Error::NoEntry));
        assert_eq!(init(5, 0, 1), Err(Error::NoEntry));
    }

    #[test]
    fn the_first_vcpu_is_on_and_the_others_wait_for_the_guest() {
        let (on, off) = (Features { off: false }, Features { off: true });
        for ordinary in [false, true] {
            assert_eq!(on.fit(0, ordinary), Ok(on));
            assert_eq!(off.fit(0, ordinary), Err(Error::Invalid));
        }
        for vcpu in [1, 7, u64::MAX] {
            assert_eq!(off.fit(vcpu, false), Ok(off));
            assert_eq!(on.fit(vcpu, false), Err(Error::Invalid));
            assert_eq!((off.fit(vcpu, true), on.fit(vcpu, true)), (Ok(off), Ok(on)));
        }
    }

    #[test]
    fn a_vmm_sees_who_is_off_and_switches_nobody() {
        let state = |mp_state| io::MpState { mp_state };
        assert_eq!((mp_state(false), mp_state(true)), (state(0), state(5)));
        for off in [false, true] {
            let now = mp_state(off);
            for idle in [false, true] {
                assert_eq!(set_mp_state(now, now, idle), Ok(()));
            }
            assert_eq!(set_mp_state(now, mp_state(!off), false), Err(Error::Denied));
            assert_eq!(set_mp_state(now, mp_state(!off), true), Ok(()));
            for unknown in [1, 2, 3, 4, 6, 10, u32::MAX] {
                for idle in [false, true] {
                    assert_eq!(set_mp_state(now, state(unknown), idle), Err(Error::Invalid), "{unknown}");
                }
            }
        }
    }

    #[test]
    fn attributes_refuse_what_kvm_refuses() {
        let good = MemoryAttributes { address: 0x8000_0000, size: 0x2000, attributes: 8, flags: 0 };
        let span = Span::new(0x80000, 2).unwrap();
        assert_eq!(attributes(&good), Ok((span, true)));
        assert_eq!(attributes(&MemoryAttributes { attributes: 0, ..good }), Ok((span, false)));
        let bad = [
            MemoryAttributes { flags: 1, ..good },
            MemoryAttributes { attributes: 1, ..good },
            MemoryAttributes { attributes: 9, ..good },
            MemoryAttributes { size: 0, ..good },
            MemoryAttributes { size: 0x1800, ..good },
            MemoryAttributes { address: 0x800, ..good },
            MemoryAttributes { address: u64::MAX - 0xfff, size: 0x1000, ..good },
        ];
        for ask in bad {
            assert_eq!(attributes(&ask), Err(Error::Invalid), "{ask:?}");
        }
    }

    #[test]
    fn attributes_of_a_file_are_a_conversion_at_once() {
        let good = MemoryAttributes2 {
            offset: 0x1000,
            size: 0x2000,
            attributes: 8,
            flags: 0,
            error_offset: 7,
            reserved: [0; 11],
        };
        let span = Span::new(1, 2).unwrap();
        assert_eq!(Conversion::of_attributes(&good, 3), Ok(Conversion::ToPrivate(span, Mode::Now)));
        let shared = MemoryAttributes2 { attributes: 0, ..good };
        assert_eq!(Conversion::of_attributes(&shared, 3), Ok(Conversion::ToShared(span)));
        assert_eq!(Conversion::of_attributes(&good, 2), Err(Error::Invalid), "beyond the end");
        let mut reserved = good;
        reserved.reserved[10] = 1;
        assert_eq!(Conversion::of_attributes(&reserved, 3), Err(Error::Invalid));
    }

    #[test]
    fn populate_arguments() {
        let good = io::Populate { offset: 0x1000, size: 0x2000, source: 0x123, error_offset: 9, reserved: [0; 4] };
        assert_eq!(populated(&good, 3), Ok(Span::new(1, 2).unwrap()));
        for bad in [
            io::Populate { offset: 1, ..good },
            io::Populate { size: 1, ..good },
            io::Populate { size: 0, ..good },
            io::Populate { size: 0x1001, ..good },
            io::Populate { offset: 0x2000, ..good },
            io::Populate { offset: u64::MAX - 0xfff, ..good },
            io::Populate { source: u64::MAX - 0xfff, ..good },
            io::Populate { reserved: [0, 0, 0, 1], ..good },
        ] {
            assert_eq!(populated(&bad, 3), Err(Error::Invalid), "{bad:?}");
        }
    }
}
