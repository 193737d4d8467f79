// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A domain: the endpoints in it and the address space they share.
//!
//! Domains come and go in `device`; limits are kept there.

use alloc::collections::BTreeSet;

use crate::mapping::{Mapping, Mappings, Reader};
use crate::{Access, EndpointId, Gpa, Granule, Iova, IovaRange};

/// What the endpoints of a domain reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Space {
    /// Everything, at IOVA = GPA.
    Bypass,
    /// What is mapped.
    Paging(Mappings),
}

/// One domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    pub(crate) endpoints: BTreeSet<EndpointId>,
    pub(crate) space: Space,
}

/// A stretch of IOVAs that leads to as many GPAs, with equal rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The IOVAs.
    pub range: IovaRange,
    /// The GPA of the first.
    pub gpa: Gpa,
    /// What may be done.
    pub access: Access,
}

impl Extent {
    /// All of the space, untranslated.
    pub const IDENTITY: Extent = Extent { range: IovaRange::ALL, gpa: Gpa(0), access: Access::all() };

    /// All of a mapping, if it allows `access`.
    fn of(mapping: Mapping, access: Access) -> Option<Extent> {
        //= virtio#devicenormative:IOMMU/MAP request A33a A33b
        // An access needs every right it uses; a write-only mapping is not readable either.
        let allowed = mapping.target.access;
        let extent = Extent { range: mapping.range, gpa: mapping.target.gpa, access: allowed };
        allowed.contains(access).then_some(extent)
    }
}

impl Reader {
    /// The whole extent around `iova`, if an access of this kind is allowed there.
    pub fn lookup(&mut self, iova: Iova, access: Access) -> Option<Extent> {
        Extent::of(self.find(iova.0)?, access)
    }
}

impl Domain {
    pub(crate) fn new(bypass: bool, granule: Granule) -> Domain {
        let space = if bypass { Space::Bypass } else { Space::Paging(Mappings::new(granule)) };
        Domain { endpoints: BTreeSet::new(), space }
    }

    /// Whether the domain lets everything through.
    pub fn is_bypass(&self) -> bool {
        matches!(self.space, Space::Bypass)
    }

    /// The endpoints in the domain.
    pub fn endpoints(&self) -> impl Iterator<Item = EndpointId> {
        self.endpoints.iter().copied()
    }

    /// The mappings in order of IOVA; none in a bypass domain.
    pub fn mappings(&self) -> impl Iterator<Item = Mapping> {
        self.paging().into_iter().flat_map(Mappings::iter)
    }

    /// Bytes of memory that the mappings take now.
    pub fn memory(&self) -> usize {
        self.paging().map_or(0, Mappings::bytes)
    }

    /// The whole extent around `iova`, if an access of this kind is allowed there.
    pub fn lookup(&self, iova: Iova, access: Access) -> Option<Extent> {
        match &self.space {
            //= virtio#devicenormative:IOMMU/Device operations A13 A14
            // No address is changed and no access refused.
            Space::Bypass => Some(Extent::IDENTITY),
            Space::Paging(mappings) => Extent::of(mappings.find(iova.0)?, access),
        }
    }

    /// A handle that translates from other threads; `None` for a bypass domain, which translates nothing.
    pub fn reader(&self) -> Option<Reader> {
        self.paging().map(Mappings::reader)
    }

    pub(crate) fn paging(&self) -> Option<&Mappings> {
        match &self.space {
            Space::Bypass => None,
            Space::Paging(mappings) => Some(mappings),
        }
    }

    pub(crate) fn paging_mut(&mut self) -> Option<&mut Mappings> {
        match &mut self.space {
            Space::Bypass => None,
            Space::Paging(mappings) => Some(mappings),
        }
    }

    pub(crate) fn mapping_count(&self) -> usize {
        self.paging().map_or(0, Mappings::count)
    }

    /// The most bytes that the mappings take.
    pub(crate) fn mapping_bytes(&self) -> usize {
        self.paging().map_or(0, Mappings::bytes_max)
    }
}
