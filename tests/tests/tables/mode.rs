// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The feature bit, and what a device of tables has no more.

use viommu_core::{ConfigError, Device, DeviceConfig, Features, Mode, NoHost, Status};
use viommu_tests::model::request::{self, TAIL_SIZE, Wire};

use super::bed::{ARM, Bed, STE, config};

/// Whether ATTACH_TABLE is known once these bits are accepted.
fn is_known(feature_bit: u8, accepted: u64) -> bool {
    let config = DeviceConfig { mode: Mode::Table { feature_bit }, ..config() };
    let mut device = Device::new(config).expect("a configuration that can be served");
    device.negotiate(accepted);
    let request = request::attach_ste(1, ARM, STE);
    let reply = device.handle(&request.readable(), TAIL_SIZE, &mut NoHost);
    assert_eq!(reply.row.is_some(), reply.bytes.len() == TAIL_SIZE);
    reply.row.is_some()
}

//= T1
#[test]
fn the_feature_bit_is_the_one_that_was_asked_for() {
    assert_eq!(Mode::Table { feature_bit: 7 }.offered_bits(), 0b1111_0011 & !(1 << 3) & !(1 << 5));
    assert_eq!(Mode::Table { feature_bit: 8 }.offered_bits(), 1 << 8 | 0b101_0011);
    for bit in 7..=23 {
        for accepted in 0..24 {
            assert_eq!(is_known(bit, 1 << accepted), bit == accepted, "{bit} {accepted}");
        }
    }
}

//= T1
#[test]
fn a_bit_of_other_meaning_cannot_be_the_feature() {
    for feature_bit in [0, 6, 24, 33, 64, 255] {
        let config = DeviceConfig { mode: Mode::Table { feature_bit }, ..config() };
        assert_eq!(Device::new(config).err(), Some(ConfigError::FeatureBit(feature_bit)));
    }
}

//= T2
#[test]
fn a_device_of_tables_has_no_mappings() {
    let offered = Mode::Table { feature_bit: 7 }.offered();
    assert!(!offered.intersects(Features::MAP_UNMAP | Features::MMIO | Features::BYPASS));
    let expected = Features::INPUT_RANGE | Features::DOMAIN_RANGE | Features::PROBE | Features::BYPASS_CONFIG;
    assert_eq!(offered, expected | Features::ATTACH_TABLE);
    let mut bed = Bed::new();
    bed.device.negotiate(u64::MAX);
    for readable in [request::map(1, (0, 0xfff), 0, 1).readable(), request::unmap(1, (0, 0xfff)).readable()] {
        assert!(bed.device.handle(&readable, TAIL_SIZE, &mut bed.host).row.is_none());
    }
}

//= T3
#[test]
fn a_domain_is_of_tables_or_of_bypass() {
    let mut bed = Bed::new();
    assert_eq!(bed.send(request::attach(1, ARM)), Status::Unsupp);
    bed.done(request::attach_bypass(1, ARM));
    bed.done(request::attach_bypass(1, ARM));
    assert_eq!(bed.domain_of(ARM), Some(1));
}

//= T4
#[test]
fn without_the_feature_there_are_no_such_requests() {
    let requests = [
        request::attach_ste(1, ARM, STE).readable(),
        request::invalidate(1).readable(),
        request::page_response(ARM, None, 1, 0).readable(),
    ];
    for mode in [Mode::Map, Mode::Table { feature_bit: 7 }] {
        let mut bed = Bed::with(DeviceConfig { mode, ..config() });
        let all = mode.offered_bits();
        bed.device.negotiate(all & !(1 << 7));
        for readable in &requests {
            let reply = bed.device.handle(readable, TAIL_SIZE, &mut bed.host);
            assert!(reply.row.is_none() && reply.bytes.is_empty());
        }
    }
    assert!(!is_known(7, 0));
    let mut map = Bed::with(DeviceConfig { mode: Mode::Map, ..config() });
    map.device.negotiate(u64::MAX);
    assert!(map.device.handle(&requests[0], TAIL_SIZE, &mut map.host).row.is_none());
}
