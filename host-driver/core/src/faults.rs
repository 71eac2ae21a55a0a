// SPDX-License-Identifier: MIT OR Apache-2.0
//! How long a fault of the host's waits for a page that drains.
//!
//! Guarantees that a fault waits for a bounded time, however many attempts follow each other: never past the latest one's
//! patience, nor past its own (I7, for the host). The kernel says that a fault comes again and not since when it comes, which
//! is kept here for each thread. Knows no clock: times are ticks.

/// Threads whose faults on one file wait for more than one attempt, at most.
pub const PLACES: usize = 64;
/// Seconds that a fault waits for one attempt.
const ONE: u64 = 1;
/// Seconds that it waits for attempts that follow each other.
const IN_ALL: u64 = 10;

/// A thread whose fault waits, and until when it may.
#[derive(Clone, Copy, Debug)]
struct Place {
    who: u64,
    until: u64,
}

/// The threads whose faults on one file wait.
///
/// # Invariants
/// No thread has two places.
#[derive(Debug)]
pub struct Faults {
    places: [Option<Place>; PLACES],
}

/// When a fault comes.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Ticks now. They do not go back.
    pub now: u64,
    /// Ticks when the latest attempt in the file began.
    pub since: u64,
    /// Ticks of a second.
    pub second: u64,
}

impl Default for Faults {
    fn default() -> Self {
        // INVARIANT: nobody has a place.
        Self { places: [None; PLACES] }
    }
}

impl Faults {
    /// Ticks that the fault of thread `who` may wait from here on; 0: it is refused. `again`: the kernel has it come once more,
    /// after a wait.
    ///
    /// Where every place is taken, or its own was lost to another after its time, it waits once, and not again.
    #[must_use]
    pub fn patience(&mut self, who: u64, again: bool, at: Moment) -> u64 {
        let attempt = at.since.saturating_add(at.second.saturating_mul(ONE)).saturating_sub(at.now);
        if attempt == 0 {
            return 0;
        }
        attempt.min(self.left(who, again, at))
    }

    /// What is left of the whole of its time.
    fn left(&mut self, who: u64, again: bool, at: Moment) -> u64 {
        let whole = at.second.saturating_mul(IN_ALL);
        let own = self.places.iter_mut().flatten().find(|place| place.who == who);
        if again {
            return own.map_or(0, |place| place.until.saturating_sub(at.now));
        }
        let until = at.now.saturating_add(whole);
        // INVARIANT: it takes a new place only where it has none.
        if let Some(place) = own {
            place.until = until;
        } else if let Some(free) = self.places.iter_mut().find(|place| place.is_none_or(|place| place.until < at.now)) {
            *free = Some(Place { who, until });
        }
        whole
    }

    /// The fault of thread `who` is over: its place is free.
    pub fn over(&mut self, who: u64) {
        for place in &mut self.places {
            if place.is_some_and(|place| place.who == who) {
                *place = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 250;

    /// A fault at `now`, a tick after the latest attempt began.
    fn at(now: u64) -> Moment {
        Moment { now, since: now - 1, second: SECOND }
    }

    /// Ticks that a fault waits in all, beside an attempt that begins at each tick.
    fn waits(faults: &mut Faults, who: u64, from: u64) -> u64 {
        let mut now = from;
        let mut again = false;
        while faults.patience(who, again, at(now)) > 0 {
            // It is woken, and finds the page on its way once more.
            (now, again) = (now + 1, true);
            assert!(now - from <= 11 * SECOND, "it waits for ever");
        }
        faults.over(who);
        now - from
    }

    #[test]
    fn one_attempt_is_waited_for_a_second_from_its_beginning() {
        let mut faults = Faults::default();
        let moment = |now| Moment { now, since: 1000, second: SECOND };
        assert_eq!(faults.patience(7, false, moment(1000)), SECOND);
        assert_eq!(faults.patience(7, true, moment(1100)), SECOND - 100);
        assert_eq!(faults.patience(7, true, moment(1000 + SECOND - 1)), 1);
        assert_eq!(faults.patience(7, true, moment(1000 + SECOND)), 0);
        assert_eq!(faults.patience(7, false, moment(9999)), 0, "an attempt of long ago");
    }

    #[test]
    fn attempts_that_follow_each_other_are_waited_for_ten_seconds_in_all_and_not_less() {
        let mut faults = Faults::default();
        assert_eq!(waits(&mut faults, 7, 1000), 10 * SECOND);
        assert_eq!(waits(&mut faults, 7, 9000), 10 * SECOND, "a new fault has its own ten");
        assert_eq!(faults.patience(7, false, at(20_000)), SECOND - 1);
        assert_eq!(faults.patience(7, false, at(21_000)), SECOND - 1, "one that a signal ended begins anew");
        assert_eq!(faults.patience(7, true, at(21_000 + 10 * SECOND - 3)), 3);
    }

    #[test]
    fn who_finds_no_place_waits_once() {
        let mut faults = Faults::default();
        let places = PLACES as u64;
        for who in 1..=places {
            assert!(faults.patience(who, false, at(1000)) > 0);
        }
        assert_eq!(faults.patience(places + 1, false, at(1000)), SECOND - 1);
        assert_eq!(faults.patience(places + 1, true, at(1001)), 0);
        assert!(faults.patience(places, true, at(1001)) > 0, "whoever has one keeps it");
        faults.over(3);
        assert_eq!(faults.patience(3, true, at(1001)), 0, "it has none any more");
        assert!(faults.patience(4, true, at(1001)) > 0, "and nobody else lost theirs");
        assert_eq!(waits(&mut faults, places + 1, 1002), 10 * SECOND, "a place that became free");
    }

    #[test]
    fn a_place_is_anothers_after_its_time_and_not_before() {
        let mut faults = Faults::default();
        for who in 1..=PLACES as u64 {
            assert!(faults.patience(who, false, at(1000)) > 0);
        }
        let end = 1000 + 10 * SECOND;
        assert!(faults.patience(99, false, at(end)) > 0);
        assert_eq!(faults.patience(99, true, at(end)), 0);
        assert!(faults.patience(99, false, at(end + 1)) > 0);
        assert!(faults.patience(99, true, at(end + 2)) > 0);
        let lost = (1..=PLACES as u64).filter(|&who| !faults.places.iter().flatten().any(|place| place.who == who));
        assert_eq!(lost.count(), 1);
    }

    #[test]
    fn times_at_the_clocks_end_overflow_nowhere() {
        let mut faults = Faults::default();
        let last = Moment { now: u64::MAX, since: u64::MAX, second: u64::MAX };
        assert_eq!(faults.patience(1, false, last), 0);
        assert_eq!(faults.patience(1, false, Moment { now: 0, ..last }), u64::MAX);
        assert_eq!(faults.patience(1, true, Moment { now: 0, ..last }), u64::MAX);
    }
}
