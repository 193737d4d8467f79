// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a VMM learns of the device beside its rings: the device status, changes, broken rings.

use std::os::fd::AsFd;

use rustix::event::{EventfdFlags, eventfd};
use vhost::VhostBackend;
use viommu_tests::front_end::{Connection, Message, NEED_REPLY, VERSION};

use crate::scene::*;

const SET_VRING_ERR: u32 = 14;
const SET_PROTOCOL_FEATURES: u32 = 16;
const SET_BACKEND_REQ_FD: u32 = 21;
const SET_STATUS: u32 = 39;
const GET_STATUS: u32 = 40;
/// What the device tells the VMM.
const CONFIG_CHANGE: u32 = 2;
const DRIVER_OK: u64 = 0xf;
const NEEDS_RESET: u64 = 0x40;

fn status(vmm: &Vmm) -> u64 {
    let answer =
        vmm.front_end.connection().call(&Message::new(GET_STATUS, []), &[], PATIENCE).expect("a reply");
    u64::from_ne_bytes(answer.body.try_into().expect("eight bytes"))
}

fn set_status(vmm: &Vmm, status: u64) {
    let message =
        Message { request: SET_STATUS, flags: VERSION | NEED_REPLY, body: status.to_ne_bytes().to_vec() };
    let answer = vmm.front_end.connection().call(&message, &[], PATIENCE).expect("acknowledged");
    assert_eq!((answer.request, answer.body), (SET_STATUS, vec![0; 8]));
}

/// An index that no driver has, for as long as it takes the device to see it.
fn break_requests(vmm: &mut Vmm) {
    let good = vmm.driver.requests().next_avail();
    vmm.driver.requests().set_avail_index(good.wrapping_add(1000));
    vmm.driver.requests().kick();
    eventually("the device sees it", || status(vmm) & NEEDS_RESET != 0);
    vmm.driver.requests().set_avail_index(good);
}

/// Accepts the features again, and starts the request ring where it is.
fn go_on(vmm: &mut Vmm) {
    vmm.front_end.stop_ring(0).expect("stopped");
    let features = vmm.front_end.features();
    vmm.front_end.step(|vhost| vhost.set_features(features)).expect("accepted");
    vmm.front_end.start_ring(0, vmm.driver.requests()).expect("started");
}

#[test]
fn the_status_is_what_the_vmm_has_set() {
    let served = Served::new();
    let vmm = served.vmm();
    assert_eq!(status(&vmm), 0);
    for set in [1, 3, DRIVER_OK] {
        set_status(&vmm, set);
        assert_eq!(status(&vmm), set);
    }
    // A bit that is the device's alone, and what is no status at all.
    set_status(&vmm, NEEDS_RESET | 0xff00 | DRIVER_OK);
    assert_eq!(status(&vmm), DRIVER_OK);
}

#[test]
fn a_status_of_zero_is_a_reset_of_a_device_whose_rings_run() {
    let served = Served::new();
    let mut vmm = served.vmm();
    vmm.attach();
    assert_eq!(vmm.map(0), OK);
    set_status(&vmm, 0);
    // Where they were stopped: without the status this would be a pause.
    go_on(&mut vmm);
    assert_eq!(vmm.map(0), NO_ENTRY);
}

#[test]
fn a_status_of_zero_is_a_pause_for_rings_that_go_on_where_they_were_stopped() {
    let served = Served::new();
    let mut vmm = served.vmm();
    vmm.attach();
    assert_eq!(vmm.map(0), OK);
    vmm.front_end.stop_ring(0).expect("stopped");
    set_status(&vmm, 0);
    vmm.front_end.start_ring(0, vmm.driver.requests()).expect("started");
    vmm.assert_keeps_page_0();
}

#[test]
fn a_broken_ring_is_told_by_its_eventfd_the_status_and_a_message() {
    let served = Served::new();
    let mut vmm = served.vmm();
    let error = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
    let give = Message { request: SET_VRING_ERR, flags: VERSION | NEED_REPLY, body: vec![0; 8] };
    vmm.front_end.connection().call(&give, &[error.as_fd()], PATIENCE).expect("acknowledged");
    let told = vmm.front_end.open_back_end_channel().expect("taken");
    vmm.assert_served();
    assert!(!becomes_readable(&error, MOMENT), "nothing is broken");
    break_requests(&mut vmm);
    assert!(becomes_readable(&error, PATIENCE));
    let change = told.receive(PATIENCE).expect("a message");
    assert_eq!((change.request, change.flags, change.body), (CONFIG_CHANGE, VERSION, vec![]));
    vmm.assert_served();
    assert_eq!(status(&vmm), NEEDS_RESET, "only a reset makes it well");
    vmm.front_end.reset_device().expect("reset");
    assert_eq!(status(&vmm), 0);
}

#[test]
fn a_ring_that_starts_anew_is_broken_no_more() {
    for has_served in [true, false] {
        let served = Served::new();
        let mut vmm = served.vmm();
        if has_served {
            vmm.assert_served();
        }
        break_requests(&mut vmm);
        vmm.front_end.stop_ring(0).expect("stopped");
        // As a VMM does that tells of a reset when the rings are stopped.
        set_status(&vmm, 0);
        vmm.driver.restart();
        vmm.front_end.start_ring(0, vmm.driver.requests()).expect("started");
        vmm.assert_served();
        assert_eq!(status(&vmm), 0);
    }
}

#[test]
fn a_vmm_that_reads_nothing_or_hangs_up_where_it_is_told_is_served_all_the_same() {
    let served = Served::new();
    let mut vmm = served.vmm();
    let told = vmm.front_end.open_back_end_channel().expect("taken");
    for round in 0..600 {
        break_requests(&mut vmm);
        set_status(&vmm, 0);
        go_on(&mut vmm);
        if round == 500 {
            told.stream().shutdown(std::net::Shutdown::Both).expect("open");
        }
    }
    vmm.assert_served();
    assert!(served.processor_time_in_half_a_second().as_millis() < 100);
}

#[test]
fn status_and_channel_are_not_spoken_without_their_features() {
    let served = Served::new();
    for (request, body) in [
        (GET_STATUS, vec![]),
        (SET_STATUS, vec![0; 8]),
        (SET_BACKEND_REQ_FD, vec![]),
        (SET_BACKEND_REQ_FD, vec![0; 8]),
    ] {
        let connection = served.connection();
        connection.call(&Message::new(15, []), &[], PATIENCE).expect("features");
        // REPLY_ACK alone.
        let features = Message::new(SET_PROTOCOL_FEATURES, 8u64.to_ne_bytes());
        connection.send(&features, &[]).expect("sent");
        let event = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
        connection
            .send(
                &Message::new(request, body),
                &[event.as_fd()][..usize::from(request == SET_BACKEND_REQ_FD)],
            )
            .expect("sent");
        connection.wait_closed(PATIENCE).expect("refused");
    }
    served.assert_serves();
}

#[test]
fn a_channel_without_a_descriptor_and_a_status_of_another_length_are_refused_by_name() {
    let served = Served::new();
    let event = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
    for (message, fds, line) in [
        (
            Message::new(SET_BACKEND_REQ_FD, []),
            0,
            "SET_BACKEND_REQ_FD brings 0 file descriptors instead of one",
        ),
        (
            Message::new(SET_BACKEND_REQ_FD, []),
            2,
            "SET_BACKEND_REQ_FD brings 2 file descriptors instead of one",
        ),
        (Message::new(SET_STATUS, [0; 7]), 0, "SET_STATUS: request 39: payload of 7 bytes, expected 8"),
        (Message::new(8, [0; 8]), 0, "SET_VRING_NUM is refused"),
        (Message::new(0x1234, []), 0, "request 4660 is refused"),
    ] {
        let front_end = served.front_end(u64::MAX);
        let connection: &Connection = front_end.connection();
        connection.send(&message, &vec![event.as_fd(); fds]).expect("sent");
        connection.wait_closed(PATIENCE).expect("refused");
        let line = format!("the VMM's connection ends: {line}");
        eventually(&line, || served.lines_with(&line) == 1);
    }
}
