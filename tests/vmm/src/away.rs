// SPDX-License-Identifier: MIT OR Apache-2.0
//! Work that the kernel has for a thread on its way back to its process (task_work, restartable sequences) waits for no
//! exit of a guest, and the VMM sees nothing of it.
//!
//! Shown by the place at which the kernel tells a thread on which CPU it is (`rseq(2)`), written on that way only.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::machine::{Event, Machine};
use crate::proto::CMD_SPIN;
use crate::sys::{self, errno_name, last_errno};
use crate::vgic::{STEP, interrupt, let_signals_interrupt, myself};

/// `struct rseq`: words, of which the second is the CPU.
#[repr(C, align(32))]
struct Place([AtomicU32; 8]);

static PLACE: Place = Place([const { AtomicU32::new(0) }; 8]);
/// Of the abort handlers that there are none of.
const SIGNATURE: u32 = 0x5305_3053;
const UNREGISTER: i32 = 1;
/// Moves from one CPU to another.
const MOVES: u32 = 20;
/// How long the kernel may take to tell.
const PATIENCE: Duration = Duration::from_secs(60);

fn register(flags: i32) -> Result<(), String> {
    // SAFETY: the place lives for ever and has the size that is said.
    let done = unsafe { libc::syscall(libc::SYS_rseq, &raw const PLACE, size_of::<Place>(), flags, SIGNATURE) };
    if done == 0 { Ok(()) } else { Err(format!("rseq: {}", errno_name(last_errno()))) }
}

/// Moves the thread to and fro; after how many moves the kernel told it.
fn moved(thread: libc::pid_t) -> usize {
    let told = |cpu: u32| {
        sys::allow(thread, &[cpu as usize]);
        let start = Instant::now();
        while PLACE.0[1].load(Ordering::Relaxed) != cpu {
            if start.elapsed() > PATIENCE {
                return false;
            }
            std::thread::yield_now();
        }
        true
    };
    (1..=MOVES).take_while(|n| told(n % 2)).count()
}

/// A thread whose guest makes no exit is told where it is, each time that it is moved.
pub(crate) fn from_a_guest_that_spins(mut machine: Machine) -> Result<(), String> {
    let_signals_interrupt();
    let thread = myself();
    register(0)?;
    machine.answer(CMD_SPIN, [u64::MAX >> 1, 0, 0]);
    let (event, told) = std::thread::scope(|scope| {
        let mover = scope.spawn(|| {
            let told = moved(thread);
            interrupt(thread);
            told
        });
        (machine.step(), mover.join().ok())
    });
    register(UNREGISTER)?;
    let all: Vec<usize> = (0..sys::cpus()).collect();
    sys::allow(thread, &all);
    STEP.same("a thread whose guest spins is told of each move", format!("Some({MOVES})"), format!("{told:?}"));
    STEP.same("and its VMM of nothing but the signal", format!("{:?}", Event::Interrupted), format!("{event:?}"));
    Ok(())
}
