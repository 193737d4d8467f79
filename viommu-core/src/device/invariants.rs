// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is always true of a device between two requests.

use crate::{Domain, DomainId, EndpointId};

use super::Device;

/// An invariant that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// I1: the domain of every attached endpoint exists and counts it as its own.
    DomainOfEndpoint(EndpointId),
    /// I2: every domain has an endpoint or a PASID, and all of these are attached to it.
    EndpointsOfDomain(DomainId),
    /// I3: the mappings of a domain are disjoint, lie in the aperture and begin and end on the granule.
    Mappings(DomainId),
    /// I4: count and bytes of the mappings are right and, like the counts of domains, faults, PASIDs and page requests,
    /// within their limits.
    Counts,
    /// I5: an endpoint has a table when its domain is one of tables, and only then; those of its PASIDs, too, are of the
    /// format of their domain. Only an attached endpoint has PASIDs.
    Table(EndpointId),
    /// I6: no page request waits for the driver to see it unless its group waits for the answer.
    PageRequests,
}

impl Device {
    /// Checks the invariants, in time proportional to the state.
    ///
    /// # Errors
    /// The first invariant that does not hold.
    pub fn check_invariants(&self) -> Result<(), Broken> {
        for (id, endpoint) in &self.endpoints {
            let Some(domain) = endpoint.domain else { continue };
            if !self.domains.get(&domain).is_some_and(|domain| domain.endpoints.contains(id)) {
                return Err(Broken::DomainOfEndpoint(*id));
            }
        }
        for (id, domain) in &self.domains {
            let belongs = |endpoint| self.domain_of(endpoint) == Some(*id);
            let has_pasid = |(endpoint, pasid)| {
                self.table_of(endpoint, Some(pasid)).is_some_and(|(domain, _)| domain == *id)
            };
            if domain.is_empty() || !domain.endpoints().all(belongs) || !domain.pasids().all(has_pasid) {
                return Err(Broken::EndpointsOfDomain(*id));
            }
            self.check_mappings(*id)?;
        }
        self.check_tables()?;
        let limits = &self.config.limits;
        let count: usize = self.domains.values().map(Domain::mapping_count).sum();
        let bytes: usize = self.domains.values().map(Domain::mapping_bytes).sum();
        if count != self.mapping_count
            || bytes != self.mapping_bytes
            || bytes > limits.mapping_bytes_max
            || count > limits.mappings_max
            || self.domains.len() > limits.domains_max
            || self.events.fault_count() > limits.faults_max
            || self.pasid_count() > limits.pasids_max
            || self.page_requests.pages() > limits.page_requests_max
        {
            return Err(Broken::Counts);
        }
        Ok(())
    }

    fn check_tables(&self) -> Result<(), Broken> {
        for (id, endpoint) in &self.endpoints {
            let format_of = |domain| self.domains.get(&domain).and_then(Domain::table_format);
            let own = endpoint.domain.and_then(format_of) == endpoint.table.map(|table| table.format());
            let pasids = endpoint.pasids.iter().all(|(pasid, attachment)| {
                format_of(attachment.domain) == Some(attachment.table.format())
                    && self.domains.get(&attachment.domain).is_some_and(|domain| domain.has(*id, *pasid))
            });
            if !own || !pasids || (endpoint.domain.is_none() && !endpoint.pasids.is_empty()) {
                return Err(Broken::Table(*id));
            }
        }
        if self.events.pages_are_all(|group| self.page_requests.cookie(group).is_some()) {
            Ok(())
        } else {
            Err(Broken::PageRequests)
        }
    }

    fn check_mappings(&self, id: DomainId) -> Result<(), Broken> {
        let mut last = None;
        for mapping in self.domains.get(&id).into_iter().flat_map(Domain::mappings) {
            let range = mapping.range;
            let aligned = self.granule.is_start(range.start()) && self.granule.is_last(range.last());
            if !aligned
                || !self.config.aperture.covers(&range)
                || last.is_some_and(|last| last >= range.start())
            {
                return Err(Broken::Mappings(id));
            }
            last = Some(range.last());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use super::*;
    use crate::page_request::PageRequests;
    use crate::{
        Access, DeviceConfig, Fault, FaultReason, Features, Gpa, Granule, Iova, IovaRange, Limits, Mode,
        PageRequest, PageRequestSupport, Pasid, RequestGroup, Table, TableAccess, TableHardware,
        TableSupport, Target,
    };

    use super::super::PasidAttachment;

    const EP: EndpointId = EndpointId(8);
    const OTHER: EndpointId = EndpointId(9);
    const DOMAIN: DomainId = DomainId(1);

    /// Two endpoints in a domain of two mappings, and two faults that wait: all of it at the limit.
    fn device() -> Device {
        let limits = Limits { domains_max: 1, mappings_max: 2, faults_max: 2, ..Limits::default() };
        let mut device = Device::new(DeviceConfig {
            mode: Mode::Map,
            page_size_mask: 0x1000,
            aperture: IovaRange::new(0x2000, 0x8fff).expect("not empty"),
            domain_ids: 0..=u32::MAX,
            boot_bypass: false,
            limits,
            endpoints: [EP, OTHER].to_vec(),
        })
        .expect("it can be served");
        let target = Target { gpa: Gpa(0), access: Access::READ, mmio: false };
        device.commit_attach(EP, DOMAIN, false);
        device.commit_attach(OTHER, DOMAIN, false);
        device.commit_map(DOMAIN, IovaRange::new(0x2000, 0x2fff).expect("a page"), target);
        device.commit_map(DOMAIN, IovaRange::new(0x4000, 0x8fff).expect("pages"), target);
        for address in [Iova(0), Iova(1)] {
            let (access, reason) = (Access::READ, FaultReason::Mapping);
            assert!(device.report(Fault { endpoint: EP, address, access, reason }));
        }
        device.config.limits.mapping_bytes_max = device.mapping_bytes;
        device
    }

    fn broken_by(harm: impl FnOnce(&mut Device)) -> Result<(), Broken> {
        let mut device = device();
        harm(&mut device);
        device.check_invariants()
    }

    #[test]
    fn a_device_at_its_limits_is_sound() {
        assert_eq!(device().check_invariants(), Ok(()));
    }

    #[test]
    fn an_endpoint_in_a_domain_that_does_not_know_it_is_noticed() {
        let elsewhere = |device: &mut Device| {
            device.endpoints.entry(EP).or_default().domain = Some(DomainId(7));
        };
        assert_eq!(broken_by(elsewhere), Err(Broken::DomainOfEndpoint(EP)));
        let forgotten = |device: &mut Device| {
            device.domains.values_mut().for_each(|domain| domain.endpoints.retain(|id| *id == EP));
        };
        assert_eq!(broken_by(forgotten), Err(Broken::DomainOfEndpoint(OTHER)));
    }

    #[test]
    fn a_domain_without_endpoints_or_with_one_of_another_is_noticed() {
        let empty = |device: &mut Device| {
            device.domains.insert(DomainId(2), Domain::new(true, device.granule));
        };
        assert_eq!(broken_by(empty), Err(Broken::EndpointsOfDomain(DomainId(2))));
        let foreign = |device: &mut Device| {
            device.domains.values_mut().for_each(|domain| domain.endpoints.extend([EndpointId(10)]));
        };
        assert_eq!(broken_by(foreign), Err(Broken::EndpointsOfDomain(DOMAIN)));
    }

    #[test]
    fn a_mapping_off_the_granule_or_outside_the_aperture_is_noticed() {
        // Both mappings begin on a granule of two pages, and neither ends on one.
        let coarse = |device: &mut Device| device.granule = Granule::of_mask(0x2000).expect("not empty");
        assert_eq!(broken_by(coarse), Err(Broken::Mappings(DOMAIN)));
        for aperture in [(0x3000, 0x8fff), (0x2000, 0x7fff)] {
            let narrow = |device: &mut Device| {
                device.config.aperture = IovaRange::new(aperture.0, aperture.1).expect("not empty");
            };
            assert_eq!(broken_by(narrow), Err(Broken::Mappings(DOMAIN)));
        }
    }

    /// What is done to a device, and what that breaks.
    type Harm = (fn(&mut Device), Broken);

    const TABLE: Table = Table::IntelPt { flags: 0, root: Gpa(0x1000), address_bits: 48 };

    /// An endpoint with a table, and another for a PASID of it in a domain of its own; a page request waits.
    fn device_of_tables() -> Device {
        let mut device = device();
        device.reset();
        let hardware = TableHardware::IntelVtd { flags: 0, cap: 0, ecap: 0 };
        let page_requests = Some(PageRequestSupport { requests_max: 1, timeout: Duration::ZERO });
        device.set_tables(EP, Some(TableSupport { hardware, ats: false, pasids: None, page_requests }));
        device.negotiated = Features::ATTACH_TABLE;
        device.config.limits.domains_max = 2;
        device.config.limits.pasids_max = 1;
        device.config.limits.page_requests_max = 1;
        device.commit_attach_table(EP, None, DOMAIN, TABLE);
        device.commit_attach_table(EP, Some(Pasid(1)), DomainId(2), TABLE);
        let to = RequestGroup { endpoint: EP, pasid: None, group: 1 };
        let page = PageRequest { address: 0, access: TableAccess::READ };
        assert!(device.request_pages(to, 1, &[page], Duration::ZERO));
        assert_eq!(device.check_invariants(), Ok(()));
        device
    }

    #[test]
    fn a_table_without_its_domain_or_a_domain_without_its_table_is_noticed() {
        let harms: [Harm; 6] = [
            (|device| device.endpoints.entry(EP).or_default().table = None, Broken::Table(EP)),
            (|device| device.endpoints.entry(OTHER).or_default().table = Some(TABLE), Broken::Table(OTHER)),
            (
                |device| {
                    let arm = Table::ArmSmmu3 { ste: [1, 0] };
                    let new = PasidAttachment { domain: DomainId(2), table: arm };
                    device.endpoints.entry(EP).or_default().pasids.insert(Pasid(1), new);
                },
                Broken::Table(EP),
            ),
            (
                |device| {
                    let new = PasidAttachment { domain: DOMAIN, table: TABLE };
                    device.endpoints.entry(EP).or_default().pasids.insert(Pasid(2), new);
                },
                Broken::Table(EP),
            ),
            (
                |device| {
                    device.endpoints.entry(EP).or_default().pasids.remove(&Pasid(1));
                },
                Broken::EndpointsOfDomain(DomainId(2)),
            ),
            (
                |device| {
                    device.endpoints.entry(EP).or_default().domain = None;
                    device.endpoints.entry(EP).or_default().table = None;
                    device.domains.remove(&DOMAIN);
                },
                Broken::Table(EP),
            ),
        ];
        for (number, (harm, broken)) in harms.into_iter().enumerate() {
            let mut device = device_of_tables();
            harm(&mut device);
            assert_eq!(device.check_invariants(), Err(broken), "{number}");
        }
    }

    #[test]
    fn page_requests_and_pasids_beyond_their_limits_are_noticed() {
        let harms: [Harm; 3] = [
            (|device| device.config.limits.pasids_max -= 1, Broken::Counts),
            (|device| device.config.limits.page_requests_max -= 1, Broken::Counts),
            (|device| device.page_requests = PageRequests::default(), Broken::PageRequests),
        ];
        for (harm, broken) in harms {
            let mut device = device_of_tables();
            harm(&mut device);
            assert_eq!(device.check_invariants(), Err(broken));
        }
    }

    #[test]
    fn a_count_that_is_wrong_or_beyond_its_limit_is_noticed() {
        let harms: [fn(&mut Device); 6] = [
            |device| device.mapping_count += 1,
            |device| device.mapping_bytes += 1,
            |device| device.config.limits.mapping_bytes_max -= 1,
            |device| device.config.limits.mappings_max -= 1,
            |device| device.config.limits.domains_max -= 1,
            |device| device.config.limits.faults_max -= 1,
        ];
        for harm in harms {
            assert_eq!(broken_by(harm), Err(Broken::Counts));
        }
    }
}
