// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guest calls.

use freehold_oracle::{Act, Env, Op, Power, State as _, Vcpu, VcpuLife, decide};
use freehold_uapi::guest;

use super::stage::*;

/// An error of a guest call: the call, its error by name and number, and arguments that bring it about.
type Row = (u32, &'static str, i64, [u64; 3]);

const BEGIN: u64 = GFN << 12;
const TABLE: &[Row] = &[
    (guest::SMCCC_ARCH_FEATURES, "NOT_SUPPORTED", guest::NOT_SUPPORTED, [0x8400_0003, 0, 0]),
    (guest::HYP_MEMINFO, "INVALID_PARAMETER", guest::INVALID_PARAMETER, [0, 0, 1]),
    (guest::MEM_SHARE, "INVALID_PARAMETER", guest::INVALID_PARAMETER, [BEGIN + 8, 1, 0]),
    (guest::MEM_UNSHARE, "INVALID_PARAMETER", guest::INVALID_PARAMETER, [BEGIN, 1, 0]),
    (guest::MMIO_GUARD_INFO, "INVALID_PARAMETER", guest::INVALID_PARAMETER, [1, 0, 0]),
    (guest::MMIO_GUARD_ENROLL, "INVALID_PARAMETER", guest::INVALID_PARAMETER, [0, 1, 0]),
    (guest::MMIO_GUARD_MAP, "INVALID_PARAMETER", guest::INVALID_PARAMETER, [BEGIN, 0, 0]),
    (guest::MMIO_GUARD_UNMAP, "INVALID_PARAMETER", guest::INVALID_PARAMETER, [0x900_0001, 0, 0]),
    (guest::MEM_RELINQUISH, "INVALID_PARAMETER", guest::INVALID_PARAMETER, [BEGIN, 1, 0]),
    (guest::PSCI_SYSTEM_RESET2, "INVALID_PARAMETERS", guest::INVALID_PARAMETERS, [1, 0, 0]),
    (guest::PSCI_SYSTEM_RESET2_64, "INVALID_PARAMETERS", guest::INVALID_PARAMETERS, [1, 0, 0]),
    (guest::PSCI_CPU_SUSPEND, "INVALID_PARAMETERS", guest::INVALID_PARAMETERS, [1 << 17, 0, 0]),
    (guest::PSCI_CPU_SUSPEND_64, "INVALID_PARAMETERS", guest::INVALID_PARAMETERS, [1 << 17, 0, 0]),
    (guest::PSCI_CPU_ON, "INVALID_PARAMETERS", guest::INVALID_PARAMETERS, [2, 0, 0]),
    (guest::PSCI_CPU_ON, "INVALID_ADDRESS", guest::INVALID_ADDRESS, [0, 2, 0]),
    (guest::PSCI_CPU_ON, "ALREADY_ON", guest::ALREADY_ON, [0, 0, 0]),
    (guest::PSCI_CPU_ON, "ON_PENDING", guest::ON_PENDING, [1, 0, 0]),
    (guest::PSCI_CPU_ON_64, "INVALID_PARAMETERS", guest::INVALID_PARAMETERS, [1 << 32, 0, 0]),
    (guest::PSCI_CPU_ON_64, "INVALID_ADDRESS", guest::INVALID_ADDRESS, [0, 2, 0]),
    (guest::PSCI_CPU_ON_64, "ALREADY_ON", guest::ALREADY_ON, [0, 0, 0]),
    (guest::PSCI_CPU_ON_64, "ON_PENDING", guest::ON_PENDING, [1, 0, 0]),
    (guest::PSCI_AFFINITY_INFO, "INVALID_PARAMETERS", guest::INVALID_PARAMETERS, [0, 1, 0]),
    (guest::PSCI_AFFINITY_INFO_64, "INVALID_PARAMETERS", guest::INVALID_PARAMETERS, [2, 0, 0]),
    (guest::TRNG_VERSION, "NOT_SUPPORTED", guest::NOT_SUPPORTED, [0; 3]),
    (guest::TRNG_FEATURES, "NOT_SUPPORTED", guest::NOT_SUPPORTED, [0; 3]),
    (guest::TRNG_GET_UUID, "NOT_SUPPORTED", guest::NOT_SUPPORTED, [0; 3]),
    (guest::TRNG_RND, "NOT_SUPPORTED", guest::NOT_SUPPORTED, [32, 0, 0]),
    (guest::TRNG_RND, "INVALID_PARAMETERS", guest::INVALID_PARAMETERS, [97, 0, 0]),
    (guest::TRNG_RND, "NO_ENTROPY", guest::NO_ENTROPY, [32, 0, 0]),
    (guest::TRNG_RND_64, "NOT_SUPPORTED", guest::NOT_SUPPORTED, [64, 0, 0]),
    (guest::TRNG_RND_64, "INVALID_PARAMETERS", guest::INVALID_PARAMETERS, [193, 0, 0]),
    (guest::TRNG_RND_64, "NO_ENTROPY", guest::NO_ENTROPY, [64, 0, 0]),
    (guest::PSCI_FEATURES, "NOT_SUPPORTED", guest::NOT_SUPPORTED, [0x8400_0042, 0, 0]),
];

/// A guest of [`RAN`] calls. Its second vCPU was started by it, and did not run yet.
fn called(id: u32, x: [u64; 3]) -> freehold_oracle::Outcome {
    let mut w = stage();
    runs(&mut w, 1);
    w.vcpus[1][1] = Vcpu { life: VcpuLife::Ready, power: Power::Starting, ..Vcpu::default() };
    w.set_cpu(0, Some((1, 0)));
    decide(&w, &Op::Guest { cpu: 0, act: Act::Call { id, x } }, &Env::CALM)
}

#[test]
fn each_documented_error_comes_of_its_arguments() {
    for (id, name, status, x) in TABLE {
        assert!(called(*id, *x).refused.has(*status), "{id:#x} {name}");
    }
}

#[test]
fn each_call_is_served_with_other_arguments() {
    let good = [
        (guest::SMCCC_ARCH_FEATURES, [guest::SMCCC_VERSION.into(), 0, 0]),
        (guest::HYP_MEMINFO, [0; 3]),
        (guest::MEM_SHARE, [BEGIN, 1, 0]),
        (guest::MEM_UNSHARE, [BEGIN + 4096, 1, 0]),
        (guest::MEM_RELINQUISH, [BEGIN, 0, 0]),
        (guest::PSCI_FEATURES, [guest::PSCI_VERSION.into(), 0, 0]),
        (guest::PSCI_FEATURES, [guest::PSCI_CPU_ON_64.into(), 0, 0]),
        (guest::PSCI_SYSTEM_RESET2, [1 << 31, 0, 0]),
        (guest::PSCI_SYSTEM_RESET2_64, [0, 9, 0]),
        (guest::PSCI_CPU_SUSPEND, [1 << 16, 0, 0]),
        (guest::PSCI_CPU_SUSPEND_64, [0; 3]),
        (guest::PSCI_AFFINITY_INFO, [1, 0, 0]),
        (guest::PSCI_AFFINITY_INFO_64, [1, 0, 0]),
        (guest::ATTEST, [1, 2, 3]),
        (guest::MMIO_GUARD_INFO, [0; 3]),
        (guest::MMIO_GUARD_ENROLL, [0; 3]),
        (guest::MMIO_GUARD_MAP, [0x900_0000, 0, 0]),
        (guest::MMIO_GUARD_UNMAP, [0x900_0000, 0, 0]),
    ];
    for (id, x) in good {
        let outcome = called(id, x);
        assert!(outcome.done.is_some() && outcome.refused.is_empty(), "{id:#x}: {outcome:?}");
    }
}

#[test]
fn each_documented_error_is_in_the_table_and_no_other() {
    for call in guest::CALLS {
        let rows: Vec<_> = TABLE.iter().filter(|row| row.0 == call.id).map(|row| row.1).collect();
        assert_eq!(rows, call.errors, "{}", call.name);
    }
}
