// SPDX-License-Identifier: MIT OR Apache-2.0
//! Long random sequences of calls, shrunk to the shortest that fails.

use freehold_fuzz::calls::{self, Fault, Mistake};
use freehold_fuzz::{Tally, tables};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestError, TestRunner};

/// Step of every stream.
type Step = [u8; 8];

/// Plays random sequences; of those that fail the shortest.
fn shortest(cases: u32, rng_seed: RngSeed, run: impl Fn(&[u8]) -> Tally) -> Option<(Vec<Step>, String)> {
    let config = Config { cases, failure_persistence: None, rng_seed, max_shrink_iters: 50_000, ..Config::default() };
    let outcome = TestRunner::new(config).run(&vec(any::<Step>(), 0..120), |steps| {
        let _ = run(&steps.concat());
        Ok(())
    });
    match outcome {
        Ok(()) => None,
        Err(TestError::Fail(why, steps)) => Some((steps, why.to_string())),
        Err(TestError::Abort(why)) => panic!("{why}"),
    }
}

#[test]
fn any_sequence_of_verbs_agrees_with_the_naive_map() {
    assert_eq!(shortest(500, RngSeed::Random, tables::run), None);
}

/// What `inputs` random streams of fixed seeds come to.
fn random(inputs: u64, run: impl Fn(&[u8]) -> Tally) -> Tally {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut tally = Tally::default();
    for _ in 0..inputs {
        let stream: Vec<u8> = (0..120 * 8)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (seed >> 56) as u8
            })
            .collect();
        tally += run(&stream);
    }
    tally
}

#[test]
fn about_half_of_a_random_stream_succeeds_and_neither_far_more_nor_far_less() {
    for (name, run, least, most) in [
        ("host", calls::run_host as fn(&[u8]) -> Tally, 45, 75),
        ("guest", calls::run_guest as fn(&[u8]) -> Tally, 60, 97),
    ] {
        let tally = random(60, run);
        let share = tally.done * 100 / tally.steps;
        println!("{name}: {tally:?}, {share} %");
        assert!(tally.steps == 60 * 120 && (least..=most).contains(&share), "{name}: {share} % of {tally:?}");
    }
}

#[test]
fn each_mistake_of_the_specification_shrinks_to_a_few_calls() {
    for (mistake, longest) in [
        (Mistake::ReclaimsAlive, 6),
        (Mistake::NeverRevokes, 10),
        (Mistake::ForgetsRequests, 8),
        (Mistake::ForgetsLoans, 8),
        (Mistake::GivesAwayLoans, 6),
    ] {
        let beside = |data: &[u8]| calls::run_host_beside(mistake, data);
        let (steps, why) = shortest(400, RngSeed::Fixed(1), beside).expect("a mistake");
        println!("{mistake:?}: {} steps: {why}", steps.len());
        assert!(steps.len() <= longest && why.contains("oracle: "), "{mistake:?}: {steps:?}: {why}");
    }
}

/// A guest enrols and reaches for what it has not opened.
#[test]
fn a_specification_that_lets_devices_be_seen_shrinks_to_two_acts() {
    let beside = |data: &[u8]| calls::run_guest_beside(Mistake::NeverBars, data);
    let (steps, why) = shortest(400, RngSeed::Fixed(1), beside).expect("a mistake");
    assert!(steps.len() == 2 && why.contains("oracle: "), "{steps:?}: {why}");
}

#[test]
fn any_sequence_of_host_calls_leaves_the_machine_sound() {
    assert_eq!(shortest(200, RngSeed::Random, calls::run_host), None);
}

#[test]
fn any_sequence_of_guest_acts_leaves_the_machine_sound() {
    assert_eq!(shortest(200, RngSeed::Random, calls::run_guest), None);
}

#[test]
fn a_lost_invalidation_shrinks_to_one_verb() {
    let (steps, why) =
        shortest(100, RngSeed::Fixed(1), tables::run_deaf).expect("the host's translations are not forgotten");
    assert!(steps.len() == 1 && why.contains("I3"), "{steps:?}: {why}");
}

#[test]
fn each_fault_of_the_machine_shrinks_to_a_few_calls() {
    for (fault, longest) in [(Fault::KeepsHostTlb, 1), (Fault::KeepsVmTlb, 8), (Fault::NoScrub, 10)] {
        let (steps, why) = shortest(400, RngSeed::Fixed(1), |data| calls::run_host_on(fault, data)).expect("a fault");
        assert!(steps.len() <= longest, "{fault:?}: {steps:?}: {why}");
    }
}
