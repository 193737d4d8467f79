// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The file descriptors of a ring: whatever they are and do, the worker neither stops, nor waits, nor spins.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, memfd_create};
use vhost::VhostBackend;
use viommu_tests::driver::Buffer;
use viommu_tests::front_end::{Message, NEED_REPLY, VERSION};

use crate::scene::*;

const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
/// In the payload: no descriptor comes with the message.
const NO_FD: u64 = 1 << 8;
/// An idle worker uses none; one that spins uses the whole half second.
const IDLE: Duration = Duration::from_millis(100);

/// Sends a descriptor for ring 0, and waits until the daemon has it.
fn give(vmm: &mut Vmm, request: u32, fd: BorrowedFd<'_>) {
    let message = Message { request, flags: VERSION | NEED_REPLY, body: vec![0; 8] };
    let reply = vmm.front_end.connection().call(&message, &[fd], PATIENCE).expect("acknowledged");
    assert_eq!(reply.body, [0; 8]);
}

fn event(flags: EventfdFlags) -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | flags).expect("an eventfd")
}

fn signal(fd: impl AsFd) {
    rustix::io::write(fd, &1u64.to_ne_bytes()).expect("written");
}

/// Makes one request available, without a kick.
fn add_one(vmm: &mut Vmm) {
    let byte = vmm.place(&[0xff]);
    vmm.driver.requests().add(&[Buffer::readable(byte, 1)]).expect("there is room");
}

/// Gives the stopped request ring another kick, and starts it.
fn restart_with(vmm: &mut Vmm, kick: BorrowedFd<'_>) {
    vmm.front_end.stop_ring(0).expect("stopped");
    vmm.front_end.start_ring(0, vmm.driver.requests()).expect("started");
    give(vmm, SET_VRING_KICK, kick);
}

#[test]
fn kicks_with_nothing_to_do_are_harmless() {
    let served = Served::new();
    let mut vmm = served.vmm();
    for _ in 0..1000 {
        vmm.driver.requests().kick();
        vmm.driver.events().kick();
    }
    vmm.assert_served();
    assert!(served.processor_time_in_half_a_second() < IDLE);
}

#[test]
fn a_kick_that_the_vmm_takes_back_does_not_stop_the_worker() {
    let served = Served::new();
    let mut vmm = served.vmm();
    for _ in 0..1000 {
        vmm.driver.requests().kick();
        // Whoever reads first: the device's read must not fail for good, nor wait.
        let _ = vmm.driver.requests().kick_fd().read();
    }
    vmm.assert_served();
}

#[test]
fn a_blocking_eventfd_kicks_as_a_non_blocking_one_does() {
    let served = Served::new();
    for flags in [EventfdFlags::empty(), EventfdFlags::NONBLOCK, EventfdFlags::SEMAPHORE] {
        let mut vmm = served.vmm();
        let kick = event(flags);
        restart_with(&mut vmm, kick.as_fd());
        for _ in 0..10 {
            add_one(&mut vmm);
            signal(&kick);
            assert_eq!(vmm.used().written, 0);
        }
        assert!(served.processor_time_in_half_a_second() < IDLE, "{flags:?}");
    }
}

#[test]
fn a_kick_pipe_kicks_and_may_hang_up() {
    let served = Served::new();
    for vmm_keeps_its_end in [false, true] {
        let mut vmm = served.vmm();
        let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
        restart_with(&mut vmm, reader.as_fd());
        let reader = vmm_keeps_its_end.then_some(reader);
        add_one(&mut vmm);
        rustix::io::write(&writer, b"k").expect("written");
        assert_eq!(vmm.used().written, 0);
        drop(writer);
        assert!(served.processor_time_in_half_a_second() < IDLE, "VMM keeps its end: {vmm_keeps_its_end}");
        vmm.front_end.stop_ring(0).expect("stopped");
        vmm.front_end.start_ring(0, vmm.driver.requests()).expect("started");
        vmm.assert_served();
        drop(reader);
    }
}

#[test]
fn a_kick_may_be_replaced_while_the_ring_runs() {
    let served = Served::new();
    let mut vmm = served.vmm();
    let new = event(EventfdFlags::NONBLOCK);
    give(&mut vmm, SET_VRING_KICK, new.as_fd());
    add_one(&mut vmm);
    signal(&new);
    assert_eq!(vmm.used().written, 0);
    // The VMM still holds the old one, and may signal it.
    vmm.driver.requests().kick();
    assert!(served.processor_time_in_half_a_second() < IDLE);
    vmm.front_end.stop_ring(0).expect("stopped");
}

#[test]
fn a_request_whose_kick_is_replaced_before_it_is_seen_is_served() {
    let served = Served::new();
    let mut vmm = served.vmm();
    for _ in 0..50 {
        let new = event(EventfdFlags::NONBLOCK);
        add_one(&mut vmm);
        vmm.driver.requests().kick();
        give(&mut vmm, SET_VRING_KICK, new.as_fd());
        assert_eq!(vmm.used().written, 0);
        let Vmm { front_end, driver, .. } = &mut vmm;
        let old = driver.requests().kick_fd();
        front_end.step(|vhost| vhost.set_vring_kick(0, old)).expect("taken");
    }
}

#[test]
fn a_ring_whose_kick_is_taken_away_rests() {
    let served = Served::new();
    let mut vmm = served.vmm();
    let message =
        Message { request: SET_VRING_KICK, flags: VERSION | NEED_REPLY, body: NO_FD.to_ne_bytes().to_vec() };
    vmm.front_end.connection().call(&message, &[], PATIENCE).expect("acknowledged");
    vmm.driver.requests().kick();
    assert!(served.processor_time_in_half_a_second() < IDLE);
    vmm.front_end.stop_ring(0).expect("stopped");
    vmm.front_end.start_ring(0, vmm.driver.requests()).expect("started");
    vmm.assert_served();
}

#[test]
fn a_kick_that_cannot_be_waited_for_leaves_its_ring_stopped_and_is_told() {
    let served = Served::new();
    let mut vmm = served.vmm();
    let file = memfd_create("no-kick", MemfdFlags::CLOEXEC).expect("a file");
    vmm.front_end.stop_ring(0).expect("stopped");
    give(&mut vmm, SET_VRING_KICK, file.as_fd());
    served.daemon.wait_for("a ring's kick cannot be waited for", PATIENCE).expect("told");
    vmm.front_end.start_ring(0, vmm.driver.requests()).expect("started");
    vmm.assert_served();
}

#[test]
fn a_call_that_nobody_reads_or_holds_does_not_stop_the_worker() {
    let served = Served::new();
    let mut vmm = served.vmm_with(Setup::plain());
    let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
    let (full, closed) = (event(EventfdFlags::empty()), writer);
    rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).expect("written");
    drop(reader);
    for call in [full, closed] {
        give(&mut vmm, SET_VRING_CALL, call.as_fd());
        drop(call);
        for _ in 0..3 {
            add_one(&mut vmm);
            vmm.driver.requests().kick();
            eventually("a chain comes back", || vmm.driver.requests().take_used().is_some());
        }
    }
    let Vmm { front_end, driver, .. } = &mut vmm;
    front_end.step(|vhost| vhost.set_vring_call(0, driver.requests().call_fd())).expect("taken");
    vmm.assert_served();
}
