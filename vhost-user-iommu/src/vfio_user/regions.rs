// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The memory that the VMM gave for this device by DMA_MAP, at guest-physical addresses.
//!
//! It is what the device can reach at most, and what the relay itself copies from and to for a server that asks by
//! DMA_READ and DMA_WRITE. The memory table of the IOMMU's own session is not used for that: QEMU gives that one when
//! the guest's driver starts the IOMMU, and firmware has read its disk by then.
//!
//! Read first: "VFIO_USER_DMA_MAP" in `vfio-user.rst`.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;
use viommu_core::{Access, IovaRange};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

use super::message::{DmaMap, DmaUnmap};

/// Regions at most; QEMU has about ten, and some for each device with memory of its own.
pub const REGIONS_MAX: usize = 1024;

/// A region.
#[derive(Debug)]
pub struct Region {
    /// Its GPAs.
    pub range: IovaRange,
    /// What the device may do.
    pub access: Access,
    /// The file with the memory and where in it the region begins; QEMU gives none for ROM.
    pub file: Option<(Arc<OwnedFd>, u64)>,
    /// The same, where this process can reach it.
    memory: Option<MmapRegion>,
}

/// Regions by their first GPA; none overlaps another.
#[derive(Debug, Default)]
pub struct Regions {
    regions: BTreeMap<u64, Region>,
}

impl Regions {
    /// Takes a region.
    ///
    /// # Errors
    /// What the VMM is told of one that cannot be.
    pub fn add(&mut self, map: &DmaMap, fds: Vec<OwnedFd>) -> Result<(), Errno> {
        let range = IovaRange::from_length(map.address, map.size).ok_or(Errno::INVAL)?;
        let access = access_of(map.flags).ok_or(Errno::INVAL)?;
        if self.parts(range).next().is_some() {
            return Err(Errno::EXIST);
        }
        if self.regions.len() >= REGIONS_MAX {
            return Err(Errno::NOSPC);
        }
        let file = match <[OwnedFd; 1]>::try_from(fds) {
            Ok([fd]) => Some(fd),
            Err(fds) if fds.is_empty() => None,
            Err(_) => return Err(Errno::INVAL),
        };
        let memory = file.as_ref().map(|fd| mapped(fd, map.offset, map.size)).transpose()?.flatten();
        let file = file.map(|fd| (Arc::new(fd), map.offset));
        self.regions.insert(range.start(), Region { range, access, file, memory });
        Ok(())
    }

    /// Lets go of a region, or of all.
    ///
    /// # Errors
    /// What the VMM is told of one that is not there.
    pub fn remove(&mut self, unmap: &DmaUnmap) -> Result<(), Errno> {
        if unmap.flags & DmaUnmap::ALL != 0 {
            self.regions.clear();
            return Ok(());
        }
        let range = IovaRange::from_length(unmap.address, unmap.size).ok_or(Errno::INVAL)?;
        if self.regions.get(&range.start()).is_none_or(|region| region.range != range) {
            return Err(Errno::NOENT);
        }
        self.regions.remove(&range.start());
        Ok(())
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Region> {
        self.regions.values()
    }

    /// What of `range` lies in regions: the GPAs, in ascending order, and the region.
    pub fn parts(&self, range: IovaRange) -> impl Iterator<Item = (IovaRange, &Region)> {
        let before = self.regions.range(..range.start()).next_back();
        let within = self.regions.range(range.start()..=range.last());
        before.into_iter().chain(within).filter_map(move |(_, region)| {
            let start = region.range.start().max(range.start());
            let last = region.range.last().min(range.last());
            Some((IovaRange::new(start, last)?, region))
        })
    }

    /// Memory at these GPAs, if all of it lies in one region that this process can reach and that allows `access`.
    pub fn slice(&self, range: IovaRange, access: Access) -> Option<VolatileSlice<'_>> {
        let (part, region) = self.parts(range).next()?;
        let is_whole = part == range && region.access.contains(access);
        let offset = usize::try_from(range.start().checked_sub(region.range.start())?).ok()?;
        let length = usize::try_from(range.span().checked_add(1)?).ok()?;
        region.memory.as_ref().filter(|_| is_whole)?.get_slice(offset, length).ok()
    }
}

impl Region {
    /// The file, and where a GPA of the region lies in it.
    pub fn place(&self, gpa: u64) -> Option<(Arc<OwnedFd>, u64)> {
        let (file, offset) = self.file.as_ref()?;
        Some((file.clone(), offset + (gpa - self.range.start())))
    }
}

fn access_of(flags: u32) -> Option<Access> {
    if flags & !(DmaMap::READ | DmaMap::WRITE) != 0 {
        return None;
    }
    let of = |flag, access| if flags & flag != 0 { access } else { Access::empty() };
    Some(of(DmaMap::READ, Access::READ) | of(DmaMap::WRITE, Access::WRITE))
}

/// Memory of a file, all of which has to be there: an access beyond its end would end this process. Nothing for a file
/// that this process cannot have, be it that it may only be read.
fn mapped(fd: &OwnedFd, offset: u64, size: u64) -> Result<Option<MmapRegion>, Errno> {
    let end = offset.checked_add(size).ok_or(Errno::INVAL)?;
    let length = usize::try_from(size).map_err(|_| Errno::INVAL)?;
    let file = File::from(fd.try_clone().map_err(|_| Errno::MFILE)?);
    let metadata = file.metadata().map_err(|_| Errno::INVAL)?;
    if metadata.is_file() && end > metadata.len() {
        return Err(Errno::INVAL);
    }
    Ok(MmapRegion::from_file(FileOffset::new(file, offset), length).ok())
}

#[cfg(test)]
pub mod tests {
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;

    /// A file of so many bytes.
    pub fn file(length: u64) -> OwnedFd {
        let file = memfd_create("memory", MemfdFlags::CLOEXEC).expect("memory");
        ftruncate(&file, length).expect("memory");
        file
    }

    /// A region to be read and written.
    pub fn map(address: u64, size: u64, offset: u64) -> DmaMap {
        DmaMap { argsz: 32, flags: 3, offset, address, size }
    }

    fn range(start: u64, last: u64) -> IovaRange {
        IovaRange::new(start, last).expect("start <= last")
    }

    #[test]
    fn regions_are_taken_once_and_given_back_as_they_were() {
        let mut regions = Regions::default();
        assert_eq!(regions.add(&map(0x1000, 0x2000, 0), vec![file(0x2000)]), Ok(()));
        for (map, error) in [
            (map(0x2000, 0x1000, 0), Errno::EXIST),
            (map(0, 0x1001, 0), Errno::EXIST),
            (map(0x8000, 0, 0), Errno::INVAL),
            (map(u64::MAX, 2, 0), Errno::INVAL),
            (map(0x8000, 0x2000, 0x1000), Errno::INVAL),
            (map(0x8000, 0x2000, u64::MAX), Errno::INVAL),
            (DmaMap { flags: 4, ..map(0x8000, 0x1000, 0) }, Errno::INVAL),
        ] {
            assert_eq!(regions.add(&map, vec![file(0x2000)]), Err(error), "{map:x?}");
        }
        assert_eq!(regions.add(&map(0x8000, 0x1000, 0), vec![file(0x1000), file(0x1000)]), Err(Errno::INVAL));
        let unmap = |address, size, flags| DmaUnmap { argsz: 24, flags, address, size };
        assert_eq!(regions.remove(&unmap(0x1000, 0x1000, 0)), Err(Errno::NOENT));
        assert_eq!(regions.remove(&unmap(0x1000, 0x2000, 0)), Ok(()));
        assert_eq!(regions.remove(&unmap(0x1000, 0x2000, 0)), Err(Errno::NOENT));
        assert_eq!(regions.add(&map(0x1000, 0x2000, 0), vec![]), Ok(()));
        assert_eq!((regions.remove(&unmap(0, 0, DmaUnmap::ALL)), regions.iter().count()), (Ok(()), 0));
    }

    #[test]
    fn there_is_a_limit() {
        let mut regions = Regions::default();
        for at in 0..REGIONS_MAX as u64 {
            assert_eq!(regions.add(&map(at << 12, 0x1000, 0), vec![]), Ok(()));
        }
        assert_eq!(regions.add(&map(u64::MAX - 0xfff, 0x1000, 0), vec![]), Err(Errno::NOSPC));
    }

    #[test]
    fn memory_is_reached_within_one_region_and_with_its_rights_alone() {
        let mut regions = Regions::default();
        regions.add(&map(0x1000, 0x1000, 0x1000), vec![file(0x2000)]).expect("a region");
        let read_only = DmaMap { flags: DmaMap::READ, ..map(0x2000, 0x1000, 0) };
        regions.add(&read_only, vec![file(0x1000)]).expect("a region");
        regions.add(&map(0x3000, 0x1000, 0), vec![]).expect("a region");
        for (start, last, access, is_reached) in [
            (0x1000, 0x1fff, Access::all(), true),
            (0x1fff, 0x2000, Access::READ, false),
            (0x2000, 0x2fff, Access::READ, true),
            (0x2000, 0x2000, Access::WRITE, false),
            (0x3000, 0x3000, Access::READ, false),
            (0xfff, 0x1000, Access::READ, false),
            (0x4000, 0x4000, Access::READ, false),
        ] {
            let slice = regions.slice(range(start, last), access);
            assert_eq!(slice.is_some(), is_reached, "{start:#x} {last:#x} {access:?}");
        }
        let parts: Vec<_> = regions.parts(range(0x1800, 0x27ff)).map(|(part, _)| part).collect();
        assert_eq!(parts, [range(0x1800, 0x1fff), range(0x2000, 0x27ff)]);
    }
}
