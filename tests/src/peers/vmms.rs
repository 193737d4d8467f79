// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `BTreeMap` in the ways of two VMMs: which searches and scans they make under which locks, without what else they
//! do for a request.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use viommu_core::mapping::Mapping;
use viommu_core::{Access, Gpa, IovaRange};

use super::{Lookup, Store};

/// The one endpoint and the one domain there are.
const ID: u32 = 1;

/// GPA and size by first IOVA.
type Sizes = BTreeMap<u64, (u64, u64)>;

/// cloud-hypervisor: endpoints and domains behind a lock each; no access rights; an UNMAP looks at every mapping twice,
/// once for what it would cut and once for what stays.
#[derive(Debug)]
pub struct CloudHypervisor {
    endpoints: RwLock<BTreeMap<u32, u32>>,
    domains: RwLock<BTreeMap<u32, Sizes>>,
}

impl Default for CloudHypervisor {
    fn default() -> CloudHypervisor {
        CloudHypervisor {
            endpoints: RwLock::new(BTreeMap::from([(ID, ID)])),
            domains: RwLock::new(BTreeMap::from([(ID, Sizes::new())])),
        }
    }
}

impl CloudHypervisor {
    fn read<T>(&self, look: impl FnOnce(&Sizes) -> Option<T>) -> Option<T> {
        look(self.domains.read().unwrap_or_else(PoisonError::into_inner).get(&ID)?)
    }

    fn write<T>(&self, change: impl FnOnce(&mut Sizes) -> T) -> Option<T> {
        self.domains.write().unwrap_or_else(PoisonError::into_inner).get_mut(&ID).map(change)
    }
}

impl Lookup for CloudHypervisor {
    fn lookup(&mut self, iova: u64, length: u64, _: Access) -> Option<Gpa> {
        let endpoints = self.endpoints.read().unwrap_or_else(PoisonError::into_inner);
        endpoints.get(&ID)?;
        self.read(|mappings| {
            let (start, (gpa, size)) = mappings.range(..=iova).next_back()?;
            // Goes on through neighbours that continue it in guest memory.
            let (mut end, mut gpa_end) = (start + size, gpa + size);
            for (next, (gpa, size)) in mappings.range(start + 1..) {
                if iova + length <= end || *next != end || *gpa != gpa_end {
                    break;
                }
                (end, gpa_end) = (end + size, gpa_end + size);
            }
            (iova + length <= end).then(|| Gpa(gpa + (iova - start)))
        })
    }
}

impl Store for CloudHypervisor {
    fn map(&mut self, mapping: Mapping) -> bool {
        let Mapping { range, target } = mapping;
        let below = self.read(|mappings| {
            let (start, (_, size)) = mappings.range(..=range.last()).next_back()?;
            IovaRange::from_length(*start, *size)
        });
        if below.is_some_and(|below| below.overlaps(&range)) {
            return false;
        }
        self.write(|mappings| mappings.insert(range.start(), (target.gpa.0, range.span() + 1)));
        true
    }

    fn unmap(&mut self, range: &IovaRange) -> Option<usize> {
        let is_cut = |(start, (_, size)): (&u64, &(u64, u64))| {
            IovaRange::from_length(*start, *size)
                .is_some_and(|mapping| mapping.overlaps(range) && !range.covers(&mapping))
        };
        self.read(|mappings| (!mappings.iter().any(is_cut)).then_some(()))?;
        self.write(|mappings| {
            let before = mappings.len();
            mappings.retain(|start, _| !range.contains(*start));
            before - mappings.len()
        })
    }
}

/// crosvm: the mapping with its key in each entry; an UNMAP collects the keys downwards and removes one by one; a
/// translation is a list.
#[derive(Debug, Default)]
pub struct Crosvm {
    by_start: BTreeMap<u64, Mapping>,
}

impl Lookup for Crosvm {
    fn lookup(&mut self, iova: u64, length: u64, access: Access) -> Option<Gpa> {
        let end = iova + length;
        let mut pieces = Vec::new();
        let mut reached = end;
        for mapping in self.by_start.range(..end).rev().map(|(_, mapping)| mapping) {
            let Mapping { range, target } = mapping;
            if range.last() + 1 < reached || !target.access.contains(access) {
                return None;
            }
            let from = range.start().max(iova);
            pieces.push((Gpa(target.gpa.0 + (from - range.start())), reached - from));
            reached = from;
            if reached == iova {
                pieces.reverse();
                return (pieces.len() == 1).then(|| pieces[0].0);
            }
        }
        None
    }
}

impl Store for Crosvm {
    fn map(&mut self, mapping: Mapping) -> bool {
        let below = self.by_start.range(..=mapping.range.last()).next_back();
        let free = below.is_none_or(|(_, below)| !below.range.overlaps(&mapping.range));
        if free {
            self.by_start.insert(mapping.range.start(), mapping);
        }
        free
    }

    fn unmap(&mut self, range: &IovaRange) -> Option<usize> {
        let mut starts = Vec::new();
        for (start, mapping) in self.by_start.range(..=range.last()).rev() {
            if !mapping.range.overlaps(range) {
                break;
            }
            if !range.covers(&mapping.range) {
                return None;
            }
            starts.push(*start);
        }
        Some(starts.into_iter().filter(|start| self.by_start.remove(start).is_some()).count())
    }
}
