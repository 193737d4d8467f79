// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Who is woken when: interrupts only where the driver wants them, kicks only where the device wants them.

use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use viommu_tests::driver::{Buffer, flags};

use crate::scene::*;

/// A request of no known type, whose chain comes back unwritten.
fn add_one(vmm: &mut Vmm) {
    let byte = vmm.place(&[0xff]);
    vmm.driver.requests().add(&[Buffer::readable(byte, 1)]).expect("there is room");
    vmm.driver.requests().kick();
}

/// Waits until a chain is back, without asking for a call.
fn take_silently(vmm: &mut Vmm) {
    eventually("a chain comes back", || vmm.driver.requests().take_used().is_some());
}

#[test]
fn without_event_idx_no_interrupt_comes_while_the_driver_wants_none() {
    let served = Served::new();
    let mut vmm = served.vmm_with(Setup::plain());
    vmm.driver.requests().set_avail_flags(flags::NO_INTERRUPT);
    add_one(&mut vmm);
    take_silently(&mut vmm);
    assert!(!becomes_readable(vmm.driver.requests().call_fd(), MOMENT));
    vmm.driver.requests().set_avail_flags(0);
    add_one(&mut vmm);
    take_silently(&mut vmm);
    assert!(becomes_readable(vmm.driver.requests().call_fd(), MOMENT * 10));
}

#[test]
fn with_event_idx_an_interrupt_comes_for_the_entry_the_driver_names_and_for_no_other() {
    let served = Served::new();
    let mut vmm = served.vmm();
    let used_event = vmm.driver.requests().rings().avail + 4 + 2 * 64;
    vmm.memory.store_u16(used_event, 2);
    for at in 0..4 {
        add_one(&mut vmm);
        take_silently(&mut vmm);
        let call = vmm.driver.requests().call_fd();
        assert_eq!(becomes_readable(call, MOMENT), at == 2, "after entry {at}");
        vmm.driver.requests().take_calls();
    }
}

#[test]
fn with_event_idx_the_flag_of_the_available_ring_means_nothing() {
    let served = Served::new();
    let mut vmm = served.vmm();
    vmm.driver.requests().set_avail_flags(flags::NO_INTERRUPT);
    vmm.assert_served();
}

#[test]
fn an_idle_device_wants_to_be_kicked_for_the_next_request() {
    let served = Served::new();
    for setup in [Setup::default(), Setup::plain()] {
        let mut vmm = served.vmm_with(setup);
        for _ in 0..200 {
            // The device may still be at the ring and take the request on its own, so the kick itself is not counted.
            vmm.assert_served();
        }
        let byte = vmm.place(&[0xff]);
        eventually("a kick is wanted", || {
            vmm.driver.requests().add(&[Buffer::readable(byte, 1)]).expect("there is room");
            let wanted = vmm.driver.requests().kick_if_wanted();
            vmm.used();
            wanted
        });
    }
}

/// Whether a request without a kick is answered, right after two that had theirs.
fn is_served_without_a_kick(vmm: &mut Vmm) -> bool {
    for _ in 0..2 {
        add_one(vmm);
        take_silently(vmm);
    }
    let byte = vmm.place(&[0xff]);
    vmm.driver.requests().add(&[Buffer::readable(byte, 1)]).expect("there is room");
    let until = Instant::now() + MOMENT;
    while Instant::now() < until {
        if vmm.driver.requests().take_used().is_some() {
            return true;
        }
    }
    vmm.driver.requests().kick();
    take_silently(vmm);
    false
}

#[test]
fn the_next_request_of_a_flock_needs_no_kick() {
    if available_parallelism().is_ok_and(|processors| processors.get() == 1) {
        println!("skipped: nothing is polled on a machine with one processor");
        return;
    }
    let served = Served::with(&["--poll", "10000"]);
    for setup in [Setup::default(), Setup::plain()] {
        let mut vmm = served.vmm_with(setup);
        // On a busy machine the two may be far from each other.
        eventually("a request is found", || is_served_without_a_kick(&mut vmm));
        vmm.assert_served();
    }
}

#[test]
fn without_polling_every_request_needs_a_kick() {
    let served = Served::with(&["--poll", "0"]);
    for setup in [Setup::default(), Setup::plain()] {
        let mut vmm = served.vmm_with(setup);
        // Now and then the device is at the ring still.
        eventually("a request is not found", || !is_served_without_a_kick(&mut vmm));
    }
}

#[test]
fn a_device_that_has_looked_for_requests_in_vain_sleeps() {
    let served = Served::with(&["--poll", "10000"]);
    let mut vmm = served.vmm();
    for _ in 0..100 {
        vmm.assert_served();
    }
    let used = served.processor_time_in_half_a_second();
    assert!(used < Duration::from_millis(100), "{used:?} of processor time in half a second of idleness");
    let stopped = vmm.front_end.stop_ring(0);
    stopped.expect("a ring that is looked at stops, too");
}

#[test]
fn a_ring_stops_while_the_device_looks_for_requests_and_is_kicked_when_it_goes_on() {
    let served = Served::with(&["--poll", "10000"]);
    for setup in [Setup::default(), Setup::plain()] {
        let mut vmm = served.vmm_with(setup);
        for _ in 0..20 {
            for _ in 0..3 {
                vmm.assert_served();
            }
            // At once: the device still looks.
            vmm.front_end.stop_ring(0).expect("it stops");
            vmm.front_end.start_ring(0, vmm.driver.requests()).expect("it goes on");
        }
        vmm.assert_served();
    }
}

#[test]
fn no_event_comes_unasked_for() {
    let served = Served::new();
    let mut vmm = served.vmm();
    vmm.driver.post_event_buffers(8);
    vmm.assert_served();
    vmm.driver.events().kick();
    vmm.assert_served();
    assert_eq!(vmm.driver.events().take_used(), None);
    assert!(!becomes_readable(vmm.driver.events().call_fd(), MOMENT));
}
