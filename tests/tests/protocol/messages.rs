// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Malformed messages: the connection ends, with a line in the log, and the next VMM is served.

use std::os::fd::AsFd;

use rustix::event::{EventfdFlags, eventfd};
use viommu_tests::front_end::{Connection, Message, NEED_REPLY, REPLY, VERSION};

use crate::scene::*;

const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_OWNER: u32 = 3;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const SET_VRING_KICK: u32 = 12;
const GET_PROTOCOL_FEATURES: u32 = 15;
const SET_PROTOCOL_FEATURES: u32 = 16;
const SET_VRING_ENABLE: u32 = 18;
const GET_CONFIG: u32 = 24;
const SET_CONFIG: u32 = 25;
const ADD_MEM_REG: u32 = 37;
const REM_MEM_REG: u32 = 38;
/// Unassigned, and those of features that are not offered.
const NOT_SPOKEN: [u32; 8] = [0, 6, 17, 22, 31, 32, 45, u32::MAX];

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn header(request: u32, flags: u32, size: u32) -> Vec<u8> {
    [request, flags, size].iter().flat_map(|field| field.to_ne_bytes()).collect()
}

/// A connection with all features and protocol features that are offered.
fn negotiated(served: &Served) -> Connection {
    let connection = served.connection();
    let ask = |request| connection.call(&Message::new(request, []), &[], PATIENCE).expect("a reply").body;
    let features = ask(GET_FEATURES);
    let protocol = ask(GET_PROTOCOL_FEATURES);
    connection.send(&Message::new(SET_PROTOCOL_FEATURES, protocol), &[]).expect("sent");
    connection.send(&Message::new(SET_OWNER, []), &[]).expect("sent");
    connection.send(&Message::new(SET_FEATURES, features), &[]).expect("sent");
    connection
}

/// These bytes end a connection, and say so.
fn assert_ends(served: &Served, what: &str, bytes: &[u8], fds: usize) {
    let told = served.lines_with("the VMM's connection ends");
    let connection = negotiated(served);
    let event = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
    connection.send_bytes(bytes, &vec![event.as_fd(); fds]).expect("sent");
    connection.wait_closed(PATIENCE).unwrap_or_else(|error| panic!("{what}: {error}"));
    eventually(what, || served.lines_with("the VMM's connection ends") > told);
}

#[test]
fn a_header_that_is_wrong_ends_the_connection() {
    let served = Served::new();
    for (what, flags, size) in [
        ("version 0", 0, 0),
        ("version 2", 2, 0),
        ("a reply", VERSION | REPLY, 0),
        ("unknown flags", VERSION | 1 << 4, 0),
        ("flags all set", u32::MAX, 0),
        ("a size beyond every message", VERSION, u32::MAX),
        ("a size just too large", VERSION, 0x1001),
    ] {
        assert_ends(&served, what, &header(GET_FEATURES, flags, size), 0);
    }
    served.assert_serves();
}

#[test]
fn requests_that_are_not_spoken_end_the_connection() {
    let served = Served::new();
    for request in NOT_SPOKEN {
        let message = Message::new(request, words(&[0; 5])).to_bytes();
        assert_ends(&served, &format!("request {request}"), &message, 0);
    }
    served.assert_serves();
}

#[test]
fn a_payload_that_is_wrong_ends_the_connection() {
    let served = Served::new();
    let long = vec![0; 0x1000];
    for (request, body, fds) in [
        (GET_FEATURES, words(&[0]), 0),
        (SET_FEATURES, vec![0; 7], 0),
        (SET_FEATURES, vec![0; 9], 0),
        (SET_FEATURES, words(&[0]), 1),
        (SET_OWNER, vec![], 0),
        (SET_MEM_TABLE, vec![], 0),
        (SET_MEM_TABLE, words(&[0]), 0),
        (SET_MEM_TABLE, words(&[9, 0, 0x1000, 0, 0]), 1),
        (SET_MEM_TABLE, words(&[u64::MAX, 0, 0x1000, 0, 0]), 1),
        (SET_MEM_TABLE, words(&[1, 0, 0x1000, 0, 0]), 0),
        (SET_MEM_TABLE, words(&[1, 0, 0x1000, 0, 0]), 2),
        (SET_MEM_TABLE, words(&[1, 0, 0, 0, 0]), 1),
        (SET_MEM_TABLE, words(&[1, u64::MAX, 0x1000, 0, 0]), 1),
        (SET_MEM_TABLE, words(&[1, 0, 0x1000, u64::MAX, 0]), 1),
        (SET_MEM_TABLE, words(&[1, 0, 0x1000, 0, 1]), 1),
        (SET_MEM_TABLE, words(&[1, 0, 0x1000, 0, u64::MAX]), 1),
        (SET_MEM_TABLE, words(&[2, 0, 0x1000, 0, 0, 0, 0x1000, 0, 0]), 2),
        (SET_VRING_NUM, words(&[0]), 0),
        (SET_VRING_NUM, words(&[2 | 16 << 32]), 0),
        (SET_VRING_NUM, words(&[2048 << 32]), 0),
        (SET_VRING_ADDR, words(&[0, 0, 0, 0, 0]), 0),
        (SET_VRING_ADDR, words(&[0; 4]), 0),
        (SET_VRING_ADDR, words(&[7 << 32, 0, 0, 0, 0]), 0),
        (SET_VRING_BASE, words(&[u64::MAX]), 0),
        (SET_VRING_KICK, words(&[0]), 0),
        (SET_VRING_KICK, words(&[0]), 2),
        (SET_VRING_KICK, words(&[2]), 1),
        (SET_VRING_KICK, words(&[1 << 8]), 1),
        (SET_VRING_ENABLE, words(&[2 << 32]), 0),
        (SET_VRING_ENABLE, words(&[7 | 1 << 32]), 0),
        (GET_CONFIG, vec![0; 11], 0),
        (GET_CONFIG, vec![0xff; 40], 0),
        (SET_CONFIG, vec![0; 5], 0),
        (SET_CONFIG, long.clone(), 0),
        (ADD_MEM_REG, words(&[0, 0, 0x1000, 0, 0]), 0),
        (ADD_MEM_REG, words(&[0, 0, 0x1000, u64::MAX, 0]), 1),
        (REM_MEM_REG, words(&[0, 0x5000, 0x1000, 0, 0]), 0),
        (GET_FEATURES, long, 0),
    ] {
        let message = Message { request, flags: VERSION | NEED_REPLY, body };
        let what = format!(
            "request {request} with {} bytes and {fds} descriptors: {:?}",
            message.body.len(),
            &message.body[..message.body.len().min(48)]
        );
        assert_ends(&served, &what, &message.to_bytes(), fds);
    }
    served.assert_serves();
}

#[test]
fn more_descriptors_than_a_message_may_carry_do_not_stay_open() {
    const CONNECTIONS: usize = 40;
    let served = Served::new();
    served.assert_serves();
    let before = served.count("fd");
    for _ in 0..CONNECTIONS {
        let connection = negotiated(&served);
        let event = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
        connection.send(&Message::new(SET_MEM_TABLE, words(&[0])), &[event.as_fd(); 33]).expect("sent");
    }
    // Whether the next session is set up already is not seen from outside, and it has fewer descriptors than that.
    eventually("a connection leaves no descriptor", || served.count("fd") < before + CONNECTIONS);
    served.assert_serves();
}

#[test]
fn steps_out_of_order_start_no_ring_and_harm_nobody() {
    let served = Served::new();
    let event = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
    let kick = (SET_VRING_KICK, words(&[0]), 1);
    let enable = (SET_VRING_ENABLE, words(&[1 << 32]), 0);
    let base = (SET_VRING_BASE, words(&[0]), 0);
    let stop = (11, words(&[0]), 0);
    for steps in [
        vec![&kick],
        vec![&kick, &enable],
        vec![&base, &kick, &stop],
        vec![&enable],
        vec![&stop, &stop, &kick],
    ] {
        let connection = served.connection();
        for (request, body, fds) in &steps {
            // A step that is refused ends the connection, and the next one finds it closed.
            let _ = connection.send(&Message::new(*request, body.clone()), &vec![event.as_fd(); *fds]);
        }
        rustix::io::write(&event, &1u64.to_ne_bytes()).expect("written");
        drop(connection);
        served.assert_serves();
    }
}

#[test]
fn a_vmm_may_vanish_at_any_byte_of_the_handshake() {
    let served = Served::new();
    let whole: Vec<u8> = [
        Message::new(GET_FEATURES, []),
        Message::new(GET_PROTOCOL_FEATURES, []),
        Message::new(SET_PROTOCOL_FEATURES, words(&[1 << 3 | 1 << 9])),
        Message::new(SET_OWNER, []),
        Message::new(SET_FEATURES, words(&[1 << 30 | 1 << 32])),
        Message::new(SET_VRING_NUM, words(&[64 << 32])),
        Message::new(SET_VRING_BASE, words(&[0])),
        Message::new(SET_VRING_ENABLE, words(&[1 << 32])),
    ]
    .iter()
    .flat_map(Message::to_bytes)
    .collect();
    for cut in 0..=whole.len() {
        let connection = served.connection();
        connection.send_bytes(&whole[..cut], &[]).expect("sent");
    }
    served.assert_serves();
    assert_eq!(served.lines_with("panicked"), 0);
}

#[test]
fn messages_of_random_bytes_end_connections_and_nothing_else() {
    let served = Served::new();
    let mut random = crate::fuzz::Random::new();
    let event = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
    for _ in 0..300 {
        let connection = negotiated(&served);
        for _ in 0..4 {
            let size = random.below(80) as usize;
            let body = (0..size)
                .map(|_| if random.below(3) == 0 { random.below(256) as u8 } else { 0 })
                .collect::<Vec<_>>();
            let message = Message { request: random.below(45) as u32, flags: VERSION | NEED_REPLY, body };
            let fds = vec![event.as_fd(); random.below(3) as usize];
            // A connection that has ended already takes no more.
            let _ = connection.send(&message, &fds);
        }
    }
    served.assert_serves();
    assert_eq!(served.lines_with("panicked"), 0, "{random:?}");
}
