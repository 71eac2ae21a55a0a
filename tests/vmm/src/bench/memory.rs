// SPDX-License-Identifier: MIT OR Apache-2.0
//! Lives of VMs, conversions of files, and a trivial call, through the driver.

use std::time::Duration;

use freehold_uapi::hvc;

use super::{ROUNDS, STEP, after_tick, marked, peer, plan};
use crate::gmem::converted;
use crate::machine::{Event, Machine, Plan, counter, new_gmem, open};
use crate::proto::*;
use crate::rows::{self, begin, end, mark};
use crate::sys::errno_name;

/// VMs that come and go; the first few warm the kernel's caches.
const LIVES: u64 = 12;
const CONVERSIONS: u64 = 6;
/// Conversions of what is mapped: the first one makes the kernel's tables.
const MAPPINGS: u64 = 3;

/// A VM of 2 MiB is made, runs to its first exit, and is gone.
pub(super) fn lives() -> Result<(), String> {
    let plan = Plan { bytes: RAM_MIN, private: RAM_MIN, ..plan() };
    let mut first = Vec::new();
    for _ in 0..LIVES {
        after_tick();
        let mut machine = marked(rows::VM_CREATE, || Machine::new(plan))?;
        if !peer() {
            machine.gmem.to_private(0, plan.private, 0).map_err(|(e, at)| format!("{}, at {at:#x}", errno_name(e)))?;
        }
        after_tick();
        first.push(marked(rows::FIRST_RUN, || machine.step()));
        after_tick();
        marked(rows::VM_END, || drop(machine));
    }
    let ran = first.iter().filter(|event| matches!(event, Event::Stored(..))).count();
    STEP.same("VMs that ran to their first exit", LIVES, ran);
    Ok(())
}

/// A second in which the host does nothing: so many of its accesses EL2 had to look at.
pub(super) fn rest() -> Result<(), String> {
    let kvm = open()?;
    let faults = || counter(&kvm, hvc::COUNTER_HOST_FAULTS, 0).map_err(errno_name);
    let before = faults()?;
    std::thread::sleep(Duration::from_secs(1));
    let met = faults()? - before;
    mark!(begin(rows::FAULTS_AT_REST));
    mark!(end(rows::FAULTS_AT_REST), met);
    STEP.same("faults of the host in a second at rest", 0, met);
    Ok(())
}

/// What the host lends EL2 for a VM with one vCPU and a controller, before the guest has any memory.
pub(super) fn kept() -> Result<(), String> {
    let kvm = open()?;
    let foreign = || counter(&kvm, hvc::COUNTER_FOREIGN_FRAMES, 0).map_err(errno_name);
    let before = foreign()?;
    let machine = Machine::new(plan())?;
    let lent = (foreign()? - before) * 4096;
    mark!(begin(rows::VM_MEMORY));
    mark!(end(rows::VM_MEMORY), lent);
    STEP.judged("what EL2 keeps for a VM", "some pages, less than 1 MiB", lent, (1..1 << 20).contains(&lent));
    drop(machine);
    Ok(())
}

/// Calls that do next to nothing.
pub(super) fn calls() -> Result<(), String> {
    let kvm = open()?;
    let mut told = 0;
    for _ in 0..ROUNDS {
        told += u64::from(marked(rows::HOST_CALL, || counter(&kvm, hvc::COUNTER_CPUS, 0)) == Ok(1));
    }
    STEP.same("a counter is read", ROUNDS, told);
    Ok(())
}

/// What is mapped and touched several times becomes private.
pub(super) fn mappings() -> Result<(), String> {
    let kvm = open()?;
    let vm = kvm.create_vm_with_type(crate::machine::VM_TYPE).map_err(|e| errno_name(e.errno()))?;
    let bytes = 2 << 20;
    let gmem = new_gmem(&vm, bytes).map_err(errno_name)?;
    for (row, count) in [(rows::MAPPED_1, 1), (rows::MAPPED_64, 64)] {
        let mut went = 0;
        for _ in 0..MAPPINGS {
            let maps = (0..count).map(|_| gmem.map(2 << 20)).collect::<Result<Vec<_>, _>>().map_err(errno_name)?;
            maps.iter().for_each(|map| (0..2 << 20).step_by(4096).for_each(|at| map.store(at, 1)));
            after_tick();
            went += u64::from(marked(row, || gmem.to_private(0, bytes, 0)).is_ok());
            gmem.to_shared(0, bytes).map_err(|(e, _)| errno_name(e))?;
        }
        STEP.same(&format!("2 MiB with {count} mappings become private"), MAPPINGS, went);
    }
    Ok(())
}

/// Memory of a VM that runs becomes private: frozen, donated, zeroed. What is frozen and not donated, as a file's that
/// nobody has bound yet, becomes the host's again.
pub(super) fn conversions() -> Result<(), String> {
    let (first, bytes) = (RAM_MIN, 96 << 20);
    let (mut machine, _) = Machine::booted(Plan { bytes, ..plan() })?;
    machine.command(CMD_NOP, [0; 3])?;
    let mut at = first;
    for (row, size, times) in
        [(rows::PRIVATE_4K, 4096, 512), (rows::PRIVATE_2M, 2 << 20, 4), (rows::PRIVATE_64M, 64 << 20, 1)]
    {
        let mut went = 0;
        for _ in 0..times {
            // What is short and often done is not moved by a tick.
            if size > 4096 {
                after_tick();
            }
            let seen = marked(row, || machine.gmem.to_private(at, size, 0));
            went += u64::from(seen.is_ok());
            at += size;
        }
        STEP.same(&format!("{size} bytes become private"), times, went);
    }
    drop(machine);
    for (back, bytes) in [(rows::SHARED_4K, 4096), (rows::SHARED_2M, 2 << 20), (rows::SHARED_64M, 64 << 20)] {
        let kvm = open()?;
        let vm = kvm.create_vm_with_type(crate::machine::VM_TYPE).map_err(|e| errno_name(e.errno()))?;
        let gmem = new_gmem(&vm, bytes).map_err(errno_name)?;
        let mut seen = Vec::new();
        for _ in 0..CONVERSIONS {
            seen.push(converted(gmem.to_private(0, bytes, 0)));
            seen.push(marked(back, || converted(gmem.to_shared(0, bytes))));
        }
        let went = seen.iter().filter(|text| *text == "0").count();
        STEP.same(&format!("{bytes} bytes become the host's again"), 2 * CONVERSIONS, went);
    }
    Ok(())
}
