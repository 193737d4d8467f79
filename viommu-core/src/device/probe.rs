// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! PROBE.

use crate::{EndpointId, Reject};

use super::{Device, Verdict};

impl Device {
    //= virtio#devicenormative:IOMMU/PROBE request A41
    // Only an endpoint that does not exist is an error. One without properties gets an empty list: a driver gives up on
    // an error.
    pub(super) fn probe(&self, id: EndpointId) -> Result<Verdict, Reject> {
        let endpoint = self.endpoints.get(&id).ok_or(Reject::NoEndpoint(id))?;
        Ok(Verdict::Properties(endpoint.reserved.properties()))
    }
}
