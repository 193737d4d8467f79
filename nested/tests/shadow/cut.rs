// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices that are cut off, whatever the guest does meanwhile.

use viommu_nested::Attach;

use super::*;

const CUT: EndpointId = ENDPOINTS[0];
const OTHER: EndpointId = ENDPOINTS[1];

impl Bed {
    /// The device reaches nothing, and is attached to nothing.
    fn check_nothing(&self, endpoint: EndpointId, what: &str) {
        let device = self.shadow.device(endpoint).expect("its device");
        let reaches =
            |page| (0..PAGES).any(|to| self.leads(device.hwpt(), START + page * PAGE, START + to * PAGE));
        assert!(device.is_blocked() && !(0..PAGES).any(reaches), "{endpoint} after {what}");
    }

    fn set_stuck(&self, is_stuck: bool) {
        self.shadow.device(CUT).expect("its device").set_stuck(is_stuck);
    }
}

/// Two lives of one guest, in one of which a device is cut off now and then.
#[test]
fn one_that_is_cut_off_reaches_nothing_and_afterwards_what_the_guest_says_by_then() {
    for source in [Source::VmmsAddressSpace, Source::File] {
        let (mut bed, mut undisturbed, mut random) = (Bed::new(source), Bed::new(source), Random(3));
        for step in 0..400 {
            match step % 20 {
                5 | 8 => bed.shadow.cut_off(CUT).expect("it is"),
                15 | 18 => bed.shadow.restore(CUT).expect("it is"),
                _ => {}
            }
            let request = random.request();
            assert_eq!(bed.request(&request), undisturbed.request(&request));
            if step % 50 == 0 {
                let enabled = random.below(2) == 0;
                assert!(bed.set_bypass(enabled) && undisturbed.set_bypass(enabled));
            }
            let what = format!("step {step}, {request:x?}");
            bed.check_endpoint(OTHER, &what);
            assert_eq!(bed.shadow.is_cut_off(CUT), (5..15).contains(&(step % 20)));
            match bed.shadow.is_cut_off(CUT) {
                true => bed.check_nothing(CUT, &what),
                false => bed.check_endpoint(CUT, &what),
            }
        }
    }
}

#[test]
fn what_lingers_beneath_does_so_afterwards() {
    let mut bed = Bed::new(Source::VmmsAddressSpace);
    assert_eq!(bed.request(&attach(1, CUT, 0)), OK);
    assert_eq!(bed.request(&map(1, 3, 1, 5, 3)), OK);
    bed.shadow.cut_off(CUT).expect("it is");
    bed.device.reset();
    bed.shadow.reset();
    bed.check_nothing(CUT, "a reset");
    bed.shadow.restore(CUT).expect("it is");
    assert_eq!(bed.shadow.reach(CUT), Some(Reach::Lingering));
    assert!(bed.leads(bed.hwpt(CUT), START + 3 * PAGE, START + 5 * PAGE));
    assert!(!bed.leads(bed.hwpt(CUT), START, START));
}

#[test]
fn one_that_the_host_does_not_move_is_left_as_it_was() {
    let mut bed = Bed::new(Source::VmmsAddressSpace);
    assert_eq!(bed.request(&attach(1, CUT, 0)), OK);
    assert_eq!(bed.request(&map(1, 0, 2, 3, 3)), OK);
    bed.set_stuck(true);
    bed.shadow.cut_off(CUT).expect_err("it is stuck");
    bed.set_stuck(false);
    bed.shadow.follow_cuts(CUT).expect("it follows");
    assert!(!bed.shadow.is_cut_off(CUT));
    bed.check("it could not be cut off");

    bed.shadow.cut_off(CUT).expect("it is");
    bed.set_stuck(true);
    bed.shadow.restore(CUT).expect_err("it is stuck");
    bed.set_stuck(false);
    assert!(bed.shadow.is_cut_off(CUT));
    bed.check_nothing(CUT, "it could not be restored");
    bed.shadow.restore(CUT).expect("it is");
    bed.check("it is restored");
}

#[test]
fn a_vmm_that_attaches_it_all_the_same_is_put_right() {
    let mut bed = Bed::new(Source::VmmsAddressSpace);
    bed.shadow.cut_off(CUT).expect("it is");
    let table = PageTable::Auto(bed.vmm.clone());
    bed.shadow.device(CUT).expect("its device").attach(&table, None).expect("the VMM attaches it");
    assert!(bed.leads(bed.hwpt(CUT), START, START));
    bed.shadow.follow_cuts(CUT).expect("it follows");
    bed.check_nothing(CUT, "the VMM has attached it");
}

#[test]
fn another_device_of_the_endpoint_is_cut_off_as_well() {
    let mut bed = Bed::new(Source::VmmsAddressSpace);
    assert_eq!(bed.request(&attach(1, CUT, 0)), OK);
    assert_eq!(bed.request(&map(1, 0, 2, 3, 3)), OK);
    bed.shadow.cut_off(CUT).expect("it is");
    let device = bed.shadow.remove(CUT).expect("its device");
    bed.shadow.cut_off(CUT).expect("it has none");
    bed.shadow.add(CUT, device, None);
    bed.shadow.move_to(CUT, Goal::Domain(DomainId(1)), &bed.device).expect("it is noted");
    bed.check_nothing(CUT, "it has come back");
    bed.shadow.restore(CUT).expect("it is");
    bed.check("it is restored");
}

#[test]
fn a_group_is_cut_off_with_any_of_it_and_restored_with_the_last() {
    let mut bed = Bed::with(Source::VmmsAddressSpace, Isolation::None);
    assert_eq!(bed.request(&attach(1, CUT, 0)), OK);
    assert_eq!(bed.request(&map(1, 0, 2, 3, 3)), OK);
    bed.shadow.cut_off(CUT).expect("it is");
    assert!(bed.shadow.is_cut_off(OTHER));
    assert_eq!(bed.request(&attach(1, OTHER, 0)), OK);
    bed.check_nothing(CUT, "the other is attached");
    bed.shadow.cut_off(OTHER).expect("it is");
    bed.shadow.restore(CUT).expect("as far as it goes");
    bed.check_nothing(CUT, "one is restored");
    bed.shadow.restore(OTHER).expect("it is");
    bed.check("both are restored");
}

#[test]
fn a_group_is_restored_without_the_one_that_it_was_cut_off_with() {
    let mut bed = Bed::with(Source::VmmsAddressSpace, Isolation::None);
    bed.shadow.cut_off(CUT).expect("it is");
    bed.shadow.remove(CUT).expect("its device");
    assert!(bed.shadow.is_cut_off(OTHER));
    bed.shadow.restore(CUT).expect("it is");
    assert!(!bed.shadow.is_cut_off(OTHER));
}
