// SPDX-License-Identifier: MIT OR Apache-2.0
//! The engine's rules, one by one.

use super::*;
use crate::convert::{empty, punch, reserve, to_private, to_shared, Giver, Mode, Nobody, Stopped};
use crate::drain::{begin, Aim, Begun, Rest, Step};
use crate::end::reclaim_pages;
use crate::file::any;

const CHUNK: u64 = Model::CHUNK;

fn convert(file: &Model, of: Span, mode: Mode, thread: &Sleeper<'_>) -> Result<bool, Stopped> {
    let (below, kernel) = (el2(&file.world), Kernel(file.world.clone()));
    to_private(file, of, Aim::Convert, mode, thread, &mut giver(&below, &kernel, thread, of.first()))
}

#[test]
fn pages_that_nobody_holds_are_donated_at_once() {
    let world = world();
    let file = written(&world, 8);
    assert_eq!(convert(&file, span(0, 8), Mode::Now, &Sleeper::default()), Ok(true));
    file.check();
    assert_eq!(world.owned.borrow().len(), 8);
    for page in 0..8 {
        assert_eq!(file.state(page), Page::Given);
        assert_eq!(file.store(page), HostFault::Refuse);
        assert!(file.with_frame(page, |frame| frame.dirty), "contents stay before the first run");
        assert_eq!(world.owned.borrow()[&file.frame(page).unwrap()].0, BASE + page);
    }
    assert_eq!(convert(&file, span(0, 8), Mode::Now, &Sleeper::default()), Ok(false));
    assert_eq!(file.report.get().completed, 1);
}

#[test]
fn a_held_page_is_pending_and_changes_nothing_when_not_waited_for() {
    let world = world();
    let file = written(&world, 8);
    file.hold(5);
    let stopped = convert(&file, span(2, 6), Mode::Now, &Sleeper::default()).unwrap_err();
    assert_eq!(stopped, Stopped { error: Error::Again, page: 5 });
    file.check();
    assert!(file.pages.borrow().iter().all(|&page| page == Page::Host));
    assert!(world.owned.borrow().is_empty());
    assert_eq!(file.store(3), HostFault::Map);
}

#[test]
fn a_held_page_is_waited_for_and_reported() {
    let world = world();
    let file = written(&world, 8);
    file.hold(5);
    let thread = Sleeper::of(vec![
        Box::new(|| {
            let report = file.report.get();
            assert_eq!((report.waiting, report.page, report.frozen, report.total), (1, 5, 5, 8));
            assert_eq!(file.store(2), HostFault::Wait);
        }),
        Box::new(|| assert_eq!(file.report.get().tries, 2)),
        Box::new(|| file.let_go(5)),
    ]);
    assert_eq!(convert(&file, span(0, 8), Mode::Wait, &thread), Ok(true));
    file.check();
    assert_eq!(world.owned.borrow().len(), 8);
}

#[test]
fn a_deadline_and_a_signal_put_everything_back() {
    for (mode, signal, error) in [(Mode::Until(7), None, Error::TimedOut), (Mode::Wait, Some(3), Error::Interrupted)] {
        let world = world();
        let file = written(&world, 4);
        file.hold(2);
        let thread = Sleeper::default();
        thread.signal_at.set(signal);
        assert_eq!(convert(&file, span(0, 4), mode, &thread), Err(Stopped { error, page: 2 }));
        file.check();
        assert!(file.pages.borrow().iter().all(|&page| page == Page::Host));
        file.let_go(2);
        assert_eq!(convert(&file, span(0, 4), mode, &Sleeper::default()), Ok(true));
    }
}

#[test]
fn a_refused_batch_leaves_the_exact_prefix() {
    // Under an interpreter, not page by page.
    for burst in if cfg!(miri) { [u64::MAX, 100, 70] } else { [u64::MAX, 3, 1] } {
        let world = world();
        world.burst.set(burst);
        // 600 scattered pages are three lists; the second has the bad one, so 256 stay given.
        let file = written(&world, 600);
        world.refuse.borrow_mut().insert(BASE + 300);
        let stopped = convert(&file, span(0, 600), Mode::Now, &Sleeper::default()).unwrap_err();
        assert_eq!(stopped.error, Error::Poisoned);
        let given = world.owned.borrow().len() as u64;
        assert_eq!(stopped.page, given);
        if burst == u64::MAX {
            assert_eq!(given, 256);
        }
        for page in 0..600 {
            assert_eq!(file.state(page), if page < given { Page::Given } else { Page::Host });
        }
        file.check();
    }
}

#[test]
fn a_short_count_is_carried_on_from() {
    // Under an interpreter, not page by page.
    for burst in if cfg!(miri) { [100, 254, 255, 257] } else { [1, 3, 255, 257] } {
        let world = world();
        world.burst.set(burst);
        let file = written(&world, 600);
        assert_eq!(convert(&file, span(0, 600), Mode::Now, &Sleeper::default()), Ok(true));
        assert!(file.pages.borrow().iter().all(|&page| page == Page::Given));
        file.check();
    }
}

#[test]
fn a_short_pool_is_topped_up() {
    let world = world();
    world.pool_free.set(0);
    let file = written(&world, 600);
    assert_eq!(convert(&file, span(0, 600), Mode::Now, &Sleeper::default()), Ok(true));
    assert_eq!(world.owned.borrow().len(), 600);
    assert!(!world.kept.borrow().is_empty());
}

#[test]
fn contiguous_frames_are_one_run_and_lists_pay_once() {
    let world = world();
    let file = Model::new(&world, 1024, Page::Host);
    let first = world.take_frames(1024);
    for page in 0..1024 {
        file.frames.borrow_mut()[page as usize] = Some(first + page);
    }
    let before = world.calls.get();
    assert_eq!(convert(&file, span(0, 1024), Mode::Now, &Sleeper::default()), Ok(true));
    assert_eq!(world.calls.get() - before, 2, "512 frames each");
    file.check();
}

#[test]
fn a_kill_stops_between_batches_with_the_exact_prefix() {
    let world = world();
    let file = written(&world, 600);
    let thread = Sleeper::default();
    thread.killed.set(true);
    let stopped = convert(&file, span(0, 600), Mode::Now, &thread);
    assert_eq!(stopped, Err(Stopped { error: Error::Interrupted, page: 256 }));
    assert_eq!((file.state(255), file.state(256)), (Page::Given, Page::Host));
    file.check();
}

#[test]
fn a_kill_stops_a_long_freeze_with_everything_put_back() {
    let world = world();
    let file = written(&world, CHUNK as usize + 1);
    let thread = Sleeper::default();
    thread.killed.set(true);
    let stopped = convert(&file, span(0, CHUNK + 1), Mode::Now, &thread);
    assert_eq!(stopped, Err(Stopped { error: Error::Interrupted, page: 0 }));
    assert!(file.pages.borrow().iter().all(|&page| page == Page::Host));
    file.check();
}

#[test]
fn a_kill_stops_a_reservation_at_the_next_frame() {
    let world = world();
    let file = Model::new(&world, 8, Page::Host);
    let thread = Sleeper::default();
    thread.kill_after.set(Some(3));
    assert_eq!(reserve(&file, span(0, 8), &thread), Err(Error::Interrupted));
    assert_eq!(world.frames.borrow().len(), 3, "what was brought stays");
    file.check();
}

#[test]
fn a_kill_stops_bringing_private_frames_and_frees_them() {
    let world = world();
    let file = Model::new(&world, 8, Page::Vacant);
    let thread = Sleeper::default();
    thread.kill_after.set(Some(3));
    let stopped = to_private(&file, span(0, 8), Aim::Reserve, Mode::Wait, &thread, &mut Nobody);
    assert_eq!(stopped, Err(Stopped { error: Error::Interrupted, page: 3 }));
    assert!(world.frames.borrow().is_empty());
    file.check();
}

/// A span of several parts, and how often `act` takes the lock.
fn holds(file: &Model, act: impl FnOnce(Span)) -> u64 {
    let before = file.holds.get();
    act(span(0, 3 * CHUNK));
    file.holds.get() - before
}

#[test]
fn no_long_span_is_walked_in_one_hold_of_the_lock() {
    let world = world();
    let file = Model::new(&world, 3 * CHUNK as usize, Page::Vacant);
    assert!(holds(&file, |all| assert_eq!(to_shared(&file, all), Ok(()))) >= 3, "to_shared");
    assert!(holds(&file, |all| assert_eq!(punch(&file, all), Ok(()))) >= 3, "punch");
    let mut begun = None;
    assert!(holds(&file, |all| begun = Some(begin(&file, all, Aim::Convert))) >= 3, "begin");
    let Some(Begun::Attempt(attempt)) = begun else { panic!("nothing began") };
    assert!(holds(&file, |_| assert_eq!(attempt.nth(&file, 0, 0), None)) >= 3, "nth");
    attempt.finish(&file, 0, Rest::Keep);
    let (below, thread) = (el2(&world), Sleeper::default());
    // A page at the end of many that have no frame, and one at their start: one list has both.
    let sparse = Model::new(&world, 3 * CHUNK as usize, Page::Host);
    let kernel = Kernel(world.clone());
    for page in [0, 3 * CHUNK - 1] {
        assert_eq!(sparse.store(page), HostFault::Map);
    }
    let Begun::Attempt(mut attempt) = begin(&sparse, span(0, 3 * CHUNK), Aim::Convert) else { panic!("nothing began") };
    while attempt.step(&sparse) != Step::Frozen {}
    let calls = world.calls.get();
    let looked = |file: &Model| {
        let before = file.holds.get();
        let given = giver(&below, &kernel, &thread, 0).give(file, &attempt);
        assert_eq!(given.map(|given| (given.count, given.error)), Some((2, None)));
        file.holds.get() - before
    };
    // To find the first, to gather, and to look whether there is another behind the last.
    assert_eq!(looked(&sparse), 1 + 3 + 3, "gather");
    assert_eq!(world.calls.get() - calls, 1, "one call");
    attempt.finish(&sparse, 2, Rest::Keep);
    assert!(
        holds(&file, |all| assert_eq!(reclaim_pages(&file, all, Initial::Host, &below, VM, &thread).lost, 0)) >= 3,
        "end"
    );
    assert!(holds(&file, |_| assert_eq!(empty(&file), 0)) >= 3, "empty");
    assert!(holds(&file, |all| assert!(!any(&file, all, |page| page == Page::Lost))) >= 3, "any");
}

#[test]
fn a_refusal_far_into_a_span_puts_its_start_back() {
    let world = world();
    let file = Model::new(&world, 2 * CHUNK as usize, Page::Host);
    file.store(0);
    for state in [Page::Lent, Page::Draining { origin: Origin::Host, attempt: 77 }] {
        file.change(|book| book.set(CHUNK + 1, state));
        let all = span(0, 2 * CHUNK);
        match begin(&file, all, Aim::Convert) {
            Begun::Refused(Error::Denied | Error::Again, page) => assert_eq!(page, CHUNK + 1),
            other @ (Begun::Attempt(_) | Begun::Nothing | Begun::Refused(..)) => panic!("{other:?}"),
        }
        assert!((0..=CHUNK).all(|page| file.state(page) == Page::Host), "after {state:?}");
        assert_eq!(file.report.get().completed, 0);
        assert_eq!(file.store(0), HostFault::Map);
    }
    file.change(|book| {
        book.set(0, Page::Vacant);
        book.set(CHUNK + 1, Page::Given);
    });
    assert_eq!(to_shared(&file, span(0, 2 * CHUNK)), Err(Stopped { error: Error::Denied, page: CHUNK + 1 }));
    assert_eq!(file.state(0), Page::Vacant, "a refused call changes nothing");
    assert_eq!(punch(&file, span(0, 2 * CHUNK)), Err(Error::Busy));
    assert!(file.frame(0).is_some(), "a refused call changes nothing");
}

#[test]
fn a_hole_stays_a_hole() {
    let world = world();
    let file = Model::new(&world, 4, Page::Host);
    file.store(1);
    assert_eq!(convert(&file, span(0, 4), Mode::Now, &Sleeper::default()), Ok(true));
    let states: Vec<_> = (0..4).map(|page| file.state(page)).collect();
    assert_eq!(states, [Page::Vacant, Page::Given, Page::Vacant, Page::Vacant]);
    file.check();
}

#[test]
fn an_unbound_file_holds_its_pages_and_donates_them_when_bound() {
    let world = world();
    let file = written(&world, 4);
    let thread = Sleeper::default();
    assert_eq!(to_private(&file, span(0, 4), Aim::Convert, Mode::Now, &thread, &mut Nobody), Ok(true));
    assert!(file.pages.borrow().iter().all(|&page| page == Page::Held));
    file.check();
    let (below, kernel) = (el2(&world), Kernel(world.clone()));
    let bound = to_private(&file, span(0, 4), Aim::Bind, Mode::Wait, &thread, &mut giver(&below, &kernel, &thread, 0));
    assert_eq!(bound, Ok(true));
    assert!(file.pages.borrow().iter().all(|&page| page == Page::Given));
    file.check();
}

#[test]
fn a_refused_binding_keeps_what_was_held_frozen() {
    let world = world();
    let file = written(&world, 2);
    let thread = Sleeper::default();
    to_private(&file, span(0, 2), Aim::Convert, Mode::Now, &thread, &mut Nobody).unwrap();
    world.refuse.borrow_mut().insert(BASE + 1);
    let (below, kernel) = (el2(&world), Kernel(world.clone()));
    let bound = to_private(&file, span(0, 2), Aim::Bind, Mode::Wait, &thread, &mut giver(&below, &kernel, &thread, 0));
    assert_eq!(bound, Err(Stopped { error: Error::Poisoned, page: 0 }));
    assert_eq!((file.state(0), file.state(1)), (Page::Held, Page::Held));
    file.check();
}

#[test]
fn a_poisoned_frame_is_never_donated() {
    let world = world();
    let file = written(&world, 4);
    file.poisoned.borrow_mut().insert(2);
    let stopped = convert(&file, span(0, 4), Mode::Wait, &Sleeper::default()).unwrap_err();
    assert_eq!(stopped, Stopped { error: Error::Poisoned, page: 2 });
    file.check();
    assert!(world.owned.borrow().is_empty());
}

#[test]
fn a_touch_brings_a_frame_and_no_memory_changes_nothing() {
    for initial in [Page::Vacant, Page::Host] {
        let world = world();
        let file = Model::new(&world, 1, initial);
        let (thread, below, kernel) = (Sleeper::default(), el2(&world), Kernel(world.clone()));
        file.no_memory.set(true);
        let touch =
            || to_private(&file, span(0, 1), Aim::Touch, Mode::Wait, &thread, &mut giver(&below, &kernel, &thread, 0));
        assert_eq!(touch(), Err(Stopped { error: Error::NoMemory, page: 0 }));
        assert_eq!(file.state(0), initial);
        file.check();
        file.no_memory.set(false);
        assert_eq!(touch(), Ok(true));
        assert_eq!(file.state(0), Page::Given);
        assert_eq!(touch(), Ok(false));
        file.check();
    }
}

#[test]
fn a_refused_touch_frees_the_frame_that_it_brought() {
    let world = world();
    let file = Model::new(&world, 1, Page::Vacant);
    world.refuse.borrow_mut().insert(BASE);
    let (thread, below, kernel) = (Sleeper::default(), el2(&world), Kernel(world.clone()));
    let touched =
        to_private(&file, span(0, 1), Aim::Touch, Mode::Wait, &thread, &mut giver(&below, &kernel, &thread, 0));
    assert_eq!(touched, Err(Stopped { error: Error::Poisoned, page: 0 }));
    assert_eq!((file.state(0), file.frame(0)), (Page::Vacant, None));
    assert!(world.frames.borrow().is_empty());
}

#[test]
fn attempts_on_one_file_do_not_meet() {
    let world = world();
    let file = written(&world, 4);
    let Begun::Attempt(mut first) = begin(&file, span(0, 2), Aim::Convert) else { panic!("nothing began") };
    assert!(matches!(begin(&file, span(1, 2), Aim::Convert), Begun::Refused(Error::Again, 1)));
    assert!(matches!(to_shared(&file, span(0, 4)), Err(Stopped { error: Error::Again, page: 0 })));
    assert_eq!(punch(&file, span(0, 4)), Err(Error::Busy));
    let Begun::Attempt(mut second) = begin(&file, span(2, 2), Aim::Convert) else { panic!("nothing began") };
    assert_eq!(first.step(&file), Step::Frozen);
    assert_eq!(second.step(&file), Step::Frozen);
    first.finish(&file, 0, Rest::Restore);
    second.finish(&file, 0, Rest::Keep);
    let states: Vec<_> = (0..4).map(|page| file.state(page)).collect();
    assert_eq!(states, [Page::Host, Page::Host, Page::Held, Page::Held]);
    file.check();
}

/// A pending attempt does not lose its pages to a later one, however many attempts come between.
#[test]
fn the_number_of_an_attempt_never_comes_round() {
    let world = world();
    let file = Model::new(&world, 3, Page::Host);
    file.change(|book| book.set(2, Page::Vacant));
    file.store(0);
    file.hold(1);
    let number = file.next.get();
    let Begun::Attempt(mut pending) = begin(&file, span(0, 2), Aim::Convert) else { panic!("nothing began") };
    assert_eq!(pending.step(&file), Step::Busy(1));
    file.next.set(number + (1 << 32));
    let Begun::Attempt(later) = begin(&file, span(0, 3), Aim::Reserve) else { panic!("nothing began") };
    later.finish(&file, 0, Rest::Restore);
    assert!(matches!(file.state(0), Page::Draining { .. }), "taken from the attempt that froze it");
    pending.finish(&file, 0, Rest::Restore);
    file.check();
}

#[test]
fn attempts_without_a_number_are_refused_and_change_nothing() {
    let file = written(&world(), 1);
    file.next.set(u64::MAX);
    assert!(matches!(begin(&file, span(0, 1), Aim::Convert), Begun::Refused(Error::NoSpace, 0)));
    file.check();
}

/// Every state against every aim: taken, passed over, waited for, or refused with the right error.
#[test]
fn each_aim_takes_only_its_own_states() {
    let states = [
        Page::Host,
        Page::Lent,
        Page::Held,
        Page::Vacant,
        Page::Given,
        Page::Draining { origin: Origin::Host, attempt: 77 },
        Page::Lost,
    ];
    let expected = [
        (Aim::Convert, ["take", "EPERM", "pass", "pass", "pass", "wait", "EHWPOISON"]),
        (Aim::Touch, ["take", "pass", "take", "take", "pass", "wait", "EHWPOISON"]),
        (Aim::Unshare, ["EEXIST", "take", "EEXIST", "EEXIST", "EEXIST", "wait", "EHWPOISON"]),
        (Aim::Bind, ["pass", "pass", "take", "pass", "pass", "pass", "EHWPOISON"]),
        (Aim::Reserve, ["pass", "pass", "pass", "take", "pass", "pass", "EHWPOISON"]),
        (Aim::Populate, ["EEXIST", "EEXIST", "EEXIST", "take", "EEXIST", "wait", "EHWPOISON"]),
    ];
    for (aim, row) in expected {
        for (state, want) in states.into_iter().zip(row) {
            let file = Model::new(&world(), 1, state);
            let seen = match begin(&file, span(0, 1), aim) {
                Begun::Attempt(attempt) => {
                    assert!(matches!(file.state(0), Page::Draining { origin, .. } if origin.page() == state));
                    attempt.finish(&file, 0, Rest::Restore);
                    "take"
                }
                Begun::Nothing => "pass",
                Begun::Refused(Error::Again, 0) => "wait",
                Begun::Refused(Error::Denied, 0) => "EPERM",
                Begun::Refused(Error::Io, 0) => "EIO",
                Begun::Refused(Error::Exists, 0) => "EEXIST",
                Begun::Refused(Error::Poisoned, 0) => "EHWPOISON",
                other @ Begun::Refused(..) => panic!("{other:?}"),
            };
            assert_eq!(seen, want, "{aim:?} of {state:?}");
            assert_eq!(file.state(0), state);
        }
    }
}

#[test]
fn beyond_the_file_is_invalid() {
    let file = Model::new(&world(), 4, Page::Host);
    assert!(matches!(begin(&file, span(3, 2), Aim::Convert), Begun::Refused(Error::Invalid, 3)));
    assert_eq!(to_shared(&file, span(4, 1)), Err(Stopped { error: Error::Invalid, page: 4 }));
    assert_eq!(punch(&file, span(0, 5)), Err(Error::Invalid));
    assert_eq!(reserve(&file, span(0, 5), &Sleeper::default()), Err(Error::Invalid));
    assert!(file.frame(0).is_none());
}

#[test]
fn only_frames_that_were_never_donated_come_back_to_the_host() {
    let world = world();
    let file = written(&world, 3);
    let thread = Sleeper::default();
    to_private(&file, span(0, 1), Aim::Convert, Mode::Now, &thread, &mut Nobody).unwrap();
    convert(&file, span(2, 1), Mode::Now, &thread).unwrap();
    assert_eq!(to_shared(&file, span(0, 3)), Err(Stopped { error: Error::Denied, page: 2 }));
    assert_eq!(file.state(0), Page::Held, "a refused call changes nothing");
    assert_eq!(to_shared(&file, span(0, 2)), Ok(()));
    assert_eq!(file.state(0), Page::Host);
    assert!(file.with_frame(0, |frame| frame.dirty), "contents stay");
    assert_eq!(punch(&file, span(0, 3)), Err(Error::Busy));
    assert!(file.frame(0).is_some(), "a refused call changes nothing");
    assert_eq!(punch(&file, span(0, 2)), Ok(()));
    assert_eq!((file.frame(0), file.frame(1)), (None, None));
    file.check();
}

#[test]
fn punch_of_a_held_page_keeps_it_private() {
    let world = world();
    let file = written(&world, 1);
    to_private(&file, span(0, 1), Aim::Convert, Mode::Now, &Sleeper::default(), &mut Nobody).unwrap();
    assert_eq!(punch(&file, span(0, 1)), Ok(()));
    assert_eq!(file.state(0), Page::Vacant);
    assert!(world.frames.borrow().is_empty());
    file.check();
}

#[test]
fn reserve_brings_frames_and_keeps_who_may_map() {
    let world = world();
    let file = Model::new(&world, 2, Page::Vacant);
    file.change(|book| book.set(1, Page::Host));
    reserve(&file, span(0, 2), &Sleeper::default()).unwrap();
    assert_eq!((file.state(0), file.state(1)), (Page::Held, Page::Host));
    assert!(file.frame(0).is_some() && file.frame(1).is_some());
    reserve(&file, span(0, 2), &Sleeper::default()).unwrap();
    file.check();
}
