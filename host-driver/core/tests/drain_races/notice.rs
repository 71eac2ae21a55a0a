// SPDX-License-Identifier: MIT OR Apache-2.0
//! A conversion that nobody waits for, beside whoever lets go, cancels, and asks how it ended: it has one outcome, which one of
//! those who ask gets, and who polls the file is told of it as long as it is there.

use super::{bounded, cancel, lets_go, OnePage, Source, Waiter};
use freehold_driver_core::convert::{Nobody, Stopped};
use freehold_driver_core::error::Error;
use freehold_driver_core::notify::{collect, drive, start, Next, Outcome};
use freehold_driver_core::page::{Page, Span};
use loom::sync::atomic::Ordering;
use loom::sync::Arc;

/// What came out of the interleavings, for a test that would show nothing if some of it never did.
#[derive(Clone, Default)]
struct CameOut(std::sync::Arc<std::sync::Mutex<std::collections::BTreeSet<&'static str>>>);

impl CameOut {
    fn note(&self, what: &'static str) {
        self.0.lock().unwrap().insert(what);
    }

    fn is(&self, expected: &[&'static str]) {
        assert_eq!(self.0.lock().unwrap().iter().copied().collect::<Vec<_>>(), expected);
    }
}

/// Begins a conversion of the page, which somebody holds, that nobody waits for.
fn begin_pending(file: &Arc<OnePage>) {
    let pending = Err(Stopped { error: Error::InProgress, page: 0 });
    assert_eq!(begin_notified(file), pending);
}

fn begin_notified(file: &Arc<OnePage>) -> Result<(), Stopped> {
    start(&**file, Span::one(0).unwrap(), None, &Waiter(Arc::clone(file)), &mut Nobody)
}

/// Looks until it is over, as the kernel's worker does; there is a look for each event, and none beside.
fn drive_to_its_end(file: &Arc<OnePage>) {
    let thread = Waiter(Arc::clone(file));
    while drive(&**file, &thread) == Next::Again {
        file.event.wait();
    }
}

fn cancels(file: &Arc<OnePage>) -> loom::thread::JoinHandle<()> {
    let file = Arc::clone(file);
    loom::thread::spawn(move || {
        cancel(&*file);
        file.fire();
    })
}

/// Asks once how it ended, as whoever polls does at any time; who is told of an end finds the page as it was told.
fn asks(file: &Arc<OnePage>) -> loom::thread::JoinHandle<Option<Outcome>> {
    let file = Arc::clone(file);
    loom::thread::spawn(move || match collect(&*file) {
        Ok(outcome) => {
            assert_eq!(file.state(), if outcome.result.is_ok() { Page::Held } else { Page::Host }, "at its end");
            Some(outcome)
        }
        Err(error) => {
            assert_eq!(error, Error::InProgress, "it is neither pending nor ended");
            None
        }
    })
}

/// The page is what the outcome says, and the file's account is closed; what that is.
fn is_as_told(file: &OnePage, outcome: Outcome) -> &'static str {
    let seen = (file.state(), file.refs.load(Ordering::Relaxed), file.armed.load(Ordering::Relaxed));
    match outcome.result {
        Ok(()) => assert_eq!(seen, (Page::Held, 0, false)),
        Err(stopped) => {
            assert_eq!(stopped, Stopped { error: Error::Cancelled, page: 0 });
            assert_eq!(seen, (Page::Host, 1, false));
        }
    }
    let report = file.inside.lock().unwrap().report;
    assert_eq!((report.begun, report.waiting), (report.ended, 0));
    if outcome.result.is_ok() {
        "done"
    } else {
        "cancelled"
    }
}

/// Whoever asks beside the last look gets the outcome, or it is there for who asks next, and told.
#[test]
fn an_outcome_that_is_asked_for_beside_the_look_is_had_once() {
    let came_out = CameOut::default();
    let seen = came_out.clone();
    bounded(3, move || {
        let file = OnePage::held(1, Source::Wakes);
        begin_pending(&file);
        let (holder, early) = (lets_go(&file), asks(&file));
        drive_to_its_end(&file);
        holder.join().unwrap();
        let early = early.join().unwrap();
        assert_eq!(file.told.load(Ordering::Relaxed), early.is_none(), "told as long as it is there");
        let late = collect(&*file);
        assert_eq!(late.is_ok(), early.is_none(), "{late:?}");
        let outcome = early.or(late.ok()).unwrap();
        assert_eq!(outcome.result, Ok(()));
        is_as_told(&file, outcome);
        seen.note(if early.is_some() { "early" } else { "late" });
        assert_eq!((collect(&*file), file.told.load(Ordering::Relaxed)), (Err(Error::NoEntry), false));
    });
    came_out.is(&["early", "late"]);
}

/// Requirement 59, of what nobody waits for: the holder lets go, somebody cancels and somebody asks, all beside the look.
#[test]
fn cancelling_races_with_a_look_and_leaves_one_of_two_states() {
    let came_out = CameOut::default();
    let seen = came_out.clone();
    bounded(2, move || {
        let file = OnePage::held(1, Source::Wakes);
        begin_pending(&file);
        let (holder, canceller, early) = (lets_go(&file), cancels(&file), asks(&file));
        drive_to_its_end(&file);
        holder.join().unwrap();
        canceller.join().unwrap();
        let early = early.join().unwrap();
        assert_eq!(file.told.load(Ordering::Relaxed), early.is_none(), "told as long as it is there");
        seen.note(if early.is_some() { "early" } else { "late" });
        seen.note(is_as_told(&file, early.or(collect(&*file).ok()).unwrap()));
        assert_eq!(collect(&*file), Err(Error::NoEntry), "had once");
    });
    came_out.is(&["cancelled", "done", "early", "late"]);
}

/// The cancel comes before it begins, while it does, or later: refused at once there is nothing to ask for.
#[test]
fn cancelling_races_with_the_begin_and_leaves_no_outcome_of_what_was_refused() {
    let came_out = CameOut::default();
    let seen = came_out.clone();
    bounded(2, move || {
        let file = OnePage::held(1, Source::Wakes);
        let (holder, canceller) = (lets_go(&file), cancels(&file));
        let begun = begin_notified(&file);
        let pending = begun == Err(Stopped { error: Error::InProgress, page: 0 });
        if pending {
            drive_to_its_end(&file);
        }
        holder.join().unwrap();
        canceller.join().unwrap();
        assert_eq!(file.told.load(Ordering::Relaxed), pending);
        let collected = collect(&*file);
        assert_eq!(collected.is_ok(), pending, "{collected:?}");
        let span = Span::one(0).unwrap();
        seen.note(if pending { "pending" } else { "at once" });
        seen.note(is_as_told(&file, collected.unwrap_or(Outcome { span, result: begun })));
    });
    came_out.is(&["at once", "cancelled", "done", "pending"]);
}

/// Whoever has the outcome may begin the next one before the worker that made it has come to its end.
#[test]
fn the_next_one_begins_as_soon_as_the_outcome_is_had() {
    let came_out = CameOut::default();
    let seen = came_out.clone();
    bounded(2, move || {
        let file = OnePage::held(1, Source::Wakes);
        begin_pending(&file);
        let (canceller, early) = (cancels(&file), asks(&file));
        let next = {
            let file = Arc::clone(&file);
            loom::thread::spawn(move || {
                let outcome = early.join().unwrap()?;
                begin_pending(&file);
                Some(outcome)
            })
        };
        drive_to_its_end(&file);
        canceller.join().unwrap();
        let cancelled = Err(Stopped { error: Error::Cancelled, page: 0 });
        let Some(first) = next.join().unwrap() else {
            assert_eq!(collect(&*file).map(|outcome| outcome.result), Ok(cancelled));
            seen.note("no next");
            return;
        };
        assert_eq!((first.result, file.told.load(Ordering::Relaxed)), (cancelled, false));
        assert_eq!(collect(&*file), Err(Error::InProgress), "the next one's is not there yet");
        file.put();
        drive_to_its_end(&file);
        let second = collect(&*file).unwrap();
        assert_eq!(second.result, Ok(()));
        is_as_told(&file, second);
        seen.note("next");
    });
    came_out.is(&["next", "no next"]);
}

/// The control: a source that is not armed leaves a conversion that nobody waits for undone.
#[test]
#[should_panic(expected = "deadlock")]
fn a_look_that_a_deaf_source_never_asks_for_is_missed() {
    bounded(3, || {
        let file = OnePage::held(1, Source::Deaf);
        begin_pending(&file);
        let holder = lets_go(&file);
        drive_to_its_end(&file);
        holder.join().unwrap();
    });
}
