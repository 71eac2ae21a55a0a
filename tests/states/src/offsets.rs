// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every move of the driver's engine, from every state of one page offset.

use crate::Table;
use freehold_driver_core::convert::{self, Given, Mode, Nobody, Stopped};
use freehold_driver_core::drain::{Aim, Attempt, Rest};
use freehold_driver_core::el2::{Conduit, El2, Handle};
use freehold_driver_core::end;
use freehold_driver_core::error::Error;
use freehold_driver_core::file::{Book, File, Freeze, Owner, Pages, Report, Thread, Wake};
use freehold_driver_core::guest::{self, NotYet};
use freehold_driver_core::lend;
use freehold_driver_core::notify::Notice;
use freehold_driver_core::page::{Initial, Origin, Page, Span};
use freehold_driver_core::status::Refused;
use std::cell::{Cell, RefCell};
use std::fmt::{self, Write as _};

/// A file of one page.
struct OnePage {
    page: Cell<Page>,
    next: Cell<u64>,
    book: RefCell<(Report, Notice, Owner)>,
    has_frame: Cell<bool>,
    frozen: Cell<bool>,
    /// Somebody in the host holds a reference.
    held: bool,
}

impl OnePage {
    fn new(page: Page, has_frame: bool, held: bool) -> Self {
        let frozen = matches!(page, Page::Held | Page::Given);
        Self {
            page: Cell::new(page),
            next: Cell::new(100),
            book: RefCell::default(),
            has_frame: Cell::new(has_frame),
            frozen: Cell::new(frozen),
            held,
        }
    }
}

impl File for OnePage {
    fn change<R>(&self, change: impl FnOnce(&mut Book<'_>) -> R) -> R {
        let (mut pages, mut next) = ([self.page.get()], self.next.get());
        let (report, notice, owner) = &mut *self.book.borrow_mut();
        let done = change(&mut Book { pages: Pages::new(&mut pages), next: &mut next, report, notice, owner });
        self.page.set(pages[0]);
        self.next.set(next);
        done
    }
    fn frame(&self, _: u64) -> Option<u64> {
        self.has_frame.get().then_some(0x4_0005)
    }
    fn allocate(&self, _: u64) -> Result<(), Error> {
        self.has_frame.set(true);
        Ok(())
    }
    fn release(&self, _: u64) {
        assert!(self.has_frame.replace(false) && !self.frozen.get(), "a frozen page, or none, is released");
    }
    fn freeze(&self, _: u64) -> Freeze {
        if self.held {
            return Freeze::Busy;
        }
        assert!(!self.frozen.replace(true), "frozen twice");
        Freeze::Frozen
    }
    fn thaw(&self, _: u64) {
        assert!(self.frozen.replace(false), "thawed, and was not frozen");
    }
    fn shut(&self, _: Span) {}
    fn lend(&self, _: u64) -> Result<u64, Refused> {
        Ok(1)
    }
    fn recall(&self, _: Span) -> bool {
        true
    }
    fn wake(&self) {}
    fn tell(&self, _: bool) {}
}

/// A thread that is never disturbed and never waits.
struct Quiet;

impl Thread for Quiet {
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

/// An `el2` that does what it is asked: x1 is the count.
struct Willing;

impl Conduit for Willing {
    fn call(&self, _: u32, [_, _, count, ..]: [u64; 5]) -> [u64; 5] {
        [0, count, 0, 0, 0]
    }
    fn run(&self, _: [u64; 5]) -> Option<[u64; 6]> {
        None
    }
}

fn gives(_: &OnePage, attempt: &Attempt) -> Option<Given> {
    Some(Given { count: attempt.total(), rest: Rest::Keep, error: None })
}

fn all() -> Span {
    Span::one(0).unwrap_or_else(|| unreachable!("one page"))
}

/// What a move answers: whether it did something, or why not.
type Answer = Result<(), String>;

fn stopped(Stopped { error, .. }: Stopped) -> String {
    format!("{error:?}")
}

fn not_yet(why: NotYet) -> String {
    match why {
        NotYet::Untouched(_) => "first it is backed".to_owned(),
        NotYet::Draining(_) => "waits".to_owned(),
        NotYet::Refused(error) => format!("{error:?}"),
    }
}

/// A move: what it is called, who may ask for it, whether somebody holds a reference meanwhile.
struct Move {
    name: &'static str,
    by: &'static str,
    held: bool,
    act: fn(&OnePage) -> Answer,
}

fn convert(file: &OnePage) -> Answer {
    convert::to_private(file, all(), Aim::Convert, Mode::Now, &Quiet, &mut Nobody).map(drop).map_err(stopped)
}

fn convert_bound(file: &OnePage) -> Answer {
    convert::to_private(file, all(), Aim::Convert, Mode::Now, &Quiet, &mut gives).map(drop).map_err(stopped)
}

fn touch(file: &OnePage) -> Answer {
    convert::to_private(file, all(), Aim::Touch, Mode::Now, &Quiet, &mut gives).map(drop).map_err(stopped)
}

const MOVES: [Move; 14] = [
    Move {
        name: "fault",
        by: "any process that has it mapped",
        held: false,
        act: |file| match file.page.get().host_fault() {
            freehold_driver_core::page::HostFault::Map => Err("mapped".to_owned()),
            freehold_driver_core::page::HostFault::Wait => Err("waits".to_owned()),
            freehold_driver_core::page::HostFault::Refuse => Err("SIGBUS, EFAULT".to_owned()),
        },
    },
    Move { name: "to private, no VM bound", by: "the VMM", held: false, act: convert },
    Move { name: "to private, bound", by: "the VMM", held: false, act: convert_bound },
    Move { name: "to private, while the page is held", by: "the VMM", held: true, act: convert_bound },
    Move { name: "first touch", by: "the guest, through its vCPU's thread", held: false, act: touch },
    Move {
        name: "to shared",
        by: "the VMM",
        held: false,
        act: |file| convert::to_shared(file, all()).map_err(stopped),
    },
    Move {
        name: "punch hole",
        by: "the VMM",
        held: false,
        act: |file| convert::punch(file, all()).map_err(|error| format!("{error:?}")),
    },
    Move {
        name: "`fallocate`",
        by: "the VMM",
        held: false,
        act: |file| convert::reserve(file, all(), &Quiet).map_err(|error| format!("{error:?}")),
    },
    Move {
        name: "`MEM_SHARE`",
        by: "the guest",
        held: false,
        act: |file| guest::share(file, all(), Ok).map(drop).map_err(not_yet),
    },
    Move {
        name: "`MEM_UNSHARE`",
        by: "the guest",
        held: false,
        act: |file| {
            guest::unshare(file, all(), &Quiet, Ok)
                // It would wait for the other attempt; here nobody lets it.
                .map_err(|why| if why.error == Error::Interrupted { "waits".to_owned() } else { stopped(why) })
        },
    },
    Move {
        name: "`MEM_RELINQUISH`",
        by: "the guest",
        held: false,
        act: |file| guest::relinquish(file, all(), Initial::Host, Ok).map(drop).map_err(not_yet),
    },
    Move {
        name: "first touch in an ordinary VM",
        by: "the guest, through its vCPU's thread",
        held: false,
        act: |file| {
            lend::touch(file, all()).map_err(|why| match why {
                lend::NotLent::Error(error) => format!("{error:?}"),
                lend::NotLent::Refused(refused) => format!("{}", refused.status),
            })
        },
    },
    Move {
        name: "an ordinary VM ends, or its slot goes",
        by: "the driver, the VMM",
        held: false,
        act: |file| match lend::recall_all(file, all()) {
            0 => Ok(()),
            lost => Err(format!("{lost} lost")),
        },
    },
    Move {
        name: "the VM ends",
        by: "the driver",
        held: false,
        act: |file| {
            let lost = end::reclaim_pages(file, all(), Initial::Host, &El2(Willing), Handle(1), &Quiet).lost;
            if lost == 0 { Ok(()) } else { Err(format!("{lost} lost")) }
        },
    },
];

const fn draining(origin: Origin) -> Page {
    Page::Draining { origin, attempt: 7 }
}

const STARTS: [(Page, bool); 11] = [
    (Page::Host, false),
    (Page::Host, true),
    (Page::Borrowed, true),
    (Page::Lent, true),
    (draining(Origin::Host), true),
    (draining(Origin::Lent), true),
    (draining(Origin::Held), true),
    (Page::Held, true),
    (Page::Vacant, false),
    (Page::Given, true),
    (Page::Lost, true),
];

fn name(page: Page, has_frame: bool) -> String {
    let state = match page {
        Page::Host if has_frame => "`Host`",
        Page::Host => "`Host`, empty",
        Page::Borrowed => "`Borrowed`",
        Page::Lent => "`Lent`",
        Page::Draining { origin: Origin::Host, .. } => "`Draining` from `Host`",
        Page::Draining { origin: Origin::Lent, .. } => "`Draining` from `Lent`",
        Page::Draining { origin: Origin::Held | Origin::Vacant, .. } => "`Draining` from `Held`",
        Page::Held => "`Held`",
        Page::Vacant => "`Vacant`",
        Page::Given => "`Given`",
        Page::Lost => "`Lost`",
    };
    state.to_owned()
}

fn cell(act: &Move, (page, has_frame): (Page, bool)) -> String {
    let file = OnePage::new(page, has_frame, act.held);
    match (act.act)(&file) {
        Err(why) => {
            assert_eq!((file.page.get(), file.frozen.get()), (page, OnePage::new(page, true, false).frozen.get()));
            why
        }
        Ok(()) if (file.page.get(), file.has_frame.get()) == (page, has_frame) => "as it is".to_owned(),
        Ok(()) => format!("→ {}", name(file.page.get(), file.has_frame.get())),
    }
}

pub(crate) fn write(out: &mut String) -> fmt::Result {
    out.push_str(
        "| state | of the design | the frame |\n|---|---|---|\n\
         | `Host` | HostMappable | the host's; or none yet |\n\
         | `Borrowed` | HostMappable | the host's; an ordinary VM borrows it |\n\
         | `Lent` | HostMappable | the guest's, which shared it |\n\
         | `Draining` | NoneMappable | on its way to private; belongs to one attempt |\n\
         | `Held` | GuestMappable | frozen, not donated yet |\n\
         | `Vacant` | GuestMappable | none yet: the guest's first touch brings one |\n\
         | `Given` | GuestMappable | frozen, donated: the guest's alone |\n\
         | `Lost` | none | one that `el2` would not give back; never mapped and never freed |\n\n\
         A file that was created for population starts with `Host`, any other with `Vacant`. `Again` is `EAGAIN`, `Busy`\n\
         `EBUSY`, `Denied` `EPERM`; a conversion that may wait does so where the table says `Again`. `el2` grants\n\
         whatever the driver asks for here.\n\n",
    );
    let by = MOVES.iter().map(|act| format!("- {}: {}", act.name, act.by));
    writeln!(out, "Who may ask:\n\n{}\n", by.collect::<Vec<_>>().join("\n"))?;
    for part in MOVES.chunks(4) {
        let heads = std::iter::once("offset").chain(part.iter().map(|act| act.name)).map(str::to_owned).collect();
        let row = |start: &(Page, bool)| {
            let cells = part.iter().map(|act| cell(act, *start));
            std::iter::once(name(start.0, start.1)).chain(cells).collect()
        };
        writeln!(out, "{}", Table { heads, rows: STARTS.iter().map(row).collect() })?;
    }
    Ok(())
}
