// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Every call in the kernel that can fail does, one at a time, for every step of a life: the driver is told OK for what is
//! done and an error for what is not, and what the kernel has is what the driver was told.

use viommu_core::wire::{PAGE_RESP_INVALID, PAGE_RESP_SUCCESS, ReqInvalidate};
use viommu_tests::model::request::{
    Wire, attach_bypass, attach_none, attach_pt, detach, invalidate, invalidate_pages, page_response,
};

use crate::answers::{INVALID, SUCCESS};
use crate::bed::{Bed, DEVERR, Hardware, Made, NOENT, NOMEM, OK, ONE, request_event, root, table, word};
use crate::failing::Failing;
use crate::guest::{EVENT, PAGE};

/// What the first endpoint and its PASID 5 have: the page of a table, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Picture {
    own: Own,
    of_pasid: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Own {
    Table(u64),
    Memory,
}

const PASID: u32 = 5;

/// What the driver could find out, and what the kernel has.
#[track_caller]
fn check(bed: &mut Bed, picture: Picture, what: &str) {
    match picture.own {
        Own::Table(page) => bed.assert_at(ONE, None, page),
        Own::Memory => assert!(bed.has_memory(ONE), "{what}"),
    }
    match picture.of_pasid {
        Some(page) => bed.assert_at(ONE, Some(PASID), page),
        None => bed.device(ONE).assert_free(PASID),
    }
    let is_there = |is_there: bool| if is_there { OK } else { NOENT };
    // A page that nothing else looks at.
    let page = |domain| invalidate_pages(domain, 3 * PAGE, 1, 12);
    assert_eq!(bed.send(page(1)), is_there(matches!(picture.own, Own::Table(_))), "{what}");
    let of_pasid = ReqInvalidate { flags: 2.into(), pasid: PASID.into(), ..page(2) };
    assert_eq!(bed.send(of_pasid), is_there(picture.of_pasid.is_some()), "{what}");
}

/// Sends it until it is done; each time before something else fails. Returns how often it did.
fn send_failing<R: Wire + Copy>(
    bed: &mut Bed,
    failing: &mut Failing,
    request: R,
    mut after_failure: impl FnMut(&mut Bed, &str),
) -> u32 {
    for nth in 1..500 {
        let free = bed.next_number();
        let (status, has_failed) = failing.at(nth, || bed.send(request));
        if status == OK {
            return nth - 1;
        }
        let what = format!("failure {nth} of {:x?}, status {status}", request.readable());
        assert!(has_failed, "nothing has failed: {what}");
        assert!([DEVERR, NOMEM].contains(&status), "{what}");
        after_failure(bed, &what);
        assert_eq!(bed.next_number(), free, "something is left: {what}");
    }
    panic!("there is no end to what can fail");
}

/// A life, and what is there after each of its steps.
fn live<R: Wire + Copy>(
    hardware: Hardware,
    life: &[(R, Picture)],
    failures: &mut u32,
    bed: &mut Bed,
    before: Picture,
) -> Picture {
    let mut failing = Failing::thread(&bed.threads.rings);
    let mut before = before;
    for (request, after) in life {
        let failed = send_failing(bed, &mut failing, *request, |bed, what| check(bed, before, what));
        check(bed, *after, &format!("{:x?}", request.readable()));
        println!("{hardware:?}: {failed} failures before {after:?}");
        *failures += failed;
        before = *after;
    }
    before
}

const MEMORY: Picture = Picture { own: Own::Memory, of_pasid: None };

fn own(page: u64, of_pasid: Option<u64>) -> Picture {
    Picture { own: Own::Table(page), of_pasid }
}

#[test]
fn attachments_are_those_before_or_those_after() {
    let mut failures = 0;
    for hardware in [Hardware::Vtd, Hardware::Smmu] {
        let mut bed = Bed::new(&Made::of(hardware));
        let to = |page| table(hardware, 1, ONE, page);
        let first = [(to(1), own(1, None)), (to(1), own(1, None)), (to(2), own(2, None))];
        let mut is = live(hardware, &first, &mut failures, &mut bed, MEMORY);
        if hardware == Hardware::Vtd {
            let pasid_to = |page| attach_pt(2, ONE, Some(PASID), root(page));
            let of_pasid = [
                (pasid_to(1), own(2, Some(1))),
                (pasid_to(3), own(2, Some(3))),
                (to(3), own(3, Some(3))),
                (attach_none(2, ONE, PASID), own(3, None)),
                (pasid_to(4), own(3, Some(4))),
            ];
            is = live(hardware, &of_pasid, &mut failures, &mut bed, is);
        }
        is = live(hardware, &[(detach(1, ONE), MEMORY)], &mut failures, &mut bed, is);
        is = live(hardware, &[(to(1), own(1, None))], &mut failures, &mut bed, is);
        live(hardware, &[(attach_bypass(9, ONE), MEMORY)], &mut failures, &mut bed, is);
    }
    println!("{failures} failures");
    assert!(failures > 50, "only {failures} failures");
}

#[test]
fn an_invalidation_that_fails_is_not_reported_as_done() {
    let mut failures = 0;
    for hardware in [Hardware::Vtd, Hardware::Smmu] {
        let mut bed = Bed::new(&Made::of(hardware));
        assert_eq!(bed.attach(1, ONE, 1), OK);
        let mut failing = Failing::thread(&bed.threads.rings);
        for (request, gone) in [
            (invalidate_pages(1, PAGE, 1, 12), [false, true, false, false]),
            (invalidate_pages(1, 0, 3, 12), [true, true, true, false]),
            (invalidate(1), [true; 4]),
        ] {
            failures += send_failing(&mut bed, &mut failing, request, |_, _| {});
            let kept = match hardware {
                Hardware::Vtd => bed.device(ONE).iotlb(None, word(hardware, 1)),
                Hardware::Smmu => bed.device(ONE).cache(),
            };
            assert_eq!(kept, gone.map(|gone| !gone));
        }
    }
    println!("{failures} failures");
    assert!(failures > 3, "only {failures} failures");
}

/// While requests wait, too, each of which has one answer: that of whoever answers first.
#[test]
fn page_requests_have_one_answer_whatever_fails() {
    let mut bed = Bed::attached(&Made::default());
    assert_eq!(bed.attach_pasid(2, ONE, PASID, 2), OK);
    let mut failing = Failing::thread(&bed.threads.rings);
    let mut page = 3;
    let mut failures = 0;
    for round in 0..4 {
        bed.ask_and_be_told(ONE, None, 1);
        bed.ask_and_be_told(ONE, Some(PASID), 2);
        bed.ask_and_be_told(ONE, Some(PASID), 3);
        let response = page_response(ONE, Some(PASID), 3, PAGE_RESP_SUCCESS);
        failures += send_failing(&mut bed, &mut failing, response, |bed, _| bed.answered(&[]));
        bed.answered(&[(3, SUCCESS)]);
        page += 1;
        let (gone, left) = if round % 2 == 0 { (1, (Some(PASID), 2)) } else { (2, (None, 1)) };
        let replacement = match gone {
            1 => table(Hardware::Vtd, 1, ONE, page),
            _ => attach_pt(2, ONE, Some(PASID), root(page)),
        };
        failures += send_failing(&mut bed, &mut failing, replacement, |bed, _| bed.answered(&[]));
        bed.answered(&[(gone, INVALID)]);
        assert_eq!(bed.respond(ONE, left.0, left.1, PAGE_RESP_INVALID), OK);
        bed.answered(&[(left.1, INVALID)]);
    }
    bed.ask_and_be_told(ONE, None, 1);
    bed.ask_and_be_told(ONE, Some(PASID), 2);
    // A DETACH that fails may have taken the PASID out for a moment, and what waited under it is answered then.
    failures += send_failing(&mut bed, &mut failing, detach(1, ONE), |bed, what| {
        check(bed, own_with_pasid(page), what);
    });
    bed.answered(&[(1, INVALID), (2, INVALID)]);
    println!("{failures} failures");
    assert!(failures > 20, "only {failures} failures");
}

/// The tables after four rounds, of which the last has replaced that of the PASID.
fn own_with_pasid(page: u64) -> Picture {
    own(page - 1, Some(page))
}

/// What the daemon cannot read it reads later.
#[test]
fn a_page_request_that_cannot_be_read_at_once_is_told_later() {
    let mut bed = Bed::attached(&Made::default());
    let mut failing = Failing::thread(&bed.threads.notices);
    for nth in 1..20 {
        let ((), has_failed) = failing.at(nth, || {
            bed.ask(ONE, 0, nth);
            assert_eq!(bed.guest().event(), request_event(ONE, None, nth));
        });
        bed.guest().lend(1, EVENT);
        assert_eq!(bed.respond(ONE, None, nth, PAGE_RESP_SUCCESS), OK);
        bed.answered(&[(nth, SUCCESS)]);
        assert_eq!(bed.respond(ONE, None, nth, PAGE_RESP_SUCCESS), NOENT);
        if !has_failed {
            assert!(nth > 1, "nothing in it can fail");
            return;
        }
    }
    panic!("there is no end to what can fail");
}

#[test]
fn a_removal_or_a_reset_after_failures_leaves_nothing_unanswered() {
    let mut bed = Bed::attached(&Made::default());
    let mut failing = Failing::thread(&bed.threads.rings);
    for nth in [1, 3, 5, 7] {
        bed.ask_and_be_told(ONE, None, nth);
        let (status, _) = failing.at(nth, || bed.attach(1, ONE, 2 + u64::from(nth)));
        assert!([OK, DEVERR, NOMEM].contains(&status), "{status}");
        if status != OK {
            bed.answered(&[]);
        } else {
            bed.answered(&[(nth, INVALID)]);
        }
    }
    bed.remove(ONE);
    assert_eq!(bed.attach_pasid(1, ONE, 0, 1), crate::bed::RANGE);
    assert_ne!(bed.attach_pasid(2, crate::bed::OTHER, PASID, 1), OK);
}
