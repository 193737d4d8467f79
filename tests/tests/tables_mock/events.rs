// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Faults at tables, which come from the event queue of the vIOMMU, and those that are lost.

use std::thread::sleep;

use viommu_core::Limits;
use viommu_core::wire::{FAULT_F_LOST, FAULT_R_UNKNOWN};

use crate::answers::INVALID;
use crate::bed::{Bed, Hardware, Made, OK, ONE, OTHER, eventually, request_event, table};
use crate::guest::{EVENT, PATIENCE, Told};

/// The mock says no more of a fault than whose it is.
fn fault(endpoint: u32) -> Told {
    let reason = FAULT_R_UNKNOWN;
    Told { written: EVENT, reason, flags: 0, endpoint, pasid: 0, address: 0, group: 0 }
}

fn lost(endpoint: u32) -> Told {
    Told { flags: FAULT_F_LOST, ..fault(endpoint) }
}

/// Both endpoints have tables, and no buffers are there.
fn with(limits: Limits) -> Bed {
    let mut bed = Bed::new(&Made { limits, ..Made::of(Hardware::Smmu) });
    assert_eq!(bed.attach(1, ONE, 1), OK);
    assert_eq!(bed.attach(1, OTHER, 2), OK);
    bed
}

/// A fault happens; if there is no buffer, it waits for one.
fn fail(bed: &Bed, endpoint: u32) {
    let faults = bed.faults();
    bed.device(endpoint).mock().raise_event().expect("it is raised");
    eventually("the daemon knows of it", || bed.faults() > faults);
}

#[test]
fn a_fault_is_told_with_its_endpoint() {
    let mut bed = with(Limits::default());
    bed.guest().lend(4, EVENT);
    for endpoint in [ONE, OTHER, ONE] {
        fail(&bed, endpoint);
        assert_eq!(bed.guest().event(), fault(endpoint));
    }
    bed.guest().no_event();
}

#[test]
fn faults_wait_for_buffers_and_one_that_waits_is_not_told_twice() {
    let mut bed = with(Limits::default());
    for endpoint in [ONE, OTHER, ONE, ONE] {
        fail(&bed, endpoint);
    }
    bed.guest().no_event();
    bed.guest().lend(4, EVENT);
    assert_eq!([bed.guest().event(), bed.guest().event()], [ONE, OTHER].map(fault));
    bed.guest().no_event();
}

#[test]
fn a_short_buffer_gets_the_beginning_of_a_fault_and_a_shorter_one_nothing() {
    let mut bed = with(Limits::default());
    fail(&bed, ONE);
    bed.guest().lend(1, 23);
    assert_eq!(bed.guest().event().written, 0);
    bed.guest().no_event();
    bed.guest().lend(1, 24);
    assert_eq!(bed.guest().event(), Told { written: 24, ..fault(ONE) });
    fail(&bed, OTHER);
    bed.guest().lend(1, EVENT - 1);
    assert_eq!(bed.guest().event(), Told { written: 24, ..fault(OTHER) });
    bed.guest().lend(1, EVENT);
    bed.guest().no_event();
}

#[test]
fn faults_that_the_device_has_no_room_for_are_told_to_be_lost() {
    let mut bed = with(Limits { faults_max: 1, ..Limits::default() });
    fail(&bed, ONE);
    fail(&bed, OTHER);
    bed.guest().lend(3, EVENT);
    assert_eq!([bed.guest().event(), bed.guest().event()], [fault(ONE), lost(OTHER)]);
    bed.guest().no_event();
    // The one buffer that is left.
    fail(&bed, OTHER);
    assert_eq!(bed.guest().event(), fault(OTHER), "nothing was lost since");
    fail(&bed, ONE);
    fail(&bed, OTHER);
    // A page request is never lost, and is the first after those that were.
    bed.ask(ONE, 0, 1);
    bed.guest().no_event();
    bed.guest().lend(2, EVENT);
    let told = [bed.guest().event(), bed.guest().event()];
    let request = request_event(ONE, None, 1);
    assert_eq!(told, [fault(ONE), Told { flags: request.flags | FAULT_F_LOST, ..request }]);
    bed.guest().lend(1, EVENT);
    bed.guest().no_event();
    assert_eq!(bed.detach(1, ONE), OK);
    bed.answered(&[(1, INVALID)]);
}

/// The kernel keeps 256 of them.
#[test]
fn faults_that_the_kernel_has_no_room_for_are_told_to_be_lost() {
    let mut bed = with(Limits::default());
    let (device, comings) = (bed.device(ONE).clone(), bed.device(ONE).comings());
    let closed = device.close();
    bed.guest().submit(table(Hardware::Smmu, 1, ONE, 3));
    bed.guest().kick();
    eventually("the daemon is at work", || device.comings() > comings);
    bed.ask(ONE, 0, 1);
    (0..300).for_each(|_| bed.device(OTHER).mock().raise_event().expect("it is raised"));
    sleep(PATIENCE / 600);
    drop(closed);
    assert_eq!(bed.guest().complete().1, OK);
    eventually("the daemon knows of those that were kept", || bed.faults() >= 256);
    bed.guest().lend(3, EVENT);
    // The kernel does not say whose they were.
    assert_eq!([bed.guest().event(), bed.guest().event()], [fault(OTHER), lost(ONE)]);
    bed.guest().no_event();
    assert_eq!(bed.faults(), 256);
    bed.answered(&[(1, INVALID)]);
}

#[test]
fn a_fault_of_a_device_that_was_removed_is_of_no_interest() {
    let mut bed = with(Limits::default());
    bed.guest().lend(4, EVENT);
    bed.remove(OTHER);
    assert!(bed.device(OTHER).mock().raise_event().is_err(), "it has no number in the vIOMMU any more");
    fail(&bed, ONE);
    assert_eq!(bed.guest().event(), fault(ONE));
}
