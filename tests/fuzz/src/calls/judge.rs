// SPDX-License-Identifier: MIT OR Apache-2.0
//! What must be so whatever was called: what the specification says, and what no specification needs to say.

use freehold_mem::State;
use freehold_model::{Act, Answer, Asked, Decide, Handles, Label, Picture, Rig, Stream, Whole};
use freehold_uapi::hvc;

use super::{DEVICES, FRAMES, GFNS, VMS};

/// What a store outside RAM carries, and a store inside must not show to the host.
pub(super) const CANARY: u64 = 0x5ec2_e75e_c2e7_5ec3;

/// Frames of `el2`'s carve-out and all of the host's.
const PAGES: usize = 512 + FRAMES as usize;

/// Guest frames that are watched.
const PLACES: usize = (GFNS + DEVICES) as usize;

/// The world that stands beside the machine.
pub(super) type World = Whole<PAGES, VMS, PLACES>;

/// A machine, and the specification that follows it.
pub(super) struct Court<'r> {
    pub(super) rig: &'r Rig,
    stream: Stream<'r, PAGES, VMS, PLACES>,
}

/// Stops with what the two disagree about.
fn agree(what: Result<(), String>, asked: impl FnOnce() -> String) {
    if let Err(why) = what {
        panic!("oracle: {}: {why}", asked());
    }
}

impl<'r> Court<'r> {
    pub(super) fn new(rig: &'r Rig, decide: Decide<World>, handles: Handles) -> Self {
        Self { rig, stream: Stream::new(rig, decide, handles) }
    }

    /// Everything ends, and begins anew.
    pub(super) fn reset(&mut self) {
        self.rig.reset().unwrap_or_else(|wrong| panic!("I8: {wrong}"));
        self.stream.restart();
        self.sound();
    }

    /// The end: what is known of handles.
    pub(super) fn close(mut self) -> Handles {
        self.reset();
        self.stream.into_handles()
    }

    /// The machine as a whole: rights (I1 to I3), contents (I4), what its ports complained about, and that it is as
    /// the specification has it.
    pub(super) fn sound(&self) -> Picture {
        let picture = self.safe();
        agree(self.stream.agrees(&picture), || "afterwards".to_owned());
        picture
    }

    fn safe(&self) -> Picture {
        let complaints = self.rig.complaints();
        assert!(complaints.is_empty(), "{complaints:?}");
        let picture = self.rig.picture();
        assert_eq!(picture.judge(), Ok(()));
        for (number, frame) in picture.frames.iter().enumerate().filter(|(_, frame)| frame.host_reaches) {
            let secret = matches!(frame.label, Label::Secret { .. });
            let shared = matches!(frame.state, Some(State::Shared { .. }));
            assert!(!secret || shared, "I4: frame {number} is {:?}, and the host reads {:?}", frame.state, frame.label);
        }
        picture
    }

    /// Makes a call and judges its answer and what it left. `hurried`: an interrupt waits for the host.
    pub(super) fn call(&mut self, cpu: usize, id: u32, x: [u64; 5], hurried: bool) -> Answer {
        self.rig.set_wanted(hurried);
        let (answer, asked, after) = self.made(cpu, id, x, hurried);
        self.rig.set_wanted(false);
        // The machine of the development machine has its own counters.
        if id != hvc::COUNTER {
            let what = if id == hvc::VCPU_RUN {
                self.stream.ran(&asked, &[], false, answer, &after)
            } else {
                self.stream.heard(&asked, answer, &after)
            };
            agree(what, || format!("{id:#x} {x:x?}"));
        }
        agree(self.stream.agrees(&after), || format!("after {id:#x} {x:x?}: {}", answer.name()));
        answer
    }

    /// Runs a vCPU 0 whose guest does these things. `busy`: the CPU is in streaming mode.
    pub(super) fn run(&mut self, cpu: usize, [vm, vcpu, mmio]: [u64; 3], acts: &[Act], busy: bool) -> Answer {
        self.rig.set_busy(busy);
        self.rig.script(cpu, acts);
        let (answer, asked, after) = self.made(cpu, hvc::VCPU_RUN, [vm, vcpu, mmio, 0, 0], false);
        self.rig.forget_script(cpu);
        self.rig.set_busy(false);
        agree(self.stream.ran(&asked, acts, busy, answer, &after), || format!("a run with {acts:x?}"));
        agree(self.stream.agrees(&after), || format!("after a run with {acts:x?}"));
        answer
    }

    /// The host writes to a frame.
    pub(super) fn write(&mut self, frame: u64) -> bool {
        let reached = self.rig.host_write(frame);
        agree(self.stream.wrote(frame, reached), || "a write".to_owned());
        self.sound();
        reached
    }

    /// The host writes words into a frame that it reaches.
    pub(super) fn write_words(&mut self, frame: u64, words: &[u64]) {
        if self.write(frame) {
            self.rig.host_write_words(frame, words);
        }
    }

    /// A fault of the host's at a frame; whether it makes the access again.
    pub(super) fn abort(&mut self, frame: u64, kernel: bool) -> bool {
        let again = self.rig.host_abort(frame, kernel);
        agree(self.stream.aborted(frame, kernel, again), || "a fault".to_owned());
        self.sound();
        again
    }

    fn made(&self, cpu: usize, id: u32, x: [u64; 5], hurried: bool) -> (Answer, Asked, Picture) {
        let before = (self.rig.changes(), self.rig.picture());
        let asked = self.stream.ask(id, x, hurried);
        let answer = self.rig.call(cpu, id, x);
        documented(id, x, answer);
        let after = self.safe();
        if !answer.is_success() {
            let name = answer.name();
            assert_eq!(answer.x[1..], [0; 3], "{id:#x} {x:x?} is refused, and says more than that");
            let spoken = answer.x[0] == 0 || answer.status == hvc::NEED_PAGES;
            assert!(spoken, "{id:#x} {x:x?} is refused with {:x?}", answer.x);
            // A run that ends in a refusal has entered its VM before: what it is asked again for must be the same.
            if id != hvc::VCPU_RUN {
                assert_eq!(self.rig.changes(), before.0, "I6: {id:#x} {x:x?} says {name}, and changed something");
                assert_eq!(after, before.1, "I6: {id:#x} {x:x?} says {name}, and changed something");
            }
        }
        if id == hvc::VCPU_RUN && answer.is_success() {
            exit(&after, x[0], answer.x);
        }
        (answer, asked, after)
    }
}

fn documented(id: u32, x: [u64; 5], answer: Answer) {
    let name = answer.name();
    assert_ne!(name, "?", "{id:#x} {x:x?} answers {:#x}", answer.status);
    match hvc::CALLS.iter().find(|call| call.id == id) {
        Some(call) => {
            let documented = answer.is_success() || call.errors.contains(&name);
            assert!(documented, "{} {x:x?} says {name}, which is not documented", call.name);
            let spare = answer.x.get(call.rets.len()..).unwrap_or(&[]);
            assert!(spare.iter().all(|x| *x == 0) || !answer.is_success(), "{} answers {:x?}", call.name, answer.x);
        }
        None => assert_eq!(name, "NOT_SUPPORTED", "{id:#x}"),
    }
}

/// D9: what an exit may say.
fn exit(picture: &Picture, handle: u64, [reason, a, b, c]: [u64; 4]) {
    let vm = picture.vms.iter().flatten().find(|vm| vm.handle == handle).expect("it ran");
    let ram = |gfn: u64| vm.ram.iter().any(|(first, count)| gfn.checked_sub(*first).is_some_and(|n| n < *count));
    let fine = match reason {
        hvc::EXIT_IRQ | hvc::EXIT_WFI | hvc::EXIT_KICKED | hvc::EXIT_OFF | hvc::EXIT_WAKE => [a, b, c] == [0; 3],
        hvc::EXIT_EOI => (32..256).contains(&a) && [b, c] == [0; 2],
        hvc::EXIT_MEM_FAULT => ram(a) && [b, c] == [0; 2],
        hvc::EXIT_MMIO if b & hvc::MMIO_WRITE == 0 => !ram(a >> 12) && b.is_power_of_two() && b <= 8 && c == 0,
        hvc::EXIT_MMIO => {
            let width = b & !hvc::MMIO_WRITE;
            !ram(a >> 12) && width.is_power_of_two() && width <= 8 && (width == 8 || c >> (8 * width) == 0)
        }
        hvc::EXIT_SHARE | hvc::EXIT_UNSHARE | hvc::EXIT_RELINQUISH => ram(a) && b != 0 && c == 0,
        hvc::EXIT_SYSTEM | hvc::EXIT_CRASH => [b, c] == [0; 2],
        _ => false,
    };
    assert!(fine, "D9: an exit says {reason} {a:#x} {b:#x} {c:#x}");
    let told = [a, b, c].contains(&CANARY);
    assert!(!told || reason == hvc::EXIT_MMIO, "D9: a store to RAM shows in exit {reason}");
}
