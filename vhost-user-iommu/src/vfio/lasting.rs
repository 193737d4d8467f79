// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory that stays mapped in this process to its end, since the kernel has been given its address.
//!
//! Only a host whose kernel does not map files for devices, or not such files, needs any.

use std::os::unix::fs::MetadataExt;
use std::sync::Mutex;

use viommu_core::IovaRange;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, VolatileSlice};

use crate::sync::lock;

/// The regions that stay.
#[derive(Debug, Default)]
pub struct LastingMemory(Mutex<Vec<&'static GuestRegionMmap>>);

impl LastingMemory {
    /// The region of `memory` at these GPAs. One that came before, of the same part of the same file, serves again: a
    /// guest can have its VMM take memory away and bring it back as often as it likes.
    pub fn of(&self, memory: &GuestMemoryMmap, range: &IovaRange) -> Option<VolatileSlice<'static>> {
        let wanted = memory.iter().find(|region| region.start_addr().0 == range.start())?;
        let mut regions = lock(&self.0);
        if let Some(known) = regions.iter().find(|known| is_same(known, wanted)) {
            return known.as_volatile_slice().ok();
        }
        let (_, region) = memory.remove_region(wanted.start_addr(), wanted.len()).ok()?;
        let region: &'static GuestRegionMmap = Box::leak(Box::new(region));
        regions.push(region);
        region.as_volatile_slice().ok()
    }
}

/// Whether both are the same part of the same file, and so the same memory.
fn is_same(one: &GuestRegionMmap, other: &GuestRegionMmap) -> bool {
    let part = |region: &GuestRegionMmap| {
        let place = region.file_offset()?;
        let file = place.file().metadata().ok()?;
        Some((file.dev(), file.ino(), place.start(), region.len()))
    };
    part(one).is_some_and(|one| part(other) == Some(one))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use vm_memory::{Bytes, FileOffset, GuestAddress};

    use super::*;

    fn memory(file: &File, start: u64) -> GuestMemoryMmap {
        let place = Some(FileOffset::new(file.try_clone().expect("a duplicate"), start));
        let region = GuestRegionMmap::from_range(GuestAddress(0x1000), 0x1000, place).expect("it maps");
        GuestMemoryMmap::from_regions(vec![region]).expect("memory")
    }

    #[test]
    fn memory_that_comes_again_is_not_kept_twice() {
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).expect("a file");
        ftruncate(&file, 0x2000).expect("its size");
        let (file, lasting) = (File::from(file), LastingMemory::default());
        let range = IovaRange::new(0x1000, 0x1fff).expect("a range");
        let first = lasting.of(&memory(&file, 0), &range).expect("the region");
        let again = lasting.of(&memory(&file, 0), &range).expect("the region");
        let other = lasting.of(&memory(&file, 0x1000), &range).expect("the region");
        assert_eq!(lock(&lasting.0).len(), 2);
        first.write_obj(7u8, 0).expect("in range");
        assert_eq!(again.read_obj::<u8>(0).expect("in range"), 7);
        assert_eq!(other.read_obj::<u8>(0).expect("in range"), 0);
        assert!(lasting.of(&memory(&file, 0), &IovaRange::new(0, 0xfff).expect("a range")).is_none());
    }
}
