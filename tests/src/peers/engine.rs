// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Our engine, in the steps that the device takes for a MAP and an UNMAP.

use viommu_core::mapping::{Mapping, Mappings, Reader};
use viommu_core::{Access, Gpa, Granule, IovaRange};

use super::{Lookup, PAGE, Shared, Store, translated};

/// [`Mappings`] of a granule of [`PAGE`].
#[derive(Debug)]
pub struct Engine {
    mappings: Mappings,
}

/// What another thread looks into an [`Engine`] with.
#[derive(Clone, Debug)]
pub struct EngineReader(Reader);

impl Default for Engine {
    fn default() -> Engine {
        Engine { mappings: Mappings::new(Granule::of_mask(PAGE).expect("a page is a granule")) }
    }
}

impl Engine {
    /// What the engine says that it holds, in bytes.
    pub fn bytes(&self) -> usize {
        self.mappings.bytes()
    }
}

impl Lookup for Engine {
    #[inline]
    fn lookup(&mut self, iova: u64, length: u64, access: Access) -> Option<Gpa> {
        translated(self.mappings.find(iova)?, iova, length, access)
    }
}

impl Lookup for EngineReader {
    #[inline]
    fn lookup(&mut self, iova: u64, length: u64, access: Access) -> Option<Gpa> {
        translated(self.0.find(iova)?, iova, length, access)
    }
}

impl Store for Engine {
    #[inline]
    fn map(&mut self, mapping: Mapping) -> bool {
        let free = !self.mappings.overlaps(&mapping.range);
        if free {
            self.mappings.insert(mapping);
        }
        free
    }

    #[inline]
    fn unmap(&mut self, range: &IovaRange) -> Option<usize> {
        let any = self.mappings.any_within(range).ok()?;
        Some(if any { self.mappings.remove_within(range) } else { 0 })
    }
}

impl Shared for Engine {
    type Writer = Engine;
    type Reader = EngineReader;

    fn share<T>(&mut self, work: impl FnOnce(&mut Engine, &mut EngineReader) -> T) -> T {
        let mut reader = EngineReader(self.mappings.reader());
        work(self, &mut reader)
    }

    fn replay(&self, each: impl FnMut(Mapping)) {
        self.mappings.iter().for_each(each);
    }
}
