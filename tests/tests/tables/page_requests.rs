// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Page requests: each gets one answer, whoever gives it.

use std::time::Duration;

use viommu_core::wire::ReqPageResp;
use viommu_core::{
    EndpointId, HostError, Limits, PageRequestSupport, ResponseCode, Status, Step, TableHardware,
    TableSupport,
};
use viommu_tests::model::request::{self, TAIL_SIZE, Wire, page_response};

use super::bed::{ARM, Bed, NOBODY, SOFT, STE, VTD, VTD2, group, ste, vtd};

/// VTD and VTD2 with a table each, VTD with PASIDs 9 and 10.
fn bed() -> Bed {
    limited(Limits::default())
}

fn limited(limits: Limits) -> Bed {
    let mut bed = Bed::limited(limits);
    for (endpoint, pasid) in [(VTD, None), (VTD, Some(9)), (VTD, Some(10)), (VTD2, None)] {
        assert_eq!(bed.pt(1, endpoint, pasid, 0x1000), Status::Ok);
    }
    bed
}

fn allow(bed: &mut Bed, endpoint: u32, requests_max: u32) {
    let page_requests = Some(PageRequestSupport { requests_max, timeout: Duration::from_secs(1) });
    bed.device.set_tables(EndpointId(endpoint), Some(TableSupport { page_requests, ..vtd() }));
}

//= T56
#[test]
fn the_drivers_answer_is_the_only_one() {
    let mut bed = bed();
    for (number, code) in
        [ResponseCode::Success, ResponseCode::Invalid, ResponseCode::Failure].into_iter().enumerate()
    {
        let number = number as u32;
        assert!(bed.ask_by(group(VTD, Some(9), 5), number.into(), 1, 0));
        bed.done(page_response(VTD, Some(9), 5, number as u16));
        assert_eq!(bed.send(page_response(VTD, Some(9), 5, number as u16)), Status::NoEnt, "answered twice");
        assert_eq!(bed.host.answered.pop(), Some((number.into(), code)));
    }
    bed.device.expire_page_requests(Duration::from_secs(9));
    bed.device.end_page_requests(EndpointId(VTD));
    bed.device.reset();
    assert!(bed.refused().is_empty() && bed.host.answered.is_empty());
}

//= T50
#[test]
fn a_response_without_sense_is_refused() {
    let mut bed = bed();
    assert!(bed.ask(group(VTD, None, 5), 1, 0));
    let good = page_response(VTD, None, 5, 0);
    for code in [3, 255, u16::MAX] {
        assert_eq!(bed.send(ReqPageResp { code: code.into(), ..good }), Status::Inval);
    }
    assert_eq!(bed.send(ReqPageResp { flags: 2.into(), ..good }), Status::Inval);
    assert_eq!(bed.send(ReqPageResp { pasid: 9.into(), ..good }), Status::Inval);
    for at in 0..10 {
        let mut request = good;
        request.reserved[at] = 1;
        assert_eq!(bed.send(request), Status::Inval);
    }
    bed.done(good);
}

//= T51
#[test]
fn a_response_names_what_waits() {
    let mut bed = bed();
    assert!(bed.ask(group(VTD, Some(9), 5), 1, 0));
    assert_eq!(bed.send(page_response(NOBODY, Some(9), 5, 0)), Status::NoEnt);
    for (endpoint, pasid, number) in
        [(VTD, None, 5), (VTD, Some(10), 5), (VTD, Some(9), 4), (VTD2, Some(9), 5)]
    {
        assert_eq!(bed.send(page_response(endpoint, pasid, number, 0)), Status::NoEnt);
    }
    bed.done(page_response(VTD, Some(9), 5, 0));
}

#[test]
fn an_answer_takes_back_what_the_driver_has_not_seen() {
    let mut bed = bed();
    assert!(bed.ask(group(VTD, Some(9), 5), 4, 0));
    bed.take_event();
    bed.done(page_response(VTD, Some(9), 5, 1));
    assert!(bed.events().is_empty());
}

//= T52
#[test]
fn a_response_that_the_host_does_not_take_can_be_repeated() {
    let mut bed = bed();
    assert!(bed.ask(group(VTD, None, 5), 1, 0));
    bed.host.fail(0, 5);
    assert_eq!(bed.send(page_response(VTD, None, 5, 0)), Status::DevErr);
    assert!(bed.refused().is_empty());
    bed.done(page_response(VTD, None, 5, 0));
    assert_eq!(bed.host.answered, [(5, ResponseCode::Success)]);
}

//= T53
#[test]
fn a_group_without_an_answer_gets_one_in_time() {
    let mut bed = bed();
    assert_eq!(bed.device.next_page_deadline(), None);
    assert!(bed.ask(group(VTD, None, 5), 2, 100));
    assert!(bed.ask(group(VTD2, None, 6), 1, 300));
    assert_eq!(bed.device.next_page_deadline(), Some(Duration::from_millis(1100)));
    bed.device.expire_page_requests(Duration::from_millis(1099));
    assert!(bed.refused().is_empty());
    bed.device.expire_page_requests(Duration::from_millis(1100));
    assert_eq!(bed.refused(), [5]);
    assert_eq!(bed.send(page_response(VTD, None, 5, 0)), Status::NoEnt, "too late");
    assert_eq!(bed.device.next_page_deadline(), Some(Duration::from_millis(1300)));
    assert_eq!(bed.events().len(), 1, "of the other");
    bed.device.expire_page_requests(Duration::MAX);
    assert_eq!((bed.refused(), bed.device.next_page_deadline()), (vec![6], None));
}

//= T53 T56
#[test]
fn an_answer_on_its_way_is_waited_for() {
    let mut bed = bed();
    assert!(bed.ask(group(VTD, None, 5), 1, 0));
    for applied in [Err(HostError { operation: "test", errno: 5 }), Ok(())] {
        let step = bed.device.begin(&page_response(VTD, None, 5, 0).readable(), TAIL_SIZE);
        assert!(matches!(step, Step::Apply(_)));
        assert_eq!(bed.device.next_page_deadline(), None, "nothing to wake up for");
        bed.device.expire_page_requests(Duration::from_secs(5));
        assert!(bed.refused().is_empty());
        let _ = bed.device.finish(applied);
    }
    bed.device.expire_page_requests(Duration::from_secs(5));
    assert!(bed.refused().is_empty());
}

//= T56
#[test]
fn an_answer_on_its_way_is_not_taken_for_one_to_a_new_group_of_that_number() {
    let mut bed = bed();
    assert!(bed.ask_by(group(VTD, None, 5), 70, 1, 0));
    let step = bed.device.begin(&page_response(VTD, None, 5, 0).readable(), TAIL_SIZE);
    assert!(matches!(step, Step::Apply(_)));
    assert!(bed.ask_by(group(VTD, None, 5), 71, 1, 0));
    assert_eq!(bed.refused(), [70], "the endpoint has given it up");
    let _ = bed.device.finish(Ok(()));
    assert_eq!(bed.events().len(), 1, "of the new group");
    bed.done(page_response(VTD, None, 5, 0));
    assert_eq!(bed.host.answered, [(71, ResponseCode::Success)]);
}

//= T54
#[test]
fn a_table_that_goes_takes_its_requests_along() {
    let all = |bed: &mut Bed| {
        allow(bed, VTD, 10);
        for (pasid, number) in [(None, 1), (Some(9), 2), (Some(10), 3)] {
            assert!(bed.ask(group(VTD, pasid, number), 1, 0));
        }
        assert!(bed.ask(group(VTD2, None, 4), 1, 0));
    };
    type Case<'a> = (&'a dyn Fn(&mut Bed), &'a [u64]);
    let cases: [Case<'_>; 7] = [
        (&|bed| bed.done(request::attach_pt(1, VTD, None, 0x2000)), &[1]),
        (&|bed| bed.done(request::attach_pt(6, VTD, Some(9), 0x1000)), &[2]),
        (&|bed| bed.done(request::attach_none(1, VTD, 10)), &[3]),
        (&|bed| bed.done(request::detach(1, VTD)), &[1, 2, 3]),
        (&|bed| bed.done(request::attach_bypass(8, VTD)), &[1, 2, 3]),
        (&|bed| bed.device.set_tables(EndpointId(VTD), None), &[1, 2, 3]),
        (&|bed| drop(bed.device.reset()), &[1, 2, 3, 4]),
    ];
    for (number, (end, answered)) in cases.into_iter().enumerate() {
        let mut bed = bed();
        all(&mut bed);
        end(&mut bed);
        assert_eq!(bed.refused(), answered, "case {number}");
        assert_eq!(bed.events().len(), if number == 6 { 0 } else { 4 - answered.len() }, "case {number}");
    }
}

//= T54
#[test]
fn a_table_that_holds_the_pasids_takes_their_requests_along() {
    let mut bed = Bed::new();
    let hardware = TableHardware::ArmSmmu3 { idr: [1 << 19, 10 << 6, 0, 0, 0, 1 << 4] };
    bed.device.set_tables(EndpointId(ARM), Some(TableSupport { hardware, ..vtd() }));
    assert!(!bed.ask(group(ARM, Some(9), 1), 1, 0), "there is no table");
    assert_eq!((bed.refused(), bed.ste(1, ARM, STE)), (vec![1], Status::Ok));
    assert!(bed.ask(group(ARM, Some(9), 2), 1, 0) && bed.ask(group(ARM, None, 3), 1, 0));
    assert_eq!(bed.ste(1, ARM, ste(0x5000_0000)), Status::Ok);
    let mut answered = bed.refused();
    answered.sort();
    assert_eq!(answered, [2, 3]);
}

//= T55a
#[test]
fn whoever_has_no_table_has_no_page_to_wait_for() {
    let mut bed = bed();
    for of in [group(VTD, Some(11), 1), group(VTD2, Some(9), 1), group(NOBODY, None, 1), group(SOFT, None, 1)]
    {
        assert!(!bed.ask(of, 1, 0));
        assert_eq!(bed.refused(), [1]);
    }
    bed.done(request::attach_bypass(7, VTD2));
    assert!(!bed.ask(group(VTD2, None, 1), 1, 0), "in bypass");
    let mute = TableSupport { page_requests: None, ..vtd() };
    bed.device.set_tables(EndpointId(VTD), Some(mute));
    assert!(!bed.ask(group(VTD, None, 2), 1, 0), "it asks for none");
    bed.device.reset();
    assert!(!bed.ask(group(VTD, None, 3), 1, 0), "after a reset");
    assert_eq!(bed.refused(), [1, 2, 3]);
    assert!(bed.events().is_empty());
}

//= T55b
#[test]
fn what_waits_has_limits() {
    let mut bed = limited(Limits { page_requests_max: 5, ..Limits::default() });
    assert!(bed.ask(group(VTD, None, 1), 1, 0) && bed.ask(group(VTD, Some(9), 2), 2, 0));
    assert!(!bed.ask(group(VTD, Some(10), 3), 1, 0), "a third group of the endpoint");
    assert!(!bed.ask(group(VTD2, None, 4), 3, 0), "a sixth page");
    assert!(bed.ask(group(VTD2, None, 5), 2, 0));
    assert!(!bed.ask(group(VTD2, None, 6), 0, 0), "nothing at all");
    assert_eq!(bed.refused(), [3, 4, 6]);
    assert_eq!(bed.events().len(), 5);
    // What the driver has seen still counts until it is answered.
    assert!(!bed.ask(group(VTD2, None, 7), 1, 0));
    bed.done(page_response(VTD, Some(9), 2, 0));
    assert!(bed.ask(group(VTD2, None, 8), 1, 0));
    assert_eq!(bed.refused(), [7]);
}

//= T55b
#[test]
fn pages_and_faults_have_limits_of_their_own() {
    let mut bed = limited(Limits { page_requests_max: 2, faults_max: 1, ..Limits::default() });
    let fault = viommu_core::TableFault {
        endpoint: EndpointId(VTD),
        pasid: None,
        address: None,
        access: viommu_core::TableAccess::READ,
        reason: viommu_core::TableFaultReason::Unknown,
    };
    assert!(bed.device.report_table_fault(fault));
    assert!(bed.ask(group(VTD, None, 1), 2, 0));
    assert!(!bed.device.report_table_fault(viommu_core::TableFault { address: Some(1), ..fault }));
    assert_eq!(bed.events().len(), 4, "the last of them tells of the loss");
}

#[test]
fn a_guest_without_the_feature_is_asked_for_nothing() {
    let mut bed = bed();
    assert!(bed.ask(group(VTD, None, 1), 1, 0));
    let fault = viommu_core::TableFault {
        endpoint: EndpointId(VTD),
        pasid: None,
        address: None,
        access: viommu_core::TableAccess::READ,
        reason: viommu_core::TableFaultReason::Table,
    };
    assert!(bed.device.report_table_fault(fault));
    bed.device.negotiate(0);
    assert!(!bed.ask(group(VTD, None, 2), 1, 0));
    assert_eq!(bed.refused(), [1, 2]);
    assert!(bed.events().is_empty());
}
