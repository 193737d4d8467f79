// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests, properties and events of the table extension, see [`manual::tables`](crate::manual::tables).

use core::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Head;

/// ATTACH_TABLE: no table, so that a PASID is left without one.
pub const FORMAT_NONE: u8 = 0;
/// ATTACH_TABLE: [`DescriptorArmSmmu3`].
pub const FORMAT_ARM_SMMU3: u8 = 1;
/// ATTACH_TABLE: [`DescriptorIntelPt`].
pub const FORMAT_INTEL_PT: u8 = 2;
/// [`DescriptorIntelPt::attach_flags`]: `pasid` is valid.
pub const ATTACH_TABLE_F_PASID: u32 = 1 << 0;

/// The readable part of ATTACH_TABLE.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ReqAttachTable {
    /// Type ATTACH_TABLE.
    pub head: Head,
    /// The domain; it comes to be with its first attachment.
    pub domain: U32,
    /// The endpoint.
    pub endpoint: U32,
    /// One of `FORMAT_*`.
    pub format: u8,
    /// What the format says.
    pub descriptor: [u8; DESCRIPTOR_SIZE],
}

/// Bytes of a descriptor in [`ReqAttachTable`].
pub const DESCRIPTOR_SIZE: usize = 111;

/// A stream table entry of an Arm SMMUv3, as far as stage 1 is concerned.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DescriptorArmSmmu3 {
    /// Must be zero.
    pub reserved: [u8; 3],
    /// The first 64 bits of the entry.
    pub ste0: U64,
    /// The second.
    pub ste1: U64,
    /// Must be zero.
    pub reserved1: [u8; 92],
}

/// A first-stage page table of Intel VT-d; with other fields than the last two zero, a PASID that is left without one.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DescriptorIntelPt {
    /// Must be zero.
    pub reserved: [u8; 3],
    /// `SRE` 1, `EAFE` 2, `WPE` 4.
    pub flags: U64,
    /// GPA of the root.
    pub pgd: U64,
    /// Bits of an input address: 48 or 57.
    pub addr_width: U32,
    /// The PASID, if `attach_flags` says so; otherwise zero.
    pub pasid: U32,
    /// [`ATTACH_TABLE_F_PASID`] or nothing.
    pub attach_flags: U32,
    /// Must be zero.
    pub reserved1: [u8; 80],
}

/// INVALIDATE: all of the domain, or of a PASID in it if the flag says so.
pub const INVALIDATE_S_DOMAIN: u8 = 1;
/// INVALIDATE: one PASID.
pub const INVALIDATE_S_PASID: u8 = 2;
/// INVALIDATE: a range of addresses.
pub const INVALIDATE_S_ADDRESS: u8 = 3;
/// INVALIDATE: no entry that leads to a table is concerned.
pub const INVALIDATE_F_LEAF: u16 = 1 << 0;
/// INVALIDATE: `pasid` is valid.
pub const INVALIDATE_F_PASID: u16 = 1 << 1;
/// INVALIDATE: `id` is valid.
pub const INVALIDATE_F_ID: u16 = 1 << 2;
/// INVALIDATE: global entries are concerned too.
pub const INVALIDATE_F_GLOBAL: u16 = 1 << 3;

/// The readable part of INVALIDATE.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ReqInvalidate {
    /// Type INVALIDATE.
    pub head: Head,
    /// One of `INVALIDATE_S_*`.
    pub scope: u8,
    /// Bits of [`Caches`](crate::Caches).
    pub caches: u8,
    /// Some of `INVALIDATE_F_*`.
    pub flags: U16,
    /// The domain.
    pub domain: U32,
    /// The PASID.
    pub pasid: U32,
    /// The architecture's number of the address space.
    pub id: U64,
    /// The first address.
    pub address: U64,
    /// How many pages.
    pub nr_pages: U64,
    /// Bytes of a page, as their logarithm to base 2.
    pub page_size: u8,
    /// Must be zero.
    pub reserved: [u8; 19],
}

/// PAGE_RESP: `pasid` is valid.
pub const PAGE_RESP_F_PASID: u32 = 1 << 0;
/// PAGE_RESP: the page is there.
pub const PAGE_RESP_SUCCESS: u16 = 0;
/// PAGE_RESP: there is no such page.
pub const PAGE_RESP_INVALID: u16 = 1;
/// PAGE_RESP: the driver cannot help.
pub const PAGE_RESP_FAILURE: u16 = 2;

/// The readable part of PAGE_RESP.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ReqPageResp {
    /// Type PAGE_RESP.
    pub head: Head,
    /// The endpoint that asked.
    pub endpoint: U32,
    /// [`PAGE_RESP_F_PASID`] or nothing.
    pub flags: U32,
    /// For which PASID it asked; zero without the flag.
    pub pasid: U32,
    /// The group of requests that is answered.
    pub group_id: U32,
    /// One of `PAGE_RESP_*`.
    pub code: U16,
    /// Must be zero.
    pub reserved: [u8; 10],
}

/// Property type of [`HwArmSmmu3`].
pub const PROPERTY_T_HW_ARM_SMMU3: u16 = 2;
/// Property type of [`HwIntelVtd`].
pub const PROPERTY_T_HW_INTEL_VTD: u16 = 3;
/// Property type of [`PropertyPasid`].
pub const PROPERTY_T_PASID: u16 = 0x10;
/// Property type of [`PropertyPageRequests`].
pub const PROPERTY_T_PAGE_REQUESTS: u16 = 0x11;

/// The SMMUv3 that walks an endpoint's tables: its identification registers.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct HwArmSmmu3 {
    /// [`PROPERTY_T_HW_ARM_SMMU3`].
    pub kind: U16,
    /// Bytes after the first four.
    pub length: U16,
    /// Zero.
    pub reserved: [u8; 4],
    /// `SMMU_IDR0`.
    pub idr0: U64,
    /// `SMMU_IDR1`.
    pub idr1: U64,
    /// Zero.
    pub reserved1: [u8; 8],
    /// `SMMU_IDR3`.
    pub idr3: U64,
    /// Zero.
    pub reserved2: [u8; 8],
    /// `SMMU_IDR5`.
    pub idr5: U64,
}

/// The VT-d unit that walks an endpoint's tables.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct HwIntelVtd {
    /// [`PROPERTY_T_HW_INTEL_VTD`].
    pub kind: U16,
    /// Bytes after the first four.
    pub length: U16,
    /// As `struct iommu_hw_info_vtd` has them.
    pub flags: U32,
    /// The capability register.
    pub cap: U64,
    /// The extended capability register.
    pub ecap: U64,
}

/// [`PropertyPasid`]: requests with a PASID can ask for execution.
pub const PASID_F_EXEC: u16 = 1 << 0;
/// [`PropertyPasid`]: they can be privileged.
pub const PASID_F_PRIVILEGED: u16 = 1 << 1;

/// What PASIDs an endpoint can use.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PropertyPasid {
    /// [`PROPERTY_T_PASID`].
    pub kind: U16,
    /// Bytes after the first four.
    pub length: U16,
    /// PASIDs are below 2 to this power; at most 20.
    pub bits: u8,
    /// Zero.
    pub reserved: u8,
    /// Some of `PASID_F_*`.
    pub flags: U16,
    /// Zero.
    pub reserved1: [u8; 4],
}

/// [`PropertyPageRequests`]: a response names the PASID that the request had.
pub const PAGE_REQUESTS_F_PASID: u32 = 1 << 0;

/// How an endpoint asks for pages.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PropertyPageRequests {
    /// [`PROPERTY_T_PAGE_REQUESTS`].
    pub kind: U16,
    /// Bytes after the first four.
    pub length: U16,
    /// [`PAGE_REQUESTS_F_PASID`].
    pub flags: U32,
    /// Groups of requests that can wait for their response.
    pub requests_max: U32,
    /// Milliseconds for which each does.
    pub timeout_ms: U32,
}

/// Event: an execution was tried.
pub const FAULT_F_EXEC: u32 = 1 << 2;
/// Event: the access was privileged.
pub const FAULT_F_PRIVILEGED: u32 = 1 << 3;
/// Event: the last page of its group.
pub const FAULT_F_LAST: u32 = 1 << 4;
/// Event: a page request, which waits for a PAGE_RESP.
pub const FAULT_F_PAGE_REQ: u32 = 1 << 5;
/// Event: `pasid` is valid.
pub const FAULT_F_PASID: u32 = 1 << 9;
/// Event: `group_id` is valid.
pub const FAULT_F_GROUP_ID: u32 = 1 << 10;
/// Event: others before this one were lost.
pub const FAULT_F_LOST: u32 = 1 << 12;

/// What happened at a table, as the driver reads it from the event queue; begins with what [`Fault`](super::Fault) has.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct TableEvent {
    /// One of `FAULT_R_*`.
    pub reason: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// Some of `FAULT_F_*`.
    pub flags: U32,
    /// The endpoint.
    pub endpoint: U32,
    /// The PASID.
    pub pasid: U32,
    /// The address of the access.
    pub address: U64,
    /// The group of a page request.
    pub group_id: U32,
    /// Zero.
    pub reserved1: [u8; 4],
    /// Zero.
    pub reserved2: [u8; 16],
}

const _: () = assert!(size_of::<ReqAttachTable>() == 124 && offset_of!(ReqAttachTable, descriptor) == 13);
const _: () = assert!(size_of::<DescriptorArmSmmu3>() == DESCRIPTOR_SIZE);
const _: () = assert!(size_of::<DescriptorIntelPt>() == DESCRIPTOR_SIZE);
const _: () = assert!(offset_of!(DescriptorIntelPt, attach_flags) == 40 - 13);
const _: () = assert!(size_of::<ReqInvalidate>() == 60 && offset_of!(ReqInvalidate, page_size) == 40);
const _: () = assert!(size_of::<ReqPageResp>() == 32 && offset_of!(ReqPageResp, code) == 20);
const _: () = assert!(size_of::<HwArmSmmu3>() == 56 && size_of::<HwIntelVtd>() == 24);
const _: () = assert!(size_of::<PropertyPasid>() == 12 && size_of::<PropertyPageRequests>() == 16);
const _: () = assert!(size_of::<TableEvent>() == 48 && offset_of!(TableEvent, group_id) == 24);
