// SPDX-License-Identifier: MIT OR Apache-2.0
//! The controller's frames, reached for by what no controller takes: pairs, write-back, exclusives, vectors, zeroing,
//! fetches and walks. A machine answers with an external abort, and so must who plays the machine: taken at EL1 where it
//! happened, with its address, and with nothing changed. The same from EL0.

use crate::device::read32 as load;
use crate::interrupts::{GICD, GICR, SGI_FRAME};
use crate::mmu::{EXECUTABLE, OF_EL0, UNALIGNED, WALKS, for_el0};
use crate::sysreg::{field, read};
use crate::trap;
use core::arch::{asm, global_asm};

/// Classes of ESR_EL1: a fetch, a data access. The bit says that EL1 itself did it.
const FETCH: u64 = 0x20;
const DATA: u64 = 0x24;
const EL1: u64 = 1;
const STORE: u64 = 1 << 6;
/// IL; fault status of an external abort.
const EXTERNAL: u64 = 1 << 25 | 0x10;

/// In the registers that an access has, but the address.
const MARK: u64 = 0x5eed_0f0f_1234_5678;

/// How to reach: whether it stores, and what does it; that says whether no register changed.
type Way = (u64, fn(u64) -> bool);

macro_rules! way {
    ($($text:literal),+) => {
        |at: u64| {
            let (x0, x1, x2): (u64, u64, u64);
            // SAFETY: registers of the interrupt controller, outside RAM. Were the access made, nothing but the named
            // registers and v0 would change, which the compiler does not use.
            unsafe {
                asm!(
                    ".arch_extension fp", ".arch_extension simd", $($text,)+ ".arch_extension nosimd",
                    ".arch_extension nofp",
                    inout("x0") MARK => x0, inout("x1") at => x1, inout("x2") !MARK => x2, options(nostack)
                );
            };
            [x0, x1, x2] == [MARK, at, !MARK]
        }
    };
}

const WAYS: [Way; 11] = [
    (0, way!("ldp x0, x2, [x1]")),
    (STORE, way!("stp x0, x2, [x1]")),
    (0, way!("ldr w0, [x1], #4")),
    (STORE, way!("str w0, [x1], #-4")),
    (0, way!("ldxr w0, [x1]")),
    (0, way!("ldxp w0, w2, [x1]")),
    (0, way!("ldr q0, [x1]")),
    (STORE, way!("str s0, [x1]")),
    (0, way!("ld1 {{v0.4s}}, [x1]")),
    (STORE, way!("st1 {{v0.4s}}, [x1]")),
    (STORE, way!("dc zva, x1")),
];

/// For a CPU that has it; whether it stores is for the CPU to say.
const ATOMIC: Way = (STORE, way!(".arch_extension lse", "ldadd w0, w2, [x1]", ".arch_extension nolse"));

/// What was tried, and what went wrong.
#[derive(Default)]
struct Tally {
    wrong: u64,
    first: u64,
    tried: u64,
}

impl Tally {
    fn note(&mut self, holds: bool) {
        if !holds {
            self.first = if self.wrong == 0 { self.tried } else { self.first };
            self.wrong += 1;
        }
        self.tried += 1;
    }
}

/// Tries all ways on a register of each frame.
pub(crate) fn all() -> [u64; 3] {
    let mut tally = Tally::default();
    // ISENABLER2, TYPER, ISENABLER0: to be seen unchanged.
    let places = [GICD + 0x108, GICR + 8, SGI_FRAME + 0x100];
    let before = places.map(load);
    for at in places {
        for way in WAYS {
            tally.note(reached(way, UNALIGNED + at, !0));
        }
        if field(read!("id_aa64isar0_el1"), 20) >= 2 {
            tally.note(reached(ATOMIC, UNALIGNED + at, !STORE));
        }
        tally.note(jumped(EXECUTABLE + at));
    }
    WALKS.into_iter().for_each(|at| tally.note(reached(WAYS[0], at, !0)));
    for (at, stub, class) in places.map(|at| (OF_EL0 + at, stub(PAIR), DATA)).into_iter().chain([
        (EXECUTABLE + GICD, stub(JUMP), FETCH),
        (EXECUTABLE + GICR, stub(JUMP), FETCH),
        (WALKS[0], stub(PAIR), DATA),
        (WALKS[1], stub(PAIR), DATA),
    ]) {
        tally.note(reached_by_el0(at, stub, class));
    }
    tally.note(places.map(load) == before && load(GICD + 0xffe8) == 0x3b);
    [tally.wrong, tally.first, tally.tried]
}

fn reached((stores, way): Way, at: u64, known: u64) -> bool {
    let (unchanged, esr) = trap::catching(|| way(at));
    let [_, far] = trap::seen_at();
    unchanged && esr & known == ((DATA | EL1) << 26 | EXTERNAL | stores) & known && far == at
}

fn jumped(at: u64) -> bool {
    let jump = || {
        // SAFETY: the fetch faults, and comes back here.
        unsafe { asm!("blr {}", in(reg) at, out("x30") _, options(nostack)) };
    };
    let ((), esr) = trap::catching(jump);
    esr == (FETCH | EL1) << 26 | EXTERNAL && trap::seen_at() == [at; 2]
}

const PAIR: usize = 0;
const JUMP: usize = 1;

/// Where EL0 finds one of its two programs.
fn stub(which: usize) -> u64 {
    for_el0([&raw const guest_el0_pair, &raw const guest_el0_jump][which] as u64)
}

fn reached_by_el0(at: u64, stub: u64, class: u64) -> bool {
    let (loaded, esr) = trap::catching(|| {
        let (x0, x1): (u64, u64);
        // SAFETY: what EL0 executes changes no other register, and whatever becomes of it comes back here.
        unsafe {
            asm!(
                "msr elr_el1, {stub}", "msr spsr_el1, {el0}", "adr x30, 2f", "eret", "2:",
                stub = in(reg) stub, el0 = in(reg) 0x3c0u64,
                inout("x0") MARK => x0, inout("x1") !MARK => x1, in("x2") at, out("x30") _, options(nostack)
            );
        };
        [x0, x1]
    });
    let elr = if class == FETCH { at } else { stub };
    loaded == [MARK, !MARK] && esr == class << 26 | EXTERNAL && trap::seen_at() == [elr, at]
}

unsafe extern "C" {
    static guest_el0_pair: u8;
    static guest_el0_jump: u8;
}

global_asm!(
    ".pushsection .text.guest_el0, \"ax\"",
    ".balign 4",
    ".global guest_el0_pair",
    ".global guest_el0_jump",
    // x2: where. Behind a load that was made nothing is left to do.
    "guest_el0_pair:",
    "    ldp     x0, x1, [x2]",
    "    svc     #0",
    "guest_el0_jump:",
    "    br      x2",
    ".popsection",
);
