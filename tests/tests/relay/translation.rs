// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a disk reaches: translations, and the lack of them.

use viommu_core::wire::{
    ATTACH_F_BYPASS, BYPASS_OFFSET, FAULT_F_ADDRESS, FAULT_F_READ, FAULT_F_WRITE, FAULT_R_DOMAIN,
    FAULT_R_MAPPING, FAULT_R_UNKNOWN, MAP_F_READ, MAP_F_WRITE, RESV_MEM_T_MSI, RESV_MEM_T_RESERVED, ResvMem,
};
use viommu_core::{DomainId, Gpa, Status};
use viommu_tests::iotlb_disk::{Event, Options, Outcome, StrayDma};
use zerocopy::FromBytes;

use crate::bed::*;
use crate::vmm::{DATA, DiskVmm, RINGS};

/// The next event, which has to name `disk`: reason, flags and address.
fn next_fault(guest: &mut Guest, disk: usize) -> (u8, u32, u64) {
    let event = guest.driver.wait_event().expect("an event");
    assert_eq!(event.written, 24);
    assert_eq!(event.fault.endpoint.get(), endpoint(disk).0);
    (event.fault.reason, event.fault.flags.get(), event.fault.address.get())
}

#[test]
fn a_read_request_goes_through_translations_of_ring_and_data() {
    let bed = Bed::new();
    let (_guest, mut vmm) = bed.run();
    assert_eq!(vmm.read_sector(9), Ok([9; SECTOR]));
    let events = bed.disk(0).events();
    let targets = [RINGS, DATA].map(|area| area.of(0));
    for (gpa, length) in targets {
        // Each mapping becomes one entry, at its IOVA.
        let user_address = bed.memory.vmm_address(gpa);
        let is_it = |event: &Event| {
            matches!(event, Event::Update { iova, size, user_address: to, .. }
                if (*iova, *size, *to) == (gpa + SHIFT, length, user_address))
        };
        assert!(events.iter().any(is_it), "{events:x?}");
    }
    let is_miss_of_a_ring =
        |event: &Event| matches!(event, Event::Miss { iova, .. } if *iova == RINGS.of(0).0 + SHIFT);
    assert!(events.iter().any(is_miss_of_a_ring), "ring addresses are not the IOVAs: {events:x?}");
}

//= A33a A33b
#[test]
fn a_forbidden_access_is_refused_and_the_driver_hears_of_it() {
    let bed = Bed::new();
    let (mut guest, _vmm) = bed.run();
    let (read_only, write_only) = (0x70_0000, 0x70_1000);
    succeeds(guest.try_map(DOMAIN, read_only, PAGE, SECRET.0, MAP_F_READ));
    succeeds(guest.try_map(DOMAIN, write_only, PAGE, SECRET.0, MAP_F_WRITE));
    let disk = bed.disk(0);

    assert_eq!(bed.peek(0, read_only), secret());
    assert!(is_refused(&disk.stray_dma(read_only + 8, StrayDma::Write(vec![1]))));
    assert_eq!(next_fault(&mut guest, 0), (FAULT_R_MAPPING, FAULT_F_WRITE | FAULT_F_ADDRESS, read_only + 8));

    assert!(is_refused(&bed.peek(0, write_only)));
    assert_eq!(next_fault(&mut guest, 0), (FAULT_R_MAPPING, FAULT_F_READ | FAULT_F_ADDRESS, write_only));
    assert_eq!(disk.stray_dma(write_only, StrayDma::Write(b"A".to_vec())), Outcome::Written);
    assert_eq!(bed.memory.read(SECRET.0, 3), b"A s");

    assert!(is_refused(&bed.peek(0, 0x70_2000)));
    assert_eq!(next_fault(&mut guest, 0), (FAULT_R_MAPPING, FAULT_F_READ | FAULT_F_ADDRESS, 0x70_2000));
}

#[test]
fn a_mapping_to_no_memory_is_an_unknown_fault() {
    let bed = Bed::new();
    let (mut guest, _vmm) = bed.run();
    let hole = LOW.0 + LOW.1;
    guest.map(DOMAIN, 0x70_0000, PAGE, hole);
    assert!(is_refused(&bed.peek(0, 0x70_0000)));
    assert_eq!(next_fault(&mut guest, 0), (FAULT_R_UNKNOWN, FAULT_F_READ | FAULT_F_ADDRESS, 0x70_0000));
}

#[test]
fn a_mapping_over_two_regions_of_memory_reaches_both_and_nothing_past_them() {
    let bed = Bed::new();
    let (mut guest, _vmm) = bed.run();
    let iova = 0x70_0000;
    guest.map(DOMAIN, iova, 2 * PAGE, TOP.0 - PAGE);
    bed.memory.write(TOP.0 - 4, b"over");
    bed.memory.write(TOP.0, b"edge");
    assert_eq!(
        bed.disk(0).stray_dma(iova + PAGE - 4, StrayDma::Read(8)),
        Outcome::Read(b"overedge".to_vec())
    );

    // The hole begins after the first page of this one.
    let iova = 0x71_0000;
    guest.map(DOMAIN, iova, 2 * PAGE, LOW.1 - PAGE);
    bed.memory.write(LOW.1 - 4, b"last");
    let disk = bed.disk(0);
    assert_eq!(disk.stray_dma(iova + PAGE - 4, StrayDma::Read(4)), Outcome::Read(b"last".to_vec()));
    assert!(is_refused(&disk.stray_dma(iova + PAGE - 4, StrayDma::Read(5))));
    assert_eq!(next_fault(&mut guest, 0), (FAULT_R_UNKNOWN, FAULT_F_READ | FAULT_F_ADDRESS, iova + PAGE));
}

//= A14 A52
#[test]
fn a_bypass_domain_is_the_identity_and_leaves_nothing_behind() {
    let bed = Bed::new();
    let mut guest = bed.boot();
    let _vmm = DiskVmm::plug(&bed, 0);
    succeeds(guest.driver.attach(DomainId(7), endpoint(0), ATTACH_F_BYPASS).expect("a reply"));
    assert_eq!(bed.peek(0, SECRET.0), secret());
    bed.memory.write(HIGH.0, SECRET.1);
    assert_eq!(bed.peek(0, HIGH.0), secret());
    assert!(is_refused(&bed.peek(0, LOW.1)));
    assert_eq!(next_fault(&mut guest, 0).0, FAULT_R_UNKNOWN);
    guest.attach(0, DOMAIN);
    assert!(is_refused(&bed.peek(0, SECRET.0)));
    assert_eq!(next_fault(&mut guest, 0).0, FAULT_R_MAPPING);
}

//= A5
#[test]
fn before_any_driver_a_disk_works_untranslated() {
    let bed = Bed::new();
    let _guest = bed.boot();
    let mut vmm = DiskVmm::plug(&bed, 0);
    vmm.start(0);
    assert_eq!(vmm.read_sector(3), Ok([3; SECTOR]));
}

//= A11 A26
#[test]
fn without_boot_bypass_a_disk_reaches_nothing_until_it_is_attached() {
    let bed = Bed::with(&[Options::default()], &["--boot-bypass", "off"]);
    let mut guest = bed.boot();
    let _vmm = DiskVmm::plug(&bed, 0);
    assert!(is_refused(&bed.peek(0, SECRET.0)));
    guest.attach(0, DOMAIN);
    assert_eq!(next_fault(&mut guest, 0).0, FAULT_R_DOMAIN);
    guest.map(DOMAIN, SECRET_IOVA, PAGE, SECRET.0);
    assert_eq!(bed.peek(0, SECRET_IOVA), secret());
    guest.detach(0, DOMAIN);
    assert!(is_refused(&bed.peek(0, SECRET_IOVA)));
    assert!(is_refused(&bed.peek(0, SECRET.0)));
}

//= A11 A13
#[test]
fn a_driver_that_clears_bypass_takes_the_bypass_away() {
    let bed = Bed::new();
    let mut guest = bed.boot();
    let _vmm = DiskVmm::plug(&bed, 0);
    assert_eq!(bed.peek(0, SECRET.0), secret());
    guest.front.write_config(BYPASS_OFFSET as u32, &[0]).expect("a write");
    assert!(is_refused(&bed.peek(0, SECRET.0)));
    guest.front.write_config(BYPASS_OFFSET as u32, &[1]).expect("a write");
    assert_eq!(bed.peek(0, SECRET.0), secret());
}

//= A51
#[test]
fn probe_reserves_the_holes_of_the_memory_table_and_the_doorbell() {
    let bed = Bed::new();
    let mut guest = bed.boot();
    let reply = guest.driver.probe(endpoint(0)).expect("a reply");
    let mut found = Vec::new();
    let mut rest = reply.properties();
    while let Ok((region, more)) = ResvMem::read_from_prefix(rest) {
        if region.kind.get() == 0 {
            break;
        }
        found.push((region.subtype, region.start.get(), region.last.get()));
        rest = more;
    }
    let hole = (RESV_MEM_T_RESERVED, LOW.1, HIGH.0 - 1);
    assert_eq!(found, [hole, (RESV_MEM_T_MSI, 0xfee0_0000, 0xfeef_ffff)]);
    guest.attach(0, DOMAIN);
    let mapped = guest.driver.map(DOMAIN, range(LOW.1, PAGE), Gpa(0), MAP_F_READ).expect("a reply");
    has_status(mapped, Status::Inval);
}

//= A18a A20a A22
#[test]
fn two_disks_of_one_domain_share_it_and_two_of_two_are_isolated() {
    let bed = Bed::with(&[Options::default(); 2], &[]);
    let mut guest = bed.boot();
    let (mut one, mut two) = (DiskVmm::plug(&bed, 0), DiskVmm::plug(&bed, 1));
    let other = DomainId(2);
    guest.attach(0, DOMAIN);
    guest.attach(1, other);
    map_disk(&mut guest, DOMAIN, 0);
    map_disk(&mut guest, other, 1);
    guest.map(DOMAIN, SECRET_IOVA, PAGE, SECRET.0);
    one.start(SHIFT);
    two.start(SHIFT);
    assert_eq!(one.read_sector(1), Ok([1; SECTOR]));
    assert_eq!(two.read_sector(2), Ok([2; SECTOR]));
    assert_eq!(bed.peek(0, SECRET_IOVA), secret());
    assert!(is_refused(&bed.peek(1, SECRET_IOVA)));
    assert!(is_refused(&bed.peek(1, RINGS.of(0).0 + SHIFT)));

    // The second disk moves over: it reaches the first one's memory and no more its own.
    guest.attach(1, DOMAIN);
    assert_eq!(bed.peek(1, SECRET_IOVA), secret());
    assert!(is_refused(&bed.peek(1, RINGS.of(1).0 + SHIFT)));
    // An UNMAP of a domain is for all in it.
    guest.unmap(DOMAIN, SECRET_IOVA, PAGE);
    assert!(is_refused(&bed.peek(0, SECRET_IOVA)) && is_refused(&bed.peek(1, SECRET_IOVA)));
}
