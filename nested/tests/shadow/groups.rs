// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Two endpoints whose devices the host cannot tell apart.

use viommu_nested::Attach;

use super::*;

const BOTH: [EndpointId; 2] = ENDPOINTS;

fn bed() -> Bed {
    Bed::with(Source::VmmsAddressSpace, Isolation::None)
}

impl Bed {
    /// What the kernel lets the endpoints reach that are in a domain is what the device says.
    fn check_members(&self, what: &str) {
        for endpoint in BOTH.into_iter().filter(|endpoint| self.device.domain_of(*endpoint).is_some()) {
            self.check_endpoint(endpoint, what);
        }
    }

    fn is_blocked(&self) -> bool {
        BOTH.iter().all(|endpoint| self.shadow.device(*endpoint).is_some_and(Member::is_blocked))
    }
}

#[test]
fn one_that_leaves_takes_nothing_from_one_that_stays() {
    for (flags, domain) in [(0, 1), (ATTACH_F_BYPASS, 4)] {
        let mut bed = bed();
        assert_eq!(bed.request(&attach(domain, BOTH[0], flags)), OK);
        assert!(bed.set_bypass(false));
        bed.check_members("the other may not bypass any more");
        assert_eq!(bed.request(&attach(domain, BOTH[1], flags)), OK);
        if flags == 0 {
            assert_eq!(bed.request(&map(domain, 0, 2, 3, 3)), OK);
        }
        assert_eq!(bed.request(&detach(domain, BOTH[0])), OK);
        bed.check_members("the other has left");
        assert_eq!(bed.request(&detach(domain, BOTH[1])), OK);
        assert!(bed.is_blocked());
    }
}

#[test]
fn none_is_blocked_when_one_of_them_cannot_be() {
    let mut bed = bed();
    assert_eq!(bed.request(&attach(1, BOTH[0], 0)), OK);
    assert_eq!(bed.request(&map(1, 0, 2, 3, 3)), OK);
    assert!(bed.set_bypass(false));
    bed.shadow.device(BOTH[1]).expect("its device").set_stuck(true);
    assert_ne!(bed.request(&detach(1, BOTH[0])), OK);
    bed.check_members("it could not be detached");
    assert_eq!(bed.shadow.reach(BOTH[0]), Some(Reach::Domain(DomainId(1))));
    bed.shadow.device(BOTH[1]).expect("its device").set_stuck(false);
    assert_eq!(bed.request(&detach(1, BOTH[0])), OK);
    assert!(bed.is_blocked());
}

#[test]
fn one_that_the_vmm_has_not_bound_is_no_obstacle() {
    let mut bed = bed();
    let other = bed.shadow.device(BOTH[1]).expect("its device");
    other.detach(None).expect("the VMM has not attached it");
    other.set_bound(false);
    assert_eq!(bed.request(&attach(1, BOTH[0], 0)), OK);
    assert!(bed.set_bypass(false));
    assert_eq!(bed.request(&detach(1, BOTH[0])), OK);
    assert!(bed.is_blocked());
}

#[test]
fn all_reach_nothing_when_all_are_let_go_of() {
    let mut bed = bed();
    for endpoint in BOTH {
        assert_eq!(bed.request(&attach(1, endpoint, 0)), OK);
    }
    let devices = BOTH.map(|endpoint| bed.shadow.remove(endpoint).expect("its device"));
    assert!(devices.iter().all(Member::is_blocked));
}

#[test]
fn what_has_followed_one_that_goes_is_blocked() {
    let mut bed = bed();
    assert_eq!(bed.request(&attach(1, BOTH[0], 0)), OK);
    assert_eq!(bed.request(&map(1, 0, 2, 3, 3)), OK);
    let gone = bed.shadow.remove(BOTH[0]).expect("its device");
    assert!(gone.is_blocked());
    assert_eq!(bed.shadow.reach(BOTH[1]), Some(Reach::Nothing));
    assert_eq!(bed.request(&detach(1, BOTH[0])), OK);
    assert_eq!(bed.request(&attach(1, BOTH[1], 0)), OK);
    bed.check_members("a domain of the same number is another");
}
