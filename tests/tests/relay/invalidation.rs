// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the driver takes away is gone when it is told so, however the disk behaves.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use viommu_core::{DomainId, Gpa, Status, wire::MAP_F_READ};
use viommu_tests::iotlb_disk::{Event, OnInvalidate, Options};

use crate::bed::*;
use crate::vmm::DiskVmm;

const DELAY: Duration = Duration::from_millis(120);

/// A running bed whose disk answers invalidations in its own way from now on.
fn misbehaving(how: OnInvalidate) -> (Bed, Guest, DiskVmm) {
    let bed = Bed::new();
    let (guest, vmm) = bed.run();
    assert_eq!(bed.peek(0, SECRET_IOVA), secret());
    bed.disk(0).set_on_invalidate(how);
    (bed, guest, vmm)
}

fn timed<T>(act: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    (act(), start.elapsed())
}

//= A26
#[test]
fn requests_that_take_access_away_wait_for_the_acknowledgement() {
    let (bed, mut guest, _vmm) = misbehaving(OnInvalidate::AcknowledgeAfter(DELAY));
    let unmap = |guest: &mut Guest| guest.unmap(DOMAIN, SECRET_IOVA, PAGE);
    let attach = |guest: &mut Guest| guest.attach(0, DomainId(2));
    let detach = |guest: &mut Guest| guest.detach(0, DomainId(2));
    let requests: [&dyn Fn(&mut Guest); 3] = [&unmap, &attach, &detach];
    for (number, request) in requests.iter().enumerate() {
        let invalidations = bed.disk(0).stats().invalidations;
        let ((), time) = timed(|| request(&mut guest));
        assert!(time >= DELAY, "request {number} took {time:?}");
        assert!(bed.disk(0).stats().invalidations > invalidations, "request {number}");
    }
    // What gives access waits for nobody.
    bed.disk(0).set_on_invalidate(OnInvalidate::Acknowledge);
    guest.attach(0, DOMAIN);
    bed.disk(0).set_on_invalidate(OnInvalidate::AcknowledgeAfter(PATIENCE));
    let invalidations = bed.disk(0).stats().invalidations;
    guest.map(DOMAIN, SECRET_IOVA, PAGE, SECRET.0);
    assert_eq!(bed.disk(0).stats().invalidations, invalidations);
}

#[test]
fn an_unmap_of_nothing_asks_no_disk() {
    let (bed, mut guest, _vmm) = misbehaving(OnInvalidate::Acknowledge);
    let invalidations = bed.disk(0).stats().invalidations;
    guest.unmap(DOMAIN, 0x7f_0000, PAGE);
    assert_eq!(bed.disk(0).stats().invalidations, invalidations);
}

#[test]
fn a_miss_right_after_the_acknowledgement_is_refused() {
    let (bed, mut guest, _vmm) = misbehaving(OnInvalidate::MissAfterwards);
    let disk = bed.disk(0);
    for round in 0..50 {
        guest.map(DOMAIN, 0x70_0000, PAGE, SECRET.0);
        assert_eq!(bed.peek(0, 0x70_0000), secret(), "round {round}");
        let refused = disk.stats().refused_misses;
        guest.unmap(DOMAIN, 0x70_0000, PAGE);
        // The next MAP must not come before the disk's own miss has been answered.
        assert!(disk.wait_until(PATIENCE, |stats, _| stats.refused_misses == refused + 1), "round {round}");
        assert!(is_refused(&bed.peek(0, 0x70_0000)), "round {round}");
    }
}

#[test]
fn a_disk_that_waits_for_a_miss_before_it_acknowledges_is_no_deadlock() {
    let (bed, mut guest, mut vmm) = misbehaving(OnInvalidate::MissFirst);
    let ((), time) = timed(|| guest.unmap(DOMAIN, SECRET_IOVA, PAGE));
    assert!(time < Duration::from_secs(1), "{time:?}");
    assert!(is_refused(&bed.peek(0, SECRET_IOVA)));
    // The same when the VMM changes memory: then the miss is granted.
    vmm.front.set_memory(&bed.memory).expect("memory");
    assert_eq!(vmm.read_sector(4), Ok([4; SECTOR]));
}

/// Does `act` while other accesses of the disk to `iova` race with it.
fn raced(bed: &Bed, iova: u64, act: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    let updates = bed.disk(0).stats().updates;
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                bed.peek(0, iova);
            }
        });
        let acted = catch_unwind(AssertUnwindSafe(act));
        stop.store(true, Ordering::Relaxed);
        acted.unwrap_or_else(|panic| resume_unwind(panic));
    });
    let updates = bed.disk(0).stats().updates - updates;
    assert!(updates > 20, "hardly a race: {updates} entries");
}

#[test]
fn no_entry_survives_an_unmap_that_races_with_misses() {
    let bed = Bed::new();
    let (mut guest, _vmm) = bed.run();
    let iova = 0x70_0000;
    raced(&bed, iova, || {
        for round in 0..2000 {
            guest.map(DOMAIN, iova, PAGE, SECRET.0);
            guest.unmap(DOMAIN, iova, PAGE);
            let outcome = bed.peek(0, iova);
            assert!(is_refused(&outcome), "round {round}: {outcome:?}");
        }
    });
}

//= A26
#[test]
fn no_entry_survives_a_move_between_domains_that_races_with_misses() {
    let bed = Bed::new();
    let (mut guest, _vmm) = bed.run();
    // Within reach without translation, and in no domain.
    let gpa = SECRET.0;
    raced(&bed, gpa, || {
        for round in 0..1000 {
            guest.detach(0, DOMAIN);
            assert_eq!(bed.peek(0, gpa), secret(), "round {round}");
            guest.attach(0, DOMAIN);
            let outcome = bed.peek(0, gpa);
            assert!(is_refused(&outcome), "round {round}: {outcome:?}");
        }
    });
}

#[test]
fn no_entry_survives_an_unmap_while_the_vmm_changes_memory_and_the_disk_is_reset() {
    let bed = Bed::new();
    let (mut guest, mut vmm) = bed.run();
    let iova = 0x70_0000;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let vmm = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                vmm.remove_memory(2);
                vmm.add_memory(2);
                vmm.front.set_memory(&bed.memory).expect("memory");
                vmm.stop();
                vmm.front.reset_device().expect("a reset");
                vmm.start(SHIFT);
                assert_eq!(vmm.read_sector(3), Ok([3; SECTOR]));
            }
        });
        let acted = catch_unwind(AssertUnwindSafe(|| {
            raced(&bed, iova, || {
                for round in 0..500 {
                    guest.map(DOMAIN, iova, PAGE, SECRET.0);
                    guest.unmap(DOMAIN, iova, PAGE);
                    let outcome = bed.peek(0, iova);
                    assert_ne!(outcome, secret(), "round {round}");
                }
            })
        }));
        stop.store(true, Ordering::Relaxed);
        vmm.join().expect("the disk works");
        acted.unwrap_or_else(|panic| resume_unwind(panic));
    });
}

#[test]
fn a_disk_that_never_acknowledges_fails_its_own_unmaps_and_nothing_else() {
    const TIMEOUT: Duration = Duration::from_millis(300);
    let bed = Bed::with(&[Options::default(); 2], &["--unmap-timeout", "300"]);
    let (mut guest, mut vmm) = bed.run();
    guest.map(DOMAIN, 0x70_0000, PAGE, SECRET.0);
    assert_eq!(bed.peek(0, SECRET_IOVA), secret());
    bed.disk(0).set_on_invalidate(OnInvalidate::NeverAcknowledge);

    let unmap = |guest: &mut Guest, iova| guest.driver.unmap(DOMAIN, range(iova, PAGE)).expect("a reply");
    let (reply, time) = timed(|| unmap(&mut guest, SECRET_IOVA));
    has_status(reply, Status::DevErr);
    assert!((TIMEOUT..10 * TIMEOUT).contains(&time), "{time:?}");
    bed.wait_log("did not acknowledge an invalidation within 300 ms");

    // The mapping is still there, also for misses that come now, and further requests fail without a wait.
    for _ in 0..3 {
        assert_eq!(bed.peek(0, SECRET_IOVA), secret());
        assert_eq!(bed.peek(0, 0x70_0000), secret());
        for iova in [SECRET_IOVA, 0x70_0000] {
            let (reply, time) = timed(|| unmap(&mut guest, iova));
            has_status(reply, Status::DevErr);
            assert!(time < TIMEOUT / 2, "{time:?}");
        }
    }
    let overlapping =
        guest.driver.map(DOMAIN, range(SECRET_IOVA, PAGE), Gpa(0), MAP_F_READ).expect("a reply");
    has_status(overlapping, Status::Inval);
    assert_eq!(vmm.read_sector(7), Ok([7; SECTOR]));

    // Another disk, in another domain, does not notice.
    let mut other = DiskVmm::plug(&bed, 1);
    guest.attach(1, DomainId(2));
    map_disk(&mut guest, DomainId(2), 1);
    other.start(SHIFT);
    assert_eq!(other.read_sector(8), Ok([8; SECTOR]));
    guest.unmap(DomainId(2), 0, u64::MAX);

    // A VMM that plugs the disk anew gets over it.
    bed.disk(0).set_on_invalidate(OnInvalidate::Acknowledge);
    drop(vmm);
    bed.wait_for(0, |event| matches!(event, Event::Disconnected { .. }));
    let _vmm = DiskVmm::plug(&bed, 0);
    assert_eq!(bed.peek(0, SECRET_IOVA), secret());
    guest.unmap(DOMAIN, SECRET_IOVA, PAGE);
    assert!(is_refused(&bed.peek(0, SECRET_IOVA)));
}

#[test]
fn a_late_acknowledgement_makes_unmaps_possible_again() {
    let bed = Bed::with(&[Options::default()], &["--unmap-timeout", "200"]);
    let (mut guest, _vmm) = bed.run();
    bed.disk(0).set_on_invalidate(OnInvalidate::AcknowledgeAfter(Duration::from_millis(600)));
    has_status(guest.driver.unmap(DOMAIN, range(SECRET_IOVA, PAGE)).expect("a reply"), Status::DevErr);
    bed.disk(0).set_on_invalidate(OnInvalidate::Acknowledge);
    // The peek's miss is served, and its entry taken, after the acknowledgement.
    assert_eq!(bed.peek(0, SECRET_IOVA), secret());
    guest.unmap(DOMAIN, SECRET_IOVA, PAGE);
    assert!(is_refused(&bed.peek(0, SECRET_IOVA)));
}

#[test]
fn an_unmap_ends_well_when_the_disk_goes_away_meanwhile() {
    let bed = Bed::with(&[Options::default()], &["--unmap-timeout", "20000"]);
    let (mut guest, _vmm) = bed.run();
    let mut bed = bed;
    bed.disk(0).set_on_invalidate(OnInvalidate::AcknowledgeAfter(PATIENCE));
    let invalidations = bed.disk(0).stats().invalidations;
    thread::scope(|scope| {
        let unmap = scope.spawn(|| timed(|| guest.unmap(DOMAIN, SECRET_IOVA, PAGE)));
        assert!(bed.disk(0).wait_until(PATIENCE, |stats, _| stats.invalidations > invalidations));
        bed.disks[0] = None;
        let ((), time) = unmap.join().expect("the UNMAP succeeds");
        assert!(time < PATIENCE / 2, "{time:?}");
    });
    bed.wait_log("the back-end disconnected; the VMM loses the device");
}

#[test]
fn an_unmap_ends_well_when_the_vmm_unplugs_the_disk_meanwhile() {
    let bed = Bed::with(&[Options::default()], &["--unmap-timeout", "20000"]);
    let (mut guest, vmm) = bed.run();
    bed.disk(0).set_on_invalidate(OnInvalidate::AcknowledgeAfter(Duration::from_secs(1)));
    let invalidations = bed.disk(0).stats().invalidations;
    thread::scope(|scope| {
        let unmap = scope.spawn(|| guest.unmap(DOMAIN, SECRET_IOVA, PAGE));
        assert!(bed.disk(0).wait_until(PATIENCE, |stats, _| stats.invalidations > invalidations));
        drop(vmm);
        unmap.join().expect("the UNMAP succeeds");
    });
}

#[test]
fn an_unmap_after_the_vmm_has_left_waits_until_the_disk_has_left_too() {
    let (bed, mut guest, vmm) = misbehaving(OnInvalidate::AcknowledgeAfter(Duration::from_millis(500)));
    let iova = 0x70_0000;
    guest.map(DOMAIN, iova, PAGE, SECRET.0);
    assert_eq!(bed.peek(0, iova), secret());
    let invalidations = bed.disk(0).stats().invalidations;
    thread::scope(|scope| {
        let unmap = scope.spawn(|| guest.unmap(DOMAIN, SECRET_IOVA, PAGE));
        assert!(bed.disk(0).wait_until(PATIENCE, |stats, _| stats.invalidations > invalidations));
        // The disk is busy and does not notice yet.
        drop(vmm);
        unmap.join().expect("the UNMAP succeeds");
    });
    guest.unmap(DOMAIN, iova, PAGE);
    assert_ne!(bed.peek(0, iova), secret());
}
