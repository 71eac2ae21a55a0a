// SPDX-License-Identifier: MIT OR Apache-2.0
//! A VM's memory from its pool to its end, and what its guest asks for.

use super::*;
use crate::convert::{bereave, empty, to_private, Mode, Stopped};
use crate::drain::Aim;
use crate::end::{abandon_pool, doom, reclaim_all, reclaim_pages, reclaim_pool, settles, Pass, Pool, SETTLES};
use crate::exit::Request;
use crate::guest::{relinquish, share, touch, unshare, until_served, NotYet, STRETCH};

fn private(world: &Rc<World>, pages: usize) -> Model {
    let file = Model::new(world, pages, Page::Host);
    let thread = Sleeper::default();
    for page in 0..pages as u64 {
        file.store(page);
    }
    let (below, kernel) = (el2(world), Kernel(world.clone()));
    let all = span(0, pages as u64);
    to_private(&file, all, Aim::Convert, Mode::Now, &thread, &mut giver(&below, &kernel, &thread, 0)).unwrap();
    file
}

fn asks(world: &World, kind: Request, first: u64, count: u64) {
    *world.request.borrow_mut() = Some((BASE + first, count, kind));
}

fn lent(world: &Rc<World>, pages: usize) -> Model {
    let file = private(world, pages);
    asks(world, Request::Share, 0, pages as u64);
    let below = el2(world);
    assert_eq!(share(&file, span(0, pages as u64), |n| below.guest_accept(VM, 0, n)), Ok(pages as u64));
    file.check();
    file
}

#[test]
fn a_pool_that_is_too_small_is_made_larger() {
    let world = world();
    let kernel = Kernel(world.clone());
    assert_eq!(pool::create(&el2(&world), &kernel, true, 40), Ok(VM));
    assert_eq!(world.kept.borrow().len(), 1);
    assert_eq!(world.pool.borrow().len(), 32, "the first chunk of 16 went back");
    assert_eq!(world.frames.borrow().len(), 32);
}

#[test]
fn growth_covers_what_is_asked() {
    let world = world();
    pool::grow(&el2(&world), &Kernel(world.clone()), VM, 1000).unwrap();
    assert!(world.pool.borrow().len() >= 1000);
}

#[test]
fn a_shared_page_is_the_hosts_to_map_and_still_the_guests() {
    let world = world();
    let file = lent(&world, 3);
    assert_eq!(file.store(1), HostFault::Map);
    assert_eq!(world.owned.borrow().len(), 3);
}

#[test]
fn sharing_stops_before_the_first_page_that_is_not_private() {
    let world = world();
    let file = private(&world, 4);
    file.change(|book| book.set(2, Page::Lost));
    asks(&world, Request::Share, 0, 4);
    let below = el2(&world);
    assert_eq!(share(&file, span(0, 4), |n| below.guest_accept(VM, 0, n)), Ok(2));
    let untouched = Model::new(&world, 1, Page::Vacant);
    assert_eq!(share(&untouched, span(0, 1), |_| panic!("accepted")), Err(NotYet::Untouched(0)));
    let draining = Model::new(&world, 1, Page::Draining { origin: Origin::Host, attempt: 0 });
    assert_eq!(share(&draining, span(0, 1), |_| panic!("accepted")), Err(NotYet::Draining(0)));
}

#[test]
fn unsharing_waits_for_the_host_and_only_then_moves() {
    let world = world();
    let file = lent(&world, 4);
    file.hold(2);
    asks(&world, Request::Unshare, 0, 4);
    let below = el2(&world);
    let accept = |n| below.guest_accept(VM, 0, n);
    let thread = Sleeper::of(vec![
        Box::new(|| assert_eq!((file.report.get().waiting, file.report.get().page), (1, 2))),
        Box::new(|| assert!(world.request.borrow().is_some(), "not accepted while somebody holds a page")),
        Box::new(|| file.let_go(2)),
    ]);
    assert_eq!(unshare(&file, span(0, 4), &thread, accept), Ok(()));
    file.check();
    assert!((0..4).all(|page| file.state(page) == Page::Given));
    assert!(file.with_frame(1, |frame| frame.dirty), "contents stay");
}

#[test]
fn a_signal_while_unsharing_lends_the_pages_again() {
    let world = world();
    let file = lent(&world, 2);
    file.hold(1);
    asks(&world, Request::Unshare, 0, 2);
    let thread = Sleeper::default();
    thread.signal_at.set(Some(2));
    let stopped = unshare(&file, span(0, 2), &thread, |_| panic!("accepted"));
    assert_eq!(stopped, Err(Stopped { error: Error::Interrupted, page: 1 }));
    file.check();
    assert_eq!((file.state(0), file.state(1)), (Page::Lent, Page::Lent));
    assert!(world.request.borrow().is_some());
}

/// The guest has its interrupts: nobody else enters the vCPU that waits here.
#[test]
fn a_guest_whose_host_holds_on_is_entered_again_and_again_until_it_lets_go() {
    let world = world();
    let file = lent(&world, 3);
    file.hold(1);
    asks(&world, Request::Unshare, 0, 3);
    for _ in 0..3 {
        let thread = Sleeper::default();
        assert_eq!(unshare(&file, span(0, 3), &thread, |_| panic!("accepted")), Ok(()), "it asks again");
        assert_eq!(thread.clock.get(), STRETCH);
        assert!((0..3).all(|page| file.state(page) == Page::Lent), "nothing has moved");
        assert!(world.request.borrow().is_some());
        file.check();
    }
    // Behind another's attempt as well.
    file.change(|book| book.set(0, Page::Draining { origin: Origin::Lent, attempt: 77 }));
    let thread = Sleeper::default();
    assert_eq!(unshare(&file, span(0, 3), &thread, |_| panic!("accepted")), Ok(()));
    assert_eq!(thread.clock.get(), STRETCH);
    file.change(|book| book.set(0, Page::Lent));
    // Control: it ends with the first try behind the holder's.
    file.let_go(1);
    let (below, thread) = (el2(&world), Sleeper::default());
    assert_eq!(unshare(&file, span(0, 3), &thread, |n| below.guest_accept(VM, 0, n)), Ok(()));
    assert_eq!(thread.clock.get(), 0);
    assert!((0..3).all(|page| file.state(page) == Page::Given));
    file.check();
}

#[test]
fn a_touch_of_a_page_that_the_host_holds_is_made_again_until_it_lets_go() {
    let world = world();
    let file = written(&world, 1);
    file.hold(0);
    let (kernel, below) = (Kernel(world.clone()), el2(&world));
    for _ in 0..3 {
        let thread = Sleeper::default();
        assert_eq!(touch(&file, 0, &thread, &mut giver(&below, &kernel, &thread, 0)), Ok(()));
        assert_eq!((thread.clock.get(), file.state(0)), (STRETCH, Page::Host));
        file.check();
    }
    file.let_go(0);
    let thread = Sleeper::default();
    assert_eq!(touch(&file, 0, &thread, &mut giver(&below, &kernel, &thread, 0)), Ok(()));
    assert_eq!((thread.clock.get(), file.state(0)), (0, Page::Given));
    file.check();
}

/// A share or a relinquishing whose page is on its way, or has to be backed first.
#[test]
fn a_request_that_waits_is_asked_again_by_its_guest() {
    let thread = Sleeper::default();
    let never = |_| panic!("touched");
    assert_eq!(until_served(&thread, || Err(NotYet::Draining(0)), never), Ok(()));
    assert_eq!(thread.clock.get(), STRETCH);
    // Backing it took the whole time: it is for the guest to ask again.
    let thread = Sleeper::default();
    let touched = Cell::new(0);
    let touch = |page| {
        touched.set(touched.get() + 1);
        thread.clock.set(thread.clock.get() + STRETCH / 2);
        assert_eq!(page, 7);
        Ok(())
    };
    assert_eq!(until_served(&thread, || Err(NotYet::Untouched(7)), touch), Ok(()));
    assert_eq!(touched.get(), 2);
    // Control: it ends as it ends, and at once.
    for (answer, end) in [(Ok(1), Ok(())), (Err(NotYet::Refused(Error::Io)), Err(Error::Io))] {
        assert_eq!(until_served(&Sleeper::default(), || answer, never), end);
    }
    let thread = Sleeper::default();
    thread.signal_at.set(Some(2));
    assert_eq!(until_served(&thread, || Err(NotYet::Draining(0)), never), Err(Error::Interrupted));
    let refused = |_| Err(Error::NoMemory);
    assert_eq!(until_served(&thread, || Err(NotYet::Untouched(0)), refused), Err(Error::NoMemory));
}

#[test]
fn a_partly_accepted_unshare_lends_the_rest_again() {
    let world = world();
    let file = lent(&world, 3);
    asks(&world, Request::Unshare, 0, 3);
    let below = el2(&world);
    assert_eq!(unshare(&file, span(0, 3), &Sleeper::default(), |_| below.guest_accept(VM, 0, 2)), Ok(()));
    file.check();
    assert_eq!((file.state(0), file.state(1), file.state(2)), (Page::Given, Page::Given, Page::Lent));
}

#[test]
fn unsharing_covers_the_lent_prefix_only() {
    let world = world();
    let file = private(&world, 4);
    let below = el2(&world);
    asks(&world, Request::Share, 0, 2);
    share(&file, span(0, 2), |n| below.guest_accept(VM, 0, n)).unwrap();
    asks(&world, Request::Unshare, 0, 4);
    assert_eq!(unshare(&file, span(0, 4), &Sleeper::default(), |n| below.guest_accept(VM, 0, n)), Ok(()));
    assert!((0..4).all(|page| file.state(page) == Page::Given));
    file.check();
}

/// A vCPU's request that stands while another vCPU's is served: the guest asks again, and `el2` answers it.
#[test]
fn what_another_vcpu_moved_first_is_asked_again() {
    let world = world();
    let file = lent(&world, 2);
    let late = |_| -> Result<u64, Refused> { panic!("accepted") };
    assert_eq!(share(&file, span(0, 2), late), Ok(0), "shared meanwhile");
    assert_eq!(relinquish(&file, span(0, 1), Initial::Host, late), Ok(0), "shared meanwhile");
    for state in [Page::Given, Page::Host, Page::Held, Page::Vacant] {
        let file = Model::new(&world, 1, state);
        assert_eq!(unshare(&file, span(0, 1), &Sleeper::default(), late), Ok(()), "{state:?} meanwhile");
        assert_eq!(file.state(0), state);
    }
    for state in [Page::Borrowed, Page::Lost] {
        let file = Model::new(&world, 1, state);
        assert_eq!(share(&file, span(0, 1), late), Err(NotYet::Refused(Error::Io)), "{state:?}");
        let stopped = Stopped { error: Error::Io, page: 0 };
        assert_eq!(unshare(&file, span(0, 1), &Sleeper::default(), late), Err(stopped), "{state:?}");
    }
}

#[test]
fn two_vcpus_unshare_the_same_pages_and_both_go_on() {
    let world = world();
    let file = lent(&world, 2);
    file.hold(0);
    asks(&world, Request::Unshare, 0, 2);
    let below = el2(&world);
    let crate::drain::Begun::Attempt(first) = crate::drain::begin(&file, span(0, 2), Aim::Unshare) else {
        panic!("nothing began")
    };
    // The second waits for the first, which ends meanwhile: with the pages, or without.
    let mut first = Some(first);
    let thread = Sleeper::of(vec![Box::new(|| {
        file.let_go(0);
        let mut attempt = first.take().unwrap();
        assert_eq!(attempt.step(&file), crate::drain::Step::Frozen);
        assert_eq!(below.guest_accept(VM, 0, 2), Ok(2));
        attempt.finish(&file, 2, crate::drain::Rest::Restore);
    })]);
    assert_eq!(unshare(&file, span(0, 2), &thread, |_| panic!("accepted")), Ok(()));
    assert!((0..2).all(|page| file.state(page) == Page::Given));
    file.check();
}

#[test]
fn an_unshare_whose_end_was_taken_back_meanwhile_is_asked_again() {
    let world = world();
    let file = lent(&world, 3);
    let crate::drain::Begun::Attempt(first) = crate::drain::begin(&file, span(1, 1), Aim::Unshare) else {
        panic!("nothing began")
    };
    asks(&world, Request::Unshare, 1, 1);
    let below = el2(&world);
    let mut first = Some(first);
    let thread = Sleeper::of(vec![Box::new(|| {
        let mut attempt = first.take().unwrap();
        assert_eq!(attempt.step(&file), crate::drain::Step::Frozen);
        assert_eq!(below.guest_accept(VM, 0, 1), Ok(1));
        attempt.finish(&file, 1, crate::drain::Rest::Restore);
    })]);
    assert_eq!(unshare(&file, span(0, 3), &thread, |_| panic!("accepted")), Ok(()));
    // What is still lent is what the guest asks for next.
    assert_eq!([0, 1, 2].map(|page| file.state(page)), [Page::Lent, Page::Given, Page::Lent]);
    asks(&world, Request::Unshare, 0, 1);
    assert_eq!(unshare(&file, span(0, 1), &Sleeper::default(), |n| below.guest_accept(VM, 0, n)), Ok(()));
    file.check();
}

#[test]
fn what_the_vmm_converts_is_not_what_the_guest_shares() {
    let world = world();
    let file = lent(&world, 1);
    let thread = Sleeper::default();
    let stopped = to_private(&file, span(0, 1), Aim::Convert, Mode::Now, &thread, &mut crate::convert::Nobody);
    assert_eq!(stopped, Err(Stopped { error: Error::Denied, page: 0 }));
}

#[test]
fn a_partly_accepted_share_lends_no_more_than_that() {
    let world = world();
    let file = private(&world, 3);
    asks(&world, Request::Share, 0, 3);
    let below = el2(&world);
    assert_eq!(share(&file, span(0, 3), |_| below.guest_accept(VM, 0, 2)), Ok(2));
    assert_eq!((file.state(0), file.state(1), file.state(2)), (Page::Lent, Page::Lent, Page::Given));
    file.check();
}

#[test]
fn relinquished_frames_go_back_zeroed_and_the_offset_is_new() {
    for initial in [Initial::Host, Initial::Vacant] {
        let world = world();
        let file = private(&world, 3);
        let before = world.frames.borrow().len();
        asks(&world, Request::Relinquish, 1, 1);
        let below = el2(&world);
        assert_eq!(relinquish(&file, span(1, 1), initial, |n| below.guest_accept(VM, 0, n)), Ok(1));
        assert_eq!((file.state(1), file.frame(1)), (initial.page(), None));
        assert_eq!(world.frames.borrow().len(), before - 1);
        file.check();
    }
}

#[test]
fn a_chunk_of_the_pool_that_el2_keeps_in_part_is_lost_as_a_whole() {
    let world = world();
    let (kernel, below) = (Kernel(world.clone()), el2(&world));
    pool::create(&below, &kernel, true, 40).unwrap();
    let chunk = world.kept.borrow()[0];
    world.stuck.borrow_mut().insert(chunk.pfn + 3);
    doom(&below, VM).unwrap();
    assert_eq!(reclaim_pool(&below, &kernel, VM, &Sleeper::default()), Pool::Back(chunk.count - 3));
    assert_eq!(world.frames.borrow().len() as u64, chunk.count, "the kernel gets none of it back");
}

/// What was taken off the list once must be there for whoever asks again.
#[test]
fn a_pool_that_is_asked_for_early_is_asked_for_again() {
    let world = world();
    let (kernel, below, thread) = (Kernel(world.clone()), el2(&world), Sleeper::default());
    pool::create(&below, &kernel, true, 40).unwrap();
    pool::grow(&below, &kernel, VM, 8).unwrap();
    let file = private(&world, 2);
    let kept = |world: &World| world.kept.borrow().iter().map(|chunk| chunk.count).sum::<u64>();
    let pool = kept(&world);
    doom(&below, VM).unwrap();
    assert_eq!(reclaim_pool(&below, &kernel, VM, &thread), Pool::Early);
    assert_eq!(kept(&world), pool, "nothing is dropped");
    assert_eq!(reclaim_pages(&file, span(0, 2), Initial::Host, &below, VM, &thread).lost, 0);
    assert_eq!(reclaim_pool(&below, &kernel, VM, &thread), Pool::Back(0));
    assert!(world.frames.borrow().is_empty(), "I8: {:?}", world.frames.borrow());
    assert_eq!(abandon_pool(&kernel), 0);
}

#[test]
fn a_pool_that_nobody_can_ask_for_any_more_is_lost_and_counted() {
    let world = world();
    let (kernel, below) = (Kernel(world.clone()), el2(&world));
    pool::create(&below, &kernel, true, 40).unwrap();
    let file = private(&world, 1);
    doom(&below, VM).unwrap();
    assert_eq!(reclaim_pool(&below, &kernel, VM, &Sleeper::default()), Pool::Early);
    assert_eq!(abandon_pool(&kernel), 32);
    assert_eq!(world.frames.borrow().len(), 32 + 1, "no frame of el2's is freed");
    assert_eq!(reclaim_pages(&file, span(0, 1), Initial::Host, &below, VM, &Sleeper::default()).lost, 0);
}

/// A reboot or kexec: the page is in somebody's hands, whoever holds the descriptors does nothing, and no signal comes.
#[test]
fn the_end_of_the_vm_ends_what_its_guest_waits_for() {
    let world = world();
    let below = el2(&world);
    let file = lent(&world, 3);
    file.hold(1);
    asks(&world, Request::Unshare, 0, 3);
    let thread = Sleeper::of(vec![
        Box::new(|| crate::convert::cancel(&file)),
        Box::new(|| assert!(matches!(file.state(1), Page::Draining { .. }), "cancelling is not meant for it")),
        Box::new(|| bereave(&file)),
    ]);
    doom(&below, VM).unwrap();
    let stopped = unshare(&file, span(0, 3), &thread, |_| panic!("accepted"));
    assert_eq!(stopped, Err(Stopped { error: Error::Ended, page: 1 }));
    assert!((0..3).all(|page| file.state(page) == Page::Lent));
    assert_eq!(reclaim_pages(&file, span(0, 3), Initial::Host, &below, VM, &Sleeper::default()).lost, 0);
    assert!(world.owned.borrow().is_empty());
    file.check();
    // A vCPU that waits behind another one's attempt ends as well.
    for aim in [Aim::Touch, Aim::Unshare] {
        file.change(|book| book.set(0, Page::Draining { origin: Origin::Lent, attempt: 77 }));
        let thread = Sleeper::of(vec![Box::new(|| bereave(&file))]);
        let ended = to_private(&file, span(0, 1), aim, Mode::Wait, &thread, &mut crate::convert::Nobody);
        assert_eq!(ended, Err(Stopped { error: Error::Ended, page: 0 }), "{aim:?}");
    }
    // Control: what the file's next VM asks for is not ended.
    file.change(|book| book.set(0, Page::Host));
    let next = to_private(&file, span(0, 1), Aim::Touch, Mode::Now, &Sleeper::default(), &mut crate::convert::Nobody);
    assert_eq!(next, Ok(true));
}

#[test]
fn the_end_returns_every_frame() {
    for burst in [u64::MAX, 1, 5] {
        let world = world();
        let kernel = Kernel(world.clone());
        let below = el2(&world);
        pool::create(&below, &kernel, true, 40).unwrap();
        let file = private(&world, 40);
        asks(&world, Request::Share, 3, 2);
        share(&file, span(3, 2), |n| below.guest_accept(VM, 0, n)).unwrap();
        file.store(3);
        world.burst.set(burst);
        let thread = Sleeper::default();
        doom(&below, VM).unwrap();
        doom(&below, VM).unwrap();
        assert_eq!(reclaim_pages(&file, span(0, 40), Initial::Host, &below, VM, &thread).lost, 0);
        assert_eq!(reclaim_pool(&below, &kernel, VM, &thread), Pool::Back(0));
        file.check();
        assert!((0..40).all(|page| file.state(page) == Page::Host && file.frame(page).is_none()));
        assert!(world.frames.borrow().is_empty(), "I8: {:?}", world.frames.borrow());
    }
}

#[test]
fn after_the_end_empty_private_offsets_are_as_in_a_new_file() {
    for initial in [Initial::Host, Initial::Vacant] {
        let world = world();
        let below = el2(&world);
        let file = Model::new(&world, 1000, Page::Vacant);
        doom(&below, VM).unwrap();
        assert_eq!(reclaim_pages(&file, span(1, 998), initial, &below, VM, &Sleeper::default()).lost, 0);
        assert!((1..999).all(|page| file.state(page) == initial.page()));
        // Offsets of no slot of the VM's stay as they are.
        assert_eq!((file.state(0), file.state(999)), (Page::Vacant, Page::Vacant));
        file.check();
    }
}

#[test]
fn after_the_end_pages_that_were_held_for_the_vm_are_as_in_a_new_file() {
    let world = world();
    let below = el2(&world);
    let file = Model::new(&world, 3, Page::Host);
    for page in 0..3 {
        file.store(page);
    }
    let thread = Sleeper::default();
    to_private(&file, span(0, 3), Aim::Convert, Mode::Now, &thread, &mut crate::convert::Nobody).unwrap();
    doom(&below, VM).unwrap();
    assert_eq!(reclaim_pages(&file, span(0, 2), Initial::Host, &below, VM, &thread).lost, 0);
    assert!((0..2).all(|page| file.state(page) == Page::Host && file.frame(page).is_none()));
    // Of no slot of the VM's.
    assert_eq!(file.state(2), Page::Held);
    file.check();
}

#[test]
fn a_frame_that_el2_keeps_is_lost_and_never_freed() {
    let world = world();
    let below = el2(&world);
    let file = private(&world, 4);
    let stuck = file.frame(2).unwrap();
    world.stuck.borrow_mut().insert(stuck);
    doom(&below, VM).unwrap();
    assert_eq!(reclaim_pages(&file, span(0, 4), Initial::Host, &below, VM, &Sleeper::default()).lost, 1);
    assert_eq!(file.state(2), Page::Lost);
    assert_eq!(file.store(2), HostFault::Refuse);
    assert_eq!(empty(&file), 1);
    assert_eq!(world.frames.borrow().keys().copied().collect::<Vec<_>>(), [stuck]);
}

#[test]
fn a_vm_that_el2_would_not_end_loses_every_frame_and_frees_none() {
    let world = world();
    let below = el2(&world);
    let file = lent(&world, 4);
    file.store(1);
    let frames = world.frames.borrow().len();
    assert_eq!(reclaim_pages(&file, span(0, 4), Initial::Host, &below, VM, &Sleeper::default()).lost, 4);
    assert!((0..4).all(|page| file.state(page) == Page::Lost && file.store(page) == HostFault::Refuse));
    assert_eq!(empty(&file), 4);
    assert_eq!(world.frames.borrow().len(), frames);
}

#[test]
fn mappings_that_go_with_their_vm_are_counted() {
    for lends in [false, true] {
        let world = world();
        let below = el2(&world);
        let file = if lends { lent(&world, 4) } else { private(&world, 4) };
        if lends {
            assert_eq!(file.store(1), HostFault::Map);
        }
        let before = file.report.get();
        doom(&below, VM).unwrap();
        assert_eq!(reclaim_pages(&file, span(0, 4), Initial::Host, &below, VM, &Sleeper::default()).lost, 0);
        let after = file.report.get();
        let more = (after.begun - before.begun, after.ended - before.ended);
        // Each run of frames by itself; what was private had no mapping.
        assert_eq!(more, if lends { (4, 4) } else { (0, 0) });
        file.check();
    }
}

#[test]
fn an_end_during_a_conversion_takes_what_is_settled_and_comes_back_for_the_rest() {
    let world = world();
    let below = el2(&world);
    let file = lent(&world, 2);
    let crate::drain::Begun::Attempt(attempt) = crate::drain::begin(&file, span(1, 1), Aim::Unshare) else {
        panic!("nothing began")
    };
    doom(&below, VM).unwrap();
    assert_eq!(reclaim_pages(&file, span(0, 2), Initial::Host, &below, VM, &Sleeper::default()).lost, 0);
    assert!(matches!(file.state(1), Page::Draining { .. }));
    attempt.finish(&file, 0, crate::drain::Rest::Restore);
    assert_eq!(reclaim_pages(&file, span(0, 2), Initial::Host, &below, VM, &Sleeper::default()).lost, 0);
    assert!(world.owned.borrow().is_empty());
    file.check();
}

/// The giver's frames are the dying VM's when it has ended, which nobody saw who asks behind the pass whether one is under way.
#[test]
fn what_a_giver_ends_with_beside_the_end_comes_back_too() {
    let world = world();
    let (kernel, below) = (Kernel(world.clone()), el2(&world));
    pool::create(&below, &kernel, true, 40).unwrap();
    let file = written(&world, 3);
    let crate::drain::Begun::Attempt(mut attempt) = crate::drain::begin(&file, span(1, 1), Aim::Touch) else {
        panic!("nothing began")
    };
    assert_eq!(attempt.step(&file), crate::drain::Step::Frozen);
    let donated = below.mem_donate(VM, Run { pfn: file.frame(1).unwrap(), count: 1 }, BASE + 1);
    assert_eq!(donated, Ok(1));
    doom(&below, VM).unwrap();
    let thread = Sleeper::default();
    // Between the first hold of the lock, which passes over the page, and the next.
    thread.lets_run.replace(Some(Box::new(|| attempt.finish(&file, 1, crate::drain::Rest::Keep))));
    let passes = Cell::new(0);
    let lost = reclaim_all(&thread, SETTLES, || {
        passes.set(passes.get() + 1);
        reclaim_pages(&file, span(0, 3), Initial::Host, &below, VM, &thread)
    });
    assert_eq!((lost, passes.get()), (0, 2));
    assert_eq!(file.state(1), Page::Host);
    assert_eq!(reclaim_pool(&below, &kernel, VM, &thread), Pool::Back(0), "not early: nothing is the guest's");
    file.check();
}

/// A vCPU's touch takes a page that waits to be given after the first look at it, and puts it back after the last.
#[test]
fn what_an_attempt_takes_beside_the_end_and_puts_back_is_as_in_a_new_file() {
    let world = world();
    let below = el2(&world);
    let file = written(&world, 2);
    let attempt = RefCell::new(None);
    let thread = Sleeper::default();
    to_private(&file, span(0, 2), Aim::Convert, Mode::Now, &thread, &mut crate::convert::Nobody).unwrap();
    doom(&below, VM).unwrap();
    thread.lets_run.replace(Some(Box::new(|| {
        let crate::drain::Begun::Attempt(begun) = crate::drain::begin(&file, span(1, 1), Aim::Touch) else {
            panic!("nothing began")
        };
        attempt.replace(Some(begun));
    })));
    let pass = || reclaim_pages(&file, span(0, 2), Initial::Host, &below, VM, &thread);
    let first = pass();
    assert_eq!((first.lost, first.draining), (0, true), "it was held when the first hold of the lock looked");
    attempt.take().unwrap().finish(&file, 0, crate::drain::Rest::Restore);
    assert_eq!(file.state(1), Page::Held);
    // Control: with nobody beside it one pass is all.
    let second = pass();
    assert_eq!((second.lost, second.draining), (0, false));
    assert!((0..2).all(|page| file.state(page) == Page::Host && file.frame(page).is_none()));
    file.check();
}

#[test]
fn the_end_gives_up_on_an_attempt_that_does_not_end() {
    let thread = Sleeper::default();
    let passes = Cell::new(0_u64);
    let pass = || {
        passes.set(passes.get() + 1);
        Pass { lost: 1, draining: true }.and(Pass { lost: 1, draining: false })
    };
    assert_eq!(reclaim_all(&thread, 3, pass), 2 * passes.get());
    assert_eq!((thread.clock.get(), passes.get()), (3, 4));
}

#[test]
fn a_reboot_waits_for_a_lock_that_is_let_go_and_not_for_one_that_never_is() {
    // Free at once, also when the time has passed: another VM may have used it up.
    let thread = Sleeper::default();
    thread.clock.set(SETTLES);
    assert!(settles(&thread, SETTLES, || true));
    assert_eq!(thread.sleeps.get(), 0);
    // A first run whose memory a process serves has it, and lets it go.
    let thread = Sleeper::default();
    assert!(settles(&thread, SETTLES, || thread.sleeps.get() >= 40));
    assert_eq!(thread.sleeps.get(), 40);
    // The process never serves it: five seconds, and the machine goes down.
    let thread = Sleeper::default();
    assert!(!settles(&thread, SETTLES, || false));
    assert_eq!(thread.clock.get(), 5000);
    // The time is that of all VMs together.
    assert!(!settles(&thread, SETTLES, || false));
    assert_eq!(thread.clock.get(), 5000);
}
