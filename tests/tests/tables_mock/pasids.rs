// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Tables of PASIDs, which VT-d has attached one by one.

use viommu_core::wire::ReqInvalidate;
use viommu_tests::model::request::{attach_bypass, attach_none, invalidate};

use crate::bed::{Bed, INVAL, Made, NOENT, OK, ONE, OTHER};

#[test]
fn pasids_have_tables_of_their_own_that_come_and_are_replaced_and_go() {
    let mut bed = Bed::new(&Made::default());
    assert_eq!(bed.attach(1, ONE, 1), OK);
    for (pasid, page) in [(5, 2), (6, 3), (0xf_ffff, 4)] {
        assert_eq!(bed.attach_pasid(1, ONE, pasid, page), OK);
        bed.assert_at(ONE, Some(pasid), page);
    }
    assert_eq!(bed.attach_pasid(1, ONE, 5, 7), OK);
    bed.assert_at(ONE, Some(5), 7);
    assert_eq!(bed.attach(1, ONE, 8), OK);
    assert_eq!(bed.send(attach_none(2, ONE, 6)), INVAL, "it is in another domain");
    assert_eq!(bed.send(attach_none(1, ONE, 6)), OK);
    bed.device(ONE).assert_free(6);
    assert_eq!(bed.send(attach_none(1, ONE, 6)), INVAL, "it is gone");
    for (pasid, page) in [(None, 8), (Some(5), 7), (Some(0xf_ffff), 4)] {
        bed.assert_at(ONE, pasid, page);
    }
}

#[test]
fn detach_takes_all_pasids_out() {
    let mut bed = Bed::new(&Made::default());
    assert_eq!(bed.attach(1, ONE, 1), OK);
    let free = bed.next_number();
    for pasid in 1..=20 {
        // Some in domains of their own.
        assert_eq!(bed.attach_pasid(1 + pasid % 3, ONE, pasid, pasid.into()), OK);
    }
    assert_eq!(bed.detach(1, ONE), OK);
    (1..=20).for_each(|pasid| bed.device(ONE).assert_free(pasid));
    assert!(bed.has_memory(ONE));
    for domain in 1..=3 {
        assert_eq!(bed.send(invalidate(domain)), NOENT);
    }
    assert_eq!(bed.attach(1, ONE, 1), OK);
    assert_eq!(bed.next_number(), free);
    for pasid in 1..=20 {
        bed.device(ONE).assert_free(pasid);
        assert_eq!(bed.send(attach_none(1, ONE, pasid)), INVAL);
    }
}

#[test]
fn pasids_stay_when_the_endpoint_moves_to_another_table_and_go_with_it_to_bypass() {
    let mut bed = Bed::new(&Made::default());
    assert_eq!(bed.attach(1, ONE, 1), OK);
    assert_eq!(bed.attach_pasid(2, ONE, 5, 2), OK);
    assert_eq!(bed.attach(3, ONE, 3), OK);
    bed.assert_at(ONE, Some(5), 2);
    assert_eq!(bed.send(invalidate(2)), OK);
    assert_eq!(bed.send(attach_bypass(9, ONE)), OK);
    bed.device(ONE).assert_free(5);
    assert_eq!(bed.send(invalidate(2)), NOENT);
    assert!(bed.has_memory(ONE));
}

#[test]
fn a_pasid_has_a_table_beside_a_bypass_domain() {
    let mut bed = Bed::new(&Made::default());
    assert_eq!(bed.attach_pasid(1, ONE, 5, 2), INVAL, "the endpoint itself is in no domain");
    assert_eq!(bed.send(attach_bypass(9, ONE)), OK);
    assert_eq!(bed.attach_pasid(1, ONE, 5, 2), OK);
    bed.assert_at(ONE, Some(5), 2);
    assert!(bed.has_memory(ONE));
    let of_pasid = |pasid: u32| ReqInvalidate { flags: 2.into(), pasid: pasid.into(), ..invalidate(1) };
    assert_eq!(bed.send(of_pasid(5)), OK);
    assert_eq!(bed.send(of_pasid(6)), NOENT);
    assert_eq!(bed.send(attach_none(1, ONE, 5)), OK);
    bed.device(ONE).assert_free(5);
    assert!(bed.has_memory(ONE) && bed.has_memory(OTHER));
}
