// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The memory table, and guest memory as the device reaches it.
//!
//! Without `ACCESS_PLATFORM` the device's addresses are guest addresses. With it they are IOVAs; the IOTLB turns them
//! into the front-end's user addresses, which are keys into the same table.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::{Context, ensure};
use vhost_user_iommu::message::{FDS_MAX, MemoryRegion};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, IommuMemory, MmapRegion};

use super::tlb::{Tlb, Translator};
use super::wait::Stop;

/// Guest memory as the device reaches it.
pub(super) type DmaMemory = IommuMemory<GuestMemoryMmap, Translator>;

/// What the device's addresses are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Addressing {
    /// Guest addresses.
    Guest,
    /// IOVAs, translated by the IOTLB.
    Translated,
}

/// The regions that the front-end shares, mapped.
#[derive(Debug, Default)]
pub(super) struct MemoryTable {
    regions: Vec<(MemoryRegion, Arc<MmapRegion>)>,
}

impl MemoryTable {
    /// The table that `SET_MEM_TABLE` describes.
    pub(super) fn new(regions: &[MemoryRegion], fds: Vec<OwnedFd>) -> anyhow::Result<Self> {
        ensure!(regions.len() == fds.len(), "{} regions with {} files", regions.len(), fds.len());
        let mut table = Self::default();
        for (region, fd) in regions.iter().zip(fds) {
            table.add(*region, fd)?;
        }
        Ok(table)
    }

    /// Adds a region; the table is unchanged if it cannot be.
    pub(super) fn add(&mut self, region: MemoryRegion, fd: OwnedFd) -> anyhow::Result<()> {
        ensure!(self.regions.len() < FDS_MAX, "more than {FDS_MAX} regions");
        for start in [region.guest_address, region.user_address] {
            ensure!(start.checked_add(region.size).is_some(), "region wraps: {region:x?}");
        }
        let file = FileOffset::new(File::from(fd), region.mmap_offset);
        let size = usize::try_from(region.size)?;
        let mapping = MmapRegion::from_file(file, size).with_context(|| format!("cannot map {region:x?}"))?;
        self.regions.push((region, Arc::new(mapping)));
        Ok(())
    }

    /// Removes a region.
    pub(super) fn remove(&mut self, region: &MemoryRegion) -> anyhow::Result<()> {
        let key = |region: &MemoryRegion| (region.guest_address, region.user_address, region.size);
        let index = self.regions.iter().position(|(known, _)| key(known) == key(region));
        self.regions.remove(index.with_context(|| format!("no such region: {region:x?}"))?);
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// Whether `size` bytes of the front-end's address space, from `user_address`, lie within one region.
    pub(super) fn holds(&self, user_address: u64, size: u64) -> bool {
        self.region_of(user_address)
            .is_some_and(|region| size <= region.size - (user_address - region.user_address))
    }

    /// The guest address of one of the front-end's addresses.
    pub(super) fn guest_address(&self, user_address: u64) -> Option<u64> {
        let region = self.region_of(user_address)?;
        Some(region.guest_address + (user_address - region.user_address))
    }

    /// Guest memory as the device reaches it; misses wait for their answer until `cancel` is signalled.
    pub(super) fn dma(
        &self,
        addressing: Addressing,
        tlb: &Arc<Tlb>,
        cancel: &Arc<Stop>,
    ) -> anyhow::Result<DmaMemory> {
        let base = |region: &MemoryRegion| match addressing {
            Addressing::Guest => region.guest_address,
            Addressing::Translated => region.user_address,
        };
        let mut regions = self.regions.clone();
        regions.sort_by_key(|(region, _)| base(region));
        let regions = regions.into_iter().map(|(region, mapping)| {
            let base = GuestAddress(base(&region));
            GuestRegionMmap::with_arc(mapping, base).with_context(|| format!("region wraps: {region:x?}"))
        });
        let memory = GuestMemoryMmap::from_regions(regions.collect::<anyhow::Result<_>>()?)?;
        let translator = Translator::new(tlb.clone(), cancel.clone());
        Ok(DmaMemory::new(memory, translator, addressing == Addressing::Translated, ()))
    }

    fn region_of(&self, user_address: u64) -> Option<&MemoryRegion> {
        let holds = |region: &&MemoryRegion| {
            user_address.checked_sub(region.user_address).is_some_and(|offset| offset < region.size)
        };
        self.regions.iter().map(|(region, _)| region).find(holds)
    }
}
