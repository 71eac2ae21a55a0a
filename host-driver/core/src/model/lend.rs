// SPDX-License-Identifier: MIT OR Apache-2.0
//! An ordinary VM's pages: lent as they are touched, taken back before their frames go.

use super::*;
use crate::convert::{empty, populate, punch, reserve, to_private, to_shared, Mode, Nobody, Stopped};
use crate::drain::Aim;
use crate::lend::{claim, recall_all, touch, NotLent};

fn borrowed(world: &Rc<World>, pages: usize) -> Model {
    let file = Model::new(world, pages, Page::Host);
    for page in 0..pages as u64 {
        file.store(page);
    }
    touch(&file, span(0, pages as u64)).unwrap();
    file.check();
    assert!((0..pages as u64).all(|page| file.state(page) == Page::Borrowed));
    file
}

#[test]
fn a_touch_lends_the_page_and_those_behind_it_that_are_there() {
    let world = world();
    let file = Model::new(&world, 6, Page::Host);
    for page in [1, 2, 4] {
        file.store(page);
    }
    touch(&file, span(0, 6)).unwrap();
    file.check();
    let states: Vec<_> = (0..6).map(|page| file.state(page)).collect();
    let (lent, host) = (Page::Borrowed, Page::Host);
    assert_eq!(states, [lent, lent, lent, host, host, host], "up to the first hole");
    assert_eq!(file.store(0), HostFault::Map, "the host maps it as before");
    // Another vCPU touches what is lent, and the rest.
    touch(&file, span(2, 4)).unwrap();
    touch(&file, span(3, 3)).unwrap();
    file.check();
    assert_eq!((file.state(4), file.state(5)), (lent, host));
}

/// The guest asked for the first page; those behind it are a kindness that ends where it can not go on.
#[test]
fn a_page_behind_the_touched_one_that_is_not_the_hosts_ends_the_loan_there() {
    let file = Model::new(&world(), 3, Page::Host);
    for page in 0..3 {
        file.store(page);
    }
    assert_eq!(to_private(&file, span(1, 1), Aim::Convert, Mode::Now, &Sleeper::default(), &mut Nobody), Ok(true));
    assert_eq!(touch(&file, span(0, 3)), Ok(()));
    assert_eq!([0, 1, 2].map(|page| file.state(page)), [Page::Borrowed, Page::Held, Page::Host]);
    file.check();
}

#[test]
fn what_is_refused_changes_nothing() {
    let world = world();
    let file = Model::new(&world, 4, Page::Host);
    for page in 0..4 {
        file.store(page);
    }
    world.refuse.borrow_mut().insert(BASE);
    let refused = Refused { status: hvc::NEED_PAGES, detail: 3 };
    assert_eq!(touch(&file, span(0, 4)), Err(NotLent::Refused(refused)));
    assert!((0..4).all(|page| file.state(page) == Page::Host));
    world.refuse.borrow_mut().clear();
    world.refuse.borrow_mut().insert(BASE + 2);
    touch(&file, span(0, 4)).unwrap();
    assert_eq!([0, 1, 2, 3].map(|page| file.state(page) == Page::Borrowed), [true, true, false, false]);
    world.burst.set(0);
    touch(&file, span(3, 1)).unwrap();
    assert_eq!(file.state(3), Page::Host, "an interrupt came first");
    file.no_memory.set(true);
    let empty = Model::new(&world, 1, Page::Host);
    empty.no_memory.set(true);
    assert_eq!(touch(&empty, span(0, 1)), Err(NotLent::Error(Error::NoMemory)));
    file.check();
}

#[test]
fn only_the_hosts_own_pages_are_lent() {
    let world = world();
    for (state, expected) in [
        (Page::Vacant, Err(NotLent::Error(Error::Fault))),
        (Page::Lost, Err(NotLent::Error(Error::Fault))),
        (Page::Draining { origin: Origin::Host, attempt: 9 }, Err(NotLent::Error(Error::Fault))),
    ] {
        let file = Model::new(&world, 1, state);
        assert_eq!(touch(&file, span(0, 1)), expected, "{state:?}");
        assert_eq!(file.state(0), state);
        assert_eq!(file.frame(0), None, "{state:?}: nobody would ever free it");
        assert!(world.loans.borrow().is_empty());
    }
}

#[test]
fn a_lent_page_never_becomes_private() {
    let world = world();
    let file = borrowed(&world, 2);
    let thread = Sleeper::default();
    let all = span(0, 2);
    let stopped = |error| Err(Stopped { error, page: 0 });
    assert_eq!(to_private(&file, all, Aim::Convert, Mode::Now, &thread, &mut Nobody), stopped(Error::Denied));
    assert_eq!(to_private(&file, all, Aim::Touch, Mode::Now, &thread, &mut Nobody), stopped(Error::Denied));
    assert_eq!(to_private(&file, all, Aim::Bind, Mode::Now, &thread, &mut Nobody), Ok(false));
    assert_eq!(populate(&file, all, &thread, |_| Ok(()), &mut Nobody).map_err(|s| s.error), Err(Error::Exists));
    assert_eq!(to_shared(&file, all), Ok(()));
    assert_eq!(reserve(&file, all, &thread), Ok(()));
    file.check();
    assert!((0..2).all(|page| file.state(page) == Page::Borrowed));
}

#[test]
fn a_hole_is_punched_only_where_the_loan_has_ended() {
    let world = world();
    let file = borrowed(&world, 5);
    // The world checks that no frame is freed while it is lent.
    punch(&file, span(1, 2)).unwrap();
    file.check();
    assert_eq!([0, 1, 2, 3].map(|page| file.state(page) == Page::Borrowed), [true, false, false, true]);
    assert_eq!([1, 2].map(|page| file.frame(page)), [None, None]);
    touch(&file, span(1, 1)).unwrap();
    file.check();
}

#[test]
fn every_loan_ends_in_runs_and_the_contents_stay() {
    let world = world();
    let file = borrowed(&world, 6);
    punch(&file, span(2, 1)).unwrap();
    let (frames, calls) = (file.frames.borrow().clone(), world.calls.get());
    assert_eq!(recall_all(&file, span(0, 6)), 0);
    file.check();
    assert_eq!(world.calls.get() - calls, 2, "one call for each run");
    assert_eq!(*file.frames.borrow(), frames, "no frame came or went");
    assert!(world.loans.borrow().is_empty());
    assert_eq!(recall_all(&file, span(0, 6)), 0);
    file.change(|_| file.shut(span(0, 6)));
    assert_eq!(empty(&file), 0);
}

#[test]
fn a_frame_whose_loan_does_not_end_is_never_freed() {
    let world = world();
    let file = borrowed(&world, 3);
    world.stuck.borrow_mut().insert(file.frame(1).unwrap());
    punch(&file, span(1, 1)).unwrap();
    assert_eq!((file.state(1), file.frame(1).is_some()), (Page::Lost, true));
    assert_eq!(file.store(1), HostFault::Refuse);
    assert_eq!(recall_all(&file, span(0, 3)), 1);
    file.change(|_| file.shut(span(0, 3)));
    assert_eq!(empty(&file), 1);
}

const ORDINARY: Owner = Owner { vm: 9, ordinary: true };

/// Its pages are lent: one that became private would be lost to it, whoever asks.
#[test]
fn nothing_of_an_ordinary_vms_file_becomes_private() {
    let world = world();
    let thread = Sleeper::default();
    for (initial, aim) in [(Page::Host, Aim::Convert), (Page::Host, Aim::Touch), (Page::Vacant, Aim::Populate)] {
        let file = Model::new(&world, 2, initial);
        let took = |file: &Model| to_private(file, span(0, 2), aim, Mode::Now, &thread, &mut Nobody);
        file.owner.set(ORDINARY);
        assert_eq!(took(&file), Err(Stopped { error: Error::Invalid, page: 0 }), "{aim:?}");
        assert!((0..2).all(|page| file.state(page) == initial));
        file.check();
        // Control: of any other file it does.
        file.owner.set(Owner { ordinary: false, ..ORDINARY });
        assert_eq!(took(&file), Ok(true), "{aim:?}");
    }
}

/// What makes nothing private is not refused.
#[test]
fn a_reservation_in_an_ordinary_vms_file_is_what_it_is_in_any_other() {
    let world = world();
    for (initial, after) in [(Page::Host, Page::Host), (Page::Vacant, Page::Held)] {
        let file = Model::new(&world, 2, initial);
        file.owner.set(ORDINARY);
        assert_eq!(reserve(&file, span(0, 2), &Sleeper::default()), Ok(()));
        assert!((0..2).all(|page| file.state(page) == after), "{initial:?}");
        file.check();
    }
}

/// The file becomes an ordinary VM's between two parts of a conversion that nobody has refused yet.
#[test]
fn a_conversion_that_meets_its_files_new_owner_is_undone() {
    let world = world();
    let parts = Model::CHUNK as usize * 2;
    let file = Model::new(&world, parts, Page::Host);
    let last = span(Model::CHUNK, Model::CHUNK);
    // Whoever binds waits for the lock, and has it between the first part and the second.
    file.binds.set(Some((3, ORDINARY)));
    let all = span(0, parts as u64);
    let stopped = to_private(&file, all, Aim::Convert, Mode::Now, &Sleeper::default(), &mut Nobody);
    assert_eq!(stopped, Err(Stopped { error: Error::Invalid, page: last.first() }));
    assert!(all.pages().all(|page| file.state(page) == Page::Host));
    file.check();
}

#[test]
fn a_refused_binding_leaves_the_file_to_whom_it_was() {
    let world = world();
    let file = Model::new(&world, 4, Page::Host);
    file.change(|book| book.set(0, Page::Held));
    let before = Owner { vm: 3, ordinary: false };
    let dead = |_| false;
    file.owner.set(before);
    let full = || Err(Error::NoSpace);
    let refused = [
        ("over the end", claim(&file, ORDINARY, span(2, 3), dead, || panic!("bound")), Error::Invalid),
        ("another living VM's", claim(&file, ORDINARY, span(2, 2), |vm| vm == 3, || panic!("bound")), Error::Invalid),
        ("a private page", claim(&file, ORDINARY, span(0, 4), dead, || panic!("bound")), Error::Invalid),
        ("no slot", claim(&file, ORDINARY, span(2, 2), dead, full), Error::NoSpace),
    ];
    for (why, seen, error) in refused {
        assert_eq!(seen, Err(error), "{why}");
    }
    assert_eq!(file.owner.get(), before, "the next VM finds it free");
    // Control: what can be bound is, and belongs to its VM before its pages can be touched.
    let bind = || {
        assert_eq!(file.owner.get(), ORDINARY);
        Ok(())
    };
    assert_eq!(claim(&file, ORDINARY, span(2, 2), dead, bind), Ok(()));
    assert_eq!(file.owner.get(), ORDINARY);
    assert_eq!(claim(&file, ORDINARY, span(1, 1), |_| true, || Ok(())), Ok(()), "it is its own already");
    // What was made private before is the host's again for the asking.
    file.change(|book| book.set(0, Page::Vacant));
    assert_eq!(to_shared(&file, span(0, 4)), Ok(()));
    assert_eq!(file.store(0), HostFault::Map);
}
