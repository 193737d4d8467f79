// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Every call in the kernel that can fail does, one at a time, for every step of a life: the driver is told OK for what is
//! done and an error for what is not, and what the kernel has is what the driver was told.

use viommu_core::wire::{PAGE_RESP_INVALID, PAGE_RESP_SUCCESS, ReqInvalidate};
use viommu_tests::model::request::{
    TAIL_SIZE, Wire, attach_bypass, attach_none, attach_pt, detach, invalidate, invalidate_pages,
    page_response,
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

/// A request as it is on the ring.
struct Raw(Vec<u8>);

impl Wire for &Raw {
    fn readable(&self) -> Vec<u8> {
        self.0.clone()
    }

    fn writable(&self) -> usize {
        TAIL_SIZE
    }
}

/// A request, and what is there when it is done.
struct Step {
    request: Raw,
    after: Picture,
}

fn step(request: impl Wire, after: Picture) -> Step {
    Step { request: Raw(request.readable()), after }
}

/// A guest that has got so far.
fn after(hardware: Hardware, steps: &[Step]) -> Bed {
    let mut bed = Bed::new(&Made::of(hardware));
    steps.iter().for_each(|step| assert_eq!(bed.send(&step.request), OK));
    bed
}

/// A life in which everything fails that can, each by itself. Returns how many requests failed.
fn live(hardware: Hardware, steps: &[Step]) -> u32 {
    let (mut failed, mut survived) = (0, 0);
    let mut bed = after(hardware, &[]);
    let mut before = MEMORY;
    for (number, step) in steps.iter().enumerate() {
        for nth in 1..200 {
            let free = bed.next_number();
            let mut failing = Failing::thread(&bed.threads.rings);
            let (status, has_failed) = failing.at(nth, || bed.send(&step.request));
            let what = format!("{hardware:?}, failure {nth} before {:?}: status {status}", step.after);
            if status == OK {
                check(&mut bed, step.after, &what);
                if !has_failed {
                    break;
                }
                // It could do without. What else can fail is found from the same beginning.
                survived += 1;
                drop(bed);
                bed = after(hardware, &steps[..number]);
                continue;
            }
            assert!(has_failed, "nothing has failed: {what}");
            assert!([DEVERR, NOMEM].contains(&status), "{what}");
            check(&mut bed, before, &what);
            assert_eq!(bed.next_number(), free, "something is left: {what}");
            failed += 1;
        }
        check(&mut bed, step.after, "all that can fail");
        before = step.after;
    }
    println!("{hardware:?}: {failed} requests failed, {survived} did without");
    failed
}

const MEMORY: Picture = Picture { own: Own::Memory, of_pasid: None };

fn own(page: u64, of_pasid: Option<u64>) -> Picture {
    Picture { own: Own::Table(page), of_pasid }
}

#[test]
fn attachments_are_those_before_or_those_after() {
    for hardware in [Hardware::Vtd, Hardware::Smmu] {
        let to = |page, of_pasid| step(table(hardware, 1, ONE, page), own(page, of_pasid));
        let mut steps = vec![to(1, None), to(1, None), to(2, None)];
        if hardware == Hardware::Vtd {
            let pasid_to = |page, after| step(attach_pt(2, ONE, Some(PASID), root(page)), after);
            steps.extend([
                pasid_to(1, own(2, Some(1))),
                pasid_to(3, own(2, Some(3))),
                to(3, Some(3)),
                step(attach_none(2, ONE, PASID), own(3, None)),
                pasid_to(4, own(3, Some(4))),
            ]);
        }
        steps.extend([step(detach(1, ONE), MEMORY), to(1, None), step(attach_bypass(9, ONE), MEMORY)]);
        let failed = live(hardware, &steps);
        assert!(failed > 30, "only {failed} failures");
    }
}

#[test]
fn an_invalidation_that_fails_is_not_reported_as_done() {
    let mut failed = 0;
    for hardware in [Hardware::Vtd, Hardware::Smmu] {
        for (request, gone) in [
            (invalidate_pages(1, PAGE, 1, 12), [false, true, false, false]),
            (invalidate_pages(1, 0, 3, 12), [true, true, true, false]),
            (invalidate(1), [true; 4]),
        ] {
            for nth in 1..100 {
                let mut bed = after(hardware, &[step(table(hardware, 1, ONE, 1), own(1, None))]);
                let (status, has_failed) = Failing::thread(&bed.threads.rings).at(nth, || bed.send(request));
                if status != OK {
                    assert!(has_failed && [DEVERR, NOMEM].contains(&status), "failure {nth}: {status}");
                    failed += 1;
                    assert_eq!(bed.send(request), OK);
                }
                let kept = match hardware {
                    Hardware::Vtd => bed.device(ONE).iotlb(None, word(hardware, 1)),
                    Hardware::Smmu => bed.device(ONE).cache(),
                };
                assert_eq!(kept, gone.map(|gone| !gone));
                if !has_failed {
                    break;
                }
            }
        }
    }
    println!("{failed} requests failed");
    assert!(failed > 3, "only {failed} failures");
}

/// Sends it when something fails, and again if it failed, having looked at what there is.
fn send_failing(
    bed: &mut Bed,
    nth: u32,
    request: impl Wire + Copy,
    check: impl FnOnce(&mut Bed),
) -> (u32, bool) {
    let (status, has_failed) = Failing::thread(&bed.threads.rings).at(nth, || bed.send(request));
    if status == OK {
        return (0, has_failed);
    }
    assert!(has_failed && [DEVERR, NOMEM].contains(&status), "failure {nth}: {status}");
    check(bed);
    assert_eq!(bed.send(request), OK, "nothing fails any more");
    (1, true)
}

/// That of whoever answers first.
#[test]
fn page_requests_have_one_answer_whatever_fails() {
    let mut bed = Bed::attached(&Made::default());
    let mut failed = 0;
    for nth in 1..100 {
        let page = 1 + u64::from(nth);
        let is_odd = nth % 2 == 1;
        assert_eq!(bed.attach(1, ONE, page), OK);
        assert_eq!(bed.attach_pasid(2, ONE, PASID, page), OK);
        bed.ask_and_be_told(ONE, None, 1);
        bed.ask_and_be_told(ONE, Some(PASID), 2);
        bed.ask_and_be_told(ONE, Some(PASID), 3);
        let response = page_response(ONE, Some(PASID), 3, PAGE_RESP_SUCCESS);
        let (response_failed, _) = send_failing(&mut bed, nth, response, |bed| bed.answered(&[]));
        bed.answered(&[(3, SUCCESS)]);
        let (replacement, gone, left) = if is_odd {
            (table(Hardware::Vtd, 1, ONE, page + 1), 1, (Some(PASID), 2))
        } else {
            (attach_pt(2, ONE, Some(PASID), root(page + 1)), 2, (None, 1))
        };
        let (replacement_failed, can_fail) =
            send_failing(&mut bed, nth, replacement, |bed| bed.answered(&[]));
        bed.answered(&[(gone, INVALID)]);
        assert_eq!(bed.respond(ONE, left.0, left.1, PAGE_RESP_INVALID), OK);
        bed.answered(&[(left.1, INVALID)]);
        bed.ask_and_be_told(ONE, None, 1);
        bed.ask_and_be_told(ONE, Some(PASID), 2);
        let picture = if is_odd { own(page + 1, Some(page)) } else { own(page, Some(page + 1)) };
        // One that fails may have taken the PASID out for a moment: then the kernel has answered what waited there.
        let (detach_failed, can_detach_fail) =
            send_failing(&mut bed, nth, detach(1, ONE), |bed| check(bed, picture, "a DETACH that fails"));
        bed.answered(&[(1, INVALID), (2, INVALID)]);
        assert_eq!(bed.respond(ONE, None, 1, PAGE_RESP_SUCCESS), NOENT);
        failed += response_failed + replacement_failed + detach_failed;
        if !can_fail && !can_detach_fail {
            break;
        }
    }
    println!("{failed} requests failed");
    assert!(failed > 10, "only {failed} failures");
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

/// It is tried again, and nothing that was there is lost.
#[test]
fn page_requests_that_cannot_be_read_for_a_while_are_told_when_they_can() {
    let mut bed = Bed::attached(&Made::default());
    let failing = Failing::thread(&bed.threads.notices);
    failing.all(|| {
        // The first of those that wait takes memory for all.
        bed.ask(ONE, 0, 1);
        bed.ask(ONE, 0, 2);
        bed.guest().no_event();
    });
    let told = [bed.guest().event(), bed.guest().event()];
    assert_eq!(told, [1, 2].map(|group| request_event(ONE, None, group)));
    for group in [1, 2] {
        assert_eq!(bed.respond(ONE, None, group, PAGE_RESP_SUCCESS), OK);
        bed.answered(&[(group, SUCCESS)]);
    }
}
