// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Servers that die, hang or lie: the guest's request is answered in time and truly, the endpoint is blocked, and the
//! others go on.

use std::time::{Duration, Instant};

use vhost_user_iommu::vfio_user::message::{Command, Flags, Message, RegionAccess};
use viommu_core::{DomainId, Status};
use viommu_tests::vfio_user_disk::Conduct;
use viommu_tests::vfio_user_vmm::VfioUserVmm;
use zerocopy::IntoBytes;

use crate::bed::*;

/// What an answer may take: the bound, once for the request and once for putting right what failed, and the machine.
const ANSWERED: Duration = Duration::from_millis(2 * 300 + 2000);

/// Two servers in two domains; the first is told to misbehave.
fn two(conduct: Conduct) -> (Bed, Guest, [VfioUserVmm; 2]) {
    let bed = Bed::with(&["shared", "shared"], &[]);
    let mut guest = bed.boot();
    let vmms = [0, 1].map(|number| {
        let vmm = bed.plug(number);
        guest.attach(number, DomainId(number as u32 + 1));
        guest.map(DomainId(number as u32 + 1), IOVA, PAGE, SECRET.0);
        vmm
    });
    bed.disk(0).set_conduct(conduct);
    (bed, guest, vmms)
}

/// The VMM has lost the device.
fn is_blocked(vmm: &mut VfioUserVmm) {
    assert!(vmm.receive().expect("an end").is_none());
}

/// The other endpoint works as before.
fn other_goes_on(bed: &Bed, guest: &mut Guest) {
    assert_eq!(bed.peek(1, IOVA), secret());
    guest.map(DomainId(2), 1 << 32, PAGE, SECRET.0);
    assert_eq!(bed.peek(1, 1 << 32), secret());
    guest.unmap(DomainId(2), 1 << 32, PAGE);
    guest.unmap(DomainId(2), IOVA, PAGE);
    assert!(is_refused(&bed.peek(1, IOVA)));
}

#[test]
fn a_server_that_does_not_unmap_fails_the_request_and_is_blocked() {
    for (conduct, log) in [
        (Conduct::IgnoresUnmap, "does not answer in time"),
        (Conduct::Deaf, "does not answer in time"),
        (Conduct::HalfAnAnswer, "does not answer in time"),
        (Conduct::UnmapsLate(BOUND * 4), "does not answer in time"),
        (Conduct::RefusesUnmap, "does not let go of"),
        (Conduct::WrongAddress, "does not let go of"),
        (Conduct::WrongSize, "does not let go of"),
    ] {
        let (bed, mut guest, mut vmms) = two(conduct);
        let began = Instant::now();
        has_status(guest.try_unmap(DomainId(1), IOVA, PAGE), Status::DevErr);
        let took = began.elapsed();
        assert!(took < ANSWERED, "{conduct:?}: {took:?}");
        bed.wait_log(log);
        is_blocked(&mut vmms[0]);
        other_goes_on(&bed, &mut guest);
    }
}

#[test]
fn a_server_that_answers_something_else_is_blocked_and_has_nothing_when_it_is_gone() {
    for conduct in [Conduct::WrongId, Conduct::WrongCommand] {
        let (bed, mut guest, mut vmms) = two(conduct);
        // What it had it loses when it leaves, which it does as soon as it is left.
        succeeds(guest.try_unmap(DomainId(1), IOVA, PAGE));
        bed.wait_log("which it was not asked");
        is_blocked(&mut vmms[0]);
        assert_eq!(bed.told(0), []);
        other_goes_on(&bed, &mut guest);
    }
}

#[test]
fn a_server_that_reads_nothing_while_the_vmm_writes_is_blocked_as_well() {
    let (bed, mut guest, mut vmms) = two(Conduct::Honest);
    bed.disk(0).deafen();
    let access = RegionAccess { offset: 0x1000, region: 0, count: 60_000 };
    let write = [access.as_bytes(), &[0; 60_000]].concat();
    for _ in 0..60 {
        // More than sockets hold, so that nothing of the relay's own gets through.
        let message = Message::command(1, Command::REGION_WRITE, &write[..]);
        vmms[0].send_message(Message { flags: Flags::NO_REPLY, ..message }).expect("sends");
    }
    let began = Instant::now();
    has_status(guest.try_unmap(DomainId(1), IOVA, PAGE), Status::DevErr);
    assert!(began.elapsed() < ANSWERED);
    bed.wait_log("does not answer in time");
    is_blocked(&mut vmms[0]);
    other_goes_on(&bed, &mut guest);
}

#[test]
fn an_unmap_fails_as_long_as_the_server_may_have_the_memory() {
    let (mut bed, mut guest, _vmms) = two(Conduct::Deaf);
    has_status(guest.try_unmap(DomainId(1), IOVA, PAGE), Status::DevErr);
    bed.wait_log("does not answer in time");
    // It is blocked: what comes is not told it, and goes without it.
    guest.map(DomainId(1), 1 << 32, PAGE, SECRET.0);
    guest.unmap(DomainId(1), 1 << 32, PAGE);
    assert_eq!(bed.told(0), [(IOVA, PAGE)]);
    bed.wait_log("the back-end does not leave");
    let began = Instant::now();
    has_status(guest.try_unmap(DomainId(1), IOVA, PAGE), Status::DevErr);
    assert!(began.elapsed() < BOUND, "at once");
    other_goes_on(&bed, &mut guest);
    // What it has it has until it is gone.
    bed.disks[0] = None;
    let deadline = Instant::now() + PATIENCE;
    while guest.try_unmap(DomainId(1), IOVA, PAGE).status() != Status::Ok as u8 {
        assert!(Instant::now() < deadline, "it is gone");
    }
}

#[test]
fn a_server_that_dies_has_let_go_of_everything() {
    let (mut bed, mut guest, _vmms) = two(Conduct::Honest);
    bed.disks[0] = None;
    bed.wait_log("endpoint 00:02.0: the back-end disconnected");
    guest.unmap(DomainId(1), IOVA, PAGE);
    guest.map(DomainId(1), IOVA, PAGE, SECRET.0);
    other_goes_on(&bed, &mut guest);
    let (bed, mut guest, _vmms) = two(Conduct::Leaves);
    guest.unmap(DomainId(1), IOVA, PAGE);
    other_goes_on(&bed, &mut guest);
}

#[test]
fn a_map_that_the_server_refuses_fails_and_nobody_has_it() {
    let bed = Bed::with(&["shared", "shared"], &[]);
    let mut guest = bed.boot();
    let _vmms = [0, 1].map(|number| bed.plug(number));
    [0, 1].iter().for_each(|number| guest.attach(*number, DOMAIN));
    bed.disk(0).set_conduct(Conduct::RefusesMap);
    has_status(guest.try_map(DOMAIN, IOVA, PAGE, SECRET.0, 3), Status::DevErr);
    bed.wait_log("the server does not map 0xfffff000");
    assert_eq!((bed.told(0), bed.told(1)), (vec![], vec![]));
    bed.disk(0).set_conduct(Conduct::Honest);
    guest.map(DOMAIN, IOVA, PAGE, SECRET.0);
    assert_eq!([0, 1].map(|number| bed.peek(number, IOVA)), [secret(), secret()]);
}

#[test]
fn a_server_that_says_nothing_to_a_map_is_blocked_and_the_others_have_it_the_next_time() {
    let bed = Bed::with(&["shared", "shared"], &[]);
    let mut guest = bed.boot();
    let _vmms = [0, 1].map(|number| bed.plug(number));
    [0, 1].iter().for_each(|number| guest.attach(*number, DOMAIN));
    bed.disk(0).set_conduct(Conduct::IgnoresMap);
    let began = Instant::now();
    has_status(guest.try_map(DOMAIN, IOVA, PAGE, SECRET.0, 3), Status::DevErr);
    assert!(began.elapsed() < ANSWERED);
    bed.wait_log("does not answer in time");
    assert_eq!(bed.told(1), []);
    guest.map(DOMAIN, 1 << 32, PAGE, SECRET.0);
    assert_eq!(bed.peek(1, 1 << 32), secret());
    guest.unmap(DOMAIN, 1 << 32, PAGE);
    assert_eq!(bed.told(1), []);
}

#[test]
fn more_mappings_than_a_server_takes_are_refused() {
    let capabilities = r#"{"capabilities":{"max_dma_maps":3}}"#;
    let mut bed = Bed::shared();
    bed.serve_with(0, capabilities);
    let mut guest = bed.boot();
    let _vmm = bed.plug(0);
    guest.attach(0, DOMAIN);
    for page in 0..3 {
        guest.map(DOMAIN, IOVA - 2 * page * PAGE, PAGE, SECRET.0);
    }
    has_status(guest.try_map(DOMAIN, 1 << 32, PAGE, SECRET.0, 3), Status::NoMem);
    assert_eq!(bed.told(0).len(), 3);
    guest.unmap(DOMAIN, IOVA, PAGE);
    guest.map(DOMAIN, 1 << 32, PAGE, SECRET.0);
}
