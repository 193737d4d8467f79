// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Feature bits that the vhost-user conversation itself depends on, as masks.
//!
//! Device-specific bits are not here: they belong to the device.
//!
//! Read first: "Protocol features" in `vhost-user.rst`; "Reserved Feature Bits" in the virtio specification.

/// Writes are recorded in a log of dirty pages (`VHOST_F_LOG_ALL`).
pub const LOG_ALL: u64 = 1 << 26;
/// The protocol features are to be negotiated (`VHOST_USER_F_PROTOCOL_FEATURES`).
pub const PROTOCOL_FEATURES: u64 = 1 << 30;
/// The device is a virtio 1 device (`VIRTIO_F_VERSION_1`).
pub const VERSION_1: u64 = 1 << 32;
/// The device's addresses are the platform's: behind an IOMMU, IOVAs (`VIRTIO_F_ACCESS_PLATFORM`).
pub const ACCESS_PLATFORM: u64 = 1 << 33;

/// The protocol features, as masks of `GET_PROTOCOL_FEATURES` and `SET_PROTOCOL_FEATURES`.
pub mod protocol {
    /// The back-end says how many queues it has.
    pub const MQ: u64 = 1 << 0;
    /// The log of dirty pages is shared memory.
    pub const LOG_SHMFD: u64 = 1 << 1;
    /// The back-end can announce the guest.
    pub const RARP: u64 = 1 << 2;
    /// Any request may ask for an acknowledgement.
    pub const REPLY_ACK: u64 = 1 << 3;
    /// The front-end sets the MTU.
    pub const MTU: u64 = 1 << 4;
    /// The back-end has a connection for its own requests.
    pub const BACKEND_REQ: u64 = 1 << 5;
    /// Rings may have another byte order.
    pub const CROSS_ENDIAN: u64 = 1 << 6;
    /// Crypto sessions.
    pub const CRYPTO_SESSION: u64 = 1 << 7;
    /// Postcopy by userfaultfd.
    pub const PAGEFAULT: u64 = 1 << 8;
    /// Device configuration space over the connection.
    pub const CONFIG: u64 = 1 << 9;
    /// The back-end's requests may carry file descriptors.
    pub const BACKEND_SEND_FD: u64 = 1 << 10;
    /// Rings may have host notifiers.
    pub const HOST_NOTIFIER: u64 = 1 << 11;
    /// A shared record of requests in flight.
    pub const INFLIGHT_SHMFD: u64 = 1 << 12;
    /// The front-end can reset the device.
    pub const RESET_DEVICE: u64 = 1 << 13;
    /// Kicks and calls as messages.
    pub const INBAND_NOTIFICATIONS: u64 = 1 << 14;
    /// Memory regions are added and removed one by one.
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
    /// The virtio device status over the connection.
    pub const STATUS: u64 = 1 << 16;
    /// Memory regions of Xen guests.
    pub const XEN_MMAP: u64 = 1 << 17;
    /// Shared objects.
    pub const SHARED_OBJECT: u64 = 1 << 18;
    /// The device's state can be moved.
    pub const DEVICE_STATE: u64 = 1 << 19;
    /// Stopping a ring records its requests in flight.
    pub const GET_VRING_BASE_INFLIGHT: u64 = 1 << 20;
    /// Messages hold guest physical addresses where they held the front-end's.
    pub const GPA_ADDRESSES: u64 = 1 << 21;
    /// Shared memory regions.
    pub const SHMEM: u64 = 1 << 22;
}
