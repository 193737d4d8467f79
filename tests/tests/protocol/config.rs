// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The configuration space and the features.

use viommu_core::wire::BYPASS_OFFSET;
use viommu_tests::front_end::{FrontEnd, Message, NEED_REPLY, Wanted};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::scene::*;

const CONFIG_SIZE: usize = 40;
/// The end of the space that vhost-user knows.
const SPACE_END: usize = 0x1000;

//= A1 A2 A3
#[test]
fn exactly_the_documented_features_are_offered() {
    let served = Served::new();
    let reply = served.connection().call(&Message::new(1, []), &[], PATIENCE).expect("features");
    let offered = u64::from_ne_bytes(reply.body.try_into().expect("eight bytes"));
    let transport = [VIRTIO_F_VERSION_1, VIRTIO_RING_F_INDIRECT_DESC, VIRTIO_RING_F_EVENT_IDX, 30];
    // INPUT_RANGE, DOMAIN_RANGE, MAP_UNMAP, PROBE, MMIO, BYPASS_CONFIG; not the legacy BYPASS, not ACCESS_PLATFORM.
    let device = [0, 1, 2, 4, 5, 6];
    assert_eq!(offered, transport.iter().chain(&device).fold(0, |bits, bit| bits | 1 << bit), "{offered:#x}");
}

#[test]
fn a_feature_that_was_not_offered_ends_that_connection_alone() {
    let served = Served::new();
    for bit in [3, 7, 33, 34, 63] {
        let mut front_end = FrontEnd::connect(&served.socket, PATIENCE).expect("the daemon listens");
        front_end.negotiate(Wanted::default()).expect("negotiated");
        let message =
            Message { request: 2, flags: 1 | NEED_REPLY, body: (1u64 << bit).to_ne_bytes().to_vec() };
        front_end.connection().send(&message, &[]).expect("sent");
        front_end.connection().wait_closed(PATIENCE).expect("closed");
    }
    served.assert_serves();
}

//= A4a A4b
#[test]
fn the_configuration_space_is_read_at_any_offset_and_in_any_size() {
    let served = Served::new();
    let mut front_end = served.front_end(u64::MAX);
    let mut space = front_end.read_config(0, CONFIG_SIZE).expect("forty bytes");
    assert_eq!(space[..8], 0x4020_1000u64.to_le_bytes(), "granules of 4k, 2M, 1G");
    space.resize(SPACE_END, 0);
    for offset in (0..48).chain([100, SPACE_END - 1]) {
        for size in [1, 2, 3, 4, 8, 39, 40, 41, 255, 256] {
            let end = (offset + size).min(SPACE_END);
            let read = front_end.read_config(offset as u32, end - offset).expect("as much as asked for");
            assert_eq!(read, space[offset..end], "{size} bytes at {offset}");
        }
    }
}

#[test]
fn bypass_is_written_as_one_byte_and_as_part_of_the_whole_space() {
    let served = Served::new();
    let mut front_end = served.front_end(u64::MAX);
    assert_eq!(front_end.config().expect("forty bytes").bypass, 1);
    front_end.write_config(BYPASS_OFFSET as u32, &[0]).expect("written");
    assert_eq!(front_end.config().expect("forty bytes").bypass, 0);
    let mut whole = front_end.read_config(0, CONFIG_SIZE).expect("forty bytes");
    whole[BYPASS_OFFSET] = 1;
    front_end.write_config(0, &whole).expect("written");
    assert_eq!(front_end.config().expect("forty bytes").bypass, 1);
}

//= A7
#[test]
fn writes_that_make_no_sense_are_ignored() {
    let served = Served::new();
    let mut front_end = served.front_end(u64::MAX);
    let before = front_end.read_config(0, 64).expect("as much as asked for");
    for (offset, bytes) in [
        (BYPASS_OFFSET as u32, vec![2]),
        (BYPASS_OFFSET as u32, vec![0xff; 4]),
        (0, vec![0x55; 36]),
        (0, vec![0x55; CONFIG_SIZE]),
        (37, vec![0; 3]),
        (CONFIG_SIZE as u32, vec![1; 8]),
        (SPACE_END as u32 - 1, vec![1]),
    ] {
        front_end.write_config(offset, &bytes).expect("taken");
        assert_eq!(front_end.read_config(0, 64).expect("read"), before, "{bytes:?} at {offset}");
    }
}

#[test]
fn bypass_is_not_written_without_its_feature() {
    let served = Served::new();
    let mut front_end = served.front_end(!(1 << 6));
    front_end.write_config(BYPASS_OFFSET as u32, &[0]).expect("taken");
    assert_eq!(front_end.config().expect("forty bytes").bypass, 1);
}
