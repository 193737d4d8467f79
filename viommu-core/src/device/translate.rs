// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Translation of an endpoint's accesses.

use crate::domain::Extent;
use crate::{Access, Change, DomainId, EndpointId, Fault, FaultReason, Gpa, Iova, IovaRange};

use super::Device;

/// A piece of guest memory that a part of an access leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins.
    pub gpa: Gpa,
    /// Its size in bytes, at least 1.
    pub length: u64,
}

impl Device {
    /// The whole extent around `iova` in which `endpoint` may do `access`. It may be cached until a [`Change`] takes it
    /// away, or [`reset`](Device::reset) or [`restore_boot_bypass`](Device::restore_boot_bypass) does.
    ///
    /// # Errors
    /// The fault to [`report`](Device::report), if the driver is to know of the attempt.
    pub fn lookup(&self, endpoint: EndpointId, iova: Iova, access: Access) -> Result<Extent, Fault> {
        let refuse = |reason| Fault { endpoint, address: iova, access, reason };
        let known = self.endpoints.get(&endpoint).ok_or(refuse(FaultReason::Domain))?;
        //= virtio#devicenormative:IOMMU/DETACH request A26
        // From the moment that a DETACH, or a move, is checked nothing of the old domain is given out any more.
        if self.is_moving(endpoint) {
            return Err(refuse(FaultReason::Domain));
        }
        let Some(id) = known.domain else {
            //= virtio#devicenormative:IOMMU/Device operations A11 A13
            // Unattached endpoints reach guest memory only if `bypass` says so.
            return if self.unattached_bypass() {
                Ok(Extent::IDENTITY)
            } else {
                Err(refuse(FaultReason::Domain))
            };
        };
        if self.is_being_unmapped(id, iova) {
            return Err(refuse(FaultReason::Mapping));
        }
        let domain = self.domains.get(&id).ok_or(refuse(FaultReason::Domain))?;
        //= tables#Domains T7
        // Only hardware walks tables; what asks here is none.
        let has_tables = || domain.table_format().is_some();
        domain
            .lookup(iova, access)
            .ok_or_else(|| refuse(if has_tables() { FaultReason::Unknown } else { FaultReason::Mapping }))
    }

    /// Translates an access of `length` bytes at `iova`, piece by piece. An empty access has no pieces; one
    /// that would run past the end of the 64-bit space is a fault.
    ///
    /// A piece is what one mapping makes of the access. The GPA is the driver's: whether memory is there is for the
    /// caller to see. Threads that have no hold of the device translate through [`Domain::reader`](crate::Domain::reader).
    ///
    /// ```
    /// # use viommu_core::{Access, Device, DeviceConfig, EndpointId, Iova, IovaRange, Limits, NoHost, Segment};
    /// # let config = DeviceConfig {
    /// #     mode: viommu_core::Mode::Map,
    /// #     page_size_mask: 0x1000,
    /// #     aperture: IovaRange::ALL,
    /// #     domain_ids: 0..=u32::MAX,
    /// #     boot_bypass: false,
    /// #     limits: Limits::default(),
    /// #     endpoints: vec![EndpointId(8)],
    /// # };
    /// let mut device = Device::new(config)?;
    /// device.negotiate(viommu_core::Features::OFFERED.bits());
    /// // ATTACH endpoint 8 to domain 1; MAP IOVAs 0x1000-0x1fff of domain 1 to GPA 0x5000, to be read.
    /// let attach = [[1, 0, 0, 0], [1, 0, 0, 0], [8, 0, 0, 0], [0; 4], [0; 4]].concat();
    /// device.handle(&attach, 4, &mut NoHost);
    /// let words = [3, 1, 0x1000, 0, 0x1fff, 0, 0x5000, 0, 1u32];
    /// let map: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    /// device.handle(&map, 4, &mut NoHost);
    ///
    /// let read = device.translate(EndpointId(8), Iova(0x1234), 16, Access::READ);
    /// let pieces: Vec<Segment> = read.collect::<Result<_, _>>().expect("it is mapped");
    /// assert_eq!((pieces.len(), pieces[0].gpa.0, pieces[0].length), (1, 0x5234, 16));
    ///
    /// let write = device.translate(EndpointId(8), Iova(0x1234), 16, Access::WRITE).next();
    /// let fault = write.expect("a piece").expect_err("it may not write");
    /// device.report(fault);
    /// # Ok::<(), viommu_core::ConfigError>(())
    /// ```
    pub fn translate(
        &self,
        endpoint: EndpointId,
        iova: Iova,
        length: u64,
        access: Access,
    ) -> Translation<'_> {
        Translation { device: self, endpoint, access, iova: iova.0, left: length }
    }

    fn is_moving(&self, endpoint: EndpointId) -> bool {
        match self.change_under_way() {
            Some(
                Change::Attach { endpoint: moving, .. }
                | Change::Detach { endpoint: moving, .. }
                | Change::AttachTable { endpoint: moving, pasid: None, .. },
            ) => moving == endpoint,
            _ => false,
        }
    }

    fn is_being_unmapped(&self, id: DomainId, iova: Iova) -> bool {
        match self.change_under_way() {
            Some(Change::Unmap { domain, range }) => domain == id && range.contains(iova.0),
            _ => false,
        }
    }

    fn unattached_bypass(&self) -> bool {
        self.bypass && !matches!(self.change_under_way(), Some(Change::SetBypass { .. }))
    }

    /// The change that was begun and is not finished; of several the one that was begun first.
    pub fn change_under_way(&self) -> Option<Change> {
        self.under_way.front().map(|under_way| under_way.change)
    }
}

/// The pieces of a translated access; ends after the first fault.
#[derive(Debug)]
pub struct Translation<'a> {
    device: &'a Device,
    endpoint: EndpointId,
    access: Access,
    iova: u64,
    left: u64,
}

impl Translation<'_> {
    fn piece(&mut self) -> Result<Segment, Fault> {
        let Translation { device, endpoint, access, iova, left } = *self;
        if IovaRange::from_length(iova, left).is_none() {
            return Err(Fault { endpoint, address: Iova(iova), access, reason: FaultReason::Mapping });
        }
        let extent = device.lookup(endpoint, Iova(iova), access)?;
        let offset = iova.saturating_sub(extent.range.start());
        // Saturates only for an extent of the whole space, of which an access has one byte less.
        let length = extent.range.last().saturating_sub(iova).saturating_add(1).min(left);
        self.left = left.saturating_sub(length);
        // Wraps to zero only when the access ends with the last byte there is.
        self.iova = iova.wrapping_add(length);
        Ok(Segment { gpa: Gpa(extent.gpa.0.saturating_add(offset)), length })
    }
}

impl Iterator for Translation<'_> {
    type Item = Result<Segment, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let piece = self.piece();
        if piece.is_err() {
            self.left = 0;
        }
        Some(piece)
    }
}
