// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest memory that a ring uses: what the VMM gave last, once it has been looked at.
//!
//! The crate puts a new memory table in place before the back-end can refuse it, while the worker may be at a ring. An
//! access beyond the end of a region's file would end the process. So a ring goes on with the memory that it had until
//! it has seen that the new one is all there. Refusing a table is the back-end's matter.

use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use vm_memory::{
    GuestAddressSpace, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryLoadGuard, GuestMemoryMmap,
    GuestMemoryRegion, GuestRegionMmap,
};

use crate::sync::lock;

/// Guest memory as the crate shares it.
pub type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// The memory of one ring; clones share it.
#[derive(Clone, Debug)]
pub struct RingMemory {
    /// What the VMM gave last.
    given: Memory,
    /// What the ring uses.
    used: Memory,
    /// The last of the former that has been looked at.
    seen: Arc<Mutex<Arc<GuestMemoryMmap>>>,
}

impl RingMemory {
    /// For a ring in whatever comes to be in `given`.
    pub fn new(given: Memory) -> RingMemory {
        let nothing = GuestMemoryMmap::new();
        let seen = Arc::new(Mutex::new(Arc::new(nothing.clone())));
        RingMemory { given, used: Memory::new(nothing), seen }
    }

    /// What the ring uses, as the crate's queue wants it.
    pub fn used(&self) -> Memory {
        self.used.clone()
    }

    /// What the ring uses, from what the VMM gave last if that is all there.
    pub fn latest(&self) -> GuestMemoryLoadGuard<GuestMemoryMmap> {
        let given = self.given.memory();
        let mut seen = lock(&self.seen);
        if !ptr::eq(&*given, &**seen) {
            *seen = given.into_inner();
            if seen.iter().all(is_backed) {
                let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
                used.replace(GuestMemoryMmap::clone(&seen));
            }
        }
        self.used.memory()
    }
}

/// Whether all of the region lies in its file.
pub fn is_backed(region: &GuestRegionMmap) -> bool {
    region.file_offset().is_none_or(|place| {
        let end = place.start().checked_add(region.len());
        // What is no regular file, a device for example, does not tell its size.
        place.file().metadata().is_ok_and(|file| !file.is_file() || end.is_some_and(|end| end <= file.len()))
    })
}
