// SPDX-License-Identifier: MIT OR Apache-2.0
//! One thread for each vCPU, until the first of them ends or the user wants out.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use freehold_uapi::{hvc, ioctl as abi};
use freehold_vmm_boot::args::End;
use freehold_vmm_boot::console::{Console, Lines, Wrong};
use freehold_vmm_boot::layout;
use freehold_vmm_boot::tally::{Exit, Tally};
use kvm_bindings::KVM_ARM_IRQ_TYPE_SPI;
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use vm_superio::Trigger;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::output::{Output, Patience, watched};
use super::terminal;
use super::vm::Vm;
use crate::raw::status_name;
use crate::sys::errno_name;

/// Why the VM runs no more.
pub(super) enum Ended {
    /// By the guest or the user, and what is known of it.
    By(End, String),
    /// The driver says no.
    Failed(String),
}

/// The serial port's wire: each event is an edge.
pub(super) struct Wire(Arc<VmFd>);

impl Trigger for Wire {
    type E = kvm_ioctls::Error;

    fn trigger(&self) -> Result<(), Self::E> {
        let line = KVM_ARM_IRQ_TYPE_SPI << 24 | (32 + layout::SERIAL_SPI);
        self.0.set_irq_line(line, true)?;
        self.0.set_irq_line(line, false)
    }
}

/// What all threads share.
pub(super) struct Shared {
    console: Mutex<Console<Wire, Lines>>,
    output: Output,
    stop: AtomicBool,
    end: Mutex<Option<Ended>>,
    /// Told of the first end.
    pub(super) ended: EventFd,
}

impl Shared {
    /// The guest's port. Nobody waits while holding it.
    pub(super) fn console(&self) -> MutexGuard<'_, Console<Wire, Lines>> {
        self.console.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves a store to the port, and puts out what was printed; how the VM ended by it.
    fn store(&self, address: u64, data: &[u8]) -> Option<Ended> {
        let mut console = self.console();
        let done = console.store(address, data);
        let ready = console.out().is_ready();
        drop(console);
        if !ready {
            return refused(done);
        }
        let put = self.output.put(|| self.console().out().take(), &self.ended, Patience::Endless);
        refused(done).or(put.err().map(Ended::Failed))
    }

    /// Ends the VM, unless it has ended already.
    pub(super) fn end(&self, how: Ended) {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(how);
        self.stop.store(true, Ordering::SeqCst);
        // It can fail only if it was told 2^64 times before.
        let _ = self.ended.write(1);
    }
}

thread_local! {
    /// `immediate_exit` of the vCPU that this thread runs.
    static IMMEDIATE: Cell<*mut u8> = const { Cell::new(std::ptr::null_mut()) };
}

/// A kick: what comes before the next entry makes it come back at once.
extern "C" fn kicked(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    IMMEDIATE.with(|immediate| {
        if !immediate.get().is_null() {
            // SAFETY: the run page stays mapped as long as its thread names it, and this is that thread.
            unsafe { immediate.get().write_volatile(1) }
        }
    });
}

/// Runs all vCPUs of `vm` until it ends; how, and how often each came out.
pub(super) fn run_all(vm: Vm) -> Result<(Vec<Tally>, Ended), String> {
    register_signal_handler(SIGRTMIN(), kicked).map_err(|e| format!("sigaction: {}", errno_name(e.errno())))?;
    let Vm { vm, vcpus, ram, .. } = vm;
    let shared = Arc::new(Shared {
        console: Mutex::new(Console::new(Wire(Arc::new(vm)), Lines::new(watched()))),
        output: Output::default(),
        stop: AtomicBool::new(false),
        end: Mutex::new(None),
        ended: EventFd::new(0).map_err(|e| format!("eventfd: {e}"))?,
    });
    // Signals are for the thread that waits for them: blocked before there are others.
    let waiter = terminal::Waiter::new(&shared)?;
    let threads: Vec<JoinHandle<Tally>> = vcpus
        .into_iter()
        .enumerate()
        .map(|(index, vcpu)| (index, vcpu, Arc::clone(&shared)))
        .map(|(index, vcpu, shared)| std::thread::spawn(move || run(index, vcpu, &shared)))
        .collect();
    waiter.wait(&shared);
    for thread in &threads {
        // One that has gone already needs no kick.
        let _ = thread.kill(SIGRTMIN());
    }
    let tallies = threads.into_iter().map(|thread| thread.join().unwrap_or_default()).collect();
    drop(ram);
    let end = shared.end.lock().unwrap_or_else(PoisonError::into_inner).take();
    let end = end.unwrap_or_else(|| Ended::Failed("no vCPU runs".to_owned()));
    // A user who wants out waits for no reader, and a guest's last words only until a signal comes.
    let patience = if matches!(end, Ended::By(End::Quit, _)) { Patience::None } else { Patience::Endless };
    shared.output.put(|| shared.console().out().take_all(), waiter.signals(), patience)?;
    Ok((tallies, end))
}

/// Runs vCPU number `index` until the VM ends.
fn run(index: usize, mut vcpu: VcpuFd, shared: &Shared) -> Tally {
    let immediate = &raw mut vcpu.get_kvm_run().immediate_exit;
    IMMEDIATE.set(immediate);
    let mut tally = Tally::default();
    while !shared.stop.load(Ordering::SeqCst) {
        let (exit, end) = step(index, &mut vcpu, shared);
        tally.count(exit);
        if let Some(end) = end {
            shared.end(end);
        }
    }
    IMMEDIATE.set(std::ptr::null_mut());
    tally
}

/// Enters the guest once and serves what it came out for.
fn step(index: usize, vcpu: &mut VcpuFd, shared: &Shared) -> (Exit, Option<Ended>) {
    match vcpu.run() {
        Ok(VcpuExit::MmioRead(address, data)) => (Exit::Load, refused(shared.console().load(address, data))),
        Ok(VcpuExit::MmioWrite(address, data)) => (Exit::Store, shared.store(address, data)),
        Ok(VcpuExit::SystemEvent(kind, data)) => (Exit::Event, Some(event(index, kind, data))),
        Ok(VcpuExit::Intr) => (Exit::Signal, None),
        Ok(other) => (Exit::Broken, Some(broken(index, &other))),
        Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => (Exit::Signal, None),
        Err(error) => {
            let why = format!("vCPU {index}: KVM_RUN: {}", errno_name(error.errno()));
            (Exit::Broken, Some(Ended::Failed(why)))
        }
    }
}

/// What ends a VM that no guest asked for: `el2` refuses to run it, or an exit that nobody here knows.
pub(super) fn broken(index: usize, exit: &VcpuExit<'_>) -> Ended {
    if let VcpuExit::FailEntry(status, _) = exit {
        let why = status_name(status.cast_signed());
        return Ended::Failed(format!("vCPU {index}: el2 refuses to run it: {why}"));
    }
    Ended::By(End::Crash, format!("vCPU {index}: {exit:?}"))
}

fn refused(done: Result<(), Wrong>) -> Option<Ended> {
    done.err().map(|why| Ended::Failed(format!("the console: {why:?}")))
}

/// How a guest ended, and by which vCPU; of a crash what `el2` says of it.
fn event(index: usize, kind: u32, data: &[u64]) -> Ended {
    let why = match data.first().map(|code| (code, hvc::CRASHES.iter().find(|crash| crash.value as u64 == *code))) {
        Some((_, Some(crash))) => format!("{}:{}", crash.name, crash.doc.concat()),
        Some((code, None)) => format!("crash {code}"),
        None => "for a reason that nobody told".to_owned(),
    };
    match u64::from(kind) {
        abi::KVM_SYSTEM_EVENT_SHUTDOWN => Ended::By(End::PowerOff, String::new()),
        abi::KVM_SYSTEM_EVENT_RESET => Ended::By(End::Reset, String::new()),
        abi::KVM_SYSTEM_EVENT_CRASH => Ended::By(End::Crash, format!("vCPU {index}: {why}")),
        other => Ended::By(End::Crash, format!("vCPU {index}: system event {other}")),
    }
}
