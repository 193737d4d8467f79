// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Well-formed requests; a test that wants a malformed one changes a field.
//!
//! Decides nothing about what a device makes of them.

use viommu_core::wire::{
    self, DescriptorArmSmmu3, DescriptorIntelPt, Head, ReqAttach, ReqAttachTable, ReqDetach, ReqInvalidate,
    ReqMap, ReqPageResp, ReqProbe, ReqUnmap, RequestType, Tail,
};
use viommu_core::{IovaRange, PROBE_SIZE};
use zerocopy::{FromZeros, IntoBytes};

/// Bytes of the writable part of every request but PROBE.
pub const TAIL_SIZE: usize = size_of::<Tail>();
/// Bytes of the writable part of PROBE.
pub const PROBE_REPLY_SIZE: usize = PROBE_SIZE + TAIL_SIZE;

/// The bytes of a request, and of the writable part that a driver gives with it.
pub trait Wire {
    /// The readable part.
    fn readable(&self) -> Vec<u8>;
    /// The exact size of the writable part.
    fn writable(&self) -> usize;
}

macro_rules! wire {
    ($($request:ty: $writable:expr),*) => {
        $(impl Wire for $request {
            fn readable(&self) -> Vec<u8> {
                self.as_bytes().to_vec()
            }

            fn writable(&self) -> usize {
                $writable
            }
        })*
    };
}

wire!(ReqAttach: TAIL_SIZE, ReqDetach: TAIL_SIZE, ReqMap: TAIL_SIZE, ReqUnmap: TAIL_SIZE, ReqProbe: PROBE_REPLY_SIZE,
    ReqAttachTable: TAIL_SIZE, ReqInvalidate: TAIL_SIZE, ReqPageResp: TAIL_SIZE);

fn head(kind: RequestType) -> Head {
    Head { kind, reserved: [0; 3] }
}

/// ATTACH without flags.
pub fn attach(domain: u32, endpoint: u32) -> ReqAttach {
    ReqAttach {
        head: head(RequestType::ATTACH),
        domain: domain.into(),
        endpoint: endpoint.into(),
        flags: 0.into(),
        reserved: [0; 4],
    }
}

/// ATTACH to a bypass domain.
pub fn attach_bypass(domain: u32, endpoint: u32) -> ReqAttach {
    ReqAttach { flags: viommu_core::wire::ATTACH_F_BYPASS.into(), ..attach(domain, endpoint) }
}

/// DETACH.
pub fn detach(domain: u32, endpoint: u32) -> ReqDetach {
    ReqDetach {
        head: head(RequestType::DETACH),
        domain: domain.into(),
        endpoint: endpoint.into(),
        reserved: [0; 8],
    }
}

/// MAP of `start..=last`.
pub fn map(domain: u32, (start, last): (u64, u64), phys_start: u64, flags: u32) -> ReqMap {
    ReqMap {
        head: head(RequestType::MAP),
        domain: domain.into(),
        virt_start: start.into(),
        virt_last: last.into(),
        phys_start: phys_start.into(),
        flags: flags.into(),
    }
}

/// UNMAP of `start..=last`.
pub fn unmap(domain: u32, (start, last): (u64, u64)) -> ReqUnmap {
    ReqUnmap {
        head: head(RequestType::UNMAP),
        domain: domain.into(),
        virt_start: start.into(),
        virt_last: last.into(),
        reserved: [0; 4],
    }
}

/// PROBE.
pub fn probe(endpoint: u32) -> ReqProbe {
    ReqProbe { head: head(RequestType::PROBE), endpoint: endpoint.into(), reserved: [0; 64] }
}

/// ATTACH_TABLE with a stream table entry.
pub fn attach_ste(domain: u32, endpoint: u32, [ste0, ste1]: [u64; 2]) -> ReqAttachTable {
    let descriptor =
        DescriptorArmSmmu3 { reserved: [0; 3], ste0: ste0.into(), ste1: ste1.into(), reserved1: [0; 92] };
    attach_table(domain, endpoint, wire::FORMAT_ARM_SMMU3, &descriptor)
}

/// ATTACH_TABLE with a table of VT-d of four levels.
pub fn attach_pt(domain: u32, endpoint: u32, pasid: Option<u32>, root: u64) -> ReqAttachTable {
    let descriptor = DescriptorIntelPt {
        pgd: root.into(),
        addr_width: 48.into(),
        pasid: pasid.unwrap_or(0).into(),
        attach_flags: u32::from(pasid.is_some()).into(),
        ..DescriptorIntelPt::new_zeroed()
    };
    attach_table(domain, endpoint, wire::FORMAT_INTEL_PT, &descriptor)
}

/// ATTACH_TABLE that leaves a PASID without a table.
pub fn attach_none(domain: u32, endpoint: u32, pasid: u32) -> ReqAttachTable {
    let descriptor = DescriptorIntelPt {
        pasid: pasid.into(),
        attach_flags: wire::ATTACH_TABLE_F_PASID.into(),
        ..DescriptorIntelPt::new_zeroed()
    };
    attach_table(domain, endpoint, wire::FORMAT_NONE, &descriptor)
}

/// ATTACH_TABLE with any descriptor.
///
/// # Panics
/// When it has not the size of one, which is a mistake of the test.
pub fn attach_table<T: IntoBytes + zerocopy::Immutable>(
    domain: u32,
    endpoint: u32,
    format: u8,
    descriptor: &T,
) -> ReqAttachTable {
    ReqAttachTable {
        head: head(RequestType::ATTACH_TABLE),
        domain: domain.into(),
        endpoint: endpoint.into(),
        format,
        descriptor: descriptor.as_bytes().try_into().expect("a descriptor"),
    }
}

/// INVALIDATE of everything in all caches of a domain.
pub fn invalidate(domain: u32) -> ReqInvalidate {
    ReqInvalidate {
        head: head(RequestType::INVALIDATE),
        scope: wire::INVALIDATE_S_DOMAIN,
        caches: 3,
        domain: domain.into(),
        ..ReqInvalidate::new_zeroed()
    }
}

/// INVALIDATE of the translations of `pages` pages.
pub fn invalidate_pages(domain: u32, address: u64, pages: u64, page_size: u8) -> ReqInvalidate {
    ReqInvalidate {
        scope: wire::INVALIDATE_S_ADDRESS,
        caches: 2,
        address: address.into(),
        nr_pages: pages.into(),
        page_size,
        ..invalidate(domain)
    }
}

/// PAGE_RESP.
pub fn page_response(endpoint: u32, pasid: Option<u32>, group: u32, code: u16) -> ReqPageResp {
    ReqPageResp {
        head: head(RequestType::PAGE_RESP),
        endpoint: endpoint.into(),
        flags: u32::from(pasid.is_some()).into(),
        pasid: pasid.unwrap_or(0).into(),
        group_id: group.into(),
        code: code.into(),
        reserved: [0; 10],
    }
}

/// The range `start..=last`.
///
/// # Panics
/// When it is reversed, which is a mistake of the test.
pub fn range(start: u64, last: u64) -> IovaRange {
    IovaRange::new(start, last).expect("start <= last")
}
