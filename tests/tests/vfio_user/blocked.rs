// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Servers that whoever runs the machine cuts off from its memory, and those that the relay has blocked.

use viommu_core::DomainId;
use viommu_tests::vfio_user_disk::Conduct;

use crate::bed::*;

#[test]
fn a_blocked_server_has_nothing_until_it_is_unblocked_and_then_what_the_guest_has_mapped() {
    for dma in ["shared", "message"] {
        let bed = Bed::with(&[dma], &[]);
        let (mut guest, _vmm) = bed.run();
        bed.ctl(&["block", "00:02.0"]).expect("done");
        assert!(is_refused(&bed.peek(0, IOVA)), "{dma}");
        assert_eq!(next_fault(&mut guest), IOVA);
        bed.wait_log("fault: 00:02.0 (blocked by the operator): ");
        let listed = bed.ctl(&["list"]).expect("done");
        assert_eq!(listed, "00:02.0: vfio-user, blocked (domain 1): by the operator\n");

        // None of this is told, and none of it is forgotten.
        guest.map(DOMAIN, 1 << 32, PAGE, SECRET.0);
        guest.unmap(DOMAIN, IOVA, PAGE);
        guest.map(DOMAIN, 2 << 32, PAGE, HIGH.0);
        if dma == "shared" {
            assert_eq!(bed.told(0), []);
        }
        bed.ctl(&["unblock", "00:02.0"]).expect("done");
        if dma == "shared" {
            assert_eq!(bed.told(0), [(1 << 32, PAGE), (2 << 32, PAGE)]);
        }
        assert_eq!(bed.peek(0, 1 << 32), secret(), "{dma}");
        assert!(is_refused(&bed.peek(0, IOVA)), "{dma}");
    }
}

#[test]
fn a_blocked_server_is_told_of_no_domain_and_no_bypass() {
    let bed = Bed::shared();
    let mut guest = bed.boot();
    let mut vmm = bed.plug(0);
    assert_eq!(bed.told(0), [LOW, HIGH]);
    bed.ctl(&["block", "00:02.0"]).expect("done");
    assert_eq!(bed.told(0), []);
    guest.attach(0, DOMAIN);
    guest.map(DOMAIN, IOVA, PAGE, SECRET.0);
    assert_eq!(bed.told(0), []);
    guest.attach(0, DomainId(2));
    guest.detach(0, DomainId(2));
    assert_eq!(bed.told(0), []);
    vmm.set_bus_master(true).expect("a write");
    vmm.take_back(HIGH.0, HIGH.1).expect("it is done");
    assert_eq!(bed.told(0), []);
    bed.ctl(&["unblock", "00:02.0"]).expect("done");
    assert_eq!(bed.told(0), [LOW]);
}

#[test]
fn a_server_that_keeps_memory_when_it_is_blocked_loses_its_connection() {
    let bed = Bed::shared();
    let (_guest, mut vmm) = bed.run();
    bed.disk(0).set_conduct(Conduct::IgnoresUnmap);
    let error = bed.ctl(&["block", "00:02.0"]).expect_err("not known to be so").to_string();
    assert!(error.contains("it is blocked, but may still use memory that it had"), "{error}");
    assert!(vmm.receive().expect("an end").is_none());
    // As soon as it has left it has nothing.
    bed.wait_told(0, &[]);
    bed.ctl(&["block", "00:02.0"]).expect("done");
    bed.disk(0).set_conduct(Conduct::Honest);
    let _vmm = bed.plug(0);
    assert_eq!(bed.told(0), []);
    bed.ctl(&["unblock", "00:02.0"]).expect("done");
    assert_eq!(bed.told(0), [(IOVA, PAGE)]);
}

#[test]
fn a_server_that_does_not_take_what_it_may_have_again_stays_blocked() {
    let bed = Bed::shared();
    let (mut guest, mut vmm) = bed.run();
    bed.ctl(&["block", "00:02.0"]).expect("done");
    guest.map(DOMAIN, 1 << 32, PAGE, SECRET.0);
    bed.disk(0).set_conduct(Conduct::RefusesMap);
    let error = bed.ctl(&["unblock", "00:02.0"]).expect_err("it is refused").to_string();
    assert!(error.contains("it stays blocked"), "{error}");
    bed.disk(0).set_conduct(Conduct::Honest);
    guest.map(DOMAIN, 2 << 32, PAGE, SECRET.0);
    vmm.set_bus_master(true).expect("a write");
    assert_eq!(bed.told(0), []);
    bed.ctl(&["unblock", "00:02.0"]).expect("done");
    assert_eq!(bed.told(0), [(IOVA, PAGE), (1 << 32, PAGE), (2 << 32, PAGE)]);
}

#[test]
fn a_list_says_why_the_relay_has_blocked_a_server() {
    for (conduct, why) in [
        (Conduct::IgnoresUnmap, "the server does not answer in time what it is told of mappings"),
        (
            Conduct::RefusesUnmap,
            "the server does not let go of 0xfffff000-0xffffffff: it may still use memory of the guest",
        ),
    ] {
        let bed = Bed::shared();
        let (mut guest, _vmm) = bed.run();
        bed.disk(0).set_conduct(conduct);
        guest.try_unmap(DOMAIN, IOVA, PAGE);
        bed.wait_log("the connection ends");
        let listed = bed.ctl(&["list"]).expect("done");
        assert_eq!(listed, format!("00:02.0: vfio-user, blocked (domain 1): {why}\n"));
        let json = bed.ctl(&["--json", "list"]).expect("done");
        assert!(
            json.contains(
                r#""state":"blocked","domain":1,"reason":{"code":"back-end","message":"the server"#
            )
        );
    }
}
