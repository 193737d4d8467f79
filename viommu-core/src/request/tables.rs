// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From bytes to meaning: the requests of the table extension.

use zerocopy::FromBytes;

use crate::format::{self, Described};
use crate::{
    Caches, DomainId, EndpointId, Features, Invalidation, Pasid, Reject, RequestGroup, ResponseCode, Scope,
    wire,
};

use super::{Request, known_flags, structure};

pub(super) fn attach_table(readable: &[u8], _: Features) -> Result<Request, Reject> {
    let wire: wire::ReqAttachTable = structure(readable)?;
    let (endpoint, domain) = (EndpointId(wire.endpoint.get()), DomainId(wire.domain.get()));
    if wire.format == wire::FORMAT_NONE {
        return Ok(Request::DetachPasid { endpoint, pasid: detached_pasid(&wire.descriptor)?, domain });
    }
    let Described { table, pasid } = format::parse(wire.format, &wire.descriptor)?;
    Ok(Request::AttachTable { endpoint, pasid, domain, table })
}

fn detached_pasid(descriptor: &[u8; wire::DESCRIPTOR_SIZE]) -> Result<Pasid, Reject> {
    //= tables#ATTACH_TABLE T12
    // An endpoint itself is detached by DETACH.
    let wire = wire::DescriptorIntelPt::read_from_bytes(descriptor).map_err(|_| Reject::Reserved)?;
    let flags = known_flags(wire.attach_flags, wire::ATTACH_TABLE_F_PASID)?;
    let is_zero = wire.reserved == [0; 3]
        && wire.flags.get() == 0
        && wire.pgd.get() == 0
        && wire.addr_width.get() == 0
        && wire.reserved1 == [0; 80];
    if !is_zero || flags & wire::ATTACH_TABLE_F_PASID == 0 {
        return Err(Reject::Reserved);
    }
    Ok(Pasid(wire.pasid.get()))
}

pub(super) fn invalidate(readable: &[u8], _: Features) -> Result<Request, Reject> {
    let wire: wire::ReqInvalidate = structure(readable)?;
    //= tables#INVALIDATE T31
    // What is not understood cannot be done, and an invalidation that is not done must not look as if it were.
    if wire.reserved != [0; 19] {
        return Err(Reject::Reserved);
    }
    let flags = wire.flags.get();
    let known = wire::INVALIDATE_F_LEAF
        | wire::INVALIDATE_F_PASID
        | wire::INVALIDATE_F_ID
        | wire::INVALIDATE_F_GLOBAL;
    if flags & !known != 0 {
        return Err(Reject::UnknownFlags((flags & !known).into()));
    }
    let has = |flag| flags & flag != 0;
    let senseless = Reject::Invalidation { scope: wire.scope, caches: wire.caches, flags };
    let caches = Caches::from_bits(wire.caches).filter(|caches| !caches.is_empty());
    let caches = caches.ok_or(senseless.clone())?;
    //= tables#INVALIDATE T36
    // No architecture has more.
    let id = has(wire::INVALIDATE_F_ID).then_some(wire.id.get());
    let id = id.map(|id| u16::try_from(id).map_err(|_| Reject::AddressSpaceId(id))).transpose()?;
    let scope = scope(&wire, has(wire::INVALIDATE_F_PASID), caches).ok_or(senseless)?;
    let (leaf, global) = (has(wire::INVALIDATE_F_LEAF), has(wire::INVALIDATE_F_GLOBAL));
    let invalidation = Invalidation { scope, caches, leaf, id, global };
    Ok(Request::Invalidate { domain: DomainId(wire.domain.get()), invalidation })
}

/// `None` for what makes no sense.
fn scope(wire: &wire::ReqInvalidate, has_pasid: bool, caches: Caches) -> Option<Scope> {
    //= tables#INVALIDATE T32a T32b
    // The drivers that there are name a domain and a PASID when they mean the PASID.
    let pasid = has_pasid.then_some(Pasid(wire.pasid.get()));
    match wire.scope {
        wire::INVALIDATE_S_DOMAIN => Some(pasid.map_or(Scope::Domain, Scope::Pasid)),
        wire::INVALIDATE_S_PASID => pasid.map(Scope::Pasid),
        wire::INVALIDATE_S_ADDRESS => caches.contains(Caches::TLB).then_some(Scope::Addresses {
            pasid,
            start: wire.address.get(),
            pages: wire.nr_pages.get(),
            page_shift: wire.page_size,
        }),
        _ => None,
    }
}

pub(super) fn page_response(readable: &[u8], _: Features) -> Result<Request, Reject> {
    let wire: wire::ReqPageResp = structure(readable)?;
    //= tables#PAGE_RESP T50
    // As for every other request.
    let flags = known_flags(wire.flags, wire::PAGE_RESP_F_PASID)?;
    let has_pasid = flags & wire::PAGE_RESP_F_PASID != 0;
    let pasid = wire.pasid.get();
    if wire.reserved != [0; 10] || (!has_pasid && pasid != 0) {
        return Err(Reject::Reserved);
    }
    let code = match wire.code.get() {
        wire::PAGE_RESP_SUCCESS => ResponseCode::Success,
        wire::PAGE_RESP_INVALID => ResponseCode::Invalid,
        wire::PAGE_RESP_FAILURE => ResponseCode::Failure,
        unknown => return Err(Reject::ResponseCode(unknown)),
    };
    let endpoint = EndpointId(wire.endpoint.get());
    let pasid = has_pasid.then_some(Pasid(pasid));
    Ok(Request::PageResponse { to: RequestGroup { endpoint, pasid, group: wire.group_id.get() }, code })
}
