// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! INVALIDATEs that the host is told of together.

use viommu_core::{Change, Device, HostError, Scope, Status, Step};
use viommu_tests::model::request::{self, TAIL_SIZE, Wire, invalidate, invalidate_pages};

use super::bed::{ARM, Bed, STE, VTD, group, state};

const EIO: HostError = HostError { operation: "test", errno: 5 };

/// ARM in domain 1, VTD in 2.
fn bed() -> Bed {
    let mut bed = Bed::new();
    assert_eq!(bed.ste(1, ARM, STE), Status::Ok);
    assert_eq!(bed.pt(2, VTD, None, 0x1000), Status::Ok);
    bed
}

impl Bed {
    fn begin(&mut self, request: impl Wire) -> Step {
        self.device.begin(&request.readable(), TAIL_SIZE)
    }

    fn another(&mut self, request: impl Wire) -> Option<Step> {
        self.device.begin_another(&request.readable(), TAIL_SIZE)
    }

    fn finish(&mut self, applied: Result<(), HostError>) -> u8 {
        let reply = self.device.finish(applied);
        assert_eq!((reply.bytes.len(), reply.row.map(|row| row.name)), (TAIL_SIZE, Some("INVALIDATE")));
        reply.bytes[0]
    }
}

/// The domain and the first address of an invalidation of pages.
fn begun(step: Option<Step>) -> (u32, u64) {
    match step.expect("it is begun") {
        Step::Apply(Change::Invalidate { domain, invalidation }) => match invalidation.scope {
            Scope::Addresses { start, .. } => (domain.0, start),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

//= T25
#[test]
fn each_has_the_outcome_that_is_its_own_in_their_order() {
    const COUNT: usize = 5;
    for failing in 0..=COUNT {
        let mut bed = bed();
        let before = state(&bed.device);
        let of = |number: u64| invalidate_pages(1 + number as u32 % 2, number << 12, 1, 12);
        assert_eq!(begun(Some(bed.begin(of(0)))), (1, 0));
        for number in 1..COUNT as u64 {
            assert_eq!(begun(bed.another(of(number))), (1 + number as u32 % 2, number << 12));
        }
        let outcome = |number| if number == failing { Err(EIO) } else { Ok(()) };
        let answers: Vec<u8> = (0..COUNT).map(|number| bed.finish(outcome(number))).collect();
        let expected = |number| if number == failing { Status::DevErr } else { Status::Ok } as u8;
        assert_eq!(answers, (0..COUNT).map(expected).collect::<Vec<_>>());
        assert_eq!(state(&bed.device), before);
        assert!(bed.device.finish(Ok(())).row.is_none(), "no more is under way");
    }
}

//= T30 T31
#[test]
fn one_that_is_refused_keeps_no_other_from_being_done() {
    let mut bed = bed();
    assert_eq!(begun(Some(bed.begin(invalidate_pages(1, 0, 1, 12)))), (1, 0));
    for (request, status) in
        [(invalidate_pages(7, 0, 1, 12), Status::NoEnt), (invalidate_pages(1, 0, 0, 12), Status::Range)]
    {
        let Some(Step::Done(reply)) = bed.another(request) else { panic!("it is begun") };
        assert_eq!(*reply.bytes, [status as u8, 0, 0, 0]);
    }
    let Some(Step::Done(reply)) = bed.device.begin_another(&invalidate(1).readable(), TAIL_SIZE - 1) else {
        panic!("there is no room for its status")
    };
    assert!(reply.bytes.is_empty());
    assert_eq!(begun(bed.another(invalidate_pages(1, 0x1000, 1, 12))), (1, 0x1000));
    assert_eq!([bed.finish(Err(EIO)), bed.finish(Ok(()))], [Status::DevErr as u8, Status::Ok as u8]);
}

#[test]
fn whatever_is_no_invalidation_waits() {
    let mut bed = bed();
    assert!(bed.ask(group(VTD, None, 6), 1, 0));
    let others = [
        request::attach_ste(1, ARM, STE).readable(),
        request::detach(1, ARM).readable(),
        request::attach_bypass(5, VTD).readable(),
        request::probe(ARM).readable(),
        request::page_response(VTD, None, 6, 0).readable(),
        Vec::new(),
    ];
    for other in &others {
        assert!(matches!(bed.begin(invalidate(1)), Step::Apply(_)));
        let before = state(&bed.device);
        assert!(bed.device.begin_another(other, TAIL_SIZE).is_none());
        assert_eq!(state(&bed.device), before, "{other:?}");
        assert_eq!(bed.finish(Ok(())), Status::Ok as u8);
    }
    assert!(bed.another(invalidate(1)).is_none(), "nothing is under way");
    for other in &others[..3] {
        assert!(matches!(bed.device.begin(other, TAIL_SIZE), Step::Apply(_)));
        assert!(bed.another(invalidate(1)).is_none(), "what it means depends on this: {other:?}");
    }
}

#[test]
fn no_more_are_under_way_than_there_may_be() {
    let mut bed = bed();
    assert!(matches!(bed.begin(invalidate(1)), Step::Apply(_)));
    for _ in 1..Device::UNDER_WAY_MAX {
        assert!(matches!(bed.another(invalidate(2)), Some(Step::Apply(_))));
    }
    assert!(bed.another(invalidate(1)).is_none());
    assert_eq!(bed.finish(Ok(())), Status::Ok as u8);
    assert!(bed.another(invalidate(1)).is_some(), "one is done");
}

#[test]
fn what_was_begun_before_a_reset_or_another_request_is_not_answered() {
    let ends: [fn(&mut Bed); 3] = [
        |bed| drop(bed.device.reset()),
        |bed| assert!(matches!(bed.begin(invalidate(7)), Step::Done(_))),
        |bed| assert!(bed.device.begin_config_write(36, &[1]).is_some()),
    ];
    for end in ends {
        let mut bed = bed();
        assert!(matches!(bed.begin(invalidate(1)), Step::Apply(_)));
        assert!(bed.another(invalidate(2)).is_some());
        end(&mut bed);
        let _ = bed.device.finish(Ok(()));
        assert!(bed.device.finish(Ok(())).row.is_none());
        if bed.exists(1) {
            assert!(matches!(bed.begin(invalidate(1)), Step::Apply(_)));
            assert_eq!(bed.finish(Ok(())), Status::Ok as u8);
        }
        assert!(bed.device.finish(Ok(())).row.is_none(), "the first was all that was under way");
    }
}
