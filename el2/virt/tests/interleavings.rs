// SPDX-License-Identifier: MIT OR Apache-2.0
//! The lock-free words under every interleaving of two CPUs, in the memory model that Arm has too.

use freehold_virt::Refused;
use freehold_virt::cell::Cell;
use freehold_virt::handle::{Handle, VcpuIndex};
use freehold_virt::psci::{Affinity, Entry, Firmware, Relay, Reply, Slot, SuspendKind, code};
use freehold_virt::smc::Platform;
use freehold_virt::vm::{Phase, Purpose, Reserved, VmCell, Vms};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use loom::thread;

/// The checker's word.
struct Word(AtomicU64);

impl Cell for Word {
    fn load(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
    fn store(&self, value: u64) {
        self.0.store(value, Ordering::Release);
    }
    fn exchange(&self, from: u64, to: u64) -> Result<(), u64> {
        self.0.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).map(|_| ())
    }
}

fn zero() -> Word {
    Word(AtomicU64::new(0))
}

fn first() -> VcpuIndex {
    VcpuIndex::decode(0).unwrap()
}

/// One VM with one vCPU.
fn machine() -> (Arc<[VmCell<Word>; 1]>, Handle) {
    let cells = Arc::new([VmCell::new(zero)]);
    let vms = Vms::new(&*cells);
    let handle = vms.reserve().map(Reserved::publish).unwrap();
    vms.create_vcpu(handle, first(), 7);
    (cells, handle)
}

/// Runs the vCPU, if it can be had; `inside` counts who is in it.
fn run(cells: &[VmCell<Word>], handle: Handle, inside: &AtomicUsize) -> Result<(), Refused> {
    let vms = Vms::new(cells);
    let mut claim = vms.claim(handle, first(), Purpose::Run)?;
    assert_eq!(inside.fetch_add(1, Ordering::AcqRel), 0, "two CPUs in one vCPU");
    assert_eq!(vms.phase(handle), Ok(Phase::Live), "a VM dies under its vCPU");
    assert_eq!(claim.block(), 7);
    claim.ran();
    inside.fetch_sub(1, Ordering::AcqRel);
    Ok(())
}

#[test]
fn a_vcpu_runs_on_one_cpu() {
    loom::model(|| {
        let (cells, handle) = machine();
        let inside = Arc::new(AtomicUsize::new(0));
        let other = {
            let (cells, inside) = (Arc::clone(&cells), Arc::clone(&inside));
            thread::spawn(move || run(&*cells, handle, &inside))
        };
        let mine = run(&*cells, handle, &inside);
        let theirs = other.join().unwrap();
        assert!(mine.is_ok() || theirs.is_ok());
        assert_eq!(Vms::new(&*cells).destroy(handle), Ok(()), "every claim was given up");
    });
}

#[test]
fn a_vcpu_is_seen_with_its_block() {
    loom::model(|| {
        let cells = Arc::new([VmCell::new(zero)]);
        let handle = Vms::new(&*cells).reserve().map(Reserved::publish).unwrap();
        let maker = {
            let cells = Arc::clone(&cells);
            thread::spawn(move || Vms::new(&*cells).create_vcpu(handle, first(), 7))
        };
        match Vms::new(&*cells).claim(handle, first(), Purpose::Run) {
            Ok(claim) => assert_eq!(claim.block(), 7),
            Err(why) => assert_eq!(why, Refused::WrongVcpu),
        }
        maker.join().unwrap();
    });
}

#[test]
fn no_vcpu_runs_in_a_dying_vm() {
    loom::model(|| {
        let (cells, handle) = machine();
        let inside = Arc::new(AtomicUsize::new(0));
        let other = {
            let (cells, inside) = (Arc::clone(&cells), Arc::clone(&inside));
            thread::spawn(move || run(&*cells, handle, &inside))
        };
        let vms = Vms::new(&*cells);
        let ended = vms.destroy(handle);
        if ended.is_ok() {
            assert_eq!(inside.load(Ordering::Acquire), 0, "it died under a runner");
        }
        let ran = other.join().unwrap();
        match ended {
            Ok(()) => assert_eq!(vms.phase(handle), Ok(Phase::Dying)),
            Err(why) => assert_eq!((why, ran, vms.destroy(handle)), (Refused::VcpuBusy, Ok(()), Ok(()))),
        }
    });
}

#[test]
fn a_slot_is_freed_once_and_its_old_handle_names_nothing() {
    loom::model(|| {
        let (cells, handle) = machine();
        Vms::new(&*cells).destroy(handle).unwrap();
        let other = {
            let cells = Arc::clone(&cells);
            thread::spawn(move || {
                let vms = Vms::new(&*cells);
                let seen = vms.claim(handle, first(), Purpose::Run).err();
                assert!(matches!(seen, Some(Refused::WrongState | Refused::StaleHandle)), "{seen:?}");
                vms.reserve().map(Reserved::publish).ok()
            })
        };
        let vms = Vms::new(&*cells);
        vms.free(handle).unwrap();
        let next = other.join().unwrap();
        assert_ne!(next, Some(handle));
        assert_eq!(vms.phase(handle), Err(Refused::StaleHandle));
    });
}

#[test]
fn a_kick_is_never_lost() {
    loom::model(|| {
        let (cells, handle) = machine();
        let kicker = {
            let cells = Arc::clone(&cells);
            thread::spawn(move || Vms::new(&*cells).kick(handle, first()).unwrap())
        };
        let vms = Vms::new(&*cells);
        let early = vms.claim(handle, first(), Purpose::Run).unwrap().take_kick();
        kicker.join().unwrap();
        let late = vms.claim(handle, first(), Purpose::Run).unwrap().take_kick();
        assert!(early != late, "seen once, now or at the next entry");
    });
}

/// Firmware that starts every CPU it is asked to, once.
struct Starts<'a>(&'a AtomicUsize);

impl Firmware for Starts<'_> {
    fn call(&mut self, _: [u64; 4]) -> [u64; 4] {
        [code::DENIED.cast_unsigned(), 0, 0, 0]
    }
    fn cpu_on(&mut self, _: Affinity, _: usize) -> i64 {
        self.0.fetch_add(1, Ordering::AcqRel);
        code::SUCCESS
    }
    fn suspend(&mut self, _: SuspendKind, _: u64, _: usize) -> i64 {
        code::DENIED
    }
    fn quiesce(&mut self) -> bool {
        true
    }
    fn reopen(&mut self) {}
}

#[test]
fn a_cpu_is_started_once_where_the_winner_said() {
    loom::model(|| {
        let slots = Arc::new([0u64, 1].map(|mpidr| Slot::off(Affinity::of_mpidr(mpidr), zero)));
        let starts = Arc::new(AtomicUsize::new(0));
        let ask = |pc: u64| {
            let (slots, starts) = (Arc::clone(&slots), Arc::clone(&starts));
            move || {
                let relay = Relay::new(&*slots, Platform::default(), false);
                let reply = relay.smc(0, 0, [0xC400_0003, 1, pc, pc + 1], &mut Starts(&starts));
                (pc, reply)
            }
        };
        let other = thread::spawn(ask(0x1000));
        let mine = ask(0x2000)();
        let theirs = other.join().unwrap();
        assert_eq!(starts.load(Ordering::Acquire), 1);
        let won = Reply::Status(code::SUCCESS);
        let (winner, loser) = if mine.1 == won { (mine, theirs) } else { (theirs, mine) };
        assert_eq!((winner.1, loser.1), (won, Reply::Status(code::ON_PENDING)));
        let relay = Relay::new(&*slots, Platform::default(), false);
        assert_eq!(relay.arrive(1), Some(Entry { pc: winner.0, context: winner.0 + 1 }));
    });
}

#[test]
fn a_cpu_that_is_refused_to_leave_can_still_be_reached() {
    loom::model(|| {
        let slots = Arc::new([0u64, 1].map(|mpidr| Slot::off(Affinity::of_mpidr(mpidr), zero)));
        let starts = Arc::new(AtomicUsize::new(0));
        Relay::new(&*slots, Platform::default(), false).booted(1);
        let leaver = {
            let (slots, starts) = (Arc::clone(&slots), Arc::clone(&starts));
            thread::spawn(move || {
                let relay = Relay::new(&*slots, Platform::default(), false);
                relay.smc(1, 0, [0x8400_0002, 0, 0, 0], &mut Starts(&starts))
            })
        };
        let relay = Relay::new(&*slots, Platform::default(), false);
        let reply = relay.smc(0, 0, [0xC400_0003, 1, 0x1000, 1], &mut Starts(&starts));
        assert_eq!(leaver.join().unwrap(), Reply::Status(code::DENIED));
        assert!(matches!(reply, Reply::Status(code::SUCCESS | code::ALREADY_ON)));
        assert!(relay.arrive(1).is_some(), "whatever became of it, EL2 knows where the CPU goes");
    });
}
