// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which documented outcomes were hit, and why the others can not be here.

use freehold_uapi::hvc;

use crate::lockstep::{Cell, Tally};

/// Outcomes that these worlds do not have: call, outcomes, reason.
const ELSEWHERE: &[(&str, &[&str], &str)] =
    &[("VCPU_RUN", &["EXIT_EOI"], "guests here take no interrupts; unit tests of freehold-el2 and freehold-virt")];

/// What guests and the host's own accesses come to in these worlds: all of it, and nothing else.
const GUESTS: &[(&str, &[&str])] = &[
    ("ATTEST", &["answered"]),
    ("HYP_MEMINFO", &["answered", "refused"]),
    ("MEM_RELINQUISH", &["EXIT_RELINQUISH", "answered", "refused"]),
    ("MEM_SHARE", &["EXIT_MEM_FAULT", "EXIT_SHARE", "refused"]),
    ("MEM_UNSHARE", &["EXIT_UNSHARE", "refused"]),
    ("MMIO_GUARD_ENROLL", &["answered", "refused"]),
    ("MMIO_GUARD_INFO", &["answered", "refused"]),
    ("MMIO_GUARD_MAP", &["answered", "refused"]),
    ("MMIO_GUARD_UNMAP", &["answered", "refused"]),
    ("PSCI_AFFINITY_INFO", &["answered"]),
    ("PSCI_AFFINITY_INFO_64", &["answered", "refused"]),
    ("PSCI_CPU_OFF", &["EXIT_OFF"]),
    ("PSCI_CPU_ON", &["refused"]),
    ("PSCI_CPU_ON_64", &["answered", "refused"]),
    ("PSCI_CPU_SUSPEND", &["EXIT_WFI"]),
    ("PSCI_CPU_SUSPEND_64", &["EXIT_WFI"]),
    ("PSCI_FEATURES", &["refused"]),
    ("PSCI_MIGRATE_INFO_TYPE", &["answered"]),
    ("PSCI_SYSTEM_OFF", &["EXIT_SYSTEM"]),
    ("PSCI_SYSTEM_RESET", &["EXIT_SYSTEM"]),
    ("PSCI_SYSTEM_RESET2", &["EXIT_SYSTEM"]),
    ("PSCI_SYSTEM_RESET2_64", &["EXIT_SYSTEM"]),
    ("PSCI_VERSION", &["answered"]),
    ("SMCCC_ARCH_FEATURES", &["refused"]),
    ("SMCCC_VERSION", &["answered"]),
    ("TRNG_FEATURES", &["refused"]),
    ("TRNG_GET_UUID", &["refused"]),
    ("TRNG_RND", &["refused"]),
    ("TRNG_RND_64", &["refused"]),
    ("TRNG_VERSION", &["refused"]),
    ("VENDOR_FEATURES", &["answered"]),
    ("VENDOR_UID", &["answered"]),
    ("guest abort", &["EXIT_CRASH"]),
    ("guest bad state", &["EXIT_CRASH"]),
    ("guest fetch", &["EXIT_CRASH", "EXIT_MEM_FAULT", "goes through", "is told so itself"]),
    ("guest load", &["EXIT_CRASH", "EXIT_MEM_FAULT", "EXIT_MMIO", "goes through", "is told so itself"]),
    ("guest store", &["EXIT_CRASH", "EXIT_MEM_FAULT", "EXIT_MMIO", "goes through", "is told so itself"]),
    ("guest walk", &["EXIT_CRASH", "EXIT_MEM_FAULT", "goes through", "is told so itself"]),
    ("guest wfi", &["EXIT_WFI"]),
    ("host read", &["faults", "goes through", "takes the frame"]),
    ("host write", &["faults", "goes through", "takes the frame"]),
    ("interrupt", &["EXIT_IRQ"]),
    ("unknown guest call", &["refused"]),
];

/// Whether it is the outcome of a host call. A guest's call may have the same name, and never a host's status.
fn is_of_host(cell: &Cell) -> bool {
    let is_call = cell.what == "an unknown call" || hvc::CALLS.iter().any(|call| call.name == cell.what);
    is_call && (cell.what == "VCPU_RUN" || hvc::STATUSES.iter().any(|status| status.name == cell.outcome))
}

/// Every outcome of every host call, as documented: hit, or with a reason.
///
/// # Errors
/// Those that are neither, and reasons for what was hit all the same.
pub(crate) fn judge(tally: &Tally) -> Result<String, String> {
    let (mut hit, mut missing, mut idle, mut text) = (0, Vec::new(), Vec::new(), String::new());
    for call in hvc::CALLS {
        for outcome in call.errors.iter().copied().chain(["SUCCESS"]) {
            let is_run = call.id == hvc::VCPU_RUN && outcome == "SUCCESS";
            let seen = tally.cells.keys().any(|cell| {
                cell.what == call.name && (cell.outcome == outcome || is_run && cell.outcome.starts_with("EXIT_"))
            });
            let reason = ELSEWHERE.iter().find(|(name, outcomes, _)| *name == call.name && outcomes.contains(&outcome));
            match (seen, reason) {
                (true, None) => hit += 1,
                (true, Some(_)) => idle.push(format!("{} {outcome}", call.name)),
                (false, Some((_, _, why))) => text.push_str(&format!("  {} {outcome}: {why}\n", call.name)),
                (false, None) => missing.push(format!("{} {outcome}", call.name)),
            }
        }
    }
    for exit in hvc::EXITS {
        let excused = ELSEWHERE.iter().any(|(name, outcomes, _)| *name == "VCPU_RUN" && outcomes.contains(&exit.name));
        if !excused && !tally.cells.keys().any(|cell| cell.what == "VCPU_RUN" && cell.outcome == exit.name) {
            missing.push(format!("VCPU_RUN {}", exit.name));
        }
    }
    for (cell, _) in tally.cells.iter().filter(|(cell, _)| !is_of_host(cell)) {
        if !GUESTS.iter().any(|(what, outcomes)| *what == cell.what && outcomes.contains(&cell.outcome)) {
            idle.push(format!("{} {}", cell.what, cell.outcome));
        }
    }
    for (what, outcome) in GUESTS.iter().flat_map(|(what, outcomes)| outcomes.iter().map(move |o| (*what, *o))) {
        match tally.cells.contains_key(&Cell { what, outcome }) {
            true => hit += 1,
            false => missing.push(format!("{what} {outcome}")),
        }
    }
    if missing.is_empty() && idle.is_empty() {
        Ok(format!(
            "{hit} documented outcomes of host calls and outcomes of what guests do were hit, and every exit; not here:\n{text}"
        ))
    } else {
        Err(format!("never hit: {}\nhit, and listed as not to be: {}", missing.join(", "), idle.join(", ")))
    }
}
