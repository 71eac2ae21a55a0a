// SPDX-License-Identifier: MIT OR Apache-2.0
//! No interrupt waits for an accident: every interleaving of a vCPU that enters, leaves or goes to sleep with one that
//! sends it something. A lost kick is a deadlock, which the checker reports.

use freehold_virt::exit::Width;
use freehold_virt::handle::VcpuIndex;
use freehold_virt::vgic::{Frame, Intid, Kicks, Lists, Vgic};
use loom::sync::atomic::AtomicBool;
use loom::sync::{Arc, Mutex, Notify};
use loom::thread;
use std::sync::atomic::{AtomicUsize, Ordering};

/// ICH_VMCR_EL2 of a guest that takes everything.
const OPEN: u64 = 0xff00_0003;
const SGI: u64 = 7 << 24 | 2;

fn vcpu(number: u64) -> VcpuIndex {
    VcpuIndex::existing(number, 2).unwrap()
}

/// One VM of two vCPUs, each on the CPU of its number; SGI 7 and SPI 40 are enabled, the SPI goes to vCPU 0.
struct Machine {
    vgic: Mutex<Vgic>,
    /// The physical interrupt of each CPU, and what wakes each vCPU's thread.
    interrupts: [Notify; 2],
    wakes: [Notify; 2],
    /// Waits of vCPU 1 that a kick ended, over all interleavings.
    waits: &'static AtomicUsize,
}

impl Machine {
    fn new(waits: &'static AtomicUsize) -> Arc<Self> {
        let mut vgic = Vgic::new();
        let mut write = |frame, offset, value| {
            let _ = vgic.write(frame, offset, Width::Word, value, 2);
        };
        write(Frame::Distributor, 0, 3);
        write(Frame::Distributor, 0x104, 1 << 8);
        for n in 0..2 {
            write(Frame::Control(vcpu(n)), 0x14, 0);
            write(Frame::Private(vcpu(n)), 0x100, 1 << 7);
        }
        let two = || [Notify::new(), Notify::new()];
        Arc::new(Self { vgic: Mutex::new(vgic), interrupts: two(), wakes: two(), waits })
    }

    /// Gives kicks, without the lock.
    fn give(&self, kicks: Kicks) {
        for n in 0..2 {
            if kicks.cpus >> n & 1 != 0 {
                self.interrupts[n].notify();
            }
            if kicks.sleepers >> n & 1 != 0 {
                self.wakes[n].notify();
            }
        }
    }

    fn change(&self, change: impl FnOnce(&mut Vgic) -> Kicks) {
        let kicks = change(&mut self.vgic.lock().unwrap());
        self.give(kicks);
    }

    fn load(&self, n: u64) -> Lists {
        let mut lists = Lists::EMPTY;
        self.vgic.lock().unwrap().load(vcpu(n), u8::try_from(n).unwrap(), 4, &mut lists);
        lists
    }

    /// vCPU 1 spins in its guest until it has this interrupt; only an interrupt brings it out.
    fn spin_for(&self, number: u64) {
        loop {
            let mut lists = self.load(1);
            if lists.entries().iter().any(|entry| entry & 0xffff_ffff == number) {
                return;
            }
            self.interrupts[1].wait();
            self.waits.fetch_add(1, Ordering::Relaxed);
            self.change(|vgic| vgic.save(vcpu(1), &mut lists));
        }
    }

    /// vCPU 1 waits for this interrupt by WFI; its thread sleeps when there is nothing.
    fn wait_for(&self, number: u64) {
        loop {
            let mut lists = self.load(1);
            if lists.entries().iter().any(|entry| entry & 0xffff_ffff == number) {
                return;
            }
            let mut sleeps = false;
            self.change(|vgic| {
                let kicks = vgic.save(vcpu(1), &mut lists);
                sleeps = !vgic.wakes(vcpu(1), OPEN);
                if sleeps {
                    vgic.sleeps(vcpu(1));
                }
                kicks
            });
            if sleeps {
                self.wakes[1].wait();
                self.waits.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

fn sends_to(wait: fn(&Machine, u64)) {
    let waits: &AtomicUsize = Box::leak(Box::default());
    loom::model(move || {
        let machine = Machine::new(waits);
        let other = Arc::clone(&machine);
        let receiver = thread::spawn(move || wait(&other, 7));
        machine.change(|vgic| vgic.send_sgi(vcpu(0), SGI, false));
        receiver.join().unwrap();
    });
    assert_ne!(waits.load(Ordering::Relaxed), 0);
}

/// In how many interleavings an interrupt that one vCPU sends another is still pending on that one's CPU when its guest
/// is out, and it has taken back what there was.
fn outlives(under_the_lock: bool, out_first: bool) -> usize {
    let late: &AtomicUsize = Box::leak(Box::default());
    loom::model(move || {
        let machine = Machine::new(Box::leak(Box::default()));
        let pending = Arc::new(AtomicBool::new(false));
        let (other, there) = (Arc::clone(&machine), Arc::clone(&pending));
        let receiver = thread::spawn(move || {
            let mut lists = other.load(1);
            let take_back = || there.store(false, Ordering::SeqCst);
            if !out_first {
                take_back();
            }
            let _ = other.vgic.lock().unwrap().save(vcpu(1), &mut lists);
            if out_first {
                take_back();
            }
        });
        let mut vgic = machine.vgic.lock().unwrap();
        let kicks = vgic.send_sgi(vcpu(0), SGI, false);
        let held = under_the_lock.then_some(vgic);
        if kicks.cpus != 0 {
            pending.store(true, Ordering::SeqCst);
        }
        drop(held);
        receiver.join().unwrap();
        late.fetch_add(pending.load(Ordering::SeqCst).into(), Ordering::Relaxed);
    });
    late.load(Ordering::Relaxed)
}

#[test]
fn no_kick_outlives_the_stay_in_the_guest_that_it_was_for() {
    assert_eq!(outlives(true, true), 0);
    assert_ne!(outlives(false, true), 0, "without the lock some do");
    assert_ne!(outlives(true, false), 0, "and some that come before it is out, when it has taken back what there was");
}

/// vCPU 0 has an SPI in a list register that is being moved to vCPU 1. It comes out for that, or for something else and
/// then stays out with what it had.
fn moves(comes_out_for_it: bool, wait: fn(&Machine, u64)) {
    let waits: &AtomicUsize = Box::leak(Box::default());
    loom::model(move || {
        let machine = Machine::new(waits);
        machine.change(|vgic| vgic.set_spi(Intid::spi(40).unwrap(), true));
        let mut lists = machine.load(0);
        assert_eq!(lists.entries().len(), 1);
        let other = Arc::clone(&machine);
        let receiver = thread::spawn(move || wait(&other, 40));
        let other = Arc::clone(&machine);
        let holder = thread::spawn(move || {
            if comes_out_for_it {
                other.interrupts[0].wait();
            }
            lists.note(OPEN, 0, true);
            other.change(|vgic| vgic.save(vcpu(0), &mut lists));
        });
        machine.change(|vgic| vgic.write(Frame::Distributor, 0x6140, Width::Double, 1, 2));
        holder.join().unwrap();
        receiver.join().unwrap();
    });
    assert_ne!(waits.load(Ordering::Relaxed), 0);
}

#[test]
fn an_sgi_reaches_a_vcpu_that_enters_its_guest() {
    sends_to(Machine::spin_for);
}

#[test]
fn an_sgi_reaches_a_vcpu_that_goes_to_sleep() {
    sends_to(Machine::wait_for);
}

#[test]
fn an_spi_that_moves_reaches_a_vcpu_that_enters_its_guest() {
    moves(true, Machine::spin_for);
    moves(false, Machine::spin_for);
}

#[test]
fn an_spi_that_moves_reaches_a_vcpu_that_goes_to_sleep() {
    moves(true, Machine::wait_for);
    moves(false, Machine::wait_for);
}
