// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device's state as bytes, to go on elsewhere: in another process, on another machine.
//!
//! The state is written as the requests that lead to it, in wire format. So whoever reads it needs no second set of
//! rules: each request is checked, applied to the host and committed as if the driver had sent it, and what does not
//! fit there is refused for the reason that a driver would be given. What is not in it: events that wait (the
//! specification allows to lose them), and how endpoints lingered after a reset.
//!
//! | bytes | hold                                                          |
//! |-------|---------------------------------------------------------------|
//! | 0..8  | [`MAGIC`]                                                     |
//! | 8..12 | [`VERSION`], little-endian like everything that follows       |
//! | 12    | `bypass`, 0 or 1                                              |
//! | 13..16| 0                                                             |
//! | 16..24| the features that were negotiated                             |
//! | 24..32| how many bytes of requests follow                             |
//! | 32..  | the readable parts of ATTACH (20 bytes) and MAP (36 bytes)    |

use alloc::vec::Vec;

use thiserror::Error;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::wire::{ATTACH_F_BYPASS, Head, MAP_F_MMIO, ReqAttach, ReqMap, RequestType};
use crate::{Device, DomainId, EndpointId, Mapping, Mode};

/// What a state begins with.
pub const MAGIC: [u8; 8] = *b"viommu\0\x01";
/// The version of the format that this describes.
pub const VERSION: u32 = 1;
/// Bytes before the requests.
pub const HEADER_SIZE: usize = size_of::<Header>();

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: U32,
    bypass: u8,
    reserved: [u8; 3],
    features: U64,
    requests_size: U64,
}
const _: () = assert!(HEADER_SIZE == 32);

/// Why bytes are no state of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum StateError {
    /// They do not begin with [`MAGIC`].
    #[error("this is no state of a virtio-iommu device")]
    NotAState,
    /// A version that is not known here.
    #[error("the state has version {0}, and version {VERSION} alone is known here")]
    Version(u32),
    /// A byte of the header that has to be something else.
    #[error("the state's header holds what no header can")]
    Header,
    /// Fewer or more bytes than the header says.
    #[error("the state says that it has {expected} bytes of requests, and has {found}")]
    Size {
        /// Bytes that the header says.
        expected: u64,
        /// Bytes that there are.
        found: usize,
    },
    /// What stands where a request should, so many bytes into the requests.
    #[error("no ATTACH and no MAP stands at byte {0} of the state's requests")]
    Request(usize),
}

/// A state, read: what has to be done to a device that has just been reset, in this order.
#[derive(Clone, Copy, Debug)]
pub struct SavedState<'a> {
    /// The features to be negotiated.
    pub features: u64,
    /// `bypass`, to be written to the configuration space.
    pub bypass: bool,
    requests: &'a [u8],
}

impl<'a> SavedState<'a> {
    /// Reads `bytes`; what the requests say is not looked into.
    ///
    /// # Errors
    /// They are no state of a device.
    pub fn parse(bytes: &'a [u8]) -> Result<SavedState<'a>, StateError> {
        let (header, requests) = Header::read_from_prefix(bytes).map_err(|_| StateError::NotAState)?;
        if header.magic != MAGIC {
            return Err(StateError::NotAState);
        }
        if header.version.get() != VERSION {
            return Err(StateError::Version(header.version.get()));
        }
        if header.bypass > 1 || header.reserved != [0; 3] {
            return Err(StateError::Header);
        }
        let expected = header.requests_size.get();
        if requests.len() as u64 != expected {
            return Err(StateError::Size { expected, found: requests.len() });
        }
        let state = SavedState { features: header.features.get(), bypass: header.bypass == 1, requests };
        state.requests().find_map(Result::err).map_or(Ok(state), Err)
    }

    /// The readable part of each request, each of which has a tail of 4 bytes for an answer.
    ///
    /// # Errors
    /// Bytes that are none, after which nothing comes; not of a state that [`parse`](SavedState::parse) has read.
    pub fn requests(&self) -> impl Iterator<Item = Result<&'a [u8], StateError>> + use<'a> {
        let (all, mut rest) = (self.requests, self.requests);
        core::iter::from_fn(move || {
            let kind = RequestType(*rest.first()?);
            let size = match kind {
                RequestType::ATTACH => size_of::<ReqAttach>(),
                RequestType::MAP => size_of::<ReqMap>(),
                _ => usize::MAX,
            };
            let Some((request, left)) = rest.split_at_checked(size) else {
                let at = all.len().saturating_sub(rest.len());
                rest = &[];
                return Some(Err(StateError::Request(at)));
            };
            rest = left;
            Some(Ok(request))
        })
    }
}

impl Device {
    /// The state, as bytes for [`SavedState::parse`]; nothing for a device of tables, whose caches cannot be moved.
    pub fn save(&self) -> Option<Vec<u8>> {
        if self.mode() != Mode::Map {
            return None;
        }
        let mut bytes = Vec::from([0; HEADER_SIZE]);
        let domains = self.endpoints().filter_map(|endpoint| Some((endpoint, self.domain_of(endpoint)?)));
        for (endpoint, id) in domains {
            let Some(domain) = self.domain(id) else { continue };
            bytes.extend_from_slice(attach(id, endpoint, domain.is_bypass()).as_bytes());
            // Those that come after it enter an address space that is complete.
            if domain.endpoints().next() == Some(endpoint) {
                domain.mappings().for_each(|mapping| bytes.extend_from_slice(map(id, &mapping).as_bytes()));
            }
        }
        let requests_size = bytes.len().saturating_sub(HEADER_SIZE) as u64;
        let header = Header {
            magic: MAGIC,
            version: VERSION.into(),
            bypass: self.bypass().into(),
            reserved: [0; 3],
            features: self.negotiated_bits().into(),
            requests_size: requests_size.into(),
        };
        // There is room for it, since it was made.
        let _ = header.write_to_prefix(&mut bytes);
        Some(bytes)
    }

    /// The most bytes that the state of this device can take.
    pub fn state_size_max(&self) -> usize {
        let attaches = self.endpoints().count().saturating_mul(size_of::<ReqAttach>());
        let maps = self.mappings_max().saturating_mul(size_of::<ReqMap>());
        HEADER_SIZE.saturating_add(attaches).saturating_add(maps)
    }
}

fn head(kind: RequestType) -> Head {
    Head { kind, reserved: [0; 3] }
}

fn attach(domain: DomainId, endpoint: EndpointId, is_bypass: bool) -> ReqAttach {
    ReqAttach {
        head: head(RequestType::ATTACH),
        domain: domain.0.into(),
        endpoint: endpoint.0.into(),
        flags: if is_bypass { ATTACH_F_BYPASS } else { 0 }.into(),
        reserved: [0; 4],
    }
}

fn map(domain: DomainId, mapping: &Mapping) -> ReqMap {
    let mmio = if mapping.target.mmio { MAP_F_MMIO } else { 0 };
    ReqMap {
        head: head(RequestType::MAP),
        domain: domain.0.into(),
        virt_start: mapping.range.start().into(),
        virt_last: mapping.range.last().into(),
        phys_start: mapping.target.gpa.0.into(),
        flags: (mapping.target.access.bits() | mmio).into(),
    }
}
