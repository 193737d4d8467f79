// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Faults and events: A53 to A57, and when a driver can take them.

use viommu_core::{Access, EVENT_SIZE, EndpointId, Fault, FaultReason, Iova, Status};
use viommu_tests::model::request;

use crate::bed::{Bed, EP, EP2, NOBODY, config};

fn fault(endpoint: u32, address: u64) -> Fault {
    Fault {
        endpoint: EndpointId(endpoint),
        address: Iova(address),
        access: Access::WRITE,
        reason: FaultReason::Mapping,
    }
}

/// A bed whose driver is up.
fn up() -> Bed {
    let mut bed = Bed::new();
    assert_eq!(bed.attach(1, EP), Status::Ok);
    bed
}

/// The addresses of all events that wait, which are taken.
fn take(bed: &mut Bed) -> Vec<u64> {
    let mut addresses = vec![];
    while let Some(event) = bed.device.next_event() {
        addresses.push(event.bytes()[16..].try_into().map(u64::from_le_bytes).expect("eight bytes"));
        bed.device.event_sent(&event);
    }
    addresses
}

//= A53a A53b A54 A55
#[test]
fn an_event_has_each_field_at_its_place_and_zeroes_elsewhere() {
    let reasons = [(FaultReason::Unknown, 0), (FaultReason::Domain, 1), (FaultReason::Mapping, 2)];
    let accesses =
        [(Access::READ, 1), (Access::WRITE, 2), (Access::READ | Access::WRITE, 3), (Access::empty(), 0)];
    for (reason, on_the_wire) in reasons {
        for (access, flags) in accesses {
            let fault = Fault {
                endpoint: EndpointId(0x0102_0304),
                address: Iova(0x1122_3344_5566_7788),
                access,
                reason,
            };
            let mut expected = vec![on_the_wire, 0, 0, 0, flags, 1, 0, 0, 4, 3, 2, 1, 0, 0, 0, 0];
            expected.extend(0x1122_3344_5566_7788u64.to_le_bytes());
            assert_eq!(fault.event().to_vec(), expected);
        }
    }
}

//= A54
#[test]
fn a_fault_of_an_endpoint_that_does_not_exist_is_dropped_and_counted() {
    let mut bed = up();
    assert!(!bed.device.report(fault(NOBODY, 0)));
    assert_eq!((bed.device.next_event(), bed.device.faults_dropped()), (None, 1));
}

//= A56a
#[test]
fn an_event_is_one_buffer_of_24_bytes_however_many_wait() {
    assert_eq!(EVENT_SIZE, 24);
    let mut bed = up();
    assert!(bed.device.report(fault(EP, 0x1000)) && bed.device.report(fault(EP, 0x2000)));
    assert_eq!(bed.next_event(), Some(fault(EP, 0x1000).event().to_vec()));
    assert_eq!(bed.next_event(), Some(fault(EP, 0x1000).event().to_vec()), "until it is sent");
    let [first, second] = [0x1000, 0x2000].map(|address| {
        let event = bed.device.next_event().expect("one waits");
        assert_eq!(event.bytes(), fault(EP, address).event());
        bed.device.event_sent(&event);
        event
    });
    assert_eq!(bed.device.next_event(), None);
    bed.device.event_sent(&second);
    assert!(bed.device.report(fault(EP, 0x2000)));
    bed.device.event_sent(&first);
    assert!(bed.device.next_event().is_some(), "another event than the one that was sent");
}

//= A57
#[test]
fn faults_beyond_the_limit_are_dropped_and_counted_and_the_oldest_are_kept() {
    let mut config = config();
    config.limits.faults_max = 3;
    let mut bed = Bed::with(config);
    bed.attach(1, EP);
    let queued: Vec<bool> = (0..5).map(|i| bed.device.report(fault(EP, i << 12))).collect();
    assert_eq!(queued, [true, true, true, false, false]);
    assert_eq!(bed.device.faults_dropped(), 2);
    assert_eq!(take(&mut bed), [0, 0x1000, 0x2000]);
    assert!(bed.device.report(fault(EP, 0x9000)), "there is room again");
}

#[test]
fn a_fault_that_waits_already_is_not_queued_twice() {
    let mut bed = up();
    for _ in 0..1000 {
        assert!(bed.device.report(fault(EP, 0x1000)));
    }
    assert!(bed.device.report(Fault { access: Access::READ, ..fault(EP, 0x1000) }), "another access");
    assert!(bed.device.report(fault(EP2, 0x1000)), "another endpoint");
    assert_eq!(take(&mut bed).len(), 3);
    assert!(bed.device.report(fault(EP, 0x1000)));
    assert_eq!(take(&mut bed), [0x1000], "once sent it can happen anew");
    assert_eq!(bed.device.faults_dropped(), 0);
}

#[test]
fn events_wait_for_the_first_request_of_the_driver() {
    let mut bed = Bed::new();
    assert!(bed.device.report(fault(EP, 0x1000)));
    assert_eq!(bed.device.next_event(), None);
    bed.write_config(36, &[1]);
    bed.raw(&[0x77; 20], 4);
    assert_eq!(bed.device.next_event(), None, "neither is a request of ours");
    assert_eq!(bed.send(request::probe(EP)), Status::Ok);
    assert_eq!(take(&mut bed), [0x1000]);
}

#[test]
fn a_refused_request_shows_that_the_driver_is_up_too() {
    let mut bed = Bed::new();
    assert!(bed.device.report(fault(EP, 0x1000)));
    assert_eq!(bed.attach(1, NOBODY), Status::NoEnt);
    assert!(bed.device.next_event().is_some());
}

#[test]
fn the_fault_of_a_translation_can_be_reported_as_it_is() {
    let mut bed = up();
    let refused = bed.device.translate(EndpointId(EP), Iova(0x5123), 8, Access::WRITE).find_map(Result::err);
    assert!(bed.device.report(refused.expect("nothing is mapped")));
    assert_eq!(bed.next_event(), Some(fault(EP, 0x5123).event().to_vec()));
}

#[test]
fn a_reset_forgets_faults_and_that_the_driver_is_up() {
    let mut bed = up();
    bed.device.report(fault(EP, 0x1000));
    bed.device.reset();
    assert!(bed.device.report(fault(EP, 0x2000)));
    assert_eq!(bed.device.next_event(), None);
    bed.host.reset(false);
    bed.attach(1, EP);
    assert_eq!(take(&mut bed), [0x2000]);
}

//= A58
#[test]
fn a_failure_of_the_host_is_told_by_the_status_and_not_as_a_fault_of_an_endpoint() {
    let mut bed = up();
    bed.host.fail(0, 5);
    assert_eq!(bed.attach(1, EP2), Status::DevErr);
    assert_eq!((bed.device.next_event(), bed.device.faults_dropped()), (None, 0));
}
