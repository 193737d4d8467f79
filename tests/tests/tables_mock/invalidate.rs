// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! INVALIDATE: what is gone from caches when it is answered, and what is not.

use viommu_core::wire::ReqInvalidate;
use viommu_tests::model::request::{attach_bypass, detach, invalidate, invalidate_pages};

use crate::bed::{Bed, DEVERR, Hardware, INVAL, Made, NOENT, OK, ONE, OTHER, RANGE, word};
use crate::guest::PAGE;

/// One page, by its number.
fn page(domain: u32, number: u64, pages: u64) -> ReqInvalidate {
    invalidate_pages(domain, number * PAGE, pages, 12)
}

#[test]
fn the_caches_of_the_domains_page_tables_forget_what_is_named() {
    let mut bed = Bed::new(&Made::default());
    assert_eq!(bed.attach(1, ONE, 1), OK);
    assert_eq!(bed.attach_pasid(1, ONE, 5, 2), OK);
    assert_eq!(bed.attach(2, OTHER, 3), OK);
    let [own, of_pasid, foreign] = [1, 2, 3].map(|page| word(Hardware::Vtd, page));
    assert_eq!(bed.send(page(1, 1, 2)), OK);
    assert_eq!(bed.device(ONE).iotlb(None, own), [true, false, false, true]);
    assert_eq!(bed.device(ONE).iotlb(Some(5), of_pasid), [true, false, false, true]);
    let of_5 = ReqInvalidate { flags: 2.into(), pasid: 5.into(), ..page(1, 3, 1) };
    assert_eq!(bed.send(of_5), OK);
    assert_eq!(bed.device(ONE).iotlb(None, own), [true, false, false, true]);
    assert_eq!(bed.device(ONE).iotlb(Some(5), of_pasid), [true, false, false, false]);
    assert_eq!(bed.send(ReqInvalidate { flags: 2.into(), pasid: 5.into(), ..invalidate(1) }), OK);
    assert_eq!(bed.device(ONE).iotlb(Some(5), of_pasid), [false; 4]);
    assert_eq!(bed.send(invalidate(1)), OK);
    assert_eq!(bed.device(ONE).iotlb(None, own), [false; 4]);
    assert_eq!(bed.device(OTHER).iotlb(None, foreign), [true; 4], "another domain's");
}

#[test]
fn the_caches_of_the_domains_devices_forget_what_is_named() {
    let mut bed = Bed::new(&Made::of(Hardware::Smmu));
    assert_eq!(bed.attach(1, ONE, 1), OK);
    assert_eq!(bed.attach(2, OTHER, 2), OK);
    assert_eq!([bed.device(ONE).cache(), bed.device(OTHER).cache()], [[true; 4]; 2]);
    assert_eq!(bed.send(page(1, 2, 1)), OK);
    assert_eq!(bed.device(ONE).cache(), [true, true, false, true]);
    assert_eq!(bed.send(invalidate(1)), OK);
    assert_eq!([bed.device(ONE).cache(), bed.device(OTHER).cache()], [[false; 4], [true; 4]]);
    assert_eq!(bed.attach(1, OTHER, 2), OK);
    assert_eq!(bed.send(page(1, 1, 1)), OK);
    assert_eq!(bed.device(OTHER).cache(), [true, false, true, true]);
    // By its ASID, which the mock has none of.
    assert_eq!(bed.send(ReqInvalidate { flags: 4.into(), id: 7.into(), ..invalidate(1) }), OK);
    assert_eq!(bed.device(OTHER).cache(), [false; 4]);
}

#[test]
fn a_range_is_never_too_large() {
    for hardware in [Hardware::Vtd, Hardware::Smmu] {
        let mut bed = Bed::new(&Made::of(hardware));
        assert_eq!(bed.attach(1, ONE, 1), OK);
        assert_eq!(bed.send(invalidate_pages(1, 0, 1 << 52, 12)), OK);
        match hardware {
            Hardware::Vtd => assert_eq!(bed.device(ONE).iotlb(None, word(hardware, 1)), [false; 4]),
            Hardware::Smmu => assert_eq!(bed.device(ONE).cache(), [false; 4]),
        }
    }
}

/// As many as the ring takes, and one kick.
#[test]
fn many_requests_in_the_ring_are_done_in_their_order() {
    let mut bed = Bed::new(&Made::default());
    let mut expected = Vec::new();
    for number in 0..10u64 {
        // A page table begins with a full cache, so what is invalidated before it is attached does not concern it.
        let (table, numbers) = (1 + number % 3, [number % 4, (number + 1) % 4]);
        let guest = bed.guest();
        expected.push((guest.submit(crate::bed::table(Hardware::Vtd, 1, ONE, table)), OK));
        for number in numbers {
            expected.push((guest.submit(page(1, number, 1)), OK));
        }
        expected.push((guest.submit(page(7, 0, 1)), NOENT));
    }
    let guest = bed.guest();
    guest.kick();
    let done: Vec<_> = expected.iter().map(|_| guest.complete()).collect();
    assert_eq!(done, expected);
    let slots = bed.device(ONE).iotlb(None, word(Hardware::Vtd, 1));
    assert_eq!(slots, [true, false, false, true]);
}

/// The kernel does not know the number of a device that has left, and does nothing of what follows it in one call.
#[test]
fn of_many_requests_in_the_ring_each_has_a_status_of_its_own() {
    for failing in 0..4 {
        let mut bed = Bed::new(&Made::of(Hardware::Smmu));
        assert_eq!(bed.attach(1, ONE, 1), OK);
        assert_eq!(bed.attach(2, OTHER, 2), OK);
        bed.device(ONE).mock().leave().expect("it leaves");
        let guest = bed.guest();
        let mut expected = Vec::new();
        for number in 0..4 {
            let (domain, status) = if number == failing { (1, DEVERR) } else { (2, OK) };
            expected.push((guest.submit(page(domain, number, 1)), status));
            expected.push((guest.submit(page(7, number, 1)), NOENT));
        }
        // Whatever is no INVALIDATE waits for those before it.
        expected.push((guest.submit(detach(2, OTHER)), OK));
        expected.push((guest.submit(page(2, 0, 1)), NOENT));
        guest.kick();
        let done: Vec<_> = expected.iter().map(|_| guest.complete()).collect();
        assert_eq!(done, expected, "failing: {failing}");
        assert_eq!(bed.device(OTHER).cache(), [0, 1, 2, 3].map(|number| number == failing));
        bed.device(ONE).member().set_bound(false);
    }
}

/// As many as are done at a time, and as fit.
#[test]
fn all_that_is_in_the_ring_is_done() {
    for hardware in [Hardware::Vtd, Hardware::Smmu] {
        let mut bed = Bed::new(&Made::of(hardware));
        assert_eq!(bed.attach(1, ONE, 1), OK);
        let guest = bed.guest();
        let numbers = (0..64).map(|number| u64::from(number == 63) * 2);
        let expected: Vec<_> = numbers.map(|number| (guest.submit(page(1, number, 1)), OK)).collect();
        guest.kick();
        let done: Vec<_> = expected.iter().map(|_| guest.complete()).collect();
        assert_eq!(done, expected);
        let slots = match hardware {
            Hardware::Vtd => bed.device(ONE).iotlb(None, word(hardware, 1)),
            Hardware::Smmu => bed.device(ONE).cache(),
        };
        assert_eq!(slots, [false, true, false, true]);
    }
}

#[test]
fn what_makes_no_sense_is_refused_and_invalidates_nothing() {
    let mut bed = Bed::new(&Made::default());
    assert_eq!(bed.attach(1, ONE, 1), OK);
    assert_eq!(bed.send(attach_bypass(9, OTHER)), OK);
    for (request, status) in [
        (invalidate(7), NOENT),
        (invalidate(9), INVAL),
        (ReqInvalidate { flags: 2.into(), pasid: 5.into(), ..invalidate(1) }, NOENT),
        (ReqInvalidate { flags: 4.into(), id: 7.into(), ..invalidate(1) }, RANGE),
        (ReqInvalidate { flags: 0x10.into(), ..invalidate(1) }, INVAL),
        (ReqInvalidate { scope: 4, ..invalidate(1) }, INVAL),
        (ReqInvalidate { caches: 0, ..invalidate(1) }, INVAL),
        (ReqInvalidate { reserved: [1; 19], ..invalidate(1) }, INVAL),
        (page(1, 0, 0), RANGE),
        (invalidate_pages(1, 8, 1, 12), RANGE),
        (invalidate_pages(1, 0, 1, 13), RANGE),
        (invalidate_pages(1, PAGE, 1 << 52, 12), RANGE),
    ] {
        assert_eq!(bed.send(request), status, "{request:x?}");
    }
    assert_eq!(bed.device(ONE).iotlb(None, word(Hardware::Vtd, 1)), [true; 4]);
}
