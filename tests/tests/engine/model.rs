// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One thread: what the engine says is what a `BTreeMap` says.

use std::collections::BTreeMap;

use viommu_core::mapping::{Mapping, Mappings, WouldSplit};
use viommu_core::{Access, Gpa, Granule, IovaRange, Target};

/// Numbers from a seed.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    /// A number (xorshift64*).
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 16) % end
    }
}

/// How the mappings of a life lie.
#[derive(Clone, Copy, Debug)]
struct Shape {
    granule_lg2: u32,
    /// The highest granule number has so many bits.
    bits: u32,
    /// Addresses are multiples of this many granules, apart from a granule more or less.
    stride: u64,
    /// Mappings of up to so many granules.
    granules_max: u64,
    /// One step in so many removes a range of many mappings.
    removes_many: u64,
}

const SHAPES: [Shape; 8] = [
    // Neighbours: full leaves.
    Shape { granule_lg2: 12, bits: 12, stride: 1, granules_max: 1, removes_many: 2000 },
    // Half as many as there is room for.
    Shape { granule_lg2: 12, bits: 14, stride: 1, granules_max: 3, removes_many: 300 },
    // One in 16.
    Shape { granule_lg2: 12, bits: 18, stride: 16, granules_max: 1, removes_many: 500 },
    // Around the boundaries of digits.
    Shape { granule_lg2: 12, bits: 52, stride: 1 << 42, granules_max: 4, removes_many: 100 },
    Shape { granule_lg2: 16, bits: 48, stride: 1 << 36, granules_max: 1 << 30, removes_many: 50 },
    // Of any size, anywhere.
    Shape { granule_lg2: 12, bits: 52, stride: 1, granules_max: 1 << 40, removes_many: 50 },
    Shape { granule_lg2: 12, bits: 24, stride: 1, granules_max: 2000, removes_many: 400 },
    Shape { granule_lg2: 21, bits: 43, stride: 512, granules_max: 1024, removes_many: 1000 },
];

struct Life {
    shape: Shape,
    random: Random,
    engine: Mappings,
    list: BTreeMap<u64, Mapping>,
}

impl Life {
    fn new(shape: Shape, seed: u64) -> Life {
        let granule = Granule::of_mask(1 << shape.granule_lg2).expect("not empty");
        Life { shape, random: Random(seed), engine: Mappings::new(granule), list: BTreeMap::new() }
    }

    fn last_granule(&self) -> u64 {
        u64::MAX >> (64 - self.shape.bits)
    }

    fn granule_number(&mut self) -> u64 {
        let strides = self.last_granule() / self.shape.stride + 1;
        let near = (self.random.below(strides) * self.shape.stride)
            .wrapping_add(self.random.below(3))
            .wrapping_sub(1);
        near & self.last_granule()
    }

    /// A range on the granule, of a size that is anything up to the largest.
    fn range(&mut self) -> IovaRange {
        let first = self.granule_number();
        let sizes = self.shape.granules_max.ilog2() + 1;
        let more = self.random.next() % (1 << self.random.below(sizes.into()));
        let last = first.saturating_add(more).min(self.last_granule());
        let shift = self.shape.granule_lg2;
        IovaRange::new(first << shift, (last << shift) | ((1 << shift) - 1)).expect("first <= last")
    }

    fn last_from(&self, iova: u64) -> Option<Mapping> {
        self.list.range(..=iova).next_back().map(|(_, mapping)| *mapping)
    }

    fn step(&mut self) {
        let range = self.range();
        let overlapping = self.last_from(range.last()).is_some_and(|mapping| mapping.range.overlaps(&range));
        assert_eq!(self.engine.overlaps(&range), overlapping, "{range}");
        if !overlapping {
            self.map(range);
        } else if self.random.below(3) > 0 {
            // What is there, by its own range.
            let there = self.last_from(range.last()).map(|mapping| mapping.range);
            self.unmap(there.expect("it overlaps"));
        } else {
            self.unmap(range);
        }
        if self.random.below(self.shape.removes_many) == 0 {
            let (one, other) = (self.range(), self.range());
            let all = IovaRange::new(one.start().min(other.start()), one.last().max(other.last()));
            self.unmap(all.expect("start <= last"));
        }
        let probe = self.range();
        self.look(probe.start());
        self.look(probe.last());
        self.look(range.start().wrapping_sub(1));
        self.look(range.last().wrapping_add(1));
    }

    fn map(&mut self, range: IovaRange) {
        let gpa = (self.random.next() >> self.shape.granule_lg2) << self.shape.granule_lg2;
        let access = Access::from_bits_truncate(self.random.next() as u32);
        let target = Target { gpa: Gpa(gpa), access, mmio: self.random.below(2) == 0 };
        let bytes_max = self.engine.bytes_max() + Mappings::GROWTH_MAX;
        self.engine.insert(Mapping { range, target });
        assert!(self.engine.bytes_max() <= bytes_max, "{range}");
        self.list.insert(range.start(), Mapping { range, target });
    }

    fn unmap(&mut self, range: IovaRange) {
        let cut = [range.start(), range.last()].into_iter().any(|iova| {
            self.last_from(iova)
                .is_some_and(|mapping| mapping.range.overlaps(&range) && !range.covers(&mapping.range))
        });
        let within: Vec<u64> =
            self.list.range(range.start()..=range.last()).map(|(start, _)| *start).collect();
        let expected = if cut { Err(WouldSplit) } else { Ok(!within.is_empty()) };
        assert_eq!(self.engine.any_within(&range), expected, "{range}");
        if !cut {
            assert_eq!(self.engine.remove_within(&range), within.len(), "{range}");
            within.iter().for_each(|start| assert!(self.list.remove(start).is_some()));
        }
    }

    fn look(&self, iova: u64) {
        let expected = self.last_from(iova).filter(|mapping| mapping.range.contains(iova));
        assert_eq!(self.engine.find(iova), expected, "{iova:#x}");
        assert_eq!(self.engine.reader().find(iova), expected, "{iova:#x}");
    }

    fn compare(&self) {
        assert_eq!(self.engine.count(), self.list.len());
        assert!(self.engine.iter().eq(self.list.values().copied()));
        assert!(self.engine.bytes() <= self.engine.bytes_max(), "{:?}", self.shape);
        let copy = self.engine.clone();
        assert_eq!(copy, self.engine);
        assert!(copy.bytes() <= copy.bytes_max());
    }
}

fn steps() -> u64 {
    std::env::var("ENGINE_STEPS").ok().and_then(|steps| steps.parse().ok()).unwrap_or(20_000)
}

#[test]
fn the_engine_and_a_list_never_differ() {
    for (seed, shape) in (1..).zip(SHAPES) {
        let mut life = Life::new(shape, seed);
        let before_first = life.engine.reader().find(0);
        assert_eq!(before_first, None);
        for step in 0..steps() {
            life.step();
            if step % 997 == 0 {
                life.compare();
            }
            assert!(life.engine.bytes() <= life.engine.bytes_max(), "{shape:?} at step {step}");
        }
        life.compare();
        life.unmap(IovaRange::ALL);
        life.compare();
        assert_eq!(life.engine.bytes_max(), Mappings::EMPTY_BYTES_MAX, "{shape:?}");
    }
}
