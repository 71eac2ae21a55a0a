// SPDX-License-Identifier: MIT OR Apache-2.0
//! Interrupts of a guest that has a controller: from itself, from its timers, from its host; polled with interrupts
//! masked, and taken as exceptions.

use crate::device::{self, read32 as load};
use crate::held::guest_held;
use crate::hypercall::hvc;
use crate::proto::*;
use crate::rows::{begin, end as row_end, mark};
use crate::sysreg::{counter, read, write};
use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

pub(crate) const GICD: u64 = GICD_GFN << 12;
pub(crate) const GICR: u64 = GICR_GFN << 12;
pub(crate) const SGI_FRAME: u64 = GICR + 0x1_0000;
const VIRTUAL: u64 = 27;
const PHYSICAL: u64 = 30;
/// ISR_EL1.I.
pub(crate) const PENDING: u64 = 1 << 7;

/// 0 while interrupts are not let through; else 1 more than were taken as exceptions.
static TAKEN: AtomicU64 = AtomicU64::new(CLOSED);
const CLOSED: u64 = 0;
const OPEN: u64 = 1;
/// What the last one was, and when.
static LAST: AtomicU64 = AtomicU64::new(0);
static WHEN: AtomicU64 = AtomicU64::new(0);

pub(crate) fn store(address: u64, value: u64) {
    // SAFETY: a register of the interrupt controller, outside RAM.
    unsafe { asm!("str {:w}, [{}]", in(reg) value, in(reg) address, options(nostack)) };
}

pub(crate) fn store_byte(address: u64, value: u64) {
    // SAFETY: as in `store`.
    unsafe { asm!("strb {:w}, [{}]", in(reg) value, in(reg) address, options(nostack)) };
}

const CPU_SUSPEND: u64 = 0xc400_0001;

fn wait() -> bool {
    // SAFETY: WFI changes no register.
    unsafe { asm!("wfi", options(nostack)) };
    true
}

/// PSCI CPU_SUSPEND with a power state of all zero: standby, at this CPU's level.
fn suspend() -> bool {
    hvc(CPU_SUSPEND, [0; 3])[0] == 0
}

pub(crate) fn acknowledge() -> u64 {
    read!("s3_0_c12_c12_0")
}

pub(crate) fn end(interrupt: u64) {
    write!("s3_0_c12_c12_1", interrupt);
}

/// Wakes the redistributor, puts everything in group 1, enables what is used here. There are so many CPUs.
pub(crate) fn set_up(cpus: u64) -> u64 {
    // Nothing of whoever ran on this CPU before: masks, groups, active priorities.
    let fresh = [
        read!("s3_0_c4_c6_0") == 0 && read!("s3_0_c12_c12_7") == 0 && read!("s3_0_c12_c12_6") == 0,
        running() == IDLE,
        read!("s3_0_c12_c9_0") == 0 && read!("s3_0_c12_c8_4") == 0,
    ];
    store(GICD, 2);
    set_up_here(0);
    store(GICD + 0x80 + 4 * (SPI / 32), 1 << (SPI % 32));
    store(GICD + 0x100 + 4 * (SPI / 32), 1 << (SPI % 32));
    let facts = [
        load(GICD + 0xffe8) == 0x3b,
        load(GICR + 0xffe8) == 0x3b,
        load(GICD) == 0x52,
        load(GICR + 0x14) == 0,
        (0..cpus).all(|cpu| (load(GICR + (cpu << 17) + 8) >> 4 & 1 != 0) == (cpu + 1 == cpus)),
        load(GICR + 12) == read!("mpidr_el1") & 0xff_ffff,
        load(SGI_FRAME + 0x100) == 1 << SGI | 1 << VIRTUAL | 1 << PHYSICAL,
        load(GICD + 0x100) == 0,
        read!("id_aa64pfr0_el1") >> 24 & 0xf == 1,
        read!("isr_el1") & PENDING == 0,
        acknowledge() == NO_INTERRUPT,
    ];
    facts.iter().chain(&fresh).enumerate().filter(|(_, holds)| !**holds).fold(0, |all, (n, _)| all | 1 << n)
}

/// What ICC_RPR_EL1 says when nothing is active.
pub(crate) const IDLE: u64 = 0xff;

/// The priority of what this CPU has acknowledged and not ended.
pub(crate) fn running() -> u64 {
    read!("s3_0_c12_c11_3")
}

/// The SGI of group 0 that is held below the others, and its priority.
const BELOW: u64 = SGI + 3;
const LOW: u64 = 0x80;

/// Lets the SGI of group 0 through and leaves it active; whether it came.
fn hold_group0() -> bool {
    store(SGI_FRAME + 0x80, !(1 << BELOW));
    store_byte(SGI_FRAME + 0x400 + BELOW, LOW);
    store(SGI_FRAME + 0x100, 1 << BELOW);
    store(GICD, 3);
    write!("s3_0_c12_c12_6", 1); // ICC_IGRPEN0_EL1
    write!("s3_0_c12_c11_7", BELOW << 24 | 1); // ICC_SGI0R_EL1
    let got = read!("s3_0_c12_c8_0"); // ICC_IAR0_EL1
    got == BELOW && running() == LOW && read!("s3_0_c12_c8_4") != 0
}

/// Ends it, and has no group 0 any more; whether it was what was running.
fn end_group0() -> bool {
    let was = running();
    write!("s3_0_c12_c8_1", BELOW); // ICC_EOIR0_EL1
    write!("s3_0_c12_c12_6", 0);
    store(GICD, 2);
    store(SGI_FRAME + 0x180, 1 << BELOW);
    store_byte(SGI_FRAME + 0x400 + BELOW, 0);
    store(SGI_FRAME + 0x80, u64::MAX);
    was == LOW
}

/// Leaves an SGI of either group active and two pending behind them, or ends all four.
pub(crate) fn hold(holds: bool) -> [u64; 3] {
    const WAITING: [u64; 2] = [SGI + 1, SGI + 2];
    const BITS: u64 = 3 << (SGI + 1);
    if holds {
        let below = hold_group0();
        write!("s3_0_c12_c11_5", SGI << 24 | 1);
        let got = acknowledge();
        store(SGI_FRAME + 0x100, BITS);
        for sgi in WAITING {
            write!("s3_0_c12_c11_5", sgi << 24 | 1);
        }
        let pending = load(SGI_FRAME + 0x200) & BITS == BITS;
        return [u64::from(!below || got != SGI || running() != 0 || !pending), running(), 0];
    }
    let was = running();
    end(SGI);
    let below = end_group0();
    let came = WAITING.map(|_| {
        let got = acknowledge();
        end(got);
        got
    });
    store(SGI_FRAME + 0x180, BITS);
    [u64::from(was != 0 || !below || running() != IDLE || came != WAITING), was, 0]
}

/// The part of it that each CPU does for itself.
pub(crate) fn set_up_here(cpu: u64) {
    let at = cpu << 17;
    write!("s3_0_c12_c12_5", 1); // ICC_SRE_EL1
    store(GICR + at + 0x14, 0);
    store(SGI_FRAME + at + 0x80, u64::MAX);
    store(SGI_FRAME + at + 0x100, 1 << SGI | 1 << VIRTUAL | 1 << PHYSICAL);
    write!("s3_0_c4_c6_0", 0xff); // ICC_PMR_EL1
    write!("s3_0_c12_c12_7", 1); // ICC_IGRPEN1_EL1
}

/// Sends an SGI to a CPU.
pub(crate) fn send_sgi(sgi: u64, cpu: u64) {
    write!("s3_0_c12_c11_5", sgi << 24 | 1 << cpu);
}

/// Sends the SGI to another CPU, with what was stored before.
pub(crate) fn send(cpu: u64) {
    // SAFETY: it only orders.
    unsafe { asm!("dsb ish", options(nostack)) };
    write!("s3_0_c12_c11_5", SGI << 24 | 1 << cpu);
}

/// Waits for the SGI; how many other interrupts came before it.
pub(crate) fn take_sgi() -> u64 {
    let mut others = 0;
    loop {
        let got = poll();
        end(got);
        if got == SGI {
            return others;
        }
        others += 1;
    }
}

/// Sends SGIs to this CPU: each is pending when the write is done.
pub(crate) fn send_to_self(times: u64) -> [u64; 3] {
    let start = counter();
    let mut wrong = 0;
    for _ in 0..times {
        write!("s3_0_c12_c11_5", SGI << 24 | 1);
        let pending = read!("isr_el1") & PENDING != 0;
        let got = acknowledge();
        if got == SGI {
            end(got);
        }
        wrong += u64::from(!pending || got != SGI || acknowledge() != NO_INTERRUPT);
    }
    [wrong, counter() - start, 0]
}

/// One SGI to this CPU, from its sending to its end.
pub(crate) fn one_to_self() -> bool {
    write!("s3_0_c12_c11_5", SGI << 24 | 1);
    let got = acknowledge();
    end(got);
    got == SGI
}

/// Two interrupts wait, masked.
pub(crate) fn pend_two() {
    store(SGI_FRAME + 0x100, 1 << (SGI + 1));
    for sgi in [SGI, SGI + 1] {
        write!("s3_0_c12_c11_5", sgi << 24 | 1);
    }
}

/// And are gone again.
pub(crate) fn take_two() {
    for _ in 0..2 {
        end(acknowledge());
    }
}

/// So many ticks ahead the timer is set: further than its setting takes, and than a wait takes to begin.
const AHEAD: [u64; 2] = [20_000, 300_000];

/// One period of the virtual timer, taken in a loop or waited for; whether it came, and how many ticks late.
pub(crate) fn one_tick(row: u64, waits: bool) -> (bool, u64) {
    let at = counter() + AHEAD[usize::from(waits)];
    mark!(begin(row));
    let (got, now) = if waits {
        arm(false, at);
        while counter() < at {
            wait();
        }
        let now = counter();
        let got = poll();
        disarm(VIRTUAL);
        end(got);
        (got, now)
    } else {
        (take(|| arm(false, at)), WHEN.load(Ordering::SeqCst))
    };
    mark!(row_end(row), now.saturating_sub(at));
    (got == VIRTUAL && now >= at, now.saturating_sub(at))
}

/// The virtual timer without its interrupt.
pub(crate) fn poll_timer(ticks: u64, rounds: u64) -> [u64; 3] {
    let fired = || read!("cntv_ctl_el0") & 4 != 0;
    let at = counter() + ticks;
    arm(false, at);
    while !fired() {
        core::hint::spin_loop();
    }
    let late = counter() - at;
    let not = (0..rounds).filter(|_| !fired()).count() as u64;
    disarm(VIRTUAL);
    [not, late, 0]
}

/// Arms a timer by its comparator.
fn arm(physical: bool, at: u64) {
    if physical {
        write!("cntp_cval_el0", at);
        write!("cntp_ctl_el0", 1);
    } else {
        write!("cntv_cval_el0", at);
        write!("cntv_ctl_el0", 1);
    }
}

fn disarm(interrupt: u64) {
    match interrupt {
        VIRTUAL => write!("cntv_ctl_el0", 0),
        PHYSICAL => write!("cntp_ctl_el0", 0),
        _ => {}
    }
}

/// Counts periods of a timer; never early, once each, and nothing else.
pub(crate) fn ticks(periods: u64, period: u64, how: u64) -> [u64; 3] {
    let physical = how == TICK_PHYSICAL || how == TICK_PHYSICAL_TAKEN;
    let expected = if physical { PHYSICAL } else { VIRTUAL };
    let start = counter();
    let (mut wrong, mut latest) = (0, 0);
    for _ in 0..periods {
        let at = counter() + period;
        let got = if how == TICK_TAKEN || how == TICK_PHYSICAL_TAKEN {
            take(|| arm(physical, at))
        } else {
            arm(physical, at);
            poll_by(if how == TICK_SUSPEND { suspend } else { wait })
        };
        let now = counter();
        disarm(expected);
        if got < NO_INTERRUPT && how != TICK_TAKEN && how != TICK_PHYSICAL_TAKEN {
            end(got);
        }
        wrong += u64::from(got != expected || now < at || acknowledge() != NO_INTERRUPT);
        latest = now.saturating_sub(at).max(latest);
    }
    [wrong, latest, counter() - start]
}

/// Makes an exit of each kind with the canary in every free register: a store, so many ticks of spinning, a wait for the
/// virtual timer, a period later. What was wrong.
pub(crate) fn held(ticks: u64, period: u64) -> u64 {
    let until = counter() + ticks;
    arm(false, until + period);
    // SAFETY: the device is no memory, and the timer is armed.
    unsafe { guest_held(until, DEVICE + REG_SCRATCH) };
    let got = poll();
    disarm(VIRTUAL);
    end(got);
    u64::from(got != VIRTUAL)
}

/// Waits for an interrupt and acknowledges it.
pub(crate) fn poll() -> u64 {
    poll_by(wait)
}

/// The same; each wait says whether it went as it must, else no interrupt is what came.
fn poll_by(wait: fn() -> bool) -> u64 {
    loop {
        if !wait() {
            return NO_INTERRUPT;
        }
        match acknowledge() {
            NO_INTERRUPT => {}
            got => return got,
        }
    }
}

/// Lets interrupts through until one was taken; which.
fn take(cause: impl FnOnce()) -> u64 {
    TAKEN.store(OPEN, Ordering::SeqCst);
    // SAFETY: the vectors are installed, and take interrupts while `TAKEN` is open.
    unsafe { asm!("msr daifclr, #2", options(nostack)) };
    cause();
    while TAKEN.load(Ordering::SeqCst) == OPEN {
        core::hint::spin_loop();
    }
    // SAFETY: masked again, as everything here is written for.
    unsafe { asm!("msr daifset, #2", options(nostack)) };
    let times = TAKEN.swap(CLOSED, Ordering::SeqCst);
    if times == OPEN + 1 { LAST.load(Ordering::SeqCst) } else { NO_INTERRUPT }
}

/// So many ticks behind the host's interrupt the virtual timer fires; 0: it does not.
static BEHIND: AtomicU64 = AtomicU64::new(0);

/// Does something while interrupts are let through, the host's by its edge and the virtual timer's so many ticks behind it;
/// and how many were taken meanwhile.
pub(crate) fn let_through<T>(behind: u64, what: impl FnOnce() -> T) -> (T, u64) {
    make_edge(true);
    BEHIND.store(behind, Ordering::SeqCst);
    TAKEN.store(OPEN, Ordering::SeqCst);
    // SAFETY: the vectors are installed, and take interrupts while `TAKEN` is open.
    unsafe { asm!("msr daifclr, #2", options(nostack)) };
    let done = what();
    // SAFETY: masked again, as everything here is written for.
    unsafe { asm!("msr daifset, #2", options(nostack)) };
    BEHIND.store(0, Ordering::SeqCst);
    disarm(VIRTUAL);
    (done, TAKEN.swap(CLOSED, Ordering::SeqCst) - OPEN)
}

/// How many were so far.
pub(crate) fn let_in() -> u64 {
    TAKEN.load(Ordering::SeqCst).saturating_sub(OPEN)
}

/// Deals with an exception if it is an interrupt that is waited for.
pub(crate) fn taken() -> bool {
    let now = read!("cntvct_el0");
    let times = TAKEN.load(Ordering::SeqCst);
    if times == CLOSED || read!("isr_el1") & PENDING == 0 {
        return false;
    }
    let got = acknowledge();
    disarm(got);
    if got < NO_INTERRUPT {
        end(got);
    }
    let behind = BEHIND.load(Ordering::SeqCst);
    if got == SPI && behind != 0 {
        arm(false, now + behind);
    }
    LAST.store(got, Ordering::SeqCst);
    WHEN.store(now, Ordering::SeqCst);
    TAKEN.store(times + 1, Ordering::SeqCst);
    true
}

/// Has the host's interrupt come to this CPU.
pub(crate) fn route_spi(cpu: u64) {
    store(GICD + 0x6000 + 8 * SPI, cpu);
}

/// Takes the host's interrupt by its edge from here on, or by its level.
pub(crate) fn make_edge(edge: bool) {
    store(GICD + 0xc00 + SPI / 16 * 4, u64::from(edge) << (SPI % 16 * 2 + 1));
}

/// Waits for the host's interrupt. A level stays until the host lets it fall.
pub(crate) fn wait_for_spi() -> [u64; 3] {
    [take_spi(), acknowledge(), 0]
}

/// Waits for two, one behind the other.
pub(crate) fn wait_for_two() -> [u64; 3] {
    [take_spi(), take_spi(), acknowledge()]
}

fn take_spi() -> u64 {
    let got = poll();
    device::write64(REG_SCRATCH, got);
    end(got);
    got
}
