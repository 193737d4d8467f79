// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The memory that a domain's mappings take, in our engine and in std's `BTreeMap`, as the heap's allocator counts it.
//! Started by `scripts/bench engine`, with the number of mappings.

mod case;

use std::alloc::System;
use std::process::ExitCode;

use cap::Cap;
use viommu_core::IovaRange;
use viommu_tests::peers::{Engine, Ordered, Random};

use case::Case;

/// Counts every byte that is asked of the heap.
#[global_allocator]
static HEAP: Cap<System> = Cap::new(System, usize::MAX);

/// Bytes for each mapping.
#[derive(Clone, Copy, Debug)]
struct Held {
    ours: f64,
    /// What our engine says of itself.
    ours_by_itself: f64,
    ordered: f64,
}

fn main() -> ExitCode {
    let Some(count) = std::env::args().nth(1).and_then(|count| count.parse().ok()) else {
        eprintln!("bench-memory: how many mappings? (scripts/bench engine knows)");
        return ExitCode::from(2);
    };
    println!("{HEAD}");
    let mut all = Vec::new();
    for case in case::all(count) {
        let ranges = case.layout.ranges(case.each, &mut Random::new(1));
        let in_order = held(&case, &ranges);
        let at_random = held(&case, &Random::new(2).shuffled(&ranges));
        println!("{}", line(&case, [in_order, at_random]));
        all.extend([in_order, at_random]);
    }
    println!("{LEGEND}");
    let by_itself = all.iter().map(|held| held.ours_by_itself / held.ours);
    let (least, most) = (by_itself.clone().fold(f64::MAX, f64::min), by_itself.fold(f64::MIN, f64::max));
    println!("Of what the allocator counts, the engine itself knows {least:.2} to {most:.2}.");
    ExitCode::SUCCESS
}

/// What a case takes when its mappings are made in the order of `ranges`.
fn held(case: &Case, ranges: &[IovaRange]) -> Held {
    let (ours, engines) = counted(|| case.domains::<Engine>(ranges));
    let ours_by_itself = engines.iter().map(|domain| domain.0.bytes() as f64).sum::<f64>();
    drop(engines);
    let (ordered, _) = counted(|| case.domains::<Ordered>(ranges));
    let mappings = case.mappings() as f64;
    Held { ours: ours / mappings, ours_by_itself: ours_by_itself / mappings, ordered: ordered / mappings }
}

/// The bytes that what `make` makes has on the heap.
fn counted<T>(make: impl FnOnce() -> T) -> (f64, T) {
    let before = HEAP.allocated();
    let made = make();
    (HEAP.allocated().saturating_sub(before) as f64, made)
}

fn line(case: &Case, [in_order, at_random]: [Held; 2]) -> String {
    let cells = [in_order, at_random].map(|Held { ours, ordered, .. }| {
        let over = case.bytes_max.is_some_and(|max| ours > max) || ours > RATIO_MAX * ordered;
        let mark = if over { '!' } else { ' ' };
        format!("{ours:>10.1}{ordered:>10.1}{:>7.2}{mark}", ours / ordered)
    });
    format!("  {:48}{}", case.name, cells.concat())
}

/// As much as BTreeMap's our engine may take, whatever the guest maps.
const RATIO_MAX: f64 = 1.5;

const HEAD: &str = "\
bytes for each mapping                                      made in order               made in random order
                                                        ours  BTreeMap  ratio        ours  BTreeMap  ratio";

const LEGEND: &str = "\
!: more than 16 bytes side by side, 48 with one page in 16, or 1.5 times BTreeMap's anywhere.";
