// SPDX-License-Identifier: MIT OR Apache-2.0
//! Attempts of more than one part against each other, in every interleaving that loom finds: two pages, of which a hold of
//! the file's lock handles one, so that each attempt can come between any two parts of another (requirements 45, 48).
//!
//! The engine is the shipped one. An attempt that waits for another's pages looks again after a time, as the shipped one
//! does; that is the model's yield. The judge: a page is frozen once and thawed once, nobody gives a page that another
//! attempt has, and at rest each page is what one of the two has made it.

use freehold_driver_core::convert::{to_private, to_shared, Given, Mode, Stopped};
use freehold_driver_core::drain::{Aim, Attempt, Rest};
use freehold_driver_core::error::Error;
use freehold_driver_core::file::{Book, File, Freeze, Owner, Pages, Report, Thread, Wake};
use freehold_driver_core::notify::Notice;
use freehold_driver_core::page::{Page, Span};
use freehold_driver_core::status::Refused;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::sync::{Arc, Mutex};

#[derive(Default)]
struct Inside {
    pages: Vec<Page>,
    next: u64,
    report: Report,
    notice: Notice,
    owner: Owner,
}

/// A file of two pages.
struct TwoPages {
    inside: Mutex<Inside>,
    /// References; the driver's own is one of them.
    refs: [AtomicU32; 2],
    /// Times that a page was given; nobody in the model decides by it.
    given: [std::sync::atomic::AtomicU32; 2],
    /// A control: the lock is let go within each change.
    lets_go: bool,
}

impl TwoPages {
    fn new(lets_go: bool) -> Arc<Self> {
        Arc::new(Self {
            inside: Mutex::new(Inside { pages: vec![Page::Host; 2], ..Inside::default() }),
            refs: [AtomicU32::new(1), AtomicU32::new(1)],
            given: Default::default(),
            lets_go,
        })
    }

    fn refs(&self, page: u64) -> &AtomicU32 {
        &self.refs[usize::try_from(page).unwrap()]
    }

    fn given(&self) -> [u32; 2] {
        [0, 1].map(|page: usize| self.given[page].load(std::sync::atomic::Ordering::Relaxed))
    }

    /// How it stands when nobody does anything any more.
    fn settled(&self) -> [Page; 2] {
        let inside = self.inside.lock().unwrap();
        let report = inside.report;
        assert_eq!((report.begun, report.waiting), (report.ended, 0), "as many have ended as begun");
        for (page, refs) in inside.pages.iter().zip(&self.refs) {
            let expected = match page {
                Page::Host => 1,
                Page::Held | Page::Given => 0,
                Page::Borrowed | Page::Lent | Page::Draining { .. } | Page::Vacant | Page::Lost => panic!("{page:?}"),
            };
            assert_eq!(refs.load(Ordering::Relaxed), expected, "{page:?}");
        }
        [inside.pages[0], inside.pages[1]]
    }
}

impl File for TwoPages {
    const CHUNK: u64 = 1;

    fn change<R>(&self, change: impl FnOnce(&mut Book<'_>) -> R) -> R {
        let mut inside = self.inside.lock().unwrap();
        if self.lets_go {
            let (mut pages, mut next, mut report) = (inside.pages.clone(), inside.next, inside.report);
            let (mut notice, mut owner) = (Notice::None, inside.owner);
            drop(inside);
            loom::thread::yield_now();
            let (next, report, notice, owner) = (&mut next, &mut report, &mut notice, &mut owner);
            let result = change(&mut Book { pages: Pages::new(&mut pages), next, report, notice, owner });
            let mut inside = self.inside.lock().unwrap();
            (inside.pages, inside.next, inside.report) = (pages, *next, *report);
            return result;
        }
        let Inside { pages, next, report, notice, owner } = &mut *inside;
        change(&mut Book { pages: Pages::new(pages), next, report, notice, owner })
    }

    fn frame(&self, page: u64) -> Option<u64> {
        Some(7 + page)
    }

    fn allocate(&self, _: u64) -> Result<(), Error> {
        unreachable!("each page has its frame")
    }

    fn release(&self, _: u64) {
        unreachable!("nobody frees one")
    }

    fn freeze(&self, page: u64) -> Freeze {
        match self.refs(page).compare_exchange(1, 0, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => Freeze::Frozen,
            Err(0) => panic!("frozen twice"),
            Err(_) => Freeze::Busy,
        }
    }

    fn thaw(&self, page: u64) {
        assert_eq!(self.refs(page).swap(1, Ordering::AcqRel), 0, "thawed what was not frozen");
    }

    fn shut(&self, _: Span) {}

    fn lend(&self, _: u64) -> Result<u64, Refused> {
        unreachable!("nothing is lent")
    }

    fn recall(&self, _: Span) -> bool {
        unreachable!("nothing is lent")
    }

    fn wake(&self) {}

    fn tell(&self, _: bool) {}
}

/// Sleeps for a time: others go on meanwhile.
struct Sleeper;

impl Thread for Sleeper {
    fn now(&self) -> u64 {
        0
    }

    fn pause(&self, _: u32) -> Wake {
        loom::thread::yield_now();
        Wake::Elapsed
    }

    fn breathe(&self) {}

    fn dying(&self) -> bool {
        false
    }
}

fn span(first: u64, count: u64) -> Span {
    Span::new(first, count).unwrap()
}

/// Donates each page of an attempt, as to a VM that has the file in a slot.
fn converts(file: &TwoPages, of: Span, mode: Mode) -> Result<bool, Stopped> {
    let mut giver = |file: &TwoPages, attempt: &Attempt| {
        let mut count = 0;
        for page in of.pages() {
            if file.change(|book| attempt.took(book, page).is_none()) {
                continue;
            }
            assert_eq!(file.refs(page).load(Ordering::Relaxed), 0, "given while held");
            let before = file.given[usize::try_from(page).unwrap()].fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            assert_eq!(before, 0, "given twice");
            count += 1;
        }
        Some(Given { count, rest: Rest::Keep, error: None })
    };
    to_private(file, of, Aim::Convert, mode, &Sleeper, &mut giver)
}

fn bounded(preemptions: usize, test: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(test);
}

fn beside<R: 'static>(file: &Arc<TwoPages>, act: impl FnOnce(&TwoPages) -> R + 'static) -> loom::thread::JoinHandle<R> {
    let file = Arc::clone(file);
    loom::thread::spawn(move || act(&file))
}

#[test]
fn two_conversions_of_the_same_parts_give_each_page_once() {
    bounded(3, || {
        let file = TwoPages::new(false);
        let other = beside(&file, |file| converts(file, span(0, 2), Mode::Wait));
        let one = converts(&file, span(0, 2), Mode::Wait);
        let other = other.join().unwrap();
        assert!(one.is_ok() && other.is_ok() && one != other, "one of them has taken all: {one:?} {other:?}");
        assert_eq!((file.settled(), file.given()), ([Page::Given; 2], [1, 1]));
    });
}

#[test]
fn conversions_that_meet_in_their_second_part_give_each_page_once() {
    bounded(3, || {
        let file = TwoPages::new(false);
        let other = beside(&file, |file| converts(file, span(1, 1), Mode::Wait));
        assert_eq!(converts(&file, span(0, 2), Mode::Wait), Ok(true), "the first page is its own");
        assert!(other.join().unwrap().is_ok());
        assert_eq!((file.settled(), file.given()), ([Page::Given; 2], [1, 1]));
    });
}

#[test]
fn a_conversion_that_must_not_wait_takes_all_or_puts_back_what_it_had() {
    bounded(3, || {
        let file = TwoPages::new(false);
        let other = beside(&file, |file| converts(file, span(1, 1), Mode::Now));
        let one = converts(&file, span(0, 2), Mode::Now);
        let other = other.join().unwrap();
        let refused = |at: u64| Err(Stopped { error: Error::Again, page: at });
        match (one, other) {
            (Ok(true), Ok(_)) => assert_eq!(file.settled(), [Page::Given; 2]),
            // It had the first page, and met the other attempt behind it.
            (one, Ok(true)) if one == refused(1) => assert_eq!(file.settled(), [Page::Host, Page::Given]),
            (Ok(true), other) if other == refused(1) => assert_eq!(file.settled(), [Page::Given; 2]),
            // Each met the other.
            (one, other) if one == refused(1) && other == refused(1) => assert_eq!(file.settled(), [Page::Host; 2]),
            seen => panic!("{seen:?}"),
        }
    });
}

#[test]
fn one_that_must_not_wait_beside_one_that_does_moves_nothing_of_what_is_held() {
    bounded(3, || {
        let file = TwoPages::new(false);
        file.refs(1).store(2, Ordering::Relaxed);
        let other = beside(&file, |file| converts(file, span(0, 2), Mode::Wait));
        let refused = converts(&file, span(0, 2), Mode::Now).map_err(|stopped| stopped.error);
        assert_eq!(refused, Err(Error::Again), "the other attempt's, or held");
        assert_eq!(file.given(), [0, 0]);
        file.refs(1).fetch_sub(1, Ordering::AcqRel);
        assert_eq!(other.join().unwrap(), Ok(true));
        assert_eq!((file.settled(), file.given()), ([Page::Given; 2], [1, 1]));
    });
}

/// What says that all of it is the host's has made each part so; what was refused may have moved the parts before its own.
#[test]
fn sharing_beside_a_conversion_of_two_parts_is_done_before_it_or_refused() {
    bounded(3, || {
        let file = TwoPages::new(false);
        let other = beside(&file, |file| converts(file, span(0, 2), Mode::Wait));
        let shared = to_shared(&*file, span(0, 2)).map_err(|stopped| stopped.error);
        assert_eq!(other.join().unwrap(), Ok(true));
        assert!(matches!(shared, Ok(()) | Err(Error::Again | Error::Denied)), "{shared:?}");
        assert_eq!((file.settled(), file.given()), ([Page::Given; 2], [1, 1]));
    });
}

/// The control: a file whose lock protects each look and each change, but not both together.
#[test]
#[should_panic(expected = "twice")]
fn a_lock_that_is_let_go_within_a_change_is_found() {
    bounded(3, || {
        let file = TwoPages::new(true);
        let other = beside(&file, |file| converts(file, span(0, 2), Mode::Wait));
        let _ = converts(&file, span(0, 2), Mode::Wait);
        let _ = other.join().unwrap();
    });
}
