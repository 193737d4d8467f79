// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! std's `BTreeMap` by first IOVA, used as well as it can be: small entries, no scan, and one descent less where a
//! range is exactly one mapping. Other threads share it behind the lock that VMMs have around theirs.

use std::collections::BTreeMap;
use std::mem;
use std::sync::{Arc, PoisonError, RwLock};

use viommu_core::mapping::Mapping;
use viommu_core::{Access, Gpa, IovaRange, Target};

use super::{Lookup, PAGE, Shared, Store, translated};

/// Last IOVA and packed target by first IOVA.
#[derive(Debug, Default)]
pub struct Ordered {
    by_start: BTreeMap<u64, (u64, u64)>,
}

/// An [`Ordered`] that threads share.
#[derive(Clone, Debug)]
pub struct Locked(Arc<RwLock<Ordered>>);

impl Ordered {
    /// The last mapping that begins at or before `iova`.
    #[inline]
    fn last_from(&self, iova: u64) -> Option<Mapping> {
        self.by_start.range(..=iova).next_back().and_then(unpacked)
    }

    #[inline]
    fn find(&self, iova: u64, length: u64, access: Access) -> Option<Gpa> {
        let mapping = self.last_from(iova).filter(|mapping| mapping.range.contains(iova))?;
        translated(mapping, iova, length, access)
    }
}

impl Lookup for Ordered {
    #[inline]
    fn lookup(&mut self, iova: u64, length: u64, access: Access) -> Option<Gpa> {
        self.find(iova, length, access)
    }
}

impl Store for Ordered {
    #[inline]
    fn map(&mut self, mapping: Mapping) -> bool {
        let range = mapping.range;
        let free = self.last_from(range.last()).is_none_or(|before| !before.range.overlaps(&range));
        if free {
            self.by_start.insert(range.start(), (range.last(), packed(&mapping.target)));
        }
        free
    }

    #[inline]
    fn unmap(&mut self, range: &IovaRange) -> Option<usize> {
        let Some(top) = self.last_from(range.last()).filter(|top| top.range.overlaps(range)) else {
            return Some(0);
        };
        if top.range == *range {
            return Some(usize::from(self.by_start.remove(&range.start()).is_some()));
        }
        let bottom = self.last_from(range.start()).filter(|bottom| bottom.range.overlaps(range));
        if [Some(top), bottom].into_iter().flatten().any(|edge| !range.covers(&edge.range)) {
            return None;
        }
        Some(self.by_start.extract_if(range.start()..=range.last(), |_, _| true).count())
    }
}

impl Lookup for Locked {
    #[inline]
    fn lookup(&mut self, iova: u64, length: u64, access: Access) -> Option<Gpa> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).find(iova, length, access)
    }
}

impl Store for Locked {
    #[inline]
    fn map(&mut self, mapping: Mapping) -> bool {
        self.0.write().unwrap_or_else(PoisonError::into_inner).map(mapping)
    }

    #[inline]
    fn unmap(&mut self, range: &IovaRange) -> Option<usize> {
        self.0.write().unwrap_or_else(PoisonError::into_inner).unmap(range)
    }
}

impl Shared for Ordered {
    type Writer = Locked;
    type Reader = Locked;

    fn share<T>(&mut self, work: impl FnOnce(&mut Locked, &mut Locked) -> T) -> T {
        let mut writer = Locked(Arc::new(RwLock::new(mem::take(self))));
        let mut reader = writer.clone();
        let outcome = work(&mut writer, &mut reader);
        mem::swap(self, &mut writer.0.write().unwrap_or_else(PoisonError::into_inner));
        outcome
    }

    fn replay(&self, each: impl FnMut(Mapping)) {
        self.by_start.iter().filter_map(unpacked).for_each(each);
    }
}

/// The target in a word: its rights have room below the granule.
#[inline]
fn packed(target: &Target) -> u64 {
    target.gpa.0 | u64::from(target.access.bits()) | if target.mmio { MMIO } else { 0 }
}

#[inline]
fn unpacked((start, (last, target)): (&u64, &(u64, u64))) -> Option<Mapping> {
    let gpa = Gpa(target & !(PAGE - 1));
    let target = Target { gpa, access: Access::from_bits_truncate(*target as u32), mmio: target & MMIO != 0 };
    Some(Mapping { range: IovaRange::new(*start, *last)?, target })
}

const MMIO: u64 = 1 << 11;
