// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Tables of the guest in place of mappings: a device, or one of its PASIDs, is attached to a nested page table.
//!
//! A table belongs to what it is attached to; a domain is no more than a name for invalidations. Two that are equal, over
//! one base, are one page table.

use std::fmt;
use std::sync::Arc;

use rustix::io::Errno;
use viommu_core::{DomainId, EndpointId, IovaRange, Pasid, Table};

use crate::device::{Attach, DeviceId, HwInfo};
use crate::error::{Error, Result};
use crate::format::{self, Description, Format, Root};
use crate::object::{FaultQueue, Hwpt, PageTable};

use super::base::{Base, Seat};
use super::{Endpoint, Reach, Shadow};

/// A table that is in use.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    pub(super) domain: DomainId,
    pub(super) table: Table,
    pub(super) hwpt: Arc<Hwpt>,
    has_faults: bool,
}

/// A table that is to be attached, and all that is known of it before the kernel is asked.
struct Plan {
    endpoint: EndpointId,
    pasid: Option<Pasid>,
    domain: DomainId,
    table: Table,
    number: DeviceId,
    info: HwInfo,
    format: &'static dyn Format,
    description: Description,
}

impl<D: Attach> Shadow<D> {
    /// Attaches an endpoint, or one of its PASIDs, to a table of the guest's in place of what it reaches. An endpoint
    /// without a device needs nothing, and one whose device the VMM has yet to bind has to be attached again then.
    ///
    /// # Errors
    /// EFAULT when the table lies outside the guest's memory, EOPNOTSUPP when the hardware has none of this format,
    /// EINVAL when it cannot walk this one, another of the group uses another one, or the group has more than one device
    /// and this is for a PASID, ERANGE when the device cannot have this PASID; else those of
    /// `IOMMU_HWPT_ALLOC`, `IOMMU_VIOMMU_ALLOC`, `IOMMU_VDEVICE_ALLOC`, `IOMMU_HWPT_INVALIDATE` and [`Attach::attach`]. All
    /// is as it was then, but what lingers may reach nothing.
    pub fn attach_table(
        &mut self,
        endpoint: EndpointId,
        pasid: Option<Pasid>,
        to: DomainId,
        table: Table,
    ) -> Result<()> {
        if !self.device(endpoint).is_some_and(Attach::is_bound) {
            return Ok(());
        }
        let plan = self.plan(endpoint, pasid, to, table)?;
        self.detach_stale(endpoint)?;
        if let Some(base) = self.base_of(endpoint).filter(|base| base.suits(plan.format, &plan.info)) {
            return self.attach_on(&base, &plan);
        }
        let mut others = self.bases();
        others.retain(|base| base.suits(plan.format, &plan.info));
        for base in others {
            match self.attach_on(&base, &plan) {
                // Of another IOMMU, for one.
                Err(error) if error.errno() == Errno::INVAL => log::debug!("{endpoint}: {error}"),
                done => return done,
            }
        }
        let base = Base::new(plan.number, self.memory.space(), plan.format, &plan.info)?;
        base.source().map_or(Ok(()), |source| self.watch(source))?;
        self.attach_on(&base, &plan)
    }

    /// The page table of the guest's table that an endpoint, or one of its PASIDs, uses.
    pub fn nested(&self, endpoint: EndpointId, pasid: Option<Pasid>) -> Option<&Arc<Hwpt>> {
        Some(&self.endpoints.get(&endpoint)?.tables.get(&pasid)?.hwpt)
    }

    /// Leaves a PASID of an endpoint without a table.
    ///
    /// # Errors
    /// Of [`Attach::detach`]; it has its table still.
    pub fn detach_pasid(&mut self, endpoint: EndpointId, pasid: Pasid) -> Result<()> {
        let Some(found) = self.endpoints.get_mut(&endpoint) else { return Ok(()) };
        if found.device.table(Some(pasid.0)).is_some() {
            found.device.detach_if_bound(Some(pasid.0))?;
        }
        found.tables.remove(&Some(pasid));
        Ok(())
    }

    /// Does something to an endpoint that is to have no PASID with a table any more. If that fails they have them again.
    pub(super) fn without_pasids(
        &mut self,
        endpoint: EndpointId,
        act: impl FnOnce(&mut Shadow<D>) -> Result<()>,
    ) -> Result<()> {
        let placed: Vec<(Pasid, Placed)> = self.endpoints.get(&endpoint).map_or_else(Vec::new, |found| {
            found.tables.iter().filter_map(|(pasid, placed)| Some(((*pasid)?, placed.clone()))).collect()
        });
        let mut done = placed.iter().try_for_each(|(pasid, _)| self.detach_pasid(endpoint, *pasid));
        done = done.and_then(|()| act(self));
        if done.is_err() {
            placed.into_iter().for_each(|(pasid, placed)| self.give_back(endpoint, pasid, placed));
        }
        done
    }

    fn give_back(&mut self, endpoint: EndpointId, pasid: Pasid, placed: Placed) {
        let Some(found) = self.endpoints.get_mut(&endpoint) else { return };
        if found.tables.contains_key(&Some(pasid)) {
            return;
        }
        match found.device.attach(PageTable::Hwpt(placed.hwpt.clone()), Some(pasid.0)) {
            Ok(()) => drop(found.tables.insert(Some(pasid), placed)),
            Err(error) => log::error!("{endpoint}, {pasid}: its table cannot be had back: {error}"),
        }
    }

    /// Takes tables of an earlier life from PASIDs, before the endpoint gets anything new.
    pub(super) fn detach_stale(&mut self, endpoint: EndpointId) -> Result<()> {
        let Some(found) = self.endpoints.get(&endpoint) else { return Ok(()) };
        let has_table = |pasid: &Pasid| found.tables.contains_key(&Some(*pasid));
        let stale: Vec<Pasid> = found.device.pasids().map(Pasid).filter(|pasid| !has_table(pasid)).collect();
        stale.into_iter().try_for_each(|pasid| self.detach_pasid(endpoint, pasid))
    }

    /// What a device reaches untranslated. A PASID has a table only beside a page table that is made for that.
    pub(super) fn memory_table(&self, endpoint: EndpointId) -> PageTable {
        let found = self.endpoints.get(&endpoint);
        let has_pasids = found.is_some_and(|found| found.device.pasids().next().is_some());
        match self.base_of(endpoint) {
            Some(base) if has_pasids => PageTable::Hwpt(base.parent().clone()),
            _ => PageTable::Auto(self.memory.space().clone()),
        }
    }

    /// Checks all that can be checked without the kernel, and has changed nothing.
    fn plan(
        &mut self,
        endpoint: EndpointId,
        pasid: Option<Pasid>,
        domain: DomainId,
        table: Table,
    ) -> Result<Plan> {
        let refused = |errno, about: fmt::Arguments<'_>| {
            Error::of_call("IOMMU_HWPT_ALLOC", errno, format_args!("{endpoint}: {about}"))
        };
        let (number, info) = self.identity(endpoint)?;
        let format = format::of(&info, &table);
        let described = format.and_then(|format| Some((format, format.description(&table)?)));
        let (format, description) = described.ok_or_else(|| {
            refused(
                Errno::OPNOTSUPP,
                format_args!("hardware of type {} walks no such tables", info.data_type),
            )
        })?;
        format
            .check(&info, &table, pasid)
            .map_err(|errno| refused(errno, format_args!("{table:x?}, {pasid:?}")))?;
        let is_there = match description.root {
            None => true,
            Some(Root::Beyond) => false,
            Some(Root::At(range)) => self.has_memory(&range),
        };
        if !is_there {
            return Err(refused(
                Errno::FAULT,
                format_args!("a table outside the guest's memory: {table:x?}"),
            ));
        }
        let others = self.group_of(endpoint).into_iter().filter(|other| *other != endpoint);
        for other in others.filter_map(|other| self.endpoints.get(&other)) {
            let uses_another = other.tables.get(&None).is_some_and(|placed| placed.table != table);
            if pasid.is_some() || (other.is_member && uses_another) {
                return Err(refused(Errno::INVAL, format_args!("it shares a group")));
            }
        }
        Ok(Plan { endpoint, pasid, domain, table, number, info, format, description })
    }

    fn has_memory(&mut self, range: &IovaRange) -> bool {
        if self.memory.has(range) {
            return true;
        }
        let ours = self.address_spaces();
        self.memory.complete(&ours);
        self.memory.has(range)
    }

    /// The number of an endpoint's device in the context, and its hardware.
    fn identity(&mut self, endpoint: EndpointId) -> Result<(DeviceId, HwInfo)> {
        let context = self.context.clone();
        let Some(found) = self.endpoints.get_mut(&endpoint) else {
            return Err(Error::of_call("IOMMU_GET_HW_INFO", Errno::NODEV, format_args!("{endpoint}")));
        };
        if let Some(identity) = &found.identity {
            return Ok(identity.clone());
        }
        let number = found.device.device().number(&context)?;
        let identity = (number, HwInfo::of(&context, number)?);
        Ok(found.identity.insert(identity).clone())
    }

    fn attach_on(&mut self, base: &Arc<Base>, plan: &Plan) -> Result<()> {
        let seats = self.new_seats(base, plan)?;
        let faults = self.faults_for(plan.endpoint)?;
        let placed = self.place(base, plan, faults.clone())?;
        if plan.pasid.is_none() && !self.has_table(plan.endpoint, None) {
            self.begin_afresh(base, plan.endpoint)?;
        }
        match plan.pasid {
            None => self.attach_placed(plan, &placed)?,
            Some(pasid) => self.attach_pasid(base, plan, pasid, &placed)?,
        }
        for (id, number, seat) in seats {
            if let Some(endpoint) = self.endpoints.get_mut(&id) {
                log::debug!("{id} is device {number}");
                endpoint.seat = Some(seat);
            }
        }
        self.faults = self.faults.take().or(faults);
        Ok(())
    }

    /// Seats for those who move and have none in this base.
    fn new_seats(&mut self, base: &Arc<Base>, plan: &Plan) -> Result<Vec<(EndpointId, DeviceId, Seat)>> {
        let mut seats = Vec::new();
        for id in self.group_of(plan.endpoint) {
            let has_seat = self.base_of(id).is_some_and(|has| Arc::ptr_eq(&has, base));
            if has_seat || !self.device(id).is_some_and(Attach::is_bound) {
                continue;
            }
            let (number, _) = self.identity(id)?;
            seats.push((id, number, base.seat(number, id.0.into())?));
        }
        Ok(seats)
    }

    /// Has a device that comes without a table find nothing in caches of what other tables led to. Nobody else does: there
    /// is no invalidation without a domain, and after a reset no driver that knows the numbers.
    fn begin_afresh(&mut self, base: &Arc<Base>, endpoint: EndpointId) -> Result<()> {
        //= tables#Domains T9
        // Else a driver of another life could meet what its predecessor left under the same numbers.
        let lingers = |id: EndpointId, found: &Endpoint<D>| {
            let shares_caches = id == endpoint || (base.viommu().is_some() && found.is_over(base));
            found.reach == Reach::Lingering && shares_caches
        };
        let lingering: Vec<EndpointId> =
            self.endpoints.iter().filter(|(id, found)| lingers(**id, found)).map(|(id, _)| *id).collect();
        // They would fill them again.
        lingering.into_iter().try_for_each(|id| self.block_group(id))?;
        self.invalidate_base(base)
    }

    /// A page table for this, which may be in use elsewhere already.
    fn place(&self, base: &Arc<Base>, plan: &Plan, faults: Option<Arc<FaultQueue>>) -> Result<Placed> {
        let has_faults = faults.is_some();
        let over_base = self.endpoints.values().filter(|endpoint| endpoint.is_over(base));
        let mut equal = over_base
            .flat_map(|endpoint| endpoint.tables.values())
            .filter(|placed| placed.table == plan.table && placed.has_faults == has_faults);
        let hwpt = match equal.next() {
            Some(placed) => placed.hwpt.clone(),
            None => base.nested(plan.number, &plan.description, faults)?,
        };
        Ok(Placed { domain: plan.domain, table: plan.table, hwpt, has_faults })
    }

    fn attach_placed(&mut self, plan: &Plan, placed: &Placed) -> Result<()> {
        let table = PageTable::Hwpt(placed.hwpt.clone());
        self.move_group(plan.endpoint, table, Reach::Domain(plan.domain))?;
        for id in self.group_of(plan.endpoint) {
            if let Some(endpoint) = self.endpoints.get_mut(&id) {
                endpoint.tables.insert(None, placed.clone());
            }
        }
        self.set_member(plan.endpoint, true);
        Ok(())
    }

    fn attach_pasid(&mut self, base: &Arc<Base>, plan: &Plan, pasid: Pasid, placed: &Placed) -> Result<()> {
        if matches!(self.reach(plan.endpoint), Some(Reach::Vmm | Reach::Memory)) {
            self.move_group(plan.endpoint, PageTable::Hwpt(base.parent().clone()), Reach::Memory)?;
        }
        let Some(endpoint) = self.endpoints.get_mut(&plan.endpoint) else { return Ok(()) };
        endpoint.device.attach(PageTable::Hwpt(placed.hwpt.clone()), Some(pasid.0))?;
        endpoint.tables.insert(Some(pasid), placed.clone());
        Ok(())
    }

    /// Whether an endpoint, or one of its PASIDs, uses a table of the guest.
    pub(super) fn has_table(&self, endpoint: EndpointId, pasid: Option<Pasid>) -> bool {
        self.endpoints.get(&endpoint).is_some_and(|endpoint| endpoint.tables.contains_key(&pasid))
    }

    fn base_of(&self, endpoint: EndpointId) -> Option<Arc<Base>> {
        Some(self.endpoints.get(&endpoint)?.seat.as_ref()?.base.clone())
    }

    /// All bases, each once.
    pub(super) fn bases(&self) -> Vec<Arc<Base>> {
        let mut bases: Vec<Arc<Base>> = Vec::new();
        for seat in self.endpoints.values().filter_map(|endpoint| endpoint.seat.as_ref()) {
            if !bases.iter().any(|base| Arc::ptr_eq(base, &seat.base)) {
                bases.push(seat.base.clone());
            }
        }
        bases
    }
}
