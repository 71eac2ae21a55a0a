// SPDX-License-Identifier: MIT OR Apache-2.0
//! What other threads ask of a VM while its guest executes: each is answered meanwhile, and the guest is not fetched out.
//!
//! The guest spins with its interrupts masked and makes no exit, so that nothing but a call's own doing ends its run. That
//! it spun throughout is seen by its thread, which worked and did not come back.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use freehold_uapi::ioctl::*;

use crate::events::{self, Kind, event};
use crate::machine::{Event, Machine, set_plain};
use crate::proto::*;
use crate::report::Step;
use crate::spinning::work;
use crate::sys::{Mapping, ioctl, ioctl_value, outcome};
use crate::vgic::{interrupt, let_signals_interrupt, myself, spi};

const STEP: Step = Step("events");
/// A call that is not answered within it waits for the guest.
const PATIENCE: Duration = Duration::from_secs(60);
/// Ticks of work after which a thread is in its guest: all that comes before takes less.
const ENTERED: u64 = 5;
/// Where the second slot is, of which an ordinary VM may be robbed.
const SECOND: u64 = RAM_BASE + RAM_MIN;

/// A call, and how it should be answered.
type Row<'a> = (&'static str, &'static str, Box<dyn Fn() -> String + Sync + 'a>);

/// Runs the cases.
pub(crate) fn all() -> Result<(), String> {
    let_signals_interrupt();
    for kind in [Kind::Ordinary, Kind::Protected] {
        of_kind(kind)?;
        twice(kind)?;
    }
    Ok(())
}

/// The cases of an ordinary VM.
pub(crate) fn ordinary() -> Result<(), String> {
    of_kind(Kind::Ordinary)?;
    twice(Kind::Ordinary)
}

/// Waits until a thread is in its guest; whether it came to that.
pub(crate) fn executes(thread: libc::pid_t) -> bool {
    executes_until(thread, &AtomicBool::new(false))
}

/// As [`executes`], until nobody wants to know any more.
pub(crate) fn executes_until(thread: libc::pid_t, over: &AtomicBool) -> bool {
    let (start, before) = (Instant::now(), work(thread).unwrap_or(0));
    while start.elapsed() < PATIENCE && !over.load(Ordering::SeqCst) {
        if work(thread).is_ok_and(|now| now >= before + ENTERED) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}

fn of_kind(kind: Kind) -> Result<(), String> {
    let mut machine = events::with_a_second_slot(kind)?;
    machine.boot()?;
    machine.answer(CMD_LAST, [LAST_SPIN, 0, 0]);
    let Some(other) = machine.others.pop() else { return Err("no second vCPU".into()) };
    let (vm, vcpu, ram) = (machine.vm.as_raw_fd(), other.as_raw_fd(), machine.ram.clone());
    let rows = rows(kind, vm, vcpu, &ram);
    let (thread, over, came) = (myself(), AtomicBool::new(false), AtomicUsize::new(0));
    let ended = std::thread::scope(|scope| {
        let asker = scope.spawn(|| {
            STEP.same(&kind.says("beside a guest that executes: it does"), true, executes(thread));
            let let_out = || {
                over.store(true, Ordering::SeqCst);
                while came.load(Ordering::SeqCst) != usize::MAX {
                    interrupt(thread);
                    std::thread::sleep(Duration::from_millis(1));
                }
            };
            let before = work(thread);
            ask(kind, &rows, &let_out);
            let entered = executes(thread);
            let seen = (entered, came.load(Ordering::SeqCst));
            let what = format!("{seen:?}, its thread worked from {before:?} to {:?}", work(thread));
            let held = seen == (true, 0);
            STEP.judged(&kind.says("beside a guest that executes: it went on"), "(true, 0)", what, held);
            let_out();
        });
        let ended = until(&mut machine, &over, &came);
        came.store(usize::MAX, Ordering::SeqCst);
        asker.join().map_err(|_| "panicked".to_owned()).map(|()| ended)
    })?;
    STEP.same(&kind.says("beside a guest that executes: a signal alone ends its run"), "None", format!("{ended:?}"));
    Ok(())
}

/// Runs the guest until it is over; what else ended it.
fn until(machine: &mut Machine, over: &AtomicBool, came: &AtomicUsize) -> Option<Event> {
    loop {
        match machine.step() {
            Event::Interrupted if over.load(Ordering::SeqCst) => return None,
            Event::Interrupted => {
                came.fetch_add(1, Ordering::SeqCst);
            }
            other @ (Event::Asks | Event::Stored(..) | Event::System(_) | Event::Broken(_)) => return Some(other),
        }
    }
}

/// Two threads run one vCPU: the second is not in the guest before the first has come out, and takes its place then.
fn twice(kind: Kind) -> Result<(), String> {
    let mut machine = events::with_a_second_slot(kind)?;
    machine.boot()?;
    machine.answer(CMD_LAST, [LAST_SPIN, 0, 0]);
    let vcpu = machine.vcpu.as_raw_fd();
    let run = || outcome(ioctl_value(&vcpu, KVM_RUN, 0));
    let (first, second) = (AtomicI32::new(0), AtomicI32::new(0));
    let (out, came) = (AtomicBool::new(false), AtomicBool::new(false));
    let say = |case: &str, expected: &str, seen: String| {
        STEP.same(&kind.says(&format!("two threads, one vCPU: {case}")), expected, seen);
    };
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let runs = scope.spawn(|| {
            first.store(myself(), Ordering::SeqCst);
            let ended = until(&mut machine, &over, &AtomicUsize::new(0));
            out.store(true, Ordering::SeqCst);
            ended
        });
        let other = scope.spawn(|| {
            while first.load(Ordering::SeqCst) == 0 || !executes(first.load(Ordering::SeqCst)) {
                std::thread::yield_now();
            }
            second.store(myself(), Ordering::SeqCst);
            let done = run();
            came.store(true, Ordering::SeqCst);
            done
        });
        while second.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        let (first, second) = (first.load(Ordering::SeqCst), second.load(Ordering::SeqCst));
        // The second may spin meanwhile, as whoever waits for a kernel's mutex: what shows that it waits is that the first
        // stays, and that the second has not been answered.
        let stays = (0..3).all(|_| executes(first)) && !came.load(Ordering::SeqCst) && !out.load(Ordering::SeqCst);
        say("while the first is in its guest the second waits", "true", stays.to_string());
        over.store(true, Ordering::SeqCst);
        let start = Instant::now();
        while !out.load(Ordering::SeqCst) && start.elapsed() < PATIENCE {
            interrupt(first);
            std::thread::sleep(Duration::from_millis(1));
        }
        say("a signal brings the first out", "Ok(None)", format!("{:?}", runs.join().map_err(|_| "panicked")));
        say("then the second is in the guest", "true", (executes(second) && !came.load(Ordering::SeqCst)).to_string());
        while !came.load(Ordering::SeqCst) && start.elapsed() < 2 * PATIENCE {
            interrupt(second);
            std::thread::sleep(Duration::from_millis(1));
        }
        say("and a signal brings it out", "Ok(\"EINTR\")", format!("{:?}", other.join().map_err(|_| "panicked")));
    });
    Ok(())
}

/// Each of the calls, until one is not answered: that one waits for the guest, and comes back when it is let out.
fn ask(kind: Kind, rows: &[Row<'_>], let_out: &dyn Fn()) {
    std::thread::scope(|scope| {
        let (tell, told) = mpsc::channel();
        scope.spawn(move || rows.iter().all(|(_, _, call)| tell.send(call()).is_ok()));
        for (name, expected, _) in rows {
            let seen = told.recv_timeout(PATIENCE).unwrap_or_else(|_| "no answer".into());
            STEP.same(&kind.says(&format!("beside a guest that executes: {name}")), *expected, &seen);
            if seen == "no answer" {
                let_out();
                return;
            }
        }
    });
}

fn rows<'a>(kind: Kind, vm: i32, vcpu: i32, ram: &'a Mapping) -> Vec<Row<'a>> {
    let (a, b) = (event(), event());
    let [with, without] = [events::irqfd(&a, 0, Some(&b)), events::irqfd(&a, 1, None)];
    let [bell, no_bell] = [events::bell(&a, 4, Some(3)), events::bell(&a, 4, Some(3))];
    let no_bell = Ioeventfd { flags: no_bell.flags | 1 << 2, ..no_bell };
    let reg = move |request: u32, id: u64, value: u64| {
        let mut word = [value, 0];
        let said = outcome(ioctl(&vcpu, request, &mut OneReg { id, addr: word.as_mut_ptr() as u64 }));
        format!("{said}, {}", word[0] & 0xff_ffff)
    };
    let state = move |request: u32, mp_state: u32| {
        let mut state = MpState { mp_state };
        format!("{}, {}", outcome(ioctl(&vcpu, request, &mut state)), state.mp_state)
    };
    let slot = move |number: u32, bytes: u64| {
        let at = ram.at(usize::try_from(RAM_MIN).unwrap_or(0));
        outcome(set_plain(&vm, number, SECOND, bytes, at).map(|()| 0))
    };
    let device =
        move |kind: u32, flags: u32| outcome(ioctl(&vm, KVM_CREATE_DEVICE, &mut CreateDevice { kind, fd: 0, flags }));
    let v3 = u32::try_from(KVM_DEV_TYPE_ARM_VGIC_V3).unwrap_or(0);
    let held = if kind == Kind::Protected { "EPERM" } else { "0" };
    let keep = (a, b);
    vec![
        (
            "SET_ONE_REG of a vCPU that never ran, PSTATE",
            "0, 965",
            Box::new(move || reg(KVM_SET_ONE_REG, KVM_REG_PSTATE, START_PSTATE)),
        ),
        ("SET_ONE_REG of a vCPU that never ran, x1", "0, 7", Box::new(move || reg(KVM_SET_ONE_REG, KVM_REG_X0 + 2, 7))),
        ("GET_ONE_REG, x1", "0, 7", Box::new(move || reg(KVM_GET_ONE_REG, KVM_REG_X0 + 2, 0))),
        ("GET_ONE_REG, MPIDR", "0, 1", Box::new(move || reg(KVM_GET_ONE_REG, KVM_REG_MPIDR, 0))),
        (
            "GET_REG_LIST",
            "0",
            Box::new(move || {
                let mut room = vec![0u64; 512];
                room[0] = 511;
                outcome(ioctl_value(&vcpu, KVM_GET_REG_LIST, room.as_mut_ptr() as u64))
            }),
        ),
        ("GET_MP_STATE", "0, 5", Box::new(move || state(KVM_GET_MP_STATE, 77))),
        ("SET_MP_STATE", "0, 5", Box::new(move || state(KVM_SET_MP_STATE, 5))),
        (
            "a vCPU's attribute",
            "ENXIO",
            Box::new(move || {
                outcome(ioctl(&vcpu, KVM_HAS_DEVICE_ATTR, &mut DeviceAttr { flags: 0, group: 0, attr: 0, addr: 0 }))
            }),
        ),
        ("IRQFD with RESAMPLE", "0", Box::new(move || outcome(ioctl(&vm, KVM_IRQFD, &mut { with })))),
        (
            "IRQFD is rung",
            "8",
            Box::new(move || {
                let both = &keep;
                outcome(events::ring(&both.0))
            }),
        ),
        ("IRQFD goes", "0", Box::new(move || outcome(ioctl(&vm, KVM_IRQFD, &mut { without })))),
        ("IOEVENTFD", "0", Box::new(move || outcome(ioctl(&vm, KVM_IOEVENTFD, &mut { bell })))),
        ("IOEVENTFD goes", "0", Box::new(move || outcome(ioctl(&vm, KVM_IOEVENTFD, &mut { no_bell })))),
        ("IRQ_LINE", "0, 0", Box::new(move || format!("{}, {}", spi(&vm, 1), spi(&vm, 0)))),
        (
            "1,000 of IRQ_LINE, high and low",
            "1000",
            Box::new(move || {
                (0..1000).filter(|_| [1, 0].map(|level| spi(&vm, level)) == ["0", "0"]).count().to_string()
            }),
        ),
        ("CREATE_DEVICE, a test", "0", Box::new(move || device(v3, 1))),
        ("CREATE_DEVICE, a second vGIC", "EEXIST", Box::new(move || device(v3, 0))),
        ("CREATE_VCPU", "EBUSY", Box::new(move || outcome(ioctl_value(&vm, KVM_CREATE_VCPU, 2)))),
        (
            "CHECK_EXTENSION",
            "1",
            Box::new(move || outcome(ioctl_value(&vm, KVM_CHECK_EXTENSION, KVM_CAP_IRQFD.into()))),
        ),
        ("a slot goes", held, Box::new(move || slot(1, 0))),
        ("a slot comes", held, Box::new(move || slot(2, RAM_MIN))),
    ]
}
