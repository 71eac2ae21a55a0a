// SPDX-License-Identifier: MIT OR Apache-2.0
//! A conversion that nobody waits for, cancelling, and the order of arming and trying.

use super::*;
use crate::convert::{cancel, punch, to_private, to_shared, Given, Mode, Nobody, Stopped};
use crate::drain::{Aim, Attempt, Rest};
use crate::notify::{abandon, collect, drive, keep, start, Next, Outcome};

const CHUNK: u64 = Model::CHUNK;

/// A written file of 4 pages, with page 2 held.
fn held() -> Model {
    let file = Model::new(&world(), 4, Page::Host);
    for page in 0..4 {
        assert_eq!(file.store(page), HostFault::Map);
    }
    file.hold(2);
    file
}

fn begin_pending(file: &Model, until: Option<u64>) {
    let begun = start(file, span(0, 4), until, &Sleeper::default(), &mut Nobody);
    assert_eq!(begun, Err(Stopped { error: Error::InProgress, page: 2 }));
    assert!(!file.told.get());
    assert_eq!(file.store(1), HostFault::Wait);
}

#[test]
fn what_nobody_holds_is_done_at_once_and_tells_nothing() {
    let file = held();
    file.let_go(2);
    assert_eq!(start(&file, span(0, 4), None, &Sleeper::default(), &mut Nobody), Ok(()));
    assert_eq!((file.state(3), file.told.get()), (Page::Held, false));
    assert_eq!(collect(&file), Err(Error::NoEntry));
    file.check();
}

#[test]
fn a_pending_one_ends_when_the_page_is_let_go_and_tells_it() {
    let file = held();
    begin_pending(&file, None);
    let thread = Sleeper::default();
    assert_eq!(drive(&file, &thread), Next::Again);
    assert_eq!(collect(&file), Err(Error::InProgress));
    file.let_go(2);
    assert_eq!(drive(&file, &thread), Next::Over);
    assert!(file.told.get());
    assert!((0..4).all(|page| file.state(page) == Page::Held));
    assert_eq!(collect(&file), Ok(Outcome { span: span(0, 4), result: Ok(()) }));
    assert!(!file.told.get());
    assert_eq!(collect(&file), Err(Error::NoEntry));
    assert_eq!(drive(&file, &thread), Next::Over);
    file.check();
}

/// Whoever polls would be told of an outcome for ever that somebody has, and asks in vain.
#[test]
fn an_outcome_that_is_collected_as_it_comes_is_told_no_more() {
    let file = held();
    begin_pending(&file, None);
    file.let_go(2);
    file.collects.set(true);
    assert_eq!(drive(&file, &Sleeper::default()), Next::Over);
    assert!(!file.collects.get(), "it was collected");
    assert!(!file.told.get());
    assert_eq!(collect(&file), Err(Error::NoEntry));
}

#[test]
fn an_outcome_that_is_kept_and_collected_at_once_is_told_no_more() {
    let file = held();
    begin_pending(&file, None);
    file.let_go(2);
    assert_eq!(drive(&file, &Sleeper::default()), Next::Over);
    let outcome = collect(&file).unwrap();
    file.collects.set(true);
    keep(&file, outcome);
    assert!(!file.collects.get() && !file.told.get());
}

#[test]
fn a_file_has_one_at_a_time_and_its_outcome_waits_to_be_collected() {
    let file = held();
    begin_pending(&file, None);
    let busy = Err(Stopped { error: Error::Busy, page: 3 });
    let thread = Sleeper::default();
    assert_eq!(start(&file, span(3, 1), None, &thread, &mut Nobody), busy);
    file.let_go(2);
    assert_eq!(drive(&file, &thread), Next::Over);
    assert_eq!(start(&file, span(3, 1), None, &thread, &mut Nobody), busy);
    let outcome = collect(&file).unwrap();
    keep(&file, outcome);
    assert!(file.told.get(), "an outcome that could not be delivered is there again");
    assert_eq!(collect(&file), Ok(outcome));
    assert_eq!(start(&file, span(3, 1), None, &thread, &mut Nobody), Ok(()));
}

#[test]
fn refusals_begin_nothing() {
    let file = held();
    let thread = Sleeper::default();
    let begun = start(&file, span(3, 2), None, &thread, &mut Nobody);
    assert_eq!(begun, Err(Stopped { error: Error::Invalid, page: 3 }));
    file.change(|book| book.set(3, Page::Draining { origin: Origin::Host, attempt: 77 }));
    let begun = start(&file, span(0, 4), None, &thread, &mut Nobody);
    assert_eq!(begun, Err(Stopped { error: Error::Again, page: 3 }));
    file.change(|book| book.set(3, Page::Host));
    let mut refuses =
        |_: &Model, _: &Attempt| Some(Given { count: 0, rest: Rest::Restore, error: Some(Error::Poisoned) });
    let begun = start(&file, span(0, 2), None, &thread, &mut refuses);
    assert_eq!(begun, Err(Stopped { error: Error::Poisoned, page: 0 }));
    assert_eq!(collect(&file), Err(Error::NoEntry));
    file.check();
    assert!((0..4).all(|page| file.state(page) == Page::Host));
}

#[test]
fn a_deadline_ends_it_with_everything_put_back() {
    let file = held();
    begin_pending(&file, Some(5));
    let thread = Sleeper::default();
    assert_eq!(drive(&file, &thread), Next::Again);
    thread.clock.set(5);
    assert_eq!(drive(&file, &thread), Next::Over);
    let late = Stopped { error: Error::TimedOut, page: 2 };
    assert_eq!(collect(&file), Ok(Outcome { span: span(0, 4), result: Err(late) }));
    assert!((0..4).all(|page| file.state(page) == Page::Host));
    file.check();
}

/// Requirement 59: sharing meets a pending conversion; it is refused until that one was cancelled.
#[test]
fn cancelling_puts_every_page_back() {
    let file = held();
    begin_pending(&file, None);
    assert_eq!(to_shared(&file, span(0, 4)), Err(Stopped { error: Error::Again, page: 0 }));
    assert_eq!(punch(&file, span(0, 1)), Err(Error::Busy));
    cancel(&file);
    assert_eq!(drive(&file, &Sleeper::default()), Next::Over);
    let gone = Stopped { error: Error::Cancelled, page: 2 };
    assert_eq!(collect(&file), Ok(Outcome { span: span(0, 4), result: Err(gone) }));
    assert_eq!(to_shared(&file, span(0, 4)), Ok(()));
    assert_eq!(file.store(1), HostFault::Map);
    file.check();
    file.let_go(2);
    assert_eq!(
        start(&file, span(0, 4), None, &Sleeper::default(), &mut Nobody),
        Ok(()),
        "later ones are not cancelled"
    );
}

#[test]
fn cancelling_ends_a_wait_too_but_not_what_a_guest_waits_for() {
    let file = held();
    let thread = Sleeper::of(vec![Box::new(|| ()), Box::new(|| cancel(&file))]);
    let ended = to_private(&file, span(0, 4), Aim::Convert, Mode::Wait, &thread, &mut Nobody);
    assert_eq!(ended, Err(Stopped { error: Error::Cancelled, page: 2 }));
    file.check();
    let thread = Sleeper::of(vec![Box::new(|| cancel(&file)), Box::new(|| file.let_go(2))]);
    assert_eq!(to_private(&file, span(2, 1), Aim::Touch, Mode::Wait, &thread, &mut Nobody), Ok(true));
    file.check();
}

/// It is the same attempt from its first look on, whoever has its pages meanwhile.
#[test]
fn a_conversion_that_waits_behind_another_is_seen_and_cancelled() {
    let file = held();
    begin_pending(&file, None);
    let first = file.report.get();
    let thread = Sleeper::of(vec![
        Box::new(|| {
            let report = file.report.get();
            assert_eq!((report.waiting, report.begun), (2, 2));
            assert_eq!((report.page, report.total), (first.page, first.total), "the first says more");
        }),
        Box::new(|| cancel(&file)),
    ]);
    let ended = to_private(&file, span(0, 4), Aim::Convert, Mode::Wait, &thread, &mut Nobody);
    assert_eq!(ended, Err(Stopped { error: Error::Cancelled, page: 0 }));
    assert_eq!(drive(&file, &thread), Next::Over);
    file.check();
    // Behind one that says nothing: it speaks for itself.
    let crate::drain::Begun::Attempt(other) = crate::drain::begin(&file, span(1, 1), Aim::Convert) else {
        panic!("nothing began")
    };
    let thread = Sleeper::of(vec![
        Box::new(|| {
            let report = file.report.get();
            assert_eq!((report.waiting, report.page, report.frozen, report.total), (1, 1, 0, 4));
        }),
        Box::new(|| cancel(&file)),
    ]);
    let ended = to_private(&file, span(0, 4), Aim::Convert, Mode::Wait, &thread, &mut Nobody);
    assert_eq!(ended, Err(Stopped { error: Error::Cancelled, page: 1 }));
    other.finish(&file, 0, crate::drain::Rest::Restore);
    file.check();
    file.let_go(2);
    assert_eq!(to_private(&file, span(0, 4), Aim::Convert, Mode::Now, &thread, &mut Nobody), Ok(true));
}

/// Whoever maps the start of a long span is not disturbed again and again for a page at its end.
#[test]
fn waiting_behind_another_attempt_looks_at_its_page_alone() {
    let world = world();
    let len = 2 * Model::CHUNK;
    let file = Model::new(&world, len as usize, Page::Host);
    let last = span(len - 1, 1);
    let crate::drain::Begun::Attempt(other) = crate::drain::begin(&file, last, Aim::Convert) else {
        panic!("nothing began")
    };
    let holds = std::cell::Cell::new(0);
    let mut other = Some(other);
    let thread = Sleeper::of(vec![
        Box::new(|| {
            assert_eq!(file.store(0), HostFault::Map);
            holds.set(file.holds.get());
        }),
        Box::new(|| {
            assert_eq!(file.holds.get() - holds.get(), 1);
            assert!(file.with_frame(0, |frame| frame.mapped));
        }),
        Box::new(|| other.take().unwrap().finish(&file, 0, crate::drain::Rest::Restore)),
    ]);
    assert_eq!(to_private(&file, span(0, len), Aim::Convert, Mode::Wait, &thread, &mut Nobody), Ok(true));
    assert_eq!(thread.sleeps.get(), 3);
    drop(thread);
    file.check();
    assert_eq!(file.report.get().begun, 2, "as many as were asked for");
}

#[test]
fn closing_the_file_undoes_it() {
    let file = held();
    begin_pending(&file, None);
    abandon(&file);
    assert!((0..4).all(|page| file.state(page) == Page::Host));
    file.check();
}

/// A thread that looks at a long file takes breath, and goes on unless it is killed.
#[test]
fn a_long_one_is_done_at_once_unless_the_thread_is_killed() {
    for killed in [false, true] {
        let file = Model::new(&world(), CHUNK as usize + 1, Page::Host);
        for page in 0..CHUNK + 1 {
            assert_eq!(file.store(page), HostFault::Map);
        }
        let thread = Sleeper::default();
        thread.killed.set(killed);
        let begun = start(&file, span(0, CHUNK + 1), None, &thread, &mut Nobody);
        let (expected, page) = if killed {
            (Err(Stopped { error: Error::Interrupted, page: 0 }), Page::Host)
        } else {
            (Ok(()), Page::Held)
        };
        assert_eq!(begun, expected);
        assert!((0..CHUNK + 1).all(|at| file.state(at) == page));
        file.check();
    }
}

#[test]
fn a_page_that_is_waited_for_is_watched_until_it_is_let_go() {
    let file = held();
    begin_pending(&file, None);
    assert_eq!(file.armed.get(), Some(2));
    file.let_go(2);
    assert_eq!(drive(&file, &Sleeper::default()), Next::Over);
    file.check();
}

/// Requirements 49 and 53: a reference that goes between the first try and the arming is seen by the second try.
#[test]
fn a_page_is_tried_once_more_after_arming() {
    let file = held();
    file.goes_when_armed.set(true);
    assert_eq!(to_private(&file, span(0, 4), Aim::Convert, Mode::Now, &Sleeper::default(), &mut Nobody), Ok(true));
    file.check();
}

/// Requirement 54: somebody takes and drops a reference again and again; each time it is a try more, never the end.
#[test]
fn a_speculative_holder_only_delays() {
    let file = held();
    let mut script: Vec<Box<dyn FnOnce() + '_>> = Vec::new();
    for _ in 0..50 {
        script.push(Box::new(|| {
            file.let_go(2);
            file.with_frame(2, |frame| frame.held += 1);
        }));
    }
    script.push(Box::new(|| file.let_go(2)));
    let thread = Sleeper::of(script);
    assert_eq!(to_private(&file, span(0, 4), Aim::Convert, Mode::Wait, &thread, &mut Nobody), Ok(true));
    assert_eq!(thread.sleeps.get(), 51);
    file.check();
}

/// Requirements 8 to 11: the window between the unmapping and the outcome, as wide as a test wants it. A host fault
/// waits, a touch of the guest's waits, a hole is refused; both ends are counted.
#[test]
fn the_window_serves_no_fault_and_no_touch() {
    let file = held();
    let window = || {
        let report = file.report.get();
        assert_eq!((report.begun, report.ended), (1, 0), "begun and not ended");
        for page in 0..4 {
            assert_eq!(file.store(page), HostFault::Wait);
            assert!(!file.with_frame(page, |frame| frame.mapped), "nothing old is mapped");
        }
        let touched = crate::drain::begin(&file, span(0, 1), Aim::Touch);
        assert!(matches!(touched, crate::drain::Begun::Refused(Error::Again, 0)), "{touched:?}");
        assert_eq!(punch(&file, span(0, 4)), Err(Error::Busy));
        let report = file.report.get();
        assert_eq!((report.begun, report.ended), (2, 1), "the touch began and ended");
    };
    let thread = Sleeper::of(vec![Box::new(window), Box::new(|| file.let_go(2))]);
    assert_eq!(to_private(&file, span(0, 4), Aim::Convert, Mode::Wait, &thread, &mut Nobody), Ok(true));
    file.check();
    assert_eq!(file.report.get().ended, 2);
}
