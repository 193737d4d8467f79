// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is mapped, and unmapped again, before memory is counted.

use viommu_core::IovaRange;
use viommu_tests::peers::{Layout, Random, Store, mapping};

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: &'static str,
    pub layout: Layout,
    /// How many domains there are.
    domains: usize,
    /// How many mappings are made in each.
    pub each: usize,
    then: Then,
    /// The bound in bytes for a mapping of our engine, beside the one of all cases.
    pub bytes_max: Option<f64>,
}

/// What follows when all mappings are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Nothing,
    /// All but every so manieth, in order of IOVA, are removed.
    Thin(usize),
    /// Each is removed and made again, twice.
    Churn,
}

/// A domain's mappings: in a box, so that what is not behind a pointer counts as well.
#[derive(Debug)]
pub struct Domain<S>(pub Box<S>);

/// All cases, with `count` mappings in the large ones.
pub fn all(count: usize) -> Vec<Case> {
    let one = |name, layout, then| Case { name, layout, domains: 1, each: count, then, bytes_max: None };
    let filled = |name, layout| one(name, layout, Then::Nothing);
    let small = |name, layout, each| Case { domains: 100, each, ..filled(name, layout) };
    vec![
        Case { bytes_max: Some(16.0), ..filled("pages side by side", Layout::Dense) },
        Case { bytes_max: Some(48.0), ..filled("one page in 16", Layout::OneIn(16)) },
        filled("one page in 64", Layout::OneIn(64)),
        filled("pages anywhere in 48 bits", Layout::Scattered),
        filled("forks: two values in each 6-bit digit", Layout::Forked),
        filled("odd lengths over 2 MiB, at forks", Layout::ForkedLong),
        filled("over 2 MiB across borders, ragged", Layout::Straddling),
        filled("4 KiB, 64 KiB, 2 MiB, 1 GiB mixed", Layout::FourSizes),
        filled("any size to 16 MiB", Layout::AnySize),
        one("side by side, then each unmapped and mapped", Layout::Dense, Then::Churn),
        one("one in 16, then each unmapped and mapped", Layout::OneIn(16), Then::Churn),
        one("forks, then each unmapped and mapped", Layout::Forked, Then::Churn),
        one("odd lengths at forks, each unmapped and mapped", Layout::ForkedLong, Then::Churn),
        one("side by side, of which 1 in 10 stays", Layout::Dense, Then::Thin(10)),
        one("side by side, of which 1 in 64 stays", Layout::Dense, Then::Thin(64)),
        one("forks, of which 1 in 10 stays", Layout::Forked, Then::Thin(10)),
        one("odd lengths at forks, of which 1 in 10 stays", Layout::ForkedLong, Then::Thin(10)),
        small("10 pages in a domain, side by side", Layout::Dense, 10),
        small("10 pages in a domain, anywhere in 48 bits", Layout::Scattered, 10),
        small("10 mappings of 2 MiB and more in a domain", Layout::ForkedLong, 10),
        small("1 page in a domain", Layout::Dense, 1),
        small("1 mapping of 2 MiB and more in a domain", Layout::ForkedLong, 1),
    ]
}

impl Case {
    /// How many mappings there are in the end, in all domains.
    pub fn mappings(&self) -> usize {
        let each = match self.then {
            Then::Thin(step) => self.each.div_ceil(step),
            Then::Nothing | Then::Churn => self.each,
        };
        self.domains * each
    }

    /// The domains of this case, made in the order of `ranges`.
    pub fn domains<S: Store + Default>(&self, ranges: &[IovaRange]) -> Vec<Domain<S>> {
        let domain = || {
            let mut store = Box::new(S::default());
            for range in ranges {
                store.map(mapping(*range));
            }
            self.go_on(&mut *store, ranges);
            Domain(store)
        };
        (0..self.domains).map(|_| domain()).collect()
    }

    fn go_on(&self, store: &mut impl Store, ranges: &[IovaRange]) {
        match self.then {
            Then::Nothing => {}
            Then::Thin(step) => {
                let mut in_order = ranges.to_vec();
                in_order.sort_by_key(IovaRange::start);
                let stays: Vec<u64> = in_order.iter().step_by(step).map(IovaRange::start).collect();
                for range in ranges.iter().filter(|range| stays.binary_search(&range.start()).is_err()) {
                    store.unmap(range);
                }
            }
            Then::Churn => {
                for range in Random::new(3).shuffled(ranges).iter().chain(ranges) {
                    store.unmap(range);
                    store.map(mapping(*range));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use viommu_tests::peers::{Ordered, Shared};

    use super::*;

    #[test]
    fn every_case_ends_with_as_many_mappings_as_it_says() {
        for case in all(1000) {
            let ranges = case.layout.ranges(case.each, &mut Random::new(1));
            let mut mappings = 0;
            for Domain(store) in case.domains::<Ordered>(&ranges) {
                store.replay(|_| mappings += 1);
            }
            assert_eq!(mappings, case.mappings(), "{}", case.name);
        }
    }
}
