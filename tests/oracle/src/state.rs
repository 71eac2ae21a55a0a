// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the specification reads and writes: records, by any means.

use crate::record::{Mark, Page, Vcpu, Vm};

/// What is fixed about a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Machine {
    /// VM slots; 0 where VMs can not run.
    pub slots: u8,
    /// vCPUs per VM.
    pub vcpus: u8,
    /// CPUs.
    pub cpus: u8,
    /// RAM ranges per VM.
    pub ranges: u8,
    /// Ordinary VMs are served.
    pub ordinary: bool,
}

/// Records of a machine, whole or in part.
///
/// A part must hold every record that an operation reads. Slots, vCPUs and CPUs are below [`Machine`]'s numbers.
pub trait State {
    /// What is fixed.
    fn machine(&self) -> Machine;
    /// The record of a frame; [`Owner::NotMemory`](crate::Owner::NotMemory) outside of RAM.
    fn page(&self, pfn: u64) -> Page;
    /// Changes it. Never called outside of RAM.
    fn set_page(&mut self, pfn: u64, page: Page);
    /// The page that this VM owns as its guest frame: the inverse of the pages' owners.
    fn backing(&self, slot: u8, gfn: u64) -> Option<u64>;
    /// What else the guest frame is.
    fn mark(&self, slot: u8, gfn: u64) -> Mark;
    /// Changes it.
    fn set_mark(&mut self, slot: u8, gfn: u64, mark: Mark);
    /// The record of a slot.
    fn vm(&self, slot: u8) -> Vm;
    /// Changes it.
    fn set_vm(&mut self, slot: u8, vm: Vm);
    /// The VM's `n`th declared range: first guest frame and count.
    fn range(&self, slot: u8, n: u8) -> Option<(u64, u64)>;
    /// Declares one more.
    fn add_range(&mut self, slot: u8, gfn: u64, count: u64);
    /// Forgets ranges, marks and vCPUs of a slot whose VM has ended.
    fn clear_slot(&mut self, slot: u8);
    /// The record of a vCPU.
    fn vcpu(&self, slot: u8, vcpu: u8) -> Vcpu;
    /// Changes it.
    fn set_vcpu(&mut self, slot: u8, vcpu: u8, record: Vcpu);
    /// The slot and vCPU that a CPU runs.
    fn cpu(&self, cpu: u8) -> Option<(u8, u8)>;
    /// Changes it.
    fn set_cpu(&mut self, cpu: u8, runs: Option<(u8, u8)>);
}
