// SPDX-License-Identifier: MIT OR Apache-2.0
//! The lock-free words under every interleaving of two CPUs, in the memory model that Arm has too.
//!
//! What a word protects is a cell that the checker watches. Each property has a control: the same source over words that
//! order nothing.

mod words;

use freehold_virt::Refused;
use freehold_virt::handle::{Handle, VcpuIndex};
use freehold_virt::psci::{Affinity, Entry, Firmware, Relay, Reply, Slot, SuspendKind, code};
use freehold_virt::smc::Platform;
use freehold_virt::vm::{Phase, Purpose, Reserved, VmCell, Vms};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use words::{Word, zero};

/// Memory that words protect. The checker stops where two threads may touch it at the same time.
type Memory = Arc<UnsafeCell<u64>>;

fn memory() -> Memory {
    Arc::new(UnsafeCell::new(0))
}

fn touch(memory: &Memory) {
    memory.with_mut(|_| ());
}

fn first() -> VcpuIndex {
    VcpuIndex::decode(0).unwrap()
}

/// One VM with one vCPU.
fn machine<const WEAK: bool>() -> (Arc<[VmCell<Word<WEAK>>; 1]>, Handle) {
    let cells = Arc::new([VmCell::new(zero)]);
    let vms = Vms::new(&*cells);
    let handle = vms.reserve().map(Reserved::publish).unwrap();
    vms.create_vcpu(handle, first(), 7);
    (cells, handle)
}

/// Runs the vCPU, if it can be had: the registers are its runner's alone.
fn run<const WEAK: bool>(cells: &[VmCell<Word<WEAK>>], handle: Handle, registers: &Memory) -> Result<(), Refused> {
    let vms = Vms::new(cells);
    let mut claim = vms.claim(handle, first(), Purpose::Run)?;
    touch(registers);
    assert_eq!(vms.phase(handle), Ok(Phase::Live), "a VM dies under its vCPU");
    assert_eq!(claim.block(), 7);
    claim.ran();
    touch(registers);
    Ok(())
}

fn two_runners<const WEAK: bool>() {
    loom::model(|| {
        let (cells, handle) = machine::<WEAK>();
        let registers = memory();
        let other = {
            let (cells, registers) = (Arc::clone(&cells), Arc::clone(&registers));
            thread::spawn(move || run(&*cells, handle, &registers))
        };
        let mine = run(&*cells, handle, &registers);
        let theirs = other.join().unwrap();
        assert!(mine.is_ok() || theirs.is_ok());
        assert_eq!(Vms::new(&*cells).destroy(handle), Ok(()), "every claim was given up");
    });
}

#[test]
fn a_vcpu_runs_on_one_cpu() {
    two_runners::<false>();
}

#[test]
#[should_panic(expected = "Causality violation")]
fn control_weak_words_let_two_cpus_into_a_vcpu() {
    two_runners::<true>();
}

#[test]
fn a_vcpu_is_seen_with_its_block() {
    loom::model(|| {
        let cells = Arc::new([VmCell::new(zero::<false>)]);
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

fn runner_and_destroyer<const WEAK: bool>() {
    loom::model(|| {
        let (cells, handle) = machine::<WEAK>();
        let registers = memory();
        let other = {
            let (cells, registers) = (Arc::clone(&cells), Arc::clone(&registers));
            thread::spawn(move || run(&*cells, handle, &registers))
        };
        let vms = Vms::new(&*cells);
        let ended = vms.destroy(handle);
        if ended.is_ok() {
            // What the vCPU had is scrubbed from here on.
            touch(&registers);
        }
        let ran = other.join().unwrap();
        match ended {
            Ok(()) => assert_eq!(vms.phase(handle), Ok(Phase::Dying)),
            Err(why) => assert_eq!((why, ran, vms.destroy(handle)), (Refused::VcpuBusy, Ok(()), Ok(()))),
        }
    });
}

#[test]
fn no_vcpu_runs_in_a_dying_vm() {
    runner_and_destroyer::<false>();
}

#[test]
#[should_panic(expected = "Causality violation")]
fn control_weak_words_let_a_vm_die_under_its_vcpu() {
    runner_and_destroyer::<true>();
}

/// Says whether the reader ever saw the VM.
fn publisher_and_reader<const WEAK: bool>() -> bool {
    let seen = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let note = std::sync::Arc::clone(&seen);
    loom::model(move || {
        let cells = Arc::new([VmCell::new(zero::<WEAK>)]);
        let vm = memory();
        let reader = {
            let (cells, vm, note) = (Arc::clone(&cells), Arc::clone(&vm), std::sync::Arc::clone(&note));
            thread::spawn(move || {
                // Whoever sees the VM sees what it was made of; whoever gets the vCPU gets its block.
                let vms = Vms::new(&*cells);
                let Some(handle) = vms.handles().next() else { return };
                note.store(true, std::sync::atomic::Ordering::Relaxed);
                vm.with(|_| ());
                if let Ok(claim) = vms.claim(handle, first(), Purpose::Run) {
                    assert_eq!(claim.block(), 7, "a vCPU before its block");
                }
            })
        };
        let reserved = Vms::new(&*cells).reserve().unwrap();
        touch(&vm);
        let handle = reserved.publish();
        Vms::new(&*cells).create_vcpu(handle, first(), 7);
        reader.join().unwrap();
    });
    seen.load(std::sync::atomic::Ordering::Relaxed)
}

#[test]
fn a_vm_is_seen_whole_or_not_at_all() {
    assert!(publisher_and_reader::<false>(), "it was never seen");
}

#[test]
#[should_panic(expected = "Causality violation")]
fn control_weak_words_publish_a_vm_too_early() {
    let _ = publisher_and_reader::<true>();
}

fn freed_and_reused<const WEAK: bool>() {
    loom::model(|| {
        let (cells, handle) = machine::<WEAK>();
        let slot = memory();
        Vms::new(&*cells).destroy(handle).unwrap();
        let other = {
            let (cells, slot) = (Arc::clone(&cells), Arc::clone(&slot));
            thread::spawn(move || {
                let reserved = Vms::new(&*cells).reserve().ok()?;
                touch(&slot);
                Some(reserved.publish())
            })
        };
        touch(&slot);
        Vms::new(&*cells).free(handle).unwrap();
        let next = other.join().unwrap();
        assert_ne!(next, Some(handle));
        if let Some(next) = next {
            let vms = Vms::new(&*cells);
            assert_eq!(vms.check_vcpu(next, first()), Ok(()), "a vCPU of the VM before");
        }
    });
}

#[test]
fn a_slot_is_reused_after_its_last_vm_was_cleared_away() {
    freed_and_reused::<false>();
}

#[test]
#[should_panic(expected = "Causality violation")]
fn control_weak_words_reuse_a_slot_too_early() {
    freed_and_reused::<true>();
}

/// Whoever ends a VM right behind a run of it may have its slot's next VM before that run is out of the call.
#[test]
fn a_run_that_ends_leaves_nothing_in_the_slots_next_vm() {
    let mut every = loom::model::Builder::new();
    // Of a CPU that looks away for so often; the words that a slot's end clears are many.
    every.preemption_bound = Some(2);
    every.check(|| {
        let (cells, handle) = machine::<false>();
        let other = {
            let cells = Arc::clone(&cells);
            thread::spawn(move || Vms::new(&*cells).claim(handle, first(), Purpose::Run).map(drop))
        };
        let vms = Vms::new(&*cells);
        let next = vms.destroy(handle).ok().map(|()| {
            vms.free(handle).unwrap();
            vms.reserve().map(Reserved::publish).unwrap()
        });
        let ran = other.join().unwrap();
        match next {
            Some(next) => assert_eq!(vms.check_vcpu(next, first()), Ok(()), "a vCPU of the VM before, after {ran:?}"),
            None => assert_eq!(ran, Ok(()), "a VM that could not end was busy"),
        }
    });
}

#[test]
fn a_slot_is_freed_once_and_its_old_handle_names_nothing() {
    loom::model(|| {
        let (cells, handle) = machine::<false>();
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

fn kicker_and_runner<const WEAK: bool>() {
    loom::model(|| {
        let (cells, handle) = machine::<WEAK>();
        let why = memory();
        let kicker = {
            let (cells, why) = (Arc::clone(&cells), Arc::clone(&why));
            thread::spawn(move || {
                touch(&why);
                Vms::new(&*cells).kick(handle, first()).unwrap();
            })
        };
        let vms = Vms::new(&*cells);
        let early = vms.claim(handle, first(), Purpose::Run).unwrap().take_kick();
        if early {
            why.with(|_| ());
        }
        kicker.join().unwrap();
        let late = vms.claim(handle, first(), Purpose::Run).unwrap().take_kick();
        assert!(early != late, "seen once, now or at the next entry");
    });
}

#[test]
fn a_kick_is_never_lost() {
    kicker_and_runner::<false>();
}

#[test]
#[should_panic(expected = "Causality violation")]
fn control_weak_words_kick_before_there_is_a_reason() {
    kicker_and_runner::<true>();
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
        let slots = Arc::new([0u64, 1].map(|mpidr| Slot::off(Affinity::of_mpidr(mpidr), zero::<false>)));
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
fn a_cpu_that_arrives_goes_where_it_was_started_for() {
    loom::model(|| {
        let slots = Arc::new([0u64, 1].map(|mpidr| Slot::off(Affinity::of_mpidr(mpidr), zero::<false>)));
        let starts = AtomicUsize::new(0);
        let relay = Relay::new(&*slots, Platform::default(), false);
        let start = |pc: u64| relay.smc(0, 0, [0xC400_0003, 1, pc, pc + 1], &mut Starts(&starts));
        assert_eq!(start(0x1000), Reply::Status(code::SUCCESS));
        let arrival = {
            let slots = Arc::clone(&slots);
            thread::spawn(move || Relay::new(&*slots, Platform::default(), false).arrive(1))
        };
        let again = start(0x2000);
        assert!(matches!(again, Reply::Status(code::ON_PENDING | code::ALREADY_ON)), "{again:?}");
        assert_eq!(arrival.join().unwrap(), Some(Entry { pc: 0x1000, context: 0x1001 }));
    });
}

#[test]
fn a_cpu_that_is_refused_to_leave_can_still_be_reached() {
    loom::model(|| {
        let slots = Arc::new([0u64, 1].map(|mpidr| Slot::off(Affinity::of_mpidr(mpidr), zero::<false>)));
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

/// Firmware that lets a CPU begin after everything that its caller did before; `ORDERS` says whether it does.
struct Begins<'a, const ORDERS: bool>(&'a AtomicUsize);

impl<const ORDERS: bool> Firmware for Begins<'_, ORDERS> {
    fn call(&mut self, _: [u64; 4]) -> [u64; 4] {
        [code::DENIED.cast_unsigned(), 0, 0, 0]
    }
    fn cpu_on(&mut self, _: Affinity, _: usize) -> i64 {
        self.0.store(1, if ORDERS { Ordering::Release } else { Ordering::Relaxed });
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

fn starter_and_started<const ORDERS: bool>() {
    loom::model(|| {
        let slots = Arc::new([0u64, 1].map(|mpidr| Slot::off(Affinity::of_mpidr(mpidr), zero::<false>)));
        let begun = Arc::new(AtomicUsize::new(0));
        let started = {
            let (slots, begun) = (Arc::clone(&slots), Arc::clone(&begun));
            thread::spawn(move || {
                let order = if ORDERS { Ordering::Acquire } else { Ordering::Relaxed };
                let there = begun.load(order) == 1;
                there.then(|| Relay::new(&*slots, Platform::default(), false).arrive(1))
            })
        };
        let relay = Relay::new(&*slots, Platform::default(), false);
        let reply = relay.smc(0, 0, [0xC400_0003, 1, 0x1000, 7], &mut Begins::<ORDERS>(&begun));
        assert_eq!(reply, Reply::Status(code::SUCCESS));
        if let Some(entry) = started.join().unwrap() {
            assert_eq!(entry, Some(Entry { pc: 0x1000, context: 7 }), "a CPU begins where nobody said");
        }
    });
}

#[test]
fn a_cpu_begins_where_its_starter_said() {
    starter_and_started::<true>();
}

#[test]
#[should_panic(expected = "a CPU begins where nobody said")]
fn control_firmware_that_orders_nothing_starts_a_cpu_anywhere() {
    starter_and_started::<false>();
}
