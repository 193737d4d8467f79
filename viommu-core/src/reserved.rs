// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Reserved regions of an endpoint, and the properties that tell a driver of them.
//!
//! Where the regions come from (the machine's interrupt controller, holes in guest memory, the host's
//! IOMMU) is the daemon's matter. Read beside it: virtio 1.4, "IOMMU device / PROBE request / RESV_MEM".

use alloc::vec::Vec;

use thiserror::Error;
use zerocopy::IntoBytes;

use crate::{IovaRange, wire};

/// What a reserved region is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReservedKind {
    /// Not for DMA.
    Reserved,
    /// Message-signalled interrupts.
    Msi,
    /// The host's window for interrupts: the driver maps it to itself in every stage-1 table. Only for devices in table
    /// mode; other drivers do not know it.
    Identity,
}

/// IOVAs that a driver must not map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReservedRegion {
    /// The IOVAs.
    pub range: IovaRange,
    /// What for.
    pub kind: ReservedKind,
}

/// A list of regions that a device must not offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ReservedError {
    /// Two regions share a byte.
    #[error("reserved regions {0} and {1} overlap")]
    Overlap(IovaRange, IovaRange),
    /// More than one region for interrupts.
    #[error("more than one MSI region")]
    SecondMsi,
    /// More regions than a PROBE reply holds.
    #[error("{0} reserved regions, a PROBE reply holds {max}", max = REGIONS_MAX)]
    TooMany(usize),
}

/// Bytes of properties in a PROBE reply in map mode.
pub const PROBE_SIZE: usize = 512;

/// Bytes of properties in a PROBE reply in table mode: as many regions, and what is said of tables.
pub const TABLE_PROBE_SIZE: usize = 640;

const _: () = assert!(
    TABLE_PROBE_SIZE - PROBE_SIZE
        >= size_of::<wire::HwArmSmmu3>()
            + size_of::<wire::PropertyPasid>()
            + size_of::<wire::PropertyPageRequests>()
);

/// How many regions fit into the properties of one endpoint.
pub const REGIONS_MAX: usize = PROBE_SIZE / size_of::<wire::ResvMem>();

/// The regions of one endpoint, checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ReservedRegions(Vec<ReservedRegion>);

impl ReservedRegions {
    pub(crate) fn new(regions: &[ReservedRegion]) -> Result<ReservedRegions, ReservedError> {
        //= virtio#devicenormative:IOMMU/RESVMEM A49 A50
        // At most one MSI region, and no two regions that overlap.
        if regions.len() > REGIONS_MAX {
            return Err(ReservedError::TooMany(regions.len()));
        }
        if regions.iter().filter(|region| region.kind == ReservedKind::Msi).count() > 1 {
            return Err(ReservedError::SecondMsi);
        }
        let mut sorted = regions.to_vec();
        sorted.sort_by_key(|region| region.range.start());
        for (low, high) in sorted.iter().zip(sorted.iter().skip(1)) {
            if low.range.overlaps(&high.range) {
                return Err(ReservedError::Overlap(low.range, high.range));
            }
        }
        Ok(ReservedRegions(sorted))
    }

    pub(crate) fn overlap(&self, range: &IovaRange) -> bool {
        self.0.iter().any(|region| region.range.overlaps(range))
    }

    pub(crate) fn ranges(&self) -> impl Iterator<Item = IovaRange> {
        self.0.iter().map(|region| region.range)
    }

    /// The properties as the driver reads them, without the zeroes that follow.
    pub(crate) fn properties(&self) -> Vec<u8> {
        //= virtio#devicenormative:IOMMU/PROBE request A43 A44 A45
        // Each property follows the one before at once, its length without its header.
        const LENGTH: u16 = (size_of::<wire::ResvMem>() - wire::PROPERTY_HEADER_SIZE) as u16;
        let mut bytes = Vec::with_capacity(PROBE_SIZE);
        for region in &self.0 {
            let property = wire::ResvMem {
                kind: wire::PROPERTY_T_RESV_MEM.into(),
                length: LENGTH.into(),
                subtype: match region.kind {
                    ReservedKind::Reserved => wire::RESV_MEM_T_RESERVED,
                    ReservedKind::Msi => wire::RESV_MEM_T_MSI,
                    ReservedKind::Identity => wire::RESV_MEM_T_IDENTITY,
                },
                //= virtio#devicenormative:IOMMU/RESVMEM A48
                // It has no meaning yet.
                reserved: [0; 3],
                start: region.range.start().into(),
                last: region.range.last().into(),
            };
            bytes.extend_from_slice(property.as_bytes());
        }
        bytes
    }
}
