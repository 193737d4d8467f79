// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Invalidations of domains' tables: to every vIOMMU that has a device of the domain, or to each of its page tables.
//!
//! What a call of the kernel takes is mostly the same for one entry and for many, so invalidations that come one behind
//! another share calls. They are told in the order of their batches and not of themselves: all are asked for already,
//! and none is done before all are.

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;

use viommu_core::{Caches, DomainId, Invalidation, Scope};

use crate::device::Attach;
use crate::error::{Error, Result};
use crate::format::{self, Member};
use crate::object::{Batches, ENTRIES_MAX, Entries, Hwpt, Invalidated, Viommu};

use super::Shadow;
use super::base::Base;

/// What is to be forgotten of which domain's tables.
pub type OfDomain = (DomainId, Invalidation);

/// What came of invalidations that were told together.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Outcomes {
    count: usize,
    /// Of each, unless all were done.
    each: Vec<Result<()>>,
}

/// What objects of the kernel are to be told, in the order of their numbers.
type Calls = Vec<Call>;

#[derive(Debug)]
struct Call {
    object: u32,
    base: Arc<Base>,
    on: On,
    batches: Batches,
}

#[derive(Debug)]
enum On {
    Viommu(Arc<Viommu>),
    Table(Arc<Hwpt>),
}

/// Memory that is kept from one call to the next, so that nothing has to be had for a request.
#[derive(Debug, Default)]
pub(super) struct Room {
    calls: Calls,
    taken: Vec<OfDomain>,
    members: Vec<Member>,
    batches: Vec<Batches>,
}

/// So many objects of the kernel have kept room for their entries: most guests' devices are behind one IOMMU.
const BATCHES_KEPT: usize = 2;
/// So much of other things is kept.
const KEPT: usize = 1024;

impl Outcomes {
    /// How many were taken.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Of one of those, by its place.
    pub fn of(&self, place: usize) -> Result<()> {
        self.each.get(place).cloned().unwrap_or(Ok(()))
    }
}

impl<D: Attach> Shadow<D> {
    /// Has caches forget what they hold of a domain's tables.
    ///
    /// # Errors
    /// Of `IOMMU_HWPT_INVALIDATE`; caches may have forgotten a part of it, or all.
    pub fn invalidate(&mut self, domain: DomainId, invalidation: &Invalidation) -> Result<()> {
        self.invalidate_together([(domain, *invalidation)]).of(0)
    }

    /// The same for the first of these and for as many behind it as share calls with it; takes no more than those, and says
    /// of each what came of it.
    pub fn invalidate_together(&mut self, wanted: impl IntoIterator<Item = OfDomain>) -> Outcomes {
        let mut room = mem::take(&mut self.room);
        let bases = self.bases();
        for one in wanted {
            self.add_calls(&bases, &mut room, &one, |_| true);
            room.taken.push(one);
            if room.calls.iter().any(Call::is_full) {
                break;
            }
        }
        let told = room.carry_out();
        let taken = mem::take(&mut room.taken);
        let each = match told {
            Ok(()) => Vec::new(),
            Err(error) if taken.len() == 1 => {
                taken.iter().map(|one| self.without_lost(&bases, &mut room, one, error.clone())).collect()
            }
            // How far the kernel came does not say which are done: its driver counts what it has read. To do them again does
            // no harm, and each has an outcome of its own.
            Err(_) => taken.iter().map(|one| self.invalidate_one(&bases, &mut room, one)).collect(),
        };
        let outcomes = Outcomes { count: taken.len(), each };
        room.taken = taken;
        self.room = room.emptied();
        outcomes
    }

    /// Has the IOMMU of a base forget all translations of the guest's tables, if devices in different domains share them
    /// there: by the numbers of address spaces, which domains do not have each for themselves. What it knows of a device's
    /// own goes with its attachment, which is the kernel's.
    ///
    /// # Errors
    /// Of `IOMMU_HWPT_INVALIDATE`.
    pub(super) fn invalidate_base(&mut self, base: &Arc<Base>) -> Result<()> {
        let Some(viommu) = base.viommu() else { return Ok(()) };
        let all =
            Invalidation { scope: Scope::Domain, caches: Caches::TLB, leaf: false, id: None, global: true };
        let to = self.room.call(base, viommu.id(), || On::Viommu(viommu.clone()));
        base.format().add_entries(base.info(), &all, &[], to);
        self.room.carry_out()
    }

    fn invalidate_one(&self, bases: &[Arc<Base>], room: &mut Room, one: &OfDomain) -> Result<()> {
        self.add_calls(bases, room, one, |_| true);
        room.carry_out().or_else(|error| self.without_lost(bases, room, one, error))
    }

    /// A device that the VMM has let go of is unknown, and keeps nothing: so it is no reason for the error.
    fn without_lost(&self, bases: &[Arc<Base>], room: &mut Room, one: &OfDomain, error: Error) -> Result<()> {
        let in_viommus = bases.iter().filter(|base| base.viommu().is_some());
        let mut lost = in_viommus.flat_map(|base| self.members(base, one.0, |device| !device.is_bound()));
        if lost.next().is_none() {
            return Err(error);
        }
        self.add_calls(bases, room, one, Attach::is_bound);
        room.carry_out()
    }

    /// Of vIOMMUs for those of the devices that are wanted.
    fn add_calls(
        &self,
        bases: &[Arc<Base>],
        room: &mut Room,
        one: &OfDomain,
        is_wanted: impl Fn(&D) -> bool,
    ) {
        for base in bases {
            match base.viommu() {
                Some(viommu) => self.add_call_of_devices(base, viommu, room, one, &is_wanted),
                None => self.add_calls_of_tables(base, room, one),
            }
        }
    }

    /// To a vIOMMU, by the devices in it.
    fn add_call_of_devices(
        &self,
        base: &Arc<Base>,
        viommu: &Arc<Viommu>,
        room: &mut Room,
        (domain, invalidation): &OfDomain,
        is_wanted: impl Fn(&D) -> bool,
    ) {
        let mut members = mem::take(&mut room.members);
        members.extend(self.members(base, *domain, is_wanted));
        if !members.is_empty() {
            let to = room.call(base, viommu.id(), || On::Viommu(viommu.clone()));
            base.format().add_entries(base.info(), invalidation, &members, to);
        }
        members.clear();
        room.members = members;
    }

    /// To the page tables that are concerned, each once.
    fn add_calls_of_tables(&self, base: &Arc<Base>, room: &mut Room, (domain, invalidation): &OfDomain) {
        let mut concerned: BTreeMap<u32, &Arc<Hwpt>> = BTreeMap::new();
        let endpoints = self.endpoints.values().filter(|endpoint| endpoint.is_over(base));
        for (pasid, placed) in endpoints.flat_map(|endpoint| &endpoint.tables) {
            if placed.domain == *domain && format::concerns(invalidation, *pasid) {
                concerned.insert(placed.hwpt.id(), &placed.hwpt);
            }
        }
        for (id, hwpt) in concerned {
            let to = room.call(base, id, || On::Table(hwpt.clone()));
            base.format().add_entries(base.info(), invalidation, &[], to);
        }
    }

    fn members(
        &self,
        base: &Arc<Base>,
        domain: DomainId,
        is_wanted: impl Fn(&D) -> bool,
    ) -> impl Iterator<Item = Member> {
        let endpoints = self.endpoints.iter().filter(|(_, endpoint)| endpoint.is_over(base));
        let endpoints = endpoints.filter(move |(_, endpoint)| is_wanted(endpoint.device.device()));
        endpoints.filter_map(move |(id, endpoint)| {
            let placed = endpoint.tables.get(&None).filter(|placed| placed.domain == domain)?;
            Some(Member { number: id.0.into(), table: placed.table })
        })
    }
}

impl Room {
    /// Where the entries for an object go.
    fn call(&mut self, base: &Arc<Base>, object: u32, on: impl FnOnce() -> On) -> &mut Batches {
        let place = self.calls.binary_search_by_key(&object, |call| call.object).unwrap_or_else(|place| {
            let batches = self.batches.pop().unwrap_or_default();
            self.calls.insert(place, Call { object, base: base.clone(), on: on(), batches });
            place
        });
        &mut self.calls[place].batches
    }

    /// Makes all calls, up to the first that fails, and forgets them.
    fn carry_out(&mut self) -> Result<()> {
        let done = self.calls.iter_mut().try_for_each(Call::carry_out);
        for mut call in self.calls.drain(..) {
            if self.batches.len() < BATCHES_KEPT {
                call.batches.iter_mut().for_each(Entries::clear);
                self.batches.push(call.batches);
            }
        }
        done.map_err(|stopped| {
            log::debug!("an invalidation: {stopped}");
            stopped.error
        })
    }

    /// With nothing in it, and no more than is worth keeping.
    fn emptied(mut self) -> Room {
        self.taken.clear();
        self.taken.shrink_to(KEPT);
        self.calls.shrink_to(KEPT);
        self
    }
}

impl Call {
    fn is_full(&self) -> bool {
        self.batches.iter().map(Entries::len).sum::<usize>() >= ENTRIES_MAX
    }

    /// Each batch as often as the hardware wants it.
    fn carry_out(&mut self) -> std::result::Result<(), Invalidated> {
        let repetitions = self.base.format().repetitions(self.base.info());
        let mut batches = self.batches.iter_mut().filter(|entries| !entries.is_empty());
        batches.try_for_each(|entries| (0..repetitions).try_for_each(|_| self.on.invalidate(entries)))
    }
}

impl On {
    fn invalidate(&self, entries: &mut Entries) -> std::result::Result<(), Invalidated> {
        match self {
            On::Viommu(viommu) => viommu.invalidate_entries(entries),
            On::Table(hwpt) => hwpt.invalidate_entries(entries),
        }
    }
}
