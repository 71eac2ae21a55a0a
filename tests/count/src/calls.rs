// SPDX-License-Identifier: MIT OR Apache-2.0
//! What each call of the host cost at EL2, by its function number.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Instructions of the calls with one number.
#[derive(Clone, Copy, Debug)]
struct Cost {
    times: u64,
    least: u64,
    most: u64,
    all: u64,
}

/// The calls since the last mark. A stay at EL2 lasts from its first instruction to its `ERET`.
#[derive(Debug, Default)]
pub struct Calls {
    /// The number of the call that EL2 serves, and the count when it was made.
    open: Option<(u64, u64)>,
    costs: BTreeMap<u64, Cost>,
}

impl Calls {
    /// Nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { open: None, costs: BTreeMap::new() }
    }

    /// The host calls; EL2 has executed `count` until now.
    pub fn begin(&mut self, number: u64, count: u64) {
        self.open = Some((number, count));
    }

    /// EL2 returns, the instruction that does it counted. A stay that no call began is not listed.
    pub fn end(&mut self, count: u64) {
        let Some((number, since)) = self.open.take() else { return };
        let cost = count.saturating_sub(since);
        let all = self.costs.entry(number).or_insert(Cost { times: 0, least: u64::MAX, most: 0, all: 0 });
        all.times += 1;
        all.least = all.least.min(cost);
        all.most = all.most.max(cost);
        all.all += cost;
    }

    /// One line per number, and begins anew.
    pub fn drain(&mut self) -> String {
        let mut text = String::new();
        for (number, cost) in std::mem::take(&mut self.costs) {
            let Cost { times, least, most, all } = cost;
            // Writing to a string does not fail.
            let _ = writeln!(text, "call {number:#x} {times} {least} {most} {all}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_costs_what_was_executed_until_the_return() {
        let mut calls = Calls::new();
        calls.begin(0xc600_0080, 100);
        calls.end(150);
        calls.begin(0xc600_0080, 200);
        calls.end(270);
        assert_eq!(calls.drain(), "call 0xc6000080 2 50 70 120\n");
        assert_eq!(calls.drain(), "");
    }

    #[test]
    fn a_stay_that_no_call_began_is_not_listed() {
        let mut calls = Calls::new();
        calls.end(10);
        calls.begin(1, 10);
        calls.end(20);
        // The guest's exit, later.
        calls.end(90);
        assert_eq!(calls.drain(), "call 0x1 1 10 10 10\n");
    }
}
