// SPDX-License-Identifier: MIT OR Apache-2.0
//! Bounds, and what is counted or saved, that the other tests take for granted: what mutants of the code survived by.

use super::*;
use crate::convert::{to_private, Mode, Nobody, Stopped};
use crate::drain::Aim;
use crate::end::{doom, reclaim_pages, reclaim_pool, Pool};
use crate::exit::Request;
use crate::guest::share;

/// A file of the host's whose frames are contiguous.
fn contiguous(world: &Rc<World>, pages: u64) -> Model {
    let file = Model::new(world, pages as usize, Page::Host);
    let first = world.take_frames(pages);
    for page in 0..pages {
        file.frames.borrow_mut()[page as usize] = Some(first + page);
    }
    file
}

fn scattered(world: &Rc<World>, pages: u64) -> Model {
    let file = Model::new(world, pages as usize, Page::Host);
    (0..pages).for_each(|page| assert_eq!(file.store(page), HostFault::Map));
    file
}

fn convert(file: &Model, of: Span, mode: Mode, thread: &Sleeper<'_>) -> Result<bool, Stopped> {
    let (below, kernel) = (el2(&file.world), Kernel(file.world.clone()));
    to_private(file, of, Aim::Convert, mode, thread, &mut giver(&below, &kernel, thread, of.first()))
}

#[test]
fn a_deadline_is_waited_for_to_its_end() {
    let world = world();
    let file = scattered(&world, 2);
    file.hold(1);
    let thread = Sleeper::default();
    let stopped = convert(&file, span(0, 2), Mode::Until(7), &thread);
    assert_eq!((stopped, thread.clock.get()), (Err(Stopped { error: Error::TimedOut, page: 1 }), 7));
    let thread = Sleeper::of(vec![Box::new(|| {}), Box::new(|| file.let_go(1))]);
    assert_eq!(convert(&file, span(0, 2), Mode::Until(7), &thread), Ok(true));
}

#[test]
fn a_long_conversion_that_nobody_ends_is_done() {
    // Longer than what is frozen under one hold of the lock; holes will do.
    let file = Model::new(&world(), 5000, Page::Host);
    assert_eq!(convert(&file, span(0, 5000), Mode::Now, &Sleeper::default()), Ok(true));
    file.check();
}

#[test]
fn only_conversions_and_unshares_that_succeed_are_counted() {
    let world = world();
    let file = Model::new(&world, 4, Page::Host);
    let (below, kernel, thread) = (el2(&world), Kernel(world.clone()), Sleeper::default());
    let all = span(0, 4);
    file.change(|book| {
        book.set(0, Page::Vacant);
        book.set(1, Page::Vacant);
    });
    let mut give = giver(&below, &kernel, &thread, 0);
    assert_eq!(to_private(&file, span(0, 1), Aim::Touch, Mode::Wait, &thread, &mut give), Ok(true));
    assert_eq!(to_private(&file, all, Aim::Reserve, Mode::Wait, &thread, &mut Nobody), Ok(true));
    assert_eq!(
        to_private(&file, all, Aim::Bind, Mode::Wait, &thread, &mut giver(&below, &kernel, &thread, 0)),
        Ok(true)
    );
    assert_eq!(file.report.get().completed, 0, "touched, reserved, bound");
    file.change(|book| book.set(2, Page::Lent));
    let refused = convert(&file, span(2, 1), Mode::Now, &thread);
    assert_eq!(refused, Err(Stopped { error: Error::Denied, page: 2 }));
    assert_eq!(file.report.get().completed, 0, "refused at its first page");
    assert_eq!(convert(&file, span(3, 1), Mode::Now, &thread), Ok(true));
    assert_eq!(file.report.get().completed, 1);
}

#[test]
fn one_page_is_donated_without_a_list_and_many_with_one() {
    let world = world();
    let file = scattered(&world, 600);
    assert_eq!(convert(&file, span(0, 1), Mode::Now, &Sleeper::default()), Ok(true));
    assert_eq!(world.functions.take(), [hvc::MEM_DONATE]);
    assert_eq!(world.lists_taken.get(), 0);
    assert_eq!(convert(&file, span(1, 599), Mode::Now, &Sleeper::default()), Ok(true));
    assert_eq!(world.functions.take(), [hvc::MEM_DONATE_LIST; 3], "256 records each");
    assert_eq!(world.lists_taken.get(), 1, "the frame of the list is used again");
}

#[test]
fn a_list_names_no_more_frames_than_one_call_takes() {
    let world = world();
    let file = Model::new(&world, 900, Page::Host);
    for page in [0, 300, 600] {
        // A frame that is nobody's stands between this run and the next.
        let first = world.take_frames(301);
        (0..300).for_each(|n| file.frames.borrow_mut()[page + n as usize] = Some(first + n));
    }
    assert_eq!(convert(&file, span(0, 900), Mode::Now, &Sleeper::default()), Ok(true));
    assert_eq!(world.functions.take(), [hvc::MEM_DONATE_LIST; 2], "512 frames, and 388");
    file.check();
}

#[test]
fn a_single_run_needs_no_list_to_be_read() {
    let world = world();
    let file = contiguous(&world, 512);
    assert_eq!(convert(&file, span(0, 512), Mode::Now, &Sleeper::default()), Ok(true));
    assert_eq!(world.functions.take(), [hvc::MEM_DONATE]);
}

#[test]
fn an_el2_that_never_gets_on_is_believed_for_so_long() {
    let world = world();
    let file = scattered(&world, 1);
    world.burst.set(0);
    let stopped = convert(&file, span(0, 1), Mode::Wait, &Sleeper::default());
    assert_eq!(stopped, Err(Stopped { error: Error::Io, page: 0 }));
    assert_eq!(world.calls.get(), 1001);
    file.check();
}

#[test]
fn an_el2_that_gets_on_slowly_is_never_too_slow() {
    // More than one list, also under an interpreter.
    const PAGES: u64 = if cfg!(miri) { 300 } else { 1500 };
    let world = world();
    let file = scattered(&world, PAGES);
    let (says, kernel, thread) = (Says(Cell::default(), ok(1)), Kernel(world.clone()), Sleeper::default());
    let below = El2(&says);
    let mut give = ToVm { el2: &below, vm: VM, kernel: &kernel, thread: &thread, gfn: BASE };
    assert_eq!(to_private(&file, span(0, PAGES), Aim::Convert, Mode::Wait, &thread, &mut give), Ok(true));
    assert_eq!(says.0.get(), PAGES);
}

#[test]
fn contiguous_frames_come_back_in_runs_of_the_slots_own_pages() {
    let world = world();
    let file = contiguous(&world, 1200);
    assert_eq!(convert(&file, span(0, 1200), Mode::Now, &Sleeper::default()), Ok(true));
    let below = el2(&world);
    doom(&below, VM).unwrap();
    world.functions.take();
    assert_eq!(reclaim_pages(&file, span(100, 600), Initial::Host, &below, VM, &Sleeper::default()).lost, 0);
    assert_eq!(world.functions.take(), [hvc::VM_RECLAIM; 2], "512 and 88 frames");
    assert_eq!(world.owned.borrow().len(), 600);
    assert_eq!((file.state(99), file.state(100), file.state(699)), (Page::Given, Page::Host, Page::Host));
    assert_eq!(file.state(700), Page::Given, "no page behind the span");
    file.check();
}

/// A run of frames is taken back at once, whatever the guest had done with each.
#[test]
fn what_was_lent_is_unmapped_wherever_it_stands_in_its_run() {
    for lent in 0..4 {
        let world = world();
        let file = contiguous(&world, 4);
        assert_eq!(convert(&file, span(0, 4), Mode::Now, &Sleeper::default()), Ok(true));
        let below = el2(&world);
        let pages = span(lent, 4 - lent);
        *world.request.borrow_mut() = Some((BASE + lent, pages.count(), Request::Share));
        assert_eq!(share(&file, pages, |n| below.guest_accept(VM, 0, n)), Ok(pages.count()));
        pages.pages().for_each(|page| assert_eq!(file.store(page), HostFault::Map));
        doom(&below, VM).unwrap();
        world.functions.take();
        assert_eq!(reclaim_pages(&file, span(0, 4), Initial::Host, &below, VM, &Sleeper::default()).lost, 0);
        assert_eq!(world.functions.take(), [hvc::VM_RECLAIM], "one run");
        file.check();
    }
}

#[test]
fn of_a_run_that_comes_back_in_part_the_rest_is_lost() {
    let world = world();
    let file = contiguous(&world, 6);
    assert_eq!(convert(&file, span(0, 6), Mode::Now, &Sleeper::default()), Ok(true));
    let below = el2(&world);
    let first = file.frame(0).unwrap();
    world.stuck.borrow_mut().insert(first + 2);
    doom(&below, VM).unwrap();
    assert_eq!(reclaim_pages(&file, span(0, 6), Initial::Host, &below, VM, &Sleeper::default()).lost, 4);
    assert!((0..6).all(|page| file.state(page) == if page < 2 { Page::Host } else { Page::Lost }));
    assert!(world.frames.borrow().keys().copied().eq(first + 2..first + 6), "what el2 did not return is not freed");
}

/// An `el2` that says the same to everything.
struct Says(Cell<u64>, [u64; 5]);

impl Conduit for &Says {
    fn call(&self, _: u32, _: [u64; 5]) -> [u64; 5] {
        self.0.set(self.0.get() + 1);
        self.1
    }
    fn run(&self, _: [u64; 5]) -> Option<[u64; 6]> {
        None
    }
}

#[test]
fn a_vm_that_is_in_use_or_gone_is_not_doomed() {
    for (code, error) in [(hvc::VCPU_BUSY, Error::Busy), (hvc::STALE_HANDLE, Error::Ended)] {
        assert_eq!(doom(&El2(&Says(Cell::default(), status(code))), VM), Err(error));
    }
    assert_eq!(doom(&El2(&Says(Cell::default(), status(hvc::WRONG_STATE))), VM), Ok(()), "it is dying already");
}

/// Only that frames of the guest's are to come back first makes it early: whoever asks again then has it.
#[test]
fn a_pool_that_el2_refuses_for_any_other_reason_is_lost() {
    for code in [hvc::STALE_HANDLE, hvc::WRONG_STATE, hvc::GUEST_FRAMES_LEFT] {
        let world = world();
        let (kernel, says) = (Kernel(world.clone()), Says(Cell::default(), status(code)));
        pool::create(&el2(&world), &kernel, true, 40).unwrap();
        let count = world.kept.borrow()[0].count;
        let expected = if code == hvc::GUEST_FRAMES_LEFT { Pool::Early } else { Pool::Back(count) };
        assert_eq!(reclaim_pool(&El2(&says), &kernel, VM, &Sleeper::default()), expected, "{code}");
    }
}

#[test]
fn a_chunk_that_el2_does_not_take_goes_back_to_the_kernel() {
    let world = world();
    let says = Says(Cell::default(), status(hvc::STALE_HANDLE));
    assert_eq!(pool::grow(&El2(&says), &Kernel(world.clone()), VM, 8), Err(Error::Ended));
    assert!(world.frames.borrow().is_empty() && world.kept.borrow().is_empty());
}

#[test]
fn an_el2_that_returns_nothing_is_asked_a_bounded_number_of_times() {
    let world = world();
    let file = scattered(&world, 1);
    assert_eq!(convert(&file, span(0, 1), Mode::Now, &Sleeper::default()), Ok(true));
    let says = Says(Cell::default(), ok(0));
    assert_eq!(reclaim_pages(&file, span(0, 1), Initial::Host, &El2(&says), VM, &Sleeper::default()).lost, 1);
    assert_eq!((says.0.get(), file.state(0)), (1000, Page::Lost));
}
