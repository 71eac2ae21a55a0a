// SPDX-License-Identifier: MIT OR Apache-2.0
//! A machine to try the engine on: a file whose pages can be held, an `el2` that keeps its own books and refuses what a
//! real one refuses, a kernel that counts frames, and a thread whose sleeps make things happen.
//!
//! The `el2` here is the judge: it panics when a frame is donated that somebody holds or that is not frozen (I5).

use crate::el2::{Conduit, El2, Handle, Run};
use crate::error::Error;
use crate::file::{Book, File, Freeze, Owner, Pages, Report};
use crate::give::{List, Lists, ToVm};
use crate::notify::Notice;
use crate::page::{HostFault, Initial, Origin, Page, Span};
use crate::pool;
use crate::status::Refused;
use freehold_uapi::hvc::{self, Record};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

mod busy;
mod drain;
mod edges;
mod lend;
mod life;
mod memory;
mod notify;
mod sleeper;
mod walk;
mod world;

use sleeper::Sleeper;
use world::{ok, status, Below, Frame, Kernel, World};

/// A file on that machine.
struct Model {
    world: Rc<World>,
    pages: RefCell<Vec<Page>>,
    frames: RefCell<Vec<Option<u64>>>,
    next: Cell<u64>,
    report: Cell<Report>,
    notice: RefCell<Notice>,
    owner: Cell<Owner>,
    /// What poll says.
    told: Cell<bool>,
    /// Page whose last reference is watched for.
    armed: Cell<Option<u64>>,
    /// A page's holder lets go at the moment that it is armed.
    goes_when_armed: Cell<bool>,
    locked: Cell<bool>,
    /// Somebody waits for the lock to collect an outcome, and gets it once.
    collects: Cell<bool>,
    /// The file becomes somebody's after so many more holds of the lock.
    binds: Cell<Option<(u32, Owner)>>,
    /// Times that the lock was taken.
    holds: Cell<u64>,
    poisoned: RefCell<BTreeSet<u64>>,
    no_memory: Cell<bool>,
}

impl Model {
    fn new(world: &Rc<World>, pages: usize, initial: Page) -> Self {
        Self {
            world: world.clone(),
            pages: RefCell::new(vec![initial; pages]),
            frames: RefCell::new(vec![None; pages]),
            next: Cell::default(),
            report: Cell::default(),
            notice: RefCell::default(),
            owner: Cell::default(),
            told: Cell::default(),
            armed: Cell::default(),
            goes_when_armed: Cell::default(),
            locked: Cell::default(),
            collects: Cell::default(),
            binds: Cell::default(),
            holds: Cell::default(),
            poisoned: RefCell::default(),
            no_memory: Cell::default(),
        }
    }

    fn state(&self, page: u64) -> Page {
        self.pages.borrow()[page as usize]
    }

    fn with_frame<R>(&self, page: u64, change: impl FnOnce(&mut Frame) -> R) -> R {
        let pfn = self.frame(page).expect("a frame");
        change(self.world.frames.borrow_mut().get_mut(&pfn).unwrap())
    }

    /// The host stores to the page through its mapping, as a process does.
    fn store(&self, page: u64) -> HostFault {
        let answer = self.state(page).host_fault();
        if answer == HostFault::Map {
            if self.frame(page).is_none() {
                self.allocate(page).unwrap();
            }
            self.with_frame(page, |frame| {
                assert!(!frame.frozen);
                if !frame.mapped {
                    frame.mapped = true;
                    frame.held += 1;
                }
                frame.dirty = true;
            });
        }
        answer
    }

    /// Somebody takes, or drops, a reference that outlives the mapping.
    fn hold(&self, page: u64) {
        assert_eq!(self.store(page), HostFault::Map);
        self.with_frame(page, |frame| frame.held += 1);
    }

    fn let_go(&self, page: u64) {
        self.with_frame(page, |frame| frame.held -= 1);
    }

    /// What must hold of every page at rest.
    fn check(&self) {
        for (page, &state) in self.pages.borrow().iter().enumerate() {
            let frame = self.frames.borrow()[page];
            let owned = frame.and_then(|pfn| self.world.owned.borrow().get(&pfn).copied());
            let frozen = frame.is_some_and(|pfn| self.world.frames.borrow()[&pfn].frozen);
            let lent = frame.is_some_and(|pfn| self.world.loans.borrow().contains_key(&pfn));
            let fits = match state {
                Page::Host => owned.is_none() && !frozen && !lent,
                Page::Borrowed => owned.is_none() && !frozen && lent,
                Page::Lent => owned.is_some_and(|(_, shared)| shared) && !frozen,
                Page::Held => owned.is_none() && frozen,
                Page::Vacant => frame.is_none(),
                Page::Given => owned.is_some_and(|(_, shared)| !shared) && frozen,
                Page::Draining { .. } => false,
                Page::Lost => frame.is_some(),
            };
            assert!(fits, "page {page}: {state:?} but frame {frame:?} frozen {frozen} owned {owned:?}");
        }
        let report = self.report.get();
        assert_eq!(report.waiting, 0);
        assert_eq!(report.begun, report.ended, "as many ends as beginnings");
        assert_eq!(self.armed.get(), None, "nothing is watched for");
    }
}

impl File for Model {
    /// More than the frames of two lists; few enough for an interpreter.
    const CHUNK: u64 = 640;

    fn change<R>(&self, change: impl FnOnce(&mut Book<'_>) -> R) -> R {
        assert!(!self.locked.replace(true), "the lock is taken twice");
        self.holds.set(self.holds.get() + 1);
        match self.binds.take() {
            Some((1, owner)) => self.owner.set(owner),
            later => self.binds.set(later.map(|(holds, owner)| (holds - 1, owner))),
        }
        let (mut next, mut report) = (self.next.get(), self.report.get());
        let mut pages = core::mem::take(&mut *self.pages.borrow_mut());
        let mut notice = self.notice.take();
        let mut owner = self.owner.get();
        let mut book = Book {
            pages: Pages::new(&mut pages),
            next: &mut next,
            report: &mut report,
            notice: &mut notice,
            owner: &mut owner,
        };
        let result = change(&mut book);
        self.owner.set(owner);
        self.notice.replace(notice);
        *self.pages.borrow_mut() = pages;
        self.next.set(next);
        self.report.set(report);
        self.locked.set(false);
        if matches!(*self.notice.borrow(), Notice::Ended(_)) && self.collects.take() {
            assert!(crate::notify::collect(self).is_ok());
        }
        result
    }

    fn frame(&self, page: u64) -> Option<u64> {
        self.frames.borrow()[page as usize]
    }

    fn allocate(&self, page: u64) -> Result<(), Error> {
        if self.no_memory.get() || !self.world.has_memory() {
            return Err(Error::NoMemory);
        }
        assert!(self.frame(page).is_none());
        self.frames.borrow_mut()[page as usize] = Some(self.world.take_frames(1));
        Ok(())
    }

    fn release(&self, page: u64) {
        let Some(pfn) = self.frames.borrow_mut()[page as usize].take() else { return };
        let frame = self.world.frames.borrow()[&pfn];
        assert!(!frame.mapped, "released while mapped");
        // A frame that somebody holds goes back to the kernel later; the driver has no more to do with it.
        self.world.free_frames(pfn, 1);
    }

    fn freeze(&self, page: u64) -> Freeze {
        if self.poisoned.borrow().contains(&page) {
            return Freeze::Poisoned;
        }
        self.with_frame(page, |frame| {
            assert!(!frame.frozen, "frozen twice");
            if frame.held > 0 {
                return Freeze::Busy;
            }
            frame.frozen = true;
            Freeze::Frozen
        })
    }

    fn thaw(&self, page: u64) {
        self.with_frame(page, |frame| assert!(core::mem::replace(&mut frame.frozen, false), "thawed twice"));
    }

    fn shut(&self, span: Span) {
        assert!(self.locked.get());
        for page in span.pages().filter(|&page| self.frame(page).is_some()) {
            self.with_frame(page, |frame| {
                if core::mem::replace(&mut frame.mapped, false) {
                    frame.held -= 1;
                }
            });
        }
    }

    fn lend(&self, page: u64) -> Result<u64, Refused> {
        assert!(self.locked.get());
        if self.world.refuse.borrow().contains(&(BASE + page)) {
            return Err(Refused { status: hvc::NEED_PAGES, detail: 3 });
        }
        if self.world.burst.get() == 0 {
            return Ok(0);
        }
        let pfn = self.frame(page).expect("a page that is lent has a frame");
        assert_eq!(self.world.loans.borrow_mut().insert(pfn, BASE + page), None, "lent twice");
        Ok(1)
    }

    fn recall(&self, run: Span) -> bool {
        assert!(self.locked.get() && run.count() <= hvc::MAX_RUN);
        self.world.calls.set(self.world.calls.get() + 1);
        run.pages().all(|page| {
            let pfn = self.frame(page).expect("a borrowed page has a frame");
            if self.world.stuck.borrow().contains(&pfn) {
                return false;
            }
            self.world.loans.borrow_mut().remove(&pfn).is_some()
        })
    }

    fn wake(&self) {}

    fn tell(&self, outcome: bool) {
        self.told.set(outcome);
    }

    fn arm(&self, page: u64) {
        assert!(self.locked.get(), "armed under the lock");
        assert_eq!(self.armed.replace(Some(page)), None, "armed twice");
        if self.goes_when_armed.take() {
            self.let_go(page);
        }
    }

    fn disarm(&self, page: u64) {
        assert_eq!(self.armed.take(), Some(page), "disarmed what was armed");
    }
}

const VM: Handle = Handle(0x1_0000);
/// Guest frame of a file's first page, where it is bound.
const BASE: u64 = 0x8_0000;

fn world() -> Rc<World> {
    let world = Rc::new(World::default());
    world.next_pfn.set(0x4_0000);
    world.burst.set(u64::MAX);
    world.pool_free.set(1 << 20);
    world
}

fn el2(world: &Rc<World>) -> El2<Below> {
    El2(Below(world.clone()))
}

/// Donates, as a bound file's conversion does.
fn giver<'a, T>(el2: &'a El2<Below>, kernel: &'a Kernel, thread: &'a T, first: u64) -> ToVm<'a, Below, Kernel, T> {
    ToVm { el2, vm: VM, kernel, thread, gfn: BASE + first }
}

fn span(first: u64, count: u64) -> Span {
    Span::new(first, count).unwrap()
}

/// A file whose every page the host has written to.
fn written(world: &Rc<World>, pages: usize) -> Model {
    let file = Model::new(world, pages, Page::Host);
    for page in 0..pages as u64 {
        assert_eq!(file.store(page), HostFault::Map);
    }
    file
}
