// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Fault events: when they come, and into which buffers.
//!
//! The faults are those of a disk behind the daemon that reaches for what it was not given.

use std::time::Duration;

use viommu_core::Gpa;
use viommu_core::wire::{self, MAP_F_READ};
use viommu_tests::driver::{Buffer, GuestMemory};
use viommu_tests::iotlb_disk::{Outcome, StrayDma};

use crate::disk::WithDisk;
use crate::scene::*;

/// The driver gets the event of a refused read of this page.
fn expect_event(vmm: &mut Vmm, page: u64) {
    let event = vmm.driver.wait_event().expect("an event");
    assert_eq!((event.written, event.fault.address.get()), (24, page * 0x1000));
    assert_eq!((event.fault.endpoint.get(), event.fault.reason), (ENDPOINT.0, wire::FAULT_R_DOMAIN));
    assert_eq!(event.fault.flags.get(), wire::FAULT_F_READ | wire::FAULT_F_ADDRESS);
}

#[test]
fn events_wait_for_the_drivers_first_request() {
    for setup in [Setup::default(), Setup::plain()] {
        let mut scene = WithDisk::new(setup);
        scene.vmm.driver.post_event_buffers(4);
        scene.fault(5);
        std::thread::sleep(MOMENT);
        assert_eq!(scene.vmm.driver.events().take_used(), None);
        scene.vmm.assert_served();
        expect_event(&mut scene.vmm, 5);
        scene.fault(6);
        expect_event(&mut scene.vmm, 6);
    }
}

//= A57
#[test]
fn events_wait_for_buffers_and_the_driver_is_asked_to_kick_for_them() {
    for setup in [Setup::default(), Setup::plain()] {
        let mut scene = WithDisk::new(setup);
        scene.vmm.assert_served();
        for page in (10..40).step_by(3) {
            scene.fault(page);
            scene.fault(page + 1);
            scene.fault(page + 2);
            scene.vmm.driver.post_event_buffers(1);
            expect_event(&mut scene.vmm, page);
            scene.vmm.driver.post_event_buffers(2);
            expect_event(&mut scene.vmm, page + 1);
            expect_event(&mut scene.vmm, page + 2);
        }
    }
}

//= A56a
#[test]
fn a_buffer_that_cannot_hold_an_event_comes_back_empty_and_the_event_goes_into_the_next() {
    for setup in [Setup::default(), Setup::plain()] {
        let mut scene = WithDisk::new(setup);
        scene.vmm.assert_served();
        let small = scene.vmm.place(&[0xa5; 64]);
        for bad in [
            vec![Buffer::writable(small, 23)],
            vec![Buffer::readable(small, 24)],
            vec![Buffer::writable(0x7000_0000_0000, 24)],
            vec![Buffer::writable(small, 10), Buffer::writable(small, 13)],
        ] {
            scene.fault(7);
            let events = scene.vmm.driver.events();
            let head = events.add(&bad).expect("there is room");
            events.kick();
            let used = events.wait_used(PATIENCE).expect("it comes back");
            assert_eq!((used.head, used.written), (head.into(), 0), "{bad:?}");
            scene.vmm.driver.post_event_buffers(1);
            expect_event(&mut scene.vmm, 7);
        }
        eventually("it is told", || scene.served.lines_with("event buffer") > 0);
    }
}

#[test]
fn an_event_may_be_split_over_descriptors() {
    let mut scene = WithDisk::new(Setup::default());
    scene.vmm.assert_served();
    let room = scene.vmm.place(&[0xa5; 24]);
    let pieces: Vec<Buffer> = (0..24).map(|at| Buffer::writable(room + at, 1)).collect();
    let events = scene.vmm.driver.events();
    events.add(&pieces).expect("there is room");
    events.kick_if_wanted();
    scene.fault(9);
    assert_eq!(scene.vmm.driver.events().wait_used(PATIENCE).expect("it comes back").written, 24);
    assert_eq!(scene.vmm.memory.read(room + 16, 8), 0x9000u64.to_le_bytes());
}

#[test]
fn a_device_reset_drops_the_events_that_wait() {
    let mut scene = WithDisk::new(Setup::default());
    scene.vmm.assert_served();
    scene.fault(11);
    let Vmm { front_end, driver, .. } = &mut scene.vmm;
    for index in [0, 1] {
        front_end.stop_ring(index).expect("stopped");
    }
    driver.restart();
    front_end.start_ring(0, driver.requests()).expect("started");
    front_end.start_ring(1, driver.events()).expect("started");
    driver.post_event_buffers(4);
    scene.vmm.assert_served();
    scene.fault(12);
    expect_event(&mut scene.vmm, 12);
}

#[test]
fn faults_beyond_count_are_neither_kept_nor_told_each() {
    let mut scene = WithDisk::new(Setup::default());
    scene.vmm.assert_served();
    for page in 1..500 {
        scene.fault(page);
    }
    scene.vmm.driver.post_event_buffers(1);
    expect_event(&mut scene.vmm, 1);
    assert!(scene.served.lines_with("fault: ") < 50);
    let idle = scene.served.processor_time_in_half_a_second();
    assert!(idle < Duration::from_millis(100), "{idle:?} with events and no buffers");
}

#[test]
fn a_mapped_page_is_reached_and_faults_nowhere() {
    let mut scene = WithDisk::new(Setup::default());
    let memory: GuestMemory = scene.vmm.memory.clone();
    memory.write(0x3000, b"its page");
    scene.vmm.attach();
    let mapped = scene.vmm.driver.map(DOMAIN, page_range(8), Gpa(0x3000), MAP_F_READ).expect("a reply");
    assert_ok(&mapped);
    assert_eq!(scene.disk.stray_dma(0x8000, StrayDma::Read(8)), Outcome::Read(b"its page".to_vec()));
    assert_ok(&scene.vmm.driver.unmap(DOMAIN, page_range(8)).expect("a reply"));
    scene.fault(8);
}
