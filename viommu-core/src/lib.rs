// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The virtio-iommu device as pure logic: bytes of requests in, bytes of replies out.
//!
//! [`Device`] is the whole of it. It knows domains, endpoints, mappings and faults, and it asks one thing of
//! the outside: to apply a [`Change`] to the endpoints that exist for real. It holds no I/O, no thread, no
//! clock and no `unsafe`; the same requests lead to the same state. Threads meet in one place: a
//! [`mapping::Reader`] finds the mappings of a domain while the device changes them.
//!
//! # Glossary
//!
//! - **endpoint**: one source of DMA behind the device; **domain**: one address space, shared by the
//!   endpoints attached to it; **bypass domain**: a domain that translates nothing and allows everything.
//! - **IOVA**: an address an endpoint uses; **GPA**: an address of the guest's memory.
//! - **granule**: the smallest unit of mapping; **aperture**: the IOVAs that can be mapped, which the
//!   specification calls the input range.
//! - **property**: an item of a PROBE reply; **RESV_MEM**: the property that names a reserved region.
//! - **fault**: an access that was refused; **event**: a fault as it stands in the event queue.
//! - **vIOMMU** is the name of an iommufd object, a slice of one physical IOMMU, and of nothing here: what
//!   this crate implements is *the device*.
//!
//! Read beside it: virtio 1.4, chapter "IOMMU device".
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

extern crate alloc;
// For one lock, in `mapping`; whatever else comes from it has to be asked for by name.
extern crate std;

mod addr;
mod config;
mod device;
mod domain;
mod event;
mod fault;
mod features;
mod format;
mod host;
mod id;
pub mod manual;
pub mod mapping;
mod page_request;
pub mod request;
mod reserved;
pub mod state;
mod status;
mod table;
#[cfg(feature = "vm-memory")]
pub mod vm_memory;
pub mod wire;

pub use addr::{Gpa, Granule, Iova, IovaRange};
pub use config::{ConfigError, DeviceConfig, Limits};
pub use device::{Broken, CONFIG_SIZE, Device, Lingering, Reply, Segment, Step, Translation};
pub use domain::{Domain, Extent};
pub use event::{Event, PageRequest, TABLE_EVENT_SIZE, TableAccess, TableFault, TableFaultReason};
pub use fault::{EVENT_SIZE, Fault, FaultReason};
pub use features::{Features, Mode};
pub use host::{Change, Host, NoHost};
pub use id::{DomainId, EndpointId, Pasid};
pub use mapping::Mapping;
pub use page_request::PageAnswer;
pub use request::{Access, Target};
pub use reserved::{PROBE_SIZE, REGIONS_MAX, ReservedError, ReservedKind, ReservedRegion, TABLE_PROBE_SIZE};
pub use status::{HostError, Reject, Status};
pub use table::{
    Caches, Invalidation, PageRequestSupport, PasidSupport, RequestGroup, ResponseCode, Scope, Table,
    TableFormat, TableHardware, TableSupport,
};
