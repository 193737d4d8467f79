// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Starts, stops, resets and departures of everybody: the table of `iommu/serving.rs`, row by row, and the memory
//! table while a disk runs.

use std::time::Instant;

use viommu_core::{DomainId, Status};
use viommu_tests::front_end::{FrontEnd, Wanted};
use viommu_tests::iotlb_disk::{Event, OnInvalidate, Options};

use crate::bed::*;
use crate::vmm::{DiskVmm, Order, RINGS};

/// What the disk reads at the IOVA of the secret and at its GPA, now.
fn reached(bed: &Bed) -> (bool, bool) {
    (bed.peek(0, SECRET_IOVA) == secret(), bed.peek(0, SECRET.0) == secret())
}

/// As the domain of [`Bed::run`] translates.
const TRANSLATED: (bool, bool) = (true, false);
/// Without translation.
const BYPASS: (bool, bool) = (false, true);
/// Nothing at all.
const BLOCKED: (bool, bool) = (false, false);

/// Nothing that the disk knew is left, so that what it reaches is what the daemon says now.
fn forgotten(bed: &Bed, vmm: &mut DiskVmm) {
    vmm.front.set_memory(&bed.memory).expect("memory");
}

fn running() -> (Bed, Guest, DiskVmm) {
    let bed = Bed::new();
    let (guest, vmm) = bed.run();
    assert_eq!(reached(&bed), TRANSLATED);
    (bed, guest, vmm)
}

//= A11
#[test]
fn after_a_reset_of_the_iommu_a_disk_keeps_its_translations_until_it_restarts() {
    let (bed, mut guest, mut vmm) = running();
    guest.front.reset_device().expect("a reset");
    assert_eq!(reached(&bed), TRANSLATED);
    forgotten(&bed, &mut vmm);
    assert_eq!(reached(&bed), TRANSLATED);
    assert_eq!(vmm.read_sector(6), Ok([6; SECTOR]));
    // A second reset changes nothing.
    guest.front.reset_device().expect("a reset");
    forgotten(&bed, &mut vmm);
    assert_eq!(reached(&bed), TRANSLATED);

    // A firmware that knows no IOMMU follows.
    vmm.stop();
    vmm.front.reset_device().expect("a reset");
    vmm.start(0);
    assert_eq!(vmm.read_sector(7), Ok([7; SECTOR]));
    assert_eq!(reached(&bed), BYPASS);
}

//= A11
#[test]
fn after_a_reset_of_the_iommu_an_attach_ends_what_lingers() {
    let (bed, mut guest, _vmm) = running();
    guest.front.reset_device().expect("a reset");
    guest.restart();
    assert_eq!(reached(&bed), TRANSLATED);
    guest.attach(0, DomainId(2));
    assert_eq!(reached(&bed), BLOCKED);
    guest.map(DomainId(2), SECRET_IOVA, PAGE, SECRET.0);
    assert_eq!(reached(&bed), TRANSLATED);
}

#[test]
fn a_disk_that_lingers_is_blocked_by_a_reset_that_leaves_another_lingering() {
    let bed = Bed::with(&[Options::default(), Options::default()], &[]);
    let (mut guest, _vmm) = bed.run();
    let _other_vmm = DiskVmm::plug(&bed, 1);
    assert_eq!(reached(&bed), TRANSLATED);
    guest.front.reset_device().expect("a reset");
    guest.restart();
    guest.attach(1, DOMAIN);
    guest.map(DOMAIN, SECRET_IOVA, PAGE, SECRET.0);
    assert_eq!(reached(&bed), TRANSLATED);
    guest.front.reset_device().expect("a reset");
    // What the disk has cached goes as well, soon.
    let deadline = Instant::now() + PATIENCE;
    while reached(&bed) != BLOCKED {
        assert!(Instant::now() < deadline, "the disk still reaches what it had");
    }
    assert_eq!(bed.peek(1, SECRET_IOVA), secret());
}

#[test]
fn a_reset_changes_nothing_for_a_disk_that_was_not_attached() {
    let bed = Bed::new();
    let mut guest = bed.boot();
    let mut vmm = DiskVmm::plug(&bed, 0);
    vmm.start(0);
    assert_eq!(reached(&bed), BYPASS);
    guest.front.reset_device().expect("a reset");
    forgotten(&bed, &mut vmm);
    assert_eq!(reached(&bed), BYPASS);
}

#[test]
fn a_paused_guest_goes_on_as_if_nothing_had_been() {
    let (bed, mut guest, mut vmm) = running();
    for (sector, order) in [(0, Order::BaseFirst), (1, Order::AddressesFirst), (2, Order::BaseFirst)] {
        // VMMs stop devices in any order; the IOMMU first is the worse one.
        guest.stop_rings();
        vmm.stop();
        forgotten(&bed, &mut vmm);
        assert_eq!(reached(&bed), TRANSLATED);
        vmm.resume_with(order);
        assert_eq!(vmm.read_sector(sector), Ok([sector as u8; SECTOR]));
        guest.start_rings();
        guest.map(DOMAIN, 0x70_0000, PAGE, SECRET.0);
        assert_eq!(bed.peek(0, 0x70_0000), secret());
        guest.unmap(DOMAIN, 0x70_0000, PAGE);
        assert!(is_refused(&bed.peek(0, 0x70_0000)));
        assert_eq!(reached(&bed), TRANSLATED);
    }
}

#[test]
fn a_disk_that_starts_elsewhere_while_the_iommu_is_stopped_tells_a_reset() {
    let (bed, mut guest, mut vmm) = running();
    guest.stop_rings();
    vmm.stop();
    vmm.start(0);
    assert_eq!(vmm.read_sector(2), Ok([2; SECTOR]));
    assert_eq!(reached(&bed), BYPASS);
    bed.wait_log("device reset");
    // The driver that follows finds no domain of its predecessor.
    guest.restart();
    has_status(guest.driver.unmap(DOMAIN, range(0, PAGE)).expect("a reply"), Status::NoEnt);
}

#[test]
fn a_disk_that_starts_anew_at_the_same_place_tells_a_reset() {
    for order in [Order::BaseFirst, Order::AddressesFirst] {
        let (bed, mut guest, mut vmm) = running();
        guest.stop_rings();
        vmm.stop();
        vmm.queue.restart_at(0);
        vmm.resume_with(order);
        bed.wait_log("device reset");
        assert_eq!(reached(&bed), BYPASS, "{order:?}");
    }
}

#[test]
fn rings_of_the_iommu_that_start_anew_tell_a_reset() {
    let (bed, mut guest, mut vmm) = running();
    guest.stop_rings();
    guest.restart();
    has_status(guest.driver.unmap(DOMAIN, range(0, PAGE)).expect("a reply"), Status::NoEnt);
    forgotten(&bed, &mut vmm);
    assert_eq!(reached(&bed), TRANSLATED);
}

#[test]
fn without_its_iommu_a_disk_is_blocked_and_a_new_vmm_brings_it_back() {
    let (bed, guest, mut vmm) = running();
    drop(guest);
    bed.wait_log("VMM disconnected, endpoints are blocked");
    let deadline = Instant::now() + PATIENCE;
    while reached(&bed) != BLOCKED {
        assert!(Instant::now() < deadline, "cached entries stay");
    }
    // Nor does anything else that the old machine does open it up.
    forgotten(&bed, &mut vmm);
    vmm.stop();
    vmm.resume();
    assert_eq!(reached(&bed), BLOCKED);

    // A new machine: its firmware drives the disk untranslated, its driver attaches it.
    let mut guest = bed.boot();
    assert_eq!(reached(&bed), BLOCKED);
    drop(vmm);
    let mut vmm = DiskVmm::plug(&bed, 0);
    vmm.start(0);
    assert_eq!(vmm.read_sector(1), Ok([1; SECTOR]));
    assert_eq!(reached(&bed), BYPASS);
    guest.attach(0, DOMAIN);
    assert_eq!(reached(&bed), BLOCKED);
}

#[test]
fn a_disk_that_outlives_its_iommu_is_blocked_until_it_is_attached() {
    let (bed, guest, _vmm) = running();
    drop(guest);
    bed.wait_log("VMM disconnected, endpoints are blocked");
    let mut guest = bed.boot();
    assert_eq!(reached(&bed), BLOCKED);
    guest.attach(0, DOMAIN);
    guest.map(DOMAIN, SECRET_IOVA, PAGE, SECRET.0);
    assert_eq!(reached(&bed), TRANSLATED);
}

#[test]
fn a_lost_iommu_blocks_also_a_disk_that_owes_an_acknowledgement() {
    let bed = Bed::with(&[Options::default()], &["--unmap-timeout", "100"]);
    let (mut guest, _vmm) = bed.run();
    bed.disk(0).set_on_invalidate(OnInvalidate::NeverAcknowledge);
    let reply = guest.driver.unmap(DOMAIN, range(SECRET_IOVA, PAGE)).expect("a reply");
    has_status(reply, Status::DevErr);
    assert_eq!(reached(&bed), TRANSLATED);
    let invalidations = bed.disk(0).stats().invalidations;
    drop(guest);
    bed.wait_log("VMM disconnected, endpoints are blocked");
    assert!(bed.disk(0).wait_until(PATIENCE, |stats, _| stats.invalidations >= invalidations + 2));
    assert_eq!(reached(&bed), BLOCKED);
}

#[test]
fn a_disk_without_an_iommu_reaches_nothing() {
    let bed = Bed::new();
    let mut vmm = DiskVmm::plug(&bed, 0);
    vmm.start(0);
    assert_eq!(reached(&bed), BLOCKED);
}

#[test]
fn a_new_memory_table_moves_what_the_disk_reaches() {
    let (bed, mut guest, mut vmm) = running();
    let distance = 1 << 40;
    let moved = bed.memory.vmm_address(SECRET.0) - distance;
    vmm.move_memory(distance);
    assert_eq!(reached(&bed), TRANSLATED);
    bed.wait_for(0, |event| {
        matches!(event, Event::Update { iova: SECRET_IOVA, user_address, .. } if *user_address == moved)
    });
    guest.unmap(DOMAIN, SECRET_IOVA, PAGE);
    assert_eq!(reached(&bed), BLOCKED);
}

#[test]
fn memory_that_is_removed_is_out_of_reach_until_it_is_added_again() {
    let (bed, mut guest, mut vmm) = running();
    let high = 0x70_0000;
    bed.memory.write(HIGH.0, SECRET.1);
    guest.map(DOMAIN, high, PAGE, HIGH.0);
    assert_eq!(bed.peek(0, high), secret());
    vmm.remove_memory(1);
    assert!(is_refused(&bed.peek(0, high)));
    assert_eq!(bed.peek(0, SECRET_IOVA), secret());
    vmm.add_memory(1);
    assert_eq!(bed.peek(0, high), secret());
    assert_eq!(vmm.read_sector(8), Ok([8; SECTOR]));
}

#[test]
fn a_vmm_that_comes_back_finds_the_disk_again() {
    let bed = Bed::new();
    let (_guest, vmm) = bed.run();
    drop(vmm);
    bed.wait_log("VMM disconnected");
    let mut vmm = DiskVmm::plug(&bed, 0);
    vmm.start(SHIFT);
    assert_eq!(vmm.read_sector(5), Ok([5; SECTOR]));
    let misses = bed.disk(0).events();
    let last_connection = misses.rsplit(|event| *event == Event::Connected).next().expect("a connection");
    let is_miss_of_the_ring =
        |event: &Event| matches!(event, Event::Miss { iova, .. } if *iova == RINGS.of(0).0 + SHIFT);
    assert!(last_connection.iter().any(is_miss_of_the_ring), "entries of the last connection were used");
}

#[test]
fn reconnects_leave_no_descriptor_and_no_thread_behind() {
    let bed = Bed::with(&[Options::default()], &[]);
    let reconnect_all = |bed: &Bed| {
        let (guest, vmm) = bed.run();
        drop((guest, vmm));
        // Both are taken leave of before the next come, as each listens for one at a time.
        let mut front = FrontEnd::connect(&bed.iommu_path(), PATIENCE).expect("connects");
        front.negotiate(Wanted::default()).expect("negotiates");
        drop(DiskVmm::plug(bed, 0));
    };
    // Counted while everybody is connected: what served the last connection is gone then, or about to go.
    let count = || bed.resources().map(|names| names.len());
    (0..3).for_each(|_| reconnect_all(&bed));
    let connected = bed.run();
    let before = count();
    drop(connected);
    (0..50).for_each(|_| reconnect_all(&bed));
    let _connected = bed.run();
    let deadline = Instant::now() + PATIENCE;
    while count().iter().zip(before).any(|(now, before)| *now > before) {
        assert!(Instant::now() < deadline, "descriptors and threads: {before:?} before, {:?} after", count());
    }
}
