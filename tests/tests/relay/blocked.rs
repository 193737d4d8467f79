// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Disks that whoever runs the machine cuts off from its memory, and those that the relay has blocked.

use std::thread;
use std::time::Duration;

use viommu_core::wire::FAULT_R_DOMAIN;
use viommu_core::{DomainId, Status};
use viommu_tests::iotlb_disk::{OnInvalidate, Options};

use crate::bed::*;
use crate::vmm::DiskVmm;

const BLOCKED: &str = "00:02.0: vhost-user, blocked (domain 1): by the operator\n";
const TRANSLATED: &str = "00:02.0: vhost-user, translated (domain 1)\n";

#[test]
fn a_blocked_disk_reaches_nothing_and_the_guest_goes_on_as_if_it_did() {
    let bed = Bed::new();
    let (mut guest, mut vmm) = bed.run();
    assert_eq!(bed.ctl(&["block", "00:02.0"]).expect("done"), "");
    assert_eq!(bed.ctl(&["list"]).expect("done"), BLOCKED);
    // Neither what it has cached, nor what it asks for.
    assert!(is_refused(&bed.peek(0, SECRET_IOVA)));
    let event = guest.driver.wait_event().expect("an event");
    assert_eq!((event.fault.reason, event.fault.address.get()), (FAULT_R_DOMAIN, SECRET_IOVA));
    bed.wait_log("fault: 00:02.0 (blocked by the operator): ");

    guest.map(DOMAIN, 0x70_0000, PAGE, SECRET.0);
    guest.unmap(DOMAIN, SECRET_IOVA, PAGE);
    assert!(is_refused(&bed.peek(0, 0x70_0000)));
    assert_eq!(bed.ctl(&["block", "00:02.0"]).expect("done"), "", "once more");

    assert_eq!(bed.ctl(&["unblock", "00:02.0"]).expect("done"), "");
    assert_eq!(bed.ctl(&["list"]).expect("done"), TRANSLATED);
    assert_eq!(bed.peek(0, 0x70_0000), secret());
    assert!(is_refused(&bed.peek(0, SECRET_IOVA)));
    vmm.stop();
    vmm.start(SHIFT);
    assert_eq!(vmm.read_sector(7), Ok([7; SECTOR]));
    assert_eq!(bed.ctl(&["unblock", "00:02.0"]).expect("done"), "", "once more");
}

#[test]
fn other_disks_of_the_domain_are_not_blocked_with_it() {
    let bed = Bed::with(&[Options::default(); 2], &[]);
    let (mut guest, _vmm) = bed.run();
    guest.attach(1, DOMAIN);
    map_disk(&mut guest, DOMAIN, 1);
    let mut other = DiskVmm::plug(&bed, 1);
    other.start(SHIFT);
    bed.ctl(&["block", "00:02.0"]).expect("done");
    assert_eq!(other.read_sector(8), Ok([8; SECTOR]));
    assert_eq!(bed.peek(1, SECRET_IOVA), secret());
}

#[test]
fn nothing_that_guest_or_vmm_do_ends_a_block() {
    let bed = Bed::new();
    let (mut guest, mut vmm) = bed.run();
    bed.ctl(&["block", "00:02.0"]).expect("done");
    guest.detach(0, DOMAIN);
    assert!(is_refused(&bed.peek(0, SECRET.0)), "unattached, with bypass");
    guest.front.reset_device().expect("a reset");
    guest.restart();
    guest.attach(0, DomainId(2));
    guest.map(DomainId(2), SECRET_IOVA, PAGE, SECRET.0);
    vmm.stop();
    vmm.start(SHIFT);
    assert!(is_refused(&bed.peek(0, SECRET_IOVA)), "another life of both");
    drop((guest, vmm));
    bed.wait_log("VMM disconnected, endpoints are blocked");
    let mut guest = bed.boot();
    let _vmm = DiskVmm::plug(&bed, 0);
    assert!(is_refused(&bed.peek(0, SECRET.0)), "another machine");
    guest.attach(0, DOMAIN);
    guest.map(DOMAIN, SECRET_IOVA, PAGE, SECRET.0);
    assert!(is_refused(&bed.peek(0, SECRET_IOVA)));
    assert_eq!(bed.ctl(&["list"]).expect("done"), BLOCKED);
    bed.ctl(&["unblock", "00:02.0"]).expect("done");
    assert_eq!(bed.peek(0, SECRET_IOVA), secret());
}

#[test]
fn the_next_disk_of_a_blocked_endpoint_is_blocked_as_well() {
    let bed = Bed::new();
    let (mut guest, vmm) = bed.run();
    bed.ctl(&["block", "00:02.0"]).expect("done");
    drop(vmm);
    bed.ctl(&["remove", "00:02.0"]).expect("done");
    guest.map(DOMAIN, 0x70_0000, PAGE, SECRET.0);
    let (front, back) = (bed.front_path(0), bed.disk_path(0));
    let added = format!("00:02.0,vhost-user={},backend={}", front.display(), back.display());
    bed.ctl(&["add", &added]).expect("done");
    let mut vmm = DiskVmm::plug(&bed, 0);
    vmm.start(SHIFT);
    assert!(is_refused(&bed.peek(0, 0x70_0000)));
    assert_eq!(bed.ctl(&["list"]).expect("done"), BLOCKED);
    bed.ctl(&["unblock", "00:02.0"]).expect("done");
    assert_eq!(bed.peek(0, 0x70_0000), secret());
}

#[test]
fn what_lingers_beneath_a_block_does_so_after_it() {
    let bed = Bed::new();
    let (mut guest, _vmm) = bed.run();
    bed.ctl(&["block", "00:02.0"]).expect("done");
    guest.front.reset_device().expect("a reset");
    assert!(is_refused(&bed.peek(0, SECRET_IOVA)));
    bed.ctl(&["unblock", "00:02.0"]).expect("done");
    assert_eq!(bed.ctl(&["list"]).expect("done"), "00:02.0: vhost-user, translated\n");
    assert_eq!(bed.peek(0, SECRET_IOVA), secret());
    assert!(is_refused(&bed.peek(0, SECRET.0)), "no IOVA is taken for a GPA");
}

#[test]
fn a_back_end_that_does_not_say_that_it_forgets_gets_nothing_more_and_the_operator_is_told() {
    let bed = Bed::with(&[Options::default()], &["--unmap-timeout", "300"]);
    let (mut guest, _vmm) = bed.run();
    guest.map(DOMAIN, 0x70_0000, PAGE, SECRET.0);
    bed.disk(0).set_on_invalidate(OnInvalidate::NeverAcknowledge);
    // The first one waits, the second finds a back-end that is behind.
    for _ in 0..2 {
        let error = bed.ctl(&["block", "00:02.0"]).expect_err("not known to be so").to_string();
        assert!(error.contains("it is blocked, but may still use memory that it had"), "{error}");
        assert_eq!(bed.ctl(&["list"]).expect("done"), BLOCKED);
        assert!(is_refused(&bed.peek(0, 0x70_0000)));
    }
    has_status(guest.try_unmap(DOMAIN, 0x70_0000, PAGE), Status::DevErr);
}

#[test]
fn a_back_end_that_is_behind_is_told_to_forget_all_the_same() {
    let bed = Bed::with(&[Options::default()], &["--unmap-timeout", "200"]);
    let (mut guest, _vmm) = bed.run();
    guest.map(DOMAIN, 0x70_0000, PAGE, SECRET.0);
    assert_eq!(bed.peek(0, 0x70_0000), secret());
    bed.disk(0).set_on_invalidate(OnInvalidate::AcknowledgeAfter(Duration::from_millis(600)));
    has_status(guest.try_unmap(DOMAIN, SECRET_IOVA, PAGE), Status::DevErr);
    let invalidations = bed.disk(0).stats().invalidations;
    bed.ctl(&["block", "00:02.0"]).expect_err("it is not waited for");
    assert!(bed.disk(0).wait_until(PATIENCE, |stats, _| stats.invalidations >= invalidations + 2));
    assert!(is_refused(&bed.peek(0, 0x70_0000)));
}

#[test]
fn a_block_is_not_kept_waiting_by_a_request_that_waits_for_the_same_back_end() {
    let bed = Bed::with(&[Options::default()], &["--unmap-timeout", "20000"]);
    let (mut guest, vmm) = bed.run();
    bed.disk(0).set_on_invalidate(OnInvalidate::NeverAcknowledge);
    let invalidations = bed.disk(0).stats().invalidations;
    let are_more =
        |count| bed.disk(0).wait_until(PATIENCE, |stats, _| stats.invalidations >= invalidations + count);
    thread::scope(|scope| {
        let unmap = scope.spawn(|| guest.try_unmap(DOMAIN, SECRET_IOVA, PAGE));
        assert!(are_more(1));
        let block = scope.spawn(|| bed.ctl(&["block", "00:02.0"]));
        // All of the address space, in two pieces.
        assert!(are_more(3) && !unmap.is_finished());
        assert!(is_refused(&bed.peek(0, SECRET_IOVA)));
        // When its VMM gives the disk up, that knows nothing any more.
        drop(vmm);
        block.join().expect("no panic").expect("done");
        succeeds(unmap.join().expect("no panic"));
    });
}

#[test]
fn a_list_says_what_has_become_of_a_back_end() {
    let mut bed = Bed::new();
    let (_guest, vmm) = bed.run();
    bed.disks[0] = None;
    bed.wait_log("the back-end disconnected");
    let listed = bed.ctl(&["list"]).expect("done");
    assert_eq!(listed, "00:02.0: vhost-user, blocked (domain 1): the back-end disconnected\n");
    drop(vmm);
    bed.serve_disk(0, Options::default());
    let _vmm = DiskVmm::plug(&bed, 0);
    assert_eq!(bed.ctl(&["list"]).expect("done"), TRANSLATED);
}
