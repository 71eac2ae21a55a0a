// SPDX-License-Identifier: MIT OR Apache-2.0
//! `KVM_RUN`: enters a vCPU until something is the VMM's to serve.
//!
//! Guarantees that every return of success has a fresh exit reason, that a signal or `immediate_exit` ends the loop
//! with `EINTR` at each turn, that the kernel's own work for the thread waits for no exit, that a loaded value reaches the guest exactly once, and that a vCPU sleeps only behind a
//! run which said so, its bell muted before that run ([`crate::idle`]). Knows neither slots nor files: they stand
//! behind [`Machine`].

use crate::access::{self, Load, Registers, Wanted};
use crate::el2::Ran;
use crate::error::Error;
use crate::exit::{Exit, Mmio, Power, Request};
use crate::idle::Slept;
use crate::status::Refused;
use freehold_uapi::hvc;

/// What the VMM finds in its run page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Nothing (`KVM_EXIT_UNKNOWN`).
    Nothing,
    /// `KVM_EXIT_MMIO`.
    Mmio(Mmio),
    /// `KVM_EXIT_SYSTEM_EVENT`: power off or reset.
    Ended(Power),
    /// `KVM_EXIT_SYSTEM_EVENT`: crash, with its code.
    Crash(u64),
    /// `KVM_EXIT_FAIL_ENTRY`, with the hypervisor's status.
    FailEntry(u64),
    /// `KVM_EXIT_MEMORY_FAULT`: this guest frame is nobody's.
    MemoryFault(u64),
    /// `KVM_EXIT_INTR`.
    Intr,
}

/// What happened to a guest frame that the guest needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// The guest can go on.
    Done,
    /// Nothing is there that the guest may have.
    Nobodys(u64),
    /// No slot of an ordinary VM has this guest frame, or one that it may not store to: the VMM serves the access.
    Devices(u64),
}

/// What a vCPU waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// An interrupt. The counter shows `deadline` when its next timer fires.
    Interrupt {
        /// `None`: none does.
        deadline: Option<u64>,
    },
    /// Another vCPU that switches it on.
    Power,
    /// Nothing but a signal: its VM has ended.
    Signal,
}

/// The vCPU, its VM, and the calling thread.
///
/// Its registers are asked for only after [`Served::Devices`].
pub trait Machine: Registers {
    /// Enters the guest; `mmio` is the answer to its pending load. `None` if it was not entered, for something was
    /// pending for the thread.
    fn enter(&self, mmio: u64) -> Option<Ran>;
    /// Forgets that the vCPU's bell rang.
    fn mute(&self);
    /// Rings the bells of these vCPUs, one bit each.
    fn ring(&self, vcpus: u64);
    /// Backs a guest frame.
    fn touch(&self, gfn: u64) -> Result<Served, Error>;
    /// Serves a request to move memory.
    fn request(&self, kind: Request, gfn: u64, count: u64) -> Result<Served, Error>;
    /// Whether a signal is pending, or `immediate_exit` is set.
    fn interrupted(&self) -> bool;
    /// Whether the kernel has work for this thread on its way to the VMM. If so, it is made to go there.
    fn called_away(&self) -> bool;
    /// Sleeps until what the vCPU waits for, its bell, or a signal.
    fn sleep(&self, wait: Wait) -> Slept;
    /// Whether the guest has ended its VM: no vCPU runs any more.
    fn is_ended(&self) -> bool;
    /// Says so, rings every bell and has the others come out of the guest.
    fn end(&self);
    /// Lets others run if they should.
    fn breathe(&self);
    /// Lowers the wire of an interrupt that the guest has ended, and tells who raised it.
    fn ended(&self, intid: u64);
    /// Whether somebody other than the VMM's run loop serves this access, at once.
    fn rings(&self, mmio: &Mmio) -> bool;
    /// The data that the VMM left in the run page for a load of `size` bytes.
    fn loaded(&self, size: u8) -> u64;
    /// Fills the run page.
    fn tell(&self, told: Told);
}

/// What a vCPU remembers between two `KVM_RUN`s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// A load is with the VMM: its size, and what the driver knows of it where `el2` does not wait for its answer.
    load: Option<(u8, Option<Load>)>,
    /// A loaded value that the guest has not got yet.
    value: u64,
    /// The vCPU is off, as far as its last run says.
    off: bool,
}

impl Memory {
    /// Of a vCPU that never ran: number 0 is on.
    #[must_use]
    pub const fn new(vcpu: u64) -> Self {
        Self { load: None, value: 0, off: vcpu != 0 }
    }

    /// Whether the vCPU is off.
    #[must_use]
    pub const fn is_off(&self) -> bool {
        self.off
    }
}

/// Runs the vCPU.
///
/// # Errors
/// The errno of the ioctl; the run page says more for `Interrupted` and `Fault`.
pub fn run(machine: &impl Machine, memory: &mut Memory) -> Result<(), Error> {
    match memory.load.take() {
        Some((size, Some(load))) => {
            // Of a VM that has ended the entry below says so.
            let _ = load.answer(machine.loaded(size), machine);
        }
        Some((size, None)) => memory.value = machine.loaded(size),
        None => {}
    }
    machine.tell(Told::Nothing);
    loop {
        if machine.interrupted() {
            machine.tell(Told::Intr);
            return Err(Error::Interrupted);
        }
        if machine.called_away() {
            // The same call follows by itself, and the VMM sees nothing of it.
            return Err(Error::Restart);
        }
        machine.mute();
        if machine.is_ended() {
            if let Err(error) = rest(machine, Wait::Signal) {
                machine.tell(Told::Intr);
                return Err(error);
            }
            continue;
        }
        let Some(ran) = machine.enter(memory.value) else {
            machine.breathe();
            continue;
        };
        if ran.wake != 0 {
            machine.ring(ran.wake);
        }
        let answer = match ran.answer {
            Ok(answer) => answer,
            Err(refused) => return fail(machine, refused),
        };
        memory.value = 0;
        let exit = Exit::decode(answer).ok_or(Error::Io)?;
        memory.off = exit == Exit::Off;
        let served = match exit {
            Exit::Irq => Ok(Served::Done),
            Exit::Wfi { deadline } => rest(machine, Wait::Interrupt { deadline }).map(|()| Served::Done),
            Exit::Off => rest(machine, Wait::Power).map(|()| Served::Done),
            Exit::MemFault { gfn } => machine.touch(gfn),
            Exit::Request { kind, gfn, count } => machine.request(kind, gfn, count),
            Exit::Ended { intid } => {
                machine.ended(intid);
                Ok(Served::Done)
            }
            Exit::Mmio(mmio) if machine.rings(&mmio) => Ok(Served::Done),
            Exit::Mmio(mmio) => {
                if mmio.store.is_none() {
                    memory.load = Some((mmio.size, None));
                }
                machine.tell(Told::Mmio(mmio));
                return Ok(());
            }
            Exit::System(power) => {
                machine.end();
                machine.tell(Told::Ended(power));
                return Ok(());
            }
            Exit::Crash { code } => {
                machine.tell(Told::Crash(code));
                return Ok(());
            }
        };
        match served {
            Ok(Served::Done) => machine.breathe(),
            Ok(Served::Nobodys(gfn)) => return nobodys(machine, gfn),
            Ok(Served::Devices(gfn)) => match access::wanted(machine, gfn) {
                // Of a VM that has ended the next entry says so.
                None | Some(Wanted::Nothing) => machine.breathe(),
                Some(Wanted::Unknown) => return nobodys(machine, gfn),
                Some(Wanted::Store(mmio)) if machine.rings(&mmio) => machine.breathe(),
                Some(Wanted::Store(mmio)) => {
                    machine.tell(Told::Mmio(mmio));
                    return Ok(());
                }
                Some(Wanted::Load(mmio, load)) => {
                    memory.load = Some((mmio.size, Some(load)));
                    machine.tell(Told::Mmio(mmio));
                    return Ok(());
                }
            },
            Err(Error::Interrupted) => {
                machine.tell(Told::Intr);
                return Err(Error::Interrupted);
            }
            Err(error) => return Err(error),
        }
    }
}

/// The guest makes the access again with the next run.
fn nobodys(machine: &impl Machine, gfn: u64) -> Result<(), Error> {
    machine.tell(Told::MemoryFault(gfn));
    Err(Error::Fault)
}

fn rest(machine: &impl Machine, wait: Wait) -> Result<(), Error> {
    match machine.sleep(wait) {
        Slept::Rung | Slept::Elapsed => Ok(()),
        Slept::Interrupted => Err(Error::Interrupted),
    }
}

/// A vCPU that may not be entered: the VM ended, or the vCPU crashed or powered off before.
fn fail(machine: &impl Machine, refused: Refused) -> Result<(), Error> {
    match refused.status {
        hvc::WRONG_STATE | hvc::STALE_HANDLE | hvc::WRONG_HANDLE | hvc::DENIED => {
            #[expect(clippy::cast_sign_loss, reason = "the run page has an unsigned field for a signed status")]
            machine.tell(Told::FailEntry(refused.status as u64));
            Ok(())
        }
        _ => Err(refused.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};
    use std::collections::{BTreeMap, VecDeque};

    /// A machine that plays a script of answers and records what it is asked.
    #[derive(Default)]
    struct Script {
        answers: RefCell<VecDeque<Result<[u64; 4], Refused>>>,
        log: RefCell<Vec<String>>,
        signal_after: Cell<Option<u32>>,
        touch: Cell<Option<Result<Served, Error>>>,
        registers: RefCell<BTreeMap<u64, u64>>,
        loaded: Cell<u64>,
        pending: Cell<bool>,
        called: Cell<bool>,
        muted: Cell<bool>,
        wake: Cell<u64>,
        slept: Cell<Option<Slept>>,
        ended: Cell<bool>,
        is_gone: Cell<bool>,
    }

    /// A store there rings somebody.
    const DOORBELL: u64 = 0xdb00;

    impl Script {
        fn of(answers: &[[u64; 4]]) -> Self {
            Self { answers: RefCell::new(answers.iter().copied().map(Ok).collect()), ..Self::default() }
        }

        fn log(&self) -> String {
            self.log.take().join(" ")
        }

        fn note(&self, what: String) {
            self.log.borrow_mut().push(what);
        }
    }

    impl Registers for Script {
        fn register(&self, number: u64) -> Option<u64> {
            (!self.is_gone.get()).then(|| self.registers.borrow().get(&number).copied().unwrap_or(0))
        }

        fn set_register(&self, number: u64, value: u64) -> Option<()> {
            self.registers.borrow_mut().insert(number, value);
            Some(())
        }
    }

    impl Machine for Script {
        fn enter(&self, mmio: u64) -> Option<Ran> {
            assert!(self.muted.replace(false), "a bell that was not muted");
            if self.pending.replace(false) {
                return None;
            }
            self.note(format!("enter({mmio})"));
            let answer = self.answers.borrow_mut().pop_front().expect("entered once too often");
            Some(Ran { answer, wake: self.wake.replace(0) })
        }

        fn mute(&self) {
            self.muted.set(true);
        }

        fn ring(&self, vcpus: u64) {
            self.note(format!("ring({vcpus:#b})"));
        }
        fn touch(&self, gfn: u64) -> Result<Served, Error> {
            self.note(format!("touch({gfn})"));
            self.touch.get().unwrap_or(Ok(Served::Done))
        }
        fn request(&self, kind: Request, gfn: u64, count: u64) -> Result<Served, Error> {
            self.note(format!("{kind:?}({gfn},{count})"));
            Ok(Served::Done)
        }
        fn interrupted(&self) -> bool {
            match self.signal_after.get() {
                Some(0) => true,
                Some(n) => {
                    self.signal_after.set(Some(n - 1));
                    false
                }
                None => false,
            }
        }
        fn called_away(&self) -> bool {
            self.called.replace(false)
        }
        fn sleep(&self, wait: Wait) -> Slept {
            match wait {
                Wait::Interrupt { deadline } => self.note(format!("sleep({})", deadline.unwrap_or(0))),
                Wait::Power | Wait::Signal => self.note(format!("{wait:?}")),
            }
            self.muted.set(false);
            self.slept.get().unwrap_or(Slept::Rung)
        }

        fn is_ended(&self) -> bool {
            self.ended.get()
        }

        fn end(&self) {
            self.note("end".into());
            self.ended.set(true);
        }
        fn breathe(&self) {}
        fn ended(&self, intid: u64) {
            self.note(format!("ended({intid})"));
        }

        fn rings(&self, mmio: &Mmio) -> bool {
            let rung = mmio.address == DOORBELL && mmio.store.is_some();
            if rung {
                self.note("rung".to_owned());
            }
            rung
        }

        fn loaded(&self, size: u8) -> u64 {
            self.note(format!("loaded({size})"));
            self.loaded.get()
        }
        fn tell(&self, told: Told) {
            self.note(format!("{told:?}"));
        }
    }

    const OFF: [u64; 4] = [hvc::EXIT_SYSTEM, 0, 0, 0];

    #[test]
    fn interrupts_and_faults_are_served_without_the_vmm() {
        let script = Script::of(&[
            [hvc::EXIT_IRQ, 0, 0, 0],
            [hvc::EXIT_MEM_FAULT, 7, 0, 0],
            [hvc::EXIT_WFI, 0, 0, 0],
            [hvc::EXIT_WFI, 77, 0, 0],
            [hvc::EXIT_UNSHARE, 5, 2, 0],
            OFF,
        ]);
        run(&script, &mut Memory::default()).unwrap();
        assert_eq!(
            script.log(),
            "Nothing enter(0) enter(0) touch(7) enter(0) sleep(0) enter(0) sleep(77) enter(0) Unshare(5,2) \
             enter(0) end Ended(Off)"
        );
    }

    #[test]
    fn whoever_a_run_names_is_woken_also_by_a_refused_one_and_before_anything_else() {
        let script = Script::of(&[[hvc::EXIT_WFI, 0, 0, 0], OFF]);
        script.wake.set(0b110);
        run(&script, &mut Memory::default()).unwrap();
        assert_eq!(script.log(), "Nothing enter(0) ring(0b110) sleep(0) enter(0) end Ended(Off)");
        let script = Script::default();
        script.wake.set(1);
        script.answers.borrow_mut().push_back(Err(Refused { status: hvc::DENIED, detail: 0 }));
        run(&script, &mut Memory::default()).unwrap();
        assert!(script.log().starts_with("Nothing enter(0) ring(0b1) FailEntry"));
    }

    #[test]
    fn the_end_of_an_interrupt_is_told_and_the_guest_goes_on() {
        let script = Script::of(&[[hvc::EXIT_EOI, 40, 0, 0], [hvc::EXIT_SYSTEM, 0, 0, 0]]);
        run(&script, &mut Memory::default()).unwrap();
        assert_eq!(script.log(), "Nothing enter(0) ended(40) enter(0) end Ended(Off)");
    }

    #[test]
    fn a_store_that_rings_somebody_is_no_exit_and_another_is() {
        let stores = [DOORBELL, DOORBELL + 4].map(|at| [hvc::EXIT_MMIO, at, 4 | hvc::MMIO_WRITE, 9]);
        let script = Script::of(&stores);
        run(&script, &mut Memory::default()).unwrap();
        assert!(script.log().starts_with("Nothing enter(0) rung enter(0) Mmio"));
        let script = Script::of(&[[hvc::EXIT_MMIO, DOORBELL, 4, 0]]);
        run(&script, &mut Memory::default()).unwrap();
        assert!(script.log().starts_with("Nothing enter(0) Mmio"), "a load");
    }

    #[test]
    fn a_vcpu_that_is_off_sleeps_until_it_is_switched_on() {
        let off = [hvc::EXIT_OFF, 0, 0, 0];
        let script = Script::of(&[off, [hvc::EXIT_WAKE, 0, 0, 0], [hvc::EXIT_MMIO, 0x1000, 4, 0]]);
        let mut memory = Memory::new(1);
        assert!(memory.is_off() && !Memory::new(0).is_off());
        run(&script, &mut memory).unwrap();
        assert!(script.log().starts_with("Nothing enter(0) Power enter(0) enter(0) Mmio"));
        assert!(!memory.is_off());
        let script = Script::of(&[off]);
        script.slept.set(Some(Slept::Interrupted));
        assert_eq!(run(&script, &mut memory), Err(Error::Interrupted));
        assert!(memory.is_off());
    }

    #[test]
    fn nobody_runs_in_a_vm_that_ended_and_a_signal_brings_each_back() {
        for (how, power) in [(0, Power::Off), (1, Power::Reset), (2, Power::Reset2)] {
            let script = Script::of(&[[hvc::EXIT_SYSTEM, how, 0, 0]]);
            run(&script, &mut Memory::default()).unwrap();
            assert_eq!(script.log(), format!("Nothing enter(0) end Ended({power:?})"));
            script.slept.set(Some(Slept::Interrupted));
            // Whichever vCPU it is, the one that ended the VM included.
            assert_eq!(run(&script, &mut Memory::default()), Err(Error::Interrupted));
            assert_eq!(script.log(), "Nothing Signal Intr");
        }
    }

    #[test]
    fn a_signal_ends_a_sleep_and_nothing_else_does_but_bell_and_timer() {
        let script = Script::of(&[[hvc::EXIT_WFI, 5, 0, 0]]);
        script.slept.set(Some(Slept::Interrupted));
        assert_eq!(run(&script, &mut Memory::default()), Err(Error::Interrupted));
        assert_eq!(script.log(), "Nothing enter(0) sleep(5) Intr");
        for slept in [Slept::Rung, Slept::Elapsed] {
            let script = Script::of(&[[hvc::EXIT_WFI, 5, 0, 0], OFF]);
            script.slept.set(Some(slept));
            run(&script, &mut Memory::default()).unwrap();
            assert_eq!(script.log(), "Nothing enter(0) sleep(5) enter(0) end Ended(Off)");
        }
    }

    #[test]
    fn a_loaded_value_reaches_the_guest_exactly_once() {
        let load = [hvc::EXIT_MMIO, 0x1000, 4, 0];
        let script = Script::of(&[load, [hvc::EXIT_IRQ, 0, 0, 0], OFF]);
        let mut memory = Memory::default();
        run(&script, &mut memory).unwrap();
        script.log();
        script.loaded.set(42);
        run(&script, &mut memory).unwrap();
        assert_eq!(script.log(), "loaded(4) Nothing enter(42) enter(0) end Ended(Off)");
    }

    #[test]
    fn a_signal_before_entry_keeps_the_loaded_value() {
        let script = Script::of(&[[hvc::EXIT_MMIO, 0x1000, 8, 0], OFF]);
        let mut memory = Memory::default();
        run(&script, &mut memory).unwrap();
        script.log();
        script.loaded.set(9);
        script.signal_after.set(Some(0));
        assert_eq!(run(&script, &mut memory), Err(Error::Interrupted));
        assert_eq!(script.log(), "loaded(8) Nothing Intr");
        script.signal_after.set(None);
        script.loaded.set(10);
        run(&script, &mut memory).unwrap();
        assert_eq!(script.log(), "Nothing enter(9) end Ended(Off)");
    }

    #[test]
    fn a_vcpu_that_was_kept_out_keeps_the_loaded_value() {
        let script = Script::of(&[OFF]);
        script.pending.set(true);
        let mut memory = Memory { value: 5, ..Memory::default() };
        run(&script, &mut memory).unwrap();
        assert_eq!(script.log(), "Nothing enter(5) end Ended(Off)");
    }

    #[test]
    fn the_kernels_own_work_is_done_between_two_turns_and_loses_nothing() {
        let script = Script::of(&[OFF]);
        script.called.set(true);
        let mut memory = Memory { value: 5, ..Memory::default() };
        assert_eq!(run(&script, &mut memory), Err(Error::Restart));
        assert_eq!(script.log(), "Nothing");
        run(&script, &mut memory).unwrap();
        assert_eq!(script.log(), "Nothing enter(5) end Ended(Off)");
        script.called.set(true);
        script.signal_after.set(Some(0));
        assert_eq!(run(&script, &mut memory), Err(Error::Interrupted), "a signal goes first");
    }

    #[test]
    fn an_unbacked_frame_without_slot_is_the_vmms() {
        let script = Script::of(&[[hvc::EXIT_MEM_FAULT, 7, 0, 0]]);
        script.touch.set(Some(Ok(Served::Nobodys(7))));
        assert_eq!(run(&script, &mut Memory::default()), Err(Error::Fault));
        assert_eq!(script.log(), "Nothing enter(0) touch(7) MemoryFault(7)");
    }

    /// A data abort with a syndrome, of x3 and eight bytes, at 0x...678.
    fn aborts(store: bool) -> Script {
        let script = Script::of(&[[hvc::EXIT_MEM_FAULT, 7, 0, 0], [hvc::EXIT_CRASH, 0, 0, 0]]);
        let esr = 0x24 << 26 | 1 << 24 | 3 << 22 | 3 << 16 | 1 << 15 | u64::from(store) << 6;
        let registers = [(3, 0x33), (hvc::REG_PC, 0x1000), (hvc::REG_EXIT_ESR, esr), (hvc::REG_EXIT_FAR, 0x5678)];
        script.registers.borrow_mut().extend(registers);
        script.touch.set(Some(Ok(Served::Devices(7))));
        script
    }

    #[test]
    fn a_store_where_no_slot_is_is_the_vmms() {
        let (script, mut memory) = (aborts(true), Memory::default());
        run(&script, &mut memory).unwrap();
        let mmio = Mmio { address: 0x7678, size: 8, store: Some(0x33) };
        assert_eq!(script.log(), format!("Nothing enter(0) touch(7) {:?}", Told::Mmio(mmio)));
        assert_eq!(script.register(hvc::REG_PC), Some(0x1004));
        run(&script, &mut memory).unwrap();
        assert!(script.log().starts_with("Nothing enter(0)"), "nothing is owed");
    }

    #[test]
    fn a_store_where_no_slot_is_rings_whoever_asked_for_it() {
        let script = aborts(true);
        script.answers.borrow_mut()[0] = Ok([hvc::EXIT_MEM_FAULT, DOORBELL >> 12, 0, 0]);
        script.touch.set(Some(Ok(Served::Devices(DOORBELL >> 12))));
        script.set_register(hvc::REG_EXIT_FAR, 0x5000 | DOORBELL & 0xfff).unwrap();
        run(&script, &mut Memory::default()).unwrap();
        let log = script.log();
        assert!(log.starts_with("Nothing enter(0) touch(13) rung enter(0) Crash"), "{log}");
        assert_eq!(script.register(hvc::REG_PC), Some(0x1004));
    }

    #[test]
    fn a_load_where_no_slot_is_gets_the_vmms_answer_before_anything_else() {
        let (script, mut memory) = (aborts(false), Memory::default());
        run(&script, &mut memory).unwrap();
        assert_eq!((script.register(3), script.register(hvc::REG_PC)), (Some(0x33), Some(0x1000)));
        script.loaded.set(0x77);
        script.signal_after.set(Some(0));
        assert_eq!(run(&script, &mut memory), Err(Error::Interrupted), "immediate_exit is how a VMM completes it");
        assert_eq!((script.register(3), script.register(hvc::REG_PC)), (Some(0x77), Some(0x1004)));
        script.signal_after.set(None);
        script.loaded.set(0x99);
        run(&script, &mut memory).unwrap();
        assert_eq!((script.register(3), script.register(hvc::REG_PC)), (Some(0x77), Some(0x1004)), "once");
    }

    #[test]
    fn nothing_is_told_of_a_vm_whose_registers_have_gone() {
        for store in [false, true] {
            let script = aborts(store);
            script.is_gone.set(true);
            script.answers.borrow_mut().truncate(1);
            let refused = Refused { status: hvc::STALE_HANDLE, detail: 0 };
            script.answers.borrow_mut().push_back(Err(refused));
            run(&script, &mut Memory::default()).unwrap();
            let last = format!("{:?}", Told::FailEntry(hvc::STALE_HANDLE.cast_unsigned()));
            assert_eq!(script.log(), format!("Nothing enter(0) touch(7) enter(0) {last}"));
        }
    }

    #[test]
    fn what_can_not_be_described_stays_a_memory_fault() {
        let script = aborts(true);
        script.set_register(hvc::REG_EXIT_ESR, 0x24 << 26 | 1 << 6).unwrap();
        assert_eq!(run(&script, &mut Memory::default()), Err(Error::Fault));
        assert_eq!(script.log(), "Nothing enter(0) touch(7) MemoryFault(7)");
        assert_eq!(script.register(hvc::REG_PC), Some(0x1000));
    }

    #[test]
    fn a_signal_while_serving_is_an_intr_exit() {
        let script = Script::of(&[[hvc::EXIT_MEM_FAULT, 7, 0, 0]]);
        script.touch.set(Some(Err(Error::Interrupted)));
        assert_eq!(run(&script, &mut Memory::default()), Err(Error::Interrupted));
        assert!(script.log().ends_with("Intr"));
    }

    #[test]
    fn a_refused_entry_is_a_failed_entry_not_a_loop() {
        for status in [hvc::WRONG_STATE, hvc::STALE_HANDLE, hvc::DENIED] {
            let script = Script::default();
            script.answers.borrow_mut().push_back(Err(Refused { status, detail: 0 }));
            run(&script, &mut Memory::default()).unwrap();
            assert!(script.log().ends_with(&format!("FailEntry({})", status as u64)));
        }
        let script = Script::default();
        script.answers.borrow_mut().push_back(Err(Refused { status: hvc::VCPU_BUSY, detail: 0 }));
        assert_eq!(run(&script, &mut Memory::default()), Err(Error::Busy));
    }

    #[test]
    fn an_answer_of_another_abi_is_an_error() {
        assert_eq!(run(&Script::of(&[[99, 0, 0, 0]]), &mut Memory::default()), Err(Error::Io));
    }
}
