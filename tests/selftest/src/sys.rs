// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the checks ask of the kernel.

use std::time::Duration;

/// Waits until the console has taken all that was printed: the kernel sends it in the background, and a machine that is
/// switched off meanwhile loses the rest.
pub(crate) fn drain() {
    // SAFETY: a plain number. Where standard output is no terminal there is nothing to wait for.
    unsafe { libc::tcdrain(1) };
}

/// CPUs that are online, as the kernel lists them: `0-1,3`.
pub(crate) fn online() -> usize {
    let list = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    let count = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(last.parse::<usize>().ok()? + 1 - first.parse::<usize>().ok()?)
    };
    list.trim().split(',').filter_map(count).sum()
}

/// Keeps this thread on one CPU; false if the kernel does not want that.
pub(crate) fn pin_to(cpu: usize) -> bool {
    // SAFETY: all zeroes is an empty CPU set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is ours; CPU_SET checks the bound.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the set is alive during the call.
    let done = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
    done == 0 && here() == cpu
}

/// The CPU that this thread is on.
pub(crate) fn here() -> usize {
    // SAFETY: asks for a number.
    usize::try_from(unsafe { libc::sched_getcpu() }).unwrap_or(usize::MAX)
}

/// Runs `work` on each of `cpus` at the same time, in a thread that stays there.
pub(crate) fn on_each<T: Send>(
    cpus: impl IntoIterator<Item = usize>,
    work: impl Fn(usize) -> Result<T, String> + Sync,
) -> Result<Vec<T>, String> {
    let work = &work;
    std::thread::scope(|scope| {
        let pinned = move |cpu| if pin_to(cpu) { work(cpu) } else { Err(format!("no thread runs on CPU {cpu}")) };
        let threads: Vec<_> = cpus.into_iter().map(|cpu| scope.spawn(move || pinned(cpu))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err("a thread died".to_owned()))).collect()
    })
}

/// Time since boot by the kernel's monotonic clock.
pub(crate) fn monotonic() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure has room for the answer.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// How often this thread lost its CPU to another.
pub(crate) fn preemptions() -> u64 {
    // SAFETY: all zeroes is a value of this plain structure.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the structure has room for the answer.
    unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) };
    usage.ru_nivcsw.unsigned_abs()
}
