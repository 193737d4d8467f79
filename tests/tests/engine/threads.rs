// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Readers while one thread maps and unmaps: what stays mapped is always found, as it is, and what is found
//! was mapped.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use viommu_core::mapping::{Mapping, Mappings, Reader};
use viommu_core::{Access, Gpa, Granule, IovaRange, Target};

use crate::model::Random;

/// Changes that the writer makes, unless `ENGINE_CHANGES` says otherwise.
const CHANGES: u64 = 400_000;
/// Lookups of all readers together, without which the writer does not end.
const LOOKUPS: u64 = 1000;
/// Changes after which the writer goes over to few mappings, or back to many.
const PHASE: u64 = 8_000;
/// Granules of the space, and how far apart the mappings begin.
const PLACES: u64 = 4096;

/// The mapping of a place: its length and its GPA tell of its place, so that a mixture would show.
fn mapping(place: u64, stride: u64) -> Mapping {
    let granules = if place % 7 == 3 { stride } else { 1 };
    let start = (place * stride) << 12;
    let range = IovaRange::new(start, start + (granules << 12) - 1).expect("not empty");
    let target = Target { gpa: Gpa(0x100_0000_0000 + start), access: Access::READ, mmio: false };
    Mapping { range, target }
}

/// One place in 8 is always mapped.
fn stays(place: u64) -> bool {
    place % 8 == 5
}

/// Has the readers end, whether the writer succeeds or fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn read(mut reader: Reader, stride: u64, seed: u64, lookups: &AtomicU64, done: &AtomicBool) {
    let mut random = Random(seed);
    while !done.load(Ordering::Relaxed) {
        let place = random.below(PLACES);
        let expected = mapping(place, stride);
        let iova = expected.range.start() + random.below(expected.range.span() + 1);
        match reader.find(iova) {
            Some(found) => assert_eq!(found, expected),
            None => assert!(!stays(place), "{iova:#x} is mapped all the time"),
        }
        lookups.fetch_add(1, Ordering::Relaxed);
    }
}

fn changes() -> u64 {
    std::env::var("ENGINE_CHANGES").ok().and_then(|changes| changes.parse().ok()).unwrap_or(CHANGES)
}

/// Changes the mappings so many times, and on until the readers have seen enough.
fn write(mappings: &mut Mappings, stride: u64, seed: u64, is_enough: impl Fn() -> bool) {
    let mut random = Random(seed);
    let changes = changes();
    for change in (0u64..).take_while(|change| *change < changes || !is_enough()) {
        let place = random.below(PLACES);
        let mapping = mapping(place, stride);
        match mappings.find(mapping.range.start()) {
            Some(_) if stays(place) => {}
            Some(_) => assert_eq!(mappings.remove_within(&mapping.range), 1),
            // Now and then only few are mapped, so that the tree shrinks and is copied.
            None if (change / PHASE).is_multiple_of(2) || random.below(10) == 0 => mappings.insert(mapping),
            None => {}
        }
    }
}

#[test]
fn readers_find_what_stays_mapped_while_everything_around_it_changes() {
    let granule = Granule::of_mask(0x1000).expect("not empty");
    for stride in [1, 3, 16, 64, 600, 1 << 30] {
        let mut mappings = Mappings::new(granule);
        (0..PLACES).filter(|place| stays(*place)).for_each(|place| mappings.insert(mapping(place, stride)));
        let (lookups, done) = (AtomicU64::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            let readers = [11, 12].map(|seed| {
                let (reader, lookups, done) = (mappings.reader(), &lookups, &done);
                scope.spawn(move || read(reader, stride, seed, lookups, done))
            });
            let end = End(&done);
            let has_failed = || readers.iter().any(|reader| reader.is_finished());
            write(&mut mappings, stride, 13, || lookups.load(Ordering::Relaxed) >= LOOKUPS || has_failed());
            drop(end);
            readers.into_iter().for_each(|reader| reader.join().expect("no reader fails"));
        });
    }
}
