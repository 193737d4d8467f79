// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Bytes that no good server or VMM sends: they end a connection with a line in the log, and nothing else.

use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use vhost_user_iommu::message::Frame;
use vhost_user_iommu::vfio_user::message::{Command, DATA_LEN_MAX, DmaAccess, DmaMap, Flags, Message};
use viommu_tests::vfio_user_vmm::{VfioUserVmm, map_of};
use zerocopy::IntoBytes;

use crate::bed::*;

fn access(command: Command, address: u64, count: u64, data: &[u8]) -> Message {
    let payload = [DmaAccess { address, count }.as_bytes(), data].concat();
    Message::command(3, command, &payload[..])
}

fn bytes(message: Message) -> Vec<u8> {
    message.into_parts().expect("short enough").0
}

/// The connection of the VMM ends, the daemon says why, and the other endpoint goes on.
fn ends(what: &str, bed: &Bed, vmm: &mut VfioUserVmm, log: &str) {
    assert!(vmm.receive().expect(what).is_none(), "{what}");
    bed.wait_log(log);
    assert_eq!(bed.peek(1, SECRET.0), secret(), "{what}");
}

fn two(dma: &str) -> (Bed, Guest, [VfioUserVmm; 2]) {
    let bed = Bed::with(&[dma, "message"], &[]);
    let guest = bed.boot();
    let vmms = [0, 1].map(|number| bed.plug(number));
    (bed, guest, vmms)
}

#[test]
fn what_no_good_server_sends_ends_its_connection() {
    let refused = |command, id| Message { flags: Flags::REPLY, ..Message::command(id, command, &()) };
    let header = |size: u32, flags: u32| {
        [&[1, 0, 11, 0][..], &size.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 4]].concat()
    };
    let too_long = DATA_LEN_MAX as u64 + 1;
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("a read without a count", bytes(Message::command(3, Command::DMA_READ, &[0u8; 8])), "wrong form"),
        ("a read with data", bytes(access(Command::DMA_READ, 0, 4, &[1; 4])), "wrong form"),
        ("a read of too much", bytes(access(Command::DMA_READ, 0, too_long, &[])), "wrong form"),
        ("a read of everything", bytes(access(Command::DMA_READ, 0, u64::MAX, &[])), "wrong form"),
        ("a write of less than it says", bytes(access(Command::DMA_WRITE, 0, 5, &[1; 4])), "wrong form"),
        ("a write of more than it says", bytes(access(Command::DMA_WRITE, 0, 3, &[1; 4])), "wrong form"),
        ("an answer that nothing was asked for", bytes(refused(Command::DMA_MAP, 9)), "not asked"),
        ("a version that was not asked for", bytes(refused(Command::VERSION, 0)), "not asked"),
        ("a message shorter than its header", header(15, 0), "no message of 15 bytes"),
        ("a message of 4 GiB", header(u32::MAX, 0), "no message of 4294967295 bytes"),
        ("a message of no type", header(16, 7), "has the flags 0x7"),
    ];
    for (what, bytes, log) in cases {
        let (bed, _guest, [mut vmm, _other]) = two("shared");
        bed.disk(0).say(&bytes);
        ends(what, &bed, &mut vmm, log);
    }
}

#[test]
fn a_command_that_no_server_sends_is_refused() {
    let (bed, _guest, _vmms) = two("message");
    for command in [Command::DMA_MAP, Command::VERSION, Command::DEVICE_RESET, Command(99)] {
        let reply = bed.disk(0).tell(Message::command(0, command, &())).expect("an answer");
        assert_eq!((reply.flags, reply.error), (Flags::ERROR, Errno::NOTSUP.raw_os_error() as u32));
    }
    assert_eq!(bed.peek(0, SECRET.0), secret());
}

#[test]
fn an_access_may_be_empty_or_as_large_as_was_agreed() {
    let (bed, _guest, _vmms) = two("message");
    for count in [0, DATA_LEN_MAX as u64] {
        let reply = bed.disk(0).tell(access(Command::DMA_READ, 0, count, &[])).expect("an answer");
        assert_eq!((reply.flags, reply.payload.len() as u64), (Flags::REPLY, 16 + count));
    }
    let beyond = access(Command::DMA_READ, u64::MAX, 2, &[]);
    assert_eq!(bed.disk(0).tell(beyond).expect("an answer").flags, Flags::ERROR);
}

#[test]
fn a_server_that_asks_and_reads_nothing_is_not_waited_for() {
    let (bed, mut guest, _vmms) = two("message");
    bed.disk(0).deafen();
    guest.attach(0, DOMAIN);
    guest.map(DOMAIN, 0, LOW.1, LOW.0);
    // More answers than sockets hold; what cannot be sent any more is not asked for.
    let question = bytes(access(Command::DMA_READ, 0, 64 << 10, &[]));
    bed.disk(0).say(&question.repeat(200));
    guest.unmap(DOMAIN, 0, LOW.1);
    guest.map(DOMAIN, 0, LOW.1, LOW.0);
    assert_eq!(bed.peek(1, SECRET.0), secret());
}

#[test]
fn what_no_good_vmm_sends_ends_its_connection() {
    let bed = Bed::with(&["shared", "message"], &[]);
    let _guest = bed.boot();
    let _other = bed.plug(1);
    for (what, message, log) in [
        (
            "no version",
            Message::command(1, Command::DEVICE_GET_INFO, &[0u8; 16]),
            "DEVICE_GET_INFO where the version",
        ),
        (
            "no JSON",
            Message::command(1, Command::VERSION, b"\0\0\0\0{\0"),
            "a version message of the wrong form",
        ),
        (
            "an answer",
            Message { flags: Flags::REPLY, ..Message::command(1, Command::DMA_READ, &()) },
            "the VMM answers",
        ),
    ] {
        let mut vmm = VfioUserVmm::connect(&bed.front_path(0), PATIENCE).expect("connects");
        vmm.send_message(message).expect("sends");
        ends(what, &bed, &mut vmm, log);
    }
}

fn file(length: u64) -> OwnedFd {
    let file = memfd_create("memory", MemfdFlags::CLOEXEC).expect("memory");
    ftruncate(&file, length).expect("memory");
    file
}

#[test]
fn memory_that_cannot_be_is_refused_and_the_rest_stays() {
    let (bed, _guest, [mut vmm, _other]) = two("shared");
    let free = 1 << 40;
    for (what, map, files, errno) in [
        ("over other memory", map_of(LOW.0, PAGE, 0), 1, Errno::EXIST),
        ("empty", map_of(free, 0, 0), 1, Errno::INVAL),
        ("past the end", map_of(u64::MAX - 1, PAGE, 0), 1, Errno::INVAL),
        ("longer than its file", map_of(free, 2 * PAGE, 0), 1, Errno::INVAL),
        ("past its file", map_of(free, PAGE, u64::MAX - 1), 1, Errno::INVAL),
        ("of two files", map_of(free, PAGE, 0), 2, Errno::INVAL),
        ("of unknown rights", DmaMap { flags: 8, ..map_of(free, PAGE, 0) }, 1, Errno::INVAL),
    ] {
        let fds = (0..files).map(|_| file(PAGE)).collect();
        let reply = vmm.ask(Command::DMA_MAP, map.as_bytes(), fds).expect("an answer");
        assert_eq!((reply.flags, reply.error), (Flags::ERROR, errno.raw_os_error() as u32), "{what}");
    }
    let short = vmm.ask(Command::DMA_MAP, &[0; 31], vec![]).expect("an answer");
    assert_eq!(short.flags, Flags::ERROR);
    assert!(vmm.take_back(LOW.0, PAGE).is_err());
    assert_eq!(bed.told(0), [LOW, HIGH]);
    // Memory without a file is told without one.
    let reply = vmm.ask(Command::DMA_MAP, map_of(free, PAGE, 0).as_bytes(), vec![]).expect("an answer");
    assert_eq!(reply.flags, Flags::REPLY);
    assert_eq!(bed.disk(0).told()[2], (free, PAGE, 3, false));
    assert!(is_refused(&bed.peek(0, free)));
}

#[test]
fn what_could_get_past_the_iommu_is_refused() {
    let (_bed, _guest, [mut vmm, _other]) = two("shared");
    for command in
        [Command::VERSION, Command::DEVICE_FEATURE, Command::MIG_DATA_READ, Command(14), Command(99)]
    {
        let reply = vmm.ask(command, &[0; 16], vec![]).expect("an answer");
        assert_eq!(
            (reply.flags, reply.error),
            (Flags::ERROR, Errno::NOTSUP.raw_os_error() as u32),
            "{command:?}"
        );
    }
}
