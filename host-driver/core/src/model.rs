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

mod drain;
mod edges;
mod lend;
mod life;
mod notify;
mod sleeper;
mod walk;

use sleeper::Sleeper;

/// One physical frame.
#[derive(Clone, Copy, Debug, Default)]
struct Frame {
    /// References beside the driver's.
    held: u32,
    frozen: bool,
    /// Process mappings; each is one of `held`.
    mapped: bool,
    dirty: bool,
}

/// Frames of the machine and who owns them.
#[derive(Default)]
struct World {
    frames: RefCell<BTreeMap<u64, Frame>>,
    next_pfn: Cell<u64>,
    /// Guest frame behind each frame of the VM, and whether it is shared.
    owned: RefCell<BTreeMap<u64, (u64, bool)>>,
    /// Guest frame behind each frame of the host's that an ordinary VM borrows.
    loans: RefCell<BTreeMap<u64, u64>>,
    pool: RefCell<BTreeSet<u64>>,
    lists: RefCell<BTreeMap<u64, Vec<Record>>>,
    kept: RefCell<Vec<Run>>,
    dying: Cell<bool>,
    ran: Cell<bool>,
    /// Pool frames that el2 still has free.
    pool_free: Cell<u64>,
    /// Frames that one call does before it is interrupted.
    burst: Cell<u64>,
    /// Guest frames at which a donation is refused.
    refuse: RefCell<BTreeSet<u64>>,
    /// Frames that el2 keeps for ever.
    stuck: RefCell<BTreeSet<u64>>,
    /// A request of the guest: first guest frame and count, and which way.
    request: RefCell<Option<(u64, u64, crate::exit::Request)>>,
    calls: Cell<u64>,
    /// The functions called, in order.
    functions: RefCell<Vec<u32>>,
    /// List frames taken from the kernel.
    lists_taken: Cell<u64>,
    /// Allocations of any kind that still go well; none means all do.
    memory: Cell<Option<u64>>,
}

fn status(status: i64) -> [u64; 5] {
    [status as u64, 0, 0, 0, 0]
}

fn ok(value: u64) -> [u64; 5] {
    [0, value, 0, 0, 0]
}

impl World {
    /// Whether the next allocation goes well.
    fn has_memory(&self) -> bool {
        match self.memory.get() {
            Some(0) => false,
            Some(left) => {
                self.memory.set(Some(left - 1));
                true
            }
            None => true,
        }
    }

    fn take_frames(&self, count: u64) -> u64 {
        let first = self.next_pfn.get();
        // A hole between any two runs, so that only one allocation is contiguous.
        self.next_pfn.set(first + count + 1);
        for pfn in first..first + count {
            self.frames.borrow_mut().insert(pfn, Frame::default());
        }
        first
    }

    fn free_frames(&self, first: u64, count: u64) {
        for pfn in first..first + count {
            assert!(!self.owned.borrow().contains_key(&pfn), "frame {pfn} is freed while the guest owns it");
            assert!(!self.loans.borrow().contains_key(&pfn), "frame {pfn} is freed while it is lent");
            assert!(!self.pool.borrow().contains(&pfn), "frame {pfn} is freed while el2 owns it");
            let frame = self.frames.borrow_mut().remove(&pfn).expect("freed twice");
            assert!(!frame.frozen, "frame {pfn} is freed while frozen");
        }
    }

    fn donate(&self, runs: &[(u64, u64, u64)]) -> [u64; 5] {
        if self.dying.get() {
            return status(hvc::WRONG_STATE);
        }
        // Gathered once: an interpreter would look through it for each frame.
        let backed: BTreeSet<u64> = self.owned.borrow().values().map(|&(gfn, _)| gfn).collect();
        let asked: u64 = runs.iter().map(|&(_, _, count)| count).sum();
        assert!(asked <= hvc::MAX_RUN, "el2 is asked to take {asked} frames at once");
        for &(pfn, gfn, count) in runs {
            assert_ne!(count, 0);
            for i in 0..count {
                let frame = self.frames.borrow()[&(pfn + i)];
                assert!(frame.frozen && frame.held == 0, "I5: frame {} is donated while {frame:?}", pfn + i);
                if self.refuse.borrow().contains(&(gfn + i)) {
                    return status(hvc::GFN_POISONED);
                }
                if self.owned.borrow().contains_key(&(pfn + i)) {
                    return status(hvc::ALREADY_DONATED);
                }
                if backed.contains(&(gfn + i)) {
                    return status(hvc::GFN_MAPPED);
                }
            }
        }
        if self.pool_free.get() == 0 {
            return [hvc::NEED_PAGES as u64, 1, 0, 0, 0];
        }
        self.pool_free.set(self.pool_free.get() - 1);
        let mut done = 0;
        for &(pfn, gfn, count) in runs {
            for i in 0..count {
                if done == self.burst.get() {
                    return ok(done);
                }
                self.owned.borrow_mut().insert(pfn + i, (gfn + i, false));
                if self.ran.get() {
                    self.frames.borrow_mut().get_mut(&(pfn + i)).unwrap().dirty = false;
                }
                done += 1;
            }
        }
        ok(done)
    }

    fn reclaim(&self, pfn: u64, count: u64) -> [u64; 5] {
        if !self.dying.get() {
            return status(hvc::WRONG_STATE);
        }
        assert!((1..=hvc::MAX_RUN).contains(&count), "el2 is asked for {count} frames at once");
        let mut done = 0;
        for pfn in pfn..pfn + count {
            if done == self.burst.get() {
                break;
            }
            if self.stuck.borrow().contains(&pfn) {
                return if done == 0 { status(hvc::EL2_OWNED) } else { ok(done) };
            }
            if self.pool.borrow().contains(&pfn) {
                if !self.owned.borrow().is_empty() {
                    return status(hvc::GUEST_FRAMES_LEFT);
                }
                self.pool.borrow_mut().remove(&pfn);
            } else if self.owned.borrow_mut().remove(&pfn).is_none() {
                return status(hvc::HOST_OWNED);
            }
            self.frames.borrow_mut().get_mut(&pfn).unwrap().dirty = false;
            done += 1;
        }
        ok(done)
    }

    fn accept(&self, count: u64) -> [u64; 5] {
        let Some((gfn, asked, kind)) = self.request.take() else { return status(hvc::NO_REQUEST) };
        assert!(count <= asked);
        let mut done = 0;
        for gfn in gfn..gfn + count {
            let mut owned = self.owned.borrow_mut();
            let Some((&pfn, place)) = owned.iter_mut().find(|(_, place)| place.0 == gfn) else { break };
            let frame = self.frames.borrow()[&pfn];
            assert!(frame.frozen && frame.held == 0, "frame {pfn} changes hands while {frame:?}");
            match kind {
                crate::exit::Request::Share => place.1 = true,
                crate::exit::Request::Unshare => {
                    assert!(place.1, "unshared what was not shared");
                    place.1 = false;
                }
                crate::exit::Request::Relinquish => {
                    owned.remove(&pfn);
                    drop(owned);
                    self.frames.borrow_mut().get_mut(&pfn).unwrap().dirty = false;
                }
            }
            done += 1;
        }
        ok(done)
    }
}

#[derive(Clone)]
struct Below(Rc<World>);

impl Conduit for Below {
    fn call(&self, function: u32, [_, a, b, c, _]: [u64; 5]) -> [u64; 5] {
        let world = &self.0;
        world.calls.set(world.calls.get() + 1);
        world.functions.borrow_mut().push(function);
        match function {
            hvc::VM_CREATE => {
                // x1 flags, x2 address size, x3 first frame, x4 count.
                if c < 20 {
                    return [hvc::NEED_PAGES as u64, 20 - c, 0, 0, 0];
                }
                world.pool.borrow_mut().extend(b..b + c);
                ok(0x1_0000)
            }
            hvc::POOL_TOPUP => {
                world.pool.borrow_mut().extend(a..a + b);
                world.pool_free.set(world.pool_free.get() + b);
                ok(0)
            }
            hvc::MEM_DONATE => world.donate(&[(a, b, c)]),
            hvc::MEM_DONATE_LIST => {
                let list = world.lists.borrow()[&a].clone();
                let runs: Vec<_> = list[..b as usize].iter().map(|r| (r.pfn, r.gfn(), r.count())).collect();
                world.donate(&runs)
            }
            hvc::VM_DESTROY => {
                let was = world.dying.replace(true);
                if was {
                    status(hvc::WRONG_STATE)
                } else {
                    ok(0)
                }
            }
            hvc::VM_RECLAIM => world.reclaim(a, b),
            hvc::GUEST_ACCEPT => world.accept(b),
            _ => status(hvc::NOT_SUPPORTED),
        }
    }

    fn run(&self, _: [u64; 5]) -> Option<[u64; 6]> {
        None
    }
}

impl pool::Frames for World {
    fn take(&self, order: u32) -> Option<Run> {
        if !self.has_memory() {
            return None;
        }
        let count = 1 << order;
        Some(Run { pfn: self.take_frames(count), count })
    }

    fn keep<R>(&self, chunk: Run, give: impl FnOnce() -> Result<R, Refused>) -> Result<R, Refused> {
        let given = give()?;
        self.kept.borrow_mut().push(chunk);
        Ok(given)
    }

    fn next(&self) -> Option<Run> {
        self.kept.borrow_mut().pop()
    }

    fn give_back(&self, chunk: Run) {
        self.free_frames(chunk.pfn, chunk.count);
    }
}

struct Page4k(Rc<World>, u64);

impl List for Page4k {
    fn pfn(&self) -> u64 {
        self.1
    }

    fn put(&mut self, index: u64, record: Record) {
        assert!(index < hvc::MAX_RECORDS);
        let mut lists = self.0.lists.borrow_mut();
        let list = lists.get_mut(&self.1).unwrap();
        list.resize((index + 1) as usize, record);
        list[index as usize] = record;
    }
}

impl Drop for Page4k {
    fn drop(&mut self) {
        self.0.lists.borrow_mut().remove(&self.1);
        self.0.free_frames(self.1, 1);
    }
}

struct Kernel(Rc<World>);

impl pool::Frames for Kernel {
    fn take(&self, order: u32) -> Option<Run> {
        self.0.take(order)
    }
    fn keep<R>(&self, chunk: Run, give: impl FnOnce() -> Result<R, Refused>) -> Result<R, Refused> {
        self.0.keep(chunk, give)
    }
    fn next(&self) -> Option<Run> {
        pool::Frames::next(&*self.0)
    }
    fn give_back(&self, chunk: Run) {
        self.0.give_back(chunk);
    }
}

impl Lists for Kernel {
    type List = Page4k;
    fn list(&self) -> Option<Page4k> {
        if !self.0.has_memory() {
            return None;
        }
        let pfn = self.0.take_frames(1);
        self.0.lists_taken.set(self.0.lists_taken.get() + 1);
        self.0.lists.borrow_mut().insert(pfn, Vec::new());
        Some(Page4k(self.0.clone(), pfn))
    }
}

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
