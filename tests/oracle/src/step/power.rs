// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a guest does about its CPUs: PSCI. Only a guest starts its vCPUs.

use freehold_uapi::{guest, hvc};

use super::guest::{answers, exit_with, feature};
use super::vcpu::exit;
use crate::outcome::{Done, Outcome, Statuses, Value};
use crate::record::{Power, Vcpu, VcpuLife};
use crate::state::State;

/// What PSCI_FEATURES knows for sure: every PSCI call of the table, and SMCCC_VERSION by the SMCCC.
fn served(id: u32) -> bool {
    id == guest::SMCCC_VERSION || guest::CALLS.iter().any(|call| call.id == id && call.name.starts_with("PSCI"))
}

/// The call's arguments, which are 32 bits wide where its identifier says so.
fn cut(id: u32, x: [u64; 3]) -> [u64; 3] {
    if id & 0x4000_0000 == 0 { x.map(|x| x & 0xffff_ffff) } else { x }
}

/// A vCPU of the VM by its affinity: its index, and nothing else.
fn target(s: &impl State, slot: u8, affinity: u64) -> Option<u8> {
    let index = u8::try_from(affinity).ok().filter(|n| *n < s.machine().vcpus)?;
    (s.vcpu(slot, index).life != VcpuLife::Absent).then_some(index)
}

fn no(status: i64) -> Outcome {
    Outcome::refused(Statuses::one(status))
}

/// `None`: no call of PSCI.
pub(super) fn decide(s: &impl State, slot: u8, id: u32, x: [u64; 3]) -> Option<Outcome> {
    let [x1, x2, _] = cut(id, x);
    let invalid = no(guest::INVALID_PARAMETERS);
    Some(match id {
        guest::PSCI_VERSION => answers([0x1_0001, 0, 0, 0]),
        guest::PSCI_MIGRATE_INFO_TYPE => answers([2, 0, 0, 0]),
        guest::PSCI_FEATURES if u32::try_from(x1).is_ok_and(served) => answers([0; 4]),
        guest::PSCI_FEATURES => feature(x1, &[], false),
        guest::PSCI_SYSTEM_OFF => Outcome::done(exit_with(hvc::EXIT_SYSTEM, 0, 0, 0)),
        guest::PSCI_SYSTEM_RESET => Outcome::done(exit_with(hvc::EXIT_SYSTEM, 1, 0, 0)),
        guest::PSCI_SYSTEM_RESET2 | guest::PSCI_SYSTEM_RESET2_64 if x1 == 0 || x1 >> 31 & 1 == 1 => {
            Outcome::done(exit_with(hvc::EXIT_SYSTEM, 2, 0, 0))
        }
        guest::PSCI_SYSTEM_RESET2 | guest::PSCI_SYSTEM_RESET2_64 => invalid,
        guest::PSCI_CPU_OFF => Outcome::done(exit(hvc::EXIT_OFF)),
        // Bits of a power state: its level, its kind, its number.
        guest::PSCI_CPU_SUSPEND | guest::PSCI_CPU_SUSPEND_64 if x1 & !0x0301_ffff != 0 => invalid,
        guest::PSCI_CPU_SUSPEND | guest::PSCI_CPU_SUSPEND_64 => Outcome::done(exit(hvc::EXIT_WFI)),
        guest::PSCI_CPU_ON | guest::PSCI_CPU_ON_64 => match target(s, slot, x1) {
            None => invalid,
            Some(_) if x2 % 4 != 0 => no(guest::INVALID_ADDRESS),
            Some(index) => match s.vcpu(slot, index).power {
                Power::On => no(guest::ALREADY_ON),
                Power::Starting => no(guest::ON_PENDING),
                Power::Off => answers([0; 4]),
            },
        },
        guest::PSCI_AFFINITY_INFO | guest::PSCI_AFFINITY_INFO_64 => match target(s, slot, x1) {
            Some(index) if x2 == 0 => answers([s.vcpu(slot, index).power as u64, 0, 0, 0]),
            Some(_) | None => invalid,
        },
        _ => return None,
    })
}

/// A vCPU was started by its guest, and runs when the host runs it.
pub(super) fn start(s: &mut impl State, slot: u8, id: u32, x: [u64; 3]) {
    if let (guest::PSCI_CPU_ON | guest::PSCI_CPU_ON_64, Some(index)) = (id, target(s, slot, cut(id, x)[0])) {
        let vcpu = s.vcpu(slot, index);
        s.set_vcpu(slot, index, Vcpu { power: Power::Starting, ..vcpu });
    }
}

/// Random numbers: as the machine has them, or not at all.
pub(super) fn random(id: u32, x: [u64; 3]) -> Option<Outcome> {
    let most = match id {
        guest::TRNG_RND => 96,
        guest::TRNG_RND_64 => 192,
        guest::TRNG_VERSION | guest::TRNG_FEATURES | guest::TRNG_GET_UUID => 0,
        _ => return None,
    };
    let bits = cut(id, x)[0];
    let refused = Statuses::one(guest::NOT_SUPPORTED)
        .when(most != 0, guest::NO_ENTROPY)
        .when(most != 0 && (bits == 0 || bits > most), guest::INVALID_PARAMETERS);
    let wrong = refused.has(guest::INVALID_PARAMETERS);
    Some(Outcome { refused, done: (!wrong).then_some(Done::Answered([Value::Any; 4])), ..Outcome::refused(refused) })
}
