// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which el2 this is, and its counters.

use crate::statics::{self, VM_SLOTS};
use freehold_arch::percpu::{self, PerCpu};
use freehold_mem::lock::Permit;
use freehold_mem::{Counters, PfnRun};
use freehold_uapi::hvc;

type Results = Result<[u64; 4], i64>;

/// `VERSION`.
pub(super) fn version() -> Results {
    let slots = if statics::machine().serves_vms { VM_SLOTS as u64 } else { 0 };
    Ok([u64::from(freehold_uapi::ABI_VERSION), 1 << 8, slots, 8])
}

/// `COUNTER`.
pub(super) fn counter(which: u64, index: u64) -> Results {
    let sum = |of: fn(&PerCpu) -> u64| percpu::all().iter().map(of).sum::<u64>();
    let value = match which {
        hvc::COUNTER_ENTRIES => {
            let cpu = usize::try_from(index).ok().filter(|cpu| *cpu < statics::machine().slots.len());
            let record = cpu.and_then(|cpu| percpu::all().get(cpu)).ok_or(hvc::BAD_ARGUMENT)?;
            return Ok([record.counters.entries.get(), 0, 0, 0]);
        }
        hvc::COUNTER_CARVEOUT_BASE => return carve_out(index, |run| run.start().raw()),
        hvc::COUNTER_CARVEOUT_FRAMES => return carve_out(index, |run| run.count()),
        _ if index != 0 => return Err(hvc::BAD_ARGUMENT),
        hvc::COUNTER_HOST_FAULTS => sum(|cpu| cpu.counters.faults.get()),
        hvc::COUNTER_INJECTED => sum(|cpu| cpu.counters.injected.get()),
        hvc::COUNTER_HOST_BLOCKS => memory().blocks,
        hvc::COUNTER_HOST_TABLES => memory().tables,
        hvc::COUNTER_TLB_BROADCASTS => memory().broadcasts,
        hvc::COUNTER_SPLITS => memory().splits,
        hvc::COUNTER_JOINS => memory().joins,
        hvc::COUNTER_FOREIGN_FRAMES => memory().foreign,
        hvc::COUNTER_TABLES_FREE => memory().tables_free,
        hvc::COUNTER_CPUS => statics::machine().slots.len() as u64,
        hvc::COUNTER_HEAP_FREE | hvc::COUNTER_VMS => 0,
        _ => return Err(hvc::BAD_ARGUMENT),
    };
    Ok([value, 0, 0, 0])
}

fn memory() -> Counters {
    let mut permit = Permit::for_this_entry();
    let mut host = statics::machine().world.host(&mut permit);
    host.get().counters()
}

fn carve_out(index: u64, of: fn(&PfnRun) -> u64) -> Results {
    let mut permit = Permit::for_this_entry();
    let mut host = statics::machine().world.host(&mut permit);
    let run = usize::try_from(index).ok().and_then(|index| host.get().map().carve_outs().nth(index));
    run.map(|run| [of(&run), 0, 0, 0]).ok_or(hvc::BAD_ARGUMENT)
}
