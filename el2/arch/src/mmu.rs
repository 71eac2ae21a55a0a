// SPDX-License-Identifier: MIT OR Apache-2.0
//! EL2's own stage 1: an identity map, writable or executable but never both.
//!
//! Guarantees: image text is RX, constants are R, everything else RW-XN; below each stack there is a
//! page that nothing maps. Entries only ever go from invalid to valid, so that the tables may be
//! extended while they are in use. Does not know who owns the memory that it maps.

use crate::features::Ids;
use crate::sysreg::field;
use crate::{barrier, cache, image, percpu, uart};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// How a range is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Code.
    Execute,
    /// Constants.
    Read,
    /// Memory that EL2 reads and writes.
    ReadWrite,
    /// Device registers.
    Device,
}

/// The map cannot take another range: its fixed store of tables is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfTables;

const ENTRIES: usize = 512;
/// Enough for 16 unaligned banks, the image, and the device pages.
const TABLES: usize = 96;
const PAGE: usize = 4096;
/// Bytes of a DTB's header, and of the largest DTB.
const DTB_HEADER: usize = 40;
const DTB_LIMIT: usize = 2 << 20;

const VALID: u64 = 1;
const TABLE_OR_PAGE: u64 = 1 << 1;
const ATTR_DEVICE: u64 = 0 << 2;
const ATTR_NORMAL: u64 = 1 << 2;
const AP_EL2_RES1: u64 = 1 << 6;
const AP_READ_ONLY: u64 = 1 << 7;
const INNER_SHAREABLE: u64 = 3 << 8;
const ACCESSED: u64 = 1 << 10;
const EXECUTE_NEVER: u64 = 1 << 54;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;

/// Attribute 0: Device-nGnRE. Attribute 1: Normal, write-back, allocating.
const MAIR: u64 = 0xff04;
/// RES1 bits of SCTLR_EL2 with E2H=0 (EIS and EOS among them).
const SCTLR_RES1: u64 = 0x30c5_0830;
const SCTLR_M: u64 = 1 << 0;
const SCTLR_C: u64 = 1 << 2;
const SCTLR_SA: u64 = 1 << 3;
const SCTLR_I: u64 = 1 << 12;
const SCTLR_WXN: u64 = 1 << 19;
const SCTLR_IESB: u64 = 1 << 21;
const SCTLR_ENTP2: u64 = 1 << 60;

#[repr(C, align(4096))]
struct Table([AtomicU64; ENTRIES]);

static STORE: [Table; TABLES] = [const { Table([const { AtomicU64::new(0) }; ENTRIES]) }; TABLES];
static USED: AtomicUsize = AtomicUsize::new(0);

/// What every CPU loads before it switches its MMU on. Read by the entry code with caches off.
#[repr(C)]
pub(crate) struct Registers {
    mair: u64,
    tcr: u64,
    ttbr: u64,
    sctlr: u64,
}

/// The one instance; written by the boot CPU before any other runs, then cleaned to memory.
#[repr(transparent)]
struct BootRegisters(UnsafeCell<Registers>);

// SAFETY: written once by the boot CPU while it is alone; read-only afterwards.
unsafe impl Sync for BootRegisters {}

#[unsafe(no_mangle)]
static FREEHOLD_MMU_REGISTERS: BootRegisters =
    BootRegisters(UnsafeCell::new(Registers { mair: 0, tcr: 0, ttbr: 0, sctlr: 0 }));

/// Builds the first map, of the image and of what the boot needs at once. The MMU is off.
///
/// Called by the entry code on the boot CPU, with the address of the DTB.
#[unsafe(no_mangle)]
extern "C" fn freehold_early(dtb: usize) {
    percpu::assign_stacks();
    let cpu = &percpu::all()[0];
    cpu.mpidr.store(percpu::hardware_mpidr(), Ordering::Relaxed);
    USED.store(1, Ordering::Relaxed);
    // The store holds far more tables than this takes; were it not so, the first fetch would fault.
    let _ = map_image().and_then(|()| map_early_windows(dtb));
    write_registers();
}

fn map_image() -> Result<(), OutOfTables> {
    map(image::start(), image::text_end(), Kind::Execute)?;
    map(image::text_end(), image::rodata_end(), Kind::Read)?;
    map(image::rodata_end(), image::stacks_start(), Kind::ReadWrite)?;
    for cpu in percpu::all() {
        let stack = cpu.stack_top.load(Ordering::Relaxed);
        map(stack - percpu::STACK_SIZE, stack, Kind::ReadWrite)?;
        let emergency = cpu.emergency_top.load(Ordering::Relaxed);
        map(emergency - percpu::EMERGENCY_SIZE, emergency, Kind::ReadWrite)?;
    }
    map(image::boot_stack_start(), image::end(), Kind::ReadWrite)
}

fn map_early_windows(dtb: usize) -> Result<(), OutOfTables> {
    if uart::EARLY_BASE != 0 {
        map(uart::EARLY_BASE, uart::EARLY_BASE + PAGE, Kind::Device)?;
    }
    if is_plausible_dtb(dtb) { map(dtb, dtb + DTB_HEADER, Kind::ReadWrite) } else { Ok(()) }
}

/// Whether an address can be a DTB's by the boot protocol. Only then its header is mapped; the boot
/// maps the rest once it has read there how long it is.
pub fn is_plausible_dtb(address: usize) -> bool {
    let limit = 1 << Ids.physical_bits();
    address != 0 && address.is_multiple_of(8) && address < limit - DTB_LIMIT
}

fn write_registers() {
    let range = field(read_sysreg!("id_aa64mmfr0_el1"), 0, 4).min(5);
    // RES1 bits 31 and 23; 4 KB granule; inner shareable, write-back walks; 48-bit addresses.
    let tcr = 1 << 31 | 1 << 23 | range << 16 | 3 << 12 | 1 << 10 | 1 << 8 | 16;
    let mut sctlr = SCTLR_RES1 | SCTLR_M | SCTLR_C | SCTLR_SA | SCTLR_I | SCTLR_WXN;
    if field(read_sysreg!("id_aa64pfr0_el1"), 28, 4) != 0 {
        sctlr |= SCTLR_IESB;
    }
    if field(read_sysreg!("id_aa64pfr1_el1"), 24, 4) != 0 {
        sctlr |= SCTLR_ENTP2;
    }
    let registers = Registers { mair: MAIR, tcr, ttbr: STORE[0].0.as_ptr() as u64, sctlr };
    // SAFETY: the boot CPU is alone; nobody else refers to the registers yet.
    unsafe { FREEHOLD_MMU_REGISTERS.0.get().write_volatile(registers) };
}

/// Makes what this CPU wrote before its caches were on, or what a CPU with its caches off will read,
/// visible in memory.
pub fn publish_boot_state() {
    cache::clean_invalidate_to_poc(image::rodata_end(), image::stacks_start() - image::rodata_end());
}

/// Maps `[start, end)` to itself. Bytes that are mapped already keep their mapping.
///
/// Only the boot CPU calls this, before any other CPU runs.
///
/// # Errors
/// `OutOfTables`: the ranges so far are too scattered.
pub fn map(start: usize, end: usize, kind: Kind) -> Result<(), OutOfTables> {
    let mut at = start & !(PAGE - 1);
    while at < end {
        at = map_one(at, end, kind)?;
    }
    barrier::stores_visible();
    barrier::registers_in_effect();
    Ok(())
}

/// Maps the largest unit at `at` and returns where it ends.
fn map_one(at: usize, end: usize, kind: Kind) -> Result<usize, OutOfTables> {
    let mut table = 0;
    for level in 0..4 {
        let shift = 39 - 9 * level;
        let size = 1usize << shift;
        let next = (at & !(size - 1)).saturating_add(size);
        let entry = &STORE[table].0[(at >> shift) & (ENTRIES - 1)];
        let value = entry.load(Ordering::Relaxed);
        let is_table = level < 3 && value & TABLE_OR_PAGE != 0;
        if value & VALID != 0 && !is_table {
            return Ok(next);
        }
        if value & VALID == 0 {
            let whole = at & (size - 1) == 0 && next <= end;
            if level == 3 || (level > 0 && whole) {
                let page_bit = if level == 3 { TABLE_OR_PAGE } else { 0 };
                entry.store(at as u64 | attributes(kind) | page_bit | VALID, Ordering::Relaxed);
                return Ok(next);
            }
        }
        table = if is_table { index_of(value) } else { attach(entry)? };
    }
    Ok(end)
}

/// Takes an empty table and hangs it into `entry`.
fn attach(entry: &AtomicU64) -> Result<usize, OutOfTables> {
    let index = USED.load(Ordering::Relaxed);
    let table = STORE.get(index).ok_or(OutOfTables)?;
    USED.store(index + 1, Ordering::Relaxed);
    // The new table is empty in memory before a walker can come to it.
    barrier::stores_visible();
    entry.store(table.0.as_ptr() as u64 | TABLE_OR_PAGE | VALID, Ordering::Relaxed);
    Ok(index)
}

fn index_of(descriptor: u64) -> usize {
    ((descriptor & ADDRESS) as usize - STORE.as_ptr() as usize) / PAGE
}

fn attributes(kind: Kind) -> u64 {
    let normal = ATTR_NORMAL | INNER_SHAREABLE;
    let common = ACCESSED | AP_EL2_RES1;
    common
        | match kind {
            Kind::Execute => normal | AP_READ_ONLY,
            Kind::Read => normal | AP_READ_ONLY | EXECUTE_NEVER,
            Kind::ReadWrite => normal | EXECUTE_NEVER,
            Kind::Device => ATTR_DEVICE | EXECUTE_NEVER,
        }
}

/// Offsets into `Registers`, for the entry code.
pub(crate) mod offsets {
    use super::Registers;
    use core::mem::offset_of;

    pub(crate) const MAIR: usize = offset_of!(Registers, mair);
    pub(crate) const TCR: usize = offset_of!(Registers, tcr);
    pub(crate) const TTBR: usize = offset_of!(Registers, ttbr);
    pub(crate) const SCTLR: usize = offset_of!(Registers, sctlr);
}
