// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guest calls.

use freehold_oracle::{Act, Env, Op, State as _, decide};
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
    (guest::MEM_RELINQUISH, "INVALID_PARAMETER", guest::INVALID_PARAMETER, [BEGIN, 1, 0]),
    (guest::PSCI_FEATURES, "NOT_SUPPORTED", guest::NOT_SUPPORTED, [0x8400_0042, 0, 0]),
];

/// A guest of [`RAN`] calls.
fn called(id: u32, x: [u64; 3]) -> freehold_oracle::Outcome {
    let mut w = stage();
    runs(&mut w, 1);
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
