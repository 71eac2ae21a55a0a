// SPDX-License-Identifier: MIT OR Apache-2.0
//! The order of locks; what must not compile stands in the module's documentation.

use std::sync::MutexGuard;

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
