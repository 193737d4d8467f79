// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! PROBE and its properties: A40 to A50 and A52.

use viommu_core::{
    EndpointId, FaultReason, Features, IovaRange, PROBE_SIZE, REGIONS_MAX, ReservedError, ReservedKind,
    ReservedRegion, Status,
};
use viommu_tests::model::request::{self, PROBE_REPLY_SIZE, Wire};

use crate::bed::{Bed, EP, EP2, NOBODY, status};

const MSI: ReservedRegion = ReservedRegion { range: X86_MSI, kind: ReservedKind::Msi };
const X86_MSI: IovaRange = match IovaRange::new(0xfee0_0000, 0xfeef_ffff) {
    Some(range) => range,
    None => unreachable!(),
};

fn reserved(start: u64, last: u64) -> ReservedRegion {
    ReservedRegion { range: request::range(start, last), kind: ReservedKind::Reserved }
}

fn properties(bed: &mut Bed, endpoint: u32) -> Vec<u8> {
    let reply = bed.raw(&request::probe(endpoint).readable(), PROBE_REPLY_SIZE);
    assert_eq!(status(&reply), Status::Ok);
    reply.bytes[..PROBE_SIZE].to_vec()
}

//= A40
#[test]
fn the_reserved_field_of_probe_is_not_looked_at() {
    let mut bed = Bed::new();
    let probe = viommu_core::wire::ReqProbe { reserved: [0xff; 64], ..request::probe(EP) };
    assert_eq!(bed.send(probe), Status::Ok);
}

//= A41
#[test]
fn probe_of_an_unknown_endpoint_finds_none_and_writes_no_property() {
    let mut bed = Bed::new();
    bed.device.set_reserved(EndpointId(EP), &[MSI]).expect("a valid list");
    let reply = bed.raw(&request::probe(NOBODY).readable(), PROBE_REPLY_SIZE);
    assert_eq!(status(&reply), Status::NoEnt);
    assert_eq!(reply.bytes[..PROBE_SIZE], [0; PROBE_SIZE]);
}

//= A42a A42b
#[test]
fn probe_is_always_offered_and_so_always_answered() {
    assert!(Features::OFFERED.contains(Features::PROBE));
    let mut bed = Bed::without(Features::PROBE);
    assert_eq!(bed.send(request::probe(EP)), Status::Ok);
    bed.device.negotiate(0);
    assert_eq!(bed.send(request::probe(EP)), Status::Ok);
}

//= A43 A44 A45 A47 A48
#[test]
fn each_property_follows_the_one_before_and_zeroes_follow_the_last() {
    let mut bed = Bed::new();
    bed.device.set_reserved(EndpointId(EP), &[MSI, reserved(0, u64::from(u32::MAX >> 4))]).expect("valid");
    let bytes = properties(&mut bed, EP);
    let mut expected = vec![1, 0, 20, 0, 0, 0, 0, 0];
    expected.extend(0u64.to_le_bytes());
    expected.extend(0x0fff_ffffu64.to_le_bytes());
    expected.extend([1, 0, 20, 0, 1, 0, 0, 0]);
    expected.extend(0xfee0_0000u64.to_le_bytes());
    expected.extend(0xfeef_ffffu64.to_le_bytes());
    expected.resize(PROBE_SIZE, 0);
    assert_eq!(bytes, expected);
}

//= A45
#[test]
fn a_full_list_of_properties_can_be_walked_to_its_end() {
    assert_eq!(REGIONS_MAX, 21, "512 bytes of properties, 24 for each region");
    let mut bed = Bed::new();
    let regions: Vec<_> = (0..REGIONS_MAX as u64).map(|i| reserved(i << 20, i << 20 | 0xfff)).collect();
    bed.device.set_reserved(EndpointId(EP), &regions).expect("a valid list");
    let bytes = properties(&mut bed, EP);
    let (mut at, mut starts) = (0, vec![]);
    while at + 4 <= bytes.len() && bytes[at] != 0 {
        let length = usize::from(u16::from_le_bytes([bytes[at + 2], bytes[at + 3]]));
        assert_eq!((bytes[at], bytes[at + 1], length % 8), (1, 0, 4));
        let start = bytes[at + 8..at + 16].try_into().map(u64::from_le_bytes).expect("eight bytes");
        starts.push(start);
        at += 4 + length;
    }
    assert_eq!(starts, regions.iter().map(|region| region.range.start()).collect::<Vec<_>>());
}

//= A47
#[test]
fn an_endpoint_without_properties_gets_zeroes_and_ok() {
    let mut bed = Bed::new();
    assert_eq!(properties(&mut bed, EP), [0; PROBE_SIZE]);
}

#[test]
fn properties_are_of_one_endpoint() {
    let mut bed = Bed::new();
    bed.device.set_reserved(EndpointId(EP), &[MSI]).expect("a valid list");
    assert_ne!(properties(&mut bed, EP), [0; PROBE_SIZE]);
    assert_eq!(properties(&mut bed, EP2), [0; PROBE_SIZE]);
}

//= A49 A50
#[test]
fn a_list_of_regions_that_no_device_may_give_is_refused_and_the_old_one_stays() {
    let mut bed = Bed::new();
    let endpoint = EndpointId(EP);
    bed.device.set_reserved(endpoint, &[MSI]).expect("a valid list");
    let second = ReservedRegion { range: request::range(0, 0xfff), kind: ReservedKind::Msi };
    assert_eq!(bed.device.set_reserved(endpoint, &[MSI, second]), Err(ReservedError::SecondMsi));
    let over = reserved(0xfedf_f000, 0xfee0_0000);
    let overlap = ReservedError::Overlap(over.range, MSI.range);
    assert_eq!(bed.device.set_reserved(endpoint, &[MSI, over]), Err(overlap));
    let many: Vec<_> = (0..=REGIONS_MAX as u64).map(|i| reserved(i << 20, i << 20 | 0xfff)).collect();
    assert_eq!(bed.device.set_reserved(endpoint, &many), Err(ReservedError::TooMany(REGIONS_MAX + 1)));
    assert_eq!(properties(&mut bed, EP)[4], 1);
    bed.device.set_reserved(EndpointId(NOBODY), &[MSI]).expect("an unknown endpoint is ignored");
}

//= A52
#[test]
fn an_attached_endpoint_reaches_no_guest_memory_through_a_reserved_region() {
    let mut bed = Bed::new();
    bed.device.set_reserved(EndpointId(EP), &[MSI]).expect("a valid list");
    bed.attach(1, EP);
    assert_eq!(bed.map(1, (0xfee0_0000, 0xfee0_0fff), 0x8000), Status::Inval);
    assert_eq!(bed.writes(EP, 0xfee0_0000), Err(FaultReason::Mapping));
}
