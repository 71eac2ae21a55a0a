// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command loop: asks the VMM what to do, does it, tells what came of it.

use crate::proto::*;
use crate::sysreg::counter;
use crate::{
    bench, cpus, device, extremes, fp, gic, hidden, hypercall, ids, interrupts, last, memory, mmio, secret, state,
    storm, sweep, trap, undescribed,
};
use core::arch::asm;

/// Serves commands until one ends the VM.
pub(crate) fn serve() -> ! {
    loop {
        let command = device::read64(REG_COMMAND);
        let arguments = [REG_ARG0, REG_ARG1, REG_ARG2].map(device::read64);
        let [first, second, third] = execute(command, arguments);
        device::write64(REG_RESULT1, second);
        device::write64(REG_RESULT2, third);
        device::write64(REG_RESULT0, first);
    }
}

fn execute(command: u64, [a, b, c]: [u64; 3]) -> [u64; 3] {
    match command {
        CMD_NOP => [0; 3],
        CMD_HASH if a == 0 => [memory::constant_hash(), 0, 0],
        CMD_HASH => [memory::hash(a, b), 0, 0],
        CMD_SHARE => timed(|| hypercall::share(a, b)),
        CMD_UNSHARE => timed(|| hypercall::unshare(a, b)),
        CMD_RELINQUISH => timed(|| hypercall::relinquish(a)),
        CMD_CANARY => [canary(a), 0, 0],
        CMD_FP => [fp::survives(a), 0, 0],
        CMD_HIDDEN => {
            let (failed, first, tried) = hidden::try_all();
            [failed, first, tried]
        }
        CMD_DEBUG => {
            let (failed, first, tried) = hidden::try_debug();
            [failed, first, tried]
        }
        CMD_WFI => wait(a.max(1)),
        CMD_SPIN => [spin(a), 0, 0],
        CMD_FILL => {
            memory::fill(a, b, c);
            [0; 3]
        }
        CMD_CHECK => {
            let (wrong, first) = memory::count(a, b, |at, word| word != pattern(c, at));
            [wrong, first, 0]
        }
        CMD_ZERO => {
            let (wrong, first) = memory::count(a, b, |_, word| word != 0);
            [wrong, first, 0]
        }
        CMD_LOAD => {
            let (value, esr) = trap::catching(|| load(a));
            [value, esr, 0]
        }
        CMD_STORE => {
            let ((), esr) = trap::catching(|| memory::store_of(a, b, c));
            [0, esr, 0]
        }
        CMD_GREET => {
            memory::write_text(a, GREETING);
            [0; 3]
        }
        CMD_HVC => hypercall::hvc(a, [b, c, 0]),
        CMD_SMC => {
            let (x0, esr) = trap::catching(|| smc(a));
            [x0, esr, 0]
        }
        CMD_ID => [ids::check(), 0, 0],
        CMD_SECRET => {
            let secret = secret::get();
            [secret[0] ^ SECRET_MASK[0], secret[1] ^ SECRET_MASK[1], secret::damage()]
        }
        CMD_STATE => [state::survives(a), 0, 0],
        CMD_MMIO => [mmio::check(), 0, 0],
        CMD_OFF => hypercall::system_off(),
        CMD_RESET => hypercall::system_reset(),
        CMD_LOAD_PAIR => {
            let (value, esr) = trap::catching(|| load_pair(a));
            [value, esr, 0]
        }
        CMD_JUMP => {
            let ((), esr) = trap::catching(|| jump(a));
            [0, esr, 0]
        }
        CMD_GIC => [interrupts::set_up(a.max(1)), 0, 0],
        CMD_IPI => interrupts::send_to_self(a),
        CMD_TICKS => interrupts::ticks(a, b, c),
        CMD_SPI => {
            interrupts::make_edge(a != 0);
            if b == 0 { interrupts::wait_for_spi() } else { interrupts::wait_for_two() }
        }
        CMD_POLL_TIMER => interrupts::poll_timer(a, b),
        CMD_RULES => gic::rules(),
        CMD_CROWD => gic::crowd(a),
        CMD_LEVEL => gic::level(a),
        CMD_SWEEP => sweep::all(),
        CMD_UNDESCRIBED => undescribed::all(),
        CMD_UNMASKED => {
            let count = || memory::count(a, b, |at, word| word != pattern(c, at));
            let ((wrong, _), esr) = trap::catching(|| unmasked(count));
            [wrong, esr, 0]
        }
        CMD_HOLD => interrupts::hold(a != 0),
        CMD_CPU_ON => cpus::start(a),
        CMD_CPU => cpus::give(a, b, [c, PERIOD]),
        CMD_CPU_PING => cpus::ping(a, b),
        CMD_QUARREL => cpus::quarrel(a, b, c),
        CMD_FULL => {
            let seed = counter() | 1;
            let is_full = state::leave_full(seed);
            fp::leave_full(seed);
            [u64::from(!is_full), 0, 0]
        }
        CMD_LAST if a >= LAST_LEVEL => storm::begin(a),
        CMD_LAST => last::act(a),
        CMD_TIMERS => extremes::all(),
        CMD_FLOOD => cpus::flood(a, b),
        CMD_WAITING => cpus::waiting(a, b, c, PERIOD),
        CMD_ALL => cpus::all(a, b, [c, PERIOD]),
        CMD_BENCH => bench::run(a, b, c),
        CMD_TOGETHER => cpus::together(a, b, c),
        CMD_ATTEST => {
            let answer = hypercall::attest(nonce(a));
            [0, 1, 2].map(|n| answer.get((b + n) as usize).copied().unwrap_or(0))
        }
        _ => [UNKNOWN_COMMAND, 0, 0],
    }
}

/// 1 ms at 62.5 MHz.
const PERIOD: u64 = 62_500;

fn timed(call: impl FnOnce() -> [u64; 3]) -> [u64; 3] {
    let start = counter();
    let [x0, x1, _] = call();
    [x0, x1, counter() - start]
}

fn wait(times: u64) -> [u64; 3] {
    for _ in 0..times {
        // SAFETY: WFI changes no register.
        unsafe { asm!("wfi", options(nostack)) };
    }
    [0; 3]
}

fn spin(ticks: u64) -> u64 {
    let start = counter();
    let mut loops = 0;
    while counter() - start < ticks {
        loops += 1;
    }
    loops
}

/// Does something while this CPU would take debug exceptions.
fn unmasked<T>(what: impl FnOnce() -> T) -> T {
    // SAFETY: the vectors are installed; nothing but debug exceptions is let through.
    unsafe { asm!("msr daifclr, #8", options(nostack)) };
    let done = what();
    // SAFETY: masked again, as everything here is written for.
    unsafe { asm!("msr daifset, #8", options(nostack)) };
    done
}

/// A load whose target stays zero when it faults.
fn load(address: u64) -> u64 {
    let value: u64;
    // SAFETY: a load of an address that the command chose; a fault is caught.
    unsafe { asm!("ldr x0, [x1]", inout("x0") 0u64 => value, in("x1") address, options(nostack)) };
    value
}

fn load_pair(address: u64) -> u64 {
    let value: u64;
    // SAFETY: as in `load`.
    unsafe { asm!("ldp x0, x2, [x1]", inout("x0") 0u64 => value, out("x2") _, in("x1") address, options(nostack)) };
    value
}

fn smc(function: u64) -> u64 {
    let value: u64;
    // SAFETY: SMCCC: a call may change x0-x17. The trap handler steps over it if it is UNDEFINED.
    unsafe {
        asm!(
            ".inst 0xd4000003",
            inout("x0") function => value,
            out("x1") _, out("x2") _, out("x3") _, out("x4") _, out("x5") _, out("x6") _, out("x7") _,
            out("x8") _, out("x9") _, out("x10") _, out("x11") _, out("x12") _, out("x13") _,
            out("x14") _, out("x15") _, out("x16") _, out("x17") _,
            options(nostack),
        );
    }
    value
}

fn jump(address: u64) {
    // SAFETY: the fault at the target is caught and returns behind the branch; all that a callee may
    // change is declared.
    unsafe { asm!("blr {}", in(reg) address, clobber_abi("C")) };
}

/// Stores the canary in every access size, each to a page of its own from `base` on, and reads it
/// back. Returns the number of pages on which it is not what was stored.
fn canary(base: u64) -> u64 {
    let page = |n: u64| base + n * GRANULE;
    macro_rules! put {
        ($text:literal, $n:literal) => {
            // SAFETY: a store to RAM that the command chose and that holds no Rust object.
            unsafe { asm!($text, in("x0") CANARY, in("x1") page($n), options(nostack)) }
        };
    }
    put!("strb w0, [x1]", 0);
    put!("strh w0, [x1]", 1);
    put!("str w0, [x1]", 2);
    put!("str x0, [x1]", 3);
    put!("stp x0, x0, [x1]", 4);
    put!("str x0, [x1], #8", 5);
    let expected = [CANARY & 0xff, CANARY & 0xffff, CANARY & 0xffff_ffff, CANARY, CANARY, CANARY];
    let wrong = (0..).zip(expected).filter(|(n, word)| memory::load(page(*n)) != *word).count();
    wrong as u64 + u64::from(memory::load(page(4) + 8) != CANARY)
}
