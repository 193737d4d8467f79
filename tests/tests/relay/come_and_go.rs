// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Disks that are put behind an endpoint, and taken away again, while the daemon runs.

use std::thread;

use viommu_core::{DomainId, Status};
use viommu_tests::daemon::Daemon;
use viommu_tests::iotlb_disk::{OnInvalidate, Options};

use crate::back_end::BackEnd;
use crate::bed::*;
use crate::vmm::{DiskVmm, wanted};

const LISTED: &str = "00:03.0: listed, ";

/// One disk, an endpoint with nothing behind it, and a back-end that could be.
fn bed(options: Options) -> Bed {
    let mut bed = Bed::with(&[Options::default()], &["--endpoint", "00:03.0", "--unmap-timeout", "300"]);
    bed.disks.push(None);
    bed.serve_disk(1, options);
    bed
}

fn spec(bed: &Bed) -> String {
    let [front, back] = [bed.front_path(1), bed.disk_path(1)].map(|path| path.display().to_string());
    format!("00:03.0,vhost-user={front},backend={back}")
}

/// What is said of the second endpoint.
fn listed(bed: &Bed) -> String {
    let list = bed.ctl(&["list"]).expect("a list");
    list.lines().nth(1).expect("two endpoints").to_owned()
}

fn refusal(bed: &Bed, words: &[&str]) -> String {
    bed.ctl(words).expect_err("refused").to_string()
}

#[test]
fn a_disk_that_is_added_is_behind_the_iommu_until_it_is_removed() {
    let bed = bed(Options::default());
    let mut guest = bed.boot();
    assert!(!bed.front_path(1).exists());
    for domain in [DOMAIN, DomainId(7)] {
        assert_eq!(bed.ctl(&["add", &spec(&bed)]).expect("added"), "");
        guest.attach(1, domain);
        map_disk(&mut guest, domain, 1);
        let mut vmm = DiskVmm::plug(&bed, 1);
        vmm.start(SHIFT);
        assert_eq!(vmm.read_sector(9), Ok([9; SECTOR]));
        assert_eq!(listed(&bed), format!("00:03.0: vhost-user, translated (domain {})", domain.0));
        assert!(is_refused(&bed.peek(1, SECRET_IOVA)));
        vmm.stop();
        drop(vmm);
        assert_eq!(bed.ctl(&["remove", "00:03.0"]).expect("removed"), "");
        assert!(listed(&bed).starts_with(LISTED));
        assert!(!bed.front_path(1).exists());
        guest.detach(1, domain);
    }
}

#[test]
fn a_disk_that_is_removed_under_its_vmm_has_nothing_when_that_is_done() {
    let bed = bed(Options::default());
    let mut guest = bed.boot();
    bed.ctl(&["add", &spec(&bed)]).expect("added");
    guest.attach(1, DOMAIN);
    map_disk(&mut guest, DOMAIN, 1);
    guest.map(DOMAIN, SECRET_IOVA, PAGE, SECRET.0);
    let mut vmm = DiskVmm::plug(&bed, 1);
    vmm.start(SHIFT);
    assert_eq!(bed.peek(1, SECRET_IOVA), secret());
    bed.ctl(&["remove", "00:03.0"]).expect("removed");
    assert_ne!(bed.peek(1, SECRET_IOVA), secret());
    vmm.front.connection().wait_closed(PATIENCE).expect("the VMM is told");
    // Nobody waits for a relay that is over.
    guest.unmap(DOMAIN, SECRET_IOVA, PAGE);
}

#[test]
fn a_back_end_that_does_not_leave_keeps_its_endpoint_until_it_does() {
    let mut bed =
        bed(Options { on_invalidate: OnInvalidate::AcknowledgeAfter(PATIENCE / 10), ..Options::default() });
    let mut guest = bed.boot();
    bed.ctl(&["add", &spec(&bed)]).expect("added");
    guest.attach(1, DOMAIN);
    map_disk(&mut guest, DOMAIN, 1);
    let mut vmm = DiskVmm::plug(&bed, 1);
    vmm.start(SHIFT);
    assert_eq!(vmm.read_sector(9), Ok([9; SECTOR]));
    // It is at this, and hears nothing else.
    has_status(guest.driver.unmap(DOMAIN, range(0, u64::MAX)).expect("a reply"), Status::DevErr);
    let refused = refusal(&bed, &["remove", "00:03.0"]);
    assert!(
        refused.contains("the back-end does not leave: it may still use memory of the guest"),
        "{refused}"
    );
    assert!(!bed.front_path(1).exists(), "no VMM waits there in vain");
    let refused = refusal(&bed, &["add", &spec(&bed)]);
    assert!(refused.contains("the endpoint has a device; remove it first"), "{refused}");
    bed.disks[1] = None;
    bed.ctl(&["remove", "00:03.0"]).expect("removed");
    bed.serve_disk(1, Options::default());
    bed.ctl(&["add", &spec(&bed)]).expect("added");
}

#[test]
fn what_cannot_be_added_is_refused_with_the_reason() {
    let bed = bed(Options::default());
    let [front, back] = [bed.front_path(0), bed.disk_path(1)].map(|path| path.display().to_string());
    let disk = bed.disk_path(1).display().to_string();
    for (spec, reason) in [
        (format!("00:04.0,vhost-user={front}1,backend={back}"), "the daemon was given no such endpoint"),
        (format!("00:02.0,vhost-user={front}1,backend={back}"), "the endpoint has a device; remove it first"),
        (format!("00:03.0,vhost-user={front},backend={back}"), "is taken already by 00:02.0"),
        (format!("00:03.0,vhost-user={disk},backend={front}1"), "the path is in use"),
        ("00:03.0,vhost-user=/nowhere/at/all,backend=/b".to_owned(), "no socket can be made there"),
        ("00:03.0".to_owned(), "nothing says which device is added"),
    ] {
        let refused = refusal(&bed, &["add", &spec]);
        assert!(refused.contains(reason), "{spec}: {refused}");
    }
    assert!(listed(&bed).starts_with(LISTED));
    assert!(refusal(&bed, &["remove", "00:03.0"]).contains("the endpoint has no device"));
}

#[test]
fn the_daemon_ends_while_it_waits_for_a_back_end_to_leave() {
    let mut bed = Bed::with(&[Options::default()], &["--unmap-timeout", "3600000"]);
    let (_back_end, vmm) = BackEnd::replace_disk(&mut bed, wanted());
    let Bed { daemon, folder, disks, .. } = bed;
    let control = folder.path().join("control.sock");
    let asked = thread::spawn(move || Daemon::ctl(&control, &["remove", "00:02.0"]));
    daemon.wait_for("the VMM loses the device, as asked for", PATIENCE).expect("it is asked for");
    let (status, _) = daemon.end().expect("it ends");
    assert!(status.success() && folder.path().read_dir().expect("a folder").next().is_none(), "{folder:?}");
    asked.join().expect("no panic").expect_err("there is no answer");
    drop((vmm, disks));
}
