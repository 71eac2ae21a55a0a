// SPDX-License-Identifier: MIT OR Apache-2.0
//! What stands in the pool frame of a vCPU.

use freehold_virt::registers;
use freehold_virt::setting::Setting;
use freehold_virt::vcpu::Vcpu;

/// The registers of a vCPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Registers {
    pub(crate) x: [u64; 31],
    pub(crate) pc: u64,
    pub(crate) pstate: u64,
    pub(crate) injected: u64,
    /// Stands for each of the others.
    pub(crate) kept: u64,
}

impl registers::Registers for Registers {
    fn x(&self, n: u8) -> u64 {
        self.x.get(usize::from(n)).copied().unwrap_or(0)
    }
    fn set_x(&mut self, n: u8, value: u64) {
        if let Some(x) = self.x.get_mut(usize::from(n)) {
            *x = value;
        }
    }
    fn pc(&self) -> u64 {
        self.pc
    }
    fn set_pc(&mut self, pc: u64) {
        self.pc = pc;
    }
    fn pstate(&self) -> u64 {
        self.pstate
    }
    fn set_pstate(&mut self, pstate: u64) {
        self.pstate = pstate;
    }
    fn kept(&mut self, _: usize) -> Option<&mut u64> {
        Some(&mut self.kept)
    }
    fn inject(&mut self, _: u64, _: Option<u64>) {
        self.injected += 1;
    }
}

/// A vCPU's frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) registers: Registers,
    pub(crate) vcpu: Vcpu,
    pub(crate) setting: Option<Setting>,
}

impl Block {
    /// As after a reset.
    pub(crate) const fn new() -> Self {
        let registers = Registers { x: [0; 31], pc: 0, pstate: 0x3c5, injected: 0, kept: 0 };
        Self { registers, vcpu: Vcpu::new(), setting: None }
    }
}
