// SPDX-License-Identifier: MIT OR Apache-2.0
//! Barriers where the architecture and the design ask for them, on the instructions themselves.

#![expect(clippy::wildcard_enum_match_arm, reason = "most instructions are nothing to the question that is asked")]

use std::collections::BTreeSet;

use super::code::{Code, Does, Dsb};

/// Instructions between a store to a table and the barrier in front of a TLB invalidation are looked through so far back.
const BACK: u64 = 6;

/// Every exception return is followed by what stops speculation past it. Returns how many there are.
pub(super) fn exception_returns(code: &Code, found: &mut Vec<String>) -> usize {
    let mut count = 0;
    for (at, _) in code.all().filter(|(_, does)| *does == Does::ExceptionReturn) {
        count += 1;
        let behind = (code.does(at + 4), code.does(at + 8));
        let stops = matches!(behind, (Some(Does::Sb), _) | (Some(Does::Dsb(_)), Some(Does::Isb)));
        if !stops {
            found.push(format!("{}: an exception return without SB, or DSB and ISB, behind it", code.shown(at)));
        }
    }
    count
}

/// From an exception of a lower level on, no return and no jump through a register comes before the branch history is
/// forgotten.
pub(super) fn forgets_branches(code: &Code, entries: &[u64], forget: u64, found: &mut Vec<String>) {
    for entry in entries {
        let mut seen = BTreeSet::from([*entry]);
        let mut todo = vec![*entry];
        let mut forgot = false;
        while let Some(at) = todo.pop() {
            let next = match code.does(at) {
                Some(Does::Call(to) | Does::Jump(to)) if to == forget => {
                    forgot = true;
                    vec![]
                }
                Some(Does::Jump(to)) => vec![to],
                Some(Does::Branch(to)) => vec![to, at + 4],
                Some(
                    Does::Call(_) | Does::JumpRegister | Does::CallRegister | Does::Return | Does::ExceptionReturn,
                ) => {
                    found.push(format!("{}: before the branch history is forgotten", code.shown(at)));
                    vec![]
                }
                Some(Does::Trap) | None => vec![],
                Some(_) => vec![at + 4],
            };
            todo.extend(next.into_iter().filter(|at| seen.insert(*at)));
        }
        if !forgot {
            found.push(format!("{}: the branch history is never forgotten", code.shown(*entry)));
        }
    }
    let Some(function) = code.function(forget) else { return };
    let body: Vec<Does> = (forget..function.end).step_by(4).filter_map(|at| code.does(at)).collect();
    let ends = body.windows(2).any(|pair| pair == [Does::Dsb(Dsb::Here), Does::Isb]);
    if !body.contains(&Does::ClearBranches) || !ends {
        found.push("what forgets the branch history lacks CLRBHB, or its DSB and ISB".to_owned());
    }
}

/// TLB and cache maintenance is waited for on every way onwards, and a broadcast comes after the stores before it are
/// visible. Returns how many such instructions there are.
pub(super) fn maintenance(code: &Code, found: &mut Vec<String>) -> usize {
    let mut count = 0;
    for (at, does) in code.all() {
        let enough: &[Dsb] = match does {
            Does::Tlbi { broadcast: true } | Does::TlbiAgain | Does::DropFetches => &[Dsb::Inner, Dsb::System],
            Does::Tlbi { broadcast: false } => &[Dsb::Here, Dsb::Inner, Dsb::System],
            Does::CleanData => &[Dsb::System],
            Does::TlbiVmidHere => {
                found.push(format!("{}: a VM's translations end on one CPU only", code.shown(at)));
                continue;
            }
            _ => continue,
        };
        count += 1;
        if !waits(code, at, enough) {
            found.push(format!("{}: {does:?} is not waited for on every way", code.shown(at)));
        }
        if does == (Does::Tlbi { broadcast: true }) && !is_after_stores(code, at) {
            found.push(format!("{}: a broadcast before earlier stores are visible", code.shown(at)));
        }
        if does == (Does::Tlbi { broadcast: true }) && !is_repeated(code, at) {
            found.push(format!("{}: a broadcast whose wait is not repeated", code.shown(at)));
        }
    }
    count
}

fn waits(code: &Code, from: u64, enough: &[Dsb]) -> bool {
    let mut seen = BTreeSet::new();
    let mut todo = vec![from + 4];
    while let Some(at) = todo.pop() {
        let next = match code.does(at) {
            Some(Does::Dsb(dsb)) if enough.contains(&dsb) => vec![],
            Some(Does::Jump(to)) => vec![to],
            Some(Does::Branch(to)) => vec![to, at + 4],
            Some(
                Does::Call(_)
                | Does::JumpRegister
                | Does::CallRegister
                | Does::Return
                | Does::ExceptionReturn
                | Does::Trap,
            )
            | None => return false,
            Some(_) => vec![at + 4],
        };
        todo.extend(next.into_iter().filter(|at| seen.insert(*at)));
    }
    true
}

/// Whether the wait for a broadcast is followed by another broadcast, which [`maintenance`] sees waited for as well: on
/// some cores the first wait may end early.
fn is_repeated(code: &Code, at: u64) -> bool {
    let behind = (1..=BACK).map_while(|n| code.does(at + 4 * n)).skip_while(|does| !matches!(does, Does::Dsb(_)));
    behind.take_while(|does| matches!(does, Does::Dsb(_) | Does::Other | Does::TlbiAgain)).any(|d| d == Does::TlbiAgain)
}

fn is_after_stores(code: &Code, at: u64) -> bool {
    let before = (1..=BACK).map_while(|n| code.does(at.checked_sub(4 * n)?));
    before
        .take_while(|does| !matches!(does, Does::Jump(_) | Does::Branch(_) | Does::Call(_) | Does::Return))
        .any(|does| matches!(does, Does::Dsb(Dsb::StoresInner | Dsb::Inner | Dsb::System)))
}
