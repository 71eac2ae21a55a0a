// SPDX-License-Identifier: MIT OR Apache-2.0
//! One thread for each vCPU, until the first of them ends or the user wants out.

use std::cell::Cell;
use std::io::Stdout;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use freehold_uapi::ioctl as abi;
use freehold_vmm_boot::args::End;
use freehold_vmm_boot::console::{Console, Lines};
use freehold_vmm_boot::layout;
use freehold_vmm_boot::tally::{Exit, Tally};
use kvm_bindings::KVM_ARM_IRQ_TYPE_SPI;
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use vm_superio::Trigger;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::terminal;
use super::vm::Vm;
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
    pub(super) console: Mutex<Console<Wire, Lines<Stdout>>>,
    stop: AtomicBool,
    end: Mutex<Option<Ended>>,
    /// Told of the first end.
    pub(super) ended: EventFd,
}

impl Shared {
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
    let out = Lines::new(std::io::stdout(), terminal::watched());
    let shared = Arc::new(Shared {
        console: Mutex::new(Console::new(Wire(Arc::new(vm)), out)),
        stop: AtomicBool::new(false),
        end: Mutex::new(None),
        ended: EventFd::new(0).map_err(|e| format!("eventfd: {e}"))?,
    });
    // Signals are for the thread that waits for them: blocked before there are others.
    let waiter = terminal::Waiter::new(&shared)?;
    let threads: Vec<JoinHandle<Tally>> = vcpus
        .into_iter()
        .map(|vcpu| (vcpu, Arc::clone(&shared)))
        .map(|(v, s)| std::thread::spawn(move || run(v, &s)))
        .collect();
    waiter.wait(&shared);
    drop(waiter);
    for thread in &threads {
        // One that has gone already needs no kick.
        let _ = thread.kill(SIGRTMIN());
    }
    let tallies = threads.into_iter().map(|thread| thread.join().unwrap_or_default()).collect();
    let mut console = shared.console.lock().unwrap_or_else(PoisonError::into_inner);
    console.out().finish().map_err(|e| format!("standard output: {e}"))?;
    drop(ram);
    let end = shared.end.lock().unwrap_or_else(PoisonError::into_inner).take();
    Ok((tallies, end.unwrap_or_else(|| Ended::Failed("no vCPU runs".to_owned()))))
}

/// Runs one vCPU until the VM ends.
fn run(mut vcpu: VcpuFd, shared: &Shared) -> Tally {
    let immediate = &raw mut vcpu.get_kvm_run().immediate_exit;
    IMMEDIATE.set(immediate);
    let mut tally = Tally::default();
    while !shared.stop.load(Ordering::SeqCst) {
        let (exit, end) = step(&mut vcpu, shared);
        tally.count(exit);
        if let Some(end) = end {
            shared.end(end);
        }
    }
    IMMEDIATE.set(std::ptr::null_mut());
    tally
}

/// Enters the guest once and serves what it came out for.
fn step(vcpu: &mut VcpuFd, shared: &Shared) -> (Exit, Option<Ended>) {
    let console = || shared.console.lock().unwrap_or_else(PoisonError::into_inner);
    let refused = |done: Result<(), _>| done.err().map(|why| Ended::Failed(format!("the console: {why:?}")));
    match vcpu.run() {
        Ok(VcpuExit::MmioRead(address, data)) => (Exit::Load, refused(console().load(address, data))),
        Ok(VcpuExit::MmioWrite(address, data)) => (Exit::Store, refused(console().store(address, data))),
        Ok(VcpuExit::SystemEvent(kind, _)) => (Exit::Event, Some(event(kind))),
        Ok(VcpuExit::Intr) => (Exit::Signal, None),
        Ok(other) => (Exit::Broken, Some(Ended::By(End::Crash, format!("{other:?}")))),
        Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => (Exit::Signal, None),
        Err(error) => (Exit::Broken, Some(Ended::Failed(format!("KVM_RUN: {}", errno_name(error.errno()))))),
    }
}

fn event(kind: u32) -> Ended {
    let end = match u64::from(kind) {
        abi::KVM_SYSTEM_EVENT_SHUTDOWN => End::PowerOff,
        abi::KVM_SYSTEM_EVENT_RESET => End::Reset,
        _ => End::Crash,
    };
    Ended::By(end, format!("system event {kind}"))
}
