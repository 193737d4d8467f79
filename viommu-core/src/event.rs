// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What waits for a buffer of the event queue: refused accesses, faults at tables, page requests.
//!
//! The number of faults is limited, and one that already waits is not queued twice: an endpoint that repeats itself costs
//! nothing. That some were dropped is said by the event that follows. Page requests are limited where they are
//! answered, in `page_request`.

use alloc::collections::VecDeque;
use core::fmt;

use bitflags::bitflags;
use zerocopy::IntoBytes;

use crate::{EVENT_SIZE, EndpointId, Fault, Pasid, RequestGroup, wire};

bitflags! {
    /// What an access at a table wants.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct TableAccess: u32 {
        /// Reading.
        const READ = wire::FAULT_F_READ;
        /// Writing.
        const WRITE = wire::FAULT_F_WRITE;
        /// Executing.
        const EXEC = wire::FAULT_F_EXEC;
        /// Any of these, with privilege.
        const PRIVILEGED = wire::FAULT_F_PRIVILEGED;
    }
}

/// Why an access found no way through a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TableFaultReason {
    /// Anything else.
    Unknown = wire::FAULT_R_UNKNOWN,
    /// The endpoint or the PASID has no table.
    Domain = wire::FAULT_R_DOMAIN,
    /// Nothing is mapped there.
    Mapping = wire::FAULT_R_MAPPING,
    /// A table could not be read from memory.
    WalkAbort = wire::FAULT_R_WALK_EABT,
    /// An entry could not be fetched, or is malformed.
    PteFetch = wire::FAULT_R_PTE_FETCH,
    /// The mapping forbids the access.
    Permission = wire::FAULT_R_PERMISSION,
    /// The entry's access flag is not set.
    Access = wire::FAULT_R_ACCESS,
    /// More bits of address than the table translates.
    OutOfRange = wire::FAULT_R_OOR_ADDRESS,
    /// The descriptor of the table, or the PASID's entry, is bad.
    Table = wire::FAULT_R_TABLE,
}

/// An access that hardware refused while it walked a table of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableFault {
    /// Who tried.
    pub endpoint: EndpointId,
    /// With which PASID, if any.
    pub pasid: Option<Pasid>,
    /// Where, if that is known.
    pub address: Option<u64>,
    /// What.
    pub access: TableAccess,
    /// Why not.
    pub reason: TableFaultReason,
}

impl fmt::Display for TableFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.endpoint)?;
        self.pasid.map_or(Ok(()), |pasid| write!(f, " with {pasid}"))?;
        f.write_str(" may not ")?;
        match self.access {
            access if access.contains(TableAccess::EXEC) => f.write_str("execute")?,
            access if access.contains(TableAccess::READ | TableAccess::WRITE) => {
                f.write_str("read and write")?
            }
            access if access.contains(TableAccess::WRITE) => f.write_str("write")?,
            access if access.contains(TableAccess::READ) => f.write_str("read")?,
            _ => f.write_str("do what it tried")?,
        }
        self.address.map_or(Ok(()), |address| write!(f, " at {address:#x}"))?;
        write!(f, ": {}", self.reason)
    }
}

impl fmt::Display for TableFaultReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TableFaultReason::Unknown => "the hardware does not tell why",
            TableFaultReason::Domain => "there is no table for it",
            TableFaultReason::Mapping => "nothing is mapped there",
            TableFaultReason::WalkAbort => "a table could not be read",
            TableFaultReason::PteFetch => "an entry could not be fetched",
            TableFaultReason::Permission => "the entry forbids it",
            TableFaultReason::Access => "the entry's access flag is not set",
            TableFaultReason::OutOfRange => "the address has too many bits",
            TableFaultReason::Table => "what describes the table is bad",
        })
    }
}

/// A page that an endpoint asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// Where.
    pub address: u64,
    /// For what.
    pub access: TableAccess,
}

/// Bytes of an event when ATTACH_TABLE is negotiated.
pub const TABLE_EVENT_SIZE: usize = size_of::<wire::TableEvent>();

/// An event as the driver reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    bytes: [u8; TABLE_EVENT_SIZE],
    length: usize,
    is_page_request: bool,
}

impl Event {
    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    /// What goes into a buffer of so many bytes: a fault's first 24, if there is no room for more, but nothing less than all
    /// of a page request.
    pub fn for_buffer(&self, room: usize) -> Option<&[u8]> {
        //= virtio#devicenormative:IOMMU/Fault reporting A56b
        // The older form is a prefix of the newer one.
        //= tables#Events T43a T43b
        // Without the number of its group a page request could not be answered.
        if room >= self.length {
            return Some(self.bytes());
        }
        self.bytes.get(..EVENT_SIZE).filter(|_| room >= EVENT_SIZE && !self.is_page_request)
    }
}

/// What an event tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Access(Fault),
    Table(TableFault),
    Page { of: RequestGroup, page: PageRequest, is_last: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Waiting {
    cause: Cause,
    /// Whose event was dropped before it, if one was.
    after_loss_of: Option<EndpointId>,
}

/// Events that wait for a buffer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PendingEvents {
    waiting: VecDeque<Waiting>,
    /// How many of them are page requests.
    pages: usize,
    /// Whose event was the last that was dropped, if none came after it.
    lost: Option<EndpointId>,
}

impl PendingEvents {
    /// Queues `fault`; false when `faults_max` wait already and it is dropped.
    pub(crate) fn push(&mut self, fault: Fault, faults_max: usize) -> bool {
        self.push_fault(Cause::Access(fault), faults_max)
    }

    /// As [`push`](PendingEvents::push).
    pub(crate) fn push_table(&mut self, fault: TableFault, faults_max: usize) -> bool {
        self.push_fault(Cause::Table(fault), faults_max)
    }

    pub(crate) fn push_pages(&mut self, of: RequestGroup, pages: &[PageRequest]) {
        //= tables#Events T41
        // The driver answers when it has seen the last.
        for (number, page) in pages.iter().enumerate() {
            let is_last = number.saturating_add(1) == pages.len();
            self.push_back(Cause::Page { of, page: *page, is_last });
            self.pages = self.pages.saturating_add(1);
        }
    }

    /// The next event tells that an event of `endpoint` was lost before it.
    pub(crate) fn lose(&mut self, endpoint: EndpointId) {
        self.lost = Some(endpoint);
    }

    /// The next event, in the form that goes with the feature.
    pub(crate) fn first(&self, has_tables: bool) -> Option<Event> {
        match self.waiting.front() {
            Some(waiting) => Some(waiting.event(has_tables)),
            None => self.lost.filter(|_| has_tables).map(lost),
        }
    }

    pub(crate) fn remove_first(&mut self) {
        match self.waiting.pop_front() {
            Some(Waiting { cause: Cause::Page { .. }, .. }) => self.pages = self.pages.saturating_sub(1),
            Some(_) => {}
            None => self.lost = None,
        }
    }

    /// The group of the next event, if that is a page request.
    pub(crate) fn first_group(&self) -> Option<RequestGroup> {
        match self.waiting.front()?.cause {
            Cause::Page { of, .. } => Some(of),
            Cause::Access(_) | Cause::Table(_) => None,
        }
    }

    /// Takes the requests of a group back.
    pub(crate) fn remove_group(&mut self, group: RequestGroup) {
        let mut loss = None;
        self.waiting.retain_mut(|waiting| {
            let is_of_group = matches!(waiting.cause, Cause::Page { of, .. } if of == group);
            if is_of_group {
                self.pages = self.pages.saturating_sub(1);
                loss = waiting.after_loss_of.or(loss);
            } else {
                waiting.after_loss_of = waiting.after_loss_of.or(loss.take());
            }
            !is_of_group
        });
        self.lost = self.lost.or(loss);
    }

    /// Takes back what a driver does not know that has nothing to do with tables.
    pub(crate) fn forget_tables(&mut self) {
        self.waiting.retain(|waiting| matches!(waiting.cause, Cause::Access(_)));
        self.pages = 0;
    }

    pub(crate) fn clear(&mut self) {
        *self = PendingEvents::default();
    }

    /// How many faults wait.
    pub(crate) fn fault_count(&self) -> usize {
        self.waiting.len().saturating_sub(self.pages)
    }

    /// Whether the groups of all page requests that wait are such, and their count is right.
    pub(crate) fn pages_are_all(&self, is_such: impl Fn(&RequestGroup) -> bool) -> bool {
        let mut pages = self.waiting.iter().filter_map(|waiting| match &waiting.cause {
            Cause::Page { of, .. } => Some(of),
            Cause::Access(_) | Cause::Table(_) => None,
        });
        pages.clone().count() == self.pages && pages.all(is_such)
    }

    fn push_fault(&mut self, cause: Cause, faults_max: usize) -> bool {
        if self.waiting.iter().any(|waiting| waiting.cause == cause) {
            return true;
        }
        if self.fault_count() >= faults_max {
            return false;
        }
        self.push_back(cause);
        true
    }

    fn push_back(&mut self, cause: Cause) {
        //= tables#Events T42
        // The first event after the gap tells of it.
        self.waiting.push_back(Waiting { cause, after_loss_of: self.lost.take() });
    }
}

impl Waiting {
    fn event(&self, has_tables: bool) -> Event {
        let lost = if self.after_loss_of.is_some() && has_tables { wire::FAULT_F_LOST } else { 0 };
        match self.cause {
            Cause::Access(fault) => of_access(&fault, lost, has_tables),
            Cause::Table(fault) => of_table(&fault, lost),
            Cause::Page { of, page, is_last } => {
                of_page(&of, page, lost | if is_last { wire::FAULT_F_LAST } else { 0 })
            }
        }
    }
}

/// A refused access, which has no PASID.
fn of_access(fault: &Fault, flags: u32, has_tables: bool) -> Event {
    let mut bytes = [0; TABLE_EVENT_SIZE];
    let old = fault.event();
    bytes.iter_mut().zip(old).for_each(|(byte, old)| *byte = old);
    // The flags are the second word.
    bytes.iter_mut().skip(4).zip(flags.to_le_bytes()).for_each(|(byte, flags)| *byte |= flags);
    //= tables#Events T40a
    // A driver that knows nothing of tables knows nothing of longer events.
    let length = if has_tables { TABLE_EVENT_SIZE } else { EVENT_SIZE };
    Event { bytes, length, is_page_request: false }
}

fn of_table(fault: &TableFault, flags: u32) -> Event {
    let address = if fault.address.is_some() { wire::FAULT_F_ADDRESS } else { 0 };
    wide(wire::TableEvent {
        reason: fault.reason as u8,
        flags: (flags | address | fault.access.bits() | pasid_flag(fault.pasid)).into(),
        endpoint: fault.endpoint.0.into(),
        pasid: fault.pasid.map_or(0, |pasid| pasid.0).into(),
        address: fault.address.unwrap_or(0).into(),
        ..EMPTY
    })
}

fn of_page(of: &RequestGroup, page: PageRequest, flags: u32) -> Event {
    let constant = wire::FAULT_F_PAGE_REQ | wire::FAULT_F_ADDRESS | wire::FAULT_F_GROUP_ID;
    let event = wide(wire::TableEvent {
        reason: wire::FAULT_R_MAPPING,
        flags: (flags | constant | page.access.bits() | pasid_flag(of.pasid)).into(),
        endpoint: of.endpoint.0.into(),
        pasid: of.pasid.map_or(0, |pasid| pasid.0).into(),
        address: page.address.into(),
        group_id: of.group.into(),
        ..EMPTY
    });
    Event { is_page_request: true, ..event }
}

/// Nothing but that something was lost.
fn lost(endpoint: EndpointId) -> Event {
    let flags = wire::FAULT_F_LOST.into();
    wide(wire::TableEvent { flags, endpoint: endpoint.0.into(), ..EMPTY })
}

fn pasid_flag(pasid: Option<Pasid>) -> u32 {
    if pasid.is_some() { wire::FAULT_F_PASID } else { 0 }
}

fn wide(event: wire::TableEvent) -> Event {
    let mut bytes = [0; TABLE_EVENT_SIZE];
    bytes.copy_from_slice(event.as_bytes());
    Event { bytes, length: TABLE_EVENT_SIZE, is_page_request: false }
}

//= tables#Events T40b
// What is not said is zero.
const EMPTY: wire::TableEvent = zerocopy::transmute!([0u8; TABLE_EVENT_SIZE]);

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;

    #[test]
    fn a_fault_at_a_table_is_shown_with_who_tried_what_where_and_why_not() {
        let fault = TableFault {
            endpoint: EndpointId(24),
            pasid: None,
            address: Some(0x7f00_0000_1000),
            access: TableAccess::WRITE,
            reason: TableFaultReason::Mapping,
        };
        assert_eq!(
            fault.to_string(),
            "endpoint 0x18 may not write at 0x7f0000001000: nothing is mapped there"
        );
        let (pasid, access) = (Some(Pasid(5)), TableAccess::empty());
        let fault = TableFault { pasid, address: None, access, reason: TableFaultReason::Table, ..fault };
        let expected = "endpoint 0x18 with PASID 5 may not do what it tried: what describes the table is bad";
        assert_eq!(fault.to_string(), expected);
    }
}
