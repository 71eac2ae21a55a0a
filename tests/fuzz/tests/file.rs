// SPDX-License-Identifier: MIT OR Apache-2.0
//! One `guest_memfd` of the driver's core, without a VM, against a naive page table of it: converted, shared back,
//! punched, filled, held and let go, in long random sequences.

use std::cell::{Cell, RefCell};

use freehold_driver_core::convert::{self, Mode, Nobody, Stopped};
use freehold_driver_core::drain::Aim;
use freehold_driver_core::error::Error;
use freehold_driver_core::file::{Book, File, Freeze, Owner, Pages, Report, Thread, Wake};
use freehold_driver_core::notify::Notice;
use freehold_driver_core::page::{HostFault, Page, Span};
use freehold_driver_core::status::Refused;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestError, TestRunner};

const PAGES: u64 = 12;

/// A page as the kernel keeps it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Frame {
    there: bool,
    frozen: bool,
    held: bool,
    mapped: bool,
}

/// A file over a kernel of twelve frames.
struct Kernel {
    pages: RefCell<Vec<Page>>,
    frames: RefCell<Vec<Frame>>,
    next: Cell<u64>,
    report: RefCell<Report>,
    notice: RefCell<Notice>,
    /// A planted fault: freezing does not see who holds a page.
    blind: bool,
}

impl Kernel {
    fn with<R>(&self, page: u64, change: impl FnOnce(&mut Frame) -> R) -> R {
        change(&mut self.frames.borrow_mut()[page as usize])
    }
}

impl File for Kernel {
    fn change<R>(&self, change: impl FnOnce(&mut Book<'_>) -> R) -> R {
        let (mut pages, mut next) = (self.pages.borrow_mut(), self.next.get());
        let (mut report, mut notice) = (self.report.borrow_mut(), self.notice.borrow_mut());
        let (report, notice, mut owner) = (&mut *report, &mut *notice, Owner::default());
        let done =
            change(&mut Book { pages: Pages::new(&mut pages), next: &mut next, report, notice, owner: &mut owner });
        self.next.set(next);
        done
    }
    fn frame(&self, page: u64) -> Option<u64> {
        self.with(page, |frame| frame.there.then_some(100 + page))
    }
    fn allocate(&self, page: u64) -> Result<(), Error> {
        self.with(page, |frame| assert!(!std::mem::replace(&mut frame.there, true), "a second frame for a page"));
        Ok(())
    }
    fn release(&self, page: u64) {
        self.with(page, |frame| {
            assert!(frame.there && !frame.frozen && !frame.mapped, "{page} is released while {frame:?}");
            // Who holds it keeps the frame; the file does not know it any more.
            *frame = Frame::default();
        });
    }
    fn freeze(&self, page: u64) -> Freeze {
        self.with(page, |frame| {
            assert!(frame.there && !frame.frozen, "{page} is frozen while {frame:?}");
            let busy = frame.held && !self.blind;
            frame.frozen = !busy;
            if busy { Freeze::Busy } else { Freeze::Frozen }
        })
    }
    fn thaw(&self, page: u64) {
        self.with(page, |frame| assert!(std::mem::replace(&mut frame.frozen, false), "{page} was not frozen"));
    }
    fn shut(&self, span: Span) {
        span.pages().for_each(|page| self.with(page, |frame| frame.mapped = false));
    }
    fn lend(&self, _: u64) -> Result<u64, Refused> {
        unreachable!("nothing is lent")
    }

    fn recall(&self, _: Span) -> bool {
        unreachable!("nothing is lent")
    }
    fn wake(&self) {}
    fn tell(&self, _: bool) {}
}

/// A thread that never waits.
struct Hasty;

impl Thread for Hasty {
    fn now(&self) -> u64 {
        0
    }
    fn pause(&self, _: u32) -> Wake {
        Wake::Interrupted
    }
    fn breathe(&self) {}
    fn dying(&self) -> bool {
        false
    }
}

/// What should be so of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Naive {
    private: bool,
    frame: bool,
    held: bool,
}

fn step(kernel: &Kernel, naive: &mut [Naive], [verb, first, count]: [u8; 3]) {
    let (first, count) = (u64::from(first) % (PAGES + 1), 1 + u64::from(count) % 4);
    let span = Span::new(first, count).unwrap();
    let fits = first + count <= PAGES;
    let run = first as usize..(first + count).min(PAGES) as usize;
    match verb % 7 {
        0 | 1 => {
            let busy = naive[run.clone()].iter().position(|page| page.held && !page.private);
            let some = naive[run.clone()].iter().any(|page| !page.private);
            let expected = match busy {
                _ if !fits => Err(Stopped { error: Error::Invalid, page: first }),
                Some(at) => Err(Stopped { error: Error::Again, page: first + at as u64 }),
                None => Ok(some),
            };
            let done = convert::to_private(kernel, span, Aim::Convert, Mode::Now, &Hasty, &mut Nobody);
            assert_eq!(done.map_err(|s| s.error), expected.map_err(|s| s.error));
            if !done.is_err_and(|s| s.error == Error::Invalid) {
                assert_eq!(done, expected, "the page that is held is named");
            }
            if expected.is_ok() {
                naive[run].iter_mut().for_each(|page| page.private = true);
            }
        }
        2 => {
            assert_eq!(convert::to_shared(kernel, span).is_ok(), fits);
            if fits {
                naive[run].iter_mut().for_each(|page| page.private = false);
            }
        }
        3 => {
            assert_eq!(convert::punch(kernel, span).is_ok(), fits);
            if fits {
                naive[run].iter_mut().for_each(|page| (page.frame, page.held) = (false, false));
            }
        }
        4 => {
            assert_eq!(convert::reserve(kernel, span, &Hasty).is_ok(), fits);
            if fits {
                naive[run].iter_mut().for_each(|page| page.frame = true);
            }
        }
        5 => touch(kernel, naive, first % PAGES),
        _ => {
            let page = (first % PAGES) as usize;
            naive[page].held = false;
            kernel.with(first % PAGES, |frame| frame.held = false);
        }
    }
}

/// The host touches a page, and holds on to what it got.
fn touch(kernel: &Kernel, naive: &mut [Naive], page: u64) {
    let fault = kernel.change(|book| book.page(page).host_fault());
    assert_eq!(fault == HostFault::Map, !naive[page as usize].private, "page {page}: {fault:?}");
    if fault == HostFault::Map {
        if kernel.frame(page).is_none() {
            kernel.allocate(page).unwrap();
        }
        kernel.with(page, |frame| (frame.mapped, frame.held) = (true, true));
        (naive[page as usize].frame, naive[page as usize].held) = (true, true);
    }
}

fn play(steps: &[[u8; 3]], blind: bool) {
    let kernel = Kernel {
        pages: RefCell::new(vec![Page::Host; PAGES as usize]),
        frames: RefCell::new(vec![Frame::default(); PAGES as usize]),
        next: Cell::new(1),
        report: RefCell::default(),
        notice: RefCell::default(),
        blind,
    };
    let mut naive = vec![Naive { private: false, frame: false, held: false }; PAGES as usize];
    for bytes in steps {
        step(&kernel, &mut naive, *bytes);
        for (page, (state, naive)) in kernel.pages.borrow().iter().zip(&naive).enumerate() {
            let frame = kernel.frames.borrow()[page];
            let expected = match (naive.private, naive.frame) {
                (false, _) => Page::Host,
                (true, true) => Page::Held,
                (true, false) => Page::Vacant,
            };
            assert_eq!(
                (*state, frame.there, frame.frozen),
                (expected, naive.frame, expected == Page::Held),
                "page {page}"
            );
            assert!(!naive.private || !frame.held && !frame.mapped, "I5: page {page} is private while {frame:?}");
        }
        let report = *kernel.report.borrow();
        assert_eq!((report.begun, report.waiting), (report.ended, 0), "nothing is under way");
    }
    // Nobody knows the file any more, so nobody maps it.
    kernel.shut(Span::new(0, PAGES).unwrap());
    convert::empty(&kernel);
    assert!(kernel.frames.borrow().iter().all(|frame| !frame.there), "I8: a frame is left");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_file_is_what_the_naive_table_says(steps in vec(any::<[u8; 3]>(), 0..200)) {
        play(&steps, false);
    }
}

#[test]
fn a_freeze_that_sees_no_holder_shrinks_to_two_steps() {
    let config = Config { failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&vec(any::<[u8; 3]>(), 0..60), |steps| {
        play(&steps, true);
        Ok(())
    });
    match outcome {
        Err(TestError::Fail(_, steps)) => assert_eq!(steps.len(), 2, "{steps:?}"),
        other => panic!("a page was taken from its holder, and nobody saw it: {other:?}"),
    }
}
