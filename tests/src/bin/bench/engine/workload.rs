// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is done in which order: every sequence of ranges and addresses, made before anything is timed.

use viommu_core::IovaRange;
use viommu_tests::peers::{Layout, Random};

/// One operation on the mappings of a domain; the numbers are those of `tests/bench/gtree.c`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Make all mappings, each with the check for overlaps.
    Map = 0,
    /// The same in order of IOVA.
    MapInOrder = 1,
    /// Remove all of them, one by one.
    Unmap = 2,
    /// Remove a mapping and make it again.
    Pair = 3,
    /// Translate in the thread that maps.
    Lookup = 4,
    /// Translate through what is shared with another thread.
    Shared = 5,
    /// The same, while another thread removes and makes other mappings without a pause.
    Busy = 6,
    /// Hand over every mapping in order.
    Replay = 7,
    /// Let all of it go.
    Destroy = 8,
}

/// A domain's mappings, and what is done with them.
#[derive(Debug)]
pub struct Workload {
    pub name: String,
    pub ops: &'static [Op],
    /// Every mapping once, in order of IOVA.
    pub in_order: Vec<IovaRange>,
    /// Every mapping once, in another order.
    pub map: Vec<IovaRange>,
    /// Every mapping once, in yet another order.
    pub unmap: Vec<IovaRange>,
    /// Some mappings, any of them several times.
    pub pair: Vec<IovaRange>,
    /// Addresses within mappings, of [`ACCESS`] bytes.
    pub lookup: Vec<u64>,
    /// Every other mapping: what is changed while others are looked up.
    pub busy_pair: Vec<IovaRange>,
    /// Addresses within the mappings between those.
    pub busy_lookup: Vec<u64>,
}

/// The size of every access, in bytes.
pub const ACCESS: u64 = 64;

const ALL: &[Op] =
    &[Op::Map, Op::Lookup, Op::Shared, Op::Busy, Op::Pair, Op::Unmap, Op::MapInOrder, Op::Destroy];
const SIZES: &[Op] = &[Op::Map, Op::Lookup, Op::Pair, Op::Destroy];
const FILL: &[Op] = &[Op::Map, Op::Destroy];
const ATTACH: &[Op] = &[Op::Map, Op::Replay, Op::Destroy];

/// All workloads for domains of `count` mappings; the first one is dense.
pub fn all(count: usize) -> Vec<Workload> {
    let tenth = count / 10;
    let workload = |name: &str, layout, count, ops| Workload::new(name.to_owned(), layout, count, ops);
    vec![
        workload("pages side by side", Layout::Dense, count, ALL),
        workload("one page in 16", Layout::OneIn(16), count, ALL),
        workload("4 KiB, 64 KiB, 2 MiB, 1 GiB mixed", Layout::FourSizes, count, SIZES),
        workload("any size to 16 MiB", Layout::AnySize, count, SIZES),
        workload("pages side by side, in 64 rounds", Layout::Dense, count, FILL).in_rounds(),
        workload(&format!("{tenth} pages side by side"), Layout::Dense, tenth, ATTACH),
        workload(&format!("{tenth} pages, one in 16"), Layout::OneIn(16), tenth, ATTACH),
    ]
}

impl Workload {
    fn new(name: String, layout: Layout, count: usize, ops: &'static [Op]) -> Workload {
        let mut random = Random::new(count as u64);
        let in_order = layout.ranges(count, &mut random);
        // Half as many as there are mappings: enough to be without a pattern.
        let mut some = |ranges: &[IovaRange]| -> Vec<IovaRange> {
            (0..count / 2).map(|_| random.one_of(ranges)).collect()
        };
        let every_other = |from| in_order.iter().skip(from).step_by(2).copied().collect::<Vec<_>>();
        let (pair, looked_up) = (some(&in_order), some(&in_order));
        let (busy_pair, busy_looked_up) = (some(&every_other(1)), some(&every_other(0)));
        let mut within = |ranges: Vec<IovaRange>| ranges.iter().map(|range| at(range, &mut random)).collect();
        Workload {
            lookup: within(looked_up),
            busy_lookup: within(busy_looked_up),
            map: random.shuffled(&in_order),
            unmap: random.shuffled(&in_order),
            in_order,
            pair,
            busy_pair,
            name,
            ops,
        }
    }

    /// Makes a mapping of every 64 in order, then the next of every 64, and so on: all of the engine's nodes grow in turn.
    fn in_rounds(self) -> Workload {
        let round = |first| self.in_order.iter().skip(first).step_by(64).copied();
        Workload { map: (0..64).flat_map(round).collect(), ..self }
    }
}

/// An address for an access within `range`.
fn at(range: &IovaRange, random: &mut Random) -> u64 {
    range.start() + random.below(range.span() / ACCESS + 1) * ACCESS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_beside_lookups_never_changes_what_is_looked_up() {
        for workload in all(1000) {
            for range in &workload.busy_pair {
                assert!(!workload.busy_lookup.iter().any(|iova| range.contains(*iova)));
            }
        }
    }

    #[test]
    fn all_orders_of_a_workload_name_the_same_mappings() {
        let sorted = |ranges: &[IovaRange]| {
            let mut starts: Vec<u64> = ranges.iter().map(IovaRange::start).collect();
            starts.sort();
            starts
        };
        for workload in all(1000) {
            assert_eq!(sorted(&workload.map), sorted(&workload.in_order));
            assert_eq!(sorted(&workload.map), sorted(&workload.unmap));
            assert_ne!(workload.map, workload.unmap);
            assert!(workload.pair.iter().all(|range| workload.map.contains(range)));
            let holds = |iova: &u64| {
                workload.map.iter().any(|range| range.contains(*iova) && range.contains(iova + ACCESS - 1))
            };
            assert!(workload.lookup.iter().chain(&workload.busy_lookup).all(holds));
        }
    }
}
