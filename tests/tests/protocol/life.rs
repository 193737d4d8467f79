// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the device keeps and forgets: resets, pauses, connections that come and go.

use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use vhost::VhostBackend;
use vhost::vhost_user::message::VhostUserVirtioFeatures;
use viommu_core::wire::BYPASS_OFFSET;
use viommu_tests::driver::{Arena, Buffer, EventIdx, GuestMemory, IommuDriver, SplitQueue};
use viommu_tests::front_end::FrontEnd;

use crate::scene::*;

/// Attaches, maps page 0, and stops unattached endpoints from bypassing.
fn set_up(vmm: &mut Vmm) {
    vmm.attach();
    assert_eq!(vmm.map(0), OK);
    vmm.front_end.write_config(BYPASS_OFFSET as u32, &[0]).expect("written");
}

/// Starts the request ring where its driver stands.
fn start_requests(vmm: &mut Vmm) {
    vmm.front_end.start_ring(0, vmm.driver.requests()).expect("started");
}

//= A6a
#[test]
fn a_device_reset_forgets_domains_and_keeps_bypass() {
    let served = Served::new();
    let mut vmm = served.vmm();
    set_up(&mut vmm);
    vmm.front_end.reset_device().expect("reset");
    vmm.front_end.stop_ring(0).expect("stopped");
    vmm.driver.restart();
    let features = vmm.front_end.features();
    vmm.front_end.step(|vhost| vhost.set_features(features)).expect("accepted");
    start_requests(&mut vmm);
    assert_eq!(vmm.map(0), NO_ENTRY);
    assert_eq!(vmm.front_end.config().expect("forty bytes").bypass, 0);
}

#[test]
fn rings_that_go_on_where_they_were_stopped_keep_domains_and_mappings() {
    let served = Served::new();
    for setup in [Setup::default(), Setup { first: 65535, ..Setup::plain() }] {
        let mut vmm = served.vmm_with(setup);
        set_up(&mut vmm);
        for _ in 0..3 {
            let next = vmm.driver.requests().next_avail();
            assert_eq!(vmm.front_end.stop_ring(0).expect("stopped"), u32::from(next));
            vmm.front_end.stop_ring(1).expect("stopped");
            start_requests(&mut vmm);
            vmm.assert_keeps_page_0();
        }
        assert_eq!(vmm.front_end.config().expect("forty bytes").bypass, 0);
    }
}

#[test]
fn requests_made_during_a_pause_are_served_after_it() {
    let served = Served::new();
    let mut vmm = served.vmm();
    set_up(&mut vmm);
    vmm.front_end.stop_ring(0).expect("stopped");
    let byte = vmm.place(&[0xff]);
    vmm.driver.requests().add(&[Buffer::readable(byte, 1)]).expect("there is room");
    vmm.driver.requests().kick();
    vmm.assert_rests();
    start_requests(&mut vmm);
    assert_eq!(vmm.used().written, 0);
    vmm.assert_keeps_page_0();
}

//= A6a
#[test]
fn rings_that_start_anew_tell_a_reset() {
    let served = Served::new();
    let mut vmm = served.vmm();
    set_up(&mut vmm);
    vmm.front_end.stop_ring(0).expect("stopped");
    vmm.driver.restart();
    start_requests(&mut vmm);
    assert_eq!(vmm.map(0), NO_ENTRY);
    assert_eq!(vmm.front_end.config().expect("forty bytes").bypass, 0);
}

#[test]
fn a_ring_is_stopped_and_disabled_while_its_driver_never_rests() {
    let served = Served::new();
    for setup in [Setup::default(), Setup::plain()] {
        for round in 0..20 {
            let mut vmm = served.vmm_with(Setup { size: 1024, ..setup });
            let byte = vmm.place(&[0xff]);
            for _ in 0..1024 {
                vmm.driver.requests().add(&[Buffer::readable(byte, 1)]).expect("there is room");
            }
            vmm.driver.requests().kick();
            let Vmm { front_end, driver, .. } = &mut vmm;
            let next = if round % 2 == 0 {
                front_end.stop_ring(0).expect("stopped")
            } else {
                front_end.reset_device().expect("reset");
                front_end.stop_ring(0).expect("stopped")
            };
            let used = (0..).take_while(|_| driver.requests().take_used().is_some()).count();
            assert_eq!(next as usize, used, "every chain that was taken has come back");
        }
    }
}

#[test]
fn a_ring_that_is_disabled_waits_and_goes_on_when_it_is_enabled() {
    let served = Served::new();
    let mut vmm = served.vmm();
    set_up(&mut vmm);
    let disable = |vhost: &mut vhost::vhost_user::Frontend| {
        vhost::vhost_user::VhostUserFrontend::set_vring_enable(vhost, 0, false)
    };
    vmm.front_end.step(disable).expect("disabled");
    let byte = vmm.place(&[0xff]);
    vmm.driver.requests().add(&[Buffer::readable(byte, 1)]).expect("there is room");
    vmm.driver.requests().kick();
    vmm.assert_rests();
    vmm.front_end.enable_ring(0).expect("enabled");
    assert_eq!(vmm.used().written, 0);
    vmm.assert_keeps_page_0();
}

//= A6b
#[test]
fn a_new_connection_is_a_new_machine() {
    let served = Served::with(&["--boot-bypass", "off"]);
    let mut vmm = served.vmm();
    vmm.attach();
    assert_eq!(vmm.map(0), OK);
    vmm.front_end.write_config(BYPASS_OFFSET as u32, &[1]).expect("written");
    drop(vmm);
    let mut vmm = served.vmm();
    assert_eq!(vmm.map(0), NO_ENTRY);
    assert_eq!(vmm.front_end.config().expect("forty bytes").bypass, 0);
}

#[test]
fn two_hundred_connections_leave_no_descriptor_and_no_thread_behind() {
    const CONNECTIONS: usize = 200;
    let served = Served::new();
    served.assert_serves();
    let counts = |served: &Served| [served.count("fd"), served.count("task")];
    let settle = |served: &Served, connections: usize| {
        eventually("the daemon waits for a VMM", || served.lines_with("VMM disconnected") >= connections);
    };
    settle(&served, 1);
    let before = counts(&served);
    for connection in 0..CONNECTIONS {
        match connection % 3 {
            0 => served.assert_serves(),
            1 => drop(served.front_end(u64::MAX)),
            _ => drop(served.vmm()),
        }
    }
    settle(&served, CONNECTIONS + 1);
    // Whether the next session is set up already is not seen from outside, and it has far fewer of either.
    eventually("a connection leaves neither", || {
        counts(&served).iter().zip(before).all(|(now, before)| *now < before + CONNECTIONS / 4)
    });
}

#[test]
fn a_second_vmm_waits_for_thefirst_to_leave() {
    let served = Served::new();
    let mut first = served.vmm();
    first.attach();
    thread::scope(|scope| {
        let second = scope.spawn(|| served.vmm());
        for _ in 0..50 {
            first.assert_served();
        }
        assert!(!second.is_finished(), "two VMMs are served at once");
        drop(first);
        let mut second = second.join().expect("it is served in its turn");
        assert_eq!(second.map(0), NO_ENTRY);
    });
}

#[test]
fn a_vmm_without_protocol_features_is_served() {
    let served = Served::new();
    let mut front_end = FrontEnd::connect(&served.socket, PATIENCE).expect("the daemon listens");
    front_end
        .step(|vhost| {
            let offered = vhost.get_features()?;
            vhost.set_owner()?;
            vhost.set_features(offered & !(VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()))
        })
        .expect("accepted");
    let memory = GuestMemory::new(&[(HIGH, REGION)]).expect("memory");
    let mut arena = Arena::new(HIGH, REGION);
    let mut queue = || SplitQueue::new(&memory, &mut arena, 64, EventIdx::On).expect("a queue");
    let (requests, events) = (queue(), queue());
    front_end.set_memory(&memory).expect("one region");
    front_end.start_ring(0, &requests).expect("started");
    let mut driver = IommuDriver::new(&mut arena, requests, events, 512, PATIENCE);
    assert_ok(&driver.probe(ENDPOINT).expect("a reply"));
}

#[test]
fn a_daemon_without_descriptors_left_serves_when_it_has_some_again() {
    let served = Served::new();
    served.assert_serves();
    eventually("the daemon waits for a VMM", || served.lines_with("VMM disconnected") > 0);
    let pid = Pid::from_raw(served.daemon.pid().try_into().expect("a process id"));
    let usual = getrlimit(Resource::Nofile);
    let none = Rlimit { current: Some(4), maximum: usual.maximum };
    prlimit(pid, Resource::Nofile, none).expect("limited");
    let first = served.connection();
    served.daemon.wait_for("cannot serve a VMM", PATIENCE).expect("told");
    assert!(served.processor_time_in_half_a_second() < Duration::from_millis(100));
    prlimit(pid, Resource::Nofile, usual).expect("as before");
    drop(first);
    served.assert_serves();
}
