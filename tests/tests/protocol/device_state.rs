// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device's state, moved from one daemon to another through pipes of the VMM.

use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::os::fd::AsFd;
use std::thread;

use viommu_tests::driver::IommuDriver;
use viommu_tests::front_end::Message;

use crate::scene::*;

const GET_PROTOCOL_FEATURES: u32 = 15;
const SET_DEVICE_STATE_FD: u32 = 42;
const CHECK_DEVICE_STATE: u32 = 43;
const SAVE: u32 = 0;
const LOAD: u32 = 1;
/// Of SET_DEVICE_STATE_FD: taken, and no other descriptor comes back.
const TAKEN: u64 = 0x100;
const DEVICE_STATE: u64 = 1 << 19;

fn number(vmm: &Vmm, request: u32, body: Vec<u8>, fd: Option<impl AsFd>) -> u64 {
    let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
    let answer =
        vmm.front_end.connection().call(&Message::new(request, body), &fds, PATIENCE).expect("an answer");
    u64::from_ne_bytes(answer.body.try_into().expect("eight bytes"))
}

fn give(vmm: &Vmm, direction: u32, fd: impl AsFd) -> u64 {
    let body = [direction, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
    number(vmm, SET_DEVICE_STATE_FD, body, Some(fd))
}

fn is_done(vmm: &Vmm) -> bool {
    number(vmm, CHECK_DEVICE_STATE, vec![], None::<PipeReader>) == 0
}

fn saved(vmm: &Vmm) -> Vec<u8> {
    let (mut ours, theirs) = pipe().expect("a pipe");
    assert_eq!(give(vmm, SAVE, theirs), TAKEN);
    let mut state = Vec::new();
    ours.read_to_end(&mut state).expect("read");
    assert!(is_done(vmm));
    state
}

/// A pipe into the device, which it has taken.
fn into(vmm: &Vmm) -> PipeWriter {
    let (theirs, ours) = pipe().expect("a pipe");
    assert_eq!(give(vmm, LOAD, theirs), TAKEN);
    ours
}

fn load(vmm: &Vmm, state: &[u8]) -> bool {
    // The device may end the pipe before it is through.
    let _ = into(vmm).write_all(state);
    is_done(vmm)
}

/// A guest that stands still in the middle of its work.
fn stopped() -> (Served, Vmm, Vec<u8>) {
    let served = Served::new();
    let mut vmm = served.vmm();
    vmm.attach();
    // More than a pipe holds at once.
    for page in 0..4000 {
        assert_eq!(vmm.map(page), OK);
    }
    vmm.front_end.write_config(36, &[0]).expect("written");
    vmm.front_end.stop_ring(0).expect("stopped");
    let state = saved(&vmm);
    (served, vmm, state)
}

#[test]
fn a_guest_goes_on_at_another_daemon_where_it_was() {
    let (_from, old, state) = stopped();
    let to = Served::new();
    let mut new = to.vmm();
    let told = new.front_end.open_back_end_channel().expect("taken");
    assert!(load(&new, &state));
    assert_eq!(told.receive(PATIENCE).expect("told").request, 2, "that the configuration space has changed");
    assert_eq!(new.front_end.config().expect("forty bytes").bypass, 0);
    assert_eq!(saved(&new), state);
    drop(old);
    for page in [0, 3999] {
        assert_eq!(new.map(page), INVALID, "{page} is mapped");
    }
    assert_eq!(new.map(4000), OK);
}

#[test]
fn what_is_no_state_or_does_not_fit_leaves_a_device_that_was_reset() {
    let (_from, _old, state) = stopped();
    let to = Served::with(&["--max-mappings", "100"]);
    let mut new = to.vmm();
    new.attach();
    for (bytes, line) in [
        (&state[..100], "says that it has"),
        (&[0xff; 3000], "this is no state"),
        (&state, "takes more than the 3672 bytes"),
        (&state[..32], "says that it has"),
    ] {
        let told = to.lines_with(line);
        assert!(!load(&new, bytes), "{line}");
        eventually(line, || to.lines_with(line) > told);
    }
    new.assert_served();
    let other = Served::with(&["--aperture", "0-0xffff"]);
    let mut new = other.vmm();
    assert!(!load(&new, &state));
    eventually("the reason is logged", || other.lines_with("MAP of the state is refused here") == 1);
    assert_eq!(new.map(0), NO_ENTRY);
}

#[test]
fn nobody_waits_for_a_vmm_that_leaves_its_pipe_alone() {
    let (_from, mut vmm, _) = stopped();
    let (ours, theirs) = pipe().expect("a pipe");
    assert_eq!(give(&vmm, SAVE, theirs), TAKEN);
    assert_eq!(give(&vmm, SAVE, &ours) & 0xff, 1, "one is under way");
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            let served = Served::new();
            let new = served.vmm();
            let writer = into(&new);
            let is_done = is_done_in_time(&new);
            drop(writer);
            is_done
        });
        assert!(!is_done_in_time(&vmm));
        assert!(!other.join().expect("it ends"));
    });
    assert!(!is_done(&vmm), "there is none any more");
    drop(ours);
    vmm.front_end.start_ring(0, IommuDriver::requests(&mut vmm.driver)).expect("started");
    vmm.assert_keeps_page_0();
}

/// The device waits as long for its VMM as anybody else here.
fn is_done_in_time(vmm: &Vmm) -> bool {
    let connection = vmm.front_end.connection();
    let answer =
        connection.call(&Message::new(CHECK_DEVICE_STATE, []), &[], 3 * PATIENCE).expect("an answer");
    answer.body == [0; 8]
}

#[test]
fn a_device_of_tables_does_not_offer_it() {
    for (mode, is_offered) in [("map", true), ("table", false)] {
        let served = Served::with(&["--mode", mode]);
        let connection = served.connection();
        let answer =
            connection.call(&Message::new(GET_PROTOCOL_FEATURES, []), &[], PATIENCE).expect("features");
        let features = u64::from_ne_bytes(answer.body.try_into().expect("eight bytes"));
        assert_eq!(features & DEVICE_STATE != 0, is_offered, "{mode}");
    }
}
