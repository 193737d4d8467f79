// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Properties in a PROBE reply.

use core::mem::size_of;

use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Property type of [`ResvMem`]; the upper four bits of the field are reserved and zero.
pub const PROPERTY_T_RESV_MEM: u16 = 1;
/// Bytes of a property that its `length` does not count.
pub const PROPERTY_HEADER_SIZE: usize = 4;
/// The region must not be used for DMA.
pub const RESV_MEM_T_RESERVED: u8 = 0;
/// Writes to the region are message-signalled interrupts.
pub const RESV_MEM_T_MSI: u8 = 1;
/// The driver maps the region to itself in every stage-1 table; of the table extension.
pub const RESV_MEM_T_IDENTITY: u8 = 2;

/// A region of IOVAs that a driver must not map.
#[doc(alias = "virtio_iommu_probe_resv_mem")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ResvMem {
    /// [`PROPERTY_T_RESV_MEM`].
    pub kind: U16,
    /// Bytes after the first four.
    pub length: U16,
    /// One of `RESV_MEM_T_*`.
    pub subtype: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// First IOVA.
    pub start: U64,
    /// Last IOVA.
    #[doc(alias = "end")]
    pub last: U64,
}

const _: () = assert!(size_of::<ResvMem>() == 24);
