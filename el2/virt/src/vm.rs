// SPDX-License-Identifier: MIT OR Apache-2.0
//! The life of VMs and vCPUs, as far as it must be decided without a lock.
//!
//! One word per VM holds its generation, its phase and how many of its vCPUs are claimed; one word per vCPU holds
//! what it is doing. From there: a vCPU is on one CPU at a time, no vCPU runs once its VM is dying, and a VM does not
//! start to die while one runs. It does not know whether a VM ran before: that is the memory model's, under its lock.
//! Keeps the VM half of I7 and of I8 (a slot is free again after its last frame went back).

use crate::Refused;
use crate::cell::Cell;
use crate::handle::{Generation, Handle, MAX_VCPUS, Slot, VcpuIndex};

const CLAIMS_MASK: u64 = 0xff;
const PHASE_SHIFT: u32 = 16;
const PHASE_MASK: u64 = 0xf << PHASE_SHIFT;
const GENERATION_SHIFT: u32 = 24;

/// Phases of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nobody's.
    Free,
    /// Being set up; no handle names it yet.
    Reserved,
    /// A VM lives in it.
    Live,
    /// Its VM is being taken apart.
    Dying,
    /// Every generation was used up.
    Spent,
}

/// One VM's word, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Word {
    generation: Generation,
    phase: Phase,
    claims: u64,
}

impl Word {
    fn unpack(bits: u64) -> Self {
        let phase = match (bits & PHASE_MASK) >> PHASE_SHIFT {
            1 => Phase::Reserved,
            2 => Phase::Live,
            3 => Phase::Dying,
            4 => Phase::Spent,
            _ => Phase::Free,
        };
        // A slot that was never touched is all zero: its first generation is 1.
        let raw = bits >> GENERATION_SHIFT;
        let generation = if raw == 0 { Generation::FIRST } else { Generation::from_bits(raw) };
        Self { generation, phase, claims: bits & CLAIMS_MASK }
    }

    fn pack(self) -> u64 {
        let phase = match self.phase {
            Phase::Free => 0,
            Phase::Reserved => 1,
            Phase::Live => 2,
            Phase::Dying => 3,
            Phase::Spent => 4u64,
        };
        self.generation.get() << GENERATION_SHIFT | phase << PHASE_SHIFT | self.claims & CLAIMS_MASK
    }
}

/// What a vCPU is doing. As wide as what stands beside it in a claim, which is moved in words then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum VcpuPhase {
    /// It was not created.
    Absent,
    /// Created, and never ran.
    Ready,
    /// Ran, and waits to run again.
    Parked,
    /// In use on a CPU.
    Claimed,
    /// It can not go on.
    Crashed,
}

impl VcpuPhase {
    fn unpack(bits: u64) -> Self {
        match bits & 7 {
            1 => Self::Ready,
            2 => Self::Parked,
            3 => Self::Claimed,
            4 => Self::Crashed,
            _ => Self::Absent,
        }
    }

    const fn pack(self) -> u64 {
        match self {
            Self::Absent => 0,
            Self::Ready => 1,
            Self::Parked => 2,
            Self::Claimed => 3,
            Self::Crashed => 4,
        }
    }
}

/// What is kept of a vCPU outside its block.
#[derive(Debug)]
struct VcpuCell<A> {
    phase: A,
    /// What the wiring keeps the vCPU's registers by; read and written by whoever holds the claim or creates it.
    block: A,
    kicked: A,
}

/// What is kept of one slot. All zero is a slot that was never used.
#[derive(Debug)]
pub struct VmCell<A> {
    word: A,
    vcpus: [VcpuCell<A>; MAX_VCPUS],
}

impl<A: Cell> VmCell<A> {
    /// A slot that was never used; `zero` makes words that hold zero.
    pub fn new(zero: impl Fn() -> A) -> Self {
        Self {
            word: zero(),
            vcpus: core::array::from_fn(|_| VcpuCell { phase: zero(), block: zero(), kicked: zero() }),
        }
    }

    /// The vCPU of this index. Not in line: the audit of the image asks for its cut by name.
    #[inline(never)]
    fn vcpu(&self, index: VcpuIndex) -> Option<&VcpuCell<A>> {
        self.vcpus.get(index.index())
    }

    /// Applies `change` to the word until it holds or is refused.
    ///
    /// Each retry means that another CPU's change held, and no CPU changes a word twice in one call: the number of
    /// retries is bounded by the number of CPUs.
    fn update(&self, mut change: impl FnMut(Word) -> Result<Word, Refused>) -> Result<Word, Refused> {
        let mut seen = self.word.load();
        loop {
            let next = change(Word::unpack(seen))?;
            match self.word.exchange(seen, next.pack()) {
                Ok(()) => return Ok(next),
                Err(found) => seen = found,
            }
        }
    }
}

impl VmCell<core::sync::atomic::AtomicU64> {
    /// A slot that was never used, for a static.
    #[expect(
        clippy::declare_interior_mutable_const,
        reason = "the constant is only the initial value of array elements"
    )]
    pub const NEW: Self = {
        const ZERO: core::sync::atomic::AtomicU64 = core::sync::atomic::AtomicU64::new(0);
        const VCPU: VcpuCell<core::sync::atomic::AtomicU64> = VcpuCell { phase: ZERO, block: ZERO, kicked: ZERO };
        Self { word: ZERO, vcpus: [VCPU; MAX_VCPUS] }
    };
}

/// Why a vCPU is claimed, which decides who may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To run it: any vCPU that can.
    Run,
    /// To set or read registers: one that nobody runs.
    Registers,
    /// To answer its request: one that ran.
    Answer,
}

/// All VM slots.
#[derive(Debug)]
pub struct Vms<'a, A> {
    cells: &'a [VmCell<A>],
}

impl<A> Clone for Vms<'_, A> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<A> Copy for Vms<'_, A> {}

/// A slot that is being set up. Dropping it frees the slot again.
#[must_use = "a slot that is not published is freed"]
pub struct Reserved<'a, A: Cell> {
    cell: &'a VmCell<A>,
    handle: Handle,
    published: bool,
}

/// A vCPU that this CPU alone may touch. Dropping it parks the vCPU as it was.
#[must_use = "a claim that is dropped is given up"]
pub struct Claimed<'a, A: Cell> {
    cell: &'a VmCell<A>,
    vcpu: &'a VcpuCell<A>,
    after: VcpuPhase,
}

impl<'a, A: Cell> Vms<'a, A> {
    /// The VMs of these slots; at most [`crate::handle::MAX_VMS`] are used.
    pub const fn new(cells: &'a [VmCell<A>]) -> Self {
        Self { cells }
    }

    /// Takes a free slot for a new VM.
    ///
    /// # Errors
    /// `NoSlot`.
    pub fn reserve(&self) -> Result<Reserved<'a, A>, Refused> {
        for (index, cell) in (0..self.cells.len()).zip(self.cells) {
            let Some(slot) = Slot::new(index) else { break };
            let taken = cell.update(|word| match word.phase {
                Phase::Free => Ok(Word { phase: Phase::Reserved, claims: 0, ..word }),
                Phase::Reserved | Phase::Live | Phase::Dying | Phase::Spent => Err(Refused::NoSlot),
            });
            if let Ok(word) = taken {
                return Ok(Reserved { cell, handle: Handle::new(slot, word.generation), published: false });
            }
        }
        Err(Refused::NoSlot)
    }

    fn cell(&self, handle: Handle) -> Result<&'a VmCell<A>, Refused> {
        self.cells.get(handle.slot().index()).ok_or(Refused::WrongHandle)
    }

    /// The phase of the VM that `handle` names: live or dying.
    ///
    /// # Errors
    /// `WrongHandle`, `StaleHandle`.
    pub fn phase(&self, handle: Handle) -> Result<Phase, Refused> {
        named(Word::unpack(self.cell(handle)?.word.load()), handle).map(|word| word.phase)
    }

    /// Marks the VM as dying; from here on no vCPU of it can be claimed.
    ///
    /// # Errors
    /// `WrongHandle`, `StaleHandle`, `WrongState` (it is dying), `VcpuBusy`.
    pub fn destroy(&self, handle: Handle) -> Result<(), Refused> {
        self.cell(handle)?
            .update(|word| {
                let word = named(word, handle)?;
                match word {
                    Word { phase: Phase::Live, claims: 0, .. } => Ok(Word { phase: Phase::Dying, ..word }),
                    Word { phase: Phase::Live, .. } => Err(Refused::VcpuBusy),
                    _ => Err(Refused::WrongState),
                }
            })
            .map(|_| ())
    }

    /// Frees the slot of a dying VM whose last frame went back. The handle is stale from here on.
    ///
    /// # Errors
    /// `WrongHandle`, `StaleHandle`, `WrongState` (it is not dying).
    pub fn free(&self, handle: Handle) -> Result<(), Refused> {
        let cell = self.cell(handle)?;
        if self.phase(handle)? != Phase::Dying {
            return Err(Refused::WrongState);
        }
        // Nobody claims a vCPU of a dying VM, and nobody creates one: the words are ours.
        for vcpu in &cell.vcpus {
            vcpu.phase.store(VcpuPhase::Absent.pack());
            vcpu.block.store(0);
            vcpu.kicked.store(0);
        }
        cell.update(|word| {
            let word = named(word, handle)?;
            if word.phase != Phase::Dying {
                return Err(Refused::WrongState);
            }
            Ok(match word.generation.next() {
                Some(generation) => Word { generation, phase: Phase::Free, claims: 0 },
                None => Word { phase: Phase::Spent, claims: 0, ..word },
            })
        })
        .map(|_| ())
    }

    /// Number of VMs that are not gone.
    #[must_use]
    pub fn count(&self) -> u64 {
        let live = |cell: &&VmCell<A>| {
            matches!(Word::unpack(cell.word.load()).phase, Phase::Reserved | Phase::Live | Phase::Dying)
        };
        self.cells.iter().filter(live).fold(0, |count: u64, _| count.saturating_add(1))
    }

    /// Every VM that lives or dies, by handle.
    pub fn handles(&self) -> impl Iterator<Item = Handle> + use<'a, A> {
        (0..self.cells.len()).zip(self.cells).filter_map(|(index, cell)| {
            let word = Word::unpack(cell.word.load());
            match word.phase {
                Phase::Live | Phase::Dying => Some(Handle::new(Slot::new(index)?, word.generation)),
                Phase::Free | Phase::Reserved | Phase::Spent => None,
            }
        })
    }

    /// Whether the VM may get a vCPU of this index. The caller holds the VM's lock until [`Self::create_vcpu`].
    ///
    /// # Errors
    /// `WrongHandle`, `StaleHandle`, `WrongState` (dying), `WrongVcpu`, `VcpuExists`.
    pub fn check_vcpu(&self, handle: Handle, index: VcpuIndex) -> Result<(), Refused> {
        if self.phase(handle)? != Phase::Live {
            return Err(Refused::WrongState);
        }
        match VcpuPhase::unpack(self.vcpu(handle, index)?.phase.load()) {
            VcpuPhase::Absent => Ok(()),
            VcpuPhase::Ready | VcpuPhase::Parked | VcpuPhase::Claimed | VcpuPhase::Crashed => Err(Refused::VcpuExists),
        }
    }

    /// Makes the vCPU exist, with its registers in `block`. The caller holds the VM's lock since
    /// [`Self::check_vcpu`] said yes; a vCPU that exists is left as it is.
    pub fn create_vcpu(&self, handle: Handle, index: VcpuIndex, block: u64) {
        if self.check_vcpu(handle, index).is_ok()
            && let Ok(vcpu) = self.vcpu(handle, index)
        {
            vcpu.block.store(block);
            vcpu.kicked.store(0);
            // Last: whoever sees the vCPU sees its block.
            vcpu.phase.store(VcpuPhase::Ready.pack());
        }
    }

    /// The vCPUs that were created, one bit each.
    #[must_use]
    pub fn created(&self, handle: Handle) -> u64 {
        let is_there = |vcpu: &VcpuCell<A>| VcpuPhase::unpack(vcpu.phase.load()) != VcpuPhase::Absent;
        // The last one first, so that the first one's bit is the lowest.
        let vcpus = self.cell(handle).into_iter().flat_map(|cell| &cell.vcpus).rev();
        vcpus.fold(0, |bits, vcpu| bits << 1 | u64::from(is_there(vcpu)))
    }

    fn vcpu(&self, handle: Handle, index: VcpuIndex) -> Result<&'a VcpuCell<A>, Refused> {
        self.cell(handle)?.vcpu(index).ok_or(Refused::WrongVcpu)
    }

    /// Takes a vCPU for this CPU alone.
    ///
    /// # Errors
    /// `WrongHandle`, `StaleHandle`, `WrongState` (the VM is dying, or the vCPU does not fit the purpose),
    /// `WrongVcpu`, `VcpuBusy`, and `NoRequest` for an answer to a vCPU that never ran.
    pub fn claim(&self, handle: Handle, index: VcpuIndex, purpose: Purpose) -> Result<Claimed<'a, A>, Refused> {
        let cell = self.cell(handle)?;
        let vcpu = cell.vcpu(index).ok_or(Refused::WrongVcpu)?;
        // The VM first: from here on it can not start to die.
        cell.update(|word| {
            let word = named(word, handle)?;
            match word.phase {
                Phase::Live if word.claims < CLAIMS_MASK => Ok(Word { claims: word.claims.saturating_add(1), ..word }),
                Phase::Live => Err(Refused::VcpuBusy),
                Phase::Free | Phase::Reserved | Phase::Dying | Phase::Spent => Err(Refused::WrongState),
            }
        })?;
        let seen = vcpu.phase.load();
        let before = VcpuPhase::unpack(seen);
        let allowed = match (before, purpose) {
            (VcpuPhase::Absent, _) => Err(Refused::WrongVcpu),
            (VcpuPhase::Claimed, _) => Err(Refused::VcpuBusy),
            // Whose VM is ordinary is not known here.
            (_, Purpose::Registers) | (VcpuPhase::Parked, _) | (VcpuPhase::Ready, Purpose::Run) => Ok(()),
            (VcpuPhase::Crashed, _) => Err(Refused::WrongState),
            (VcpuPhase::Ready, Purpose::Answer) => Err(Refused::NoRequest),
        };
        let taken =
            allowed.and_then(|()| vcpu.phase.exchange(seen, VcpuPhase::Claimed.pack()).map_err(|_| Refused::VcpuBusy));
        match taken {
            Ok(()) => Ok(Claimed { cell, vcpu, after: before }),
            Err(why) => {
                release(cell);
                Err(why)
            }
        }
    }

    /// Asks the vCPU to leave the guest at its next entry.
    ///
    /// # Errors
    /// `WrongHandle`, `StaleHandle`, `WrongState` (dying), `WrongVcpu`.
    pub fn kick(&self, handle: Handle, index: VcpuIndex) -> Result<(), Refused> {
        if self.phase(handle)? != Phase::Live {
            return Err(Refused::WrongState);
        }
        let vcpu = self.vcpu(handle, index)?;
        if VcpuPhase::unpack(vcpu.phase.load()) == VcpuPhase::Absent {
            return Err(Refused::WrongVcpu);
        }
        vcpu.kicked.store(1);
        Ok(())
    }
}

/// Checks that the word is of the VM that the handle names.
fn named(word: Word, handle: Handle) -> Result<Word, Refused> {
    if handle.generation() < word.generation {
        return Err(Refused::StaleHandle);
    }
    let ours = handle.generation() == word.generation;
    match word.phase {
        Phase::Live | Phase::Dying if ours => Ok(word),
        Phase::Spent if ours => Err(Refused::StaleHandle),
        Phase::Free | Phase::Reserved | Phase::Live | Phase::Dying | Phase::Spent => Err(Refused::WrongHandle),
    }
}

/// Counts one claim less: the claim that goes was counted, in the lowest bits, so nothing else of the word changes.
fn release<A: Cell>(cell: &VmCell<A>) {
    let mut seen = cell.word.load();
    debug_assert!(seen & CLAIMS_MASK != 0, "the claim that goes was counted");
    while let Err(found) = cell.word.exchange(seen, seen.saturating_sub(1)) {
        seen = found;
    }
}

impl<A: Cell> Reserved<'_, A> {
    /// The handle that the VM will have.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle
    }

    /// Lets the VM live.
    pub fn publish(mut self) -> Handle {
        self.published = true;
        // The change is never refused: a reserved slot is its reserver's.
        let _ = self.cell.update(|word| Ok(Word { phase: Phase::Live, ..word }));
        self.handle
    }
}

impl<A: Cell> Drop for Reserved<'_, A> {
    fn drop(&mut self) {
        if !self.published {
            // The same generation again: nobody ever saw the handle.
            let _ = self.cell.update(|word| Ok(Word { phase: Phase::Free, ..word }));
        }
    }
}

impl<A: Cell> Claimed<'_, A> {
    /// What [`Vms::create_vcpu`] was given.
    #[must_use]
    pub fn block(&self) -> u64 {
        self.vcpu.block.load()
    }

    /// Whether the vCPU never ran.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.after == VcpuPhase::Ready
    }

    /// Takes the kick, if there was one.
    #[must_use]
    pub fn take_kick(&self) -> bool {
        self.vcpu.kicked.exchange(1, 0).is_ok()
    }

    /// Notes that the vCPU has run.
    pub fn ran(&mut self) {
        self.after = VcpuPhase::Parked;
    }

    /// Notes that the vCPU can not go on.
    pub fn crashed(&mut self) {
        self.after = VcpuPhase::Crashed;
    }
}

impl<A: Cell> Drop for Claimed<'_, A> {
    fn drop(&mut self) {
        self.vcpu.phase.store(self.after.pack());
        release(self.cell);
    }
}

#[cfg(test)]
mod tests;
