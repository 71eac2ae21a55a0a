// SPDX-License-Identifier: MIT OR Apache-2.0
//! Exits that end a VM, what a VM leaves behind on its CPU, and calls to a firmware that there is not.

use freehold_uapi::{guest, hvc::*};

use super::{Bench, STEP, Stopped, exits};
use crate::hostile::Hostile;
use crate::proto::*;
use crate::sys;

/// Runs the cases that need VMs of their own.
pub(super) fn all(hostile: &Hostile) -> Result<(), String> {
    exits::controls();
    last_exits(hostile)?;
    left_behind(hostile)?;
    addresses(hostile)
}

/// A guest ends with the canary in every register that its way out leaves free.
fn last_exits(hostile: &Hostile) -> Result<(), String> {
    for (name, last, exit) in [
        ("off", LAST_OFF, [EXIT_SYSTEM, 0]),
        ("reset", LAST_RESET, [EXIT_SYSTEM, 1]),
        ("reset 2", LAST_RESET2, [EXIT_SYSTEM, 2]),
        ("a pair stored outside RAM", LAST_STORE, [EXIT_CRASH, CRASH_NO_SYNDROME]),
        ("tables outside RAM", LAST_WALK, [EXIT_CRASH, CRASH_WALK]),
    ] {
        let mut bench = Bench::new(hostile, false)?;
        bench.arguments = [last, 0, 0];
        bench.answer = CMD_LAST;
        let ended = bench.go()?;
        let expected = Stopped::Ended(exit[0], exit[1]);
        STEP.same(&format!("the last exit: {name}"), format!("{expected:?}"), format!("{ended:?}"));
        STEP.same(&format!("the last exit: {name}: parts of the canary shown"), 0, bench.leaked);
        bench.close();
    }
    Ok(())
}

/// A guest leaves every register full; one that lives beside it, and one that comes after it, start on that CPU.
fn left_behind(hostile: &Hostile) -> Result<(), String> {
    sys::pin_to(0);
    let mut full = Bench::new(hostile, true)?;
    full.clean("registers, both timers and FPCR are left full", CMD_FULL, [0; 3])?;
    let beside = Bench::new(hostile, true)?;
    full.command(CMD_NOP, [0; 3])?;
    full.close();
    Bench::new(hostile, true)?.close();
    beside.close();
    Ok(())
}

/// The host may ask where an ordinary VM's last exit was. That is never where a protected one was before it on that CPU.
fn addresses(hostile: &Hostile) -> Result<(), String> {
    const WAITS: u64 = 8;
    sys::pin_to(0);
    let mut protected = Bench::new(hostile, false)?;
    let mut plain = Bench::of_kind(hostile, false, 1, true, 40)?;
    let handle = plain.handle;
    let address = || hostile.raw(VCPU_GET_REG.into(), &[handle, 0, REG_EXIT_FAR])[1];
    (plain.arguments, plain.answer) = ([WAITS, 0, 0], CMD_WFI);
    let (mut own, mut others, mut waits) = (true, 0, 0);
    loop {
        let x = plain.run_once(0)?;
        match (x[0], x[1]) {
            (0, EXIT_MMIO) => {
                own &= address() == x[2];
                if plain.device(x[2], x[3], x[4]) {
                    break;
                }
            }
            (0, EXIT_WFI) => {
                others += u32::from(address() == DEVICE + REG_COMMAND);
                waits += 1;
                // Its last is that it asks for the next command.
                protected.command(CMD_NOP, [0; 3])?;
            }
            (0, EXIT_IRQ) => {}
            _ => return Err(format!("a guest that waits left: {:x?}", &x[..5])),
        }
    }
    STEP.same("tools: an ordinary VM's exit says where it was", true, own);
    STEP.same("no exit says where a protected VM was before it", 0, others);
    STEP.same("waits of the one, each behind a run of the other", WAITS, waits);
    plain.close();
    protected.close();
    Ok(())
}

/// No function of any firmware is reached by SMC: each is NOT_SUPPORTED, and what would have stopped the CPU, the guest or
/// the machine stops nothing.
pub(super) fn firmware(bench: &mut Bench<'_>) -> Result<(), String> {
    let psci = (0..=0x1fu64).flat_map(|n| [0x8400_0000 | n, 0xc400_0000 | n]);
    let others = [
        0x8000_0000u64,
        0x8000_0001,
        0x8000_0002,
        0x8000_3fff,
        0x8000_7fff, // architecture
        0x8400_0050,
        0x8400_0051,
        0x8400_0052,
        0x8400_0053,
        0xc400_0053, // TRNG
        0x8600_ff01,
        0x8600_0000,
        0xc600_0003,
        0xc600_0080,
        0x8300_0000,
        0xc200_0000,
        0xc300_ff01, // vendors
        0x8400_0060,
        0x8400_0084,
        0xc400_0150,
        0xc400_0020, // FF-A, RMI, SDEI
        0xb200_0000,
        0xbf00_ff01,
        0,
        1,
        u64::MAX,
        1 << 32 | 0x8400_0000, // a trusted OS, none
    ];
    let mut random = crate::machine::entropy();
    let random = std::iter::repeat_with(move || {
        random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        random >> 29
    });
    let (mut tried, mut served) = (0, Vec::new());
    for function in psci.chain(others).chain(random.take(64)) {
        let [x0, esr, _] = bench.command(CMD_SMC, [function, 0, 0])?;
        tried += 1;
        if (x0.cast_signed(), esr) != (guest::NOT_SUPPORTED, 0) {
            served.push(format!("{function:x}: {x0:x}, ESR {esr:x}"));
        }
    }
    STEP.same("an SMC reaches no firmware", "[]", format!("{served:?}"));
    STEP.judged("an SMC reaches no firmware: functions tried", "at least 150", tried, tried >= 150);
    Ok(())
}

/// What of the host's vectors was compared, which is all that the CPU has.
pub(super) fn vectors(compared: u32) -> Result<&'static str, String> {
    let all = match sys::part()? {
        // cortex-a72, cortex-a76, neoverse-n1; neoverse-v1.
        0xd08 | 0xd0b | 0xd0c => "V",
        0xd40 => "V, Z, P, FFR",
        _ => "V, Z, P, FFR, ZA",
    };
    let what = match compared {
        1 => "V",
        3 => "V, Z, P, FFR",
        7 => "V, Z, P, FFR, ZA",
        _ => "?",
    };
    STEP.same("all vectors that this CPU has were compared", all, what);
    Ok(what)
}
