// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Fault events.

use core::mem::size_of;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Something else than the reasons below.
pub const FAULT_R_UNKNOWN: u8 = 0;
/// The endpoint is in no domain.
pub const FAULT_R_DOMAIN: u8 = 1;
/// No mapping, or one that forbids the access.
pub const FAULT_R_MAPPING: u8 = 2;
/// A table could not be read from memory.
pub const FAULT_R_WALK_EABT: u8 = 3;
/// An entry of a table could not be fetched, or is malformed.
pub const FAULT_R_PTE_FETCH: u8 = 4;
/// A mapping that forbids the access.
pub const FAULT_R_PERMISSION: u8 = 5;
/// The entry's access flag is not set, and hardware does not set it.
pub const FAULT_R_ACCESS: u8 = 6;
/// The address has more bits than the table translates.
pub const FAULT_R_OOR_ADDRESS: u8 = 7;
/// The descriptor of the table, or the PASID's entry, is bad.
pub const FAULT_R_TABLE: u8 = 8;
/// The access was a read.
pub const FAULT_F_READ: u32 = 1 << 0;
/// The access was a write.
pub const FAULT_F_WRITE: u32 = 1 << 1;
/// `address` is valid.
pub const FAULT_F_ADDRESS: u32 = 1 << 8;

/// A refused access, as the driver reads it from the event queue.
#[doc(alias = "virtio_iommu_fault")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Fault {
    /// One of `FAULT_R_*`.
    pub reason: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// Some of `FAULT_F_*`.
    pub flags: U32,
    /// The endpoint.
    pub endpoint: U32,
    /// Zero.
    pub reserved1: [u8; 4],
    /// The IOVA of the access.
    pub address: U64,
}

const _: () = assert!(size_of::<Fault>() == 24);
