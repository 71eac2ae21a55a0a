// SPDX-License-Identifier: MIT OR Apache-2.0
//! A kernel with one file, over an `el2` that is the specification itself: what the engine asks of it is decided and
//! carried out there. Frame `FIRST + n` is the only one that page `n` of the file can have.

use freehold_driver_core::drain::Attempt;
use freehold_driver_core::el2::{Conduit, El2, Handle, Run};
use freehold_driver_core::error::Error;
use freehold_driver_core::file::{Book, File, Freeze, Owner as Whose, Pages, Report, Thread, Wake};
use freehold_driver_core::give::{List, Lists};
use freehold_driver_core::notify::Notice;
use freehold_driver_core::page::{HostFault, Initial, Origin, Page, Span};
use freehold_driver_core::pool::Frames;
use freehold_driver_core::status::Refused;
use freehold_oracle::{apply, decide, Call, Done, Env, File as Stands, Op, State as _, Value, Who, World};
use freehold_uapi::hvc::{self, Record};
use std::cell::{Cell, RefCell};

/// Pages of the file.
pub(super) const PAGES: usize = 2;
/// Frame of its first page. Behind these come the VM's pool and the frame of lists.
pub(super) const FIRST: u64 = 0x4_0000;
pub(super) const POOL: u64 = FIRST + PAGES as u64;
const LIST: u64 = POOL + 1;
/// Guest frame of its first page.
pub(super) const GFN: u64 = 0x100;
pub(super) const VM: Handle = Handle(0x1_0000);

/// Frames, one VM of one vCPU, guest frames, a CPU.
pub(super) type Spec = World<{ PAGES + 2 }, 1, 1, PAGES, 1>;

/// What is wrong with this kernel, for a control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    /// A page is frozen though somebody holds it.
    FreezesWhatIsHeld,
    /// A donation is lost on its way, and said to be done.
    LosesDonations,
    /// Frames that come back from the VM are not unmapped, nor forgotten by the file.
    KeepsWhatCameBack,
    /// What processes map stays mapped.
    KeepsMappings,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Frame {
    /// The file has it.
    pub(super) there: bool,
    pub(super) frozen: bool,
    /// References beside the driver's.
    pub(super) held: u8,
    /// Some process maps it, and holds a reference by that.
    mapped: bool,
}

pub(super) struct Kernel {
    pub(super) spec: RefCell<Spec>,
    pub(super) frames: RefCell<[Frame; PAGES]>,
    pub(super) pages: RefCell<[Page; PAGES]>,
    /// The attempt that has each page, and its number for the specification.
    pub(super) attempts: RefCell<[Option<(u8, Attempt)>; PAGES]>,
    next: Cell<u64>,
    report: Cell<Report>,
    notice: RefCell<Notice>,
    list: RefCell<Vec<Record>>,
    /// What each offset of a new file is.
    pub(super) initial: Initial,
    /// Nobody knows the file any more, nor maps it.
    closed: Cell<bool>,
    fault: Fault,
}

impl Kernel {
    /// The file is new, and `spec` says where the VM stands.
    pub(super) fn new(spec: Spec, initial: Initial, fault: Fault) -> Self {
        Self {
            spec: RefCell::new(spec),
            frames: RefCell::default(),
            pages: RefCell::new([initial.page(); PAGES]),
            attempts: RefCell::default(),
            next: Cell::default(),
            report: Cell::default(),
            notice: RefCell::default(),
            list: RefCell::default(),
            initial,
            closed: Cell::default(),
            fault,
        }
    }

    pub(super) fn page(&self, page: u64) -> Page {
        self.pages.borrow()[usize::try_from(page).unwrap()]
    }

    pub(super) fn at(&self, page: u64) -> Frame {
        self.frames.borrow()[usize::try_from(page).unwrap()]
    }

    pub(super) fn change_frame(&self, page: u64, change: impl FnOnce(&mut Frame)) {
        change(&mut self.frames.borrow_mut()[usize::try_from(page).unwrap()]);
    }

    /// Processes touch whatever they may map, at once.
    fn touch_all(&self) {
        for page in 0..PAGES as u64 {
            let may = !self.closed.get() && self.page(page).host_fault() == HostFault::Map;
            self.change_frame(page, |frame| frame.mapped |= may && frame.there);
        }
    }

    /// The last process that knows the file has gone: a mapping would keep it.
    pub(super) fn close(&self) {
        self.closed.set(true);
        (0..PAGES as u64).for_each(|page| self.change_frame(page, |frame| frame.mapped = false));
    }

    /// What the specification says of everything, but of the file what the engine's books and the frames say.
    pub(super) fn world(&self) -> Spec {
        let mut world = *self.spec.borrow();
        for page in 0..PAGES as u64 {
            let Frame { there, frozen, held, .. } = self.at(page);
            let file = match self.page(page) {
                _ if !there => Stands::Out,
                Page::Host => Stands::Host,
                Page::Lent => Stands::Lent,
                Page::Given => Stands::Given,
                Page::Held => Stands::Frozen,
                Page::Draining { .. } if frozen => Stands::Frozen,
                Page::Draining { .. } => Stands::Draining { by: self.by(page).expect("an attempt that drains") },
                other @ (Page::Borrowed | Page::Vacant | Page::Lost) => panic!("page {page} is {other:?} with a frame"),
            };
            let pfn = FIRST + page;
            let record = world.page(pfn);
            let fits = frozen == matches!(file, Stands::Frozen | Stands::Given);
            assert!(fits, "page {page}: {file:?}, frozen {frozen}");
            world.set_page(pfn, freehold_oracle::Page { file, holders: held, ..record });
        }
        world
    }

    /// The number of the attempt that has a page.
    pub(super) fn by(&self, page: u64) -> Option<u8> {
        self.attempts.borrow()[usize::try_from(page).unwrap()].as_ref().map(|(by, _)| *by)
    }

    /// What of the engine's the specification does not know: whether a page without a frame is private, and who has it.
    pub(super) fn beside(&self) -> [(bool, Option<u8>, bool); PAGES] {
        core::array::from_fn(|n| {
            let page = n as u64;
            let lent = matches!(self.page(page), Page::Draining { origin: Origin::Lent, .. });
            (self.page(page) == Page::Vacant, self.by(page), lent)
        })
    }
}

/// Answers as the specification does.
pub(super) struct Below<'k>(pub(super) &'k Kernel);

pub(super) fn el2(kernel: &Kernel) -> El2<Below<'_>> {
    El2(Below(kernel))
}

impl Conduit for Below<'_> {
    fn call(&self, function: u32, args: [u64; 5]) -> [u64; 5] {
        let call = Call::decode(function, args, |handle| if handle == VM.0 { Who::Slot(0) } else { Who::Never });
        let is_donation = matches!(call, Call::MemDonate { .. } | Call::MemDonateList { .. });
        if is_donation && self.0.fault == Fault::LosesDonations {
            return [0, 1, 0, 0, 0];
        }
        let list = self.0.list.borrow().clone();
        let env = Env { list: &list, ..Env::CALM };
        let op = Op::Host { cpu: 0, call };
        let mut spec = self.0.spec.borrow_mut();
        let outcome = decide(&*spec, &op, &env);
        let Some(done) = outcome.done else {
            return [outcome.refused.iter().next().expect("a status") as u64, 0, 0, 0, 0];
        };
        apply(&mut *spec, &op, &env);
        let Done::Host(values) = done else { panic!("{call:?} comes to {done:?}") };
        let [a, b, c, d] = values.map(|value| match value {
            Value::Is(value) => value,
            Value::Any => 0,
        });
        [0, a, b, c, d]
    }

    fn run(&self, _: [u64; 5]) -> Option<[u64; 6]> {
        None
    }
}

impl File for Kernel {
    fn change<R>(&self, change: impl FnOnce(&mut Book<'_>) -> R) -> R {
        let (mut next, mut report, mut owner) = (self.next.get(), self.report.get(), Whose::default());
        let (mut states, mut notice) = (*self.pages.borrow(), self.notice.take());
        let pages = Pages::new(&mut states);
        let result =
            change(&mut Book { pages, next: &mut next, report: &mut report, notice: &mut notice, owner: &mut owner });
        self.notice.replace(notice);
        self.pages.replace(states);
        self.next.set(next);
        self.report.set(report);
        self.touch_all();
        result
    }

    fn frame(&self, page: u64) -> Option<u64> {
        self.at(page).there.then_some(FIRST + page)
    }

    fn allocate(&self, page: u64) -> Result<(), Error> {
        // The kernel has the frame while somebody holds it.
        if self.at(page).held > 0 {
            return Err(Error::NoMemory);
        }
        self.change_frame(page, |frame| assert!(!core::mem::replace(&mut frame.there, true), "brought twice"));
        self.touch_all();
        Ok(())
    }

    fn release(&self, page: u64) {
        // The kernel keeps a frame that a process maps.
        if self.fault == Fault::KeepsWhatCameBack || self.at(page).mapped {
            return;
        }
        self.change_frame(page, |frame| {
            assert!(!frame.frozen, "released while frozen");
            frame.there = false;
        });
    }

    fn freeze(&self, page: u64) -> Freeze {
        let held = self.at(page).held > 0 || self.at(page).mapped;
        if held && self.fault != Fault::FreezesWhatIsHeld {
            return Freeze::Busy;
        }
        self.change_frame(page, |frame| assert!(!core::mem::replace(&mut frame.frozen, true), "frozen twice"));
        Freeze::Frozen
    }

    fn thaw(&self, page: u64) {
        self.change_frame(page, |frame| assert!(core::mem::replace(&mut frame.frozen, false), "thawed twice"));
    }

    fn shut(&self, span: Span) {
        if self.fault != Fault::KeepsMappings {
            span.pages().for_each(|page| self.change_frame(page, |frame| frame.mapped = false));
        }
    }

    fn lend(&self, _: u64) -> Result<u64, Refused> {
        Err(Refused { status: hvc::WRONG_STATE, detail: 0 })
    }

    fn recall(&self, _: Span) -> bool {
        true
    }

    fn wake(&self) {}

    fn tell(&self, _: bool) {}
}

pub(super) struct Records<'k>(&'k Kernel);

impl List for Records<'_> {
    fn pfn(&self) -> u64 {
        LIST
    }
    fn put(&mut self, index: u64, record: Record) {
        let mut list = self.0.list.borrow_mut();
        list.truncate(usize::try_from(index).unwrap());
        list.push(record);
    }
}

impl<'k> Lists for &'k Kernel {
    type List = Records<'k>;
    fn list(&self) -> Option<Records<'k>> {
        Some(Records(self))
    }
}

impl Frames for &Kernel {
    fn take(&self, _: u32) -> Option<Run> {
        None
    }
    fn keep<R>(&self, _: Run, give: impl FnOnce() -> Result<R, Refused>) -> Result<R, Refused> {
        give()
    }
    fn next(&self) -> Option<Run> {
        None
    }
    fn give_back(&self, _: Run) {}
}

/// A thread with a signal: what would wait is told so.
pub(super) struct Hurried;

impl Thread for Hurried {
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
