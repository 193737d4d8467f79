// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A request that takes its time, since a back-end confirms late or never, and what the VMM does meanwhile.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use viommu_core::wire::{self, MAP_F_READ, RequestType};
use viommu_core::{DomainId, EndpointId, Gpa};
use viommu_tests::driver::IommuDriver;
use viommu_tests::iotlb_disk::{Event, OnInvalidate, Outcome, StrayDma};
use zerocopy::IntoBytes;

use crate::disk::WithDisk;
use crate::scene::*;

/// How late a late back-end is.
const LATE: Duration = Duration::from_millis(300);
const PAGE: u64 = 8;

/// An UNMAP of a page that the disk has cached is under way, and takes as long as the disk wants.
fn unmap_under_way(on_invalidate: OnInvalidate) -> WithDisk {
    unmap_under_way_before(on_invalidate, |_| {})
}

/// The same, with what `submit` puts into the ring behind it.
fn unmap_under_way_before(on_invalidate: OnInvalidate, submit: impl FnOnce(&mut IommuDriver)) -> WithDisk {
    let mut scene = WithDisk::new(Setup::default());
    scene.vmm.attach();
    assert_ok(&scene.vmm.driver.map(DOMAIN, page_range(PAGE), Gpa(0), MAP_F_READ).expect("a reply"));
    let reached = scene.disk.stray_dma(PAGE * 0x1000, StrayDma::Read(8));
    assert!(matches!(reached, Outcome::Read(_)), "{reached:?}");
    scene.disk.set_on_invalidate(on_invalidate);
    submit_unmap(&mut scene.vmm.driver, DOMAIN);
    submit(&mut scene.vmm.driver);
    scene.vmm.driver.requests().kick();
    // This page: other invalidations have gone before.
    let this_page = |event: &Event| matches!(event, Event::Invalidate { iova, .. } if *iova == PAGE * 0x1000);
    let asked = |events: &[Event]| events.iter().any(this_page);
    assert!(scene.disk.wait_until(PATIENCE, |_, events| asked(events)), "the disk is asked to invalidate");
    scene
}

/// Puts an UNMAP of the page into the ring.
fn submit_unmap(driver: &mut IommuDriver, domain: DomainId) {
    let range = page_range(PAGE);
    let request = wire::ReqUnmap {
        head: wire::Head { kind: RequestType::UNMAP, reserved: [0; 3] },
        domain: domain.0.into(),
        virt_start: range.start().into(),
        virt_last: range.last().into(),
        reserved: [0; 4],
    };
    driver.submit(request.as_bytes(), 4).expect("there is room");
}

#[test]
fn a_ring_stops_behind_the_request_that_is_at_work() {
    let mut scene = unmap_under_way(OnInvalidate::AcknowledgeAfter(LATE));
    let Vmm { front_end, driver, .. } = &mut scene.vmm;
    let next = front_end.stop_ring(0).expect("stopped");
    assert_eq!(next, u32::from(driver.requests().next_avail()), "the request at work is done");
    let used = driver.requests().take_used().expect("its reply is there when the ring has stopped");
    assert_eq!(used.written, 4);
}

#[test]
fn a_ring_stops_before_what_lies_behind_the_request_at_work() {
    let mut scene = unmap_under_way_before(OnInvalidate::AcknowledgeAfter(LATE), |driver| {
        submit_unmap(driver, DomainId(99));
    });
    let Vmm { front_end, driver, .. } = &mut scene.vmm;
    let next = front_end.stop_ring(0).expect("stopped");
    assert_eq!(next, u32::from(driver.requests().next_avail().wrapping_sub(1)), "only one is done");
    assert_eq!(driver.complete().expect("a reply").1.status(), OK);
    assert_eq!(driver.requests().take_used(), None, "the other one is in the ring");
    front_end.start_ring(0, driver.requests()).expect("started");
    assert_eq!(driver.complete().expect("a reply").1.status(), NO_ENTRY);
}

#[test]
fn configuration_and_misses_are_served_while_a_request_waits() {
    let mut scene = unmap_under_way(OnInvalidate::AcknowledgeAfter(LATE));
    assert_eq!(scene.vmm.front_end.config().expect("forty bytes").bypass, 0);
    let (_, reply) = scene.vmm.driver.complete().expect("a reply");
    assert_eq!((reply.written, reply.status()), (4, OK));
    scene.fault(PAGE);
}

#[test]
fn a_back_end_that_never_confirms_costs_its_own_guest_an_error_and_nobody_a_hang() {
    let mut scene = unmap_under_way(OnInvalidate::NeverAcknowledge);
    let (_, reply) = scene.vmm.driver.complete().expect("a reply");
    assert_eq!(reply.written, 4);
    assert_ne!(reply.status(), OK);
    let other = scene.vmm.driver.probe(EndpointId(99)).expect("a reply");
    assert_eq!(other.status(), NO_ENTRY);
}

#[test]
fn a_signal_ends_the_daemon_while_a_request_waits() {
    let scene = unmap_under_way(OnInvalidate::NeverAcknowledge);
    let began = Instant::now();
    let (status, lines) = scene.served.daemon.end_by(Signal::TERM).expect("it ends");
    assert_eq!(status.code(), Some(0), "{lines:?}");
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert!(!scene.served.socket.exists());
}

#[test]
fn a_vmm_that_leaves_while_a_request_waits_makes_way_for_the_next() {
    let WithDisk { vmm, served, .. } = unmap_under_way(OnInvalidate::NeverAcknowledge);
    drop(vmm);
    let mut next = served.vmm();
    assert_eq!(next.map(0), NO_ENTRY);
}
