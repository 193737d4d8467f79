// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! ATTACH_TABLE and INVALIDATE.

use crate::domain::Domain;
use crate::{
    Change, DomainId, EndpointId, Invalidation, Pasid, PasidSupport, Reject, Scope, Table, TableSupport,
};

use super::{Device, Endpoint, PasidAttachment, Verdict};

impl Device {
    // The order of the checks is ours: the endpoint and what it can do, the numbers, the domain, the limits, the group.
    pub(super) fn check_attach_table(
        &self,
        id: EndpointId,
        pasid: Option<Pasid>,
        to: DomainId,
        table: Table,
    ) -> Result<Verdict, Reject> {
        //= tables#ATTACH_TABLE T10
        // What is named has to be there, or to be possible.
        let endpoint = self.endpoints.get(&id).ok_or(Reject::NoEndpoint(id))?;
        self.table_support(endpoint)?.check(&table)?;
        if !self.config.domain_ids.contains(&to.0) {
            return Err(Reject::DomainRange(to));
        }
        let from = match pasid {
            Some(pasid) => self.check_pasid(id, endpoint, pasid)?,
            None => endpoint.domain,
        };
        self.check_domain_of_tables(from, to, &table)?;
        if pasid.is_none() {
            self.check_group(id, to, false)?;
            self.check_group_table(id, endpoint, &table)?;
        }
        Ok(Verdict::Change(Change::AttachTable { endpoint: id, pasid, from, to, table }))
    }

    pub(super) fn check_detach_pasid(
        &self,
        id: EndpointId,
        pasid: Pasid,
        named: DomainId,
    ) -> Result<Verdict, Reject> {
        //= tables#ATTACH_TABLE T19
        // As a DETACH does, it names what it ends.
        let endpoint = self.endpoints.get(&id).ok_or(Reject::NoEndpoint(id))?;
        self.table_support(endpoint)?;
        self.check_pasid_number(id, pasid)?;
        match endpoint.pasids.get(&pasid) {
            Some(attachment) if attachment.domain == named => {
                Ok(Verdict::Change(Change::DetachPasid { endpoint: id, pasid, from: named }))
            }
            _ => Err(Reject::PasidNotAttached(id, pasid, named)),
        }
    }

    pub(super) fn commit_attach_table(
        &mut self,
        id: EndpointId,
        pasid: Option<Pasid>,
        to: DomainId,
        table: Table,
    ) {
        //= tables#ATTACH_TABLE T20 T21
        // In one step, be it within a domain or from one to another, and nothing but this attachment.
        self.end_requests_of_table(id, pasid);
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return };
        let from = match pasid {
            Some(pasid) => {
                let new = PasidAttachment { domain: to, table };
                endpoint.pasids.insert(pasid, new).map(|old| old.domain)
            }
            None => {
                endpoint.table = Some(table);
                endpoint.domain.replace(to)
            }
        };
        //= tables#Domains T5
        // The first in it makes it.
        let domain = self.domains.entry(to).or_insert_with(|| Domain::of_tables(table.format()));
        match pasid {
            Some(pasid) => domain.pasids.insert((id, pasid)),
            None => domain.endpoints.insert(id),
        };
        if let Some(from) = from.filter(|from| *from != to) {
            self.leave(from, id, pasid);
        }
    }

    pub(super) fn commit_detach_pasid(&mut self, id: EndpointId, pasid: Pasid) {
        self.end_requests_of_table(id, Some(pasid));
        let endpoint = self.endpoints.get_mut(&id);
        if let Some(old) = endpoint.and_then(|endpoint| endpoint.pasids.remove(&pasid)) {
            self.leave(old.domain, id, Some(pasid));
        }
    }

    pub(super) fn check_invalidate(
        &self,
        id: DomainId,
        invalidation: Invalidation,
    ) -> Result<Verdict, Reject> {
        //= tables#INVALIDATE T30
        // Nothing else has tables.
        let domain = self.domains.get(&id).ok_or(Reject::NoDomain(id))?;
        let row = domain.table_format().ok_or(Reject::BypassDomain(id))?.row();
        //= tables#INVALIDATE T36
        // Whoever names one means something that is not there.
        if let Some(number) = invalidation.id.filter(|_| row.id_bits == 0) {
            return Err(Reject::AddressSpaceId(number.into()));
        }
        let supports = || {
            let members = domain.endpoints().chain(domain.pasids().map(|(id, _)| id));
            members.filter_map(|id| self.endpoints.get(&id)?.tables)
        };
        let pasid = match invalidation.scope {
            Scope::Domain => None,
            Scope::Pasid(pasid) => Some(pasid),
            Scope::Addresses { pasid, start, pages, page_shift } => {
                let sizes = supports().fold(u64::MAX, |sizes, support| sizes & support.page_sizes());
                check_pages(start, pages, page_shift, sizes)?;
                pasid
            }
        };
        //= tables#INVALIDATE T33a T33b
        // Where the guest's own table says which there are, only the number can be checked.
        match pasid {
            Some(pasid) if row.holds_pasids && supports().all(|support| pasid.0 >= support.pasids_end()) => {
                Err(Reject::PasidRange(pasid))
            }
            Some(pasid) if !row.holds_pasids && !domain.pasids().any(|(_, other)| other == pasid) => {
                Err(Reject::NoPasid(id, pasid))
            }
            _ => Ok(Verdict::Change(Change::Invalidate { domain: id, invalidation })),
        }
    }

    /// What PASIDs an endpoint can be attached by: none where hardware would attach those of others, too.
    pub(super) fn pasids_of(&self, id: EndpointId) -> Option<PasidSupport> {
        let endpoint = self.endpoints.get(&id)?;
        let is_alone = endpoint.group.is_none()
            || !self.endpoints.iter().any(|(other, mate)| *other != id && mate.group == endpoint.group);
        endpoint.tables?.pasids.filter(|_| is_alone)
    }

    fn table_support(&self, endpoint: &Endpoint) -> Result<TableSupport, Reject> {
        //= tables#ATTACH_TABLE T13a
        // Not every endpoint is one of hardware.
        endpoint.tables.ok_or(Reject::HardwareLacks("tables"))
    }

    fn check_pasid_number(&self, id: EndpointId, pasid: Pasid) -> Result<(), Reject> {
        //= tables#ATTACH_TABLE T14a T14b
        // PASID 0 stands for accesses without one in hardware, so it cannot be one as well.
        let pasids = self.pasids_of(id).ok_or(Reject::HardwareLacks("PASIDs"))?;
        if pasid.0 == 0 || pasid.0 >= pasids.end() {
            return Err(Reject::PasidRange(pasid));
        }
        Ok(())
    }

    /// The domain that the PASID is in, if it may be in one.
    fn check_pasid(
        &self,
        id: EndpointId,
        endpoint: &Endpoint,
        pasid: Pasid,
    ) -> Result<Option<DomainId>, Reject> {
        self.check_pasid_number(id, pasid)?;
        //= tables#ATTACH_TABLE T14c
        // So that one DETACH takes all of an endpoint's tables away.
        if endpoint.domain.is_none() {
            return Err(Reject::Unattached(id));
        }
        let old = endpoint.pasids.get(&pasid).map(|attachment| attachment.domain);
        //= tables#ATTACH_TABLE T23
        // Each takes memory, here and in the host.
        let pasids_max = self.config.limits.pasids_max;
        if old.is_none() && self.pasid_count() >= pasids_max {
            return Err(Reject::PasidLimit(pasids_max));
        }
        Ok(old)
    }

    fn check_domain_of_tables(
        &self,
        from: Option<DomainId>,
        to: DomainId,
        table: &Table,
    ) -> Result<(), Reject> {
        //= tables#ATTACH_TABLE T17a T17b
        // An invalidation of the domain has to mean the same to all of it.
        match self.domains.get(&to) {
            Some(domain) => match domain.table_format() {
                Some(format) if format == table.format() => Ok(()),
                Some(_) => Err(Reject::FormatMismatch(to)),
                None => Err(Reject::BypassMismatch(to)),
            },
            None => {
                //= tables#ATTACH_TABLE T23
                // A move may end the domain that it leaves.
                let old = from.and_then(|from| self.domains.get(&from));
                self.check_domain_count(usize::from(old.is_some_and(Domain::has_only_one)))
            }
        }
    }

    /// Refuses two tables for endpoints that hardware cannot tell apart.
    fn check_group_table(&self, id: EndpointId, endpoint: &Endpoint, table: &Table) -> Result<(), Reject> {
        //= tables#ATTACH_TABLE T18
        // The host has one attachment for all of them.
        let mut mates = self.endpoints.iter().filter(|(other, mate)| {
            **other != id && endpoint.group.is_some() && mate.group == endpoint.group
        });
        match mates.find(|(_, mate)| mate.table.is_some_and(|other| other != *table)) {
            Some((other, _)) => Err(Reject::GroupTable(id, *other)),
            None => Ok(()),
        }
    }
}

/// Refuses what is no range of such pages.
fn check_pages(start: u64, pages: u64, page_shift: u8, sizes: u64) -> Result<(), Reject> {
    //= tables#INVALIDATE T34 T35 T37
    // Hardware drops bits of an address that it takes for zero, so they are checked to be. How many pages there are is for
    // the host to make the best of.
    let size = 1u64.checked_shl(page_shift.into()).filter(|size| sizes & size != 0);
    let size = size.ok_or(Reject::PageSize(page_shift))?;
    let bad = Reject::Pages { start, pages, page_shift };
    let last_page = pages.checked_sub(1).and_then(|others| others.checked_mul(size));
    let last = last_page.and_then(|offset| start.checked_add(offset));
    if start & size.wrapping_sub(1) != 0 || last.is_none() { Err(bad) } else { Ok(()) }
}
