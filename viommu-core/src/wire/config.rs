// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The configuration space.

use core::mem::{offset_of, size_of};

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The device's configuration space, 40 bytes.
#[doc(alias = "virtio_iommu_config")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Config {
    /// Page sizes the device handles well; the lowest bit is the granule.
    pub page_size_mask: U64,
    /// First IOVA that can be mapped.
    pub input_start: U64,
    /// Last IOVA that can be mapped.
    pub input_last: U64,
    /// First domain id.
    pub domain_start: U32,
    /// Last domain id.
    pub domain_last: U32,
    /// Bytes of properties in a PROBE reply.
    pub probe_size: U32,
    /// 1 when unattached endpoints reach guest memory untranslated; the only field a driver may write.
    pub bypass: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// Where `bypass` lies in the configuration space.
pub const BYPASS_OFFSET: usize = offset_of!(Config, bypass);

const _: () = assert!(size_of::<Config>() == 40 && BYPASS_OFFSET == 36);
