// SPDX-License-Identifier: MIT OR Apache-2.0
//! The records of the specification: a page, a guest frame's mark, a VM, a vCPU.
//!
//! A page says who owns it; nothing else does. What backs a guest frame follows from the pages' records.

/// Who owns a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    /// No RAM that `el2` knows: a device, a hole, out of range.
    #[default]
    NotMemory,
    /// RAM that the device tree marks `no-map`: the host's to touch, never to give.
    NoMap,
    /// `el2` itself.
    El2,
    /// The host.
    Host,
    /// A VM, whose guest frame `gfn` it backs.
    Guest {
        /// The VM's slot.
        slot: u8,
        /// Guest frame number.
        gfn: u32,
    },
    /// `el2`, on behalf of a VM: its tables, vCPUs and records.
    Pool {
        /// The VM's slot.
        slot: u8,
    },
}

/// What a page holds, as far as secrecy is concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Content {
    /// What the host wrote.
    #[default]
    Public,
    /// Zeros.
    Zero,
    /// What the host put there before the VM's first run.
    Initial,
    /// What the guest of this slot wrote, or `el2` on its behalf; it has not been shared.
    Secret(u8),
    /// What lay, or was written, in a page while its guest shared it.
    Shared,
}

/// Where a page of a `guest_memfd` stands, in the driver's books.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum File {
    /// In no file.
    #[default]
    Out,
    /// `HostMappable`, the host's own.
    Host,
    /// `NoneMappable`: an attempt waits for the holders to let go.
    Draining {
        /// Number of the attempt.
        by: u8,
    },
    /// Held at reference count 0, not (or no longer) with the host, not yet with the guest.
    Frozen,
    /// The guest's alone.
    Given,
    /// The guest's, lent to the host: `HostMappable`.
    Lent,
}

/// One frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Page {
    /// Its owner.
    pub owner: Owner,
    /// A guest's page that the host may touch.
    pub lent: bool,
    /// A guest's page that a stray kernel access takes away.
    pub revocable: bool,
    /// How many guest frames of ordinary VMs borrow this page of the host.
    pub borrows: u16,
    /// What it holds.
    pub content: Content,
    /// References that somebody in the host holds, beside the driver's own.
    pub holders: u8,
    /// The driver's state.
    pub file: File,
}

/// What a guest frame is, beside being backed by a page that the VM owns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mark {
    /// Nothing.
    #[default]
    None,
    /// Its page was taken away by force.
    Poisoned,
    /// An ordinary VM's view of a page of the host.
    Borrow {
        /// The host's frame.
        pfn: u64,
        /// It may write.
        write: bool,
        /// It may execute.
        exec: bool,
    },
    /// Outside RAM: its guest has opened it, for the host to emulate what is there.
    Device,
}

/// A VM's life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Life {
    /// The slot is free.
    #[default]
    Free,
    /// Created, never run.
    Open,
    /// Has run.
    Ran,
    /// Being taken apart.
    Dying,
}

/// A VM slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vm {
    /// Where it stands.
    pub life: Life,
    /// Some handle of this slot has ended.
    pub used: bool,
    /// It is protected; else ordinary.
    pub protected: bool,
    /// Bits of its address space.
    pub ipa_bits: u8,
    /// Pages of its pool, used and free.
    pub pool: u32,
    /// Free pages of its pool.
    pub free: u32,
    /// Pages that it owns as guest memory.
    pub guest: u32,
    /// Guest frames that borrow a page of the host.
    pub borrowed: u32,
    /// It has a `GICv3`. What that does is not specified here.
    pub gic: bool,
    /// Its guest reaches outside of RAM what it has opened, and nothing else.
    pub guarded: bool,
    /// How many runs of guest frames are open.
    pub windows: u8,
}

/// A vCPU's life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum VcpuLife {
    /// Not created.
    #[default]
    Absent,
    /// Created, never run: its registers may be set.
    Ready,
    /// Has run.
    Ran,
    /// Its guest asked for power off or reset. The host may enter it again.
    Off,
    /// Can not go on.
    Crashed,
}

/// What a guest asks of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// To lend pages to it.
    Share,
    /// To take them back.
    Unshare,
    /// To give them up.
    Relinquish,
}

/// What an exit left to be answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Pending {
    /// Nothing.
    #[default]
    None,
    /// A load from outside RAM: the next entry brings its value.
    Load {
        /// Bytes.
        size: u8,
    },
    /// A request that waits for acceptance.
    Request {
        /// What is asked.
        kind: Kind,
        /// First guest frame.
        gfn: u32,
        /// Frames.
        count: u32,
    },
    /// A request that was carried out: the next entry tells the guest.
    Answer {
        /// What was asked.
        kind: Kind,
        /// Frames that moved.
        count: u32,
    },
}

/// Whether its guest lets a vCPU run. The numbers are those of AFFINITY_INFO.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Power {
    /// It runs when the host runs it. The first vCPU begins so.
    On = 0,
    /// It was not started, or went off.
    #[default]
    Off = 1,
    /// It was started, and has not run since.
    Starting = 2,
}

/// A vCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vcpu {
    /// Where it stands.
    pub life: VcpuLife,
    /// Some CPU runs it.
    pub running: bool,
    /// A kick that it has not seen yet.
    pub kicked: bool,
    /// What it waits for.
    pub pending: Pending,
    /// Whether its guest lets it run.
    pub power: Power,
}

impl Page {
    /// Whether the host may touch it.
    #[must_use]
    pub const fn host_reaches(&self) -> bool {
        match self.owner {
            Owner::Host | Owner::NoMap => true,
            Owner::Guest { .. } => self.lent,
            Owner::NotMemory | Owner::El2 | Owner::Pool { .. } => false,
        }
    }
}

impl Vm {
    /// Whether the slot holds a VM, dying ones included.
    #[must_use]
    pub const fn exists(&self) -> bool {
        !matches!(self.life, Life::Free)
    }

    /// Whether it may still be given things and run.
    #[must_use]
    pub const fn alive(&self) -> bool {
        matches!(self.life, Life::Open | Life::Ran)
    }
}
