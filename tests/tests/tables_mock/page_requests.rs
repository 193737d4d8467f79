// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Page requests on their way to the driver, and its responses on their way back.

use std::time::{Duration, Instant};

use viommu_core::wire::{PAGE_RESP_FAILURE, PAGE_RESP_INVALID, PAGE_RESP_SUCCESS, ReqPageResp};
use viommu_tests::model::request::page_response;

use crate::answers::{INVALID, SUCCESS};
use crate::bed::{Bed, Hardware, INVAL, Made, NOENT, OK, ONE, OTHER, request_event};
use crate::guest::EVENT;

#[test]
fn a_request_is_told_and_its_response_reaches_the_device_once() {
    let mut bed = Bed::attached(&Made::default());
    assert_eq!(bed.attach_pasid(1, ONE, 5, 2), OK);
    for (pasid, group, code, answer) in [
        (None, 1, PAGE_RESP_SUCCESS, SUCCESS),
        (None, 2, PAGE_RESP_INVALID, INVALID),
        (Some(5), 3, PAGE_RESP_SUCCESS, SUCCESS),
        (Some(5), 4, PAGE_RESP_INVALID, INVALID),
        (Some(5), 5, PAGE_RESP_FAILURE, INVALID),
        (None, 0xffff, PAGE_RESP_SUCCESS, SUCCESS),
    ] {
        bed.ask_and_be_told(ONE, pasid, group);
        bed.answered(&[]);
        assert_eq!(bed.respond(ONE, pasid, group, code), OK);
        bed.answered(&[(group, answer)]);
        for code in [PAGE_RESP_SUCCESS, PAGE_RESP_INVALID] {
            assert_eq!(bed.respond(ONE, pasid, group, code), NOENT, "a second response");
        }
        bed.answered(&[]);
    }
}

/// Its table of context descriptors says what PASIDs there are.
#[test]
fn requests_of_all_pasids_come_through_the_table_that_holds_them() {
    let mut bed = Bed::attached(&Made::of(Hardware::Smmu));
    for (pasid, group) in [(None, 1), (Some(77), 2)] {
        bed.ask_and_be_told(ONE, pasid, group);
        assert_eq!(bed.respond(ONE, pasid, group, PAGE_RESP_SUCCESS), OK);
        bed.answered(&[(group, SUCCESS)]);
    }
    for (pasid, group) in [(None, 3), (Some(77), 4)] {
        bed.ask_and_be_told(ONE, pasid, group);
    }
    assert_eq!(bed.attach(1, ONE, 2), OK);
    bed.answered(&[(3, INVALID), (4, INVALID)]);
    assert_eq!(bed.respond(ONE, Some(77), 4, PAGE_RESP_SUCCESS), NOENT);
}

/// Numbers of groups are those of an endpoint and a PASID.
#[test]
fn responses_find_their_requests_in_any_order() {
    let mut bed = Bed::attached(&Made::default());
    assert_eq!(bed.attach_pasid(1, ONE, 5, 2), OK);
    assert_eq!(bed.attach(1, OTHER, 1), OK);
    for group in [1, 2, 3] {
        bed.ask_and_be_told(ONE, None, group);
    }
    bed.ask_and_be_told(ONE, Some(5), 2);
    bed.ask_and_be_told(OTHER, None, 2);
    for (endpoint, pasid, group, code, answer) in [
        (OTHER, None, 2, PAGE_RESP_INVALID, INVALID),
        (ONE, None, 3, PAGE_RESP_SUCCESS, SUCCESS),
        (ONE, Some(5), 2, PAGE_RESP_INVALID, INVALID),
        (ONE, None, 2, PAGE_RESP_SUCCESS, SUCCESS),
        (ONE, None, 1, PAGE_RESP_INVALID, INVALID),
    ] {
        assert_eq!(bed.respond(endpoint, pasid, group, code), OK);
        bed.answered(&[(group, answer)]);
    }
}

#[test]
fn a_response_that_nobody_waits_for_is_refused_and_what_waits_goes_on_waiting() {
    let mut bed = Bed::attached(&Made::default());
    assert_eq!(bed.attach_pasid(1, ONE, 5, 2), OK);
    bed.ask_and_be_told(ONE, Some(5), 1);
    let good = page_response(ONE, Some(5), 1, PAGE_RESP_SUCCESS);
    for (response, status) in [
        (ReqPageResp { endpoint: OTHER.into(), ..good }, NOENT),
        (ReqPageResp { endpoint: 0x99.into(), ..good }, NOENT),
        (ReqPageResp { group_id: 2.into(), ..good }, NOENT),
        (ReqPageResp { pasid: 6.into(), ..good }, NOENT),
        (ReqPageResp { pasid: 0.into(), flags: 0.into(), ..good }, NOENT),
        (ReqPageResp { flags: 0.into(), ..good }, INVAL),
        (ReqPageResp { flags: 3.into(), ..good }, INVAL),
        (ReqPageResp { code: 3.into(), ..good }, INVAL),
        (ReqPageResp { reserved: [1; 10], ..good }, INVAL),
    ] {
        assert_eq!(bed.send(response), status, "{response:x?}");
    }
    bed.answered(&[]);
    assert_eq!(bed.send(good), OK);
    bed.answered(&[(1, SUCCESS)]);
}

#[test]
fn a_driver_that_does_not_respond_in_time_is_too_late() {
    let timeout = Duration::from_millis(300);
    let mut bed = Bed::attached(&Made { timeout, ..Made::default() });
    assert_eq!(bed.attach_pasid(1, ONE, 5, 2), OK);
    let begin = Instant::now();
    bed.ask_and_be_told(ONE, None, 1);
    bed.ask_and_be_told(ONE, Some(5), 2);
    bed.answered(&[(1, INVALID), (2, INVALID)]);
    assert!(begin.elapsed() >= timeout, "after {:?}", begin.elapsed());
    assert_eq!(bed.respond(ONE, None, 1, PAGE_RESP_SUCCESS), NOENT);
    assert_eq!(bed.respond(ONE, Some(5), 2, PAGE_RESP_SUCCESS), NOENT);
    bed.ask_and_be_told(ONE, None, 1);
    assert_eq!(bed.respond(ONE, None, 1, PAGE_RESP_SUCCESS), OK, "the number is free again");
    bed.answered(&[(1, SUCCESS)]);
}

/// The endpoint has given the first one up.
#[test]
fn a_group_whose_number_is_used_anew_is_answered_and_the_new_one_waits() {
    let mut bed = Bed::attached(&Made::default());
    bed.ask_and_be_told(ONE, None, 1);
    bed.ask_and_be_told(ONE, None, 1);
    bed.answered(&[(1, INVALID)]);
    assert_eq!(bed.respond(ONE, None, 1, PAGE_RESP_SUCCESS), OK);
    bed.answered(&[(1, SUCCESS)]);
    assert_eq!(bed.respond(ONE, None, 1, PAGE_RESP_SUCCESS), NOENT);
}

/// The kernel hands it on under the table of the device itself.
#[test]
fn a_request_of_a_pasid_without_a_table_is_answered_by_the_device() {
    let mut bed = Bed::attached(&Made::default());
    bed.ask(ONE, 6, 1);
    bed.answered(&[(1, INVALID)]);
    bed.guest().no_event();
    assert_eq!(bed.respond(ONE, Some(6), 1, PAGE_RESP_SUCCESS), NOENT);
}

#[test]
fn requests_wait_for_buffers_and_keep_their_order() {
    let mut bed = Bed::new(&Made::default());
    assert_eq!(bed.attach(1, ONE, 1), OK);
    (1..=5).for_each(|group| bed.ask(ONE, 0, group));
    bed.guest().no_event();
    bed.guest().lend(2, EVENT);
    let told = [bed.guest().event(), bed.guest().event()];
    assert_eq!(told, [1, 2].map(|group| request_event(ONE, None, group)));
    bed.guest().no_event();
    // What is answered is not told any more, as by a driver that has guessed.
    assert_eq!(bed.respond(ONE, None, 4, PAGE_RESP_SUCCESS), OK);
    bed.answered(&[(4, SUCCESS)]);
    bed.guest().lend(3, EVENT);
    let told = [bed.guest().event(), bed.guest().event()];
    assert_eq!(told, [3, 5].map(|group| request_event(ONE, None, group)));
    for group in [1, 2, 3, 5] {
        assert_eq!(bed.respond(ONE, None, group, PAGE_RESP_SUCCESS), OK);
    }
    bed.answered(&[1, 2, 3, 5].map(|group| (group, SUCCESS)));
    bed.guest().no_event();
}

#[test]
fn a_request_whose_time_is_over_is_not_told_any_more() {
    let mut bed = Bed::new(&Made { timeout: Duration::from_millis(100), ..Made::default() });
    assert_eq!(bed.attach(1, ONE, 1), OK);
    bed.ask(ONE, 0, 1);
    bed.answered(&[(1, INVALID)]);
    bed.guest().lend(1, EVENT);
    bed.guest().no_event();
}

#[test]
fn a_request_that_does_not_fit_into_a_buffer_is_answered_by_the_device() {
    let mut bed = Bed::new(&Made::default());
    assert_eq!(bed.attach(1, ONE, 1), OK);
    for (group, bytes) in [(1, 24), (2, EVENT - 1), (3, 1)] {
        bed.guest().lend(1, bytes);
        bed.ask(ONE, 0, group);
        bed.answered(&[(group, INVALID)]);
        assert_eq!(bed.guest().event().written, 0);
        assert_eq!(bed.respond(ONE, None, group, PAGE_RESP_SUCCESS), NOENT);
    }
    // The next one is not in its way.
    bed.guest().lend(1, 24);
    bed.guest().lend(1, EVENT);
    bed.ask(ONE, 0, 4);
    bed.answered(&[(4, INVALID)]);
    bed.ask(ONE, 0, 5);
    assert_eq!(bed.guest().event().written, 0);
    assert_eq!(bed.guest().event(), request_event(ONE, None, 5));
    assert_eq!(bed.respond(ONE, None, 5, PAGE_RESP_SUCCESS), OK);
    bed.answered(&[(5, SUCCESS)]);
}

/// The kernel answers them by itself.
#[test]
fn requests_under_no_table_of_the_guests_are_none_of_its() {
    let mut bed = Bed::new(&Made::default());
    bed.guest().lend(8, EVENT);
    bed.ask(ONE, 0, 1);
    bed.answered(&[(1, INVALID)]);
    assert_eq!(bed.attach(1, ONE, 1), OK);
    bed.ask_and_be_told(ONE, None, 2);
    assert_eq!(bed.detach(1, ONE), OK);
    bed.answered(&[(2, INVALID)]);
    bed.ask(ONE, 0, 3);
    bed.answered(&[(3, INVALID)]);
    bed.guest().no_event();
}
