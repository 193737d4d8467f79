// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Message by message: what a back-end is told, and what becomes of one that answers wrongly or asks too much.

use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, poll};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_iommu::message::{Access, BackendRequest, FrontendRequest, IotlbKind, IotlbMessage, Message};
use viommu_core::wire::{FAULT_R_UNKNOWN, MAP_F_READ, MAP_F_WRITE};
use viommu_core::{DomainId, Status};
use viommu_tests::front_end::{self, NEED_REPLY, REPLY, VERSION};
use viommu_tests::iotlb_disk::Options;
use zerocopy::IntoBytes;

use crate::back_end::{BackEnd, receive, send};
use crate::bed::*;
use crate::vmm::{DiskVmm, wanted};

const IOVA: u64 = 0x70_0000;

/// A guest that has mapped a page for a back-end of the test's.
fn mapped() -> (Bed, Guest, BackEnd, DiskVmm) {
    mapped_with(&[])
}

/// The same, with arguments for the daemon.
fn mapped_with(arguments: &[&str]) -> (Bed, Guest, BackEnd, DiskVmm) {
    let mut bed = Bed::with(&[Options::default()], arguments);
    let mut guest = bed.boot();
    guest.attach(0, DOMAIN);
    guest.map(DOMAIN, IOVA, PAGE, SECRET.0);
    let (back_end, vmm) = BackEnd::replace_disk(&mut bed, wanted());
    (bed, guest, back_end, vmm)
}

/// The daemon goes on: after all that, a good disk can be plugged.
fn lives(mut bed: Bed, guest: Guest, vmm: DiskVmm) {
    vmm.front.connection().wait_closed(PATIENCE).expect("the conversation ends");
    drop((vmm, guest));
    bed.wait_log("VMM disconnected, endpoints are blocked");
    bed.serve_disk(0, Options::default());
    bed.run();
}

#[test]
fn a_miss_gets_its_entry_and_its_answer_without_waiting_for_the_back_end() {
    let (bed, _guest, mut back_end, _vmm) = mapped();
    for _ in 0..2 {
        back_end.miss(IOVA + 5, Access::READ_WRITE);
        // The entry goes out first, and asks for no acknowledgement.
        assert_eq!(back_end.receive_answer(), 0);
        let (message, update) = back_end.receive_iotlb();
        let user_address = bed.memory.vmm_address(SECRET.0);
        assert_eq!(update, IotlbMessage::update(IOVA, PAGE, user_address, Access::READ_WRITE));
        assert!(!message.flags.needs_reply());
    }
}

/// DPDK asks to read and write wherever it writes, and takes no entry that allows less.
//= A33a A33b
#[test]
fn a_back_end_that_asks_to_read_and_write_gets_both_where_it_may_write_and_nothing_where_it_may_not() {
    let (bed, mut guest, mut back_end, _vmm) = mapped();
    let (write_only, read_only) = (IOVA + PAGE, IOVA + 2 * PAGE);
    succeeds(guest.try_map(DOMAIN, write_only, PAGE, SECRET.0, MAP_F_WRITE));
    succeeds(guest.try_map(DOMAIN, read_only, PAGE, SECRET.0, MAP_F_READ));
    back_end.miss(read_only, Access::READ_WRITE);
    assert_eq!(back_end.receive_answer(), 1);
    back_end.miss(write_only, Access::READ);
    assert_eq!(back_end.receive_answer(), 1);
    for access in [Access::WRITE, Access::READ_WRITE] {
        back_end.miss(write_only, access);
        assert_eq!(back_end.receive_answer(), 0);
        let user_address = bed.memory.vmm_address(SECRET.0);
        let update = IotlbMessage::update(write_only, PAGE, user_address, access);
        assert_eq!(back_end.receive_iotlb().1, update);
    }
}

#[test]
fn a_back_end_that_was_not_told_to_translate_gets_no_entry() {
    let mut bed = Bed::new();
    let mut guest = bed.boot();
    guest.attach(0, DOMAIN);
    guest.map(DOMAIN, IOVA, PAGE, SECRET.0);
    let (mut back_end, _vmm) = BackEnd::replace_disk_for(&mut bed, |bed| {
        let mut vmm = DiskVmm::connect(bed, 0);
        // Its features never come, and so nothing that is unmapped would be invalidated.
        vmm.front.step(|vhost| vhost.get_features()).expect("features");
        let protocol = vmm.front.step(|vhost| vhost.get_protocol_features()).expect("features");
        vmm.front.step(|vhost| vhost.set_protocol_features(protocol)).expect("accepted");
        vmm.front.set_memory(&bed.memory).expect("memory");
        vmm
    });
    back_end.miss(IOVA, Access::READ);
    assert_eq!(back_end.receive_answer(), 1);
}

#[test]
fn a_burst_of_misses_gets_all_its_entries() {
    const BURST: usize = 2000;
    let (_bed, _guest, back_end, _vmm) = mapped();
    let BackEnd { mut main, mut requests, .. } = back_end;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..BURST {
                requests.queue(Message::from(&IotlbMessage::miss(IOVA, Access::READ))).expect("room for one");
                while requests.wants_write() {
                    let mut polled = [PollFd::new(&requests, PollFlags::OUT)];
                    poll(&mut polled, None).expect("polls");
                    requests.flush().expect("the connection is open");
                }
            }
        });
        for _ in 0..BURST {
            let update: IotlbMessage = receive(&mut main).body().expect("an IOTLB message");
            assert_eq!((update.kind, update.iova), (IotlbKind::UPDATE, IOVA));
        }
    });
}

#[test]
fn a_back_end_that_asks_without_end_is_told_to_forget_all_the_same() {
    let (bed, mut guest, back_end, _vmm) = mapped();
    let BackEnd { mut main, raw_requests, requests: _requests } = back_end;
    let miss = IotlbMessage::miss(0, Access::READ).as_bytes().to_vec();
    let miss = front_end::Message { request: BackendRequest::IOTLB_MSG.0, flags: VERSION, body: miss };
    let (many, is_over) = (miss.to_bytes().repeat(10_000), AtomicBool::default());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                raw_requests.send_bytes(&many, &[]).expect("it is read");
            }
        });
        let unmap = scope.spawn(|| {
            bed.wait_log("fault: ");
            let reply = guest.try_unmap(DOMAIN, IOVA, PAGE);
            is_over.store(true, Ordering::Relaxed);
            reply
        });
        let invalidation = receive(&mut main);
        send(&mut main, invalidation.reply(&0u64));
        succeeds(unmap.join().expect("no panic"));
    });
}

#[test]
fn a_miss_while_an_invalidation_is_under_way_is_answered_at_once() {
    let (_bed, mut guest, mut back_end, _vmm) = mapped();
    guest.map(DOMAIN, IOVA + PAGE, PAGE, SECRET.0);
    std::thread::scope(|scope| {
        let unmap = scope.spawn(|| guest.unmap(DOMAIN, IOVA, PAGE));
        let (invalidation, content) = back_end.receive_iotlb();
        assert_eq!(content, IotlbMessage::invalidate(IOVA, PAGE));
        // What is being unmapped is refused, what lies beside it granted; its entry needs no acknowledgement.
        back_end.miss(IOVA, Access::READ);
        assert_eq!(back_end.receive_answer(), 1);
        back_end.miss(IOVA + PAGE, Access::READ);
        assert_eq!(back_end.receive_answer(), 0);
        let (update, content) = back_end.receive_iotlb();
        assert_eq!((content.kind, content.iova), (IotlbKind::UPDATE, IOVA + PAGE));
        assert!(!update.flags.needs_reply());
        assert!(!unmap.is_finished());
        back_end.answer(&invalidation, 0);
    });
}

#[test]
fn a_back_end_that_refuses_an_invalidation_fails_the_unmap() {
    let (bed, mut guest, mut back_end, _vmm) = mapped();
    std::thread::scope(|scope| {
        let unmap = scope.spawn(|| guest.driver.unmap(DOMAIN, range(IOVA, PAGE)).expect("a reply"));
        let (invalidation, _) = back_end.receive_iotlb();
        back_end.answer(&invalidation, 1);
        has_status(unmap.join().expect("a reply"), Status::DevErr);
    });
    bed.wait_log("endpoint 00:02.0: the back-end refuses an invalidation");
    // The mapping is there as before.
    back_end.miss(IOVA, Access::READ);
    assert_eq!(back_end.receive_iotlb().1.kind, IotlbKind::UPDATE);
}

#[test]
fn a_move_to_another_domain_invalidates_the_whole_space_in_two_halves() {
    let (_bed, mut guest, mut back_end, _vmm) = mapped();
    std::thread::scope(|scope| {
        let attach = scope.spawn(|| guest.attach(0, DomainId(2)));
        let halves = [0, 1 << 63].map(|start| {
            let (message, content) = back_end.receive_iotlb();
            assert_eq!(content, IotlbMessage::invalidate(start, 1 << 63));
            message
        });
        back_end.answer(&halves[0], 0);
        back_end.miss(IOVA, Access::READ);
        assert_eq!(back_end.receive_answer(), 1);
        assert!(!attach.is_finished());
        back_end.answer(&halves[1], 0);
    });
}

#[test]
fn a_back_end_forgets_its_entries_before_memory_changes() {
    let (bed, _guest, mut back_end, mut vmm) = mapped();
    std::thread::scope(|scope| {
        let change = scope.spawn(|| vmm.front.set_memory(&bed.memory).expect("memory"));
        for start in [0, 1 << 63] {
            let (message, content) = back_end.receive_iotlb();
            assert_eq!(content, IotlbMessage::invalidate(start, 1 << 63));
            back_end.answer(&message, 0);
        }
        let table = crate::back_end::receive(&mut back_end.main);
        assert_eq!(FrontendRequest(table.request), FrontendRequest::SET_MEM_TABLE);
        back_end.answer(&table, 0);
        change.join().expect("acknowledged");
    });
}

#[test]
fn a_failed_access_that_a_back_end_reports_becomes_an_event() {
    let (_bed, mut guest, mut back_end, _vmm) = mapped();
    let failure = IotlbMessage { kind: IotlbKind::ACCESS_FAIL, ..IotlbMessage::miss(IOVA, Access::WRITE) };
    back_end.ask(Message::from(&failure).with_need_reply());
    assert_eq!(back_end.receive_answer(), 0);
    let fault = guest.driver.wait_event().expect("an event").fault;
    assert_eq!((fault.reason, fault.address.get()), (FAULT_R_UNKNOWN, IOVA));
}

#[test]
fn what_a_back_end_must_not_ask_is_refused_and_it_goes_on() {
    let (_bed, _guest, mut back_end, _vmm) = mapped();
    let forbidden = [
        Message::new(BackendRequest::IOTLB_MSG, &IotlbMessage::update(0, PAGE, 0, Access::READ)),
        Message::new(BackendRequest::IOTLB_MSG, &IotlbMessage::invalidate(0, PAGE)),
        Message::new(BackendRequest::SHARED_OBJECT_ADD, &[0u8; 16]),
        Message::new(BackendRequest::VRING_HOST_NOTIFIER_MSG, &[0u8; 24]),
        // This VMM has no channel for it.
        Message::new(BackendRequest::CONFIG_CHANGE_MSG, &()),
        Message::new(999u32, &()),
    ];
    for request in forbidden {
        let number = request.request;
        back_end.ask(request.with_need_reply());
        assert_eq!(back_end.receive_answer(), 1, "request {number}");
    }
    back_end.miss(IOVA, Access::READ);
    assert_eq!(back_end.receive_iotlb().1.kind, IotlbKind::UPDATE);
}

#[test]
fn an_answer_that_nobody_asked_for_ends_the_conversation() {
    let answers: [(FrontendRequest, &str); 2] = [
        (FrontendRequest::GET_FEATURES, "the back-end answers GET_FEATURES where None was asked"),
        (FrontendRequest(999), "the back-end answers request 999 where None was asked"),
    ];
    for (request, line) in answers {
        let (bed, guest, mut back_end, vmm) = mapped();
        let answer = Message::new(request, &0u64);
        send(&mut back_end.main, answer.reply(&0u64));
        bed.wait_log(line);
        drop(back_end);
        lives(bed, guest, vmm);
    }
}

#[test]
fn a_back_end_that_asks_on_and_on_and_reads_nothing_is_cut_off() {
    let (bed, guest, back_end, vmm) = mapped();
    // An address that is not mapped: every miss has an answer.
    let miss = IotlbMessage::miss(0x71_0000, Access::READ);
    let miss = front_end::Message {
        request: BackendRequest::IOTLB_MSG.0,
        flags: VERSION | NEED_REPLY,
        body: miss.as_bytes().to_vec(),
    };
    let many = miss.to_bytes().repeat(100);
    let cut_off = (0..100_000).any(|_| back_end.raw_requests.send_bytes(&many, &[]).is_err());
    assert!(cut_off, "the daemon takes for ever what it cannot answer");
    bed.wait_log("the back-end's connection: the peer does not read");
    drop(back_end);
    lives(bed, guest, vmm);
}

#[test]
fn a_back_end_that_stays_when_the_vmm_leaves_fails_unmaps_until_it_leaves() {
    let (bed, mut guest, back_end, vmm) = mapped_with(&["--unmap-timeout", "200"]);
    std::thread::scope(|scope| {
        let unmap = scope.spawn(|| guest.driver.unmap(DOMAIN, range(IOVA, PAGE)).expect("a reply"));
        drop(vmm);
        has_status(unmap.join().expect("a reply"), Status::DevErr);
    });
    bed.wait_log("endpoint 00:02.0: the back-end does not leave: it may still use memory of the guest");
    has_status(guest.driver.unmap(DOMAIN, range(IOVA, PAGE)).expect("a reply"), Status::DevErr);
    drop(back_end);
    let mut bed = bed;
    bed.serve_disk(0, Options::default());
    let _vmm = DiskVmm::plug(&bed, 0);
    assert_eq!(bed.peek(0, IOVA), secret());
}

#[test]
fn a_back_end_that_reads_nothing_holds_up_its_vmm_alone() {
    let (bed, mut guest, back_end, vmm) = mapped_with(&["--unmap-timeout", "500"]);
    let num = front_end::Message::new(FrontendRequest::SET_VRING_NUM.0, [0; 8]).to_bytes().repeat(2000);
    vmm.front.connection().send_bytes(&num, &[]).expect("fits into the socket");
    let ticks = bed.processor_ticks();
    has_status(guest.driver.unmap(DOMAIN, range(IOVA, PAGE)).expect("a reply"), Status::DevErr);
    let ticks = bed.processor_ticks() - ticks;
    assert!(ticks < 25, "half a second of waiting took {ticks} hundredths of a second of processor time");
    // The VMM's leaving is noticed though nobody reads what it said.
    drop(vmm);
    bed.wait_log("endpoint 00:02.0: VMM disconnected");
    drop(back_end);
    guest.unmap(DOMAIN, IOVA, PAGE);
}

#[test]
fn news_of_the_configuration_reach_the_vmm_and_its_answer_the_back_end() {
    let mut bed = Bed::new();
    let mut wanted = wanted();
    wanted.protocol |= VhostUserProtocolFeatures::BACKEND_REQ;
    let (mut back_end, mut vmm) = BackEnd::replace_disk(&mut bed, wanted);
    let channel = vmm.front.open_back_end_channel().expect("acknowledged");
    back_end.ask(Message::new(BackendRequest::CONFIG_CHANGE_MSG, &()).with_need_reply());
    let news = channel.receive(PATIENCE).expect("news");
    assert_eq!((news.request, news.flags), (BackendRequest::CONFIG_CHANGE_MSG.0, VERSION | NEED_REPLY));
    let answer = front_end::Message { flags: VERSION | REPLY, body: 5u64.as_bytes().to_vec(), ..news };
    channel.send(&answer, &[]).expect("sends");
    assert_eq!(back_end.receive_answer(), 5);
}
