// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Events of 48 bytes, of 24, and those that are lost.

use viommu_core::{
    Access, EndpointId, Fault, FaultReason, Iova, Limits, Pasid, Status, TableAccess, TableFault,
    TableFaultReason,
};
use viommu_tests::model::request;

use super::bed::{Bed, NOBODY, VTD, group};

const LOST: u32 = 1 << 12;

fn bed(limits: Limits) -> Bed {
    let mut bed = Bed::limited(limits);
    assert_eq!(bed.pt(1, VTD, None, 0x1000), Status::Ok);
    assert_eq!(bed.pt(1, VTD, Some(9), 0x1000), Status::Ok);
    bed
}

fn fault(address: u64) -> TableFault {
    TableFault {
        endpoint: EndpointId(VTD),
        pasid: Some(Pasid(9)),
        address: Some(address),
        access: TableAccess::READ | TableAccess::PRIVILEGED,
        reason: TableFaultReason::Permission,
    }
}

fn word(event: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(event[at..at + 4].try_into().expect("four bytes"))
}

fn address(event: &[u8]) -> u64 {
    u64::from_le_bytes(event[16..24].try_into().expect("eight bytes"))
}

//= T40a
#[test]
fn an_event_has_48_bytes_with_the_feature_and_24_without() {
    let plain = Fault {
        endpoint: EndpointId(VTD),
        address: Iova(0x123),
        access: Access::WRITE,
        reason: FaultReason::Mapping,
    };
    let mut bed = bed(Limits::default());
    assert!(bed.device.report(plain));
    let mut expected = plain.event().to_vec();
    expected.resize(48, 0);
    assert_eq!(bed.events(), [expected]);
    bed.device.negotiate(1 << 4);
    assert!(bed.device.report(plain));
    assert!(!bed.device.report_table_fault(fault(0)), "there are no tables");
    bed.device.report_lost(EndpointId(VTD));
    assert_eq!(bed.events(), [plain.event().to_vec()]);
}

//= T40b
#[test]
fn a_fault_says_what_is_known_and_nothing_else() {
    let mut bed = bed(Limits::default());
    assert!(bed.device.report_table_fault(fault(0x1234_5678_9abc)));
    let bare = TableFault {
        pasid: None,
        address: None,
        access: TableAccess::empty(),
        reason: TableFaultReason::Table,
        ..fault(0)
    };
    assert!(bed.device.report_table_fault(bare));
    let events = bed.events();
    let mut expected =
        vec![5, 0, 0, 0, 9, 3, 0, 0, 0x20, 0, 0, 0, 9, 0, 0, 0, 0xbc, 0x9a, 0x78, 0x56, 0x34, 0x12];
    expected.resize(48, 0);
    assert_eq!(events[0], expected);
    let mut expected = vec![8, 0, 0, 0, 0, 0, 0, 0, 0x20];
    expected.resize(48, 0);
    assert_eq!(events[1], expected);
}

#[test]
fn each_reason_has_its_number() {
    let reasons = [
        TableFaultReason::Unknown,
        TableFaultReason::Domain,
        TableFaultReason::Mapping,
        TableFaultReason::WalkAbort,
        TableFaultReason::PteFetch,
        TableFaultReason::Permission,
        TableFaultReason::Access,
        TableFaultReason::OutOfRange,
        TableFaultReason::Table,
    ];
    let mut bed = bed(Limits::default());
    for (number, reason) in reasons.into_iter().enumerate() {
        assert!(bed.device.report_table_fault(TableFault { reason, ..fault(0) }));
        assert_eq!(usize::from(bed.events()[0][0]), number);
    }
}

//= T40b T41
#[test]
fn page_requests_of_a_group_are_told_in_order_with_the_last_marked() {
    let mut bed = bed(Limits::default());
    assert!(bed.ask(group(VTD, Some(9), 0xabcd), 3, 0));
    assert!(bed.ask(group(VTD, None, 0xabcd), 1, 0));
    let events = bed.events();
    let mut expected =
        vec![2, 0, 0, 0, 0x23, 7, 0, 0, 0x20, 0, 0, 0, 9, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0xcd, 0xab];
    expected.resize(48, 0);
    assert_eq!(events[0], expected);
    let flags: Vec<u32> = events.iter().map(|event| word(event, 4)).collect();
    assert_eq!(flags, [0x723, 0x723, 0x733, 0x533]);
    assert_eq!(
        events.iter().map(|event| address(event)).collect::<Vec<_>>(),
        [0x1000, 0x2000, 0x3000, 0x1000]
    );
}

//= T42
#[test]
fn the_first_event_after_a_gap_tells_of_it() {
    let mut bed = bed(Limits { faults_max: 2, ..Limits::default() });
    let told: Vec<bool> = (0..4).map(|page| bed.device.report_table_fault(fault(page))).collect();
    assert_eq!(told, [true, true, false, false]);
    assert!(bed.device.report_table_fault(fault(1)), "it waits already");
    bed.take_event();
    assert!(bed.device.report_table_fault(fault(5)));
    let events = bed.events();
    let lost: Vec<bool> = events.iter().map(|event| word(event, 4) & LOST != 0).collect();
    assert_eq!(
        (events.iter().map(|event| address(event)).collect::<Vec<_>>(), lost),
        (vec![1, 5], vec![false, true])
    );
    assert_eq!(bed.device.faults_dropped(), 2);
}

//= T42
#[test]
fn a_gap_that_nothing_follows_is_an_event_by_itself() {
    let mut bed = bed(Limits { faults_max: 1, ..Limits::default() });
    assert!(bed.device.report_table_fault(fault(0)));
    assert!(!bed.device.report_table_fault(fault(1)));
    let events = bed.events();
    assert_eq!(events.len(), 2);
    let mut expected = vec![0, 0, 0, 0, 0, 0x10, 0, 0, 0x20];
    expected.resize(48, 0);
    assert_eq!(events[1], expected);
    bed.device.report_lost(EndpointId(VTD));
    assert_eq!(bed.events(), [expected], "what the host lost");
    bed.device.report_lost(EndpointId(NOBODY));
    assert!(bed.events().is_empty());
}

//= T42
#[test]
fn a_gap_is_told_of_even_if_the_event_behind_it_is_taken_back() {
    let mut bed = bed(Limits::default());
    bed.device.report_lost(EndpointId(VTD));
    assert!(bed.ask(group(VTD, None, 1), 2, 0));
    bed.device.end_page_requests(EndpointId(VTD));
    assert!(bed.device.report_table_fault(fault(7)));
    let events = bed.events();
    assert_eq!((events.len(), word(&events[0], 4) & LOST), (1, LOST));
    bed.device.report_lost(EndpointId(VTD));
    assert!(bed.ask(group(VTD, None, 1), 2, 0));
    assert!(bed.device.report_table_fault(fault(8)));
    bed.device.end_page_requests(EndpointId(VTD));
    let events = bed.events();
    assert_eq!((events.len(), word(&events[0], 4) & LOST), (1, LOST));
}

//= T43a
#[test]
fn a_short_buffer_gets_the_old_form_of_a_fault() {
    let mut bed = bed(Limits::default());
    assert!(bed.device.report_table_fault(fault(0x1000)));
    let event = bed.device.next_event().expect("an event");
    let length = |room| event.for_buffer(room).map(<[u8]>::len);
    assert_eq!([0, 23, 24, 47, 48, 4096].map(length), [None, None, Some(24), Some(24), Some(48), Some(48)]);
    assert_eq!(event.for_buffer(30), event.bytes().get(..24));
    bed.device.event_unfit(&event);
    assert_eq!(bed.device.next_event(), Some(event), "a fault waits for a better buffer");
}

//= T43b
#[test]
fn a_page_request_that_fits_nowhere_is_answered() {
    let mut bed = bed(Limits::default());
    assert!(bed.ask(group(VTD, Some(9), 1), 2, 0));
    assert!(bed.ask(group(VTD, None, 2), 1, 0));
    let event = bed.device.next_event().expect("an event");
    assert_eq!((event.for_buffer(47), event.for_buffer(48)), (None, Some(event.bytes())));
    bed.device.event_unfit(&event);
    assert_eq!(bed.refused(), [1]);
    assert_eq!(bed.send(request::page_response(VTD, Some(9), 1, 0)), Status::NoEnt);
    assert_eq!(bed.events().len(), 1, "the other group");
}

/// Time passes while an event is written to its buffer.
#[test]
fn what_was_taken_back_meanwhile_takes_no_other_event_with_it() {
    for is_unfit in [false, true] {
        let mut bed = bed(Limits::default());
        assert!(bed.ask(group(VTD, None, 1), 1, 0));
        let event = bed.device.next_event().expect("an event");
        bed.device.end_page_requests(EndpointId(VTD));
        assert_eq!(bed.refused(), [1]);
        assert!(bed.ask(group(VTD, Some(9), 2), 1, 0));
        if is_unfit {
            bed.device.event_unfit(&event)
        } else {
            bed.device.event_sent(&event)
        }
        assert_eq!((bed.refused(), bed.events().len()), (vec![], 1), "the driver has yet to see it");
    }
}

#[test]
fn events_wait_for_the_driver_and_end_with_a_reset() {
    let mut bed = bed(Limits::default());
    assert!(bed.device.report_table_fault(fault(1)));
    bed.device.report_lost(EndpointId(VTD));
    bed.device.reset();
    assert!(bed.device.next_event().is_none());
    bed.device.report_lost(EndpointId(VTD));
    assert!(bed.device.next_event().is_none(), "the driver is not up");
}
