// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the driver of a device of tables does: ATTACH_TABLE, INVALIDATE, and events of 48 bytes.
//!
//! Makes the requests, and no tables. To read: [`viommu_core::manual::tables`].

use viommu_core::wire::{self, DescriptorArmSmmu3, Head, ReqAttachTable, ReqInvalidate, RequestType};
use viommu_core::{DomainId, EndpointId, Invalidation, Scope};
use zerocopy::{FromBytes, IntoBytes};

use super::{DriverError, IommuDriver, Reply};

/// ATTACH_TABLE with these words of an SMMUv3's stream table entry.
pub fn attach_table(domain: DomainId, endpoint: EndpointId, ste: [u64; 2]) -> ReqAttachTable {
    let [ste0, ste1] = ste.map(Into::into);
    let entry = DescriptorArmSmmu3 { reserved: [0; 3], ste0, ste1, reserved1: [0; 92] };
    let mut descriptor = [0; wire::DESCRIPTOR_SIZE];
    descriptor.copy_from_slice(entry.as_bytes());
    ReqAttachTable {
        head: Head { kind: RequestType::ATTACH_TABLE, reserved: [0; 3] },
        domain: domain.0.into(),
        endpoint: endpoint.0.into(),
        format: wire::FORMAT_ARM_SMMU3,
        descriptor,
    }
}

/// INVALIDATE of this, in a domain.
pub fn invalidate(domain: DomainId, what: &Invalidation) -> ReqInvalidate {
    let (scope, pasid) = match what.scope {
        Scope::Domain => (wire::INVALIDATE_S_DOMAIN, None),
        Scope::Pasid(pasid) => (wire::INVALIDATE_S_PASID, Some(pasid)),
        Scope::Addresses { pasid, .. } => (wire::INVALIDATE_S_ADDRESS, pasid),
    };
    let (address, nr_pages, page_size) = match what.scope {
        Scope::Addresses { start, pages, page_shift, .. } => (start, pages, page_shift),
        _ => (0, 0, 0),
    };
    let flags = [
        (what.leaf, wire::INVALIDATE_F_LEAF),
        (pasid.is_some(), wire::INVALIDATE_F_PASID),
        (what.id.is_some(), wire::INVALIDATE_F_ID),
        (what.global, wire::INVALIDATE_F_GLOBAL),
    ];
    let flags = flags.into_iter().filter(|(is_set, _)| *is_set).fold(0, |flags, (_, flag)| flags | flag);
    ReqInvalidate {
        head: Head { kind: RequestType::INVALIDATE, reserved: [0; 3] },
        scope,
        caches: what.caches.bits(),
        flags: flags.into(),
        domain: domain.0.into(),
        pasid: pasid.map_or(0, |pasid| pasid.0).into(),
        id: what.id.map_or(0, u64::from).into(),
        address: address.into(),
        nr_pages: nr_pages.into(),
        page_size,
        reserved: [0; 19],
    }
}

/// What the device of tables put into the event queue.
#[derive(Clone, Copy, Debug)]
pub struct TableEvent {
    /// Bytes written, as the device says.
    pub written: u32,
    /// The event. Where the device wrote nothing, it holds [`UNTOUCHED`](super::UNTOUCHED).
    pub event: wire::TableEvent,
}

impl IommuDriver {
    /// ATTACH_TABLE, as [`attach_table`] makes it.
    ///
    /// # Errors
    /// No reply.
    pub fn attach_table(
        &mut self,
        domain: DomainId,
        endpoint: EndpointId,
        ste: [u64; 2],
    ) -> Result<Reply, DriverError> {
        self.request_of(&attach_table(domain, endpoint, ste))
    }

    /// INVALIDATE, as [`invalidate`] makes it.
    ///
    /// # Errors
    /// No reply.
    pub fn invalidate(&mut self, domain: DomainId, what: &Invalidation) -> Result<Reply, DriverError> {
        self.request_of(&invalidate(domain, what))
    }

    /// Gives `count` event buffers to the device, each with room for the events of tables; fewer when there are no more.
    pub fn post_table_event_buffers(&mut self, count: usize) {
        self.post_buffers(count, TABLE_EVENT_SIZE);
    }

    /// The next event, in a buffer that holds those of tables. It can be posted again.
    ///
    /// # Errors
    /// No event.
    pub fn wait_table_event(&mut self) -> Result<TableEvent, DriverError> {
        let (written, bytes) = self.wait_event_bytes(TABLE_EVENT_SIZE)?;
        let event = wire::TableEvent::read_from_bytes(&bytes).expect("the size of an event");
        Ok(TableEvent { written, event })
    }
}

/// Bytes of an event when ATTACH_TABLE was negotiated.
pub(super) const TABLE_EVENT_SIZE: u32 = size_of::<wire::TableEvent>() as u32;
