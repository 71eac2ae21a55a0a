// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the watcher writes down keeps the rules of order, and the checker sees in it what nothing else here does.

use freehold_trace::check::{Checker, RULES, Report, Rule};

use super::rig::Rig;
use super::storm::{Random, one};
use crate::fault::Fault;

/// Records that are judged.
const RECORDS: u64 = 1 << 17;

/// The first records of a trace of random calls, read after each.
fn judged(fault: Fault, calls: u32) -> Report {
    let rig = Rig::new(fault);
    let (mut r, mut seen) = (Random(12), 0);
    let mut checker = Checker::new();
    for _ in 0..calls {
        one(&rig, &mut r);
        for words in rig.eye.ring.words(seen).take((RECORDS - seen) as usize) {
            checker.words(words);
            seen += 1;
        }
    }
    checker.finish()
}

#[test]
fn random_calls_keep_every_rule() {
    let report = judged(Fault::None, 20_000);
    assert_eq!(report.violations, []);
    for rule in RULES {
        assert!(report.decided(rule) > 10, "{rule:?}: {}", report.decided(rule));
    }
}

#[test]
fn an_invalidation_that_was_lost_stands_in_the_trace() {
    let report = judged(Fault::LostInvalidation(50), 20_000);
    assert!(report.broken.contains_key(&Rule::Debt), "{report:?}");
}
