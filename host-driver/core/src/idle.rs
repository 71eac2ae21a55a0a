// SPDX-License-Identifier: MIT OR Apache-2.0
//! A vCPU that waits for an interrupt: its thread sleeps until its bell rings, a time comes, or a signal.
//!
//! Guarantees that no wake-up is lost: the bell is muted before `VCPU_RUN` and never after it, whoever gets a mask of
//! vCPUs from `el2` rings theirs, and a sleeper is on the bell's list before it looks at it. Knows no clock: times are
//! the counter's ticks.

/// Nanoseconds of a second.
const SECOND: u64 = 1_000_000_000;
/// What a time that is too far away is taken for: some years.
const FOREVER: u64 = i64::MAX as u64;

/// Nanoseconds from `now` until the counter shows `deadline`, rounded up: who sleeps that long has not come too early.
#[must_use]
pub fn nanoseconds(deadline: u64, now: u64, frequency: u64) -> u64 {
    let ticks = deadline.saturating_sub(now);
    let (Some(whole), Some(rest)) = (ticks.checked_div(frequency), ticks.checked_rem(frequency)) else { return 0 };
    let part = rest.saturating_mul(SECOND).div_ceil(frequency);
    whole.saturating_mul(SECOND).saturating_add(part).min(FOREVER)
}

/// Why a sleeper is awake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slept {
    /// Its bell rang, or had rung.
    Rung,
    /// The time came.
    Elapsed,
    /// A signal.
    Interrupted,
}

/// A bell, and the list of those who sleep until it rings. One thread sleeps on it at a time.
pub trait Bell {
    /// Puts the calling thread on the list: from here on a ring ends its next [`Bell::sleep`] at once.
    fn enlist(&self);
    /// Whether it rang since it was muted.
    fn rang(&self) -> bool;
    /// Whether the thread has something else to do: a signal.
    fn interrupted(&self) -> bool;
    /// Sleeps until a ring, a signal, or so many nanoseconds have passed; `true` if they have. Comes back at once if
    /// either was there since [`Bell::enlist`]. May come back for nothing.
    fn sleep(&self, nanoseconds: Option<u64>) -> bool;
    /// Takes the thread off the list.
    fn leave(&self);
}

/// Sleeps until the bell rings, `nanoseconds` pass (if there are any), or a signal comes.
pub fn wait(bell: &impl Bell, nanoseconds: impl Fn() -> Option<u64>) -> Slept {
    loop {
        bell.enlist();
        // Only now: what rings from here on ends the sleep.
        let slept = if bell.rang() {
            Some(Slept::Rung)
        } else if bell.interrupted() {
            Some(Slept::Interrupted)
        } else if bell.sleep(nanoseconds()) {
            Some(Slept::Elapsed)
        } else {
            None
        };
        bell.leave();
        if let Some(slept) = slept {
            return slept;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn a_sleeper_does_not_come_too_early() {
        const MHZ: u64 = 62_500_000;
        assert_eq!(nanoseconds(100, 100, MHZ), 0);
        assert_eq!(nanoseconds(99, 100, MHZ), 0, "it has passed");
        assert_eq!(nanoseconds(101, 100, MHZ), 16);
        assert_eq!(nanoseconds(1, 0, 3), 333_333_334);
        assert_eq!(nanoseconds(3 * MHZ + 1, 0, MHZ), 3 * SECOND + 16);
        assert_eq!(nanoseconds(u64::MAX, 0, 1), FOREVER);
        assert_eq!(nanoseconds(u64::MAX, 0, u64::from(u32::MAX)), (u64::MAX / 0xffff_ffff) * SECOND);
        assert_eq!(nanoseconds(7, 0, 0), 0, "a machine that does not say its frequency");
    }

    /// Plays answers: what `rang`, `interrupted` and `sleep` say in each round.
    struct Script {
        rounds: RefCell<Vec<(bool, bool, bool)>>,
        log: RefCell<String>,
    }

    impl Script {
        fn run(rounds: &[(bool, bool, bool)]) -> (Slept, String) {
            let script =
                Self { rounds: RefCell::new(rounds.iter().rev().copied().collect()), log: RefCell::new(String::new()) };
            let slept = wait(&script, || Some(5));
            (slept, script.log.take())
        }

        fn now(&self) -> (bool, bool, bool) {
            *self.rounds.borrow().last().expect("a round too many")
        }

        fn note(&self, what: char) {
            self.log.borrow_mut().push(what);
        }
    }

    impl Bell for Script {
        fn enlist(&self) {
            self.note('e');
        }

        fn rang(&self) -> bool {
            self.note('r');
            self.now().0
        }

        fn interrupted(&self) -> bool {
            self.now().1
        }

        fn sleep(&self, nanoseconds: Option<u64>) -> bool {
            assert_eq!(nanoseconds, Some(5));
            self.note('s');
            self.now().2
        }

        fn leave(&self) {
            self.note('l');
            let done = { self.rounds.borrow_mut().pop() };
            assert!(done.is_some());
        }
    }

    #[test]
    fn the_list_is_joined_before_the_bell_is_looked_at_and_left_after() {
        assert_eq!(Script::run(&[(true, true, true)]), (Slept::Rung, "erl".into()));
        assert_eq!(Script::run(&[(false, true, true)]), (Slept::Interrupted, "erl".into()));
        assert_eq!(Script::run(&[(false, false, true)]), (Slept::Elapsed, "ersl".into()));
    }

    #[test]
    fn who_wakes_for_nothing_sleeps_on() {
        let nothing = (false, false, false);
        let (slept, log) = Script::run(&[nothing, nothing, (true, false, false)]);
        assert_eq!((slept, log.as_str()), (Slept::Rung, "erslerslerl"));
    }
}
