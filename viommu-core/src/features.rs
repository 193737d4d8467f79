// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device's feature bits: which exist, and which this device offers.

use core::ops::RangeInclusive;

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
        /// ATTACH_TABLE, INVALIDATE and PAGE_RESP requests exist, see [`manual::tables`](crate::manual::tables). Here it is
        /// always this bit; a driver sees the one that [`Mode::Table`] names.
        const ATTACH_TABLE = 1 << 7;
    }
}

impl Features {
    //= virtio#devicenormative:IOMMU/Feature bits A1 A2 A3
    // Requests that change mappings are offered; of the two forms of bypass only the newer one.
    /// What this device offers in map mode.
    pub const OFFERED: Features = Features::INPUT_RANGE
        .union(Features::DOMAIN_RANGE)
        .union(Features::MAP_UNMAP)
        .union(Features::PROBE)
        .union(Features::MMIO)
        .union(Features::BYPASS_CONFIG);
}

/// What domains are made of. The known drivers refuse a device that is not of their own kind, so it is of one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Of mappings, which MAP and UNMAP requests change: virtio 1.4.
    #[default]
    Map,
    /// Of tables in the guest's memory, which hardware walks.
    Table {
        /// The number of the feature bit, one of [`Mode::FEATURE_BITS`].
        feature_bit: u8,
    },
}

impl Mode {
    /// The numbers that the feature bit of table mode can have: those of the device type that virtio 1.4 leaves free.
    pub const FEATURE_BITS: RangeInclusive<u8> = 7..=23;
    /// Its usual number.
    pub const FEATURE_BIT: u8 = 7;

    /// Whether it is [`Mode::Table`].
    pub const fn is_table(self) -> bool {
        matches!(self, Mode::Table { .. })
    }

    /// What a device of this mode offers.
    pub fn offered(self) -> Features {
        match self {
            Mode::Map => Features::OFFERED,
            //= tables#Feature bit T2
            // Whoever sees both takes the device for one of mappings.
            Mode::Table { .. } => {
                let mappings = Features::MAP_UNMAP.union(Features::MMIO);
                Features::OFFERED.difference(mappings).union(Features::ATTACH_TABLE)
            }
        }
    }

    /// The feature bits that a driver sees, without those of the transport.
    pub fn offered_bits(self) -> u64 {
        let offered = self.offered();
        let fixed = offered.difference(Features::ATTACH_TABLE).bits();
        if offered.contains(Features::ATTACH_TABLE) { fixed | self.table_bit() } else { fixed }
    }

    /// What a driver accepted, from the bits as it sees them.
    pub(crate) fn accepted(self, bits: u64) -> Features {
        //= tables#Feature bit T1
        // The number is an option, since other drafts have given this one away.
        let fixed = Features::from_bits_truncate(bits).difference(Features::ATTACH_TABLE);
        let table = if bits & self.table_bit() != 0 { Features::ATTACH_TABLE } else { Features::empty() };
        (fixed | table) & self.offered()
    }

    fn table_bit(self) -> u64 {
        match self {
            Mode::Map => 0,
            Mode::Table { feature_bit } => 1u64.wrapping_shl(feature_bit.into()),
        }
    }
}
