// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a switch between the host and a guest stops and forgets, by its instructions: the host's observers stand still
//! while a guest runs, and where a guest's last abort was is not there any more when another one's host asks.

use anyhow::Result;

use super::code::Code;
use super::ports::Port;

/// Words with a register in the low bits, cleared here.
pub(super) const SET_FAR: u32 = 0xd51c_6000;
pub(super) const SET_MDSCR: u32 = 0xd510_0240;
/// `MSR PMCNTENCLR_EL0`.
pub(super) const STOP_COUNTERS: u32 = 0xd51b_9c40;

pub(super) const STOP: &str = "HostProfiling::stop";
const BEFORE: &str = "switch::leave_host";
const AFTER: &str = "switch::leave";

/// What a switch leaves running, or behind.
pub(super) fn judge(code: &Code) -> Result<Vec<String>> {
    let (stop, before, after) = (Port::named(code, STOP)?, Port::named(code, BEFORE)?, Port::named(code, AFTER)?);
    let stops = before.always(before.function.start, &|at| before.goes(at, &stop));
    let steps = stop.always(stop.function.start, &|at| stop.is(at, SET_MDSCR));
    let rules = [
        (stops, "the host is left while its observers go on"),
        (steps, "the host's breakpoints and steps go on"),
        (!stop.places(STOP_COUNTERS).is_empty(), "the host's counters go on"),
        (!after.places(SET_FAR).is_empty(), "where a guest's last abort was stays in FAR_EL2"),
    ];
    Ok(rules.iter().filter(|(holds, _)| !holds).map(|(_, what)| (*what).to_owned()).collect())
}
