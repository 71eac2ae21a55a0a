// SPDX-License-Identifier: MIT OR Apache-2.0
//! The sleep of a vCPU that waits for an interrupt, in every interleaving that loom finds: no wake-up is lost.
//!
//! The run loop and the sleep are the shipped ones. Below them is an EL2 that names a vCPU once for each of its waits,
//! and a wait queue as the kernel's is. No sleep has a time here: a vCPU that misses its wake-up waits for ever, which
//! loom reports as a deadlock.

use freehold_driver_core::access::Registers;
use freehold_driver_core::el2::Ran;
use freehold_driver_core::error::Error;
use freehold_driver_core::exit::{Mmio, Request};
use freehold_driver_core::idle::{wait, Bell, Slept};
use freehold_driver_core::run::{run, Machine, Memory, Served, Told, Wait};
use freehold_uapi::hvc;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::sync::{Condvar, Mutex};
use std::sync::Arc;

/// Which mistake the controls make.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slip {
    None,
    /// The bell is muted behind the run.
    MutesLate,
    /// The list is joined behind the look at the bell.
    EnlistsLate,
}

#[derive(Default)]
struct El2 {
    /// Interrupts that the guest has not taken.
    pending: u32,
    /// The vCPU waits, and was not named since.
    waits: bool,
}

#[derive(Default)]
struct Queue {
    listed: bool,
    /// The thread that is on the list, or was, is to run.
    woken: bool,
}

struct Vcpu {
    el2: Mutex<El2>,
    rung: AtomicBool,
    queue: Mutex<Queue>,
    wake: Condvar,
    signal: AtomicBool,
    /// Interrupts after which the guest turns itself off.
    enough: u32,
    slip: Slip,
}

impl Vcpu {
    fn new(enough: u32, slip: Slip) -> Arc<Self> {
        Arc::new(Self {
            el2: Mutex::new(El2::default()),
            rung: AtomicBool::new(false),
            queue: Mutex::new(Queue::default()),
            wake: Condvar::new(),
            signal: AtomicBool::new(false),
            enough,
            slip,
        })
    }

    fn wake_up(&self) {
        let mut queue = self.queue.lock().unwrap();
        if queue.listed {
            queue.woken = true;
            self.wake.notify_all();
        }
    }

    /// An interrupt for the guest; whoever brings it rings as EL2 says.
    fn interrupt(&self) {
        let named = {
            let mut el2 = self.el2.lock().unwrap();
            el2.pending += 1;
            std::mem::take(&mut el2.waits)
        };
        if named {
            self.rung.store(true, Ordering::Relaxed);
            self.wake_up();
        }
    }

    /// A signal for the thread.
    fn signal(&self) {
        self.signal.store(true, Ordering::Release);
        // The kernel wakes the thread itself, whatever list it is on.
        self.wake_up();
    }

    fn list(&self) {
        *self.queue.lock().unwrap() = Queue { listed: true, woken: false };
    }
}

impl Bell for Vcpu {
    fn enlist(&self) {
        if self.slip != Slip::EnlistsLate {
            self.list();
        }
    }

    fn rang(&self) -> bool {
        self.rung.load(Ordering::Relaxed)
    }

    fn interrupted(&self) -> bool {
        self.signal.load(Ordering::Acquire)
    }

    fn sleep(&self, nanoseconds: Option<u64>) -> bool {
        assert_eq!(nanoseconds, None);
        if self.slip == Slip::EnlistsLate {
            self.list();
        }
        let mut queue = self.queue.lock().unwrap();
        while !queue.woken {
            queue = self.wake.wait(queue).unwrap();
        }
        false
    }

    fn leave(&self) {
        self.queue.lock().unwrap().listed = false;
    }
}

impl Registers for Vcpu {
    fn register(&self, _: u64) -> Option<u64> {
        unreachable!("no access of this guest is the VMM's")
    }

    fn set_register(&self, _: u64, _: u64) -> Option<()> {
        unreachable!("nor answered by it")
    }
}

impl Machine for Vcpu {
    fn enter(&self, _: u64) -> Option<Ran> {
        let mut el2 = self.el2.lock().unwrap();
        let answer = if el2.pending >= self.enough {
            [hvc::EXIT_SYSTEM, 0, 0, 0]
        } else {
            el2.waits = true;
            [hvc::EXIT_WFI, 0, 0, 0]
        };
        Some(Ran { answer: Ok(answer), wake: 0 })
    }

    fn mute(&self) {
        if self.slip != Slip::MutesLate {
            self.rung.store(false, Ordering::Relaxed);
        }
    }

    fn ring(&self, _: u64) {
        unreachable!("no run names anybody here");
    }

    fn sleep(&self, what: Wait) -> Slept {
        assert_eq!(what, Wait::Interrupt { deadline: None });
        if self.slip == Slip::MutesLate {
            self.rung.store(false, Ordering::Relaxed);
        }
        wait(self, || None)
    }

    fn is_ended(&self) -> bool {
        false
    }

    fn called_away(&self) -> bool {
        false
    }

    fn end(&self) {}

    fn touch(&self, _: u64) -> Result<Served, Error> {
        unreachable!()
    }

    fn request(&self, _: Request, _: u64, _: u64) -> Result<Served, Error> {
        unreachable!()
    }

    fn interrupted(&self) -> bool {
        Bell::interrupted(self)
    }

    fn breathe(&self) {}

    fn ended(&self, _: u64) {
        unreachable!()
    }

    fn rings(&self, _: &Mmio) -> bool {
        unreachable!()
    }

    fn loaded(&self, _: u8) -> u64 {
        unreachable!()
    }

    fn tell(&self, _: Told) {}
}

fn bounded(preemptions: usize, test: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(test);
}

/// So many interrupts, each from a thread of its own, beside the vCPU's.
fn races(interrupts: u32, slip: Slip) {
    let vcpu = Vcpu::new(interrupts, slip);
    let senders: Vec<_> = (0..interrupts)
        .map(|_| {
            let vcpu = Arc::clone(&vcpu);
            loom::thread::spawn(move || vcpu.interrupt())
        })
        .collect();
    assert_eq!(run(&*vcpu, &mut Memory::default()), Ok(()));
    for sender in senders {
        sender.join().unwrap();
    }
}

#[test]
fn an_interrupt_beside_a_vcpu_that_falls_asleep_wakes_it() {
    bounded(4, || races(1, Slip::None));
}

#[test]
fn each_of_two_interrupts_wakes_it() {
    bounded(3, || races(2, Slip::None));
}

/// The controls: each of the two orders is needed.
#[test]
#[should_panic(expected = "deadlock")]
fn a_bell_that_is_muted_behind_the_run_is_noticed() {
    bounded(4, || races(1, Slip::MutesLate));
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_list_that_is_joined_behind_the_look_is_noticed() {
    bounded(4, || races(1, Slip::EnlistsLate));
}

#[test]
fn a_signal_wakes_it_and_the_interrupt_is_there_in_its_next_run() {
    bounded(3, || {
        let vcpu = Vcpu::new(1, Slip::None);
        let signaller = {
            let vcpu = Arc::clone(&vcpu);
            loom::thread::spawn(move || vcpu.signal())
        };
        let sender = {
            let vcpu = Arc::clone(&vcpu);
            loom::thread::spawn(move || vcpu.interrupt())
        };
        let mut memory = Memory::default();
        match run(&*vcpu, &mut memory) {
            Ok(()) => {}
            Err(error) => {
                assert_eq!(error, Error::Interrupted);
                vcpu.signal.store(false, Ordering::Release);
                // The signal may be sent once more behind this.
                while run(&*vcpu, &mut memory).is_err() {
                    vcpu.signal.store(false, Ordering::Release);
                }
            }
        }
        signaller.join().unwrap();
        sender.join().unwrap();
    });
}
