// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs of an ordinary VM's vCPUs: the states that its VMM is told of them, and what `immediate_exit` and signals make of
//! a run. The kernel's own KVM is asked the same.

use freehold_uapi::ioctl::*;
use kvm_ioctls::VcpuFd;

use crate::beside::executes;
use crate::cpus::{beside, get_reg, read_state, set_state, state};
use crate::events::{Kind, made};
use crate::machine::{Event, Machine};
use crate::proto::*;
use crate::report::Step;
use crate::sys::{ioctl_value, outcome};
use crate::vgic::{Cloned as _, interrupt, let_signals_interrupt, myself, sleeps};

const STEP: Step = Step("runs");

/// Runs the cases.
pub(crate) fn all() -> Result<(), String> {
    let_signals_interrupt();
    states()?;
    immediate()?;
    signals()
}

fn both(first: u32, second: u32) -> String {
    [first, second].map(state).join(" ")
}

/// The states follow what the guest does with its CPUs; what the VMM says of them is what they are.
fn states() -> Result<(), String> {
    let mut machine = made(Kind::Ordinary, 2, RAM_MIN)?;
    let wire = machine.vm.as_fd_clone()?;
    let mut others = std::mem::take(&mut machine.others);
    let told = |first: &VcpuFd, others: &[VcpuFd]| {
        [first].into_iter().chain(others).map(read_state).collect::<Vec<_>>().join(" ")
    };
    STEP.same("states: before the guest runs", both(0, 5), told(&machine.vcpu, &others));
    for unknown in [1, 2, 3, 4, 6, 9, 10, 99] {
        STEP.same(&format!("states: there is no {unknown}"), "EINVAL", outcome(set_state(&machine.vcpu, unknown)));
        // Where there is one it is taken back.
        let _ = set_state(&machine.vcpu, 0);
    }
    let (started, _) = beside(&mut others, &wire, |_| {
        machine.boot()?;
        machine.command(CMD_GIC, [2, 0, 0])?;
        machine.command(CMD_CPU_ON, [1, 0, 0])
    });
    started?;
    STEP.same("states: its guest started number 1", both(0, 0), told(&machine.vcpu, &others));
    let all = || [&machine.vcpu].into_iter().chain(&others);
    let said: Vec<_> = all().map(|vcpu| outcome(set_state(vcpu, 0))).collect();
    STEP.same("states: both are on, and said to be", "0 0", said.join(" "));
    let (stopped, _) = beside(&mut others, &wire, |_| machine.command(CMD_CPU, [1, JOB_OFF, 0]));
    stopped?;
    STEP.same("states: its guest stopped number 1", both(0, 5), told(&machine.vcpu, &others));
    for (vcpu, wanted, case, expected) in [
        (others.first(), 5, "number 1 is off, and said to be", "0"),
        (others.first(), 0, "number 1, which ran, is said to be on", "EPERM"),
        (Some(&machine.vcpu), 5, "number 0, which ran, is said to be off", "EPERM"),
    ] {
        let seen = vcpu.map_or_else(String::new, |vcpu| outcome(set_state(vcpu, wanted)));
        STEP.same(&format!("states: {case}"), expected, seen);
    }
    Ok(())
}

/// `exit_reason`.
fn reason(machine: &Machine) -> u64 {
    machine.run_page.load(8) & 0xffff_ffff
}

/// Nothing is executed in a run with `immediate_exit`; a load that was answered before it is over.
fn immediate() -> Result<(), String> {
    let mut machine = made(Kind::Ordinary, 1, RAM_MIN)?;
    let pc = |machine: &Machine| format!("{:x?}", get_reg(&machine.vcpu, KVM_REG_PC));
    let run = |machine: &Machine| outcome(ioctl_value(&machine.vcpu, KVM_RUN, 0));
    let start = pc(&machine);
    machine.vcpu.set_kvm_immediate_exit(1);
    for time in ["first run", "second run"] {
        STEP.same(&format!("immediate_exit: {time}"), "EINTR", run(&machine));
        STEP.same(&format!("immediate_exit: {time}: exit_reason"), KVM_EXIT_INTR, reason(&machine));
        STEP.same(&format!("immediate_exit: {time}: nothing was executed"), &start, pc(&machine));
    }
    machine.vcpu.set_kvm_immediate_exit(0);
    let boot = machine.boot()?;
    STEP.same("immediate_exit: taken back, its guest boots", format!("{BOOT_LINE}\n"), &boot.console);
    let asking = pc(&machine);
    machine.answer(CMD_LOAD, [RAM_BASE, 0, 0]);
    machine.vcpu.set_kvm_immediate_exit(1);
    STEP.same("immediate_exit: an answered load", "EINTR", run(&machine));
    let after = pc(&machine);
    STEP.same("immediate_exit: an answered load is over", true, asking != after);
    STEP.same("immediate_exit: an answered load: exit_reason", KVM_EXIT_INTR, reason(&machine));
    machine.answer(CMD_NOP, [RAM_BASE, 0, 0]);
    STEP.same("immediate_exit: and again", "EINTR", run(&machine));
    STEP.same("immediate_exit: and again: nothing is executed", &after, pc(&machine));
    machine.vcpu.set_kvm_immediate_exit(0);
    // It would be nothing of the second command.
    let [seen, ..] = machine.rest_of_command(|_| ())?;
    STEP.same("immediate_exit: the first answer is what the guest has", machine.ram.load(0), seen);
    Ok(())
}

/// A signal brings a thread out of a guest that executes and of one that waits for an interrupt.
fn signals() -> Result<(), String> {
    let mut machine = made(Kind::Ordinary, 1, RAM_MIN)?;
    machine.boot()?;
    machine.command(CMD_GIC, [0; 3])?;
    for (name, command, arguments, there) in [
        ("a guest that waits", CMD_SPI, [0; 3], sleeps as fn(libc::pid_t) -> bool),
        ("a guest that executes", CMD_LAST, [LAST_SPIN, 0, 0], executes),
    ] {
        let thread = myself();
        machine.answer(command, arguments);
        let event = std::thread::scope(|scope| {
            scope.spawn(|| {
                STEP.same(&format!("signal: {name}: its thread is there"), true, there(thread));
                interrupt(thread);
            });
            machine.step()
        });
        STEP.same(&format!("signal: {name}"), format!("{:?}", Event::Interrupted), format!("{event:?}"));
        STEP.same(&format!("signal: {name}: exit_reason"), KVM_EXIT_INTR, reason(&machine));
        if command == CMD_SPI {
            // It goes on with its wait, which the host's interrupt ends.
            let wire = machine.vm.as_fd_clone()?;
            STEP.same(&format!("signal: {name}: an interrupt"), "0", crate::vgic::spi(&wire, 1));
            let results = machine.rest_of_command(|register| {
                if register == REG_SCRATCH {
                    crate::vgic::spi(&wire, 0);
                }
            })?;
            STEP.same(&format!("signal: {name}: and its wait ends"), SPI, results[0]);
        }
    }
    Ok(())
}
