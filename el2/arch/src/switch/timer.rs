// SPDX-License-Identifier: MIT OR Apache-2.0
//! The virtual timer: a guest's while it runs, off otherwise (D11). CNTVOFF_EL2 is zero for ever, so
//! nothing is switched but the comparator.

/// A guest's virtual timer.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct GuestTimer {
    control: u64,
    compare: u64,
}

impl GuestTimer {
    pub(super) const fn new() -> Self {
        Self { control: 0, compare: 0 }
    }

    /// Starts the guest's timer: the comparator first, so that it never fires for an old value.
    pub(super) fn load(&self) {
        write_sysreg!("cntv_cval_el0", self.compare);
        write_sysreg!("cntv_ctl_el0", self.control);
    }

    /// Stops it, and leaves no deadline for the host to read.
    pub(super) fn save_and_stop(&mut self) {
        self.control = read_sysreg!("cntv_ctl_el0");
        write_sysreg!("cntv_ctl_el0", 0);
        self.compare = read_sysreg!("cntv_cval_el0");
        write_sysreg!("cntv_cval_el0", 0);
    }
}
