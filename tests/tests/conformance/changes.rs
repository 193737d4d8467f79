// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Check, apply, commit: what holds while a change is under way, and after the host refused it.

use viommu_core::{Access, DomainId, EndpointId, FaultReason, HostError, Iova, NoHost, Reject, Status, Step};
use viommu_tests::model::request::{self, Wire};

use crate::bed::{ALL, Bed, EP, EP2, EP3, RW, state, status};

const EIO: i32 = 5;
const ENOMEM: i32 = 12;
const DOMAIN: FaultReason = FaultReason::Domain;
const MAPPING: FaultReason = FaultReason::Mapping;

fn error(errno: i32) -> HostError {
    HostError { operation: "test", errno }
}

/// Two endpoints in domain 1, with two mappings; the third is unattached, and unattached ones bypass.
fn bed() -> Bed {
    let mut bed = Bed::new();
    bed.write_config(36, &[1]);
    bed.attach(1, EP);
    bed.attach(1, EP2);
    bed.map(1, (0x1000, 0x1fff), 0x8000);
    bed.map(1, (0x2000, 0x2fff), 0x9000);
    bed
}

fn begin(bed: &mut Bed, request: &dyn Wire) {
    let step = bed.device.begin(&request.readable(), request.writable());
    assert!(matches!(step, Step::Apply(_)), "{step:?}");
}

fn begin_bypass(bed: &mut Bed, value: u8) {
    assert!(bed.device.begin_config_write(36, &[value]).is_some());
}

#[test]
fn a_range_that_is_being_unmapped_translates_no_more_and_its_neighbour_does() {
    let mut bed = bed();
    begin(&mut bed, &request::unmap(1, (0x1000, 0x1fff)));
    for endpoint in [EP, EP2] {
        assert_eq!(bed.reads(endpoint, 0x1000), Err(MAPPING));
        assert_eq!(bed.reads(endpoint, 0x1fff), Err(MAPPING));
        assert_eq!(bed.reads(endpoint, 0x2000), Ok(0x9000));
    }
    assert_eq!(bed.reads(EP3, 0x1000), Ok(0x1000));
    assert_eq!(status(&bed.device.finish(Ok(()))), Status::Ok);
    assert_eq!(bed.mapped(1), [(0x2000, 0x2fff)]);
}

#[test]
fn the_same_range_of_another_domain_is_not_touched_by_an_unmap() {
    let mut bed = bed();
    bed.attach(2, EP3);
    bed.map(2, (0x1000, 0x1fff), 0xa000);
    begin(&mut bed, &request::unmap(1, ALL));
    assert_eq!(bed.reads(EP3, 0x1000), Ok(0xa000));
}

//= A26
#[test]
fn an_endpoint_that_is_being_moved_reaches_nothing_and_the_others_go_on() {
    let requests: [&dyn Wire; 3] =
        [&request::attach(2, EP), &request::attach_bypass(2, EP), &request::detach(1, EP)];
    for request in requests {
        let mut bed = bed();
        begin(&mut bed, request);
        assert_eq!(bed.reads(EP, 0x1000), Err(DOMAIN));
        assert_eq!(bed.reads(EP2, 0x1000), Ok(0x8000));
        assert_eq!(bed.reads(EP3, 0x1000), Ok(0x1000));
    }
}

#[test]
fn an_unattached_endpoint_loses_bypass_as_soon_as_it_is_being_attached() {
    let mut bed = bed();
    begin(&mut bed, &request::attach(1, EP3));
    assert_eq!(bed.reads(EP3, 0x1000), Err(DOMAIN));
    assert_eq!(status(&bed.device.finish(Ok(()))), Status::Ok);
    assert_eq!(bed.reads(EP3, 0x1000), Ok(0x8000));
}

#[test]
fn a_mapping_is_not_there_before_the_host_has_it() {
    let mut bed = bed();
    begin(&mut bed, &request::map(1, (0x3000, 0x3fff), 0xb000, RW));
    assert_eq!(bed.reads(EP, 0x3000), Err(MAPPING));
    assert_eq!(bed.reads(EP, 0x1000), Ok(0x8000));
    assert_eq!(status(&bed.device.finish(Ok(()))), Status::Ok);
    assert_eq!(bed.reads(EP, 0x3000), Ok(0xb000));
}

#[test]
fn a_change_of_bypass_is_refused_to_the_unattached_until_it_is_done() {
    let mut bed = bed();
    begin_bypass(&mut bed, 0);
    assert_eq!(bed.reads(EP3, 0x1000), Err(DOMAIN));
    assert_eq!(bed.reads(EP, 0x1000), Ok(0x8000));
    assert_eq!(bed.bypass_byte(), 1);
    assert!(bed.device.finish(Ok(())).bytes.is_empty());
    assert_eq!((bed.bypass_byte(), bed.reads(EP3, 0x1000)), (0, Err(DOMAIN)));
    begin_bypass(&mut bed, 1);
    assert_eq!((bed.bypass_byte(), bed.reads(EP3, 0x1000)), (0, Err(DOMAIN)));
    let _ = bed.device.finish(Ok(()));
    assert_eq!((bed.bypass_byte(), bed.reads(EP3, 0x1000)), (1, Ok(0x1000)));
}

#[test]
fn an_access_that_began_before_a_change_is_refused_from_there_on() {
    let mut bed = bed();
    begin(&mut bed, &request::unmap(1, (0x2000, 0x2fff)));
    let pieces = bed.pieces(EP, 0x1ff0, 0x20, Access::READ);
    assert_eq!(pieces, [Ok((0x8ff0, 0x10)), Err(MAPPING)]);
}

#[test]
fn a_refusal_of_the_host_restores_everything_and_has_a_status_of_its_own() {
    let requests: [&dyn Wire; 5] = [
        &request::attach(2, EP),
        &request::attach(1, EP3),
        &request::detach(1, EP),
        &request::map(1, (0x3000, 0x3fff), 0, RW),
        &request::unmap(1, ALL),
    ];
    let mut bed = bed();
    for request in requests {
        for (errno, expected) in [(EIO, Status::DevErr), (0, Status::DevErr), (ENOMEM, Status::NoMem)] {
            let before = state(&bed.device);
            begin(&mut bed, request);
            let reply = bed.device.finish(Err(error(errno)));
            assert_eq!(status(&reply), expected);
            assert!(matches!(&reply.rejected, Some(Reject::Host(refused)) if *refused == error(errno)));
            assert_eq!(state(&bed.device), before);
        }
    }
    assert_eq!((bed.reads(EP, 0x1000), bed.reads(EP3, 0x1000)), (Ok(0x8000), Ok(0x1000)));
}

#[test]
fn a_change_that_was_never_finished_counts_as_refused() {
    let mut bed = bed();
    let before = state(&bed.device);
    begin(&mut bed, &request::unmap(1, ALL));
    begin(&mut bed, &request::detach(1, EP));
    assert_eq!(bed.reads(EP, 0x1000), Err(DOMAIN));
    assert_eq!(bed.reads(EP2, 0x1000), Ok(0x8000), "the UNMAP is forgotten");
    begin_bypass(&mut bed, 0);
    assert_eq!(bed.reads(EP, 0x1000), Ok(0x8000), "the DETACH is forgotten");
    assert!(bed.device.handle(&[], 0, &mut NoHost).bytes.is_empty());
    assert_eq!(bed.reads(EP3, 0x1000), Ok(0x1000), "the write is forgotten");
    assert!(bed.device.finish(Ok(())).bytes.is_empty(), "and nothing is left to finish");
    assert_eq!(state(&bed.device), before);
}

#[test]
fn finish_without_a_change_under_way_answers_nothing() {
    let mut bed = bed();
    let before = state(&bed.device);
    for applied in [Ok(()), Err(error(EIO))] {
        let reply = bed.device.finish(applied);
        assert!(reply.bytes.is_empty() && reply.row.is_none() && reply.rejected.is_none());
    }
    assert_eq!(state(&bed.device), before);
}

/// A life in which every kind of change happens, several times over.
fn life() -> Vec<Box<dyn Wire>> {
    vec![
        Box::new(request::attach(1, EP)),
        Box::new(request::map(1, (0x1000, 0x1fff), 0x8000, RW)),
        Box::new(request::attach(1, EP2)),
        Box::new(request::map(1, (0x2000, 0x2fff), 0x9000, RW)),
        Box::new(request::unmap(1, (0x1000, 0x1fff))),
        Box::new(request::attach_bypass(2, EP)),
        Box::new(request::attach(3, EP2)),
        Box::new(request::map(3, ALL, 0, RW)),
        Box::new(request::detach(2, EP)),
        Box::new(request::detach(3, EP2)),
    ]
}

#[test]
fn whichever_call_fails_the_request_can_be_sent_again_and_all_ends_the_same() {
    let mut undisturbed = Bed::new();
    let outcome = |bed: &mut Bed| {
        for request in life() {
            let asked = bed.host.asked.len();
            let reply = bed.raw(&request.readable(), request.writable());
            assert_eq!(bed.host.asked.len(), asked + 1);
            if status(&reply) == Status::DevErr {
                assert_eq!(status(&bed.raw(&request.readable(), request.writable())), Status::Ok);
            }
        }
        state(&bed.device)
    };
    let expected = outcome(&mut undisturbed);
    for nth in 0..life().len() {
        let mut bed = Bed::new();
        bed.host.fail(nth, EIO);
        assert_eq!(outcome(&mut bed), expected);
        assert_eq!(bed.host.asked.len(), life().len() + 1, "one call failed");
    }
}

#[test]
fn the_two_halves_of_a_request_do_what_the_whole_does() {
    let (mut whole, mut halves) = (Bed::new(), Bed::new());
    for request in life() {
        let (readable, writable) = (request.readable(), request.writable());
        let reply = whole.device.handle(&readable, writable, &mut NoHost);
        begin(&mut halves, request.as_ref());
        assert_eq!(halves.device.finish(Ok(())).bytes, reply.bytes);
        assert_eq!(state(&whole.device), state(&halves.device));
    }
}

#[test]
fn a_lookup_under_way_says_who_was_refused_what() {
    let mut bed = bed();
    begin(&mut bed, &request::detach(1, EP));
    let fault = bed.device.lookup(EndpointId(EP), Iova(0x1008), Access::WRITE).expect_err("it is moving");
    assert_eq!((fault.endpoint, fault.address), (EndpointId(EP), Iova(0x1008)));
    assert_eq!((fault.access, fault.reason), (Access::WRITE, DOMAIN));
}

#[test]
fn a_reader_finds_nothing_in_what_is_being_unmapped_and_all_of_it_again_when_the_host_refuses() {
    let mut bed = bed();
    bed.map(1, (0x7000, 0x7fff), 0x9000);
    let domain =
        |bed: &Bed| bed.device.domain(DomainId(1)).and_then(|domain| domain.reader()).expect("it pages");
    let mut reader = domain(&bed);
    let mut finds = |iova| reader.lookup(Iova(iova), Access::READ).is_some();
    assert!(finds(0x1008) && finds(0x7008));

    begin(&mut bed, &request::unmap(1, (0x1000, 0x1fff)));
    assert!(!finds(0x1008) && finds(0x7008));
    bed.device.finish(Err(HostError { operation: "test", errno: EIO }));
    assert!(finds(0x1008));

    begin(&mut bed, &request::unmap(1, (0x1000, 0x1fff)));
    begin(&mut bed, &request::map(1, (0x10_0000, 0x10_0fff), 0x9000, RW));
    assert!(finds(0x1008), "what was begun and not finished counts as refused");
    bed.device.finish(Ok(()));

    begin(&mut bed, &request::unmap(1, (0x1000, 0x1fff)));
    bed.device.finish(Ok(()));
    assert!(!finds(0x1008) && finds(0x7008));
}

#[test]
fn a_reader_outlives_its_domain_and_then_finds_nothing() {
    let mut bed = bed();
    let mut reader = bed.device.domain(DomainId(1)).and_then(|domain| domain.reader()).expect("it pages");
    assert!(reader.lookup(Iova(0x1008), Access::READ).is_some());
    bed.detach(1, EP);
    assert!(reader.lookup(Iova(0x1008), Access::READ).is_some(), "the domain has another endpoint");
    bed.detach(1, EP2);
    assert!(reader.lookup(Iova(0x1008), Access::READ).is_none());
    bed.attach(1, EP);
    bed.map(1, (0x1000, 0x1fff), 0x8000);
    assert!(reader.lookup(Iova(0x1008), Access::READ).is_none(), "another domain of the same id");
    assert!(bed.device.domain(DomainId(1)).is_some());
    bed.send(request::attach_bypass(2, EP));
    assert!(bed.device.domain(DomainId(2)).is_some_and(|domain| domain.reader().is_none()));
}
