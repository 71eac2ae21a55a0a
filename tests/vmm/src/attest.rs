// SPDX-License-Identifier: MIT OR Apache-2.0
//! The launch measurement, end to end: a guest asks for its report, and the VMM's side recomputes what it must be from
//! the image and the parameters. Then I9: what a running guest is given is zeros, whatever the host prepared.

use std::ops::Range;

use freehold_attest::{Digest, Start, Transcript, verify};
use freehold_uapi::ioctl::{KVM_REG_X0, Populate};

use crate::gmem::{Gmem, converted};
use crate::machine::{Machine, Plan};
use crate::proto::{self, GRANULE, RAM_BASE, RAM_MIN};
use crate::report::Step;
use crate::sys::{self, outcome};

const STEP: Step = Step("attest");
/// A page of the guest's that its program leaves alone.
const SPARE: u64 = proto::SHARE_BASE - RAM_BASE + 40 * GRANULE;

/// One VM, not run yet, and what it is known to be.
struct Launch {
    machine: Machine,
    plan: Plan,
    contents: Vec<u8>,
    transcript: Transcript,
    /// What x2 and x3 start with.
    more: [u64; 2],
}

impl Launch {
    /// A VM whose memory the host has written and still has.
    fn new(plan: Plan, change: impl FnOnce(&mut [u8])) -> Result<Self, String> {
        let mut launch = Self::around(Machine::new(plan)?, plan);
        change(&mut launch.contents);
        launch.machine.ram.copy_in(0, &launch.contents);
        Ok(launch)
    }

    /// A VM with the program's contents, which somebody has brought or will.
    fn around(machine: Machine, plan: Plan) -> Self {
        let contents = padded(&machine.program, plan);
        Self { machine, plan, contents, transcript: Transcript::new(), more: [0; 2] }
    }

    /// A part counts now.
    fn counts(&mut self, part: Range<u64>) {
        self.transcript.image(RAM_BASE + part.start, &self.contents[index(part.start)..index(part.end)]);
    }

    /// Gives a part of its memory to it.
    fn give(&mut self, part: Range<u64>) -> Result<(), String> {
        let converted = self.machine.gmem.to_private(part.start, part.end - part.start, 0);
        converted.map_err(|(error, at)| format!("convert, at {at:#x}: {}", sys::errno_name(error)))?;
        self.counts(part);
        Ok(())
    }

    fn start(&self) -> Start {
        Start {
            ipa_bits: 40,
            // A bit for each.
            vcpus: (1 << self.plan.vcpus) - 1,
            registers: [RAM_BASE, proto::START_PSTATE, self.plan.boot, self.machine.x1, self.more[0], self.more[1]],
            gic: self.plan.gic.then_some([proto::GICD_GFN, proto::GICR_GFN].map(|gfn| gfn * GRANULE)),
            ranges: vec![(RAM_BASE, self.plan.bytes)],
        }
    }

    /// Sets x2 and x3.
    fn start_with(&mut self, more: [u64; 2]) -> Result<(), String> {
        self.more = more;
        for (number, value) in (2..).zip(more) {
            let set = self.machine.vcpu.set_one_reg(KVM_REG_X0 + 2 * number, &value.to_le_bytes());
            set.map_err(|e| format!("x{number}: {}", sys::errno_name(e.errno())))?;
        }
        Ok(())
    }

    fn expected(&self) -> Digest {
        self.transcript.clone().start(&self.start())
    }

    /// The guest's report, with the nonce of a seed.
    fn report(&mut self, seed: u64) -> Result<Vec<u8>, String> {
        let mut words = Vec::new();
        for from in [0, 3, 6, 9] {
            words.extend(self.machine.command(proto::CMD_ATTEST, [seed, from, 0])?);
        }
        STEP.same("the call succeeds", 0, words[0]);
        Ok(words[1..10].iter().flat_map(|word| word.to_le_bytes()).collect())
    }

    /// Has the guest ask, and the verifier judge.
    fn judged(&mut self, seed: u64, expected: &Digest) -> Result<String, String> {
        let nonce: Vec<u8> = proto::nonce(seed).iter().flat_map(|word| word.to_le_bytes()).collect();
        let nonce = nonce.try_into().map_err(|_| "a nonce")?;
        Ok(format!("{:?}", verify(&self.report(seed)?, &nonce, expected)))
    }
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

fn padded(program: &[u8], plan: Plan) -> Vec<u8> {
    let mut contents = program.to_vec();
    contents.resize(index(plan.bytes), 0);
    contents
}

/// Runs the suite.
pub(crate) fn all() -> Result<(), String> {
    let plan = Plan { boot: proto::BOOT_NO_SHARE, ..Plan::default() };
    let mut first = Launch::new(plan, |_| ())?;
    first.give(0..RAM_MIN)?;
    let expected = first.expected();
    first.machine.boot()?;
    STEP.same("the report is what the image comes to", "Ok(())", first.judged(1, &expected)?);
    let old = first.report(1)?;
    let nonce = proto::nonce(2).iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    let replayed = verify(&old, &nonce.try_into().map_err(|_| "a nonce")?, &expected);
    STEP.same("an old report answers no new nonce", "Err(Nonce)", format!("{replayed:?}"));
    STEP.same("a new one does, at any time", "Ok(())", first.judged(2, &expected)?);
    differences(plan, &mut first, expected)?;
    populated(plan)?;
    notified(plan)?;
    running(plan)
}

/// Half of its RAM, which is the least that the program has.
const HALF: u64 = RAM_MIN / 2;

/// Brings a part of the contents by a call.
fn populate(gmem: &Gmem, contents: &[u8], part: Range<u64>) -> String {
    let source = contents[index(part.start)..index(part.end)].as_ptr() as u64;
    let (offset, size) = (part.start, part.end - part.start);
    converted(gmem.populate(Populate { offset, size, source, error_offset: 0, reserved: [0; 4] }))
}

/// By `FREEHOLD_POPULATE`, of pages that the host never mapped: what is brought when there is a slot counts at once, and
/// what came before it at the first run.
fn populated(plan: Plan) -> Result<(), String> {
    let machine = Machine::populated(plan, |gmem, _, program| {
        STEP.same("populate, before the slot", "0", populate(gmem, &padded(program, plan), 0..HALF));
        Ok(())
    })?;
    let mut launch = Launch::around(machine, plan);
    let late = populate(&launch.machine.gmem, &launch.contents, HALF..RAM_MIN);
    STEP.same("populate, with a slot", "0", late);
    launch.counts(HALF..RAM_MIN);
    launch.counts(0..HALF);
    let expected = launch.expected();
    launch.machine.boot()?;
    STEP.same("populate: the report is what was brought, in its order", "Ok(())", launch.judged(7, &expected)?);
    refused_of_the_image("populate: refused by who thinks of another order", &mut launch)
}

/// Who expects the contents from their start to their end is told that it was not so.
fn refused_of_the_image(case: &str, launch: &mut Launch) -> Result<(), String> {
    launch.transcript = Transcript::new();
    launch.counts(0..RAM_MIN);
    let other = launch.expected();
    STEP.same(case, "Err(Digest)", launch.judged(8, &other)?);
    Ok(())
}

/// By a conversion that goes on by itself, while somebody holds a page: what was written counts at the first run.
fn notified(plan: Plan) -> Result<(), String> {
    let held = SPARE;
    let mut launch = Launch::new(plan, |contents| contents[index(held)] = 0x77)?;
    let pipe = sys::pipe();
    let at = launch.machine.ram.at(index(held));
    STEP.same("notify: a page is held", "4096", outcome(sys::vmsplice(&pipe.1, at, 4096)));
    let begun = converted(launch.machine.gmem.to_private_notify(0, RAM_MIN, 0));
    STEP.same("notify: it goes on", format!("EINPROGRESS at {held:#x}"), begun);
    drop(pipe);
    STEP.same("notify: it has ended", true, launch.machine.gmem.polls_in(60_000));
    let how = launch.machine.gmem.outcome().map(|o| (o.offset, o.size, o.error));
    STEP.same("notify: how", format!("{:?}", Ok::<_, i32>((0, RAM_MIN, 0))), format!("{how:?}"));
    launch.counts(0..RAM_MIN);
    let expected = launch.expected();
    launch.machine.boot()?;
    STEP.same("notify: the report is what was written", "Ok(())", launch.judged(9, &expected)?);
    launch.contents[index(held)] = 0;
    refused_of_the_image("notify: refused by who does not know of it", &mut launch)
}

/// Each thing that is different is seen, and known for what it is.
fn differences(plan: Plan, first: &mut Launch, expected: Digest) -> Result<(), String> {
    /// What is different, the plan, a change of the contents, the parts in which memory is given, and x2 and x3.
    type Case = (&'static str, Plan, fn(&mut [u8]), &'static [(u64, u64)], [u64; 2]);
    const WHOLE: &[(u64, u64)] = &[(0, RAM_MIN)];
    let cases: [Case; 8] = [
        ("one bit of the image", plan, |contents| contents[index(SPARE) + 4095] ^= 1, WHOLE, [0; 2]),
        ("the order of donation", plan, |_| (), &[(HALF, RAM_MIN), (0, HALF)], [0; 2]),
        ("a register", Plan { boot: plan.boot | proto::BOOT_QUIET, ..plan }, |_| (), WHOLE, [0; 2]),
        ("an interrupt controller", Plan { gic: true, ..plan }, |_| (), WHOLE, [0; 2]),
        ("x2", plan, |_| (), WHOLE, [1, 0]),
        ("x3", plan, |_| (), WHOLE, [0, 1 << 63]),
        ("a second vCPU, which is off", Plan { vcpus: 2, ..plan }, |_| (), WHOLE, [0; 2]),
        ("the size of its RAM", Plan { bytes: 2 * RAM_MIN, ..plan }, |_| (), WHOLE, [0; 2]),
    ];
    for (what, plan, change, parts, more) in cases {
        let mut launch = Launch::new(plan, change)?;
        launch.start_with(more)?;
        for (start, end) in parts {
            launch.give(*start..*end)?;
        }
        launch.machine.boot()?;
        let told = launch.expected();
        STEP.same(&format!("{what}: verified by who knows of it"), "Ok(())", launch.judged(3, &told)?);
        // x1 differs from launch to launch, so what was expected is recomputed with this one's.
        let mut without = Transcript::new();
        without.image(RAM_BASE, &first.contents[..index(RAM_MIN)]);
        let naive = without.start(&Start { registers: launch_registers(first, launch.machine.x1), ..first.start() });
        STEP.same(&format!("{what}: refused by who does not"), "Err(Digest)", launch.judged(4, &naive)?);
    }
    // The first VM still lives, beside those: its report is its own.
    STEP.same("another VM's life changes nothing", "Ok(())", first.judged(5, &expected)?);
    Ok(())
}

fn launch_registers(first: &Launch, x1: u64) -> [u64; 6] {
    let [pc, pstate, x0, _, x2, x3] = first.start().registers;
    [pc, pstate, x0, x1, x2, x3]
}

/// After the first run the host brings what it likes, and the guest finds zeros; the measurement stays (I9).
fn running(plan: Plan) -> Result<(), String> {
    let plan = Plan { bytes: 2 * RAM_MIN, ..plan };
    let mut launch = Launch::new(plan, |contents| contents[index(RAM_MIN)..].fill(0x5a))?;
    launch.give(0..RAM_MIN)?;
    let expected = launch.expected();
    launch.machine.boot()?;
    let (touched, brought) = (RAM_MIN, RAM_MIN + 8 * GRANULE);
    let prepared = launch.machine.ram.load(index(touched));
    STEP.same("the host prepares contents", format!("{:#x}", 0x5a5a_5a5a_5a5a_5a5a_u64), format!("{prepared:#x}"));
    let found = launch.machine.command(proto::CMD_ZERO, [RAM_BASE + touched, 8 * GRANULE, 0])?;
    STEP.same("first touch: the guest finds zeros", 0, found[0]);
    launch.machine.ram.store(index(brought), 0x5a);
    STEP.same("the host converts more", "0", converted(launch.machine.gmem.to_private(brought, 8 * GRANULE, 0)));
    let found = launch.machine.command(proto::CMD_ZERO, [RAM_BASE + brought, 8 * GRANULE, 0])?;
    STEP.same("converted late: the guest finds zeros", 0, found[0]);
    STEP.same("and the measurement is what it was", "Ok(())", launch.judged(6, &expected)?);
    Ok(())
}
