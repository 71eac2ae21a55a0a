// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which of two CPUs goes on where a call may be cut: at its locks, before its operations on lock-free words, and around its
//! guest.
//!
//! Two threads stand for two CPUs, and only one of them moves at a time: a plan says at which points the other gets its
//! turn. So an interleaving is a list of numbers, and the same list gives the same run again. A thread without a plan
//! is a machine of one CPU, where nothing is ever cut.

use std::cell::RefCell;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

thread_local! {
    /// Which CPU this thread is, and whose turns it obeys.
    static CPU: RefCell<Option<(usize, Arc<Turns>)>> = const { RefCell::new(None) };
}

/// Which CPU begins, and at which points, counted over both, the other one goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) first: usize,
    pub(crate) switches: Vec<usize>,
}

#[derive(Debug, Default)]
struct Now {
    turn: usize,
    points: usize,
    done: [bool; 2],
    /// Looks at a lock in vain, one after the other, since anybody got one or passed a point.
    vain: usize,
}

/// The turns of one run.
#[derive(Debug)]
pub(crate) struct Turns {
    plan: Plan,
    now: Mutex<Now>,
    bells: [Condvar; 2],
}

impl Turns {
    pub(crate) fn new(plan: Plan) -> Arc<Self> {
        let now = Now { turn: plan.first, ..Now::default() };
        Arc::new(Self { plan, now: Mutex::new(now), bells: [const { Condvar::new() }; 2] })
    }

    /// Does `what` as one of the CPUs, from its first turn on.
    pub(crate) fn join<R>(self: &Arc<Self>, cpu: usize, what: impl FnOnce() -> R) -> R {
        drop(self.until(cpu, self.now()));
        CPU.set(Some((cpu, Arc::clone(self))));
        let result = what();
        CPU.set(None);
        let mut now = self.now();
        now.done[cpu] = true;
        now.turn = 1 - cpu;
        self.bells[1 - cpu].notify_one();
        result
    }

    /// Points that were passed in the whole run.
    pub(crate) fn points(&self) -> usize {
        self.now().points
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn until<'n>(&self, cpu: usize, mut now: MutexGuard<'n, Now>) -> MutexGuard<'n, Now> {
        while now.turn != cpu {
            now = self.bells[cpu].wait(now).unwrap_or_else(PoisonError::into_inner);
        }
        now
    }

    fn hand_over<'n>(&self, cpu: usize, mut now: MutexGuard<'n, Now>) -> MutexGuard<'n, Now> {
        now.turn = 1 - cpu;
        self.bells[1 - cpu].notify_one();
        self.until(cpu, now)
    }

    fn pass(&self, cpu: usize) {
        let mut now = self.now();
        now.points += 1;
        now.vain = 0;
        if self.plan.switches.contains(&now.points) && !now.done[1 - cpu] {
            drop(self.hand_over(cpu, now));
        }
    }

    fn wait(&self, cpu: usize) {
        let mut now = self.now();
        assert!(!now.done[1 - cpu], "a lock was never let go");
        now.vain += 1;
        assert!(now.vain < 4, "both CPUs wait for each other's lock");
        drop(self.hand_over(cpu, now));
    }

    fn got(&self) {
        self.now().vain = 0;
    }
}

fn here() -> Option<(usize, Arc<Turns>)> {
    CPU.with_borrow(Clone::clone)
}

/// A place where another CPU may go on first.
pub(crate) fn point() {
    if let Some((cpu, turns)) = here() {
        turns.pass(cpu);
    }
}

/// The CPU waits for a lock. `false` if nobody schedules, so that waiting is the lock's own.
pub(crate) fn wait() -> bool {
    let here = here();
    if let Some((cpu, turns)) = &here {
        turns.wait(*cpu);
    }
    here.is_some()
}

/// The CPU got the lock.
pub(crate) fn got() {
    if let Some((_, turns)) = here() {
        turns.got();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What two CPUs do that pass three points each, in the order in which they do it.
    fn order(plan: Plan) -> Vec<(usize, usize)> {
        let turns = Turns::new(plan);
        let seen = Mutex::new(Vec::new());
        let work = |cpu| {
            turns.join(cpu, || {
                for step in 0..3 {
                    seen.lock().unwrap().push((cpu, step));
                    point();
                }
            });
        };
        std::thread::scope(|scope| {
            scope.spawn(|| work(1));
            work(0);
        });
        seen.into_inner().unwrap()
    }

    #[test]
    fn a_plan_is_what_happens() {
        let plain = order(Plan { first: 1, switches: Vec::new() });
        assert_eq!(plain, [(1, 0), (1, 1), (1, 2), (0, 0), (0, 1), (0, 2)]);
        let cut = order(Plan { first: 0, switches: vec![1, 2, 4] });
        assert_eq!(cut, [(0, 0), (1, 0), (0, 1), (0, 2), (1, 1), (1, 2)]);
    }
}
