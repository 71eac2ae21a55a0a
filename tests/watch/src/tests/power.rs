// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest's CPUs go on and off, and the watcher follows them.

use freehold_el2::calls::Stop;
use freehold_uapi::{guest, hvc::*};
use freehold_virt::vcpu::Trap;

use super::rig::{GUEST_RAM, RAM, Rig, be};
use crate::fault::Fault;

/// A VM of two vCPUs that has not run.
fn pair(rig: &Rig) -> u64 {
    let vm = rig.call(VM_CREATE, &[VM_PROTECTED, 40, RAM, 8])[1];
    assert_eq!(rig.call(VM_RANGE, &[vm, GUEST_RAM, 64])[0], 0);
    for vcpu in 0..2 {
        assert_eq!(rig.call(VCPU_CREATE, &[vm, vcpu])[0], 0);
    }
    vm
}

/// Runs a vCPU whose guest makes these calls, each of which is answered at once; what it finds in x0, and the exit.
fn calls<const N: usize>(rig: &Rig, vm: u64, vcpu: u64, calls: [[u64; 3]; N]) -> ([i64; N], u64) {
    let found = std::sync::Arc::new(std::sync::Mutex::new([0; N]));
    for (n, [id, x1, x2]) in calls.into_iter().enumerate() {
        let found = found.clone();
        let act = move |registers: &mut super::rig::Fake| {
            if n > 0 {
                found.lock().unwrap()[n - 1] = registers.x[0].cast_signed();
            }
            registers.x[..4].copy_from_slice(&[id, x1, x2, 0]);
            Stop::Trap(Trap { esr: 0x16 << 26, far: 0, hpfar: 0 })
        };
        if n == 0 { rig.next(act) } else { rig.then(act) }
    }
    let last = found.clone();
    rig.then(move |registers| {
        last.lock().unwrap()[N - 1] = registers.x[0].cast_signed();
        Stop::Interrupt
    });
    let answer = rig.call(VCPU_RUN, &[vm, vcpu, 0]);
    assert_eq!(answer[0], 0);
    let found = *found.lock().unwrap();
    (found, answer[1])
}

const ON: u64 = guest::PSCI_CPU_ON_64 as u64;
const INFO: u64 = guest::PSCI_AFFINITY_INFO_64 as u64;
const OFF: [u64; 3] = [guest::PSCI_CPU_OFF as u64, 0, 0];

#[test]
fn a_start_that_is_the_first_trap_behind_a_flush_is_no_divergence() {
    let rig = Rig::new(Fault::None);
    let vm = pair(&rig);
    assert_eq!(calls(&rig, vm, 0, [[ON, 1, 0x1000]]), ([0], EXIT_IRQ));
    let registers = || rig.call(VCPU_GET_REG, &[vm, 1, REG_PC])[0].cast_signed();
    assert_eq!(registers(), 0, "what the host set, before it has run");
    for _ in 0..2 {
        assert_eq!(calls(&rig, vm, 1, [[INFO, 1, 0]]), ([0], EXIT_IRQ), "the host runs it, and it is on");
        assert_eq!(registers(), WRONG_STATE, "the first run was its, too");
    }
}

#[test]
fn a_cpu_that_starts_goes_off_and_starts_again_is_followed() {
    let rig = Rig::new(Fault::None);
    let vm = pair(&rig);
    let starts = [[INFO, 1, 0], [ON, 1, 0x1000], [INFO, 1, 0], [ON, 1, 0x1000]];
    assert_eq!(calls(&rig, vm, 0, starts), ([1, 0, 2, guest::ON_PENDING], EXIT_IRQ));
    assert_eq!(calls(&rig, vm, 1, [OFF]).1, EXIT_OFF);
    assert_eq!(rig.call(VCPU_RUN, &[vm, 1, 0])[..2], [0, EXIT_OFF]);
    // The host has seen that it is off, and hears that it is to be run again.
    assert_eq!(calls(&rig, vm, 0, [[INFO, 1, 0], [ON, 1, 0x1000]]).1, EXIT_WAKE);
    assert_eq!(calls(&rig, vm, 0, [[INFO, 1, 0], [ON, 1, 0x1000]]), ([2, guest::ON_PENDING], EXIT_IRQ));
    assert_eq!(calls(&rig, vm, 1, [[INFO, 1, 0]]), ([0], EXIT_IRQ));
    assert_eq!(calls(&rig, vm, 0, [[ON, 1, 0x1000]]), ([guest::ALREADY_ON], EXIT_IRQ));
}

/// What el2 has not decided yet is not so for a sibling, though the call's turn has let go of the VM's lock before.
#[test]
fn a_sibling_finds_devices_as_they_are_until_a_call_about_them_is_decided() {
    let rig: &'static Rig = std::boxed::Box::leak(std::boxed::Box::new(Rig::new(Fault::None)));
    let vm = pair(rig);
    let enrols = [[guest::MMIO_GUARD_ENROLL.into(), 0, 0], [ON, 1, 0x1000]];
    assert_eq!(calls(rig, vm, 0, enrols), ([0, 0], EXIT_IRQ));
    // The next first trap of vCPU 0 is one behind a flush here.
    assert_eq!(calls(rig, vm, 1, [[INFO, 1, 0]]), ([0], EXIT_IRQ));
    let device = 0x900_0000;
    let touches = move || {
        rig.next(move |_| Stop::Trap(Trap { esr: 0x24 << 26 | 1 << 24 | 6, far: 0, hpfar: device >> 8 }));
        rig.then(|_| Stop::Interrupt);
        rig.call(VCPU_RUN, &[vm, 1, 0])[1]
    };
    for (call, before, after) in
        [(guest::MMIO_GUARD_MAP, EXIT_IRQ, EXIT_MMIO), (guest::MMIO_GUARD_UNMAP, EXIT_MMIO, EXIT_IRQ)]
    {
        let seen = std::sync::Arc::new(std::sync::Mutex::new(None));
        let said = seen.clone();
        rig.meanwhile(move || {
            be(1);
            *said.lock().unwrap() = Some(touches());
            be(0);
        });
        assert_eq!(calls(rig, vm, 0, [[call.into(), device, 0]]), ([0], EXIT_IRQ));
        assert_eq!(*seen.lock().unwrap(), Some(before), "while {call:#x} is not decided");
        assert_eq!(touches(), after, "behind {call:#x}, on the caller's CPU: its turn must be flushed again");
    }
}

#[test]
fn a_start_that_is_refused_starts_nobody() {
    let rig = Rig::new(Fault::None);
    let vm = pair(&rig);
    let refused = [[ON, 1, 2], [ON, 2, 0x1000], [ON, 1 << 8, 0x1000], [INFO, 1, 0]];
    let answers = [guest::INVALID_ADDRESS, guest::INVALID_PARAMETERS, guest::INVALID_PARAMETERS, 1];
    assert_eq!(calls(&rig, vm, 0, refused), (answers, EXIT_IRQ));
}
