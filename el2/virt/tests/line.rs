// SPDX-License-Identifier: MIT OR Apache-2.0
//! The line that CPUs stand in for a lock, and the order of locks, under every interleaving.
//!
//! Each property has a control: the same source over atomics that order nothing, or locks in the wrong order.

mod words;

use core::ops::{Deref, DerefMut};

use freehold_mem::lock::line::Line;
use freehold_mem::lock::{Mutex, Permit, World};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use words::Num;

/// What a lock protects: the checker sees who touches it without a right to.
type Value = Arc<UnsafeCell<u64>>;

/// The shipped line around a value, as `arch` has it.
struct Lock<const WEAK: bool> {
    line: Line<Num<WEAK>>,
    value: Value,
    /// How often who comes looks before it stands in line.
    looks: u32,
}

struct Held<'a, const WEAK: bool> {
    lock: &'a Lock<WEAK>,
    value: Value,
}

impl<const WEAK: bool> Lock<WEAK> {
    fn new() -> Self {
        Self::patient(1)
    }

    fn patient(looks: u32) -> Self {
        Self { line: Line::new(Num::zero(), Num::zero()), value: Arc::new(UnsafeCell::new(0)), looks }
    }
}

impl<const WEAK: bool> Mutex for Lock<WEAK> {
    type Value = Value;
    type Guard<'a> = Held<'a, WEAK>;

    fn acquire(&self) -> Held<'_, WEAK> {
        self.line.join(self.looks, thread::yield_now);
        Held { lock: self, value: Arc::clone(&self.value) }
    }
}

impl<const WEAK: bool> Deref for Held<'_, WEAK> {
    type Target = Value;
    fn deref(&self) -> &Value {
        &self.value
    }
}

impl<const WEAK: bool> DerefMut for Held<'_, WEAK> {
    fn deref_mut(&mut self) -> &mut Value {
        &mut self.value
    }
}

impl<const WEAK: bool> Drop for Held<'_, WEAK> {
    fn drop(&mut self) {
        self.lock.line.leave();
    }
}

/// Writes to what a guard protects. The checker stops where another thread may do so at the same time.
fn touch(value: &Value) {
    value.with_mut(|_| ());
}

fn one_at_a_time<const WEAK: bool>(looks: u32) {
    loom::model(move || {
        let lock = Arc::new(Lock::<WEAK>::patient(looks));
        let other = {
            let lock = Arc::clone(&lock);
            thread::spawn(move || touch(&lock.acquire()))
        };
        for _ in 0..2 {
            touch(&lock.acquire());
        }
        other.join().unwrap();
    });
}

#[test]
fn one_is_served_at_a_time_and_sees_what_was_done_before() {
    (0..3).for_each(one_at_a_time::<false>);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn control_a_line_without_orderings_protects_nothing() {
    one_at_a_time::<true>(0);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn control_a_chance_without_orderings_protects_nothing() {
    one_at_a_time::<true>(1);
}

fn host_then_guest<const WEAK: bool>() {
    loom::model(|| {
        let world = Arc::new(World::new(Lock::<WEAK>::new(), [Lock::<WEAK>::new()]));
        let other = {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                let mut permit = Permit::for_this_entry();
                touch(world.guest(&mut permit, 0).unwrap().get());
            })
        };
        let mut permit = Permit::for_this_entry();
        let mut both = world.host(&mut permit).with_guest(&world, 0).unwrap();
        let (host, guest) = both.get();
        touch(host);
        touch(guest);
        touch(both.without_guest().get());
        other.join().unwrap();
    });
}

#[test]
fn guards_in_their_order_end_and_protect_both_values() {
    host_then_guest::<false>();
}

#[test]
#[should_panic(expected = "Causality violation")]
fn control_guards_over_weak_lines_protect_nothing() {
    host_then_guest::<true>();
}

/// What the types of [`World`] do not let anybody write.
#[test]
#[should_panic(expected = "exceeded maximum number of branches")]
fn control_locks_in_two_orders_stand_still() {
    let mut checker = loom::model::Builder::new();
    checker.max_branches = 200;
    checker.check(|| {
        let locks = Arc::new([Lock::<false>::new(), Lock::<false>::new()]);
        let other = {
            let locks = Arc::clone(&locks);
            thread::spawn(move || {
                let first = locks[1].acquire();
                drop((locks[0].acquire(), first));
            })
        };
        let first = locks[0].acquire();
        drop((locks[1].acquire(), first));
        other.join().unwrap();
    });
}
