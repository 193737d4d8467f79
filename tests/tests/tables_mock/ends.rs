// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What page requests come through goes, or who would answer them: each has its answer then, and a response that comes
//! later is refused.

use std::thread;

use viommu_core::EndpointId;
use viommu_core::wire::PAGE_RESP_SUCCESS;
use viommu_tests::model::request::{attach_bypass, attach_none, invalidate};

use crate::answers::{INVALID, SUCCESS};
use crate::bed::{Bed, Hardware, Made, NOENT, OK, ONE, OTHER, eventually, request_event, table};
use crate::guest::{EVENT, PATIENCE};

/// Three requests of the device itself and two of PASID 5, of which the driver has been told, and one of the other
/// endpoint.
fn waiting() -> Bed {
    let mut bed = Bed::attached(&Made::default());
    assert_eq!(bed.attach_pasid(1, ONE, 5, 2), OK);
    assert_eq!(bed.attach(1, OTHER, 1), OK);
    (1..=3).for_each(|group| bed.ask_and_be_told(ONE, None, group));
    (4..=5).for_each(|group| bed.ask_and_be_told(ONE, Some(5), group));
    bed.ask_and_be_told(OTHER, None, 6);
    bed
}

const OWN: [(u32, u32); 3] = [(1, INVALID), (2, INVALID), (3, INVALID)];
const OF_PASID: [(u32, u32); 2] = [(4, INVALID), (5, INVALID)];
const OF_OTHER: [(u32, u32); 1] = [(6, INVALID)];

#[track_caller]
fn is_too_late(bed: &mut Bed, pasid: Option<u32>, answered: &[(u32, u32)]) {
    for (group, _) in answered {
        assert_eq!(bed.respond(ONE, pasid, *group, PAGE_RESP_SUCCESS), NOENT);
    }
    bed.answered(&[]);
}

#[test]
fn a_table_that_is_replaced_takes_its_requests_along_and_no_others() {
    let mut bed = waiting();
    assert_eq!(bed.attach(1, ONE, 3), OK);
    bed.answered(&OWN);
    is_too_late(&mut bed, None, &OWN);
    assert_eq!(bed.attach_pasid(1, ONE, 5, 4), OK);
    bed.answered(&OF_PASID);
    is_too_late(&mut bed, Some(5), &OF_PASID);
    assert_eq!(bed.respond(OTHER, None, 6, PAGE_RESP_SUCCESS), OK);
    bed.answered(&[(6, SUCCESS)]);
}

/// Linux attaches anew what it knows nothing about.
#[test]
fn a_table_that_takes_its_own_place_does_so_too() {
    let mut bed = waiting();
    assert_eq!(bed.attach(1, ONE, 1), OK);
    bed.answered(&OWN);
    is_too_late(&mut bed, None, &OWN);
    assert_eq!(bed.attach_pasid(1, ONE, 5, 2), OK);
    bed.answered(&OF_PASID);
    is_too_late(&mut bed, Some(5), &OF_PASID);
}

#[test]
fn a_pasid_without_a_table_waits_for_nothing() {
    let mut bed = waiting();
    assert_eq!(bed.send(attach_none(1, ONE, 5)), OK);
    bed.answered(&OF_PASID);
    is_too_late(&mut bed, Some(5), &OF_PASID);
    assert_eq!(bed.respond(ONE, None, 2, PAGE_RESP_SUCCESS), OK);
    bed.answered(&[(2, SUCCESS)]);
}

#[test]
fn an_endpoint_that_is_detached_or_in_bypass_mode_waits_for_nothing() {
    let mut bed = waiting();
    assert_eq!(bed.detach(1, ONE), OK);
    bed.answered(&[&OWN[..], &OF_PASID].concat());
    is_too_late(&mut bed, None, &OWN);
    is_too_late(&mut bed, Some(5), &OF_PASID);
    assert_eq!(bed.send(attach_bypass(9, OTHER)), OK);
    bed.answered(&OF_OTHER);
    assert_eq!(bed.respond(OTHER, None, 6, PAGE_RESP_SUCCESS), NOENT);
}

/// They linger: their devices may ask still, and there is no driver that knows of it.
#[test]
fn a_reset_answers_all_and_what_comes_after_it() {
    for is_by_message in [true, false] {
        let mut bed = waiting();
        if is_by_message {
            bed.guest().front_end.reset_device().expect("it is reset");
        } else {
            bed.guest().stop_rings();
        }
        if !is_by_message {
            // It shows in where the ring begins anew.
            bed.guest().restart();
            assert_eq!(bed.send(invalidate(1)), NOENT);
        }
        bed.answered(&[&OWN[..], &OF_PASID, &OF_OTHER].concat());
        bed.ask(ONE, 0, 7);
        bed.ask(ONE, 5, 8);
        bed.answered(&[(7, INVALID), (8, INVALID)]);
        if is_by_message {
            bed.guest().restart();
        }
        bed.guest().lend(8, EVENT);
        assert_eq!(bed.send(invalidate(1)), NOENT, "there is no such domain any more");
        bed.guest().no_event();
        is_too_late(&mut bed, None, &OWN);
        assert_eq!(bed.attach(1, ONE, 3), OK);
        bed.device(ONE).assert_free(5);
        bed.ask_and_be_told(ONE, None, 1);
        assert_eq!(bed.respond(ONE, None, 1, PAGE_RESP_SUCCESS), OK);
        bed.answered(&[(1, SUCCESS)]);
    }
}

#[test]
fn a_device_that_is_quiet_after_a_reset_is_taken_out_of_its_tables() {
    let mut bed = waiting();
    bed.guest().front_end.reset_device().expect("it is reset");
    bed.answered(&[&OWN[..], &OF_PASID, &OF_OTHER].concat());
    assert!(!bed.has_memory(ONE));
    bed.device(ONE).set_quiet(true);
    eventually("it reaches memory", || bed.has_memory(ONE));
    bed.device(ONE).assert_free(5);
}

#[test]
fn a_guest_that_is_paused_can_respond_when_it_goes_on() {
    let mut bed = waiting();
    bed.guest().stop_rings();
    bed.ask(ONE, 0, 7);
    bed.answered(&[]);
    bed.guest().start_rings();
    assert_eq!(bed.respond(ONE, None, 1, PAGE_RESP_SUCCESS), OK);
    bed.answered(&[(1, SUCCESS)]);
    assert_eq!(bed.guest().event(), request_event(ONE, None, 7));
    assert_eq!(bed.respond(ONE, None, 7, PAGE_RESP_SUCCESS), OK);
    bed.answered(&[(7, SUCCESS)]);
}

#[test]
fn when_the_vmm_is_gone_all_have_their_answer() {
    let mut bed = waiting();
    bed.disconnect();
    bed.answered(&[&OWN[..], &OF_PASID, &OF_OTHER].concat());
    bed.device(ONE).assert_free(5);
}

/// It asks until it is gone, and nobody answers for it after that.
#[test]
fn a_device_that_is_removed_has_all_its_answers_and_the_driver_is_too_late() {
    let mut bed = waiting();
    bed.remove(ONE);
    bed.answered(&[&OWN[..], &OF_PASID].concat());
    is_too_late(&mut bed, None, &OWN);
    is_too_late(&mut bed, Some(5), &OF_PASID);
    bed.device(ONE).assert_free(5);
    assert_eq!(bed.respond(OTHER, None, 6, PAGE_RESP_SUCCESS), OK);
    bed.answered(&[(6, SUCCESS)]);
}

#[test]
fn a_device_that_is_blocked_waits_for_nothing_and_has_the_tables_of_the_guest_afterwards() {
    for hardware in [Hardware::Vtd, Hardware::Smmu] {
        let mut bed = Bed::attached(&Made::of(hardware));
        (1..=3).for_each(|group| bed.ask_and_be_told(ONE, None, group));
        let endpoint = EndpointId(ONE);
        bed.iommu.block_endpoint(endpoint).expect("done");
        bed.answered(&OWN);
        is_too_late(&mut bed, None, &OWN);
        assert!(bed.device(ONE).member().is_blocked());
        assert_eq!(bed.attach(1, ONE, 3), OK);
        assert!(bed.device(ONE).member().is_blocked());
        bed.iommu.unblock_endpoint(endpoint).expect("done");
        bed.assert_at(ONE, None, 3);
        bed.ask_and_be_told(ONE, None, 4);
        assert_eq!(bed.respond(ONE, None, 4, PAGE_RESP_SUCCESS), OK);
        bed.answered(&[(4, SUCCESS)]);
    }
}

#[test]
fn pasids_are_blocked_with_their_device() {
    let mut bed = waiting();
    let endpoint = EndpointId(ONE);
    bed.iommu.block_endpoint(endpoint).expect("done");
    bed.answered(&[&OWN[..], &OF_PASID].concat());
    bed.device(ONE).assert_free(5);
    assert_eq!(bed.attach_pasid(1, ONE, 5, 4), OK);
    bed.device(ONE).assert_free(5);
    assert_eq!(bed.respond(OTHER, None, 6, PAGE_RESP_SUCCESS), OK);
    bed.answered(&[(6, SUCCESS)]);
    bed.iommu.unblock_endpoint(endpoint).expect("done");
    bed.assert_at(ONE, None, 1);
    bed.assert_at(ONE, Some(5), 4);
}

#[test]
fn what_a_removed_device_asked_for_is_not_told_any_more() {
    let mut bed = Bed::new(&Made::default());
    assert_eq!(bed.attach(1, ONE, 1), OK);
    bed.ask(ONE, 0, 1);
    // Until the daemon has it.
    bed.guest().lend(1, EVENT);
    assert_eq!(bed.guest().event(), request_event(ONE, None, 1));
    bed.ask(ONE, 0, 2);
    bed.guest().no_event();
    bed.remove(ONE);
    bed.answered(&[(1, INVALID), (2, INVALID)]);
    bed.guest().lend(1, EVENT);
    bed.guest().no_event();
}

/// The daemon is at work on the attachment, and cannot look at requests.
#[test]
fn a_request_that_comes_while_its_table_is_replaced_has_one_answer() {
    for hardware in [Hardware::Vtd, Hardware::Smmu] {
        let mut bed = Bed::attached(&Made::of(hardware));
        bed.ask_and_be_told(ONE, None, 1);
        let (device, comings) = (bed.device(ONE).clone(), bed.device(ONE).comings());
        let closed = device.close();
        bed.guest().submit(table(hardware, 1, ONE, 2));
        bed.guest().kick();
        eventually("the daemon replaces the table", || device.comings() > comings);
        bed.ask(ONE, 0, 2);
        // The kernel has it by then, and the daemon does not.
        thread::sleep(PATIENCE / 600);
        bed.answered(&[]);
        drop(closed);
        assert_eq!(bed.guest().complete().1, OK);
        bed.answered(&[(1, INVALID), (2, INVALID)]);
        bed.guest().no_event();
        assert_eq!(bed.respond(ONE, None, 2, PAGE_RESP_SUCCESS), NOENT);
        bed.ask_and_be_told(ONE, None, 2);
        assert_eq!(bed.respond(ONE, None, 2, PAGE_RESP_SUCCESS), OK);
        bed.answered(&[(2, SUCCESS)]);
    }
}

/// A replacement that the kernel refuses leaves all as it was.
#[test]
fn requests_go_on_waiting_when_their_table_stays() {
    let mut bed = waiting();
    bed.device(ONE).member().set_stuck(true);
    assert_eq!(bed.attach(1, ONE, 3), crate::bed::DEVERR);
    assert_eq!(bed.detach(1, ONE), crate::bed::DEVERR);
    bed.answered(&[]);
    for group in 1..=3 {
        assert_eq!(bed.respond(ONE, None, group, PAGE_RESP_SUCCESS), OK);
    }
    bed.answered(&[1, 2, 3].map(|group| (group, SUCCESS)));
    bed.device(ONE).member().set_stuck(false);
    assert_eq!(bed.attach(1, ONE, 3), OK);
}
