// SPDX-License-Identifier: MIT OR Apache-2.0
//! The virtual CPU interface of a guest that has an interrupt controller: list registers, masks and active priorities.
//!
//! Guarantees that nothing of a guest is left in it for the next one, and that it is off outside of guests. What the
//! list registers hold was decided by `freehold_virt::vgic`. Source: Arm IHI 0069, 12.4.

use crate::{barrier, gicr};
use freehold_virt::vgic::{Lists, MAX_LISTS};

/// ICH_HCR_EL2.TDIR: ICC_DIR_EL1 traps.
const TRAP_DEACTIVATE: u64 = 1 << 14;
/// ICH_VTR_EL2.TDS: there is that trap.
const HAS_TRAP: u64 = 1 << 19;

/// What is kept of the interface beside the list registers.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct GuestGic {
    vmcr: u64,
    group0: [u64; 4],
    group1: [u64; 4],
}

macro_rules! numbered {
    ($load:ident, $take:ident, $($n:literal = $register:literal),+ $(,)?) => {
        /// Loads the first registers with these values.
        fn $load(values: &[u64]) {
            $(let Some(value) = values.get($n) else { return };
            write_sysreg!($register, *value);)+
        }

        /// Takes the values of the first registers, and leaves zeros; the bits that are others than before.
        fn $take(values: &mut [u64]) -> u64 {
            let mut others = 0;
            $(let Some(value) = values.get_mut($n) else { return others };
            others |= core::mem::replace(value, read_sysreg!($register)) ^ *value;
            write_sysreg!($register, 0);)+
            others
        }
    };
}

numbered! {
    load_lists, take_lists, 0 = "s3_4_c12_c12_0", 1 = "s3_4_c12_c12_1", 2 = "s3_4_c12_c12_2",
    3 = "s3_4_c12_c12_3",
    4 = "s3_4_c12_c12_4", 5 = "s3_4_c12_c12_5", 6 = "s3_4_c12_c12_6", 7 = "s3_4_c12_c12_7", 8 = "s3_4_c12_c13_0",
    9 = "s3_4_c12_c13_1", 10 = "s3_4_c12_c13_2", 11 = "s3_4_c12_c13_3", 12 = "s3_4_c12_c13_4", 13 = "s3_4_c12_c13_5",
    14 = "s3_4_c12_c13_6", 15 = "s3_4_c12_c13_7",
}
numbered!(load_group0, take_group0, 0 = "s3_4_c12_c8_0", 1 = "s3_4_c12_c8_1", 2 = "s3_4_c12_c8_2", 3 = "s3_4_c12_c8_3",);
numbered!(load_group1, take_group1, 0 = "s3_4_c12_c9_0", 1 = "s3_4_c12_c9_1", 2 = "s3_4_c12_c9_2", 3 = "s3_4_c12_c9_3",);

/// ICH_VTR_EL2.
fn kind() -> u64 {
    read_sysreg!("s3_4_c12_c11_1")
}

/// How many list registers this CPU has. Only with a GICv3.
pub(crate) fn list_registers() -> usize {
    ((kind() & 0x1f) as usize).wrapping_add(1).min(MAX_LISTS)
}

/// How many registers of active priorities each group has: 32 preemption levels in each.
fn priority_registers() -> usize {
    match kind() >> 26 & 7 {
        0..=4 => 1,
        5 => 2,
        _ => 4,
    }
}

impl GuestGic {
    pub(super) const fn new() -> Self {
        Self { vmcr: 0, group0: [0; 4], group1: [0; 4] }
    }

    /// Loads the interface. The interrupt of the virtual timer is kept active if the guest has it, before the timer starts.
    pub(super) fn load(&self, lists: &mut Lists) {
        let (kind, groups) = (kind(), priority_registers());
        if lists.holds_timer() {
            gicr::hold_timer();
        }
        write_sysreg!("s3_4_c12_c11_7", self.vmcr);
        load_group0(self.group0.get(..groups).unwrap_or_default());
        load_group1(self.group1.get(..groups).unwrap_or_default());
        load_lists(lists.entries());
        let trap = if kind & HAS_TRAP != 0 { TRAP_DEACTIVATE } else { 0 };
        write_sysreg!("s3_4_c12_c11_0", lists.control() | trap); // ICH_HCR_EL2
    }

    /// Takes the guest's state out of the interface and switches it off. The virtual timer is stopped already.
    pub(super) fn save(&mut self, lists: &mut Lists) {
        let ends = read_sysreg!("s3_4_c12_c11_0") >> 27 & 0x1f;
        write_sysreg!("s3_4_c12_c11_0", 0);
        barrier::registers_in_effect();
        let is_same = take_lists(lists.entries()) == 0;
        let groups = priority_registers();
        take_group0(self.group0.get_mut(..groups).unwrap_or_default());
        take_group1(self.group1.get_mut(..groups).unwrap_or_default());
        self.vmcr = read_sysreg!("s3_4_c12_c11_7");
        write_sysreg!("s3_4_c12_c11_7", 0);
        lists.note(self.vmcr, ends as u32, is_same);
        if lists.holds_timer() {
            gicr::release_timer();
        }
    }
}
