// SPDX-License-Identifier: MIT OR Apache-2.0
//! No start and no kick of a vCPU waits for an accident: every interleaving of a thread that finds its vCPU off, or enters
//! its guest, with one that starts or kicks it. What is lost is a deadlock, which the checker reports.

use freehold_uapi::guest;
use freehold_virt::board::{Board, Timers};
use freehold_virt::exit::Exit;
use freehold_virt::guest_power::Arrival;
use freehold_virt::handle::VcpuIndex;
use freehold_virt::registers::Registers;
use freehold_virt::timer::Timer;
use freehold_virt::vcpu::Next;
use freehold_virt::vgic::{Kicks, Lists};
use loom::sync::atomic::AtomicBool;
use loom::sync::{Arc, Mutex, Notify};
use loom::thread;
use std::sync::atomic::{AtomicUsize, Ordering};

const TIMERS: Timers = Timers { cntv: Timer::new(), cntp: Timer::new() };
const ENTRY: u64 = 0x8000;

fn vcpu(number: u64) -> VcpuIndex {
    VcpuIndex::existing(number, 2).unwrap()
}

/// x0 and up of a vCPU that calls.
struct Call([u64; 4]);

impl Registers for Call {
    fn x(&self, n: u8) -> u64 {
        self.0.get(usize::from(n)).copied().unwrap_or(0)
    }
    fn set_x(&mut self, n: u8, value: u64) {
        self.0[usize::from(n)] = value;
    }
    fn pc(&self) -> u64 {
        0
    }
    fn set_pc(&mut self, _: u64) {}
    fn pstate(&self) -> u64 {
        0
    }
    fn set_pstate(&mut self, _: u64) {}
    fn kept(&mut self, _: usize) -> Option<&mut u64> {
        None
    }
    fn inject(&mut self, _: u64, _: Option<u64>) {}
}

/// One VM of two vCPUs, each on the CPU of its number.
struct Machine {
    board: Mutex<Board>,
    kicked: AtomicBool,
    interrupt: Notify,
    wake: Notify,
    /// Waits of vCPU 1, over all interleavings.
    waits: &'static AtomicUsize,
}

impl Machine {
    fn new(waits: &'static AtomicUsize) -> Arc<Self> {
        let mut board = Board::new();
        (0..2).for_each(|n| board.add_vcpu(vcpu(n)));
        let kicked = AtomicBool::new(false);
        Arc::new(Self { board: Mutex::new(board), kicked, interrupt: Notify::new(), wake: Notify::new(), waits })
    }

    /// Gives kicks to vCPU 1, without the lock.
    fn give(&self, kicks: Kicks) {
        if kicks.cpus & 2 != 0 {
            self.interrupt.notify();
        }
        if kicks.sleepers & 2 != 0 {
            self.wake.notify();
        }
    }

    fn call(&self, caller: u64, id: u32, x: [u64; 3]) -> Next {
        let mut registers = Call([id.into(), x[0], x[1], x[2]]);
        let (next, kicks) = self.board.lock().unwrap().power_call(vcpu(caller), &mut registers).unwrap();
        assert_eq!(registers.0[0], if next == Next::Resume { 0 } else { id.into() });
        self.give(kicks);
        next
    }

    /// The thread of vCPU 1 runs it until its guest has started it.
    fn comes_up(&self) {
        loop {
            let arrival = self.board.lock().unwrap().arrive(vcpu(1));
            match arrival {
                Arrival::Starts(entry) => return assert_eq!(entry.pc, ENTRY),
                Arrival::Runs => panic!("nobody said where"),
                Arrival::Off => {
                    self.wake.wait();
                    self.waits.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }
}

#[test]
fn a_start_reaches_a_vcpu_whose_thread_finds_it_off() {
    let waits: &AtomicUsize = Box::leak(Box::default());
    loom::model(move || {
        let machine = Machine::new(waits);
        let other = Arc::clone(&machine);
        let target = thread::spawn(move || other.comes_up());
        assert_eq!(machine.call(0, guest::PSCI_CPU_ON_64, [1, ENTRY, 0]), Next::Resume);
        target.join().unwrap();
    });
    assert_ne!(waits.load(Ordering::Relaxed), 0);
}

#[test]
fn a_start_reaches_a_vcpu_that_goes_off_meanwhile() {
    let waits: &AtomicUsize = Box::leak(Box::default());
    loom::model(move || {
        let machine = Machine::new(waits);
        assert_eq!(machine.call(0, guest::PSCI_CPU_ON_64, [1, ENTRY, 0]), Next::Resume);
        machine.comes_up();
        let other = Arc::clone(&machine);
        let target = thread::spawn(move || {
            assert_eq!(other.call(1, guest::PSCI_CPU_OFF, [0; 3]), Next::Leave(Exit::Off));
            other.wake.wait();
            other.waits.fetch_add(1, Ordering::Relaxed);
            other.comes_up();
        });
        // As a guest does: again until it is off.
        let mut registers = Call([0; 4]);
        loop {
            registers.0 = [guest::PSCI_CPU_ON_64.into(), 1, ENTRY, 0];
            let (_, kicks) = machine.board.lock().unwrap().power_call(vcpu(0), &mut registers).unwrap();
            machine.give(kicks);
            if registers.0[0] == 0 {
                break;
            }
            thread::yield_now();
        }
        target.join().unwrap();
    });
    assert_ne!(waits.load(Ordering::Relaxed), 0);
}

#[test]
fn a_kick_reaches_a_vcpu_that_enters_its_guest() {
    let waits: &AtomicUsize = Box::leak(Box::default());
    loom::model(move || {
        let machine = Machine::new(waits);
        let other = Arc::clone(&machine);
        // It spins in its guest: only an interrupt brings it out.
        let runner = thread::spawn(move || {
            loop {
                let mut lists = Lists::EMPTY;
                other.board.lock().unwrap().enter(vcpu(1), (1, 4), TIMERS, 0, &mut lists).unwrap();
                let kicked = other.kicked.compare_exchange(true, false, Ordering::AcqRel, Ordering::Acquire).is_ok();
                if !kicked {
                    other.interrupt.wait();
                    other.waits.fetch_add(1, Ordering::Relaxed);
                }
                let kicks = other.board.lock().unwrap().leave(vcpu(1), &mut lists);
                other.give(kicks);
                if kicked {
                    return;
                }
            }
        });
        machine.kicked.store(true, Ordering::Release);
        let kicks = machine.board.lock().unwrap().kick(vcpu(1));
        machine.give(kicks);
        runner.join().unwrap();
    });
    assert_ne!(waits.load(Ordering::Relaxed), 0);
}
