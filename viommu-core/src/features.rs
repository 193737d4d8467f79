// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device's feature bits: which exist, and which this device offers.

use bitflags::bitflags;

bitflags! {
    /// Feature bits of a virtio-iommu, `VIRTIO_IOMMU_F_*`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Features: u64 {
        /// `input_range` in the configuration space is valid.
        const INPUT_RANGE = 1 << 0;
        /// `domain_range` in the configuration space is valid.
        const DOMAIN_RANGE = 1 << 1;
        /// MAP and UNMAP requests exist.
        const MAP_UNMAP = 1 << 2;
        /// The legacy form of bypass, which this device never offers.
        const BYPASS = 1 << 3;
        /// PROBE requests exist.
        const PROBE = 1 << 4;
        /// MAP takes the MMIO flag.
        const MMIO = 1 << 5;
        /// `bypass` in the configuration space, and bypass domains.
        const BYPASS_CONFIG = 1 << 6;
    }
}

impl Features {
    //= virtio#devicenormative:IOMMU/Feature bits A1 A2 A3
    // Requests that change mappings are offered; of the two forms of bypass only the newer one.
    /// What this device offers.
    pub const OFFERED: Features = Features::INPUT_RANGE
        .union(Features::DOMAIN_RANGE)
        .union(Features::MAP_UNMAP)
        .union(Features::PROBE)
        .union(Features::MMIO)
        .union(Features::BYPASS_CONFIG);
}
