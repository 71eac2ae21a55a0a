// SPDX-License-Identifier: MIT OR Apache-2.0
//! The shipped engine of a `guest_memfd`, step by step beside the moves of the executable specification (`tests/oracle`).
//!
//! Breadth first over a small world: each move is decided by the specification and made by the engine, over a kernel that
//! counts references and an `el2` which is the specification. Whether it was done, and every record after it (owner, loans, what
//! the VM counts, state and holders of each page), must be the same. A range, the end of a VM and a file that is closed
//! are sequences of moves. Where the two are not asked the same thing, the reason stands at its place in `predict`.

mod kernel;
mod predict;

use freehold_driver_core::convert::{bereave, empty, populate, punch, to_private, to_shared, Giver, Mode, Nobody};
use freehold_driver_core::drain::{begin, Aim, Begun, Rest, Step as Tried};
use freehold_driver_core::end::{doom, reclaim_pages};
use freehold_driver_core::file::File;
use freehold_driver_core::give::ToVm;
use freehold_driver_core::guest::{relinquish, share, unshare};
use freehold_driver_core::page::{HostFault, Initial, Page, Span};
use freehold_oracle::{Kind, Life, Move, Owner, State as _};
use freehold_uapi::guest;
use kernel::{el2, Below, Fault, Hurried, Kernel, FIRST, GFN, PAGES, VM};
use predict::{ask, first, named, predict, request};
use std::collections::{BTreeMap, HashSet};

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// One move of one page.
    One(Move),
    /// The VMM converts all pages: donated, or held until later.
    Convert { give: bool },
    /// The guest's request to take a page back is served from its begin to its end.
    TakeBack(u64),
    /// The guest runs, asks for something and comes out.
    Ask(u32, u64),
    /// The VM ends: attempts give up, everything comes back.
    End,
    /// Nobody knows the file any more.
    Close,
}

/// How large a world is.
#[derive(Clone, Copy)]
struct Size {
    pages: u64,
    attempts: u8,
    holders: u8,
    initial: Initial,
}

/// Whether it was done; `None`: the engine can not be asked.
type Made = Option<bool>;

fn one(page: u64) -> Span {
    Span::one(page).unwrap()
}

fn all() -> Span {
    Span::new(0, PAGES as u64).unwrap()
}

fn giver<'a>(
    below: &'a freehold_driver_core::el2::El2<Below<'a>>,
    kernel: &'a &'a Kernel,
    gfn: u64,
) -> ToVm<'a, Below<'a>, &'a Kernel, Hurried> {
    ToVm { el2: below, vm: VM, kernel, thread: &Hurried, gfn }
}

/// Lets the engine make a step.
fn make(kernel: &Kernel, step: &Step) -> Made {
    let (below, file) = (el2(kernel), kernel);
    match *step {
        Step::One(step) => move_one(kernel, &step),
        Step::Convert { give: false } => {
            Some(to_private(file, all(), Aim::Convert, Mode::Now, &Hurried, &mut Nobody).is_ok())
        }
        Step::Convert { give: true } => {
            Some(to_private(file, all(), Aim::Convert, Mode::Now, &Hurried, &mut giver(&below, &kernel, GFN)).is_ok())
        }
        Step::TakeBack(page) => {
            let lent = kernel.page(page) == Page::Lent;
            (request(&kernel.spec.borrow()) == Some((Kind::Unshare, page))).then_some(())?;
            let served = unshare(file, one(page), &Hurried, |count| below.guest_accept(VM, 0, count));
            Some(served.is_ok() && lent)
        }
        Step::Ask(id, page) => Some(ask(&mut kernel.spec.borrow_mut(), id, page)),
        Step::End => {
            bereave(file);
            for attempt in kernel.attempts.borrow_mut().iter_mut() {
                let Some((_, mut attempt)) = attempt.take() else { continue };
                assert!(matches!(attempt.step(file), Tried::Over(..)), "an attempt goes on over the end of its VM");
                attempt.finish(file, 0, Rest::Restore);
            }
            let done = doom(&below, VM).is_ok();
            // Held pages are new ones then, without a frame: the specification has no move that forgets a frame at an end.
            let held = (0..PAGES as u64).filter(|page| kernel.page(*page) == Page::Held).collect::<Vec<_>>();
            held.into_iter().for_each(|page| to_shared(file, one(page)).unwrap());
            assert_eq!(reclaim_pages(file, all(), kernel.initial, &below, VM, &Hurried).lost, 0, "lost");
            Some(done)
        }
        Step::Close => {
            let left = (0..PAGES as u64).filter(|page| matches!(kernel.page(*page), Page::Given | Page::Lent)).count();
            kernel.close();
            assert_eq!(empty(file), left as u64, "what the guest has stays with it");
            Some(true)
        }
    }
}

fn move_one(kernel: &Kernel, step: &Move) -> Made {
    let file = kernel;
    let page = named(step).unwrap_or_default();
    let frame = kernel.at(page);
    let attempt = || kernel.attempts.borrow_mut()[page as usize].take();
    match *step {
        Move::Populate { .. } => {
            if kernel.page(page) == Page::Vacant {
                to_shared(file, one(page)).unwrap();
            }
            let maps = kernel.page(page).host_fault() == HostFault::Map && !frame.there;
            Some(maps && file.allocate(page).is_ok())
        }
        // In a hole that the host may map it is the guest's touch that brings a frame, in a private one the VMM.
        Move::Fill { .. } if kernel.page(page) == Page::Host && !frame.there => {
            Some(to_private(file, one(page), Aim::Touch, Mode::Now, &Hurried, &mut Nobody).is_ok())
        }
        Move::Fill { .. } => Some(populate(file, one(page), &Hurried, |_| Ok(()), &mut Nobody).is_ok()),
        // References are the kernel's: of what is frozen none can be had.
        Move::Pin { .. } => {
            let counted = frame.there && !frame.frozen;
            kernel.change_frame(page, |frame| frame.held += u8::from(counted));
            Some(counted)
        }
        Move::Unpin { .. } => {
            kernel.change_frame(page, |frame| frame.held = frame.held.saturating_sub(1));
            Some(frame.held > 0)
        }
        // A hole becomes private without an attempt that waits: it has nothing that the specification knows.
        Move::Drain { .. } if !frame.there => None,
        Move::Drain { by, .. } => {
            let aim = if kernel.page(page) == Page::Lent { Aim::Unshare } else { Aim::Convert };
            match begin(file, one(page), aim) {
                Begun::Attempt(attempt) => {
                    kernel.attempts.borrow_mut()[page as usize] = Some((by, attempt));
                    Some(true)
                }
                Begun::Nothing | Begun::Refused(..) => Some(false),
            }
        }
        // Nobody has another one's attempt.
        Move::Freeze { by, .. } | Move::Cancel { by, .. } if kernel.by(page) != Some(by) || frame.frozen => None,
        Move::Freeze { by, .. } => {
            let (_, mut own) = attempt()?;
            let tried = own.step(file);
            kernel.attempts.borrow_mut()[page as usize] = Some((by, own));
            assert!(matches!(tried, Tried::Frozen | Tried::Busy(_)), "{tried:?}");
            Some(tried == Tried::Frozen)
        }
        Move::Cancel { .. } => {
            attempt()?.1.finish(file, 0, Rest::Restore);
            Some(true)
        }
        Move::Thaw { .. } => match attempt() {
            Some((_, own)) if frame.frozen => {
                own.finish(file, 0, Rest::Restore);
                Some(true)
            }
            own => {
                kernel.attempts.borrow_mut()[page as usize] = own;
                let was_held = kernel.page(page) == Page::Held;
                Some(to_shared(file, one(page)).is_ok() && was_held)
            }
        },
        Move::Donate { gfn, .. } => donate(kernel, page, gfn),
        Move::Accept { .. } => accept(kernel),
        Move::Punch { .. } => Some(punch(file, one(page)).is_ok() && frame.there),
        // Of a single page nobody can ask: `Step::Close` and `Step::End` are what there is.
        Move::Close { .. } | Move::Reclaim { .. } => None,
    }
}

fn donate(kernel: &Kernel, page: u64, gfn: u64) -> Made {
    let below = el2(kernel);
    let mut giver = giver(&below, &kernel, gfn);
    let frozen = kernel.at(page).frozen;
    let own = kernel.attempts.borrow_mut()[page as usize].take();
    match own {
        // What it takes back from sharing is the guest's already; what is not frozen yet nobody donates.
        Some(own) if !frozen || kernel.world().page(FIRST + page).owner != Owner::Host => {
            kernel.attempts.borrow_mut()[page as usize] = Some(own);
            None
        }
        Some((_, own)) => {
            let given = giver.give(kernel, &own).expect("it asks nobody else first");
            own.finish(kernel, given.count, given.rest);
            Some(given.error.is_none())
        }
        None => Some(to_private(kernel, one(page), Aim::Bind, Mode::Now, &Hurried, &mut giver) == Ok(true)),
    }
}

fn accept(kernel: &Kernel) -> Made {
    let below = el2(kernel);
    let asked = request(&kernel.spec.borrow());
    let (kind, page) = asked?;
    let accepts = |count| below.guest_accept(VM, 0, count);
    match kind {
        Kind::Share => Some(share(kernel, one(page), accepts).is_ok_and(|count| count > 0)),
        Kind::Relinquish => Some(relinquish(kernel, one(page), kernel.initial, accepts).is_ok_and(|count| count > 0)),
        // Behind an attempt that has frozen the page; `Step::TakeBack` is the whole of it.
        Kind::Unshare => {
            let ready = kernel.at(page).frozen && kernel.by(page).is_some();
            let own = if ready { kernel.attempts.borrow_mut()[page as usize].take() } else { None };
            let (_, own) = own?;
            let count = below.guest_accept(VM, 0, own.total()).unwrap_or(0);
            own.finish(kernel, count, Rest::Restore);
            Some(count > 0)
        }
    }
}

/// Each step that a state is asked for.
fn steps(kernel: &Kernel, size: Size) -> Vec<Step> {
    let mut all = Vec::new();
    let alive = kernel.spec.borrow().vm(0).life != Life::Dying;
    for page in 0..size.pages {
        let pfn = FIRST + page;
        let mut moves = vec![Move::Populate { pfn }, Move::Fill { pfn }, Move::Unpin { pfn }];
        // What is in no file is somebody else's to hold.
        if kernel.at(page).there && kernel.at(page).held < size.holders {
            moves.push(Move::Pin { pfn });
        }
        for by in 0..size.attempts {
            moves.extend([Move::Drain { pfn, by }, Move::Freeze { pfn, by }, Move::Cancel { pfn, by }]);
        }
        moves.extend([Move::Thaw { pfn }, Move::Punch { pfn }]);
        // A slot has each page at one place; the other one is outside of the VM's memory.
        moves.extend([page, PAGES as u64].map(|n| Move::Donate { pfn, slot: 0, gfn: GFN + n }));
        all.extend(moves.into_iter().map(Step::One));
        if alive {
            all.push(Step::TakeBack(page));
            let ids = [guest::MEM_SHARE, guest::MEM_UNSHARE, guest::MEM_RELINQUISH];
            all.extend(ids.map(|id| Step::Ask(id, page)));
        }
    }
    all.push(Step::One(Move::Accept { slot: 0, vcpu: 0 }));
    all.extend([Step::Convert { give: false }, Step::Convert { give: true }]);
    if alive {
        all.push(Step::End);
    }
    if (0..PAGES as u64).all(|page| kernel.by(page).is_none()) {
        all.push(Step::Close);
    }
    all
}

/// What a world came to.
#[derive(Debug, Default)]
struct Count {
    states: usize,
    transitions: usize,
    /// By step: done, refused.
    met: BTreeMap<String, [usize; 2]>,
}

fn name(step: &Step) -> String {
    let text = if let Step::One(step) = step { format!("{step:?}") } else { format!("{step:?}") };
    text.split([' ', '(']).next().unwrap_or_default().to_owned()
}

/// Makes a step on both sides.
///
/// # Errors
/// If they differ.
fn both(kernel: &Kernel, step: &Step) -> Result<Made, String> {
    let (done, after) = predict(kernel, step);
    let guests = |page: &u64| matches!(kernel.page(*page), Page::Given | Page::Lent);
    let before: Vec<u64> = (0..PAGES as u64).filter(guests).collect();
    let made = make(kernel, step);
    let is = kernel.world();
    // The specification does not say who may map a page that there is not: as in a new file.
    let renewed = |page: &u64| kernel.at(*page).there || kernel.page(*page) == kernel.initial.page();
    if !matches!(step, Step::Close) && !before.iter().all(renewed) {
        return Err(format!("{step:?}: what the guest has given back is {:?}", kernel.pages.borrow()));
    }
    match made {
        Some(made) if made != done => Err(format!("{step:?}: the specification says done {done}, the engine {made}")),
        Some(_) if is != after => Err(format!("{step:?}: it is\n{is:?}\nand should be\n{after:?}")),
        Some(_) | None => Ok(made),
    }
}

fn explore(size: Size, fault: Fault) -> Result<Count, String> {
    let start = || Kernel::new(first(), size.initial, fault);
    let (mut seen, mut ways, mut count) = (HashSet::new(), vec![Vec::new()], Count::default());
    seen.insert((start().world(), start().beside()));
    let mut next = 0;
    while let Some(way) = ways.get(next).cloned() {
        next += 1;
        let there = || {
            let kernel = start();
            way.iter().for_each(|step| assert!(make(&kernel, step).is_some()));
            kernel
        };
        for step in steps(&there(), size) {
            let kernel = there();
            let made = both(&kernel, &step).map_err(|why| format!("{way:?}, then {why}"))?;
            let Some(made) = made else { continue };
            count.transitions += 1;
            count.met.entry(name(&step)).or_default()[usize::from(!made)] += 1;
            // A file that is closed is none.
            if step != Step::Close && seen.insert((kernel.world(), kernel.beside())) {
                ways.push([way.as_slice(), &[step]].concat());
            }
        }
    }
    count.states = ways.len();
    Ok(count)
}

/// Steps of which one outcome can not be: which, and why.
const NEVER: [(&str, usize); 5] = [
    // What the only vCPU waits for stays as it was when it asked.
    ("Accept", 1),
    // It is asked while the VM lives only.
    ("Ask", 1),
    // Who has an attempt may give it up.
    ("Cancel", 1),
    ("Close", 1),
    ("End", 1),
];

fn holds(size: Size, expected: [usize; 2]) {
    let count = explore(size, Fault::None).unwrap_or_else(|why| panic!("{why}"));
    for (name, met) in &count.met {
        for (n, met) in met.iter().enumerate() {
            assert_eq!(*met == 0, NEVER.contains(&(name.as_str(), n)), "{name}: {:?}", count.met);
        }
    }
    assert_eq!(count.met.len(), 16, "{:?}", count.met);
    assert_eq!([count.states, count.transitions], expected, "{:?}", count.met);
}

#[test]
fn the_engine_moves_a_page_as_the_specification_says() {
    holds(Size { pages: 1, attempts: 2, holders: 2, initial: Initial::Host }, [424, 6128]);
}

#[test]
fn the_engine_moves_two_pages_as_the_specification_says() {
    holds(Size { pages: 2, attempts: 1, holders: 1, initial: Initial::Host }, [4068, 99_992]);
}

#[test]
fn the_engine_moves_a_page_of_a_private_file_as_the_specification_says() {
    holds(Size { pages: 1, attempts: 2, holders: 1, initial: Initial::Vacant }, [162, 2324]);
}

/// The controls: a kernel that does something else is found out, by the step that it is about.
#[test]
fn a_kernel_that_does_something_else_is_noticed() {
    let size = Size { pages: 1, attempts: 1, holders: 1, initial: Initial::Host };
    for (fault, step) in [
        (Fault::FreezesWhatIsHeld, "Pin { pfn: 262144 }], then Convert"),
        (Fault::LosesDonations, "then Convert"),
        (Fault::KeepsWhatCameBack, "then Punch"),
        (Fault::KeepsMappings, "then Punch"),
    ] {
        let why = explore(size, fault).expect_err("a fault was not found");
        assert!(why.replace("One(", "").replace(")", "").contains(step), "{fault:?}: {why}");
    }
}
