// SPDX-License-Identifier: MIT OR Apache-2.0
//! Looks from inside of a Linux guest whether its machine is whole: CPUs, time, interrupts, registers, hotplug.
//!
//! Prints one line `fh-guest: CHECK pass|fail WHAT` for each check, and `fh-guest: stamp ...` lines that the other side
//! of the console compares with its own clock. Believes nothing that the host says.

mod clock;
mod cpus;
mod fp;
mod secret;
mod sys;

use std::process::ExitCode;

/// What is looked at, and how.
type Check = (&'static str, fn() -> Result<String, String>);

const CHECKS: [Check; 6] = [
    ("counter-and-clock-agree", clock::agrees),
    ("timers-on-every-cpu", clock::timers),
    ("ipis-between-cpus", cpus::messages),
    ("membarrier-reaches-every-cpu", cpus::barriers),
    ("fp-survives-preemption", fp::survives),
    ("hotplug", cpus::hotplug),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(expected) = arguments.first().and_then(|n| n.parse().ok()) else {
        eprintln!("usage: selftest CPUS [hold]");
        return ExitCode::from(2);
    };
    clock::stamp();
    let mut held = true;
    held &= said("cpus-online", cpus::online(expected));
    for (check, look) in CHECKS {
        held &= said(check, look());
    }
    held &= said("cpus-online-again", cpus::online(expected));
    if arguments.get(1).is_some_and(|word| word == "hold") {
        held &= said("memory-while-held", secret::hold());
    }
    clock::stamp();
    println!("fh-guest: over {}", if held { "pass" } else { "fail" });
    sys::drain();
    if held { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn said(check: &str, outcome: Result<String, String>) -> bool {
    let (word, what, held) = match outcome {
        Ok(what) => ("pass", what, true),
        Err(what) => ("fail", what, false),
    };
    println!("fh-guest: {check} {word} {what}");
    sys::drain();
    held
}
