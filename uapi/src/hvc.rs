// SPDX-License-Identifier: MIT OR Apache-2.0
//! Calls that the host makes to `el2`.
//!
//! SMCCC HVC64 (SMC64 on a host whose conduit is SMC) in the vendor-hypervisor range, functions 0x80 and up; 0 to 63
//! belong to the pKVM guest ABI. x0 carries the function identifier in and a status out; arguments and results stand
//! in x1 and up. Arguments are frame numbers, handles and counts, never addresses. Registers beyond the results of a
//! call come back zero up to x7 for a plain call and up to x17 for [`VCPU_RUN`].
//!
//! A *frame number* is a physical address shifted right by 12; a *guest frame number* the same of an intermediate
//! physical address. The granule is 4 KiB whatever the host's page size.

/// First function identifier of the range: `0xC600_0080`.
pub const BASE: u32 = 0xC600_0080;

/// Freehold's UID, as the call-UID query of SMCCC (DEN0028) returns it in w0–w3.
///
/// Discovery (function [`CALL_UID`]) goes through the kernel's own SMCCC conduit; another hypervisor answers with
/// another UID or with `NOT_SUPPORTED`.
pub const UID: [u32; 4] = [0x9d1e_6c4f, 0x4b7a_52e0, 0x8c3f_17a6, 0xf00d_4e1d];

/// SMCCC vendor-hypervisor call UID query for the host: fast SMC32/HVC32, `0x8600_FF01`. Results in x0–x3.
pub const CALL_UID: u32 = 0x8600_FF01;

/// Most frames that one run may name, and all the runs of a list together.
pub const MAX_RUN: u64 = 512;

/// Most records that one list may hold; a [`Record`] is 16 bytes, so a full list fills one frame.
pub const MAX_RECORDS: u64 = 256;

structs! {
    /// One run of a record list, as it lies in the list frame (little-endian): [`MEM_DONATE_LIST`].
    Record = "freehold_record" {
        /// First frame number.
        pfn: u64,
        /// First guest frame number in bits `[51:0]`, count minus one in bits `[63:52]`.
        gfn_count: u64,
    }
}

impl Record {
    /// Packs a run. `count` is 1 to 512; more bits than fit are cut off.
    #[must_use]
    pub const fn new(pfn: u64, gfn: u64, count: u64) -> Self {
        Self { pfn, gfn_count: (gfn & ((1 << 52) - 1)) | (count.wrapping_sub(1) << 52) }
    }

    /// First guest frame number.
    #[must_use]
    pub const fn gfn(self) -> u64 {
        self.gfn_count & ((1 << 52) - 1)
    }

    /// Number of frames, 1 to 4096; the callee refuses more than [`MAX_RUN`] in all records together.
    #[must_use]
    pub const fn count(self) -> u64 {
        (self.gfn_count >> 52).wrapping_add(1)
    }
}

items! {
    /// Every status, in declaration order.
    STATUSES: i64;
    /// The call did what it says. A short count is success too.
    SUCCESS = 0;
    /// No such call. Same value as SMCCC's `NOT_SUPPORTED`.
    NOT_SUPPORTED = -1;
    /// The handle never named a VM.
    WRONG_HANDLE = -16;
    /// The handle named a VM that has ended since.
    STALE_HANDLE = -17;
    /// No such vCPU in this VM, or its index is out of range.
    WRONG_VCPU = -18;
    /// The vCPU is loaded on another CPU, or (for destroy) some vCPU is.
    VCPU_BUSY = -19;
    /// A vCPU of this index exists already.
    VCPU_EXISTS = -20;
    /// The call does not fit the VM's life (before or after its first run, dying) or its type, or the vCPU's life (it ran,
    /// or it crashed).
    WRONG_STATE = -21;
    /// Every VM slot is taken.
    NO_SLOT = -22;
    /// This machine can not run VMs (no `GICv3`); the boot log says why.
    NO_VMS = -23;
    /// A count of zero.
    ZERO_COUNT = -32;
    /// A count above the call's limit.
    COUNT_TOO_LARGE = -33;
    /// First frame plus count leaves the number space.
    OVERFLOW = -34;
    /// A value that must be aligned is not.
    UNALIGNED = -35;
    /// An unknown flag, selector or size, or a reserved argument that is not zero.
    BAD_ARGUMENT = -36;
    /// A frame that is not RAM known to `el2`: device memory, a hole, or out of range.
    NOT_MEMORY = -48;
    /// RAM that the device tree marks `no-map`; it can never be given away.
    NO_MAP = -49;
    /// A frame of `el2` itself: a carve-out, or a table.
    EL2_OWNED = -50;
    /// The frame belongs to this VM already.
    ALREADY_DONATED = -51;
    /// The frame belongs to another VM.
    FOREIGN = -52;
    /// The frame is lent: shared with, or borrowed by, somebody.
    SHARED = -53;
    /// The same frame, or the same guest frame, appears twice in one call.
    TWICE = -54;
    /// The frame belongs to the host, but the call needs one of this VM's.
    HOST_OWNED = -55;
    /// A guest frame outside the VM's declared RAM ranges, or beyond its address size.
    GFN_OUT_OF_RANGE = -64;
    /// The guest frame is backed already.
    GFN_MAPPED = -65;
    /// The guest frame is not backed.
    GFN_NOT_MAPPED = -66;
    /// The guest frame was poisoned by a forced revocation.
    GFN_POISONED = -67;
    /// Ranges overlap, or there are too many of them.
    BAD_RANGE = -68;
    /// The VM's pool is short of x1 frames; nothing changed.
    NEED_PAGES = -69;
    /// Guest frames must be reclaimed before pool frames.
    GUEST_FRAMES_LEFT = -70;
    /// No guest request is pending on this vCPU.
    NO_REQUEST = -71;
    /// The register is never the host's (a protected VM's), is read only, or may not have this value; of [`VCPU_RUN`]:
    /// this CPU is in a state (streaming mode) in which no guest can be entered.
    DENIED = -80;
}

items! {
    /// Every VM type flag.
    VM_FLAGS: u64;
    /// The VM is protected: its pages and registers are its own. Without it the VM is ordinary: the host lends it pages.
    VM_PROTECTED = 1;
}

items! {
    /// Every donation flag.
    DONATE_FLAGS: u64;
    /// The frame stays revocable: a stray host kernel access scrubs it, gives it back and poisons the guest frame.
    DONATE_REVOCABLE = 1;
}

items! {
    /// Every share permission flag.
    SHARE_FLAGS: u64;
    /// The ordinary VM may write the borrowed frame.
    SHARE_WRITE = 1;
    /// The ordinary VM may execute from the borrowed frame.
    SHARE_EXEC = 2;
}

items! {
    /// Every flag of [`VM_IRQ`].
    IRQ_FLAGS: u64;
    /// The wire is high; else low.
    IRQ_HIGH = 1;
    /// The host wants to hear ([`EXIT_EOI`], of whichever vCPU runs next) when the guest ends the interrupt while its wire
    /// is high. Holds until the next call for this SPI without it.
    IRQ_RESAMPLE = 2;
}

items! {
    /// Every counter of [`COUNTER`].
    COUNTERS: u64;
    /// Entries to EL2 of the CPU in x2 since boot, this call included.
    COUNTER_ENTRIES = 0;
    /// Stage-2 aborts taken from the host, all CPUs.
    COUNTER_HOST_FAULTS = 1;
    /// Faults injected into the host, all CPUs.
    COUNTER_INJECTED = 2;
    /// 2 MB blocks that map RAM in the host's stage 2.
    COUNTER_HOST_BLOCKS = 3;
    /// 4 KB tables (level 3) in the host's stage 2.
    COUNTER_HOST_TABLES = 4;
    /// Broadcast TLB invalidations of the host's stage 2 since boot.
    COUNTER_TLB_BROADCASTS = 5;
    /// Blocks split since boot.
    COUNTER_SPLITS = 6;
    /// Blocks rejoined since boot.
    COUNTER_JOINS = 7;
    /// Frames of RAM that VMs took out of the host's reach: private ones and pools. A frame lent to the host is not in it.
    COUNTER_FOREIGN_FRAMES = 9;
    /// Live VM slots.
    COUNTER_VMS = 10;
    /// CPUs known to `el2`.
    COUNTER_CPUS = 11;
    /// Unused level-3 tables in the host's reserve.
    COUNTER_TABLES_FREE = 12;
    /// First frame of the carve-out in x2 (0: image, 1: ledger and tables).
    COUNTER_CARVEOUT_BASE = 13;
    /// Frames of the carve-out in x2.
    COUNTER_CARVEOUT_FRAMES = 14;
}

items! {
    /// Every exit reason of [`VCPU_RUN`] (x1).
    EXITS: u64;
    /// A physical interrupt is pending for the host. No payload.
    EXIT_IRQ = 1;
    /// The guest accessed an address outside its RAM ranges. x2: IPA; x3: `MMIO_*` bits; x4: data of a write.
    EXIT_MMIO = 2;
    /// The guest touched RAM that is not backed yet, or that an ordinary VM was lent without that right (to write, or to
    /// execute). x2: guest frame number, and nothing else.
    EXIT_MEM_FAULT = 3;
    /// The guest waits for an interrupt. x2: with a `VM_GIC`, when its next timer fires by the counter; 0: none does.
    EXIT_WFI = 4;
    /// The guest asks to share. x2: first guest frame; x3: count. Answer with [`GUEST_ACCEPT`].
    EXIT_SHARE = 5;
    /// The guest asks to unshare. x2: first guest frame; x3: count. Drain, then [`GUEST_ACCEPT`].
    EXIT_UNSHARE = 6;
    /// The guest gives memory back for good. x2: first guest frame; x3: count. Answer with [`GUEST_ACCEPT`].
    EXIT_RELINQUISH = 7;
    /// PSCI `SYSTEM_OFF`, `SYSTEM_RESET` or `SYSTEM_RESET2`. x2: 0 off, 1 reset, 2 reset by `SYSTEM_RESET2`.
    EXIT_SYSTEM = 8;
    /// The guest did what can not be served, and this vCPU can not go on. x2: `CRASH_*`.
    EXIT_CRASH = 9;
    /// [`VCPU_KICK`] was called for this vCPU. No payload.
    EXIT_KICKED = 11;
    /// Another vCPU is to be woken, which x5 names. No payload of its own.
    EXIT_WAKE = 12;
    /// The vCPU is off: its guest did not start it yet, or switched it off. No payload.
    EXIT_OFF = 13;
    /// The guest has ended an SPI whose wire is still high, as [`IRQ_RESAMPLE`] asked. x2: its INTID.
    EXIT_EOI = 14;
}

items! {
    /// Every bit and field of x3 of [`EXIT_MMIO`].
    MMIO_BITS: u64;
    /// Bits `[3:0]`: bytes accessed, 1, 2, 4 or 8.
    MMIO_SIZE_MASK = 0xf;
    /// A store; else a load, answered with x3 of the next [`VCPU_RUN`].
    MMIO_WRITE = 1 << 8;
}

items! {
    /// Every crash code (x2 of [`EXIT_CRASH`]).
    CRASHES: u64;
    /// An access outside RAM whose syndrome does not describe it (`ISV` 0) or that goes on behind its page's end, or a fetch
    /// from there. In the frames of the VM's interrupt controller the guest gets an external abort instead, and what goes on
    /// behind a page's end is answered.
    CRASH_NO_SYNDROME = 1;
    /// The guest left the architectural state that `el2` serves (`AArch32`, illegal return).
    CRASH_BAD_STATE = 2;
    /// A stage-1 table walk went outside RAM, and not to those frames.
    CRASH_WALK = 3;
    /// The guest frame was poisoned by a forced revocation.
    CRASH_POISONED = 4;
    /// An `SError` or an exception that no guest should be able to cause.
    CRASH_ABORT = 5;
}

items! {
    /// Registers of [`VCPU_SET_REG`] and [`VCPU_GET_REG`]; 0 to 30 are x0–x30. Of a protected VM's vCPU x0–x3, `REG_PC`,
    /// `REG_PSTATE` and `REG_MPIDR`, and no other.
    REGS: u64;
    /// x0 of the guest.
    REG_X0 = 0;
    /// x1 of the guest.
    REG_X1 = 1;
    /// x2 of the guest.
    REG_X2 = 2;
    /// x3 of the guest.
    REG_X3 = 3;
    /// x30 of the guest.
    REG_X30 = 30;
    /// Program counter; of a protected VM a multiple of 4.
    REG_PC = 32;
    /// PSTATE; of a protected VM only `EL1h` with DAIF masked (0x3c5).
    REG_PSTATE = 33;
    /// `MPIDR_EL1` of the vCPU; read only.
    REG_MPIDR = 34;
    /// Of an ordinary VM that has run, write only: makes the vCPU as one that was just created, on (1) or off (0).
    REG_POWER = 35;
    /// The first of EL1's, one after the other: SCTLR, TCR, CPACR, TTBR0, TTBR1, MAIR, AMAIR, VBAR, ESR, FAR, AFSR0, AFSR1,
    /// CONTEXTIDR, PAR, `TPIDR_EL0`, TPIDRRO, `TPIDR_EL1`, CNTKCTL, `SP_EL0`, `SP_EL1`, ELR, SPSR.
    REG_EL1 = 128;
    /// The lower half of V0, then its upper half, V1 and so on.
    REG_V0 = 150;
    /// FPCR.
    REG_FPCR = 214;
    /// FPSR.
    REG_FPSR = 215;
    /// The syndrome of the exception that ended the last run, as `ESR_EL2` had it, if one did.
    REG_EXIT_ESR = 216;
    /// The address that came with it, as `FAR_EL2` had it.
    REG_EXIT_FAR = 217;
}

calls! {
    /// Says which `el2` this is.
    VERSION = BASE;
    args();
    rets("abi": "ABI version: major `[31:16]`, minor `[15:0]`", "release": "el2 release: major `[31:16]`, minor `[15:8]`, patch `[7:0]`", "max_vms": "VM slots, 0 where VMs can not run", "max_vcpus": "vCPUs per VM");
    errors();
    when("host, at any time");
    /// Reads one counter.
    COUNTER = BASE + 1;
    args("counter": "one of `COUNTER_*`", "index": "CPU or carve-out index where the counter has one, else 0");
    rets("value": "its value");
    errors(BAD_ARGUMENT);
    when("host, at any time");
    /// Creates a VM out of a run of host frames: they become its pool, and hold its tables, vCPUs and records.
    VM_CREATE = BASE + 2;
    args("flags": "`VM_*`", "ipa_bits": "size of the guest's address space, 32 to 40", "pfn": "first frame of the pool", "count": "frames, 1 to 512");
    rets("handle": "the VM's handle");
    errors(NO_VMS, BAD_ARGUMENT, ZERO_COUNT, COUNT_TOO_LARGE, OVERFLOW, NOT_MEMORY, NO_MAP, EL2_OWNED, FOREIGN, SHARED, NO_SLOT, NEED_PAGES);
    when("host, at any time");
    /// Declares a range of guest frames as RAM. An access outside every range is an MMIO exit.
    VM_RANGE = BASE + 3;
    args("handle": "VM", "gfn": "first guest frame", "count": "frames, any number");
    rets();
    errors(WRONG_HANDLE, STALE_HANDLE, WRONG_STATE, ZERO_COUNT, OVERFLOW, GFN_OUT_OF_RANGE, BAD_RANGE);
    when("host, before the VM's first run");
    /// Marks a VM as dying. No vCPU of it runs again; its translations are invalidated once.
    VM_DESTROY = BASE + 4;
    args("handle": "VM");
    rets();
    errors(WRONG_HANDLE, STALE_HANDLE, WRONG_STATE, VCPU_BUSY);
    when("host, once per VM");
    /// Takes frames of a dying VM back, scrubbed: guest frames first, then pool frames. Returning the last pool frame frees the slot.
    VM_RECLAIM = BASE + 5;
    args("handle": "VM", "pfn": "first frame", "count": "frames, 1 to 512");
    rets("done": "frames returned; fewer than asked if an interrupt is pending");
    errors(WRONG_HANDLE, STALE_HANDLE, WRONG_STATE, ZERO_COUNT, COUNT_TOO_LARGE, OVERFLOW, NOT_MEMORY, NO_MAP, EL2_OWNED, HOST_OWNED, FOREIGN, GUEST_FRAMES_LEFT);
    when("host, after VM_DESTROY");
    /// Adds host frames to a VM's pool.
    POOL_TOPUP = BASE + 6;
    args("handle": "VM", "pfn": "first frame", "count": "frames, 1 to 512");
    rets("free": "free frames in the pool afterwards");
    errors(WRONG_HANDLE, STALE_HANDLE, WRONG_STATE, ZERO_COUNT, COUNT_TOO_LARGE, OVERFLOW, NOT_MEMORY, NO_MAP, EL2_OWNED, ALREADY_DONATED, FOREIGN, SHARED);
    when("host, until VM_DESTROY");
    /// Creates a vCPU out of the VM's pool.
    VCPU_CREATE = BASE + 7;
    args("handle": "VM", "vcpu": "index, from 0 on");
    rets();
    errors(WRONG_HANDLE, STALE_HANDLE, WRONG_STATE, WRONG_VCPU, VCPU_EXISTS, NEED_PAGES);
    when("host, before the VM's first run");
    /// Sets a register of a vCPU of a VM that never ran, or of an ordinary one. What is set in one that the guest starts is
    /// forgotten.
    VCPU_SET_REG = BASE + 8;
    args("handle": "VM", "vcpu": "index", "reg": "one of `REG_*`", "value": "its value");
    rets();
    errors(WRONG_HANDLE, STALE_HANDLE, WRONG_STATE, WRONG_VCPU, VCPU_BUSY, DENIED, UNALIGNED, BAD_ARGUMENT);
    when("host, before the VM's first run; of an ordinary VM until VM_DESTROY");
    /// Reads a register of a vCPU that never ran, or of an ordinary VM's; `REG_MPIDR` at any time.
    VCPU_GET_REG = BASE + 9;
    args("handle": "VM", "vcpu": "index", "reg": "one of `REG_*`");
    rets("value": "its value");
    errors(WRONG_HANDLE, STALE_HANDLE, WRONG_STATE, WRONG_VCPU, VCPU_BUSY, DENIED, BAD_ARGUMENT);
    when("host, before that vCPU's first run; of an ordinary VM until VM_DESTROY");
    /// Runs a vCPU on this CPU until it needs the host. An entry ends what was pending, also one that a kick or an
    /// interrupt ends at once: a load has its answer, a request that was not accepted is made again. A vCPU that asked
    /// for power off or reset may be run again. vCPU 0 is on from the start; another one is off until the guest calls
    /// `CPU_ON`, and then starts where the guest says. x5 is valid in every answer, refusals too.
    VCPU_RUN = BASE + 10;
    args("handle": "VM", "vcpu": "index", "mmio": "answer to a pending MMIO load, else ignored");
    rets("reason": "one of `EXIT_*`", "a": "first payload", "b": "second payload", "c": "third payload", "wake": "vCPUs, one bit each, whose last run ended with `EXIT_WFI` or `EXIT_OFF` and that have something to do now");
    errors(WRONG_HANDLE, STALE_HANDLE, WRONG_STATE, WRONG_VCPU, VCPU_BUSY, DENIED);
    when("host, with interrupts masked, until VM_DESTROY");
    /// Makes a vCPU leave the guest as soon as it can, or at its next entry.
    VCPU_KICK = BASE + 11;
    args("handle": "VM", "vcpu": "index");
    rets();
    errors(WRONG_HANDLE, STALE_HANDLE, WRONG_STATE, WRONG_VCPU);
    when("host, until VM_DESTROY");
    /// Gives a run of host frames to a protected VM. Contents stay and are measured before its first run, and are zeroed
    /// after it.
    MEM_DONATE = BASE + 12;
    args("handle": "VM", "pfn": "first frame", "gfn": "first guest frame", "count": "frames, 1 to 512", "flags": "`DONATE_*`");
    rets("done": "frames donated; fewer than asked if an interrupt is pending");
    errors(WRONG_HANDLE, STALE_HANDLE, WRONG_STATE, BAD_ARGUMENT, ZERO_COUNT, COUNT_TOO_LARGE, OVERFLOW, NOT_MEMORY, NO_MAP, EL2_OWNED, ALREADY_DONATED, FOREIGN, SHARED, GFN_OUT_OF_RANGE, GFN_MAPPED, GFN_POISONED, NEED_PAGES);
    when("host, until VM_DESTROY");
    /// As `MEM_DONATE` for the runs of a list that lies in a host frame, with one TLB invalidation for all of them. A list of more than 512 frames is refused as a whole.
    MEM_DONATE_LIST = BASE + 13;
    args("handle": "VM", "list": "frame that holds the records", "records": "number of records, 1 to 256; they name 512 frames together at most", "flags": "`DONATE_*`");
    rets("done": "frames donated, counted over the list from its start");
    errors(WRONG_HANDLE, STALE_HANDLE, WRONG_STATE, BAD_ARGUMENT, ZERO_COUNT, COUNT_TOO_LARGE, OVERFLOW, NOT_MEMORY, NO_MAP, EL2_OWNED, ALREADY_DONATED, FOREIGN, SHARED, TWICE, GFN_OUT_OF_RANGE, GFN_MAPPED, GFN_POISONED, NEED_PAGES);
    when("host, until VM_DESTROY");
    /// Lends a run of host frames to an ordinary VM.
    MEM_SHARE = BASE + 14;
    args("handle": "VM", "pfn": "first frame", "gfn": "first guest frame", "count": "frames, 1 to 512", "flags": "`SHARE_*`");
    rets("done": "frames lent");
    errors(WRONG_HANDLE, STALE_HANDLE, WRONG_STATE, BAD_ARGUMENT, ZERO_COUNT, COUNT_TOO_LARGE, OVERFLOW, NOT_MEMORY, NO_MAP, EL2_OWNED, ALREADY_DONATED, FOREIGN, SHARED, GFN_OUT_OF_RANGE, GFN_MAPPED, NEED_PAGES);
    when("host, until VM_DESTROY");
    /// Takes lent frames back from an ordinary VM.
    MEM_UNSHARE = BASE + 15;
    args("handle": "VM", "gfn": "first guest frame", "count": "frames, 1 to 512");
    rets("done": "frames taken back");
    errors(WRONG_HANDLE, STALE_HANDLE, WRONG_STATE, ZERO_COUNT, COUNT_TOO_LARGE, OVERFLOW, GFN_OUT_OF_RANGE, GFN_NOT_MAPPED);
    when("host, until the VM's slot is freed");
    /// Carries out the guest's pending share, unshare or relinquish request, for its first `count` frames.
    GUEST_ACCEPT = BASE + 16;
    args("handle": "VM", "vcpu": "index", "count": "frames to accept, 1 to those asked");
    rets("done": "frames moved; the guest learns the number");
    errors(WRONG_HANDLE, STALE_HANDLE, WRONG_STATE, WRONG_VCPU, VCPU_BUSY, NO_REQUEST, ZERO_COUNT, COUNT_TOO_LARGE, GFN_NOT_MAPPED, SHARED, GFN_POISONED);
    when("host, after an EXIT_SHARE, EXIT_UNSHARE or EXIT_RELINQUISH of that vCPU");
    /// Gives a VM a `GICv3`: 64 KB of distributor and 128 KB of redistributor for each vCPU, one behind the other. RAM that lies there comes first.
    VM_GIC = BASE + 17;
    args("handle": "VM", "distributor": "first guest frame, at 64 KB", "redistributors": "first guest frame, at 64 KB");
    rets();
    errors(WRONG_HANDLE, STALE_HANDLE, WRONG_STATE, UNALIGNED, GFN_OUT_OF_RANGE);
    when("host, before the VM's first run");
    /// Sets the wire of an SPI of a VM that has a `GICv3`.
    VM_IRQ = BASE + 18;
    args("handle": "VM", "intid": "32 to 255", "flags": "`IRQ_*`");
    rets("wake": "as of `VCPU_RUN`");
    errors(WRONG_HANDLE, STALE_HANDLE, WRONG_STATE, BAD_ARGUMENT);
    when("host, until VM_DESTROY");
}
