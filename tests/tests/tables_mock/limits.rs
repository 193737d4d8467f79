// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! More than the device keeps: of page requests, domains and PASIDs.

use viommu_core::Limits;
use viommu_core::wire::PAGE_RESP_SUCCESS;

use crate::answers::{INVALID, SUCCESS};
use crate::bed::{Bed, Made, NOENT, NOMEM, OK, ONE, OTHER, request_event};
use crate::guest::EVENT;

#[test]
fn more_groups_than_may_wait_are_answered_by_the_device() {
    let mut bed = Bed::attached(&Made { requests_max: 3, ..Made::default() });
    assert_eq!(bed.attach_pasid(1, ONE, 5, 2), OK);
    assert_eq!(bed.attach(1, OTHER, 1), OK);
    bed.ask_and_be_told(ONE, None, 1);
    bed.ask_and_be_told(ONE, Some(5), 2);
    bed.ask_and_be_told(ONE, None, 3);
    for (pasid, group) in [(0, 4), (5, 5)] {
        bed.ask(ONE, pasid, group);
        bed.answered(&[(group, INVALID)]);
    }
    bed.guest().no_event();
    // That is one endpoint's matter.
    bed.ask_and_be_told(OTHER, None, 6);
    assert_eq!(bed.respond(ONE, None, 4, PAGE_RESP_SUCCESS), NOENT);
    assert_eq!(bed.respond(ONE, None, 3, PAGE_RESP_SUCCESS), OK);
    bed.answered(&[(3, SUCCESS)]);
    bed.ask_and_be_told(ONE, None, 7);
}

#[test]
fn more_pages_than_are_kept_in_all_are_answered_by_the_device() {
    let limits = Limits { page_requests_max: 3, ..Limits::default() };
    let mut bed = Bed::attached(&Made { limits, ..Made::default() });
    assert_eq!(bed.attach(1, OTHER, 1), OK);
    bed.ask_and_be_told(ONE, None, 1);
    bed.ask_and_be_told(OTHER, None, 2);
    bed.ask_and_be_told(ONE, None, 3);
    bed.ask(OTHER, 0, 4);
    bed.answered(&[(4, INVALID)]);
    assert_eq!(bed.respond(ONE, None, 1, PAGE_RESP_SUCCESS), OK);
    bed.answered(&[(1, SUCCESS)]);
    bed.ask_and_be_told(OTHER, None, 5);
}

/// What is answered before it was told takes no buffer.
#[test]
fn without_buffers_no_more_wait_than_may() {
    let mut bed = Bed::new(&Made { requests_max: 2, ..Made::default() });
    assert_eq!(bed.attach(1, ONE, 1), OK);
    bed.ask(ONE, 0, 1);
    bed.ask(ONE, 0, 2);
    bed.guest().no_event();
    for group in 3..10 {
        bed.ask(ONE, 0, group);
        bed.answered(&[(group, INVALID)]);
    }
    bed.guest().lend(8, EVENT);
    for group in [1, 2] {
        assert_eq!(bed.guest().event(), request_event(ONE, None, group));
        assert_eq!(bed.respond(ONE, None, group, PAGE_RESP_SUCCESS), OK);
        bed.answered(&[(group, SUCCESS)]);
    }
    bed.guest().no_event();
}

#[test]
fn more_domains_and_pasids_than_are_kept_are_refused_and_get_nowhere() {
    let limits = Limits { domains_max: 2, pasids_max: 2, ..Limits::default() };
    let mut bed = Bed::new(&Made { limits, ..Made::default() });
    assert_eq!(bed.attach(1, ONE, 1), OK);
    assert_eq!(bed.attach(2, OTHER, 2), OK);
    assert_eq!(bed.attach_pasid(3, ONE, 5, 3), NOMEM);
    bed.device(ONE).assert_free(5);
    assert_eq!(bed.attach_pasid(1, ONE, 5, 3), OK);
    assert_eq!(bed.attach_pasid(1, OTHER, 5, 3), OK);
    assert_eq!(bed.attach_pasid(1, ONE, 6, 3), NOMEM);
    bed.device(ONE).assert_free(6);
    assert_eq!(bed.attach_pasid(2, ONE, 5, 4), OK, "one that is there moves");
    bed.assert_at(ONE, Some(5), 4);
}
