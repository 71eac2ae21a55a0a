// SPDX-License-Identifier: MIT OR Apache-2.0
//! Names of VMs that do not outlive them.
//!
//! A handle is a slot number and the slot's generation at the time. The generation goes up whenever the slot is
//! freed, so an old handle is told from a current one for as long as the machine runs. Never zero.

use crate::Refused;
use freehold_mem::confine;

/// VM slots.
pub const MAX_VMS: usize = 64;

/// vCPUs that a VM may have.
pub const MAX_VCPUS: usize = 8;

// An index is cut to them by its low bits.
const _: () = assert!(MAX_VMS.is_power_of_two() && MAX_VCPUS.is_power_of_two());

/// Bits of a generation: more than a machine can use up in a lifetime; see [`Generation::next`].
const GENERATION_BITS: u32 = 40;

/// How often a slot was used, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(u64);

impl Generation {
    /// Of a slot that was never used.
    pub const FIRST: Self = Self(1);

    /// The generation of the next VM in this slot; `None` when the numbers are used up and the slot must rest.
    #[must_use]
    pub const fn next(self) -> Option<Self> {
        let next = self.0.saturating_add(1);
        if next >> GENERATION_BITS == 0 { Some(Self(next)) } else { None }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Reads back a number that [`Self::get`] gave.
    pub(crate) const fn from_bits(bits: u64) -> Self {
        Self(bits & ((1 << GENERATION_BITS) - 1))
    }
}

/// The place of a VM among all VMs. Confined when it is made, as is [`VcpuIndex`], and cut where it is used: neither changes
/// anything but what a CPU can reach that speculates past a check, or takes another word of a call's for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot(u8);

impl Slot {
    /// Slot number `index`, if there is one.
    #[must_use]
    pub const fn new(index: usize) -> Option<Self> {
        if index < MAX_VMS { Some(Self(confine(index, MAX_VMS) as u8)) } else { None }
    }

    /// The number.
    #[must_use]
    #[inline(always)]
    pub const fn index(self) -> usize {
        // Once more, for a caller knows no bound of what it called, and would check.
        self.cut() & (MAX_VMS - 1)
    }

    /// Not in line: each look-up of a VM has its cut from here, where the audit of the image finds it by name.
    #[inline(never)]
    const fn cut(self) -> usize {
        self.0 as usize & (MAX_VMS - 1)
    }

    /// The number, as the ledger records it.
    #[must_use]
    pub const fn raw(self) -> u8 {
        self.0
    }
}

/// What the host calls a VM by. Whether such a VM lives is [`crate::vm::Vms`]' to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handle {
    generation: Generation,
    slot: Slot,
}

impl Handle {
    /// The name of the VM of this generation in this slot.
    #[must_use]
    pub const fn new(slot: Slot, generation: Generation) -> Self {
        Self { generation, slot }
    }

    /// Reads a handle out of a register.
    ///
    /// # Errors
    /// `WrongHandle` for a number that no VM was ever named by.
    pub fn decode(word: u64) -> Result<Self, Refused> {
        let generation = word >> 16;
        if generation == 0 || generation >> GENERATION_BITS != 0 {
            return Err(Refused::WrongHandle);
        }
        let slot = usize::try_from(word & 0xffff).ok().and_then(Slot::new).ok_or(Refused::WrongHandle)?;
        Ok(Self { generation: Generation(generation), slot })
    }

    /// The handle as a register holds it.
    #[must_use]
    pub const fn encode(self) -> u64 {
        self.generation.0 << 16 | self.slot.0 as u64
    }

    /// The slot.
    #[must_use]
    pub const fn slot(self) -> Slot {
        self.slot
    }

    /// The generation.
    #[must_use]
    pub const fn generation(self) -> Generation {
        self.generation
    }
}

/// The place of a vCPU in its VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VcpuIndex(u8);

impl VcpuIndex {
    /// The vCPU that runs first, where the host said.
    pub const BOOT: Self = Self(0);

    /// Reads an index out of a register.
    ///
    /// # Errors
    /// `WrongVcpu` for one that no VM can have.
    pub fn decode(word: u64) -> Result<Self, Refused> {
        Self::existing(word, MAX_VCPUS).ok_or(Refused::WrongVcpu)
    }

    /// The vCPU of this number in a VM that has `vcpus`.
    #[must_use]
    pub fn existing(number: u64, vcpus: usize) -> Option<Self> {
        let index = usize::try_from(number).ok()?;
        (index < vcpus.min(MAX_VCPUS)).then_some(Self(confine(index, MAX_VCPUS) as u8))
    }

    /// The number.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize & (MAX_VCPUS - 1)
    }

    /// It alone, in a word with a bit for each.
    #[must_use]
    pub const fn bit(self) -> u64 {
        1_u64.wrapping_shl(self.0 as u32)
    }

    /// `MPIDR_EL1` of the vCPU: Aff0 is its index, bit 31 is RES1.
    #[must_use]
    pub const fn mpidr(self) -> u64 {
        1 << 31 | self.0 as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_survives_its_register() {
        for (slot, generation) in [(0, 1), (63, 1), (5, (1 << 40) - 1)] {
            let handle = Handle::new(Slot::new(slot).unwrap(), Generation(generation));
            assert_ne!(handle.encode(), 0);
            assert_eq!(Handle::decode(handle.encode()), Ok(handle));
        }
    }

    #[test]
    fn a_slot_is_its_number() {
        for number in [0, 1, 2, 63] {
            let slot = Slot::new(number).unwrap();
            assert_eq!((slot.index(), usize::from(slot.raw())), (number, number));
        }
        assert_eq!(Slot::new(64), None);
    }

    #[test]
    fn numbers_that_name_no_vm_are_refused() {
        for word in [0, 1, 63, 0xffff, 1 << 16 | 64, 1 << 16 | 0xffff, 1 << 56, u64::MAX] {
            assert_eq!(Handle::decode(word), Err(Refused::WrongHandle), "{word:#x}");
        }
    }

    #[test]
    fn generations_end_instead_of_repeating() {
        assert_eq!(Generation((1 << 40) - 1).next(), None);
        assert_eq!(Generation::FIRST.next(), Some(Generation(2)));
    }

    #[test]
    fn vcpu_indices_are_bounded() {
        assert_eq!(VcpuIndex::decode(0).map(VcpuIndex::mpidr), Ok(0x8000_0000));
        assert_eq!(VcpuIndex::decode(7).map(VcpuIndex::mpidr), Ok(0x8000_0007));
        for word in [8, 9, 256, 1 << 32, u64::MAX] {
            assert_eq!(VcpuIndex::decode(word), Err(Refused::WrongVcpu));
        }
        for word in 0..8 {
            assert_eq!(VcpuIndex::decode(word).map(VcpuIndex::bit), Ok(1 << word), "each has a bit of its own");
        }
    }
}
