// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where the mappings of a domain lie: what drivers do, and what a hostile guest can choose against a store.

use std::collections::BTreeSet;

use viommu_core::IovaRange;

use super::Random;

/// The smallest mapping, in bytes.
pub const PAGE: u64 = 4096;

/// A way to lay mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Pages side by side.
    Dense,
    /// One page in so many.
    OneIn(u64),
    /// Pages anywhere in 48 bits.
    Scattered,
    /// Pages whose numbers, written with 6 bits to the digit, have 0 or 63 in their six lowest digits: against a radix
    /// tree of 64 ways, every node below the top ones has two entries.
    Forked,
    /// An odd number of pages over 2 MiB, at forked addresses.
    ForkedLong,
    /// Over 2 MiB across the border of high nodes of a radix tree, with ragged edges on both sides.
    Straddling,
    /// 4 KiB, 64 KiB, 2 MiB and 1 GiB, each at a multiple of its size.
    FourSizes,
    /// Any number of pages to 4096, small ones more often, some side by side.
    AnySize,
}

impl Layout {
    /// `count` mappings in order of IOVA.
    pub fn ranges(self, count: usize, random: &mut Random) -> Vec<IovaRange> {
        let each = 0..count as u64;
        match self {
            Layout::Dense => each.map(|index| pages(index, 1)).collect(),
            Layout::OneIn(step) => each.map(|index| pages(index * step, 1)).collect(),
            Layout::Scattered => scattered(count, random),
            Layout::Forked => each.map(|index| pages(forked(index, 6, 0), 1)).collect(),
            Layout::ForkedLong => {
                each.map(|index| pages(forked(index, 4, 10) + 1, 513 + 2 * random.below(255))).collect()
            }
            Layout::Straddling => each.map(|index| straddling(index, random)).collect(),
            Layout::FourSizes => in_turn(count, || {
                let size = random.one_of(&[1, 16, 512, 1 << 18]);
                (size, size)
            }),
            Layout::AnySize => any_size(count, random),
        }
    }
}

fn pages(first: u64, count: u64) -> IovaRange {
    IovaRange::from_length(first * PAGE, count * PAGE).expect("page numbers of 52 bits")
}

fn scattered(count: usize, random: &mut Random) -> Vec<IovaRange> {
    let mut numbers = BTreeSet::new();
    while numbers.len() < count {
        numbers.insert(random.below(1 << 36));
    }
    numbers.into_iter().map(|number| pages(number, 1)).collect()
}

/// The page number with the low `digits` bits of `index` as digits of 0 or 63, and its other bits above them; all of
/// it `shift` bits further up.
fn forked(index: u64, digits: u32, shift: u32) -> u64 {
    let low = (0..digits).filter(|digit| index >> digit & 1 == 1).map(|digit| 63 << (6 * digit)).sum::<u64>();
    ((index >> digits) << (6 * digits) | low) << shift
}

fn straddling(index: u64, random: &mut Random) -> IovaRange {
    let border = index << 20 | 1 << 18;
    let (before, after) = (257 + random.below(3840), 257 + random.below(3840));
    pages(border - before, before + after)
}

fn any_size(count: usize, random: &mut Random) -> Vec<IovaRange> {
    let mut first = 0;
    let mut next = || {
        let magnitude = random.below(13);
        let size = 1 + random.below(1 << magnitude);
        first += random.one_of(&[0, 1]) * random.below(size + 1);
        first += size;
        pages(first - size, size)
    };
    (0..count).map(|_| next()).collect()
}

/// Mappings one behind the other, each of the size and at the alignment that `next` says, in pages.
fn in_turn(count: usize, mut next: impl FnMut() -> (u64, u64)) -> Vec<IovaRange> {
    let mut free = 0u64;
    (0..count)
        .map(|_| {
            let (size, alignment) = next();
            let first = free.next_multiple_of(alignment);
            free = first + size;
            pages(first, size)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Layout; 9] = [
        Layout::Dense,
        Layout::OneIn(16),
        Layout::OneIn(64),
        Layout::Scattered,
        Layout::Forked,
        Layout::ForkedLong,
        Layout::Straddling,
        Layout::FourSizes,
        Layout::AnySize,
    ];

    #[test]
    fn every_layout_lies_in_order_on_whole_pages_and_never_overlaps() {
        for layout in ALL {
            let ranges = layout.ranges(20_000, &mut Random::new(3));
            assert_eq!(ranges.len(), 20_000);
            let whole =
                |range: &IovaRange| range.start().is_multiple_of(PAGE) && range.last() % PAGE == PAGE - 1;
            assert!(ranges.iter().all(whole), "{layout:?}");
            assert!(ranges.is_sorted_by(|one, next| one.last() < next.start()), "{layout:?}");
        }
    }

    #[test]
    fn a_million_mappings_fit_every_layout() {
        for layout in ALL {
            assert_eq!(layout.ranges(1 << 20, &mut Random::new(4)).len(), 1 << 20, "{layout:?}");
        }
    }

    #[test]
    fn forked_pages_have_two_values_in_each_low_digit() {
        let ranges = Layout::Forked.ranges(4096, &mut Random::new(5));
        for digit in 0..6 {
            let values: BTreeSet<u64> =
                ranges.iter().map(|range| (range.start() / PAGE) >> (6 * digit) & 63).collect();
            assert_eq!(values.into_iter().collect::<Vec<_>>(), [0, 63]);
        }
    }
}
