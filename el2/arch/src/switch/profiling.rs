// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the host could watch a guest with: performance counters, statistical profiling, trace and
//! branch buffers, single stepping and breakpoints. All stand still while a guest runs.
//!
//! The buffers are drained before, because they are written with the translation in force (SPE:
//! Arm ARM D14.7, TRBE: D6.5). QEMU has none of the three buffers: that part is untested there.

use crate::barrier;
use crate::features::Has;

/// PMBLIMITR_EL1.E and TRBLIMITR_EL1.E.
const BUFFER_ENABLED: u64 = 1;
const ALL: u64 = u64::MAX;

/// The host's observers, as they were.
#[derive(Clone, Copy, Debug)]
pub(super) struct HostProfiling {
    mdscr: u64,
    counters: u64,
    spe_control: u64,
    spe_limit: u64,
    trace_filter: u64,
    trace_limit: u64,
    branch_control: u64,
}

impl HostProfiling {
    pub(super) const fn new() -> Self {
        Self { mdscr: 0, counters: 0, spe_control: 0, spe_limit: 0, trace_filter: 0, trace_limit: 0, branch_control: 0 }
    }

    /// Stops all of them. A DSB must follow before stage 2 changes. Not in line: the check of the linked image judges it.
    #[inline(never)]
    pub(super) fn stop(&mut self, ids: Has) {
        self.mdscr = read_sysreg!("mdscr_el1");
        write_sysreg!("mdscr_el1", 0);
        if ids.has_pmu() {
            self.counters = read_sysreg!("s3_3_c9_c12_1"); // PMCNTENSET_EL0
            if self.counters != 0 {
                write_sysreg!("s3_3_c9_c12_2", ALL); // PMCNTENCLR_EL0
            }
        }
        if ids.has_spe_buffer() {
            self.stop_sampling();
        }
        if ids.has_trace_filter() {
            self.trace_filter = read_sysreg!("s3_0_c1_c2_1"); // TRFCR_EL1
            write_sysreg!("s3_0_c1_c2_1", 0);
        }
        if ids.has_trace_buffer() {
            self.stop_tracing();
        }
        if ids.has_brbe() {
            self.branch_control = read_sysreg!("s2_1_c9_c0_0"); // BRBCR_EL1
            write_sysreg!("s2_1_c9_c0_0", 0);
        }
    }

    /// Lets them go on.
    pub(super) fn resume(&self, ids: Has) {
        write_sysreg!("mdscr_el1", self.mdscr);
        if ids.has_pmu() && self.counters != 0 {
            write_sysreg!("s3_3_c9_c12_1", self.counters);
        }
        if ids.has_spe_buffer() {
            write_sysreg!("s3_0_c9_c10_0", self.spe_limit); // PMBLIMITR_EL1
            barrier::registers_in_effect();
            write_sysreg!("s3_0_c9_c9_0", self.spe_control); // PMSCR_EL1
        }
        if ids.has_trace_buffer() {
            write_sysreg!("s3_0_c9_c11_0", self.trace_limit); // TRBLIMITR_EL1
            barrier::registers_in_effect();
        }
        if ids.has_trace_filter() {
            write_sysreg!("s3_0_c1_c2_1", self.trace_filter);
        }
        if ids.has_brbe() {
            write_sysreg!("s2_1_c9_c0_0", self.branch_control);
        }
    }

    fn stop_sampling(&mut self) {
        self.spe_control = read_sysreg!("s3_0_c9_c9_0"); // PMSCR_EL1
        self.spe_limit = read_sysreg!("s3_0_c9_c10_0"); // PMBLIMITR_EL1
        write_sysreg!("s3_0_c9_c9_0", 0);
        if self.spe_limit & BUFFER_ENABLED != 0 {
            barrier::registers_in_effect();
            barrier::profiling_drained();
            write_sysreg!("s3_0_c9_c10_0", 0);
            barrier::registers_in_effect();
        }
    }

    fn stop_tracing(&mut self) {
        self.trace_limit = read_sysreg!("s3_0_c9_c11_0"); // TRBLIMITR_EL1
        if self.trace_limit & BUFFER_ENABLED != 0 {
            barrier::registers_in_effect();
            barrier::trace_drained();
            write_sysreg!("s3_0_c9_c11_0", 0);
            barrier::registers_in_effect();
        }
    }
}
