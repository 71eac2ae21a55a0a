// SPDX-License-Identifier: MIT OR Apache-2.0
//! A VM whose first run looks up memory that a server takes its time to serve: whoever converts or populates a page of a file
//! of its meanwhile has its own answer in its own time, and nothing stays frozen behind it (I6).

use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use freehold_uapi::ioctl::Populate;

use super::STEP;
use super::convert::shown;
use super::draining::beside;
use super::fuse::Fuse;
use super::lives::wait_for;
use super::rig::{PAGE, STILL, bytes, open_attempts, until_pending, word};
use crate::gmem::{Gmem, converted};
use crate::machine::{Machine, Plan, set_plain};
use crate::probe::{Access, probe};
use crate::proto;
use crate::sys::{Mapping, errno_name, fallocate, outcome};
use crate::vgic::{interrupt, let_signals_interrupt};

/// Offset of the pages that are converted: behind the program's.
const FREE: u64 = proto::RAM_MIN;
const COUNT: u64 = 4;
const SIZE: u64 = COUNT * PAGE;
/// Much more than a deadline of the cases here, and much less than for ever.
const SOON: Duration = Duration::from_secs(20);

/// Runs every part.
pub(super) fn all() -> Result<(), String> {
    let_signals_interrupt();
    let fuse = Fuse::new(vec![0; 8])?;
    let file = fuse.open()?;
    // The kernel asks for the size when it is asked.
    let seen = file.try_clone().map(std::fs::File::from).and_then(|file| file.metadata()).map_or(0, |seen| seen.len());
    STEP.judged("a busy VM: the file's size", "a page or more", seen, seen >= PAGE);
    let slow = Mapping::mapped(bytes(1), libc::MAP_PRIVATE, file.as_raw_fd()).map_err(errno_name)?;
    let mut machine = Machine::new(Plan { bytes: FREE + SIZE, boot: proto::BOOT_NO_SHARE, ..Plan::default() })?;
    machine.gmem.to_private(0, FREE, 0).map_err(|(e, _)| errno_name(e))?;
    for page in 0..COUNT {
        machine.ram.store(bytes(FREE / PAGE + page), word(page));
    }
    set_plain(&machine.vm, 1, proto::RAM_BASE + FREE + SIZE, PAGE, slow.at(0)).map_err(errno_name)?;
    let seen = Seen { gmem: &machine.gmem.clone(), ram: &machine.ram.clone() };
    fuse.hold(true);
    let (boot, ended) = std::thread::scope(|scope| {
        let runner = scope.spawn(|| machine.boot().map(|boot| boot.hash_ok));
        STEP.same("a busy VM: its first run waits for the server", 1, fuse.in_flight());
        seen.with_a_deadline(&fuse);
        seen.at_once();
        seen.cancelled();
        seen.by_a_signal();
        seen.notified();
        seen.populated();
        let last = scope.spawn(|| seen.gmem.to_private(FREE, SIZE, 0));
        STEP.same("a busy VM, without a deadline: it waits", pending(), until_pending(seen.gmem));
        STEP.same("a busy VM: its first run waits all along", false, runner.is_finished());
        fuse.hold(false);
        let ended = converted(last.join().unwrap_or(Err((0, 0))));
        (runner.join().unwrap_or_else(|_| Err("panicked".to_owned())), ended)
    });
    STEP.same("a busy VM, without a deadline: served, it is through", "0", ended);
    STEP.same("a busy VM: served, it runs what was written", "Ok(1)", format!("{boot:?}"));
    STEP.same("a busy VM: the host reads", "SIGBUS", probe(seen.ram.at(bytes(FREE / PAGE)), Access::Load));
    STEP.same("a busy VM: as many have ended as begun", "0 of some", open_attempts(seen.gmem));
    Ok(())
}

fn pending() -> String {
    format!("pending at {FREE:#x}")
}

/// The file, and the host's view of it.
struct Seen<'a> {
    gmem: &'a Gmem,
    ram: &'a Mapping,
}

impl Seen<'_> {
    /// The pages are the host's as before.
    fn as_before(&self, case: &str) {
        STEP.same(&format!("a busy VM, {case}: all have ended"), "0 of some", open_attempts(self.gmem));
        let wrong: Vec<_> = (0..COUNT).filter(|&p| self.ram.load(bytes(FREE / PAGE + p)) != word(p)).collect();
        STEP.same(&format!("a busy VM, {case}: nothing has changed"), "[]", format!("{wrong:?}"));
    }

    fn with_a_deadline(&self, fuse: &Fuse) {
        let begin = Instant::now();
        // One that waits for the server is served at last, so that the rest is seen too.
        let done = beside(
            || converted(self.gmem.to_private(FREE, SIZE, 300)),
            |_, ended| {
                let over = wait_for(|| ended.load(Ordering::SeqCst));
                fuse.hold(over);
            },
        );
        let took = begin.elapsed();
        STEP.same("a busy VM, with a deadline", format!("ETIMEDOUT at {FREE:#x}"), done);
        let held = took >= Duration::from_millis(300) && took < SOON;
        STEP.judged("a busy VM, with a deadline: when", "300 ms to 20 s", format!("{} ms", took.as_millis()), held);
        self.as_before("with a deadline");
    }

    fn at_once(&self) {
        let begin = Instant::now();
        let done = converted(self.gmem.to_private_now(FREE, SIZE));
        STEP.same("a busy VM, at once", format!("EAGAIN at {FREE:#x}"), done);
        let took = format!("{} ms", begin.elapsed().as_millis());
        STEP.judged("a busy VM, at once: when", "within 20 s", took, begin.elapsed() < SOON);
        self.as_before("at once");
    }

    fn cancelled(&self) {
        let done = beside(
            || converted(self.gmem.to_private(FREE, SIZE, 0)),
            |_, _| {
                STEP.same("a busy VM, cancel: it waits", pending(), until_pending(self.gmem));
                let _ = self.gmem.cancel();
            },
        );
        STEP.same("a busy VM, cancel", format!("ECANCELED at {FREE:#x}"), done);
        self.as_before("cancel");
    }

    fn by_a_signal(&self) {
        let done = beside(
            || converted(self.gmem.to_private(FREE, SIZE, 100_000)),
            |thread, _| {
                STEP.same("a busy VM, a signal: it waits", pending(), until_pending(self.gmem));
                interrupt(thread);
            },
        );
        STEP.same("a busy VM, a signal", format!("EINTR at {FREE:#x}"), done);
        self.as_before("a signal");
    }

    /// It goes on by itself, and its pages wait for the guest's first touch.
    fn notified(&self) {
        let done = converted(self.gmem.to_private_notify(FREE, SIZE, 0));
        STEP.same("a busy VM, notify", format!("EINPROGRESS at {FREE:#x}"), done);
        STEP.same("a busy VM, notify: poll", true, self.gmem.polls_in(60_000));
        STEP.same("a busy VM, notify: the outcome", format!("{FREE:#x}+{SIZE:#x}: 0 at 0x0"), shown(self.gmem));
        STEP.same("a busy VM, notify: back", "0", converted(self.gmem.to_shared(FREE, SIZE)));
        self.as_before("notify");
    }

    /// A private offset without a page: what is copied there has nowhere to go yet.
    fn populated(&self) {
        let last = FREE + SIZE - PAGE;
        let hole = libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE;
        let _ = self.gmem.to_private_notify(last, PAGE, 0);
        STEP.same("a busy VM, populate: a private page", true, self.gmem.polls_in(60_000));
        let _ = shown(self.gmem);
        let punched = fallocate(self.gmem, hole, last.cast_signed(), PAGE.cast_signed());
        STEP.same("a busy VM, populate: a hole", "0", outcome(punched));
        let text = vec![0x5a_u8; bytes(1)];
        let ask =
            Populate { offset: last, size: PAGE, source: text.as_ptr() as u64, error_offset: 0, reserved: [0; 4] };
        let done = beside(
            || converted(self.gmem.populate(ask)),
            |thread, ended| {
                STEP.same("a busy VM, populate: it waits", format!("pending at {last:#x}"), until_pending(self.gmem));
                std::thread::sleep(STILL);
                STEP.same("a busy VM, populate: it waits on", false, ended.load(Ordering::SeqCst));
                interrupt(thread);
            },
        );
        STEP.same("a busy VM, populate: a signal", format!("EINTR at {last:#x}"), done);
        STEP.same("a busy VM, populate: back", "0", converted(self.gmem.to_shared(last, PAGE)));
        STEP.same("a busy VM, populate: it has brought nothing", 0, self.ram.load(bytes(last / PAGE)));
        self.ram.store(bytes(last / PAGE), word(COUNT - 1));
        self.as_before("populate");
    }
}
