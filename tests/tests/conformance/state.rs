// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device's state as bytes, and a device that goes on from them.

use viommu_core::state::{HEADER_SIZE, SavedState, StateError};
use viommu_core::wire::{ATTACH_F_BYPASS, BYPASS_OFFSET, MAP_F_MMIO, MAP_F_READ, MAP_F_WRITE};
use viommu_core::{DeviceConfig, Status};
use viommu_tests::model::request;

use crate::bed::{Bed, EP, EP2, EP3, config};

/// Two endpoints in a domain with mappings of all kinds, one in a bypass domain, and a `bypass` that was written.
fn busy() -> Bed {
    let mut bed = Bed::new();
    assert_eq!(bed.attach(7, EP), Status::Ok);
    for (range, gpa, flags) in [
        ((0, 0xfff), 0x5000, MAP_F_READ),
        ((0x1000, 0x1fff), 0x5000, MAP_F_WRITE),
        ((0x20_0000, 0x3f_ffff), 0x40_0000, MAP_F_READ | MAP_F_WRITE),
        ((1 << 40, (1 << 41) - 1), 0, MAP_F_READ | MAP_F_WRITE),
        ((u64::MAX - 0xfff, u64::MAX), 0xfee0_0000, MAP_F_WRITE | MAP_F_MMIO),
    ] {
        assert_eq!(bed.send(request::map(7, range, gpa, flags)), Status::Ok);
    }
    assert_eq!(bed.attach(7, EP2), Status::Ok);
    let mut bypass = request::attach(u32::MAX, EP3);
    bypass.flags = ATTACH_F_BYPASS.into();
    assert_eq!(bed.send(bypass), Status::Ok);
    let change = bed.device.begin_config_write(BYPASS_OFFSET, &[1]).expect("written");
    viommu_core::Host::apply(&mut bed.host, &change).expect("applied");
    let _ = bed.device.finish(Ok(()));
    bed
}

/// A device of this configuration that has taken over the state.
fn taken_over(bytes: &[u8], config: DeviceConfig) -> Result<Bed, Status> {
    let state = SavedState::parse(bytes).expect("a state");
    let mut bed = Bed::with(config);
    bed.device.negotiate(state.features);
    if let Some(change) = bed.device.begin_config_write(BYPASS_OFFSET, &[state.bypass.into()]) {
        viommu_core::Host::apply(&mut bed.host, &change).expect("applied");
        let _ = bed.device.finish(Ok(()));
    }
    for request in state.requests() {
        match bed.raw(request.expect("a request"), 4).bytes[0] {
            0 => {}
            refused => {
                return Err([Status::NoEnt, Status::NoMem]
                    .into_iter()
                    .find(|s| *s as u8 == refused)
                    .expect("one of these"));
            }
        }
    }
    Ok(bed)
}

#[test]
fn a_device_that_takes_over_a_state_is_as_the_one_it_came_from() {
    let bed = busy();
    let bytes = bed.device.save().expect("a device of mappings");
    assert!(bytes.len() <= bed.device.state_size_max());
    let taken = taken_over(&bytes, config()).expect("it fits");
    assert_eq!(taken.device.save(), Some(bytes));
    assert!(taken.device.bypass());
    for endpoint in [EP, EP2, EP3] {
        for iova in [0, 0x1000, 0x2000, 0x20_1234, (1 << 40) + 5, 1 << 41, u64::MAX] {
            assert_eq!(taken.reads(endpoint, iova), bed.reads(endpoint, iova), "{endpoint:#x} {iova:#x}");
            assert_eq!(taken.writes(endpoint, iova), bed.writes(endpoint, iova), "{endpoint:#x} {iova:#x}");
        }
    }
}

#[test]
fn a_device_that_was_just_made_has_a_state_without_requests() {
    let bytes = Bed::new().device.save().expect("a device of mappings");
    assert_eq!(bytes.len(), HEADER_SIZE);
    assert_eq!(SavedState::parse(&bytes).expect("a state").requests().count(), 0);
}

#[test]
fn a_device_with_fewer_endpoints_or_less_room_refuses_what_does_not_fit() {
    let bytes = busy().device.save().expect("a device of mappings");
    let mut fewer = config();
    fewer.endpoints.pop();
    assert_eq!(taken_over(&bytes, fewer).map(drop), Err(Status::NoEnt));
    let mut narrower = config();
    narrower.limits.mappings_max = 4;
    assert_eq!(taken_over(&bytes, narrower).map(drop), Err(Status::NoMem));
}

#[test]
fn bytes_that_are_no_state_are_refused_for_what_is_wrong_with_them() {
    let good = busy().device.save().expect("a device of mappings");
    let parse = |bytes: &[u8]| SavedState::parse(bytes).map(drop);
    for length in 0..good.len() {
        let expected = match length {
            0..HEADER_SIZE => StateError::NotAState,
            _ => {
                StateError::Size { expected: (good.len() - HEADER_SIZE) as u64, found: length - HEADER_SIZE }
            }
        };
        assert_eq!(parse(&good[..length]), Err(expected));
    }
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        parse(&bytes)
    };
    assert_eq!(with(7, 2), Err(StateError::NotAState));
    assert_eq!(with(8, 9), Err(StateError::Version(9)));
    assert_eq!(with(12, 2), Err(StateError::Header));
    assert_eq!(with(15, 1), Err(StateError::Header));
    // A DETACH, and a MAP that the next one begins in.
    assert_eq!(with(HEADER_SIZE, 2), Err(StateError::Request(0)));
    assert_eq!(with(HEADER_SIZE, 3), Err(StateError::Request(36)));
}
