// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a disk offers, and how it misbehaves.
//!
//! Read first: "Protocol features" in `vhost-user.rst`.

use std::time::Duration;

use vhost_user_iommu::message::features::{self, protocol};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_SEG_MAX};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

const FEATURES: u64 = features::VERSION_1
    | features::ACCESS_PLATFORM
    | features::PROTOCOL_FEATURES
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_BLK_F_SEG_MAX
    | 1 << VIRTIO_BLK_F_BLK_SIZE
    | 1 << VIRTIO_BLK_F_FLUSH;

const PROTOCOL_FEATURES: u64 = protocol::MQ
    | protocol::REPLY_ACK
    | protocol::BACKEND_REQ
    | protocol::CONFIG
    | protocol::RESET_DEVICE
    | protocol::CONFIGURE_MEM_SLOTS;

/// How a disk is to be: by default, all it can do, and well-behaved.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The feature bits it offers.
    pub features: u64,
    /// The protocol features it offers.
    pub protocol_features: u64,
    /// How it answers an invalidation.
    pub on_invalidate: OnInvalidate,
    /// How long it waits for the answer to a miss.
    pub miss_timeout: Duration,
}

/// How a disk answers an invalidation. What it forgets, it forgets at once in every case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnInvalidate {
    /// Acknowledges as soon as no access uses the entries.
    Acknowledge,
    /// Acknowledges this much later, and serves no other message before.
    AcknowledgeAfter(Duration),
    /// Never acknowledges; goes on with the next message.
    NeverAcknowledge,
    /// First asks for the same range again, waits for the answer without serving any other message, and then
    /// acknowledges: what a back-end does that holds a lock while it waits for a miss.
    MissFirst,
    /// Acknowledges, and asks for the same range again right after.
    MissAfterwards,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            features: FEATURES,
            protocol_features: PROTOCOL_FEATURES,
            on_invalidate: OnInvalidate::Acknowledge,
            miss_timeout: Duration::from_secs(5),
        }
    }
}

impl Options {
    /// A disk that knows no IOTLB: it offers neither `ACCESS_PLATFORM` nor a connection for its own requests.
    pub fn without_iotlb() -> Self {
        Self::default()
            .without_features(features::ACCESS_PLATFORM)
            .without_protocol_features(protocol::BACKEND_REQ)
    }

    /// The same, without these feature bits.
    pub fn without_features(self, mask: u64) -> Self {
        Self { features: self.features & !mask, ..self }
    }

    /// The same, without these protocol features.
    pub fn without_protocol_features(self, mask: u64) -> Self {
        Self { protocol_features: self.protocol_features & !mask, ..self }
    }

    /// The same, answering invalidations this way.
    pub fn with_on_invalidate(self, on_invalidate: OnInvalidate) -> Self {
        Self { on_invalidate, ..self }
    }

    /// The same, with this patience for the answer to a miss.
    pub fn with_miss_timeout(self, miss_timeout: Duration) -> Self {
        Self { miss_timeout, ..self }
    }
}
