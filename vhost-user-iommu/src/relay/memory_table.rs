// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The memory table that the VMM gave: which GPA is which address of the VMM.
//!
//! The VMM's addresses are keys that the back-end knows too; nothing here, or anywhere in this process, follows
//! them.

use thiserror::Error;
use viommu_core::{Extent, Gpa, IovaRange};

use crate::message::MemoryRegion;

/// Regions by GPA.
#[derive(Clone, Debug, Default)]
pub struct MemoryTable {
    regions: Vec<MemoryRegion>,
}

/// A region that cannot be, or one too many.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BadRegion {
    /// It is empty or runs past the end of an address space.
    #[error("memory region at {gpa:#x} of {size:#x} bytes is empty or passes the end of the address space")]
    Bounds {
        /// Where it begins.
        gpa: u64,
        /// Bytes.
        size: u64,
    },
    /// The VMM adds ever more.
    #[error("more than {REGIONS_MAX} memory regions")]
    TooMany,
}

/// What one IOTLB update says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The IOVAs.
    pub range: IovaRange,
    /// The VMM's address of the first.
    pub user_address: u64,
}

/// As many as `vhost-user-backend` and the kernel's vhost take.
const REGIONS_MAX: usize = 509;

impl MemoryTable {
    /// A whole table.
    ///
    /// # Errors
    /// A region that cannot be.
    pub fn new(regions: Vec<MemoryRegion>) -> Result<MemoryTable, BadRegion> {
        regions.iter().try_for_each(check)?;
        Ok(MemoryTable { regions })
    }

    /// Adds a region.
    ///
    /// # Errors
    /// A region that cannot be, or one too many.
    pub fn add(&mut self, region: MemoryRegion) -> Result<(), BadRegion> {
        check(&region)?;
        if self.regions.len() >= REGIONS_MAX {
            return Err(BadRegion::TooMany);
        }
        self.regions.push(region);
        Ok(())
    }

    /// Removes the region of the same place and size, if there is one.
    pub fn remove(&mut self, region: &MemoryRegion) {
        let same = |other: &MemoryRegion| {
            (other.guest_address, other.user_address, other.size)
                == (region.guest_address, region.user_address, region.size)
        };
        self.regions.retain(|other| !same(other));
    }

    /// The GPA that the VMM calls `user_address`.
    pub fn gpa_of(&self, user_address: u64) -> Option<Gpa> {
        self.regions.iter().find_map(|region| {
            let offset =
                user_address.checked_sub(region.user_address).filter(|offset| *offset < region.size)?;
            Some(Gpa(region.guest_address + offset))
        })
    }

    /// Where the part of `extent` around `iova` that lies in one region is; nothing when no memory is there.
    pub fn place(&self, extent: &Extent, iova: u64) -> Option<Placed> {
        let into_extent = iova.checked_sub(extent.range.start())?;
        let gpa = extent.gpa.0.checked_add(into_extent)?;
        self.regions.iter().find_map(|region| {
            let into_region = gpa.checked_sub(region.guest_address).filter(|offset| *offset < region.size)?;
            let before = into_extent.min(into_region);
            let after = (extent.range.last() - iova).min(region.size - 1 - into_region);
            Some(Placed {
                range: IovaRange::new(iova - before, iova + after)?,
                user_address: region.user_address + (into_region - before),
            })
        })
    }
}

/// After this an offset within the region can be added to either address.
fn check(region: &MemoryRegion) -> Result<(), BadRegion> {
    let fits = |start| IovaRange::from_length(start, region.size).is_some();
    if fits(region.guest_address) && fits(region.user_address) {
        return Ok(());
    }
    Err(BadRegion::Bounds { gpa: region.guest_address, size: region.size })
}

#[cfg(test)]
mod tests {
    use viommu_core::Access;

    use super::*;

    fn region(guest_address: u64, size: u64, user_address: u64) -> MemoryRegion {
        MemoryRegion { guest_address, size, user_address, mmap_offset: 0 }
    }

    fn table() -> MemoryTable {
        let regions = vec![region(0, 0xa_0000, 0x7000_0000), region(0x10_0000, 0x10_0000, 0x7010_0000)];
        MemoryTable::new(regions).expect("fine regions")
    }

    fn extent(start: u64, last: u64, gpa: u64) -> Extent {
        let range = IovaRange::new(start, last).expect("start <= last");
        Extent { range, gpa: Gpa(gpa), access: Access::all() }
    }

    #[test]
    fn a_users_address_leads_back_to_its_gpa_and_one_outside_to_nothing() {
        assert_eq!(table().gpa_of(0x7010_0123), Some(Gpa(0x10_0123)));
        assert_eq!(table().gpa_of(0x700a_0000), None);
        assert_eq!(table().gpa_of(0x6fff_ffff), None);
    }

    #[test]
    fn an_extent_is_placed_as_far_as_one_region_goes() {
        // The whole space untranslated: cut to the region.
        let placed = table().place(&Extent::IDENTITY, 0x10_5000).expect("memory is there");
        assert_eq!((placed.range.start(), placed.range.last()), (0x10_0000, 0x1f_ffff));
        assert_eq!(placed.user_address, 0x7010_0000);
        // A mapping within a region: all of it.
        let placed = table().place(&extent(0x5000, 0x6fff, 0x18_0000), 0x6fff).expect("memory is there");
        assert_eq!((placed.range.start(), placed.range.last()), (0x5000, 0x6fff));
        assert_eq!(placed.user_address, 0x7018_0000);
        // A mapping that begins in a hole.
        let placed = table().place(&extent(0x5000, 0x14fff, 0xf_8000), 0xe000).expect("memory is there");
        assert_eq!((placed.range.start(), placed.range.last()), (0xd000, 0x1_4fff));
        assert_eq!(table().place(&extent(0x5000, 0x14fff, 0xf_8000), 0x6000), None);
    }

    #[test]
    fn a_region_that_passes_the_end_of_a_space_is_refused() {
        assert!(MemoryTable::new(vec![region(u64::MAX, 2, 0)]).is_err());
        assert!(MemoryTable::new(vec![region(0, 2, u64::MAX)]).is_err());
        assert!(MemoryTable::new(vec![region(0, 0, 0)]).is_err());
        let top = MemoryTable::new(vec![region(u64::MAX, 1, 7)]).expect("one byte fits");
        assert_eq!(top.place(&Extent::IDENTITY, u64::MAX).map(|placed| placed.user_address), Some(7));
    }

    #[test]
    fn regions_can_be_added_and_removed_one_by_one() {
        let mut table = table();
        let extra = region(0x1_0000_0000, 0x1000, 0x9000_0000);
        table.add(extra).expect("room for one more");
        assert_eq!(table.gpa_of(0x9000_0000), Some(Gpa(0x1_0000_0000)));
        table.remove(&extra);
        assert_eq!(table.gpa_of(0x9000_0000), None);
    }
}
