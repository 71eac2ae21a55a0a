// SPDX-License-Identifier: MIT OR Apache-2.0
//! CPUs: all there, reached by each other's interrupts, taken out and put back.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use crate::sys;

/// Times that a byte goes from one CPU to another and back.
const ROUNDS: u32 = 50;
/// Barriers on every CPU.
const BARRIERS: u32 = 50;

/// Whether so many CPUs are online, and each runs what is put on it.
pub(crate) fn online(expected: usize) -> Result<String, String> {
    let there = sys::online();
    let ran = sys::on_each(0..there, |_| Ok(sys::here()))?;
    let what = format!("{there} of {expected}");
    if there == expected && ran.into_iter().eq(0..expected) { Ok(what) } else { Err(what) }
}

/// Sends a byte from each CPU to the next and back; each way wakes a thread that sleeps on another CPU.
pub(crate) fn messages() -> Result<String, String> {
    let cpus = sys::online();
    if cpus < 2 {
        return Ok("one CPU has nobody to write to".to_owned());
    }
    let before = interrupts()?;
    for cpu in 0..cpus {
        let (here, there) = UnixStream::pair().map_err(|e| e.to_string())?;
        let ends = [(cpu, here), ((cpu + 1) % cpus, there)];
        sys::on_each([0, 1], |_| Ok(()))?;
        std::thread::scope(|scope| {
            let threads = ends.map(|(on, end)| scope.spawn(move || play(on, end, on == cpu)));
            threads.into_iter().try_for_each(|t| t.join().unwrap_or_else(|_| Err("a thread died".to_owned())))
        })?;
    }
    let raised = interrupts()? - before;
    let what = format!("{raised} interrupts for {} ways over {cpus} CPUs", u64::from(ROUNDS) * 2 * cpus as u64);
    if raised > 0 { Ok(what) } else { Err(what) }
}

fn play(cpu: usize, mut end: UnixStream, begins: bool) -> Result<(), String> {
    if !sys::pin_to(cpu) {
        return Err(format!("no thread runs on CPU {cpu}"));
    }
    let mut byte = [0];
    for round in 0..ROUNDS {
        let mark = (round % 251) as u8;
        if begins {
            end.write_all(&[mark]).map_err(|e| e.to_string())?;
        }
        end.read_exact(&mut byte).map_err(|e| e.to_string())?;
        if byte[0] != mark {
            return Err(format!("CPU {cpu} read {} for {mark}", byte[0]));
        }
        if !begins {
            end.write_all(&byte).map_err(|e| e.to_string())?;
        }
    }
    Ok(())
}

/// Interrupts between CPUs so far: the kernel's lines `IPI0:` to `IPI9:`, all CPUs together.
fn interrupts() -> Result<u64, String> {
    let text = std::fs::read_to_string("/proc/interrupts").map_err(|e| e.to_string())?;
    let lines = text.lines().filter(|line| line.trim_start().starts_with("IPI"));
    Ok(lines.flat_map(|line| line.split_whitespace().skip(1).map_while(|n| n.parse::<u64>().ok())).sum())
}

const REGISTER: libc::c_int = 1 << 4;
const EXPEDITED: libc::c_int = 1 << 3;

/// Has every CPU that runs this program pass a barrier; the kernel asks by interrupts.
pub(crate) fn barriers() -> Result<String, String> {
    let membarrier = |command: libc::c_int| {
        // SAFETY: plain numbers.
        let done = unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) };
        if done < 0 { Err(format!("membarrier({command}): {}", std::io::Error::last_os_error())) } else { Ok(()) }
    };
    membarrier(REGISTER)?;
    let cpus = sys::online();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let before = interrupts()?;
    std::thread::scope(|scope| {
        for cpu in 0..cpus {
            let stop = &stop;
            scope.spawn(move || {
                sys::pin_to(cpu);
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let done = (0..BARRIERS).try_for_each(|_| {
            std::thread::yield_now();
            membarrier(EXPEDITED)
        });
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        done
    })?;
    let raised = interrupts()? - before;
    let what = format!("{BARRIERS} barriers over {cpus} CPUs, {raised} interrupts");
    if cpus < 2 || raised > 0 { Ok(what) } else { Err(what) }
}

/// Takes each CPU but the first out and puts it back.
pub(crate) fn hotplug() -> Result<String, String> {
    let cpus = sys::online();
    for cpu in 1..cpus {
        let file = format!("/sys/devices/system/cpu/cpu{cpu}/online");
        let switch = |to: &str| std::fs::write(&file, to).map_err(|e| format!("CPU {cpu} to {to}: {e}"));
        switch("0")?;
        let (left, there) = (sys::online(), sys::pin_to(cpu));
        if left != cpus - 1 || there {
            return Err(format!("CPU {cpu} is out: {left} online, a thread runs there: {there}"));
        }
        switch("1")?;
        if sys::online() != cpus {
            return Err(format!("CPU {cpu} is back: {} online", sys::online()));
        }
        sys::on_each([cpu], |_| Ok(()))?;
    }
    Ok(format!("{} out and back", cpus.saturating_sub(1)))
}
