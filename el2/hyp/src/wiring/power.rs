// SPDX-License-Identifier: MIT OR Apache-2.0
//! SMCs of the host: the relay decides, this carries out (D12).
//!
//! Keeps "no CPU runs EL1 without stage 2": the entry address that firmware gets is always ours.

use super::{Kind, statics};
use crate::calls;
use core::marker::PhantomData;
use core::ptr::from_ref;
use freehold_arch::percpu::{self, PerCpu};
use freehold_arch::vectors::HostFrame;
use freehold_arch::{entry, smc};
use freehold_virt::psci::{Affinity, Firmware, Reply, SuspendKind};

const CPU_ON_64: u32 = 0xc400_0003;
const CPU_SUSPEND_64: u32 = 0xc400_0001;
const CPU_DEFAULT_SUSPEND_64: u32 = 0xc400_000c;
const SYSTEM_SUSPEND_64: u32 = 0xc400_000e;
const PSCI_FEATURES: u32 = 0x8400_000a;
const CPU_SUSPEND_EXTENDED: i64 = 1 << 1;

/// Serves one SMC. The program counter is behind it already.
#[inline(never)]
pub(crate) fn smc<K: Kind>(cpu: &PerCpu, immediate: u16, frame: &mut HostFrame) {
    let relay = statics::machine::<K>().relay();
    let arguments = core::array::from_fn(|n| frame.x(n));
    match relay.smc(cpu.index(), immediate, arguments, &mut Below::<K>(PhantomData)) {
        Reply::Status(status) => frame.set_x(0, status.cast_unsigned()),
        Reply::Results(results) => {
            for (n, result) in results.into_iter().enumerate() {
                frame.set_x(n, result);
            }
        }
    }
}

/// Whether firmware writes power states in the extended format.
pub(crate) fn has_extended_power_state() -> bool {
    let features = smc::call(PSCI_FEATURES, CPU_SUSPEND_64.into(), 0, 0);
    features >= 0 && features & CPU_SUSPEND_EXTENDED != 0
}

/// The firmware below EL2.
struct Below<K>(PhantomData<K>);

impl<K: Kind> Firmware for Below<K> {
    fn call(&mut self, x: [u64; 4]) -> [u64; 4] {
        let mut arguments = [0; 18];
        arguments[..4].copy_from_slice(&x);
        let results = smc::forward(arguments);
        core::array::from_fn(|n| results[n])
    }

    fn cpu_on(&mut self, target: Affinity, cpu: usize) -> i64 {
        match percpu::all().get(cpu) {
            Some(record) => smc::call(CPU_ON_64, target.get(), entry::secondary_address(), context_of(record)),
            None => freehold_virt::psci::code::INVALID_PARAMETERS,
        }
    }

    fn suspend(&mut self, kind: SuspendKind, power_state: u64, cpu: usize) -> i64 {
        let Some(record) = percpu::all().get(cpu) else {
            return freehold_virt::psci::code::DENIED;
        };
        let (entry, context) = (entry::secondary_address(), context_of(record));
        match kind {
            SuspendKind::Cpu => smc::call(CPU_SUSPEND_64, power_state, entry, context),
            SuspendKind::Default => smc::call(CPU_DEFAULT_SUSPEND_64, entry, context, 0),
            SuspendKind::System => smc::call(SYSTEM_SUSPEND_64, entry, context, 0),
        }
    }

    fn quiesce(&mut self) -> bool {
        calls::quiesce(&K::PLATFORM)
    }

    fn reopen(&mut self) {
        calls::reopen(&K::PLATFORM);
    }
}

fn context_of(record: &'static PerCpu) -> u64 {
    from_ref(record).addr() as u64
}
