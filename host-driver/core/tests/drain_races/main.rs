// SPDX-License-Identifier: MIT OR Apache-2.0
//! The drain against a source of events, in every interleaving that loom finds (requirements 49 to 60): no wake-up is
//! lost, no page is private while somebody holds it, and a cancelled attempt leaves everything as it was.
//!
//! The engine is the shipped one. The source here is the kind that a later kernel may have: its handler runs at the put
//! that leaves only the driver's reference, in whatever context that is, and does nothing but say so; what may sleep stops
//! the test where it is called from there. Nobody tries again after a time: an attempt that misses the event waits for
//! ever, which loom reports as a deadlock.

mod notice;

use freehold_driver_core::convert::{cancel, to_private, Mode, Nobody, Stopped};
use freehold_driver_core::drain::Aim;
use freehold_driver_core::error::Error;
use freehold_driver_core::file::{Book, File, Freeze, Owner, Pages, Report, Thread, Wake};
use freehold_driver_core::notify::Notice;
use freehold_driver_core::page::{Page, Span};
use freehold_driver_core::status::Refused;
use loom::sync::atomic::{fence, AtomicBool, AtomicU32, Ordering};
use loom::sync::{Arc, Mutex, Notify};
use std::cell::Cell;

loom::thread_local! {
    /// This thread runs a handler: it may be in an interrupt, or have any lock.
    static IN_THE_EVENT: Cell<bool> = Cell::new(false);
}

/// Called by whatever may sleep.
fn may_sleep() {
    assert!(!IN_THE_EVENT.with(Cell::get), "sleeps in the event");
}

/// What the source of references is like.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    /// Its handler wakes whoever waits, as often as the last reference goes.
    Wakes,
    /// Its handler wakes once for each time that it is armed.
    WakesOnce,
    /// It can not be armed a second time: a control, which is what one that wakes once would be if it were not.
    WakesOnceForAll,
    /// It is never armed: a control.
    Deaf,
    /// Its handler looks after the page itself, with the file's lock: a control.
    TakesTheLock,
}

#[derive(Default)]
struct Inside {
    pages: Vec<Page>,
    next: u64,
    report: Report,
    notice: Notice,
    owner: Owner,
}

/// A file of one page with a frame.
struct OnePage {
    inside: Mutex<Inside>,
    /// References; the driver's own is one of them.
    refs: AtomicU32,
    armed: AtomicBool,
    /// The same of a source that wakes once, whose own lock orders arming and events.
    once: Mutex<bool>,
    /// Times that it was armed; nobody in the model decides by it.
    arms: std::sync::atomic::AtomicU32,
    event: Notify,
    /// What whoever polls sees.
    told: AtomicBool,
    source: Source,
}

impl OnePage {
    fn held(holders: u32, source: Source) -> Arc<Self> {
        Arc::new(Self {
            inside: Mutex::new(Inside { pages: vec![Page::Host], ..Inside::default() }),
            refs: AtomicU32::new(1 + holders),
            armed: AtomicBool::new(false),
            once: Mutex::new(false),
            arms: std::sync::atomic::AtomicU32::new(0),
            event: Notify::new(),
            told: AtomicBool::new(false),
            source,
        })
    }

    /// What a source's handler does: it takes no lock and does not sleep.
    fn fire(&self) {
        IN_THE_EVENT.with(|inside| inside.set(true));
        if self.source == Source::TakesTheLock {
            self.change(|_| ());
        }
        self.event.notify();
        IN_THE_EVENT.with(|inside| inside.set(false));
    }

    /// Drops a reference, as the kernel does; the event is the source's.
    fn put(&self) {
        let left = self.refs.fetch_sub(1, Ordering::AcqRel) - 1;
        fence(Ordering::SeqCst);
        let fires = match self.source {
            Source::WakesOnce | Source::WakesOnceForAll => left == 1 && std::mem::take(&mut *self.once.lock().unwrap()),
            Source::Wakes | Source::Deaf | Source::TakesTheLock => left == 1 && self.armed.load(Ordering::Relaxed),
        };
        if fires {
            self.fire();
        }
    }

    /// Takes a reference as a scanner does: not from zero.
    fn try_get(&self) -> bool {
        let mut seen = self.refs.load(Ordering::Relaxed);
        while seen != 0 {
            match self.refs.compare_exchange(seen, seen + 1, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
        false
    }

    fn state(&self) -> Page {
        self.inside.lock().unwrap().pages[0]
    }
}

impl File for OnePage {
    fn change<R>(&self, change: impl FnOnce(&mut Book<'_>) -> R) -> R {
        may_sleep();
        let mut inside = self.inside.lock().unwrap();
        let Inside { pages, next, report, notice, owner } = &mut *inside;
        change(&mut Book { pages: Pages::new(pages), next, report, notice, owner })
    }

    fn frame(&self, _: u64) -> Option<u64> {
        Some(7)
    }

    fn allocate(&self, _: u64) -> Result<(), Error> {
        unreachable!("the page has its frame")
    }

    fn release(&self, _: u64) {
        unreachable!("nobody frees it")
    }

    fn freeze(&self, _: u64) -> Freeze {
        match self.refs.compare_exchange(1, 0, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => Freeze::Frozen,
            Err(_) => Freeze::Busy,
        }
    }

    fn thaw(&self, _: u64) {
        assert_eq!(self.refs.swap(1, Ordering::AcqRel), 0, "thawed what was not frozen");
    }

    fn shut(&self, _: Span) {}

    fn lend(&self, _: u64) -> Result<u64, Refused> {
        unreachable!("nothing is lent")
    }

    fn recall(&self, _: Span) -> bool {
        unreachable!("nothing is lent")
    }

    fn wake(&self) {}

    fn tell(&self, outcome: bool) {
        self.told.store(outcome, Ordering::Relaxed);
    }

    fn arm(&self, _: u64) {
        let before = self.arms.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        match self.source {
            Source::Deaf => {}
            Source::WakesOnce => *self.once.lock().unwrap() = true,
            Source::WakesOnceForAll => *self.once.lock().unwrap() |= before == 0,
            Source::Wakes | Source::TakesTheLock => {
                self.armed.store(true, Ordering::Relaxed);
                fence(Ordering::SeqCst);
            }
        }
    }

    fn disarm(&self, _: u64) {
        match self.source {
            Source::WakesOnce => *self.once.lock().unwrap() = false,
            // What was armed once for all is not disarmed: it would be the end of it.
            Source::WakesOnceForAll => {}
            Source::Wakes | Source::Deaf | Source::TakesTheLock => self.armed.store(false, Ordering::Relaxed),
        }
    }
}

/// Sleeps until the event, however long that is.
struct Waiter(Arc<OnePage>);

impl Thread for Waiter {
    fn now(&self) -> u64 {
        0
    }

    fn pause(&self, _: u32) -> Wake {
        may_sleep();
        self.0.event.wait();
        Wake::Elapsed
    }

    fn breathe(&self) {}

    fn dying(&self) -> bool {
        false
    }
}

fn convert(file: &Arc<OnePage>) -> Result<bool, Stopped> {
    let thread = Waiter(Arc::clone(file));
    to_private(&**file, Span::one(0).unwrap(), Aim::Convert, Mode::Wait, &thread, &mut Nobody)
}

fn bounded(preemptions: usize, test: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(test);
}

fn lets_go(file: &Arc<OnePage>) -> loom::thread::JoinHandle<()> {
    let file = Arc::clone(file);
    loom::thread::spawn(move || {
        assert_ne!(file.state(), Page::Held, "private while held");
        file.put();
    })
}

#[test]
fn no_wake_up_is_lost() {
    bounded(3, || {
        let file = OnePage::held(1, Source::Wakes);
        let holder = lets_go(&file);
        assert_eq!(convert(&file), Ok(true));
        holder.join().unwrap();
        assert_eq!((file.state(), file.refs.load(Ordering::Relaxed)), (Page::Held, 0));
        assert!(!file.armed.load(Ordering::Relaxed), "disarmed");
    });
}

#[test]
fn the_last_of_two_holders_wakes() {
    bounded(2, || {
        let file = OnePage::held(2, Source::Wakes);
        let holders = [lets_go(&file), lets_go(&file)];
        assert_eq!(convert(&file), Ok(true));
        for holder in holders {
            holder.join().unwrap();
        }
        assert_eq!(file.state(), Page::Held);
    });
}

/// The control: where the source is not armed, the same race is one that loom finds.
#[test]
#[should_panic(expected = "deadlock")]
fn a_source_that_is_never_armed_is_noticed() {
    bounded(3, || {
        let file = OnePage::held(1, Source::Deaf);
        let holder = lets_go(&file);
        let _ = convert(&file);
        holder.join().unwrap();
    });
}

fn beside_a_speculative_holder(source: Source) {
    bounded(2, move || {
        let file = OnePage::held(1, source);
        let holder = lets_go(&file);
        let scanner = {
            let file = Arc::clone(&file);
            loom::thread::spawn(move || {
                if file.try_get() {
                    assert_ne!(file.state(), Page::Held, "private while held");
                    file.put();
                }
            })
        };
        assert_eq!(convert(&file), Ok(true));
        holder.join().unwrap();
        scanner.join().unwrap();
        assert_eq!((file.state(), file.refs.load(Ordering::Relaxed)), (Page::Held, 0));
    });
}

#[test]
fn a_speculative_holder_delays_and_is_never_beside_the_guest() {
    beside_a_speculative_holder(Source::Wakes);
}

/// The event that woke it is spent, and the page is held again: what it waits for next is an event of its own.
#[test]
fn a_source_that_wakes_once_is_armed_for_each_wait() {
    beside_a_speculative_holder(Source::WakesOnce);
}

/// The control: were it armed for a page's first wait only, the speculative reference would be the last that is heard of.
#[test]
#[should_panic(expected = "deadlock")]
fn a_source_that_is_armed_for_one_wait_only_is_noticed() {
    beside_a_speculative_holder(Source::WakesOnceForAll);
}

#[test]
fn cancelling_races_with_the_event_and_leaves_one_of_two_states() {
    bounded(2, || {
        let file = OnePage::held(1, Source::Wakes);
        let holder = lets_go(&file);
        let canceller = {
            let file = Arc::clone(&file);
            loom::thread::spawn(move || {
                cancel(&*file);
                file.fire();
            })
        };
        let result = convert(&file);
        holder.join().unwrap();
        canceller.join().unwrap();
        let seen = (file.state(), file.refs.load(Ordering::Relaxed), file.armed.load(Ordering::Relaxed));
        match result {
            Ok(_) => assert_eq!(seen, (Page::Held, 0, false)),
            Err(stopped) => {
                assert_eq!(stopped, Stopped { error: Error::Cancelled, page: 0 });
                assert_eq!(seen, (Page::Host, 1, false));
            }
        }
        let report = file.inside.lock().unwrap().report;
        assert_eq!((report.begun, report.waiting), (report.ended, 0));
    });
}

/// Requirement 60: an event that comes late, or for nothing, is a try more at most.
#[test]
fn an_event_beside_a_disarmed_source_harms_nobody() {
    bounded(3, || {
        let file = OnePage::held(0, Source::Wakes);
        let late = {
            let file = Arc::clone(&file);
            loom::thread::spawn(move || file.fire())
        };
        assert_eq!(convert(&file), Ok(true));
        late.join().unwrap();
        assert_eq!(file.state(), Page::Held);
    });
}

/// Requirement 60: what lets go may have the file's lock, and the event comes right then. A handler that takes that lock
/// would never come back.
#[test]
fn the_event_comes_under_the_files_lock_too() {
    bounded(3, || {
        let file = OnePage::held(1, Source::Wakes);
        let holder = {
            let file = Arc::clone(&file);
            loom::thread::spawn(move || file.change(|_| file.put()))
        };
        assert_eq!(convert(&file), Ok(true));
        holder.join().unwrap();
        assert_eq!((file.state(), file.refs.load(Ordering::Relaxed)), (Page::Held, 0));
    });
}

/// The control: a handler that looks after the page itself sleeps where nobody may, held lock or not.
#[test]
#[should_panic(expected = "sleeps in the event")]
fn a_handler_that_takes_the_files_lock_is_found() {
    bounded(3, || {
        let file = OnePage::held(1, Source::TakesTheLock);
        let holder = lets_go(&file);
        let _ = convert(&file);
        holder.join().unwrap();
    });
}
