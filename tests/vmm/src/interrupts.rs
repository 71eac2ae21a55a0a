// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest with an interrupt controller, past the driver: what EL2 serves itself, and what the host is asked for.

use std::sync::atomic::Ordering;

use freehold_uapi::hvc::*;

use crate::hostile::Hostile;
use crate::proto::*;
use crate::raw::status_name;
use crate::switch::{Bench, STEP};
use crate::sys;

/// Periods of a timer.
const PERIODS: u64 = 20;
/// Most rounds until one of them was not disturbed: the machine may be loaded.
const ROUNDS: usize = 20;
/// Times that list registers are filled again until as many interrupts as [`CMD_CROWD`] has came through four of them.
const REFILLS: usize = 11;
/// Ends of a level that is held.
const ENDS: usize = 5;
/// Ticks of each: 1 ms at 62.5 MHz.
const PERIOD: u64 = 62_500;

/// Runs the cases on one VM.
pub(crate) fn all(hostile: &Hostile) -> Result<(), String> {
    let mut bench = Bench::new(hostile, true)?;
    let late = hostile.call(VM_GIC, &[bench.handle, GICD_GFN, GICR_GFN]);
    STEP.same("a VM that runs gets no other controller", "WRONG_STATE", status_name(late));
    for forged in [SGI, 27, 30] {
        let status = hostile.call(VM_IRQ, &[bench.handle, forged, 1]);
        STEP.same(&format!("the host forges no interrupt {forged}"), "BAD_ARGUMENT", status_name(status));
    }
    bench.clean("the controller is what it says", CMD_GIC, [0; 3])?;
    let mmio = exits(&bench, EXIT_MMIO);
    let mut commands = as_specified(&mut bench)?;
    bench.clean("100 SGIs come at once", CMD_IPI, [100, 0, 0])?;
    commands += 1;
    for (case, how) in [
        ("the virtual timer ends a wait", TICK_WAIT),
        ("the physical timer ends a wait", TICK_PHYSICAL),
        ("the virtual timer ends a suspension", TICK_SUSPEND),
    ] {
        bench.clean(case, CMD_TICKS, [PERIODS, PERIOD, how])?;
        commands += 1;
    }
    for (name, how) in [("virtual", TICK_TAKEN), ("physical", TICK_PHYSICAL_TAKEN)] {
        let [case, needs] = ["is taken as an exception", "needs no interrupt of the host's"];
        let cases = [case, needs].map(|what| format!("the {name} timer {what}"));
        let periods = usize::try_from(PERIODS).unwrap_or(0);
        commands += undisturbed(&mut bench, &cases, periods, |_| (CMD_TICKS, [PERIODS, PERIOD, how]))?;
    }
    // Command, three arguments and three results of each command; the next one was asked for already.
    STEP.same("the host saw no access to it", commands * 7, exits(&bench, EXIT_MMIO) - mmio);
    beside_another(hostile, &mut bench)?;
    bench.raises = true;
    let [got, after, _] = bench.command(CMD_SPI, [0; 3])?;
    STEP.same(
        "the host's interrupt ends a wait",
        format!("{SPI}, then {NO_INTERRUPT}"),
        format!("{got}, then {after}"),
    );
    STEP.same("the host learns whom to wake", "[1]", format!("{:?}", bench.woke));
    bench.raises = true;
    bench.clean("a level comes again after each end until it falls", CMD_LEVEL, [ENDS as u64, 0, 0])?;
    bench.wakes.resamples.store(true, Ordering::SeqCst);
    bench.wakes.again.store(ENDS, Ordering::SeqCst);
    bench.raises = true;
    bench.clean("so does one of whose ends the host wants to hear", CMD_LEVEL, [ENDS as u64, 0, 0])?;
    STEP.same("it hears of each, and of none once it has fallen", ENDS, bench.wakes.ended.load(Ordering::SeqCst));
    bench.close();
    Ok(())
}

/// A guest finds nothing of what another one has active and pending on the same CPU, and that one finds it again.
fn beside_another(hostile: &Hostile, bench: &mut Bench<'_>) -> Result<(), String> {
    sys::pin_to(0);
    bench.clean("its vectors are full", CMD_FP, [1, 0, 0])?;
    bench.clean("and its system registers", CMD_STATE, [1, 0, 0])?;
    bench.clean("an interrupt of either group is left active, and two pending", CMD_HOLD, [1, 0, 0])?;
    let mut other = Bench::new(hostile, true)?;
    other.clean("another guest on that CPU finds nothing of it", CMD_GIC, [0; 3])?;
    other.clean("and takes its own", CMD_IPI, [10, 0, 0])?;
    bench.clean("the first one finds them again and ends them", CMD_HOLD, [0; 3])?;
    let mut plain = Bench::new(hostile, false)?;
    plain.clean("one without a controller looks at its timer, on that CPU too", CMD_POLL_TIMER, [PERIOD, 1000, 0])?;
    plain.close();
    other.close();
    Ok(())
}

/// What the architecture says of a controller, as a guest sees it; how many commands that took.
fn as_specified(bench: &mut Bench<'_>) -> Result<usize, String> {
    let [_, rules, _] = bench.clean("order, masks, preemption, ends and groups are as specified", CMD_RULES, [0; 3])?;
    STEP.judged("rules looked at", "at least 40", rules, rules >= 40);
    let cases = ["48 interrupts wait and come in order, 16 interrupt each other", "list registers are filled in time"];
    let rounds = undisturbed(bench, &cases, REFILLS, |round| (CMD_CROWD, [round as u64, 0, 0]))?;
    let [_, _, met] = bench.clean("every offset and width of the frames is as specified", CMD_SWEEP, [0; 3])?;
    STEP.judged("registers met on the way", "at least 369", met, met >= 369);
    let [_, _, tried] =
        bench.clean("what is no load or store of the frames meets an external abort", CMD_UNDESCRIBED, [0; 3])?;
    STEP.judged("ways to reach for them tried", "at least 46", tried, tried >= 46);
    let [_, rules, _] = bench.clean("timers at the ends of what their comparators hold", CMD_TIMERS, [0; 3])?;
    STEP.judged("rules of timers looked at", "34", rules, rules == 34);
    Ok(rounds + 4)
}

/// Has the guest do something that makes no exit by itself, and for which it needs EL2's own interrupts so many times.
/// Were these not there, it would need as many of the host's to bring it out: some round has fewer of them. The number
/// of rounds.
fn undisturbed(
    bench: &mut Bench<'_>,
    [case, needs]: &[impl AsRef<str>; 2],
    times: usize,
    command: impl Fn(usize) -> (u64, [u64; 3]),
) -> Result<usize, String> {
    let mut least = usize::MAX;
    let mut rounds = 0;
    while least >= times && rounds < ROUNDS {
        let before = exits(bench, EXIT_IRQ);
        let (command, arguments) = command(rounds);
        bench.clean(case.as_ref(), command, arguments)?;
        least = least.min(exits(bench, EXIT_IRQ) - before);
        rounds += 1;
    }
    let seen = format!("{least} for {times}");
    STEP.judged(needs.as_ref(), "fewer interrupts of the host's in some round", seen, least < times);
    Ok(rounds)
}

fn exits(bench: &Bench<'_>, reason: u64) -> usize {
    bench.exits.get(&reason).copied().unwrap_or(0)
}
