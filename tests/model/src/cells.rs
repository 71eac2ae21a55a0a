// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which documented outcomes were hit, and why the others can not be here.

use freehold_uapi::hvc;

use crate::lockstep::Tally;

/// Outcomes that these worlds do not have: call, outcomes, reason.
const ELSEWHERE: &[(&str, &[&str], &str)] = &[
    ("VCPU_RUN", &["EXIT_NEED_PAGES"], "no guest's call needs pages of the pool yet"),
    ("VCPU_RUN", &["EXIT_WAKE", "EXIT_OFF"], "one vCPU, which its guest leaves on; unit tests of freehold-el2"),
    ("VCPU_RUN", &["EXIT_EOI"], "guests here take no interrupts; unit tests of freehold-el2 and freehold-virt"),
    (
        "GUEST_ACCEPT",
        &["GFN_NOT_MAPPED", "SHARED"],
        "another vCPU of the VM would have to be quicker, and there is one",
    ),
    (
        "MEM_SHARE",
        &["NO_MAP", "EL2_OWNED", "ALREADY_DONATED", "FOREIGN", "SHARED", "GFN_MAPPED", "NEED_PAGES", "SUCCESS"],
        ORDINARY,
    ),
    ("MEM_UNSHARE", &["GFN_NOT_MAPPED", "SUCCESS"], ORDINARY),
];

const ORDINARY: &str =
    "no ordinary VM in these worlds, and a protected one is refused first; unit tests of freehold-el2";

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
    if missing.is_empty() && idle.is_empty() {
        Ok(format!("{hit} documented outcomes of host calls were hit, and every exit; not here:\n{text}"))
    } else {
        Err(format!("never hit: {}\nhit, and listed as not to be: {}", missing.join(", "), idle.join(", ")))
    }
}
