// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Files through which the kernel tells what devices did: page requests, and events of a vIOMMU.
//!
//! Both are read when `poll` says so; neither read waits.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use iommufd_bindings::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::Object;
use super::context::Context;
use super::viommu::Viommu;
use crate::device::DeviceId;
use crate::error::{Error, Result};

/// Where page requests arrive (`IOMMU_FAULT_QUEUE_ALLOC`).
#[derive(Debug)]
pub struct FaultQueue {
    // First: a field is dropped before those that follow it, and the kernel destroys no queue whose file is open.
    file: OwnedFd,
    object: Object,
}

/// A device's request for a page (`struct iommu_hwpt_pgfault`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// Who asks.
    pub device: DeviceId,
    /// With which PASID, if with one.
    pub pasid: Option<u32>,
    /// Its group; all requests of one are answered together.
    pub group: u32,
    /// Whether it is the last of its group.
    pub is_last: bool,
    /// What for (`enum iommu_hwpt_pgfault_perm`): 1 to read, 2 to write, 4 to execute, 8 privileged.
    pub permissions: u32,
    /// The address.
    pub address: u64,
    /// What the answer refers to.
    pub cookie: u32,
}

/// An answer to a group of page requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageResponse {
    /// The one of the requests.
    pub cookie: u32,
    /// The answer.
    pub code: PageResponseCode,
}

/// What became of a group of page requests (`enum iommufd_page_response_code`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageResponseCode {
    /// The pages are there: try again.
    Success,
    /// They are not, and will not be.
    Invalid,
}

/// Bytes of a page request as it is read.
const PAGE_REQUEST_BYTES: usize = size_of::<iommu_hwpt_pgfault>();
/// Requests that one read takes, if no group has more: one is read whole.
const PAGE_REQUESTS: usize = 512;
/// Requests of a group at most.
const PAGE_REQUESTS_MAX: usize = 1 << 16;

impl FaultQueue {
    /// Whether there is something to read.
    fn has_more(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(&self.file, PollFlags::IN)], Some(&now)) == Ok(1)
    }

    /// A new one.
    ///
    /// # Errors
    /// Of `IOMMU_FAULT_QUEUE_ALLOC`.
    pub fn new(context: &Arc<Context>) -> Result<Arc<FaultQueue>> {
        let mut command = iommu_fault_alloc::default();
        let file = context.call_opening(&mut command, format_args!("a new fault queue"))?;
        let object = Object::new(context, command.out_fault_id);
        Ok(Arc::new(FaultQueue { file, object }))
    }

    /// Its id in the context.
    pub fn id(&self) -> u32 {
        self.object.id()
    }

    /// The context that it is of.
    pub fn context(&self) -> &Arc<Context> {
        self.object.context()
    }

    /// The requests that have arrived; none when there are none.
    ///
    /// # Errors
    /// Of `read`.
    pub fn read(&self) -> Result<Vec<PageRequest>> {
        let mut bytes = vec![0; PAGE_REQUESTS * PAGE_REQUEST_BYTES];
        let count = loop {
            match rustix::io::read(&self.file, &mut bytes) {
                // The first group has more.
                Err(Errno::INVAL) if bytes.len() < PAGE_REQUESTS_MAX * PAGE_REQUEST_BYTES => {
                    bytes.resize(bytes.len() * 2, 0);
                }
                // Other kernels say so by reading nothing.
                Ok(0) if self.has_more() && bytes.len() < PAGE_REQUESTS_MAX * PAGE_REQUEST_BYTES => {
                    bytes.resize(bytes.len() * 2, 0);
                }
                Err(Errno::AGAIN) => break 0,
                result => break result.map_err(|errno| self.error("read", errno))?,
            }
        };
        let read = bytes.get(..count).unwrap_or_default();
        Ok(read.chunks_exact(PAGE_REQUEST_BYTES).map(PageRequest::of_bytes).collect())
    }

    /// Answers a group.
    ///
    /// # Errors
    /// Of `write`: EINVAL when nothing waits for that answer, as after the device was attached to something else.
    pub fn respond(&self, response: PageResponse) -> Result<()> {
        let code = match response.code {
            PageResponseCode::Success => iommufd_page_response_code_IOMMUFD_PAGE_RESP_SUCCESS,
            PageResponseCode::Invalid => iommufd_page_response_code_IOMMUFD_PAGE_RESP_INVALID,
        };
        let words = [response.cookie, code];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        rustix::io::write(&self.file, &bytes).map(drop).map_err(|errno| self.error("write", errno))
    }

    fn error(&self, call: &'static str, errno: Errno) -> Error {
        Error::of_call(call, errno, format_args!("fault queue {}", self.id()))
    }
}

impl AsFd for FaultQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl PageRequest {
    /// From the words of `struct iommu_hwpt_pgfault`.
    fn of_bytes(bytes: &[u8]) -> PageRequest {
        let word = |index: usize| {
            let bytes = bytes.get(index * 4..).and_then(|rest| rest.first_chunk());
            bytes.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
        };
        let address = bytes.get(24..).and_then(|rest| rest.first_chunk());
        let flags = word(0);
        let has_pasid = flags & iommu_hwpt_pgfault_flags_IOMMU_PGFAULT_FLAGS_PASID_VALID != 0;
        PageRequest {
            device: DeviceId(word(1)),
            pasid: has_pasid.then(|| word(2)),
            group: word(3),
            is_last: flags & iommu_hwpt_pgfault_flags_IOMMU_PGFAULT_FLAGS_LAST_PAGE != 0,
            permissions: word(4),
            address: address.map_or(0, |bytes| u64::from_ne_bytes(*bytes)),
            cookie: word(9),
        }
    }
}

/// Where events of a vIOMMU arrive (`IOMMU_VEVENTQ_ALLOC`).
#[derive(Debug)]
pub struct Veventq {
    // First: a field is dropped before those that follow it, and the kernel destroys no queue whose file is open.
    file: OwnedFd,
    object: Object,
    event_bytes: usize,
    _viommu: Arc<Viommu>,
}

/// What one event queue has to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vevent {
    /// An event: its number in order, and what the vendor's type says of it.
    Event(u32, Vec<u8>),
    /// Events were lost: there were more than the queue takes.
    Lost(u32),
}

impl Veventq {
    /// For events of the vendor's `event_type` (`enum iommu_veventq_type`), of `event_bytes` each, of which `depth` can
    /// wait.
    ///
    /// # Errors
    /// Of `IOMMU_VEVENTQ_ALLOC`: EEXIST when the vIOMMU has one of this type.
    pub fn new(viommu: &Arc<Viommu>, event_type: u32, event_bytes: usize, depth: u32) -> Result<Veventq> {
        let mut command = iommu_veventq_alloc {
            viommu_id: viommu.id(),
            type_: event_type,
            veventq_depth: depth,
            ..Default::default()
        };
        let about = format_args!("vIOMMU {}, type {event_type}, depth {depth}", viommu.id());
        let file = viommu.context().call_opening(&mut command, about)?;
        let object = Object::new(viommu.context(), command.out_veventq_id);
        Ok(Veventq { file, object, event_bytes, _viommu: viommu.clone() })
    }

    /// Its id in the context.
    pub fn id(&self) -> u32 {
        self.object.id()
    }

    /// The events that have arrived; none when there are none.
    ///
    /// # Errors
    /// Of `read`.
    pub fn read(&self) -> Result<Vec<Vevent>> {
        let mut bytes = vec![0; 64 << 10];
        let count = match rustix::io::read(&self.file, &mut bytes) {
            Err(Errno::AGAIN) => 0,
            result => result
                .map_err(|errno| Error::of_call("read", errno, format_args!("vEVENTQ {}", self.id())))?,
        };
        Ok(self.events(bytes.get(..count).unwrap_or_default()))
    }

    /// Each event is a header and, unless it stands for lost ones, what the vendor's type says.
    fn events(&self, mut bytes: &[u8]) -> Vec<Vevent> {
        let mut events = Vec::new();
        while let Some((header, rest)) = bytes.split_first_chunk::<8>() {
            let [a, b, c, d, e, f, g, h] = *header;
            let (flags, number) = (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]));
            if flags & iommu_veventq_flag_IOMMU_VEVENTQ_FLAG_LOST_EVENTS != 0 {
                events.push(Vevent::Lost(number));
                bytes = rest;
                continue;
            }
            let Some((event, rest)) = rest.split_at_checked(self.event_bytes) else { break };
            events.push(Vevent::Event(number, event.to_vec()));
            bytes = rest;
        }
        events
    }
}

impl AsFd for Veventq {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
