// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The memory of one endpoint for devices that are written against [`vm_memory`]: an [`Iommu`] that asks the device.
//!
//! For a VMM that links this crate and has both the IOMMU and the device behind it. [`Iommu::translate`] ends in
//! vm-memory's own [`Iotlb`], which is filled on a miss. What fills it may be taken away, so whoever is the [`Host`] of
//! the device tells each endpoint: [`invalidate`](EndpointIommu::invalidate) while an UNMAP is applied,
//! [`block`](EndpointIommu::block) while its own ATTACH or DETACH is, or a change of `bypass`, and
//! [`follow`](EndpointIommu::follow) when the device has answered or was reset.
//!
//! Decides nothing about what an endpoint may reach, and reports no fault.
//!
//! ```
//! use viommu_core::vm_memory::EndpointIommu;
//! use viommu_core::{Change, Device, DeviceConfig, EndpointId, Host, HostError, IovaRange, Limits};
//! use vm_memory::{GuestAddress, Iommu, Permissions};
//!
//! struct Vmm<'a>(&'a EndpointIommu);
//!
//! impl Host for Vmm<'_> {
//!     fn apply(&mut self, change: &Change) -> Result<(), HostError> {
//!         match change {
//!             Change::Map { .. } => {}
//!             Change::Unmap { range, .. } => self.0.invalidate(range),
//!             _ => self.0.block(),
//!         }
//!         Ok(())
//!     }
//! }
//!
//! let disk = EndpointId(8);
//! let mut device = Device::new(DeviceConfig {
//!     mode: viommu_core::Mode::Map,
//!     page_size_mask: 0x1000,
//!     aperture: IovaRange::ALL,
//!     domain_ids: 0..=u32::MAX,
//!     boot_bypass: true,
//!     limits: Limits::default(),
//!     endpoints: vec![disk],
//! })?;
//! let iommu = EndpointIommu::new();
//! iommu.follow(&device, disk);
//! let mut pieces = iommu.translate(GuestAddress(0x1234), 8, Permissions::Read)?;
//! assert_eq!(pieces.next().map(|piece| piece.base), Some(GuestAddress(0x1234)));
//! drop(pieces);
//!
//! // A request of the driver: ATTACH endpoint 8 to domain 1.
//! let attach = [1, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
//! device.handle(&attach, 4, &mut Vmm(&iommu));
//! iommu.follow(&device, disk);
//! assert!(iommu.translate(GuestAddress(0x1234), 8, Permissions::Read).is_err());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`Host`]: crate::Host

use core::ops::Deref;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use vm_memory::iommu::{Error, Iommu, IotlbIterator, IovaRange as Wanted};
use vm_memory::{GuestAddress, Iotlb, Permissions};

use crate::mapping::Reader;
use crate::{Access, Device, EndpointId, Extent, Iova, IovaRange};

/// Mappings looked up after which the next miss empties the IOTLB, so that a guest cannot make it grow: about a megabyte.
const FILLS_MAX: usize = 1 << 13;
/// Times that a lookup begins anew when what it filled was taken away before it could be used.
const TRIES: usize = 16;

/// The address space of one endpoint. It reaches nothing until it follows a device.
///
/// # How it synchronises
///
/// What [`translate`](Iommu::translate) returns holds a read lock: `invalidate`, `block` and `follow` wait until it is
/// dropped, and so does the request whose change is applied. So does `translate`, when it has to look something up: a
/// thread that holds one translation must not ask for another, or send a request, before it drops the first, lest it
/// wait for itself. An address that was invalidated is not translated again, unless it is mapped anew or its UNMAP is
/// refused after all.
#[derive(Debug, Default)]
pub struct EndpointIommu {
    cache: RwLock<Cache>,
}

#[derive(Debug, Default)]
struct Cache {
    iotlb: Iotlb,
    /// Ranges that were put into it since it was empty.
    fills: usize,
    reach: Reach,
}

/// What the endpoint reaches.
#[derive(Debug, Default)]
enum Reach {
    #[default]
    Nothing,
    Everything,
    Domain(Reader),
}

impl EndpointIommu {
    /// An endpoint that reaches nothing.
    pub fn new() -> EndpointIommu {
        EndpointIommu::default()
    }

    /// Takes over what `endpoint` reaches in `device`, between two requests.
    pub fn follow(&self, device: &Device, endpoint: EndpointId) {
        let domain = device.domain_of(endpoint).and_then(|id| device.domain(id));
        let reach = match domain {
            Some(domain) => domain.reader().map_or(Reach::Everything, Reach::Domain),
            None if device.lookup(endpoint, Iova(0), Access::READ).is_ok() => Reach::Everything,
            None => Reach::Nothing,
        };
        self.replace(reach);
    }

    /// Lets the endpoint reach nothing until it follows a device again.
    pub fn block(&self) {
        self.replace(Reach::Nothing);
    }

    /// Forgets what was looked up in `range`. Returns when nobody uses it any more.
    pub fn invalidate(&self, range: &IovaRange) {
        let mut cache = self.write();
        if let Some((start, length)) = cachable(range) {
            cache.iotlb.invalidate_mapping(start, length);
        }
        // The mappings may move to other memory, and it may be long until the next miss.
        if let Reach::Domain(reader) = &mut cache.reach {
            reader.rest();
        }
    }

    fn replace(&self, reach: Reach) {
        let mut cache = self.write();
        cache.empty();
        cache.reach = reach;
    }

    fn write(&self) -> RwLockWriteGuard<'_, Cache> {
        self.cache.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Iommu for EndpointIommu {
    type IotlbGuard<'a> = IotlbGuard<'a>;

    /// Fails for an access to the last byte of the 64-bit space, which the [`Iotlb`] cannot express, and may fail for one
    /// through more than 8192 mappings.
    fn translate(
        &self,
        iova: GuestAddress,
        length: usize,
        access: Permissions,
    ) -> Result<IotlbIterator<IotlbGuard<'_>>, Error> {
        let refused = |reason: &str| {
            let iova_range = Wanted { base: iova, length };
            Err(Error::CannotResolve { iova_range, reason: reason.into() })
        };
        if u64::try_from(length).ok().and_then(|length| iova.0.checked_add(length)).is_none() {
            return refused("it passes the end of the address space");
        }
        for _ in 0..TRIES {
            let guard = IotlbGuard(self.cache.read().unwrap_or_else(PoisonError::into_inner));
            match Iotlb::lookup(guard, iova, length, access) {
                Ok(pieces) => return Ok(pieces),
                Err(_) if self.write().fill(iova.0, length as u64, access)? => {}
                Err(_) => return refused("no mapping allows it, or too many are needed"),
            }
        }
        refused("it was unmapped over and over meanwhile")
    }
}

/// The IOTLB while it is in use.
#[derive(Debug)]
pub struct IotlbGuard<'a>(RwLockReadGuard<'a, Cache>);

impl Deref for IotlbGuard<'_> {
    type Target = Iotlb;

    fn deref(&self) -> &Iotlb {
        &self.0.iotlb
    }
}

impl Cache {
    fn empty(&mut self) {
        self.iotlb.invalidate_all();
        self.fills = 0;
    }

    /// Looks up every mapping of an access; false when one of them is missing or does not allow it, or when they are
    /// too many.
    fn fill(&mut self, start: u64, length: u64, access: Permissions) -> Result<bool, Error> {
        // Not in between, lest an access take from itself what it needs.
        if self.fills >= FILLS_MAX {
            self.empty();
        }
        let end = start.saturating_add(length);
        let mut at = start;
        while at < end {
            let Some(extent) = self.reach.lookup(at, access).filter(|_| self.fills < 2 * FILLS_MAX) else {
                return Ok(false);
            };
            if let Some((start, length)) = cachable(&extent.range) {
                let permissions = permissions(extent.access);
                self.iotlb.set_mapping(start, GuestAddress(extent.gpa.0), length, permissions)?;
                self.fills = self.fills.saturating_add(1);
            }
            at = extent.range.last().saturating_add(1);
        }
        Ok(true)
    }
}

impl Reach {
    fn lookup(&mut self, iova: u64, access: Permissions) -> Option<Extent> {
        let mut wanted = Access::empty();
        wanted.set(Access::READ, matches!(access, Permissions::Read | Permissions::ReadWrite));
        wanted.set(Access::WRITE, matches!(access, Permissions::Write | Permissions::ReadWrite));
        match self {
            Reach::Nothing => None,
            Reach::Everything => Some(Extent::IDENTITY),
            Reach::Domain(reader) => reader.lookup(Iova(iova), wanted),
        }
    }
}

fn permissions(access: Access) -> Permissions {
    match (access.contains(Access::READ), access.contains(Access::WRITE)) {
        (true, true) => Permissions::ReadWrite,
        (true, false) => Permissions::Read,
        (false, true) => Permissions::Write,
        (false, false) => Permissions::No,
    }
}

/// The part of a range that can be in the IOTLB, whose ranges have an end: all but the last byte of the space.
fn cachable(range: &IovaRange) -> Option<(GuestAddress, usize)> {
    let end = range.last().saturating_add(1);
    let length = usize::try_from(end.checked_sub(range.start())?).ok()?;
    (length > 0).then_some((GuestAddress(range.start()), length))
}
