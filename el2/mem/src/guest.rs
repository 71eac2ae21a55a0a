// SPDX-License-Identifier: MIT OR Apache-2.0
//! What one guest's lock protects: the memory side of a VM's life.
//!
//! A slot is free, or holds a VM that is being built, runs, or is dying. Guarantees that RAM ranges
//! are fixed before the first run (D9), that a dying VM's translations are gone from every TLB, and
//! that a slot is free again only when the VM's last frame went back (I8). It does not know vCPUs:
//! that none is loaded when a VM begins to die is the caller's to ensure.

use crate::devices::Devices;
use crate::few::Few;
use crate::guest_space::{GuestSpace, Near};
use crate::pool::Pool;
use crate::pte::Leaf;
use crate::{Claim, Gfn, GfnRun, Host, Ipa, Machine, Pfn, Refused, VmSlot, Vmid};

/// RAM ranges that a VM may declare.
pub const MAX_RANGES: usize = 8;

/// What a VM is, as far as its memory goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Owns its frames; what it is given after its first run is zeroed.
    Protected,
    /// Owns its frames, but gets them with their contents at any time: nothing of it is measured (D18).
    Lazy,
    /// Borrows the host's frames.
    Ordinary,
}

/// Where a VM is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// There is no VM.
    Free,
    /// Never ran.
    Building,
    /// Ran.
    Running,
    /// Will never run again.
    Dying,
}

/// What a guest finds at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestView {
    /// It is mapped: an access that faulted should be made again.
    Mapped(Pfn),
    /// RAM that nothing backs yet.
    Absent(Gfn),
    /// RAM whose frame was revoked.
    Poisoned(Gfn),
    /// Not RAM.
    Device,
}

/// A VM's memory, while there is a VM.
#[derive(Debug)]
pub(crate) struct Body {
    pub(crate) life: Life,
    pub(crate) kind: Kind,
    pub(crate) space: GuestSpace,
    pub(crate) pool: Pool,
    ram: Few<GfnRun, MAX_RANGES>,
    pub(crate) devices: Devices,
    /// Frames that the VM owns, private or shared.
    pub(crate) owned: u64,
    /// Frames that the VM borrows.
    pub(crate) borrowed: u64,
}

/// Everything under one guest's lock.
#[derive(Debug)]
pub struct Guest {
    vm: VmSlot,
    pub(crate) body: Option<Body>,
}

impl Guest {
    /// An empty slot.
    pub const fn new(vm: VmSlot) -> Self {
        Self { vm, body: None }
    }

    /// The slot.
    pub const fn vm(&self) -> VmSlot {
        self.vm
    }

    /// Where the VM is in its life.
    pub fn life(&self) -> Life {
        self.body.as_ref().map_or(Life::Free, |body| body.life)
    }

    /// What the VM is; `None` while the slot is free.
    pub fn kind(&self) -> Option<Kind> {
        self.body.as_ref().map(|body| body.kind)
    }

    /// The tag of the VM's TLB entries.
    pub const fn vmid(&self) -> Vmid {
        self.vm.vmid()
    }

    /// Root table and address size, for VTTBR_EL2 and VTCR_EL2; `None` while no vCPU may run.
    pub fn root(&self) -> Option<(Pfn, u32)> {
        match &self.body {
            Some(body) if body.life != Life::Dying => Some((body.space.root(), body.space.ipa_bits())),
            Some(_) | None => None,
        }
    }

    /// Frames that the pool can still give.
    pub fn pool_free(&self) -> u32 {
        self.body.as_ref().map_or(0, |body| body.pool.free())
    }

    /// Frames that the VM owns (private or shared), and that it borrows.
    pub fn frames(&self) -> (u64, u64) {
        self.body.as_ref().map_or((0, 0), |body| (body.owned, body.borrowed))
    }

    /// Broadcast TLB invalidations for this VM.
    pub fn broadcasts(&self) -> u64 {
        self.body.as_ref().map_or(0, |body| body.space.broadcasts)
    }

    /// Declares guest frames as RAM.
    ///
    /// # Errors
    /// `WrongState` after the first run; `GfnOutOfRange` beyond the address size; `RamOverlap`;
    /// `TooManyRanges`.
    pub fn declare_ram(&mut self, run: Claim<GfnRun>) -> Result<(), Refused> {
        let run = run.examine();
        let body = self.in_life(&[Life::Building])?;
        if run.end() > 1_u64.unbounded_shl(body.space.ipa_bits().saturating_sub(12)) {
            return Err(Refused::GfnOutOfRange);
        }
        if body.meets_ram(run) {
            return Err(Refused::RamOverlap);
        }
        if body.ram.push(run) { Ok(()) } else { Err(Refused::TooManyRanges) }
    }

    /// The declared RAM, in the order of declaration.
    pub fn ram(&self) -> impl Iterator<Item = GfnRun> + Clone + '_ {
        self.body.iter().flat_map(|body| body.ram.iter())
    }

    /// Marks the first run. Later ones change nothing.
    ///
    /// # Errors
    /// `WrongState` if there is no VM or it is dying.
    pub fn start(&mut self) -> Result<(), Refused> {
        let body = self.in_life(&[Life::Building, Life::Running])?;
        body.life = Life::Running;
        Ok(())
    }

    /// Begins the VM's death: its tables are not edited any more and no TLB knows it. The caller
    /// ensures that no vCPU of it is loaded and, from here on, that none will be.
    ///
    /// # Errors
    /// `WrongState` if there is no VM or it is dying.
    pub fn begin_death(&mut self, m: &mut impl Machine) -> Result<(), Refused> {
        let vm = self.vm;
        let body = self.in_life(&[Life::Building, Life::Running])?;
        body.life = Life::Dying;
        body.space.invalidate(vm, m);
        Ok(())
    }

    /// Takes a cleared frame out of the VM's pool, for a vCPU.
    ///
    /// # Errors
    /// `WrongState`; `NeedPages(1)` if the pool is empty.
    pub fn take_frame(&mut self, host: &mut Host<'_>, m: &mut impl Machine) -> Result<Pfn, Refused> {
        let vm = self.vm;
        let body = self.in_life(&[Life::Building, Life::Running])?;
        body.pool.take(vm, &mut host.ledger, m).ok_or(Refused::NeedPages(1))
    }

    /// What the guest finds at an address, by a walk of its tables as they stand under the lock.
    #[inline(always)]
    pub fn view(&self, ipa: Claim<Ipa>, m: &impl Machine) -> GuestView {
        match (ipa.examine().gfn(), &self.body) {
            (Some(gfn), Some(body)) if body.is_ram(gfn) => Self::view_of_ram(body, gfn, m),
            (_, _) => GuestView::Device,
        }
    }

    #[inline(never)]
    fn view_of_ram(body: &Body, gfn: Gfn, m: &impl Machine) -> GuestView {
        if body.life == Life::Dying {
            // Its tables may be the host's again.
            return GuestView::Absent(gfn);
        }
        match body.space.leaf(gfn, &mut Near::default(), m) {
            Leaf::Page(pfn) => GuestView::Mapped(pfn),
            Leaf::Poisoned => GuestView::Poisoned(gfn),
            Leaf::Empty | Leaf::Unknown => GuestView::Absent(gfn),
        }
    }

    /// The VM's memory, if the VM is in one of these states.
    pub(crate) fn in_life(&mut self, allowed: &[Life]) -> Result<&mut Body, Refused> {
        match &mut self.body {
            Some(body) if allowed.contains(&body.life) => Ok(body),
            Some(_) | None => Err(Refused::WrongState),
        }
    }
}

impl Body {
    /// A VM that has nothing yet but a root table and the rest of its first run of frames.
    pub(crate) const fn new(kind: Kind, space: GuestSpace, pool: Pool) -> Self {
        Self {
            life: Life::Building,
            kind,
            space,
            pool,
            ram: Few::new(),
            devices: Devices::new(),
            owned: 0,
            borrowed: 0,
        }
    }

    /// Whether the guest frame was declared as RAM.
    #[inline]
    pub(crate) fn is_ram(&self, gfn: Gfn) -> bool {
        self.ram.iter().any(|run| run.contains(gfn))
    }

    /// Whether some of the run was.
    pub(crate) fn meets_ram(&self, run: GfnRun) -> bool {
        self.ram.iter().any(|other| other.meets(&run))
    }

    /// Whether nothing is in the way of mapping something at the guest frame.
    #[inline]
    pub(crate) fn vacant(&self, gfn: Gfn, near: &mut Near, m: &impl Machine) -> Result<(), Refused> {
        if !self.is_ram(gfn) {
            return Err(Refused::GfnOutOfRange);
        }
        if near.is_empty(gfn, m) {
            return Ok(());
        }
        match self.space.leaf(gfn, near, m) {
            Leaf::Empty => Ok(()),
            Leaf::Poisoned => Err(Refused::GfnPoisoned),
            Leaf::Page(_) | Leaf::Unknown => Err(Refused::GfnMapped),
        }
    }

    /// The frame behind a guest frame.
    pub(crate) fn backing(&self, gfn: Gfn, m: &impl Machine) -> Result<Pfn, Refused> {
        if !self.is_ram(gfn) {
            return Err(Refused::GfnOutOfRange);
        }
        match self.space.leaf(gfn, &mut Near::default(), m) {
            Leaf::Page(pfn) => Ok(pfn),
            Leaf::Poisoned => Err(Refused::GfnPoisoned),
            Leaf::Empty | Leaf::Unknown => Err(Refused::GfnNotMapped),
        }
    }

    /// Whether the VM owns its frames.
    pub(crate) fn owns(&self) -> Result<(), Refused> {
        match self.kind {
            Kind::Protected | Kind::Lazy => Ok(()),
            Kind::Ordinary => Err(Refused::WrongKind),
        }
    }

    /// Whether the VM borrows its frames.
    pub(crate) fn borrows(&self) -> Result<(), Refused> {
        match self.kind {
            Kind::Ordinary => Ok(()),
            Kind::Protected | Kind::Lazy => Err(Refused::WrongKind),
        }
    }

    /// Table pages that the pool lacks for mapping `wanted`.
    pub(crate) fn reserve(&self, wanted: crate::batch::Granules<'_>, m: &impl Machine) -> Result<(), Refused> {
        match self.space.tables_missing(wanted, m).checked_sub(self.pool.free()) {
            None | Some(0) => Ok(()),
            Some(short) => Err(Refused::NeedPages(short)),
        }
    }
}
