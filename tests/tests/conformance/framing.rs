// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Both parts of a request as bytes: A8 to A12, and the reply lengths that Linux insists on.

use viommu_core::{EndpointId, Features, PROBE_SIZE, ReservedKind, ReservedRegion, Status};
use viommu_tests::model::request::{self, PROBE_REPLY_SIZE, Wire};

use crate::bed::{Bed, EP, NOBODY, RW, status};

/// One request of each type, all of them acceptable in this order.
fn one_of_each() -> [(Vec<u8>, usize); 5] {
    let bytes = |request: &dyn Wire| (request.readable(), request.writable());
    [
        bytes(&request::probe(EP)),
        bytes(&request::attach(1, EP)),
        bytes(&request::map(1, (0x1000, 0x1fff), 0x8000, RW)),
        bytes(&request::unmap(1, (0x1000, 0x1fff))),
        bytes(&request::detach(1, EP)),
    ]
}

//= A8
#[test]
fn a_request_that_succeeds_is_answered_with_ok_in_full_length() {
    let mut bed = Bed::new();
    for (readable, writable) in one_of_each() {
        let reply = bed.raw(&readable, writable);
        assert_eq!((status(&reply), reply.bytes.len()), (Status::Ok, writable));
    }
}

//= A9a A9b
#[test]
fn an_unknown_type_gets_no_answer_at_all() {
    let mut bed = Bed::new();
    for kind in (0..=u8::MAX).filter(|kind| !(1..=5).contains(kind)) {
        let reply = bed.raw(&[kind; 72], PROBE_REPLY_SIZE);
        assert!(reply.bytes.is_empty() && reply.row.is_none() && reply.rejected.is_none());
    }
}

//= A9a A9b
#[test]
fn map_and_unmap_are_unknown_types_when_they_were_not_negotiated() {
    let mut bed = Bed::without(Features::MAP_UNMAP);
    assert_eq!(bed.attach(1, EP), Status::Ok);
    let map = request::map(1, (0x1000, 0x1fff), 0x8000, RW);
    let unmap = request::unmap(1, (0x1000, 0x1fff));
    for readable in [map.readable(), unmap.readable()] {
        let reply = bed.raw(&readable, 4);
        assert!(reply.bytes.is_empty() && reply.row.is_none());
    }
    assert_eq!(bed.mapped(1), []);
}

//= A10a
#[test]
fn the_reserved_bytes_of_the_head_are_not_looked_at() {
    let mut bed = Bed::new();
    for (mut readable, writable) in one_of_each() {
        readable[1..4].fill(0xff);
        assert_eq!(status(&bed.raw(&readable, writable)), Status::Ok);
    }
}

//= A10b
#[test]
fn the_tail_is_zero_behind_its_status_for_every_outcome() {
    let mut bed = Bed::new();
    for endpoint in [EP, NOBODY] {
        let reply = bed.raw(&request::attach(1, endpoint).readable(), 4);
        assert_eq!(reply.bytes[1..], [0; 3]);
    }
}

//= A12
#[test]
fn a_request_without_room_for_a_tail_is_neither_answered_nor_done() {
    for writable in 0..4 {
        for (readable, _) in one_of_each() {
            let mut bed = Bed::new();
            assert!(bed.raw(&readable, writable).bytes.is_empty());
            assert!(bed.host.asked.is_empty());
        }
    }
}

#[test]
fn an_empty_readable_part_gets_no_answer() {
    let mut bed = Bed::new();
    assert!(bed.raw(&[], 4).bytes.is_empty());
    assert!(bed.raw(&[], PROBE_REPLY_SIZE).bytes.is_empty());
}

#[test]
fn a_readable_part_that_is_too_short_is_invalid_and_answered_in_full_length() {
    for (readable, writable) in one_of_each() {
        for size in 1..readable.len() {
            let mut bed = Bed::new();
            let reply = bed.raw(&readable[..size], writable);
            assert_eq!((status(&reply), reply.bytes.len()), (Status::Inval, writable));
        }
    }
}

#[test]
fn bytes_behind_the_request_are_not_looked_at() {
    let mut bed = Bed::new();
    for (mut readable, writable) in one_of_each() {
        readable.extend([0xff; 100]);
        assert_eq!(status(&bed.raw(&readable, writable)), Status::Ok);
    }
}

#[test]
fn a_longer_writable_part_gets_the_answer_at_its_start() {
    let mut bed = Bed::new();
    for (readable, writable) in one_of_each() {
        let reply = bed.raw(&readable, writable + 60);
        assert_eq!((status(&reply), reply.bytes.len()), (Status::Ok, writable));
    }
}

//= A46a A46b
#[test]
fn a_probe_without_room_for_its_properties_gets_none_and_its_tail_at_the_end() {
    let mut bed = Bed::new();
    let region = ReservedRegion { range: request::range(0x1000, 0x1fff), kind: ReservedKind::Msi };
    bed.device.set_reserved(EndpointId(EP), &[region]).expect("a valid list");
    for writable in 4..PROBE_REPLY_SIZE {
        let reply = bed.raw(&request::probe(EP).readable(), writable);
        assert_eq!(reply.bytes.len(), writable);
        assert_eq!(status(&reply), Status::Inval);
        assert!(reply.bytes[..writable - 4].iter().all(|byte| *byte == 0));
    }
    assert_eq!(bed.send(request::probe(EP)), Status::Ok);
}

#[test]
fn a_refused_request_of_a_known_type_is_answered_in_full_length() {
    let mut bed = Bed::new();
    // `send` compares the used length with the one that the driver expects.
    assert_eq!(bed.send(request::probe(NOBODY)), Status::NoEnt);
    assert_eq!(bed.attach(1, NOBODY), Status::NoEnt);
    assert_eq!(bed.detach(1, NOBODY), Status::NoEnt);
    assert_eq!(bed.map(1, (0, 0xfff), 0), Status::NoEnt);
    assert_eq!(bed.unmap(1, (0, 0xfff)), Status::NoEnt);
    let probe = bed.raw(&request::probe(NOBODY).readable(), PROBE_REPLY_SIZE);
    assert_eq!(probe.bytes[..PROBE_SIZE], [0; PROBE_SIZE]);
}
