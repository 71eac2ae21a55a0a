// SPDX-License-Identifier: MIT OR Apache-2.0
//! The virtual timer: a guest's while it runs, off otherwise (D11). CNTVOFF_EL2 is zero for ever, so
//! nothing is switched but the comparator.

use freehold_virt::timer::Timer;

/// Starts the guest's timer: the comparator first, so that it never fires for an old value.
pub(super) fn load(timer: Timer) {
    let (control, compare) = timer.registers();
    write_sysreg!("cntv_cval_el0", compare);
    write_sysreg!("cntv_ctl_el0", control);
}

/// Stops it, and leaves no deadline for the host to read.
pub(super) fn save_and_stop() -> Timer {
    let control = read_sysreg!("cntv_ctl_el0");
    write_sysreg!("cntv_ctl_el0", 0);
    let compare = read_sysreg!("cntv_cval_el0");
    write_sysreg!("cntv_cval_el0", 0);
    Timer::of_registers(control, compare)
}

/// Has EL2's own timer bring the guest out at this time.
pub(super) fn limit(deadline: Option<u64>) {
    if let Some(deadline) = deadline {
        write_sysreg!("cnthp_cval_el2", deadline);
        write_sysreg!("cnthp_ctl_el2", 1);
    }
}

/// Stops EL2's own timer.
pub(super) fn lift_limit() {
    write_sysreg!("cnthp_ctl_el2", 0);
}
