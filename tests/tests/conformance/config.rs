// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Feature bits and the configuration space: A1 to A7.

use viommu_core::{ConfigError, Device, EndpointId, Features, IovaRange, Status};
use viommu_tests::model::request;

use crate::bed::{Bed, EP, EP2, NOBODY, config};

/// The whole configuration space with another `bypass`.
fn image(bed: &Bed, bypass: u8) -> Vec<u8> {
    let mut image = bed.device.config_space().to_vec();
    image[36] = bypass;
    image
}

//= A1 A2 A3
#[test]
fn mapping_is_offered_and_of_bypass_only_the_newer_form() {
    assert!(Features::OFFERED.contains(Features::MAP_UNMAP | Features::BYPASS_CONFIG));
    assert!(!Features::OFFERED.contains(Features::BYPASS));
    assert_eq!(Features::OFFERED.bits(), 0b111_0111);
}

#[test]
fn a_legacy_bypass_that_was_not_offered_cannot_be_had() {
    let mut bed = Bed::new();
    bed.device.negotiate(u64::MAX);
    assert!(bed.reads(EP, 0x1000).is_err());
}

//= A4a A4b
#[test]
fn the_configuration_space_has_each_field_at_its_place() {
    let mut config = config();
    config.page_size_mask = 0x4020_1000;
    config.aperture = request::range(0x10_0000, 0x1f_ffff);
    config.domain_ids = 2..=0xffff;
    let bytes = Bed::with(config).device.config_space();
    assert_eq!(bytes.len(), 40);
    assert_eq!(bytes[0..8], 0x4020_1000u64.to_le_bytes());
    assert_eq!(bytes[8..16], 0x10_0000u64.to_le_bytes());
    assert_eq!(bytes[16..24], 0x1f_ffffu64.to_le_bytes());
    assert_eq!(bytes[24..28], 2u32.to_le_bytes());
    assert_eq!(bytes[28..32], 0xffffu32.to_le_bytes());
    assert_eq!(bytes[32..36], 512u32.to_le_bytes());
    assert_eq!(bytes[36..40], [0; 4]);
}

//= A4a
#[test]
fn a_device_that_cannot_be_served_is_not_made() {
    let refused = |change: fn(&mut viommu_core::DeviceConfig)| {
        let mut config = config();
        change(&mut config);
        Device::new(config).err()
    };
    assert_eq!(refused(|config| config.page_size_mask = 0), Some(ConfigError::NoPageSize));
    let cut = request::range(0x1000, 0x1ffe);
    let narrow = request::range(0x1001, 0x1fff);
    assert_eq!(
        refused(|config| config.aperture = request::range(0x1000, 0x1ffe)),
        Some(ConfigError::Aperture(cut, 4096))
    );
    assert_eq!(
        refused(|config| config.aperture = request::range(0x1001, 0x1fff)),
        Some(ConfigError::Aperture(narrow, 4096))
    );
    #[expect(clippy::reversed_empty_ranges, reason = "an empty range is the case")]
    let nothing = refused(|config| config.domain_ids = 5..=4);
    assert_eq!(nothing, Some(ConfigError::NoDomainId));
    assert_eq!(
        refused(|config| config.endpoints.push(EndpointId(EP))),
        Some(ConfigError::EndpointTwice(EndpointId(EP)))
    );
}

//= A5 A13 A14
#[test]
fn with_boot_bypass_an_unattached_endpoint_reaches_memory_before_there_is_a_driver() {
    let mut config = config();
    config.boot_bypass = true;
    let mut bed = Bed::with(config);
    bed.device.negotiate(0);
    assert_eq!(bed.bypass_byte(), 1);
    assert_eq!(bed.reads(EP, 0x1234), Ok(0x1234));
    assert_eq!(bed.writes(EP2, u64::MAX), Ok(u64::MAX));
    assert!(bed.reads(NOBODY, 0x1234).is_err(), "bypass is for endpoints that exist");
}

//= A7
#[test]
fn bypass_is_written_as_one_byte_or_with_the_whole_image_around_it() {
    let mut bed = Bed::new();
    bed.write_config(36, &[1]);
    assert_eq!((bed.bypass_byte(), bed.reads(EP, 0x5000)), (1, Ok(0x5000)));
    bed.write_config(0, &image(&bed, 0));
    assert_eq!(bed.bypass_byte(), 0);
    assert!(bed.reads(EP, 0x5000).is_err());
    bed.write_config(36, &[1, 0xff, 0xff, 0xff]);
    assert_eq!(bed.bypass_byte(), 1);
    bed.write_config(35, &[0xff, 0]);
    assert_eq!(bed.bypass_byte(), 0);
}

//= A7
#[test]
fn bypass_never_shows_anything_but_zero_and_one() {
    let mut bed = Bed::new();
    for value in 2..=u8::MAX {
        bed.write_config(36, &[value]);
        bed.write_config(0, &image(&bed, value));
        assert_eq!(bed.bypass_byte(), 0);
    }
}

#[test]
fn a_write_beside_bypass_changes_nothing() {
    let mut bed = Bed::new();
    let before = bed.device.config_space();
    for (offset, data) in [(0, vec![0xff; 36]), (37, vec![1; 3]), (40, vec![1]), (usize::MAX, vec![1; 8])] {
        bed.write_config(offset, &data);
    }
    bed.write_config(36, &[]);
    assert_eq!(bed.device.config_space(), before);
    let mut scribble = vec![0xff; 40];
    scribble[36] = 1;
    bed.write_config(0, &scribble);
    assert_eq!(bed.device.config_space()[..36], before[..36]);
    assert_eq!(bed.device.config_space()[36..], [1, 0, 0, 0]);
}

#[test]
fn a_write_of_the_value_that_stands_does_not_trouble_the_host() {
    let mut bed = Bed::new();
    bed.write_config(36, &[0]);
    assert!(bed.host.asked.is_empty());
}

#[test]
fn bypass_cannot_be_written_without_its_feature() {
    let mut bed = Bed::without(Features::BYPASS_CONFIG);
    bed.write_config(36, &[1]);
    assert_eq!(bed.bypass_byte(), 0);
}

#[test]
fn a_host_that_refuses_keeps_bypass_as_it_is() {
    let mut bed = Bed::new();
    bed.host.fail(0, 5);
    bed.write_config(36, &[1]);
    assert_eq!(bed.bypass_byte(), 0);
    assert!(bed.reads(EP, 0).is_err());
}

//= A13
#[test]
fn bypass_says_nothing_about_endpoints_that_are_attached() {
    let mut bed = Bed::new();
    bed.write_config(36, &[1]);
    assert_eq!(bed.attach(1, EP), Status::Ok);
    assert!(bed.reads(EP, 0x1000).is_err());
    assert_eq!(bed.reads(EP2, 0x1000), Ok(0x1000));
}

#[test]
fn without_the_range_features_the_ranges_hold_all_the_same() {
    let mut config = config();
    config.aperture = IovaRange::new(0x10_0000, 0x1f_ffff).expect("valid");
    config.domain_ids = 1..=3;
    let mut bed = Bed::with(config);
    bed.device.negotiate((Features::OFFERED - Features::INPUT_RANGE - Features::DOMAIN_RANGE).bits());
    assert_eq!(bed.attach(4, EP), Status::Range);
    assert_eq!(bed.attach(3, EP), Status::Ok);
    assert_eq!(bed.map(3, (0x20_0000, 0x20_0fff), 0), Status::Range);
}

#[test]
fn a_granule_or_a_limit_that_mappings_cannot_have_is_refused_and_the_last_possible_is_not() {
    let made = |page_size_mask, mapping_bytes_max| {
        let mut config = config();
        config.page_size_mask = page_size_mask;
        config.limits.mapping_bytes_max = mapping_bytes_max;
        Device::new(config).err()
    };
    assert_eq!(made(0x1000, 1 << 30), None);
    assert_eq!(made(0x1800, 1 << 30), Some(ConfigError::SmallGranule(0x800)));
    assert_eq!(made(0x1000, (1 << 30) + 1), Some(ConfigError::MappingBytes((1 << 30) + 1)));
}
