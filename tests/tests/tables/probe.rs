// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What PROBE says of tables.

use viommu_core::{
    DeviceConfig, EndpointId, IovaRange, Mode, PROBE_SIZE, REGIONS_MAX, ReservedKind, ReservedRegion,
    TABLE_PROBE_SIZE,
};
use viommu_tests::model::request::{self, Wire};

use super::bed::{ARM, Bed, SOFT, VTD, VTD2, config};

impl Bed {
    /// The properties of an endpoint, each with its type.
    fn probe(&mut self, endpoint: u32) -> Vec<(u16, Vec<u8>)> {
        let size = self.device.probe_size();
        let reply = self.device.handle(&request::probe(endpoint).readable(), size + 4, &mut self.host);
        assert_eq!((reply.bytes.len(), &reply.bytes[size..]), (size + 4, &[0; 4][..]));
        let mut rest = &reply.bytes[..size];
        let mut properties = Vec::new();
        while rest.len() >= 4 && rest[0] != 0 {
            let (kind, length) = (u16::from_le_bytes([rest[0], rest[1]]), usize::from(rest[2]));
            properties.push((kind, rest[..4 + length].to_vec()));
            rest = &rest[4 + length..];
        }
        assert!(rest.iter().all(|byte| *byte == 0));
        properties
    }
}

//= T61
#[test]
fn an_smmu_shows_its_registers() {
    let probed = Bed::new().probe(ARM);
    let mut expected = vec![2, 0, 52, 0, 0, 0, 0, 0];
    for register in [1u64 << 19, 10 << 6, 0, 0, 0, 1 << 4 | 1 << 6] {
        expected.extend(register.to_le_bytes());
    }
    assert_eq!(probed, [(2, expected)]);
}

//= T61
#[test]
fn a_vtd_unit_shows_its_registers_and_what_the_endpoint_can_do() {
    let probed = Bed::new().probe(VTD);
    let mut hardware = vec![3, 0, 20, 0, 0, 0, 0, 0];
    hardware.extend([1u64 << 60, 1 << 31].map(u64::to_le_bytes).concat());
    let pasids = vec![0x10, 0, 8, 0, 8, 0, 2, 0, 0, 0, 0, 0];
    let pages = vec![0x11, 0, 12, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0xe8, 3, 0, 0];
    assert_eq!(probed, [(3, hardware), (0x10, pasids), (0x11, pages)]);
}

//= T60
#[test]
fn what_an_endpoint_cannot_use_is_not_offered() {
    let kinds = |bed: &mut Bed, id| bed.probe(id).iter().map(|(kind, _)| *kind).collect::<Vec<_>>();
    let mut bed = Bed::new();
    assert!(kinds(&mut bed, SOFT).is_empty());
    for endpoint in [VTD, VTD2] {
        bed.device.set_group(EndpointId(endpoint), Some(1));
    }
    assert_eq!(kinds(&mut bed, VTD), [3, 0x11], "no PASIDs in a group");
    bed.device.set_tables(EndpointId(VTD), None);
    assert!(kinds(&mut bed, VTD).is_empty());
    let mut map = Bed::with(DeviceConfig { mode: Mode::Map, ..config() });
    assert_eq!((kinds(&mut map, VTD), map.device.probe_size()), (vec![], PROBE_SIZE));
}

#[test]
fn the_window_for_interrupts_is_an_identity_region() {
    let mut bed = Bed::new();
    let range = IovaRange::new(0x800_0000, 0x80f_ffff).expect("a range");
    let region = ReservedRegion { range, kind: ReservedKind::Identity };
    bed.device.set_reserved(EndpointId(ARM), &[region]).expect("one region");
    let (kind, bytes) = bed.probe(ARM).remove(0);
    assert_eq!((kind, &bytes[..8]), (1, &[1, 0, 20, 0, 2, 0, 0, 0][..]));
    assert_eq!(bytes[8..], [0x800_0000u64, 0x80f_ffff].map(u64::to_le_bytes).concat());
}

#[test]
fn there_is_room_for_everything_at_once() {
    let mut bed = Bed::new();
    let regions: Vec<ReservedRegion> = (0..REGIONS_MAX as u64)
        .map(|number| ReservedRegion {
            range: IovaRange::new(number << 12, number << 12 | 0xfff).expect("a page"),
            kind: ReservedKind::Reserved,
        })
        .collect();
    bed.device.set_reserved(EndpointId(VTD), &regions).expect("as many as there can be");
    assert_eq!(bed.probe(VTD).len(), REGIONS_MAX + 3);
    let space = bed.device.config_space();
    assert_eq!(space[32..36], (TABLE_PROBE_SIZE as u32).to_le_bytes());
}
