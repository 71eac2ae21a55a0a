// SPDX-License-Identifier: MIT OR Apache-2.0
//! Generic timer: the host has the physical timer and counter; the virtual offset is zero for ever.

/// EL1PCTEN and EL1PCEN: physical counter and timer are not trapped.
const CNTHCTL_HOST: u64 = 3;

pub(super) fn configure() {
    write_sysreg!("cnthctl_el2", CNTHCTL_HOST);
    write_sysreg!("cntvoff_el2", 0);
    write_sysreg!("cnthp_ctl_el2", 0);
}
