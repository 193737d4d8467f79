// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a device is made with: its address range, its page sizes, its limits, its endpoints.

use alloc::vec::Vec;
use core::ops::RangeInclusive;

use thiserror::Error;

use crate::mapping::Mappings;
use crate::{EndpointId, Granule, IovaRange, Mode};

/// How much a guest can make the device hold. Over a limit a request is refused with `NOMEM`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Domains that exist at once, each about 200 bytes.
    pub domains_max: usize,
    /// Mappings that exist at once in all domains together.
    pub mappings_max: usize,
    /// Bytes of memory for the mappings of all domains together, at most 1 GiB: about 12 for a mapping among
    /// neighbours, 80 in the worst arrangement, 3000 for a domain. While the mappings of a domain
    /// move to memory of their own size, it is needed once more for a moment. Near the limit a MAP is refused unless the
    /// most that it can take is free, and memory is free when few of the mappings of a neighbourhood are left: a guest
    /// that was refused may have to unmap many first.
    pub mapping_bytes_max: usize,
    /// Faults that wait for the driver, each about 64 bytes; more are dropped and counted.
    pub faults_max: usize,
    /// PASIDs that have a table, of all endpoints together, each about 200 bytes; only in table mode.
    pub pasids_max: usize,
    /// Pages that endpoints have asked for in vain so far, all together, each about 128 bytes; only in table mode.
    pub page_requests_max: usize,
}

impl Default for Limits {
    /// About 100 MiB if a guest uses all of it.
    fn default() -> Limits {
        Limits {
            domains_max: 4096,
            mappings_max: 1 << 20,
            mapping_bytes_max: 96 << 20,
            faults_max: 256,
            pasids_max: 4096,
            page_requests_max: 1024,
        }
    }
}

/// The fixed properties of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceConfig {
    /// What domains are made of.
    pub mode: Mode,
    /// Page sizes, one bit each; the lowest is the granule, the others are hints to the driver.
    pub page_size_mask: u64,
    /// The IOVAs that can be mapped, `input_range`. Begins and ends on the granule.
    pub aperture: IovaRange,
    /// The ids that domains can have, `domain_range`.
    pub domain_ids: RangeInclusive<u32>,
    /// Whether unattached endpoints bypass until a driver says otherwise.
    pub boot_bypass: bool,
    /// How much a guest can make the device hold.
    pub limits: Limits,
    /// The endpoints behind the device.
    pub endpoints: Vec<EndpointId>,
}

/// A device that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// No page size at all.
    #[error("the page size mask is empty")]
    NoPageSize,
    /// A granule of so few bytes.
    #[error(
        "the granule of {0} bytes is too small: the lowest bit of the page size mask must be 0x1000 or higher"
    )]
    SmallGranule(u64),
    /// The aperture cuts through a granule.
    #[error("the aperture {0} does not begin and end on the granule of {1:#x} bytes")]
    Aperture(IovaRange, u64),
    /// A limit beyond what a domain can hold.
    #[error("the limit of {0} bytes for mappings is too high: at most 1073741824 can be used")]
    MappingBytes(usize),
    /// No domain id at all.
    #[error("the range of domain ids is empty")]
    NoDomainId,
    /// A feature bit that virtio uses otherwise.
    #[error("feature bit {0} cannot be that of tables: it must be one of 7 to 23")]
    FeatureBit(u8),
    /// Two endpoints of one id.
    #[error("{0} is given twice")]
    EndpointTwice(EndpointId),
}

impl DeviceConfig {
    /// The granule, if the configuration can be served at all.
    pub(crate) fn check(&self) -> Result<Granule, ConfigError> {
        //= virtio#devicenormative:IOMMU/Device configuration layout A4a
        // A mask without a bit has no granule.
        let granule = Granule::of_mask(self.page_size_mask).ok_or(ConfigError::NoPageSize)?;
        if granule.bytes() < Granule::SMALLEST {
            return Err(ConfigError::SmallGranule(granule.bytes()));
        }
        if !granule.is_start(self.aperture.start()) || !granule.is_last(self.aperture.last()) {
            return Err(ConfigError::Aperture(self.aperture, granule.bytes()));
        }
        if self.limits.mapping_bytes_max > Mappings::BYTES_LIMIT {
            return Err(ConfigError::MappingBytes(self.limits.mapping_bytes_max));
        }
        if self.domain_ids.is_empty() {
            return Err(ConfigError::NoDomainId);
        }
        if let Mode::Table { feature_bit } = self.mode
            && !Mode::FEATURE_BITS.contains(&feature_bit)
        {
            return Err(ConfigError::FeatureBit(feature_bit));
        }
        Ok(granule)
    }
}
