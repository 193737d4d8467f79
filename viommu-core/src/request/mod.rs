// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From the bytes of a request to its meaning: the one border that a driver's bytes cross.
//!
//! After [`parse`] no handler looks at lengths, reserved fields, unknown flags or reversed ranges.
//! What a request means for the state of the device is decided in `device`.

mod table;
mod tables;

use bitflags::bitflags;
use zerocopy::FromBytes;
use zerocopy::little_endian::U32;

use crate::{
    DomainId, EndpointId, Features, Gpa, Invalidation, IovaRange, Pasid, Reject, RequestGroup, ResponseCode,
    Table, wire,
};

pub use table::{Answer, Row, TABLE, row};

bitflags! {
    /// What an access wants, or a mapping allows.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Access: u32 {
        /// Reading.
        const READ = wire::MAP_F_READ;
        /// Writing.
        const WRITE = wire::MAP_F_WRITE;
    }
}

/// A request that makes sense by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Put `endpoint` into `domain`.
    Attach {
        /// The endpoint.
        endpoint: EndpointId,
        /// The domain.
        domain: DomainId,
        /// Whether the domain lets everything through untranslated.
        bypass: bool,
    },
    /// Take `endpoint` out of `domain`.
    Detach {
        /// The endpoint.
        endpoint: EndpointId,
        /// The domain.
        domain: DomainId,
    },
    /// Map `range` of `domain`.
    Map {
        /// The domain.
        domain: DomainId,
        /// The IOVAs.
        range: IovaRange,
        /// Where they lead.
        target: Target,
    },
    /// Remove every mapping of `domain` within `range`.
    Unmap {
        /// The domain.
        domain: DomainId,
        /// The IOVAs.
        range: IovaRange,
    },
    /// Tell the properties of `endpoint`.
    Probe {
        /// The endpoint.
        endpoint: EndpointId,
    },
    /// Give `endpoint`, or one of its PASIDs, a table.
    AttachTable {
        /// The endpoint.
        endpoint: EndpointId,
        /// The PASID; accesses without one if there is none here.
        pasid: Option<Pasid>,
        /// The domain.
        domain: DomainId,
        /// The table.
        table: Table,
    },
    /// Leave a PASID of `endpoint` without a table.
    DetachPasid {
        /// The endpoint.
        endpoint: EndpointId,
        /// The PASID.
        pasid: Pasid,
        /// The domain that it is in.
        domain: DomainId,
    },
    /// Forget what caches hold of a domain's tables.
    Invalidate {
        /// The domain.
        domain: DomainId,
        /// What is concerned.
        invalidation: Invalidation,
    },
    /// Answer a group of page requests.
    PageResponse {
        /// Which.
        to: RequestGroup,
        /// The answer.
        code: ResponseCode,
    },
}

/// Where a mapping leads and what it allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The GPA of the first byte.
    pub gpa: Gpa,
    /// What endpoints may do.
    pub access: Access,
    /// Whether the driver says that device memory is there.
    pub mmio: bool,
}

/// Reads the request of `row`'s type from `readable`; bytes beyond the request are ignored.
///
/// # Errors
/// A [`Reject`] that names what is wrong with the request by itself, whatever the device's state.
pub fn parse(row: &Row, readable: &[u8], negotiated: Features) -> Result<Request, Reject> {
    (row.parse)(readable, negotiated)
}

/// The wire structure at the start of `readable`.
fn structure<T: FromBytes>(readable: &[u8]) -> Result<T, Reject> {
    T::read_from_prefix(readable)
        .map(|(value, _)| value)
        .map_err(|_| Reject::TooShort { got: readable.len(), needed: size_of::<T>() })
}

fn known_flags(flags: U32, known: u32) -> Result<u32, Reject> {
    match flags.get() & !known {
        0 => Ok(flags.get()),
        unknown => Err(Reject::UnknownFlags(unknown)),
    }
}

fn range(start: u64, last: u64) -> Result<IovaRange, Reject> {
    IovaRange::new(start, last).ok_or(Reject::Reversed { start, last })
}

fn attach(readable: &[u8], negotiated: Features) -> Result<Request, Reject> {
    let wire: wire::ReqAttach = structure(readable)?;
    //= virtio#devicenormative:IOMMU/ATTACH request A15 A16
    // Neither a set reserved field nor an unknown flag is let through.
    if wire.reserved != [0; 4] {
        return Err(Reject::Reserved);
    }
    let bypass_exists = negotiated.contains(Features::BYPASS_CONFIG);
    let flags = known_flags(wire.flags, if bypass_exists { wire::ATTACH_F_BYPASS } else { 0 })?;
    Ok(Request::Attach {
        endpoint: EndpointId(wire.endpoint.get()),
        domain: DomainId(wire.domain.get()),
        bypass: flags & wire::ATTACH_F_BYPASS != 0,
    })
}

fn detach(readable: &[u8], _: Features) -> Result<Request, Reject> {
    //= virtio#devicenormative:IOMMU/DETACH request A23
    // The reserved field is not looked at.
    let wire: wire::ReqDetach = structure(readable)?;
    Ok(Request::Detach { endpoint: EndpointId(wire.endpoint.get()), domain: DomainId(wire.domain.get()) })
}

fn map(readable: &[u8], negotiated: Features) -> Result<Request, Reject> {
    let wire: wire::ReqMap = structure(readable)?;
    //= virtio#devicenormative:IOMMU/MAP request A30
    // A flag whose feature was not negotiated is as unknown as one that does not exist.
    let mmio_exists = negotiated.contains(Features::MMIO);
    let known = Access::all().bits() | if mmio_exists { wire::MAP_F_MMIO } else { 0 };
    let flags = known_flags(wire.flags, known)?;
    Ok(Request::Map {
        domain: DomainId(wire.domain.get()),
        range: range(wire.virt_start.get(), wire.virt_last.get())?,
        target: Target {
            gpa: Gpa(wire.phys_start.get()),
            access: Access::from_bits_truncate(flags),
            mmio: flags & wire::MAP_F_MMIO != 0,
        },
    })
}

fn unmap(readable: &[u8], _: Features) -> Result<Request, Reject> {
    let wire: wire::ReqUnmap = structure(readable)?;
    //= virtio#devicenormative:IOMMU/UNMAP request A35a A35b
    // Of the two permitted answers to a set reserved field, the one that changes nothing.
    if wire.reserved != [0; 4] {
        return Err(Reject::Reserved);
    }
    Ok(Request::Unmap {
        domain: DomainId(wire.domain.get()),
        range: range(wire.virt_start.get(), wire.virt_last.get())?,
    })
}

fn probe(readable: &[u8], _: Features) -> Result<Request, Reject> {
    //= virtio#devicenormative:IOMMU/PROBE request A40
    // The reserved field is not looked at.
    let wire: wire::ReqProbe = structure(readable)?;
    Ok(Request::Probe { endpoint: EndpointId(wire.endpoint.get()) })
}
