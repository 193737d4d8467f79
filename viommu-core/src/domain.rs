// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A domain: the endpoints in it and the address space they share.
//!
//! Domains come and go in `device`; limits are kept there.

use alloc::collections::BTreeSet;

use crate::mapping::{Mapping, Mappings};
use crate::{Access, Target};
use crate::{EndpointId, Gpa, Iova, IovaRange};

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
}

impl Domain {
    pub(crate) fn new(bypass: bool) -> Domain {
        let space = if bypass { Space::Bypass } else { Space::Paging(Mappings::default()) };
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

    /// The whole extent around `iova`, if an access of this kind is allowed there.
    pub fn lookup(&self, iova: Iova, access: Access) -> Option<Extent> {
        match &self.space {
            //= virtio#devicenormative:IOMMU/Device operations A13 A14
            // No address is changed and no access refused.
            Space::Bypass => Some(Extent::IDENTITY),
            Space::Paging(mappings) => {
                //= virtio#devicenormative:IOMMU/MAP request A33a A33b
                // An access needs every right it uses; a write-only mapping is not readable either.
                let Mapping { range, target: Target { gpa, access: allowed, .. } } = mappings.find(iova.0)?;
                allowed.contains(access).then_some(Extent { range, gpa, access: allowed })
            }
        }
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
}
