// SPDX-License-Identifier: MIT OR Apache-2.0
//! A VM that somebody else has while an attempt would give to it: whoever asked is answered in the time of the asking, and no
//! page stays frozen behind the answer.

use super::*;
use crate::convert::{bereave, cancel, populate, to_private, Given, Giver, Mode, Nobody, Stopped, SHORT_WAITS};
use crate::drain::{Aim, Attempt};
use crate::notify::{collect, drive, start, Next, Outcome};

const COUNT: u64 = 8;

/// Gives nothing for the first times that it is asked; keeps the pages from then on.
struct Busy(u32);

impl Giver<Model> for Busy {
    fn give(&mut self, file: &Model, attempt: &Attempt) -> Option<Given> {
        assert!(!file.locked.get(), "it may take the file's lock");
        let mut pages = attempt.span().pages().filter(|&page| file.frame(page).is_some());
        assert!(pages.all(|page| file.with_frame(page, |frame| frame.frozen)), "asked before all are frozen");
        match self.0.checked_sub(1) {
            Some(left) => {
                self.0 = left;
                None
            }
            None => Nobody.give(file, attempt),
        }
    }
}

/// One that somebody else has for ever.
const FOR_EVER: u32 = u32::MAX;

fn convert(file: &Model, mode: Mode, thread: &Sleeper<'_>, busy: u32) -> Result<bool, Stopped> {
    to_private(file, span(0, COUNT), Aim::Convert, mode, thread, &mut Busy(busy))
}

/// Nothing is frozen any more, and every page is the host's.
fn as_before(file: &Model) {
    file.check();
    assert!(file.pages.borrow().iter().all(|&page| page == Page::Host));
    assert_eq!(file.store(0), HostFault::Map);
}

#[test]
fn a_deadline_ends_the_wait_for_a_busy_vm() {
    let file = written(&world(), COUNT as usize);
    let thread = Sleeper::default();
    let stopped = convert(&file, Mode::Until(50), &thread, FOR_EVER);
    assert_eq!(stopped, Err(Stopped { error: Error::TimedOut, page: 0 }));
    assert_eq!(thread.clock.get(), 50, "at the deadline");
    as_before(&file);
}

#[test]
fn a_signal_and_a_cancel_end_the_wait_for_a_busy_vm_which_shows() {
    let file = written(&world(), COUNT as usize);
    let thread = Sleeper::of(vec![Box::new(|| {
        let report = file.report.get();
        assert_eq!((report.waiting, report.page, report.frozen, report.total), (1, 0, COUNT, COUNT));
        assert_eq!(file.store(2), HostFault::Wait);
    })]);
    thread.signal_at.set(Some(3));
    let stopped = convert(&file, Mode::Wait, &thread, FOR_EVER);
    assert_eq!(stopped, Err(Stopped { error: Error::Interrupted, page: 0 }));
    as_before(&file);
    let thread = Sleeper::of(vec![Box::new(|| ()), Box::new(|| cancel(&file))]);
    let stopped = convert(&file, Mode::Wait, &thread, FOR_EVER);
    assert_eq!(stopped, Err(Stopped { error: Error::Cancelled, page: 0 }));
    assert_eq!(thread.sleeps.get(), 2, "when it looked next");
    as_before(&file);
}

#[test]
fn a_vm_that_is_busy_for_a_moment_is_no_answer_and_one_that_stays_so_is() {
    for asked in [0, 1, SHORT_WAITS, SHORT_WAITS + 1] {
        let file = written(&world(), COUNT as usize);
        let thread = Sleeper::default();
        let done = convert(&file, Mode::Now, &thread, asked);
        if asked <= SHORT_WAITS {
            assert_eq!(done, Ok(true), "asked {asked} times for nothing");
            file.check();
            assert!(file.pages.borrow().iter().all(|&page| page == Page::Held));
        } else {
            assert_eq!(done, Err(Stopped { error: Error::Again, page: 0 }));
            as_before(&file);
        }
        assert_eq!(thread.sleeps.get(), asked.min(SHORT_WAITS));
    }
}

#[test]
fn a_held_page_is_the_answer_before_a_busy_vm_is_asked() {
    let file = written(&world(), COUNT as usize);
    file.hold(5);
    let thread = Sleeper::default();
    let stopped = convert(&file, Mode::Now, &thread, 0);
    assert_eq!(stopped, Err(Stopped { error: Error::Again, page: 5 }));
    assert_eq!(thread.sleeps.get(), 0, "at once");
    as_before(&file);
}

#[test]
fn what_is_waited_for_goes_through_when_the_vm_is_free() {
    let file = written(&world(), COUNT as usize);
    let thread = Sleeper::default();
    assert_eq!(convert(&file, Mode::Wait, &thread, 100), Ok(true));
    assert_eq!(thread.sleeps.get(), 100);
    file.check();
}

/// It goes on by itself: its pages wait for the first run, or the guest's touch, as those of a page that was held do.
#[test]
fn a_notified_conversion_goes_on_without_a_busy_vm() {
    let file = written(&world(), COUNT as usize);
    let (thread, all) = (Sleeper::default(), span(0, COUNT));
    let begun = start(&file, all, None, &thread, &mut Busy(FOR_EVER));
    assert_eq!(begun, Err(Stopped { error: Error::InProgress, page: 0 }));
    assert_eq!(file.store(2), HostFault::Wait);
    assert_eq!(collect(&file), Err(Error::InProgress));
    assert_eq!(drive(&file, &thread), Next::Over);
    assert_eq!(collect(&file), Ok(Outcome { span: all, result: Ok(()) }));
    assert!(file.pages.borrow().iter().all(|&page| page == Page::Held));
    file.check();
}

#[test]
fn a_notified_conversion_is_cancelled_before_and_behind_its_answer() {
    let all = span(0, COUNT);
    let file = written(&world(), COUNT as usize);
    let thread = Sleeper::of(vec![Box::new(|| cancel(&file))]);
    let cancelled = Stopped { error: Error::Cancelled, page: 0 };
    assert_eq!(start(&file, all, None, &thread, &mut Busy(FOR_EVER)), Err(cancelled));
    as_before(&file);
    assert_eq!(collect(&file), Err(Error::NoEntry));
    let begun = start(&file, all, None, &Sleeper::default(), &mut Busy(FOR_EVER));
    assert_eq!(begun, Err(Stopped { error: Error::InProgress, page: 0 }));
    cancel(&file);
    assert_eq!(drive(&file, &thread), Next::Over);
    assert_eq!(collect(&file), Ok(Outcome { span: all, result: Err(cancelled) }));
    as_before(&file);
}

/// A populate waits as long as it takes, and a signal ends that with nothing brought.
#[test]
fn a_signal_ends_a_populate_that_waits_for_a_busy_vm() {
    let world = world();
    let file = Model::new(&world, COUNT as usize, Page::Vacant);
    let thread = Sleeper::default();
    assert_eq!(populate(&file, span(0, 2), &thread, |_| Ok(()), &mut Busy(100)), Ok(()));
    file.check();
    let before = world.frames.borrow().len();
    thread.signal_at.set(Some(thread.sleeps.get() + 20));
    let stopped = populate(&file, span(4, 4), &thread, |_| Ok(()), &mut Busy(FOR_EVER));
    assert_eq!(stopped, Err(Stopped { error: Error::Interrupted, page: 4 }));
    assert_eq!(world.frames.borrow().len(), before);
    assert!((4..COUNT).all(|page| file.state(page) == Page::Vacant));
    file.check();
}

/// It is the VMM's own, which may have it for the file's next VM: only what guest and vCPUs wait for ends with the VM.
#[test]
fn a_populate_outlives_the_vm() {
    let world = world();
    let file = Model::new(&world, COUNT as usize, Page::Vacant);
    let thread = Sleeper::of(vec![Box::new(|| bereave(&file))]);
    assert_eq!(populate(&file, span(0, 2), &thread, |_| Ok(()), &mut Busy(100)), Ok(()));
    assert!((0..2).all(|page| file.state(page) == Page::Held));
    file.check();
}
