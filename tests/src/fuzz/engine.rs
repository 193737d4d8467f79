// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The mappings of one domain beside a `BTreeMap`: they find, hold and remove the same.
//!
//! One thread: what a reader sees while another thread writes is a matter of `tests/engine`.

use std::collections::BTreeMap;

use viommu_core::mapping::{Mapping, Mappings, Reader, WouldSplit};
use viommu_core::{Access, Gpa, Granule, IovaRange, Target};

use super::input::Input;

/// Most mappings that one step makes.
const RUN_MAX: u64 = 96;

/// The life of one domain's mappings.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut life = Life::new(Granule::of_mask(input.pick(&[1 << 12, 1 << 16, 1 << 30])).expect("not empty"));
    while !input.is_empty() {
        life.step(&mut input);
    }
    life.compare_all();
}

struct Life {
    granule: Granule,
    engine: Mappings,
    reader: Reader,
    list: BTreeMap<u64, Mapping>,
    /// Where the last step was, in granules: the next may be near.
    last_place: u64,
}

impl Life {
    fn new(granule: Granule) -> Life {
        let engine = Mappings::new(granule);
        let reader = engine.reader();
        Life { granule, engine, reader, list: BTreeMap::new(), last_place: 0 }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let choice = input.u8();
        match choice % 8 {
            0..=2 => self.insert_run(input, choice),
            3 => self.remove_at(input),
            4 => {
                let range = self.bytes_range(input);
                self.remove(range);
            }
            5 => {
                let range = self.range(input);
                self.remove(range);
            }
            6 => self.look(input.u64()),
            _ => self.replace_by_a_copy(input),
        }
    }

    /// One mapping, or many of one size, as far as there is room.
    fn insert_run(&mut self, input: &mut Input<'_>, choice: u8) {
        let first = self.range(input);
        if choice < 128 {
            return self.insert(first, input.u8());
        }
        let count = u64::from(input.u8()) % RUN_MAX;
        let gap = granules(input).saturating_mul(self.granule.bytes());
        let mut start = Some(first.start());
        for _ in 0..count {
            let last = start.and_then(|start| start.checked_add(first.span()));
            let range = start.zip(last).and_then(|(start, last)| IovaRange::new(start, last));
            let Some(range) = range else { return };
            self.insert(range, input.u8());
            start = range.last().checked_add(1).and_then(|next| next.checked_add(gap));
        }
    }

    fn insert(&mut self, range: IovaRange, kind: u8) {
        let overlapping = self.last_from(range.last()).is_some_and(|mapping| mapping.range.overlaps(&range));
        assert_eq!(self.engine.overlaps(&range), overlapping, "{range}");
        // The highest place for the target that does not wrap, or the same as the range's, or its granule's number.
        let top = (u64::MAX - range.span()) & !(self.granule.bytes() - 1);
        let gpa = [top, range.start(), range.start() >> 9 & !(self.granule.bytes() - 1), 0]
            [usize::from(kind % 4)]
        .min(top);
        let access = Access::from_bits_truncate(u32::from(kind >> 2));
        let target = Target { gpa: Gpa(gpa), access, mmio: kind & 0x20 != 0 };
        if !overlapping {
            let bytes_max = self.engine.bytes_max();
            self.engine.insert(Mapping { range, target });
            assert!(self.engine.bytes_max() <= bytes_max + Mappings::GROWTH_MAX);
            self.list.insert(range.start(), Mapping { range, target });
            self.check();
        }
        self.look_around(range);
    }

    /// What is at some place, by its own range.
    fn remove_at(&mut self, input: &mut Input<'_>) {
        let range = self.range(input);
        if let Some(mapping) = self.last_from(range.last()) {
            self.remove(mapping.range);
        }
    }

    /// An UNMAP: nothing goes if something would be split.
    fn remove(&mut self, range: IovaRange) {
        let overlapping = |mapping: &&Mapping| mapping.range.overlaps(&range);
        let before = self.last_from(range.start());
        let hit: Vec<Mapping> = before
            .iter()
            .chain(self.list.range(range.start()..=range.last()).map(|(_, mapping)| mapping))
            .filter(overlapping)
            .copied()
            .collect();
        let splits = hit.iter().any(|mapping| !range.covers(&mapping.range));
        let expected = if splits { Err(WouldSplit) } else { Ok(!hit.is_empty()) };
        assert_eq!(self.engine.any_within(&range), expected, "{range}");
        if !splits {
            let count = self.list.len();
            self.list.retain(|_, mapping| !range.covers(&mapping.range));
            let bytes_max = self.engine.bytes_max();
            assert_eq!(self.engine.remove_within(&range), count - self.list.len(), "{range}");
            assert!(self.engine.bytes_max() <= bytes_max);
            self.check();
        }
        self.look_around(range);
    }

    fn replace_by_a_copy(&mut self, input: &mut Input<'_>) {
        let copy = self.engine.clone();
        assert_eq!(copy, self.engine);
        if input.bool() {
            self.engine = copy;
            assert_eq!(self.reader.find(0), None, "the mappings of this reader are gone");
            self.reader = self.engine.reader();
        }
        self.compare_all();
    }

    fn look_around(&mut self, range: IovaRange) {
        for iova in [range.start().wrapping_sub(1), range.start(), range.last(), range.last().wrapping_add(1)]
        {
            self.look(iova);
        }
    }

    fn look(&mut self, iova: u64) {
        let expected = self.last_from(iova).filter(|mapping| mapping.range.contains(iova));
        assert_eq!(self.engine.find(iova), expected, "{iova:#x}");
        assert_eq!(self.reader.find(iova), expected, "{iova:#x}");
    }

    fn check(&self) {
        assert_eq!(self.engine.count(), self.list.len());
        assert!(self.engine.bytes() <= self.engine.bytes_max());
        if self.list.is_empty() {
            assert!(self.engine.bytes() <= Mappings::EMPTY_BYTES_MAX);
        }
    }

    fn compare_all(&self) {
        assert!(self.engine.iter().eq(self.list.values().copied()));
        self.check();
    }

    fn last_from(&self, iova: u64) -> Option<Mapping> {
        self.list.range(..=iova).next_back().map(|(_, mapping)| *mapping)
    }

    /// A range on the granule: near the last one, or anywhere, of a few granules or of any size.
    fn range(&mut self, input: &mut Input<'_>) -> IovaRange {
        let mask = self.granule.bytes() - 1;
        let last_granule = u64::MAX / self.granule.bytes();
        let choice = input.u8();
        let place = match choice % 4 {
            0 => self.last_place.wrapping_add_signed(i64::from(input.u8().cast_signed())),
            1 => u64::from(input.u16()),
            2 => u64::from(input.u16()) << (choice >> 2),
            _ => last_granule.wrapping_sub(u64::from(input.u16())),
        } & last_granule;
        self.last_place = place;
        let start = place * self.granule.bytes();
        let span = granules(input).saturating_mul(self.granule.bytes()).saturating_sub(1) | mask;
        IovaRange::new(start, start.saturating_add(span)).expect("start <= last")
    }

    /// Any range at all.
    fn bytes_range(&mut self, input: &mut Input<'_>) -> IovaRange {
        let within = self.range(input);
        let (low, high) = (u64::from(input.u16()), u64::from(input.u16()));
        let start = within.start().saturating_sub(low);
        IovaRange::new(start, within.last().saturating_add(high)).expect("start <= last")
    }
}

/// A number of granules: few, or a power of two, or one less.
fn granules(input: &mut Input<'_>) -> u64 {
    let choice = input.u8();
    match choice % 4 {
        0 => 1,
        1 => u64::from(choice >> 2),
        2 => 1 << (choice >> 2),
        _ => (1 << (choice >> 2)) - 1,
    }
}
