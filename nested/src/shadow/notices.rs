// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the kernel tells of devices under tables of the guest, and the answers to what they ask for.
//!
//! Every request for a page is answered once: by the caller; by the kernel when what it was made under is replaced or
//! detached, after which the caller's answer is none; or here, when the device is nobody's any more.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::event::epoll;
use rustix::io::Errno;
use viommu_core::{EndpointId, Pasid, RequestGroup, ResponseCode, TableAccess, TableFault};

use crate::device::{Attach, DeviceId};
use crate::error::{Error, Result};
use crate::object::{FaultQueue, PageRequest, PageResponse, PageResponseCode, Vevent};

use super::Shadow;
use super::base::Base;

/// What the kernel had to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A device asks for pages, and waits for an answer.
    Pages {
        /// By what the guest knows the group: all of its requests are here, and are answered together.
        to: RequestGroup,
        /// What the answer refers to. It is never used again.
        cookie: u64,
        /// What it asks for; the last one is the last of the group.
        pages: Vec<viommu_core::PageRequest>,
    },
    /// An access of a device failed.
    Failed(TableFault),
    /// Failed accesses were not told: there were too many. They may be of this endpoint, or of any behind the same IOMMU.
    Lost(EndpointId),
}

impl<D: Attach> Shadow<D> {
    /// Has requests for pages of an endpoint's device told, for tables that are attached from now on. The kernel attaches
    /// none then to a device that makes no such requests.
    pub fn set_page_requests(&mut self, endpoint: EndpointId, are_told: bool) {
        if let Some(endpoint) = self.endpoints.get_mut(&endpoint) {
            endpoint.has_requests = are_told;
        }
    }

    /// Adds what the kernel had to tell to `notices`. More may be to come after either end.
    ///
    /// # Errors
    /// Of `read`, for the first queue that cannot be read; the others are.
    pub fn read_notices(&mut self, notices: &mut Vec<Notice>) -> Result<()> {
        let mut result = Ok(());
        for base in self.bases() {
            result = result.and(self.read_events(&base, notices));
        }
        result.and(self.read_requests(notices))
    }

    fn read_requests(&mut self, notices: &mut Vec<Notice>) -> Result<()> {
        let Some(faults) = self.faults.clone() else { return Ok(()) };
        // The kernel tells all of a group at once.
        let requests = faults.read()?;
        for group in requests.chunk_by(|one, next| one.cookie == next.cookie) {
            let Some(first) = group.first() else { continue };
            match self.endpoint_of(first.device) {
                Some(endpoint) => {
                    let to = RequestGroup { endpoint, pasid: first.pasid.map(Pasid), group: first.group };
                    let pages = group.iter().map(page).collect();
                    notices.push(Notice::Pages { to, cookie: self.keep(first.cookie), pages });
                }
                None => answer(&faults, first.cookie, PageResponseCode::Invalid).unwrap_or_else(|error| {
                    log::error!("device {}: {error}", first.device);
                }),
            }
        }
        Ok(())
    }

    /// Answers a group of requests. One that is answered already needs nothing: by the kernel, when what it was made
    /// under was replaced or detached.
    ///
    /// # Errors
    /// Of `write`; the group waits still.
    pub fn respond(&mut self, cookie: u64, code: ResponseCode) -> Result<()> {
        let (Some(waiting), Some(faults)) = (self.waiting.get(&cookie), &self.faults) else { return Ok(()) };
        let code = match code {
            ResponseCode::Success => PageResponseCode::Success,
            // The kernel knows no third one.
            ResponseCode::Invalid | ResponseCode::Failure => PageResponseCode::Invalid,
        };
        answer(faults, *waiting, code)?;
        self.waiting.remove(&cookie);
        Ok(())
    }

    /// Where page requests of an endpoint's device go, if they are told. The first one makes it.
    pub(super) fn faults_for(&self, endpoint: EndpointId) -> Result<Option<Arc<FaultQueue>>> {
        if !self.endpoints.get(&endpoint).is_some_and(|endpoint| endpoint.has_requests) {
            return Ok(None);
        }
        if let Some(faults) = &self.faults {
            return Ok(Some(faults.clone()));
        }
        let faults = FaultQueue::new(&self.context)?;
        self.watch(&*faults)?;
        Ok(Some(faults))
    }

    /// Has `sources` be readable when this is.
    pub(super) fn watch(&self, source: impl AsFd) -> Result<()> {
        let added = epoll::add(&self.sources, source, epoll::EventData::new_u64(0), epoll::EventFlags::IN);
        added.map_err(|errno| Error::of_call("epoll_ctl", errno, format_args!("a new queue")))
    }

    fn read_events(&self, base: &Arc<Base>, notices: &mut Vec<Notice>) -> Result<()> {
        let Some(events) = base.events() else { return Ok(()) };
        for event in events.read()? {
            match event {
                Vevent::Lost(_) => {
                    let mut of_base = self.endpoints.iter().filter(|(_, endpoint)| endpoint.is_over(base));
                    notices.extend(of_base.next().map(|(endpoint, _)| Notice::Lost(*endpoint)));
                }
                Vevent::Event(_, record) => {
                    let fault = base.format().event(&record);
                    // One of a device that has gone meanwhile is of no interest.
                    let fault = fault.filter(|fault| self.endpoints.contains_key(&fault.endpoint));
                    notices.extend(fault.map(Notice::Failed));
                }
            }
        }
        Ok(())
    }

    fn endpoint_of(&self, device: DeviceId) -> Option<EndpointId> {
        let mut found = self.endpoints.iter();
        let found = found
            .find(|(_, endpoint)| endpoint.identity.as_ref().is_some_and(|(number, _)| *number == device));
        found.map(|(id, _)| *id)
    }

    /// Takes note of a group by the kernel's number of it; the number for the caller.
    fn keep(&mut self, cookie: u32) -> u64 {
        // The kernel has answered what had this number before.
        self.waiting.retain(|_, waiting| *waiting != cookie);
        self.next_cookie = self.next_cookie.wrapping_add(1);
        self.waiting.insert(self.next_cookie, cookie);
        self.next_cookie
    }
}

impl<D> Shadow<D> {
    /// Readable while [`read_notices`](Shadow::read_notices) has something to read. The same for the life of this.
    pub fn sources(&self) -> BorrowedFd<'_> {
        self.sources.as_fd()
    }
}

fn page(request: &PageRequest) -> viommu_core::PageRequest {
    // The kernel has the same bits (`enum iommu_hwpt_pgfault_perm`).
    let access = TableAccess::from_bits_truncate(request.permissions);
    viommu_core::PageRequest { address: request.address, access }
}

/// Answers a group, unless the kernel has.
fn answer(faults: &FaultQueue, cookie: u32, code: PageResponseCode) -> Result<()> {
    match faults.respond(PageResponse { cookie, code }) {
        Err(error) if error.errno() != Errno::INVAL => Err(error),
        _ => Ok(()),
    }
}
