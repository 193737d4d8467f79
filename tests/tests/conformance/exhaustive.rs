// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What can be tried out whole: range arithmetic on every combination of the numbers at which it could go wrong, and
//! the request parser on every length, type and feature set, with every byte of a request spoilt.

use viommu_core::{Features, Granule, IovaRange, NoHost, Status};
use viommu_tests::model::request::{self, Wire};

use crate::bed::{Bed, EP, status};

/// Both sides of every boundary that the arithmetic knows: of bytes, granules, halves, and the ends of the space.
fn edges() -> Vec<u64> {
    let boundaries = [0, 1 << 12, 1 << 13, 1 << 21, 1 << 31, 1 << 32, 1 << 52, 1 << 63];
    let near = |at: u64| [at.wrapping_sub(2), at.wrapping_sub(1), at, at.wrapping_add(1), at.wrapping_add(2)];
    let mut edges: Vec<u64> = boundaries.into_iter().flat_map(near).collect();
    edges.sort_unstable();
    edges.dedup();
    edges
}

#[test]
fn ranges_are_what_they_are_in_wider_numbers() {
    let edges = edges();
    let mut ranges = vec![];
    for &start in &edges {
        for &last in &edges {
            let range = IovaRange::new(start, last);
            assert_eq!(range.is_some(), start <= last);
            ranges.extend(range);
            let end = u128::from(start) + u128::from(last);
            let by_length = IovaRange::from_length(start, last).map(|range| (range.start(), range.last()));
            let expected = (last > 0 && end <= 1 << 64).then(|| (start, (end - 1) as u64));
            assert_eq!(by_length, expected, "{last} bytes from {start:#x}");
        }
    }
    for one in &ranges {
        assert_eq!(u128::from(one.span()) + 1, u128::from(one.last()) + 1 - u128::from(one.start()));
        for &address in &edges {
            assert_eq!(one.contains(address), (one.start()..=one.last()).contains(&address));
        }
        for other in &ranges {
            let shared = one.start().max(other.start()) <= one.last().min(other.last());
            assert_eq!(one.overlaps(other), shared, "{one} and {other}");
            let covered = one.contains(other.start()) && one.contains(other.last());
            assert_eq!(one.covers(other), covered, "{one} and {other}");
        }
    }
}

#[test]
fn a_granule_divides_the_space_into_blocks_of_its_size() {
    for lg2 in 12..64 {
        let granule = Granule::of_mask(1 << lg2 | 1 << 63).expect("not empty");
        let bytes = 1u128 << lg2;
        assert_eq!(u128::from(granule.bytes()), bytes);
        for address in edges() {
            assert_eq!(granule.is_start(address), u128::from(address) % bytes == 0);
            assert_eq!(granule.is_last(address), (u128::from(address) + 1) % bytes == 0);
        }
    }
}

/// The readable size of a request of a type, and the feature without which it is not recognised.
fn shape(kind: u8) -> Option<(usize, Features)> {
    match kind {
        1 | 2 => Some((20, Features::empty())),
        3 => Some((36, Features::MAP_UNMAP)),
        4 => Some((28, Features::MAP_UNMAP)),
        5 => Some((72, Features::empty())),
        _ => None,
    }
}

/// A request of any type, length and feature set, and room for the answer of any length: what is not recognised
/// gets no answer, what is too short is INVAL, and an answer never has more bytes than there is room for.
#[test]
fn every_length_of_every_type_is_answered_as_its_row_says() {
    let mut bed = Bed::new();
    for features in 0..1u64 << 7 {
        bed.device.negotiate(features);
        let accepted = Features::from_bits_truncate(features) & Features::OFFERED;
        for kind in 0..=u8::MAX {
            let shape = shape(kind).filter(|(_, feature)| accepted.contains(*feature));
            for length in 0..=80 {
                let mut readable = vec![0; length];
                readable.iter_mut().take(1).for_each(|first| *first = kind);
                let room = [0, 3, 4, 600][length % 4];
                let reply = bed.device.handle(&readable, room, &mut NoHost);
                match shape.filter(|_| length > 0 && room >= 4) {
                    None => assert!(reply.bytes.is_empty() && reply.row.is_none()),
                    Some((size, _)) => {
                        assert!(!reply.bytes.is_empty() && reply.bytes.len() <= room);
                        let is_whole = length >= size && (kind != 5 || room >= 516);
                        assert!(is_whole || reply.rejected.is_some(), "type {kind}, {length} bytes");
                    }
                }
            }
        }
    }
}

/// One byte of a good request is anything else: the answer is a status that exists, the state is sound, and a
/// reserved byte is judged as its rule says.
#[test]
fn every_byte_of_every_request_can_be_anything() {
    let requests = [
        request::attach(2, EP).readable(),
        request::detach(1, EP).readable(),
        request::map(1, (0x8000, 0x8fff), 0x1000, 3).readable(),
        request::unmap(1, (0x1000, 0x1fff)).readable(),
        request::probe(EP).readable(),
    ];
    for (kind, good) in (1u8..).zip(requests) {
        for at in 1..good.len() {
            for value in 0..=u8::MAX {
                let mut bed = Bed::new();
                bed.attach(1, EP);
                bed.map(1, (0x1000, 0x1fff), 0x8000);
                let mut readable = good.clone();
                readable[at] = value;
                let reply = bed.raw(&readable, if kind == 5 { 516 } else { 4 });
                let is_ignored = at < 4 || (kind == 2 && at >= 12) || (kind == 5 && at >= 8);
                let is_refused = (kind == 1 && at >= 16 || kind == 4 && at >= 24) && value != 0;
                let answer = status(&reply);
                assert!(!is_ignored || answer == Status::Ok, "type {kind}, byte {at} = {value}: {answer:?}");
                assert!(
                    !is_refused || answer == Status::Inval,
                    "type {kind}, byte {at} = {value}: {answer:?}"
                );
            }
        }
    }
}
