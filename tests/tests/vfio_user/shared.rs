// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Servers that map memory: they are told what the guest has mapped, when it has, and of nothing else.

use viommu_core::DomainId;
use viommu_core::wire::{ATTACH_F_BYPASS, BYPASS_OFFSET, MAP_F_READ};
use viommu_tests::iotlb_disk::{Outcome, StrayDma};

use crate::bed::*;

#[test]
fn a_server_is_told_of_memory_until_the_guest_attaches_and_of_mappings_after() {
    let bed = Bed::shared();
    let mut guest = bed.boot();
    let _vmm = bed.plug(0);
    // Firmware has no driver for the IOMMU.
    assert_eq!(bed.disk(0).told(), [(LOW.0, LOW.1, 3, true), (HIGH.0, HIGH.1, 3, true)]);
    assert_eq!(bed.peek(0, SECRET.0), secret());

    guest.attach(0, DOMAIN);
    assert_eq!(bed.told(0), []);
    assert!(is_refused(&bed.peek(0, SECRET.0)));
    assert_eq!(next_fault(&mut guest), SECRET.0);

    guest.map(DOMAIN, IOVA, PAGE, SECRET.0);
    assert_eq!(bed.disk(0).told(), [(IOVA, PAGE, 3, true)]);
    assert_eq!(bed.peek(0, IOVA), secret());
    assert_eq!(bed.disk(0).stray_dma(IOVA, StrayDma::Write(b"A SECRET".to_vec())), Outcome::Written);
    assert_eq!(bed.memory.read(SECRET.0, 8), b"A SECRET");

    guest.unmap(DOMAIN, IOVA, PAGE);
    assert_eq!(bed.told(0), []);
    assert!(is_refused(&bed.peek(0, IOVA)));
    assert_eq!(next_fault(&mut guest), IOVA);

    guest.detach(0, DOMAIN);
    assert_eq!(bed.told(0), [LOW, HIGH]);
}

#[test]
fn a_mapping_to_be_read_is_told_as_one() {
    let bed = Bed::shared();
    let (mut guest, _vmm) = bed.run();
    guest.unmap(DOMAIN, IOVA, PAGE);
    succeeds(guest.try_map(DOMAIN, IOVA, PAGE, SECRET.0, MAP_F_READ));
    assert_eq!(bed.disk(0).told(), [(IOVA, PAGE, 1, true)]);
    // The server has a file to write to, and asks all the same.
    assert!(is_refused(&bed.disk(0).stray_dma(IOVA, StrayDma::Write(vec![1]))));
    assert_eq!(next_fault(&mut guest), IOVA);
}

#[test]
fn a_mapping_over_a_hole_of_memory_is_told_without_it() {
    let bed = Bed::shared();
    let (mut guest, _vmm) = bed.run();
    let start = LOW.1 - PAGE;
    guest.map(DOMAIN, 1 << 32, HIGH.0 + PAGE - start, start);
    let parts = [(IOVA, PAGE), (1 << 32, PAGE), ((1 << 32) + HIGH.0 - start, PAGE)];
    assert_eq!(bed.told(0), parts);
    guest.unmap(DOMAIN, 1 << 32, HIGH.0 + PAGE - start);
    assert_eq!(bed.told(0), [(IOVA, PAGE)]);
}

#[test]
fn a_bypass_domain_is_all_of_memory_and_without_bypass_there_is_none() {
    let bed = Bed::with(&["shared"], &["--boot-bypass", "off"]);
    let mut guest = bed.boot();
    let _vmm = bed.plug(0);
    assert_eq!(bed.told(0), []);
    succeeds(guest.driver.attach(DOMAIN, endpoint(0), ATTACH_F_BYPASS).expect("a reply"));
    assert_eq!(bed.told(0), [LOW, HIGH]);
    guest.attach(0, DomainId(2));
    assert_eq!(bed.told(0), []);
    guest.detach(0, DomainId(2));
    assert_eq!(bed.told(0), []);
    guest.front.write_config(BYPASS_OFFSET as u32, &[1]).expect("a write");
    bed.wait_told(0, &[LOW, HIGH]);
    guest.front.write_config(BYPASS_OFFSET as u32, &[0]).expect("a write");
    bed.wait_told(0, &[]);
}

#[test]
fn endpoints_of_one_domain_are_told_the_same_and_others_nothing_of_it() {
    let bed = Bed::with(&["shared", "shared", "shared", "message"], &[]);
    let mut guest = bed.boot();
    let _vmms = [0, 1, 2, 3].map(|number| bed.plug(number));
    for number in [0, 1, 3] {
        guest.attach(number, DOMAIN);
    }
    guest.attach(2, DomainId(2));
    guest.map(DOMAIN, IOVA, PAGE, SECRET.0);
    assert_eq!([0, 1, 2].map(|number| bed.told(number)), [vec![(IOVA, PAGE)], vec![(IOVA, PAGE)], vec![]]);
    assert_eq!([0, 1, 3].map(|number| bed.peek(number, IOVA)), [secret(), secret(), secret()]);
    assert!(is_refused(&bed.peek(2, IOVA)));
    guest.unmap(DOMAIN, IOVA, PAGE);
    for number in 0..4 {
        assert!(is_refused(&bed.peek(number, IOVA)), "{number}");
    }
    // What there is when an endpoint comes is told it, too.
    guest.map(DOMAIN, IOVA, PAGE, SECRET.0);
    guest.attach(2, DOMAIN);
    assert_eq!(bed.told(2), [(IOVA, PAGE)]);
}

#[test]
fn memory_that_the_vmm_takes_back_is_let_go_of_before_it_hears_so() {
    let bed = Bed::shared();
    let (mut guest, mut vmm) = bed.run();
    guest.map(DOMAIN, 1 << 32, PAGE, HIGH.0);
    assert_eq!(bed.told(0), [(IOVA, PAGE), (1 << 32, PAGE)]);
    vmm.take_back(HIGH.0, HIGH.1).expect("it is done");
    assert_eq!(bed.told(0), [(IOVA, PAGE)]);
    vmm.take_back(LOW.0, LOW.1).expect("it is done");
    assert_eq!(bed.told(0), []);
    assert!(is_refused(&bed.peek(0, IOVA)));
    vmm.give(&bed.memory).expect("it is taken");
    assert_eq!(bed.told(0), [(IOVA, PAGE), (1 << 32, PAGE)]);
    assert_eq!(bed.peek(0, IOVA), secret());
}

#[test]
fn many_mappings_are_told_when_an_endpoint_comes_to_them() {
    let bed = Bed::shared();
    let mut guest = bed.boot();
    // A domain is there as long as an endpoint is.
    let mut vmm = bed.plug(0);
    guest.attach(0, DOMAIN);
    for page in 0..1000 {
        guest.map(DOMAIN, (1 << 32) + 2 * page * PAGE, PAGE, SECRET.0);
    }
    assert_eq!(bed.told(0).len(), 1000);
    // The function comes to life again, and is told what it knows.
    vmm.set_bus_master(true).expect("a write");
    assert_eq!(bed.told(0).len(), 1000);
    guest.unmap(DOMAIN, 1 << 32, 2000 * PAGE);
    assert_eq!(bed.told(0), []);
}
