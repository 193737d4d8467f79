// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Every request type of the device, one row each: lay it beside the specification.

use crate::wire::{self, RequestType, Tail};
use crate::{Features, Reject};

use super::tables::{attach_table, invalidate, page_response};
use super::{Request, attach, detach, map, probe, unmap};

/// What the writable part of a request holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The tail alone.
    Tail,
    /// `probe_size` bytes of properties, then the tail.
    PropertiesAndTail,
}

impl Answer {
    /// Bytes of a whole answer.
    pub const fn size(self, probe_size: usize) -> usize {
        match self {
            Answer::Tail => size_of::<Tail>(),
            Answer::PropertiesAndTail => probe_size.saturating_add(size_of::<Tail>()),
        }
    }
}

/// One type of request.
#[derive(Debug)]
pub struct Row {
    /// The value of `head.type`.
    pub kind: RequestType,
    /// The specification's name.
    pub name: &'static str,
    /// Bytes of the readable part.
    pub readable_size: usize,
    /// What the writable part holds.
    pub answer: Answer,
    /// Without it in the negotiated features the type is not recognised.
    pub negotiated: Features,
    /// The normative section, as the specification labels it; of [`manual::tables`](crate::manual::tables) for those of
    /// the table extension.
    pub label: &'static str,
    pub(super) parse: fn(&[u8], Features) -> Result<Request, Reject>,
}

//= tables#Feature bit T4
// The rows of the extension ask for its feature.
//= virtio#devicenormative:IOMMU/PROBE request A42a A42b
// PROBE asks for no negotiated feature: what counts is that the device offers it.
/// The request types.
#[rustfmt::skip]
pub static TABLE: [Row; 8] = [
    Row { kind: RequestType::ATTACH, name: "ATTACH", readable_size: size_of::<wire::ReqAttach>(), answer: Answer::Tail,
          negotiated: Features::empty(),   label: "IOMMU/ATTACH request", parse: attach },
    Row { kind: RequestType::DETACH, name: "DETACH", readable_size: size_of::<wire::ReqDetach>(), answer: Answer::Tail,
          negotiated: Features::empty(),   label: "IOMMU/DETACH request", parse: detach },
    Row { kind: RequestType::MAP,    name: "MAP",    readable_size: size_of::<wire::ReqMap>(),    answer: Answer::Tail,
          negotiated: Features::MAP_UNMAP, label: "IOMMU/MAP request",    parse: map },
    Row { kind: RequestType::UNMAP,  name: "UNMAP",  readable_size: size_of::<wire::ReqUnmap>(),  answer: Answer::Tail,
          negotiated: Features::MAP_UNMAP, label: "IOMMU/UNMAP request",  parse: unmap },
    Row { kind: RequestType::PROBE,  name: "PROBE",  readable_size: size_of::<wire::ReqProbe>(),  answer: Answer::PropertiesAndTail,
          negotiated: Features::empty(),   label: "IOMMU/PROBE request",  parse: probe },
    Row { kind: RequestType::ATTACH_TABLE, name: "ATTACH_TABLE", readable_size: size_of::<wire::ReqAttachTable>(), answer: Answer::Tail,
          negotiated: Features::ATTACH_TABLE, label: "ATTACH_TABLE", parse: attach_table },
    Row { kind: RequestType::INVALIDATE,   name: "INVALIDATE",   readable_size: size_of::<wire::ReqInvalidate>(),  answer: Answer::Tail,
          negotiated: Features::ATTACH_TABLE, label: "INVALIDATE",   parse: invalidate },
    Row { kind: RequestType::PAGE_RESP,    name: "PAGE_RESP",    readable_size: size_of::<wire::ReqPageResp>(),    answer: Answer::Tail,
          negotiated: Features::ATTACH_TABLE, label: "PAGE_RESP",    parse: page_response },
];

/// The row of a type that is recognised under the negotiated features.
pub fn row(kind: RequestType, negotiated: Features) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.kind == kind && negotiated.contains(row.negotiated))
}
