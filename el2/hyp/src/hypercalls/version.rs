// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which el2 this is, and its counters.

use super::vms;
use crate::statics;
use freehold_arch::percpu::{self, PerCpu};
use freehold_mem::lock::Permit;
use freehold_mem::{Counters, PfnRun};
use freehold_uapi::hvc;
use freehold_virt::Refused;
use freehold_virt::call::Reply;
use freehold_virt::handle::{MAX_VCPUS, MAX_VMS};

/// `VERSION`.
pub(super) fn version() -> Reply {
    let slots = if statics::machine().serves_vms { MAX_VMS as u64 } else { 0 };
    Reply::success([u64::from(freehold_uapi::ABI_VERSION), 1 << 8, slots, MAX_VCPUS as u64])
}

/// `COUNTER`.
pub(super) fn counter(permit: &mut Permit, which: u64, index: u64) -> Result<Reply, Refused> {
    let mut memory = || memory(permit);
    let sum = |of: fn(&PerCpu) -> u64| percpu::all().iter().map(of).sum::<u64>();
    let value = match which {
        hvc::COUNTER_ENTRIES => {
            let cpu = usize::try_from(index).ok().filter(|cpu| *cpu < statics::machine().slots.len());
            let record = cpu.and_then(|cpu| percpu::all().get(cpu)).ok_or(Refused::BadArgument)?;
            return Ok(Reply::value(record.counters.entries.get()));
        }
        hvc::COUNTER_CARVEOUT_BASE => return carve_out(permit, index, |run| run.start().raw()),
        hvc::COUNTER_CARVEOUT_FRAMES => return carve_out(permit, index, |run| run.count()),
        _ if index != 0 => return Err(Refused::BadArgument),
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
        hvc::COUNTER_VMS => vms().count(),
        // Nothing is allocated after boot: everything is the image's, the carve-out's or a pool's.
        hvc::COUNTER_HEAP_FREE => 0,
        _ => return Err(Refused::BadArgument),
    };
    Ok(Reply::value(value))
}

fn memory(permit: &mut Permit) -> Counters {
    let mut host = statics::machine().world.host(permit);
    host.get().counters()
}

fn carve_out(permit: &mut Permit, index: u64, of: fn(&PfnRun) -> u64) -> Result<Reply, Refused> {
    let mut host = statics::machine().world.host(permit);
    let run = usize::try_from(index).ok().and_then(|index| host.get().map().carve_outs().nth(index));
    run.map(|run| Reply::value(of(&run))).ok_or(Refused::BadArgument)
}
