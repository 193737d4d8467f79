// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! PROBE.

use alloc::vec::Vec;

use zerocopy::IntoBytes;

use crate::{EndpointId, PageRequestSupport, PasidSupport, Reject, wire};

use super::{Device, Verdict};

impl Device {
    //= virtio#devicenormative:IOMMU/PROBE request A41
    // Only an endpoint that does not exist is an error. One without properties gets an empty list: a driver gives up on
    // an error.
    pub(super) fn probe(&self, id: EndpointId) -> Result<Verdict, Reject> {
        let endpoint = self.endpoints.get(&id).ok_or(Reject::NoEndpoint(id))?;
        let mut properties = endpoint.reserved.properties();
        //= tables#Properties T60 T61
        // What an endpoint cannot use is not offered to it.
        if let Some(support) = endpoint.tables.filter(|_| self.config.mode.is_table()) {
            properties.extend(support.hardware_property());
            properties.extend(self.pasids_of(id).map(pasids).unwrap_or_default());
            properties.extend(support.page_requests.map(page_requests).unwrap_or_default());
        }
        Ok(Verdict::Properties(properties))
    }
}

fn pasids(support: PasidSupport) -> Vec<u8> {
    const LENGTH: u16 = (size_of::<wire::PropertyPasid>() - wire::PROPERTY_HEADER_SIZE) as u16;
    let exec = if support.exec { wire::PASID_F_EXEC } else { 0 };
    let privileged = if support.privileged { wire::PASID_F_PRIVILEGED } else { 0 };
    let property = wire::PropertyPasid {
        kind: wire::PROPERTY_T_PASID.into(),
        length: LENGTH.into(),
        bits: support.bits_offered(),
        reserved: 0,
        flags: (exec | privileged).into(),
        reserved1: [0; 4],
    };
    property.as_bytes().to_vec()
}

fn page_requests(support: PageRequestSupport) -> Vec<u8> {
    const LENGTH: u16 = (size_of::<wire::PropertyPageRequests>() - wire::PROPERTY_HEADER_SIZE) as u16;
    let property = wire::PropertyPageRequests {
        kind: wire::PROPERTY_T_PAGE_REQUESTS.into(),
        length: LENGTH.into(),
        flags: wire::PAGE_REQUESTS_F_PASID.into(),
        requests_max: support.requests_max.into(),
        timeout_ms: u32::try_from(support.timeout.as_millis()).unwrap_or(u32::MAX).into(),
    };
    property.as_bytes().to_vec()
}
