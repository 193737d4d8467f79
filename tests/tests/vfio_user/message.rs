// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Servers that ask for each access: they have no file, and every access is checked when it comes.

use viommu_core::DomainId;
use viommu_core::wire::MAP_F_READ;
use viommu_tests::iotlb_disk::{Outcome, StrayDma};
use viommu_tests::vfio_user_disk::Conduct;

use crate::bed::*;

#[test]
fn a_server_gets_no_file_and_reads_and_writes_what_is_mapped() {
    let bed = Bed::message();
    let (_guest, _vmm) = bed.run();
    let told = bed.disk(0).told();
    assert!(!told.is_empty() && told.iter().all(|(.., has_file)| !has_file), "{told:x?}");
    assert_eq!(bed.disk(0).stray_dma(IOVA, StrayDma::Write(b"A SECRET".to_vec())), Outcome::Written);
    assert_eq!(bed.memory.read(SECRET.0, SECRET.1.len()), b"A SECRET of the guest's");
}

#[test]
fn a_stray_access_is_refused_and_the_guest_is_told() {
    let bed = Bed::message();
    let (mut guest, _vmm) = bed.run();
    for iova in [SECRET.0, IOVA - 1, IOVA + PAGE, 0, u64::MAX - 5] {
        assert!(is_refused(&bed.peek(0, iova)), "{iova:#x}");
        assert_eq!(next_fault(&mut guest), iova);
    }
    bed.wait_log("fault: 00:02.0: ");
    assert_eq!(bed.peek(0, IOVA), secret());
}

#[test]
fn an_access_over_several_mappings_is_done_as_a_whole_or_not_at_all() {
    let bed = Bed::message();
    let (mut guest, _vmm) = bed.run();
    // The page before leads elsewhere, and that after the secret's is not there.
    guest.map(DOMAIN, IOVA - PAGE, PAGE, HIGH.0);
    let write = |at, length| bed.disk(0).stray_dma(at, StrayDma::Write(vec![0x77; length]));
    assert_eq!(write(IOVA - 4, 8), Outcome::Written);
    assert_eq!(bed.memory.read(HIGH.0 + PAGE - 5, 5), [0, 0x77, 0x77, 0x77, 0x77]);
    assert_eq!(bed.memory.read(SECRET.0, 5), b"wwwwc");
    assert!(is_refused(&write(IOVA + PAGE - 4, 8)));
    assert_eq!(next_fault(&mut guest), IOVA + PAGE);
    assert_eq!(bed.memory.read(SECRET.0 + PAGE - 4, 8), [0; 8]);
}

#[test]
fn a_right_that_the_mapping_does_not_give_is_refused() {
    let bed = Bed::message();
    let (mut guest, _vmm) = bed.run();
    guest.unmap(DOMAIN, IOVA, PAGE);
    succeeds(guest.try_map(DOMAIN, IOVA, PAGE, SECRET.0, MAP_F_READ));
    assert_eq!(bed.peek(0, IOVA), secret());
    assert!(is_refused(&bed.disk(0).stray_dma(IOVA, StrayDma::Write(vec![1]))));
    assert_eq!(next_fault(&mut guest), IOVA);
    assert_eq!(bed.memory.read(SECRET.0, SECRET.1.len()), SECRET.1);
}

#[test]
fn a_mapping_to_no_memory_leads_nowhere() {
    let bed = Bed::message();
    let (mut guest, mut vmm) = bed.run();
    guest.map(DOMAIN, 1 << 32, PAGE, LOW.1);
    assert!(is_refused(&bed.peek(0, 1 << 32)));
    assert_eq!(next_fault(&mut guest), 1 << 32);
    vmm.take_back(LOW.0, LOW.1).expect("it is done");
    assert!(is_refused(&bed.peek(0, IOVA)));
    assert_eq!(next_fault(&mut guest), IOVA);
}

#[test]
fn an_unmap_depends_on_nothing_that_the_server_does() {
    let bed = Bed::message();
    let (mut guest, _vmm) = bed.run();
    for conduct in [Conduct::Deaf, Conduct::IgnoresUnmap, Conduct::RefusesUnmap] {
        bed.disk(0).set_conduct(conduct);
        guest.unmap(DOMAIN, IOVA, PAGE);
        assert!(is_refused(&bed.peek(0, IOVA)));
        guest.map(DOMAIN, IOVA, PAGE, SECRET.0);
        assert_eq!(bed.peek(0, IOVA), secret());
    }
}

#[test]
fn unattached_and_bypassing_endpoints_reach_memory_as_it_is() {
    let bed = Bed::message();
    let mut guest = bed.boot();
    let _vmm = bed.plug(0);
    assert_eq!(bed.peek(0, SECRET.0), secret());
    guest.attach(0, DomainId(5));
    assert!(is_refused(&bed.peek(0, SECRET.0)));
    guest.detach(0, DomainId(5));
    assert_eq!(bed.peek(0, SECRET.0), secret());
    // Over the edge of memory.
    assert!(is_refused(&bed.peek(0, LOW.1 - 4)));
}
