// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A domain: the endpoints in it and the address space they share.
//!
//! Domains come and go in `device`; limits are kept there.

use alloc::collections::BTreeSet;

use crate::mapping::{Mapping, Mappings, Reader};
use crate::{Access, EndpointId, Gpa, Granule, Iova, IovaRange, Pasid, TableFormat};

/// What the endpoints of a domain reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Space {
    /// Everything, at IOVA = GPA.
    Bypass,
    /// What is mapped.
    Paging(Mappings),
    /// What tables of the guest say, which hardware walks and nobody here.
    Tables(TableFormat),
}

/// One domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    pub(crate) endpoints: BTreeSet<EndpointId>,
    /// PASIDs of endpoints, which need not be in the domain themselves; only where there are tables.
    pub(crate) pasids: BTreeSet<(EndpointId, Pasid)>,
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
        Domain { endpoints: BTreeSet::new(), pasids: BTreeSet::new(), space }
    }

    pub(crate) fn of_tables(format: TableFormat) -> Domain {
        Domain { endpoints: BTreeSet::new(), pasids: BTreeSet::new(), space: Space::Tables(format) }
    }

    /// Whether nothing is in the domain any more.
    pub(crate) fn is_empty(&self) -> bool {
        self.endpoints.is_empty() && self.pasids.is_empty()
    }

    /// Whether everything in the domain is of this endpoint.
    pub(crate) fn is_only_of(&self, endpoint: EndpointId) -> bool {
        self.endpoints.iter().all(|id| *id == endpoint) && self.pasids.iter().all(|(id, _)| *id == endpoint)
    }

    /// Whether this PASID is in the domain.
    pub(crate) fn has(&self, endpoint: EndpointId, pasid: Pasid) -> bool {
        self.pasids.contains(&(endpoint, pasid))
    }

    /// Whether there is one endpoint, or one PASID, and nothing else.
    pub(crate) fn has_only_one(&self) -> bool {
        self.endpoints.len().saturating_add(self.pasids.len()) == 1
    }

    /// Whose tables the domain is made of; `None` if it is not.
    pub fn table_format(&self) -> Option<TableFormat> {
        match self.space {
            Space::Tables(format) => Some(format),
            Space::Bypass | Space::Paging(_) => None,
        }
    }

    /// The PASIDs in the domain, with their endpoints.
    pub fn pasids(&self) -> impl Iterator<Item = (EndpointId, Pasid)> {
        self.pasids.iter().copied()
    }

    /// Whether the domain lets everything through.
    pub fn is_bypass(&self) -> bool {
        matches!(self.space, Space::Bypass)
    }

    /// The endpoints in the domain, by themselves and not only one of their PASIDs.
    pub fn endpoints(&self) -> impl Iterator<Item = EndpointId> {
        self.endpoints.iter().copied()
    }

    /// The mappings in order of IOVA; none in a bypass domain, or one of tables.
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
            Space::Tables(_) => None,
        }
    }

    /// A handle that translates from other threads; `None` for a domain without mappings.
    pub fn reader(&self) -> Option<Reader> {
        self.paging().map(Mappings::reader)
    }

    pub(crate) fn paging(&self) -> Option<&Mappings> {
        match &self.space {
            Space::Bypass | Space::Tables(_) => None,
            Space::Paging(mappings) => Some(mappings),
        }
    }

    pub(crate) fn paging_mut(&mut self) -> Option<&mut Mappings> {
        match &mut self.space {
            Space::Bypass | Space::Tables(_) => None,
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
