// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the architecture says of an interrupt controller (IHI 0069), held against the one that this payload finds: order,
//! masks, preemption, ends in two steps, groups, and more interrupts than a CPU interface has list registers.
//!
//! Interrupts stay masked: what is signalled is read from ISR_EL1. It is left as it was found.

use crate::device::{self, read32 as load};
use crate::interrupts::{
    GICD, IDLE, PENDING as IRQ, SGI_FRAME, acknowledge, end, make_edge, poll, route_spi, running, store, store_byte,
};
use crate::proto::*;
use crate::sysreg::{read, write};
use core::hint::spin_loop;

const URGENT: u64 = 8;
const MIDDLE: u64 = 9;
const LATE: u64 = 10;
const THREE: u64 = 1 << URGENT | 1 << MIDDLE | 1 << LATE;
const PRIORITIES: [(u64, u64); 3] = [(URGENT, 0x40), (MIDDLE, 0x80), (LATE, 0xc0)];
/// ISR_EL1.F: an interrupt of group 0.
const FIQ: u64 = 1 << 6;

/// Registers of one bit per interrupt, in the frame of private ones and, 4 bytes on for each 32, in the distributor.
const GROUP: u64 = 0x80;
const ENABLE: u64 = 0x100;
const DISABLE: u64 = 0x180;
const PEND: u64 = 0x200;
const UNPEND: u64 = 0x280;
const ACTIVE: u64 = 0x300;
const PRIORITY: u64 = 0x400;

/// What was looked at, and a bit for each that did not hold.
#[derive(Default)]
struct Facts {
    seen: u64,
    wrong: u64,
}

impl Facts {
    fn holds(&mut self, fact: bool) {
        self.wrong |= u64::from(!fact) << self.seen;
        self.seen += 1;
    }
}

/// Raises an SGI of group 1 for CPU 0, which this is.
fn raise(sgi: u64) {
    write!("s3_0_c12_c11_5", sgi << 24 | 1);
}

fn raise_group0(sgi: u64) {
    write!("s3_0_c12_c11_7", sgi << 24 | 1);
}

fn signalled() -> u64 {
    read!("isr_el1") & (IRQ | FIQ)
}

fn nothing() -> bool {
    signalled() == 0 && acknowledge() == NO_INTERRUPT
}

fn set_mask(priority: u64) {
    write!("s3_0_c4_c6_0", priority);
}

/// Whether this one is signalled and comes, with its priority; it is ended.
fn takes(sgi: u64, priority: u64) -> bool {
    let signalled = signalled() == IRQ;
    let got = acknowledge();
    let held = got == sgi && running() == priority;
    if got < NO_INTERRUPT {
        end(got);
    }
    signalled && held
}

/// Every rule; a bit for each that does not hold, and how many there are.
pub(crate) fn rules() -> [u64; 3] {
    for (sgi, priority) in PRIORITIES {
        store_byte(SGI_FRAME + PRIORITY + sgi, priority);
    }
    store(SGI_FRAME + ENABLE, THREE);
    let mut facts = Facts::default();
    for part in [order, preemption, masks, gates, binary_point, two_steps, groups] {
        part(&mut facts);
        facts.holds(running() == IDLE && nothing());
    }
    store(SGI_FRAME + DISABLE, THREE);
    for (sgi, _) in PRIORITIES {
        store_byte(SGI_FRAME + PRIORITY + sgi, 0);
    }
    [facts.wrong, facts.seen, 0]
}

/// What is most urgent comes first, and alone.
fn order(facts: &mut Facts) {
    [LATE, URGENT, MIDDLE].into_iter().for_each(raise);
    facts.holds(read!("s3_0_c12_c12_2") == URGENT); // ICC_HPPIR1_EL1
    for (sgi, priority) in PRIORITIES {
        let got = acknowledge();
        facts.holds(got == sgi && running() == priority && nothing());
        end(got);
    }
}

/// What is more urgent comes in between, and nothing else does.
fn preemption(facts: &mut Facts) {
    raise(MIDDLE);
    facts.holds(acknowledge() == MIDDLE);
    raise(LATE);
    facts.holds(nothing());
    raise(URGENT);
    facts.holds(takes(URGENT, 0x40));
    facts.holds(running() == 0x80 && nothing());
    end(MIDDLE);
    facts.holds(takes(LATE, 0xc0));
}

/// A priority that is not above the mask waits.
fn masks(facts: &mut Facts) {
    set_mask(0x80);
    raise(MIDDLE);
    facts.holds(nothing());
    facts.holds(load(SGI_FRAME + PEND) & THREE == 1 << MIDDLE);
    raise(URGENT);
    facts.holds(takes(URGENT, 0x40));
    facts.holds(nothing());
    set_mask(0x88);
    facts.holds(signalled() == IRQ);
    set_mask(0xff);
    facts.holds(takes(MIDDLE, 0x80));
}

/// What is not enabled, by itself or with all of its group, waits; what is withdrawn is gone.
fn gates(facts: &mut Facts) {
    raise(MIDDLE);
    for (shut, open) in [((SGI_FRAME + DISABLE, THREE), (SGI_FRAME + ENABLE, THREE)), ((GICD, 0), (GICD, 2))] {
        store(shut.0, shut.1);
        facts.holds(nothing());
        store(open.0, open.1);
        facts.holds(signalled() == IRQ);
    }
    write!("s3_0_c12_c12_7", 0); // ICC_IGRPEN1_EL1
    facts.holds(nothing());
    write!("s3_0_c12_c12_7", 1);
    facts.holds(signalled() == IRQ);
    store(SGI_FRAME + UNPEND, 1 << MIDDLE);
    facts.holds(nothing());
}

/// Within a group of priorities nothing comes in between, but what is more urgent still goes first.
fn binary_point(facts: &mut Facts) {
    write!("s3_0_c12_c12_3", 7); // ICC_BPR1_EL1: only bit 7 counts
    store_byte(SGI_FRAME + PRIORITY + MIDDLE, 0x60);
    raise(MIDDLE);
    facts.holds(acknowledge() == MIDDLE);
    raise(URGENT);
    facts.holds(nothing());
    end(MIDDLE);
    raise(MIDDLE);
    for sgi in [URGENT, MIDDLE] {
        let got = acknowledge();
        facts.holds(got == sgi);
        end(got);
    }
    raise(LATE);
    facts.holds(acknowledge() == LATE);
    raise(URGENT);
    let got = acknowledge();
    facts.holds(got == URGENT);
    end(got);
    end(LATE);
    store_byte(SGI_FRAME + PRIORITY + MIDDLE, 0x80);
    write!("s3_0_c12_c12_3", 0);
}

/// With ICC_CTLR_EL1.EOImode the priority drops first, and the interrupt is over when that is said.
fn two_steps(facts: &mut Facts) {
    let control = read!("s3_0_c12_c12_4");
    let over = |sgi: u64| write!("s3_0_c12_c11_1", sgi); // ICC_DIR_EL1
    write!("s3_0_c12_c12_4", control | 2);
    raise(MIDDLE);
    facts.holds(takes(MIDDLE, 0x80));
    facts.holds(running() == IDLE && load(SGI_FRAME + ACTIVE) == 1 << MIDDLE);
    raise(MIDDLE);
    facts.holds(nothing());
    raise(LATE);
    facts.holds(takes(LATE, 0xc0));
    facts.holds(load(SGI_FRAME + ACTIVE) == 1 << MIDDLE | 1 << LATE);
    over(MIDDLE);
    facts.holds(takes(MIDDLE, 0x80));
    [LATE, MIDDLE].into_iter().for_each(over);
    facts.holds(load(SGI_FRAME + ACTIVE) == 0);
    write!("s3_0_c12_c12_4", control);
}

/// Group 0 has its own signal, registers and gate; an SGI of group 0 raises none of group 1.
fn groups(facts: &mut Facts) {
    store(SGI_FRAME + GROUP, !(1 << MIDDLE));
    store(GICD, 3);
    raise_group0(MIDDLE);
    facts.holds(nothing());
    write!("s3_0_c12_c12_6", 1); // ICC_IGRPEN0_EL1
    facts.holds(signalled() == FIQ && acknowledge() == NO_INTERRUPT);
    facts.holds(read!("s3_0_c12_c8_0") == MIDDLE && running() == 0x80); // ICC_IAR0_EL1
    raise_group0(URGENT);
    facts.holds(nothing());
    raise(URGENT);
    facts.holds(takes(URGENT, 0x40));
    write!("s3_0_c12_c8_1", MIDDLE); // ICC_EOIR0_EL1
    write!("s3_0_c12_c12_6", 0);
    store(GICD, 2);
    store(SGI_FRAME + GROUP, u64::MAX);
}

/// SPIs of the crowd: one bank.
const BANK: u64 = 2;
const SGIS: u64 = 16;
const CROWD: u64 = SGIS + 32;
/// Looks at what is signalled before it is given up.
const LOOKS: u64 = 100_000_000;

/// The INTID of the crowd's nth, and where its priority is.
fn member(n: u64) -> (u64, u64) {
    let (frame, intid) = if n < SGIS { (SGI_FRAME, n) } else { (GICD, BANK * 32 + n - SGIS) };
    (intid, frame + PRIORITY + intid)
}

fn set_crowd(register: u64) {
    store(SGI_FRAME + register, 0xffff);
    store(GICD + register + 4 * BANK, u64::MAX);
}

/// What comes next, without a wait by WFI.
fn next() -> u64 {
    look_for(IRQ);
    acknowledge()
}

fn look_for(signal: u64) {
    for _ in 0..LOOKS {
        if signalled() == signal {
            break;
        }
        spin_loop();
    }
}

/// Many more interrupts than list registers wait, of priorities by `seed`: each comes once, none before a more urgent
/// one, and no wait is needed. The number of those that did not.
pub(crate) fn crowd(seed: u64) -> [u64; 3] {
    let level = |intid: u64| pattern(seed, intid) % 31 * 8;
    let before = load(SGI_FRAME + ENABLE);
    store(GICD + GROUP + 4 * BANK, u64::MAX);
    for n in 0..CROWD {
        let (intid, at) = member(n);
        store_byte(at, level(intid));
    }
    set_crowd(ENABLE);
    set_crowd(PEND);
    let (mut wrong, mut last, mut seen) = (0, 0, [0u64; 2]);
    for _ in 0..CROWD {
        let got = next();
        let now = running();
        end(got);
        wrong += u64::from(now < last || got >= NO_INTERRUPT || now != level(got));
        last = now;
        seen[usize::from(got >= SGIS)] |= 1 << (got % 32);
    }
    wrong += u64::from(seen != [0xffff, 0xffff_ffff] || !nothing());
    wrong += nested() + shut_out();
    set_crowd(DISABLE);
    for n in 0..CROWD {
        store_byte(member(n).1, 0);
    }
    store(SGI_FRAME + ENABLE, before);
    [wrong, CROWD, 0]
}

/// Each SGI interrupts the one before it, until all are active, and they are ended in turn.
fn nested() -> u64 {
    let priority = |sgi: u64| 0xf0 - sgi * 16;
    let mut facts = Facts::default();
    for sgi in 0..SGIS {
        store_byte(SGI_FRAME + PRIORITY + sgi, priority(sgi));
    }
    for sgi in 0..SGIS {
        raise(sgi);
        facts.holds(acknowledge() == sgi && running() == priority(sgi));
    }
    facts.holds(load(SGI_FRAME + ACTIVE) == 0xffff);
    for sgi in (0..SGIS).rev() {
        facts.holds(running() == priority(sgi));
        end(sgi);
    }
    facts.holds(running() == IDLE && load(SGI_FRAME + ACTIVE) == 0 && nothing());
    for sgi in 0..SGIS {
        raise(sgi);
        facts.holds(takes(sgi, priority(sgi)));
    }
    facts.wrong.count_ones().into()
}

/// Of a group that this CPU has switched off more wait than there are list registers, all urgent: they keep nothing of the
/// other group back, and come once it is on.
fn shut_out() -> u64 {
    const LAST: u64 = SGIS - 1;
    let mut facts = Facts::default();
    store(SGI_FRAME + GROUP, 1 << LAST);
    store(GICD, 3);
    for sgi in 0..SGIS {
        store_byte(SGI_FRAME + PRIORITY + sgi, if sgi == LAST { 0x80 } else { 0 });
    }
    (0..LAST).for_each(raise_group0);
    raise(LAST);
    facts.holds(next() == LAST);
    end(LAST);
    facts.holds(nothing());
    write!("s3_0_c12_c12_6", 1); // ICC_IGRPEN0_EL1
    for sgi in 0..LAST {
        look_for(FIQ);
        facts.holds(read!("s3_0_c12_c8_0") == sgi); // ICC_IAR0_EL1
        write!("s3_0_c12_c8_1", sgi); // ICC_EOIR0_EL1
    }
    facts.holds(nothing());
    write!("s3_0_c12_c12_6", 0);
    store(GICD, 2);
    store(SGI_FRAME + GROUP, u64::MAX);
    facts.wrong.count_ones().into()
}

/// The host holds a level: it comes again after each end, `times` times, and no more when it has fallen.
pub(crate) fn level(times: u64) -> [u64; 3] {
    make_edge(false);
    route_spi(0);
    let mut wrong = 0;
    let mut got = poll();
    for _ in 0..times {
        wrong += u64::from(got != SPI);
        end(got);
        got = next();
    }
    device::write64(REG_SCRATCH, got);
    end(got);
    [wrong + u64::from(got != SPI || !nothing()), times, 0]
}
