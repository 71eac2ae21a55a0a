// SPDX-License-Identifier: MIT OR Apache-2.0
//! The order of locks; what must not compile stands in the module's documentation.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::sync::MutexGuard;
use std::vec::Vec;

use crate::lock::{Mutex, Permit, World};

struct Std<T>(std::sync::Mutex<T>);

impl<T> Mutex for Std<T> {
    type Value = T;
    type Guard<'a>
        = MutexGuard<'a, T>
    where
        T: 'a;

    fn acquire(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap()
    }
}

#[test]
fn guards_hold_their_locks_and_let_go_in_order() {
    let world = World::new(Std(std::sync::Mutex::new(1)), [10, 11].map(|value| Std(std::sync::Mutex::new(value))));
    let mut permit = Permit::for_this_entry();
    let mut host = world.host(&mut permit);
    *host.get() += 1;
    let mut both = host.with_guest(&world, 1).unwrap();
    let (host, guest) = both.get();
    (*host, *guest) = (*host + 1, *guest + 1);
    let mut host = both.without_guest();
    assert_eq!(*host.get(), 3);
    assert!(host.with_guest(&world, 2).is_none(), "no such slot");
    assert_eq!(*world.guest(&mut permit, 1).unwrap().get(), 12);
    assert!(world.guest(&mut permit, 2).is_none());
    assert_eq!(*world.host(&mut permit).get(), 3, "every lock was let go");
    assert_eq!(world.slots(), 2);
}

/// A lock that notes when it is taken and let go.
struct Noting<'l> {
    name: &'static str,
    log: &'l RefCell<Vec<(&'static str, bool)>>,
}

struct Held<'g, 'l>(&'g Noting<'l>, u8);

impl Drop for Held<'_, '_> {
    fn drop(&mut self) {
        self.0.log.borrow_mut().push((self.0.name, false));
    }
}

impl Deref for Held<'_, '_> {
    type Target = u8;
    fn deref(&self) -> &u8 {
        &self.1
    }
}

impl DerefMut for Held<'_, '_> {
    fn deref_mut(&mut self) -> &mut u8 {
        &mut self.1
    }
}

impl<'l> Mutex for Noting<'l> {
    type Value = u8;
    type Guard<'a>
        = Held<'a, 'l>
    where
        Self: 'a;

    fn acquire(&self) -> Held<'_, 'l> {
        self.log.borrow_mut().push((self.name, true));
        Held(self, 0)
    }
}

#[test]
fn the_guests_lock_is_taken_last_and_let_go_first() {
    let log = RefCell::default();
    let noting = |name| Noting { name, log: &log };
    let world = World::new(noting("host"), [noting("0"), noting("1")]);
    let mut permit = Permit::for_this_entry();
    drop(world.host(&mut permit).with_guest(&world, 1));
    assert_eq!(log.take(), [("host", true), ("1", true), ("1", false), ("host", false)]);
    drop(world.host(&mut permit).with_guest(&world, 0).map(|both| both.without_guest()));
    assert_eq!(log.take(), [("host", true), ("0", true), ("0", false), ("host", false)]);
    drop(world.guest(&mut permit, 1));
    assert_eq!(log.take(), [("1", true), ("1", false)]);
}
