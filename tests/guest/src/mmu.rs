// SPDX-License-Identifier: MIT OR Apache-2.0
//! The payload's own stage 1: identity, 39 bits, text read-only and executable, nothing else so.

use crate::proto::{DEVICE, GICD_GFN, GICR_GFN, GRANULE, RAM_BASE, VOLATILE_BASE};
use crate::sysreg::{field, read, write};
use core::sync::atomic::{AtomicU64, Ordering};

const TABLE: u64 = 0b11;
const BLOCK: u64 = 0b01;
const PAGE: u64 = 0b11;
const ACCESSED: u64 = 1 << 10;
const INNER_SHAREABLE: u64 = 3 << 8;
const READ_ONLY: u64 = 1 << 7;
const NEVER_EXECUTE: u64 = 0b11 << 53;
const NOT_EL0_EXECUTE: u64 = 1 << 54;
const NORMAL: u64 = ACCESSED | INNER_SHAREABLE;
const DEVICE_MEMORY: u64 = 1 << 2 | ACCESSED | NEVER_EXECUTE;

/// Attribute 0: normal write-back; attribute 1: device nGnRnE.
const MAIR: u64 = 0xff;
/// T0SZ 25, write-back walks, inner shareable, no TTBR1 walks.
const TCR: u64 = 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23;
/// `IPS`: addresses are as wide as `PARange` says, as Linux has it; 48 bits at most.
const WIDEST: u64 = 5;
/// M, C, I.
const SCTLR_ON: u64 = 1 | 1 << 2 | 1 << 12;

const GIGABYTE: u64 = 1 << 30;
/// Where the first gigabyte, in which devices are, is seen as memory too, so that no alignment is asked for.
pub(crate) const UNALIGNED: u64 = 64 * GIGABYTE;
/// Where it is seen as a program of any level, and as memory of EL0's.
pub(crate) const EXECUTABLE: u64 = 65 * GIGABYTE;
pub(crate) const OF_EL0: u64 = 66 * GIGABYTE;
/// Where RAM is seen as a program of any level.
pub(crate) const PROGRAM: u64 = 67 * GIGABYTE;
/// Of which the tables are in the distributor, and in the first redistributor.
pub(crate) const WALKS: [u64; 2] = [68 * GIGABYTE, 69 * GIGABYTE];
const BLOCK_SIZE: u64 = 2 << 20;
const EL0: u64 = 1 << 6;

#[repr(C, align(4096))]
struct Table([AtomicU64; 512]);

impl Table {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; 512])
    }

    fn fill(&self, entry: impl Fn(u64) -> u64) {
        self.0.iter().zip(0..).for_each(|(slot, n)| slot.store(entry(n), Ordering::Relaxed));
    }

    fn address(&self) -> u64 {
        self as *const Self as u64
    }
}

static LEVEL1: Table = Table::new();
static LEVEL2: Table = Table::new();
static LEVEL3: Table = Table::new();

unsafe extern "C" {
    static guest_text_end: u8;
}

/// Builds the tables and turns translation and caches on.
pub(crate) fn enable() {
    let text_end = &raw const guest_text_end as u64;
    let ram = RAM_BASE / GIGABYTE;
    const { assert!(DEVICE < GIGABYTE, "the device must not share a level 1 entry with RAM") };
    LEVEL1.fill(|n| match n * GIGABYTE {
        _ if n == ram => LEVEL2.address() | TABLE,
        UNALIGNED => NORMAL | NEVER_EXECUTE | BLOCK,
        EXECUTABLE => NORMAL | READ_ONLY | BLOCK,
        OF_EL0 => NORMAL | EL0 | NEVER_EXECUTE | BLOCK,
        PROGRAM => (ram * GIGABYTE) | NORMAL | READ_ONLY | EL0 | BLOCK,
        at if at == WALKS[0] => GICD_GFN << 12 | TABLE,
        at if at == WALKS[1] => GICR_GFN << 12 | TABLE,
        address => address | DEVICE_MEMORY | BLOCK,
    });
    LEVEL2.fill(|n| match n {
        0 => LEVEL3.address() | TABLE,
        _ => (RAM_BASE + n * BLOCK_SIZE) | NORMAL | NEVER_EXECUTE | BLOCK,
    });
    LEVEL3.fill(|n| {
        let address = RAM_BASE + n * GRANULE;
        let rights = match address {
            _ if address < text_end => READ_ONLY | NOT_EL0_EXECUTE,
            _ if address < VOLATILE_BASE => READ_ONLY | NEVER_EXECUTE,
            _ => NEVER_EXECUTE,
        };
        address | NORMAL | rights | PAGE
    });
    join();
}

/// Turns translation and caches on, by tables that are there.
pub(crate) fn join() {
    write!("mair_el1", MAIR);
    write!("tcr_el1", TCR | field(read!("id_aa64mmfr0_el1"), 0).min(WIDEST) << 32);
    write!("ttbr0_el1", LEVEL1.address());
    // SAFETY: the tables are complete; before the MMU is on no translation is in use.
    unsafe { core::arch::asm!("dsb sy", "tlbi vmalle1", "ic iallu", "dsb sy", "isb", options(nostack)) };
    write!("sctlr_el1", read!("sctlr_el1") | SCTLR_ON);
}

/// Where EL0 may execute what is at this address of the program.
pub(crate) const fn for_el0(address: u64) -> u64 {
    PROGRAM + address % GIGABYTE
}

/// Whether translation and both caches are on.
pub(crate) fn is_on() -> bool {
    read!("sctlr_el1") & SCTLR_ON == SCTLR_ON
}
