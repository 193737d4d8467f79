// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests and their tail.

use core::mem::size_of;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The type of a request; open, since a driver may send any byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct RequestType(pub u8);

impl RequestType {
    /// Put an endpoint into a domain.
    pub const ATTACH: RequestType = RequestType(1);
    /// Take an endpoint out of its domain.
    pub const DETACH: RequestType = RequestType(2);
    /// Create one mapping.
    pub const MAP: RequestType = RequestType(3);
    /// Remove mappings.
    pub const UNMAP: RequestType = RequestType(4);
    /// Ask for the properties of an endpoint.
    pub const PROBE: RequestType = RequestType(5);
    /// Give an endpoint, or one of its PASIDs, a stage-1 table; of the table extension, as those below.
    pub const ATTACH_TABLE: RequestType = RequestType(6);
    /// Forget what caches hold of a domain's tables.
    pub const INVALIDATE: RequestType = RequestType(7);
    /// Answer a group of page requests.
    pub const PAGE_RESP: RequestType = RequestType(8);
}

/// ATTACH: the domain lets the endpoint through untranslated.
pub const ATTACH_F_BYPASS: u32 = 1 << 0;
/// MAP: the endpoint may read.
pub const MAP_F_READ: u32 = 1 << 0;
/// MAP: the endpoint may write.
pub const MAP_F_WRITE: u32 = 1 << 1;
/// MAP: the target is device memory.
pub const MAP_F_MMIO: u32 = 1 << 2;

/// What every request begins with.
#[doc(alias = "virtio_iommu_req_head")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Head {
    /// Which request this is.
    pub kind: RequestType,
    /// Ignored by the device.
    pub reserved: [u8; 3],
}

/// What every reply ends with.
#[doc(alias = "virtio_iommu_req_tail")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Tail {
    /// One of the `VIRTIO_IOMMU_S_*` values, see [`Status`](crate::Status).
    pub status: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// The readable part of ATTACH.
#[doc(alias = "virtio_iommu_req_attach")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ReqAttach {
    /// Type ATTACH.
    pub head: Head,
    /// The domain; it comes to be with its first endpoint.
    pub domain: U32,
    /// The endpoint.
    pub endpoint: U32,
    /// [`ATTACH_F_BYPASS`] or nothing.
    pub flags: U32,
    /// Must be zero.
    pub reserved: [u8; 4],
}

/// The readable part of DETACH.
#[doc(alias = "virtio_iommu_req_detach")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ReqDetach {
    /// Type DETACH.
    pub head: Head,
    /// The domain the endpoint is in.
    pub domain: U32,
    /// The endpoint.
    pub endpoint: U32,
    /// Ignored by the device.
    pub reserved: [u8; 8],
}

/// The readable part of MAP.
#[doc(alias = "virtio_iommu_req_map")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ReqMap {
    /// Type MAP.
    pub head: Head,
    /// The domain.
    pub domain: U32,
    /// First IOVA.
    pub virt_start: U64,
    /// Last IOVA.
    #[doc(alias = "virt_end")]
    pub virt_last: U64,
    /// GPA that the first IOVA leads to.
    pub phys_start: U64,
    /// [`MAP_F_READ`], [`MAP_F_WRITE`], [`MAP_F_MMIO`].
    pub flags: U32,
}

/// The readable part of UNMAP.
#[doc(alias = "virtio_iommu_req_unmap")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ReqUnmap {
    /// Type UNMAP.
    pub head: Head,
    /// The domain.
    pub domain: U32,
    /// First IOVA.
    pub virt_start: U64,
    /// Last IOVA.
    #[doc(alias = "virt_end")]
    pub virt_last: U64,
    /// Must be zero.
    pub reserved: [u8; 4],
}

/// The readable part of PROBE.
#[doc(alias = "virtio_iommu_req_probe")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ReqProbe {
    /// Type PROBE.
    pub head: Head,
    /// The endpoint.
    pub endpoint: U32,
    /// Ignored by the device.
    pub reserved: [u8; 64],
}

const _: () = assert!(size_of::<Head>() == 4 && size_of::<Tail>() == 4);
const _: () = assert!(size_of::<ReqAttach>() == 20);
const _: () = assert!(size_of::<ReqDetach>() == 20);
const _: () = assert!(size_of::<ReqMap>() == 36);
const _: () = assert!(size_of::<ReqUnmap>() == 28);
const _: () = assert!(size_of::<ReqProbe>() == 72);
