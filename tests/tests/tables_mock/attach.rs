// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! ATTACH_TABLE and DETACH of endpoints.

use viommu_core::wire::BYPASS_OFFSET;
use viommu_tests::model::request::{attach, attach_bypass, attach_pt, attach_ste, invalidate};

use crate::bed::{
    Bed, ENDPOINTS, FAULT, Hardware, INVAL, Made, NOENT, OK, ONE, OTHER, RANGE, UNSUPP, root, ste, table,
};
use crate::guest::{LENGTH, PAGE, START};

const BOTH: [Hardware; 2] = [Hardware::Vtd, Hardware::Smmu];

#[test]
fn a_table_is_attached_and_attached_again_and_replaced_and_gone() {
    for hardware in BOTH {
        let mut bed = Bed::new(&Made::of(hardware));
        assert!(bed.has_memory(ONE));
        for page in [1, 1, 2, 3, 1] {
            assert_eq!(bed.attach(1, ONE, page), OK);
            bed.assert_at(ONE, None, page);
        }
        assert!(bed.has_memory(OTHER), "nobody has asked for it to be moved");
        assert_eq!(bed.attach(2, ONE, 4), OK);
        bed.assert_at(ONE, None, 4);
        assert_eq!(bed.send(invalidate(1)), NOENT, "its old domain has ended");
        assert_eq!(bed.detach(1, ONE), INVAL);
        assert_eq!(bed.detach(2, ONE), OK);
        assert!(bed.has_memory(ONE));
        assert_eq!(bed.send(invalidate(2)), NOENT);
    }
}

#[test]
fn without_bypass_who_is_detached_reaches_nothing() {
    for hardware in BOTH {
        let mut bed = Bed::new(&Made { bypass: false, ..Made::of(hardware) });
        assert_eq!(bed.attach(1, ONE, 1), OK);
        bed.assert_at(ONE, None, 1);
        assert!(!bed.device(ONE).member().is_blocked());
        assert_eq!(bed.detach(1, ONE), OK);
        assert!(bed.device(ONE).member().is_blocked());
        bed.guest().front_end.write_config(BYPASS_OFFSET as u32, &[1]).expect("it is written");
        assert!(bed.has_memory(ONE));
    }
}

#[test]
fn an_endpoint_moves_between_tables_and_a_bypass_domain() {
    for hardware in BOTH {
        let mut bed = Bed::new(&Made { bypass: false, ..Made::of(hardware) });
        assert_eq!(bed.send(attach_bypass(5, ONE)), OK);
        assert!(bed.has_memory(ONE));
        assert_eq!(bed.attach(5, OTHER, 1), INVAL, "it is a bypass domain");
        assert_eq!(bed.attach(1, ONE, 1), OK);
        bed.assert_at(ONE, None, 1);
        assert_eq!(bed.send(attach_bypass(1, OTHER)), INVAL, "it is one of tables");
        assert_eq!(bed.send(attach(1, ONE)), UNSUPP);
        bed.assert_at(ONE, None, 1);
        assert_eq!(bed.send(attach_bypass(5, ONE)), OK);
        assert!(bed.has_memory(ONE));
    }
}

/// Nothing of it gets to the kernel, either.
#[test]
fn what_is_refused_changes_nothing() {
    const END: u64 = START + LENGTH;
    for hardware in BOTH {
        let mut bed = Bed::new(&Made::of(hardware));
        assert_eq!(bed.attach(1, ONE, 1), OK);
        let (comings, free) = (bed.device(ONE).comings(), bed.next_number());
        let mut refused = vec![
            (table(hardware, 1, 0x99, 2), NOENT),
            (
                attach_pt(1, ONE, Some(1 << 20), root(2)),
                if hardware == Hardware::Vtd { RANGE } else { UNSUPP },
            ),
        ];
        match hardware {
            Hardware::Vtd => refused.extend([
                (attach_ste(1, ONE, ste(2)), UNSUPP),
                (attach_pt(1, ONE, None, root(2) + 8), INVAL),
                (attach_pt(1, ONE, None, END), FAULT),
                (attach_pt(1, ONE, None, START - PAGE), FAULT),
                (attach_pt(1, ONE, None, !0xfff), FAULT),
                (attach_pt(1, ONE, Some(0), root(2)), RANGE),
                (attach_pt(1, OTHER, Some(5), root(2)), INVAL),
            ]),
            Hardware::Smmu => refused.extend([
                (attach_pt(1, ONE, None, root(2)), UNSUPP),
                (attach_ste(1, ONE, [root(2) | 0b1010, 0]), INVAL),
                (attach_ste(1, ONE, [root(2) | 0b1111, 0]), INVAL),
                (attach_ste(1, ONE, [root(2) | 0b1011, 1 << 63]), INVAL),
                (attach_ste(1, ONE, [END | 0b1011, 0]), FAULT),
                // Descriptors of which the last lies beyond the end.
                (attach_ste(1, ONE, [(END - 64) | 1 << 59 | 0b1011, 0]), FAULT),
                (attach_ste(1, ONE, [0x000f_ffff_ffff_ffc0 | 0b1011, 0]), FAULT),
                (attach_ste(1, ONE, [root(2) | 31 << 59 | 0b1011, 0]), RANGE),
            ]),
        }
        for (request, status) in refused {
            assert_eq!(bed.send(request), status, "{request:x?}");
            bed.assert_at(ONE, None, 1);
            assert!(bed.has_memory(OTHER));
        }
        assert_eq!((bed.device(ONE).comings(), bed.next_number()), (comings, free));
        assert_eq!(bed.send(invalidate(1)), OK, "its domain is there");
    }
}

#[test]
fn what_the_kernel_refuses_is_not_reported_as_done() {
    for hardware in BOTH {
        let mut bed = Bed::new(&Made::of(hardware));
        assert_eq!(bed.attach(1, ONE, 1), OK);
        let free = bed.next_number();
        bed.device(ONE).member().set_stuck(true);
        assert_eq!(bed.attach(2, ONE, 2), crate::bed::DEVERR);
        assert_eq!(bed.detach(1, ONE), crate::bed::DEVERR);
        bed.device(ONE).member().set_stuck(false);
        bed.assert_at(ONE, None, 1);
        assert_eq!(bed.next_number(), free);
        assert_eq!(bed.send(invalidate(2)), NOENT);
        assert_eq!(bed.send(invalidate(1)), OK);
        assert_eq!(bed.detach(1, ONE), OK);
    }
}

#[test]
fn who_shares_a_group_shares_domain_and_table() {
    for hardware in BOTH {
        let mut bed = Bed::new(&Made { is_group: true, ..Made::of(hardware) });
        assert_eq!(bed.attach(1, ONE, 1), OK);
        let hwpt = bed.device(ONE).hwpt(None).expect("a page table");
        bed.device(OTHER).mock().check_pasid(0, Some(&hwpt)).expect("it has followed");
        drop(hwpt);
        assert_eq!(bed.attach(1, OTHER, 2), UNSUPP, "another table");
        assert_eq!(bed.attach(2, OTHER, 1), UNSUPP, "another domain");
        if hardware == Hardware::Vtd {
            assert_eq!(bed.attach_pasid(1, ONE, 5, 1), UNSUPP);
        }
        assert_eq!(bed.attach(1, OTHER, 1), OK);
        ENDPOINTS.into_iter().for_each(|endpoint| bed.assert_at(endpoint, None, 1));
        assert_eq!(bed.detach(1, ONE), OK);
        bed.assert_at(OTHER, None, 1);
        assert_eq!(bed.attach(1, OTHER, 2), OK, "it is alone");
        bed.assert_at(OTHER, None, 2);
        assert_eq!(bed.detach(1, OTHER), OK);
        assert!(ENDPOINTS.into_iter().all(|endpoint| bed.has_memory(endpoint)));
    }
}

/// The VMM binds it when it likes.
#[test]
fn a_device_that_is_bound_late_gets_its_tables_then() {
    let mut bed = Bed::new(&Made::default());
    bed.device(ONE).member().set_bound(false);
    assert_eq!(bed.attach(1, ONE, 1), OK);
    assert_eq!(bed.attach_pasid(1, ONE, 5, 2), OK);
    assert!(bed.device(ONE).hwpt(None).is_none());
    bed.device(ONE).member().set_bound(true);
    crate::bed::eventually("it is attached", || bed.device(ONE).hwpt(Some(5)).is_some());
    bed.assert_at(ONE, None, 1);
    bed.assert_at(ONE, Some(5), 2);
}

/// Its PASIDs have tables, and it has none itself.
#[test]
fn a_device_that_is_bound_late_gets_its_pasids_beside_a_bypass_domain() {
    let mut bed = Bed::new(&Made::default());
    bed.device(ONE).member().set_bound(false);
    assert_eq!(bed.send(attach_bypass(9, ONE)), OK);
    assert_eq!(bed.attach_pasid(1, ONE, 5, 2), OK);
    bed.device(ONE).member().set_bound(true);
    crate::bed::eventually("it is attached", || bed.device(ONE).hwpt(Some(5)).is_some());
    bed.assert_at(ONE, Some(5), 2);
    assert!(bed.has_memory(ONE));
}

#[test]
fn nothing_is_left_when_the_vmm_is_gone() {
    for hardware in BOTH {
        let mut bed = Bed::new(&Made::of(hardware));
        for endpoint in ENDPOINTS {
            assert_eq!(bed.send(attach_bypass(9, endpoint)), OK);
        }
        let free = bed.next_number();
        for endpoint in ENDPOINTS {
            assert_eq!(bed.attach(1, endpoint, 1), OK);
        }
        if hardware == Hardware::Vtd {
            assert_eq!(bed.attach_pasid(1, ONE, 5, 2), OK);
        }
        assert_ne!(bed.next_number(), free);
        bed.disconnect();
        assert_eq!(bed.next_number(), free);
        bed.device(ONE).assert_free(5);
        assert!(bed.devices.iter().all(|device| device.member().is_blocked()));
    }
}
