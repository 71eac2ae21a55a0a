// SPDX-License-Identifier: MIT OR Apache-2.0
//! What el2 has counted since boot.

use super::hypercalls::vms;
use super::{Kind, statics};
use freehold_arch::percpu::{self, MAX_CPUS, PerCpu};
use freehold_mem::lock::Permit;
use freehold_mem::{Counters, PfnRun, confine};
use freehold_uapi::hvc;

/// One counter; `None` if there is no such counter or index.
pub(crate) fn counter<K: Kind>(permit: &mut Permit, which: u64, index: u64) -> Option<u64> {
    let mut memory = || memory::<K>(permit);
    let sum = |of: fn(&PerCpu) -> u64| percpu::all().iter().fold(0, |sum: u64, cpu| sum.saturating_add(of(cpu)));
    let value = match which {
        hvc::COUNTER_ENTRIES => {
            let cpu = usize::try_from(index).ok().filter(|cpu| *cpu < statics::machine::<K>().slots.len());
            let record = cpu.and_then(|cpu| percpu::all().get(confine(cpu, MAX_CPUS)))?;
            return Some(record.counters.entries.get());
        }
        hvc::COUNTER_CARVEOUT_BASE => return carve_out::<K>(permit, index, |run| run.start().raw()),
        hvc::COUNTER_CARVEOUT_FRAMES => return carve_out::<K>(permit, index, |run| run.count()),
        _ if index != 0 => return None,
        hvc::COUNTER_HOST_FAULTS => sum(|cpu| cpu.counters.faults.get()),
        hvc::COUNTER_INJECTED => sum(|cpu| cpu.counters.injected.get()),
        hvc::COUNTER_HOST_BLOCKS => memory().blocks,
        hvc::COUNTER_HOST_TABLES => memory().tables,
        hvc::COUNTER_TLB_BROADCASTS => memory().broadcasts,
        hvc::COUNTER_SPLITS => memory().splits,
        hvc::COUNTER_JOINS => memory().joins,
        hvc::COUNTER_FOREIGN_FRAMES => memory().foreign,
        hvc::COUNTER_TABLES_FREE => memory().tables_free,
        hvc::COUNTER_CPUS => statics::machine::<K>().slots.len() as u64,
        hvc::COUNTER_VMS => vms().count(),
        _ => return None,
    };
    Some(value)
}

fn memory<K: Kind>(permit: &mut Permit) -> Counters {
    let mut host = statics::machine::<K>().world.host(permit);
    host.get().counters()
}

fn carve_out<K: Kind>(permit: &mut Permit, index: u64, of: fn(&PfnRun) -> u64) -> Option<u64> {
    let mut host = statics::machine::<K>().world.host(permit);
    let run = usize::try_from(index).ok().and_then(|index| host.get().map().carve_outs().nth(index));
    run.map(|run| of(&run))
}
