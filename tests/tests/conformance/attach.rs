// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! ATTACH: A11, A13 to A22.

use viommu_core::{
    Change, DomainId, EndpointId, FaultReason, Features, ReservedKind, ReservedRegion, Status,
};
use viommu_tests::model::request;

use crate::bed::{Bed, EP, EP2, EP3, NOBODY, config};

//= A11
#[test]
fn an_unattached_endpoint_that_may_not_bypass_reaches_nothing() {
    let bed = Bed::new();
    for iova in [0, 0x1000, u64::MAX] {
        assert_eq!(bed.reads(EP, iova), Err(FaultReason::Domain));
        assert_eq!(bed.writes(EP, iova), Err(FaultReason::Domain));
    }
}

//= A13 A14
#[test]
fn a_bypass_domain_is_identity_for_every_access() {
    let mut bed = Bed::new();
    assert_eq!(bed.send(request::attach_bypass(1, EP)), Status::Ok);
    for iova in [0, 0x1001, 1 << 63, u64::MAX] {
        assert_eq!(bed.reads(EP, iova), Ok(iova));
        assert_eq!(bed.writes(EP, iova), Ok(iova));
    }
    assert_eq!(bed.reads(EP2, 0), Err(FaultReason::Domain));
}

//= A15
#[test]
fn attach_with_a_set_reserved_field_is_invalid() {
    let mut bed = Bed::new();
    for at in 0..4 {
        let mut attach = request::attach(1, EP);
        attach.reserved[at] = 0x80;
        assert_eq!(bed.send(attach), Status::Inval);
    }
    assert_eq!(bed.domain_of(EP), None);
}

//= A16
#[test]
fn attach_with_an_unknown_flag_is_invalid() {
    let mut bed = Bed::new();
    for bit in 1..32 {
        for flags in [1 << bit, 1 << bit | 1] {
            let attach = viommu_core::wire::ReqAttach { flags: flags.into(), ..request::attach(1, EP) };
            assert_eq!(bed.send(attach), Status::Inval);
        }
    }
}

//= A16
#[test]
fn the_bypass_flag_is_unknown_without_its_feature() {
    let mut bed = Bed::without(Features::BYPASS_CONFIG);
    assert_eq!(bed.send(request::attach_bypass(1, EP)), Status::Inval);
    assert_eq!(bed.attach(1, EP), Status::Ok);
}

//= A17
#[test]
fn attach_of_an_unknown_endpoint_finds_none() {
    let mut bed = Bed::new();
    for endpoint in [NOBODY, 0, u32::MAX] {
        assert_eq!(bed.attach(1, endpoint), Status::NoEnt);
        assert_eq!(bed.send(request::attach_bypass(1, endpoint)), Status::NoEnt);
    }
}

//= A18a
#[test]
fn endpoints_of_one_domain_share_its_mappings() {
    let mut bed = Bed::new();
    for endpoint in [EP, EP2] {
        assert_eq!(bed.attach(1, endpoint), Status::Ok);
    }
    assert_eq!(bed.map(1, (0x1000, 0x1fff), 0x8000), Status::Ok);
    assert_eq!(bed.attach(1, EP3), Status::Ok);
    for endpoint in [EP, EP2, EP3] {
        assert_eq!(bed.reads(endpoint, 0x1abc), Ok(0x8abc));
    }
}

//= A19
#[test]
fn attach_with_the_other_bypass_setting_than_the_domain_has_is_invalid() {
    let mut bed = Bed::new();
    assert_eq!(bed.attach(1, EP), Status::Ok);
    assert_eq!(bed.send(request::attach_bypass(1, EP2)), Status::Inval);
    assert_eq!(bed.send(request::attach_bypass(1, EP)), Status::Inval);
    assert_eq!(bed.send(request::attach_bypass(2, EP2)), Status::Ok);
    assert_eq!(bed.attach(2, EP), Status::Inval);
    assert_eq!(bed.attach(2, EP2), Status::Inval);
    assert_eq!((bed.domain_of(EP), bed.domain_of(EP2)), (Some(1), Some(2)));
}

//= A20a
#[test]
fn an_attached_endpoint_moves_to_the_domain_of_the_next_attach() {
    let mut bed = Bed::new();
    assert_eq!(bed.attach(1, EP), Status::Ok);
    assert_eq!(bed.map(1, (0x1000, 0x1fff), 0x8000), Status::Ok);
    assert_eq!(bed.attach(2, EP), Status::Ok);
    assert_eq!(bed.domain_of(EP), Some(2));
    assert_eq!(bed.reads(EP, 0x1000), Err(FaultReason::Mapping));
    assert_eq!(bed.map(1, (0x1000, 0x1fff), 0x8000), Status::NoEnt);
}

//= A20a A20b
#[test]
fn the_host_is_told_of_a_move_as_one_change() {
    let mut bed = Bed::new();
    let (endpoint, first, second) = (EndpointId(EP), DomainId(1), DomainId(2));
    bed.attach(1, EP);
    bed.attach(2, EP);
    let attach = |from, to| Change::Attach { endpoint, from, to, bypass: false };
    assert_eq!(bed.host.asked, [attach(None, first), attach(Some(first), second)]);
}

//= A20b
#[test]
fn a_move_ends_as_a_detach_and_an_attach_do() {
    // The second endpoint stays behind in the old domain, the third waits in the new one.
    for (second, third) in [(false, false), (false, true), (true, false), (true, true)] {
        let bed = || {
            let mut bed = Bed::new();
            bed.attach(1, EP);
            bed.map(1, (0x1000, 0x1fff), 0x8000);
            let _ = (second.then(|| bed.attach(1, EP2)), third.then(|| bed.attach(2, EP3)));
            bed
        };
        for to in [request::attach(2, EP), request::attach_bypass(3, EP)] {
            let (mut moved, mut apart) = (bed(), bed());
            assert_eq!(moved.send(to), Status::Ok);
            assert_eq!((apart.detach(1, EP), apart.send(to)), (Status::Ok, Status::Ok));
            for domain in [1, 2, 3].map(DomainId) {
                assert_eq!(moved.device.domain(domain), apart.device.domain(domain));
            }
            assert_eq!(moved.device.domain(DomainId(1)).is_some(), second);
        }
    }
}

//= A20c
#[test]
fn an_endpoint_that_cannot_move_stays_where_it_is() {
    let mut bed = Bed::new();
    let region = ReservedRegion { range: request::range(0x1000, 0x1fff), kind: ReservedKind::Reserved };
    bed.device.set_reserved(EndpointId(EP2), &[region]).expect("a valid list");
    bed.attach(1, EP);
    bed.map(1, (0x1000, 0x1fff), 0x8000);
    bed.attach(2, EP2);
    bed.map(2, (0x4000, 0x4fff), 0x9000);
    assert_eq!(bed.attach(1, EP2), Status::Unsupp);
    assert_eq!(bed.domain_of(EP2), Some(2));
    assert_eq!((bed.reads(EP2, 0x1000), bed.reads(EP2, 0x4000)), (Err(FaultReason::Mapping), Ok(0x9000)));
}

#[test]
fn an_endpoint_moves_between_bypass_and_paging_domains() {
    let mut bed = Bed::new();
    assert_eq!(bed.send(request::attach_bypass(1, EP)), Status::Ok);
    assert_eq!(bed.attach(2, EP), Status::Ok);
    assert_eq!(bed.reads(EP, 0x1000), Err(FaultReason::Mapping));
    assert_eq!(bed.attach(1, EP2), Status::Ok, "the bypass domain has ended");
    assert_eq!(bed.send(request::attach_bypass(3, EP)), Status::Ok);
    assert_eq!(bed.reads(EP, 0x1000), Ok(0x1000));
}

#[test]
fn attach_to_the_domain_an_endpoint_is_in_keeps_everything_and_asks_nobody() {
    let mut bed = Bed::new();
    bed.attach(1, EP);
    bed.map(1, (0x1000, 0x1fff), 0x8000);
    let asked = bed.host.asked.len();
    assert_eq!(bed.attach(1, EP), Status::Ok);
    assert_eq!(bed.host.asked.len(), asked);
    assert_eq!(bed.reads(EP, 0x1000), Ok(0x8000));
}

//= A18b A21a A21b
#[test]
fn an_endpoint_that_reserves_what_a_domain_maps_is_not_compatible_with_it() {
    let mut bed = Bed::new();
    let region =
        |start, last| ReservedRegion { range: request::range(start, last), kind: ReservedKind::Reserved };
    bed.device.set_reserved(EndpointId(EP2), &[region(0x2fff, 0x2fff)]).expect("a valid list");
    bed.device.set_reserved(EndpointId(EP3), &[region(0x3000, 0x3fff)]).expect("a valid list");
    bed.attach(1, EP);
    assert_eq!(bed.map(1, (0x1000, 0x2fff), 0x8000), Status::Ok);
    assert_eq!(bed.attach(1, EP2), Status::Unsupp);
    assert_eq!(bed.attach(1, EP3), Status::Ok);
    assert_eq!(bed.unmap(1, (0x1000, 0x2fff)), Status::Ok);
    assert_eq!(bed.attach(1, EP2), Status::Ok);
}

//= A22
#[test]
fn an_endpoint_is_in_the_domain_that_the_last_attach_named_and_in_no_other() {
    let mut bed = Bed::new();
    bed.attach(4, EP2);
    for (domain, bypass) in [(1, false), (1, false), (2, false), (4, false), (3, true), (3, true), (1, true)]
    {
        let request = if bypass { request::attach_bypass(domain, EP) } else { request::attach(domain, EP) };
        assert_eq!((bed.send(request), bed.domain_of(EP)), (Status::Ok, Some(domain)));
        for other in 0..5 {
            let members =
                bed.device.domain(DomainId(other)).into_iter().flat_map(|domain| domain.endpoints());
            let is_member = members.into_iter().any(|member| member == EndpointId(EP));
            assert_eq!(is_member, other == domain, "domain {other} after ATTACH to {domain}");
        }
    }
}

//= A22
#[test]
fn domains_are_isolated_from_each_other() {
    let mut bed = Bed::new();
    bed.attach(1, EP);
    bed.attach(2, EP2);
    assert_eq!(bed.map(1, (0x1000, 0x1fff), 0x8000), Status::Ok);
    assert_eq!(bed.reads(EP2, 0x1000), Err(FaultReason::Mapping));
    assert_eq!(bed.map(2, (0x1000, 0x1fff), 0x9000), Status::Ok);
    assert_eq!(bed.unmap(1, (0x1000, 0x1fff)), Status::Ok);
    assert_eq!(bed.reads(EP2, 0x1000), Ok(0x9000));
}

#[test]
fn a_domain_id_outside_the_range_is_out_of_range() {
    let mut config = config();
    config.domain_ids = 2..=5;
    let mut bed = Bed::with(config);
    for domain in [0, 1, 6, u32::MAX] {
        assert_eq!(bed.attach(domain, EP), Status::Range);
        assert_eq!(bed.send(request::attach_bypass(domain, EP)), Status::Range);
    }
    for domain in [2, 5] {
        assert_eq!(bed.attach(domain, EP), Status::Ok);
    }
}

//= A18b A20c A21b
#[test]
fn endpoints_that_the_host_cannot_tell_apart_share_a_domain() {
    let mut bed = Bed::new();
    bed.device.set_group(EndpointId(EP), Some(7));
    bed.device.set_group(EndpointId(EP2), Some(7));
    bed.device.set_group(EndpointId(NOBODY), Some(7));
    assert_eq!(bed.attach(1, EP), Status::Ok);
    assert_eq!(bed.attach(2, EP2), Status::Unsupp);
    assert_eq!(bed.send(request::attach_bypass(3, EP2)), Status::Unsupp);
    assert_eq!(bed.attach(2, EP3), Status::Ok);
    assert_eq!(bed.attach(1, EP2), Status::Ok);
    assert_eq!(bed.attach(2, EP2), Status::Unsupp);
    assert_eq!(bed.domain_of(EP2), Some(1));
    assert_eq!(bed.send(request::detach(1, EP)), Status::Ok);
    assert_eq!(bed.attach(2, EP2), Status::Ok);
    assert_eq!(bed.attach(2, EP), Status::Ok);
}

//= A18a
#[test]
fn bypass_domains_are_one_to_the_host() {
    let mut bed = Bed::new();
    bed.device.set_group(EndpointId(EP), Some(7));
    bed.device.set_group(EndpointId(EP2), Some(7));
    assert_eq!(bed.send(request::attach_bypass(1, EP)), Status::Ok);
    assert_eq!(bed.send(request::attach_bypass(2, EP2)), Status::Ok);
    assert_eq!(bed.attach(3, EP2), Status::Unsupp);
}
