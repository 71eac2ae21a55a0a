// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a VMM says to the driver: KVM's ABI by name and number, and the few ioctls that KVM lacks.
//!
//! Source of the KVM half: Linux `Documentation/virt/kvm/api.rst` and `include/uapi/linux/kvm.h`. What KVM lacks has
//! its own magic, [`FREEHOLD_MAGIC`], on the same file descriptors.

/// KVM's ioctl magic.
pub const KVM_MAGIC: u32 = 0xAE;
/// Freehold's own ioctl magic, on the same file descriptors.
pub const FREEHOLD_MAGIC: u32 = 0xF5;

/// `_IOC` of Linux' asm-generic encoding: direction, magic, number and size.
#[must_use]
pub const fn ioc(dir: u32, magic: u32, nr: u32, size: u32) -> u32 {
    dir << 30 | size << 16 | magic << 8 | nr
}

const NONE: u32 = 0;
const WRITE: u32 = 1;
const READ: u32 = 2;

structs! {
    /// `struct kvm_userspace_memory_region`.
    MemoryRegion = "kvm_userspace_memory_region" {
        /// Slot number, address space in bits `[31:16]`.
        slot: u32,
        /// `KVM_MEM_*`.
        flags: u32,
        /// First guest physical address.
        guest_phys_addr: u64,
        /// Bytes; 0 deletes the slot.
        memory_size: u64,
        /// Address in the VMM.
        userspace_addr: u64,
    }
    /// `struct kvm_userspace_memory_region2`.
    MemoryRegion2 = "kvm_userspace_memory_region2" {
        /// Slot number, address space in bits `[31:16]`.
        slot: u32,
        /// `KVM_MEM_*`.
        flags: u32,
        /// First guest physical address.
        guest_phys_addr: u64,
        /// Bytes; 0 deletes the slot.
        memory_size: u64,
        /// Address in the VMM, or 0.
        userspace_addr: u64,
        /// First byte in the `guest_memfd`.
        guest_memfd_offset: u64,
        /// The `guest_memfd`.
        guest_memfd: u32,
        /// Zero.
        pad1: u32,
        /// Zero.
        pad2: [u64; 14],
    }
    /// `struct kvm_create_guest_memfd`.
    CreateGuestMemfd = "kvm_create_guest_memfd" {
        /// Bytes, a multiple of the page size.
        size: u64,
        /// `GUEST_MEMFD_FLAG_*`.
        flags: u64,
        /// Ignored, as KVM does.
        reserved: [u64; 6],
    }
    /// `struct kvm_vcpu_init`.
    VcpuInit = "kvm_vcpu_init" {
        /// Target, from `KVM_ARM_PREFERRED_TARGET`.
        target: u32,
        /// Feature bitmap.
        features: [u32; 7],
    }
    /// `struct kvm_one_reg`.
    OneReg = "kvm_one_reg" {
        /// Register identifier.
        id: u64,
        /// Address of the value in the VMM.
        addr: u64,
    }
    /// `struct kvm_enable_cap`.
    EnableCap = "kvm_enable_cap" {
        /// Capability.
        cap: u32,
        /// Zero, or the capability's own.
        flags: u32,
        /// Arguments.
        args: [u64; 4],
        /// Zero.
        pad: [u8; 64],
    }
    /// `struct kvm_protected_vm_info`: what `KVM_CAP_ARM_PROTECTED_VM_FLAGS_INFO` answers.
    ProtectedVmInfo = "kvm_protected_vm_info" {
        /// Bytes of the firmware that this machine has for protected VMs; 0: none.
        firmware_size: u64,
        /// Zero.
        reserved: [u64; 7],
    }
    /// `struct kvm_memory_attributes`.
    MemoryAttributes = "kvm_memory_attributes" {
        /// First guest physical address, page aligned.
        address: u64,
        /// Bytes, a multiple of the page size, not 0.
        size: u64,
        /// `KVM_MEMORY_ATTRIBUTE_*`.
        attributes: u64,
        /// Zero.
        flags: u64,
    }
    /// `struct kvm_memory_attributes2`, as proposed upstream.
    MemoryAttributes2 = "kvm_memory_attributes2" {
        /// First byte in the file, page aligned.
        offset: u64,
        /// Bytes, a multiple of the page size, not 0.
        size: u64,
        /// `KVM_MEMORY_ATTRIBUTE_*`.
        attributes: u64,
        /// Zero.
        flags: u64,
        /// Out: first offset that did not move.
        error_offset: u64,
        /// Zero.
        reserved: [u64; 11],
    }
    /// `struct kvm_irq_level`.
    IrqLevel = "kvm_irq_level" {
        /// Which: `KVM_ARM_IRQ_TYPE_SPI` in bits `[27:24]`, INTID in bits `[15:0]`.
        irq: u32,
        /// 0 low, else high.
        level: u32,
    }
    /// `struct kvm_create_device`.
    CreateDevice = "kvm_create_device" {
        /// `KVM_DEV_TYPE_*`.
        kind: u32,
        /// Out: its descriptor.
        fd: u32,
        /// `KVM_CREATE_DEVICE_TEST`, or 0.
        flags: u32,
    }
    /// `struct kvm_device_attr`.
    DeviceAttr = "kvm_device_attr" {
        /// Ignored, as KVM does.
        flags: u32,
        /// `KVM_DEV_ARM_VGIC_GRP_*`.
        group: u32,
        /// Attribute in the group.
        attr: u64,
        /// Address of the value in the VMM.
        addr: u64,
    }
    /// `struct kvm_irqfd`.
    Irqfd = "kvm_irqfd" {
        /// The eventfd.
        fd: u32,
        /// Interrupt: the SPI's number, from 0 on.
        gsi: u32,
        /// `KVM_IRQFD_FLAG_*`.
        flags: u32,
        /// With `KVM_IRQFD_FLAG_RESAMPLE`, the eventfd to signal when the guest ends the interrupt.
        resamplefd: u32,
        /// Ignored, as KVM does.
        pad: [u8; 16],
    }
    /// `struct kvm_ioeventfd`.
    Ioeventfd = "kvm_ioeventfd" {
        /// Data that a store must have, with `KVM_IOEVENTFD_FLAG_DATAMATCH`.
        datamatch: u64,
        /// Guest physical address.
        addr: u64,
        /// Bytes that a store must have, or 0 for any.
        len: u32,
        /// The eventfd.
        fd: u32,
        /// `KVM_IOEVENTFD_FLAG_*`.
        flags: u32,
        /// Ignored, as KVM does.
        pad: [u8; 36],
    }
    /// `struct kvm_mp_state`.
    MpState = "kvm_mp_state" {
        /// `KVM_MP_STATE_*`.
        mp_state: u32,
    }
    /// Argument of [`FREEHOLD_CONVERT`]: moves a page range of a `guest_memfd` to private or to shared.
    Convert = "freehold_convert" {
        /// First byte in the file, page aligned.
        offset: u64,
        /// Bytes, a multiple of the page size, not 0.
        size: u64,
        /// [`CONVERT_TO_PRIVATE`] or [`CONVERT_TO_SHARED`].
        to: u32,
        /// [`CONVERT_WAIT`], [`CONVERT_NOW`] or [`CONVERT_NOTIFY`].
        mode: u32,
        /// Deadline of [`CONVERT_WAIT`] and [`CONVERT_NOTIFY`] in milliseconds; 0: none.
        timeout_ms: u64,
        /// Out: first busy offset (`EAGAIN`, `EINTR`, `ETIMEDOUT`, `ECANCELED`, `EINPROGRESS`), which somebody holds or
        /// another attempt has; or first offset that did not move.
        error_offset: u64,
        /// Zero.
        reserved: [u64; 3],
    }
    /// Answer of [`FREEHOLD_PENDING`]: what the engine waits for on a `guest_memfd`.
    Pending = "freehold_pending" {
        /// 1 while a conversion of this file waits, else 0.
        pending: u32,
        /// Zero.
        pad: u32,
        /// First offset that somebody still holds.
        offset: u64,
        /// Pages of the attempt that are frozen already.
        frozen: u64,
        /// Pages of the attempt.
        total: u64,
        /// Attempts made to freeze the page at `offset`.
        tries: u64,
        /// Conversions to private that have completed since the file was made.
        completed: u64,
        /// Times since then that mappings of the file were to go have begun (conversions, punched holes, touches).
        begun: u64,
        /// And have ended; as many, when nothing is under way.
        ended: u64,
    }
    /// Argument of [`FREEHOLD_POPULATE`]: contents for private offsets that have none.
    Populate = "freehold_populate" {
        /// First byte in the file, page aligned.
        offset: u64,
        /// Bytes, a multiple of the page size, not 0.
        size: u64,
        /// Address of the contents in the VMM.
        source: u64,
        /// Out: first offset that is why it was refused.
        error_offset: u64,
        /// Zero.
        reserved: [u64; 4],
    }
    /// Answer of [`FREEHOLD_OUTCOME`]: how a conversion with [`CONVERT_NOTIFY`] ended.
    Outcome = "freehold_outcome" {
        /// First byte that was asked for.
        offset: u64,
        /// Bytes that were asked for.
        size: u64,
        /// 0, or the errno.
        error: u32,
        /// Zero.
        pad: u32,
        /// First offset that did not move, if there was an error.
        error_offset: u64,
        /// Zero.
        reserved: [u64; 4],
    }
}

items! {
    /// Every ioctl, of either magic.
    IOCTLS: u32;
    /// System: the ABI version, 12.
    KVM_GET_API_VERSION = ioc(NONE, KVM_MAGIC, 0x00, 0);
    /// System: creates a VM. The type's bit 31 asks for a protected one, else it is ordinary; its low byte is the address
    /// size.
    KVM_CREATE_VM = ioc(NONE, KVM_MAGIC, 0x01, 0);
    /// System and VM: answers for one capability.
    KVM_CHECK_EXTENSION = ioc(NONE, KVM_MAGIC, 0x03, 0);
    /// System: bytes to map on a vCPU's descriptor.
    KVM_GET_VCPU_MMAP_SIZE = ioc(NONE, KVM_MAGIC, 0x04, 0);
    /// VM: creates a vCPU.
    KVM_CREATE_VCPU = ioc(NONE, KVM_MAGIC, 0x41, 0);
    /// VM: sets a slot of the VMM's own memory: creates, moves or deletes it. Of an ordinary VM pages are lent to the guest
    /// as it touches them and taken back when the VMM's mapping of them changes; after the first run, a slot may be anywhere
    /// but at the interrupt controller (`EEXIST`). Of a protected VM they are pinned and given to the guest, at the first run
    /// with what is in them, later zeroed; then slots stay (`EPERM`). No dirty logs (`EINVAL`;
    /// protected: `EPERM`). What the guest of an ordinary VM stores to a read-only slot goes to the VMM (protected: `EPERM`).
    KVM_SET_USER_MEMORY_REGION = ioc(WRITE, KVM_MAGIC, 0x46, 32);
    /// VM: sets a slot, of `guest_memfd` with `KVM_MEM_GUEST_MEMFD`, else as `KVM_SET_USER_MEMORY_REGION`.
    KVM_SET_USER_MEMORY_REGION2 = ioc(WRITE, KVM_MAGIC, 0x49, 160);
    /// VM: sets the wire of an SPI of a VM that has a vGIC. Every other kind of interrupt is the guest's own.
    KVM_IRQ_LINE = ioc(WRITE, KVM_MAGIC, 0x61, 8);
    /// VM: a signalled eventfd raises an SPI: for a moment, or with `RESAMPLE` until the guest ends it, which another eventfd
    /// is told. `EAGAIN` before the vGIC is complete; `EBUSY` for an eventfd that raises one already.
    KVM_IRQFD = ioc(WRITE, KVM_MAGIC, 0x76, 32);
    /// VM: a store to an address outside RAM signals an eventfd, and is no exit.
    KVM_IOEVENTFD = ioc(WRITE, KVM_MAGIC, 0x79, 64);
    /// vCPU: runs it.
    KVM_RUN = ioc(NONE, KVM_MAGIC, 0x80, 0);
    /// vCPU: whether it is on or off. Of a VM that powered off or was reset, every vCPU is off.
    KVM_GET_MP_STATE = ioc(READ, KVM_MAGIC, 0x98, 4);
    /// vCPU: accepted if it says what is so; else `EPERM`: only the guest switches vCPUs on and off.
    KVM_SET_MP_STATE = ioc(WRITE, KVM_MAGIC, 0x99, 4);
    /// VM: switches a capability on.
    KVM_ENABLE_CAP = ioc(WRITE, KVM_MAGIC, 0xa3, 104);
    /// vCPU: reads a register.
    KVM_GET_ONE_REG = ioc(WRITE, KVM_MAGIC, 0xab, 16);
    /// vCPU: writes a register. What is written to another vCPU than number 0 is kept for the VMM to read, and no more. Of an
    /// ordinary VM every core register is named; beyond x0 to x3, PC and PSTATE it is zero, and zero may be written. After the
    /// first run each reads as zero, and zero may be written back.
    KVM_SET_ONE_REG = ioc(WRITE, KVM_MAGIC, 0xac, 16);
    /// vCPU: initialises it. Number 0 is on from the start, the others are off until the guest starts them:
    /// `POWER_OFF` must say so of a protected VM's.
    KVM_ARM_VCPU_INIT = ioc(WRITE, KVM_MAGIC, 0xae, 32);
    /// VM: the target to initialise vCPUs with.
    KVM_ARM_PREFERRED_TARGET = ioc(READ, KVM_MAGIC, 0xaf, 32);
    /// vCPU: names every register that can be read and written; `E2BIG` and the number if there is no room for all.
    KVM_GET_REG_LIST = ioc(READ | WRITE, KVM_MAGIC, 0xb0, 8);
    /// VM: makes a range of guest addresses private or shared, through their slots; waits until a signal. A range that no
    /// slot has gets `EFAULT`. Slots are moved in order; after an error those before it stay moved.
    KVM_SET_MEMORY_ATTRIBUTES = ioc(WRITE, KVM_MAGIC, 0xd2, 32);
    /// `guest_memfd`: makes a range private or shared at once, or says which offset is busy (`EAGAIN`). As proposed
    /// upstream.
    KVM_SET_MEMORY_ATTRIBUTES2 = ioc(READ | WRITE, KVM_MAGIC, 0xd2, 128);
    /// VM: creates a `guest_memfd`. An ordinary VM's starts shared (`INIT_SHARED`) and stays so.
    KVM_CREATE_GUEST_MEMFD = ioc(READ | WRITE, KVM_MAGIC, 0xd4, 64);
    /// VM: creates a device: a vGICv3.
    KVM_CREATE_DEVICE = ioc(READ | WRITE, KVM_MAGIC, 0xe0, 12);
    /// vGIC: sets an attribute. `ENXIO` for the groups that show or change the guest's interrupt state.
    KVM_SET_DEVICE_ATTR = ioc(WRITE, KVM_MAGIC, 0xe1, 24);
    /// vGIC: reads an attribute.
    KVM_GET_DEVICE_ATTR = ioc(WRITE, KVM_MAGIC, 0xe2, 24);
    /// vGIC: whether there is such an attribute.
    KVM_HAS_DEVICE_ATTR = ioc(WRITE, KVM_MAGIC, 0xe3, 24);
    /// `guest_memfd`: converts a range.
    FREEHOLD_CONVERT = ioc(READ | WRITE, FREEHOLD_MAGIC, 0x01, 64);
    /// `guest_memfd`: says what a waiting conversion waits for. Answers at once, also while another thread waits.
    FREEHOLD_PENDING = ioc(READ, FREEHOLD_MAGIC, 0x02, 64);
    /// System: reads one `el2` counter; the argument is `counter | index << 32`, the address of a u64 that is overwritten.
    FREEHOLD_COUNTER = ioc(READ | WRITE, FREEHOLD_MAGIC, 0x03, 8);
    /// `guest_memfd`: takes away how a conversion with [`CONVERT_NOTIFY`] ended. `EINPROGRESS` while it has not; poll says
    /// `POLLIN` when it has. `ENOENT` if there was none.
    FREEHOLD_OUTCOME = ioc(READ, FREEHOLD_MAGIC, 0x04, 64);
    /// `guest_memfd`: every conversion of the file to private that is pending gives up with `ECANCELED`, within a
    /// millisecond. What a guest asked for goes on.
    FREEHOLD_CANCEL = ioc(NONE, FREEHOLD_MAGIC, 0x05, 0);
    /// `guest_memfd`: copies contents into private offsets that have none, before the VM's first run. `EEXIST` at an offset
    /// that has a page or is not private, `EPERM` after the first run. A copy that fails
    /// has brought nothing; a later batch that fails (`ENOMEM`, a kill, what `el2` refuses) leaves those before it given.
    FREEHOLD_POPULATE = ioc(READ | WRITE, FREEHOLD_MAGIC, 0x06, 64);
}

items! {
    /// Every conversion constant.
    CONVERTS: u32;
    /// To private: the guest's alone.
    CONVERT_TO_PRIVATE = 1;
    /// To shared: the host's to map.
    CONVERT_TO_SHARED = 2;
    /// Wait until the host's references are gone, or the deadline.
    CONVERT_WAIT = 0;
    /// Do not wait: `EAGAIN` and the first offset that another attempt has, or where there is none, that somebody holds.
    CONVERT_NOW = 1;
    /// Do not wait: `EINPROGRESS` and the first busy offset. It goes on by itself, one per file (`EBUSY`); poll says when
    /// it has ended, `FREEHOLD_OUTCOME` how.
    CONVERT_NOTIFY = 2;
}

items! {
    /// Every capability that is answered with more than 0, and a few that are asked for and answered 0.
    CAPS: u32;
    /// Interrupt controller beside the VMM: a vGICv3, by `KVM_CREATE_DEVICE`.
    KVM_CAP_IRQCHIP = 0;
    /// Slots of the VMM's own memory.
    KVM_CAP_USER_MEMORY = 3;
    /// vCPUs recommended.
    KVM_CAP_NR_VCPUS = 9;
    /// `GET/SET_MP_STATE`.
    KVM_CAP_MP_STATE = 14;
    /// Memory slots.
    KVM_CAP_NR_MEMSLOTS = 10;
    /// Slots can be deleted.
    KVM_CAP_DESTROY_MEMORY_REGION_WORKS = 21;
    /// A slot may be read only.
    KVM_CAP_READONLY_MEM = 81;
    /// A slot may be set where one was deleted.
    KVM_CAP_JOIN_MEMORY_REGIONS_WORKS = 30;
    /// `IRQFD`.
    KVM_CAP_IRQFD = 32;
    /// `IOEVENTFD`.
    KVM_CAP_IOEVENTFD = 36;
    /// An exit for an internal error says more; there is no such exit.
    KVM_CAP_INTERNAL_ERROR_DATA = 40;
    /// vCPUs at most.
    KVM_CAP_MAX_VCPUS = 66;
    /// `GET/SET_ONE_REG`.
    KVM_CAP_ONE_REG = 70;
    /// `IRQFD` with `RESAMPLE`.
    KVM_CAP_IRQFD_RESAMPLE = 82;
    /// PSCI 0.1.
    KVM_CAP_ARM_PSCI = 87;
    /// Devices with attributes.
    KVM_CAP_DEVICE_CTRL = 89;
    /// PSCI 0.2 and later.
    KVM_CAP_ARM_PSCI_0_2 = 102;
    /// `CHECK_EXTENSION` on a VM.
    KVM_CAP_CHECK_EXTENSION_VM = 105;
    /// `IOEVENTFD` of length 0.
    KVM_CAP_IOEVENTFD_ANY_LENGTH = 122;
    /// vCPU identifiers at most.
    KVM_CAP_MAX_VCPU_ID = 128;
    /// `kvm_run.immediate_exit`.
    KVM_CAP_IMMEDIATE_EXIT = 136;
    /// Bits of guest physical address.
    KVM_CAP_ARM_VM_IPA_SIZE = 165;
    /// `SET_USER_MEMORY_REGION2`.
    KVM_CAP_USER_MEMORY2 = 231;
    /// `KVM_EXIT_MEMORY_FAULT`.
    KVM_CAP_MEMORY_FAULT_INFO = 232;
    /// Mask of the attributes of `KVM_SET_MEMORY_ATTRIBUTES`.
    KVM_CAP_MEMORY_ATTRIBUTES = 233;
    /// `guest_memfd`.
    KVM_CAP_GUEST_MEMFD = 234;
    /// Mask of `guest_memfd` flags.
    KVM_CAP_GUEST_MEMFD_FLAGS = 244;
    /// Mask of the attributes of `KVM_SET_MEMORY_ATTRIBUTES2`. The number is a proposal's.
    KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES = 250;
    /// Protected VMs: 1 on a protected VM's descriptor.
    KVM_CAP_ARM_PROTECTED_VM = 0xffba_dab1;
}

items! {
    /// Every other KVM number that the driver uses.
    KVM_NUMBERS: u64;
    /// `CREATE_VM` type: protected.
    KVM_VM_TYPE_ARM_PROTECTED = 1 << 31;
    /// `CREATE_VM` type: mask of the address size.
    KVM_VM_TYPE_ARM_IPA_SIZE_MASK = 0xff;
    /// `ENABLE_CAP` of `KVM_CAP_ARM_PROTECTED_VM`, flag: where the firmware is to start, in `args[0]`.
    KVM_CAP_ARM_PROTECTED_VM_FLAGS_SET_FW_IPA = 0;
    /// `ENABLE_CAP` of `KVM_CAP_ARM_PROTECTED_VM`, flag: write a `struct kvm_protected_vm_info` to the address in `args[0]`.
    KVM_CAP_ARM_PROTECTED_VM_FLAGS_INFO = 1;
    /// Slot flag: log dirty pages.
    KVM_MEM_LOG_DIRTY_PAGES = 1;
    /// Slot flag: read only.
    KVM_MEM_READONLY = 2;
    /// Slot flag: backed by a `guest_memfd`.
    KVM_MEM_GUEST_MEMFD = 4;
    /// Attribute of memory: private.
    KVM_MEMORY_ATTRIBUTE_PRIVATE = 1 << 3;
    /// `guest_memfd` flag: may be mapped.
    GUEST_MEMFD_FLAG_MMAP = 1;
    /// `guest_memfd` flag: starts host mappable.
    GUEST_MEMFD_FLAG_INIT_SHARED = 2;
    /// `CREATE_DEVICE` flag: only say whether it could be created.
    KVM_CREATE_DEVICE_TEST = 1;
    /// Device type: `GICv3`.
    KVM_DEV_TYPE_ARM_VGIC_V3 = 7;
    /// vGIC attributes: addresses, a u64 each.
    KVM_DEV_ARM_VGIC_GRP_ADDR = 0;
    /// vGIC attributes: interrupts, a u32: 64 to 992, a multiple of 32. 256 where the VMM does not say, and no more than
    /// these exist.
    KVM_DEV_ARM_VGIC_GRP_NR_IRQS = 3;
    /// vGIC attributes: control.
    KVM_DEV_ARM_VGIC_GRP_CTRL = 4;
    /// Address: the distributor's 64 KB.
    KVM_VGIC_V3_ADDR_TYPE_DIST = 2;
    /// Address: redistributors, 128 KB for each vCPU.
    KVM_VGIC_V3_ADDR_TYPE_REDIST = 3;
    /// Address: redistributors: count in bits `[63:52]`, base in bits `[51:16]`, index 0. One region is served.
    KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION = 5;
    /// Control: the vGIC is complete. No vCPU is created after it, and none runs before it.
    KVM_DEV_ARM_VGIC_CTRL_INIT = 0;
    /// `IRQ_LINE` type: an interrupt of a vCPU, where the VMM has the controller.
    KVM_ARM_IRQ_TYPE_CPU = 0;
    /// `IRQ_LINE` type: an SPI.
    KVM_ARM_IRQ_TYPE_SPI = 1;
    /// `IRQ_LINE` type: a PPI. The host forges none.
    KVM_ARM_IRQ_TYPE_PPI = 2;
    /// `IRQFD` flag: takes it back.
    KVM_IRQFD_FLAG_DEASSIGN = 1;
    /// `IRQFD` flag: the wire stays high until the guest ends the interrupt.
    KVM_IRQFD_FLAG_RESAMPLE = 2;
    /// `IOEVENTFD` flag: only a store of `datamatch`.
    KVM_IOEVENTFD_FLAG_DATAMATCH = 1;
    /// `IOEVENTFD` flag: takes it back.
    KVM_IOEVENTFD_FLAG_DEASSIGN = 4;
    /// Exit: nothing to say.
    KVM_EXIT_UNKNOWN = 0;
    /// Exit: MMIO.
    KVM_EXIT_MMIO = 6;
    /// Exit: could not enter.
    KVM_EXIT_FAIL_ENTRY = 9;
    /// Exit: a signal.
    KVM_EXIT_INTR = 10;
    /// Exit: power off, reset, crash.
    KVM_EXIT_SYSTEM_EVENT = 24;
    /// Exit: a memory fault that the VMM must resolve; with `EFAULT`.
    KVM_EXIT_MEMORY_FAULT = 39;
    /// System event: power off.
    KVM_SYSTEM_EVENT_SHUTDOWN = 1;
    /// System event: reset.
    KVM_SYSTEM_EVENT_RESET = 2;
    /// System event: crash.
    KVM_SYSTEM_EVENT_CRASH = 3;
    /// Flag in `data[0]` of a reset: the guest called `SYSTEM_RESET2`.
    KVM_SYSTEM_EVENT_RESET_FLAG_PSCI_RESET2 = 1;
    /// vCPU state: on.
    KVM_MP_STATE_RUNNABLE = 0;
    /// vCPU state: off.
    KVM_MP_STATE_STOPPED = 5;
    /// vCPU feature: starts powered off.
    KVM_ARM_VCPU_POWER_OFF = 0;
    /// vCPU feature: PSCI 0.2.
    KVM_ARM_VCPU_PSCI_0_2 = 2;
    /// `kvm_vcpu_init` target: generic v8.
    KVM_ARM_TARGET_GENERIC_V8 = 5;
    /// Register identifier of x0; x1 and up follow at steps of 2.
    KVM_REG_X0 = 0x6030_0000_0010_0000;
    /// Register identifier of PC.
    KVM_REG_PC = 0x6030_0000_0010_0040;
    /// Register identifier of PSTATE.
    KVM_REG_PSTATE = 0x6030_0000_0010_0042;
    /// Register identifier of `MPIDR_EL1`.
    KVM_REG_MPIDR = 0x6030_0000_0013_c005;
    /// Register identifier of the PSCI version that the guest finds.
    KVM_REG_PSCI_VERSION = 0x6030_0000_0014_0000;
    /// Register identifier of the counter, which is the machine's: what is written is not taken.
    KVM_REG_TIMER_CNT = 0x6030_0000_0013_df1a;
}
