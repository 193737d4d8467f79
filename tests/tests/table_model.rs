// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device in table mode against the naive one, over made-up lives.
//!
//! `PROPTEST_CASES` sets how many lives; a failing one is shrunk and printed. The rules one by one are in `tables`.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use viommu_tests::table_model::{Bench, Plan, plan};

/// Steps of one life.
const OPS_MAX: usize = 80;
/// Lives, unless `PROPTEST_CASES` says otherwise.
const CASES: u32 = 1024;

fn config() -> ProptestConfig {
    let cases =
        if std::env::var_os("PROPTEST_CASES").is_some() { ProptestConfig::default().cases } else { CASES };
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

fn live(mut bench: Bench, plan: &Plan) -> usize {
    plan.ops.iter().for_each(|op| bench.step(op));
    let asked = bench.asked();
    bench.end();
    asked
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_device_and_the_naive_one_never_differ(plan in plan::plans(OPS_MAX)) {
        live(Bench::new(&plan), &plan);
    }
}

#[test]
fn any_one_call_of_the_host_can_fail() {
    let mut runner = TestRunner::default();
    let mut failed = 0;
    for _ in 0..config().cases.div_ceil(32) {
        let plan = plan::plans(OPS_MAX).new_tree(&mut runner).expect("a plan").current();
        let mut nth = 0;
        // The life goes another way after each failure, and may ask more often than without one.
        while live(Bench::failing(&plan, nth, [5, 12, 14][nth % 3]), &plan) > nth {
            nth += 1;
        }
        failed += nth;
    }
    assert!(failed > 0, "no host was asked anything");
}

#[test]
fn the_made_up_lives_meet_every_status_a_request_can_have() {
    let mut runner = TestRunner::deterministic();
    let mut met = BTreeSet::new();
    for _ in 0..600 {
        let plan = plan::plans(OPS_MAX).new_tree(&mut runner).expect("a plan").current();
        let mut bench = Bench::new(&plan);
        plan.ops.iter().for_each(|op| bench.step(op));
        met.extend(bench.outcomes().iter().copied());
    }
    let statuses: [(u8, &[u8]); 6] = [
        (1, &[0, 2, 3, 4, 5, 6, 8]),
        (2, &[0, 3, 4, 6, 8]),
        (5, &[4]),
        (6, &[0, 2, 3, 4, 5, 6, 7, 8]),
        (7, &[0, 3, 4, 5, 6, 8]),
        (8, &[0, 3, 4, 6, 8]),
    ];
    let all = statuses.iter().flat_map(|(kind, statuses)| statuses.iter().map(|status| (*kind, *status)));
    assert_eq!(met, all.collect());
}
