// SPDX-License-Identifier: MIT OR Apache-2.0
//! Contents that are brought, and memory that runs out: what each leaves is documented.

use super::*;
use crate::convert::{populate, reserve, to_private, Giver, Mode, Nobody, Stopped};
use crate::drain::{Aim, Attempt};

#[test]
fn populating_fills_what_was_never_mapped_and_donates_it() {
    let world = world();
    let file = Model::new(&world, 4, Page::Vacant);
    let (thread, below, kernel) = (Sleeper::default(), el2(&world), Kernel(world.clone()));
    let copy = |page: u64| {
        assert!(!file.locked.get(), "may sleep");
        assert_eq!(file.store(page), HostFault::Refuse);
        file.with_frame(page, |frame| frame.dirty = true);
        Ok(())
    };
    assert_eq!(populate(&file, span(1, 2), &thread, copy, &mut giver(&below, &kernel, &thread, 1)), Ok(()));
    let states: Vec<_> = (0..4).map(|page| file.state(page)).collect();
    assert_eq!(states, [Page::Vacant, Page::Given, Page::Given, Page::Vacant]);
    assert!(file.with_frame(1, |frame| frame.dirty));
    file.check();
}

#[test]
fn a_failed_copy_leaves_no_frame() {
    let world = world();
    let file = Model::new(&world, 4, Page::Vacant);
    let thread = Sleeper::default();
    let copy = |page| if page == 2 { Err(Error::Fault) } else { Ok(()) };
    let stopped = populate(&file, span(0, 4), &thread, copy, &mut Nobody);
    assert_eq!(stopped, Err(Stopped { error: Error::Fault, page: 2 }));
    assert!(world.frames.borrow().is_empty());
    assert!((0..4).all(|page| file.state(page) == Page::Vacant));
    file.no_memory.set(true);
    let stopped = populate(&file, span(0, 4), &thread, |_| Ok(()), &mut Nobody);
    assert_eq!(stopped, Err(Stopped { error: Error::NoMemory, page: 0 }));
    file.no_memory.set(false);
    thread.kill_after.set(Some(6));
    let stopped = populate(&file, span(0, 4), &thread, |_| Ok(()), &mut Nobody);
    assert_eq!(stopped.map_err(|s| s.error), Err(Error::Interrupted));
    assert!(world.frames.borrow().is_empty());
    file.check();
}

/// What a populate or conversion of three batches and more has given is given, when memory for the VM's tables runs out
/// behind two of them or the thread is killed there. A conversion that is repeated does the rest; a populate goes on from the
/// page that was told.
#[test]
fn a_later_batch_without_memory_or_killed_leaves_the_batches_before_it() {
    const PAGES: u64 = 1100;
    const GIVEN: u64 = 2 * hvc::MAX_RECORDS;
    for aim in [Aim::Populate, Aim::Convert] {
        for (killed, error) in [(false, Error::NoMemory), (true, Error::Interrupted)] {
            let world = world();
            let initial = if aim == Aim::Convert { Page::Host } else { Page::Vacant };
            let file = Model::new(&world, PAGES as usize, initial);
            if aim == Aim::Convert {
                (0..PAGES).for_each(|page| assert_eq!(file.store(page), HostFault::Map));
            }
            let (thread, below, kernel) = (Sleeper::default(), el2(&world), Kernel(world.clone()));
            let act = |of: Span| {
                let mut give = |file: &Model, attempt: &Attempt| {
                    // Behind what is looked at before the first batch: two batches.
                    thread.kill_after.set((killed && world.owned.borrow().is_empty()).then_some(1));
                    giver(&below, &kernel, &thread, of.first()).give(file, attempt)
                };
                if aim == Aim::Populate {
                    populate(&file, of, &thread, |_| Ok(()), &mut give)
                } else {
                    to_private(&file, of, aim, Mode::Now, &thread, &mut give).map(|_| ())
                }
            };
            let frames = if aim == Aim::Populate { PAGES } else { 0 };
            if !killed {
                // Two batches go with what the pool has; the list is had, and nothing after it.
                world.pool_free.set(2);
                world.memory.set(Some(frames + 1));
            }
            let stopped = Err(Stopped { error, page: GIVEN });
            assert_eq!(act(span(0, PAGES)), stopped, "{aim:?}");
            file.check();
            for page in 0..PAGES {
                assert_eq!(file.state(page), if page < GIVEN { Page::Given } else { initial }, "{aim:?}: page {page}");
                assert_eq!(file.frame(page).is_some(), page < GIVEN || initial == Page::Host);
            }
            world.memory.set(None);
            thread.kill_after.set(None);
            thread.killed.set(false);
            if aim == Aim::Populate {
                assert_eq!(act(span(0, PAGES)), Err(Stopped { error: Error::Exists, page: 0 }));
                assert_eq!(act(span(GIVEN, PAGES - GIVEN)), Ok(()));
            } else {
                assert_eq!(act(span(0, PAGES)), Ok(()));
            }
            assert!(file.pages.borrow().iter().all(|&page| page == Page::Given));
            file.check();
        }
    }
}

/// Each allocation of each move fails once: the file is as before, or its exact prefix has moved, and a second try with
/// memory completes it.
#[test]
fn memory_that_runs_out_at_any_step_leaves_a_state_that_is_documented() {
    const PAGES: u64 = if cfg!(miri) { 30 } else { 300 };
    let mut failed = 0;
    for aim in [Aim::Convert, Aim::Populate, Aim::Reserve, Aim::Touch] {
        // Each of the first, and some of those that are alike: under an interpreter fewer.
        for fails_at in (0..8).chain((8..PAGES + 20).step_by(if cfg!(miri) { 101 } else { 17 })) {
            let world = world();
            world.pool_free.set(0);
            let initial = if aim == Aim::Convert { Page::Host } else { Page::Vacant };
            let file = Model::new(&world, PAGES as usize, initial);
            if aim == Aim::Convert {
                (0..PAGES).for_each(|page| assert_eq!(file.store(page), HostFault::Map));
            }
            let (thread, below, kernel) = (Sleeper::default(), el2(&world), Kernel(world.clone()));
            let all = if aim == Aim::Touch { span(0, 1) } else { span(0, PAGES) };
            let act = || {
                let mut give = giver(&below, &kernel, &thread, 0);
                match aim {
                    Aim::Populate => populate(&file, all, &thread, |_| Ok(()), &mut give),
                    Aim::Reserve => reserve(&file, all, &thread).map_err(|error| Stopped { error, page: 0 }),
                    Aim::Convert | Aim::Touch | Aim::Unshare | Aim::Bind => {
                        to_private(&file, all, aim, Mode::Now, &thread, &mut give).map(|_| ())
                    }
                }
            };
            world.memory.set(Some(fails_at));
            let result = act();
            world.memory.set(None);
            file.check();
            let given = world.owned.borrow().len() as u64;
            match result {
                Ok(()) => continue,
                Err(stopped) => {
                    failed += 1;
                    assert_eq!(stopped.error, Error::NoMemory, "{aim:?} at {fails_at}");
                    assert!(aim == Aim::Reserve || given == 0 || stopped.page == given, "{aim:?} at {fails_at}");
                    for page in given..all.end() {
                        assert_eq!(file.state(page), initial, "{aim:?} at {fails_at}: page {page}");
                        assert_eq!(file.frame(page).is_some(), initial == Page::Host);
                    }
                }
            }
            if aim != Aim::Populate || given == 0 {
                assert_eq!(act(), Ok(()), "{aim:?} at {fails_at}, again");
                file.check();
            }
        }
    }
    assert!(failed > if cfg!(miri) { 20 } else { 40 }, "only {failed} allocations failed");
}
