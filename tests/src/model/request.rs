// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Well-formed requests; a test that wants a malformed one changes a field.
//!
//! Decides nothing about what a device makes of them.

use viommu_core::wire::{Head, ReqAttach, ReqDetach, ReqMap, ReqProbe, ReqUnmap, RequestType, Tail};
use viommu_core::{IovaRange, PROBE_SIZE};
use zerocopy::IntoBytes;

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

wire!(ReqAttach: TAIL_SIZE, ReqDetach: TAIL_SIZE, ReqMap: TAIL_SIZE, ReqUnmap: TAIL_SIZE, ReqProbe: PROBE_REPLY_SIZE);

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

/// The range `start..=last`.
///
/// # Panics
/// When it is reversed, which is a mistake of the test.
pub fn range(start: u64, last: u64) -> IovaRange {
    IovaRange::new(start, last).expect("start <= last")
}
